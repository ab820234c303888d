"""What ``segformer predict --write`` and ``predict_file`` give."""

from __future__ import annotations

import csv
import json
import math
import os
import signal
import time
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import processes
import pytest
import torch
from conftest import TINY, randomized, varied
from PIL import Image

from segformer import Classes, SegFormer, deploy
from segformer.checkpoint import read_processor
from segformer.cli import main as command
from segformer.data.annotations.shapes import Polygon, draw
from segformer.data.classes import distinct_palette, voc_palette
from segformer.data.datasets import FolderDataset
from segformer.data.families.opened import Window
from segformer.data.normalization import IMAGENET
from segformer.evaluation import Slide, find_protocol
from segformer.inference import (
    ByProcessor,
    ByProtocol,
    InWindows,
    Labeller,
    Thresholded,
    WholeImages,
    label_file,
    label_files,
    plan,
    predict_file,
)
from segformer.inference.large import Coarse, label_array
from segformer.inference.pictures import heat_map, overlay
from segformer.inference.results import (
    KINDS,
    Confidence,
    Heatmap,
    Labels,
    Masks,
    Overlay,
    Prediction,
    Probabilities,
)
from segformer.inference.results.base import MeanEntropy
from segformer.inference.results.contact_sheet import CELL, ContactSheet

NAMES = ["road", "sky", "tree/bush", "car", "person"]
EVERYTHING = [
    *("labels", "overlay", "overlay-png", "probabilities", "confidence", "heatmap", "masks"),
    *("shares", "manifest", "contact-sheet"),
    *(["polygons"] if find_spec("rasterio") else []),
    *(["coco"] if find_spec("pycocotools") else []),
]


