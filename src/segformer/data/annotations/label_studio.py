"""Label Studio's JSON: polygons, rectangles and ellipses in percent, and brushed masks."""

from __future__ import annotations

import re
from base64 import b64decode
from collections.abc import Iterator
from dataclasses import dataclass
from io import BytesIO
from urllib.parse import parse_qs, unquote, urlsplit

import numpy as np
from PIL import Image

from segformer.data.annotations.areas import Annotated, Area, Mask, Outline, Size, said_sizes
from segformer.data.annotations.fields import Record
from segformer.data.images import IMAGE_SUFFIXES

KINDS = ("polygon", "rectangle", "ellipse", "brush", "bitmask")
WITHOUT_AREA = ("keypoint", "keypointlabels", "vector", "vectorlabels")
OF_IMAGES = (  # results that are no regions, or say more of another region
    *("choices", "textarea", "rating", "taxonomy", "number", "datetime", "pairwise", "ranker"),
    *("relation", "labels", ""),
)
UPLOADED = re.compile(r"^[0-9a-f]{8}-")  # before the name of an uploaded file


@dataclass(frozen=True, slots=True)
class BrushRuns(Mask):
    """A brushed mask, as the run-lengths of an RGBA image whose alpha channel is the mask.

    Args:
        size: Height and width.
        data: Bytes of the run-lengths.
    """

    size: Size
    data: bytes

    def pixels(self, size: Size) -> tuple[int, int, np.ndarray]:
        _check_size(self.size, size)
        channels = unpacked(self.data, 4 * size[0] * size[1])
        return 0, 0, channels.reshape(*size, 4)[..., 3] > 0


@dataclass(frozen=True, slots=True)
class Bitmap(Mask):
    """A mask of pixels, as a PNG whose alpha channel is the mask.

    Args:
        data: Bytes of the PNG.
    """

    data: bytes

    def pixels(self, size: Size) -> tuple[int, int, np.ndarray]:
        try:
            with Image.open(BytesIO(self.data)) as image:
                alpha = np.array(image.convert("RGBA"))[..., 3]
        except OSError as error:
            raise ValueError("its mask is no image; export the file again") from error
        _check_size(alpha.shape, size)
        return 0, 0, alpha > 0


def _check_size(of_mask: Size, of_image: Size) -> None:
    """Raises ValueError if a mask has another height and width than its image."""
    if of_mask != of_image:
        stated, own = said_sizes(of_mask, of_image)
        raise ValueError(f"its mask is for an image of {stated}, and the image is {own}")


def unpacked(data: bytes, length: int) -> np.ndarray:
    """Returns the bytes that Label Studio's editor packed (the format of rle-pack).

    32 bits are the number of words, 5 bits one less than the bits of a word, and four times 4 bits
    one less than the bits of four kinds of counts. Then follow chunks: a bit that is set for a
    repeated word, 2 bits for the kind of count, one less than the count, and the word or words.

    Args:
        data: The packed bytes.
        length: Number of words that are expected.

    Raises:
        ValueError: If there are more or fewer.
    """
    bits = bin(int.from_bytes(b"\1" + data, "big"))[3:]
    place = 0

    def take(count: int) -> int:
        nonlocal place
        place += count
        if place > len(bits):
            raise ValueError("its mask ends too early; export the file again")
        return int(bits[place - count : place], 2)

    total, word = take(32), take(5) + 1
    if total != length or word != 8:
        raise ValueError(
            f"its mask has {total} values of {word} bits, and the image {length} of 8; export the "
            "file again"
        )
    sizes = [take(4) + 1 for _ in range(4)]
    found, filled = bytearray(), 0
    while filled < length:
        is_run, count = take(1), take(sizes[take(2)]) + 1
        filled += count
        if filled > length:
            raise ValueError("its mask has more values than the image; export the file again")
        found += bytes([take(8)]) * count if is_run else take(8 * count).to_bytes(count, "big")
    return np.frombuffer(found, np.uint8)


def read(tasks: Record) -> list[Annotated]:
    """Returns the annotations of each task that has any, apart from skipped ones.

    Raises:
        ValueError: If a task has two annotations, or a region lacks a value or has no area.
    """
    found = []
    for task in tasks.records("tasks", "task"):
        key = "annotations" if task.has("annotations") else "completions"
        annotations = [
            annotation
            for annotation in task.records(key, f"{task.where}, annotation")
            if not annotation.values.get("was_cancelled")
        ]
        names = _names(task)
        if len(annotations) > 1:
            raise task.wrong(
                f"image {names[0]!r} has {len(annotations)} annotations; keep the one to use"
            )
        found += [_annotated(annotation, names) for annotation in annotations]
    return found


