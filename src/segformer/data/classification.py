"""Images in one folder for each class, and timm's augmentation for their classification."""

from __future__ import annotations

import os
from typing import Any

from PIL import Image
from timm.data import create_transform
from torch import Tensor
from torchvision.datasets import ImageFolder
from torchvision.datasets.folder import pil_loader


class ClassFolders(ImageFolder):
    """Samples (image, class) of a folder with one folder of images for each class.

    The classes are the folders' names in alphabetical order.

    Args:
        root: The folder, such as ``imagenet/train``.
        transform: Makes a sample's image from Pillow's RGB image; by default it is returned.

    Raises:
        FileNotFoundError: If the folder does not exist, or one of a class has no image.
    """

    def __init__(self, root: str | os.PathLike[str], transform: Any | None = None) -> None:
        super().__init__(root, transform, loader=read_rgb)


def read_rgb(path: str) -> Image.Image:
    """Returns an image file as RGB.

    Raises:
        ValueError: If the file cannot be decoded.
    """
    try:
        return pil_loader(path)
    except FileNotFoundError:
        raise
    except Exception as error:  # OSError, SyntaxError, struct.error, …
        raise ValueError(f"cannot read image {path!r}: {error}; copy it again") from error


class RandAugmentation:
    """timm's augmentation of the published recipes: a random crop, flip, RandAugment and erasing.

    Sources: RandAugment, arXiv 1909.13719; random erasing, arXiv 1708.04896. Their settings are
    those of DeiT (arXiv 2012.12877, table 9) and PVT v2 (arXiv 2106.13797). Colour jitter is left
    out: timm ignores it beside RandAugment.

    Args:
        size: Height and width of the crop, in pixels.
        auto_augment: timm's description of the policy, such as ``rand-m9-mstd0.5-inc1``.
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
        self.transform: Any = create_transform(
            size,
            is_training=True,
            auto_augment=auto_augment,
            interpolation=interpolation,
            re_prob=erasing,
            re_mode="pixel",
        )

    def __call__(self, image: Image.Image) -> Tensor:
        """Returns the normalized image (3, ``size``, ``size``)."""
        augmented: Tensor = self.transform(image)
        return augmented


class CenterCrop:
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
        self.transform: Any = create_transform(size, crop_pct=crop_pct, interpolation=interpolation)

    def __call__(self, image: Image.Image) -> Tensor:
        """Returns the normalized image (3, ``size``, ``size``)."""
        cropped: Tensor = self.transform(image)
        return cropped
