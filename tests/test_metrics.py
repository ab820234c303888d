import json
import math
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torchmetrics.classification import (
    MulticlassAccuracy,
    MulticlassConfusionMatrix,
    MulticlassJaccardIndex,
)

from segformer import Classes
from segformer.evaluation.boundaries import boundary_pixels
from segformer.evaluation.metrics import Scores, confusion_of
from segformer.train.report import Report


def test_scores_equal_torchmetrics() -> None:
    predicted, target = torch.randint(0, 5, (3, 20, 20)), torch.randint(0, 5, (3, 20, 20))
    target[torch.rand(3, 20, 20) < 0.3] = 255
    scores = Scores.of(MulticlassConfusionMatrix(5, ignore_index=255)(predicted, target))
    iou = MulticlassJaccardIndex(5, average=None, ignore_index=255)(predicted, target)
    assert scores.iou == pytest.approx(iou.tolist(), abs=1e-6)
    assert scores.miou == pytest.approx(
        float(MulticlassJaccardIndex(5, ignore_index=255)(predicted, target)), abs=1e-6
    )
    assert scores.pixel_accuracy == pytest.approx(
        float(MulticlassAccuracy(5, average="micro", ignore_index=255)(predicted, target)), abs=1e-6
    )


class OnMPS:
    """A stand-in for a confusion matrix on a device without float64."""

    def __init__(self, values: Tensor) -> None:
        self.values = values

    def cpu(self) -> Tensor:
        return self.values

    def double(self) -> Tensor:
        raise TypeError("the MPS framework doesn't support float64")


def test_scores_of_a_device_without_float64() -> None:
    scores = Scores.of(OnMPS(torch.tensor([[6, 2], [0, 4]])))
    assert scores.iou == pytest.approx((6 / 8, 4 / 6))
    assert scores.pixel_accuracy == pytest.approx(10 / 12)


def test_an_absent_class_is_left_out_of_the_means() -> None:
    """Class 2 neither occurs nor is predicted; class 1 occurs but is never predicted."""
    scores = Scores.of(torch.tensor([[6, 0, 0], [2, 0, 0], [0, 0, 0]]))
    assert scores.iou[:2] == (0.75, 0.0)
    assert math.isnan(scores.iou[2])
    assert scores.miou == 0.375
    assert scores.pixel_accuracy == 0.75
    assert scores.to_dict(Classes(["a", "b", "c"]))["iou"] == {"a": 0.75, "b": 0.0, "c": None}


@pytest.mark.parametrize(
    ("confusion", "names"),
    [
        ([[0, 0], [0, 0]], ["a", "b"]),  # no labelled pixel
        ([[5, 2], [0, 0]], ["a"]),  # one logit: all other pixels have no class name
        ([[0, 4, 0], [0, 0, 0], [0, 0, 0]], ["a", "b", "c"]),
    ],
)
def test_scores_are_written_as_strict_json(
    confusion: list[list[int]], names: list[str], tmp_path: Path
) -> None:
    scores = Scores.of(torch.tensor(confusion))
    Report().write_scores({"val": scores}, Classes(names), tmp_path)

    def refuse(constant: str) -> None:
        raise AssertionError(constant)

    written = json.loads((tmp_path / "results.json").read_text(), parse_constant=refuse)["val"]
    assert (written["miou"] is None) == math.isnan(scores.miou)
    assert list(written["iou"].values()) == [
        None if math.isnan(value) else value for value in scores.iou
    ]
    assert (tmp_path / "confusion.png").is_file()


def test_a_prediction_that_is_no_class_is_refused() -> None:
    predicted, label = torch.full((4, 4), 2), torch.zeros(4, 4, dtype=torch.uint8)
    for count in (confusion_of, boundary_pixels):
        with pytest.raises(ValueError, match=r"predicts class 2, and the data have 2 classes"):
            count(predicted, label, 2)
