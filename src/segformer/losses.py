"""Losses on logits (B, K, h, w) of any size and full-size targets (B, H, W).

The targets' ignored value, 255 (65535 for more than 255 classes), counts nowhere.

One logit (K = 1) is the second class's, over a first class whose logit is 0: the softmax of the pair is its sigmoid.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from segformer.data.classes import ignore_index
from segformer.ops import upsample, upsample_cross_entropy, with_background


def _at_full_size(logits: Tensor, target: Tensor, align_corners: bool) -> tuple[Tensor, Tensor]:
    """Logits of the target's size, in float32 at least, and the target as indices."""
    logits = with_background(logits).to(torch.promote_types(logits.dtype, torch.float32))
    return upsample(logits, target.shape[-2:], align_corners), target.long()


def _ignored(given: int | None, logits: Tensor) -> int:
    """The target's ignored value: the given one, or that of as many classes."""
    return ignore_index(logits.shape[1]) if given is None else given


class CrossEntropy(nn.Module):
    """Cross-entropy at the target's resolution, without ever making the logits of that size.

    Args:
        weight: one weight a class, for rare classes; by default all 1.
        ignore_index: the target's value that counts nowhere; by default 255, and 65535 for more
            than 255 classes.
        label_smoothing: share of the target that is spread over all classes.
        over_all_pixels: a mean over all pixels, ignored ones too, as in the official training; by default over the valid ones.
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
        self.register_buffer(
            "weight",
            None if weight is None else torch.tensor(weight, dtype=torch.float32),
            persistent=False,
        )

    def forward(self, logits: Tensor, target: Tensor, align_corners: bool = False) -> Tensor:
        target, ignored = target.long(), _ignored(self.ignore_index, logits)
        if not (target != ignored).any():  # a mean over no pixel: nothing is to be learned
            return 0.0 * logits.sum()
        return upsample_cross_entropy(
            with_background(logits),
            target,
            self.weight,
            ignored,
            align_corners,
            label_smoothing=self.label_smoothing,
            over_all_pixels=self.over_all_pixels,
        )


class OHEM(nn.Module):
    """Cross-entropy over the hard pixels alone: those whose class has a probability below ``threshold``, and at least ``min_kept`` of them.

    Online hard example mining (Shrivastava et al., arXiv 1604.03540), as segmentation uses it.

    Args:
        threshold: pixels less probable than this are hard.
        min_kept: the least number of pixels of the batch that count, the hardest first.
        weight: one weight a class.
        ignore_index: the target's value that counts nowhere; by default 255, and 65535 for more
            than 255 classes.
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
            raise ValueError(f"threshold={threshold} is a probability, from 0 to 1")
        self.weight: Tensor | None
        self.threshold, self.min_kept, self.ignore_index = threshold, min_kept, ignore_index
        self.register_buffer(
            "weight",
            None if weight is None else torch.tensor(weight, dtype=torch.float32),
            persistent=False,
        )

    def forward(self, logits: Tensor, target: Tensor, align_corners: bool = False) -> Tensor:
        logits, target = _at_full_size(logits, target, align_corners)
        ignored = _ignored(self.ignore_index, logits)
        valid = target != ignored
        probability = (
            logits.detach()
            .softmax(1)
            .gather(1, target.where(valid, 0)[:, None])[:, 0]
            .where(valid, 2.0)
            .flatten()
        )
        kept = min(self.min_kept, int(valid.sum()))
        bar = (
            probability.kthvalue(kept).values.clamp_min(self.threshold)
            if kept
            else probability.new_tensor(self.threshold)
        )
        hard = probability.view_as(target) <= bar
        if not hard.any():
            return 0.0 * logits.sum()
        weight = None if self.weight is None else self.weight.to(logits.dtype)
        return F.cross_entropy(logits, target.where(hard, ignored), weight, ignore_index=ignored)


class Dice(nn.Module):
    """One minus the mean Dice coefficient of labels and probabilities (V-Net, arXiv 1606.04797), over the batch.

    The mean is over the classes that the batch's labels hold: a class without a labelled pixel has no coefficient to
    speak of, and what is wrongly given to it is missing from the others.

    Args:
        smooth: added to numerator and denominator.
        ignore_index: the target's value that counts nowhere; by default 255, and 65535 for more
            than 255 classes.
    """

    def __init__(self, smooth: float = 1.0, ignore_index: int | None = None) -> None:
        super().__init__()
        self.smooth, self.ignore_index = smooth, ignore_index

    def forward(self, logits: Tensor, target: Tensor, align_corners: bool = False) -> Tensor:
        logits, target = _at_full_size(logits, target, align_corners)
        valid = (target != _ignored(self.ignore_index, logits))[:, None]
        probability = logits.softmax(1) * valid
        truth = (
            torch.zeros_like(probability).scatter_(1, target.where(valid[:, 0], 0)[:, None], 1.0)
            * valid
        )
        both, either = ((probability * truth).sum((0, 2, 3)), (probability + truth).sum((0, 2, 3)))
        present = truth.any(dim=3).any(dim=2).any(dim=0)
        cost = 1 - (2 * both + self.smooth) / (either + self.smooth)
        return (cost * present).sum() / present.sum().clamp_min(1)


class Focal(nn.Module):
    """Cross-entropy in which a pixel counts the less, the more probable its class is already (arXiv 1708.02002): (1 - p)^gamma · -log p.

    Args:
        gamma: 0 is the cross-entropy.
        weight: one weight a class.
        ignore_index: the target's value that counts nowhere; by default 255, and 65535 for more
            than 255 classes.
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
        self.register_buffer(
            "weight",
            None if weight is None else torch.tensor(weight, dtype=torch.float32),
            persistent=False,
        )

    def forward(self, logits: Tensor, target: Tensor, align_corners: bool = False) -> Tensor:
        logits, target = _at_full_size(logits, target, align_corners)
        log_p = logits.log_softmax(1)
        valid = target != _ignored(self.ignore_index, logits)
        log_p = log_p.gather(1, target.where(valid, 0)[:, None])[:, 0]
        share = (
            valid
            if self.weight is None
            else self.weight.to(log_p.dtype)[target.where(valid, 0)] * valid
        )
        return -((1 - log_p.exp()) ** self.gamma * log_p * share).sum() / share.sum().clamp_min(
            1e-12
        )


class Sum(nn.Module):
    """A weighted sum of losses, such as cross-entropy and Dice.

    Args:
        losses: modules called with logits, target and align_corners.
        weights: one a loss; by default all 1.

    Raises:
        ValueError: when there are not as many weights as losses.
    """

    def __init__(self, losses: Sequence[nn.Module], weights: Sequence[float] | None = None) -> None:
        super().__init__()
        self.losses = nn.ModuleList(losses)
        self.weights = list(weights) if weights is not None else [1.0] * len(losses)
        if len(self.weights) != len(losses):
            raise ValueError(
                f"{len(self.weights)} weights for {len(losses)} losses; give one a loss, or none"
            )

    def forward(self, logits: Tensor, target: Tensor, align_corners: bool = False) -> Tensor:
        values = [
            weight * loss(logits, target, align_corners)
            for weight, loss in zip(self.weights, self.losses, strict=True)
        ]
        return torch.stack(values).sum()
