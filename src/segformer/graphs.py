"""CUDA graphs: what a function launches on the device, recorded once for inputs of a shape, and replayed as a whole.

A small network at batch 1 spends its time on launching some two hundred kernels one by one; a replay launches all of them at once.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Any

import torch
from torch import Tensor, nn

Function = Callable[[Tensor], Tensor]


def record(function: Function, x: Tensor) -> Function:
    """The function of tensors like ``x``, replayed as a CUDA graph; its memory is held as long as the function returned."""
    with torch.inference_mode(False):  # else nothing could be copied there outside of that mode
        given = torch.empty_like(x).copy_(x)
    with torch.cuda.device(x.device):
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):  # libraries choose their kernels and take their workspaces before anything is recorded
            for _ in range(3):
                function(given)
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=stream, capture_error_mode="thread_local"):  # other threads may load images meanwhile
            result = function(given)

    def replay(x: Tensor) -> Tensor:
        given.copy_(x)
        graph.replay()
        return result.clone()  # the next replay writes over it

    return replay


class Graphs:
    """A module's recorded functions: the last few, by the shape of their input and whatever else makes them differ.

    Weights that change in place are seen by the next replay. A module, parameter or buffer that takes another's place, or moves to other
    memory, makes all records void.

    Args:
        record: takes a function and an input for it, and returns what does the same for inputs of that shape.
        most: records held; each holds the memory that one call takes.
    """

    def __init__(self, record: Callable[[Function, Tensor], Function] = record, most: int = 4) -> None:
        self.record, self.most = record, most
        self.records: OrderedDict[Hashable, Function] = OrderedDict()
        self.seen: list[tuple[dict[str, Any], str, Any, int]] = []

    def __call__(self, module: nn.Module, function: Function, x: Tensor, key: Hashable = ()) -> Tensor:
        """``function(x)``, which depends on the module's weights, on ``key``, and on nothing else."""
        if not self.seen or not self._still_hold():
            self.records.clear()
            self.seen = [entry for part in module.modules() for entry in _contents(part)]
        key = (key, x.shape, x.stride(), x.dtype, x.device)
        if key not in self.records:
            self.records[key] = self.record(function, x)
            if len(self.records) > self.most:
                self.records.popitem(last=False)
        self.records.move_to_end(key)
        return self.records[key](x)

    def _still_hold(self) -> bool:
        return all(place.get(name) is value and _address(value) == address for place, name, value, address in self.seen)

    def __deepcopy__(self, memo: Any) -> Graphs:
        return Graphs(self.record, self.most)

    def __reduce__(self) -> tuple[type[Graphs], tuple[()]]:
        return Graphs, ()


def _contents(module: nn.Module) -> list[tuple[dict[str, Any], str, Any, int]]:
    places: tuple[dict[str, Any], ...] = (module._modules, module._parameters, module._buffers)
    return [(place, name, value, _address(value)) for place in places for name, value in place.items()]


def _address(value: Any) -> int:
    return value.data_ptr() if isinstance(value, Tensor) else 0
