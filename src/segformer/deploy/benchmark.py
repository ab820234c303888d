"""The formats and precisions of a model side by side: time, size on disk, and accuracy."""

from __future__ import annotations

import contextlib
import difflib
import random
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from segformer.data.classes import number_of_labels
from segformer.data.labels import check_labels
from segformer.deploy.comparison import GATES, smooth
from segformer.deploy.exported import load
from segformer.deploy.exporting import check_size, export, in_float32
from segformer.deploy.formats import FORMATS, find_format
from segformer.deploy.ranking import PYTORCH, Benchmark, Contestant
from segformer.evaluation import own_size_labels
from segformer.evaluation.batches import normalized
from segformer.evaluation.metrics import Scores, confusion_of

COMPILED = ("aoti", "executorch")  # formats whose export takes minutes
PROBES = 4  # images of noise, if there are no data
WARM_UP = 2  # runs of each engine that are not timed
PAUSE = 0.05  # seconds in which the waiting threads of the other engines go to sleep


def benchmark(
    model: Any,
    formats: Iterable[str] = (),
    precisions: Iterable[str] = (),
    *,
    size: tuple[int, int] = (512, 512),
    rounds: int = 10,
    threads: int | None = None,
    dataset: Any = None,
    calibration: Any = None,
    max_drop: float = 0.5,
    folder: Path | None = None,
    overwrite: bool = False,
) -> Benchmark:
    """Exports a model, runs the files, and compares them with the model in PyTorch.

    A format and precision that cannot be exported, run or measured is a row with the reason.

    Args:
        model: A :class:`~segformer.SegmentationModel`; it is not changed. A copy in float32 on the
            CPU is measured if it is in another type or on another device.
        formats: Names of formats; by default all whose packages are installed, except for those
            that compile for minutes.
        precisions: Precisions of the files; by default all that a format has.
        size: Height and width of the image that is timed, and of files of fixed size.
        rounds: How often each engine is timed.
        threads: Number of threads of each engine; by default as many as PyTorch uses.
        dataset: Samples (image uint8 (C, H, W), label (H, W)), with ``classes``, on which mIoU is
            measured; by default the labels of noise are compared.
        calibration: Images that int8 is calibrated on; see :func:`segformer.deploy.export`.
        max_drop: Greatest loss of mIoU of the best, and of int8, in points.
        folder: Keeps the exported files; by default they are temporary.
        overwrite: Whether files in ``folder`` are replaced.

    Raises:
        FileExistsError: If a file exists already.
        FileNotFoundError: If there is no such folder.
        ValueError: If a format or precision is unknown, the size is too small, a number is out of
            its range, or the data have other classes than the model.
    """
    model = in_float32(model)
    threads = torch.get_num_threads() if threads is None else threads
    _check_numbers(model, size, rounds, threads, max_drop)
    if dataset is not None:
        _check_classes(model, dataset)
    rows, notes = plan(formats, precisions, calibration is not None)
    if folder is not None:
        check_folder(rows, folder, overwrite)
    int8 = {"calibration": calibration, "dataset": dataset, "max_drop": max_drop}
    samples = noise(model, size) if dataset is None else dataset
    with contextlib.ExitStack() as stack:
        stack.enter_context(_threads(threads, rows))
        kept = folder or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        enter_all(rows, model, kept, size, int8, overwrite)
        time_all(rows, noise(model, size)[0][0], rounds)
        compare_all(rows, samples, model.num_classes)
    described = f"{len(samples)} {'images of noise' if dataset is None else 'labelled images'}" + (
        "; pass --data CONFIG for mIoU" if dataset is None else ""
    )
    return Benchmark(rows, size, threads, described, max_drop, tuple(notes))


def plan(
    formats: Iterable[str] = (), precisions: Iterable[str] = (), has_calibration: bool = False
) -> tuple[list[Contestant], list[str]]:
    """Returns the contestants, PyTorch first, and a sentence on each that is left out.

    What is named is not left out: if it cannot be exported, the export will state why.

    Raises:
        ValueError: If a format or precision is unknown.
    """
    formats, precisions = tuple(dict.fromkeys(formats)), tuple(dict.fromkeys(precisions))
    check_names(formats, precisions)
    left_out = {} if formats else _left_out_formats()
    if not precisions and (reason := _why_no_int8(has_calibration)):
        left_out["int8"] = reason
    rows = [Contestant(PYTORCH, "fp32")]
    for name in formats or FORMATS:
        own = FORMATS[name].precisions if name in FORMATS else ()
        wanted = precisions if formats and precisions else own
        rows += [
            Contestant(name, precision)
            for precision in wanted
            if name != PYTORCH
            and not {name, precision} & left_out.keys()
            and (not precisions or precision in precisions)
        ]
    return rows, [f"left out: {name}, {reason}" for name, reason in left_out.items()]


