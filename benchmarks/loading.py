"""Loading and augmenting 640×480 JPEGs and PNG label maps into training samples of 512×512.

In one process and thread.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from benchmarks.measure import interleaved
from segformer.data.classes import Classes
from segformer.data.datasets import FolderDataset
from segformer.data.transforms import TrainTransform

COUNT, SIZE, CROP = 40, (480, 640), 512


def seconds(repeats: int) -> dict[str, Any]:
    """Seconds for COUNT samples: augmented from memory, and decoded and augmented."""
    import cv2

    torch.set_num_threads(1)
    cv2.setNumThreads(0)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        _write(folder)
        dataset = FolderDataset(
            folder / "images", folder / "labels", Classes([str(k) for k in range(11)])
        )
        augment, theirs = TrainTransform((CROP, CROP)), albumentations()

        def read(image: Path, label: Path) -> tuple[np.ndarray, np.ndarray]:
            return cv2.cvtColor(cv2.imread(str(image)), cv2.COLOR_BGR2RGB), cv2.imread(
                str(label), cv2.IMREAD_GRAYSCALE
            )

        def each(samples: Iterable[Any], work: Callable[..., Any]) -> Callable[[], None]:
            def all_of_them() -> None:
                for sample in samples:  # none is kept: fresh memory would cost more than the work
                    work(*sample)

            return all_of_them

        def transformed(image: np.ndarray, label: np.ndarray) -> Any:
            return theirs(image=image, mask=label)

        in_memory = {
            "segformer": each([dataset[n] for n in range(COUNT)], augment),
            "albumentations": each([read(*pair) for pair in dataset.pairs], transformed),
        }
        from_files = {
            "segformer": each([(n,) for n in range(COUNT)], lambda n: augment(*dataset[n])),
            "OpenCV and albumentations": each(
                dataset.pairs, lambda *pair: transformed(*read(*pair))
            ),
        }
        return {
            "augmenting": interleaved(in_memory, repeats),
            "decoding and augmenting": interleaved(from_files, repeats),
            "images": COUNT,
        }


def albumentations() -> Any:
    """The published augmentation in albumentations' own parts; its saturation is additive."""
    import albumentations as A
    from albumentations.pytorch import ToTensorV2

    class VariedCrop(A.RandomCrop):
        """A window in which no class fills more than three quarters."""

        def get_params_dependent_on_data(
            self, params: dict[str, Any], data: dict[str, Any]
        ) -> dict[str, Any]:
            for _ in range(10):
                chosen = super().get_params_dependent_on_data(params, data)
                left, top, right, bottom = chosen["crop_coords"]
                counts = np.bincount(data["mask"][top:bottom, left:right].ravel(), minlength=256)
                if counts[:255].max() < 0.75 * counts[:255].sum():
                    break
            return chosen

    return A.Compose(
        [
            A.RandomScale((-0.5, 1.0), p=1),
            A.PadIfNeeded(CROP, CROP, position="top_left", border_mode=0, fill=0, fill_mask=255),
            VariedCrop(CROP, CROP),
            A.HorizontalFlip(p=0.5),
            A.RandomBrightnessContrast(
                32 / 255, 0.5, p=0.75
            ),  # either, or both, each half the time
            A.HueSaturationValue(18, 64, 0, p=0.75),
            A.Normalize(),
            ToTensorV2(),
        ]
    )


def _write(folder: Path) -> None:
    """Generated photographs and label maps."""
    generator = torch.Generator().manual_seed(0)
    for kind in ("images", "labels"):
        (folder / kind).mkdir(parents=True)
    for n in range(COUNT):
        smooth = torch.nn.functional.interpolate(
            torch.rand(1, 3, 12, 16, generator=generator), SIZE, mode="bicubic"
        )[0]
        noisy = (smooth + 0.05 * torch.randn(3, *SIZE, generator=generator)).clamp(0, 1)
        Image.fromarray((255 * noisy).permute(1, 2, 0).byte().numpy()).save(
            folder / "images" / f"{n}.jpg", quality=90
        )
        labels = (10 * smooth[0]).clamp(0, 10).byte()
        Image.fromarray(labels.numpy()).save(folder / "labels" / f"{n}.png")
