"""Folders of images and label maps."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor
from torch.utils.data import Dataset
from torchvision import tv_tensors

from segformer.data.classes import Classes

IGNORE_INDEX = 255
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".ppm")


def find_images(folder: str | os.PathLike[str]) -> list[Path]:
    """Every image file below a folder, sorted by path.

    Raises:
        FileNotFoundError: when there is no such folder, or no image in it.
    """
    root = Path(folder)
    if not root.is_dir():
        raise FileNotFoundError(f"no folder {str(root)!r}")
    paths = sorted(path for path in root.rglob("*") if path.suffix.lower() in IMAGE_SUFFIXES and path.is_file())
    if not paths:
        raise FileNotFoundError(f"no image in {str(root)!r}; looked for {' '.join(IMAGE_SUFFIXES)}")
    return paths


def read_image(path: str | os.PathLike[str]) -> tv_tensors.Image:
    """An image file as RGB uint8 (3, H, W), turned upright as its EXIF orientation says.

    Raises:
        ValueError: naming the file, when it cannot be decoded.
    """
    image = ImageOps.exif_transpose(_open(path))
    if image.mode.startswith("I;16"):  # Pillow's own conversion would clip all above 255
        image = Image.fromarray((np.array(image) // 257).astype(np.uint8))
    if image.mode in ("I", "F"):
        raise ValueError(
            f"image {str(path)!r} has mode {image.mode}, whose scale of values is unknown; save it with 8 or 16 bits a channel"
        )
    return tv_tensors.Image(torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1))


def read_label_map(path: str | os.PathLike[str]) -> tv_tensors.Mask:
    """A single-channel image (grey or palette) as class indices, uint8 (H, W).

    Raises:
        ValueError: naming the file, when it cannot be decoded, or has colours or more than 8 bits in place of indices.
    """
    label = _open(path)
    if label.mode not in ("L", "P", "1"):
        raise ValueError(
            f"label map {str(path)!r} has mode {label.mode}; class indices need one 8-bit channel (mode L or P): "
            "convert the colours to indices first"
        )
    indices = np.array(label)
    return tv_tensors.Mask(torch.from_numpy(indices.astype(np.uint8)))


def _open(path: str | os.PathLike[str]) -> Image.Image:
    try:
        with Image.open(path) as image:
            image.load()
            return image
    except FileNotFoundError:
        raise
    except Exception as error:  # a broken file raises whatever its decoder raises: OSError, SyntaxError, struct.error, …
        raise ValueError(f"cannot read image {str(path)!r}: {error}") from error


def check_labels(label: Tensor, num_classes: int, what: str) -> None:
    """Refuse a label map with a value that is neither a class nor 255.

    Raises:
        ValueError: naming ``what`` was read, its most frequent wrong value, how often it occurs, and the likely cure.
    """
    counts = torch.bincount(label.flatten(), minlength=256)
    counts[:num_classes] = 0
    counts[IGNORE_INDEX] = 0
    if counts.any():
        value = int(counts.argmax())
        raise ValueError(
            f"{what} holds the value {value} on {int(counts[value])} of {label.numel()} pixels; valid are 0 to {num_classes - 1}, and the "
            f"ignore index. Name more classes, set ignore_index={value}, or map the values first (are these another data set's indices, "
            "or counted from 1?)"
        )


class FolderDataset(Dataset):
    """Images beside label maps, paired by their path without suffix: ``images/a/1.jpg`` with ``labels/a/1.png``.

    A sample is ``(image, label)``: uint8 (3, H, W) and uint8 class indices (H, W), 255 = ignore.

    Args:
        images: folder of images, searched recursively.
        labels: folder of single-channel label maps.
        classes: names and colours; indices from 0 to their number - 1 are valid.
        ignore_index: the one value of the label maps that means no class. Samples say 255 in its place.

    Raises:
        FileNotFoundError: when a folder is missing or empty.
        ValueError: at once when an image has no label map or the reverse, or ``ignore_index`` is a class; on access when a file is corrupt,
            the two sizes differ, or a label map holds a value that is neither a class nor ignored.
    """

    def __init__(
        self,
        images: str | os.PathLike[str],
        labels: str | os.PathLike[str],
        classes: Classes,
        ignore_index: int = IGNORE_INDEX,
    ) -> None:
        if len(classes) > IGNORE_INDEX:
            raise ValueError(f"{len(classes)} classes; 8-bit label maps hold at most {IGNORE_INDEX}, as {IGNORE_INDEX} means no class")
        if not len(classes) <= ignore_index <= 255:
            raise ValueError(
                f"ignore_index={ignore_index} must be a value that is no class, from {len(classes)} to 255: the {len(classes)} classes "
                f"({classes.names[0]}, …, {classes.names[-1]}) are 0 to {len(classes) - 1}"
            )
        self.classes = classes
        self.ignore_index = ignore_index
        image_of = _by_stem(images)
        label_of = _by_stem(labels)
        for have, lack, what in ((image_of, label_of, "label map"), (label_of, image_of, "image")):
            orphans = [str(have[stem]) for stem in have if stem not in lack]
            if orphans:
                more = f" and {len(orphans) - 3} more" if len(orphans) > 3 else ""
                raise ValueError(
                    f"no {what} for {', '.join(orphans[:3])}{more}; a pair has the same path and name below {str(images)!r} "
                    f"and {str(labels)!r}, suffix aside"
                )
        self.pairs = [(image_of[stem], label_of[stem]) for stem in image_of]

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: int) -> tuple[tv_tensors.Image, tv_tensors.Mask]:
        image_path, label_path = self.pairs[index]
        image, label = read_image(image_path), read_label_map(label_path)
        if image.shape[-2:] != label.shape:
            raise ValueError(
                f"image {str(image_path)!r} is {image.shape[1]}×{image.shape[2]} but its label map {str(label_path)!r} "
                f"{label.shape[0]}×{label.shape[1]} (height × width); give them one size"
            )
        if self.ignore_index != IGNORE_INDEX:
            label[label == self.ignore_index] = IGNORE_INDEX
        check_labels(label, len(self.classes), f"label map {str(label_path)!r}")
        return image, label


def _by_stem(folder: str | os.PathLike[str]) -> dict[str, Path]:
    stems: dict[str, Path] = {}
    for path in find_images(folder):
        stem = str(path.relative_to(folder).with_suffix(""))
        if stem in stems:
            raise ValueError(f"{str(stems[stem])!r} and {str(path)!r} have one name; which of them makes the pair? Remove one")
        stems[stem] = path
    return stems
