import math

import pytest
import torch
from torchmetrics.classification import MulticlassAccuracy, MulticlassConfusionMatrix, MulticlassJaccardIndex

from segformer import Classes
from segformer.metrics import Scores


def test_scores_equal_torchmetrics() -> None:
    predicted, target = torch.randint(0, 5, (3, 20, 20)), torch.randint(0, 5, (3, 20, 20))
    target[torch.rand(3, 20, 20) < 0.3] = 255
    scores = Scores.of(MulticlassConfusionMatrix(5, ignore_index=255)(predicted, target))
    iou = MulticlassJaccardIndex(5, average=None, ignore_index=255)(predicted, target)
    assert scores.iou == pytest.approx(iou.tolist(), abs=1e-6)
    assert scores.miou == pytest.approx(float(MulticlassJaccardIndex(5, ignore_index=255)(predicted, target)), abs=1e-6)
    assert scores.pixel_accuracy == pytest.approx(
        float(MulticlassAccuracy(5, average="micro", ignore_index=255)(predicted, target)), abs=1e-6
    )


def test_an_absent_class_counts_in_no_mean() -> None:
    """Class 2 neither occurs nor is predicted; class 1 occurs and is never found."""
    scores = Scores.of(torch.tensor([[6, 0, 0], [2, 0, 0], [0, 0, 0]]))
    assert scores.iou[:2] == (0.75, 0.0)
    assert math.isnan(scores.iou[2])
    assert scores.miou == 0.375
    assert scores.pixel_accuracy == 0.75
    assert scores.to_dict(Classes(["a", "b", "c"]))["iou"] == {"a": 0.75, "b": 0.0, "c": None}
