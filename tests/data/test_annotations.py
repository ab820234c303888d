"""Labels that are drawn: one scene in every format, and what is refused.

uv pip install ".[test,annotations]"; pytest -m extras tests/data/test_annotations.py
"""

from __future__ import annotations

import json
import logging
import pickle
import re
from base64 import b64encode
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from segformer.cli import main
from segformer.data.annotations.areas import Picture
from segformer.data.bands import Bands
from segformer.data.datasets import DataError, FolderDataset
from segformer.data.rasters import RasterDataset
from segformer.train.data import FolderData
from segformer.train.from_folder.options import parse
from segformer.train.from_folder.plan import make_plan
from segformer.train.parser import build_data, data_of, data_parser

for package in ("pycocotools", "rasterio", "shapely"):
    pytest.importorskip(package, reason="reason: needs segformer[annotations]")
annotated = pytest.importorskip("annotated", reason="reason: needs segformer[annotations]")

from annotated import CLASSES, FORMATS, HEIGHT, SIZE, WIDTH, label_map  # noqa: E402

pytestmark = [
    pytest.mark.extras,
    # pycocotools under NumPy 2
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"),
]
UTM33 = "EPSG:32633"


def photograph(folder: Path, name: str = "scene.png") -> Path:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(len(name)).integers(0, 256, (HEIGHT, WIDTH, 3), np.uint8)
    Image.fromarray(pixels).save(path)
    return path


def written(folder: Path, kind: str) -> Path:
    """Writes the scene in one format; returns its file."""
    photograph(folder / "images")
    write, name = FORMATS[kind]
    (folder / "labels").mkdir()
    return write(folder / "labels" / name, "scene.png")


def opened(folder: Path, labels: str = "labels", **options: Any) -> FolderDataset:
    options = {"unlabelled": "background", **options}
    return FolderDataset(folder / "images", folder / labels, CLASSES, **options)


def faults(folder: Path, **options: Any) -> str:
    """All sentences about a data set, of which there must be some."""
    try:
        dataset = opened(folder, **options)
        dataset.check_files()
    except DataError as error:
        return "\n".join(error.faults)
    except ValueError as error:
        return str(error)
    raise AssertionError("nothing was refused")


@pytest.mark.parametrize("kind", FORMATS)
def test_the_scene_is_the_same_in_every_format(kind: str, tmp_path: Path) -> None:
    written(tmp_path, kind)
    dataset = opened(tmp_path)
    assert dataset.check_files() == ()
    image, label = dataset[0]
    assert image.shape == (3, HEIGHT, WIDTH)
    np.testing.assert_array_equal(label, label_map())
    ignoring = opened(tmp_path, unlabelled="ignore")
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(ignoring))[0][1], label_map(255))


@pytest.mark.parametrize("write", [annotated.class_folders, annotated.class_suffixes])
def test_the_scene_is_the_same_from_one_mask_a_class(write: Any, tmp_path: Path) -> None:
    photograph(tmp_path / "images")
    write(tmp_path / "labels", "scene.png")
    dataset = opened(tmp_path)
    dataset.check_files()
    np.testing.assert_array_equal(dataset[0][1], label_map())


