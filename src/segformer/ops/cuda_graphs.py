"""CUDA graphs: the kernels of a function, recorded once for inputs of a shape, then replayed.

A small network at batch 1 launches some two hundred kernels, which takes longer than to run them; a
replay launches all at once.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from copy import copy
from typing import Any

import torch
from torch import Tensor, nn

Function = Callable[[Tensor], Tensor]
OWN = frozenset(vars(nn.Module()))  # the attributes of every module
CONTAINERS = (list, dict, set)
COMPARED = (bool, int, float, str, tuple, *CONTAINERS)


def record(function: Function, x: Tensor) -> Function:
    """Record a function as a CUDA graph, and return the replay for tensors like ``x``.

    The memory of the graph is kept as long as the returned function.
    """
    # An inference tensor could not be written to outside of inference mode.
    with torch.inference_mode(False), torch.no_grad():
        given = torch.empty_like(x).copy_(x)
    with torch.cuda.device(x.device):
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        # Libraries choose their kernels and allocate workspaces before the recording.
        with torch.cuda.stream(stream):
            for _ in range(3):
                function(given)
        torch.cuda.current_stream().wait_stream(stream)
        graph, done = torch.cuda.CUDAGraph(), torch.cuda.Event()
        _forget_workspaces()
        # Other threads may use the device during the recording.
        with torch.cuda.graph(graph, stream=stream, capture_error_mode="thread_local"):
            result = function(given)
        _forget_workspaces()

    def replay(x: Tensor) -> Tensor:
        stream = torch.cuda.current_stream(x.device)
        stream.wait_event(done)  # the last replay may run on another stream
        given.copy_(x)
        graph.replay()
        copy = result.clone()  # the next replay overwrites the result
        done.record(stream)
        return copy

    return replay


def _forget_workspaces() -> None:
    """Make cuBLAS allocate a new workspace.

    The graph needs one in its own memory, since others may be freed, and no later work may use it.
    """
    getattr(torch._C, "_cuda_clearCublasWorkspaces", lambda: None)()


class Graphs:
    """The recorded functions of a module: the last few, by the shape of the input and a key.

    A replay uses weights that have changed in place. All records are dropped if a module, parameter
    or buffer is added, removed, replaced or moved to other memory, or if an attribute is added,
    removed or changed, such as a norm's epsilon, the list of an adapter's names, or a ``forward``
    of one instance.

    Args:
        record: takes a function and an input, and returns a function that does the same for inputs
            of that shape.
        most: number of records that are kept; each keeps the memory of one call.
    """

    def __init__(
        self, record: Callable[[Function, Tensor], Function] = record, most: int = 4
    ) -> None:
        self.record, self.most = record, most
        self.records: OrderedDict[Hashable, Function] = OrderedDict()
        self.counts: list[tuple[dict[str, Any], int]] = []
        self.seen: list[tuple[dict[str, Any], str, Any, tuple[Any, ...]]] = []
        self.settings: list[tuple[dict[str, Any], str, Any]] = []
        self.lock = threading.Lock()  # all threads write to the same memory of a record

    def __call__(
        self, module: nn.Module, function: Function, x: Tensor, key: Hashable = ()
    ) -> Tensor:
        """Returns ``function(x)``, which may depend on the module and on ``key`` only."""
        with self.lock:
            if not self.counts or not self._still_hold():
                self.records.clear()
                parts = list(module.modules())
                self.counts = [(place, len(place)) for part in parts for place in _places(part)]
                self.seen = [entry for part in parts for entry in _contents(part)]
                self.settings = [entry for part in parts for entry in _settings(part)]
            key = (key, x.shape, x.stride(), x.dtype, x.device)
            if key not in self.records:
                while len(self.records) >= self.most:
                    self.records.popitem(last=False)
                self.records[key] = self.record(function, x)
            self.records.move_to_end(key)
            return self.records[key](x)

    def _still_hold(self) -> bool:
        return (
            all(len(place) == count for place, count in self.counts)
            and all(
                place.get(name) is value and _address(value) == address
                for place, name, value, address in self.seen
            )
            and all(
                (now := place.get(name)) is value or _equal(now, value)
                for place, name, value in self.settings
            )
        )

    def __deepcopy__(self, memo: Any) -> Graphs:
        return Graphs(self.record, self.most)

    def __reduce__(self) -> tuple[type[Graphs], tuple[Any, int]]:
        return Graphs, (self.record, self.most)


def _places(module: nn.Module) -> tuple[dict[str, Any], ...]:
    """The dictionaries of a module's parts, tensors and attributes, some of them empty."""
    return module._modules, module._parameters, module._buffers, module.__dict__


def _contents(module: nn.Module) -> list[tuple[dict[str, Any], str, Any, tuple[Any, ...]]]:
    """The parts and tensors of a module."""
    return [
        (place, name, value, _address(value))
        for place in _places(module)[:3]
        for name, value in place.items()
    ]


def _settings(module: nn.Module) -> list[tuple[dict[str, Any], str, Any]]:
    """The attributes of a module, but for those of every module, such as its mode.

    What may change in place is copied.
    """
    return [
        (module.__dict__, name, copy(value) if isinstance(value, CONTAINERS) else value)
        for name, value in module.__dict__.items()
        if name not in OWN
    ]


def _equal(now: Any, before: Any) -> bool:
    """Whether a setting has not changed; other kinds are compared by identity."""
    try:
        return type(now) is type(before) and isinstance(now, COMPARED) and bool(now == before)
    except (RuntimeError, ValueError):  # of other tensors or arrays in it
        return False


def _address(value: Any) -> tuple[Any, ...]:
    """What changes if a tensor moves to other memory, or a module to another class."""
    if isinstance(value, Tensor):
        return value.data_ptr(), value.shape, value.stride()
    return (type(value),)
