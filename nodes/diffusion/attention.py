"""Attention: which of torch's kernels computes it, chosen by measurement.

`scaled_dot_product_attention` takes a kernel by rules of its own, which know little of the device, of the size of heads
and of lengths. So the kernels are timed, once for each kind of attention and as long as the process lives, on inputs of
their own. What all attentions of a network take together decides which kernel it tries first; where that one cannot
compute an attention, the next one does. All of them give the same up to rounding.
"""

import math
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import NamedTuple, TypeAlias
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

Order: TypeAlias = tuple[SDPBackend, ...]
"""Kernels, the one to be tried first in front."""
Clock: TypeAlias = Callable[[Callable[[], object], torch.device], float]
"""Does something once, and returns the seconds that the device took for it."""

KERNELS = {
    "cuda": (
        SDPBackend.CUDNN_ATTENTION,
        SDPBackend.FLASH_ATTENTION,
        SDPBackend.EFFICIENT_ATTENTION,
        SDPBackend.MATH,
    ),
    "cpu": (SDPBackend.FLASH_ATTENTION, SDPBackend.MATH),
}
"""What there is by type of device."""
HEADS = 8
LATENTS = 2
"""What a kernel is timed with: so many heads of so many latents."""
SHORTEST, LONGEST = 64, 8192
"""Lengths between which kinds of attention are told apart, by powers of two."""
MOST_SCORES = 1 << 18
"""Queries times keys up to which `MATH`, which holds all of their products in memory, is taken at all."""
ROUNDS = 3
"""How often a kernel is timed; the shortest time counts."""
CALLS = 100
"""How often a shape comes again, about: what a kernel takes to get ready for one, as cuDNN's does, is shared by all."""


class Attention(NamedTuple):
    """A kind of attention: the size of its heads, and how many queries and keys there are."""

    size: int
    queries: int
    keys: int


class Kernels:
    """The kernels of devices, and what they took."""

    def __init__(self, *types: str, clock: Clock | None = None) -> None:
        """Only on the named types of devices anything is timed; elsewhere torch's own rules stay."""
        self._types = types
        self._clock = clock or seconds_of
        self._seconds: dict[tuple[str, torch.dtype, Attention], Mapping[SDPBackend, float]] = {}
        self._orders: WeakKeyDictionary[nn.Module, dict[tuple[object, ...], Order]] = WeakKeyDictionary()

    def chosen(
        self, network: object, latents: Tensor, tokens: int, dtype: torch.dtype, *, steady: bool = False
    ) -> AbstractContextManager[None]:
        """The fastest kernels, while a network predicts for latents (B, C, h, w) and conditionings of so many tokens.

        A `steady` call takes those that torch takes by itself, whatever was measured: its bits are to come again.
        """
        if latents.device.type not in self._types:
            return nullcontext()
        return _unordered() if steady else _ordered(self.order(network, latents, tokens, dtype))

    def order(self, network: object, latents: Tensor, tokens: int, dtype: torch.dtype) -> Order:
        """Kernels in the order in which a network is to try them; none where it has no attention that is known."""
        module = network if isinstance(network, nn.Module) else getattr(network, "unet", None)
        if not isinstance(module, nn.Module):
            return ()
        known = self._orders.setdefault(module, {})
        key = (latents.shape[2:], tokens, dtype, latents.device)
        if key not in known:
            if capturing(latents.device):
                return ()
            try:
                known[key] = self._fastest(attentions(module, latents.shape[2:], tokens), dtype, latents.device)
            except torch.OutOfMemoryError:
                return ()
        return known[key]

    def seconds(self, attention: Attention, dtype: torch.dtype, device: torch.device) -> Mapping[SDPBackend, float]:
        """What each kernel takes for a kind of attention; those that cannot compute it are left out.

        If but one can it is not timed, and takes nothing. Kernels that must not compute it take for ever.
        """
        key = (_kind(device), dtype, attention)
        if key not in self._seconds:
            self._seconds[key] = self._measured(attention, dtype, device)
        return self._seconds[key]

    def _fastest(self, found: Mapping[Attention, int], dtype: torch.dtype, device: torch.device) -> Order:
        total = dict.fromkeys(KERNELS[device.type], 0.0)
        for attention, heads in found.items():
            taken = self.seconds(attention, dtype, device)
            for kernel in total:  # where one fails the next in order is taken: the best, as far as anybody knows
                total[kernel] += heads * taken.get(kernel, min(taken.values(), default=0.0))
        return tuple(sorted(total, key=lambda kernel: total[kernel])) if any(total.values()) else ()

    def _measured(self, attention: Attention, dtype: torch.dtype, device: torch.device) -> Mapping[SDPBackend, float]:
        unlike = Example(_unlike(attention), dtype, device)
        asked = [Example(attention, dtype, device, latents) for latents in (LATENTS, LATENTS + 1)]
        barred = {SDPBackend.MATH} if attention.queries * attention.keys > MOST_SCORES else set()
        with _TURN:
            able = [kernel for kernel in KERNELS[device.type] if kernel not in barred and unlike.works(kernel)]
            timed = able if len(able) > 1 else []
            taken = {kernel: self._typical(asked, kernel, device) for kernel in timed}
        return {**dict.fromkeys(able, 0.0), **dict.fromkeys(barred, math.inf), **taken}

    def _typical(self, asked: "Sequence[Example]", kernel: SDPBackend, device: torch.device) -> float:
        with asked[0].trying(kernel):
            first = min(self._clock(example, device) for example in asked)
            again = min(self._clock(asked[0], device) for _ in range(ROUNDS))
        return again + max(first - again, 0.0) / CALLS