def test_geojson_lies_on_the_raster_and_is_read_in_tiles(tmp_path: Path) -> None:
    import rasterio

    (tmp_path / "images").mkdir()
    (tmp_path / "labels").mkdir()
    transform = rasterio.Affine(0.5, 0, 500_000, 0, -0.5, 5_000_000)
    bands = np.random.default_rng(0).integers(1, 4000, (4, HEIGHT, WIDTH), np.uint16)
    with rasterio.open(
        tmp_path / "images" / "scene.tif",
        "w",
        driver="GTiff",
        count=4,
        crs=UTM33,
        transform=transform,
        dtype="uint16",
        **SIZE,
    ) as raster:
        raster.write(bands)

    def place(x: float, y: float) -> tuple[float, float]:
        return 500_000 + 0.5 * x, 5_000_000 - 0.5 * y

    path = tmp_path / "labels" / "scene.geojson"
    annotated.geojson(path, "scene.tif", place, "urn:ogc:def:crs:EPSG::32633")

    def raster_set(**options: Any) -> RasterDataset:
        folders = tmp_path / "images", tmp_path / "labels"
        return RasterDataset(*folders, CLASSES, unlabelled=0, bands=Bands(), **options)

    whole = raster_set()
    whole.check_files()
    image, label = whole[0]
    np.testing.assert_array_equal(image, bands)
    np.testing.assert_array_equal(label, label_map())
    parts = raster_set(tile=[24, 32])
    for k, (_, _, window) in enumerate(parts.parts):
        label = parts[k][1]
        assert window is not None
        np.testing.assert_array_equal(label, label_map()[window.slices])

    photograph_of = FolderDataset(tmp_path / "images", tmp_path / "labels", CLASSES, unlabelled=0)
    photograph_of.drawn.check(Picture(tmp_path / "images" / "scene.tif", (HEIGHT, WIDTH)))
    annotated.geojson(path, "scene.tif", place, "EPSG:4326")
    with pytest.raises(DataError, match=r"scene\.geojson.*EPSG:4326.*EPSG:32633"):
        raster_set().check_files()
    annotated.geojson(path, "scene.tif", place)
    with pytest.raises(DataError, match="no crs, which means longitude and latitude"):
        raster_set().check_files()


