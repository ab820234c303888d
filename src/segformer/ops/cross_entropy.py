"""Cross-entropy of stride-4 logits at the target's resolution, without full-size logits."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from segformer.ops.bilinear import at_least_float32, narrowed, places, strips, upsample
from segformer.ops.conditions import is_recorded, without_autocast
from segformer.ops.registry import operator
from segformer.ops.triton import assert_agrees, comparison, example, in_float32, runs_on


@operator
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
    """``cross_entropy(upsample(logits, …), target)``, a scalar.

    Args:
        logits: (B, K, h, w) of any floating type; the loss is computed in float32 at least.
        target: class indices (B, H, W), int64.
        weight: one weight a class (K,).
        ignore_index: the value of pixels without a class. The loss and the gradient of a batch of
            such pixels are 0.
        align_corners: see :func:`~segformer.ops.upsample`.
        label_smoothing: share of the target that is spread over all classes.
        over_all_pixels: whether to divide by the number of all pixels, as the official training
            does, instead of by the sum of the valid pixels' weights.

    Raises:
        ValueError: if the target's shape, or the number of weights, does not fit the logits, or the
            weights ask for a gradient.
    """
    total = _denominator(logits, target, weight, ignore_index, over_all_pixels)
    loss = _plain(logits, target, weight, ignore_index, align_corners, label_smoothing)
    return loss / total


def _plain(
    logits: Tensor,
    target: Tensor,
    weight: Tensor | None,
    ignore_index: int,
    align_corners: bool,
    smoothing: float,
) -> Tensor:
    """The sum of the pixels' cross-entropies, by PyTorch's own operations."""
    logits = at_least_float32(logits)
    return F.cross_entropy(
        upsample(logits, target.shape[-2:], align_corners),
        target,
        None if weight is None else weight.to(logits.dtype),
        ignore_index=ignore_index,
        reduction="sum",
        label_smoothing=smoothing,
    )


def _denominator(
    logits: Tensor,
    target: Tensor,
    weight: Tensor | None,
    ignore_index: int,
    over_all_pixels: bool,
) -> Tensor:
    """Check the arguments, and return what the summed loss is divided by."""
    if target.ndim != 3 or len(target) != len(logits):
        raise ValueError(
            f"the target's shape {tuple(target.shape)} is not (B, H, W) with the batch of the "
            f"logits, {tuple(logits.shape)}"
        )
    check_class_weights(weight, logits)
    if weight is not None and weight.requires_grad:
        raise ValueError("class weights are constants, and these ask for a gradient; detach them")
    if over_all_pixels:
        return torch.full((), target.numel(), device=target.device)
    valid = target != ignore_index
    if weight is None:
        return _or_infinity(valid.sum())
    weight = at_least_float32(weight)  # the sum exceeds float16
    return _or_infinity((weight[target.where(valid, 0)] * valid).sum())


def check_class_weights(weight: Tensor | None, logits: Tensor) -> None:
    """Check that there is one weight for each class of logits (B, K, h, w), or none at all.

    Raises:
        ValueError: if there is another number of weights.
    """
    if weight is not None and weight.shape != logits.shape[1:2]:
        raise ValueError(
            f"{tuple(weight.shape)} class weights for {logits.shape[1]} classes; give one a class"
        )


def _or_infinity(total: Tensor) -> Tensor:
    """What a sum over no pixels is divided by, so that it is 0, and so are its gradients."""
    return torch.where(total > 0, total, math.inf)


def loss_by_triton(logits: Tensor, target: Tensor, *args: Any, **options: Any) -> bool:
    """on GPUs where Triton runs"""
    return runs_on(logits)


def loss_in_strips(logits: Tensor, target: Tensor, *args: Any, **options: Any) -> bool:
    """elsewhere, for finite logits"""
    return not (is_recorded(logits) or _hold_infinities(logits))


def _hold_infinities(logits: Tensor) -> bool:
    """Whether a value on a CPU is not finite; a strip's products would spread it to all rows."""
    if logits.device.type != "cpu":
        return False
    dtype = torch.promote_types(logits.dtype, torch.float32)
    return not logits.detach().sum(dtype=dtype).isfinite()


@upsample_cross_entropy.implementation(when=loss_by_triton)
def cross_entropy_by_triton(*args: Any, **options: Any) -> Tensor:
    """Two passes over the pixels, one for the loss and one for its gradient."""
    return _with_gradient(summed_by_triton, *args, **options)


@upsample_cross_entropy.implementation(when=loss_in_strips)
def cross_entropy_in_strips(*args: Any, **options: Any) -> Tensor:
    """A strip of full-size logits at a time, for the loss and its gradient."""
    return _with_gradient(summed_in_strips, *args, **options)


def _with_gradient(
    summed: Callable[..., tuple[Tensor, Tensor | None]],
    logits: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    ignore_index: int = 255,
    align_corners: bool = False,
    *,
    label_smoothing: float = 0.0,
    over_all_pixels: bool = False,
) -> Tensor:
    """The operator by a function that returns the summed loss and its gradient."""
    total = _denominator(logits, target, weight, ignore_index, over_all_pixels)
    options = (weight, ignore_index, align_corners, label_smoothing)
    with without_autocast(logits):
        loss: Tensor = _CrossEntropy.apply(summed, logits, target, *options)
    return loss / total