class Example:
    """One kind of attention, on inputs as networks have them. Calling it computes it."""

    def __init__(self, attention: Attention, dtype: torch.dtype, device: torch.device, latents: int = LATENTS) -> None:
        self._kernels = KERNELS[device.type]
        query, key, value = (
            torch.zeros(latents, length, HEADS, attention.size, dtype=dtype, device=device).transpose(1, 2)
            for length in (attention.queries, attention.keys, attention.keys)
        )
        self._inputs = (query, key, value)

    def __call__(self) -> Tensor:
        """Compute it. Raises RuntimeError where the kernel that is tried first fails."""
        with torch.no_grad():
            return scaled_dot_product_attention(*self._inputs)

    def trying(self, kernel: SDPBackend) -> AbstractContextManager[object]:
        """Have a kernel tried first. All stay allowed: what other threads compute must not fail for it."""
        return _trying((kernel, *self._kernels))

    def works(self, kernel: SDPBackend) -> bool:
        """Whether a kernel can."""
        with self.trying(kernel):
            try:
                taken = torch._fused_sdp_choice(*self._inputs)
                self()
            except torch.OutOfMemoryError:
                raise
            except RuntimeError:
                return False
        return bool(taken == kernel.value)


def _unlike(attention: Attention) -> Attention:
    """The same with lengths that are multiples of nothing, which is not every kernel's liking."""
    return attention._replace(queries=attention.queries - 1, keys=attention.keys - 1)


def attentions(network: nn.Module, size: tuple[int, ...], tokens: int) -> Mapping[Attention, int]:
    """The kinds of attention in a UNet or a ControlNet, and how many heads each has.

    `size` is the latents' height and width in cells. Lengths are rounded up, so that sizes share what was measured.
    """
    levels = len(getattr(network, "down_blocks", ()))
    found: Counter[Attention] = Counter()
    for name, part in network.named_modules():
        level = _level(name, levels)
        if level is None or not hasattr(part, "is_cross_attention"):
            continue
        cells = math.prod(-(-side // 2**level) for side in size)
        keys = tokens if part.is_cross_attention else cells
        heads = int(part.heads)
        found[Attention(int(part.inner_dim) // heads, _rounded(cells), _rounded(keys))] += heads
    return found


def _level(name: str, levels: int) -> int | None:
    """How often latents were halved where a part stands; None outside of a network's blocks."""
    block, _, rest = name.partition(".")
    if block == "mid_block":
        return levels - 1
    number = rest.partition(".")[0]
    if not number.isdigit() or block not in ("down_blocks", "up_blocks"):
        return None
    return int(number) if block == "down_blocks" else levels - 1 - int(number)


def _rounded(length: int) -> int:
    return min(LONGEST, max(SHORTEST, 1 << (length - 1).bit_length()))


def _kind(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def capturing(device: torch.device) -> bool:
    """Whether what a device is told is being recorded for later: no time to wait for it."""
    return device.type == "cuda" and torch.cuda.is_current_stream_capturing()


def seconds_of(action: Callable[[], object], device: torch.device) -> float:
    """Do something once, and return the seconds that the device took for it, waits for the host included."""
    if device.type != "cuda":
        began = time.perf_counter()
        action()
        return time.perf_counter() - began
    with torch.cuda.device(device):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
        start.record()
        action()
        end.record()
        end.synchronize()
        return float(start.elapsed_time(end)) / 1e3


_TURN = threading.Lock()
"""The order of kernels is the process's, not the thread's: who sets it puts it back before another does."""


@contextmanager
def _ordered(order: Order) -> Iterator[None]:
    """Have kernels tried in an order; where another thread's order holds just now, in that one."""
    if not order or not _TURN.acquire(blocking=False):
        yield
        return
    try:
        with _trying(order):
            yield
    finally:
        _TURN.release()


def _trying(order: Order) -> AbstractContextManager[object]:
    """Have kernels tried in an order up to `MATH`, which computes everything."""
    return sdpa_kernel(list(order[: order.index(SDPBackend.MATH) + 1]), set_priority=True)


@contextmanager
def _unordered() -> Iterator[None]:
    """Have kernels tried in torch's own order, whatever other threads do."""
    with _TURN:
        yield


MEASURED = Kernels("cuda")
"""What this process knows of its devices. On a CPU torch's own rules take the faster one of its two kernels."""
