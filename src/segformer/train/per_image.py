"""Scores of each image of a measurement, and the comparison of two networks."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from lightning import Trainer
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.utilities import rank_zero_only
from PIL import Image
from torch import Tensor

from segformer.data.classes import Classes
from segformer.data.complete import complete
from segformer.data.datasets import files_of
from segformer.evaluation import device_of
from segformer.evaluation.batches import normalized
from segformer.evaluation.boundaries import boundary_pixels
from segformer.evaluation.metrics import confusion_of, counts_of
from segformer.evaluation.per_image import (
    Comparison,
    ImageScores,
    cell,
    lost_most,
    paired_bootstrap,
    table,
)
from segformer.inference.pictures import colored, contact_sheet, fitted, shown
from segformer.train.task import SegmentationTask

SHOWN = 12  # images in the picture of those that got worse
COLUMNS = 4  # image, label, A and B
CELL = (320, 240)  # width and height in pixels of one of them


class PerImage(Callback):
    """Counts the pixels of each image of a measurement, whose batches have one image each.

    Args:
        dataset: The images that are measured, in their order.
        classes: Number of classes K, at least two.

    Attributes:
        images: The scores of each image, in the order of the data set, after a measurement.
    """

    def __init__(self, dataset: Any, classes: int) -> None:
        self.dataset, self.classes = dataset, classes
        self.images: list[ImageScores] = []
        self._own: dict[int, ImageScores] = {}  # those of this process, by index

    def on_validation_start(self, trainer: Trainer, pl_module: Any) -> None:
        self._own = {}

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: Any,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        index = trainer.global_rank + batch_idx * trainer.world_size
        ((target,),), ((predicted,),) = outputs["targets"], outputs["labels"]
        self._own[index] = ImageScores(
            _name(self.dataset, index),
            counts_of(confusion_of(predicted, target, self.classes)),
            boundary_pixels(predicted, target, self.classes),
        )

    def on_validation_end(self, trainer: Trainer, pl_module: Any) -> None:
        """Collects the scores of all processes."""
        of_processes: list[Any] = [self._own]
        if trainer.world_size > 1:
            of_processes = [None] * trainer.world_size
            torch.distributed.all_gather_object(of_processes, self._own)
        found = {index: image for own in of_processes for index, image in own.items()}
        self.images = [found[index] for index in sorted(found)]

    on_test_start = on_validation_start
    on_test_batch_end = on_validation_batch_end
    on_test_end = on_validation_end


def _name(dataset: Any, index: int) -> str:
    files = files_of(dataset, index)
    return files[0] if files else f"sample {index}"


@rank_zero_only
def write_images(images: Sequence[ImageScores], classes: Classes, path: Path) -> None:
    """Writes a table with a row for each image, and says so."""
    _write_csv(table(images, classes), path)


@dataclass(frozen=True)
class Compared:
    """Two networks, A and B, that were measured on the same images.

    Args:
        task: Labels images.
        dataset: The images, with ``classes``.
        networks: A and B.
        sources: What the user named them.
        images: Scores of each image, by A and by B.
    """

    task: SegmentationTask
    dataset: Any
    networks: tuple[Any, Any]
    sources: tuple[str, str]
    images: tuple[Sequence[ImageScores], Sequence[ImageScores]]

    @rank_zero_only
    def write(self, folder: Path) -> None:
        """Writes tables and a picture of the images that A labels worse; prints the differences.

        Raises:
            ValueError: If there are fewer than two images.
        """
        classes, (first, second) = self.dataset.classes, self.images
        write_images(second, classes, folder / "per_image_compared.csv")
        of_first, of_second = (torch.stack([i.counts for i in own]) for own in self.images)
        comparison = paired_bootstrap(of_first, of_second)
        names = classes.of_labels().names
        _write_csv(_cells(comparison, names), folder / "comparison.csv")
        lost, gained = lost_most(first, second), lost_most(second, first)
        if lost:
            with complete(folder / "worse.png") as partial:
                self.picture(lost[:SHOWN]).save(partial, "PNG")
            print(f"wrote {folder / 'worse.png'}")
        print(f"\nA  {self.sources[0]}\nB  {self.sources[1]}\n{text(comparison, names)}")
        print(f"{len(first)} images; A is worse than B on {len(lost)}, better on {len(gained)}")

    def picture(self, indices: Sequence[int]) -> Image.Image:
        """Returns image, label and both predictions of some images, a row each."""
        pictures, found = [], set()
        for index in indices:
            image, label = self.dataset[index]
            maps = {"label": label.as_subclass(Tensor)}
            for letter, network, images in zip("AB", self.networks, self.images, strict=True):
                title = f"{letter}: {100 * images[index].miou:.1f} % mIoU"
                maps[title] = self._labels(network, image)
            pictures.append((self.images[0][index].name, shown(image)))
            for title, labels in maps.items():
                pictures.append((title, colored(labels.numpy(), self.dataset.classes)))
                found.update(labels.unique().tolist())
        cells = [(name, fitted(picture, CELL)) for name, picture in pictures]
        occurring = sorted(found - {self.dataset.classes.ignore_index})
        return contact_sheet(cells, self.dataset.classes, occurring, COLUMNS, CELL)

    def _labels(self, network: Any, image: Tensor) -> Tensor:
        self.task.network = network
        return self.task.labels(normalized(network, image, device_of(network)))[0].cpu()


def _cells(comparison: Comparison, names: Sequence[str]) -> Iterable[list[str]]:
    """Yields the cells of ``comparison.csv``; the scores are from 0 to 1."""
    yield ["score", "A", "B", "A - B", "low", "high"]
    for name, d in comparison.rows(names):
        values = (d.first, d.second, d.difference, d.low, d.high)
        yield [name, *map(cell, values)]


def text(comparison: Comparison, names: Sequence[str]) -> str:
    """Returns the differences of two networks as a table, in per cent."""
    width = max(14, *map(len, names))
    lines = [f"{'class':{width}}     A %     B %   A - B   95 % interval", "-" * (width + 40)]
    for name, d in comparison.rows(names):
        first, second, difference = (100 * value for value in (d.first, d.second, d.difference))
        lines.append(
            f"{name:{width}}  {first:6.2f}  {second:6.2f}  {difference:+6.2f}   "
            f"{100 * d.low:+.2f} to {100 * d.high:+.2f}"
        )
    return "\n".join(lines)


def _write_csv(rows: Iterable[list[str]], path: Path) -> None:
    with complete(path) as partial, partial.open(mode="w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows(rows)
    print(f"wrote {path}")
