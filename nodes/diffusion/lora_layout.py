"""From the tensors in a file of LoRAs to changes: which of them belong together, and what they make."""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeAlias

from torch import Tensor

from nodes.diffusion.change import Change, Matrix, Method
from nodes.diffusion.lora_keys import PARTS, Field, Part, Place, place, unread
from nodes.diffusion.tensors import LoadError, some

Kind: TypeAlias = Literal["weight", "bias"]
Target: TypeAlias = tuple[str, Kind]
"""A module's name with `_` for dots, and which of its tensors."""
Held: TypeAlias = Mapping[Field, Tensor]
"""What a file has of one module."""

EXPECTED = "a LoRA for Stable Diffusion 1.x, 2.x or SDXL"
METADATA = "lora_adapter_metadata"
"""Where diffusers writes what PEFT was told, in JSON."""

_METHODS: Mapping[Method, tuple[tuple[tuple[Field, ...], ...], ...]] = {
    "LoRA": ((("up", "down"), ("up", "mid", "down")),),
    "LoHa": (
        (("hada_w1_a", "hada_w1_b"), ("hada_w1_a", "hada_t1", "hada_w1_b")),
        (("hada_w2_a", "hada_w2_b"), ("hada_w2_a", "hada_t2", "hada_w2_b")),
    ),
    "LoKr": (
        (("lokr_w1",), ("lokr_w1_a", "lokr_w1_b")),
        (("lokr_w2",), ("lokr_w2_a", "lokr_w2_b"), ("lokr_w2_a", "lokr_t2", "lokr_w2_b")),
    ),
    "full": ((("weight",),),),
}
"""Of each method, the matrices that it takes; of each matrix, the factors that it may stand in."""
_BESIDE = {"alpha", "scale", "dora_scale", "rows", "bias"}


def changes(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> dict[Part, dict[Target, Change]]:
    """Return the changes that tensors make, by part and by what they change.

    Raises LoadError for keys of something else, and for tensors that are incomplete or do not fit one another.
    """
    told = _told(path, metadata)
    made: dict[Part, dict[Target, Change]] = {part: {} for part in PARTS}
    for where, held in _modules(path, tensors):
        for kind, change in _of_module(path, where, held, told.get(where.part, _Told())):
            made[where.part][where.name, kind] = change
    if not any(made.values()):
        raise LoadError(path, EXPECTED, "no changes" if tensors else "no keys")
    return made


def _modules(path: Path, tensors: Mapping[str, Tensor]) -> Iterator[tuple[Place, Held]]:
    """What there is of each module, with one of its places."""
    found = {key: place(key) for key in tensors}
    unknown = [key for key, where in found.items() if where is None]
    if unknown:
        what = unread(unknown) or "something else"
        raise LoadError(path, EXPECTED, f"{len(unknown)} keys of {what}: {some(unknown)}")
    held: dict[tuple[Part, str], dict[Field, Tensor]] = defaultdict(dict)
    places: dict[tuple[Part, str], Place] = {}
    for key, where in found.items():
        assert where is not None
        if where.field in held[where.part, where.name]:
            raise LoadError(path, f"one {where.field} of {where.name}", f"another one, {key}")
        held[where.part, where.name][where.field] = tensors[key]
        places[where.part, where.name] = where
    return ((places[module], fields) for module, fields in held.items())


def _of_module(path: Path, where: Place, held: Held, told: _Told) -> Iterator[tuple[Kind, Change]]:
    """What is said of one module: a change of its weight, of its bias, or of both; a lone alpha changes nothing."""
    sides = held.keys() - _BESIDE
    if sides or {"dora_scale", "rows"} & held.keys():
        method, factors = _method(path, where, sides)
        matrices = tuple(_matrix(held, names) for names in factors)
        alpha: Tensor | float | None = held.get("alpha", told.alpha(where))
        rooted = told.rooted and "alpha" not in held
        change = Change(method, matrices, alpha, held.get("scale"), rooted, _magnitude(held))
        yield "weight", _consistent(path, where, change, held)
    if "bias" in held:
        change = Change("full", (Matrix((held["bias"],)),), scale=held.get("scale"))
        yield "bias", _consistent(path, where, change, held)


def _method(path: Path, where: Place, sides: Collection[Field]) -> tuple[Method, list[tuple[Field, ...]]]:
    """The method that takes just these tensors, and the factors of its matrices."""
    for method, matrices in _METHODS.items():
        chosen = [next((names for names in forms[::-1] if set(names) <= set(sides)), None) for forms in matrices]
        factors = [names for names in chosen if names is not None]
        if len(factors) == len(matrices) and {name for names in factors for name in names} == set(sides):
            return method, factors
    found = f"{' and '.join(sorted(sides)) or 'its magnitude'} alone"
    raise LoadError(path, f"all that makes a change of {where.name}", found)


def _matrix(held: Held, names: tuple[Field, ...]) -> Matrix:
    first, *others = (held[name] for name in names)
    turned = len(names) == 3 and names[0] != "up" and first.ndim > 1  # LyCORIS has ranks first beside a core
    return Matrix((first.transpose(0, 1) if turned else first, *others))


def _magnitude(held: Held) -> Tensor | None:
    """DoRA's magnitude: PEFT's are always those of rows, LyCORIS' are shaped like what they belong to."""
    return held["rows"].reshape(-1, 1) if "rows" in held else held.get("dora_scale")


def _consistent(path: Path, where: Place, change: Change, held: Held) -> Change:
    if not change.consistent or any(held[field].numel() != 1 for field in ("alpha", "scale") if field in held):
        shown = ", ".join(f"{field} {' x '.join(map(str, tensor.shape))}" for field, tensor in sorted(held.items()))
        raise LoadError(path, f"tensors of {where.name} that fit one another", shown)
    return change


@dataclass(frozen=True, eq=False)
class _Told:
    """What PEFT was told of a part: an alpha for all of it, others by names, and whether rank is under a root."""

    usual: float | None = None
    others: Mapping[str, float] = field(default_factory=dict)
    rooted: bool = False

    def alpha(self, where: Place) -> float | None:
        """The alpha of a module: of the first name that its own ends in, as PEFT looks for it."""
        names = (name for name in self.others if f".{where.module}".endswith(f".{name}"))
        return next((self.others[name] for name in names), self.usual)


def _told(path: Path, metadata: Mapping[str, str]) -> dict[Part, _Told]:
    """What diffusers writes into a file's metadata, by part."""
    try:
        said = json.loads(metadata.get(METADATA, "{}"))
        return {part: _told_of(part, said) for part in PARTS if any(key.startswith(f"{part}.") for key in said)}
    except (AttributeError, TypeError, ValueError) as error:
        raise LoadError(path, f"metadata {METADATA} with one alpha or one for each name", str(error)) from error


def _told_of(part: Part, said: Mapping[str, Any]) -> _Told:
    others = {name.removeprefix("^"): float(alpha) for name, alpha in said.get(f"{part}.alpha_pattern", {}).items()}
    patterns = [name for name in others if re.fullmatch(r"[\w.]+", name) is None]
    if patterns:
        raise ValueError(f"alphas by patterns of names: {some(patterns)}")
    if f"{part}.alpha" in said:
        raise ValueError(f"{part}.alpha, of another method than LoRA")
    usual = said.get(f"{part}.lora_alpha")
    return _Told(None if usual is None else float(usual), others, bool(said.get(f"{part}.use_rslora")))