def _names(task: Record) -> tuple[str, ...]:
    """Returns the paths that a task may mean: those of its data, with and without upload prefix."""
    texts = [text for text in task.record("data").values.values() if isinstance(text, str)]
    paths = [path for path in map(_path, texts) if path.lower().endswith(IMAGE_SUFFIXES)]
    if not paths:
        raise task.wrong("its data have no path of an image; export the file again")
    name = paths[0].rpartition("/")[2]
    original = UPLOADED.sub("", name)
    return (paths[0],) if original == name else (paths[0], original)


def _path(url: str) -> str:
    """Returns the path of a URL; that of a local file is in its query."""
    try:
        parts = urlsplit(url)
    except ValueError:
        return ""
    local = parse_qs(parts.query).get("d")
    return local[0] if local else unquote(parts.path)


def _annotated(annotation: Record, names: tuple[str, ...]) -> Annotated:
    regions = list(annotation.records("result", f"{annotation.where}, region"))
    named = dict(filter(None, map(_own_name, regions)))
    areas, size = [], None
    for region in regions:
        kind = region.text("type") if region.has("type") else ""
        if kind in WITHOUT_AREA:
            raise region.wrong(f"a {kind} has no area; draw a polygon, or remove it")
        if kind in OF_IMAGES:
            continue
        if kind.removesuffix("labels") not in KINDS:
            raise region.wrong(f"regions of the type {kind!r} are not read; draw a polygon")
        own_id = region.text("id") if region.has("id") else ""
        name = next(_names_in(region), None) or named.get(own_id)
        if name is None:
            raise region.wrong("it has no class; choose one, or remove it")
        own = region.whole("original_height"), region.whole("original_width")
        if size not in (None, own):
            raise region.wrong(f"it was drawn on an image of {own}, others on {size}; correct it")
        if region.has("image_rotation") and region.number("image_rotation"):
            raise region.wrong("it was drawn on the turned image; turn it back, and draw it again")
        size = own
        areas.append(Area(name, _shape(region, kind.removesuffix("labels"), own), region.where))
    return Annotated(annotation.path, tuple(areas), names, size, annotation.where)


def _own_name(region: Record) -> tuple[str, str] | None:
    name = next(_names_in(region), None)
    return (region.text("id"), name) if name is not None and region.has("id") else None


def _names_in(region: Record) -> Iterator[str]:
    value = region.values.get("value")
    for key, names in (value if isinstance(value, dict) else {}).items():
        if key.endswith("labels") and isinstance(names, list) and names:
            if len(names) > 1:
                raise region.wrong(f"it has the classes {names[0]} and {names[1]}; keep one")
            yield str(names[0])


def _shape(region: Record, kind: str, size: Size) -> Outline | Mask:
    value = region.record("value", region.where)
    across, down = size[1] / 100, size[0] / 100
    if kind == "polygon":
        return Outline.of_points(value.points("points") * [across, down])
    if kind == "brush":
        return BrushRuns(size, _bytes(value))
    if kind == "bitmask":
        return Bitmap(_png(value))
    x, y = value.number("x") * across, value.number("y") * down
    degrees = value.number("rotation") if value.has("rotation") else 0.0
    if kind == "rectangle":  # turned about its first corner
        right, bottom = x + value.number("width") * across, y + value.number("height") * down
        return Outline.of_box(x, y, right, bottom).turned(degrees, x, y)
    radius_x, radius_y = value.number("radiusX") * across, value.number("radiusY") * down
    return Outline.of_ellipse(x, y, radius_x, radius_y).turned(degrees, x, y)


def _png(value: Record) -> bytes:
    header, _, data = value.text("imageDataURL").partition(",")
    if not header.startswith("data:image/png;base64"):
        raise value.wrong(f"its mask begins with {header[:30]!r}; export it as a PNG in base64")
    try:
        return b64decode(data, validate=True)
    except ValueError as error:
        raise value.wrong("its mask is not base64; export the file again") from error


def _bytes(value: Record) -> bytes:
    if value.has("format") and value.text("format") != "rle":
        raise value.wrong(f"its mask has the format {value.text('format')!r}; export it as rle")
    numbers = value.numbers("rle")
    data = numbers.clip(0, 255).astype(np.uint8)
    if (data != numbers).any():
        raise value.wrong("'rle' must be bytes from 0 to 255; export the file again")
    return data.tobytes()
