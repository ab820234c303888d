"""Folders of images and label maps."""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset
from torchvision import tv_tensors

from segformer.data.classes import IGNORE_INDEX, Classes
from segformer.data.images import (
    IMAGE_SUFFIXES,
    Decoded,
    Header,
    decode,
    find_images,
    read_header,
    read_image,
    rgb,
)
from segformer.data.labels import (
    Coding,
    check_labels,
    check_turn,
    coding_of,
    label_type,
    read_label_map,
    to_indices,
)

__all__ = [
    "IGNORE_INDEX",
    "DataError",
    "FolderDataset",
    "check_labels",
    "find_images",
    "read_image",
    "read_label_map",
]

VALUES = 1 << 16  # of a label map of 16 bits
PROVED = 64  # pairs of a data set whose pixels are read before a run


class DataError(ValueError):
    """What is wrong with files of a data set.

    Args:
        faults: One sentence a fault, with the file and the cure.
        found: The data set or data module without what is wrong.
    """

    def __init__(self, faults: Sequence[str], found: Any) -> None:
        more = (
            f"; and {len(faults) - 3} faults more: `segformer check` lists all"
            if len(faults) > 3
            else ""
        )
        super().__init__("; ".join(faults[:3]) + more)
        self.faults = list(faults)
        self.found = found


class FolderDataset(Dataset):
    """Images beside label maps, paired by their path without suffix.

    ``images/a/1.jpg`` belongs to ``labels/a/1.png``. A sample is ``(image, label)``: uint8 (3, H, W)
    and class indices (H, W), which are uint8 with 255 = ignore, and int32 with 65535 = ignore for
    more than 255 classes.

    Args:
        images: Folder of images, searched recursively.
        labels: Folder of label maps: of one channel, or coded by the classes' colours. It may be
            the folder of the images, where the suffixes tell the two apart, or lie inside of it.
        classes: Names and colours; indices from 0 to their number - 1 are valid.
        ignore_index: The one value of the label maps that means no class, beside the samples' own,
            255 or 65535.
        label_map: The class of each value that a label map may hold, 255 (65535) for none, where
            the values are not the classes already; ``{0: 0, 255: 1}`` reads binary masks.
        image_suffix: What image names end in that their pair's does not, such as
            ``"_leftImg8bit"``; others are left out. It may have an ending, as ``"_rgb.png"`` has.
        label_suffix: The same of label maps.
        names: The pairs' names, one a line of a text file; by default all there are.
        palette: ``"index"`` where the values of palette files are class indices whatever their
            colours, ``"color"`` where colours are the classes', see
            :func:`~segformer.data.labels.read_label_map`; by default a file must prove which.

    Raises:
        FileNotFoundError: If a folder is missing or empty.
        ValueError: At once if an image has no label map or the reverse (:class:`DataError`), or
            ``ignore_index`` is a class; on access if a file is corrupt, the two sizes differ, or a
            label map's meaning is not plain or it holds a value or colour that is neither a class
            nor ignored.
    """

    def __init__(
        self,
        images: str | os.PathLike[str],
        labels: str | os.PathLike[str],
        classes: Classes,
        ignore_index: int | None = None,
        label_map: Mapping[int, int] | None = None,
        image_suffix: str = "",
        label_suffix: str = "",
        names: str | os.PathLike[str] | None = None,
        palette: Coding | None = None,
    ) -> None:
        own = classes.ignore_index
        ignore_index = own if ignore_index is None else ignore_index
        if label_map is not None and ignore_index != own:
            raise ValueError(
                f"ignore_index={ignore_index} beside a label_map; say there that {ignore_index} is {own}"
            )
        if not len(classes) <= ignore_index < VALUES:
            raise ValueError(
                f"ignore_index={ignore_index} must be a value that is no class, from "
                f"{len(classes)} to {VALUES - 1}: the {len(classes)} "
                f"classes ({classes.names[0]}, …, {classes.names[-1]}) are 0 to "
                f"{len(classes) - 1}"
            )
        if palette not in (None, "index", "color"):
            raise ValueError(
                f"palette={palette!r}; choose index, color, or none, so that files must prove which"
            )
        if label_map is not None and palette == "color":
            raise ValueError("palette='color' beside a label_map, which maps values; remove one")
        self.classes = classes
        self.ignore_index = ignore_index
        self.label_map = None if label_map is None else _table(label_map, classes)
        self.palette: Coding | None = palette if label_map is None else "index"
        self.pairs, faults = _pairs(Path(images), Path(labels), image_suffix, label_suffix, names)
        if faults:
            raise DataError(faults, self)

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: int) -> tuple[tv_tensors.Image, tv_tensors.Mask]:
        image, label = map(decode, self.pairs[index])
        _check_pair(image.header, label.header)
        return rgb(image), self._classes_of(label)

    def _classes_of(self, file: Decoded) -> tv_tensors.Mask:
        """The samples' labels of a decoded label map."""
        what = f"label map {str(file.header.path)!r}"
        label = to_indices(file, self.classes, self.palette)
        label = label.to(torch.promote_types(label.dtype, label_type(len(self.classes))))
        if self.label_map is not None:
            label = _mapped(label, self.label_map, what)
        elif self.ignore_index != self.classes.ignore_index:
            label = label.int()  # in uint8, PyTorch compares with a greater number modulo 256
            label = label.masked_fill(label == self.ignore_index, self.classes.ignore_index)
        check_labels(label, len(self.classes), what)
        return tv_tensors.Mask(label.to(label_type(len(self.classes))))

    def faults_of(self, index: int) -> list[str]:
        """Returns all that is wrong with a pair, a sentence each; reads both files."""
        image, label = self.pairs[index]
        steps = (
            lambda: _check_pair(read_header(image), read_header(label)),
            lambda: rgb(decode(image)),
            lambda: self._classes_of(decode(label)),
        )
        return _faults(*steps)

    def prove(self, samples: int = PROVED, seed: int = 0) -> tuple[str, ...]:
        """Look at the headers of all files and at some pairs' pixels, before a run does.

        Args:
            samples: Number of pairs whose pixels are read.
            seed: Seed of their choice.

        Returns:
            Names of the classes that occur in none of these pairs.

        Raises:
            DataError: If a file's header shows that it is not read, a pair cannot be read, or the
                ignored value takes the place of a class.
        """
        with ThreadPoolExecutor(8) as readers:  # of a server's files one waits for the other
            faults = [
                fault
                for found in readers.map(self._header_faults, range(len(self)))
                for fault in found
            ]
        if faults:
            raise DataError(faults, self)
        histogram = np.zeros(len(self.classes) + 1, np.int64)
        chosen = np.random.default_rng(seed).permutation(len(self))[:samples].tolist()
        for index in chosen:
            try:
                histogram += count_labels(self[index][1], len(self.classes))
            except (OSError, ValueError):
                faults += self.faults_of(index)
        faults += [] if faults else self.lone_class(histogram)
        if faults:
            raise DataError(faults, self)
        return tuple(
            name for name, count in zip(self.classes.names, histogram, strict=False) if not count
        )

    def _header_faults(self, index: int) -> list[str]:
        image, label = self.pairs[index]
        return _faults(
            lambda: coding_of(read_header(label), self.classes, self.palette),
            lambda: _check_pair(read_header(image), read_header(label)),
        )

    def lone_class(self, histogram: np.ndarray) -> list[str]:
        """Returns a fault where labels are of one class and the ignored value alone.

        So look masks of 0 and 255 whose 255 was to be a class.

        Args:
            histogram: Pixels of each class, and of none (K + 1,), see :func:`count_labels`.
        """
        found = np.flatnonzero(histogram[:-1]).tolist()
        if self.label_map is not None or not histogram[-1] or len(found) > 1:
            return []
        if coding_of(read_header(self.pairs[0][1]), self.classes, self.palette) != "index":
            return []
        ignored, own = self.ignore_index, self.classes.ignore_index
        values = f"{found[0]} and {ignored}" if found else f"{ignored}"
        as_class = {0: 0, ignored: 1} if found in ([0], []) else {found[0]: found[0], ignored: 0}
        as_none = {found[0]: found[0], ignored: own} if found else {ignored: own}
        folder = str(self.pairs[0][1].parent)
        return [
            f"the label maps in {folder!r} hold {values} alone, and {ignored} is ignored: nothing "
            "tells classes apart; set "
            f"`label_map: {as_class}` if {ignored} is a class, `label_map: {as_none}` and the "
            "others if it is none"
        ]


