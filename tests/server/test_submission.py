"""What is read out of a graph that is handed in, before anything of it runs."""

import toys

from calotype.library import Library
from engine.engine import Engine
from engine.graph import Graph
from server.settings import Limits
from server.submission import Preparer


class Parsing:
    """A front that knows no graphs by name."""

    def parse(self, document):
        return Graph.parse(document, Library())


def test_uploads_are_named_by_files_and_not_by_texts_that_look_like_one():
    graph = toys.graph(
        {"out": "c"},
        {
            "a": ("toy.load", {"source": "blob:1111"}),
            "b": ("toy.recite", {"poem": "blob:2222"}),
            "c": ("toy.join", {}, {"blobs": ["a", "b"]}),
        },
    )
    with Engine(toys.REGISTRY) as engine:
        prepared = Preparer(engine, Parsing(), Limits()).prepare(graph, None)
    assert prepared.blobs == ("1111",)
