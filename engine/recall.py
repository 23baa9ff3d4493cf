"""What is remembered of a graph of which nothing had to run, so that the next look at it is a short one.

A key depends on the program, on the content of files and on the engine's settings alone, and the first trace of a key
stands. So as long as the program is the same object, its files are what they were and nothing was cleared, identities
are what they were, and all there is to see is whether the same values are still there.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from engine.digest import Digest
from engine.file import File, Files
from engine.plan import Survey
from engine.program import Port
from engine.run import NodeReport
from engine.store import Store
from engine.trace import Record

Named = tuple[type[File], str]


@dataclass(frozen=True, eq=False)
class Recollection:
    """One recall, as it went."""

    wanted: Mapping[str, Port]
    epoch: int
    files: Mapping[str, File]
    digests: Mapping[Named, Digest]
    identities: Mapping[str, Digest]
    steps: Sequence[tuple[Digest, ...]]
    held: Sequence[bool]
    nodes: Mapping[str, NodeReport]
    records: Mapping[str, Record]

    @classmethod
    def of(
        cls, survey: Survey, wanted: Mapping[str, Port], nodes: Mapping[str, NodeReport], store: Store, epoch: int
    ) -> "Recollection":
        """What a survey found of which nothing has to run."""
        marks = [(position, survey.marks[position]) for position in survey.order]
        steps = [tuple(identity for identity in mark.ids if identity is not None) for _, mark in marks]
        named = survey.program.steps
        return cls(
            wanted,
            epoch,
            {f"{named[position].id}.{name}": file for position, mark in marks for name, file in mark.files.items()},
            {named[at].files[name]: file.digest for at, mark in marks for name, file in mark.files.items()},
            {name: identity for name, port in wanted.items() if (identity := survey.identity(port)) is not None},
            steps,
            _held(steps, store),
            nodes,
            {named[position].id: survey.record(position) for position, mark in marks if mark.key is not None},
        )

    def stands(self, wanted: Mapping[str, Port], files: Files, store: Store, epoch: int) -> bool:
        """Whether another look would find the same. Raises FileError where a file is gone."""
        return (
            epoch == self.epoch
            and wanted == self.wanted
            and all(files.resolve(*named).digest == digest for named, digest in self.digests.items())
            and _held(self.steps, store) == self.held
        )


def _held(steps: Sequence[tuple[Digest, ...]], store: Store) -> list[bool]:
    return [all(identity in store for identity in ids) for ids in steps]