def count_labels(label: Tensor, num_classes: int) -> np.ndarray:
    """The pixels (K + 1,) of each class, and of none, of a sample's label map."""
    counts = np.bincount(label.numpy().ravel(), minlength=num_classes + 1)
    return np.append(counts[:num_classes], counts[num_classes:].sum())


def _faults(*steps: Any) -> list[str]:
    """What the steps raise, each sentence once."""
    faults = []
    for step in steps:
        try:
            step()
        except (OSError, ValueError) as error:
            faults.append(str(error))
    return list(dict.fromkeys(faults))


def _check_pair(image: Header, label: Header) -> None:
    check_turn(image, label)
    if image.shown_size != label.shown_size:
        raise ValueError(
            f"image {str(image.path)!r} is {image.shown_size[0]}×{image.shown_size[1]} but its "
            f"label map {str(label.path)!r} "
            f"{label.shown_size[0]}×{label.shown_size[1]} (height × width); give them one size"
        )


def _mapped(label: Tensor, table: Tensor, what: str) -> Tensor:
    label = label.long()
    is_value = (label >= 0) & (label < VALUES)
    mapped = table[label.where(is_value, 0)].where(is_value, -1)
    if (mapped < 0).any():
        values, counts = label[mapped < 0].unique(return_counts=True)
        raise ValueError(
            f"{what} holds the value {int(values[counts.argmax()])} on {int(counts.max())} of "
            f"{label.numel()} pixels, which "
            "label_map does not list; give it a class, or 255 for none"
        )
    return mapped


