"""Noise levels: those a model was trained on, and those that a run visits.

A noise level is sigma, the standard deviation of the noise that stands on a clean latent: x = clean + sigma * noise.
Schedules are the lists of sigmas along which a sampler walks; the formulas are those that k-diffusion made customary.
"""

import math
from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from types import MappingProxyType
from typing import Any, Literal, Self, TypeAlias, cast, get_args

import torch
from torch import Tensor

Prediction: TypeAlias = Literal["epsilon", "v_prediction"]
BetaSchedule: TypeAlias = Literal["scaled_linear", "linear"]

KARRAS_RHO = 7.0
LONGEST_SCHEDULE = 100_000
SWITCHES_REFUSED = ("rescale_betas_zero_snr", "use_flow_sigmas")


@dataclass(frozen=True)
class NoiseSchedule:
    """The noise levels a model was trained on, and what its UNet predicts.

    `sigmas[t]` is the noise level of timestep t: positive and ascending, 1000 of them for Stable Diffusion. Between two
    timesteps log sigma is linear, so every sigma in the table's range has an exact, fractional timestep.
    `prediction` is "epsilon" (the noise) or "v_prediction" (Salimans and Ho 2022, https://arxiv.org/abs/2202.00512).
    """

    sigmas: tuple[float, ...] = field(repr=False)
    prediction: Prediction = "epsilon"

    def __post_init__(self) -> None:
        """Refuse a table without an inverse."""
        ascending = all(low < high for low, high in pairwise((0.0, *self.sigmas)))
        if len(self.sigmas) < 2 or not ascending or math.isinf(self.sigmas[-1]):
            raise ValueError("a noise schedule needs at least two sigmas, positive, finite and ascending")

    @classmethod
    def from_betas(
        cls,
        start: float,
        end: float,
        kind: BetaSchedule = "scaled_linear",
        steps: int = 1000,
        *,
        prediction: Prediction = "epsilon",
    ) -> Self:
        """Space `steps` betas from `start` to `end` evenly ("linear"), or their square roots ("scaled_linear").

        Stable Diffusion is `from_betas(0.00085, 0.012)`.
        """
        _check_choice("beta_schedule", kind, get_args(BetaSchedule))
        power = 1 if kind == "linear" else 2
        betas = torch.linspace(start ** (1 / power), end ** (1 / power), steps, dtype=torch.float64) ** power
        return cls(_sigmas(betas), prediction)

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Self:
        """Read what a diffusers `scheduler_config.json` says of the model; how that scheduler steps is left alone.

        A config without `prediction_type` means epsilon, one without `num_train_timesteps` 1000. ValueError for a model
        without betas, with a zero terminal signal, or with another prediction.
        """
        _check_config(config)
        prediction = config.get("prediction_type", "epsilon")
        if config.get("trained_betas") is not None:
            return cls(_sigmas(torch.tensor(config["trained_betas"], dtype=torch.float64)), prediction)
        return cls.from_betas(
            config["beta_start"],
            config["beta_end"],
            config["beta_schedule"],
            config.get("num_train_timesteps", 1000),
            prediction=prediction,
        )

    @property
    def sigma_min(self) -> float:
        """The lowest noise level, that of timestep 0."""
        return self.sigmas[0]

    @property
    def sigma_max(self) -> float:
        """The highest noise level, that of the last timestep."""
        return self.sigmas[-1]

    def timestep(self, sigma: float) -> float:
        """Return the fractional timestep of a noise level, clamped to the table's range."""
        if sigma <= self.sigma_min:
            return 0.0
        if sigma >= self.sigma_max:
            return float(len(self.sigmas) - 1)
        above = bisect_right(self.sigmas, sigma)
        low, high = self.sigmas[above - 1], self.sigmas[above]
        return above - 1 + math.log(sigma / low) / math.log(high / low)

    def sigma(self, timestep: float) -> float:
        """Return the noise level of a fractional timestep, clamped to the table's range."""
        clamped = min(max(timestep, 0.0), len(self.sigmas) - 1.0)
        below = min(int(clamped), len(self.sigmas) - 2)
        low, high = self.sigmas[below], self.sigmas[below + 1]
        return float(low * (high / low) ** (clamped - below))


Schedule: TypeAlias = Callable[[NoiseSchedule, int], Tensor]


def karras(table: NoiseSchedule, steps: int) -> Tensor:
    """Karras et al. 2022, equation 5 with rho 7: sigma ** (1 / 7) falls evenly.

    Like every schedule here: `steps` + 1 noise levels, descending, the last 0, as float64 on the CPU; `steps` >= 1.
    """
    high, low = table.sigma_max ** (1 / KARRAS_RHO), table.sigma_min ** (1 / KARRAS_RHO)
    return _to_zero(_even(high, low, steps) ** KARRAS_RHO)


