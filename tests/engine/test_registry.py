"""The registry: explicit, immutable, and without two things of one name."""

from dataclasses import dataclass, make_dataclass
from importlib.metadata import EntryPoint, EntryPoints

import pytest
import toys
from toys import REGISTRY, Blob, Wave

from engine import registry
from engine.errors import DefinitionError, RegistryError
from engine.node import node
from engine.registry import Registry
from engine.socket import Bool, Float, Int, Socket, Text


@node("toy.blob", version=7)
def another_blob() -> Blob:
    """Takes a name that is taken."""


@node("toy.extra", version=1)
def extra() -> Blob:
    """One more."""


def test_types_are_listed_in_alphabetical_order():
    assert list(Registry([toys.mix, toys.blob, toys.encode])) == ["toy.blob", "toy.encode", "toy.mix"]


def test_a_type_leads_to_its_definition():
    assert REGISTRY["toy.mix"].function is toys.mix
    assert "toy.nothing" not in REGISTRY
    assert len(REGISTRY) == len(toys.PACK)


def test_two_functions_of_one_type_are_refused_and_both_are_named():
    with pytest.raises(RegistryError, match=r"'toy\.blob' is defined twice: toys\.blob and .*another_blob"):
        Registry([toys.blob, another_blob])


def test_the_same_function_twice_is_no_conflict():
    assert list(Registry([toys.blob, toys.blob])) == ["toy.blob"]


def test_a_function_that_is_no_node_is_refused():
    with pytest.raises(DefinitionError, match="'mixed' is not marked with @node"):
        Registry([toys.mixed])


def test_two_socket_classes_of_one_name_are_refused():
    impostor = make_dataclass("Blob", ["text"], bases=(Socket,), frozen=True)

    def make():
        """Another kind of blob."""

    make.__annotations__["return"] = impostor
    with pytest.raises(RegistryError, match=r"two socket classes are called 'Blob': see test\.make"):
        Registry([toys.blob, node("test.make", version=1)(make)])


def test_a_socket_cannot_take_the_name_of_a_scalar():
    @dataclass(frozen=True)
    class Text(Socket):  # not the engine's
        value: bytes

    def make():
        """Another kind of text."""

    make.__annotations__["return"] = Text
    with pytest.raises(RegistryError, match="two socket classes are called 'Text'"):
        Registry([node("test.make", version=1)(make)])


def test_sockets_are_known_by_name_with_all_scalars():
    assert Registry([toys.decode]).sockets == {
        "Bool": Bool, "Float": Float, "Int": Int, "Text": Text, "Blob": Blob, "Wave": Wave,
    }  # fmt: skip


def test_more_nodes_make_another_registry():
    larger = REGISTRY.with_nodes(extra)
    assert "toy.extra" in larger
    assert "toy.extra" not in REGISTRY
    assert len(larger) == len(REGISTRY) + 1
    with pytest.raises(RegistryError):
        REGISTRY.with_nodes(another_blob)


def test_a_registry_cannot_be_changed():
    with pytest.raises(TypeError):
        REGISTRY["toy.extra"] = extra.__node__


def test_the_nearest_type_is_what_a_person_may_have_meant():
    assert REGISTRY.nearest("toy.bolb") == "toy.blob"
    assert REGISTRY.nearest("zzzz") is None


def test_a_gatherer_takes_the_socket_or_a_base_class_of_it():
    @dataclass(frozen=True)
    class Special(Blob):
        pass

    assert REGISTRY.gatherer(Blob).type == REGISTRY.gatherer(Special).type == "toy.grid"
    assert REGISTRY.gatherer(Wave) is None
    assert Registry([toys.join]).gatherer(Blob) is None


def test_installed_packs_are_found_through_their_entry_points(monkeypatch):
    packs = {"toys:PACK": "toys", f"{__name__}:MORE": "more"}
    found = EntryPoints(EntryPoint(name, value, registry.ENTRY_POINTS) for value, name in packs.items())
    monkeypatch.setattr(registry, "entry_points", lambda group: found.select(group=group))
    monkeypatch.setitem(__import__("sys").modules, __name__, type("Pack", (), {"MORE": (extra,)}))
    assert list(Registry.installed()) == sorted([*REGISTRY, "toy.extra"])
