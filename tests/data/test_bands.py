"""Images of any bands: their values are kept, their statistics travel, wrong ones are refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import tv_tensors

from segformer import Classes
from segformer.data.augmentation import Aerial, BandDistortion, Medical, RandomRotation, Street
from segformer.data.bands import Bands, read_pixels
from segformer.data.datasets import DataError
from segformer.data.families import geotiff
from segformer.data.families.opened import Window, starts
from segformer.data.normalization import Normalization
from segformer.data.rasters import RasterDataset, statistics_of

CLASSES = Classes(["a", "b", "c"])


def values(*shape: int, dtype: str = "uint16", seed: int = 0) -> np.ndarray:
    generator = np.random.default_rng(seed)
    if np.dtype(dtype).kind == "f":
        return generator.normal(size=shape).astype(dtype)
    return generator.integers(0, np.iinfo(dtype).max, shape, dtype, endpoint=True)


def read(path: Path, **bands: Any) -> np.ndarray:
    return read_pixels(Bands(**bands).open(path)).numpy()


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int16", "int32", "float32"])
def test_arrays_keep_their_values(dtype: str, tmp_path: Path) -> None:
    array = values(5, 20, 30, dtype=dtype)
    np.save(tmp_path / "a.npy", array.transpose(1, 2, 0))
    np.savez_compressed(tmp_path / "b.npz", anything=array.transpose(1, 2, 0))
    np.save(tmp_path / "c.npy", array)
    np.save(tmp_path / "d.npy", array.astype(array.dtype.newbyteorder(">"))[0])
    for name, layout in (("a.npy", "HWC"), ("b.npz", "HWC"), ("c.npy", "CHW")):
        found = read(tmp_path / name, layout=layout)
        assert found.dtype == dtype
        assert np.array_equal(found, array)
    assert np.array_equal(read(tmp_path / "d.npy"), array[:1])
    window = read_pixels(Bands(select=[4, 1]).open(tmp_path / "a.npy"), Window(3, 5, 7, 9))
    assert np.array_equal(window.numpy(), array[[3, 0], 3:10, 5:14])


@pytest.mark.parametrize("with_rasterio", [False, pytest.param(True, marks=pytest.mark.extras)])
def test_grey_pictures_keep_16_bits_and_floats(
    with_rasterio: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if with_rasterio:
        pytest.importorskip("rasterio")
    else:
        monkeypatch.setattr(geotiff, "is_installed", lambda: False)
    array = values(20, 30) % 200  # whose information lies in the low bits
    Image.fromarray(array).save(tmp_path / "a.png")
    Image.fromarray(array).save(tmp_path / "a.tif")
    Image.fromarray(values(20, 30, dtype="float32")).save(tmp_path / "b.tif")
    for name in ("a.png", "a.tif"):
        assert read(tmp_path / name).dtype == np.uint16
        assert np.array_equal(read(tmp_path / name)[0], array)
    assert np.array_equal(read(tmp_path / "b.tif")[0], values(20, 30, dtype="float32"))


def test_several_files_are_one_image(tmp_path: Path) -> None:
    array = values(4, 20, 30, dtype="uint8")
    for folder, bands in (("rgb/val", array[:3]), ("nir/val", array[3])):
        (tmp_path / folder).mkdir(parents=True)
        Image.fromarray(np.moveaxis(bands, 0, -1) if bands.ndim == 3 else bands).save(
            tmp_path / folder / "x.png"
        )
    files = ["rgb/{split}/{name}.png", "nir/{split}/{name}.png"]
    assert np.array_equal(read(tmp_path / "rgb/val/x.png", files=files), array)
    with pytest.raises(ValueError, match=r"'.*nir/val/x.png' does not fit the pattern 'rgb/"):
        Bands(files=files).open(tmp_path / "nir/val/x.png")
    Image.fromarray(array[3, :10]).save(tmp_path / "nir/val/x.png")
    with pytest.raises(ValueError, match=r"differ in size: \(20, 30\) and \(10, 30\)"):
        Bands(files=files).open(tmp_path / "rgb/val/x.png")
    (tmp_path / "nir/val/x.png").unlink()
    with pytest.raises(FileNotFoundError, match=r"nir/val/x.png"):
        Bands(files=files).open(tmp_path / "rgb/val/x.png")


@pytest.mark.parametrize(
    ("array", "options", "message"),
    [
        (values(8, 9, 3), {"select": [4]}, "has 3 bands, and band 4 is selected"),
        (values(8, 9, 3), {"names": ["a", "b"]}, r"has 3 bands, and 2 are named \(a, b\)"),
        (values(8, 9, 3, 2), {}, r"array of uint16 \(8, 9, 3, 2\)"),
        (np.array(["text"]), {}, "an image has numbers"),
    ],
)
def test_a_file_with_other_bands_is_named(
    array: np.ndarray, options: dict[str, Any], message: str, tmp_path: Path
) -> None:
    np.save(tmp_path / "a.npy", array)
    with pytest.raises(ValueError, match=rf"a\.npy'.*{message}"):
        Bands(**options).open(tmp_path / "a.npy")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"layout": "WHC"}, "choose HWC or CHW"),
        ({"pages": "samples"}, "choose bands or images"),
        ({"select": [0]}, "bands from 1"),
        ({"names": ["a"], "select": [1, 2]}, "1 names and 2 selected"),
        ({"files": ["rgb/*.tif"]}, r"'rgb/\*\.tif' must contain \{name\} once"),
    ],
)
def test_wrong_options_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Bands(**options)


def folders(root: Path, *arrays: np.ndarray) -> tuple[Path, Path]:
    images, labels = root / "images", root / "labels"
    for folder in (images, labels):
        folder.mkdir(parents=True)
    for k, array in enumerate(arrays):
        np.save(images / f"{k}.npy", array.transpose(1, 2, 0))
        Image.fromarray(values(*array.shape[1:], dtype="uint8", seed=k) % 3).save(
            labels / f"{k}.png"
        )
    return images, labels


def test_statistics_are_numpys(tmp_path: Path) -> None:
    arrays = [values(3, 40, 50, seed=k) for k in range(2)]
    arrays[0][1] //= 16
    arrays[1][1] //= 16
    dataset = RasterDataset(*folders(tmp_path, *arrays), CLASSES)
    found = statistics_of(dataset.bands, dataset.parts)
    pixels = np.concatenate([array.reshape(3, -1) for array in arrays], 1).astype(float)
    limits = np.percentile(pixels, (0.1, 99.9), axis=1).T
    clipped = pixels.clip(limits[:, :1], limits[:, 1:])
    assert found.dtype == "uint16"
    assert found.limits == pytest.approx(limits, rel=1e-5)
    assert found.mean == pytest.approx(clipped.mean(1), rel=1e-5)
    assert found.std == pytest.approx(clipped.std(1), rel=1e-5)
    normalized = torch.cat([found(dataset[k][0]).flatten(1) for k in range(2)], 1)
    torch.testing.assert_close(normalized.mean(1), torch.zeros(3), rtol=0, atol=1e-4)
    torch.testing.assert_close(normalized.std(1), torch.ones(3), rtol=1e-3, atol=0)
    again = Normalization(**found.to_dict())
    assert again == found


def test_statistics_need_one_kind_of_images(tmp_path: Path) -> None:
    dataset = RasterDataset(*folders(tmp_path, values(3, 8, 9), values(2, 8, 9)), CLASSES)
    with pytest.raises(ValueError, match=r"1\.npy' has 2 bands of uint16, those before it 3 of"):
        statistics_of(dataset.bands, dataset.parts)
    flat = RasterDataset(*folders(tmp_path / "flat", np.full((1, 8, 9), 7, "int16")), CLASSES)
    with pytest.raises(ValueError, match="band 1 has the value 7 everywhere"):
        statistics_of(flat.bands, flat.parts)


OF_UINT16 = Normalization([500, 600], [100, 100], 1.0, "uint16", [(100, 900), (200, 1000)])


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.full((3, 8, 9), 500, "uint16"), "it has 3 bands of uint16, and the model takes 2"),
        (np.full((2, 8, 9), 200, "uint8"), "it has 2 bands of uint8, and the model takes 2 of"),
        (np.full((2, 8, 9), 9000, "uint16"), "outside 100 to 900.*median is 9000"),
    ],
)
def test_images_of_another_kind_are_refused(
    array: np.ndarray, message: str, tmp_path: Path
) -> None:
    dataset = RasterDataset(*folders(tmp_path, array), CLASSES, normalization=OF_UINT16)
    with pytest.raises(ValueError, match=rf"0\.npy' does not fit: .*{message}"):
        dataset[0]
    with pytest.raises(DataError, match=message):
        dataset.check_files()


def test_values_that_are_no_numbers_become_the_mean() -> None:
    image = torch.tensor([1.0, float("nan"), 9.0]).expand(1, 2, 3)
    found = Normalization([3], [2], 1.0, "float32", [(0, 5)])(image)
    assert found[0, 0].tolist() == [-1.0, 0.0, 1.0]  # 9 is clipped to 5


@pytest.mark.parametrize("tile", [None, (64, 64)])
def test_without_its_faulty_files_a_set_can_be_read(tile: Any, tmp_path: Path) -> None:
    images, labels = folders(tmp_path, values(2, 100, 64), values(2, 64, 64))
    (labels / "1.png").unlink()
    with pytest.raises(DataError, match=r"1\.npy") as refused:
        RasterDataset(images, labels, CLASSES, tile=tile)
    found = refused.value.found
    assert len(found) == (2 if tile else 1)
    assert found[0][0].shape == (2, 64 if tile else 100, 64)


@pytest.mark.parametrize(("height", "width"), [(100, 130), (64, 64), (30, 200), (20, 20)])
def test_tiles_cover_an_image_once_read(height: int, width: int, tmp_path: Path) -> None:
    array = values(2, height, width)
    whole = RasterDataset(*folders(tmp_path, array), CLASSES)
    tiled = RasterDataset(tmp_path / "images", tmp_path / "labels", CLASSES, tile=(64, 64))
    seen = np.zeros((height, width), bool)
    image, label = whole[0]
    for index in range(len(tiled)):
        window = tiled.parts[index].window
        assert window is not None
        part, part_label = tiled[index]
        assert torch.equal(part, image[:, *window.slices])
        assert torch.equal(part_label, label[window.slices])
        seen[window.slices] = True
    assert seen.all()
    assert len(tiled) == len(starts(height, 64, 64)) * len(starts(width, 64, 64))


@pytest.mark.parametrize("preset", [Street, Aerial, Medical])
@pytest.mark.parametrize(("count", "dtype"), [(1, "uint16"), (4, "float32"), (13, "int16")])
def test_presets_take_any_bands(preset: Any, count: int, dtype: str) -> None:
    mean = [float(k) for k in range(count)]
    transform = preset((48, 32))
    normalization = Normalization(mean, [2.0] * count, 1.0, dtype)
    for part in transform.transforms:
        if hasattr(part, "normalization"):
            part.normalization = normalization
    image = tv_tensors.Image(torch.arange(count).view(-1, 1, 1).expand(-1, 70, 80).to(
        getattr(torch, dtype)
    ))  # fmt: skip
    label = tv_tensors.Mask(torch.ones(70, 80, dtype=torch.uint8))
    for _ in range(10):
        pixels, classes = transform(image, label)
        assert pixels.shape == (count, 48, 32)
        assert pixels.dtype == torch.float32
        assert classes.shape == pixels.shape[1:]
        assert set(classes.unique().tolist()) <= {1, 255}
        assert pixels.isfinite().all()


def test_each_band_is_distorted_alone_and_labels_are_kept() -> None:
    image = tv_tensors.Image(torch.randn(4, 30, 40))
    label = tv_tensors.Mask(torch.zeros(30, 40, dtype=torch.uint8))
    changed, same = BandDistortion(0.5, (0.5, 1.5))(image, label)
    assert same is label
    slopes = []
    for before, after in zip(image, changed, strict=True):
        slope = float((after.max() - after.min()) / (before.max() - before.min()))
        offset = after - slope * before
        torch.testing.assert_close(offset, offset.mean().expand_as(offset), rtol=0, atol=1e-5)
        assert abs(float(offset.mean())) <= 0.5
        assert 0.5 <= slope <= 1.5
        slopes.append(slope)
    assert len(set(slopes)) == 4


@pytest.mark.parametrize(("dtype", "ignored"), [(torch.uint8, 255), (torch.int32, 65535)])
def test_the_corners_of_a_rotated_label_map_are_ignored(dtype: torch.dtype, ignored: int) -> None:
    image = tv_tensors.Image(torch.ones(2, 40, 40))
    label = tv_tensors.Mask(torch.ones(40, 40, dtype=dtype))
    transform = RandomRotation(0)
    transform.degrees = [45, 45]
    turned, classes = transform(image, label)
    assert set(classes.unique().tolist()) == {1, ignored}
    assert classes[0, 0] == ignored
    assert classes[20, 20] == 1
    assert float(turned[0, 0, 0]) == 0
