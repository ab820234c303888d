"""Broken and unusual files are read correctly, or refused with their name.

pytest tests/data/test_fuzz.py -m slow    # 10,000 files; 1,000 by default
"""

from __future__ import annotations

import io
import random
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from segformer import Classes
from segformer.data.datasets import FolderDataset
from segformer.data.images import find_images, read_image
from segformer.data.labels import read_label_map

Random = random.Random
CLASSES = Classes([f"class {k}" for k in range(5)])


def pixels(chance: Random, *shape: int, below: int = 256) -> np.ndarray:
    return np.random.default_rng(chance.getrandbits(32)).integers(0, below, shape, np.uint8)


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def image_file(chance: Random) -> tuple[bytes, np.ndarray | None]:
    """Returns a file in a random format, and its pixels if the encoding is lossless."""
    height, width = chance.choice([(1, 1), (7, 5), (40, 30), (1, 30_000), (64, 64)])
    rgb = pixels(chance, height, width, 3)
    kind = chance.choice(
        [
            "png",
            "jpeg",
            "palette",
            "alpha",
            "cmyk",
            "grey",
            "sixteen",
            "exif",
            "tiff",
            "bmp",
            "webp",
        ]
    )
    image = Image.fromarray(rgb)
    if kind == "webp" and width > 16_383:  # more than the format allows
        kind = "png"
    if kind == "jpeg":
        return encoded(image, "JPEG"), None
    if kind == "cmyk":
        return encoded(image.convert("CMYK"), "JPEG"), None
    if kind == "palette":
        image = image.convert("P", palette=Image.Palette.ADAPTIVE)
        return encoded(image, "PNG"), np.array(image.convert("RGB"))
    if kind == "alpha":
        image.putalpha(Image.fromarray(pixels(chance, height, width)))
        return encoded(image, "PNG"), rgb
    if kind == "grey":
        return encoded(Image.fromarray(rgb[..., 0]), "PNG"), np.repeat(rgb[..., :1], 3, 2)
    if kind == "sixteen":
        return encoded(Image.fromarray(rgb[..., 0].astype(np.uint16) * 257), "PNG"), np.repeat(
            rgb[..., :1], 3, 2
        )
    if kind == "exif":
        exif = Image.Exif()
        exif[0x0112] = 6
        return encoded(image, "PNG", exif=exif), np.rot90(rgb, -1)
    if kind == "webp":
        return encoded(image, "WEBP", lossless=True, exact=True), rgb
    return encoded(image, {"tiff": "TIFF", "bmp": "BMP", "png": "PNG"}[kind]), rgb


def mutated(chance: Random, content: bytes) -> bytes:
    kind = chance.choice(["nothing", "truncated", "flipped", "zeroed", "grown", "swapped"])
    data = bytearray(content)
    if kind == "truncated":
        return bytes(data[: chance.randrange(len(data))])
    if kind == "flipped":
        for _ in range(chance.choice([1, 1, 3, 20])):
            data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
    if kind == "zeroed":
        start = chance.randrange(len(data))
        data[start : start + 16] = bytes(len(data[start : start + 16]))
    if kind == "grown":
        data += chance.randbytes(chance.randrange(1, 200))
    if kind == "swapped":
        data = bytearray(chance.randbytes(len(data)))
    return bytes(data)


def read_or_refused(read: Callable[[Path], torch.Tensor], path: Path) -> torch.Tensor | None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow's own, for unusual metadata
        try:
            return read(path)
        except ValueError as error:
            assert path.name in str(error)  # noqa: PT017
            return None


def an_image(chance: Random, folder: Path) -> None:
    content, expected = image_file(chance)
    changed = mutated(chance, content)
    # The suffix need not be that of the format.
    path = folder / f"image{chance.choice(['.png', '.jpg', '.tif', '.webp'])}"
    path.write_bytes(changed)
    image = read_or_refused(read_image, path)
    if image is not None:
        assert image.dtype == torch.uint8
        assert image.shape[0] == 3
    if changed == content:
        assert image is not None
        if expected is not None:
            assert np.array_equal(image.permute(1, 2, 0).numpy(), expected)


def a_label_map(chance: Random, folder: Path) -> None:
    """A label map is read as it was saved, or refused."""
    labels = pixels(
        chance,
        *chance.choice([(1, 1), (9, 4), (50, 60), (30_000, 1)]),
        below=chance.choice([5, 256]),
    )
    image = Image.fromarray(labels)
    if chance.random() < 0.5:
        image.putpalette([chance.randrange(256) for _ in range(768)])
    content = encoded(image, "PNG", compress_level=chance.choice([0, 6]))
    changed = mutated(chance, content)
    (folder / "label.png").write_bytes(changed)
    read = read_or_refused(read_label_map, folder / "label.png")
    assert read is not None or changed != content
    if read is not None:
        assert np.array_equal(read.numpy(), labels), "silently mislabelled"


def a_pair(chance: Random, folder: Path) -> None:
    """A data set returns only classes and 255, whichever values the label map holds."""
    for kind in ("images", "labels"):
        (folder / kind).mkdir(exist_ok=True)
    size = chance.choice([(8, 6), (1, 1)])
    (folder / "images" / "1.png").write_bytes(
        encoded(Image.fromarray(pixels(chance, *size, 3)), "PNG")
    )
    mode = chance.choice(["L", "RGB", "I;16", "F", "LA", "1"])
    values = pixels(chance, *size, below=chance.choice([2, 5, 7, 256]))
    image = Image.fromarray(values.astype(np.uint16) if mode == "I;16" else values)
    image = image if mode == "I;16" else image.convert(mode)
    (folder / "labels" / "1.png").write_bytes(encoded(image, "TIFF" if mode == "F" else "PNG"))
    dataset = FolderDataset(folder / "images", folder / "labels", CLASSES)
    try:
        _, label = dataset[0]
    except ValueError as error:
        assert "1.png" in str(error)  # noqa: PT017
    else:
        assert set(label.unique().tolist()) <= {*range(5), 255}
        if mode == "L":
            assert np.array_equal(label.numpy(), values)


def fuzz(count: int, folder: Path) -> None:
    for number in range(count):
        chance = Random(number)
        try:
            chance.choice([an_image, a_label_map, a_pair])(chance, folder)
        except Exception as error:
            raise AssertionError(f"input {number}: {error!r}") from error


def test_a_thousand_unusual_files(tmp_path: Path) -> None:
    fuzz(1000, tmp_path)


@pytest.mark.slow
def test_ten_thousand_unusual_files(tmp_path: Path) -> None:
    fuzz(10_000, tmp_path)


def test_folders_without_an_image_are_refused(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match=r"no image in .*empty"):
        find_images(tmp_path / "empty")
    loop = tmp_path / "loop"
    loop.mkdir()
    (loop / "again").symlink_to(loop)
    (loop / "self.png").symlink_to(loop / "self.png")
    with pytest.raises(FileNotFoundError, match=r"no image in .*loop"):
        find_images(loop)
    Image.new("RGB", (2, 2)).save(loop / "1.png")
    assert [path.name for path in find_images(loop)] == ["1.png"]
