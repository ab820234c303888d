"""Losses of logits (B, K, h, w) of any size and full-size targets (B, H, W).

Targets of 255 (65535 for more than 255 classes) are ignored.

One logit (K = 1) belongs to the second of two classes; the first class's logit is 0, so that the
softmax of the pair is the sigmoid of the logit.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from segformer.data.classes import ignore_index
from segformer.ops import (
    at_least_float32,
    upsample,
    upsample_cross_entropy,
    with_background,
)
from segformer.ops.cross_entropy import check_class_weights


def _at_full_size(logits: Tensor, target: Tensor, align_corners: bool) -> tuple[Tensor, Tensor]:
    """Returns the logits at the target's size, at least in float32, and the target as int64."""
    logits = at_least_float32(with_background(logits))
    return upsample(logits, target.shape[-2:], align_corners), target.long()


def _ignored(given: int | None, logits: Tensor) -> int:
    """Returns the target's ignored value: ``given``, or the default of this number of classes."""
    return ignore_index(logits.shape[1]) if given is None else given


def _truth(target: Tensor, valid: Tensor, logits: Tensor) -> Tensor:
    """Returns whether each pixel is of each class, bool (B, K, H, W); an invalid one is of none."""
    classes = target.where(valid, 0)[:, None]
    # scatter refuses values that are no class, which a comparison would overlook.
    return torch.zeros_like(logits, dtype=torch.bool).scatter(1, classes, True) & valid[:, None]


def _for_logits(weight: Tensor | None, logits: Tensor) -> Tensor | None:
    """Returns the weights of the classes, if there are any, in the logits' type.

    Raises:
        ValueError: If they are for another number of classes.
    """
    check_class_weights(weight, logits)
    return None if weight is None else weight.to(logits.dtype)


def _class_weights(weight: Sequence[float] | None) -> Tensor | None:
    return None if weight is None else torch.tensor(weight, dtype=torch.float32)


class CrossEntropy(nn.Module):
    """Cross-entropy at the target's resolution, without storing the logits at that size.

    Args:
        weight: Weight of each class; by default all 1.
        ignore_index: Ignored value of the target; by default 255, or 65535 for more than 255
            classes.
        label_smoothing: Share of the target that is spread over all classes.
        over_all_pixels: Whether the mean is over all pixels, including ignored ones, as in the
            official training; by default it is over the others.
    """

    def __init__(
        self,
        weight: Sequence[float] | None = None,
        ignore_index: int | None = None,
        label_smoothing: float = 0.0,
        over_all_pixels: bool = False,
    ) -> None:
        super().__init__()
        self.weight: Tensor | None
        self.ignore_index = ignore_index
        self.label_smoothing = label_smoothing
        self.over_all_pixels = over_all_pixels
        self.register_buffer("weight", _class_weights(weight), persistent=False)

    def forward(self, logits: Tensor, target: Tensor, align_corners: bool = False) -> Tensor:
        return upsample_cross_entropy(
            with_background(logits),
            target.long(),
            self.weight,
            _ignored(self.ignore_index, logits),
            align_corners,
            label_smoothing=self.label_smoothing,
            over_all_pixels=self.over_all_pixels,
        )


