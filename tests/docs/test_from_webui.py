"""Every row of the table for those who come from the WebUI leads where it says, and runs."""

import re

import pytest

from calotype import Engine, find, labels
from calotype.reference import DOCS

PAGE = (DOCS / "from-webui.md").read_text(encoding="utf-8")
CELL = re.compile(r"\| ([^|]+) \| `([^`|]+)` \| `([^`|]+)` \| `([^`|]+)` \| `([^`|]+)` \|")
WORDS = re.compile(r"^\| [^|]+ \| `([^`|]+)` \| ([^|]+: `[^|]+`) \|$", re.MULTILINE)
ROWS = {found[1]: found.groups() for found in map(CELL.fullmatch, PAGE.splitlines()) if found}


@pytest.fixture(scope="module")
def engine():
    with Engine(device="cpu", strict=True) as house:
        yield house


def test_the_table_is_not_empty():
    assert len(ROWS) > 50


@pytest.mark.parametrize("control", ROWS)
def test_a_row_leads_where_it_says(engine, control):
    _, name, target, graph, example = ROWS[control]
    found = find(graph)
    node, param = found.locate(name)
    assert f"{found.node_type(node)}.{param}" == target
    assert example.startswith(f"{name}=")


@pytest.mark.parametrize("control", ROWS)
def test_the_example_of_a_row_runs(engine, control):
    _, name, _, graph, example = ROWS[control]
    found = find(graph)
    node, param = found.locate(name)
    definition = engine.registry[found.node_type(node)]
    value = definition.params[param].parse_text(example.partition("=")[2])
    quick = found.set(steps=2).set({name: value})
    result = engine.run(quick)
    assert result["image"].data.float().std() > 10


def test_the_words_of_the_page_are_those_of_the_graphs():
    said = dict(WORDS.findall(PAGE))
    tables = {
        "resize": labels.RESIZE,
        "content": labels.CONTENT,
        "area": labels.AREA,
        "weighting": labels.EMPHASIS,
        "upscaler": labels.UPSCALERS,
        "sampler": labels.SAMPLERS,
        "schedule": labels.SCHEDULES,
    }
    assert said.keys() == tables.keys()
    for name, words in tables.items():
        listed = dict(pair.split(": ") for pair in said[name].replace("`", "").split("; "))
        assert listed == {label: word for word, label in words.items()}


def test_every_saved_graph_that_the_page_names_is_there():
    linked = set(re.findall(r"\.\./graphs/(\w+)\.json", PAGE))
    assert len(linked) > 10
    for name in linked:
        assert find(name).title()
