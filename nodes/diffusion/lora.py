"""LoRA: changes of low rank to a model's weights (Hu et al. 2021, arXiv 2106.09685), read from a safetensors file.

A changed weight is W + strength * alpha / rank * up @ down. It belongs to a copy of the module that shares every other
tensor with the module it was made of. That one is never written to, so nothing has to be taken back, and nothing
drifts however often changes come and go.
"""

from __future__ import annotations

import copy
import json
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeVar

import torch
from torch import Tensor, nn

from nodes.diffusion import original
from nodes.diffusion.tensors import LoadError, some, weights

M = TypeVar("M", bound=nn.Module)
Part = Literal["unet", "text_encoder"]

REMEDY = "safetensors.torch.save_file(torch.load({path!r}, weights_only=True), {converted!r})"

_PREFIXES: Mapping[str, Part] = {
    "lora_unet_": "unet",
    "lora_te_": "text_encoder",
    "base_model.model.unet.": "unet",
    "base_model.model.text_encoder.": "text_encoder",
    "unet.": "unet",
    "text_encoder.": "text_encoder",
    "text_model.": "text_encoder",
}
"""How keys of a part begin: kohya's spelling, PEFT's, diffusers', and that of a text encoder alone."""
_BARE_UNET = ("down_blocks.", "mid_block.", "up_blocks.")
_ENDINGS = {
    "down": (
        ".lora_down.weight",
        ".lora_A.weight",
        ".lora_A.default.weight",
        ".lora.down.weight",
        ".lora_linear_layer.down.weight",
        "_lora.down.weight",
    ),
    "up": (
        ".lora_up.weight",
        ".lora_B.weight",
        ".lora_B.default.weight",
        ".lora.up.weight",
        ".lora_linear_layer.up.weight",
        "_lora.up.weight",
    ),
    "alpha": (".alpha",),
}
"""How keys end, by what stands there."""


@dataclass(frozen=True, eq=False)
class Change:
    """The change of one weight: `down` is (rank, in, ...), `up` is (out, rank, ...); no `alpha` stands for the rank."""

    down: Tensor
    up: Tensor
    alpha: float | None

    def fits(self, weight: Tensor) -> bool:
        """Whether the change has the weight's shape."""
        wide, high = self.down.flatten(1).shape, self.up.flatten(1).shape
        return high[1] == wide[0] and high[0] == weight.shape[0] and high[0] * wide[1] == weight.numel()

    def delta(self, weight: Tensor) -> Tensor:
        """Return alpha / rank * up @ down in float32, with the weight's shape and on its device."""
        up, down = (side.flatten(1).to(weight.device, torch.float32) for side in (self.up, self.down))
        rank = down.shape[0]
        return (up @ down).reshape(weight.shape) * ((rank if self.alpha is None else self.alpha) / rank)


@dataclass(frozen=True, eq=False)
class Lora:
    """The changes in a file, by part and by the name of the weight's module with `_` for every dot."""

    path: Path
    changes: Mapping[Part, Mapping[str, Change]]


def read(path: Path | str) -> Lora:
    """Read a LoRA in kohya's, diffusers' or PEFT's layout.

    Raises LoadError for a pickle, a damaged file, keys of other methods (LoHa, LoKr, DoRA) or of SDXL's second text
    encoder, and sides without their counterpart.
    """
    path = Path(path)
    tensors, metadata = weights(path, REMEDY)
    sides: dict[tuple[Part, str], dict[str, Tensor]] = defaultdict(dict)
    unknown = []
    for key, tensor in tensors.items():
        found = _located(key)
        if found is None:
            unknown.append(key)
        else:
            part, name, side = found
            sides[part, name][side] = tensor
    if unknown or not sides:
        found_keys = f"{len(unknown)} keys of something else: {some(unknown)}" if unknown else "no keys"
        raise LoadError(path, "a LoRA for a Stable Diffusion 1.x or 2.x model", found_keys)
    alphas = _alphas(path, metadata)
    changes: dict[Part, dict[str, Change]] = {"unet": {}, "text_encoder": {}}
    for (part, name), found_sides in sides.items():
        changes[part][name] = _change(path, name, found_sides, alphas.get(part))
    return Lora(path, changes)


