"""What files of small changes add to a weight W (out, in, ...), written with fewer numbers than W has.

    LoRA    up @ down                         Hu et al. 2021, https://arxiv.org/abs/2106.09685
    LoHa    (a1 @ b1) * (a2 @ b2)             Hyeon-Woo et al. 2021, https://arxiv.org/abs/2108.06098
    LoKr    kron(w1, w2), each whole or a @ b Yeh et al. 2023, https://arxiv.org/abs/2309.14859
    full    the difference itself

Yeh et al. also say how each is laid out for convolutions: with the kernel in the second factor, or with a core between
two factors without one (Tucker's decomposition). All are scaled by alpha / rank.

DoRA (Liu et al. 2024, https://arxiv.org/abs/2402.09353) does not add the change alone: V = W + change is brought to the
lengths m that were learnt, m * V / |V|, row by row or column by column.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod, sqrt
from typing import Literal, TypeAlias

import torch
from torch import Tensor

Method: TypeAlias = Literal["LoRA", "LoHa", "LoKr", "full"]


@dataclass(frozen=True, eq=False)
class Matrix:
    """A matrix (out, rest), `rest` being inputs times kernel, in one to three factors.

    One: the matrix itself, of any shape that begins with `out`. Two: (out, r, ...) and (r, rest...). Three: (out, r),
    the core (r, s, *kernel) and (s, in).
    """

    factors: tuple[Tensor, ...]

    @property
    def rank(self) -> int | None:
        """Rows of the last factor; None where there is only one."""
        return self.factors[-1].shape[0] if len(self.factors) > 1 else None

    @property
    def shape(self) -> tuple[int, int]:
        """(out, rest)."""
        first, last = self.factors[0].shape, self.factors[-1].shape
        if len(self.factors) == 3:
            return first[0], prod(last[1:]) * prod(self.factors[1].shape[2:])
        return first[0], prod(last[1:])

    @property
    def consistent(self) -> bool:
        """Whether the factors fit one another; a core may not have more ranks than the matrix has rows or columns."""
        if any(factor.ndim == 0 or 0 in factor.shape for factor in self.factors):
            return False
        if len(self.factors) == 1:
            return True
        outer, inner = (prod(self.factors[0].shape[1:]), self.factors[-1].shape[0])
        if len(self.factors) == 2:
            return outer == inner
        core = self.factors[1].shape
        return core[:2] == (outer, inner) and max(core[:2]) <= max(self.shape)

    def dense(self, device: torch.device) -> Tensor:
        """Return the matrix, (out, rest) in float32."""
        factors = self._flat(device)
        if len(factors) == 3:
            return torch.einsum("or, rs..., si -> oi...", factors[0], self._core(device), factors[2]).flatten(1)
        return factors[0] if len(factors) == 1 else factors[0] @ factors[1]

    def add_to(self, total: Tensor, factor: float) -> None:
        """Add it, times a factor, to (out, rest) in float32."""
        if len(self.factors) == 2:
            total.addmm_(*self._flat(total.device), alpha=factor)
        else:
            total.add_(self.dense(total.device), alpha=factor)

    def _flat(self, device: torch.device) -> list[Tensor]:
        moved = [each.to(device, torch.float32) for each in self.factors]
        return [each.reshape(each.shape[0], -1) for each in moved]

    def _core(self, device: torch.device) -> Tensor:
        return self.factors[1].to(device, torch.float32)


@dataclass(frozen=True, eq=False)
class Change:
    """A change of one weight or bias.

    `scale` is a number that files may have in place of alpha / rank; with neither it is 1. `rooted` is rsLoRA's alpha /
    sqrt(rank) (Kalajdzievski 2023, https://arxiv.org/abs/2312.03732). `magnitude` is DoRA's m, (out, 1, ...) or (1, in,
    1, ...).
    """

    method: Method
    sides: tuple[Matrix, ...]
    alpha: Tensor | float | None = None
    scale: Tensor | None = None
    rooted: bool = False
    magnitude: Tensor | None = None

    @property
    def rank(self) -> int | None:
        """The rank; None where nothing was decomposed."""
        return next((side.rank for side in self.sides if side.rank is not None), None)

    @property
    def factor(self) -> float:
        """What the change is multiplied by, before any strength."""
        if self.scale is not None:
            return float(self.scale)
        if self.alpha is None or self.rank is None:
            return 1.0
        return float(self.alpha) / (sqrt(self.rank) if self.rooted else self.rank)

    @property
    def shape(self) -> tuple[int, int]:
        """(out, rest) of the weights that it is for."""
        shapes = [side.shape for side in self.sides]
        if self.method == "LoKr":
            return prod(out for out, _ in shapes), prod(rest for _, rest in shapes)
        return shapes[0]

    @property
    def consistent(self) -> bool:
        """Whether its tensors fit one another."""
        ranks = {side.rank for side in self.sides} - {None}
        alike = self.method != "LoHa" or self.sides[0].shape == self.sides[1].shape
        return all(side.consistent for side in self.sides) and len(ranks) < 2 and alike

    def fits(self, weight: Tensor) -> bool:
        """Whether it has the weight's shape."""
        size = (weight.shape[0], weight.numel() // weight.shape[0])
        if self.magnitude is not None and (weight.ndim < 2 or _axis(self.magnitude, weight) is None):
            return False
        return self.shape == size

    def put_on(self, total: Tensor, strength: float) -> None:
        """Change a weight, contiguous in float32, in its place; at half the strength by half of what there is to it."""
        if self.magnitude is None:
            self._add_to(total, strength * self.factor)
        else:
            changed = total.clone()
            self._add_to(changed, self.factor)
            total.lerp_(_with_lengths(changed, self.magnitude), strength)

    def _add_to(self, total: Tensor, factor: float) -> None:
        flat = total.view(total.shape[0], -1)
        if self.method == "LoHa":
            flat.addcmul_(*(side.dense(total.device) for side in self.sides), value=factor)
        elif self.method == "LoKr":
            flat.add_(torch.kron(*(side.dense(total.device) for side in self.sides)), alpha=factor)
        else:
            self.sides[0].add_to(flat, factor)


def _axis(magnitude: Tensor, weight: Tensor) -> int | None:
    """The axis of a weight along which a magnitude lies."""
    shape = (*magnitude.shape, 1)
    return next((axis for axis in (0, 1) if shape[axis] == weight.shape[axis] == magnitude.numel()), None)


def _with_lengths(changed: Tensor, magnitude: Tensor) -> Tensor:
    """Scale the rows or columns of a weight to the lengths of a magnitude."""
    axis = _axis(magnitude, changed)
    others = [other for other in range(changed.ndim) if other != axis]
    length = torch.linalg.vector_norm(changed, dim=others, keepdim=True).clamp_min(torch.finfo(changed.dtype).tiny)
    wanted = magnitude.to(changed.device, torch.float32).reshape(length.shape)
    return changed * wanted.div(length)
