"""Servers that are forked from a process that has imported everything, so that killing many of them is cheap."""

import json
import os
import random
import select
import signal
import socket
import subprocess
import sys

from serving import PATIENCE, ROOT, Serving

_NURSERY = """
import ctypes, json, os, random, sys

import calotype.__main__, calotype.service
from diffusers import AutoencoderKL, UNet2DConditionModel
from transformers import CLIPTextModel, CLIPTokenizer
import server.runs


def follow_parent():
    ctypes.CDLL(None).prctl(1, 9)  # whoever ends this process's parent, ends this process


def live(wish):
    follow_parent()
    os.chdir(wish["folder"])
    os.environ.update(wish["environment"])
    log = os.open(wish["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    nothing = os.open(os.devnull, os.O_RDONLY)
    for target, source in {0: nothing, 1: log, 2: log}.items():
        os.dup2(source, target)
    random.seed()
    server.runs._IDS.seed()
    exec(wish["twist"], {})
    sys.argv = ["calotype", "serve"]
    calotype.__main__.main()


follow_parent()
while line := sys.stdin.readline():
    child = os.fork()
    if not child:
        live(json.loads(line))
        os._exit(0)
    print(child, flush=True)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


class Nursery:
    """A process that imports everything once, then forks `calotype serve` as often as it is asked to, one at a time."""

    def __init__(self):
        names = (name for name in os.environ if not name.startswith(("CALOTYPE_", "XDG_")))
        threads = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
        environment = {name: os.environ[name] for name in names} | threads | {"OMP_WAIT_POLICY": "PASSIVE"}
        self._process = subprocess.Popen(
            [sys.executable, "-c", _NURSERY],
            cwd=ROOT,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            bufsize=0,
        )

    def bear(self, wish):
        """Fork one."""
        self._process.stdin.write(json.dumps(wish).encode() + b"\n")
        return Child(int(self._process.stdout.readline()), self._process.stdout)

    def close(self):
        """End it; its last child must have ended."""
        self._process.stdin.close()
        self._process.wait(PATIENCE)
        self._process.stdout.close()


class Child:
    """What `Serving` asks of a process, of one that the nursery started."""

    def __init__(self, pid, statuses):
        self.pid = pid
        self.returncode = None
        self._statuses = statuses

    def poll(self):
        """The exit status, None while it runs."""
        return self._look(0)

    def wait(self, timeout=PATIENCE):
        """The exit status."""
        status = self._look(timeout)
        assert status is not None, f"process {self.pid} does not end"
        return status

    def kill(self):
        """SIGKILL."""
        self.send_signal(signal.SIGKILL)

    def send_signal(self, number):
        """Send a signal, unless it has ended."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def _look(self, seconds):
        if self.returncode is None and select.select([self._statuses], [], [], seconds)[0]:
            self.returncode = int(self._statuses.readline())
        return self.returncode


class Hatched(Serving):
    """A server out of the nursery; `twist` is Python that is executed before it starts, for servers that are wrong."""

    def __init__(self, nursery, folder, *, twist="", **settings):
        super().__init__(folder, **settings)
        self._nursery = nursery
        self._twist = twist
        self.port = steady_port()
        self.url = f"http://127.0.0.1:{self.port}"

    def start(self, *, wait=True):
        """Fork it, and wait until it answers."""
        environment = {"CALOTYPE_DATA": str(self.folder / "data"), "CALOTYPE_PORT": str(self.port), **self.settings}
        wish = {"folder": str(self.folder), "log": str(self.log), "environment": environment, "twist": self._twist}
        self.process = self._nursery.bear(wish)
        if wait:
            self.wait()
        return self


def steady_port():
    """A free port that no outgoing connection is given while the server that listens there is dead."""
    while True:
        port = random.randrange(20_000, 30_000)
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)):
                return port


__all__ = ["Hatched", "Nursery", "steady_port"]