def check_names(formats: Iterable[str], precisions: Iterable[str]) -> None:
    """Raises ValueError if a format or precision is unknown."""
    for name in formats:
        _check_name("format", name, (PYTORCH, *FORMATS))
    for name in precisions:
        _check_name("precision", name, tuple(GATES))


def _check_name(what: str, name: str, known: tuple[str, ...]) -> None:
    if name not in known:
        close = difflib.get_close_matches(name, known, 1)
        hint = f"did you mean {close[0]!r}? There are" if close else "choose one of"
        raise ValueError(f"unknown {what} {name!r}; {hint} {', '.join(known)}")


def _left_out_formats() -> dict[str, str]:
    """Returns why formats do not take part unless they are named."""
    reasons = {}
    for name, made in FORMATS.items():
        if missing := made.missing():
            reasons[name] = f"which needs {', '.join(missing)}: {made.installation}"
        elif name == "triton":
            reasons[name] = "which is onnx in a folder"
        elif name in COMPILED:
            reasons[name] = "which compiles for minutes: name it to include it"
    return reasons


def _why_no_int8(has_calibration: bool) -> str | None:
    if not has_calibration:
        return "which is calibrated on training images: pass --data CONFIG"
    if find_spec("nncf") is None:
        return 'which needs nncf: pip install "segformer[int8]"'
    return None


def _check_numbers(
    model: Any, size: tuple[int, int], rounds: int, threads: int, max_drop: float
) -> None:
    check_size(size, model.min_size)
    for name, number in (("rounds", rounds), ("threads", threads)):
        if number < 1:
            raise ValueError(f"{name} is {number}; give at least 1")
    if not max_drop >= 0:
        raise ValueError(f"max_drop is {max_drop}; give the points of mIoU, at least 0")


def _check_classes(model: Any, dataset: Any) -> None:
    ours, theirs = (number_of_labels(count) for count in (model.num_classes, len(dataset.classes)))
    if ours != theirs:
        raise ValueError(
            f"the model has {ours} classes, the data have {theirs}; give the data that it was "
            "trained for"
        )


def path_of(row: Contestant, folder: Path) -> Path:
    """Returns the file of an exported contestant in a folder."""
    return folder / f"{row.format}-{row.precision}{FORMATS[row.format].suffix}"


def check_folder(rows: Sequence[Contestant], folder: Path, overwrite: bool = False) -> None:
    """Raises an error if the exported files cannot be written into a folder."""
    if not folder.is_dir():
        raise FileNotFoundError(f"no folder {str(folder)!r} to write into; make it first")
    for row in rows[1:]:
        if not overwrite and (path := path_of(row, folder)).exists():
            raise FileExistsError(
                f"{str(path)!r} exists already; choose another folder, or add --overwrite"
            )


