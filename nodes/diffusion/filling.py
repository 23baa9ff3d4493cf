"""Modules that are built without values and take their weights from files."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from nodes.diffusion import original, reading
from nodes.diffusion.lending import Loan, later
from nodes.diffusion.parts import RUN, Part
from nodes.diffusion.reading import Piece
from nodes.diffusion.tensors import LoadError, Shape, Span, by, refusing, some

_TURNED = "text_projection.weight"
"""OpenCLIP multiplies by this matrix from the other side."""
INTERLEAVED = ("UNet2DConditionModel", "ControlNetModel")
"""Networks whose convolutions compute faster where channels lie side by side in memory."""


class _Unfilled(TorchFunctionMode):
    """Weights are not given values at random: what has none anyway takes as long to fill as all else that is done."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Leave out what `torch.nn.init` does."""
        kwargs = kwargs or {}
        if getattr(func, "__module__", None) == nn.init.__name__:
            return kwargs["tensor"] if "tensor" in kwargs else args[0]
        return func(*args, **kwargs)


def filled(
    make: Callable[[], Any],
    part: Part,
    spelling: original.Spelling,
    dtype: torch.dtype,
    device: torch.device | str,
) -> Any:
    """Build a module and give it the tensors of a part, as `dtype` on `device`: ready to predict, without gradients.

    Raises LoadError where tensors are missing, of another shape, or of another architecture.
    """
    with refusing(part.path, f"a {part.kind.word} of {RUN}"), torch.device("meta"), _Unfilled():
        module = make()
    wanted = {name: tuple(weight.shape) for name, weight in module.state_dict().items()}
    names = original.tensors(wanted, spelling)
    _check_names(part, names.values(), type(module).__name__)
    _check_shapes(part, names, wanted)
    interleaved = type(module).__name__ in INTERLEAVED
    pieces = {
        name: _piece(name, part.spans[names[name]], wanted[name], names[name], interleaved=interleaved)
        for name in wanted
    }
    at_hand = {name: piece for name, piece in pieces.items() if piece.lies_as(dtype, device)}
    with refusing(part.path, f"weights of a {part.kind.word}"):
        loan = Loan(at_hand, dtype)
        loaded = reading.read({name: piece for name, piece in pieces.items() if name not in at_hand}, dtype, device)
    _give(module, loaded | loan.lent)
    loan.to(module)
    _count_positions(module, device)
    later(loan.begin)
    return module.eval()


def _check_names(part: Part, expected: Collection[str], kind: str) -> None:
    """Refuse a file with other tensors than a module has."""
    missing = [f"{part.prefix}{name}" for name in expected if name not in part.spans]
    if missing:
        found = f"{len(set(expected)) - len(set(missing))} of them, without {some(missing)}"
        raise LoadError(part.path, f"{len(set(expected))} tensors of a {kind}", found)
    known = set(expected)
    unknown = [name for name in part.spans if name not in known and name.startswith(part.kind.own)]
    if unknown and part.kind.own:
        found = f"{len(unknown)} more: {some([f'{part.prefix}{name}' for name in unknown])}"
        raise LoadError(part.path, f"{len(known)} tensors of a {kind}", f"{found}; it is another architecture")


def _check_shapes(part: Part, names: Mapping[str, str], wanted: Mapping[str, Shape]) -> None:
    wrong = [name for name in wanted if not _fits(part.spans[names[name]].shape, _laid(name, names, wanted))]
    if wrong:
        name = wrong[0]
        found = f"{by(part.spans[names[name]].shape)} ({len(wrong)} of {len(wanted)} do not fit)"
        expected = f"{part.prefix}{names[name]} of shape {by(_laid(name, names, wanted))}"
        raise LoadError(part.path, expected, found)


def _laid(name: str, names: Mapping[str, str], wanted: Mapping[str, Shape]) -> Shape:
    """The shape of a weight as it lies in a file."""
    return wanted[name][::-1] if _is_turned(name, names[name]) else wanted[name]


def _is_turned(name: str, place: str) -> bool:
    return name == _TURNED and place != name


def _fits(found: Shape, wanted: Shape) -> bool:
    """Whether a tensor can be taken: as it is, as a convolution of one point, or with q, k and v in one."""
    return found in (wanted, (*wanted, 1, 1), (3 * wanted[0], *wanted[1:]))


def _piece(name: str, span: Span, wanted: Shape, place: str, *, interleaved: bool) -> Piece:
    """Return what of a tensor is meant: a third of the rows, where q, k and v stand in one."""
    interleaved = interleaved and len(wanted) == 4 and wanted[2:] != (1, 1)
    if _is_turned(name, place):
        return Piece(span, wanted, turned=True)
    whole = not wanted or span.shape[0] == wanted[0]
    return Piece(span, wanted, 0 if whole else "qkv".index(name.split(".")[-2][0]) * wanted[0], interleaved=interleaved)


def _give(module: nn.Module, loaded: Mapping[str, Tensor]) -> None:
    """Put weights, by their names, in the places of those without values; `load_state_dict` takes much longer."""
    for path, inner in module.named_modules():
        prefix = f"{path}." if path else ""
        for name in [name for name in inner._parameters if prefix + name in loaded]:
            inner._parameters[name] = nn.Parameter(loaded[prefix + name], requires_grad=False)
        for name in [name for name in inner._buffers if prefix + name in loaded]:
            inner._buffers[name] = loaded[prefix + name]


def _count_positions(module: nn.Module, device: torch.device | str) -> None:
    """Give a text encoder back what it computes when it is built: the numbers of its positions."""
    for inner in module.modules():
        for name, buffer in inner.named_buffers(recurse=False):
            setattr(inner, name, torch.arange(buffer.shape[-1], device=device).expand(buffer.shape))
