"""Images to label next: which are chosen, and their labels as annotation tools open them.

What needs rasterio and shapely: uv pip install ".[test,annotations]"; pytest -m extras
tests/test_suggest.py
"""

from __future__ import annotations

import csv
import json
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
import torch
from conftest import TINY, randomized
from PIL import Image
from torch import Tensor

from segformer import Classes, SegFormer
from segformer.cli import main
from segformer.data.annotations.for_tools import TOOLS
from segformer.data.annotations.shapes import Polygon, draw
from segformer.data.datasets import FolderDataset
from segformer.data.normalization import IMAGENET
from segformer.evaluation.uncertainty import Uncertainty, choose, ranks, uncertainty
from segformer.inference import label_file

CLASSES = Classes(["sky", "road & path", "trée"], [(0, 0, 255), (99, 99, 99), (0, 99, 0)])


def noise(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


class Model:
    """Any function from images to logits."""

    normalization, classes, num_classes = IMAGENET, CLASSES, 3

    def __init__(self, logits: Any) -> None:
        self.logits = logits

    def __call__(self, images: Tensor) -> Tensor:
        return self.logits(images)


def test_the_least_sure_model_has_an_entropy_of_1_and_the_surest_of_0() -> None:
    image = torch.from_numpy(noise(20, 30)).permute(2, 0, 1)
    equal = uncertainty(Model(lambda x: torch.ones(1, 3, *x.shape[2:])), image)
    assert equal.entropy == pytest.approx(1)
    assert equal.disagreement == 0
    sure = uncertainty(Model(lambda x: 1e4 * first_class(x)), image)
    assert sure.entropy == pytest.approx(0, abs=1e-6)


def first_class(images: Tensor) -> Tensor:
    return torch.cat([torch.ones_like(images[:, :1]), torch.zeros_like(images[:, :2])], 1)


def test_disagreement_is_the_share_of_labels_that_the_mirror_changes() -> None:
    """A model that sees only the column disagrees everywhere but where its two halves meet."""

    def left_is_0(images: Tensor) -> Tensor:
        column = torch.arange(images.shape[3]).expand(1, 1, *images.shape[2:])
        return torch.cat([(column < 10).float(), (column >= 10).float(), 0 * column], 1)

    image = torch.from_numpy(noise(8, 30)).permute(2, 0, 1)
    assert uncertainty(Model(left_is_0), image).disagreement == pytest.approx(20 / 30)
    valid = torch.zeros(8, 30, dtype=torch.bool)
    valid[:, 5:25] = True  # columns 10 to 19 agree
    assert uncertainty(Model(left_is_0), image, valid).disagreement == pytest.approx(10 / 20)
    brightness = Model(lambda x: torch.cat([x[:, :1], -x[:, :1], 0 * x[:, :1] - 9], 1))
    assert uncertainty(brightness, image).disagreement == 0


def found(entropy: float, *features: float) -> Uncertainty:
    vector = torch.tensor(features, dtype=torch.float32)
    return Uncertainty(entropy, entropy, vector / vector.norm())


def test_images_are_chosen_from_uncertain_kinds_without_labels() -> None:
    images = [found(0.9, 1, 0), found(0.8, 1, 0.01), found(0.5, 0, 1), found(0.1, 0, -1)]
    assert choose(images, 2) == [0, 2]
    assert sorted(choose(images, 9)) == [0, 1, 2, 3]
    assert choose(images, 1, known=[images[0].features]) == [2]
    many = [found(0.1 * k % 1, math.cos(k), math.sin(k)) for k in range(40)]
    chosen = choose(many, 25, known=[image.features for image in many[:5]])
    assert len(set(chosen)) == 25
    without = [Uncertainty(e, e, None) for e in (0.2, 0.7, 0.5)]
    assert choose(without, 2) == [1, 2]


def test_of_a_large_uncertain_kind_the_typical_image_is_chosen_and_not_the_odd_one() -> None:
    ring = [found(0.6, math.cos(x), math.sin(x)) for x in (0.0, 0.1, 0.2, 0.3, 0.4)]
    odd, sure = found(0.9, -1, 0.1), [found(0.1, 0, y) for y in (-1, -1.1, -0.9)]
    assert choose([*ring, odd, *sure], 1, known=[sure[0].features]) == [2]


def test_equal_values_have_equal_ranks() -> None:
    assert ranks([0, 0, 0]).tolist() == [0.5, 0.5, 0.5]
    assert ranks([3, 1, 3, 2]).tolist() == pytest.approx([5 / 6, 0, 5 / 6, 1 / 3])
    images = [Uncertainty(e, 0.0, None) for e in (0.3, 0.5, 0.1, 0.4, 0.2)]
    assert choose(images, 5) == [1, 3, 0, 4, 2]


@pytest.mark.extras
def test_outlines_drawn_in_their_order_are_the_labels() -> None:
    from segformer.data.annotations.editable import editable

    generator = np.random.default_rng(0)
    labels = np.kron(generator.integers(0, 3, (9, 11)), np.ones((8, 8))).astype(np.uint8)
    labels[20:50, 30:60] = 1
    labels[25:40, 35:50] = 2  # in a hole
    labels[30:34, 40:44] = 0  # in a hole of that
    drawn = np.full_like(labels, 255)
    draw(drawn, editable(labels, area=1, tolerance=0))
    assert np.array_equal(drawn, labels)
    polygons = editable(labels, area=1, tolerance=3)
    draw(drawn, polygons)
    assert (drawn == labels).mean() > 0.9
    corners = sum(len(polygon.rings[0]) for polygon in polygons)
    assert corners < sum(len(p.rings[0]) for p in editable(labels, area=1, tolerance=0))
    assert {p.value for p in editable(labels, ignore_index=2)} == {0, 1}
    labels[0, 0] = (labels[0, 0] + 1) % 3
    assert len(editable(labels, area=4, tolerance=0)) < len(editable(labels, 1, 0))


@pytest.fixture
def command(tmp_path: Path) -> SimpleNamespace:
    model = randomized(SegFormer(TINY, num_classes=3))
    model.classes = CLASSES
    model.save(tmp_path / "m.safetensors")
    folder = tmp_path / "photos"
    for k, name in enumerate(("a", "b", "c/a", "ünlabelled")):
        path = folder / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(noise(64, 80, k)).resize((80, 64)).save(path)
    return SimpleNamespace(
        model=model,
        folder=folder,
        out=tmp_path / "out",
        arguments=["suggest", str(tmp_path / "m.safetensors"), str(folder), "--out"],
    )


def read_labelme(folder: Path) -> dict[str, list[tuple[str, Any]]]:
    found = {}
    for path in folder.rglob("*.json"):
        content = json.loads(path.read_text(encoding="utf-8"))
        image = (path.parent / content["imagePath"]).resolve()
        assert image.is_file()
        with Image.open(image) as opened:
            assert opened.size == (content["imageWidth"], content["imageHeight"])
        found[image.name if path.parent == folder else f"{path.parent.name}/{image.name}"] = [
            (shape["label"], shape["points"]) for shape in content["shapes"]
        ]
    return found


def read_cvat(folder: Path) -> dict[str, list[tuple[str, Any]]]:
    root = ElementTree.parse(folder / "annotations.xml").getroot()
    assert [label.findtext("name") for label in root.iter("label")] == list(CLASSES.names)
    found = {}
    for image in root.iter("image"):
        polygons = sorted(image, key=lambda polygon: int(polygon.attrib["z_order"]))
        found[image.attrib["name"]] = [
            (polygon.attrib["label"], numbers(polygon.attrib["points"])) for polygon in polygons
        ]
    return found


def numbers(points: str) -> list[list[float]]:
    return [[float(number) for number in point.split(",")] for point in points.split(";")]


def read_label_studio(folder: Path) -> dict[str, list[tuple[str, Any]]]:
    from urllib.parse import unquote

    found = {}
    for task in json.loads((folder / "tasks.json").read_text(encoding="utf-8")):
        name = unquote(task["data"]["image"].removeprefix("/data/local-files/?d="))
        found[name] = [
            (area["value"]["polygonlabels"][0], np.array(area["value"]["points"]) / 100 * (80, 64))
            for area in task["predictions"][0]["result"]
        ]
    return found


@pytest.mark.extras
@pytest.mark.parametrize(
    ("tool", "read"),
    [("labelme", read_labelme), ("cvat", read_cvat), ("label-studio", read_label_studio)],
)
def test_the_command_writes_what_the_tool_opens(
    tool: str, read: Any, command: SimpleNamespace
) -> None:
    assert tool in TOOLS
    main([*command.arguments, str(command.out), "--tool", tool, "--count", "3"])
    table = (command.out / "suggestions.csv").read_text(encoding="utf-8")
    rows = list(csv.DictReader(table.splitlines()))
    assert [row["rank"] for row in rows] == ["1", "2", "3"]
    with Image.open(command.out / "suggestions.png") as picture:
        assert picture.width > 2 * 80
    areas = read(command.out / tool)
    assert set(areas) == {row["image"] for row in rows}
    for name, shapes in areas.items():
        drawn = np.full((64, 80), 255, np.uint8)
        order = [Polygon(CLASSES.names.index(label), (np.array(p),)) for label, p in shapes]
        draw(drawn, order)
        _, labels = label_file(command.model, command.folder / name)
        assert (drawn == labels).mean() > 0.8


@pytest.mark.extras
def test_files_of_an_earlier_run_are_kept_and_said(
    command: SimpleNamespace, caplog: pytest.LogCaptureFixture
) -> None:
    corrected = command.out / "labelme" / "c" / "corrected.json"
    corrected.parent.mkdir(parents=True)
    corrected.write_text("{}")
    with pytest.raises(SystemExit, match=r"labelme' exists already"):
        main([*command.arguments, str(command.out), "--count", "2"])
    main([*command.arguments, str(command.out), "--count", "2", "--overwrite"])
    assert "1 files of an earlier run, such as c/corrected.json, which are kept" in caplog.text
    assert corrected.read_text() == "{}"


@pytest.mark.extras
def test_an_image_that_cannot_be_read_is_left_out_and_said(
    command: SimpleNamespace, caplog: pytest.LogCaptureFixture
) -> None:
    (command.folder / "bad.png").write_bytes(b"no image")
    main([*command.arguments, str(command.out), "--count", "99"])
    assert "bad.png" in caplog.text
    table = (command.out / "suggestions.csv").read_text(encoding="utf-8")
    assert len(table.splitlines()) > 2
    assert "bad.png" not in table


def test_bad_input_is_one_sentence(command: SimpleNamespace) -> None:
    for more, message in (
        (["--count", "0"], "--count 0; give the number of images, at least 1"),
        (["--labelled", str(command.folder)], "all images of .* are in --labelled"),
        (["--labelled", "gone"], "no folder 'gone'"),
    ):
        with pytest.raises(SystemExit, match=message):
            main([*command.arguments, str(command.out), *more])
    assert not command.out.exists()


@pytest.mark.extras
@pytest.mark.parametrize(
    ("tool", "labels"),
    [("labelme", ""), ("cvat", "annotations.xml"), ("label-studio", "tasks.json")],
)
def test_what_is_written_is_read_again(
    tool: str, labels: str, command: SimpleNamespace, tmp_path: Path
) -> None:
    """As people's corrections are: the areas become label maps."""
    main([*command.arguments, str(command.out), "--tool", tool, "--count", "4"])
    folder = command.out / tool
    if tool == "label-studio":  # a person has confirmed the predictions
        tasks = json.loads((folder / labels).read_text(encoding="utf-8"))
        for task in tasks:
            task["annotations"] = task.pop("predictions")
        (folder / labels).write_text(json.dumps(tasks), encoding="utf-8")
    dataset = FolderDataset(command.folder, folder / labels, CLASSES, unlabelled="ignore")
    assert len(dataset) == 4
    for k, (path, _) in enumerate(dataset.pairs):
        _, labels_of = label_file(command.model, path)
        assert (dataset[k][1].numpy() == labels_of).mean() > 0.8