def patched(module: M, part: Part, loras: Iterable[tuple[Lora, float]]) -> tuple[M, tuple[str, ...]]:
    """Return a copy of the module with all changes, each at its strength, and the names of the weights of its own.

    Where nothing changes it is the module itself. Sums are taken in float32 and rounded once, to the weight's dtype; a
    strength of 0 changes nothing. Raises LoadError where a file has a change that fits no weight of the module, as one
    that was made for another base model has.
    """
    places = _places(module)
    wanted: dict[str, list[tuple[Change, float]]] = defaultdict(list)
    for lora, strength in loras:
        for name, change in _fitting(module, places, part, lora):
            if strength:
                wanted[name].append((change, strength))
    made = _sharing(module) if wanted else module
    for name, changes in wanted.items():
        weight = module.get_parameter(name)
        made.get_submodule(name.rpartition(".")[0]).register_parameter("weight", _summed(weight, changes))
    return made, tuple(wanted)


def _fitting(module: nn.Module, places: Mapping[str, str], part: Part, lora: Lora) -> Iterator[tuple[str, Change]]:
    """The changes with the full names of the weights that they are for."""
    changes = lora.changes[part]
    wrong = [
        name
        for name, change in changes.items()
        if name not in places or not change.fits(module.get_parameter(places[name]))
    ]
    if wrong:
        found = f"{len(wrong)} of {len(changes)} that do not: {some(wrong)}; was it made for another base model?"
        raise LoadError(lora.path, f"changes that fit the weights of this {type(module).__name__}", found)
    return ((places[name], change) for name, change in changes.items())


def _summed(weight: Tensor, changes: Iterable[tuple[Change, float]]) -> nn.Parameter:
    total = weight.detach().float()
    for change, strength in changes:
        total = total + strength * change.delta(weight)
    return nn.Parameter(total.to(weight.dtype), requires_grad=False)


def _sharing(module: M) -> M:
    """A copy with modules of its own, but the same tensors."""
    tensors = [*module.parameters(), *module.buffers()]
    return copy.deepcopy(module, {id(tensor): tensor for tensor in tensors})


def _located(key: str) -> tuple[Part, str, str] | None:
    """(part, module's name with `_` for dots, side) of a key; None where it is no LoRA's of these models."""
    side, name = _ending(key)
    prefix = next((prefix for prefix in _PREFIXES if name.startswith(prefix)), "")
    if not side or not (prefix or name.startswith(_BARE_UNET)):
        return None
    part: Part = _PREFIXES[prefix] if prefix else "unet"
    name = name.removeprefix(prefix).replace(".processor.", ".").replace(".", "_").removeprefix("text_model_")
    return part, re.sub(r"_to_out$", "_to_out_0", name), side


def _ending(key: str) -> tuple[str, str]:
    """(side, the rest of the key); no side where the key ends in nothing that is known."""
    for side, endings in _ENDINGS.items():
        for ending in endings:
            if key.endswith(ending):
                return side, key.removesuffix(ending)
    return "", key


def _change(path: Path, name: str, sides: Mapping[str, Tensor], alpha: float | None) -> Change:
    if not {"down", "up"} <= sides.keys():
        raise LoadError(path, f"both sides of {name}", f"{' and '.join(sorted(sides))} alone")
    return Change(sides["down"], sides["up"], float(sides["alpha"]) if "alpha" in sides else alpha)


def _alphas(path: Path, metadata: Mapping[str, str]) -> dict[str, float]:
    """Alphas by part, as diffusers writes them into a file's metadata."""
    said = json.loads(metadata.get("lora_adapter_metadata", "{}"))
    unusual = [name for name in said if name.endswith(("alpha_pattern", "use_dora", "use_rslora")) and said[name]]
    if unusual:
        raise LoadError(path, "one alpha for all weights of a part", f"{some(unusual)} in the metadata")
    return {name.removesuffix(".lora_alpha"): value for name, value in said.items() if name.endswith(".lora_alpha")}


def _places(module: nn.Module) -> dict[str, str]:
    """Full names of the weights that can be changed, by their module's name with `_` for dots, in either spelling."""
    names = [
        name for name, inner in module.named_modules() if getattr(getattr(inner, "weight", None), "ndim", 0) in (2, 4)
    ]
    found = {name.replace(".", "_"): f"{name}.weight" for name in names}
    return found | {there.replace(".", "_"): f"{name}.weight" for name, there in original.unet(names).items()}