class OHEM(nn.Module):
    """Cross-entropy of the hard pixels, those whose class has a low probability.

    Online hard example mining (Shrivastava et al., arXiv 1604.03540), applied to pixels.

    Args:
        threshold: Pixels whose class has a lower probability are hard.
        min_kept: Minimum number of pixels in the batch; if fewer are hard, the hardest are used.
        weight: Weight of each class; by default all 1.
        ignore_index: Ignored value of the target; by default 255, or 65535 for more than 255
            classes.

    Raises:
        ValueError: If ``threshold`` is not a probability.
    """

    def __init__(
        self,
        threshold: float = 0.7,
        min_kept: int = 100_000,
        weight: Sequence[float] | None = None,
        ignore_index: int | None = None,
    ) -> None:
        super().__init__()
        if not 0 < threshold <= 1:
            raise ValueError(f"threshold={threshold} is no probability; give one above 0, up to 1")
        self.weight: Tensor | None
        self.threshold, self.min_kept, self.ignore_index = threshold, min_kept, ignore_index
        self.register_buffer("weight", _class_weights(weight), persistent=False)

    def forward(self, logits: Tensor, target: Tensor, align_corners: bool = False) -> Tensor:
        logits, target = _at_full_size(logits, target, align_corners)
        weight = _for_logits(self.weight, logits)
        ignored = _ignored(self.ignore_index, logits)
        valid = target != ignored
        classes = target.where(valid, 0)
        probability = logits.detach().softmax(1).gather(1, classes[:, None])[:, 0]
        probability = probability.where(valid, 2.0)  # above any threshold
        threshold = probability.new_full((), self.threshold)
        if kept := min(self.min_kept, probability.numel()):
            threshold = probability.flatten().kthvalue(kept).values.clamp_min(self.threshold)
        hard = valid & ~(probability > threshold)  # NaN is hard, so that the loss is NaN
        hard_target = target.where(hard, ignored)
        loss = F.cross_entropy(logits, hard_target, weight, ignore_index=ignored, reduction="sum")
        weights = hard if weight is None else weight[classes] * hard
        return loss / weights.sum().clamp_min(1e-9)


class Dice(nn.Module):
    """One minus the mean Dice coefficient of labels and probabilities (V-Net, arXiv 1606.04797).

    Coefficients are over the whole batch, and their mean is over the classes that occur in the
    batch's labels. Probability given to other classes still raises the loss, since the classes that
    occur lack it.

    Args:
        smooth: Added to numerator and denominator.
        ignore_index: Ignored value of the target; by default 255, or 65535 for more than 255
            classes.
    """

    def __init__(self, smooth: float = 1.0, ignore_index: int | None = None) -> None:
        super().__init__()
        self.smooth, self.ignore_index = smooth, ignore_index

    def forward(self, logits: Tensor, target: Tensor, align_corners: bool = False) -> Tensor:
        logits, target = _at_full_size(logits, target, align_corners)
        valid = target != _ignored(self.ignore_index, logits)
        probability = logits.softmax(1) * valid[:, None]
        truth = _truth(target, valid, logits)
        intersection = (probability * truth).sum((0, 2, 3))
        total = (probability + truth).sum((0, 2, 3))
        present = truth.any(dim=3).any(dim=2).any(dim=0)
        cost = 1 - (2 * intersection + self.smooth) / (total + self.smooth)
        return (cost * present).sum() / present.sum().clamp_min(1)


class Focal(nn.Module):
    """Focal loss (arXiv 1708.02002): (1 - p)^gamma · -log p, with p the probability of the class.

    Args:
        gamma: Exponent; with 0 the loss is cross-entropy.
        weight: Weight of each class; by default all 1.
        ignore_index: Ignored value of the target; by default 255, or 65535 for more than 255
            classes.
    """

    def __init__(
        self,
        gamma: float = 2.0,
        weight: Sequence[float] | None = None,
        ignore_index: int | None = None,
    ) -> None:
        super().__init__()
        self.weight: Tensor | None
        self.gamma, self.ignore_index = gamma, ignore_index
        self.register_buffer("weight", _class_weights(weight), persistent=False)

    def forward(self, logits: Tensor, target: Tensor, align_corners: bool = False) -> Tensor:
        logits, target = _at_full_size(logits, target, align_corners)
        weight = _for_logits(self.weight, logits)
        log_p = logits.log_softmax(1)
        valid = target != _ignored(self.ignore_index, logits)
        classes = target.where(valid, 0)
        log_p = log_p.gather(1, classes[:, None])[:, 0]
        weights = valid if weight is None else weight[classes] * valid
        # Clamped, as the gradient of a power below 1 is infinite at 0
        others = (-torch.expm1(log_p)).clamp_min(torch.finfo(log_p.dtype).tiny)
        losses = -(others**self.gamma) * log_p
        return (losses * weights).sum() / weights.sum().clamp_min(1e-12)


