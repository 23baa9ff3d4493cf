"""The generated parts of the documentation are those of this code."""

from enum import Enum
from typing import Annotated, Literal, NamedTuple

import jsonschema
import pytest
from annotated_types import Ge, Gt, Le, Len, MultipleOf

from calotype import reference
from calotype.library import SAVED, graphs_in
from engine.context import Context
from engine.file import File, ModelFile
from engine.graph import Graph
from engine.node import definition, node
from engine.param import Fresh, Unit
from engine.socket import Int, Text
from nodes import prompt


class Mood(Enum):
    CALM = "calm"
    WILD = "wild"


class Both(NamedTuple):
    count: Int
    words: Text


@node("doc.full", version=3)
def full(  # noqa: PLR0917  one of each
    first: Text,
    rest: tuple[Text, ...],
    source: File,
    model: ModelFile,
    size: tuple[int, int],
    context: Context,
    last: Int | None = None,
    layer: File | None = None,
    width: Annotated[int, Ge(8), Le(64), MultipleOf(8), Unit("px")] | None = None,
    factor: Annotated[float, Gt(0), Le(2)] = 1.0,
    seed: Annotated[int, Ge(-1), Le(2**64 - 1), Fresh(-1, 1 << 32)] = -1,
    names: Annotated[list[str], Len(1, 3)] = ["é"],  # noqa: B006  read, never written
    mode: Literal["a", "b"] = "a",
    mood: Mood = Mood.CALM,
    colour: Annotated[str, Unit("#rrggbb")] = "#ffffff",
    *,
    flag: bool = True,
) -> Both:
    """One of each.

    And more of it.
    """
    return Both(Int(1), Text(""))


def test_a_node_is_described_in_full():
    assert reference.describe(definition(full)) == (
        """doc.full (version 3)

One of each.

And more of it.

Inputs:

- `first`: Text
- `rest`: list of Text
- `last`: Int, optional

Parameters:

- `source`: name of a file; required
- `model`: name of a model; required
- `size`: [integer, integer]; required
- `layer`: name of a file, or null; default null
- `width`: integer 8..64, a multiple of 8 px, or null; default null
- `factor`: number above 0, at most 2; default 1.0
- `seed`: integer -1..2^64 - 1; -1 draws a new one at each submission; default -1
- `names`: list of text at least 1 of them, at most 3 of them; default ["é"]
- `mode`: "a" | "b"; default "a"
- `mood`: "calm" | "wild"; default "calm"
- `colour`: text (#rrggbb); default "#ffffff"
- `flag`: true or false; default true

Outputs:

- `count`: Int
- `words`: Text"""
    )


def test_a_text_that_mentions_files_is_described_as_a_text():
    described = reference.describe(definition(prompt.prompt))
    assert '- `text`: text; default ""' in described
    assert '- `source`: name of a table of styles; default "styles.csv"' in described


def test_the_generated_parts_are_fresh():
    for path, text in reference.generated().items():
        assert path.read_text(encoding="utf-8") == text, f"{path.name} is stale: run `make docs`"


def test_settings_refusals_and_figures_of_the_service_stand_in_tables():
    page = reference.generated()[reference.DOCS / "http.md"].splitlines()
    assert "| `limits.steps` | `200` | Steps of one sampler. |" in page
    assert "| `webhooks.secret` |  | Secret that signs the calls. |" in page
    assert "| `queue-full` | 503 | The queue is full |" in page
    assert "| `calotype_runs_total` | counter | Runs that ended, by state. |" in page
    assert "| `calotype_queue_depth` | gauge | Runs that wait or run. |" in page


def test_writing_them_again_changes_nothing(monkeypatch, tmp_path):
    for path in reference.generated():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    monkeypatch.setattr(reference, "DOCS", tmp_path)
    monkeypatch.setattr(reference, "SCHEMA", tmp_path / reference.SCHEMA.name)
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    reference.main()
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_a_page_without_its_markers_is_named(monkeypatch, tmp_path):
    for name in ("nodes.md", "graphs.md"):
        (tmp_path / name).write_text("nothing to fill in\n")
    monkeypatch.setattr(reference, "DOCS", tmp_path)
    with pytest.raises(ValueError, match=r"nodes\.md lacks the lines"):
        reference.generated()


def test_the_schema_accepts_the_saved_graphs_and_refuses_what_parsing_refuses():
    validator = jsonschema.Draft202012Validator(reference.schema())
    validator.check_schema(reference.schema())
    for path in graphs_in(SAVED):
        validator.validate(Graph.load(path).dump(inline=True))
    for wrong in (
        {},
        {"format": "calotype/2", "nodes": {}},
        {"format": "calotype/1", "nodes": {"a": {}}},
        {"format": "calotype/1", "nodes": {}, "node": {}},
        {"format": "calotype/1", "nodes": {}, "sweep": {"x": {"a.b": []}}},
        {"format": "calotype/1", "nodes": {}, "outputs": {"image": "a.b.c"}},
    ):
        assert not validator.is_valid(wrong)