class _CrossEntropy(torch.autograd.Function):
    """The sum of the pixels' cross-entropies; the forward pass computes the gradient, too."""

    @staticmethod
    def forward(
        ctx: Any,
        summed: Callable[..., tuple[Tensor, Tensor | None]],
        logits: Tensor,
        target: Tensor,
        weight: Tensor | None,
        ignore_index: int,
        align_corners: bool,
        smoothing: float,
    ) -> Tensor:
        classes, dtype = logits.shape[1], torch.promote_types(logits.dtype, torch.float32)
        equal = torch.ones(classes, dtype=dtype, device=logits.device)
        class_weight = equal if weight is None else weight.to(dtype)
        share = (1 - smoothing) * class_weight  # of -log p of the truth, in the loss
        spread = (
            smoothing / classes * class_weight if smoothing else None
        )  # of -log p of each class
        maps, with_gradient = logits.detach().permute(0, 2, 3, 1), ctx.needs_input_grad[1]
        loss, gradient = summed(
            maps, target, share, spread, ignore_index, align_corners, with_gradient
        )
        ctx.save_for_backward(gradient, logits, target, weight)
        ctx.options = ignore_index, align_corners, smoothing
        return loss

    @staticmethod
    def backward(ctx: Any, d_loss: Tensor) -> tuple[Tensor | None, ...]:
        gradient, logits, target, weight = ctx.saved_tensors
        if torch.is_grad_enabled():  # create_graph=True
            loss = _plain(logits, target, weight, *ctx.options)
            (d_logits,) = torch.autograd.grad(loss, logits, d_loss, create_graph=True)
        else:
            d_logits = (gradient.permute(0, 3, 1, 2) * d_loss).to(logits.dtype)
        return None, d_logits, None, None, None, None, None


def summed_in_strips(
    logits: Tensor,
    target: Tensor,
    share: Tensor,
    spread: Tensor | None,
    ignore_index: int,
    align_corners: bool,
    with_gradient: bool,
) -> tuple[Tensor, Tensor | None]:
    """Loss and gradient, a strip at a time.

    The loss is -Σ share[t] log p[t] - Σ spread[k] log p[k], summed over the valid pixels.

    Args:
        logits: (B, h, w, K).
        target: class indices (B, H, W).
        share, spread: (K,).
        ignore_index, align_corners: see :func:`upsample_cross_entropy`.
        with_gradient: whether to compute the gradient.

    Returns:
        The loss, a scalar, and its gradient (B, h, w, K) or None.
    """
    batch, _, w, classes = logits.shape
    size = (target.shape[-2], target.shape[-1])
    loss = torch.zeros((), dtype=share.dtype, device=logits.device)
    like: Any = {"dtype": share.dtype, "device": logits.device}
    gradient = torch.zeros(logits.shape, **like) if with_gradient else None
    for rows, cells, mix, strip in strips(logits, size, align_corners):
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
        of_all = of_truth if spread is None else of_truth + spread.sum() * valid[..., None]
        d = p.mul_(of_all)
        d.scatter_add_(3, truth, -of_truth)
        if spread is not None:
            d -= spread * valid[..., None]
        wide = (mix.T @ d.flatten(2)).view(batch, mix.shape[1], size[1], classes)
        gradient[:, cells] += narrowed(wide, w, align_corners)
    return loss, gradient


def _log_softmax(strip: Tensor) -> Tensor:
    """log_softmax over the last dimension.

    PyTorch is ten times slower on CPUs if that dimension is shorter than a vector register.
    """
    if strip.shape[-1] < 16 and strip.device.type == "cpu":
        return torch.log_softmax(strip.mT.contiguous(), -2).mT.contiguous()
    return torch.log_softmax(strip, -1)


def summed_by_triton(
    logits: Tensor,
    target: Tensor,
    share: Tensor,
    spread: Tensor | None,
    ignore_index: int,
    align_corners: bool,
    with_gradient: bool,
) -> tuple[Tensor, Tensor | None]:
    """:func:`summed_in_strips` by the Triton kernels."""
    from segformer.ops import triton_kernels as kernels

    classes = logits.shape[3]
    is_valid = (target == ignore_index) | ((target >= 0) & (target < classes))
    torch._assert_async(is_valid.all(), "a target is out of bounds of the classes")
    logits = logits.contiguous()
    cells = places(logits, target.shape[1:], align_corners)
    arguments = (logits, cells, target.contiguous(), share, spread, ignore_index)
    loss, log_sum = kernels.cross_entropy(*arguments)
    gradient = kernels.cross_entropy_gradient(*arguments, log_sum) if with_gradient else None
    return loss.sum(), gradient


@comparison
def _compare(device: torch.device) -> None:
    target = torch.arange(2 * 13 * 7).view(2, 13, 7) % 41
    for smoothing in (0.0, 0.1):
        options: Any = {"ignore_index": 40, "label_smoothing": smoothing}
        ours, plain = in_float32(example(), device).requires_grad_(), example().requires_grad_()
        weight = torch.arange(1.0, 41.0, device=device)
        with torch.enable_grad():
            loss = cross_entropy_by_triton(ours, target.to(device), weight, **options)
            expected = upsample_cross_entropy.plain(plain, target, weight.cpu().double(), **options)
        assert_agrees(loss, expected)
        assert_agrees(torch.autograd.grad(loss, ours)[0], torch.autograd.grad(expected, plain)[0])
