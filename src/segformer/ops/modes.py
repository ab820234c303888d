"""Contexts in which a module predicts: evaluation mode, and autocast."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import nn

_evaluating: WeakKeyDictionary[nn.Module, Evaluation] = WeakKeyDictionary()
_lock = threading.Lock()


@dataclass
class Evaluation:
    """The number of threads that evaluate a model now, and its modules that were in training."""

    threads: int
    training: list[nn.Module]


@contextmanager
def evaluating(model: nn.Module) -> Iterator[nn.Module]:
    """Evaluation mode inside; each module's own mode is restored after the last thread's exit."""
    with _lock:
        if model not in _evaluating:
            training = [module for module in model.modules() if module.training]
            _evaluating[model] = Evaluation(0, training)
        evaluation = _evaluating[model]
        evaluation.threads += 1
        for module in evaluation.training:
            module.training = False
    try:
        yield model
    finally:
        with _lock:
            evaluation.threads -= 1
            if not evaluation.threads:
                del _evaluating[model]
                for module in evaluation.training:
                    module.training = True


def precision(device: str, dtype: torch.dtype | None) -> AbstractContextManager[Any]:
    """Autocast to ``dtype`` on a type of device; None keeps the precision.

    Autocast's cache is off: it would return weights that an outer autocast cast to another type,
    and a CUDA graph would keep weights that the cache may free.
    """
    return nullcontext() if dtype is None else torch.autocast(device, dtype, cache_enabled=False)
