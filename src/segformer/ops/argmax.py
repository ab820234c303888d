"""Labels from stride-4 logits, without ever holding the logits of all pixels."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from segformer.ops import memory
from segformer.ops.bilinear import places, positions, strips, upsample
from segformer.ops.conditions import is_recorded, without_autocast
from segformer.ops.registry import operator
from segformer.ops.triton import runs_on


def with_background(logits: Tensor) -> Tensor:
    """One logit (B, 1, h, w), as binary models have it, as the second of two, over a first of 0.

    Logits of more classes are returned as they are.
    """
    return F.pad(logits, (0, 0, 0, 0, 1, 0)) if logits.shape[1] == 1 else logits


@operator
def upsample_argmax(logits: Tensor, size: Sequence[int], align_corners: bool = False) -> Tensor:
    """The class of each pixel: ``upsample(logits, size).argmax(1)``.

    Where two classes tie to the last bit, implementations may label them differently.

    Args:
        logits: (B, K, h, w).
        size: height and width of the labels.
        align_corners: see :func:`~segformer.ops.upsample`.

    Returns:
        Labels (B, *size*) int64.
    """
    return upsample(logits, size, align_corners).argmax(1)


def interpolates(logits: Tensor, size: Sequence[int], align_corners: bool = False) -> bool:
    """on CPUs"""
    # First, since a graph that is recorded does not depend on sizes.
    if is_recorded(logits):
        return False
    return logits.shape[2:] != tuple(size) and logits.numel() > 0


def labels_by_triton(logits: Tensor, size: Sequence[int], align_corners: bool = False) -> bool:
    """on GPUs where Triton runs"""
    return runs_on(logits) and interpolates(logits, size)


def labels_on_gpu(logits: Tensor, size: Sequence[int], align_corners: bool = False) -> bool:
    """on other GPUs"""
    return logits.is_cuda and interpolates(logits, size)


@upsample_argmax.implementation(when=labels_by_triton)
def argmax_by_triton(logits: Tensor, size: Sequence[int], align_corners: bool = False) -> Tensor:
    """One pass over the pixels."""
    from segformer.ops import triton_kernels as kernels

    logits = logits.detach().permute(0, 2, 3, 1)
    with without_autocast(logits):
        return kernels.argmax(logits.contiguous(), places(logits, size, align_corners))


@upsample_argmax.implementation(when=labels_on_gpu)
def argmax_in_strips(logits: Tensor, size: Sequence[int], align_corners: bool = False) -> Tensor:
    """All classes of all pixels, strip by strip: the host does not wait for the device."""
    logits = logits.detach().permute(0, 2, 3, 1)
    labels = torch.empty(len(logits), *size, dtype=torch.int64, device=logits.device)
    with without_autocast(logits):
        for rows, _, _, strip in strips(logits, size, align_corners):
            labels[:, rows] = strip.argmax(3)
    return labels


@upsample_argmax.implementation(when=interpolates)
def argmax_between_cells(
    logits: Tensor, size: Sequence[int], align_corners: bool = False
) -> Tensor:
    """Classes are interpolated only between cells that disagree, or are not finite.

    An interpolated pixel is a convex mix of four cells. Where all four agree on the greatest class,
    it is the pixel's.
    """
    logits = logits.detach().permute(0, 2, 3, 1).contiguous()  # (B, h, w, K)
    with without_autocast(logits):
        return _argmax_between_cells(logits, (size[0], size[1]), align_corners)


class _Gaps:
    """Along one axis, the gaps before the first cell and between neighbouring ones, and the pixels
    in each.

    Attributes:
        of_pixel: the gap of each pixel.
        first, second: the cells whose mix each gap's pixels are.
        pixels: each gap's pixels (gaps, the most a gap has), -1 where it has fewer.
        shares: the second cell's share of each (gaps, the most a gap has).
    """

    def __init__(self, source: int, target: int, align_corners: bool, like: Tensor) -> None:
        low, share = positions(source, target, align_corners, like)
        clamped = (share == 0) & (
            low == 0
        )  # pixels before the first cell's centre, and on it, have a gap of their own
        self.of_pixel = torch.where(clamped, 0, low + 1)
        cells = torch.arange(source, device=like.device)
        following = (cells + int(source != target)).clamp_max(source - 1)
        self.first, self.second = (
            torch.cat([cells[:1], cells]),
            torch.cat([following[:1], following]),
        )
        counts = torch.bincount(self.of_pixel, minlength=source + 1)
        within = torch.arange(int(counts.max()), device=like.device)
        exist = within < counts[:, None]
        self.pixels = ((counts.cumsum(0) - counts)[:, None] + within).where(exist, -1)
        self.shares = share[self.pixels.clamp_min(0)]


def _argmax_between_cells(logits: Tensor, size: tuple[int, int], align_corners: bool) -> Tensor:
    """Interpolates classes only between cells that disagree. Logits (B, h, w, K), contiguous."""
    _, h, w, classes = logits.shape
    rows, columns = (
        _Gaps(source, target, align_corners, logits)
        for source, target in zip((h, w), size, strict=True)
    )
    cells = logits.argmax(3)
    # 0 · ∞ is not a number, which counts as the greatest: beside cells that are not finite all
    # classes are interpolated.
    finite = logits.sum(3, dtype=rows.shares.dtype).isfinite()
    marks = cells.where(
        finite, -1 - torch.arange(cells.numel(), device=cells.device).view_as(cells)
    )  # agree with none but themselves
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
        shares = (
            torch.einsum("nyp,nxq->nyxpq", vertical, horizontal).flatten(3).flatten(1, 2)
        )  # (n, pixels a quad, 4)
        y, x = rows.pixels[i][:, :, None], columns.pixels[j][:, None, :]
        places = (
            ((b[:, None, None] * size[0] + y) * size[1] + x)
            .where((y >= 0) & (x >= 0), -1)
            .flatten(1)
        )
        best = _best_class(shares, values, flat_cells[corners], finite.view(-1)[corners].all(1))
        exist = places >= 0
        labels.view(-1)[places[exist]] = best[exist]
    return labels


def _best_class(shares: Tensor, values: Tensor, candidates: Tensor, finite: Tensor) -> Tensor:
    """``(shares @ values).argmax(2)``:

    the greatest class (n, P) of pixels that mix four corners' values (n, 4, K) with shares (n, P,
    4).

    The candidates (n, 4) are the corners' own greatest classes. In every pixel one of them is at
    least their mean, which is at least the mean at the corner where it is least: a class that is
    below that bound at all corners wins nowhere, if the corners are finite (n,).
    """
    candidates = candidates.sort(1).values  # of equal classes the first counts
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
