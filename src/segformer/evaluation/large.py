"""Labels for images that are larger than memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from segformer.data.classes import number_of_labels
from segformer.data.families.opened import Window
from segformer.evaluation.batches import in_evaluation, inner_model, normalized
from segformer.evaluation.protocols import Slide, own_size_logits
from segformer.ops import with_background

COLUMNS = 4096  # labelled at a time
BYTES = 1 << 30  # of the sums of logits

Read = Callable[[Window], Tensor]  # of the pixels (C, h, w)
Write = Callable[[Window, np.ndarray], None]  # of the labels (h, w)
Take = Callable[[Window, Tensor], None]  # of the mean logits (K, h, w), at least two


def label_large(
    model: Any, image: Any, out: Any, mode: Slide, *, device: str | torch.device = "cpu"
) -> None:
    """Labels an array that does not fit into memory, window by window; see :func:`label_windows`.

    Args:
        model: Module that maps images to logits.
        image: RGB uint8 (H, W, 3), an array such as ``numpy.load(path, mmap_mode="r")``.
        out: Unsigned integers (H, W) for the labels, such as
            ``numpy.lib.format.open_memmap(path, "w+", "uint8", (H, W))``.
        mode: The windows.
        device: Device of the model.

    Raises:
        ValueError: If the two differ in size, the image is not 8-bit RGB, or the type of ``out``
            cannot hold the greatest label.
    """
    _check_arrays(image, out)

    def read(window: Window) -> Tensor:
        return torch.from_numpy(np.array(image[window.slices])).permute(2, 0, 1)

    def write(window: Window, labels: np.ndarray) -> None:
        out[window.slices] = labels

    greatest = int(np.iinfo(out.dtype).max)
    label_windows(model, image.shape[:2], read, write, mode, device=device, greatest=greatest)


def label_windows(
    model: Any,
    size: tuple[int, int],
    read: Read,
    write: Write,
    mode: Slide,
    *,
    device: str | torch.device = "cpu",
    memory: int = BYTES,
    greatest: int = 65535,
) -> None:
    """Labels an image that is read and whose labels are written in parts.

    The labels equal ``mode.logits(…).argmax(1)``; those of a model of one logit are 1 where that
    logit is above 0. Sums of logits are in memory for one row of windows, or for a part of it if it
    takes more than ``memory``; the windows that reach into two parts are then computed twice.

    Args:
        model: Module that maps images to logits.
        size: Height and width of the image.
        read: Returns the pixels (C, h, w) in a window.
        write: Takes a window, and its labels (h, w), int64, which it may change.
        mode: The windows.
        device: Device of the model.
        memory: Bytes that sums of logits may take, at least those of two windows.
        greatest: Greatest label that can be written.

    Raises:
        ValueError: If the model has a greater label.
    """

    def take(window: Window, logits: Tensor) -> None:
        write(window, logits.argmax(0).numpy())

    average_windows(model, size, read, take, mode, device=device, memory=memory, greatest=greatest)


def average_windows(
    model: Any,
    size: tuple[int, int],
    read: Read,
    take: Take,
    mode: Slide,
    *,
    device: str | torch.device = "cpu",
    memory: int = BYTES,
    greatest: int = 65535,
) -> None:
    """Computes the mean logits of windows of an image that is read in parts.

    The arguments and errors are those of :func:`label_windows`, except for ``take``: it takes a
    window, and the logits (K, h, w) in it, on the CPU. A model of one logit has two: 0 and its own.
    """
    model = inner_model(model)
    height, width = size
    tops, lefts = mode.starts(height, width)
    crop = min(mode.crop_size[0], height), min(mode.crop_size[1], width)
    ends = [*tops[1:], tops[-1] + crop[0]]  # rows above an end are in no later window
    with torch.inference_mode(), in_evaluation(model):
        num_labels = _num_labels(model, read, crop, device)
        if num_labels - 1 > greatest:
            raise ValueError(
                f"labels up to {greatest} cannot hold {num_labels} classes; give an array of uint16"
            )
        weight = mode.weight(*crop)
        parts = _parts(width, crop[1], memory // (4 * num_labels * crop[0]))
        lefts_of = [[left for left in lefts if left < b and left + crop[1] > a] for a, b in parts]
        windows = sum(map(len, lefts_of)) * len(tops)
        with tqdm(total=windows, desc="label", unit="window") as bar:
            for (start, stop), touching in zip(parts, lefts_of, strict=True):
                sums = _Sums(start, stop, num_labels, weight)
                for top, end in zip(tops, ends, strict=True):
                    for left in touching:
                        window = Window(top, left, *crop)
                        sums.add(left, _logits(model, read, window, device))
                        bar.update()
                    for columns, logits in sums.take(end - top):
                        take(Window(top, columns.start, *logits.shape[1:]), logits)


def _check_arrays(image: Any, out: Any) -> None:
    is_rgb = image.ndim == 3 and image.shape[2] == 3 and image.dtype == np.uint8
    if not is_rgb or tuple(out.shape) != tuple(image.shape[:2]):
        raise ValueError(
            f"an image of {image.dtype} {tuple(image.shape)} and labels of {tuple(out.shape)}; "
            "uint8 (H, W, 3) and (H, W) are needed"
        )


def _num_labels(model: Any, read: Read, crop: tuple[int, int], device: str | torch.device) -> int:
    """Returns the number of labels; of a function that does not say it, from a first window."""
    if hasattr(model, "num_classes"):
        return number_of_labels(model.num_classes)
    return len(_logits(model, read, Window(0, 0, *crop), device))


def _logits(model: Any, read: Read, window: Window, device: str | torch.device) -> Tensor:
    """Returns the logits (K, h, w) of a window, on the CPU."""
    images = normalized(model, read(window), device)
    return with_background(own_size_logits(model, images))[0].float().cpu()


def _parts(width: int, crop: int, columns: int) -> list[tuple[int, int]]:
    """Returns the first and last columns of the parts of a row, each of at least two windows."""
    columns = max(columns, 2 * crop)
    count = -(-width // columns)
    return list(pairwise(width * k // count for k in range(count + 1)))


class _Sums:
    """The weighted sums of the logits of windows, for a band of rows of some columns.

    Args:
        start: First of the columns.
        stop: Column after the last.
        num_labels: Number of logits of a pixel.
        weight: Weight (h, w) of a window's pixels.
    """

    def __init__(self, start: int, stop: int, num_labels: int, weight: Tensor) -> None:
        self.start, self.stop, self.weight = start, stop, weight
        self.logits = torch.zeros(num_labels, len(weight), stop - start)
        self.weights = torch.zeros(len(weight), stop - start)

    def add(self, left: int, logits: Tensor) -> None:
        """Adds the logits (K, h, w) of a window that begins in a column."""
        first = max(self.start, left)
        last = min(self.stop, left + self.weight.shape[1])
        own, inside = slice(first - self.start, last - self.start), slice(first - left, last - left)
        self.logits[..., own] += (logits * self.weight)[..., inside]
        self.weights[..., own] += self.weight[..., inside]

    def take(self, rows: int) -> Iterator[tuple[slice, Tensor]]:
        """Yields columns and mean logits of the first rows, and goes on to the rows after them.

        The logits (K, h, w) are those of some columns at a time, to save memory.
        """
        for left in range(self.start, self.stop, COLUMNS):
            columns = slice(left, min(left + COLUMNS, self.stop))
            own = slice(columns.start - self.start, columns.stop - self.start)
            yield columns, self.logits[:, :rows, own] / self.weights[:rows, own]
        for sums in (self.logits, self.weights):
            _move_up(sums, rows)


def _move_up(rows: Tensor, done: int) -> None:
    """Removes the first rows of a tensor (…, H, W), in place, and appends rows of 0."""
    kept = rows[..., done:, :].clone()
    rows[..., : kept.shape[-2], :] = kept
    rows[..., kept.shape[-2] :, :] = 0
