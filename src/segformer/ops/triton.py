"""Checks that the Triton kernels run on a device and agree with the plain definitions."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from segformer.ops.conditions import is_recorded

Comparison = Callable[[torch.device], None]
COMPARISONS: list[Comparison] = []


def comparison(function: Comparison) -> Comparison:
    """Decorator for a function that raises an error if a kernel differs on a device."""
    COMPARISONS.append(function)
    return function


def runs_on(x: Tensor) -> bool:
    """Whether the kernels run on the device of ``x``; false while a graph is recorded."""
    return x.is_cuda and not is_recorded(x) and agrees_on(x.device)


@functools.cache
def agrees_on(device: torch.device) -> bool:
    """Whether the kernels agree with the plain definitions; compared once a process and device."""
    try:
        with torch.inference_mode(False), torch.no_grad(), torch.device("cpu"):
            for compare in COMPARISONS:
                compare(device)
    except Exception as error:  # of the compiler, the driver or a comparison
        warnings.warn(
            f"the Triton kernels do not run on {device}, slower implementations are used. "
            f"{type(error).__name__}: {error}",
            stacklevel=2,
        )
        return False
    return True


def example() -> Tensor:
    """Logits (2, 40, 3, 5) in float64, for comparisons."""
    return torch.arange(2 * 40 * 3 * 5, dtype=torch.double).mul(0.7).sin().view(2, 40, 3, 5)


def in_float32(x: Tensor, device: torch.device) -> Tensor:
    """A tensor as the kernels get it in comparisons."""
    return x.to(device, torch.float32 if x.is_floating_point() else x.dtype)


def assert_agrees(ours: Any, plain: Any) -> None:
    """Raises AssertionError if results in float32 differ from those in float64."""
    torch.testing.assert_close(
        ours, plain, rtol=1e-4, atol=1e-4, check_device=False, check_dtype=False
    )
