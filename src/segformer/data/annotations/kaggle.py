"""Kaggle's CSV of run-lengths: column by column, and counted from 1."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from segformer.data.annotations.areas import Annotated, Area, Mask, Size
from segformer.data.annotations.fields import fault
from segformer.data.pairing import read_text

RUNS = ("encodedpixels", "rle", "rle_mask", "rle_encoding", "encoded_pixels", "mask_rle")
IMAGES = ("imageid", "image_id", "id", "img", "image", "filename", "file_name", "image_name")
CLASSES = ("classid", "class_id", "class", "label", "class_name", "category", "name")
BOTH = ("image_label", "image_class", "imageid_classid")  # joined by the last underscore
NOTHING = ("", "-1", "nan")


@dataclass(frozen=True, slots=True)
class ColumnRuns(Mask):
    """A mask as starts and lengths of runs, column by column.

    Args:
        text: The numbers, in turn the first pixel of a run, from 1, and its length.
    """

    text: str

    def pixels(self, size: Size) -> tuple[int, int, np.ndarray]:
        try:
            numbers = np.array([int(word) for word in self.text.split()], np.int64)
        except (ValueError, OverflowError) as error:
            raise ValueError(f"its run-lengths are no numbers ({error}); correct them") from error
        starts, lengths = numbers[::2] - 1, numbers[1::2]
        total = size[0] * size[1]
        if len(numbers) % 2:
            raise ValueError(
                f"its run-lengths are {len(numbers)} numbers, and a start and a length each make "
                "an even number; correct them"
            )
        wrong = (starts < 0) | (lengths < 1) | (lengths > total) | (starts > total - lengths)
        if wrong.any():
            start, length = int(starts[wrong][0]) + 1, int(lengths[wrong][0])
            raise ValueError(
                f"its run of {length} pixels from {start} does not fit an image of {total} pixels; "
                "put the image there that was annotated, or correct the run"
            )
        edges = np.zeros(total + 1, np.int64)
        np.add.at(edges, starts, 1)
        np.add.at(edges, starts + lengths, -1)
        inside = np.cumsum(edges[:-1]) > 0
        return 0, 0, inside.reshape(size[1], size[0]).T


def is_header(line: str) -> bool:
    """Returns whether a line names the columns of such a file."""
    return bool({name.strip().strip('"').lower() for name in line.split(",")} & set(RUNS))


def read(path: Path) -> list[Annotated]:
    """Returns the annotations of each image of a file.

    A file without a column of classes has one class, named as the column of run-lengths.

    Raises:
        ValueError: If a column is missing, or a line has other columns.
    """
    csv.field_size_limit(1 << 30)
    try:
        table = list(csv.reader(read_text(path).splitlines()))
    except csv.Error as error:
        raise ValueError(f"{str(path)!r} is no CSV file ({error}); export it again") from error
    header = [name.strip() for name in table[0]] if table else []
    columns = {name.lower(): number for number, name in enumerate(header)}
    runs, both = _first(columns, RUNS), _first(columns, BOTH)
    image = both if both is not None else _first(columns, IMAGES)
    if runs is None or image is None:
        raise ValueError(
            f"{str(path)!r} has the columns {', '.join(header)[:80]}, and needs one of images, "
            "such as ImageId, and one of run-lengths, such as EncodedPixels; rename them"
        )
    name_of = _first(columns, CLASSES)
    areas: dict[str, list[Area]] = {}
    for number, row in enumerate(table[1:], 2):
        if not row:
            continue
        if len(row) != len(header):
            raise fault(
                path,
                f"line {number}",
                f"it has {len(row)} columns, and the first line {len(header)}; correct it",
            )
        file, name = row[image].strip(), header[runs]
        if both is not None:
            file, _, name = file.rpartition("_")
        elif name_of is not None:
            name = row[name_of].strip()
        of_image = areas.setdefault(file, [])
        if row[runs].strip().lower() not in NOTHING:
            of_image.append(Area(name, ColumnRuns(row[runs]), f"line {number}"))
    return [
        Annotated(path, tuple(found), (file,), None, f"image {file!r}")
        for file, found in areas.items()
    ]


def _first(columns: dict[str, int], names: Sequence[str]) -> int | None:
    return next((columns[name] for name in names if name in columns), None)
