"""The operators of :mod:`segformer.ops` as Triton kernels, for the devices Triton compiles for.

Maps are (B, h, w, C), contiguous. ``places`` holds, for rows and for columns, the cell before each
pixel and its share of the next, as :func:`segformer.ops.bilinear.positions` computes them. The
kernels compute in the precision of these shares.

The kernels read stride-4 maps, which stay in cache, and write only results. They do not synchronise
with the host. No two programs write to the same address, so that results are equal to the bit in
every run.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import wraps
from typing import TypeVar

import torch
import triton
import triton.language as tl
from torch import Tensor

# Pixels and classes of one block. A program then needs about 64 registers a thread, so that a
# multiprocessor can be full.
PIXELS, CLASSES = 16, 32
FUSION = {"enable_fp_fusion": True}  # fused multiply-adds; Triton's default is changing
# Triton compiles one kernel for all values of these arguments, also for 1 and multiples of 16.
SIZES = ["h", "w", "height", "width", "ignore_index"]
LARGEST = tl.constexpr(2**31 - 1)

Places = Sequence[tuple[Tensor, Tensor]]
Result = TypeVar("Result")


def on_its_device(function: Callable[..., Result]) -> Callable[..., Result]:
    """Decorator that launches kernels on the device of the first argument."""

    @wraps(function)
    def launch(first: Tensor, *others: object) -> Result:
        with torch.cuda.device_of(first):
            return function(first, *others)

    return launch


@on_its_device
def argmax(logits: Tensor, places: Places) -> Tensor:
    """Labels (B, H, W) int64 of interpolated logits (B, h, w, K); NaN counts as the greatest."""
    batch, (rows, columns) = len(logits), places
    labels = torch.empty(
        batch, len(rows[0]), len(columns[0]), dtype=torch.int64, device=logits.device
    )
    if labels.numel():
        _argmax[_row_by_row(labels)](
            labels,
            logits,
            *rows,
            *columns,
            *_sizes(logits, labels),
            PIXELS,
            _classes(logits),
            **FUSION,
        )
    return labels


@on_its_device
def cross_entropy(
    logits: Tensor,
    places: Places,
    target: Tensor,
    share: Tensor,
    spread: Tensor | None,
    ignore_index: int,
) -> tuple[Tensor, Tensor]:
    """The loss of each pixel, and the logsumexp of its logits: both (B, H, W).

    The loss is -share[t] log p[t] - Σ_k spread[k] log p[k] where the target is t, and 0 where it is
    ``ignore_index``.
    """
    rows, columns = places
    loss, log_sum = (
        torch.empty(target.shape, dtype=share.dtype, device=logits.device) for _ in range(2)
    )
    if target.numel():
        inputs = (
            logits,
            *rows,
            *columns,
            target,
            share,
            share if spread is None else spread,
            ignore_index,
        )
        sizes = _sizes(logits, target)
        _cross_entropy[_row_by_row(target)](
            loss, log_sum, *inputs, *sizes, spread is not None, PIXELS, _classes(logits), **FUSION
        )
    return loss, log_sum


@on_its_device
def cross_entropy_gradient(
    logits: Tensor,
    places: Places,
    target: Tensor,
    share: Tensor,
    spread: Tensor | None,
    ignore_index: int,
    log_sum: Tensor,
) -> Tensor:
    """The gradient (B, h, w, K) of the sum of the losses.

    Each cell sums it over the pixels that it contributes to.
    """
    rows, columns = places
    gradient = torch.empty(logits.shape, dtype=log_sum.dtype, device=logits.device)
    # first[i] is the first pixel whose lower cell is at least i, so that the pixels between cells i
    # and i + 1 are first[i] to first[i + 1] - 1.
    first_row, first_column = (
        torch.searchsorted(low, torch.arange(cells + 1, device=low.device))
        for (low, _), cells in zip(places, logits.shape[1:3], strict=True)
    )
    spread = torch.zeros_like(share) if spread is None else spread
    if logits.numel():
        at_once = _classes(logits)
        inputs = (
            logits,
            *rows,
            *columns,
            first_row,
            first_column,
            target,
            share,
            spread,
            spread.sum(),
            log_sum,
            ignore_index,
        )
        grid = (logits[..., 0].numel(), triton.cdiv(logits.shape[3], at_once))
        _gradient[grid](gradient, *inputs, *_sizes(logits, target), PIXELS // 2, at_once, **FUSION)
    return gradient


@on_its_device
def add_upsampled(out: Tensor, x: Tensor, coarse: Tensor, places: Places) -> None:
    """Write x + interpolated(coarse) to ``out``, which may be ``x``.

    ``x`` and ``out`` are (B, H, W, C), ``coarse`` is (B, h, w, C).
    """
    rows, columns = places
    if x.numel():
        grid = (*_row_by_row(x[..., 0]), triton.cdiv(x.shape[3], CLASSES))
        _add_upsampled[grid](
            out, x, coarse, *rows, *columns, *_sizes(coarse, x[..., 0]), PIXELS, CLASSES, **FUSION
        )


def _row_by_row(pixels: Tensor) -> tuple[int, int]:
    batch, height, width = pixels.shape
    return batch * height, triton.cdiv(width, PIXELS)


def _sizes(cells: Tensor, pixels: Tensor) -> tuple[int, ...]:
    return (*cells.shape[1:], *pixels.shape[1:])


def _classes(logits: Tensor) -> int:
    return min(CLASSES, int(triton.next_power_of_2(logits.shape[3])))


@triton.jit
def _place(low, shares, pixel, exists, cells):
    """The cells before and after a pixel, and its share of the second."""
    before = tl.load(low + pixel, exists, 0).to(tl.int32)
    return before, tl.minimum(before + 1, cells - 1), tl.load(shares + pixel, exists, 0.0)


@triton.jit
def _own_pixels(low_y, shares_y, low_x, shares_x, h, w, height, width, pixels: tl.constexpr):
    """The program's part of a row of pixels, by its first two indices, and the cells around it."""
    row = tl.program_id(0).to(tl.int64)
    x = tl.program_id(1) * pixels + tl.arange(0, pixels)
    inside = x < width
    top, bottom, share_y = _place(low_y, shares_y, row % height, row >= 0, h)
    left, right, share_x = _place(low_x, shares_x, x, inside, w)
    return row, x, inside, top, bottom, share_y, left, right, share_x


