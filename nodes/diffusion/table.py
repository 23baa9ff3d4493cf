"""The noise levels that a model was trained on.

A noise level is sigma, the standard deviation of the noise that stands on a clean latent: x = clean + sigma * noise.
"""

import math
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any, Literal, Self, TypeAlias, cast, get_args

import torch
from torch import Tensor

Prediction: TypeAlias = Literal["epsilon", "v_prediction"]
BetaSchedule: TypeAlias = Literal["scaled_linear", "linear"]

SWITCHES_REFUSED = ("use_flow_sigmas",)
TERMINAL_SIGNAL = 4.8973451890853435e-08
"""What is left of a clean latent's variance at the last timestep where that should be nothing: ComfyUI's number, by
which the highest noise level is 4518.8 instead of infinite."""
DIFFUSERS_TERMINAL_SIGNAL = 2**-24
"""The same in diffusers' Euler scheduler."""
NO_SIGNAL = 1e-7
"""Less than this of a clean latent's variance is nothing."""
HALF_WAY = 1e-3
"""How near to the middle of two timesteps is half way."""


@dataclass(frozen=True)
class NoiseSchedule:
    """The noise levels a model was trained on, and what its UNet predicts.

    `sigmas[t]` is the noise level of timestep t: positive and ascending, 1000 of them for Stable Diffusion. Between two
    timesteps log sigma is linear, so every sigma in the table's range has an exact, fractional timestep.
    `prediction` is "epsilon" (the noise) or "v_prediction" (Salimans and Ho 2022, https://arxiv.org/abs/2202.00512).
    `exact` are the same levels without the rounding that `sigmas` shares with other programs; `nearest` wants them.
    """

    sigmas: tuple[float, ...] = field(repr=False)
    prediction: Prediction = "epsilon"
    exact: tuple[float, ...] = field(default=(), repr=False, compare=False)

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
        return cls(_sigmas(betas), prediction, _exact_sigmas(betas))

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Self:
        """Read what a diffusers `scheduler_config.json` says of the model; how that scheduler steps is left alone.

        A config without `prediction_type` means epsilon, one without `num_train_timesteps` 1000. ValueError for a model
        without betas, or with another prediction.
        """
        _check_config(config)
        table = cls._of_betas(config)
        return table.with_zero_snr(DIFFUSERS_TERMINAL_SIGNAL) if config.get("rescale_betas_zero_snr") else table

    @classmethod
    def _of_betas(cls, config: Mapping[str, Any]) -> Self:
        prediction = config.get("prediction_type", "epsilon")
        if config.get("trained_betas") is not None:
            betas = torch.tensor(config["trained_betas"], dtype=torch.float64)
            return cls(_sigmas(betas), prediction, _exact_sigmas(betas))
        return cls.from_betas(
            config["beta_start"],
            config["beta_end"],
            config["beta_schedule"],
            config.get("num_train_timesteps", 1000),
            prediction=prediction,
        )

    def with_zero_snr(self, terminal: float = TERMINAL_SIGNAL) -> Self:
        """Return the same without any signal at the last timestep, but for a share `terminal` of the variance.

        The square roots of the signal's variances are shifted to end at 0 and scaled to begin where they did: Lin et
        al. 2023, algorithm 1 (https://arxiv.org/abs/2305.08891). Levels that end so already stay as they are.
        """
        if 1 / (1 + self.sigma_max**2) < NO_SIGNAL:
            return self
        exact = _without_terminal_signal(self.exact, terminal) if self.exact else ()
        return replace(self, sigmas=_without_terminal_signal(self.sigmas, terminal), exact=exact)

    def with_prediction(self, prediction: Prediction) -> Self:
        """Return the same levels of a UNet that predicts something else."""
        _check_choice("prediction", prediction, get_args(Prediction))
        return replace(self, prediction=prediction)

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

    def nearest(self, sigma: float) -> int:
        """Return the whole timestep whose noise level is nearest in log sigma.

        Schedules of even timesteps visit levels half way between two. Of these it is the one that float32 finds nearer,
        by way of exp and log: ComfyUI's.
        """
        timestep = torch.tensor(self.timestep(sigma), dtype=torch.float32)
        below, part = float(timestep.floor()), timestep.frac()
        if abs(part - 0.5) > HALF_WAY:
            return int(below) + bool(part > 0.5)
        low, high = (
            torch.tensor((self.exact or self.sigmas)[int(below) : int(below) + 2], dtype=torch.float64).log().float()
        )
        middle = ((1 - part) * low + part * high).exp().log()
        return int(below) + bool((middle - high).abs() < (middle - low).abs())

    def sigma(self, timestep: float) -> float:
        """Return the noise level of a fractional timestep, clamped to the table's range."""
        clamped = min(max(timestep, 0.0), len(self.sigmas) - 1.0)
        below = min(int(clamped), len(self.sigmas) - 2)
        low, high = self.sigmas[below], self.sigmas[below + 1]
        return float(low * (high / low) ** (clamped - below))


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


def _without_terminal_signal(sigmas: Sequence[float], terminal: float) -> tuple[float, ...]:
    roots = (1 + torch.tensor(sigmas, dtype=torch.float64) ** 2).rsqrt()
    signal = ((roots - roots[-1]) * (roots[0] / (roots[0] - roots[-1]))) ** 2
    signal[-1] = terminal
    return tuple(cast("Sequence[float]", ((1 - signal) / signal).sqrt().tolist()))


def _sigmas(betas: Tensor) -> tuple[float, ...]:
    """Turn float64 betas into sigmas, by way of the float32 alphas_cumprod that checkpoints carry."""
    alphas_cumprod = torch.cumprod(1 - betas, dim=0).float().double()
    return tuple(cast("Sequence[float]", ((1 - alphas_cumprod) / alphas_cumprod).sqrt().tolist()))


def _exact_sigmas(betas: Tensor) -> tuple[float, ...]:
    """Turn float64 betas into sigmas in float64."""
    alphas_cumprod = torch.cumprod(1 - betas, dim=0)
    return tuple(((1 - alphas_cumprod) / alphas_cumprod).sqrt().tolist())
