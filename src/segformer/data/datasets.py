"""Folders of images and label maps."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import chain
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset
from torchvision import tv_tensors
from tqdm import tqdm

from segformer.data.annotations.areas import Picture
from segformer.data.annotations.drawing import Drawing, Drawn, Treatment
from segformer.data.annotations.formats import Annotations
from segformer.data.annotations.matching import find_sources
from segformer.data.classes import Classes
from segformer.data.images import Decoded, Header, decode, decode_rgb, read_header, rgb
from segformer.data.label_rasters import LabelRaster, label_raster
from segformer.data.labels import (
    Coding,
    Values,
    check_labels,
    check_orientation,
    check_turned,
    coding_of,
    label_type,
    values_of_file,
)
from segformer.data.pairing import find_pairs

NUM_VALUES = 1 << 16  # of a 16-bit label map
LEAST_VALUE = -(1 << 15)  # of a 16-bit label map with signs
SAMPLED_PAIRS = 64  # whose pixels are read before a run
# Options of annotations and of label maps, and those that the other kind has for the same.
INSTEAD = dict.fromkeys(("unlabelled", "class_map"), "ignore_index or label_map") | dict.fromkeys(
    ("ignore_index", "label_map", "palette"), "class_map"
)


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
            Or annotations, a file or a folder of files: COCO's, LabelMe's and Label Studio's JSON,
            CVAT's XML, YOLO's text, Kaggle's run-lengths, GeoJSON; or a folder with one mask a
            class. They are drawn when a sample is read.
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
        unlabelled: Class of pixels without annotation, by index or name, or ``"ignore"``.
        class_map: Class of names that annotations have and the classes have not, or ``"ignore"``,
            such as ``{van: car, sky: ignore}``.
        invalid_polygons: Whether polygons of annotations that cross themselves or their holes, or
            have no area, are refused, or drawn by the even-odd rule.

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
        labels: str | os.PathLike[str] | Annotations,
        classes: Classes,
        ignore_index: int | None = None,
        label_map: Mapping[int, int] | None = None,
        image_suffix: str = "",
        label_suffix: str = "",
        names: str | os.PathLike[str] | None = None,
        palette: Coding | None = None,
        unlabelled: int | str | None = None,
        class_map: Mapping[str, str] | None = None,
        invalid_polygons: Treatment = "refuse",
    ) -> None:
        if ignore_index is None:
            ignore_index = classes.ignore_index
        _check_options(classes, ignore_index, label_map, palette)
        self.classes = classes
        self.ignore_index = ignore_index
        self.label_map = None if label_map is None else _table(label_map, classes)
        self.palette: Coding | None = palette if label_map is None else "index"
        options = (classes, unlabelled, class_map, invalid_polygons)
        drawing = None if unlabelled is None else Drawing(*options)
        matched = find_sources(
            Path(images),
            labels,
            (image_suffix, label_suffix),
            names,
            self.SUFFIXES,
            drawing.names if drawing else list(classes.names),
        )
        self.drawn: Drawn | None = None
        if matched is None:
            refuse_options(
                "label maps",
                unlabelled=unlabelled,
                class_map=class_map,
                invalid_polygons=None if invalid_polygons == "refuse" else invalid_polygons,
            )
            assert not isinstance(labels, Annotations)
            pairs, faults = find_pairs(
                Path(images), Path(labels), image_suffix, label_suffix, names, self.SUFFIXES
            )
        else:
            refuse_options(
                "annotations",
                label_map=label_map,
                palette=palette,
                ignore_index=ignore_index if ignore_index != classes.ignore_index else None,
            )
            drawing = drawing or Drawing(*options)
            sources, faults = drawing.without_unknown(matched.sources)
            faults = matched.faults + faults
            self.drawn = Drawn(sources, drawing)
            pairs = [(image, source.path) for image, source in sources.items()]
        self._set_pairs(pairs)
        if faults:
            raise DataError(faults, self)

    def _set_pairs(self, pairs: list[tuple[Path, Path]]) -> None:
        self.pairs = pairs

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: int) -> tuple[tv_tensors.Image, tv_tensors.Mask]:
        image_path, label_path = self.pairs[index]
        header, image = decode_rgb(image_path)
        if self.drawn:
            return image, self.drawn.label(_picture(header, self.drawn))
        label = self._open_label(label_path)
        _check_pair(header, label.header)
        return image, self._classes_of(label)

    def label(self, index: int) -> tv_tensors.Mask:
        """Returns the label map (H, W) of a sample, without reading the image's pixels."""
        image_path, label_path = self.pairs[index]
        if self.drawn:
            return self.drawn.label(_picture(read_header(image_path), self.drawn))
        return self._classes_of(self._open_label(label_path))

    def _label_raster(self, path: Path, page: int | None = None) -> LabelRaster | None:
        return label_raster(path, page, self.classes, self.palette)

    def _open_label(self, path: Path) -> LabelRaster | Decoded:
        return self._label_raster(path) or decode(path)

    def _label_header(self, path: Path) -> Header:
        """Returns the header of a label map file, without decoding its pixels."""
        raster = self._label_raster(path)
        return raster.header if raster else read_header(path)

    def _classes_of(self, label: LabelRaster | Decoded) -> tv_tensors.Mask:
        """Returns the class indices of a label map that was opened or decoded."""
        return self._classes_of_values(self._values_of(label))

    def _values_of(self, label: LabelRaster | Decoded) -> Values:
        if isinstance(label, LabelRaster):
            return label.values()
        return values_of_file(label, self.classes, self.palette)

    def _classes_of_values(self, values: Values) -> tv_tensors.Mask:
        """Returns the class indices of a label map's values (H, W); no data are ignored."""
        known = self._known_classes(values.of_data, values.path)
        if values.valid is None:
            return tv_tensors.Mask(known)
        self._refuse_class_of_no_data(values)
        label = known.new_full(values.indices.shape, self.classes.ignore_index)
        label[values.valid] = known
        return tv_tensors.Mask(label)

    def _refuse_class_of_no_data(self, values: Values) -> None:
        """Raises ValueError if the value for no data is that of a class."""
        value, which = values.no_data, -1
        if value is None or not value.is_integer():  # infinite ones and NaN are none
            return
        if self.label_map is None:
            which = int(value)
        elif LEAST_VALUE <= value < NUM_VALUES:
            which = int(self.label_map[int(value) - LEAST_VALUE])
        if 0 <= which < len(self.classes):
            raise ValueError(
                f"label map {str(values.path)!r} states {value:g} as its value for no data, which "
                f"is the class {self.classes.names[which]!r}; if it is that class, remove the "
                "statement (gdal_edit.py -unsetnodata), or else map the other values by label_map"
            )

    def _known_classes(self, label: Tensor, path: Path) -> Tensor:
        """Returns the class indices of values."""
        what = f"label map {str(path)!r}"
        label = label.to(torch.promote_types(label.dtype, label_type(len(self.classes))))
        if self.label_map is not None:
            label = _mapped(label, self.label_map, self.classes.ignore_index, what)
        elif self.ignore_index != self.classes.ignore_index:
            label = label.int()  # PyTorch compares uint8 with numbers above 255 modulo 256
            label = label.masked_fill(label == self.ignore_index, self.classes.ignore_index)
        check_labels(label, len(self.classes), what)
        return label.to(label_type(len(self.classes)))

    def faults_of(self, index: int) -> list[str]:
        """Reads a pair; returns one sentence for each error."""
        image, label = self.pairs[index]
        if self.drawn:
            return faults_in(lambda: self[index])
        steps = (
            lambda: _check_pair(read_header(image), self._label_header(label)),
            lambda: rgb(decode(image)),
            lambda: self._classes_of(self._open_label(label)),
        )
        return faults_in(*steps)

    def check_files(self) -> tuple[str, ...]:
        """Checks the headers of all files and the pixels of 64 pairs, before a run starts.

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
        chosen = np.random.default_rng(0).permutation(len(self))[:SAMPLED_PAIRS].tolist()
        for index in chosen:
            try:
                histogram += count_labels(self[index][1], len(self.classes))
            except (OSError, ValueError):
                faults += self.faults_of(index)
        if not faults and self.problems_of_one_class(histogram, chosen):
            self._count_until_two(histogram, sorted(set(range(len(self))) - set(chosen)))
            faults = self.problems_of_one_class(histogram, chosen)
        if faults:
            raise DataError(faults, self)
        return tuple(
            name for name, count in zip(self.classes.names, histogram, strict=False) if not count
        )

    def _header_faults(self, index: int) -> list[str]:
        image, label = self.pairs[index]
        if drawn := self.drawn:
            return faults_in(lambda: drawn.check(_picture(read_header(image), drawn)))
        return faults_in(
            lambda: coding_of(self._label_header(label), self.classes, self.palette),
            lambda: _check_pair(read_header(image), self._label_header(label)),
        )

    def _count_until_two(self, histogram: np.ndarray, indices: Sequence[int]) -> None:
        """Adds label maps to a histogram (K + 1,), until it has two classes."""
        for index in tqdm(indices, "label maps", unit="sample"):
            histogram += count_labels(self.label(index), len(self.classes))
            if np.count_nonzero(histogram[:-1]) > 1:
                break

    def _holds_ignored_value(self, index: int) -> bool:
        """Returns whether a label map of values holds the one that is ignored, which is data."""
        label = self._open_label(self.pairs[index][1])
        if coding_of(label.header, self.classes, self.palette) == "color":
            return False
        return bool((self._values_of(label).of_data == self.ignore_index).any())

    def problems_of_one_class(self, histogram: np.ndarray, indices: Iterable[int]) -> list[str]:
        """Returns an error if the label maps hold at most one class, and the ignored value.

        Masks of 0 and 255 whose 255 should be a class look like this.

        Args:
            histogram: Number of pixels of each class, and of ignored pixels (K + 1,), from
                :func:`count_labels`.
            indices: Samples that were counted.
        """
        found = np.flatnonzero(histogram[:-1]).tolist()
        if self.label_map is not None or not histogram[-1] or len(found) > 1 or self.drawn:
            return []
        if not any(self._holds_ignored_value(index) for index in indices):
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


def refuse_options(kind: str, **options: Any) -> None:
    """Raises ValueError if an option is given that labels of another kind have."""
    for name, value in options.items():
        if value is not None:
            cure = f", or use {INSTEAD[name]}" if name in INSTEAD else ""
            raise ValueError(
                f"{name}={value!r} is given, and the labels are {kind}, which do not have it; "
                f"remove it{cure}"
            )


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
    if 0 <= ignore_index < len(classes) or ignore_index >= NUM_VALUES:
        raise ValueError(
            f"ignore_index={ignore_index} must be a value that is no class, negative or from "
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


def files_of(dataset: Any, index: int) -> tuple[str, str] | None:
    """Returns the image file and the label file of a sample, each with the place of its tile.

    None if the data set has no files.
    """
    pairs = getattr(dataset, "pairs", None)
    if pairs is None:
        return None
    image, label = pairs[index]
    parts = getattr(dataset, "parts", None)
    window = parts[index].window if parts else None
    tile = "" if window is None else f" from row {window.top}, column {window.left}"
    return f"{image}{tile}", f"{label}{tile}"


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


def _picture(image: Header, drawn: Drawn) -> Picture:
    """Returns an image that annotations are drawn on; raises ValueError if it may be turned."""
    picture = Picture(image.path, image.shown_size)
    if (image.orientation or 1) != 1:
        check_turned(image, drawn.sources[image.path].path, drawn.stated_size(picture))
    return picture


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
    """Returns the entries at a label map's values of a table, which begins at ``LEAST_VALUE``.

    Raises:
        ValueError: If the table has no entry for a value. The message states ``what``, the most
            frequent such value, and that ``ignored`` is the class of ignored values.
    """
    label = label.long()
    is_value = (label >= LEAST_VALUE) & (label < NUM_VALUES)
    mapped = table[label.where(is_value, 0) - LEAST_VALUE].where(is_value, -1)
    if (mapped < 0).any():
        values, counts = label[mapped < 0].unique(return_counts=True)
        raise ValueError(
            f"{what} holds the value {int(values[counts.argmax()])} on {int(counts.max())} of "
            f"{label.numel()} pixels, which label_map does not list; map it to a class, or to "
            f"{ignored} to ignore it"
        )
    return mapped


def _table(label_map: Mapping[int, int], classes: Classes) -> Tensor:
    """Returns the class of each value from ``LEAST_VALUE``, -1 for unlisted values."""
    table = torch.full((NUM_VALUES - LEAST_VALUE,), -1, dtype=torch.int32)
    for value, k in label_map.items():
        if not LEAST_VALUE <= int(value) < NUM_VALUES:
            raise ValueError(
                f"label_map lists the value {value}; it maps only those from {LEAST_VALUE} to "
                f"{NUM_VALUES - 1}"
            )
        if not (0 <= k < len(classes) or k == classes.ignore_index):
            raise ValueError(
                f"label_map maps {value} to the class {k}; use 0 to {len(classes) - 1}, or "
                f"{classes.ignore_index} to ignore it"
            )
        table[int(value) - LEAST_VALUE] = k
    return table
