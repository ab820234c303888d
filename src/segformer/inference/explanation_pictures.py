"""The pictures of an explanation: whole images with their errors, and crops around regions."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from PIL import Image

from segformer.data.classes import Classes
from segformer.evaluation.doubts import Region
from segformer.inference.explanation import Examined
from segformer.inference.pictures import colored, shown

WRONG = (220, 38, 38)
LARGEST = 640  # pixels of the longer side of a whole image
SMALLEST_CROP = 120  # pixels of the image in the height of a crop, at least
ASPECT = 4 / 3  # width of a crop over its height, where the image is large enough
MARGIN = 0.35  # of a region's longer side, around it
DASH = 3  # pixels of the line around a region
HEIGHT = 240  # pixels of a crop's shorter side, at least

Pictures = dict[str, Image.Image]


def whole_pictures(image: Examined, classes: Classes) -> Pictures:
    """Returns the image, its label map, the prediction and the errors, by their titles."""
    pixels, label = image.read()
    photo = shown(pixels)
    pictures = {
        "Image": photo,
        "Label": colored(label, classes),
        "Prediction": colored(image.predicted, classes),
        "Errors": errors(photo, label, image.predicted, classes),
    }
    return {title: _fitted(picture, title) for title, picture in pictures.items()}


def errors(
    photo: Image.Image, label: np.ndarray, predicted: np.ndarray, classes: Classes
) -> Image.Image:
    """Returns an image in pale grey, with wrong pixels red and those without a label black."""
    pale = np.asarray(photo.convert("L"), np.float32)[..., None] * 0.35 + 150
    picture = np.broadcast_to(pale, (*label.shape, 3)).astype(np.uint8)
    is_ignored = label == classes.ignore_index
    picture[(label != predicted) & ~is_ignored] = WRONG
    picture[is_ignored] = 0
    return Image.fromarray(picture)


def crop_pictures(image: Examined, region: Region, classes: Classes) -> Pictures:
    """Returns the image, its label map and the prediction around a region, which is outlined."""
    pixels, label = image.read()
    outline = _outline((label == region.labelled) & (image.predicted == region.predicted), region)
    box = _around(region.box, label.shape)
    pictures = {
        "Image": shown(pixels),
        "Label": colored(label, classes),
        "Prediction": colored(image.predicted, classes),
    }
    return {
        title: _enlarged(_marked(picture, outline).crop(box)) for title, picture in pictures.items()
    }


def _outline(same: np.ndarray, region: Region) -> np.ndarray:
    """Returns the pixels (H, W) on the edge of a region, of those with its two classes."""
    left, top, width, height = region.box
    inside = np.zeros_like(same)
    rows, columns = slice(top, top + height), slice(left, left + width)
    inside[rows, columns] = same[rows, columns]
    near = np.pad(inside, 1)
    core = near[:-2, 1:-1] & near[2:, 1:-1] & near[1:-1, :-2] & near[1:-1, 2:]
    edge: np.ndarray = inside & ~core
    return edge


def _marked(picture: Image.Image, outline: np.ndarray) -> Image.Image:
    """Returns a picture with a line of black and white dashes, which shows on any colour."""
    pixels = np.array(picture.convert("RGB"))
    rows, columns = np.nonzero(outline)
    is_white = (rows + columns) // DASH % 2 == 1
    pixels[rows, columns] = np.where(is_white, 255, 0)[:, None]
    return Image.fromarray(pixels)


def _around(box: tuple[int, int, int, int], size: tuple[int, ...]) -> tuple[int, int, int, int]:
    """Returns the left, top, right and bottom of a crop around a box, within a height and width."""
    left, top, width, height = box
    tall = round(max(SMALLEST_CROP, max(width / ASPECT, height) * (1 + 2 * MARGIN)))
    x, right = _span(left + width / 2, round(tall * ASPECT), size[1])
    y, bottom = _span(top + height / 2, tall, size[0])
    return x, y, right, bottom


def _span(middle: float, length: int, limit: int) -> tuple[int, int]:
    start = max(0, min(round(middle - length / 2), limit - length))
    return start, min(limit, start + length)


def _fitted(picture: Image.Image, title: str) -> Image.Image:
    """Returns a picture, made smaller if it is large; colours of classes are not mixed."""
    scale = LARGEST / max(picture.size)
    return picture if scale >= 1 else _resized(picture, scale, title == "Image")


def _enlarged(picture: Image.Image) -> Image.Image:
    """Returns a crop whose pixels are large enough to be seen, or made smaller if it is large."""
    scale = max(1, round(HEIGHT / min(picture.size)))
    scale_down = LARGEST / max(picture.size)
    return _resized(picture, min(scale, scale_down) if scale_down < 1 else scale, False)


def _resized(picture: Image.Image, scale: float, is_photo: bool) -> Image.Image:
    width, height = (max(1, round(side * scale)) for side in picture.size)
    filter_ = Image.Resampling.BOX if is_photo else Image.Resampling.NEAREST
    return picture.resize((width, height), filter_)


def saved_names(pictures: Pictures, stem: str) -> Iterator[tuple[str, str, Image.Image]]:
    """Yields the title, the name of the file and the picture; photographs are JPEG files."""
    for title, picture in pictures.items():
        suffix = "jpg" if title == "Image" else "png"
        yield title, f"{stem}-{title.lower()}.{suffix}", picture
