"""What goes wrong between a client and its service.

CalotypeError
├── ServiceError    the service refused: status, kind, detail, problems
├── Unreachable     it did not answer, however often it was asked
└── RunEnded        a run ended otherwise than with what was asked of it
"""

from collections.abc import Mapping, Sequence
from typing import Any, Self

import httpx2

from engine.errors import CalotypeError, Problem

_TYPE = "urn:calotype:problem:"


class ServiceError(CalotypeError):
    """The service refused. `kind` is one of its kinds of problems, `problems` is everything that is wrong with a graph.

    `document` is the whole problem document. An answer that is none has the kind `unexpected`.
    """

    def __init__(
        self,
        status: int,
        kind: str,
        detail: str,
        problems: Sequence[Problem] = (),
        document: Mapping[str, Any] | None = None,
    ) -> None:
        self.status, self.kind, self.detail, self.problems = status, kind, detail, tuple(problems)
        self.document = dict(document or {})
        many = [f"{self.document.get('title', 'refused')}:", *map(str, problems)] if len(problems) > 1 else [detail]
        super().__init__("\n".join(many))


class Unreachable(CalotypeError):
    """No answer came."""

    @classmethod
    def of(cls, error: httpx2.TransportError) -> Self:
        """The same in words that help."""
        try:
            place = f"{error.request.url.scheme}://{error.request.url.netloc.decode()}"
        except RuntimeError:  # it never came to a request
            place = "the service"
        made = cls(f"{place} does not answer ({type(error).__name__}: {error}); is `calotype serve` running there?")
        made.__cause__ = error
        return made


class RunEnded(CalotypeError):
    """A run failed or was cancelled, or lacks an output. `state` is its state, `problems` say why."""

    def __init__(self, run: str, state: str, problems: Sequence[Problem]) -> None:
        self.run, self.state, self.problems = run, state, tuple(problems)
        super().__init__("\n".join([f"run {run}: {state}", *map(str, problems)]))


def refusal(answer: httpx2.Response) -> ServiceError:
    """The error that an answer amounts to."""
    try:
        document = answer.json()
        kind = str(document["type"])
        problems = [
            Problem(str(item.get("path", "")), str(item.get("message", "")), str(item.get("code", "invalid")))
            for item in document.get("problems", ())
        ]
        detail = str(document.get("detail", document.get("title", "")))
    except (ValueError, LookupError, TypeError, AttributeError):
        text = f"{answer.url} answered {answer.status_code} {answer.reason_phrase}: {answer.text[:200]!r}"
        return ServiceError(answer.status_code, "unexpected", text)
    return ServiceError(answer.status_code, kind.removeprefix(_TYPE), detail, problems, document)
