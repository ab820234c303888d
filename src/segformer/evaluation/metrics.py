"""The metrics of a segmentation, from its confusion matrix."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from segformer.data.classes import Classes, ignore_index


def confusion_matrix(num_labels: int) -> Any:
    """Returns torchmetrics' confusion matrix of labels, whose values it does not check again.

    Labels are checked where they are read, and predictions are classes. The check would take most
    of its time, and wait for a GPU.
    """
    from torchmetrics.classification import MulticlassConfusionMatrix

    ignored = ignore_index(num_labels)
    return MulticlassConfusionMatrix(num_labels, ignore_index=ignored, validate_args=False)


def confusion_of(predicted: Tensor, label: Tensor, classes: int) -> Tensor:
    """Returns the number of pixels (K, K): rows are labels, columns are predictions.

    Args:
        predicted: Predicted classes (H, W).
        label: Class indices (H, W); values from K on are ignored.
        classes: Number of classes K.

    Raises:
        ValueError: If a prediction is none of the classes.
    """
    check_predictions(predicted, classes)
    label = label.long().to(predicted.device)
    is_labelled = label < classes
    pairs = label[is_labelled] * classes + predicted[is_labelled]
    return pairs.bincount(minlength=classes**2).view(classes, classes).cpu()


def check_predictions(predicted: Tensor, classes: int) -> None:
    """Raises ValueError if a prediction is none of the classes, which are counted from 0."""
    if predicted.numel() and (greatest := int(predicted.max())) >= classes:
        raise ValueError(
            f"the model predicts class {greatest}, and the data have {classes} classes from 0; "
            "give a model for the classes of these data"
        )


def counts_of(confusion: Tensor) -> Tensor:
    """Returns each class's correct, labelled and predicted pixels (3, K).

    IoU and accuracy follow from them. Those of many images take less memory than their matrices.

    Args:
        confusion: Number of pixels (K, K): rows are labels, columns are predictions.
    """
    return torch.stack([confusion.diagonal(), confusion.sum(1), confusion.sum(0)])


@dataclass(frozen=True)
class Scores:
    """Scores from 0 to 1.

    A class that is neither in the labels nor in the predictions has an IoU of NaN, and is left out
    of the means.

    Args:
        miou: Mean of the classes' intersections over unions.
        pixel_accuracy: Share of correct pixels in all labelled pixels (aAcc).
        iou: Intersection over union of each class.
        mean_accuracy: Mean of the classes' accuracies (mAcc).
        accuracy: Share of correct pixels in each class's labelled pixels.
        confusion: Number of pixels (K, K): rows are labels, columns are predictions.
    """

    miou: float
    pixel_accuracy: float
    iou: tuple[float, ...]
    mean_accuracy: float
    accuracy: tuple[float, ...]
    confusion: Tensor = field(repr=False, compare=False)

    @classmethod
    def of(cls, confusion: Tensor) -> Scores:
        """Returns the scores of a confusion matrix (K, K): rows are labels, columns predictions."""
        confusion = confusion.cpu().double()  # MPS has no float64
        correct = confusion.diagonal()
        iou = correct / (confusion.sum(0) + confusion.sum(1) - correct)
        accuracy = correct / confusion.sum(1)
        return cls(
            miou=float(iou.nanmean()),
            pixel_accuracy=float(correct.sum() / confusion.sum()),
            iou=tuple(iou.tolist()),
            mean_accuracy=float(accuracy.nanmean()),
            accuracy=tuple(accuracy.tolist()),
            confusion=confusion,
        )

    def table(self, classes: Classes) -> str:
        """Returns a table of the IoU and accuracy of each class, and their means, in per cent."""
        names = classes.of_labels().names
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
        """Returns the scores by name, for strict JSON with ``None`` in place of NaN."""
        means = {
            "miou": self.miou,
            "mean_accuracy": self.mean_accuracy,
            "pixel_accuracy": self.pixel_accuracy,
        }
        per_class = {"iou": self.iou, "accuracy": self.accuracy}
        names = classes.of_labels().names
        return {
            **_without_nan(means),
            **{
                key: _without_nan(dict(zip(names, values, strict=True)))
                for key, values in per_class.items()
            },
        }


def _without_nan(values: dict[str, float]) -> dict[str, float | None]:
    return {name: None if math.isnan(value) else value for name, value in values.items()}
