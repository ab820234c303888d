"""The Mix-FFN of a transformer block."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from functools import partial
from itertools import compress, product
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from segformer.ops import memory
from segformer.ops.conditions import is_plain, is_plain_convolution, is_recorded
from segformer.ops.linear import Layer, affine, linear
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
    """on CPUs, for plain layers and hidden maps of more than 4 MiB"""
    channels = getattr(dwconv, "out_channels", 0)
    return (
        x.device.type == "cpu"
        and not is_recorded(x)
        and x.numel() > 0
        and _rows(x, channels) < len(x) * x.shape[1]
        and is_plain(fc1, nn.Linear)
        and is_plain_convolution(dwconv, 3, groups=channels)
        and is_plain(act, nn.GELU, nn.ReLU, nn.SiLU)
        and is_plain(fc2, nn.Linear)
    )


@mix_ffn.implementation(when=strips_win)
def in_strips(x: Tensor, fc1: Any, dwconv: Any, act: Any, fc2: Any) -> Tensor:
    """Some rows at a time: the hidden map, four times as wide as ``x``, is never all in memory.

    The backward pass computes it again, some images at a time.
    """
    weights = (fc1.weight, fc1.bias, dwconv.weight, dwconv.bias, fc2.weight, fc2.bias)
    y: Tensor = _InStrips.apply(x, act, *weights)
    return y


class _InStrips(torch.autograd.Function):
    """Mix-FFN that keeps its input for the backward pass, and nothing else."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, act: Layer, *weights: Any) -> Tensor:
        ctx.save_for_backward(x, *weights)
        ctx.act = act
        ctx.precision = partial(
            torch.autocast,
            "cpu",
            torch.get_autocast_dtype("cpu"),
            torch.is_autocast_enabled("cpu"),
            cache_enabled=False,
        )
        out = torch.empty_like(x)
        for strip in _strips(x, weights[0].shape[0]):
            out[strip.images, strip.rows] = _ffn(strip.of(x), act, weights, strip.inner)
        return out

    @staticmethod
    def backward(ctx: Any, d_out: Tensor) -> tuple[Tensor | None, ...]:
        inputs = ctx.saved_tensors
        asked = (ctx.needs_input_grad[0], *ctx.needs_input_grad[2:])
        if torch.is_grad_enabled():  # create_graph=True
            with ctx.precision():
                y = _ffn(inputs[0], ctx.act, inputs[1:])
            wanted = list(compress(inputs, asked))
            found = iter(torch.autograd.grad(y, wanted, d_out.to(y.dtype), create_graph=True))
        else:
            found = iter(_gradients(inputs, ctx.act, d_out, asked, ctx.precision))
        d_x, *d_weights = (next(found) if needed else None for needed in asked)
        return d_x, None, *d_weights


def _gradients(
    inputs: Sequence[Any],
    act: Layer,
    d_out: Tensor,
    asked: Sequence[bool],
    precision: Callable[[], AbstractContextManager[Any]],
) -> list[Tensor]:
    """The gradients of the inputs that are asked for; some images are computed again at a time.

    The strips of one image would share rows, whose gradients are added: that costs more than it
    saves.
    """
    x, *weights = inputs
    images = max(1, _rows(x, len(weights[0])) // x.shape[1])
    d_maps = []
    totals = [
        torch.zeros_like(weight, dtype=torch.promote_types(weight.dtype, torch.float32))
        for weight in compress(weights, asked[1:])
    ]
    for some, d_some in zip(x.split(images), d_out.split(images), strict=True):
        # Detached, so that hooks of the parameters run once, and not for each part.
        part = [
            t if t is None else t.detach().requires_grad_(needed)
            for t, needed in zip((some, *weights), asked, strict=True)
        ]
        with torch.enable_grad(), precision():
            y = _ffn(part[0], act, part[1:])
        found = list(torch.autograd.grad(y, list(compress(part, asked)), d_some.to(y.dtype)))
        if asked[0]:
            d_maps.append(found.pop(0))
        for total, gradient in zip(totals, found, strict=True):
            total += gradient
    d_x = [torch.cat(d_maps)] if asked[0] else []
    wanted = compress(weights, asked[1:])
    return d_x + [total.to(weight.dtype) for total, weight in zip(totals, wanted, strict=True)]


def _ffn(x: Tensor, act: Layer, weights: Sequence[Any], rows: slice = slice(None)) -> Tensor:
    """:func:`mix_ffn`, after the convolution for some rows only."""
    w1, b1, kernels, b, w2, b2 = weights
    hidden = affine(x, w1, b1).permute(0, 3, 1, 2)
    hidden = F.conv2d(hidden, kernels, b, padding=1, groups=len(kernels)).permute(0, 2, 3, 1)
    return affine(act(hidden[:, rows]), w2, b2)


class Strip(NamedTuple):
    """Some rows of the maps of some images.

    Attributes:
        images: the images.
        rows: the rows.
        around: the rows and their neighbours, which the 3×3 kernel reads.
        inner: the rows among these.
    """

    images: slice
    rows: slice
    around: slice
    inner: slice

    def of(self, x: Tensor) -> Tensor:
        """The strip and its neighbours in maps (B, H, W, C)."""
        return x[self.images, self.around]


def _strips(x: Tensor, hidden_channels: int) -> Iterator[Strip]:
    """Strips of x (B, H, W, C) whose hidden map fits into half a piece of memory."""
    batch, height = x.shape[:2]
    rows = _rows(x, hidden_channels)
    images = max(1, rows // height)
    rows = min(rows, height)
    for image, start in product(range(0, batch, images), range(0, height, rows)):
        stop = min(start + rows, height)
        above, below = max(start - 1, 0), min(stop + 1, height)
        yield Strip(
            slice(image, image + images),
            slice(start, stop),
            slice(above, below),
            slice(start - above, stop - above),
        )


def _rows(x: Tensor, hidden_channels: int) -> int:
    """Rows of hidden maps that fit into half a piece of memory."""
    row = x.shape[2] * max(1, hidden_channels) * x.element_size()
    return max(1, memory.PIECE // 2 // row)