@contextlib.contextmanager
def _threads(count: int, rows: Sequence[Contestant]) -> Iterator[None]:
    """Context in which every engine uses this number of threads.

    The sessions of the other engines take PyTorch's number when they are opened.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    if "executorch" in {row.format for row in rows} and not FORMATS["executorch"].missing():
        from executorch.extension.pybindings import portable_lib

        portable_lib._unsafe_reset_threadpool(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def enter_all(
    rows: Sequence[Contestant],
    model: Any,
    folder: Path,
    size: tuple[int, int],
    int8: dict[str, Any],
    overwrite: bool = False,
) -> None:
    """Exports a model for each contestant but the first, which is the model itself.

    Args:
        rows: The contestants.
        model: The model.
        folder: Folder of the files.
        size: Height and width of files that cannot leave them open.
        int8: Further options of an export in int8.
        overwrite: Whether existing files are replaced.
    """
    first, *others = rows
    first.model, first.engine = model, f"PyTorch {torch.__version__}"
    first.megabytes = sum(tensor.nbytes for tensor in model.state_dict().values()) / 1e6
    for row in (bar := tqdm(others, "export", unit="file")):
        bar.set_postfix_str(row.name)
        try:
            options: dict[str, Any] = int8 if row.precision == "int8" else {}
            if not find_format(row.format).is_dynamic:
                options = {**options, "size": size}
            path = path_of(row, folder)
            names = {"precision": row.precision, "overwrite": overwrite}
            export(model, path, row.format, **names, **options)
            row.model = load(path)
        except Exception as error:  # of any kind: they come from the engines
            row.fail(error)
        else:
            row.engine = row.model.engine
            files = path.rglob("*") if path.is_dir() else folder.glob(f"{path.stem}.*")  # beside it
            row.megabytes = sum(file.stat().st_size for file in files) / 1e6


def time_all(rows: Sequence[Contestant], pixels: Tensor, rounds: int) -> None:
    """Times each contestant once a round, in another order each time.

    Each works twice in its turn, and the second time counts, as in a loop over images: the first
    pays for the caches that the others have filled.

    Args:
        rows: The contestants.
        pixels: The image, uint8 (C, H, W).
        rounds: Number of rounds.
    """
    images = normalized(rows[0].model, pixels, "cpu")
    rows[0].model.predict(images)  # an error of the model itself is no row
    running = [row for row in rows if _runs(row, images)]
    order = random.Random(0)
    with tqdm(total=rounds * len(running), desc="time", unit="run") as bar:
        for _ in range(rounds):
            for row in order.sample(running, len(running)):
                time.sleep(PAUSE)
                row.model.predict(images)
                start = time.perf_counter()
                row.model.predict(images)
                row.milliseconds.append(1000 * (time.perf_counter() - start))
                bar.update()


def _runs(row: Contestant, images: Tensor) -> bool:
    """Warms a contestant up; returns whether it can label images."""
    if row.model is None:
        return False
    try:
        for _ in range(WARM_UP):
            row.model.predict(images)
    except Exception as error:  # of any kind: they come from the engines
        row.fail(error)
        return False
    return True


def noise(model: Any, size: tuple[int, int]) -> list[tuple[Tensor, None]]:
    """Returns images of smooth noise (C, H, W), without labels."""
    generator = torch.Generator().manual_seed(0)
    channels = len(model.normalization.mean)
    shares = smooth(PROBES, channels, *size, generator)
    return [(image, None) for image in model.normalization.pixels(shares)]


def compare_all(rows: Sequence[Contestant], samples: Any, num_classes: int) -> None:
    """Measures each contestant's mIoU, and the share of its labels that equal PyTorch's.

    Args:
        rows: The contestants, PyTorch first.
        samples: Images uint8 (C, H, W) at their own size, with labels (H, W) or None.
        num_classes: Number of logits.
    """
    tallies = {
        row.name: Tally(number_of_labels(num_classes)) for row in rows if row.model is not None
    }
    for index in tqdm(range(len(samples)), "compare", unit="image"):
        image, label = samples[index]
        if label is not None:
            check_labels(label, number_of_labels(num_classes), f"label map {index}")
        expected = _labels(rows[0], image)
        for row in rows:
            if row.model is None:
                continue
            try:
                labels = expected if row is rows[0] else _labels(row, image)
            except Exception as error:  # of any kind: they come from the engines
                row.fail(error)
            else:
                tallies[row.name].add(labels, expected, label)
    for row in rows:
        if row.model is not None:
            row.miou, row.equal = tallies[row.name].miou, tallies[row.name].equal


def _labels(row: Contestant, image: Tensor) -> Tensor:
    """Returns the labels (H, W) of an image, uint8 (C, H, W)."""
    return own_size_labels(row.model, normalized(row.model, image, "cpu"))[0]


class Tally:
    """Counts of a contestant's labels.

    Args:
        num_labels: Number of classes.
    """

    def __init__(self, num_labels: int) -> None:
        self.confusion = torch.zeros(num_labels, num_labels, dtype=torch.long)
        self.num_equal = self.total = 0

    def add(self, labels: Tensor, expected: Tensor, truth: Tensor | None) -> None:
        """Adds an image's labels (H, W), beside PyTorch's and those of the data."""
        self.num_equal += int((labels == expected).sum())
        self.total += labels.numel()
        if truth is not None:
            truth = truth.as_subclass(Tensor)
            self.confusion += confusion_of(labels, truth, len(self.confusion))

    @property
    def equal(self) -> float:
        return self.num_equal / max(1, self.total)

    @property
    def miou(self) -> float | None:
        """The mIoU; None without labelled pixels."""
        return Scores.of(self.confusion).miou if self.confusion.any() else None
