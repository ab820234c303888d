"""What is measured of a segmentation, from its confusion matrix."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from segformer.data.classes import Classes


@dataclass(frozen=True)
class Scores:
    """Shares from 0 to 1. A class that is neither in the labels nor predicted has IoU NaN and counts in no mean."""

    miou: float
    pixel_accuracy: float
    iou: tuple[float, ...]

    @classmethod
    def of(cls, confusion: Tensor) -> Scores:
        """Scores of a (K, K) matrix of pixel counts, rows the labels and columns the predictions."""
        confusion = confusion.double()
        right = confusion.diagonal()
        iou = right / (confusion.sum(0) + confusion.sum(1) - right)
        return cls(float(iou.nanmean()), float(right.sum() / confusion.sum()), tuple(iou.tolist()))

    def table(self, classes: Classes) -> str:
        """Per-class IoU, mIoU and pixel accuracy in per cent, one row each."""
        width = max(14, *map(len, classes.names))
        rows = [f"{name:{width}}  {100 * iou:6.2f}" for name, iou in zip(classes.names, self.iou, strict=True)]
        line = "-" * (width + 8)
        means = [f"{'mIoU':{width}}  {100 * self.miou:6.2f}", f"{'pixel accuracy':{width}}  {100 * self.pixel_accuracy:6.2f}"]
        return "\n".join([f"{'class':{width}}   IoU %", line, *rows, line, *means])

    def to_dict(self, classes: Classes) -> dict[str, Any]:
        """The scores by name, JSON-able: a class without IoU says ``None``."""
        iou = {name: None if value != value else value for name, value in zip(classes.names, self.iou, strict=True)}
        return {"miou": self.miou, "pixel_accuracy": self.pixel_accuracy, "iou": iou}
