"""What a prediction holds, and what can be written of it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from segformer.data.classes import Classes
from segformer.data.complete import refuse_to_replace
from segformer.data.families.opened import Grid, Window
from segformer.inference.labellers import check_probabilities
from segformer.inference.large import Also, LargeImage

ROWS = 64  # whose probabilities are compared at a time, to save memory
TIE = 2e-3  # difference of probabilities that rounding explains

Entry = dict[str, Any]


@dataclass(frozen=True)
class Counted:
    """Number of pixels of each class of an image, which need not be in memory.

    Args:
        name: Name of the image, with its subfolder, such as ``"a/1.jpg"``.
        size: Height and width in pixels.
        classes: Names and colours of the classes.
        counts: Number of pixels of each class (K,).
        mean_entropy: Mean entropy of the class probabilities in nats, from 0 to log K, of the
            pixels that have data; None if there are none, or no probabilities are computed.
        grid: Where the image lies on the earth, if its file says so.
        seconds: Time of reading and labelling.
        time: Of a frame, in seconds from the start of its video.
    """

    name: str
    size: tuple[int, int]
    classes: Classes
    counts: np.ndarray
    mean_entropy: float | None = None
    grid: Grid | None = None
    seconds: float = 0.0
    time: float | None = None

    @property
    def shares(self) -> np.ndarray:
        """Share of each class (K,) of the pixels that are not ignored."""
        return self.counts / max(1, self.counts.sum())


@dataclass(frozen=True)
class Prediction:
    """An image and what a model sees in it.

    Args:
        name: Name of the image, with its subfolder, such as ``"a/1.jpg"``.
        image: The image, turned upright, in RGB.
        labels: Class indices (H, W), uint8, or uint16 for more than 255 classes.
        classes: Names and colours of the classes.
        probabilities: Class probabilities (K, H, W), float16; None for a model that gives labels
            only. Their arg-max is the labels, except for a threshold other than 0.5.
        seconds: Time of reading and labelling.
        time: Of a frame, in seconds from the start of its video.
        source: File of the image, which :meth:`save` does not replace; None if there is none.
    """

    name: str
    image: Image.Image
    labels: np.ndarray
    classes: Classes
    probabilities: np.ndarray | None = None
    seconds: float = 0.0
    time: float | None = None
    source: Path | None = None

    def save(self, folder: Path | str, results: Iterable[Result]) -> list[Path]:
        """Writes results into a folder, which is made if it is missing; earlier ones are replaced.

        Args:
            folder: The folder.
            results: Such as ``[Labels(), Overlay(), Polygons()]``.

        Returns:
            The paths written.

        Raises:
            FileExistsError: If the image itself, or a folder with other files, would be replaced.
            ValueError: If a result needs probabilities and there are none.
        """
        paths = []
        for result in results:
            if result.needs_probabilities and self.probabilities is None:
                raise ValueError(
                    f"{result.name} needs probabilities, and the model of {self.name!r} gives "
                    "labels only"
                )
            path = result.path(Path(folder, self.name))
            if self.source is not None:
                refuse_to_replace(self.source, path)
            result.check_replaceable(path)
            path.parent.mkdir(parents=True, exist_ok=True)
            result.write(self, path)
            paths.append(path)
        return paths

    @cached_property
    def confidence(self) -> np.ndarray:
        """Largest probability of each pixel (H, W), float16."""
        assert self.probabilities is not None
        largest: np.ndarray = self.probabilities.max(0)
        return largest

    @cached_property
    def counted(self) -> Counted:
        """The number of pixels of each class, and the mean entropy."""
        num = len(self.classes)
        counts = np.bincount(self.labels.ravel(), minlength=num)[:num]
        height, width = self.labels.shape
        total = MeanEntropy(num)
        if self.probabilities is not None:
            for top in range(0, height, ROWS):
                rows = slice(top, top + ROWS)
                total.add_rows(self.labels[rows], self.probabilities[:, rows])
        size, time = (height, width), self.time
        return Counted(self.name, size, self.classes, counts, total.mean, None, self.seconds, time)


def entropy(probabilities: np.ndarray) -> np.ndarray:
    """Returns the entropy (h, w) of class probabilities (K, h, w), in nats."""
    values = probabilities.astype(np.float32)
    result: np.ndarray = -(values * np.log(np.maximum(values, np.finfo(np.float32).tiny))).sum(0)
    return result


def skip(window: Window, labels: np.ndarray, logits: Tensor) -> None:
    """Leaves out a part of an image, for results that are made of the whole label map."""


def largest(logits: Tensor) -> np.ndarray:
    """Returns the largest class probability (h, w) by logits (K, h, w)."""
    return torch.cat([rows.softmax(0).amax(0) for rows in logits.split(ROWS, 1)]).numpy()


class MeanEntropy:
    """The mean entropy, in nats, of the pixels of an image that have a class.

    Args:
        num_labels: Number of classes; greater labels are those of pixels without data.
    """

    def __init__(self, num_labels: int) -> None:
        self.num_labels, self.total, self.pixels = num_labels, 0.0, 0

    def add(self, window: Window, labels: np.ndarray, logits: Tensor) -> None:
        """Adds a part with its labels (h, w) and mean logits (K, h, w)."""
        for top in range(0, len(labels), ROWS):
            rows = slice(top, top + ROWS)
            self.add_rows(labels[rows], logits[:, rows].softmax(0).numpy())

    def add_rows(self, labels: np.ndarray, probabilities: np.ndarray) -> None:
        """Adds labels (h, w) and class probabilities (K, h, w)."""
        has_class = labels < self.num_labels
        self.total += float(entropy(probabilities)[has_class].sum())
        self.pixels += int(has_class.sum())

    @property
    def mean(self) -> float | None:
        """The mean; None if there are no such pixels."""
        return self.total / self.pixels if self.pixels else None


def halved(probabilities: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Returns probabilities (K, H, W) in float16, with the labels as their arg-max.

    Where rounding makes two classes equal, the labelled one is made greater by the smallest step.

    Args:
        probabilities: Class probabilities, float32.
        labels: Class indices (H, W); pixels with greater values are left as they are.
    """
    rounded = np.empty(probabilities.shape, np.float16)
    for top in range(0, labels.shape[0], ROWS):
        rows = slice(top, top + ROWS)
        part, wanted = probabilities[:, rows].astype(np.float16), labels[rows].astype(np.intp)
        wrong = (part.argmax(0) != wanted) & (wanted < len(part))
        y, x = np.nonzero(wrong)
        k = wanted[y, x]
        largest = part[:, y, x].max(0, initial=0)
        near = probabilities[k, y + top, x] + TIE > largest
        y, x, k, largest = y[near], x[near], k[near], largest[near]
        part[k, y, x] = np.nextafter(largest, np.float16(2))
        rounded[:, rows] = part
    return rounded