@triton.jit
def _mix(maps, image, top, bottom, share_y, left, right, share_x, k, exist, w, classes):
    """The interpolated values (P, K) of a row's pixels (P,) and classes (K,).

    The order of operations is that of :func:`torch.nn.functional.interpolate`.
    """
    upper, lower = maps + (image + top) * w * classes, maps + (image + bottom) * w * classes
    left, right, share_x = (
        (left * classes)[:, None] + k[None, :],
        (right * classes)[:, None] + k[None, :],
        share_x[:, None],
    )
    above = (1 - share_x) * tl.load(upper + left, exist, 0.0) + share_x * tl.load(
        upper + right, exist, 0.0
    )
    below = (1 - share_x) * tl.load(lower + left, exist, 0.0) + share_x * tl.load(
        lower + right, exist, 0.0
    )
    return (1 - share_y) * above + share_y * below


@triton.jit(do_not_specialize=SIZES)
def _argmax(
    labels, logits, low_y, shares_y, low_x, shares_x, h, w, classes, height, width,
    pixels: tl.constexpr, at_once: tl.constexpr,
):  # fmt: skip
    row, x, inside, top, bottom, share_y, left, right, share_x = _own_pixels(
        low_y, shares_y, low_x, shares_x, h, w, height, width, pixels
    )

    greatest = tl.full([pixels], float("-inf"), share_x.dtype)
    label = tl.zeros([pixels], tl.int32)
    first_nan = tl.full([pixels], LARGEST, tl.int32)
    for start in range(0, classes, at_once):
        k = start + tl.arange(0, at_once)
        exist = inside[:, None] & (k < classes)[None, :]
        value = _mix(
            logits,
            row // height * h,
            top,
            bottom,
            share_y,
            left,
            right,
            share_x,
            k,
            exist,
            w,
            classes,
        )
        is_nan = value != value
        first_nan = tl.minimum(first_nan, tl.min(tl.where(is_nan, k[None, :], LARGEST), 1))
        value = tl.where(is_nan | (k >= classes)[None, :], float("-inf"), value)
        best = tl.max(value, 1)
        first_best = tl.min(tl.where(value == best[:, None], k[None, :], LARGEST), 1)
        label = tl.where(best > greatest, first_best, label)
        greatest = tl.maximum(greatest, best)
    label = tl.where(first_nan < LARGEST, first_nan, label)
    tl.store(labels + row * width + x, label.to(tl.int64), inside)


