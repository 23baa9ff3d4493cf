"""Client of Calotype's service (`calotype serve`), blocking and asynchronous.

    from calotype.client import Client

    with Client() as client:
        run = client.submit("inpaint_after_img2img", set={"inpaint_prompt": "crying face"})
        run.result(progress=True)
        run.picture("image").show()

It needs no torch and no engine. Submissions carry a key, so that one that is sent again after a lost connection is not
run again; waiting and following outlast restarts of the service.
"""

from calotype.client.asynchronous import AsyncClient, AsyncRun
from calotype.client.blocking import Client, Run
from calotype.client.errors import RunEnded, ServiceError, Unreachable
from calotype.client.events import Event
from server.rows import State
from server.signature import BadSignature, key, verify

__all__ = [
    "AsyncClient",
    "AsyncRun",
    "BadSignature",
    "Client",
    "Event",
    "Run",
    "RunEnded",
    "ServiceError",
    "State",
    "Unreachable",
    "key",
    "verify",
]
