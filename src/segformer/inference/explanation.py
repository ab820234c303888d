"""Where a model is wrong on labelled images: its worst images, and label maps that it doubts."""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from segformer.data.classes import Classes
from segformer.data.datasets import files_of
from segformer.data.labels import check_labels, file_type
from segformer.evaluation import Protocol, Scores, device_of
from segformer.evaluation.batches import in_evaluation, normalized
from segformer.evaluation.doubts import Region, doubt, regions, surprise
from segformer.evaluation.metrics import confusion_of
from segformer.evaluation.protocols import check_number_of_classes, gives_logits

LEAST_SCORE = 0.01  # of a region, as a share of the score of the label map's first one


@dataclass(frozen=True, eq=False)
class Examined:
    """One image of a split, as a model labels it.

    Args:
        dataset: The data set of the split.
        split: Name of the split.
        index: Index in the data set.
        confusion: Number of its pixels (K, K), sparse: rows are labels, columns are predictions.
        regions: Regions where the prediction and the label differ: those with evidence, and the
            largest of each pair of classes.
        compressed: The prediction, (H, W), compressed by zlib.
        size: Height and width.
    """

    dataset: Any = field(repr=False)
    split: str
    index: int
    confusion: Tensor = field(repr=False)
    regions: list[Region] = field(repr=False)
    compressed: bytes = field(repr=False)
    size: tuple[int, int]

    @property
    def files(self) -> tuple[str, str]:
        """Image file and label file; for data without files, the index of the sample."""
        return files_of(self.dataset, self.index) or (f"{self.split} sample {self.index}",) * 2

    @property
    def predicted(self) -> np.ndarray:
        """The predicted labels (H, W)."""
        kind = file_type(len(self.dataset.classes))
        return np.frombuffer(zlib.decompress(self.compressed), kind).reshape(self.size)

    def read(self) -> tuple[Tensor, np.ndarray]:
        """Reads the image (C, H, W) and its label map (H, W) again."""
        image, label = self.dataset[self.index]
        return image.as_subclass(Tensor), label.as_subclass(Tensor).numpy()

    @property
    def scores(self) -> Scores:
        """Scores of this image alone."""
        return Scores.of(self.confusion.to_dense())

    @property
    def pixels(self) -> int:
        """Number of labelled pixels."""
        return int(self.confusion.sum())


@dataclass(frozen=True)
class Doubt:
    """A region whose annotation may be wrong.

    Args:
        image: Its image.
        region: The region.
        score: How much it looks like a fault; see :func:`segformer.evaluation.doubts.doubt`.
    """

    image: Examined
    region: Region
    score: float


@dataclass(frozen=True)
class Pair:
    """A class in the label maps, and another one that is predicted in its place.

    Args:
        labelled: Class in the label maps.
        predicted: Class that the model predicts.
        pixels: Number of such pixels.
        share: Their share in all pixels of the first class.
    """

    labelled: int
    predicted: int
    pixels: int
    share: float