@triton.jit(do_not_specialize=SIZES)
def _cross_entropy(
    loss, log_sum, logits, low_y, shares_y, low_x, shares_x, target, share, spread, ignore_index,
    h, w, classes, height, width, smooth: tl.constexpr, pixels: tl.constexpr, at_once: tl.constexpr,
):  # fmt: skip
    row, x, inside, top, bottom, share_y, left, right, share_x = _own_pixels(
        low_y, shares_y, low_x, shares_x, h, w, height, width, pixels
    )
    truth = tl.load(target + row * width + x, inside, ignore_index)
    valid = inside & (truth != ignore_index)

    greatest = tl.full([pixels], float("-inf"), share_x.dtype)
    total, of_truth, weighted, weights = (
        tl.zeros([pixels], share_x.dtype),  # Σ exp(value - greatest)
        tl.zeros([pixels], share_x.dtype),
        tl.zeros([pixels], share_x.dtype),
        tl.zeros([pixels], share_x.dtype),
    )
    for start in range(0, classes, at_once):
        k = start + tl.arange(0, at_once)
        exist = inside[:, None] & (k < classes)[None, :]
        value = _mix(
            logits,
            row // height * h,
            top,
            bottom,
            share_y,
            left,
            right,
            share_x,
            k,
            exist,
            w,
            classes,
        )
        of_truth += tl.sum(tl.where(k[None, :] == truth[:, None], value, 0.0), 1)
        if smooth:
            weight = tl.load(spread + k, k < classes, 0.0)
            weighted += tl.sum(weight[None, :] * value, 1)
            weights += tl.sum(weight, 0)
        value = tl.where((k < classes)[None, :], value, float("-inf"))
        now = tl.maximum(greatest, tl.max(value, 1))
        base = tl.where(now == float("-inf"), 0.0, now)  # classes that are all -∞ add nothing
        total = total * tl.exp(greatest - base) + tl.sum(tl.exp(value - base[:, None]), 1)
        greatest = now
    log_total = greatest + tl.log(total)
    cost = tl.load(share + truth, valid, 0.0) * (log_total - of_truth)
    if smooth:
        cost += weights * log_total - weighted
    tl.store(loss + row * width + x, tl.where(valid, cost, 0.0), inside)
    tl.store(log_sum + row * width + x, log_total, inside)


@triton.jit(do_not_specialize=SIZES)
def _gradient(
    gradient, logits, low_y, shares_y, low_x, shares_x, first_row, first_column,
    target, share, spread, spread_sum, log_sum, ignore_index,
    h, w, classes, height, width, pixels: tl.constexpr, at_once: tl.constexpr,
):  # fmt: skip
    cell = tl.program_id(0).to(tl.int64)
    image, i, j = cell // (h * w), cell // w % h, cell % w
    k = tl.program_id(1) * at_once + tl.arange(0, at_once)
    of_k, of_all = tl.load(spread + k, k < classes, 0.0)[None, :], tl.load(spread_sum)
    gathered = tl.zeros([at_once], of_all.dtype)
    last_x = tl.load(first_column + j + 1)
    for y in range(tl.load(first_row + tl.maximum(i - 1, 0)), tl.load(first_row + i + 1)):
        top, bottom, share_y = _place(low_y, shares_y, y, y >= 0, h)
        part_y = tl.where(top == i, 1 - share_y, 0.0) + tl.where(bottom == i, share_y, 0.0)
        for start in range(tl.load(first_column + tl.maximum(j - 1, 0)), last_x, pixels):
            x = start + tl.arange(0, pixels)
            inside = x < last_x
            left, right, share_x = _place(low_x, shares_x, x, inside, w)
            part = part_y * (
                tl.where(left == j, 1 - share_x, 0.0) + tl.where(right == j, share_x, 0.0)
            )
            pixel = (image * height + y) * width + x
            truth = tl.load(target + pixel, inside, ignore_index)
            valid = inside & (truth != ignore_index)
            of_truth = tl.load(share + truth, valid, 0.0)[:, None]
            exist = inside[:, None] & (k < classes)[None, :]
            value = _mix(
                logits, image * h, top, bottom, share_y, left, right, share_x, k, exist, w, classes
            )
            p = tl.exp(value - tl.load(log_sum + pixel, inside, 0.0)[:, None])
            d = (
                p * (of_truth + of_all)
                - tl.where(k[None, :] == truth[:, None], of_truth, 0.0)
                - of_k
            )
            gathered += tl.sum(tl.where(valid[:, None], d * part[:, None], 0.0), 0)
    tl.store(gradient + cell * classes + k, gathered, k < classes)


@triton.jit(do_not_specialize=SIZES)
def _add_upsampled(
    out, x, coarse, low_y, shares_y, low_x, shares_x, h, w, channels, height, width,
    pixels: tl.constexpr, at_once: tl.constexpr,
):  # fmt: skip
    row, column, inside, top, bottom, share_y, left, right, share_x = _own_pixels(
        low_y, shares_y, low_x, shares_x, h, w, height, width, pixels
    )
    k = tl.program_id(2) * at_once + tl.arange(0, at_once)
    exist = inside[:, None] & (k < channels)[None, :]
    value = _mix(
        coarse, row // height * h, top, bottom, share_y, left, right, share_x, k, exist, w, channels
    )
    at = (row * width + column)[:, None] * channels + k[None, :]
    tl.store(out + at, (tl.load(x + at, exist, 0.0) + value).to(out.dtype.element_ty), exist)
