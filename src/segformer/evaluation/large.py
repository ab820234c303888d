"""Labels for images that are larger than memory."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from segformer.evaluation.batches import in_evaluation, normalized
from segformer.evaluation.protocols import Slide, own_size_logits
from segformer.ops import with_background

COLUMNS = 4096  # labelled at a time


def label_large(
    model: Any, image: Any, out: Any, mode: Slide, *, device: str | torch.device = "cpu"
) -> None:
    """Labels an image that does not fit into memory, window by window.

    The labels equal ``mode.logits(…).argmax(1)``; those of a model of one logit are 1 where that
    logit is above 0. The logits of one row of windows are in memory: classes × the window's height
    × the image's width × 4 bytes.

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
    height, width = image.shape[:2]
    tops, lefts = mode.starts(height, width)
    crop = min(mode.crop_size[0], height)
    ends = [*tops[1:], tops[-1] + crop]  # rows above an end are in no later window
    bar = tqdm(total=len(tops) * len(lefts), desc="label", unit="window")
    with bar, torch.inference_mode(), in_evaluation(model):
        logits_sum: Any = None
        counts = torch.zeros(crop, width)
        for top, end in zip(tops, ends, strict=True):
            for left, logits in _windows(model, image, top, lefts, mode, device):
                if logits_sum is None:
                    _check_type(out, len(logits))
                    logits_sum = torch.zeros(len(logits), crop, width)
                logits_sum[:, :, left : left + logits.shape[2]] += logits
                counts[:, left : left + logits.shape[2]] += 1
                bar.update()
            done = end - top
            _write_labels(out[top:end], logits_sum[:, :done], counts[:done])
            _move_up(logits_sum, done)
            _move_up(counts, done)


def _check_arrays(image: Any, out: Any) -> None:
    is_rgb = image.ndim == 3 and image.shape[2] == 3 and image.dtype == np.uint8
    if not is_rgb or tuple(out.shape) != tuple(image.shape[:2]):
        raise ValueError(
            f"an image of {image.dtype} {tuple(image.shape)} and labels of {tuple(out.shape)}; "
            "uint8 (H, W, 3) and (H, W) are needed"
        )


def _check_type(out: Any, num_labels: int) -> None:
    if num_labels - 1 > np.iinfo(out.dtype).max:
        raise ValueError(f"{out.dtype} cannot hold {num_labels} labels; give an array of uint16")


def _windows(
    model: Any, image: Any, top: int, lefts: list[int], mode: Slide, device: str | torch.device
) -> Iterator[tuple[int, Tensor]]:
    """Yields the left border and the logits (K, H, W), on the CPU, of each window of a row."""
    for left in lefts:
        pixels = np.array(image[top : top + mode.crop_size[0], left : left + mode.crop_size[1]])
        images = normalized(model, torch.from_numpy(pixels).permute(2, 0, 1), device)
        yield left, with_background(own_size_logits(model, images))[0].float().cpu()


def _write_labels(out: Any, logits_sum: Tensor, counts: Tensor) -> None:
    """Writes the labels (H, W) of mean logits, some columns at a time to save memory."""
    for column in range(0, out.shape[1], COLUMNS):
        part = slice(column, column + COLUMNS)
        labels = (logits_sum[..., part] / counts[..., part]).argmax(0)
        out[:, part] = labels.numpy().astype(out.dtype)


def _move_up(rows: Tensor, done: int) -> None:
    """Removes the first rows of a tensor (…, H, W), in place, and appends rows of 0."""
    kept = rows[..., done:, :].clone()
    rows[..., : kept.shape[-2], :] = kept
    rows[..., kept.shape[-2] :, :] = 0
