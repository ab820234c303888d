"""Folders of images and label maps."""

from __future__ import annotations

import csv
import os
import unicodedata
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import chain
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset
from torchvision import tv_tensors

from segformer.data.bands import SUFFIXES
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
    check_orientation,
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

NUM_VALUES = 1 << 16  # of a 16-bit label map
SAMPLED_PAIRS = 64  # whose pixels are read before a run


class DataError(ValueError):
    """Raised for errors in the files of a data set.

    Args:
        faults: One sentence for each error, with the file and the cure.
        found: The data set or data module without the faulty files.
    """

    def __init__(self, faults: Sequence[str], found: Any) -> None:
        more = (
            f"; and {len(faults) - 3} more errors: `segformer check` lists all"
            if len(faults) > 3
            else ""
        )
        super().__init__("; ".join(faults[:3]) + more)
        self.faults = list(faults)
        self.found = found


class FolderDataset(Dataset):
    """Images and label maps in two folders, paired by their path without suffix.

    ``images/a/1.jpg`` belongs to ``labels/a/1.png``. A sample is ``(image, label)``: uint8
    (3, H, W), and class indices (H, W), uint8 with 255 = ignore, or int32 with 65535 = ignore for
    more than 255 classes.

    Args:
        images: Folder of images, searched recursively.
        labels: Folder of label maps, with class indices or with the classes' colours. It may be
            the folder of the images, if image_suffix and label_suffix differ, or a folder in it.
        classes: Names and colours of the classes; valid indices are 0 to ``len(classes) - 1``.
        ignore_index: Another value of the label maps that is ignored, in addition to 255 (65535).
        label_map: Class of each value that a label map may hold, 255 (65535) for ignored values;
            by default the values are the classes. ``{0: 0, 255: 1}`` reads binary masks.
        image_suffix: Suffix of the images' names that is not part of the pair's name, such as
            ``"_leftImg8bit"``; files without it are left out. It may include the file type, as in
            ``"_rgb.png"``.
        label_suffix: The same for label maps.
        names: Text file with the names of the pairs to use, one per line; by default all are used.
            Or a CSV file with the columns ``image`` and ``label``, which holds the paths of each
            pair's files below the two folders; suffixes are not used then.
        palette: ``"index"`` if the values of palette files are class indices, ``"color"`` if their
            colours are the classes' (see :func:`~segformer.data.labels.read_label_map`); by
            default the palette of each file must show which.

    Raises:
        FileNotFoundError: If a folder is missing or empty.
        ValueError: When it is built, if an image has no label map or the reverse
            (:class:`DataError`), or ``ignore_index`` is a class. On access, if a file is corrupt,
            the two sizes differ, the coding of a label map is unclear, or it holds a value or
            colour that is neither a class nor ignored.
    """

    SUFFIXES: ClassVar[tuple[str, ...]] = ()  # of images, beside those of photographs

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
        if ignore_index is None:
            ignore_index = classes.ignore_index
        _check_options(classes, ignore_index, label_map, palette)
        self.classes = classes
        self.ignore_index = ignore_index
        self.label_map = None if label_map is None else _table(label_map, classes)
        self.palette: Coding | None = palette if label_map is None else "index"
        pairs, faults = _pairs(
            Path(images), Path(labels), image_suffix, label_suffix, names, self.SUFFIXES
        )
        self._set_pairs(pairs)
        if faults:
            raise DataError(faults, self)

    def _set_pairs(self, pairs: list[tuple[Path, Path]]) -> None:
        self.pairs = pairs

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: int) -> tuple[tv_tensors.Image, tv_tensors.Mask]:
        image, label = map(decode, self.pairs[index])
        _check_pair(image.header, label.header)
        return rgb(image), self._classes_of(label)

    def _classes_of(self, file: Decoded) -> tv_tensors.Mask:
        """Returns the class indices of a decoded label map."""
        return self._classes_of_values(
            to_indices(file, self.classes, self.palette), file.header.path
        )

    def _classes_of_values(self, label: Tensor, path: Path) -> tv_tensors.Mask:
        """Returns the class indices of a label map's values (H, W)."""
        what = f"label map {str(path)!r}"
        label = label.to(torch.promote_types(label.dtype, label_type(len(self.classes))))
        if self.label_map is not None:
            label = _mapped(label, self.label_map, self.classes.ignore_index, what)
        elif self.ignore_index != self.classes.ignore_index:
            label = label.int()  # PyTorch compares uint8 with numbers above 255 modulo 256
            label = label.masked_fill(label == self.ignore_index, self.classes.ignore_index)
        check_labels(label, len(self.classes), what)
        return tv_tensors.Mask(label.to(label_type(len(self.classes))))

    def faults_of(self, index: int) -> list[str]:
        """Reads a pair; returns one sentence for each error."""
        image, label = self.pairs[index]
        steps = (
            lambda: _check_pair(read_header(image), read_header(label)),
            lambda: rgb(decode(image)),
            lambda: self._classes_of(decode(label)),
        )
        return faults_in(*steps)

    def check_files(self, samples: int = SAMPLED_PAIRS, seed: int = 0) -> tuple[str, ...]:
        """Checks the headers of all files and the pixels of some pairs, before a run starts.

        Args:
            samples: Number of pairs whose pixels are read.
            seed: Random seed for their choice.

        Returns:
            Names of the classes that occur in none of these pairs.

        Raises:
            DataError: If a header shows that a file cannot be used, a pair cannot be read, or the
                label maps' ignored value seems to be a class.
        """
        with ThreadPoolExecutor(8) as readers:  # hides the latency of network folders
            faults = list(chain(*readers.map(self._header_faults, range(len(self)))))
        if faults:
            raise DataError(faults, self)
        histogram = np.zeros(len(self.classes) + 1, np.int64)
        chosen = np.random.default_rng(seed).permutation(len(self))[:samples].tolist()
        for index in chosen:
            try:
                histogram += count_labels(self[index][1], len(self.classes))
            except (OSError, ValueError):
                faults += self.faults_of(index)
        faults += [] if faults else self.problems_of_one_class(histogram)
        if faults:
            raise DataError(faults, self)
        return tuple(
            name for name, count in zip(self.classes.names, histogram, strict=False) if not count
        )

    def _header_faults(self, index: int) -> list[str]:
        image, label = self.pairs[index]
        return faults_in(
            lambda: coding_of(read_header(label), self.classes, self.palette),
            lambda: _check_pair(read_header(image), read_header(label)),
        )

    def problems_of_one_class(self, histogram: np.ndarray) -> list[str]:
        """Returns an error if the label maps hold at most one class, and the ignored value.

        Masks of 0 and 255 whose 255 should be a class look like this.

        Args:
            histogram: Number of pixels of each class, and of ignored pixels (K + 1,), from
                :func:`count_labels`.
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
            f"the label maps in {folder!r} hold only {values}, and {ignored} is ignored, so that "
            f"at most one class is left; set `label_map: {as_class}` if {ignored} is a class, or "
            f"`label_map: {as_none}` with all other values if it is not"
        ]


def _check_options(
    classes: Classes,
    ignore_index: int,
    label_map: Mapping[int, int] | None,
    palette: Coding | None,
) -> None:
    """Raises ValueError if the options of a :class:`FolderDataset` contradict each other."""
    own = classes.ignore_index
    if label_map is not None and ignore_index != own:
        raise ValueError(
            f"ignore_index={ignore_index} and a label_map are given; remove ignore_index, and "
            f"map {ignore_index} to {own} in label_map"
        )
    if not len(classes) <= ignore_index < NUM_VALUES:
        raise ValueError(
            f"ignore_index={ignore_index} must be a value that is no class, from "
            f"{len(classes)} to {NUM_VALUES - 1}: the {len(classes)} classes "
            f"({classes.names[0]}, …, {classes.names[-1]}) are 0 to {len(classes) - 1}"
        )
    if palette not in (None, "index", "color"):
        raise ValueError(
            f"palette={palette!r}; choose 'index' or 'color', or leave it out, so that the "
            "palettes must show which"
        )
    if label_map is not None and palette == "color":
        raise ValueError(
            "palette='color' and a label_map, which maps values, are given; remove one"
        )


def count_labels(label: Tensor, num_classes: int) -> np.ndarray:
    """Returns the number of pixels of each class, and of ignored pixels (K + 1,)."""
    counts = np.bincount(label.numpy().ravel(), minlength=num_classes + 1)
    return np.append(counts[:num_classes], counts[num_classes:].sum())


def faults_in(*steps: Any) -> list[str]:
    """Returns the messages of the errors that the steps raise, without repetition."""
    faults = []
    for step in steps:
        try:
            step()
        except (OSError, ValueError) as error:
            faults.append(str(error))
    return list(dict.fromkeys(faults))


def _check_pair(image: Header, label: Header) -> None:
    check_orientation(image, label)
    check_sizes(image.path, image.shown_size, label.path, label.shown_size)


def check_sizes(
    image: Path, image_size: tuple[int, int], label: Path, label_size: tuple[int, int]
) -> None:
    """Raises ValueError if an image and its label map differ in height or width."""
    if image_size != label_size:
        raise ValueError(
            f"image {str(image)!r} is {image_size[0]}×{image_size[1]} but its label map "
            f"{str(label)!r} is {label_size[0]}×{label_size[1]} (height × width); save both in the "
            "same size"
        )


def _mapped(label: Tensor, table: Tensor, ignored: int, what: str) -> Tensor:
    """Returns the entries of a table at a label map's values.

    Raises:
        ValueError: If the table has no entry for a value. The message states ``what``, the most
            frequent such value, and that ``ignored`` is the class of ignored values.
    """
    label = label.long()
    is_value = (label >= 0) & (label < NUM_VALUES)
    mapped = table[label.where(is_value, 0)].where(is_value, -1)
    if (mapped < 0).any():
        values, counts = label[mapped < 0].unique(return_counts=True)
        raise ValueError(
            f"{what} holds the value {int(values[counts.argmax()])} on {int(counts.max())} of "
            f"{label.numel()} pixels, which label_map does not list; map it to a class, or to "
            f"{ignored} to ignore it"
        )
    return mapped


def _table(label_map: Mapping[int, int], classes: Classes) -> Tensor:
    """Returns the class of each possible value of a label map, -1 for unlisted values."""
    table = torch.full((NUM_VALUES,), -1, dtype=torch.int32)
    for value, k in label_map.items():
        if not 0 <= int(value) < NUM_VALUES:
            raise ValueError(
                f"label_map lists the value {value}; label maps hold only 0 to {NUM_VALUES - 1}"
            )
        if not (0 <= k < len(classes) or k == classes.ignore_index):
            raise ValueError(
                f"label_map maps {value} to the class {k}; use 0 to {len(classes) - 1}, or "
                f"{classes.ignore_index} to ignore it"
            )
        table[int(value)] = k
    return table


def _pairs(
    images: Path,
    labels: Path,
    image_suffix: str,
    label_suffix: str,
    names: str | os.PathLike[str] | None,
    also: Sequence[str],
) -> tuple[list[tuple[Path, Path]], list[str]]:
    """Returns the pairs of two folders, and one sentence for each error."""
    if names is not None and Path(names).suffix.lower() == ".csv":
        return _listed_pairs(images, labels, Path(names))
    faults: list[str] = []
    image_paths, label_paths = _image_and_label_paths(
        images, labels, image_suffix, label_suffix, also
    )
    image_of = _by_name(images, image_paths, image_suffix, faults)
    label_of = _by_name(labels, label_paths, label_suffix, faults)
    if names is not None:
        listed = read_names(names)
        faults += [
            f"{str(names)!r} lists {name!r}, but {str(images)!r} has no such image and "
            f"{str(labels)!r} no such label map; add them, or remove the line"
            for name in listed
            if name not in image_of and name not in label_of
        ]
        image_of, label_of = (
            {name: path_of[name] for name in listed if name in path_of}
            for path_of in (image_of, label_of)
        )
    faults += _unpaired(image_of, label_of, f"label map for {{}}: none below {str(labels)!r}")
    faults += _unpaired(label_of, image_of, f"image for {{}}: none below {str(images)!r}")
    pairs = [(image_of[name], label_of[name]) for name in image_of if name in label_of]
    return pairs, sorted(faults)


def _listed_pairs(
    images: Path, labels: Path, table: Path
) -> tuple[list[tuple[Path, Path]], list[str]]:
    """Returns the pairs that a CSV file lists, and one sentence for each missing file."""
    rows = list(csv.DictReader(_read_text(table).splitlines()))
    if not rows or any(not row.get("image") or not row.get("label") for row in rows):
        raise ValueError(
            f"{str(table)!r} must have the columns image and label, and the two paths of a pair in "
            "each line; correct it"
        )
    pairs = [(images / row["image"], labels / row["label"]) for row in rows]
    missing = [path for pair in pairs for path in pair if not path.is_file()]
    faults = [
        f"{str(table)!r} lists {str(path)!r}, which does not exist; add it, or remove the line"
        for path in missing
    ]
    gone = set(missing)
    return [pair for pair in pairs if gone.isdisjoint(pair)], sorted(faults)


def _unpaired(files: dict[str, Path], partners: dict[str, Path], missing: str) -> list[str]:
    """Returns one sentence for each file without a partner of the same name."""
    by_case = {name.casefold(): path for name, path in partners.items()}
    faults = []
    for name in files.keys() - partners.keys():
        file, similar = repr(str(files[name])), by_case.get(name.casefold())
        hint = f" ({str(similar)!r} differs in case)" if similar else ""
        faults.append(
            f"no {missing.format(file)} has its path and name, apart from the suffix{hint}; add "
            f"it, or remove {file}"
        )
    return faults


def read_names(path: str | os.PathLike[str]) -> list[str]:
    """Returns the lines of a text file that are not empty.

    Raises:
        ValueError: If it is no text in UTF-8, or all lines are empty.
    """
    lines = _read_text(Path(path)).splitlines()
    listed = [composed(name) for line in lines if (name := line.strip())]
    if not listed:
        raise ValueError(f"{str(path)!r} lists no name; write the name of one pair on each line")
    return listed


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{str(path)!r} is not text in UTF-8 ({error.reason}); save it as UTF-8"
        ) from error


def _image_and_label_paths(
    images: Path, labels: Path, image_suffix: str, label_suffix: str, also: Sequence[str]
) -> tuple[list[Path], list[Path]]:
    """Returns the images and the label maps of two folders, one of which may contain the other."""
    image_paths, label_paths = find_images(images, also), find_images(labels)
    in_both = set(image_paths) & set(label_paths)
    if images.resolve() == labels.resolve():
        image_paths, label_paths = _split_by_suffix(image_paths, image_suffix, label_suffix)
    elif labels.resolve().is_relative_to(images.resolve()):
        image_paths = [path for path in image_paths if path not in in_both]
    else:
        label_paths = [path for path in label_paths if path not in in_both]
    for folder, paths, wanted, others in (
        (images, image_paths, "images", "label maps"),
        (labels, label_paths, "label maps", "images"),
    ):
        if not paths:
            raise FileNotFoundError(
                f"{str(folder)!r} holds only {others}, and no {wanted}; add {wanted}, or correct "
                "the folders and suffixes"
            )
    return image_paths, label_paths


def _split_by_suffix(
    paths: list[Path], image_suffix: str, label_suffix: str
) -> tuple[list[Path], list[Path]]:
    """Returns the images and the label maps of one folder.

    If a name ends in both suffixes, the longer one decides.
    """
    if image_suffix == label_suffix:
        raise ValueError(
            f"images and label maps are in the folder {str(paths[0].parent)!r} with the same "
            f"suffix {image_suffix!r}; set image_suffix or label_suffix, such as _mask or .png"
        )
    is_longer = len(label_suffix) > len(image_suffix)

    def is_label(path: Path) -> bool:
        fits_image, fits_label = (
            _without_suffix(path, suffix) is not None for suffix in (image_suffix, label_suffix)
        )
        return fits_label and (is_longer or not fits_image)

    return (
        [path for path in paths if not is_label(path)],
        [path for path in paths if is_label(path)],
    )


def _by_name(folder: Path, paths: list[Path], suffix: str, faults: list[str]) -> dict[str, Path]:
    """Returns the files of a folder by the name of their pair.

    If two files have the same name, an error is added to ``faults``.
    """
    path_of: dict[str, Path] = {}
    for path in paths:
        name = _without_suffix(path.relative_to(folder), suffix)
        if name in path_of:
            faults.append(
                f"{str(path_of[name])!r} and {str(path)!r} have the same name, apart from the "
                "suffix; remove one of them"
            )
        elif name is not None:
            path_of[name] = path
    if not path_of:
        raise FileNotFoundError(
            f"no image in {str(folder)!r} has a name that ends in {suffix!r}; correct the suffix"
        )
    return path_of


def _without_suffix(path: Path, suffix: str) -> str | None:
    """Returns a file's name without type and suffix; None if it does not end in the suffix."""
    has_file_type = suffix.lower().endswith((*IMAGE_SUFFIXES, *SUFFIXES))
    name = (path if has_file_type else path.with_suffix("")).as_posix()
    return composed(name.removesuffix(suffix)) if name.endswith(suffix) else None


def composed(name: str) -> str:
    """Returns a name with composed accents; macOS writes ä as two characters, others as one."""
    return unicodedata.normalize("NFC", name)
