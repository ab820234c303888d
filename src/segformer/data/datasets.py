"""Folders of images and label maps."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor
from torch.utils.data import Dataset
from torchvision import tv_tensors

from segformer.data.classes import Classes

IGNORE_INDEX = 255
ORIENTATION = 0x0112  # EXIF's tag
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
    image = _open(path)
    if image.getexif().get(ORIENTATION, 1) != 1:
        image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I;16"):  # Pillow's own conversion would clip all above 255
        image = Image.fromarray((np.array(image) // 257).astype(np.uint8))
    if image.mode in ("I", "F"):
        raise ValueError(
            f"image {str(path)!r} has mode {image.mode}, whose scale of values is unknown; save it with 8 or 16 bits a channel"
        )
    pixels = np.array(image if image.mode == "RGB" else image.convert("RGB"))
    return tv_tensors.Image(torch.from_numpy(pixels).permute(2, 0, 1))


def read_label_map(path: str | os.PathLike[str], classes: Classes | None = None) -> tv_tensors.Mask:
    """A single-channel image (grey or palette) as class indices, uint8 (H, W).

    Args:
        path: the file.
        classes: with them, an RGB image is read too, each pixel as the class of its colour; black is 255 unless it is a class's.

    Raises:
        ValueError: naming the file, when it cannot be decoded, has more than 8 bits, or colours that are no class's.
    """
    label = _open(path)
    if label.mode == "RGB" and classes is not None:
        return tv_tensors.Mask(torch.from_numpy(_by_color(np.array(label), classes, path)))
    if label.mode not in ("L", "P", "1"):
        raise ValueError(
            f"label map {str(path)!r} has mode {label.mode}; class indices need one 8-bit channel (mode L or P): "
            "convert the colours to indices first"
        )
    indices = np.array(label)
    return tv_tensors.Mask(torch.from_numpy(indices.astype(np.uint8, copy=False)))


def _by_color(pixels: np.ndarray, classes: Classes, path: str | os.PathLike[str]) -> np.ndarray:
    index_of = {(0, 0, 0): IGNORE_INDEX} | {color: k for k, color in reversed(list(enumerate(classes.colors)))}
    repeated = [color for color in classes.colors if classes.colors.count(color) > 1]
    if repeated:
        raise ValueError(f"label map {str(path)!r} is coded by colour, and {repeated[0]} is the colour of more than one class")
    packed = pixels.astype(np.int32) @ np.array([1 << 16, 1 << 8, 1], np.int32)
    codes, inverse, counts = np.unique(packed, return_inverse=True, return_counts=True)
    colors = [(int(code) >> 16, int(code) >> 8 & 255, int(code) & 255) for code in codes]
    unknown = [place for place, color in enumerate(colors) if color not in index_of]
    if unknown:
        worst = max(unknown, key=lambda place: counts[place])
        raise ValueError(
            f"label map {str(path)!r} has the colour {colors[worst]} on {counts[worst]} of {packed.size} pixels, which is no class's; "
            "give each class its colour (classes.colors); save it as PNG, since JPEG changes colours"
        )
    return np.array([index_of[color] for color in colors], np.uint8)[inverse.reshape(packed.shape)]


def _open(path: str | os.PathLike[str]) -> Image.Image:
    try:
        with Image.open(path) as image:
            if image.format == "PNG":  # decoding alone does not look at the checksums of the pixels
                with Image.open(path) as checked:
                    checked.verify()
            image.load()
            return image
    except FileNotFoundError:
        raise
    except Image.DecompressionBombError as error:
        raise ValueError(
            f"image {str(path)!r} is larger than Pillow reads ({error}); save its pixels with numpy.save: `segformer predict` maps NAME.npy"
        ) from error
    except Exception as error:  # a broken file raises whatever its decoder raises: OSError, SyntaxError, struct.error, …
        raise ValueError(f"cannot read image {str(path)!r}: {error}") from error


def check_labels(label: Tensor, num_classes: int, what: str) -> None:
    """Refuse a label map with a value that is neither a class nor 255.

    Raises:
        ValueError: naming ``what`` was read, its most frequent wrong value, how often it occurs, and the likely cure.
    """
    if label.dtype == torch.uint8 and label.numel() and (label + 1).amax() <= num_classes:  # 255 + 1 is 0; much faster than what follows
        return
    wrong, counts = label[(label < 0) | ((label >= num_classes) & (label != IGNORE_INDEX))].unique(return_counts=True)
    if len(wrong):
        value, count = int(wrong[counts.argmax()]), int(counts.max())
        raise ValueError(
            f"{what} holds the value {value} on {count} of {label.numel()} pixels; valid are 0 to {num_classes - 1}, and the ignore index. "
            f"Name more classes, set ignore_index={value}, or map the values first (are these another data set's, or counted from 1?)"
        )


class FolderDataset(Dataset):
    """Images beside label maps, paired by their path without suffix: ``images/a/1.jpg`` with ``labels/a/1.png``.

    A sample is ``(image, label)``: uint8 (3, H, W) and uint8 class indices (H, W), 255 = ignore.

    Args:
        images: folder of images, searched recursively.
        labels: folder of label maps: of one channel, or coded by the classes' colours.
        classes: names and colours; indices from 0 to their number - 1 are valid.
        ignore_index: the one value of the label maps that means no class. Samples say 255 in its place.
        label_map: the class of each value that a label map may hold, 255 for none, where the values are not the classes already;
            ``{0: 0, 255: 1}`` reads binary masks.
        image_suffix: what image names end in that their pair's does not, such as ``"_leftImg8bit"``; others are left out.
        label_suffix: the same of label maps.
        names: the pairs' names, one a line of a text file; by default all there are.

    Raises:
        FileNotFoundError: when a folder is missing or empty.
        ValueError: at once when an image has no label map or the reverse, or ``ignore_index`` is a class; on access when a file is corrupt,
            the two sizes differ, or a label map holds a value or colour that is neither a class nor ignored.
    """

    def __init__(
        self,
        images: str | os.PathLike[str],
        labels: str | os.PathLike[str],
        classes: Classes,
        ignore_index: int = IGNORE_INDEX,
        label_map: Mapping[int, int] | None = None,
        image_suffix: str = "",
        label_suffix: str = "",
        names: str | os.PathLike[str] | None = None,
    ) -> None:
        if len(classes) > IGNORE_INDEX:
            raise ValueError(f"{len(classes)} classes; 8-bit label maps hold at most {IGNORE_INDEX}, as {IGNORE_INDEX} means no class")
        if label_map is not None and ignore_index != IGNORE_INDEX:
            raise ValueError(f"ignore_index={ignore_index} beside a label_map; say there that {ignore_index} is {IGNORE_INDEX}")
        if not len(classes) <= ignore_index <= 255:
            raise ValueError(
                f"ignore_index={ignore_index} must be a value that is no class, from {len(classes)} to 255: the {len(classes)} classes "
                f"({classes.names[0]}, …, {classes.names[-1]}) are 0 to {len(classes) - 1}"
            )
        self.classes = classes
        self.ignore_index = ignore_index
        self.label_map = None if label_map is None else _table(label_map, classes)
        image_of = _by_stem(images, image_suffix)
        label_of = _by_stem(labels, label_suffix)
        if names is not None:
            listed = [name for line in Path(names).read_text().splitlines() if (name := line.strip())]
            if not listed:
                raise ValueError(f"{str(names)!r} lists no name")
            absent = [name for name in listed if name not in image_of and name not in label_of]
            if absent:
                raise ValueError(f"{str(names)!r} lists {absent[0]!r}, of which there is neither image nor label map in {str(images)!r}")
            image_of, label_of = ({name: of[name] for name in listed if name in of} for of in (image_of, label_of))
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
        image, label = read_image(image_path), read_label_map(label_path, self.classes if self.label_map is None else None)
        if image.shape[-2:] != label.shape:
            raise ValueError(
                f"image {str(image_path)!r} is {image.shape[1]}×{image.shape[2]} but its label map {str(label_path)!r} "
                f"{label.shape[0]}×{label.shape[1]} (height × width); give them one size"
            )
        if self.label_map is not None:
            label = _mapped(label, self.label_map, label_path)
        elif self.ignore_index != IGNORE_INDEX:
            label[label == self.ignore_index] = IGNORE_INDEX
        check_labels(label, len(self.classes), f"label map {str(label_path)!r}")
        return image, label


def _mapped(label: Tensor, table: Tensor, path: Path) -> tv_tensors.Mask:
    mapped = table[label.long()]
    if (mapped < 0).any():
        counts = torch.bincount(label[mapped < 0].flatten())
        raise ValueError(
            f"label map {str(path)!r} holds the value {int(counts.argmax())} on {int(counts.max())} of {label.numel()} pixels, which "
            "label_map does not list; give it a class, or 255 for none"
        )
    return tv_tensors.Mask(mapped.to(torch.uint8))


def _table(label_map: Mapping[int, int], classes: Classes) -> Tensor:
    """A label map's 256 possible values to classes, -1 where there is none."""
    table = torch.full((256,), -1, dtype=torch.int16)
    for value, k in label_map.items():
        if not 0 <= int(value) <= 255:
            raise ValueError(f"label_map lists the value {value}; 8-bit label maps hold 0 to 255")
        if not (0 <= k < len(classes) or k == IGNORE_INDEX):
            raise ValueError(f"label_map gives {value} the class {k}; there are 0 to {len(classes) - 1}, and {IGNORE_INDEX} for none")
        table[int(value)] = k
    return table


def _by_stem(folder: str | os.PathLike[str], suffix: str = "") -> dict[str, Path]:
    stems: dict[str, Path] = {}
    for path in find_images(folder):
        stem = str(path.relative_to(folder).with_suffix(""))
        if not stem.endswith(suffix):
            continue
        stem = stem.removesuffix(suffix)
        if stem in stems:
            raise ValueError(f"{str(stems[stem])!r} and {str(path)!r} have one name; which of them makes the pair? Remove one")
        stems[stem] = path
    if not stems:
        raise FileNotFoundError(f"no image in {str(folder)!r} has a name that ends in {suffix!r}")
    return stems
