"""The exact operators between stride-4 maps and pixels, all of them bilinear, for any ratio and any target size.

Each equals what its docstring writes with ``torch.nn.functional``, without ever holding the full-size maps. Where a graph is recorded for
export or compilation, whose shapes must not depend on values, they take that plain way.

The centres of the corner pixels coincide where ``align_corners`` is true, as some public weights were trained; by default their edges do.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from segformer import workspace


def upsample(x: Tensor, size: Sequence[int], align_corners: bool = False) -> Tensor:
    """Bilinear interpolation of (B, C, h, w) to (B, C, *size*)."""
    return F.interpolate(x, size=tuple(size), mode="bilinear", align_corners=align_corners)


def upsample_into(out: Tensor, x: Tensor) -> None:
    """``out.copy_(upsample(x, out.shape[2:]))`` without the copy; no gradient."""
    torch.ops.aten.upsample_bilinear2d.out(x, out.shape[2:], False, None, None, out=out)


def upsample_sum(maps: Sequence[Tensor]) -> Tensor:
    """The sum of all maps at the size of the first: Σ upsample(maps[i]), (B, C, h, w) of maps[0]."""
    total = maps[0]
    for x in maps[1:]:
        total = upsample(x, total.shape[-2:]).add_(total)  # into the map just made, so that no third one is
    return total


def upsample_argmax(logits: Tensor, size: Sequence[int], align_corners: bool = False) -> Tensor:
    """Labels (B, *size*) int64 of logits (B, K, h, w): ``upsample(logits, size).argmax(1)``.

    An interpolated pixel is a convex mix of four cells. Where all four agree on the greatest class, it is the pixel's; only between cells
    that disagree, or are not finite, are all classes interpolated. Labels may differ where two classes tie to the last bit.
    """
    size = (size[0], size[1])
    if torch.compiler.is_compiling() or logits.shape[2:] == size or logits.numel() == 0:
        return upsample(logits, size, align_corners).argmax(1)
    logits = logits.detach().permute(0, 2, 3, 1)  # (B, h, w, K)
    if logits.is_cuda:
        return _argmax_in_strips(logits, size, align_corners)
    return _argmax_between_cells(logits.contiguous(), size, align_corners)


def upsample_cross_entropy(
    logits: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    ignore_index: int = 255,
    align_corners: bool = False,
    *,
    label_smoothing: float = 0.0,
    over_all_pixels: bool = False,
) -> Tensor:
    """``cross_entropy(upsample(logits, …), target)``: the loss of logits (B, K, h, w) at the target's size (B, H, W), a scalar.

    Rows of full-size logits are made, used for the loss and its gradient, and dropped, strip by strip.

    Args:
        logits: of any floating type; the loss is computed in float32 at least.
        target: class indices.
        weight: one weight a class.
        ignore_index: the target's value that counts nowhere. A batch of nothing else costs 0, and its gradient is 0.
        align_corners: see :func:`upsample`.
        label_smoothing: share of the target that is spread over all classes.
        over_all_pixels: divide by the number of all pixels, as the official training does, instead of the (weights of the) valid ones.
    """
    valid = target != ignore_index
    if over_all_pixels:
        total = torch.tensor(target.numel(), device=target.device)
    else:
        total = valid.sum() if weight is None else (weight[target.where(valid, 0)] * valid).sum()
    loss: Any
    if torch.compiler.is_compiling():
        loss = F.cross_entropy(
            upsample(logits, target.shape[-2:], align_corners).float(),
            target,
            weight,
            ignore_index=ignore_index,
            reduction="sum",
            label_smoothing=label_smoothing,
        )
    else:
        loss = _CrossEntropy.apply(logits, target, weight, ignore_index, align_corners, label_smoothing)
    return loss / total.clamp_min(1e-9)


# Between ``source`` cells and ``target`` pixels along one axis, pixel p lies between the cells low[p] and low[p] + 1 (or the last), with
# weight share[p] on the second.


def _positions(source: int, target: int, align_corners: bool, like: Tensor) -> tuple[Tensor, Tensor]:
    """``low`` and ``share`` of every pixel, as interpolate computes them."""
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


def _argmax_between_cells(logits: Tensor, size: tuple[int, int], align_corners: bool) -> Tensor:
    """Only between cells that disagree are classes interpolated. Logits (B, h, w, K), contiguous."""
    _, h, w, classes = logits.shape
    cells = logits.argmax(3)
    (top, down), (left, right) = (_positions(n, pixels, align_corners, logits) for n, pixels in zip((h, w), size, strict=True))
    labels = cells[:, top][:, :, left]

    # A quad is the rectangle between four neighbouring cells; along an axis whose last cell it is, or of one pixel a cell, a
    # cell is its own neighbour.
    below, beside = (
        torch.arange(n) if n == pixels else torch.arange(1, n + 1).clamp_max(n - 1) for n, pixels in zip((h, w), size, strict=True)
    )
    uncertain = ~logits.sum(
        3, dtype=torch.promote_types(logits.dtype, torch.float32)
    ).isfinite()  # 0 · ∞ is not a number, and the greatest: such quads are interpolated whatever their cells say
    disagree = uncertain | uncertain[:, below] | uncertain[:, :, beside] | uncertain[:, below][:, :, beside]
    for corner in (cells[:, below], cells[:, :, beside], cells[:, below][:, :, beside]):
        disagree |= corner != cells
    quads = disagree.nonzero()
    if not len(quads):
        return labels

    rows, row_shares = _pixels_of_quads(top, down, h)
    columns, column_shares = _pixels_of_quads(left, right, w)
    flat = logits.view(-1, classes)
    pixels = rows.shape[1] * columns.shape[1]
    step = max(1, workspace.PIECE // (pixels * classes * row_shares.element_size()))
    width = size[1]
    for b, i, j in (chunk.unbind(1) for chunk in quads.split(step)):
        i1, j1 = below[i], beside[j]
        corners = torch.stack([(b * h + y) * w + x for y in (i, i1) for x in (j, j1)], 1)  # (n, 4)
        values = flat[corners].to(row_shares.dtype)  # (n, 4, K)
        down, right = row_shares[i], column_shares[j]  # (n, rows a quad), (n, columns a quad)
        vertical, horizontal = torch.stack([1 - down, down], 2), torch.stack([1 - right, right], 2)
        shares = (vertical[:, :, None, :, None] * horizontal[:, None, :, None, :]).flatten(3).flatten(1, 2)  # (n, pixels a quad, 4)
        best = torch.bmm(shares, values).argmax(2)
        y, x = rows[i][:, :, None], columns[j][:, None, :]
        places = ((b[:, None, None] * size[0] + y) * width + x).flatten(1)
        exist = ((y >= 0) & (x >= 0)).flatten(1)
        labels.view(-1)[places[exist]] = best[exist]
    return labels


def _pixels_of_quads(low: Tensor, share: Tensor, cells: int) -> tuple[Tensor, Tensor]:
    """For each cell, the pixels between it and the next along one axis (-1 where there are fewer than the most), and their shares."""
    counts = torch.bincount(low, minlength=cells)
    first = counts.cumsum(0) - counts
    within = torch.arange(int(counts.max()), device=low.device)
    pixels = first[:, None] + within
    exist = within < counts[:, None]
    return pixels.where(exist, -1), share[pixels.where(exist, 0)]


def _argmax_in_strips(logits: Tensor, size: tuple[int, int], align_corners: bool) -> Tensor:
    """All classes of all pixels, strip by strip: nothing waits for the device. Logits (B, h, w, K)."""
    labels = torch.empty(len(logits), *size, dtype=torch.int64, device=logits.device)
    for rows, _, _, strip in _strips(logits, size, align_corners):
        labels[:, rows] = strip.argmax(3)
    return labels


def _strips(logits: Tensor, size: tuple[int, int], align_corners: bool) -> Iterator[tuple[slice, slice, Tensor, Tensor]]:
    """Full-size logits of logits (B, h, w, K) in strips of rows.

    Yields the strip's rows, the rows of cells they are made of, their shares (n, cells), and the strip (B, n, W, K).
    """
    batch, h, _, classes = logits.shape
    height, width = size
    low, share = _positions(h, height, align_corners, logits)
    bounds = _positions(h, height, align_corners, torch.empty(0, dtype=share.dtype, device="cpu"))[
        0
    ].tolist()  # on the CPU: no waiting for a device
    piece = workspace.GPU_PIECE if logits.is_cuda else workspace.PIECE
    n = max(1, piece // max(1, batch * width * classes * share.element_size()))
    for start in range(0, height, n):
        rows = slice(start, min(start + n, height))
        cells = slice(bounds[rows.start], min(bounds[rows.stop - 1] + 2, h))
        crop = logits[:, cells].permute(0, 3, 1, 2).to(share.dtype)  # (B, K, cells, w)
        wide = upsample(crop, (crop.shape[2], width), align_corners).permute(0, 2, 3, 1)  # (B, cells, W, K)
        offset = low[rows] - cells.start
        mix = torch.zeros(len(offset), crop.shape[2], dtype=share.dtype, device=share.device)
        mix.scatter_(1, offset[:, None], 1 - share[rows, None])
        mix.scatter_add_(1, (offset[:, None] + 1).clamp_max(crop.shape[2] - 1), share[rows, None])
        yield rows, cells, mix, (mix @ wide.flatten(2)).view(batch, len(offset), width, classes)


class _CrossEntropy(torch.autograd.Function):
    """The summed cross-entropy, whose gradient is made with it while a strip is at hand."""

    @staticmethod
    def forward(
        ctx: Any, logits: Tensor, target: Tensor, weight: Tensor | None, ignore_index: int, align_corners: bool, smoothing: float
    ) -> Tensor:
        batch, classes, h, w = logits.shape
        size = (target.shape[-2], target.shape[-1])
        maps = logits.detach().permute(0, 2, 3, 1)
        dtype = torch.promote_types(logits.dtype, torch.float32)
        class_weight = torch.ones(classes, dtype=dtype, device=logits.device) if weight is None else weight.to(dtype)
        loss = torch.zeros((), dtype=dtype, device=logits.device)
        gradient = torch.zeros(batch, h, w, classes, dtype=dtype, device=logits.device) if ctx.needs_input_grad[0] else None
        for rows, cells, mix, strip in _strips(maps, size, align_corners):
            log_p = torch.log_softmax(strip, 3)
            truth = target[:, rows]
            valid = truth != ignore_index
            truth = truth.where(valid, 0)[..., None]
            share = ((1 - smoothing) * class_weight)[truth] * valid[..., None]  # of -log p of the truth, in the loss
            loss -= (log_p.gather(3, truth) * share).sum()
            if smoothing:
                spread = smoothing / classes * class_weight
                loss -= (log_p @ spread * valid).sum()
            if gradient is None:
                continue
            p = log_p.exp_()
            d = p.mul_(share + spread.sum() * valid[..., None]) if smoothing else p.mul_(share)
            d.scatter_add_(3, truth, -share)
            if smoothing:
                d -= spread * valid[..., None]
            wide = mix.T @ d.flatten(2)
            gradient[:, cells] += _narrowed(wide.view(batch, mix.shape[1], size[1], classes), w, align_corners)
        ctx.save_for_backward(gradient)
        ctx.dtype = logits.dtype
        return loss

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, d_loss: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,) = ctx.saved_tensors
        return (gradient.permute(0, 3, 1, 2) * d_loss).to(ctx.dtype), None, None, None, None, None


def _narrowed(wide: Tensor, w: int, align_corners: bool) -> Tensor:
    """The transpose of interpolation along the width: (B, cells, W, K) to (B, cells, w, K)."""
    batch, cells, width, classes = wide.shape
    x = wide.permute(0, 3, 1, 2)
    narrow = torch.ops.aten.upsample_bilinear2d_backward(x, [cells, width], [batch, classes, cells, w], align_corners)
    return narrow.permute(0, 2, 3, 1)
