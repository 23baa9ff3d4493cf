"""The Python in the documentation runs, in the order of each page, and prints what the page says it prints."""

import sys
from types import ModuleType

import pytest
from pages import DOCS, ROOT, blocks, printed

from engine.graph import Graph
from engine.program import validate
from engine.registry import Registry
from nodes import NODES

PAGES = [ROOT / "README.md", *sorted(path for path in DOCS.glob("*.md") if path.name != "http.md")]
"""The page on HTTP needs a service; it has tests of its own."""


def execute(page, namespace):
    """Run the blocks marked `python`; a block marked `text output` says what the last one printed."""
    said = ""
    for block in blocks(page.read_text(encoding="utf-8")):
        if block.info == "python":
            said = printed(block, page, namespace)
        elif block.info == "text output":
            assert said == block.body, f"{page}:{block.line} says otherwise"


@pytest.fixture
def namespace(monkeypatch, tmp_path):
    """The globals of a module of its own, in an empty working folder."""
    module = ModuleType("page")
    monkeypatch.setitem(sys.modules, "page", module)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("CALOTYPE_CACHE", raising=False)
    return vars(module)


@pytest.mark.parametrize("page", [page for page in PAGES if page.exists()], ids=lambda page: page.name)
def test_the_examples_of_a_page_run(page, namespace):
    execute(page, namespace)


def test_the_documents_shown_are_valid():
    registry, shown = Registry(NODES), []
    for page in [*PAGES, DOCS / "http.md"]:
        shown += [block.body for block in blocks(page.read_text(encoding="utf-8")) if block.info == "json"]
    documents = [text for text in shown if '"format"' in text]
    assert documents
    for text in documents:
        assert validate(Graph.parse(text), registry) == []


def test_a_wrong_example_is_found_on_its_line(tmp_path, namespace):
    page = tmp_path / "page.md"
    page.write_text("Prose.\n\n```python\nassert 1 + 1 == 3\n```\n")
    with pytest.raises(AssertionError) as caught:
        execute(page, namespace)
    assert caught.traceback[-1].lineno + 1 == 4


def test_an_output_that_the_code_does_not_print_is_found(tmp_path, namespace):
    page = tmp_path / "page.md"
    page.write_text("```python\nprint(2)\n```\n\n```text output\n3\n```\n")
    with pytest.raises(AssertionError, match="says otherwise"):
        execute(page, namespace)
