"""Images without labels, and the two views of one that a network is trained to label alike."""

from __future__ import annotations

import csv
import glob
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.data import Dataset
from torchvision import tv_tensors
from torchvision.transforms import v2

from segformer.data.classes import Classes
from segformer.data.images import IMAGE_SUFFIXES, find_images, read_image
from segformer.data.mixing import CutMix
from segformer.data.pairing import read_text
from segformer.data.transforms import Normalize, PadTo, RandomScaledCrop


class Views(NamedTuple):
    """Two views of images, and how these are mixed.

    Args:
        weak: The images (B, C, H, W), scaled, cropped and perhaps mirrored.
        strong: The same, with other colours and blurred.
        valid: Where the images are (B, H, W), bool; the rest is padding.
        box: Where each image is to be covered with another one (B, H, W), bool.
    """

    weak: Tensor
    strong: Tensor
    valid: Tensor
    box: Tensor


class StrongColors(v2.Compose):
    """The colours of the strong view of a photograph, as in UniMatch (arXiv 2208.09910).

    Brightness, contrast, saturation and hue change with a probability of 0.8, the image becomes
    grey with 0.2 and blurred with 0.5.
    """

    def __init__(self) -> None:
        super().__init__(
            [
                v2.RandomApply([v2.ColorJitter(0.5, 0.5, 0.5, 0.25)], 0.8),
                v2.RandomGrayscale(0.2),
                v2.RandomApply([v2.GaussianBlur(9, (0.1, 2.0))], 0.5),
            ]
        )


class WeakAndStrong:
    """Makes the two views of an image.

    Both have the same scale, crop and mirroring, so that their pixels correspond.

    Args:
        crop_size: Height and width of the views in pixels, those of the labelled samples.
        scale: Smallest and greatest factor of the random scale.
        strong: Transform of the strong view, from uint8 (3, H, W) to the same; by default
            :class:`StrongColors`.
        mixing: Draws the box in which an image is covered with another one; by default
            ``CutMix(0.5)``. With ``p=0`` none is.
        base: (long side, short side) in pixels that an image is first fitted into, that of the
            labelled samples; see :class:`~segformer.data.transforms.RandomScaledCrop`.
    """

    def __init__(
        self,
        crop_size: Sequence[int],
        scale: Sequence[float] = (0.5, 2.0),
        strong: v2.Transform | None = None,
        mixing: CutMix | None = None,
        base: Sequence[int] | None = None,
    ) -> None:
        crop = RandomScaledCrop(crop_size, scale, base, cat_max_ratio=1.0)
        self.weak = v2.Compose([crop, v2.RandomHorizontalFlip()])
        self.strong = strong or StrongColors()
        self.last = v2.Compose([Normalize(), PadTo(crop_size)])
        self.mixing = mixing or CutMix(0.5)

    @property
    def transforms(self) -> tuple[Any, ...]:
        """Its parts, as a composed transform has them."""
        return self.weak, self.strong, self.last

    def __call__(self, image: tv_tensors.Image) -> Views:
        """Returns the views of one image (3, H, W) uint8, without the dimension B."""
        weak = self.weak(image)
        inside = tv_tensors.Mask(torch.zeros(weak.shape[-2:], dtype=torch.uint8))
        strong, padded = self.last(self.strong(weak), inside)
        valid = padded.as_subclass(Tensor) == 0
        box = torch.zeros_like(valid)
        if torch.rand(()) < self.mixing.p:
            box = self.mixing.mask(box, Classes.unnamed(1))
        return Views(self.last(weak).as_subclass(Tensor), strong.as_subclass(Tensor), valid, box)


@dataclass(frozen=True)
class UnlabelledImages:
    """Photographs that a training run uses without labels.

    Args:
        images: Folders, which are searched for images, or patterns of images or folders, such as
            ``videos/*/frames`` or ``**/*.jpg``, relative to the folder of the data set; or CSV
            files, relative to the working directory, whose column ``image`` has the paths of images
            relative to that folder.
        views: Makes the views of an image.
        batch_size: Number of these images per step and device, beside the labelled ones.

    Raises:
        ValueError: If images are mixed, which takes pairs, and the batch size is not even.
    """

    images: Sequence[str]
    views: WeakAndStrong
    batch_size: int = 8

    def __post_init__(self) -> None:
        if self.batch_size < 1 or (self.views.mixing.p > 0 and self.batch_size % 2):
            raise ValueError(
                f"unlabelled_images.batch_size={self.batch_size}, and pairs of the images are "
                "mixed; give an even number, or a mixing with p=0"
            )

    def find(self, root: str | os.PathLike[str]) -> list[Path]:
        """Returns the images, each once.

        Raises:
            FileNotFoundError: If a folder, file or pattern has no image.
            ValueError: If a CSV file has no column ``image``, or a pattern matches another file.
        """
        found = [path for entry in self.images for path in _images_of(entry, Path(root))]
        return list(dict.fromkeys(found))


def _images_of(entry: str, root: Path) -> list[Path]:
    if entry.lower().endswith(".csv"):
        return _listed_images(Path(entry), root)
    found = sorted(glob.glob(entry, root_dir=root, recursive=True))
    paths = [root / name for name in found]
    if not paths:
        raise FileNotFoundError(
            f"unlabelled_images: nothing matches {str(root / entry)!r}; correct the pattern"
        )
    for path in paths:
        if path.is_file() and path.suffix and path.suffix.lower() not in IMAGE_SUFFIXES:
            raise ValueError(
                f"unlabelled_images: {entry!r} matches {path.name!r}, which is no image; narrow "
                f"the pattern, for instance to {Path(entry).with_name('*.jpg').as_posix()!r}"
            )
    return [image for path in paths for image in (find_images(path) if path.is_dir() else [path])]


def _listed_images(table: Path, root: Path) -> list[Path]:
    if not table.is_file():
        raise FileNotFoundError(
            f"unlabelled_images: no file {str(table)!r} in the working directory, {os.getcwd()!r}; "
            "correct the path"
        )
    rows = list(csv.DictReader(read_text(table).splitlines()))
    if not rows or not all(row.get("image") for row in rows):
        raise ValueError(
            f"{str(table)!r} must have the column image, and the path of an image in each line; "
            "correct it"
        )
    paths = [root / row["image"] for row in rows]
    if missing := [path for path in paths if not path.is_file()]:
        raise FileNotFoundError(
            f"{str(table)!r} lists {str(missing[0])!r}, which does not exist; correct the path"
        )
    return paths


class UnlabelledDataset(Dataset):
    """The views of images; see :class:`UnlabelledImages`."""

    def __init__(self, paths: Sequence[Path], views: WeakAndStrong) -> None:
        self.paths, self.views = list(paths), views

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> Views:
        return self.views(read_image(self.paths[index]))