@pytest.fixture
def weights(tiny: SegFormer, tmp_path: Path, photos: Path) -> Path:
    """A network that sees several classes in each photograph."""
    with Image.open(photos / "a.png") as image:
        pixels = torch.from_numpy(np.array(image) / 255.0).permute(2, 0, 1)[None].float()
    varied(tiny, tiny.decode_head.norm, IMAGENET(pixels))
    with torch.no_grad():
        tiny.decode_head.classifier.bias.zero_()
    tiny.classes = Classes(NAMES)
    tiny.save(tmp_path / "weights.safetensors")
    return tmp_path / "weights.safetensors"


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Five photographs of different sizes, two of them in a subfolder."""
    generator = np.random.default_rng(0)
    for number, name in enumerate(("a", "b", "c", "d/e", "d/f")):
        path = tmp_path / "photos" / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = generator.integers(0, 255, (5, 6 + number, 3), np.uint8)
        Image.fromarray(pixels).resize((60 + 8 * number, 50), Image.Resampling.BICUBIC).save(path)
    return tmp_path / "photos"


def predict(*words: object) -> None:
    command(["predict", *map(str, words)])


def label_map(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.array(image)


def one_logit() -> SegFormer:
    model = randomized(SegFormer(TINY, num_classes=1))
    with torch.no_grad():
        model.decode_head.classifier.bias.zero_()
    return model


LABELLERS = {
    "whole": WholeImages(),
    "windows": InWindows(Slide((48, 48), (32, 32))),
    "protocol": ByProtocol(find_protocol("whole", tta=True)),
}


def check_probabilities(model: torch.nn.Module, path: Path, labeller: Labeller) -> None:
    prediction = predict_file(model, path, labeller)
    assert prediction.probabilities is not None
    assert prediction.probabilities.dtype == np.float16
    total = prediction.probabilities.astype(np.float64).sum(0)
    assert np.abs(total - 1).max() < 2e-3
    assert np.array_equal(prediction.probabilities.argmax(0), prediction.labels)
    assert np.array_equal(prediction.labels, label_file(model, path, labeller)[1])


@pytest.mark.parametrize("labeller", LABELLERS.values(), ids=LABELLERS)
@pytest.mark.parametrize("num_classes", [1, 5])
def test_probabilities_sum_to_one_and_their_greatest_is_the_label(
    photos: Path, labeller: Labeller, num_classes: int
) -> None:
    model = one_logit() if num_classes == 1 else randomized(SegFormer(TINY, num_classes=5))
    check_probabilities(model, photos / "a.png", labeller)


def test_probabilities_of_a_processor_and_of_an_exported_file(tmp_path: Path, photos: Path) -> None:
    model = randomized(SegFormer("b0", num_classes=5))
    model.save(tmp_path / "hf", "huggingface")
    labeller = ByProcessor(read_processor(tmp_path / "hf"))
    check_probabilities(model, photos / "a.png", labeller)


def test_probabilities_equal_the_softmax_of_interpolated_logits(
    tiny: SegFormer, photos: Path
) -> None:
    prediction = tiny.predict_file(photos / "a.png")
    pixels = torch.from_numpy(np.array(prediction.image) / 255.0).permute(2, 0, 1).float()
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    with torch.inference_mode():
        logits = tiny(((pixels - mean[:, None, None]) / std[:, None, None])[None])
    expected = logits.softmax(1)[0].numpy()
    assert prediction.probabilities is not None
    assert np.abs(prediction.probabilities - expected).max() < 1e-3


def test_rounding_to_sixteen_bits_keeps_the_label(tiny: SegFormer) -> None:
    from segformer.inference.results.base import halved

    probabilities = np.full((3, 70, 2), 0.25, np.float32)
    probabilities[1] = 0.3749
    probabilities[2] = 0.3751  # equal to 0.3749 in float16
    assert np.float16(0.3749) == np.float16(0.3751)
    labels = probabilities.argmax(0)
    assert (labels == 2).all()
    assert (halved(probabilities, labels).argmax(0) == 2).all()


def test_a_model_of_labels_only_is_refused_by_name(
    tmp_path: Path, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = randomized(SegFormer(TINY, num_classes=5))
    monkeypatch.setattr(SegFormer, "gives_logits", False, raising=False)
    monkeypatch.setattr("segformer.cli.predict.load_model", lambda *_: model)
    for name in ("probabilities", "confidence", "heatmap"):
        with pytest.raises(SystemExit, match=f"{name} needs probabilities, and this model gives"):
            predict(tmp_path, photos, "--out", tmp_path / name, "--write", name)
        assert not list((tmp_path / name).iterdir())
    predict(tmp_path, photos, "--out", tmp_path / "out", "--write", "labels", "manifest")
    line = json.loads((tmp_path / "out" / "manifest.jsonl").read_text().splitlines()[0])
    assert line["mean_entropy"] is None
    with pytest.raises(ValueError, match=r"heatmap needs probabilities, .*'a.png' gives labels"):
        predict_file(model, photos / "a.png").save(tmp_path / "own", [Heatmap()])


def test_an_exported_file_gives_the_same_probabilities(tmp_path: Path, photos: Path) -> None:
    model = randomized(SegFormer(TINY, num_classes=5))
    deploy.export(model, tmp_path / "m.pt2", size=(64, 96), output="logits")
    exported = deploy.load(tmp_path / "m.pt2")
    check_probabilities(exported, photos / "a.png", WholeImages())


@pytest.mark.extras
def test_polygons_drawn_again_are_the_label_map(
    weights: Path, photos: Path, tmp_path: Path
) -> None:
    pytest.importorskip("rasterio", reason="reason: rasterio is not installed")
    predict(weights, photos, "--out", tmp_path / "out", "--write", "labels", "polygons")
    for path in (tmp_path / "out").rglob("*.geojson"):
        content = json.loads(path.read_text())
        labels = label_map(path.with_suffix(".png"))
        assert len(np.unique(labels)) > 2
        drawn = np.full_like(labels, 255)
        draw(drawn, [_polygon(feature) for feature in content["features"]])
        assert np.array_equal(drawn, labels)
        for feature in content["features"]:
            assert feature["properties"]["class"] == NAMES[feature["properties"]["index"]]


def _polygon(feature: dict[str, Any]) -> Polygon:
    coordinates = feature["geometry"]["coordinates"]
    return Polygon.of_geometry(feature["properties"]["index"], coordinates)


def test_masks_confidence_and_shares_agree_with_labels_and_probabilities(
    weights: Path, photos: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    predict(weights, photos, "--out", out, "--write", *EVERYTHING)
    labels, probabilities = label_map(out / "d/e.png"), np.load(out / "d/e_probabilities.npy")
    masks = {path.name: label_map(path) for path in (out / "d/e_masks").iterdir()}
    assert {int(name[0]) for name in masks} == set(np.unique(labels).tolist())
    for name, mask in masks.items():
        assert np.array_equal(mask == 255, labels == int(name[0]))
        assert set(np.unique(mask)) <= {0, 255}
    confidence = label_map(out / "d/e_confidence.png")
    assert np.abs(confidence / 255 - probabilities.max(0)).max() < 0.003
    with (out / "shares.csv").open(newline="") as file:
        rows = {row["file"]: row for row in csv.DictReader(file)}
    assert list(rows) == ["a.png", "b.png", "c.png", "d/e.png", "d/f.png"]
    for k, name in enumerate(NAMES):
        assert int(rows["d/e.png"][f"{name} pixels"]) == (labels == k).sum()
        share = float(rows["d/e.png"][f"{name} share"])
        assert share == pytest.approx((labels == k).mean(), abs=1e-6)
    lines = [json.loads(line) for line in (out / "manifest.jsonl").read_text().splitlines()]
    line = next(line for line in lines if line["file"] == "d/e.png")
    p = probabilities.astype(np.float64)
    expected = -(p * np.log(p, out=np.zeros_like(p), where=p > 0)).sum(0).mean()
    assert line["mean_entropy"] == pytest.approx(expected, abs=1e-3)
    assert line["shares"][NAMES[labels[0, 0]]] == pytest.approx(
        (labels == labels[0, 0]).mean(), abs=1e-6
    )


@pytest.mark.extras
@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
def test_coco_is_read_by_pycocotools(weights: Path, photos: Path, tmp_path: Path) -> None:
    coco = pytest.importorskip("pycocotools.coco", reason="reason: pycocotools is not installed")
    predict(weights, photos, "--out", tmp_path / "out", "--write", "labels", "coco")
    read = coco.COCO(tmp_path / "out" / "coco.json")
    assert len(read.imgs) == 5
    for number, image in read.imgs.items():
        labels = label_map(tmp_path / "out" / image["file_name"])
        drawn = np.full(labels.shape, 255, np.uint8)
        for mask in read.loadAnns(read.getAnnIds([number])):
            drawn[read.annToMask(mask) == 1] = mask["category_id"] - 1
            assert mask["area"] == read.annToMask(mask).sum()
        assert np.array_equal(drawn, labels)
    assert [read.cats[k + 1]["name"] for k in range(5)] == NAMES


def content_of(folder: Path) -> dict[str, bytes]:
    """The files of a run; the manifest without the seconds."""
    files = {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}
    lines = [json.loads(line) for line in files["manifest.jsonl"].splitlines()]
    shown = [{k: v for k, v in line.items() if k != "seconds"} for line in lines]
    return {**files, "manifest.jsonl": json.dumps(shown).encode()}


def test_a_killed_run_goes_on_to_the_files_of_an_undisturbed_one(
    weights: Path, photos: Path, tmp_path: Path
) -> None:
    (photos / "bad.png").write_bytes(b"no image")
    words = [weights, photos, "--write", *EVERYTHING, "--skip-existing", "--out"]
    with pytest.raises(SystemExit, match=r"bad.png"):
        predict(*words, tmp_path / "whole")
    code = (
        "import sys, time\n"
        "from segformer.inference import journal\n"
        "add = journal.Journal.add\n"
        "def slow(self, entry):\n"
        "    time.sleep(0.2)\n"
        "    add(self, entry)\n"
        "journal.Journal.add = slow\n"
        "from segformer.cli import main\n"
        "main(sys.argv[1:])\n"
    )
    process = processes.start(
        code, "predict", *words, tmp_path / "killed", output=tmp_path / "printed"
    )
    manifest = tmp_path / "killed" / "manifest.jsonl"
    for _ in range(3000):
        if manifest.exists() and manifest.read_text().count("\n") >= 2:
            break
        time.sleep(0.02)
    assert process.pid is not None
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    assert 2 <= manifest.read_text().count("\n") < 6, (tmp_path / "printed").read_text()
    with pytest.raises(SystemExit, match=r"bad.png"):
        predict(*words, tmp_path / "killed")
    assert content_of(tmp_path / "killed") == content_of(tmp_path / "whole")


def test_skip_existing_labels_only_what_is_missing(
    weights: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [weights, photos, "--out", tmp_path / "out", "--write", "labels", "shares"]
    predict(*words)
    (tmp_path / "out" / "b.png").unlink()
    capsys.readouterr()
    with pytest.raises(SystemExit, match="exists already"):
        predict(*words)
    predict(*words, "--skip-existing")
    assert "1 images labelled, 4 left out" in capsys.readouterr().out
    assert (tmp_path / "out" / "b.png").exists()


def test_files_that_exist_are_kept_while_others_are_added(
    weights: Path, photos: Path, tmp_path: Path
) -> None:
    words = [weights, photos, "--out", tmp_path / "out", "--write", "labels"]
    predict(*words)
    corrected = tmp_path / "out" / "a.png"
    Image.fromarray(np.full((50, 60), 4, np.uint8)).save(corrected)
    before = corrected.read_bytes()
    predict(*words, "overlay", "shares", "--skip-existing")
    assert corrected.read_bytes() == before
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert {"a_overlay.jpg", "b_overlay.jpg", "shares.csv"} <= names


def test_a_large_label_map_that_exists_is_kept(weights: Path, tmp_path: Path) -> None:
    """Other results are made while it is written."""
    np.save(tmp_path / "a.npy", np.zeros((40, 50, 3), np.uint8))
    (tmp_path / "a.npy").rename(tmp_path / "a.NPY")
    words = [weights, tmp_path / "a.NPY", "--out", tmp_path / "out", "--write", "labels"]
    predict(*words)
    before = (tmp_path / "out" / "a.NPY").read_bytes()
    predict(*words, "--skip-existing")
    with pytest.raises(
        SystemExit, match=r"a.NPY' exists, and the rest of its results is made whil"
    ):
        predict(*words, "confidence", "--skip-existing")
    assert (tmp_path / "out" / "a.NPY").read_bytes() == before
    predict(*words, "confidence", "--overwrite")
    assert np.load(tmp_path / "out" / "a_confidence.NPY").shape == (40, 50)


def test_results_in_the_folder_of_the_images_are_no_images(
    weights: Path, photos: Path, caplog: pytest.LogCaptureFixture
) -> None:
    words = [weights, photos, "--out", photos / "results"]
    predict(*words)
    assert "are left out" not in caplog.text
    written = sorted(photos.rglob("*"))
    predict(*words, "--skip-existing")
    assert "results' is the folder of results: images in it are left out" in caplog.text
    assert sorted(photos.rglob("*")) == written


def test_what_is_not_of_a_run_is_not_replaced(weights: Path, photos: Path, tmp_path: Path) -> None:
    words = [weights, photos, "--out", tmp_path / "out", "--write", "labels"]
    predict(*words, "masks")
    predict(*words, "masks", "--overwrite")
    notes = tmp_path / "out" / "a_masks" / "notes.txt"
    notes.touch()
    with pytest.raises(SystemExit, match=r"a_masks' would be replaced and holds 'notes.txt'"):
        predict(*words, "masks", "--overwrite")
    assert notes.exists()
    (photos / "a.png").rename(photos / "contact_sheet.jpg")
    with pytest.raises(SystemExit, match=r"contact-sheet and a result of .*contact_sheet.jpg'"):
        predict(*words, "contact-sheet", "--overwrite")


def test_the_contact_sheet_keeps_its_limit_when_a_run_goes_on(tmp_path: Path) -> None:
    sheet, image = ContactSheet(limit=2), Image.new("RGB", (320, 240))
    predictions = [
        Prediction(name, image, np.zeros((240, 320), np.uint8), Classes(NAMES)) for name in "abcd"
    ]
    entries = {prediction.name: sheet.entry(prediction) for prediction in predictions}
    sheet.write(tmp_path / "sheet.png", entries, Classes(NAMES))
    with Image.open(tmp_path / "sheet.png") as picture:
        assert picture.width < 3 * CELL[0]
        assert picture.height < 2 * CELL[1]


def test_confidence_has_no_value_where_there_is_no_data(tmp_path: Path) -> None:
    labels = np.array([[0, 255]], np.uint8)
    probabilities = np.full((5, 1, 2), 0.2, np.float16)
    image = Image.new("RGB", (2, 1))
    prediction = Prediction("a.png", image, labels, Classes(NAMES), probabilities)
    confidence, heat = prediction.save(tmp_path, [Confidence(), Heatmap()])
    assert label_map(confidence).tolist() == [[51, 0]]
    with Image.open(heat) as picture:
        assert picture.getpixel((picture.width - 1, 0)) == (0, 0, 0) != picture.getpixel((0, 0))


@pytest.mark.parametrize("turn", range(1, 9))
def test_label_maps_of_turned_photographs_are_training_data(
    turn: int, weights: Path, photos: Path, tmp_path: Path
) -> None:
    exif = Image.Exif()
    exif[0x0112] = turn
    with Image.open(photos / "a.png") as image:
        turned = image.resize((60, 60))  # whose size does not show whether it is turned
        (tmp_path / "turned").mkdir()
        turned.save(tmp_path / "turned" / "a.jpg", exif=exif, quality=95)
    predict(weights, tmp_path / "turned", "--out", tmp_path / "out", "--write", "labels")
    dataset = FolderDataset(tmp_path / "turned", tmp_path / "out", Classes(NAMES))
    _, labels = label_file(SegFormer.from_pretrained(weights), tmp_path / "turned" / "a.jpg")
    assert np.array_equal(dataset[0][1].numpy(), labels)


def test_a_threshold_labels_what_exceeds_it(tmp_path: Path, photos: Path) -> None:
    model = one_logit()
    p = predict_file(model, photos / "a.png")
    assert p.probabilities is not None
    middle = float(np.median(p.probabilities[1]))
    for labeller in LABELLERS.values():
        way = Thresholded(labeller, middle)
        q = predict_file(model, photos / "a.png", way)
        assert q.probabilities is not None
        is_clear = np.abs(q.probabilities[1].astype(np.float32) - middle) > 2e-3
        assert np.array_equal((q.labels == 1)[is_clear], (q.probabilities[1] > middle)[is_clear])
        assert 0 < q.labels.mean() < 1
    model.save(tmp_path / "one.safetensors")
    words = [photos / "a.png", "--out", tmp_path / "out", "--threshold"]
    with pytest.raises(SystemExit, match="a threshold of 1.5; give a probability between 0 and 1"):
        predict(tmp_path / "one.safetensors", *words, 1.5)
    predict(tmp_path / "one.safetensors", *words, middle)
    SegFormer(TINY, num_classes=3).save(tmp_path / "three.safetensors")
    with pytest.raises(SystemExit, match="one logit, and this one has 3; leave out --threshold"):
        predict(tmp_path / "three.safetensors", *words, 0.3, "--overwrite")


@pytest.mark.extras
def test_large_images_get_what_fits_memory_and_refuse_the_rest_by_name(
    weights: Path, photos: Path, tmp_path: Path
) -> None:
    pytest.importorskip("rasterio", reason="reason: rasterio is not installed")
    np.save(tmp_path / "a.npy", label_map(photos / "a.png"))
    out = tmp_path / "out"
    words = [weights, tmp_path / "a.npy", "--slide", 48, 32, "--out", out, "--write"]
    with pytest.raises(SystemExit, match="a.npy' is labelled in windows, .* coco needs it whole"):
        predict(*words, "labels", "coco")
    with pytest.raises(SystemExit, match="add labels to --write"):
        predict(*words, "shares")
    assert not out.exists()
    predict(*words, *(name for name in EVERYTHING if name != "coco"))
    labels, probabilities = np.load(out / "a.npy"), np.load(out / "a_probabilities.npy")
    confidence = np.load(out / "a_confidence.npy")
    assert confidence.dtype == np.uint8
    assert np.abs(confidence / 255 - probabilities.max(0)).max() < 0.003
    masks = {path.name: np.load(path) for path in (out / "a_masks").iterdir()}
    assert {int(name[0]) for name in masks} == set(np.unique(labels).tolist())
    assert all(np.array_equal(mask == 255, labels == int(k[0])) for k, mask in masks.items())
    assert np.array_equal(probabilities.argmax(0), labels)
    model = SegFormer.from_pretrained(weights)
    expected = predict_file(model, photos / "a.png", InWindows(Slide((48, 48), (32, 32))))
    assert expected.probabilities is not None
    difference = probabilities.astype(np.float32) - expected.probabilities
    assert np.abs(difference).max() < 1e-3  # the last bits of sums differ with their order
    line = json.loads((out / "manifest.jsonl").read_text())
    assert line["mean_entropy"] == pytest.approx(expected.counted.mean_entropy, abs=1e-3)
    # Pictures of an image this small are those of the photograph.
    expected.save(tmp_path / "whole", [Overlay(), Heatmap()])
    for path in (tmp_path / "whole").iterdir():
        difference = label_map(path).astype(int) - label_map(out / path.name)
        assert np.abs(difference).max() <= 2
    with Image.open(out / "contact_sheet.png") as sheet:
        assert sheet.width > CELL[0]


def scene(path: Path, pixels: np.ndarray, **options: Any) -> np.ndarray:
    """Writes a georeferenced raster in tiles, without data in a corner; returns where it has data.

    Args:
        pixels: (H, W, 3), above 0.
    """
    import rasterio

    valid = np.ones(pixels.shape[:2], bool)
    valid[: len(valid) // 4, : len(valid) // 3] = False
    transform = rasterio.Affine(0.5, 0, 400000, 0, -0.5, 5000000)
    options = {"crs": "EPSG:32633", "transform": transform, "dtype": "uint8", "count": 3} | options
    height, width = pixels.shape[:2]
    with rasterio.open(path, "w", "GTiff", width, height, nodata=0, **options) as raster:
        raster.write(np.where(valid[..., None], pixels, 0).transpose(2, 0, 1))
    return valid


@pytest.mark.extras
def test_files_of_a_scene_lie_on_its_grid(
    weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rasterio = pytest.importorskip("rasterio", reason="reason: rasterio is not installed")
    monkeypatch.setattr("segformer.inference.large.OVERVIEW", 50)
    monkeypatch.setattr("segformer.inference.large.PART", 64)
    coarse = np.random.default_rng(0).integers(1, 255, (5, 8, 3), np.uint8)
    pixels = np.array(Image.fromarray(coarse).resize((190, 130), Image.Resampling.BICUBIC))
    path, out = tmp_path / "scene.tif", tmp_path / "out"
    valid = scene(path, pixels.clip(1))
    kinds = ("labels", "probabilities", "confidence", "masks", "overlay-png", "heatmap")
    words = [weights, path, "--slide", 64, 48, "--out", out, "--write", *kinds]
    predict(*words, "contact-sheet", "manifest")
    read = {}
    for file in (out / "scene.tif", out / "scene_confidence.tif", *(out / "scene_masks").iterdir()):
        with rasterio.open(path) as own, rasterio.open(file) as raster:
            assert (raster.crs, raster.transform) == (own.crs, own.transform)
            assert raster.shape == (130, 190)
            read[file.name], nodata = raster.read(1), raster.nodata
        if file.name == "scene_confidence.tif":
            assert nodata == 0
    labels, confidence = read.pop("scene.tif"), read.pop("scene_confidence.tif")
    assert np.array_equal(labels != 255, valid)
    assert np.array_equal(confidence != 0, valid)
    largest = np.load(out / "scene_probabilities.npy").max(0)
    assert np.abs(confidence / 255 - largest)[valid].max() < 0.003
    assert {int(name[0]) for name in read} == set(np.unique(labels[valid]).tolist())
    assert all(np.array_equal(mask == 255, labels == int(k[0])) for k, mask in read.items())

    step = 4  # so that 190 pixels become at most 50
    seen, shown = labels[::step, ::step], label_map(path)
    means = [
        [shown[y : y + step, x : x + step].mean((0, 1)) for x in range(0, 190, step)]
        for y in range(0, 130, step)
    ]
    image = Image.fromarray(np.rint(means).astype(np.uint8))
    model = SegFormer.from_pretrained(weights)
    expected = np.array(overlay(image, seen, model.classes)).astype(int)
    found = label_map(out / "scene_overlay.png")[: 6 * 33 : 6, : 6 * 48 : 6]  # it is enlarged
    assert np.abs(expected - found).max() <= 1
    heat = np.array(heat_map(largest[::step, ::step].astype(np.float32))).astype(int)
    found = label_map(out / "scene_heatmap.png")[: 6 * 33 : 6, : 6 * 48 : 6]
    assert np.abs(heat - found)[seen != 255].max() <= 2


@pytest.mark.parametrize("size", [(1, 4001), (5000, 3), (37, 53), (401, 6003)], ids=str)
def test_the_pixels_of_an_overview_are_found_in_windows_of_any_size(size: tuple[int, int]) -> None:
    values = np.arange(size[0] * size[1]).reshape(size)
    coarse = Coarse(size)
    found = np.full(coarse.size, -1)
    for top in range(0, size[0], 97):
        for left in range(0, size[1], 61):
            window = Window(top, left, min(97, size[0] - top), min(61, size[1] - left))
            inside, own = coarse.pixels(window)
            found[inside] = values[window.slices][own]
    assert max(found.shape) <= 2000
    assert np.array_equal(found, values[:: coarse.step, :: coarse.step])


@pytest.mark.extras
def test_a_scene_that_fails_leaves_no_file(
    weights: Path, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("rasterio", reason="reason: rasterio is not installed")
    scene(tmp_path / "scene.tif", label_map(photos / "a.png").clip(1))

    def fails(*arguments: object, **options: object) -> None:
        raise ValueError("scene.tif cannot be labelled")

    monkeypatch.setattr("segformer.inference.large.average_windows", fails)
    kinds = ("labels", "probabilities", "confidence", "masks", "overlay", "heatmap", "polygons")
    words = [weights, tmp_path / "scene.tif", "--out", tmp_path / "out", "--write", *kinds]
    with pytest.raises(SystemExit, match="cannot be labelled"):
        predict(*words)
    assert not list((tmp_path / "out").iterdir())


@pytest.mark.extras
def test_a_scene_gives_polygons_in_its_system_and_square_metres(
    weights: Path, photos: Path, tmp_path: Path
) -> None:
    rasterio = pytest.importorskip("rasterio", reason="reason: rasterio is not installed")
    path, out = tmp_path / "scene.tif", tmp_path / "out"
    scene(path, label_map(photos / "a.png").clip(1))
    predict(weights, path, "--out", out, "--write", "labels", "polygons", "shares")
    content = json.loads((out / "scene.geojson").read_text())
    assert content["crs"]["properties"]["name"] == "urn:ogc:def:crs:EPSG::32633"
    shapes = [(f["geometry"], f["properties"]["index"]) for f in content["features"]]
    with rasterio.open(out / "scene.tif") as raster:
        labels, transform = raster.read(1), raster.transform
    drawn = rasterio.features.rasterize(shapes, labels.shape, fill=255, transform=transform)
    assert np.array_equal(drawn, labels)
    with (out / "shares.csv").open(newline="") as file:
        (row,) = csv.DictReader(file)
    for k, name in enumerate(NAMES):
        assert float(row[f"{name} m2"]) == pytest.approx((labels == k).sum() / 4)


def test_the_mean_entropy_is_that_of_pixels_with_data() -> None:
    probabilities = np.full((4, 90, 3), 0.25, np.float16)
    probabilities[:, 40:] = np.array([1, 0, 0, 0])[:, None, None]
    labels = np.zeros((90, 3), np.uint8)
    picture = Image.new("RGB", (3, 90))
    for no_data, expected in (
        (slice(0, 0), math.log(4) * 40 / 90),
        (slice(40, 90), math.log(4)),
        (slice(0, 90), None),
    ):
        masked = labels.copy()
        masked[no_data] = 255
        found = Prediction("a", picture, masked, Classes.unnamed(4), probabilities).counted
        in_parts = MeanEntropy(4)
        for top in range(0, 90, 50):
            rows = slice(top, top + 50)
            logits = torch.from_numpy(probabilities[:, rows].astype(np.float32)).log()
            in_parts.add(Window(top, 0, 50, 3), masked[rows], logits)
        for mean in (found.mean_entropy, in_parts.mean):
            assert mean == (expected if expected is None else pytest.approx(expected, rel=1e-3))


def test_a_manifest_is_written_line_by_line_and_names_errors(
    weights: Path, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """When an image is labelled, the one before may still be written."""
    (photos / "bad.png").write_bytes(b"no image")
    written = []
    label = WholeImages.with_probabilities

    def spy(*arguments: Any) -> Any:
        written.append((tmp_path / "out" / "manifest.jsonl").read_text().count("\n"))
        return label(*arguments)

    monkeypatch.setattr(WholeImages, "with_probabilities", spy)
    with pytest.raises(SystemExit, match=r"bad.png"):
        predict(weights, photos, "--out", tmp_path / "out", "--write", "manifest")
    before = [0, 1, 3, 4, 5]  # a, b, bad, c, d/e, d/f
    assert all(n - 1 <= lines <= n for n, lines in zip(before, written, strict=True)), written
    lines = [json.loads(s) for s in (tmp_path / "out" / "manifest.jsonl").read_text().splitlines()]
    assert [line["file"] for line in lines if line["error"]] == ["bad.png"]
    assert "bad.png" in next(line["error"] for line in lines if line["error"])
    assert all(line["seconds"] >= 0 for line in lines)


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError("no space left")])
def test_a_run_that_is_interrupted_leaves_whole_files_and_true_entries(
    error: Any, weights: Path, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The third image stops the run while the second is slowly written."""
    label, write = WholeImages.with_probabilities, Labels.write
    calls = []

    def stop(*arguments: Any) -> Any:
        calls.append(1)
        if len(calls) == 3:
            raise error
        return label(*arguments)

    def slow(*arguments: Any) -> None:
        time.sleep(0.2)
        write(*arguments)

    words = [weights, photos, "--out", tmp_path / "out", "--write", "labels", "manifest"]
    with monkeypatch.context() as patched:
        patched.setattr(WholeImages, "with_probabilities", stop)
        patched.setattr(Labels, "write", slow)
        with pytest.raises((KeyboardInterrupt, SystemExit)):
            predict(*words)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        *("a.png", "b.png", "manifest.jsonl")
    ]
    lines = (tmp_path / "out" / "manifest.jsonl").read_text().splitlines()
    assert [json.loads(line)["file"] for line in lines] == ["a.png", "b.png"]
    for name in ("a.png", "b.png"):
        assert label_map(tmp_path / "out" / name).shape == label_map(photos / name).shape[:2]
    predict(*words, "--skip-existing")
    predict(weights, photos, "--out", tmp_path / "whole", "--write", "labels", "manifest")
    assert content_of(tmp_path / "out") == content_of(tmp_path / "whole")


