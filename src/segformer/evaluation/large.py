"""Labels of images that are larger than memory."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from segformer.evaluation.batches import as_batch, in_evaluation
from segformer.evaluation.protocols import Slide
from segformer.ops import upsample, with_background


def label_large(
    model: Any, image: Any, out: Any, mode: Slide, *, device: str | torch.device = "cpu"
) -> None:
    """Label an image that does not fit into memory, through windows: equal to ``mode.logits(…).argmax(1)``.

    At a time it holds the logits of one band of windows: classes × the window's height × the image's width × 4 bytes.

    Args:
        model: a module that maps images to logits.
        image: RGB uint8 (H, W, 3): an array, such as ``numpy.load(path, mmap_mode="r")``.
        out: unsigned integers (H, W) that hold all labels, such as
            ``numpy.lib.format.open_memmap(path, "w+", "uint8", (H, W))``.
        mode: the windows.
        device: where the model lies.

    Raises:
        ValueError: when the two differ in size, the image is not RGB of 8 bits, or ``out`` cannot
            hold the greatest label.
    """
    if (
        image.ndim != 3
        or image.shape[2] != 3
        or tuple(out.shape) != tuple(image.shape[:2])
        or image.dtype != np.uint8
    ):
        raise ValueError(
            f"an image of {image.dtype} {tuple(image.shape)} and labels of {tuple(out.shape)}; uint8 (H, W, 3) and (H, W) are needed"
        )
    height, width = image.shape[:2]
    tops, lefts = mode.starts(height, width)
    crop = min(mode.crop_size[0], height)
    bar = tqdm(total=len(tops) * len(lefts), desc="label", unit="window")
    with torch.inference_mode(), in_evaluation(model):
        band: Any = None
        counts = torch.zeros(crop, width)
        for place, top in enumerate(tops):
            for left, logits in _windows(model, image, top, lefts, mode, device):
                if band is None:
                    if len(logits) - 1 > np.iinfo(out.dtype).max:
                        raise ValueError(
                            f"{out.dtype} cannot hold {len(logits)} labels; give an array of uint16"
                        )
                    band = torch.zeros(logits.shape[0], crop, width)
                band[:, :, left : left + logits.shape[2]] += logits
                counts[:, left : left + logits.shape[2]] += 1
                bar.update()
            done = (
                tops[place + 1] - top if place + 1 < len(tops) else crop
            )  # rows that no later window reaches
            for column in range(0, width, 4096):  # a part at a time, so that no second band is made
                part = slice(column, column + 4096)
                out[top : top + done, part] = (
                    (band[:, :done, part] / counts[:done, part]).argmax(0).numpy().astype(out.dtype)
                )
            for rows in (band, counts):
                kept = rows[..., done:, :].clone()
                rows[..., : crop - done, :] = kept
                rows[..., crop - done :, :] = 0
    bar.close()


def _windows(
    model: Any, image: Any, top: int, lefts: list[int], mode: Slide, device: str | torch.device
) -> Iterator[tuple[int, Tensor]]:
    for left in lefts:
        pixels = np.array(image[top : top + mode.crop_size[0], left : left + mode.crop_size[1]])
        images = as_batch(model, torch.from_numpy(pixels).permute(2, 0, 1), device)
        logits = with_background(upsample(model(images), images.shape[-2:]))
        yield left, logits[0, :, : len(pixels), : pixels.shape[1]].float().cpu()
