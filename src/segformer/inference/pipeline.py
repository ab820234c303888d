"""From image files to label maps and other results."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from segformer.evaluation import Protocol, check_logits
from segformer.evaluation.protocols import gives_logits
from segformer.inference.ahead import ahead
from segformer.inference.jobs import Job, Work
from segformer.inference.journal import Journal
from segformer.inference.labellers import Labeller, WholeImages
from segformer.inference.large import LargeImage, label_in_windows, large_image
from segformer.inference.pictures import shown
from segformer.inference.results import Labels, Prediction
from segformer.inference.results.base import Counted, MeanEntropy, halved
from segformer.inference.scenes import read_for

WHOLE = WholeImages()


def label_file(
    model: Any, path: str | os.PathLike[str], labeller: Labeller = WHOLE
) -> tuple[Image.Image, np.ndarray]:
    """Returns an image, turned upright, and its labels (H, W).

    Labels are uint8, or uint16 for more than 255 classes.

    Args:
        model: A :class:`~segformer.SegmentationModel`, or an exported file as a model.
        path: Path of the image file.
        labeller: How the image is labelled, by default whole.

    Raises:
        ValueError: If the file cannot be decoded. The message names it.
    """
    prediction = predict_file(model, path, labeller, probabilities=False)
    return prediction.image, prediction.labels


def predict_file(
    model: Any,
    path: str | os.PathLike[str],
    labeller: Labeller = WHOLE,
    name: str | None = None,
    probabilities: bool = True,
) -> Prediction:
    """Returns an image, its labels and its class probabilities, which can save themselves.

    The probabilities take 4 bytes for each class and pixel while they are computed.

    Args:
        model: A :class:`~segformer.SegmentationModel`, or an exported file as a model.
        path: Path of the image file.
        labeller: How the image is labelled, by default whole.
        name: Name of the prediction, by default the file's.
        probabilities: Whether they are computed, if the model gives logits.

    Raises:
        ValueError: If the file cannot be decoded. The message names it.
    """
    path = Path(path)
    name = path.name if name is None else name
    return _predict(model, _read(model, path), labeller, name, probabilities)


def labelled(
    model: Any, image: Tensor, labeller: Labeller, probabilities: bool
) -> tuple[np.ndarray, np.ndarray | None]:
    """Returns the labels (H, W) of an image, and its probabilities if they are wanted.

    These are float16 (K, H, W), and None for a model that gives labels only.
    """
    if not (probabilities and gives_logits(model)):
        return labeller.labels(model, image), None
    labels, values = labeller.with_probabilities(model, image)
    return labels, halved(values, labels)


class _Read(NamedTuple):
    """An image file that was read."""

    image: Tensor  # (C, H, W), with the bands that the model takes
    valid: np.ndarray | None  # where it has data (H, W); None if that is everywhere
    picture: Image.Image  # in RGB
    path: Path
    seconds: float


def _read(model: Any, path: Path) -> _Read:
    begun = time.perf_counter()
    try:
        image, valid = read_for(model, path)
    except FileNotFoundError as error:  # removed since the run began
        raise ValueError(f"{str(path)!r} is gone") from error
    return _Read(image, valid, shown(image), path, time.perf_counter() - begun)


def _predict(
    model: Any, read: _Read, labeller: Labeller, name: str, probabilities: bool
) -> Prediction:
    """Returns the labels of an image that was read, and its probabilities if they are wanted."""
    begun = time.perf_counter()
    labels, values = labelled(model, read.image, labeller, probabilities)
    if read.valid is not None:
        labels[~read.valid] = model.classes.ignore_index
    seconds = read.seconds + time.perf_counter() - begun
    return Prediction(name, read.picture, labels, model.classes, values, seconds, source=read.path)


def label_files(model: Any, work: Work, labeller: Labeller = WHOLE) -> None:
    """Writes the results of each image and of the run, and prints the classes' shares.

    Args:
        model: A :class:`~segformer.SegmentationModel`, or an exported file as a model.
        work: The files to write, from :func:`segformer.inference.jobs.plan`.
        labeller: How images are labelled, by default whole.

    Raises:
        OSError: If a file cannot be written.
        ValueError: If the model, or an image, cannot be labelled in this way; or if images cannot
            be labelled: the others still are.
    """
    labeller.check(model)
    for result in {type(result): result for job in work.jobs for result, _ in job.writes}.values():
        result.check(model)
    for job in work.jobs:
        if job.large:
            _check_windows(model, job.source, labeller)
    run = _Run(model, work, labeller)
    with ExitStack() as stack:
        for journal in work.journals:
            stack.enter_context(journal)
        run.label_images()
    for journal in work.journals:
        journal.sort(work.names)
        journal.summary.write(journal.target, journal.entries, model.classes)
    if run.counts.any():
        print(histogram(run.counts, model))
    print(f"{len(work.jobs) - len(run.errors)} images labelled{_skipped(work)}")
    if run.errors:
        raise ValueError("; ".join(run.errors))


def _skipped(work: Work) -> str:
    count = len(work.names) - len(work.jobs)
    return f", {count} left out, as their files exist" if count else ""


def _check_windows(model: Any, path: Path, labeller: Labeller) -> None:
    """Raises ValueError if an array or a scene cannot be labelled in windows."""
    if labeller.windows is None:
        raise ValueError(
            f"{str(path)!r} is labelled in windows, and a protocol or processor needs the whole "
            "image; label it by itself, with --slide, or save it as PNG"
        )
    check_logits(model, Protocol(labeller.windows))


@dataclass(frozen=True)
class _Failure:
    """Why an image could not be labelled, and after how many seconds that was known."""

    error: str
    seconds: float


def _attempt(seconds: float, step: Callable[..., Any], *arguments: Any) -> Any:
    """Returns what a step returns, or its failure.

    Args:
        seconds: Time of the steps before.
        step: A function that raises ValueError if the image is at fault.
        arguments: Those of the function.
    """
    begun = time.perf_counter()
    try:
        return step(*arguments)
    except ValueError as error:
        return _Failure(str(error), seconds + time.perf_counter() - begun)


class _Run:
    """The steps of a run: each image is read, labelled and written.

    An image that fails in a step passes the others as a failure, so that the order is kept.

    Attributes:
        counts: Number of pixels of each class in the images written so far.
        errors: Why images could not be labelled.
    """

    def __init__(self, model: Any, work: Work, labeller: Labeller) -> None:
        self.model, self.work, self.labeller = model, work, labeller
        self.counts = np.zeros(len(model.classes), dtype=np.int64)
        self.errors: list[str] = []
        self._chosen = [
            (journal, set(journal.summary.chosen(work.names))) for journal in work.journals
        ]

    def label_images(self) -> None:
        """Labels the images; the next one is read, and the last one written, at the same time."""
        jobs = self.work.jobs
        with ThreadPoolExecutor(1) as reader, ThreadPoolExecutor(1) as writer:
            labelled = map(self.label, ahead(reader, self.read, jobs))
            for _ in tqdm(ahead(writer, self.write, labelled), "predict", len(jobs), unit="image"):
                pass

    def read(self, job: Job) -> tuple[Job, Any]:
        """Returns a job and its image; None if this is large, as it is read in windows."""
        return job, None if job.large else _attempt(0.0, _read, self.model, job.source)

    def label(self, step: tuple[Job, Any]) -> tuple[Job, Any]:
        """Returns a job and its prediction; of a large image its counts, with its files written."""
        job, read = step
        if job.large:
            _make_folders(job)
            wanted = any(journal.summary.uses_probabilities for journal in self._journals(job))
            return job, _attempt(0.0, _label_large, self.model, job, self.labeller, wanted)
        if isinstance(read, _Failure):
            return job, read
        kinds = [result.needs_probabilities for result, _ in job.writes]
        wanted = any([*kinds, *(j.summary.uses_probabilities for j in self._journals(job))])
        arguments = self.model, read, self.labeller, job.name, wanted
        return job, _attempt(read.seconds, _predict, *arguments)

    def write(self, step: tuple[Job, Any]) -> None:
        """Writes the files of a job, and then its entries."""
        job, done = step
        if not isinstance(done, _Failure):
            done = _attempt(done.seconds, self._write_files, job, done)
        if isinstance(done, _Failure):
            self.errors.append(done.error)
            for journal in self.work.journals:
                journal.add(journal.summary.failure(job.name, done.error, done.seconds))

    def _write_files(self, job: Job, done: Prediction | LargeCounted) -> None:
        journals = self._journals(job)
        if isinstance(done, Prediction):
            _make_folders(job)
            for result, path in job.writes:
                result.write(done, path)
            entries = [journal.summary.entry(done) for journal in journals]
        else:
            entries = [journal.summary.entry_of_large(*done) for journal in journals]
        for journal, entry in zip(journals, entries, strict=True):
            journal.add(entry)
        self.counts += done.counted.counts

    def _journals(self, job: Job) -> list[Journal]:
        """Returns the journals that get an entry of a job."""
        return [journal for journal, names in self._chosen if job.name in names]


def _make_folders(job: Job) -> None:
    for _, path in job.writes:
        path.parent.mkdir(parents=True, exist_ok=True)


class LargeCounted(NamedTuple):
    """An image that was labelled in windows, and its pixels."""

    image: LargeImage
    counted: Counted

    @property
    def seconds(self) -> float:
        return self.counted.seconds


def _label_large(model: Any, job: Job, labeller: Labeller, with_entropy: bool) -> LargeCounted:
    """Writes the files of an image that is labelled in windows; returns it and its pixels."""
    begun = time.perf_counter()
    target, slide = job.target(Labels), labeller.windows
    assert target is not None
    assert slide is not None
    num_labels = len(model.classes)
    image, total = large_image(model, job.source, target), MeanEntropy(num_labels)
    others = [(result, path) for result, path in job.writes if path != target]
    with ExitStack() as stack:  # at its end the label map is complete
        takes = [stack.enter_context(result.of_large(image, path)) for result, path in others]
        windows = image.windows(slide)
        takes += [total.add] if with_entropy else []
        parts = label_in_windows(image, windows, labeller.decide, takes)
    counts = count(parts, num_labels)
    seconds, grid = time.perf_counter() - begun, image.opened.grid
    counted = Counted(job.name, image.size, model.classes, counts, total.mean, grid, seconds)
    return LargeCounted(image, counted)


def count(parts: Iterable[np.ndarray], num_labels: int) -> np.ndarray:
    """Returns the number of pixels of each class in the rows or blocks of labels."""
    counts = np.zeros(num_labels, dtype=np.int64)
    for part in parts:  # as NumPy counts in a copy of eight times the size
        counts += np.bincount(part[part < num_labels].ravel(), minlength=num_labels)
    return counts


def histogram(counts: np.ndarray, model: Any) -> str:
    """Returns a table of each class's share of the pixels, the greatest first."""
    shares = counts / counts.sum()
    names = model.classes.names
    width = max(map(len, names))
    rows = [
        f"{names[k]:{width}}  {100 * shares[k]:6.2f} %  {'#' * round(40 * shares[k])}".rstrip()
        for k in np.argsort(-shares, kind="stable")
        if counts[k]
    ]
    return "\n".join(rows)
