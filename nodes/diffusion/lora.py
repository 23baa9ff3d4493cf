"""LoRAs and their kin: small changes to a model's weights, read from a safetensors file and put on a copy.

The copy shares every tensor that nothing changes with the module it was made of. That one is never written to, so
nothing has to be taken back, and nothing drifts however often changes come and go. What is added to a weight, and by
which paper, stands in `change`; how files lay it out, in `lora_layout` and `lora_keys`.
"""

from __future__ import annotations

from collections import OrderedDict, defaultdict
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MethodType
from typing import TypeVar, cast

import torch
from torch import Tensor, nn

from nodes.diffusion import bases, original
from nodes.diffusion.change import Change
from nodes.diffusion.lending import complete
from nodes.diffusion.lora_keys import PARTS, Part
from nodes.diffusion.lora_layout import Target, changes
from nodes.diffusion.tensors import LoadError, shapes, some, weights

__all__ = ["PARTS", "REMEDY", "Lora", "Part", "described", "part_of", "patched", "read"]

M = TypeVar("M", bound=nn.Module)

REMEDY = "safetensors.torch.save_file(torch.load({path!r}, weights_only=True), {converted!r})"

_WORDS: Mapping[tuple[Part, ...], str] = {
    ("unet",): "UNet",
    ("text_encoder",): "text encoder",
    ("text_encoder_2",): "second text encoder",
    ("unet", "text_encoder"): "UNet and text encoder",
    ("unet", "text_encoder_2"): "UNet and second text encoder",
    ("text_encoder", "text_encoder_2"): "both text encoders",
    PARTS: "UNet and both text encoders",
}


@dataclass(frozen=True, eq=False)
class Lora:
    """The changes in a file, by part and by what they change."""

    path: Path
    changes: Mapping[Part, Mapping[Target, Change]]

    @property
    def parts(self) -> tuple[Part, ...]:
        """The parts that it changes."""
        return tuple(part for part in PARTS if self.changes[part])

    @property
    def made_for(self) -> str | None:
        """The family of models that it was made for; None where nothing tells."""
        unet = {name: change.shape for (name, _), change in self.changes["unet"].items()}
        text = [change.shape for change in self.changes["text_encoder"].values()]
        return bases.of_lora(unet, text, second=bool(self.changes["text_encoder_2"]))


def read(path: Path | str) -> Lora:
    """Read a LoRA, LoHa, LoKr, DoRA or full differences, as kohya, LyCORIS, diffusers, PEFT or ComfyUI write them.

    Raises LoadError for a pickle, a damaged file, NaN or infinity, keys of other methods and of other kinds of models,
    and tensors that are incomplete or do not fit one another.
    """
    path = Path(path)
    tensors, metadata = weights(path, REMEDY)
    broken = [key for key, tensor in tensors.items() if not bool(tensor.sum(dtype=torch.float32).isfinite())]
    if broken:
        raise LoadError(path, "a LoRA of numbers", f"NaN or infinity in {len(broken)} of its tensors: {some(broken)}")
    return Lora(path, changes(path, tensors, metadata))


def described(path: Path | str) -> str:
    """Say in a few words what a file is, such as "LoRA for SDXL, rank 16, UNet and both text encoders".

    Nothing but the shapes in it is read. Raises LoadError as `read` does.
    """
    path = Path(path)
    hollow = {key: torch.empty(shape, device="meta") for key, shape in shapes(path, REMEDY).items()}
    lora = Lora(path, changes(path, hollow, {}))
    all_changes = [change for part in lora.parts for change in lora.changes[part].values()]
    methods = {"DoRA" if each.magnitude is not None else each.method for each in all_changes} - {"full"}
    family = f" for {lora.made_for}" if lora.made_for else ""
    ranks = sorted({each.rank for each in all_changes if each.rank is not None})
    told = [" and ".join(sorted(methods)) or "full differences", _ranks(ranks), _WORDS[lora.parts]]
    return ", ".join(filter(None, [told[0] + family, *told[1:]]))


