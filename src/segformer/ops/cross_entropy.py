"""The cross-entropy of stride-4 logits at the resolution of the target, without logits of that
size.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from segformer.ops.bilinear import narrowed, places, strips, upsample
from segformer.ops.conditions import is_recorded, without_autocast
from segformer.ops.registry import operator
from segformer.ops.triton import runs_on


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
        weight: one weight a class.
        ignore_index: the target's value that counts nowhere. A batch of nothing else costs 0, and
            its gradient is 0.
        align_corners: see :func:`~segformer.ops.upsample`.
        label_smoothing: share of the target that is spread over all classes.
        over_all_pixels: divide by the number of all pixels, as the official training does, instead
            of the (weights of the) valid ones.

    Raises:
        ValueError: if the target's shape, or the number of weights, does not fit the logits.
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


def _denominator(
    logits: Tensor,
    target: Tensor,
    weight: Tensor | None,
    ignore_index: int,
    over_all_pixels: bool,
) -> Tensor:
    """What the summed loss is divided by, after its arguments are checked."""
    if target.ndim != 3 or len(target) != len(logits):
        raise ValueError(
            f"the target's shape {tuple(target.shape)} is not (B, H, W) with the batch of the logits, {tuple(logits.shape)}"
        )
    if weight is not None and weight.shape != logits.shape[1:2]:
        raise ValueError(
            f"{tuple(weight.shape)} class weights for {logits.shape[1]} classes; give one a class"
        )
    if over_all_pixels:
        return torch.full((), target.numel(), device=target.device)
    valid = target != ignore_index
    if weight is None:
        return valid.sum().clamp_min(1e-9)
    return (weight[target.where(valid, 0)] * valid).sum().clamp_min(1e-9)


def loss_by_triton(logits: Tensor, target: Tensor, *args: Any, **options: Any) -> bool:
    """on GPUs where Triton runs"""
    return runs_on(logits)


def loss_in_strips(logits: Tensor, target: Tensor, *args: Any, **options: Any) -> bool:
    """elsewhere, for finite logits"""
    return not (is_recorded(logits) or _hold_infinities(logits))


def _hold_infinities(logits: Tensor) -> bool:
    """Whether some value on a CPU is not finite: in a strip's products it would reach other rows."""
    if logits.device.type != "cpu":
        return False
    dtype = torch.promote_types(logits.dtype, torch.float32)
    return not logits.detach().sum(dtype=dtype).isfinite()


@upsample_cross_entropy.implementation(when=loss_by_triton)
def cross_entropy_by_triton(
    logits: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    ignore_index: int = 255,
    align_corners: bool = False,
    *,
    label_smoothing: float = 0.0,
    over_all_pixels: bool = False,
) -> Tensor:
    """Two passes over the pixels, one for the loss and one for its gradient."""
    total = _denominator(logits, target, weight, ignore_index, over_all_pixels)
    options = (weight, ignore_index, align_corners, label_smoothing)
    with without_autocast(logits):
        loss: Tensor = _CrossEntropy.apply(summed_by_triton, logits, target, *options)
        return loss / total


@upsample_cross_entropy.implementation(when=loss_in_strips)
def cross_entropy_in_strips(
    logits: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    ignore_index: int = 255,
    align_corners: bool = False,
    *,
    label_smoothing: float = 0.0,
    over_all_pixels: bool = False,
) -> Tensor:
    """Rows of full-size logits are made, used for the loss and its gradient, and dropped."""
    total = _denominator(logits, target, weight, ignore_index, over_all_pixels)
    options = (weight, ignore_index, align_corners, label_smoothing)
    with without_autocast(logits):
        loss: Tensor = _CrossEntropy.apply(summed_in_strips, logits, target, *options)
        return loss / total


class _CrossEntropy(torch.autograd.Function):
    """The summed cross-entropy, whose gradient is made with it."""

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
        if torch.is_grad_enabled():  # create_graph=True: the gradient will be differentiated again
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
    """Of logits (B, h, w, K):

    -Σ share[t] log p[t] - Σ spread[k] log p[k] over the valid pixels, and its gradient (B, h, w,
    K).

    The gradient is made while a strip is at hand.
    """
    batch, _, w, classes = logits.shape
    size = (target.shape[-2], target.shape[-1])
    loss = torch.zeros((), dtype=share.dtype, device=logits.device)
    gradient = (
        torch.zeros(logits.shape, dtype=share.dtype, device=logits.device)
        if with_gradient
        else None
    )
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
        d = (
            p.mul_(of_truth)
            if spread is None
            else p.mul_(of_truth + spread.sum() * valid[..., None])
        )
        d.scatter_add_(3, truth, -of_truth)
        if spread is not None:
            d -= spread * valid[..., None]
        wide = mix.T @ d.flatten(2)
        gradient[:, cells] += narrowed(
            wide.view(batch, mix.shape[1], size[1], classes), w, align_corners
        )
    return loss, gradient


def _log_softmax(strip: Tensor) -> Tensor:
    """Over the last dimension. Fewer values than a CPU's register holds, PyTorch takes one by one:

    ten times slower than side by side.
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
    """:func:`summed_in_strips` by Triton's kernels."""
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
