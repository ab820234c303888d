"""Images in one folder for each class, and timm's augmentation for their classification."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from PIL import Image
from timm.data import create_transform
from torch import Tensor
from torchvision.datasets import ImageFolder
from torchvision.datasets.folder import find_classes

from segformer.data.images import SYSTEM_FOLDERS, decode_rgb, find_images
from segformer.data.normalization import IMAGENET, Normalization


class ClassFolders(ImageFolder):
    """Samples (image, class) of a folder with one folder of images for each class.

    The classes are the folders' names in alphabetical order, without folders whose name starts with
    a dot, and those that operating systems add. Images are read as by
    :func:`~segformer.data.images.read_image`.

    Args:
        root: The folder, such as ``imagenet/train``.
        transform: Makes a sample's image from Pillow's RGB image; by default it is returned.

    Raises:
        FileNotFoundError: If the folder does not exist, or one of a class has no image.
    """

    def __init__(self, root: str | os.PathLike[str], transform: Any | None = None) -> None:
        super().__init__(root, transform, loader=read_rgb)

    def find_classes(self, directory: str | os.PathLike[str]) -> tuple[list[str], dict[str, int]]:
        """Returns the names of the classes, and the number of each."""
        names, _ = find_classes(directory)
        names = [name for name in names if name[0] != "." and name not in SYSTEM_FOLDERS]
        if not names:
            raise FileNotFoundError(f"{str(directory)!r} has no folder of a class; add one of each")
        return names, {name: number for number, name in enumerate(names)}

    @staticmethod
    def make_dataset(
        directory: str | os.PathLike[str], class_to_idx: dict[str, int], *_: Any, **__: Any
    ) -> list[tuple[str, int]]:
        """Returns the path and the class of each image."""
        return [
            (str(path), number)
            for name, number in class_to_idx.items()
            for path in find_images(Path(directory, name))
        ]


def read_rgb(path: str) -> Image.Image:
    """Returns an image file as RGB, turned upright by its EXIF orientation.

    Raises:
        ValueError: If the file cannot be decoded, or its values do not show which of them is white.
    """
    _, pixels = decode_rgb(path)
    return Image.fromarray(pixels.permute(1, 2, 0).numpy())


class TimmTransform:
    """A transform of timm, which normalizes images by ImageNet's statistics, or by given ones.

    Args:
        size: Height and width of the image that it returns, in pixels.
        **settings: Further arguments of ``timm.data.create_transform``.
    """

    def __init__(self, size: int, **settings: Any) -> None:
        self._settings = {"input_size": size, **settings}
        self.normalize_as(IMAGENET)

    def normalize_as(self, normalization: Normalization) -> None:
        """Sets the mean and the standard deviation; the pixels' scale is timm's, 1/255."""
        self.transform: Any = create_transform(
            mean=tuple(normalization.mean), std=tuple(normalization.std), **self._settings
        )

    def __call__(self, image: Image.Image) -> Tensor:
        """Returns the normalized image (3, ``size``, ``size``)."""
        transformed: Tensor = self.transform(image)
        return transformed


class RandAugmentation(TimmTransform):
    """timm's augmentation of the published recipes: a random crop, flip, RandAugment and erasing.

    Sources: RandAugment, arXiv 1909.13719; random erasing, arXiv 1708.04896. Their settings are
    those of DeiT (arXiv 2012.12877, table 9) and PVT v2 (arXiv 2106.13797). There is no colour
    jitter, with any policy: timm leaves it out beside RandAugment.

    Args:
        size: Height and width of the crop, in pixels.
        auto_augment: timm's description of the policy, such as ``rand-m9-mstd0.5-inc1``; an empty
            one for none.
        erasing: Probability that a rectangle of the image is replaced by noise.
        interpolation: Interpolation of the crop: ``bicubic``, ``bilinear`` or ``random``.
    """

    def __init__(
        self,
        size: int = 224,
        auto_augment: str = "rand-m9-mstd0.5-inc1",
        erasing: float = 0.25,
        interpolation: str = "bicubic",
    ) -> None:
        super().__init__(
            size,
            is_training=True,
            color_jitter=None,
            auto_augment=auto_augment,
            interpolation=interpolation,
            re_prob=erasing,
            re_mode="pixel",
        )


class CenterCrop(TimmTransform):
    """The middle of an image, as classifiers are measured on ImageNet.

    Args:
        size: Height and width of the crop, in pixels.
        crop_pct: Share of the crop in the shorter side, to which the image is resized first: 0.875
            resizes it to 256 pixels for a crop of 224.
        interpolation: Interpolation of the resizing.
    """

    def __init__(
        self, size: int = 224, crop_pct: float = 0.875, interpolation: str = "bicubic"
    ) -> None:
        super().__init__(size, crop_pct=crop_pct, interpolation=interpolation)
