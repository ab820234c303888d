"""Linear layers over maps, by the faster of a CPU's two libraries for matrix products."""

from __future__ import annotations

import functools
import platform
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from segformer.ops.conditions import is_plain, is_traced
from segformer.ops.registry import operator

Layer = Callable[[Tensor], Tensor]

# For fewer multiply-adds or cells, preparing a convolution costs more than it gains.
LEAST, LEAST_CELLS = 2**23, 128


@operator
def linear(x: Tensor, layer: Layer) -> Tensor:
    """A linear layer over a map: (B, H, W, C) → (B, H, W, D).

    Args:
        x: the map.
        layer: the layer, such as a :class:`torch.nn.Linear`.
    """
    return layer(x)


def convolution_wins(x: Tensor, layer: Any) -> bool:
    """on AMD processors with AVX-512 and several threads, for large float32 maps, plain layers"""
    return is_plain(layer, nn.Linear) and affine_by_convolution(x, layer.weight)


@linear.implementation(when=convolution_wins)
def as_convolution(x: Tensor, layer: Any) -> Tensor:
    """A 1×1 convolution."""
    return _convolution(x, layer.weight, layer.bias)


def affine(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """:func:`torch.nn.functional.linear`, by convolution where that is faster."""
    return (_convolution if affine_by_convolution(x, weight) else F.linear)(x, weight, bias)


def _convolution(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return F.conv2d(x.permute(0, 3, 1, 2), weight[:, :, None, None], bias).permute(0, 2, 3, 1)


def affine_by_convolution(x: Tensor, weight: Tensor) -> bool:
    """Whether a linear layer of a weight (D, C) over ``x`` is faster as a convolution."""
    if is_traced(x) or torch.get_num_threads() == 1:
        return False  # compilers choose; with one thread PyTorch has a slow convolution of its own
    if x.device.type != "cpu" or x.dtype != torch.float32 or torch.is_autocast_enabled("cpu"):
        return False
    cells = x[..., 0].numel()
    is_large = x.ndim == 4 and cells >= LEAST_CELLS and cells * weight.numel() >= LEAST
    return is_large and convolution_is_faster()


@functools.cache
def convolution_is_faster() -> bool:
    """Whether oneDNN (convolutions) is faster than MKL (linear layers) in float32.

    The processor decides, not a timing, so that a repeated run gives the same numbers. On AMD
    processors with AVX-512, oneDNN is 1.3 to more than 2 times as fast, because MKL has no AVX-512
    code for them. On Intel processors, and with AVX2 only, both are equally fast.
    """
    has_avx512 = torch.backends.cpu.get_cpu_capability() == "AVX512"
    return has_avx512 and "AuthenticAMD" in _processor()


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    return cpuinfo.read_text(encoding="utf-8") if cpuinfo.is_file() else platform.processor()