class Lovasz(nn.Module):
    """Lovász-softmax, a convex surrogate of one minus the mean IoU (arXiv 1705.08790, section 3).

    The mean is over the classes that occur in the labels. The loss sorts the pixels of each class,
    which takes longer than the other losses; ``stride`` shortens it. It is most used in a
    :class:`Sum` with cross-entropy.

    Args:
        per_image: Whether the loss is the mean of the images' losses; by default the IoU is that of
            the whole batch.
        stride: Only each ``stride``-th pixel in both directions counts.
        ignore_index: Ignored value of the target; by default 255, or 65535 for more than 255
            classes.

    Raises:
        ValueError: If ``stride`` is below 1.
    """

    def __init__(
        self, per_image: bool = False, stride: int = 1, ignore_index: int | None = None
    ) -> None:
        super().__init__()
        if stride < 1:
            raise ValueError(f"stride={stride}; give 1 for all pixels, or more")
        self.per_image, self.stride, self.ignore_index = per_image, stride, ignore_index

    def forward(self, logits: Tensor, target: Tensor, align_corners: bool = False) -> Tensor:
        logits, target = _at_full_size(logits, target, align_corners)
        rows, columns = (
            slice(min(self.stride, side) // 2, None, self.stride) for side in target.shape[-2:]
        )
        probability, target = logits[..., rows, columns].softmax(1), target[..., rows, columns]
        valid = target != _ignored(self.ignore_index, logits)
        truth = _truth(target, valid, probability)
        error = (truth.to(probability) - probability).abs()  # equation 8
        error = error.where(valid[:, None], -1)  # sorted after all others
        error, truth = (
            x.flatten(2) if self.per_image else x.transpose(0, 1).flatten(1)[None]
            for x in (error, truth)
        )  # (B or 1, K, pixels)
        error, order = error.sort(descending=True)
        truth = truth.gather(-1, order)
        losses = (error.clamp_min(0) * _lovasz_gradient(truth, error.dtype)).sum(-1)
        present = truth.any(-1)
        return ((losses * present).sum(-1) / present.sum(-1).clamp_min(1)).mean()


def _lovasz_gradient(truth: Tensor, dtype: torch.dtype) -> Tensor:
    """Returns by how much each pixel, if wrong, raises a class's Jaccard loss (algorithm 1).

    The pixels before it are wrong, too. The differences are computed in closed form: between losses
    of many pixels they would be lost in rounding.

    Args:
        truth: Whether each pixel (..., N) belongs to the class, the greatest error first.
        dtype: Type of the result.
    """
    found = truth.cumsum(-1)
    total = found[..., -1:]
    left = (total - found).to(dtype)  # the intersection
    union = (total + (~truth).cumsum(-1)).to(dtype)
    return torch.where(truth, 1 / union, left / union / (union - 1).clamp_min(1))


class Sum(nn.Module):
    """A weighted sum of losses, such as cross-entropy and Dice.

    Args:
        losses: Modules that are called with logits, target and align_corners.
        weights: Weight of each loss; by default all 1.

    Raises:
        ValueError: If the numbers of weights and losses differ.
    """

    def __init__(self, losses: Sequence[nn.Module], weights: Sequence[float] | None = None) -> None:
        super().__init__()
        self.losses = nn.ModuleList(losses)
        self.weights = list(weights) if weights is not None else [1.0] * len(losses)
        if len(self.weights) != len(losses):
            raise ValueError(
                f"{len(self.weights)} weights for {len(losses)} losses; give one for each loss, or "
                "leave them out"
            )

    def forward(self, logits: Tensor, target: Tensor, align_corners: bool = False) -> Tensor:
        values = [
            weight * loss(logits, target, align_corners)
            for weight, loss in zip(self.weights, self.losses, strict=True)
        ]
        return torch.stack(values).sum()
