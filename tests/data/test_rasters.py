"""Files of other people's formats, written by their own libraries: GeoTIFF, DICOM.

uv pip install ".[test,geo,medical]"; pytest -m extras tests/data/test_rasters.py
"""

from __future__ import annotations

import importlib
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import TINY, randomized
from PIL import Image
from torch import Tensor

from segformer import Classes, SegFormer
from segformer.cli import main
from segformer.data.bands import Bands, read_pixels, valid_pixels
from segformer.data.datasets import DataError, FolderDataset
from segformer.data.families import geotiff
from segformer.data.families.opened import Window
from segformer.data.images import read_image
from segformer.data.normalization import Normalization
from segformer.data.rasters import Part, RasterDataset, statistics_of
from segformer.data.transforms import RandomScaledCrop
from segformer.evaluation import Blend
from segformer.evaluation.large import label_windows
from segformer.inference.scenes import is_scene
from segformer.train.from_folder.label_values import read_label_maps
from segformer.train.from_folder.labelling import labelling
from segformer.train.from_folder.options import parse
from segformer.train.from_folder.plan import make_plan
from segformer.train.parser import build_data, data_parser

rasterio = pytest.importorskip("rasterio", reason="reason: needs segformer[geo]")
pydicom = pytest.importorskip("pydicom", reason="reason: needs segformer[medical]")
pytestmark = pytest.mark.extras

Affine = rasterio.Affine
ColorInterp = rasterio.enums.ColorInterp

UTM33 = "EPSG:32633"
CLASSES = Classes(["water", "field", "forest"], [(0, 0, 255), (200, 200, 0), (0, 99, 0)])


