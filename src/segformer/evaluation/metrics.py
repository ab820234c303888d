"""What is measured of a segmentation, from its confusion matrix."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from segformer.data.classes import Classes


@dataclass(frozen=True)
class Scores:
    """Shares from 0 to 1. A class that is neither in the labels nor predicted has IoU NaN and counts in no mean.

    Args:
        miou: mean of the classes' intersections over unions.
        pixel_accuracy: share of the labelled pixels that are right (aAcc).
        iou: each class's intersection over union.
        mean_accuracy: mean of the classes' accuracies (mAcc).
        accuracy: share of each class's labelled pixels that are right.
        confusion: pixels (K, K), rows the labels and columns the predictions.
    """

    miou: float
    pixel_accuracy: float
    iou: tuple[float, ...]
    mean_accuracy: float
    accuracy: tuple[float, ...]
    confusion: Tensor = field(repr=False, compare=False)

    @classmethod
    def of(cls, confusion: Tensor) -> Scores:
        """Scores of a (K, K) matrix of pixel counts, rows the labels and columns the predictions."""
        confusion = confusion.double()
        right = confusion.diagonal()
        iou = right / (confusion.sum(0) + confusion.sum(1) - right)
        accuracy = right / confusion.sum(1)
        means = (
            float(iou.nanmean()),
            float(right.sum() / confusion.sum()),
            float(accuracy.nanmean()),
        )
        return cls(
            means[0], means[1], tuple(iou.tolist()), means[2], tuple(accuracy.tolist()), confusion
        )

    def table(self, classes: Classes) -> str:
        """Per-class IoU and accuracy, their means, and the pixel accuracy, in per cent."""
        names = self.names(classes)
        width = max(14, *map(len, names))
        columns = zip(names, self.iou, self.accuracy, strict=True)
        rows = [
            f"{name:{width}}  {100 * iou:6.2f}  {100 * accuracy:6.2f}"
            for name, iou, accuracy in columns
        ]
        line = "-" * (width + 16)
        means = [
            f"{'mIoU, mAcc':{width}}  {100 * self.miou:6.2f}  {100 * self.mean_accuracy:6.2f}",
            f"{'pixel accuracy':{width}}          {100 * self.pixel_accuracy:6.2f}",
        ]
        return "\n".join([f"{'class':{width}}   IoU %   Acc %", line, *rows, line, *means])

    def to_dict(self, classes: Classes) -> dict[str, Any]:
        """The scores by name, as strict JSON has them: ``None`` in place of NaN."""
        means = {
            "miou": self.miou,
            "mean_accuracy": self.mean_accuracy,
            "pixel_accuracy": self.pixel_accuracy,
        }
        per_class = {"iou": self.iou, "accuracy": self.accuracy}
        names = self.names(classes)
        return {
            **_without_nan(means),
            **{
                key: _without_nan(dict(zip(names, values, strict=True)))
                for key, values in per_class.items()
            },
        }

    def names(self, classes: Classes) -> tuple[str, ...]:
        """The classes' names; one logit tells a single class from a second one, which is everything else."""
        if (len(classes), len(self.iou)) == (1, 2):
            return (*classes.names, f"not {classes.names[0]}")
        return tuple(classes.names)


def _without_nan(values: dict[str, float]) -> dict[str, float | None]:
    return {name: None if math.isnan(value) else value for name, value in values.items()}
