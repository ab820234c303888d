"""The exact operators between stride-4 maps and pixels, all of them bilinear, for any ratio and any target size.

Each equals what its docstring writes with ``torch.nn.functional``, without ever holding the full-size maps. Where a graph is recorded for
export or compilation, whose shapes must not depend on values, they take that plain way. On a CUDA device they are Triton's kernels, once
these have shown there, beside the plain ways, that they agree.

The centres of the corner pixels coincide where ``align_corners`` is true, as some public weights were trained; by default their edges do.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from segformer import workspace


def upsample(x: Tensor, size: Sequence[int], align_corners: bool = False) -> Tensor:
    """Bilinear interpolation of (B, C, h, w) to (B, C, *size*)."""
    return F.interpolate(x, size=tuple(size), mode="bilinear", align_corners=align_corners)


def with_background(logits: Tensor) -> Tensor:
    """One logit (B, 1, h, w), as binary models have it, as the second of two, over a first of 0; logits of more classes as they are."""
    return F.pad(logits, (0, 0, 0, 0, 1, 0)) if logits.shape[1] == 1 else logits


def upsample_into(out: Tensor, x: Tensor) -> None:
    """``out.copy_(upsample(x, out.shape[2:]))`` without the copy; no gradient."""
    torch.ops.aten.upsample_bilinear2d.out(x, out.shape[2:], False, None, None, out=out)


def upsample_sum(maps: Sequence[Tensor]) -> Tensor:
    """The sum of all maps at the size of the first: Σ upsample(maps[i]), (B, C, h, w) of maps[0]."""
    total = maps[0]
    if len(maps) > 1 and not torch.is_grad_enabled() and (kernels := _kernels(total)):
        return _sum_by_kernels(kernels, [x.permute(0, 2, 3, 1).contiguous() for x in maps]).permute(0, 3, 1, 2)
    for x in maps[1:]:
        total = upsample(x, total.shape[-2:]).add_(total)  # into the map just made, so that no third one is
    return total


def upsample_argmax(logits: Tensor, size: Sequence[int], align_corners: bool = False) -> Tensor:
    """Labels (B, *size*) int64 of logits (B, K, h, w): ``upsample(logits, size).argmax(1)``.

    An interpolated pixel is a convex mix of four cells. Where all four agree on the greatest class, it is the pixel's; only between cells
    that disagree, or are not finite, are all classes interpolated. Labels may differ where two classes tie to the last bit.
    """
    size = (size[0], size[1])
    if workspace.is_traced(logits) or workspace.is_transformed() or logits.shape[2:] == size or logits.numel() == 0:
        return upsample(logits, size, align_corners).argmax(1)
    logits = logits.detach().permute(0, 2, 3, 1)  # (B, h, w, K)
    with workspace.without_autocast(logits):
        if kernels := _kernels(logits):
            return kernels.argmax(logits.contiguous(), _places(logits, size, align_corners))
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

    Raises:
        ValueError: when the target's shape, or the number of weights, does not fit the logits.
    """
    if target.ndim != 3 or len(target) != len(logits):
        raise ValueError(f"the target's shape {tuple(target.shape)} is not (B, H, W) with the batch of the logits, {tuple(logits.shape)}")
    if weight is not None and weight.shape != logits.shape[1:2]:
        raise ValueError(f"{tuple(weight.shape)} class weights for {logits.shape[1]} classes; give one a class")
    valid = target != ignore_index
    if over_all_pixels:
        total = torch.full((), target.numel(), device=target.device)
    else:
        total = valid.sum() if weight is None else (weight[target.where(valid, 0)] * valid).sum()
    loss: Any
    if workspace.is_traced(logits) or workspace.is_transformed() or _hold_infinities(logits):
        loss = _plain_cross_entropy(logits, target, weight, ignore_index, align_corners, label_smoothing)
    else:
        with workspace.without_autocast(logits):
            loss = _CrossEntropy.apply(logits, target, weight, ignore_index, align_corners, label_smoothing)
    return loss / total.clamp_min(1e-9)


def _hold_infinities(logits: Tensor) -> bool:
    """Whether some value on a CPU is not finite, and would reach other rows than its neighbours through the products that make a strip."""
    return logits.device.type == "cpu" and not logits.detach().sum(dtype=torch.promote_types(logits.dtype, torch.float32)).isfinite()


