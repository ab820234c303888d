"""Contexts in which a module predicts: evaluation mode, and autocast."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import nn

# The number of threads that evaluate a module now which was in training; models may share modules.
_evaluating: WeakKeyDictionary[nn.Module, int] = WeakKeyDictionary()
_lock = threading.Lock()


@contextmanager
def evaluating(model: nn.Module) -> Iterator[nn.Module]:
    """Evaluation mode inside; each module's own mode is restored after the last thread's exit."""
    with _lock:
        modules = [module for module in model.modules() if module.training or module in _evaluating]
        for module in modules:
            _evaluating[module] = _evaluating.get(module, 0) + 1
            module.training = False
    try:
        yield model
    finally:
        with _lock:
            for module in modules:
                _evaluating[module] -= 1
                if not _evaluating[module]:
                    del _evaluating[module]
                    module.training = True


def precision(device: str, dtype: torch.dtype | None) -> AbstractContextManager[Any]:
    """Autocast to ``dtype`` on a type of device; None keeps the precision.

    Autocast's cache is off: it would return weights that an outer autocast cast to another type,
    and a CUDA graph would keep weights that the cache may free.
    """
    return nullcontext() if dtype is None else torch.autocast(device, dtype, cache_enabled=False)
