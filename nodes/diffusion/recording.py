"""Recorded calls: CUDA graphs, which launch the kernels of a whole UNet call at once instead of one by one.

A graph repeats what was launched while it was recorded: the same kernels, reading and writing the same addresses. So
inputs are copied to where it reads them, and outputs are cloned before the next call overwrites them. All that Python
decided on the way is frozen: a call is repeated only where its signature is the same, and nothing that the module is
made of was moved or exchanged since (`frozen`). UNets in evaluation draw no random numbers; one in training, or with
hooks, is not recorded. What is recorded and what is called plainly take the same stream, the one of the nodes.

torch.compile's own graphs (mode "reduce-overhead") are kept by thread, and nodes run in several. These have run on the
CPU's double of a graph only, on no GPU yet.
"""

import threading
from collections import Counter
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import count
from typing import Any, Protocol, TypeAlias
from weakref import WeakKeyDictionary, WeakSet

import torch
from torch import Tensor, nn
from torch.nn.attention import _cur_sdpa_kernel_backends
from torch.utils._pytree import tree_flatten, tree_unflatten

MOST = 8
"""Recorded calls that are kept on a device, of all modules together; the least recently used one goes."""
RECORDED_AT = 3
"""The call of a signature that is recorded: what is called less often is not worth it."""
COUNTED = 64
"""Signatures of a module whose calls are counted."""
WARM_UPS = 3
"""Calls on the recording's stream before it begins, as torch's documentation has it."""

Outputs: TypeAlias = tuple[Tensor, ...]
Work: TypeAlias = Callable[..., Outputs]
Signature: TypeAlias = tuple[Hashable, ...]
State: TypeAlias = tuple[object, ...]


class Recording(Protocol):
    """A recorded call."""

    def replay(self) -> Outputs:
        """Repeat it on what its inputs hold now; the outputs are the same tensors every time."""


class Recorder(Protocol):
    """Records calls on a device."""

    device: torch.device

    def record(self, work: Callable[[], Outputs]) -> Recording:
        """Record what some work launches; its tensors stay where they are. Raises RuntimeError where that fails."""

    def trim(self) -> None:
        """Give back the memory of recordings that are gone."""


class CudaRecorder:
    """Records CUDA graphs. They are replayed one after the other, so one pool of memory serves all of them."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self._alive: WeakSet[_CudaRecording] = WeakSet()

    def record(self, work: Callable[[], Outputs]) -> "Recording":
        """Warm up beside the current stream, where libraries take their workspaces too, and record."""
        with torch.cuda.device(self.device):
            current = torch.cuda.current_stream()
            self._stream.wait_stream(current)
            with torch.cuda.stream(self._stream):
                for _ in range(WARM_UPS):
                    work()
                made = self._captured(work)
            current.wait_stream(self._stream)
        self._alive.add(made)
        return made

    def trim(self) -> None:
        """Give the allocator's unused blocks back to the driver."""
        torch.cuda.empty_cache()

    def _captured(self, work: Callable[[], Outputs]) -> "_CudaRecording":
        """Other threads may go on meanwhile. A pool that no graph uses any more cannot be used again."""
        graph = torch.cuda.CUDAGraph()
        pool = next((each.graph.pool() for each in self._alive), None)
        with torch.cuda.graph(graph, pool=pool, stream=self._stream, capture_error_mode="thread_local"):
            outputs = work()
        return _CudaRecording(graph, outputs)


@dataclass(frozen=True, eq=False)
class _CudaRecording:
    """A CUDA graph and the tensors that it writes to; those that it reads are kept by who recorded it."""

    graph: torch.cuda.CUDAGraph
    outputs: Outputs

    def replay(self) -> Outputs:
        """Launch it on the current stream."""
        self.graph.replay()
        return self.outputs


@dataclass(eq=False)
class _Repeatable:
    """A recorded call with the tensors that it reads."""

    inputs: Sequence[Tensor]
    recording: Recording
    used: int = 0

    def __call__(self, given: Sequence[Tensor]) -> Outputs:
        """Call it on other inputs of the same shapes; what is returned is nobody else's."""
        self._fill(given)
        return self._own(self.recording.replay())

    def _fill(self, given: Sequence[Tensor]) -> None:
        for held, tensor in zip(self.inputs, given, strict=True):
            held.copy_(tensor, non_blocking=True)

    def _own(self, outputs: Outputs) -> Outputs:
        return tuple(output.clone() for output in outputs)


@dataclass(eq=False)
class _Known:
    """What is known of the calls of a module in one state."""

    state: State | None
    calls: Counter[Signature] = field(default_factory=Counter)
    recorded: dict[Signature, _Repeatable] = field(default_factory=dict)
    refused: set[Signature] = field(default_factory=set)