def noise(*shape: int, high: int = 4000, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(1, high, shape, np.uint16)


def write(path: Path, array: np.ndarray, **options: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    profile = {
        "driver": "GTiff",
        "count": array.shape[0],
        "height": array.shape[1],
        "width": array.shape[2],
        "dtype": array.dtype,
        "crs": UTM33,
        "transform": Affine(10, 0, 500_000, 0, -10, 5_000_000),
        **options,
    }
    with rasterio.open(path, "w", **profile) as raster:
        raster.write(array)
    return path


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int16", "float32"])
def test_rasters_keep_their_values(dtype: str, tmp_path: Path) -> None:
    array = noise(5, 90, 110).astype(dtype)
    path = write(tmp_path / "a.tif", array, tiled=True, blockxsize=64, blockysize=64)
    image = Bands(select=[5, 2]).open(path)
    assert (image.shape, image.dtype) == ((2, 90, 110), dtype)
    assert image.grid is not None
    assert rasterio.CRS.from_wkt(image.grid.crs) == rasterio.CRS.from_string(UTM33)
    assert np.array_equal(read_pixels(image).numpy(), array[[4, 1]])
    assert valid_pixels(image) is None


@pytest.mark.filterwarnings("ignore:Dataset has no geotransform")
def test_colours_of_16_bits_are_kept(tmp_path: Path) -> None:
    array = noise(3, 30, 40)
    write(tmp_path / "a.png", array, driver="PNG", crs=None, transform=None)
    assert np.array_equal(read_pixels(Bands().open(tmp_path / "a.png")).numpy(), array)


def test_pages_are_bands_or_refused(tmp_path: Path) -> None:
    array = noise(3, 30, 40)
    pages = [Image.fromarray(band) for band in array]
    pages[0].save(tmp_path / "a.tif", save_all=True, append_images=pages[1:])
    found = read_pixels(Bands(pages="bands").open(tmp_path / "a.tif"))
    assert np.array_equal(found.numpy(), array)
    with pytest.raises(ValueError, match=r"a\.tif'.* holds 3 pages; set `pages: bands`"):
        Bands().open(tmp_path / "a.tif")


def test_pages_are_images_with_label_maps_of_their_own(tmp_path: Path) -> None:
    array, labels = noise(3, 30, 40), noise(3, 30, 40, high=4).astype(np.uint8) - 1
    for name, stack in (("images", array), ("labels", labels)):
        pages = [Image.fromarray(page) for page in stack]
        (tmp_path / name).mkdir()
        pages[0].save(tmp_path / name / "a.tif", save_all=True, append_images=pages[1:])
    folders = tmp_path / "images", tmp_path / "labels"
    dataset = RasterDataset(*folders, CLASSES, bands=Bands(pages="images"))
    assert len(dataset) == 3
    for (image, label), page, of_page in zip(dataset, array, labels, strict=False):
        assert np.array_equal(image[0], page)
        assert np.array_equal(label, of_page)
    tiled = RasterDataset(*folders, CLASSES, bands=Bands(pages="images"), tile=(16, 40))
    assert [part[1:] for part in tiled.parts] == [
        (page, (top, 0, 16, 40)) for page in range(3) for top in (0, 14)
    ]
    statistics = statistics_of(tiled.bands, dataset.parts)
    assert statistics.mean == pytest.approx([array.mean()], rel=1e-2)
    with pytest.raises(ValueError, match=r"a\.tif'.* holds 3 pages, and one image is expected"):
        Bands(pages="images").open(tmp_path / "images/a.tif")
    pages[0].save(tmp_path / "labels/a.tif", save_all=True, append_images=pages[1:2])
    with pytest.raises(DataError, match=r"has 3 pages, and its label map .*a\.tif' 2; give each"):
        dataset.check_files()


def test_a_level_of_a_pyramid_is_read(tmp_path: Path) -> None:
    from rasterio.enums import Resampling

    array = noise(3, 256, 320)
    path = write(tmp_path / "a.tif", array, tiled=True)
    with rasterio.open(path, "r+") as raster:
        raster.build_overviews([2, 4], Resampling.nearest)
        expected = raster.read(out_shape=(3, 64, 80))
    assert Bands().open(path).size == (256, 320)
    image = Bands(level=2).open(path)
    assert image.size == (64, 80)
    assert np.array_equal(read_pixels(image).numpy(), expected)
    with pytest.raises(ValueError, match="has 3 levels, and level=3 is asked for"):
        Bands(level=3).open(path)


def write_dicom(path: Path, array: np.ndarray, bits: int = 12, slope: float | None = None) -> None:
    from pydicom.dataset import Dataset, FileMetaDataset
    from pydicom.uid import (
        DigitalXRayImageStorageForPresentation,
        ExplicitVRLittleEndian,
        generate_uid,
    )

    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.file_meta.MediaStorageSOPClassUID = DigitalXRayImageStorageForPresentation
    dataset.file_meta.MediaStorageSOPInstanceUID = generate_uid()
    dataset.Rows, dataset.Columns = array.shape
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = 16, bits, bits - 1
    dataset.PixelRepresentation = 0
    if slope is not None:
        dataset.RescaleSlope, dataset.RescaleIntercept = slope, -1024
    dataset.PixelData = array.tobytes()
    path.parent.mkdir(parents=True, exist_ok=True)
    dataset.save_as(path, enforce_file_format=True)


@pytest.mark.parametrize(("bits", "slope"), [(12, None), (16, None), (12, 2.0)])
def test_dicom_keeps_its_values(bits: int, slope: float | None, tmp_path: Path) -> None:
    array = noise(40, 50, high=1 << bits)
    write_dicom(tmp_path / "a.dcm", array, bits, slope)
    found = read_pixels(Bands().open(tmp_path / "a.dcm")).numpy()[0]
    if slope is None:
        assert found.dtype == np.uint16
        assert np.array_equal(found, array)
    else:
        assert np.array_equal(found, (array * slope - 1024).astype(np.float32))


def change_dicom(path: Path, **values: Any) -> None:
    dataset = pydicom.dcmread(path)
    for name, value in values.items():
        setattr(dataset, name, value)
        if name.startswith("PixelPadding"):
            dataset[name].VR = "US"
    dataset.save_as(path)


def test_dicom_of_other_kinds(tmp_path: Path) -> None:
    """Inverted greys, values for padding, an empty slope, and palettes."""
    path, array = tmp_path / "a.dcm", noise(40, 50)
    array[:5] = 0
    for photometric, expected in (("MONOCHROME2", array), ("MONOCHROME1", 4095 - array)):
        write_dicom(path, array)
        padded = {"PixelPaddingValue": 0, "RescaleSlope": None}
        change_dicom(path, PhotometricInterpretation=photometric, **padded)
        image = Bands().open(path)
        found = read_pixels(image).numpy()[0]
        assert found.dtype == np.uint16
        assert np.array_equal(found, expected)
        assert np.array_equal(valid_pixels(image), array > 0)
    write_dicom(path, array, slope=2.0)
    change_dicom(path, PixelPaddingValue=0, PixelPaddingRangeLimit=99)
    assert np.array_equal(valid_pixels(Bands().open(path)), array > 99)
    change_dicom(path, PhotometricInterpretation="PALETTE COLOR")
    with pytest.raises(ValueError, match=r"a\.dcm'.* it has a palette, .*; save it as RGB"):
        Bands().open(path)


def folders(root: Path, **of_labels: Any) -> RasterDataset:
    array, labels = noise(4, 100, 130), noise(1, 100, 130, high=4).astype(np.uint8) - 1
    array[:, :20, :30] = 0
    labels[0, 50:60] = 9
    write(root / "images/a.tif", array, nodata=0)
    write(root / "labels/a.tif", labels, nodata=9, **of_labels)
    return RasterDataset(root / "images", root / "labels", CLASSES, tile=(64, 64))


def test_pixels_without_data_are_ignored_in_training(tmp_path: Path) -> None:
    dataset = folders(tmp_path)
    whole = np.array(rasterio.open(tmp_path / "labels/a.tif").read(1))
    whole[:20, :30] = whole[50:60] = 255
    for index, (_, _, window) in enumerate(dataset.parts):
        assert window is not None
        assert np.array_equal(dataset[index][1].numpy(), whole[window.slices])


def test_negative_values_and_those_for_no_data_are_no_class(tmp_path: Path) -> None:
    """With a label_map, too, which does not list the value for no data."""
    labels = np.random.default_rng(0).integers(-1, 3, (1, 40, 48), np.int16)
    write(tmp_path / "images/a.tif", noise(2, 40, 48))
    write(tmp_path / "labels/a.tif", labels)
    folders = tmp_path / "images", tmp_path / "labels"
    expected = np.where(labels[0] < 0, 255, labels[0])
    with pytest.raises(ValueError, match=r"holds the value -1 .*\. Set ignore_index=-1$"):
        RasterDataset(*folders, CLASSES)[0]
    assert np.array_equal(RasterDataset(*folders, CLASSES, ignore_index=-1)[0][1], expected)
    with pytest.raises(ValueError, match=r"hold -1, .* pass --data.ignore_index=-1"):
        labelling(read_label_maps([tmp_path / "labels/a.tif"]))
    write(tmp_path / "labels/a.tif", (labels + 1).astype(np.uint8), nodata=0)
    mapped = RasterDataset(*folders, CLASSES, label_map={1: 0, 2: 1, 3: 2})
    assert np.array_equal(mapped[0][1], expected)


GAPS = {  # where bands 1, 2 and 3 have no data
    "all": (slice(0, 6), slice(0, 8)),
    "second": (slice(6, 20), slice(0, 8)),
    "third": (slice(20, 30), slice(0, 8)),
}


def with_gaps(dtype: str, nodata: float) -> tuple[np.ndarray, np.ndarray]:
    """Bands (3, 40, 48), and where they have data."""
    array, valid = noise(3, 40, 48, high=200).astype(dtype) + 100, np.ones((3, 40, 48), bool)
    valid[:, *GAPS["all"]] = valid[1, *GAPS["second"]] = valid[2, *GAPS["third"]] = False
    array[~valid] = nodata
    return array, valid


def written(root: Path, kind: str, dtype: str) -> tuple[Bands, np.ndarray, np.ndarray]:
    """Files of one image in a folder, its bands, and where these have data."""
    nodata = {"float32": np.nan, "int16": -9999, "uint16": 65535}[dtype]
    array, valid = with_gaps(dtype, nodata)
    tag = None if kind == "untagged" else nodata
    if kind == "two files":
        write(root / "images/a.tif", array[:1])  # without a value for no data
        write(root / "others/a.tif", array[1:], nodata=tag)
        valid[0] = dtype != "float32" or ~np.isnan(array[0])
        return Bands(files=["images/{name}.tif", "others/{name}.tif"]), array, valid
    write(root / "images/a.tif", array, nodata=tag)
    if kind == "selected":
        return Bands(select=[3, 2]), array[[2, 1]], valid[[2, 1]]
    return Bands(), array, valid


@pytest.mark.parametrize(
    ("kind", "dtype"),
    [
        *(("one file", dtype) for dtype in ("int16", "uint16", "float32")),
        *(("selected", dtype) for dtype in ("int16", "float32")),
        *(("two files", dtype) for dtype in ("int16", "float32")),
        ("untagged", "float32"),
    ],
)
def test_each_band_has_its_own_gaps(kind: str, dtype: str, tmp_path: Path) -> None:
    """They are in no statistics, are the mean in images, and are ignored if no band has data."""
    bands, array, valid = written(tmp_path, kind, dtype)
    write(tmp_path / "labels/a.tif", np.ones((1, 40, 48), np.uint8))
    found = statistics_of(bands, [Part(tmp_path / "images/a.tif")])
    for band, has_data, mean, limits in zip(array, valid, found.mean, found.limits, strict=True):
        low, high = np.percentile(band[has_data].astype(float), (0.1, 99.9))
        assert limits == pytest.approx((low, high))
        assert mean == pytest.approx(band[has_data].astype(float).clip(low, high).mean(), rel=1e-4)
    dataset = RasterDataset(
        *(tmp_path / "images", tmp_path / "labels", CLASSES), bands=bands, normalization=found
    )
    image, label = dataset[0]
    assert np.array_equal(label.numpy() == 255, ~valid.any(0))
    assert np.array_equal(dataset.label(0), label)
    means = np.array(found.mean)[:, None, None].round(9 if dtype == "float32" else 0)
    assert np.allclose(image, np.where(valid, array, means), rtol=1e-6)
    torch.manual_seed(0)
    smaller, _ = RandomScaledCrop((40, 48), (0.6, 0.6), cat_max_ratio=1)(image, label)
    for band, resized in zip(image, smaller, strict=True):
        assert resized.numpy().min() >= band.numpy().min()


def test_an_alpha_band_is_the_mask_of_all_bands(tmp_path: Path) -> None:
    array = noise(4, 40, 48).astype(np.uint8)
    array[3] = 255
    array[3, :9] = 0
    interpretation = [ColorInterp.red, ColorInterp.green, ColorInterp.blue, ColorInterp.alpha]
    path = write(tmp_path / "a.tif", array, photometric="RGB", alpha="unspecified")
    with rasterio.open(path, "r+") as raster:
        raster.colorinterp = interpretation
    for bands in (Bands(), Bands(select=[1, 2, 3]), Bands(select=[2])):
        assert np.array_equal(valid_pixels(bands.open(path)), array[3] > 0)


def test_labels_at_another_place_are_refused(tmp_path: Path) -> None:
    dataset = folders(tmp_path, transform=Affine(10, 0, 500_010, 0, -10, 5_000_000))
    with pytest.raises(ValueError, match="lie at different places on the earth"):
        dataset[0]


def test_two_systems_in_one_set_are_refused(tmp_path: Path) -> None:
    for name, crs in (("a", UTM33), ("b", "EPSG:32634")):
        write(tmp_path / f"images/{name}.tif", noise(2, 40, 50), crs=crs)
        write(tmp_path / f"labels/{name}.tif", noise(1, 40, 50, high=3).astype("uint8"), crs=crs)
    dataset = RasterDataset(tmp_path / "images", tmp_path / "labels", CLASSES)
    with pytest.raises(
        DataError, match=r"a\.tif' has .* UTM zone 33N and .*b\.tif' .* 34N; reproject"
    ):
        dataset.check_files()


@pytest.fixture
def model() -> SegFormer:
    normalization = Normalization(
        [2000] * 4, [1000] * 4, 1.0, "uint16", [(1, 4000)] * 4, Bands(["r", "g", "b", "nir"])
    )
    return randomized(
        SegFormer(TINY, in_channels=4, classes=CLASSES, num_classes=3, normalization=normalization)
    )


def test_a_scene_is_labelled_on_its_grid(model: SegFormer, tmp_path: Path) -> None:
    """As the same windows label the array in memory."""
    array = noise(4, 300, 410)
    array[:, 100:150, 200:300] = 0
    path = write(tmp_path / "scene.tif", array, nodata=0)
    model.save(tmp_path / "m.safetensors")
    weights, out = str(tmp_path / "m.safetensors"), str(tmp_path / "out")
    main(["predict", weights, str(path), "--out", out, "--slide", "96", "64"])
    with rasterio.open(path) as scene, rasterio.open(tmp_path / "out/scene.tif") as labels:
        assert labels.crs == scene.crs
        assert labels.transform == scene.transform
        assert labels.shape == scene.shape
        assert (labels.count, labels.dtypes, labels.nodata) == (1, ("uint8",), 255)
        assert labels.profile["compress"] == "deflate"
        assert labels.profile["tiled"]
        assert [labels.colormap(1)[k][:3] for k in range(3)] == list(CLASSES.colors)
        assert "forest" in labels.tags(1)["CLASSES"]
        found, valid = labels.read(1), scene.dataset_mask() > 0
    array[:, 100:150, 200:300] = 2000  # the mean
    images = model.normalization(torch.from_numpy(array))[None]
    with torch.no_grad():
        expected = Blend((96, 96), (64, 64)).logits(model, images).argmax(1)[0].numpy()
    assert np.array_equal(found[valid], expected[valid])
    assert (found[~valid] == 255).all()
    assert not valid[100:150, 200:300].any()
    assert sorted(file.name for file in (tmp_path / "out").iterdir()) == ["scene.tif"]


def test_a_virtual_raster_is_read_as_the_file_that_it_stands_for(
    model: SegFormer, tmp_path: Path
) -> None:
    path, virtual = write(tmp_path / "scene.tif", noise(4, 90, 130)), tmp_path / "virtual.vrt"
    importlib.import_module("rasterio.shutil").copy(path, virtual, driver="VRT")
    images = [read_pixels(Bands().open(file)) for file in (path, virtual)]
    assert torch.equal(*images)
    model.save(tmp_path / "m.safetensors")
    weights, out = tmp_path / "m.safetensors", tmp_path / "out"
    files = [str(file) for file in (weights, path, virtual)]
    main(["predict", *files, "--out", str(out), "--slide", "96", "64"])
    with rasterio.open(out / "scene.tif") as one, rasterio.open(out / "virtual.tif") as other:
        assert np.array_equal(one.read(1), other.read(1))
        assert (one.crs, one.transform) == (other.crs, other.transform)
    path.rename(tmp_path / "gone.tif")
    with pytest.raises(ValueError, match=r"virtual\.vrt"):
        read_pixels(Bands().open(virtual))


@pytest.mark.parametrize("kind", ["grey", "grey with alpha", "colour with alpha"])
def test_a_model_of_photographs_labels_a_scene_as_the_picture(kind: str, tmp_path: Path) -> None:
    """A scene is one with a place on the earth."""
    pixels = noise(4, 64, 96, high=256).astype(np.uint8)
    bands = pixels[:1] if "grey" in kind else pixels[:3]
    Image.fromarray(bands[0] if len(bands) == 1 else bands.transpose(1, 2, 0)).save(
        tmp_path / "a.png"
    )
    if "alpha" in kind:
        bands = np.concatenate([bands, np.full((1, 64, 96), 255, np.uint8)])
        bands[-1, :8] = 0
    colors = (
        [ColorInterp.gray]
        if "grey" in kind
        else [ColorInterp.red, ColorInterp.green, ColorInterp.blue]
    )
    path = write(tmp_path / "scene.tif", bands)
    with rasterio.open(path, "r+") as raster:
        raster.colorinterp = [*colors, *([ColorInterp.alpha] if "alpha" in kind else [])]
    randomized(SegFormer(TINY, classes=CLASSES)).save(tmp_path / "m.safetensors")
    images = [str(tmp_path / "a.png"), str(path)]
    main(["predict", str(tmp_path / "m.safetensors"), *images, "--out", str(tmp_path / "out")])
    expected = np.array(Image.open(tmp_path / "out/a.png"))
    with rasterio.open(tmp_path / "out/scene.tif") as labels:
        found = labels.read(1)
    has_data = np.ones((64, 96), bool)
    has_data[:8] = "alpha" not in kind
    assert (found[has_data] == expected[has_data]).mean() > 0.99
    assert (found[~has_data] == 255).all()


def test_a_palette_is_not_read_as_grey(tmp_path: Path) -> None:
    path = write(tmp_path / "a.tif", noise(1, 64, 64, high=9).astype(np.uint8))
    with rasterio.open(path, "r+") as raster:
        raster.write_colormap(1, {k: (255 - k, k, 99, 255) for k in range(256)})
    randomized(SegFormer(TINY, classes=CLASSES)).save(tmp_path / "m.safetensors")
    with pytest.raises(SystemExit, match="a.tif' has a palette, whose values are no bands"):
        main(["predict", str(tmp_path / "m.safetensors"), str(path), "--out", str(tmp_path / "o")])


def test_a_wide_scene_is_labelled_in_parts_with_the_same_labels() -> None:
    image = torch.from_numpy(noise(3, 70, 4000, high=256).astype(np.uint8))
    seen: list[int] = []

    def model(images: Tensor) -> Tensor:
        return torch.cat([images, images.flip(1) * 0.9], 1)

    def labels(memory: int) -> np.ndarray:
        out = np.full((70, 4000), 99, np.uint8)

        def write_part(window: Window, part: np.ndarray) -> None:
            assert (out[window.slices] == 99).all()  # written once
            out[window.slices] = part
            seen.append(window.width)

        def read(window: Window) -> Tensor:
            return image[:, *window.slices]

        windows = Blend((32, 32), (24, 24))
        label_windows(model, (70, 4000), read, write_part, windows, memory=memory)
        return out

    whole = labels(1 << 30)
    assert max(seen) == 4000
    seen.clear()
    classes, height, columns = 6, 32, 300
    assert np.array_equal(labels(4 * classes * height * columns), whole)
    assert max(seen) <= columns


def test_a_lost_place_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    path = write(tmp_path / "a.tif", noise(3, 30, 40, high=256).astype("uint8"))
    assert is_scene(path)
    monkeypatch.setattr(geotiff, "is_installed", lambda: False)
    assert not is_scene(path)
    assert f"{str(path)!r} has a place on the earth, which its label map will lack" in caplog.text


def test_broken_rasters_are_named_and_leave_no_file(model: SegFormer, tmp_path: Path) -> None:
    path = write(tmp_path / "scene.tif", noise(4, 200, 200), compress="deflate")
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    model.save(tmp_path / "m.safetensors")
    out = tmp_path / "out"
    with pytest.raises(SystemExit, match=r"cannot (read|label) .*scene\.tif'"):
        main(["predict", str(tmp_path / "m.safetensors"), str(path), "--out", str(out)])
    assert not out.exists() or list(out.iterdir()) == []


@pytest.mark.parametrize("kind", ["tif", "npy", "npz", "dcm", "png"])
def test_mutated_files_are_read_or_refused_by_name(kind: str, tmp_path: Path) -> None:
    """2,000 of each kind."""
    array = noise(3, 12, 15)
    path = tmp_path / f"a.{kind}"
    if kind == "npz":
        np.savez_compressed(path, array.transpose(1, 2, 0))
    elif kind == "npy":
        np.save(path, array.transpose(1, 2, 0))
    elif kind == "png":
        Image.fromarray(array[0]).save(path)
    elif kind == "tif":
        write(path, array, compress="deflate", nodata=0)
    else:
        write_dicom(path, array[0])
    whole, chance = path.read_bytes(), random.Random(0)
    refused = read = 0
    for _ in range(2000):
        content = bytearray(whole)
        for _ in range(chance.choice([1, 2, 8])):
            content[chance.randrange(len(content))] = chance.randrange(256)
        if chance.random() < 0.3:
            del content[chance.randrange(len(content)) :]
        path.write_bytes(content)
        try:
            image = Bands().open(path)
            assert read_pixels(image).shape == image.shape
        except ValueError as error:
            refused += str(path) in str(error)
        else:
            read += 1
    assert refused + read == 2000
    assert refused > 100


@pytest.mark.filterwarnings(  # of methods that jsonargparse's version 5 renames
    "ignore::DeprecationWarning:jsonargparse", "ignore::DeprecationWarning:segformer.train.parser"
)
def test_a_folder_of_rasters_is_trained_without_a_config(tmp_path: Path) -> None:
    for k in range(3):
        labels = np.random.default_rng(k).integers(1, 4, (1, 40, 2100), np.uint8)
        labels[:, :, :9] = 0
        write(tmp_path / f"images/{k}.tif", noise(4, 40, 2100, seed=k), nodata=0)
        write(tmp_path / f"labels/{k}.tif", labels, nodata=0)
    options = parse("fit", [str(tmp_path), "--data.bands.select", "[4, 1]"])
    plan = make_plan(options)
    data = plan.settings["data"]["init_args"]
    assert data["train_transform"]["class_path"] == "segformer.data.augmentation.Aerial"
    assert data["tile"] == [1024, 1024]
    assert data["label_map"] == {255: 255, 1: 0, 2: 1, 3: 2}
    assert "protocol" not in plan.settings["model"]
    plan.write(tmp_path / "run.yaml")
    read = build_data(data_parser("data").parse_args([f"--config={tmp_path / 'run.yaml'}"]).data)
    assert len(read.train) + len(read.val) == 3 * 3
    assert f"passes over {len(read.train)} training tiles" in " ".join(plan.decisions)
    image, label = read.train[0]
    assert image.shape == (2, 40, 1024)
    assert (label[:, :9] == 255).all()
    assert (label[:, 9:] != 255).all()


def test_a_folder_of_slices_is_medical(tmp_path: Path) -> None:
    for k in range(3):
        write_dicom(tmp_path / f"images/{k}.dcm", noise(40, 48, seed=k))
        labels = np.random.default_rng(k).integers(0, 2, (40, 48), np.uint8)
        (tmp_path / "labels").mkdir(exist_ok=True)
        Image.fromarray(labels).save(tmp_path / f"labels/{k}.png")
    data = make_plan(parse("fit", [str(tmp_path)])).settings["data"]["init_args"]
    assert data["train_transform"]["class_path"] == "segformer.data.augmentation.Medical"


def test_heif_is_read_where_its_package_is_installed(tmp_path: Path) -> None:
    heif = pytest.importorskip("pillow_heif", reason="reason: needs pillow-heif")
    pixels = np.kron(noise(5, 6, 3, high=256), np.ones((8, 8, 1))).astype(np.uint8)
    heif.from_pillow(Image.fromarray(pixels)).save(tmp_path / "a.heic", quality=-1)
    found = read_image(tmp_path / "a.heic").permute(1, 2, 0).numpy()
    assert np.abs(found - pixels.astype(int)).max() <= 2


def both_read(root: Path, classes: Classes, **options: Any) -> list[np.ndarray]:
    """The label map as data sets of photographs and of bands read it."""
    array = np.random.default_rng(0).integers(0, 256, (40, 48, 3), np.uint8)
    (root / "images").mkdir(exist_ok=True)
    Image.fromarray(array).save(root / "images/a.png")
    folders = root / "images", root / "labels"
    sets = FolderDataset(*folders, classes, **options), RasterDataset(*folders, classes, **options)
    return [dataset[0][1].numpy() for dataset in sets]


def test_a_palette_in_another_order_is_read_by_colour(tmp_path: Path) -> None:
    classes = Classes(["road", "car"], [(128, 64, 128), (0, 0, 142)])
    values = np.random.default_rng(0).integers(0, 2, (40, 48), np.uint8)
    picture = Image.fromarray(values, "P")
    picture.putpalette([0, 0, 142, 128, 64, 128])
    (tmp_path / "labels").mkdir()
    picture.save(tmp_path / "labels/a.tif")
    for label in both_read(tmp_path, classes):
        np.testing.assert_array_equal(label, 1 - values)
    for label in both_read(tmp_path, classes, palette="index"):
        np.testing.assert_array_equal(label, values)


@pytest.mark.parametrize(
    "options", [{"compress": "jpeg"}, {"compress": "lerc", "max_z_error": 2}], ids=str
)
def test_label_maps_whose_compression_changes_values_are_refused(
    options: dict[str, Any], tmp_path: Path
) -> None:
    write(tmp_path / "images/a.tif", noise(2, 40, 48))
    labels = noise(1, 40, 48, high=4).astype(np.uint8) - 1
    write(tmp_path / "labels/a.tif", labels, **options)
    dataset = RasterDataset(tmp_path / "images", tmp_path / "labels", CLASSES)
    with pytest.raises(DataError, match=r"a\.tif' is a TIFF .*compression may change values"):
        dataset.check_files()
    with pytest.raises(DataError, match="compression may change values"):
        read_label_maps([tmp_path / "labels/a.tif"])


def test_label_maps_of_floats_hold_whole_numbers(tmp_path: Path) -> None:
    """gdal_rasterize writes float64, which Pillow does not read."""
    write(tmp_path / "images/a.tif", noise(2, 40, 48))
    labels = noise(1, 40, 48, high=4).astype(np.float64) - 1
    labels[0, :5] = -9999
    path = write(tmp_path / "labels/a.tif", labels, nodata=-9999)
    folders = tmp_path / "images", tmp_path / "labels"
    expected = np.where(labels[0] < 0, 255, labels[0])
    assert np.array_equal(RasterDataset(*folders, CLASSES)[0][1], expected)
    assert sum(labelling(read_label_maps([path])).pixels) == 35 * 48
    write(path, labels + 0.5, nodata=-9998.5)
    with pytest.raises(ValueError, match=r"holds \d\.5, which is no class index; save integers"):
        RasterDataset(*folders, CLASSES)[0]


def test_masks_of_0_and_255_beside_bands_are_no_labels(tmp_path: Path) -> None:
    write(tmp_path / "images/a.tif", noise(2, 40, 48), nodata=0)
    (tmp_path / "labels").mkdir()
    mask = np.where(np.arange(40 * 48).reshape(40, 48) % 3 == 0, 255, 0).astype(np.uint8)
    Image.fromarray(mask).save(tmp_path / "labels/a.png")
    classes = Classes(["background", "lesion"])
    dataset = RasterDataset(tmp_path / "images", tmp_path / "labels", classes)
    with pytest.raises(DataError, match=r"set `label_map: \{0: 0, 255: 1\}` if 255 is a class"):
        dataset.check_files()
    (tmp_path / "labels/a.png").unlink()  # of one class, beside the file's value for no data
    write(tmp_path / "labels/a.tif", mask[None], nodata=255)
    RasterDataset(tmp_path / "images", tmp_path / "labels", classes).check_files()


def test_negative_values_are_mapped(tmp_path: Path) -> None:
    labels = np.random.default_rng(0).choice(np.array([-1, 1, 7], np.int16), (1, 40, 48))
    write(tmp_path / "images/a.tif", noise(2, 40, 48))
    path = write(tmp_path / "labels/a.tif", labels)
    found = labelling(read_label_maps([path]), ignore_index=-1)
    assert found.options == {"label_map": {-1: 255, 255: 255, 1: 0, 7: 1}}
    dataset = RasterDataset(
        tmp_path / "images", tmp_path / "labels", found.classes, **found.options
    )
    expected = np.select([labels[0] == 1, labels[0] == 7], [0, 1], 255)
    assert np.array_equal(dataset[0][1], expected)


@pytest.mark.parametrize("crs", [UTM33, "EPSG:4326"])
def test_places_that_differ_by_rounding_are_one(crs: str, tmp_path: Path) -> None:
    place, size = (12 + 1 / 3, 50 / 7), 0.1  # whose border is computed, and the pixels from it
    right, bottom = place[0] + size * 130, place[1] - size * 100
    rounded = ((right - place[0]) / 130, (place[1] - bottom) / 100)
    assert rounded != (size, size)
    labels = noise(1, 100, 130, high=3).astype("uint8")
    for folder, (width, height) in (("images", (size, size)), ("labels", rounded)):
        array = labels if folder == "labels" else noise(2, 100, 130)
        transform = Affine(width, 0, place[0], 0, -height, place[1])
        write(tmp_path / folder / "a.tif", array, crs=crs, transform=transform)
    dataset = RasterDataset(tmp_path / "images", tmp_path / "labels", CLASSES)
    assert np.array_equal(dataset[0][1], labels[0])


@pytest.mark.parametrize("bits", [12, 15, 16])
def test_jpeg_2000_keeps_its_values(bits: int, tmp_path: Path) -> None:
    array = noise(3, 64, 64, high=1 << bits)
    path = write(
        tmp_path / "a.jp2", array, driver="JP2OpenJPEG", QUALITY="100", REVERSIBLE="YES", NBITS=bits
    )
    image = Bands().open(path)
    assert np.array_equal(read_pixels(image).numpy(), array)
    assert image.grid is not None


def test_infinite_values_are_named(tmp_path: Path) -> None:
    array = noise(2, 40, 48).astype(np.float32)
    array[1, :4] = -np.inf
    path = write(tmp_path / "a.tif", array)
    with pytest.raises(ValueError, match=r"a\.tif' has infinite values in band 2; save them as"):
        statistics_of(Bands(), [Part(path)])
