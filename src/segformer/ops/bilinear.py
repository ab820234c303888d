"""Bilinear interpolation between stride-4 maps and pixels, for any ratio and any target size.

With ``align_corners=True``, as some public weights were trained, the centres of the corner pixels
coincide; by default their outer edges do.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from segformer.ops import memory
from segformer.ops.registry import operator
from segformer.ops.triton import assert_agrees, comparison, example, in_float32, runs_on


def upsample(x: Tensor, size: Sequence[int], align_corners: bool = False) -> Tensor:
    """Bilinear interpolation of (B, C, h, w) to (B, C, *size*)."""
    return F.interpolate(x, size=tuple(size), mode="bilinear", align_corners=align_corners)


def upsample_into(out: Tensor, x: Tensor) -> None:
    """``out.copy_(upsample(x, out.shape[2:]))`` without the copy; no gradient."""
    torch.ops.aten.upsample_bilinear2d.out(x, out.shape[2:], False, None, None, out=out)


@operator
def upsample_sum(maps: Sequence[Tensor]) -> Tensor:
    """The sum of all maps at the size of the first: Σ upsample(maps[i]).

    Args:
        maps: (B, C, h_i, w_i).

    Returns:
        (B, C, h_0, w_0)
    """
    total = maps[0]
    for x in maps[1:]:
        total = upsample(x, total.shape[-2:]).add_(total)  # in place: no third map
    return total


def sums_on_gpu(maps: Sequence[Tensor]) -> bool:
    """on GPUs where Triton runs, without gradients"""
    return len(maps) > 1 and not torch.is_grad_enabled() and runs_on(maps[0])


@upsample_sum.implementation(when=sums_on_gpu)
def sum_by_triton(maps: Sequence[Tensor]) -> Tensor:
    """One pass over each map, without interpolated maps in memory."""
    from segformer.ops import triton_kernels as kernels

    total, *others = (x.permute(0, 2, 3, 1).contiguous() for x in maps)
    out = torch.empty_like(total)
    for x in others:
        kernels.add_upsampled(out, total, x, places(x, out.shape[1:3], False))
        total = out
    return total.permute(0, 3, 1, 2)


@comparison
def _compare(device: torch.device) -> None:
    maps = [torch.ones(2, 40, 13, 7, dtype=torch.double), example()]
    assert_agrees(sum_by_triton([in_float32(x, device) for x in maps]), upsample_sum.plain(maps))


def at_least_float32(x: Tensor) -> Tensor:
    """A tensor in float32 if its type is smaller."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def positions(source: int, target: int, align_corners: bool, like: Tensor) -> tuple[Tensor, Tensor]:
    """Where each target pixel lies between two source cells, along one axis.

    Pixel p is (1 - share[p]) of cell low[p] plus share[p] of the next one, as
    :func:`torch.nn.functional.interpolate` computes it.

    Returns:
        low: (target,) int64
        share: (target,) float32, or the wider type of ``like``
    """
    dtype = torch.promote_types(like.dtype, torch.float32)
    pixels = torch.arange(target, device=like.device, dtype=dtype)
    if source == target:
        position = pixels
    elif align_corners:
        position = pixels * ((source - 1) / (target - 1) if target > 1 else 0.0)
    else:
        position = ((pixels + 0.5) * (source / target) - 0.5).clamp_min(0)
    low = position.floor().clamp_max(source - 1)
    return low.long(), position - low


def places(x: Tensor, size: Sequence[int], align_corners: bool) -> list[tuple[Tensor, Tensor]]:
    """:func:`positions` of the rows and of the columns of *size* in maps (B, h, w, C)."""
    return [
        positions(source, target, align_corners, x)
        for source, target in zip(x.shape[1:3], size, strict=True)
    ]


def strips(
    logits: Tensor, size: Sequence[int], align_corners: bool
) -> Iterator[tuple[slice, slice, Tensor, Tensor]]:
    """Interpolate logits (B, h, w, K) to *size*, a strip of rows at a time.

    Yields:
        rows: the slice of rows of *size* that are in the strip.
        cells: the slice of rows of the logits that these rows are interpolated from.
        mix: the weight of each row of the logits in each row of the strip (n, cells).
        strip: the interpolated logits (B, n, W, K).
    """
    batch, h, _, classes = logits.shape
    height, width = size
    low, share = positions(h, height, align_corners, logits)
    # Slices need numbers; computed on the CPU they need no synchronisation with a GPU.
    on_cpu = torch.empty(0, dtype=share.dtype, device="cpu")
    bounds = positions(h, height, align_corners, on_cpu)[0].tolist()
    piece = memory.GPU_PIECE if logits.is_cuda else memory.PIECE
    n = max(1, piece // max(1, batch * width * classes * share.element_size()))
    for start in range(0, height, n):
        rows = slice(start, min(start + n, height))
        cells = slice(bounds[rows.start], min(bounds[rows.stop - 1] + 2, h))
        crop = logits[:, cells].permute(0, 3, 1, 2).to(share.dtype)  # (B, K, cells, w)
        wide = upsample(crop, (crop.shape[2], width), align_corners)
        wide = wide.permute(0, 2, 3, 1)  # (B, cells, W, K)
        offset = low[rows] - cells.start
        mix = torch.zeros(len(offset), crop.shape[2], dtype=share.dtype, device=share.device)
        mix.scatter_(1, offset[:, None], 1 - share[rows, None])
        mix.scatter_add_(1, (offset[:, None] + 1).clamp_max(crop.shape[2] - 1), share[rows, None])
        yield rows, cells, mix, (mix @ wide.flatten(2)).view(batch, len(offset), width, classes)


def narrowed(wide: Tensor, w: int, align_corners: bool) -> Tensor:
    """The transpose of interpolation along the width: (B, cells, W, K) to (B, cells, w, K)."""
    batch, cells, width, classes = wide.shape
    x = wide.permute(0, 3, 1, 2)
    narrow: Tensor = torch.ops.aten.upsample_bilinear2d_backward(
        x, [cells, width], [batch, classes, cells, w], align_corners
    )
    return narrow.permute(0, 2, 3, 1)
