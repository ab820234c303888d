"""Loading and augmenting, in images a second."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from segformer.data.classes import Classes
from segformer.data.datasets import FolderDataset
from segformer.data.transforms import TrainTransform

COUNT, SIZE = 40, (480, 640)


def images_per_second(folder: Path) -> dict[str, Any]:
    """Generated photographs and label maps: decoding alone, and decoding with the published augmentation."""
    generator = torch.Generator().manual_seed(0)
    for kind in ("images", "labels"):
        (folder / kind).mkdir(parents=True)
    for n in range(COUNT):
        smooth = torch.nn.functional.interpolate(torch.rand(1, 3, 12, 16, generator=generator), SIZE, mode="bicubic")[0]
        noisy = (smooth + 0.05 * torch.randn(3, *SIZE, generator=generator)).clamp(0, 1)
        Image.fromarray((255 * noisy).permute(1, 2, 0).byte().numpy()).save(folder / "images" / f"{n}.jpg", quality=90)
        labels = (10 * smooth[0]).clamp(0, 10).byte()
        Image.fromarray(labels.numpy()).save(folder / "labels" / f"{n}.png")
    dataset, augment = FolderDataset(folder / "images", folder / "labels", Classes([str(k) for k in range(11)])), TrainTransform((512, 512))
    works: dict[str, Callable[[int], Any]] = {
        "decoding": lambda n: dataset[n],
        "decoding, augmenting, normalising": lambda n: augment(*dataset[n]),
    }
    rows = {}
    for name, work in works.items():
        start = time.perf_counter()
        for n in range(2 * COUNT):
            work(n % COUNT)
        rows[name] = 2 * COUNT / (time.perf_counter() - start)
    return {"images_per_second": rows}