@dataclass(frozen=True)
class Explanation:
    """Where a model is wrong on a data set.

    Args:
        classes: Names and colours of the classes.
        images: All images, in the order of the data set.
        confusion: Number of their pixels (K, K): rows are labels, columns are predictions.
    """

    classes: Classes
    images: Sequence[Examined]
    confusion: Tensor

    @cached_property
    def scores(self) -> Scores:
        """Scores of all images together, those of :func:`segformer.evaluation.evaluate`."""
        return Scores.of(self.confusion)

    @cached_property
    def worst(self) -> list[Examined]:
        """The images with labelled pixels, that with the lowest mIoU first."""
        return sorted(
            (image for image in self.images if image.pixels), key=lambda image: image.scores.miou
        )

    @cached_property
    def doubts(self) -> list[list[Doubt]]:
        """The doubted regions of each label map that has any, most doubted first.

        A label map ranks as its first region does. Regions with less than a hundredth of the score
        of the first are left out.
        """
        surprises = surprise(self.confusion)
        of_images = []
        for image in self.images:
            found = [Doubt(image, r, doubt(r, surprises)) for r in image.regions]
            least = LEAST_SCORE * max((doubted.score for doubted in found), default=0)
            if least > 0:
                kept = (doubted for doubted in found if doubted.score >= least)
                of_images.append(sorted(kept, key=lambda doubted: -doubted.score))
        return sorted(of_images, key=lambda found: -found[0].score)

    @cached_property
    def pairs(self) -> list[Pair]:
        """The pairs of classes that are confused, that of the most pixels first."""
        totals = self.confusion.sum(1).tolist()
        wrong = self.confusion - self.confusion.diag().diag()
        found = [
            Pair(i, j, int(wrong[i, j]), int(wrong[i, j]) / totals[i])
            for i, j in wrong.nonzero().tolist()
        ]
        return sorted(found, key=lambda pair: -pair.pixels)

    def examples(self, pair: Pair, count: int) -> list[tuple[Examined, Region]]:
        """Returns the largest region of a pair of each image, the largest of all first."""
        kinds = pair.labelled, pair.predicted
        largest = []
        for image in self.images:
            same = [r for r in image.regions if (r.labelled, r.predicted) == kinds]
            if same:
                largest.append((image, max(same, key=lambda region: region.pixels)))
        return sorted(largest, key=lambda example: -example[1].pixels)[:count]

    def to_dict(self) -> dict[str, Any]:
        """Returns everything that was found, for JSON."""
        return {
            "scores": self.scores.to_dict(self.classes),
            "images": [_of_image(image) for image in self.worst],
            "without_labels": [image.files[0] for image in self.images if not image.pixels],
            "doubts": [self._of_doubts(found) for found in self.doubts],
            "confusion": {
                "classes": list(self.classes.names),
                "pixels": self.confusion.tolist(),
            },
            "pairs": [
                {
                    "labelled": self.classes.names[pair.labelled],
                    "predicted": self.classes.names[pair.predicted],
                    "pixels": pair.pixels,
                    "share": pair.share,
                }
                for pair in self.pairs
            ],
        }

    def _of_doubts(self, found: Sequence[Doubt]) -> dict[str, Any]:
        image, label = found[0].image.files
        return {
            "label": label,
            "image": image,
            "split": found[0].image.split,
            "score": found[0].score,
            "regions": [self._of_doubt(doubted) for doubted in found],
        }

    def _of_doubt(self, doubted: Doubt) -> dict[str, Any]:
        region = doubted.region
        return {
            "labelled": self.classes.names[region.labelled],
            "predicted": self.classes.names[region.predicted],
            "box": dict(zip(("left", "top", "width", "height"), region.box, strict=True)),
            "pixels": region.pixels,
            "confidence": region.confidence,
            "score": doubted.score,
        }


def _of_image(image: Examined) -> dict[str, Any]:
    (file, label), scores = image.files, image.scores
    return {
        "image": file,
        "label": label,
        "split": image.split,
        "miou": scores.miou,
        "pixel_accuracy": scores.pixel_accuracy,
        "labelled_pixels": image.pixels,
    }


def examine(
    model: Any, datasets: Mapping[str, Any], protocol: Protocol | None = None
) -> Explanation:
    """Labels every image of one or several splits once, with a progress bar.

    Args:
        model: A :class:`~segformer.SegmentationModel`, or an exported file as a model.
        datasets: Samples (image (C, H, W), label (H, W)) with ``classes``, by the name of their
            split.
        protocol: How images are labelled; by default whole, at their own size.

    Raises:
        ValueError: If the model gives labels only, or has other classes than the data.
    """
    protocol = protocol or Protocol()
    classes = _classes_of(model, datasets)
    confusion = torch.zeros(len(classes), len(classes), dtype=torch.int64)
    images = []
    samples = [(split, data, k) for split, data in datasets.items() for k in range(len(data))]
    with torch.no_grad(), in_evaluation(model):
        for split, data, index in tqdm(samples, "explain", unit="image"):
            image, label = data[index]
            check_labels(label, len(classes), f"label map {index} of {split}")
            batch = normalized(model, image, device_of(model))
            probabilities = protocol.probabilities(model, batch, label.shape)[0].float()
            predicted = probabilities.argmax(0)
            of_image = confusion_of(predicted, label, len(classes))
            confusion += of_image
            pixels = predicted.cpu().numpy().astype(file_type(len(data.classes)))
            found, kept = of_image.to_sparse(), _kept(regions(probabilities, label))
            compressed = zlib.compress(pixels.tobytes(), 1)
            images.append(Examined(data, split, index, found, kept, compressed, pixels.shape))
    return Explanation(classes, images, confusion)


def _kept(found: Sequence[Region]) -> list[Region]:
    """Returns the regions with evidence, and the largest of each pair of classes."""
    largest: dict[tuple[int, int], Region] = {}
    for region in sorted(found, key=lambda region: region.pixels):
        largest[region.labelled, region.predicted] = region
    return [r for r in found if r.evidence > 0 or largest[r.labelled, r.predicted] is r]


def _classes_of(model: Any, datasets: Mapping[str, Any]) -> Classes:
    """Returns the classes of the label maps; a single one is label 1, beside the background.

    Raises:
        ValueError: If the model gives labels only, or has other classes.
    """
    if not gives_logits(model):
        raise ValueError(
            "an explanation needs class probabilities, and this file gives labels only; export it "
            "with --output logits"
        )
    classes = next(iter(datasets.values())).classes
    check_number_of_classes(classes, model.num_classes)
    return classes.of_labels()