@pytest.mark.filterwarnings("ignore")
def test_a_config_reads_one_file_for_all_splits(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    for split in ("train", "val"):
        photograph(tmp_path / "images" / split, f"{split}.png")
    content = json.loads(
        annotated.coco(tmp_path / "all.json", "images/train/train.png").read_text()
    )
    content["images"].append({"id": 8, "file_name": "val.png", **SIZE})
    (tmp_path / "all.json").write_text(json.dumps(content))
    config = tmp_path / "config.yaml"
    config.write_text(
        f"""
data:
  class_path: segformer.train.data.FolderData
  init_args:
    root: {tmp_path}
    classes: {{names: [background, street, car]}}
    labels: all.json
    unlabelled: 0
    class_map: {{road: street, person: ignore}}
    train_transform:
      class_path: segformer.data.augmentation.Street
      init_args: {{crop_size: [32, 32]}}
"""
    )
    with caplog.at_level(logging.INFO):
        main(["check", f"--config={config}", f"--out={tmp_path / 'check.png'}", "--num_workers=1"])
    report = capsys.readouterr().out
    assert "no problems" in report
    expected = label_map()
    for name, k in (("background", 0), ("street", 1), ("car", 2), ("ignored", 3)):
        share = 100 * (expected == k).mean()
        rest = 100.0 * (k == 0)
        assert re.search(rf"{name} +{share:.3f} +{rest:.3f}", report), report
    assert (tmp_path / "check.png").exists()
    assert "4 annotated objects of 2 images are drawn by their classes" in caplog.text
    assert "1 images have no annotated object" in caplog.text

    options = data_parser("check").parse_args([f"--config={config}"])
    content["images"].append({"id": 9, "file_name": "lost.png", **SIZE})
    (tmp_path / "all.json").write_text(json.dumps(content))
    with pytest.raises(DataError, match="image 9: there is no image 'lost.png' in the folders of"):
        build_data(options.data)


def coco_of_boxes(path: Path, images: dict[str, dict[str, tuple[int, int]]]) -> Path:
    """Images of any names, whose classes fill the columns from one to another."""
    names = sorted({name for areas in images.values() for name in areas})
    content: dict[str, Any] = {
        "images": [{"id": k, "file_name": name, **SIZE} for k, name in enumerate(images)],
        "categories": [{"id": k, "name": name} for k, name in enumerate(names)],
        "annotations": [
            {
                "id": 10 * k + number,
                "image_id": k,
                "category_id": names.index(name),
                "iscrowd": 0,
                "segmentation": [[left, 0, right, 0, right, HEIGHT, left, HEIGHT]],
            }
            for k, areas in enumerate(images.values())
            for number, (name, (left, right)) in enumerate(areas.items())
        ],
    }
    path.write_text(json.dumps(content))
    return path


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("prefix", ["", "images/", "/home/another/data/"])
@pytest.mark.parametrize("without", ["train/1.png", "val/1.png"])
def test_an_image_takes_no_annotation_of_another_split(
    prefix: str, without: str, tmp_path: Path
) -> None:
    names = ["train/0.png", "train/1.png", "val/1.png", "val/2.png"]
    for name in names:
        photograph(tmp_path / "images" / Path(name).parent, Path(name).name)
    areas = {f"{prefix}{name}": {"road": (0, 9)} for name in names if name != without}
    coco_of_boxes(tmp_path / "all.json", areas)

    def data() -> FolderData:
        return FolderData(
            *(tmp_path, CLASSES, lambda *sample: sample), labels="all.json", unlabelled="ignore"
        )

    with pytest.raises(DataError, match=rf"image '.*images/{without}' has no annotation"):
        data()
    (tmp_path / "images" / without).unlink()
    assert len(data().train) + len(data().val) == 3
    photograph(tmp_path / "images" / Path(without).parent, Path(without).name)
    coco_of_boxes(tmp_path / "all.json", {Path(name).name: {"road": (0, 9)} for name in names})
    with pytest.raises(DataError, match="it may be .* or .*; write the folder into its name"):
        data()


@pytest.mark.filterwarnings("ignore")
def test_areas_of_no_class_are_no_pixels_without_annotation(tmp_path: Path) -> None:
    half = WIDTH // 2
    for k in range(4):
        photograph(tmp_path / "images", f"{k}.png")
    areas = {"road": (0, half), "car": (half, half + 9), "__ignore__": (half + 9, WIDTH)}
    coco_of_boxes(tmp_path / "all.json", {f"{k}.png": areas for k in range(4)})
    plan = make_plan(parse("fit", [str(tmp_path)]))
    data = plan.settings["data"]["init_args"]
    assert data["classes"]["names"] == ["car", "road"]
    assert data["unlabelled"] == "ignore"
    assert "pixels without annotation, 0.0 %, are ignored" in plan.decisions
    coco_of_boxes(tmp_path / "all.json", {f"{k}.png": {"road": (0, half)} for k in range(4)})
    for options in ((), ("--data.unlabelled=background",)):
        plan = make_plan(parse("fit", [str(tmp_path), *options]))
        assert any("background 50.0 %, road 50.0 %" in sentence for sentence in plan.decisions)
    for unlabelled in ("road", "0"):
        areas = {"car": (0, half), "road": (half, half + 9)}
        coco_of_boxes(tmp_path / "all.json", {f"{k}.png": areas for k in range(4)})
        plan = make_plan(parse("fit", [str(tmp_path), f"--data.unlabelled={unlabelled}"]))
        shares = {"road": 50.0, "0": 100 * (WIDTH - 9) / WIDTH}[unlabelled]
        name = {"road": "road", "0": "car"}[unlabelled]
        assert any(f"{name} {shares:.1f} %" in sentence for sentence in plan.decisions)


def test_pixel_masks_of_label_studio(tmp_path: Path) -> None:
    photograph(tmp_path / "images")
    path = annotated.label_studio(tmp_path / "labels.json", "scene.png")
    tasks = json.loads(path.read_text())
    regions = tasks[0]["annotations"][1]["result"]
    expected = label_map()
    for region in regions:
        if region["type"] != "brushlabels":
            continue
        name = region["value"]["brushlabels"][0]
        pixels = np.zeros((HEIGHT, WIDTH, 4), np.uint8)
        (polygons,) = [p for _, p in annotated.OBJECTS if annotated.has_hole(p)]
        pixels[..., 3] = 255 * annotated.mask(polygons)
        file = BytesIO()
        Image.fromarray(pixels).save(file, "PNG")
        url = f"data:image/png;base64,{b64encode(file.getvalue()).decode()}"
        region["value"] = {"imageDataURL": url, "bitmasklabels": [name]}
        region["type"] = "bitmasklabels"
    path.write_text(json.dumps(tasks))
    found = opened(tmp_path, "labels.json", unlabelled=0)[0][1].numpy()
    np.testing.assert_array_equal(found, expected)
    regions[0]["type"] = "magicwand"
    path.write_text(json.dumps(tasks))
    with pytest.raises(ValueError, match="regions of the type 'magicwand' are not read"):
        opened(tmp_path, "labels.json", unlabelled=0)


def test_listed_pairs_may_have_annotations(tmp_path: Path) -> None:
    written(tmp_path, "labelme")
    annotated.class_folders(tmp_path / "masks", "scene.png")
    for label in ("labels/scene.json", "masks/{class}/scene.png"):
        (tmp_path / "pairs.csv").write_text(f"image,label\nimages/scene.png,{label}\n")
        dataset = FolderDataset(
            tmp_path, tmp_path, CLASSES, names=tmp_path / "pairs.csv", unlabelled=0
        )
        np.testing.assert_array_equal(dataset[0][1], label_map())


def street(root: Path, kind: str) -> None:
    """Four training images and two of validation, with the scene's annotations in one format."""
    for split, count in (("train", 4), ("val", 2)):
        for number in range(count):
            name = f"{split}{number}.png"
            photograph(root / "images" / split, name)
            labels = root / "labels" / split
            labels.mkdir(parents=True, exist_ok=True)
            if kind == "masks":
                annotated.class_folders(labels, name)
            elif kind == "coco":
                annotated.coco(root / f"{split}{number}.json", name)
            else:
                suffix = {"labelme": ".json", "yolo": ".txt"}[kind]
                write = getattr(annotated, kind)
                write(labels / name.replace(".png", suffix), name)
    if kind == "coco":
        for split, count in (("train", 4), ("val", 2)):
            contents = []
            for number in range(count):
                path = root / f"{split}{number}.json"
                contents.append(json.loads(path.read_text()))
                path.unlink()
            for number, content in enumerate(contents):
                content["images"][0]["id"] = number
                for annotation in content["annotations"]:
                    annotation["image_id"] = number
            joined = {
                key: [item for content in contents for item in content[key]]
                for key in ("images", "annotations")
            }
            joined["categories"] = contents[0]["categories"]
            (root / f"instances_{split}.json").write_text(json.dumps(joined))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", ["coco", "labelme", "yolo", "masks"])
def test_a_folder_of_annotations_becomes_a_config(kind: str, tmp_path: Path) -> None:
    root = tmp_path / "street"
    street(root, kind)
    plan = make_plan(parse("fit", [str(root)]))
    plan.write(tmp_path / "run.yaml")
    data = data_of(str(tmp_path / "run.yaml"))
    assert data.classes.names == ("background", "car", "person", "road")
    assert (len(data.train), len(data.val)) == (4, 2)
    found = np.array(data.classes.names)[data.train[0][1].numpy()]
    np.testing.assert_array_equal(found, np.array(CLASSES.names)[label_map()])
    assert any("pixels without annotation" in sentence for sentence in plan.decisions)


@pytest.mark.filterwarnings("ignore")
def test_a_folder_of_annotations_takes_a_class_map_and_no_options_of_label_maps(
    tmp_path: Path,
) -> None:
    root = tmp_path / "street"
    street(root, "coco")
    plan = make_plan(parse("fit", [str(root), "--data.class_map", "{person: ignore, car: moving}"]))
    plan.write(tmp_path / "run.yaml")
    data = data_of(str(tmp_path / "run.yaml"))
    assert data.classes.names == ("background", "moving", "road")
    found = np.array([*data.classes.names, "ignored"])[data.train[0][1].long().clamp(max=3).numpy()]
    renamed = {"car": "moving", "person": "ignored"}
    names = np.array([renamed.get(name, name) for name in CLASSES.names])
    np.testing.assert_array_equal(found, names[label_map()])
    assert len(plan.settings["model"]["loss"]["init_args"]["weight"]) == 3
    for option in ("--data.ignore_index=0", "--data.label_map={0: 255}"):
        with pytest.raises(ValueError, match="is given, and the labels are annotations"):
            make_plan(parse("fit", [str(root), option]))


def edited(path: Path, **changes: Any) -> None:
    """Changes values of the last annotation, or of the image, of COCO's file."""
    content = json.loads(path.read_text())
    for key, value in changes.items():
        of_image = key in content["images"][0]
        (content["images"][0] if of_image else content["annotations"][-1])[key] = value
    path.write_text(json.dumps(content))


# What is wrong with COCO's file, and what the sentence says beside the file and the annotation.
WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "outside": ({"segmentation": [[70, 5, 80, 5, 80, 9]]}, r"lies outside the image: x from 70 to"),
    "crossing": ({"segmentation": [[5, 5, 9, 9, 9, 5, 5, 9]]}, r"crosses itself .* x = 7, y = 7"),
    "two points": ({"segmentation": [[5, 5, 9, 9]]}, "2 points and needs three"),
    "no area": ({"segmentation": [[5, 5, 9, 9, 7, 7]]}, "has no area"),
    "odd": ({"segmentation": [[5, 5, 9, 9, 7]]}, "5 numbers"),
    "box alone": ({"segmentation": []}, "no segmentation"),
    "no such image": ({"image_id": 3}, "belongs to the image 3, which"),
    "no such category": ({"category_id": 3}, "belongs to the category 3, which"),
    "size of runs": ({"segmentation": {"size": [4, 4], "counts": [16]}}, "image of 4×4.*40×56"),
    "short runs": ({"segmentation": {"size": [40, 56], "counts": "03"}}, "cannot be decoded"),
    "cut runs": ({"segmentation": {"size": [40, 56], "counts": "PdoP"}}, "no sequence of whole"),
    "short list": ({"segmentation": {"size": [40, 56], "counts": [3]}}, "3 of 2240 pixels"),
    "size": ({"width": 57}, "is 40×56, and its annotations were drawn on 40×57"),
    "missing image": ({"file_name": "other.png"}, "lists none of the 1 images|no image 'other"),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_what_is_wrong_is_named(wrong: str, tmp_path: Path) -> None:
    path = written(tmp_path, "coco")
    changes, sentence = WRONG[wrong]
    edited(path, **changes)
    with pytest.raises((ValueError, FileNotFoundError)) as error:
        opened(tmp_path).check_files()
    assert repr(str(path)) in str(error.value)
    assert re.search(sentence, str(error.value)), error.value


def test_polygons_that_leave_the_image_or_touch_themselves_are_drawn(tmp_path: Path) -> None:
    path = written(tmp_path, "coco")
    bridge = [5, 5, 25, 5, 25, 25, 5, 25, 5, 5, 10, 10, 20, 10, 20, 20, 10, 20, 10, 10]
    edited(path, segmentation=[bridge, [50, -9, 99, -9, 99, 99, 50, 99]])
    found = opened(tmp_path)[0][1].numpy() == 3
    expected = np.zeros((HEIGHT, WIDTH), bool)
    expected[5:25, 5:25] = True
    expected[10:20, 10:20] = False
    expected[:, 50:] = True
    np.testing.assert_array_equal(found, expected)


# Polygons that pycocotools draws, and shapely and we by default refuse.
INVALID: dict[str, list[list[float]]] = {
    "bow tie": [[4, 4, 50, 36, 50, 4, 4, 36]],
    "pentagram": [[28, 1, 39, 37, 6, 14, 50, 14, 17, 37]],  # its middle is outside by even-odd
    "an outline walked one and a half times": [
        [5, 5, 45, 5, 45, 35, 5, 35, 3, 2, 25.5, 7, 25.5, 37, 5, 37]
    ],
    "random": [np.random.default_rng(0).uniform(0, 40, 24).tolist()],
    "beyond the image": [[-20, -9, 70, 60, 70, -9, -20, 60]],
    "two polygons that overlap": [[4, 4, 30, 30, 30, 4, 4, 30], [20, 4, 50, 30, 50, 4, 20, 30]],
    "no area": [[5, 5, 9, 9, 7, 7], [20, 10, 40, 10, 40, 30, 20, 30]],
}


@pytest.mark.parametrize("name", INVALID)
def test_invalid_polygons_are_refused_or_drawn_as_pycocotools_draws_them(
    name: str, tmp_path: Path
) -> None:
    import pycocotools.mask
    import shapely

    polygons = INVALID[name]
    edited(written(tmp_path, "coco"), segmentation=polygons)
    assert "or remove it; `invalid_polygons: draw` draws such polygons" in faults(tmp_path)
    dataset = opened(tmp_path, invalid_polygons="draw")
    dataset.check_files()
    found = dataset[0][1].numpy() == 3
    runs = pycocotools.mask.frPyObjects(polygons, HEIGHT, WIDTH)
    expected = pycocotools.mask.decode(pycocotools.mask.merge(runs)) > 0
    y, x = np.mgrid[:HEIGHT, :WIDTH] + 0.5
    rings = [np.reshape(polygon, (-1, 2)) for polygon in polygons]
    edges = shapely.union_all([shapely.LinearRing(ring) for ring in rings])
    inner = shapely.distance(edges, shapely.points(x, y)) > 1.5
    np.testing.assert_array_equal(found[inner], expected[inner])
    assert 0 < found[inner].mean() < 1


@pytest.mark.filterwarnings("ignore")
def test_drawn_invalid_polygons_are_counted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for split, name in (("train", "scene.png"), ("val", "another.png")):
        photograph(tmp_path / "images" / split, name)
        (tmp_path / "labels" / split).mkdir(parents=True)
        path = annotated.coco(tmp_path / "labels" / split / "all.json", name)
        if split == "train":
            edited(path, segmentation=[*INVALID["bow tie"], *INVALID["no area"]])
    words = ["check", str(tmp_path), f"--out={tmp_path / 'check.png'}", "--num_workers=1"]
    with pytest.raises(SystemExit, match="crosses itself .* `invalid_polygons: draw` draws"):
        main(words)
    capsys.readouterr()
    main([*words, "--data.invalid_polygons", "draw", "--data.tile", "[24, 32]", "--data.bands={}"])
    report = capsys.readouterr().out
    assert "2 polygons that cross themselves or their holes, or have no area, are drawn" in report
    assert re.search(r"train: 2 polygons .* on 1 images, such as \S*scene\.png", report), report
    assert "val: 2 polygons" not in report
    with pytest.raises(SystemExit, match="'draws'"):
        main([*words, "--data.invalid_polygons", "draws"])


def test_invalid_polygons_are_no_option_of_label_maps(tmp_path: Path) -> None:
    for folder in ("images", "labels"):
        photograph(tmp_path / folder)
    with pytest.raises(ValueError, match="invalid_polygons='draw' is given, and .*; remove it$"):
        opened(tmp_path, unlabelled=None, invalid_polygons="draw")


def test_unknown_classes_are_named_with_the_cure(tmp_path: Path) -> None:
    path = written(tmp_path, "label_studio")
    path.write_text(path.read_text().replace("person", "Car"))
    found = faults(tmp_path)
    assert repr(str(path)) in found
    assert "class 'Car' is not one of the config's (background, road, car, person)" in found
    assert "`class_map: {Car: car}` or `class_map: {Car: ignore}`" in found
    mapped = opened(tmp_path, class_map={"Car": "person"})
    np.testing.assert_array_equal(mapped[0][1], label_map())


def test_what_pixels_without_annotation_are_must_be_said(tmp_path: Path) -> None:
    written(tmp_path, "coco")
    assert "set `unlabelled: background` or `unlabelled: ignore`" in faults(
        tmp_path, unlabelled=None
    )
    assert "unlabelled is 'sky'" in faults(tmp_path, unlabelled="sky")
    assert "palette='index' is given" in faults(tmp_path, palette="index")


def test_two_annotations_of_one_image_are_named(tmp_path: Path) -> None:
    path = written(tmp_path, "coco")
    content = json.loads(path.read_text())
    content["images"].append({"id": 9, "file_name": "scene.png", **SIZE})
    path.write_text(json.dumps(content))
    assert re.search(
        r"image 7: image .*scene\.png' has two annotations, also image 9", faults(tmp_path)
    )
    path.unlink()
    path = annotated.label_studio(tmp_path / "labels" / "all.json", "scene.png")
    path.write_text(path.read_text().replace('"was_cancelled": true', '"was_cancelled": false'))
    assert "'scene.png' has 2 annotations" in faults(tmp_path).replace("0fe1d2c3-", "").replace(
        "/data/upload/1/", ""
    )


def test_images_and_files_without_partner_are_named(tmp_path: Path) -> None:
    path = written(tmp_path, "yolo")
    photograph(tmp_path / "images", "more.png")
    found = faults(tmp_path)
    assert "more.png" in found
    assert "annotation for" in found
    path.with_name("more.txt").write_text("")
    dataset = opened(tmp_path)
    dataset.check_files()
    assert int(dataset[0][1].max()) == 0
    path.with_name("lost.txt").write_text("")
    assert "no image for" in faults(tmp_path)
    path.with_name("lost.txt").unlink()
    path.with_name("data.yaml").unlink()
    assert "add data.yaml" in faults(tmp_path)


def test_masks_of_unknown_classes_and_soft_masks_are_named(tmp_path: Path) -> None:
    photograph(tmp_path / "images")
    annotated.class_folders(tmp_path / "labels", "scene.png")
    (tmp_path / "labels" / "car").rename(tmp_path / "labels" / "truck")
    assert "the class 'truck' is not one of the config's" in faults(tmp_path)
    soft = np.linspace(0, 255, HEIGHT * WIDTH).astype(np.uint8).reshape(HEIGHT, WIDTH)
    Image.fromarray(soft).save(tmp_path / "labels" / "truck" / "scene.png")
    assert "other values, such as 1 and 2" in faults(tmp_path, class_map={"truck": "car"})


def test_annotations_of_a_turned_image_are_those_of_the_image_as_it_is_shown(
    tmp_path: Path,
) -> None:
    written(tmp_path, "coco")
    exif = Image.Exif()
    exif[0x0112] = 6
    stored = Image.fromarray(np.zeros((WIDTH, HEIGHT, 3), np.uint8))
    stored.save(tmp_path / "images" / "scene.png", exif=exif)
    np.testing.assert_array_equal(opened(tmp_path)[0][1], label_map())
    stored.rotate(90, expand=True).save(tmp_path / "images" / "scene.png", exif=exif)
    assert "fits only the image as it is stored" in faults(tmp_path)


def test_entities_of_xml_are_not_expanded(tmp_path: Path) -> None:
    path = written(tmp_path, "cvat")
    path.write_text('<!DOCTYPE a [<!ENTITY b "c">]><annotations>&b;</annotations>')
    assert "DOCTYPE" in faults(tmp_path)


@pytest.mark.parametrize("kind", ["coco", "labelme", "cvat", "label_studio", "geojson"])
def test_truncated_files_are_named(kind: str, tmp_path: Path) -> None:
    path = written(tmp_path, kind)
    path.write_bytes(path.read_bytes()[:-40])
    assert repr(str(path)) in faults(tmp_path)


def test_areas_that_hold_no_pixel_are_refused(tmp_path: Path) -> None:
    """Coordinates from 0 to 1, or longitude and latitude, are no pixels."""
    path = written(tmp_path, "coco")
    content = json.loads(path.read_text())
    for annotation in content["annotations"]:
        annotation["segmentation"] = [[0.1, 0.1, 0.3, 0.1, 0.3, 0.4]]
    path.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=r"no area of the image holds .* shares of the sides"):
        opened(tmp_path).check_files()
    label = opened(tmp_path, invalid_polygons="draw")[0][1]
    assert set(label.unique().tolist()) == {0}
    content["annotations"][0]["segmentation"] = [[5, 5, 9, 5, 9, 9]]
    path.write_text(json.dumps(content))
    opened(tmp_path).check_files()
