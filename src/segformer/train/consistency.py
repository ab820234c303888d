"""Training with images without labels: strong and weak views are to be labelled alike."""

from __future__ import annotations

import torch
from torch import Tensor

from segformer.data.classes import ignore_index
from segformer.data.unlabelled import Views
from segformer.models import SegmentationModel
from segformer.ops import upsample, upsample_cross_entropy, with_background
from segformer.train.averaging import Average
from segformer.train.teacher import WithTeacher, maps_and_logits


class Consistency(WithTeacher):
    """Weak-to-strong consistency: FixMatch (arXiv 2001.07685) for pixels.

    As UniMatch defines it (arXiv 2208.09910, section 3.1): the labels that a teacher gives the weak
    view, where it is confident, are the targets of the strong view. In boxes, an image and its
    labels are covered with another image and its labels (CutMix; French et al., arXiv 1906.01916).
    The loss is the cross-entropy of the confident pixels, divided by the number of all valid ones.

    Three things differ from UniMatch. The teacher is the exponential moving average of the
    student (arXiv 1703.01780), in evaluation mode; there it is the student itself. The share of a
    box comes from Beta(1, 1), as in CutMix; there it comes from a range of areas and aspect ratios.
    Labelled images and strong views are two batches, each with its own statistics in BatchNorm.

    It is part of the training task. Checkpoints of the run contain the teacher, for resuming.

    Args:
        network: The network that is trained.
        threshold: Probability from which on the teacher's class is a target.
        weight: Weight of the loss beside that of the labelled images.
        decay: Share of the average that an update keeps; see
            :class:`~segformer.train.averaging.EMA`. With 0 the teacher is the student.

    Raises:
        ValueError: If ``threshold`` or ``decay`` is not from 0 to below 1.
    """

    def __init__(
        self,
        network: SegmentationModel,
        threshold: float = 0.95,
        weight: float = 1.0,
        decay: float = 0.996,
    ) -> None:
        for name, value in (("threshold", threshold), ("decay", decay)):
            if not 0 <= value < 1:
                raise ValueError(f"{name}={value}; give a number from 0 to below 1")
        super().__init__(Average(network, decay))
        self.threshold, self.weight = threshold, weight

    def update(self, network: SegmentationModel, step: int) -> None:
        """Moves the teacher towards the student, once a step, if this has several batches.

        It belongs before the first forward pass of a step: there BatchNorm's statistics are the
        same in all processes, and those of a checkpoint.

        Args:
            network: The student.
            step: Number of the run's optimizer steps so far.
        """
        if self.teacher.n_averaged <= step:
            self.teacher.update_parameters(network)

    def forward(self, network: SegmentationModel, views: Views) -> tuple[Tensor, Tensor]:
        """Returns the loss of the strong views, and the share of their pixels with a target.

        Args:
            network: The student.
            views: Views of a batch; pairs of neighbours are mixed.
        """
        labels, confidence = self._predict(views.weak)
        strong = _mixed(views.strong, views.box[:, None])
        logits = with_background(network.decode_head(network.backbone(strong)))
        ignored = ignore_index(logits.shape[1])
        valid = _mixed(views.valid, views.box)
        certain = labels.where(confidence >= self.threshold, ignored)
        target = _mixed(certain, views.box).where(valid, ignored)
        loss = upsample_cross_entropy(
            logits,
            target,
            ignore_index=ignored,
            align_corners=network.align_corners,
            over_all_pixels=True,
        )
        count = valid.sum().clamp_min(1)
        return loss * valid.numel() / count, (target != ignored).sum() / count

    @torch.no_grad()
    def _predict(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Returns the teacher's labels (B, H, W) and their probabilities (B, H, W)."""
        model = self.teacher.module
        _, logits = maps_and_logits(model, images)
        probabilities = upsample(logits, images.shape[-2:], model.align_corners).softmax(1)
        confidence, labels = probabilities.max(1)
        return labels, confidence


def _mixed(x: Tensor, box: Tensor) -> Tensor:
    """Returns (B, …) where, inside the boxes, pairs of neighbours have each other's values."""
    neighbours = x.unflatten(0, (-1, 2)).flip(1).flatten(0, 1) if len(x) % 2 == 0 else x
    return neighbours.where(box, x)