def _positions(source: int, target: int, align_corners: bool, like: Tensor) -> tuple[Tensor, Tensor]:
    """Along one axis, each target pixel lies between the cells low and low + 1 (or the last), with the share of the second.

    As interpolate computes them: (target,) int64 and float.
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


def _places(x: Tensor, size: Sequence[int], align_corners: bool) -> list[tuple[Tensor, Tensor]]:
    """:func:`_positions` of the rows and of the columns of *size* in maps (B, h, w, C)."""
    return [_positions(source, target, align_corners, x) for source, target in zip(x.shape[1:3], size, strict=True)]


class _Gaps:
    """Along one axis, the gaps before the first cell and between neighbouring ones, and the pixels in each.

    Attributes:
        of_pixel: the gap of each pixel.
        first, second: the cells whose mix each gap's pixels are.
        pixels: each gap's pixels (gaps, the most a gap has), -1 where it has fewer.
        shares: the second cell's share of each (gaps, the most a gap has).
    """

    def __init__(self, source: int, target: int, align_corners: bool, like: Tensor) -> None:
        low, share = _positions(source, target, align_corners, like)
        clamped = (share == 0) & (low == 0)  # pixels before the first cell's centre, and on it, have a gap of their own
        self.of_pixel = torch.where(clamped, 0, low + 1)
        cells = torch.arange(source, device=like.device)
        following = (cells + int(source != target)).clamp_max(source - 1)
        self.first, self.second = torch.cat([cells[:1], cells]), torch.cat([following[:1], following])
        counts = torch.bincount(self.of_pixel, minlength=source + 1)
        within = torch.arange(int(counts.max()), device=like.device)
        exist = within < counts[:, None]
        self.pixels = ((counts.cumsum(0) - counts)[:, None] + within).where(exist, -1)
        self.shares = share[self.pixels.clamp_min(0)]


def _argmax_between_cells(logits: Tensor, size: tuple[int, int], align_corners: bool) -> Tensor:
    """Only between cells that disagree are classes interpolated. Logits (B, h, w, K), contiguous."""
    _, h, w, classes = logits.shape
    rows, columns = (_Gaps(source, target, align_corners, logits) for source, target in zip((h, w), size, strict=True))
    cells = logits.argmax(3)
    # 0 · ∞ is not a number, which counts as the greatest: beside cells that are not finite all classes are interpolated.
    finite = logits.sum(3, dtype=rows.shares.dtype).isfinite()
    marks = cells.where(finite, -1 - torch.arange(cells.numel(), device=cells.device).view_as(cells))  # agree with none but themselves
    above, below = marks[:, rows.first], marks[:, rows.second]
    corner = above[:, :, columns.first]
    disagree = (corner != above[:, :, columns.second]) | (corner != below[:, :, columns.first]) | (corner != below[:, :, columns.second])
    disagree |= corner < 0
    labels = cells[:, rows.first[rows.of_pixel]][:, :, columns.first[columns.of_pixel]]

    flat, flat_cells = logits.view(-1, classes), cells.view(-1)
    step = max(1, workspace.PIECE // (4 * classes * logits.element_size()))
    for b, i, j in (piece.unbind(1) for piece in disagree.nonzero().split(step)):
        ys, xs = (rows.first[i], rows.second[i]), (columns.first[j], columns.second[j])
        corners = torch.stack([(b * h + y) * w + x for y in ys for x in xs], 1)
        values = flat[corners].to(rows.shares.dtype)  # (n, 4, K)
        vertical, horizontal = (torch.stack([1 - shares, shares], 2) for shares in (rows.shares[i], columns.shares[j]))
        shares = torch.einsum("nyp,nxq->nyxpq", vertical, horizontal).flatten(3).flatten(1, 2)  # (n, pixels a quad, 4)
        y, x = rows.pixels[i][:, :, None], columns.pixels[j][:, None, :]
        places = ((b[:, None, None] * size[0] + y) * size[1] + x).where((y >= 0) & (x >= 0), -1).flatten(1)
        best = _best_class(shares, values, flat_cells[corners])
        exist = places >= 0
        labels.view(-1)[places[exist]] = best[exist]
    return labels


def _best_class(shares: Tensor, values: Tensor, candidates: Tensor) -> Tensor:
    """``(shares @ values).argmax(2)``: the greatest class (n, P) of pixels that mix four corners' values (n, 4, K) with shares (n, P, 4).

    The candidates (n, 4) are the corners' own greatest classes. In every pixel one of them is at least their mean, which is at least the
    mean at the corner where it is least: a class that is below that bound at all corners wins nowhere.
    """
    candidates = candidates.sort(1).values  # of equal classes the first counts
    chosen = values.gather(2, candidates[:, None].expand(-1, 4, -1))  # (n, 4 corners, 4 candidates)
    bound = chosen.mean(2).amin(1)
    others = values.amax(1).scatter_(1, candidates, -torch.inf).amax(1)
    best = candidates.gather(1, torch.bmm(shares, chosen).argmax(2))
    contested = ~(others < bound)  # also where anything is not a number
    if contested.any():
        step = max(1, workspace.PIECE // (shares.shape[1] * values.shape[2] * values.element_size()))
        for quads in contested.nonzero()[:, 0].split(step):
            best[quads] = torch.bmm(shares[quads], values[quads]).argmax(2)
    return best


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
    on_cpu = torch.empty(0, dtype=share.dtype, device="cpu")  # slices need numbers, and nothing waits for a GPU
    bounds = _positions(h, height, align_corners, on_cpu)[0].tolist()
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
    """The summed cross-entropy, whose gradient is made with it."""

    @staticmethod
    def forward(
        ctx: Any, logits: Tensor, target: Tensor, weight: Tensor | None, ignore_index: int, align_corners: bool, smoothing: float
    ) -> Tensor:
        classes, dtype = logits.shape[1], torch.promote_types(logits.dtype, torch.float32)
        class_weight = torch.ones(classes, dtype=dtype, device=logits.device) if weight is None else weight.to(dtype)
        share = (1 - smoothing) * class_weight  # of -log p of the truth, in the loss
        spread = smoothing / classes * class_weight if smoothing else None  # of -log p of each class
        summed = partial(_summed_by_kernels, kernels) if (kernels := _kernels(logits)) else _summed_in_strips
        maps = logits.detach().permute(0, 2, 3, 1)
        loss, gradient = summed(maps, target, share, spread, ignore_index, align_corners, ctx.needs_input_grad[0])
        ctx.save_for_backward(gradient, logits, target, weight)
        ctx.options = ignore_index, align_corners, smoothing
        return loss

    @staticmethod
    def backward(ctx: Any, d_loss: Tensor) -> tuple[Tensor | None, ...]:
        gradient, logits, target, weight = ctx.saved_tensors
        if torch.is_grad_enabled():  # with create_graph=True: what is returned here is differentiated again
            loss = _plain_cross_entropy(logits, target, weight, *ctx.options)
            (d_logits,) = torch.autograd.grad(loss, logits, d_loss, create_graph=True)
        else:
            d_logits = (gradient.permute(0, 3, 1, 2) * d_loss).to(logits.dtype)
        return d_logits, None, None, None, None, None


def _plain_cross_entropy(
    logits: Tensor, target: Tensor, weight: Tensor | None, ignore_index: int, align_corners: bool, smoothing: float
) -> Tensor:
    """The summed cross-entropy, by PyTorch's own operations."""
    dtype = torch.promote_types(logits.dtype, torch.float32)
    return F.cross_entropy(
        upsample(logits, target.shape[-2:], align_corners).to(dtype),
        target,
        None if weight is None else weight.to(dtype),
        ignore_index=ignore_index,
        reduction="sum",
        label_smoothing=smoothing,
    )


