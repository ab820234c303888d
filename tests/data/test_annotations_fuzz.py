"""Annotation files with random faults are read as a label map, or refused by name.

uv pip install ".[test,annotations]"; pytest -m extras tests/data/test_annotations_fuzz.py
"""

from __future__ import annotations

import random
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from segformer.data.datasets import FolderDataset

for package in ("pycocotools", "rasterio", "shapely"):
    pytest.importorskip(package, reason="reason: needs segformer[annotations]")
annotated = pytest.importorskip("annotated", reason="reason: needs segformer[annotations]")

from annotated import CLASSES, FORMATS, HEIGHT, WIDTH, class_folders  # noqa: E402

pytestmark = [
    pytest.mark.extras,
    # pycocotools under NumPy 2
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"),
]
COUNT = 1000
NUMBER = rb"-?\d+(?:\.\d+)?"
VALUE = rb'"[^"]{0,30}"|\[[^\[\]]{0,60}\]|\{[^{}]{0,80}\}'
PIECES = (
    *(b"null", b"true", b"NaN", b"[]", b"{}", b'""', b",", b"]", b"}", b'"', b"-", b"<", b"&"),
    *(b"-5", b"0", b"1.5", b"65536", b"1e9", b"1e309", b"9" * 20, b"\xff\xfe", b"\0", b"\n", b";"),
)


def mutated(data: bytes, random_: random.Random) -> bytes:
    """A copy with a faulty byte, a missing or repeated piece, or another value."""
    place, end = sorted(random_.randrange(len(data) + 1) for _ in range(2))
    piece = random_.choice(PIECES)
    values = list(re.finditer(random_.choice([NUMBER, VALUE]), data))
    kind = random_.randrange(6)
    if kind == 0:
        return data[:place] + bytes([random_.randrange(256)]) + data[place + 1 :]
    if kind == 1:
        return data[:place] + data[place + random_.choice([1, 5, 30]) :]
    if kind == 2:
        return data[:place] + data[end : end + 50] + data[place:]
    if kind == 3:
        return data[:place]
    if kind == 4 or not values:
        return data[:place] + piece + data[place:]
    found = random_.choice(values)
    return data[: found.start()] + piece + data[found.end() :]


def test_files_with_random_faults_are_read_or_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    pixels = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "images" / "scene.png")
    files = {}
    for kind, (write, name) in FORMATS.items():
        (tmp_path / kind).mkdir()
        path = write(tmp_path / kind / name, "scene.png")
        files[path] = path.parent
    files[tmp_path / "yolo" / "data.yaml"] = tmp_path / "yolo"
    masks = class_folders(tmp_path / "masks", "scene.png")
    files[masks / "car" / "scene.png"] = masks
    contents = {path: path.read_bytes() for path in files}
    random_ = random.Random(0)
    messages = []
    for _ in range(COUNT):
        path = random_.choice(list(files))
        path.write_bytes(mutated(contents[path], random_))
        try:
            dataset = FolderDataset(
                tmp_path / "images",
                files[path],
                CLASSES,
                unlabelled=0,
                invalid_polygons=random_.choice(["refuse", "draw"]),
            )
            dataset.check_files()
            label = dataset[0][1].numpy()
            assert label.shape == (HEIGHT, WIDTH)
            assert set(np.unique(label)) <= {0, 1, 2, 3}
        except (ValueError, FileNotFoundError) as error:
            messages.append((str(files[path]), str(error)))
        path.write_bytes(contents[path])
    assert not [message for folder, message in messages if folder not in message]
    assert COUNT / 2 < len(messages) < COUNT
