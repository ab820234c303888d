"""Labels from stride-4 logits, without full-size logits in memory."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from segformer.ops import memory
from segformer.ops.bilinear import at_least_float32, places, positions, strips, upsample
from segformer.ops.conditions import is_recorded, without_autocast
from segformer.ops.registry import operator
from segformer.ops.triton import assert_agrees, comparison, example, in_float32, runs_on


def with_background(logits: Tensor) -> Tensor:
    """The one logit of a binary model (B, 1, h, w) as the second of two, where the first is 0.

    Logits of more classes are returned unchanged.
    """
    return F.pad(logits, (0, 0, 0, 0, 1, 0)) if logits.shape[1] == 1 else logits


@operator
def upsample_argmax(logits: Tensor, size: Sequence[int], align_corners: bool = False) -> Tensor:
    """The class of each pixel: ``upsample(logits, size).argmax(1)``, in float32 at least.

    Where two classes tie to the last bit, implementations may choose differently.

    Args:
        logits: (B, K, h, w).
        size: height and width of the labels.
        align_corners: see :func:`~segformer.ops.upsample`.

    Returns:
        Labels (B, *size*) int64.
    """
    return upsample(at_least_float32(logits), size, align_corners).argmax(1)


def is_resized(logits: Tensor, size: Sequence[int], align_corners: bool = False) -> bool:
    """elsewhere, if the logits are interpolated"""
    # This check comes first, because a recorded graph must not depend on the sizes compared below.
    if is_recorded(logits) or logits.is_meta:
        return False
    return logits.shape[2:] != tuple(size) and logits.numel() > 0


def labels_by_triton(logits: Tensor, size: Sequence[int], align_corners: bool = False) -> bool:
    """on GPUs where Triton runs"""
    return runs_on(logits) and is_resized(logits, size)


def labels_on_gpu(logits: Tensor, size: Sequence[int], align_corners: bool = False) -> bool:
    """on other GPUs"""
    return logits.is_cuda and is_resized(logits, size)


@upsample_argmax.implementation(when=labels_by_triton)
def argmax_by_triton(logits: Tensor, size: Sequence[int], align_corners: bool = False) -> Tensor:
    """One pass over the pixels."""
    from segformer.ops import triton_kernels as kernels

    logits = logits.detach().permute(0, 2, 3, 1)
    with without_autocast(logits):
        return kernels.argmax(logits.contiguous(), places(logits, size, align_corners))


@comparison
def _compare(device: torch.device) -> None:
    labels = argmax_by_triton(in_float32(example(), device), (13, 7))
    assert_agrees(labels, upsample_argmax.plain(example(), (13, 7)))


@upsample_argmax.implementation(when=labels_on_gpu)
def argmax_in_strips(logits: Tensor, size: Sequence[int], align_corners: bool = False) -> Tensor:
    """All classes of all pixels, a strip at a time, without synchronisation with the device."""
    logits = logits.detach().permute(0, 2, 3, 1)
    labels = torch.empty(len(logits), *size, dtype=torch.int64, device=logits.device)
    with without_autocast(logits):
        for rows, _, _, strip in strips(logits, size, align_corners):
            labels[:, rows] = strip.argmax(3)
    return labels


@upsample_argmax.implementation(when=is_resized)
def argmax_between_cells(
    logits: Tensor, size: Sequence[int], align_corners: bool = False
) -> Tensor:
    """Interpolates classes only between cells that disagree, or are not finite.

    An interpolated pixel is a convex combination of four cells. Where all four have the same
    greatest class, the pixel has it, too.
    """
    logits = logits.detach().permute(0, 2, 3, 1).contiguous()  # (B, h, w, K)
    with without_autocast(logits):
        return _argmax_between_cells(logits, (size[0], size[1]), align_corners)


class _Gaps:
    """The gaps between neighbouring cells along one axis, with one before the first cell.

    Attributes:
        of_pixel: the gap of each pixel (target,).
        first, second: the cells at both ends of each gap (gaps,).
        pixels: the pixels in each gap (gaps, P), padded with -1; P is the most that a gap has.
        shares: the second cell's share of each of these pixels (gaps, P).
    """

    def __init__(self, source: int, target: int, align_corners: bool, like: Tensor) -> None:
        low, share = positions(source, target, align_corners, like)
        clamped = (share == 0) & (low == 0)  # pixels up to the first cell's centre: gap 0
        self.of_pixel = torch.where(clamped, 0, low + 1)
        cells = torch.arange(source, device=like.device)
        following = (cells + int(source != target)).clamp_max(source - 1)
        self.first = torch.cat([cells[:1], cells])
        self.second = torch.cat([following[:1], following])
        counts = torch.bincount(self.of_pixel, minlength=source + 1)
        within = torch.arange(int(counts.max()), device=like.device)
        exist = within < counts[:, None]
        self.pixels = ((counts.cumsum(0) - counts)[:, None] + within).where(exist, -1)
        self.shares = share[self.pixels.clamp_min(0)]


def _argmax_between_cells(logits: Tensor, size: tuple[int, int], align_corners: bool) -> Tensor:
    """:func:`argmax_between_cells` of contiguous logits (B, h, w, K)."""
    _, h, w, classes = logits.shape
    rows, columns = (
        _Gaps(source, target, align_corners, logits)
        for source, target in zip((h, w), size, strict=True)
    )
    cells = logits.argmax(3)
    # 0 · ∞ is NaN, which counts as the greatest: between cells that are not finite all classes are
    # interpolated. Such cells get different negative marks, so that they never agree.
    finite = logits.sum(3, dtype=rows.shares.dtype).isfinite()
    negative = -1 - torch.arange(cells.numel(), device=cells.device).view_as(cells)
    marks = cells.where(finite, negative)
    above, below = marks[:, rows.first], marks[:, rows.second]
    corner = above[:, :, columns.first]
    disagree = (
        (corner != above[:, :, columns.second])
        | (corner != below[:, :, columns.first])
        | (corner != below[:, :, columns.second])
    )
    disagree |= corner < 0
    labels = cells[:, rows.first[rows.of_pixel]][:, :, columns.first[columns.of_pixel]]

    flat, flat_cells = logits.view(-1, classes), cells.view(-1)
    step = max(1, memory.PIECE // (4 * classes * logits.element_size()))
    for b, i, j in (piece.unbind(1) for piece in disagree.nonzero().split(step)):
        ys, xs = (rows.first[i], rows.second[i]), (columns.first[j], columns.second[j])
        corners = torch.stack([(b * h + y) * w + x for y in ys for x in xs], 1)
        values = flat[corners].to(rows.shares.dtype)  # (n, 4, K)
        vertical, horizontal = (
            torch.stack([1 - shares, shares], 2) for shares in (rows.shares[i], columns.shares[j])
        )
        shares = torch.einsum("nyp,nxq->nyxpq", vertical, horizontal)
        shares = shares.flatten(3).flatten(1, 2)  # (n, pixels of a quad, 4)
        y, x = rows.pixels[i][:, :, None], columns.pixels[j][:, None, :]
        places = (b[:, None, None] * size[0] + y) * size[1] + x
        places = places.where((y >= 0) & (x >= 0), -1).flatten(1)
        best = _best_class(shares, values, flat_cells[corners], finite.view(-1)[corners].all(1))
        exist = places >= 0
        labels.view(-1)[places[exist]] = best[exist]
    return labels


def _best_class(shares: Tensor, values: Tensor, candidates: Tensor, finite: Tensor) -> Tensor:
    """``(shares @ values).argmax(2)``: the greatest class of each pixel (n, P).

    Between finite corners, a class that is smaller at all corners than the bound below wins in no
    pixel. The bound is the smallest, over the corners, of the candidates' mean value: in each pixel
    some candidate reaches it.

    Args:
        shares: of the four corners in each pixel (n, P, 4).
        values: of all classes at the corners (n, 4, K).
        candidates: the greatest class of each corner (n, 4).
        finite: whether the values at all corners are finite (n,).
    """
    candidates = candidates.sort(1).values  # argmax returns the first of equal classes
    chosen = values.gather(2, candidates[:, None].expand(-1, 4, -1))  # (n, 4 corners, 4 candidates)
    bound = chosen.mean(2).amin(1)
    others = values.amax(1).scatter_(1, candidates, -torch.inf).amax(1)
    best = candidates.gather(1, torch.bmm(shares, chosen).argmax(2))
    contested = ~(finite & (others < bound))
    if contested.any():
        step = max(1, memory.PIECE // (shares.shape[1] * values.shape[2] * values.element_size()))
        for quads in contested.nonzero()[:, 0].split(step):
            best[quads] = torch.bmm(shares[quads], values[quads]).argmax(2)
    return best
