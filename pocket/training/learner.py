"""A model that learns: its weights, their average, the optimiser's memory and how far it came."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from pocket.training import checkpoint
from pocket.training.average import Average

BLENDED = 40
"""Seconds between blends of what several processes learn."""
CLIP = 1.0
"""The largest gradient that is stepped along."""


@dataclass
class Progress:
    """What was done so far, in all sessions."""

    step: int = 0
    seen: int = 0
    seconds: float = 0.0
    helped: int = 0
    """Samples that other processes saw."""
    concepts: int = 0
    """How many of the most important concepts are learnt; 0 before the first session."""


class Learner:
    """AdamW on a model's free parameters, and the exponential moving average of the model."""

    def __init__(self, name: str, model: nn.Module, *, average: float) -> None:
        self.name = name
        self.model = model
        self.average = Average(model, average)
        self.progress = Progress()
        self._free = [each for each in model.parameters() if each.requires_grad]
        self._adam = torch.optim.AdamW(self._free, betas=(0.9, 0.99), weight_decay=0.01, fused=True)

    def learn(self, loss: Tensor, rate: float) -> None:
        """Take one step down the loss."""
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(self._free, CLIP)
        for group in self._adam.param_groups:
            group["lr"] = rate
        self._adam.step()
        self._adam.zero_grad(set_to_none=True)
        self.progress.step += 1
        self.average.update(self.progress.step)

    def save(self, folder: Path) -> None:
        """Write everything that is needed to go on as if nothing had happened."""
        checkpoint.save(folder, self.name, dict(self._tensors()), asdict(self.progress))

    def averaged(self) -> dict[str, Tensor]:
        """The average in half precision: enough to ship, and to go on from after a short warm-up."""
        named = self.average.model.state_dict()
        return {f"average.{name}": value for name, value in checkpoint.halved(named).items()}

    def resume(self, folder: Path, name: str = "") -> bool:
        """Go on from what `save` or `averaged` left in `folder`, under this or another name, if anything."""
        name = name or self.name
        if not checkpoint.exists(folder, name):
            return False
        tensors, about = checkpoint.load(folder, name)
        self.progress = Progress(**about)
        self.average.model.load_state_dict(_under("average.", tensors))
        self.model.load_state_dict(_under("model.", tensors) or self.average.model.state_dict())
        remembered = _under("adam.", tensors)
        if remembered:
            self._recall(remembered)
        return True

    def blend(self, folder: Path, others: Iterable[str]) -> None:
        """Leave the weights in `folder` and move half way to those that other processes left there; nobody waits.

        After McMahan et al. 2017, https://arxiv.org/abs/1602.05629.
        """
        tensors = self.model.state_dict()
        checkpoint.save(folder, f"blend-{self.name}", tensors, {"seen": self.progress.seen})
        found = [checkpoint.load(folder, name) for each in others if checkpoint.exists(folder, name := f"blend-{each}")]
        for theirs, _ in found:
            for name, value in theirs.items():
                if value.is_floating_point():
                    tensors[name].lerp_(value.to(tensors[name]), 0.5)
        self.progress.helped = sum(about["seen"] for _, about in found)

    def _tensors(self) -> Iterator[tuple[str, Tensor]]:
        for prefix, model in (("model", self.model), ("average", self.average.model)):
            for name, value in model.state_dict().items():
                yield f"{prefix}.{name}", value
        for number, state in self._adam.state_dict()["state"].items():
            for name, value in state.items():
                yield f"adam.{number}.{name}", value

    def _recall(self, tensors: Mapping[str, Tensor]) -> None:
        state: dict[int, dict[str, Tensor]] = {}
        for name, value in tensors.items():
            number, _, part = name.partition(".")
            state.setdefault(int(number), {})[part] = value
        self._adam.load_state_dict({**self._adam.state_dict(), "state": state})


def _under(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