def _summed_in_strips(
    logits: Tensor, target: Tensor, share: Tensor, spread: Tensor | None, ignore_index: int, align_corners: bool, with_gradient: bool
) -> tuple[Tensor, Tensor | None]:
    """Of logits (B, h, w, K): -Σ share[t] log p[t] - Σ spread[k] log p[k] over the valid pixels, and its gradient (B, h, w, K).

    The gradient is made while a strip is at hand.
    """
    batch, _, w, classes = logits.shape
    size = (target.shape[-2], target.shape[-1])
    loss = torch.zeros((), dtype=share.dtype, device=logits.device)
    gradient = torch.zeros(logits.shape, dtype=share.dtype, device=logits.device) if with_gradient else None
    for rows, cells, mix, strip in _strips(logits, size, align_corners):
        log_p = _log_softmax(strip)
        truth = target[:, rows]
        valid = truth != ignore_index
        truth = truth.where(valid, 0)[..., None]
        of_truth = share[truth] * valid[..., None]
        loss -= (log_p.gather(3, truth) * of_truth).sum()
        if spread is not None:
            loss -= (log_p @ spread * valid).sum()
        if gradient is None:
            continue
        p = log_p.exp_()
        d = p.mul_(of_truth) if spread is None else p.mul_(of_truth + spread.sum() * valid[..., None])
        d.scatter_add_(3, truth, -of_truth)
        if spread is not None:
            d -= spread * valid[..., None]
        wide = mix.T @ d.flatten(2)
        gradient[:, cells] += _narrowed(wide.view(batch, mix.shape[1], size[1], classes), w, align_corners)
    return loss, gradient


