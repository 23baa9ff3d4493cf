"""Accelerators that are none: places whose weights and values are told apart from the host's, without torch or with."""

from dataclasses import dataclass

from engine.host import Host
from engine.models import ModelRef

LOADED = []
"""Names of the modules that were loaded, and of what was put on others, in order."""


@dataclass(eq=False)
class Weight:
    """A tensor: so many bytes, somewhere."""

    size: int
    where: str


class Module:
    """Weights under a name."""

    def __init__(self, name, weights):
        self.name = name
        self.weights = weights

    def places(self):
        """Where its weights lie."""
        return {weight.where for weight in self.weights}


@dataclass(frozen=True)
class Ref(ModelRef[Module]):
    """Describes a module of two weights. `patches` are names of modules on top of it, with a second weight each."""

    name: str
    size: int = 10
    patches: tuple[str, ...] = ()

    @property
    def base(self):
        return Ref(self.name, self.size, self.patches[:-1]) if self.patches else None

    def load(self, files, place):
        LOADED.append(self.name)
        return Module(self.name, [Weight(self.size - 4, place), Weight(4, place)])

    def patched(self, module, files, place):
        assert module.places() == {place}, "what it is made of lies where it shall be"
        LOADED.append(self.patches[-1])
        return Module(f"{module.name}+{self.patches[-1]}", [module.weights[0], Weight(4, place)])

    def module_bytes(self, module):
        return module.weights[-1].size if self.patches else sum(weight.size for weight in module.weights)

    def expected_bytes(self, files, place):
        return 4 if self.patches else self.size


class Moved:
    """Weights that were moved to the host."""

    def __init__(self, device, weights):
        self.device, self.weights = device, weights
        self.nbytes = sum(weight.size for weight in weights)
        for weight in weights:
            weight.where = "cpu"

    def back(self):
        if self.device.refuses:
            raise MemoryError("no room")
        for weight in self.weights:
            assert weight.where == "cpu"
            weight.where = self.device.name


class Accelerator(Host):
    """A device whose memory is not the host's. `refuses` makes every move fail, `stuck` leaves one weight behind."""

    name = "gpu"

    def __init__(self):
        self.refuses = self.stuck = False

    def park(self, modules, spare=()):
        if self.refuses:
            raise MemoryError("no room")
        spared = [weight for module in spare for weight in module.weights]
        found = {id(weight): weight for module in modules for weight in module.weights if weight.where == self.name}
        moving = [weight for weight in found.values() if weight not in spared]
        return Moved(self, moving[self.stuck :])
