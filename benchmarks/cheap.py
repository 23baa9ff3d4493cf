"""Nodes that cost nothing, and graphs of any size made of them: what is left is the engine's own work.

Every value depends on all literals before it and is met by no other graph of the kind, so nothing is found by accident.
"""

from typing import Any

import torch

from engine.digest import digest
from engine.engine import Engine
from engine.node import node
from engine.registry import Registry
from engine.socket import Int
from nodes.types import Image

MEMORY = 1 << 32


@node("cheap.first", version=1)
def first(value: int = 0) -> Int:
    """Give a number."""
    return Int(value)


@node("cheap.next", version=1)
def following(of: Int, value: int = 0) -> Int:
    """Give a number that depends on two others."""
    return Int(hash((of.value, value)))


@node("cheap.join", version=1)
def join(of: tuple[Int, ...], value: int = 0) -> Int:
    """Give a number that depends on many others."""
    return Int(hash((value, *(item.value for item in of))))


@node("cheap.picture", version=1)
def picture(value: int = 0) -> Image:
    """Give a picture of 8 x 8 pixels."""
    return Image(_pixels(value))


@node("cheap.repainted", version=1)
def repainted(of: Image, value: int = 0) -> Image:
    """Give a picture of 8 x 8 pixels that depends on another."""
    return Image(of.data ^ _pixels(value + 1))


def _pixels(value: int) -> torch.Tensor:
    return torch.frombuffer(bytearray(digest(value) * 6), dtype=torch.uint8).reshape(1, 3, 8, 8)


REGISTRY = Registry([first, following, join, picture, repainted])


def engine() -> Engine:
    """An engine that has room for everything."""
    return Engine(REGISTRY, memory=MEMORY)


def chain(length: int) -> dict[str, Any]:
    """Numbers, one after the other: `n0` to `n<length - 1>`."""
    return _chain(length, "cheap.first", "cheap.next")


def pictures(length: int) -> dict[str, Any]:
    """A chain of pictures of 8 x 8 pixels."""
    return _chain(length, "cheap.picture", "cheap.repainted")


def fan(length: int) -> dict[str, Any]:
    """One number, `length - 2` that depend on it, and one that depends on all of those."""
    middle = {f"n{index}": _linked("cheap.next", "n0", index) for index in range(1, length - 1)}
    last = {f"n{length - 1}": {"type": "cheap.join", "inputs": {"of": list(middle)}}}
    return _document({"n0": {"type": "cheap.first"}, **middle, **last})


def _chain(length: int, head: str, link: str) -> dict[str, Any]:
    links = {f"n{index}": _linked(link, f"n{index - 1}", index) for index in range(1, length)}
    return _document({"n0": {"type": head}, **links})


def _linked(type_: str, source: str, value: int) -> dict[str, Any]:
    return {"type": type_, "params": {"value": value}, "inputs": {"of": source}}


def _document(nodes: dict[str, Any]) -> dict[str, Any]:
    return {"format": "calotype/1", "nodes": nodes, "outputs": {"out": list(nodes)[-1]}}