class Result(ABC):
    """A file, or a folder of files, for each image.

    Attributes:
        name: Name on the command line.
        ending: End of the path, after the image's name without its type.
        needs_probabilities: Whether a model that gives labels only is refused.
        for_large: Whether it can be written for images that are labelled in windows, from files.
        for_videos: Whether it can be written for videos.
    """

    name: ClassVar[str]
    ending: ClassVar[str]
    needs_probabilities: ClassVar[bool] = False
    for_large: ClassVar[bool] = False
    for_videos: ClassVar[bool] = False

    def check(self, model: Any) -> None:
        """Raises an error if this cannot be written for a model, or a package is missing."""
        if self.needs_probabilities:
            check_probabilities(model, f"{self.name} needs")

    def path(self, image: Path) -> Path:
        """Returns the path to write for an image, by the image's name in the output folder."""
        return image.with_name(f"{image.stem}{self.ending}")

    def check_replaceable(self, path: Path) -> None:  # noqa: B027 - a file is replaced
        """Raises FileExistsError if a folder would be replaced that holds files of others."""

    @abstractmethod
    def write(self, prediction: Prediction, path: Path) -> None:
        """Writes the file or folder whole, or not at all."""

    def path_of_large(self, labels: Path) -> Path:
        """Returns the path to write for an image that is labelled in windows.

        Args:
            labels: Path of its label map, a NumPy or TIFF file of the image's name.
        """
        return self.path(labels)

    def of_large(self, image: LargeImage, path: Path) -> AbstractContextManager[Also]:
        """A function that takes the parts of an image; the file is whole after the last.

        When the context ends, the label map is complete.
        """
        raise NotImplementedError


class Summary(ABC):
    """A file for a run, made of an entry for each image.

    Attributes:
        name: Name on the command line.
        file: Name of the file.
        uses_probabilities: Whether the entries hold more if there are probabilities.
        for_large: Whether it can be written for images that are labelled in windows, from files;
            entries are then made by :meth:`entry_of_large`.
        for_videos: Whether it can be written for a video, with an entry for each frame.
    """

    name: ClassVar[str]
    file: ClassVar[str]
    uses_probabilities: ClassVar[bool] = False
    for_large: ClassVar[bool] = False
    for_videos: ClassVar[bool] = False

    def check(self) -> None:  # noqa: B027 - most need no package
        """Raises ModuleNotFoundError if a package is missing."""

    def chosen(self, names: Sequence[str]) -> Sequence[str]:
        """Returns the images that have an entry, of all images of a run."""
        return names

    @abstractmethod
    def entry(self, prediction: Prediction) -> Entry:
        """Returns the entry of an image, which JSON can hold, with its name as ``"file"``."""

    def entry_of_large(self, image: LargeImage, counted: Counted) -> Entry:
        """Returns the entry of an image that was labelled in windows, from its file."""
        raise NotImplementedError

    def failure(self, name: str, error: str, seconds: float) -> Entry | None:
        """Returns the entry of an image that could not be labelled, if there is one."""
        return None

    @abstractmethod
    def write(self, path: Path, entries: Mapping[str, Entry], classes: Classes) -> None:
        """Writes the file whole, or not at all, from the entries by the images' names."""