def _table(label_map: Mapping[int, int], classes: Classes) -> Tensor:
    """A label map's possible values to classes, -1 where there is none."""
    table = torch.full((VALUES,), -1, dtype=torch.int32)
    for value, k in label_map.items():
        if not 0 <= int(value) < VALUES:
            raise ValueError(
                f"label_map lists the value {value}; label maps hold 0 to {VALUES - 1}"
            )
        if not (0 <= k < len(classes) or k == classes.ignore_index):
            raise ValueError(
                f"label_map gives {value} the class {k}; there are 0 to {len(classes) - 1}, and {classes.ignore_index} for none"
            )
        table[int(value)] = k
    return table


def _pairs(
    images: Path,
    labels: Path,
    image_suffix: str,
    label_suffix: str,
    names: str | os.PathLike[str] | None,
) -> tuple[list[tuple[Path, Path]], list[str]]:
    """The pairs of two folders, and what has no pair."""
    faults: list[str] = []
    image_of, label_of = _by_name(images, labels, image_suffix, label_suffix, faults)
    if names is not None:
        listed = _names(names)
        faults += [
            f"{str(names)!r} lists {name!r}, of which there is neither image nor label map in {str(images)!r}"
            for name in listed
            if name not in image_of and name not in label_of
        ]
        image_of, label_of = (
            {name: of[name] for name in listed if name in of} for of in (image_of, label_of)
        )
    for have, lack, what, where in (
        (image_of, label_of, "label map", labels),
        (label_of, image_of, "image", images),
    ):
        by_case = {name.casefold(): path for name, path in lack.items()}
        for name in have.keys() - lack.keys():
            near = by_case.get(name.casefold())
            hint = f" ({str(near)!r} differs in case)" if near else ""
            faults.append(
                f"no {what} for {str(have[name])!r}: none below {str(where)!r} has its path and "
                f"name, suffix aside{hint}; "
                f"add it, or remove {str(have[name])!r}"
            )
    pairs = [(image_of[name], label_of[name]) for name in image_of if name in label_of]
    return pairs, sorted(faults)


def _names(path: str | os.PathLike[str]) -> list[str]:
    try:
        text = Path(path).read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{str(path)!r} is not text in UTF-8 ({error.reason}); save it so"
        ) from error
    listed = [_composed(name) for line in text.splitlines() if (name := line.strip())]
    if not listed:
        raise ValueError(f"{str(path)!r} lists no name")
    return listed


def _by_name(
    images: Path, labels: Path, image_suffix: str, label_suffix: str, faults: list[str]
) -> tuple[dict[str, Path], dict[str, Path]]:
    """Images and label maps by the name of their pair; the second of two with one name is a fault."""
    image_paths, label_paths = find_images(images), find_images(labels)
    if images.resolve() == labels.resolve():
        image_paths, label_paths = _told_apart(image_paths, image_suffix, label_suffix)
    else:  # one folder may lie inside of the other
        both = set(image_paths) & set(label_paths)
        if labels.resolve().is_relative_to(images.resolve()):
            image_paths = [path for path in image_paths if path not in both]
        else:
            label_paths = [path for path in label_paths if path not in both]
    found = []
    for folder, paths, suffix in (
        (images, image_paths, image_suffix),
        (labels, label_paths, label_suffix),
    ):
        of: dict[str, Path] = {}
        for path in paths:
            name = _without(suffix, path.relative_to(folder))
            if name in of:
                faults.append(
                    f"{str(of[name])!r} and {str(path)!r} have one name; which of them makes the pair? Remove one"
                )
            elif name is not None:
                of[name] = path
        if not of:
            raise FileNotFoundError(
                f"no image in {str(folder)!r} has a name that ends in {suffix!r}"
            )
        found.append(of)
    return found[0], found[1]


def _told_apart(
    paths: list[Path], image_suffix: str, label_suffix: str
) -> tuple[list[Path], list[Path]]:
    """Images and label maps of one folder: a file that both suffixes fit is of the longer one."""
    if image_suffix == label_suffix:
        raise ValueError(
            f"images and label maps are in the folder {str(paths[0].parent)!r} with the same "
            f"suffix {image_suffix!r}; set "
            "image_suffix or label_suffix, such as _mask or .png"
        )
    is_longer = len(label_suffix) > len(image_suffix)

    def is_label(path: Path) -> bool:
        fits_image, fits_label = (
            _without(suffix, path) is not None for suffix in (image_suffix, label_suffix)
        )
        return fits_label and (is_longer or not fits_image)

    return [path for path in paths if not is_label(path)], [
        path for path in paths if is_label(path)
    ]


def _without(suffix: str, path: Path) -> str | None:
    """A file's name without its ending and the suffix; None where it has another."""
    with_ending = suffix.lower().endswith(IMAGE_SUFFIXES)
    name = (path if with_ending else path.with_suffix("")).as_posix()
    return _composed(name.removesuffix(suffix)) if name.endswith(suffix) else None


def _composed(name: str) -> str:
    """One spelling of accents: macOS writes ä as two characters, other systems as one."""
    return unicodedata.normalize("NFC", name)
