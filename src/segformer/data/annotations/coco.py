"""COCO's JSON of objects: polygons, and run-lengths, which pycocotools decodes."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import numpy as np

from segformer.data.annotations.areas import Annotated, Area, Mask, Outline, Size, said_sizes
from segformer.data.annotations.fields import Record

# Numbers of up to 35 bits, five in each character; those from P to o are not the last.
NUMBERS = re.compile(rb"(?:[P-o]{0,6}[0-O])+")


@dataclass(frozen=True, slots=True)
class CocoRuns(Mask):
    """A mask as run-lengths of COCO, column by column.

    Args:
        size: Height and width.
        counts: Numbers of pixels, in turn unset and set: a list, or COCO's compressed text.
    """

    size: Size
    counts: tuple[int, ...] | str

    def pixels(self, size: Size) -> tuple[int, int, np.ndarray]:
        if self.size != size:
            stated, own = said_sizes(self.size, size)
            raise ValueError(
                f"its run-lengths are for an image of {stated}, and the image is {own} (height × "
                "width); put the image there that was annotated, or annotate this one"
            )
        total = size[0] * size[1]
        try:
            if isinstance(self.counts, tuple):
                if min(self.counts, default=0) < 0 or sum(self.counts) != total:
                    raise ValueError(f"they add up to {sum(self.counts)} of {total} pixels")
                return 0, 0, _decoded(_compressed(self.counts, size), size)
            _check_sum(self.counts.encode("ascii"), total)
            return 0, 0, _decoded(self.counts.encode("ascii"), size)
        except ValueError as error:
            raise ValueError(
                f"its run-lengths cannot be decoded ({error}); export the file again"
            ) from error


def _compressed(counts: tuple[int, ...], size: Size) -> bytes:
    height, width = size
    found = _pycocotools().frPyObjects({"size": [height, width], "counts": counts}, height, width)
    return bytes(found["counts"])


def _decoded(counts: bytes, size: Size) -> np.ndarray:
    return np.asarray(_pycocotools().decode({"size": list(size), "counts": counts})) > 0


def _check_sum(counts: bytes, total: int) -> None:
    """Raises ValueError if run-lengths end before the last pixel.

    pycocotools refuses those that end after it, and leaves pixels undefined that none reaches. So
    it must refuse them for an image with one pixel less. It reads past the end of text whose last
    number is not complete.
    """
    if not NUMBERS.fullmatch(counts):
        raise ValueError("their text is no sequence of whole numbers")
    try:
        _decoded(counts, (1, total - 1))
    except ValueError:
        return
    raise ValueError(f"they end before the last of {total} pixels")


def read(document: Record) -> list[Annotated]:
    """Returns the annotations of each image of a file.

    Raises:
        ValueError: If it lacks a value, or a number refers to nothing.
    """
    names = _by_id(document, "categories", "category")
    images = _by_id(document, "images", "image")
    areas: dict[int, list[Area]] = {number: [] for number in images}
    for annotation in document.records("annotations", "annotation"):
        image, category = annotation.whole("image_id"), annotation.whole("category_id")
        for number, known, what in ((image, images, "image"), (category, names, "category")):
            if number not in known:
                raise annotation.wrong(
                    f"it belongs to the {what} {number}, which the file does not list; add the "
                    f"{what}, or remove the annotation"
                )
        shape = _shape(annotation)
        areas[image].append(Area(names[category].text("name"), shape, annotation.where))
    return [
        Annotated(
            document.path,
            tuple(areas[number]),
            (image.text("file_name"),),
            (image.whole("height"), image.whole("width")),
            image.where,
        )
        for number, image in images.items()
    ]


def _by_id(document: Record, key: str, what: str) -> dict[int, Record]:
    found: dict[int, Record] = {}
    for record in document.records(key, what):
        number = record.whole("id")
        if number in found:
            raise record.wrong(f"two of the {key} have this id; give each its own")
        found[number] = record
    return found


def _shape(annotation: Record) -> Outline | CocoRuns:
    segmentation = annotation.values.get("segmentation")
    if isinstance(segmentation, dict):
        runs = annotation.record("segmentation")
        size = runs.numbers("size")
        if len(size) != 2:
            raise runs.wrong("'size' must be height and width; export the file again")
        return CocoRuns((int(size[0]), int(size[1])), _counts(runs))
    if not isinstance(segmentation, list) or not segmentation:
        raise annotation.wrong(
            "it has no segmentation, only a box at most; draw the object, or remove it"
        )
    rings = Record(annotation.path, annotation.where, dict(enumerate(segmentation)))  # type: ignore[arg-type]
    return Outline.of_points(*(_ring(rings, number) for number in rings.values))


def _ring(rings: Record, number: Any) -> np.ndarray:
    values = rings.numbers(number)
    if len(values) % 2:
        raise rings.wrong(
            f"a polygon has {len(values)} numbers, and x and y of each point make an even number; "
            "export the file again"
        )
    return values.reshape(-1, 2)


def _counts(runs: Record) -> tuple[int, ...] | str:
    counts = runs.values.get("counts")
    if isinstance(counts, str):
        return counts
    numbers = runs.numbers("counts")
    if (numbers != numbers.round()).any():
        raise runs.wrong("'counts' must be whole numbers; export the file again")
    return tuple(int(number) for number in numbers)


def _pycocotools() -> Any:
    try:
        import pycocotools.mask
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "COCO's run-lengths need pycocotools; install segformer[annotations]", name=error.name
        ) from error
    return pycocotools.mask
