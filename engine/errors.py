"""Every error that Calotype raises on purpose.

CalotypeError
├── DefinitionError             a node definition cannot work (one subclass per misuse of @node)
│   ├── BadNodeType             the type is not `name` or `group.name`
│   ├── BadVersion              the version is not a positive int
│   ├── MissingDocstring        no first line to serve as help text
│   ├── NotAPlainFunction       async, generator, class or lambda
│   ├── VariadicParameter       *args or **kwargs
│   ├── PositionalOnlyParameter a parameter that cannot be given by name
│   ├── MissingAnnotation       a parameter without a type
│   ├── UnsupportedAnnotation   a type that is neither socket, Context nor JSON-able
│   ├── OptionalInputDefault    `T | None` without `= None`, or a default on a required socket
│   ├── SeveralContexts         more than one Context parameter
│   ├── BadDefault              a default that its own constraints refuse
│   ├── MissingReturn           no return annotation
│   ├── UnsupportedReturn       returns neither a socket nor a NamedTuple of sockets
│   ├── BadGatherer             gathers=True without the parameters that a grid needs
│   └── BadCompanion            many is no generator function
├── RegistryError               two definitions or sockets claim one name
├── GraphError                  a graph document is refused: all problems at once
├── FileError                   a file parameter names nothing that may be read
│   └── FileChanged             a file is no longer what the plan digested
├── RunError
│   ├── NodeFailed              a node raised; names it, keeps the cause
│   ├── OutputRefused           a node returned what its signature does not promise
│   ├── InputMutated            a node wrote into its inputs
│   ├── NotDeterministic        a node gave another value than its trace promised
│   ├── OutOfMemory             every rung of the ladder was tried
│   └── RunFailed               a run ended with failed nodes
└── CacheError                  a cache folder cannot be used

Cancelled                       a BaseException, so that no node swallows it
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass


class CalotypeError(Exception):
    """Root of everything that Calotype raises on purpose."""


class DefinitionError(CalotypeError):
    """A node definition cannot work; the message names the node and the parameter."""


class BadNodeType(DefinitionError):
    """The node type is not `name` or `group.name` in lower case."""


class BadVersion(DefinitionError):
    """The version is not a positive int."""


class MissingDocstring(DefinitionError):
    """The function has no docstring, so the node has no help text."""


class NotAPlainFunction(DefinitionError):
    """Nodes are plain functions: not async, not generators, not classes, not lambdas."""


class VariadicParameter(DefinitionError):
    """A node cannot take *args or **kwargs: its signature is its only description."""


class PositionalOnlyParameter(DefinitionError):
    """Every parameter must be addressable by name."""


class MissingAnnotation(DefinitionError):
    """A parameter has no type."""


class UnsupportedAnnotation(DefinitionError):
    """A parameter's type is neither a socket, nor Context, nor JSON-able."""


class OptionalInputDefault(DefinitionError):
    """An optional input is written `T | None = None`; a required one has no default."""


class SeveralContexts(DefinitionError):
    """A node takes at most one Context."""


class BadDefault(DefinitionError):
    """A parameter's default is refused by its own type or constraints."""


class MissingReturn(DefinitionError):
    """The function does not say what it returns."""


class UnsupportedReturn(DefinitionError):
    """A node returns one socket, or a NamedTuple of sockets."""


class BadGatherer(DefinitionError):
    """A gathering node takes one list of sockets and the parameters columns, x_labels, y_labels."""


class BadCompanion(DefinitionError):
    """`many` is not a generator function."""


class RegistryError(CalotypeError):
    """Two definitions or two socket classes claim one name."""


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing wrong with a graph: where it is, what it is, and what to do."""

    path: str
    message: str
    code: str = "invalid"

    def __str__(self) -> str:
        """`path: message`."""
        return f"{self.path}: {self.message}" if self.path else self.message


class GraphError(CalotypeError):
    """A graph is refused. `problems` lists everything that is wrong with it, not just the first thing."""

    def __init__(self, problems: Sequence[Problem]) -> None:
        self.problems = tuple(problems)
        super().__init__("\n".join(map(str, self.problems)))


class FileError(CalotypeError):
    """A file parameter names nothing that may be read."""


class FileChanged(FileError):
    """A file is no longer what the plan digested; the run plans it again."""


class RunError(CalotypeError):
    """Something went wrong while a graph ran."""


class NodeFailed(RunError):
    """A node raised. `node` and `type` name it; `__cause__` is what it raised."""

    def __init__(self, node: str, type_: str, cause: BaseException) -> None:
        self.node, self.type = node, type_
        super().__init__(f"{node} ({type_}): {type(cause).__name__}: {cause}")
        self.__cause__ = cause


class OutputRefused(RunError):
    """A node returned something else than its signature promises."""


class InputMutated(RunError):
    """A node wrote into one of its inputs. The damaged value has been dropped from the cache."""


class NotDeterministic(RunError):
    """A node run again gave another value than its trace promised."""


class OutOfMemory(RunError):
    """Memory ran out after everything unpinned was freed and the node was tried again."""


class RunFailed(RunError):
    """A run ended with failed nodes. `failures` maps node ids to what they raised."""

    def __init__(self, failures: Mapping[str, BaseException]) -> None:
        self.failures = dict(failures)
        super().__init__("\n".join(str(failure) for failure in self.failures.values()))


class CacheError(CalotypeError):
    """A cache folder cannot be used."""


class Cancelled(BaseException):
    """The run was cancelled. What finished before is kept; the node that was running leaves no trace."""
