"""Upscale models: ESRGAN and Real-ESRGAN, recognised by their tensors and read from safetensors; others see `foreign`.

RRDBNet is the network of ESRGAN (Wang et al. 2018, arXiv 1809.00219) and Real-ESRGAN (Wang et al. 2021, arXiv
2107.10833), in all three spellings of its tensors; SRVGGNetCompact is the small one of Real-ESRGAN, such as
realesr-general-x4v3. Sizes and factor follow from the shapes; a file's name means nothing.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from math import isqrt
from pathlib import Path
from typing import TypeAlias

import torch
from torch import Tensor, nn
from torch.nn import functional

from nodes.diffusion import foreign
from nodes.diffusion.enlarger import Enlarger
from nodes.diffusion.precision import finite
from nodes.diffusion.tensors import LoadError, Span, opened, refusing, shapes, some, spans, weights
from nodes.diffusion.tiling import WHOLE, Progress, Tiling, tiled

REMEDY = (
    "safetensors.torch.save_file({{k: v.contiguous() for k, v in "
    "(lambda d: d.get('params_ema') or d.get('params') or d)(torch.load({path!r}, weights_only=True)).items()}}, "
    "{converted!r})"
)
EXPECTED = foreign.OURS
RESIDUAL = 0.2
"""How much of what a dense block finds is added to what went in."""

_PREFIXES = ("params_ema.", "params.")
"""What stands before all names where a file holds the dictionary that trainers nest them in."""
_NEWER = (
    (re.compile(r"RRDB_trunk\.(\d+)\.RDB(\d)\.(conv\d)\."), r"body.\1.rdb\2.\3."),
    (re.compile(r"trunk_conv\."), "conv_body."),
    (re.compile(r"upconv(\d)\."), r"conv_up\1."),
    (re.compile(r"HRconv\."), "conv_hr."),
)
"""The spelling of ESRGAN's second code, and that of Real-ESRGAN's, which is ours."""
_OLD_BLOCK = re.compile(r"model\.1\.sub\.(\d+)\.RDB(\d)\.(conv\d)\.0\.(weight|bias)")
_OLD = re.compile(r"model\.(?:1\.sub\.)?(\d+)\.(weight|bias)")
_PLUS = "conv1x1"
"""What only ESRGAN+ has."""
_OTHERS = {
    _PLUS: "an ESRGAN+",
    "relative_position_bias_table": "a transformer such as SwinIR or HAT",
    "residual_group": "a transformer such as SwinIR, HAT or DAT",
}
_NONE = {
    "model.diffusion_model.": "a checkpoint; load it with the node model.load",
    "lora_": "a LoRA; load it with the node model.lora",
}

Shape: TypeAlias = tuple[int, ...]


class DenseBlock(nn.Module):
    """Five convolutions, each of which sees all that those before it made."""

    def __init__(self, width: int, growth: int) -> None:
        super().__init__()
        for index in range(4):
            self.add_module(f"conv{index + 1}", nn.Conv2d(width + index * growth, growth, 3, padding=1))
        self.add_module("conv5", nn.Conv2d(width + 4 * growth, width, 3, padding=1))

    def forward(self, x: Tensor) -> Tensor:
        """Return `x` and a share of what was found in it."""
        *inner, last = self.children()
        seen = x
        for layer in inner:
            seen = torch.cat([seen, _leaky(layer(seen))], dim=1)
        return torch.add(x, last(seen), alpha=RESIDUAL)


class Rrdb(nn.Module):
    """Three dense blocks, and a way around them."""

    def __init__(self, width: int, growth: int) -> None:
        super().__init__()
        for index in range(3):
            self.add_module(f"rdb{index + 1}", DenseBlock(width, growth))

    def forward(self, x: Tensor) -> Tensor:
        """Return `x` and a share of what was found in it."""
        found = x
        for block in self.children():
            found = block(found)
        return torch.add(x, found, alpha=RESIDUAL)


class RRDBNet(Enlarger):
    """ESRGAN's: residual-in-residual dense blocks on the small picture, which is then doubled `doublings` times.

    For a `grain` of 2 or 4 a square of pixels becomes the channels of one before all else, as in Real-ESRGAN's x2plus.
    """

    def __init__(self, width: int, growth: int, blocks: int, doublings: int, grain: int) -> None:
        super().__init__()
        self.scale, self.grain, self.doublings = 2**doublings // grain, grain, doublings
        self.conv_first = nn.Conv2d(3 * grain**2, width, 3, padding=1)
        self.body = nn.Sequential(*(Rrdb(width, growth) for _ in range(blocks)))
        self.conv_body = nn.Conv2d(width, width, 3, padding=1)
        for index in range(doublings):
            self.add_module(f"conv_up{index + 1}", nn.Conv2d(width, width, 3, padding=1))
        self.conv_hr = nn.Conv2d(width, width, 3, padding=1)
        self.conv_last = nn.Conv2d(width, 3, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """Enlarge."""
        first = self.conv_first(functional.pixel_unshuffle(x, self.grain))
        x = first + self.conv_body(self.body(first))
        for index in range(self.doublings):
            layer = self.get_submodule(f"conv_up{index + 1}")
            x = _leaky(layer(functional.interpolate(x, scale_factor=2.0, mode="nearest")))
        found: Tensor = self.conv_last(_leaky(self.conv_hr(x)))
        return found


class SRVGGNetCompact(Enlarger):
    """Real-ESRGAN's small one: plain convolutions, whose last channels become the pixels of a square.

    What they make is added to the enlarged picture.
    """

    def __init__(self, width: int, layers: int, scale: int) -> None:
        super().__init__()
        self.scale = scale
        body = [nn.Conv2d(3, width, 3, padding=1), nn.PReLU(width)]
        for _ in range(layers):
            body += [nn.Conv2d(width, width, 3, padding=1), nn.PReLU(width)]
        self.body = nn.Sequential(*body, nn.Conv2d(width, 3 * scale**2, 3, padding=1))

    def forward(self, x: Tensor) -> Tensor:
        """Enlarge."""
        found = functional.pixel_shuffle(self.body(x), self.scale)
        return found + functional.interpolate(x, scale_factor=float(self.scale), mode="nearest")


@dataclass(frozen=True, slots=True)
class Plan:
    """What a file holds: how to build its network, and where in the file each of its tensors stands."""

    make: Callable[[], Enlarger]
    places: Mapping[str, str]
    found: Mapping[str, Shape]


def scale(path: Path) -> int:
    """Return how many times larger an upscale model makes a picture. Raises LoadError as `network` does."""
    plan = _plan(path)
    return _built(path, plan).scale if isinstance(plan, Plan) else _foreign(path, torch.float32, plan).scale


def stored(path: Path) -> dict[str, Span]:
    """Find the tensors of an upscale model, whatever its architecture; raises LoadError for a damaged file."""
    found = spans(path, REMEDY)
    prefix = _prefix(found)
    return {name: span for name, span in found.items() if name.startswith(prefix)}


def network(path: Path, dtype: torch.dtype, device: torch.device | str) -> Enlarger:
    """Load an upscale model: eval mode, no gradients, on `device` in `dtype`.

    Raises LoadError for a file that is damaged, a pickle or of another architecture.
    """
    plan = _plan(path)
    made = _filled(path, dtype, device, plan) if isinstance(plan, Plan) else _foreign(path, dtype, plan).to(device)
    return made.eval().requires_grad_(requires_grad=False)


def enlarge(
    images: Tensor,
    model: Enlarger,
    tiling: Tiling = WHOLE,
    *,
    wider: Callable[[], Enlarger] | None = None,
    progress: Progress | None = None,
) -> Tensor:
    """Enlarge images, uint8 (N, 3, H, W), to uint8 (N, 3, scale H, scale W), one at a time and rounded.

    Sides that are no multiple of the model's grain are continued by their mirror image, and cut again.
    """
    height, width = images.shape[2:]

    def run(done: int, image: Tensor, module: Enlarger) -> Tensor:
        weight = next(module.parameters())
        levels = _continued(image.to(weight.device, weight.dtype) / 255, module.grain)
        report = None if progress is None else lambda now, total: progress(done * total + now, len(images) * total)
        grain = module.grain, module.grain * module.scale
        return tiled(levels, module, tiling.cells(module.grain), grain=grain, progress=report)

    with torch.no_grad():
        found = (finite(partial(run, *job), model, wider) for job in enumerate(torch.split(images, 1)))
        made = torch.cat([_levels(levels) for levels in found])
    return made[..., : height * model.scale, : width * model.scale].contiguous()


def _leaky(x: Tensor) -> Tensor:
    return functional.leaky_relu(x, 0.2)


def _levels(made: Tensor) -> Tensor:
    return (made * 255).round().clamp(0, 255).to(torch.uint8)


def _continued(levels: Tensor, grain: int) -> Tensor:
    """Continue the right and the lower edge to multiples of `grain`; a picture of one line repeats it."""
    right, below = (-levels.shape[3] % grain, -levels.shape[2] % grain)
    mirrored = right < levels.shape[3] and below < levels.shape[2]
    return functional.pad(levels, (0, right, 0, below), "reflect" if mirrored else "replicate")


def _plan(path: Path) -> Plan | str:
    """Recognise the network in a file; one that is not ours is described. Raises LoadError for what is no network."""
    found = shapes(path, REMEDY)
    places = {ours: name for name, ours in _renamed([*found], _prefix(found))}
    known = {ours: found[name] for ours, name in places.items()}
    first, dense = (len(known.get(name, ())) for name in ("conv_first.weight", "body.0.rdb1.conv1.weight"))
    if first == dense == 4 and not any(_PLUS in name for name in found):
        return Plan(_rrdbnet(path, known), places, known)
    if len(known.get("body.0.weight", ())) == 4 and len(known.get("body.1.weight", ())) == 1:
        return Plan(_compact(path, known), places, known)
    if told := _said(_NONE, found):
        raise LoadError(path, EXPECTED, told)
    return _said(_OTHERS, found) or f"{len(found)} tensors of something else: {some(sorted(found))}"


def _said(signs: Mapping[str, str], names: Iterable[str]) -> str | None:
    return next((said for sign, said in signs.items() if any(sign in name for name in names)), None)


def _prefix(names: Iterable[str]) -> str:
    return next((prefix for prefix in _PREFIXES if any(name.startswith(prefix) for name in names)), "")


def _filled(path: Path, dtype: torch.dtype, device: torch.device | str, plan: Plan) -> Enlarger:
    """Load one of our own networks."""
    made = _built(path, plan)
    with refusing(path, "weights of an upscale model"), opened(path, REMEDY) as file:
        filling = {name: file.get_tensor(place).to(device, dtype, copy=True) for name, place in plan.places.items()}
    made.load_state_dict(filling, assign=True)
    return made


def _foreign(path: Path, dtype: torch.dtype, told: str) -> Enlarger:
    """Load a network that is not ours, on the CPU."""
    found, _ = weights(path, REMEDY)
    prefix = _prefix(found)
    bare = {name.removeprefix(prefix): weight.clone() for name, weight in found.items() if name.startswith(prefix)}
    return foreign.network(path, bare, dtype, told)


def _renamed(names: list[str], prefix: str) -> Iterator[tuple[str, str]]:
    """Each name in the file, and what we call it."""
    bare = [name.removeprefix(prefix) for name in names if name.startswith(prefix)]
    plain = sorted({int(match[1]) for name in bare if (match := _OLD.fullmatch(name)) and ".sub." not in name})
    ours = {place: _old_place(place, plain[-1]) for place in plain}
    for name in bare:
        if match := _OLD_BLOCK.fullmatch(name):
            block, dense, layer, kind = match.groups()
            yield prefix + name, f"body.{block}.rdb{dense}.{layer}.{kind}"
        elif match := _OLD.fullmatch(name):
            yield prefix + name, f"{'conv_body' if '.sub.' in name else ours[int(match[1])]}.{match[2]}"
        else:
            yield prefix + name, _newest(name)


def _old_place(place: int, last: int) -> str:
    """What the layer at a place of ESRGAN's first code does: 0, then 3, 6, ... doubling, and at the end two more."""
    fixed = {0: "conv_first", last: "conv_last", last - 2: "conv_hr"}
    return fixed.get(place, f"conv_up{place // 3}")


