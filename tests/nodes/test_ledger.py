"""The ledger: a node whose source changed while its version did not would hand out stale results, so it fails here.

The digest covers the function and everything of this project that it reaches, without docstrings and comments. Where a
change cannot alter results, write the ledger anew: CALOTYPE_WRITE_LEDGER=1 pytest tests/nodes/test_ledger.py
"""

import ast
import hashlib
import importlib.util
import inspect
import json
import os
import sys
import textwrap
from collections.abc import Mapping
from pathlib import Path
from types import FunctionType, ModuleType
from unittest.mock import patch

import pytest

from engine.registry import Registry
from nodes import NODES

LEDGER = Path(__file__).with_name("ledger.json")
OURS = ("nodes", "engine.file", "engine.device")


def source_digest(function):
    """sha256 over the syntax of a function and of what it reaches in this project."""
    reached = {}
    _reach(function, reached)
    return hashlib.sha256(json.dumps(reached, sort_keys=True).encode()).hexdigest()[:16]


def _reach(found, reached):
    name = f"{found.__module__}.{found.__qualname__}"
    if name in reached:
        return
    tree = ast.parse(textwrap.dedent(inspect.getsource(found)))
    reached[name] = ast.dump(_without_docstrings(tree))
    namespace = vars(inspect.getmodule(found)) if not isinstance(found, FunctionType) else found.__globals__
    for used in _used(tree, namespace):
        for part in _parts(used):
            if isinstance(part, FunctionType | type) and part.__module__.startswith(OURS):
                _reach(part, reached)
        if (constant := _constant(used)) is not None:
            reached.setdefault(f"{name}: constants", []).append(constant)


def _parts(value):
    """A value, or what a table of values holds."""
    if isinstance(value, Mapping):
        return [value[key] for key in sorted(value, key=str)]
    return list(value) if isinstance(value, tuple | list) else [value]


def _constant(value):
    """The same text in every process, for plain values and collections of them."""
    if isinstance(value, int | float | str):
        return repr(value)
    if isinstance(value, tuple | list | frozenset | set) and all(isinstance(item, int | float | str) for item in value):
        return repr(sorted(map(repr, value)) if isinstance(value, frozenset | set) else list(value))
    return None


def _used(tree, namespace):
    """Values behind the names (`fit`, `module.fit`) that a syntax tree mentions."""
    for part in ast.walk(tree):
        if isinstance(part, ast.Name) and part.id in namespace:
            yield namespace[part.id]
        if isinstance(part, ast.Attribute) and isinstance(part.value, ast.Name):
            owner = namespace.get(part.value.id)
            if isinstance(owner, ModuleType) and owner.__name__.startswith(OURS):
                yield getattr(owner, part.attr, None)


def _without_docstrings(tree):
    for part in ast.walk(tree):
        body = getattr(part, "body", None)
        if (
            isinstance(body, list)
            and body
            and isinstance(body[0], ast.Expr)
            and isinstance(body[0].value, ast.Constant)
        ):
            part.body = body[1:] or [ast.Pass()]
    return tree


def entries():
    return {made.type: [made.version, source_digest(made.function)] for made in Registry(NODES).values()}


def stale(ledger, now):
    """Types whose source changed while the version stood still, or that nobody entered."""
    return [
        type_
        for type_, (version, digest) in now.items()
        if type_ not in ledger or (ledger[type_][0] == version and ledger[type_][1] != digest)
    ]


def test_every_change_of_a_node_raises_its_version():
    now = entries()
    if os.environ.get("CALOTYPE_WRITE_LEDGER"):
        LEDGER.write_text(json.dumps(now, indent=1) + "\n")
    ledger = json.loads(LEDGER.read_text())
    assert stale(ledger, now) == [], "raise their versions, or write the ledger anew where results cannot differ"
    assert {type_: entry[0] for type_, entry in now.items()} == {type_: entry[0] for type_, entry in ledger.items()}


TOY = '''
from engine.node import node
from engine.socket import Int

STEP = 1
TABLE = {}

def thrice(value):
    return value * 3

TABLE["thrice"] = thrice

def helper(value):
    return value + STEP

@node("toy.add", version=1)
def add(value: int = 0) -> Int:
    """Add one."""
    return Int(TABLE["thrice"](helper(value)))
'''


def toy_digest(folder, number, *edit):
    """The digest of the toy node after replacing one text by another in its module."""
    path = folder / f"toy_{number}.py"
    path.write_text(TOY.replace(*edit) if edit else TOY)
    spec = importlib.util.spec_from_file_location("nodes.toy", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    with patch.dict(sys.modules, {"nodes.toy": module}):
        return source_digest(module.add)


@pytest.mark.parametrize(
    ("edit", "noticed"),
    [
        (("(helper(value))", "(helper(value) * 2)"), True),
        (("value * 3", "value * 4"), True),
        (("value + STEP", "value - STEP"), True),
        (("STEP = 1", "STEP = 2"), True),
        (("Add one.", "Add a step."), False),
        (("    return value + STEP", "    # a comment\n    return value + STEP"), False),
    ],
)
def test_the_ledger_notices_changes_near_and_far_but_not_words(tmp_path, edit, noticed):
    before, after = toy_digest(tmp_path, 1), toy_digest(tmp_path, 2, *edit)
    assert (stale({"toy.add": [1, before]}, {"toy.add": [1, after]}) == ["toy.add"]) is noticed
    assert stale({"toy.add": [1, before]}, {"toy.add": [2, after]}) == []