class Recordings:
    """The recorded calls of all modules on one device. They last no longer than their module, or its state."""

    def __init__(self, recorder: Recorder, most: int = MOST) -> None:
        self._recorder = recorder
        self._most = most
        self._lock = threading.RLock()
        self._clock = count(1)
        self._modules: WeakKeyDictionary[nn.Module, _Known] = WeakKeyDictionary()
        self._notes: dict[str, bool] = {}
        """Whether each was said."""

    def __len__(self) -> int:
        with self._lock:
            return sum(len(known.recorded) for known in self._modules.values())

    def renew(self, module: nn.Module) -> None:
        """Begin a run: forget the calls of the module unless it is what it was, weights and all."""
        state = frozen(module, self._recorder.device)
        with self._lock:
            known = self._modules.get(module)
            if known is None or known.state != state:
                self._modules[module] = _Known(state)

    def call(self, module: nn.Module, work: Work, arguments: Sequence[Any], named: Mapping[str, Any]) -> Outputs:
        """Do the work of a module, recorded where it is asked again and again.

        Where memory runs out recorded calls go first, and it is done once more, plainly. Raises what the work raises.
        """
        try:
            made = self._recorded(module, work, (tuple(arguments), dict(named)))
            return work(*arguments, **named) if made is None else made
        except torch.OutOfMemoryError:
            if not len(self):
                raise
        self.forget()  # here, where the error holds nothing any more
        return work(*arguments, **named)

    def forget(self) -> None:
        """Let go of all recorded calls, and of their memory."""
        with self._lock:
            for known in self._modules.values():
                known.recorded.clear()
                known.refused.clear()
                known.calls.clear()
            self._recorder.trim()

    def notes(self) -> list[str]:
        """What there is to say that was not said before."""
        with self._lock:
            fresh = [note for note, said in self._notes.items() if not said]
            self._notes.update(dict.fromkeys(fresh, True))
        return fresh

    def _recorded(self, module: nn.Module, work: Work, arguments: tuple[Any, ...]) -> Outputs | None:
        """What a recorded call gives; None where it must not be one, or is not worth it."""
        known = self._modules.get(module)
        leaves, structure = tree_flatten(arguments)
        signature = _signature(leaves, structure, self._recorder.device)
        if known is None or known.state is None or signature is None:
            return None
        given = _tensors(leaves)
        with self._lock:
            found = known.recorded.get(signature)
            if found is None and self._due(known, signature):
                found = self._record(known, signature, partial(_restored, work, leaves, structure), given)
            if found is None:
                return None
            found.used = next(self._clock)
            return found(given)

    def _due(self, known: _Known, signature: Signature) -> bool:
        """Count a call; whether it is to be recorded."""
        if len(known.calls) >= COUNTED:
            known.calls.clear()
        known.calls[signature] += 1
        return known.calls[signature] >= RECORDED_AT and signature not in known.refused

    def _record(
        self, known: _Known, signature: Signature, work: Callable[[Sequence[Tensor]], Outputs], given: Sequence[Tensor]
    ) -> _Repeatable | None:
        """Record a call in the place of the one that was not used for longest; None, and a note, where that fails."""
        while len(self) >= self._most:
            self._drop_oldest()
        try:
            made = known.recorded[signature] = self._repeatable(work, given)
        except RuntimeError as error:
            why = "memory ran out" if isinstance(error, torch.OutOfMemoryError) else _brief(error)
        else:
            return made
        known.refused.add(signature)
        self._recorder.trim()
        self._notes.setdefault(
            f"a UNet is called without a CUDA graph, which is slower: recording it failed ({why})", False
        )
        return None

    def _repeatable(self, work: Callable[[Sequence[Tensor]], Outputs], given: Sequence[Tensor]) -> _Repeatable:
        inputs = [torch.empty_like(tensor).copy_(tensor) for tensor in given]
        return _Repeatable(inputs, self._recorder.record(partial(work, inputs)))

    def _drop_oldest(self) -> None:
        kept = [(each.used, known, key) for known in self._modules.values() for key, each in known.recorded.items()]
        _, known, signature = min(kept, key=lambda entry: entry[0])
        del known.recorded[signature]


_MADE: dict[torch.device, Recordings] = {}


def recordings(device: torch.device) -> Recordings | None:
    """The recorded calls on a device, the same object every time; None where nothing can be recorded."""
    if device.type != "cuda":
        return None
    if device not in _MADE:
        _MADE[device] = Recordings(CudaRecorder(device))
    return _MADE[device]


def forget() -> None:
    """Let go of all recorded calls on all devices, as where memory ran out."""
    for made in list(_MADE.values()):
        made.forget()


def frozen(module: nn.Module, device: torch.device) -> State | None:
    """What recorded calls of a module rely on: where its tensors lie, and what computes in it.

    None where it must not be recorded: in training, with hooks or another `forward`, or with a tensor elsewhere.
    """
    found: list[object] = []
    for part in module.modules():
        if part.training or "forward" in vars(part) or _hooked(part):
            return None
        found.append(vars(part).get("processor"))
        for tensor in (*part._parameters.values(), *part._buffers.values()):
            if tensor is not None:
                if tensor.device != device:
                    return None
                found += (tensor.data_ptr(), tensor.dtype)
    return tuple(found)


def _hooked(part: nn.Module) -> bool:
    return bool(part._forward_hooks or part._forward_pre_hooks)


def _signature(leaves: Sequence[Any], structure: Hashable, device: torch.device) -> Signature | None:
    """What calls must have in common to be one recording; None where a call must not be recorded."""
    if torch.is_grad_enabled():
        return None
    kinds: list[Hashable] = []
    for leaf in leaves:
        if isinstance(leaf, Tensor):
            if leaf.device != device:
                return None
            kinds.append((leaf.shape, leaf.dtype))
        elif leaf is None or isinstance(leaf, bool | int | float | str | torch.dtype):
            kinds.append((type(leaf), leaf))
        else:
            return None
    cast = torch.is_autocast_enabled(device.type), torch.get_autocast_dtype(device.type)
    kernels = tuple(_cur_sdpa_kernel_backends(with_priority=True))
    return structure, *kinds, *cast, torch.is_inference_mode_enabled(), *kernels


def _tensors(leaves: Sequence[Any]) -> list[Tensor]:
    return [leaf for leaf in leaves if isinstance(leaf, Tensor)]


def _restored(work: Work, leaves: Sequence[Any], structure: Any, tensors: Sequence[Tensor]) -> Outputs:
    """Do the work on other tensors in the same places."""
    left = iter(tensors)
    given, named = tree_unflatten([next(left) if isinstance(leaf, Tensor) else leaf for leaf in leaves], structure)
    return work(*given, **named)


def _brief(error: BaseException) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)