def _newest(name: str) -> str:
    for older, newer in _NEWER:
        name = older.sub(newer, name)
    return name


def _rrdbnet(path: Path, known: Mapping[str, Shape]) -> Callable[[], Enlarger]:
    """How to build the RRDBNet that has these tensors."""
    width, taken = known["conv_first.weight"][:2]
    grain = isqrt(taken // 3)
    blocks = len({name.split(".")[1] for name in known if name.startswith("body.")})
    doublings = sum(bool(re.fullmatch(r"conv_up\d\.weight", name)) for name in known)
    if 3 * grain**2 != taken or grain not in (1, 2, 4) or 2**doublings < grain:
        raise LoadError(path, EXPECTED, f"one that takes {taken} channels and doubles {doublings} times")
    return lambda: RRDBNet(width, known["body.0.rdb1.conv1.weight"][0], blocks, doublings, grain)


def _compact(path: Path, known: Mapping[str, Shape]) -> Callable[[], Enlarger]:
    """How to build the SRVGGNetCompact that has these tensors."""
    layers = sum(len(shape) == 4 for shape in known.values()) - 2
    width, taken = known["body.0.weight"][:2]
    made = known.get(f"body.{2 * layers + 2}.weight", (0,))[0]
    factor = isqrt(made // 3)
    if taken != 3 or factor < 1 or 3 * factor**2 != made:
        raise LoadError(path, EXPECTED, f"an SRVGGNetCompact from {taken} channels to {made}")
    return lambda: SRVGGNetCompact(width, layers, factor)


def _built(path: Path, plan: Plan) -> Enlarger:
    """Build a network without values, and check that the file has just its tensors."""
    with refusing(path, EXPECTED), torch.device("meta"):
        made = plan.make()
    wanted = {name: tuple(weight.shape) for name, weight in made.state_dict().items()}
    kind = type(made).__name__
    if missing := [name for name in wanted if name not in plan.found]:
        raise LoadError(path, f"{len(wanted)} tensors of {kind}", f"a file without {some(missing)}")
    if unknown := [plan.places[name] for name in plan.found if name not in wanted]:
        raise LoadError(path, f"{len(wanted)} tensors of {kind}", f"{len(unknown)} more: {some(unknown)}")
    for name, shape in wanted.items():
        if plan.found[name] != shape:
            raise LoadError(path, f"{plan.places[name]} of shape {shape}", str(plan.found[name]))
    return made