def exponential(table: NoiseSchedule, steps: int) -> Tensor:
    """Log sigma falls evenly from the highest noise level to the lowest."""
    return _to_zero(_even(math.log(table.sigma_max), math.log(table.sigma_min), steps).exp())


def normal(table: NoiseSchedule, steps: int) -> Tensor:
    """The timestep falls evenly from the last to 0 (A1111: "uniform", diffusers: "linspace")."""
    return _to_zero(_at_timesteps(table, _even(len(table.sigmas) - 1, 0, steps)))


def sgm_uniform(table: NoiseSchedule, steps: int) -> Tensor:
    """The timestep falls evenly and would reach 0 one step later (Stability's generative-models)."""
    _check_steps(steps)
    return _to_zero(_at_timesteps(table, _even(len(table.sigmas) - 1, 0, steps + 1)[:-1]))


SCHEDULES: Mapping[str, Schedule] = MappingProxyType(
    {"karras": karras, "normal": normal, "exponential": exponential, "sgm_uniform": sgm_uniform},
)


def tail(schedule: Schedule, table: NoiseSchedule, steps: int, denoise: float) -> Tensor:
    """Return the last `steps` steps of a schedule of int(steps / denoise) steps: the exact-steps convention.

    However small `denoise` is, exactly `steps` steps run; it says how far up the noise levels they begin. At 1 they
    begin at sigma_max. At 0 there are none: the one level that remains is 0, so adding noise at it changes nothing.
    ComfyUI's KSampler counts this way, and so does A1111's "do exactly the amount of steps".

    `steps` >= 1, `denoise` in [0, 1]; ValueError outside, or if the whole schedule would pass 100,000 steps.
    """
    _check_steps(steps)
    if not 0 <= denoise <= 1:
        raise ValueError(f"denoise: expected a number from 0 to 1, got {denoise}")
    if denoise == 0:
        return torch.zeros(1, dtype=torch.float64)
    if steps / denoise > LONGEST_SCHEDULE:
        raise ValueError(f"denoise: expected 0 or at least {steps / LONGEST_SCHEDULE} for {steps} steps, got {denoise}")
    return schedule(table, int(steps / denoise))[-steps - 1 :]


def _check_steps(steps: int) -> None:
    """Refuse a schedule without steps."""
    if steps < 1:
        raise ValueError(f"steps: expected at least 1, got {steps}")


def _check_config(config: Mapping[str, Any]) -> None:
    """Refuse a scheduler config that this table cannot stand for."""
    _check_choice("prediction_type", config.get("prediction_type", "epsilon"), get_args(Prediction))
    for switch in SWITCHES_REFUSED:
        if config.get(switch):
            raise ValueError(f"{switch}: expected false, got {config[switch]!r}; such models are not supported")
    absent = [key for key in ("beta_start", "beta_end", "beta_schedule") if key not in config]
    if absent and config.get("trained_betas") is None:
        kind = config.get("_class_name", "scheduler")
        raise ValueError(f"{', '.join(absent)}: expected in the {kind} config, found none; a model needs its betas")


def _check_choice(name: str, value: object, choices: Sequence[str]) -> None:
    """Refuse a value that is none of the choices."""
    if value not in choices:
        raise ValueError(f"{name}: expected one of {', '.join(choices)}, got {value!r}")


def _sigmas(betas: Tensor) -> tuple[float, ...]:
    """Turn float64 betas into sigmas, by way of the float32 alphas_cumprod that checkpoints carry."""
    alphas_cumprod = torch.cumprod(1 - betas, dim=0).float().double()
    return tuple(cast("Sequence[float]", ((1 - alphas_cumprod) / alphas_cumprod).sqrt().tolist()))


def _even(first: float, last: float, count: int) -> Tensor:
    """Return `count` evenly spaced values; a single one is the first."""
    _check_steps(count)
    return torch.linspace(first, last, count, dtype=torch.float64)


def _at_timesteps(table: NoiseSchedule, timesteps: Tensor) -> Tensor:
    """Return the noise levels of fractional timesteps."""
    return torch.tensor([table.sigma(timestep) for timestep in timesteps.tolist()], dtype=torch.float64)


def _to_zero(sigmas: Tensor) -> Tensor:
    """End a schedule at the clean latent."""
    return torch.cat([sigmas, sigmas.new_zeros(1)])
