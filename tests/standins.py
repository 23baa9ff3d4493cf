"""Networks that are none: cheap formulas that depend on all that they are told, and count how often they are asked."""

import threading
from types import SimpleNamespace

import torch
from torch.nn import functional

from engine.budget import Ledger
from engine.context import CancelToken, Context
from engine.interim import Interim
from engine.store import Store
from nodes.diffusion.table import NoiseSchedule
from nodes.types import ControlNet, Unet, UnetModel

WIDTH = 8
TABLE = NoiseSchedule.from_betas(0.00085, 0.012)
PLAIN, PATCHED = Unet("aa" * 32), Unet("aa" * 32, patches=(("bb" * 32, 1.0),))
LINES, DEPTH = ControlNet("cc" * 32), ControlNet("dd" * 32)


class Formula:
    """What UNets and ControlNets have in common; `factor` makes one differ from another."""

    dtype = torch.float32

    def __init__(self, factor):
        self.factor = factor
        self.config = SimpleNamespace(cross_attention_dim=WIDTH, in_channels=4, block_out_channels=(8,))
        self.asked = 0
        self.fails_at = None

    def count(self):
        self.asked += 1
        if self.asked == self.fails_at:
            raise RuntimeError("the network broke")


class UnetFormula(Formula):
    """A UNet."""

    def __call__(self, sample, timestep, encoder_hidden_states, *, return_dict, **more):
        self.count()
        told = encoder_hidden_states.sin().sum((1, 2))[:, None, None, None] / 20
        told = told + (timestep * 0.01).sin()[:, None, None, None] / 5
        beside = more.get("mid_block_additional_residual", 0)
        return (torch.tanh(sample * self.factor + told + beside) + sample.flip(3) / 5,)


class NetFormula(Formula):
    """A ControlNet."""

    def __call__(self, sample, timestep, *, encoder_hidden_states, controlnet_cond, added_cond_kwargs, return_dict):
        self.count()
        seen = functional.adaptive_avg_pool2d(controlnet_cond.mean(1, keepdim=True), sample.shape[2:])
        return [sample], seen * self.factor + sample / 10


class Shelf:
    """Models by their references, instead of a pool."""

    def __init__(self):
        self.models = {
            PLAIN: UnetModel(UnetFormula(0.7), TABLE),
            PATCHED: UnetModel(UnetFormula(0.6), TABLE),
            LINES: NetFormula(0.4),
            DEPTH: NetFormula(0.3),
        }

    def acquire(self, ref, place):
        return self.models[ref]

    def release(self, ref):
        pass

    def settle(self, ref, module):
        pass


class House:
    """A store for what nodes keep on their way, and contexts that know it; counts what is made and what is recalled."""

    def __init__(self, capacity=1 << 30, numerics=b""):
        self.shelf = Shelf()
        self.ledger = Ledger("cpu", capacity)
        self.store = Store(self.ledger)
        self.interim = Interim(self.store, threading.RLock(), numerics)
        self.taken = []

    def context(self, *, until=None, remembers=True):
        """A context; its call is cancelled once it has done `until` steps."""
        token = CancelToken()

        def listen(done, total, preview):
            if done == until:
                token.cancel()

        return Context(
            models=self.shelf,
            listener=listen,
            token=token,
            meter=lambda name, value: self.taken.append((name, value)),
            interim=self.interim if remembers else None,
        )

    def counted(self):
        """(UNet calls, steps recalled) since the last time."""
        names = [name for name, _ in self.taken]
        recalled = sum(value for name, value in self.taken if name == "steps_recalled")
        self.taken.clear()
        return names.count("unet_calls"), recalled


def words(*numbers, seed=0):
    """Conditionings, U x 77 x WIDTH: a row for each number."""
    rows = [torch.randn(77, WIDTH, generator=torch.Generator().manual_seed(1000 * seed + number)) for number in numbers]
    return torch.stack(rows)