def _log_softmax(strip: Tensor) -> Tensor:
    """Over the last dimension. Fewer values than a CPU's register holds, PyTorch takes one by one: ten times slower than side by side."""
    if strip.shape[-1] < 16 and strip.device.type == "cpu":
        return torch.log_softmax(strip.mT.contiguous(), -2).mT.contiguous()
    return torch.log_softmax(strip, -1)


def _narrowed(wide: Tensor, w: int, align_corners: bool) -> Tensor:
    """The transpose of interpolation along the width: (B, cells, W, K) to (B, cells, w, K)."""
    batch, cells, width, classes = wide.shape
    x = wide.permute(0, 3, 1, 2)
    narrow = torch.ops.aten.upsample_bilinear2d_backward(x, [cells, width], [batch, classes, cells, w], align_corners)
    return narrow.permute(0, 2, 3, 1)


def _kernels(x: Tensor) -> Any:
    """The Triton kernels, where they run on the device of ``x``; None elsewhere, and while a graph is recorded."""
    usable = x.is_cuda and not (workspace.is_traced(x) or workspace.is_transformed())
    return _kernels_of(x.device) if usable else None


@functools.cache
def _kernels_of(device: torch.device) -> Any:
    """The Triton kernels, after they have done on this device what the plain ways do, once a process."""
    try:
        from segformer import upsample_triton as kernels

        _compare(kernels, device)
    except Exception as error:  # whatever a compiler, a driver or a processor may say
        warnings.warn(f"Triton's kernels do not run on {device}; slower ways are taken. {type(error).__name__}: {error}", stacklevel=2)
        return None
    return kernels


def _compare(kernels: Any, device: torch.device) -> None:
    """Raise an error where the kernels, in float32, do not do what the plain ways do on a CPU in float64."""

    def there(x: Tensor) -> Tensor:
        return x.to(device, torch.float32 if x.is_floating_point() else x.dtype)

    def check(ours: Any, theirs: Any) -> None:
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4, check_device=False, check_dtype=False)

    with torch.inference_mode(False), torch.no_grad(), torch.device("cpu"):
        logits = torch.arange(2 * 3 * 5 * 40, dtype=torch.double).mul(0.7).sin().view(2, 3, 5, 40)
        target, share, size = torch.arange(2 * 13 * 7).view(2, 13, 7) % 41, torch.arange(1, 41, dtype=torch.double), (13, 7)
        check(kernels.argmax(there(logits), _places(there(logits), size, False)), _argmax_in_strips(logits, size, False))
        for spread in (None, share / 9):
            terms = (there(logits), there(target), there(share), None if spread is None else there(spread))
            check(_summed_by_kernels(kernels, *terms, 40, False, True), _summed_in_strips(logits, target, share, spread, 40, False, True))
        total, added = torch.ones(2, 13, 7, 40), upsample(logits.permute(0, 3, 1, 2), size).permute(0, 2, 3, 1)
        check(_sum_by_kernels(kernels, [there(total), there(logits)]), total + added)


def _sum_by_kernels(kernels: Any, maps: list[Tensor]) -> Tensor:
    """:func:`upsample_sum` of maps (B, h, w, C), without a gradient."""
    total, out = maps[0], torch.empty_like(maps[0])
    for x in maps[1:]:
        kernels.add_upsampled(out, total, x, _places(x, out.shape[1:3], False))
        total = out
    return total


def _summed_by_kernels(
    kernels: Any,
    logits: Tensor,
    target: Tensor,
    share: Tensor,
    spread: Tensor | None,
    ignore_index: int,
    align_corners: bool,
    with_gradient: bool,
) -> tuple[Tensor, Tensor | None]:
    """:func:`_summed_in_strips` by the kernels."""
    classes = logits.shape[3]
    torch._assert_async(((target == ignore_index) | ((target >= 0) & (target < classes))).all(), "a target is out of bounds of the classes")
    logits = logits.contiguous()
    arguments = (logits, _places(logits, target.shape[1:], align_corners), target.contiguous(), share, spread, ignore_index)
    loss, log_sum = kernels.cross_entropy(*arguments)
    return loss.sum(), kernels.cross_entropy_gradient(*arguments, log_sum) if with_gradient else None