def test_a_full_disk_stops_the_run(
    weights: Path, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The error of the thread that writes is the error of the run; nothing follows it."""
    write = Labels.write

    def full(self: Labels, prediction: Prediction, path: Path) -> None:
        if path.name == "b.png":
            raise OSError("no space left")
        write(self, prediction, path)

    monkeypatch.setattr(Labels, "write", full)
    with pytest.raises(SystemExit, match="no space left"):
        predict(weights, photos, "--out", tmp_path / "out", "--write", "labels", "manifest")
    lines = (tmp_path / "out" / "manifest.jsonl").read_text().splitlines()
    assert [json.loads(line)["file"] for line in lines] == ["a.png"]
    assert (tmp_path / "out" / "a.png").exists()


def test_options_that_do_not_fit_are_refused(weights: Path, photos: Path, tmp_path: Path) -> None:
    words = [weights, photos, "--out", tmp_path / "out"]
    with pytest.raises(SystemExit, match="give only one of them"):
        predict(*words, "--overwrite", "--skip-existing")
    with pytest.raises(SystemExit, match="invalid choice: 'maps'"):
        predict(*words, "--write", "maps")
    refused = "--write labels is for images, and .*photos' becomes .* gives shares and manifest"
    with pytest.raises(SystemExit, match=refused):
        predict(*words, "--video", 25, "--write", "shares", "labels")
    with pytest.raises(SystemExit, match="--skip-existing is for images, and .*photos' becomes"):
        predict(*words, "--video", 25, "--skip-existing")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "manifest.jsonl").write_text('{"file": 3\n{"file": "a.png"}\n')
    with pytest.raises(SystemExit, match="line 1 of .*manifest.jsonl' is no entry of a run"):
        predict(*words, "--write", "manifest", "--skip-existing")


def test_a_prediction_saves_itself(tiny: SegFormer, photos: Path, tmp_path: Path) -> None:
    prediction = predict_file(tiny, photos / "d" / "e.png")
    paths = prediction.save(tmp_path / "own", [Labels(), Confidence(), Probabilities()])
    assert [path.name for path in paths] == ["e.png", "e_confidence.png", "e_probabilities.npy"]
    assert np.array_equal(label_map(paths[0]), prediction.labels)
    assert set(KINDS) >= set(EVERYTHING)


# Machado, Oliveira and Fernandes (2009), severity 1.0, for linear RGB.
SEEN = {
    "normal": np.eye(3),
    "protanopia": [
        [0.152286, 1.052583, -0.204868],
        [0.114503, 0.786281, 0.099216],
        [-0.003882, -0.048116, 1.051998],
    ],
    "deuteranopia": [
        [0.367322, 0.860646, -0.227968],
        [0.280085, 0.672501, 0.047413],
        [-0.011820, 0.042940, 0.968881],
    ],
    "tritanopia": [
        [1.255528, -0.076749, -0.178779],
        [-0.078411, 0.930809, 0.147602],
        [0.004733, 0.691367, 0.303900],
    ],
}
TO_XYZ = np.array(
    [
        [0.4124564, 0.3575761, 0.1804375],
        [0.2126729, 0.7151522, 0.0721750],
        [0.0193339, 0.1191920, 0.9503041],
    ]
)


def nearest(colors: object, eye: str) -> float:
    """The smallest distance in CIELAB of two colours, or of one from black, as an eye sees it."""
    values = np.array([(0, 0, 0), *colors]) / 255  # type: ignore[misc]
    linear = np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)
    seen = np.clip(linear @ np.array(SEEN[eye]).T, 0, 1) @ TO_XYZ.T / TO_XYZ.sum(1)
    f = np.where(seen > 216 / 24389, np.cbrt(seen), (24389 / 27 * seen + 16) / 116)
    lab = np.stack([116 * f[:, 1] - 16, 500 * (f[:, 0] - f[:, 1]), 200 * (f[:, 1] - f[:, 2])], 1)
    distances = np.linalg.norm(lab[:, None] - lab, axis=-1)
    return float(distances[np.triu_indices(len(lab), 1)].min())


@pytest.mark.parametrize("eye", SEEN)
def test_default_colours_differ_for_colour_blind_eyes(eye: str) -> None:
    palette = distinct_palette()
    assert nearest(palette[:8], eye) > 27
    assert nearest(palette[:12], eye) > 22
    assert nearest(palette, eye) > 4  # a just noticeable difference is 2.3
    assert len(set(palette)) == 255


def test_voc_and_own_colours_are_kept_and_so_are_palettes_of_label_maps() -> None:
    voc, own = Classes.of_table("voc2012"), Classes(["a", "b"], [(1, 2, 3), (4, 5, 6)])
    assert voc.shown_colors == voc_palette(21)
    assert own.shown_colors == own.colors
    unnamed = Classes.unnamed(5)
    assert unnamed.colors == voc_palette(5)  # stored files are read by it
    assert unnamed.shown_colors == distinct_palette()[:5]
    assert len(set(Classes.unnamed(300).shown_colors)) == 300


def test_a_prediction_replaces_neither_its_image_nor_other_files(
    tiny: SegFormer, photos: Path
) -> None:
    path = photos / "a.png"
    before, prediction = path.read_bytes(), predict_file(tiny, path)
    with pytest.raises(FileExistsError, match=r"a.png' is the image itself"):
        prediction.save(photos, [Labels()])
    assert path.read_bytes() == before
    notes = photos / "a_masks" / "notes.txt"
    notes.parent.mkdir()
    notes.touch()
    with pytest.raises(FileExistsError, match=r"a_masks' would be replaced and holds 'notes.txt'"):
        prediction.save(photos, [Masks()])
    assert notes.exists()


def test_a_large_image_is_not_replaced_by_its_labels(tiny: SegFormer, tmp_path: Path) -> None:
    path = tmp_path / "a.npy"
    np.save(path, np.zeros((64, 64, 3), np.uint8))
    before = path.read_bytes()
    with pytest.raises(FileExistsError, match=r"a.npy' is the image itself"):
        label_array(tiny, path, path, Slide((64, 64), (48, 48)))
    assert path.read_bytes() == before


def test_a_folder_of_masks_holds_no_other_result_and_no_image(
    weights: Path, tmp_path: Path
) -> None:
    image = Image.new("RGB", (64, 64))
    for name in ("x/a_masks/b.png", "y/a.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        image.save(tmp_path / name)
    words = [weights, tmp_path / "x", tmp_path / "y" / "a.png", "--write", "labels", "masks"]
    with pytest.raises(SystemExit, match=r"a_masks', a result of .*, would hold .*b.png'"):
        predict(*words, "--out", tmp_path / "out")
    image.save(tmp_path / "x" / "a.png")
    words = [weights, tmp_path / "x" / "a.png", tmp_path / "x" / "a_masks" / "b.png"]
    with pytest.raises(SystemExit, match=r"a_masks' is one of the images to label, or holds one"):
        predict(*words, "--out", tmp_path / "x", "--write", "masks", "--overwrite")
    sheet = tmp_path / "z" / "contact_sheet.png"
    sheet.parent.mkdir()
    image.save(sheet)
    words = [weights, sheet.parent, "--out", sheet.parent, "--overwrite"]
    with pytest.raises(SystemExit, match=r"contact_sheet.png' is one of the images to label"):
        predict(*words, "--write", "overlay-png", "contact-sheet")


def test_names_that_no_summary_can_hold_are_refused_before_the_run(
    weights: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    Image.new("RGB", (64, 64)).save(folder / os.fsdecode(b"caf\xe9.png"))
    with pytest.raises(SystemExit, match=r"is no text in UTF-8, as manifest.jsonl is"):
        predict(weights, folder, "--out", tmp_path / "out", "--write", "labels", "manifest")
    predict(weights, folder, "--out", tmp_path / "out", "--write", "labels")


def test_an_image_that_is_removed_during_a_run_is_named(tiny: SegFormer, photos: Path) -> None:
    work = plan([str(photos)], photos.parent / "out", results=[Labels()])
    work.jobs[0].source.unlink()
    with pytest.raises(ValueError, match=rf"{work.jobs[0].source.name}' is gone$"):
        label_files(tiny, work)
    assert all(path.exists() for job in work.jobs[1:] for _, path in job.writes)
