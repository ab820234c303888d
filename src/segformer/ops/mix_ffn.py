"""The Mix-FFN of a transformer block."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from segformer.ops import memory
from segformer.ops.conditions import in_pieces, is_plain, is_plain_convolution
from segformer.ops.linear import Layer, linear
from segformer.ops.registry import operator


@operator
def mix_ffn(x: Tensor, fc1: Layer, dwconv: Layer, act: Layer, fc2: Layer) -> Tensor:
    """MLP(GELU(Conv3×3(MLP(x)))) (arXiv 2105.15203, section 3.1, equation 3).

    Args:
        x: a map (B, H, W, C).
        fc1: linear layer from C to the hidden channels.
        dwconv: depthwise 3×3 convolution.
        act: activation.
        fc2: linear layer back to C channels.

    Returns:
        (B, H, W, C)
    """
    x = linear(x, fc1)
    x = dwconv(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
    return linear(act(x), fc2)


def strips_win(x: Tensor, fc1: Any, dwconv: Any, act: Any, fc2: Any) -> bool:
    """on CPUs, without gradients, for plain layers and a hidden map of more than 32 MiB an image"""
    return (
        in_pieces(x)
        and is_plain(fc1, nn.Linear)
        and is_plain_convolution(dwconv, 3, groups=getattr(dwconv, "out_channels", 0))
        and is_plain(act, nn.GELU, nn.ReLU, nn.SiLU)
        and is_plain(fc2, nn.Linear)
        and _row(x, dwconv) * x.shape[1] > 4 * memory.PIECE
    )


@mix_ffn.implementation(when=strips_win)
def in_strips(x: Tensor, fc1: Any, dwconv: Any, act: Any, fc2: Any) -> Tensor:
    """Some rows at a time: the hidden map, four times as wide as ``x``, is never all in memory."""
    height, out = x.shape[1], torch.empty_like(x)
    rows = max(1, 2 * memory.PIECE // _row(x, dwconv))  # in fewer rows the two neighbours cost more
    for image, result in zip(x.split(1), out.split(1), strict=True):
        for start in range(0, height, rows):
            stop = min(start + rows, height)
            above, below = max(start - 1, 0), min(stop + 1, height)  # the kernel's neighbours
            hidden = dwconv(linear(image[:, above:below], fc1).permute(0, 3, 1, 2))
            hidden = hidden.permute(0, 2, 3, 1)[:, start - above : stop - above]
            result[:, start:stop] = linear(act(hidden), fc2)
    return out


def _row(x: Tensor, dwconv: Any) -> int:
    """Bytes of a row of the hidden map of one image."""
    return x.shape[2] * int(dwconv.out_channels) * x.element_size()