def patched(
    module: M, part: Part, loras: Iterable[tuple[Lora, float]], parts: Collection[Part] = PARTS
) -> tuple[M, tuple[str, ...]]:
    """Return a copy of the module with all changes, each at its strength, and the names of the weights of its own.

    Where nothing changes it is the module itself. Changes are made in the order in which they are given, in float32 and
    where the weight lies, and rounded once, to the weight's dtype; a strength of 0 changes nothing. `parts` are those
    that the model has. Raises LoadError where a file has a change that fits no weight of the module, or changes of a
    part that the model lacks, as one that was made for another base model has.
    """
    places = _places(module)
    wanted: dict[str, list[tuple[Change, float]]] = defaultdict(list)
    for lora, strength in loras:
        _check_parts(lora, module, parts)
        for name, change in _fitting(module, places, part, lora):
            if strength:
                wanted[name].append((change, strength))
    made = sharing(module) if wanted else module
    for name, found in wanted.items():
        owner, _, kind = name.rpartition(".")
        made.get_submodule(owner).register_parameter(kind, _summed(module.get_parameter(name), found))
    return made, tuple(wanted)


def part_of(encoder: nn.Module) -> Part:
    """Say which part a text encoder is in files of LoRAs: the one with a projection is SDXL's second."""
    return "text_encoder_2" if hasattr(encoder, "text_projection") else "text_encoder"


def _check_parts(lora: Lora, module: nn.Module, parts: Collection[Part]) -> None:
    missing = tuple(part for part in lora.parts if part not in parts)
    if missing:
        has = _WORDS[tuple(part for part in PARTS if part in parts)]
        expected = f"a LoRA for a model that has {has} alone (this {bases.of_module(module)})"
        raise LoadError(lora.path, expected, f"changes of the {_WORDS[missing]}{_made_for(lora)}")


def _fitting(module: nn.Module, places: Mapping[str, str], part: Part, lora: Lora) -> list[tuple[str, Change]]:
    """The changes with the full names of the weights that they are for."""
    found, wrong = list[tuple[str, Change]](), list[str]()
    for (name, kind), change in lora.changes[part].items():
        weight = getattr(module.get_submodule(places[name]), kind, None) if name in places else None
        if isinstance(weight, Tensor) and change.fits(weight):
            found.append((f"{places[name]}.{kind}", change))
        else:
            wrong.append(name)
    if wrong:
        count = f"{len(wrong)} of {len(lora.changes[part])} that do not{_made_for(lora)}: {some(wrong)}"
        question = "" if lora.made_for else "; was it made for another base model?"
        raise LoadError(lora.path, f"changes that fit the weights of this {bases.of_module(module)}", count + question)
    return found


def _made_for(lora: Lora) -> str:
    return f", as it is made for {lora.made_for}" if lora.made_for else ""


def _summed(weight: Tensor, found: Iterable[tuple[Change, float]]) -> nn.Parameter:
    total = weight.detach().to(torch.float32, copy=True, memory_format=torch.contiguous_format)
    for change, strength in found:
        change.put_on(total, strength)
    return nn.Parameter(total.to(weight.dtype), requires_grad=False)


def sharing(module: M) -> M:
    """A copy with modules of its own, but the same tensors."""
    complete(module)
    copies = {inner: _shallow(inner) for inner in module.modules()}
    for inner, made in copies.items():
        for name, value in vars(inner).items():
            if isinstance(value, MethodType) and value.__self__ is inner:
                vars(made)[name] = MethodType(value.__func__, made)
        made._modules = {name: child and copies[child] for name, child in inner._modules.items()}
    return cast("M", copies[module])


def _shallow(module: nn.Module) -> nn.Module:
    """A module with the same children and tensors, and with tables of its own for them and for its hooks."""
    made = module.__new__(type(module))
    tables = (dict, OrderedDict)
    vars(made).update(
        {name: type(value)(value) if type(value) in tables else value for name, value in vars(module).items()}
    )
    return made


def _places(module: nn.Module) -> dict[str, str]:
    """Modules with a weight, by their names with `_` for dots, in either spelling."""
    names = [name for name, inner in module.named_modules() if isinstance(getattr(inner, "weight", None), Tensor)]
    found = {name.removeprefix("text_model.").replace(".", "_"): name for name in names}
    return found | {there.replace(".", "_"): name for name, there in original.unet(names).items()}


def _ranks(ranks: list[int]) -> str:
    if not ranks:
        return ""
    return f"rank {ranks[0]}" if len(ranks) == 1 else f"ranks {ranks[0]} to {ranks[-1]}"
