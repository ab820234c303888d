"""CUDA graphs: what a function launches on the device, recorded once for inputs of a shape, and replayed as a whole.

A small network at batch 1 spends its time on launching some two hundred kernels one by one; a replay launches all of them at once.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Any

import torch
from torch import Tensor, nn

Function = Callable[[Tensor], Tensor]


def record(function: Function, x: Tensor) -> Function:
    """The function of tensors like ``x``, replayed as a CUDA graph; its memory is held as long as the function returned."""
    with (
        torch.inference_mode(False),
        torch.no_grad(),
    ):  # else nothing could be copied there outside of that mode
        given = torch.empty_like(x).copy_(x)
    with torch.cuda.device(x.device):
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(
            stream
        ):  # libraries choose their kernels and take their workspaces before anything is recorded
            for _ in range(3):
                function(given)
        torch.cuda.current_stream().wait_stream(stream)
        graph, done = torch.cuda.CUDAGraph(), torch.cuda.Event()
        _forget_workspaces()
        with torch.cuda.graph(
            graph, stream=stream, capture_error_mode="thread_local"
        ):  # other threads may load images meanwhile
            result = function(given)
        _forget_workspaces()

    def replay(x: Tensor) -> Tensor:
        stream = torch.cuda.current_stream(x.device)
        stream.wait_event(done)  # the replay before, which another stream may have begun
        given.copy_(x)
        graph.replay()
        copy = result.clone()  # the next replay writes over it
        done.record(stream)
        return copy

    return replay


def _forget_workspaces() -> None:
    """Let cuBLAS take a workspace in the graph's own memory, and nobody else after it: one from outside could be freed under the graph."""
    getattr(torch._C, "_cuda_clearCublasWorkspaces", lambda: None)()


class Graphs:
    """A module's recorded functions: the last few, by the shape of their input and whatever else makes them differ.

    Weights that change in place are seen by the next replay. A module, parameter or buffer that is added, takes another's place, or moves
    to other memory makes all records void; so does another value of a plain attribute, such as a norm's epsilon.

    Args:
        record: takes a function and an input for it, and returns what does the same for inputs of that shape.
        most: records held; each holds the memory that one call takes.
    """

    def __init__(
        self, record: Callable[[Function, Tensor], Function] = record, most: int = 4
    ) -> None:
        self.record, self.most = record, most
        self.records: OrderedDict[Hashable, Function] = OrderedDict()
        self.seen: list[tuple[dict[str, Any], int, str, Any, int]] = []
        self.settings: list[tuple[dict[str, Any], str, Any]] = []
        self.lock = threading.Lock()  # threads that serve the same model share a record's memory

    def __call__(
        self, module: nn.Module, function: Function, x: Tensor, key: Hashable = ()
    ) -> Tensor:
        """``function(x)``, which depends on the module's weights, on ``key``, and on nothing else."""
        with self.lock:
            if not self.seen or not self._still_hold():
                self.records.clear()
                self.seen = [entry for part in module.modules() for entry in _contents(part)]
                self.settings = [entry for part in module.modules() for entry in _settings(part)]
            key = (key, x.shape, x.stride(), x.dtype, x.device)
            if key not in self.records:
                while len(self.records) >= self.most:
                    self.records.popitem(last=False)
                self.records[key] = self.record(function, x)
            self.records.move_to_end(key)
            return self.records[key](x)

    def _still_hold(self) -> bool:
        return all(
            len(place) == count and place.get(name) is value and _address(value) == address
            for place, count, name, value, address in self.seen
        ) and all(place.get(name) == value for place, name, value in self.settings)

    def __deepcopy__(self, memo: Any) -> Graphs:
        return Graphs(self.record, self.most)

    def __reduce__(self) -> tuple[type[Graphs], tuple[Any, int]]:
        return Graphs, (self.record, self.most)


def _contents(module: nn.Module) -> list[tuple[dict[str, Any], int, str, Any, int]]:
    places: tuple[dict[str, Any], ...] = (module._modules, module._parameters, module._buffers)
    return [
        (place, len(place), name, value, _address(value))
        for place in places
        for name, value in place.items()
    ]


def _settings(module: nn.Module) -> list[tuple[dict[str, Any], str, Any]]:
    """The numbers and names that a module computes with; its mode is the function's matter."""
    kinds = (bool, int, float, str, tuple)
    return [
        (module.__dict__, name, value)
        for name, value in module.__dict__.items()
        if isinstance(value, kinds) and name != "training"
    ]


def _address(value: Any) -> int:
    return value.data_ptr() if isinstance(value, Tensor) else 0
