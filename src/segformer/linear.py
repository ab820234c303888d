"""Projections of maps, by way of the faster of a CPU's two libraries for matrix products."""

from __future__ import annotations

import functools
import platform
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from segformer.workspace import is_plain, is_traced


@functools.cache
def convolution_is_faster() -> bool:
    """Whether oneDNN, behind convolutions, multiplies float32 matrices faster than MKL, behind linear layers.

    A rule, not a measurement, so that a run's numbers are the same wherever and whenever it is repeated: MKL has no AVX-512 code for
    AMD's processors, oneDNN has (factors of 1.3 to 2 and more); with AVX2 alone, and on Intel's, they are equal.
    """
    return torch.backends.cpu.get_cpu_capability() == "AVX512" and "AuthenticAMD" in _processor()


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    return cpuinfo.read_text(encoding="utf-8") if cpuinfo.is_file() else platform.processor()


def by_convolution(x: Tensor) -> bool:
    """Whether float32 matrix products over a map (B, H, W, C) had better be 1×1 convolutions."""
    if is_traced(x) or torch.get_num_threads() == 1:
        return False  # compilers choose for themselves; with one thread PyTorch has a slow convolution of its own
    return x.device.type == "cpu" and x.dtype != torch.float64 and x.ndim == 4 and convolution_is_faster()


def linear(x: Tensor, layer: Any) -> Tensor:
    """``layer(x)``: a linear layer over maps (B, H, W, C), with the same gradients."""
    if takes_convolution(x) and is_plain(layer, nn.Linear):
        return _convolution(x, layer.weight, layer.bias)
    return layer(x)


def affine(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """:func:`torch.nn.functional.linear` of maps (B, H, W, C): the same function, with the same gradients."""
    return (_convolution if takes_convolution(x) else F.linear)(x, weight, bias)


def _convolution(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return F.conv2d(x.permute(0, 3, 1, 2), weight[:, :, None, None], bias).permute(0, 2, 3, 1)


def takes_convolution(x: Tensor) -> bool:
    """Whether a linear layer over ``x`` is a 1×1 convolution; in half precision the libraries are one."""
    return by_convolution(x) and x.dtype.itemsize > 2 and not torch.is_autocast_enabled("cpu")
