"""Label map files are read as their format defines it, or refused with their name."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from png import png

from segformer import Classes
from segformer.data.classes import ignore_index, voc_palette
from segformer.data.datasets import DataError, FolderDataset
from segformer.data.images import decode, read_header
from segformer.data.labels import check_labels, read_label_map

COLORS = [(10, 20, 30), (200, 0, 0), (0, 200, 0), (0, 0, 200)]
CLASSES = Classes(["a", "b", "c", "d"], COLORS)
VALUES = np.array([[0, 1, 2, 3], [3, 2, 1, 0]], np.uint8)


def paletted(indices: np.ndarray, palette: list[tuple[int, int, int]]) -> Image.Image:
    image = Image.fromarray(indices)
    image.putpalette([channel for color in palette for channel in color])
    return image


def saved(path: Path, image: Image.Image | np.ndarray, **options: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    (Image.fromarray(image) if isinstance(image, np.ndarray) else image).save(path, **options)
    return path


@pytest.mark.parametrize("bits", [1, 2, 4, 8, 16])
def test_grey_pngs_of_any_depth_hold_their_own_values(bits: int, tmp_path: Path) -> None:
    values = np.arange(2 * 11).reshape(2, 11) % min(1 << bits, 200)
    (tmp_path / "label.png").write_bytes(png(values, bits))
    assert read_label_map(tmp_path / "label.png").tolist() == values.tolist()


@pytest.mark.parametrize("greatest", [3, 20, 255, 300, 65535])
@pytest.mark.parametrize("kind", ["P2", "P5"])
def test_pgms_of_any_maximum_hold_their_own_values(
    kind: str, greatest: int, tmp_path: Path
) -> None:
    values = np.arange(24).reshape(4, 6) % (greatest + 1)
    dtype = np.uint8 if greatest < 256 else ">u2"
    pixels = (
        " ".join(map(str, values.ravel())).encode()
        if kind == "P2"
        else values.astype(dtype).tobytes()
    )
    (tmp_path / "label.pgm").write_bytes(f"{kind}\n6 4\n{greatest}\n".encode() + pixels)
    assert read_label_map(tmp_path / "label.pgm").tolist() == values.tolist()


@pytest.mark.parametrize(
    ("bits", "order"), [*[(bits, order) for bits in (2, 4, 8, 16) for order in "<>"], (32, "<")]
)
def test_grey_tiffs_of_any_depth_and_byte_order_hold_their_own_values(
    bits: int, order: str, tmp_path: Path
) -> None:
    values = np.arange(16).reshape(2, 8) % (1 << min(bits, 4))
    if bits < 8:
        shifts = np.arange(bits - 1, -1, -1)
        pixels = b"".join(np.packbits((row[:, None] >> shifts) & 1).tobytes() for row in values)
    else:
        pixels = values.astype(f"{order}u{bits // 8}").tobytes()
    tags = (
        (256, 8),
        (257, 2),
        (258, bits),
        (259, 1),
        (262, 1),
        (273, 8),
        (277, 1),
        (278, 2),
        (279, len(pixels)),
    )
    start = 8 + len(pixels) + len(pixels) % 2
    file = (
        {"<": b"II", ">": b"MM"}[order]
        + struct.pack(f"{order}HI", 42, start)
        + pixels
        + b"\0" * (len(pixels) % 2)
    )
    file += struct.pack(f"{order}H", len(tags))
    file += b"".join(
        struct.pack(f"{order}HHIHH", tag, 3, 1, value, 0) for tag, value in tags
    ) + bytes(4)
    (tmp_path / "label.tif").write_bytes(file)
    assert read_label_map(tmp_path / "label.tif").tolist() == values.tolist()


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "LA", "I", "F", "I;16", "I;16B"])
def test_values_in_other_channels_and_types_are_read(mode: str, tmp_path: Path) -> None:
    image = Image.fromarray(VALUES)
    if mode.startswith("I;16"):
        image = Image.fromarray(VALUES.astype("<u2" if mode == "I;16" else ">u2"))
    path = saved(tmp_path / "label.tif", image if mode.startswith("I;16") else image.convert(mode))
    assert read_header(path).mode.startswith(mode[:4])
    assert read_label_map(path, CLASSES).tolist() == VALUES.tolist()


def test_transparent_labels_and_fractions_are_refused(tmp_path: Path) -> None:
    image = Image.fromarray(VALUES).convert("LA")
    image.putpixel((1, 0), (1, 0))
    with pytest.raises(
        ValueError, match=r"1.png' is transparent on 1 of 8 pixels; save it without"
    ):
        read_label_map(saved(tmp_path / "1.png", image))
    with pytest.raises(ValueError, match=r"2.tif' holds 0.5, which is no class index"):
        read_label_map(saved(tmp_path / "2.tif", np.array([[0, 0.5]], np.float32)))
    with pytest.raises(ValueError, match=r"3.tif' holds inf, which is no class index"):
        read_label_map(saved(tmp_path / "3.tif", np.array([[0, np.inf]], np.float32)))


def test_a_value_beyond_8_bits_is_reported_unchanged(tmp_path: Path) -> None:
    """Not modulo 256, where 259 would be class 3 and 65535 be ignored."""
    for name, value in (("a", 259), ("b", 65535), ("c", 512)):
        values = np.where(VALUES == 3, value, VALUES.astype(np.int64))
        (tmp_path / f"{name}.png").write_bytes(png(values, 16))
        label = read_label_map(tmp_path / f"{name}.png", CLASSES)
        with pytest.raises(ValueError, match=f"holds the value {value} on 2 of 8 pixels"):
            check_labels(label, 4, "it")


LOSSY = {
    "grey.jpg": ("L", {}),
    "rgb.jpg": ("RGB", {}),
    "lossy.webp": ("RGB", {}),
    "jpeg.tif": ("L", {"compression": "jpeg"}),
    "2000.jp2": ("L", {}),
    "av1.avif": ("RGB", {}),
}


@pytest.mark.parametrize("name", LOSSY)
@pytest.mark.parametrize("palette", [None, "index"])
def test_lossy_compression_is_refused(name: str, palette: Any, tmp_path: Path) -> None:
    mode, options = LOSSY[name]
    path = saved(
        tmp_path / name, Image.fromarray(VALUES.repeat(8, 0).repeat(8, 1)).convert(mode), **options
    )
    with pytest.raises(
        ValueError, match=rf"{name}' is a .* file, whose compression may change values"
    ):
        read_label_map(path, CLASSES, palette)


@pytest.mark.parametrize("compression", ["raw", "tiff_lzw", "tiff_adobe_deflate", "packbits"])
def test_lossless_files_are_read(compression: str, tmp_path: Path) -> None:
    assert (
        read_label_map(saved(tmp_path / "1.tif", VALUES, compression=compression)).tolist()
        == VALUES.tolist()
    )
    webp = Image.fromarray(VALUES).convert("RGB")
    assert (
        read_label_map(saved(tmp_path / "1.webp", webp, lossless=True), CLASSES).tolist()
        == VALUES.tolist()
    )
    assert read_label_map(saved(tmp_path / "1.bmp", VALUES), CLASSES).tolist() == VALUES.tolist()
    assert read_label_map(saved(tmp_path / "1.gif", VALUES), CLASSES).tolist() == VALUES.tolist()


@pytest.mark.parametrize("suffix", [".png", ".bmp", ".gif", ".tif"])
def test_a_palette_in_the_order_of_the_classes_is_read_by_index(
    suffix: str, tmp_path: Path
) -> None:
    voc = Classes(list("abcd"))
    for classes, palette in (
        (CLASSES, COLORS),
        (CLASSES, [*COLORS, (7, 7, 7)]),
        (voc, list(voc_palette(256))),
    ):
        path = saved(tmp_path / f"label{suffix}", paletted(VALUES, palette))
        assert read_label_map(path, classes).tolist() == VALUES.tolist()


@pytest.mark.parametrize("suffix", [".png", ".bmp", ".gif", ".tif"])
def test_a_palette_in_another_order_is_read_by_colour(suffix: str, tmp_path: Path) -> None:
    """The labels' colours equal the picture that Pillow shows."""
    order = [2, 0, 3, 1]
    path = saved(tmp_path / f"label{suffix}", paletted(VALUES, [COLORS[k] for k in order]))
    label = read_label_map(path, CLASSES).numpy()
    with Image.open(path) as shown:
        assert np.array_equal(np.array(COLORS, np.uint8)[label], np.array(shown.convert("RGB")))
    assert label.tolist() == np.array(order)[VALUES].tolist()


def test_an_optimised_palette_of_few_colours_is_read_and_its_black_is_ignored(
    tmp_path: Path,
) -> None:
    quantized = Image.fromarray(np.array([*COLORS, (0, 0, 0)], np.uint8)[[[3, 4, 1, 1]]])
    path = saved(
        tmp_path / "label.png", quantized.convert("P", palette=Image.Palette.ADAPTIVE, colors=3)
    )
    assert read_label_map(path, CLASSES).tolist() == [[3, 255, 1, 1]]


def test_vocs_outlines_are_ignored_if_the_classes_have_vocs_colours(tmp_path: Path) -> None:
    voc = Classes([str(k) for k in range(21)])
    colors = np.array([*voc.colors[:2], (224, 224, 192)], np.uint8)[[[1, 2, 0]]]
    assert read_label_map(saved(tmp_path / "1.png", colors), voc).tolist() == [[1, 255, 0]]


@pytest.mark.parametrize("suffix", [".png", ".bmp"])
def test_a_grey_palette_is_read_by_index(suffix: str, tmp_path: Path) -> None:
    path = saved(tmp_path / f"label{suffix}", paletted(VALUES, [(k, k, k) for k in range(256)]))
    assert read_label_map(path, CLASSES).tolist() == VALUES.tolist()


OTHER_PALETTES = {
    "strange": [(1, 2, 3), (4, 5, 6), (7, 8, 9), (9, 9, 9)],
    "black": [(0, 0, 0)] * 4,
    "VOC's": list(voc_palette(4)),
    "stretched grey": [(0, 0, 0), (85, 85, 85), (170, 170, 170), (255, 255, 255)],
    "nearly": [*COLORS[:3], (0, 0, 201)],
}


@pytest.mark.parametrize("name", OTHER_PALETTES)
def test_any_other_palette_is_refused_unless_its_coding_is_declared(
    name: str, tmp_path: Path
) -> None:
    path = saved(tmp_path / "label.png", paletted(VALUES, OTHER_PALETTES[name]))
    first = 3 if name == "nearly" else 0
    message = (
        rf"label.png' has a palette that differs from .*: its entry {first} is .* "
        "set `palette: index`"
    )
    with pytest.raises(ValueError, match=message):
        read_label_map(path, CLASSES)
    assert read_label_map(path, CLASSES, "index").tolist() == VALUES.tolist()


def test_colours_that_may_be_indices_are_refused(tmp_path: Path) -> None:
    """All black is class 0 by value, and ignored by colour."""
    path = saved(tmp_path / "label.png", np.zeros((2, 2, 3), np.uint8))
    with pytest.raises(
        ValueError, match="its value 0 may be class 0 or the colour of no class: set `palette"
    ):
        read_label_map(path, CLASSES)
    assert read_label_map(path, CLASSES, "index").eq(0).all()
    assert read_label_map(path, CLASSES, "color").eq(255).all()
    masks = Classes(["no", "yes"], [(0, 0, 0), (255, 255, 255)])
    white = saved(tmp_path / "white.png", np.array([[[0] * 3, [255] * 3]], np.uint8))
    assert read_label_map(white, masks).tolist() == [[0, 1]]


@pytest.mark.parametrize("kind", ["PBM", "TIFF"])
def test_files_that_store_0_as_white_are_refused(kind: str, tmp_path: Path) -> None:
    path = tmp_path / f"label.{kind.lower()}"
    if kind == "PBM":
        path.write_bytes(b"P4\n8 1\n\x0f")
    else:
        saved(path, Image.fromarray(VALUES), tiffinfo={262: 0})
    with pytest.raises(ValueError, match=r"stores 0 as white; save it with 0 as black"):
        read_label_map(path)


def test_samples_of_16_bits_in_three_channels_are_refused(tmp_path: Path) -> None:
    """Pillow keeps the upper 8 bits, in which all classes are 0."""
    (tmp_path / "label.png").write_bytes(png(np.array([[[1, 1, 1], [2, 2, 2]]]), 16))
    assert not np.array(decode(tmp_path / "label.png").image).any()
    with pytest.raises(ValueError, match="has mode RGB with values up to 65535"):
        read_label_map(tmp_path / "label.png")


def turned(tag: int | None) -> dict[str, Any]:
    exif = Image.Exif()
    if tag is not None:
        exif[0x0112] = tag
    return {"exif": exif}


def pair(
    root: Path, image_tag: int | None, label_tag: int | None, label_size: tuple[int, int]
) -> FolderDataset:
    image = np.zeros((4, 6, 3), np.uint8)
    image[0, 0] = 255  # differs from the other corners
    saved(root / "i" / "1.png", image, **turned(image_tag))
    label = np.zeros(label_size, np.uint8)
    label[0, 0] = 1
    saved(root / "l" / "1.png", label, **turned(label_tag))
    return FolderDataset(root / "i", root / "l", CLASSES)


@pytest.mark.parametrize("tag", range(1, 9))
def test_a_pair_with_the_same_orientation_is_turned_together(tag: int, tmp_path: Path) -> None:
    image, label = pair(tmp_path, tag, tag, (4, 6))[0]
    assert image.shape[1:] == label.shape == ((4, 6) if tag < 5 else (6, 4))
    assert torch.equal(image[0] == 255, label == 1)


@pytest.mark.parametrize("tag", [5, 6, 7, 8])
def test_a_label_map_of_the_turned_images_size_is_accepted(tag: int, tmp_path: Path) -> None:
    _, label = pair(tmp_path, tag, None, (6, 4))[0]
    assert label[0, 0] == 1
    with pytest.raises(
        ValueError,
        match=rf"orientation \({tag}\), but its label map .* fits only the image as it is stored",
    ):
        pair(tmp_path, tag, None, (4, 6))[0]


@pytest.mark.parametrize("tag", [2, 3, 4])
def test_an_orientation_that_no_size_shows_is_refused_on_access_and_before_a_run(
    tag: int, tmp_path: Path
) -> None:
    dataset = pair(tmp_path, tag, None, (4, 6))
    for look in (lambda: dataset[0], dataset.check_files):
        with pytest.raises(
            ValueError, match="sizes do not show whether it was drawn on the turned image; save"
        ):
            look()
    assert (
        pair(tmp_path, tag, 1, (4, 6))[0][1][0, 0] == 1
    )  # the label map has its own orientation, upright


def test_vocs_colours_differ_beyond_256_classes() -> None:
    assert len(set(voc_palette(65535))) == 65535


@pytest.mark.parametrize("count", [255, 256, 300])
def test_label_maps_of_more_than_255_classes_have_16_bits_and_ignore_65535(
    count: int, tmp_path: Path
) -> None:
    classes = Classes([str(k) for k in range(count)])
    ignored = {255: 255, 256: 65535, 300: 65535}[count]
    assert classes.ignore_index == ignore_index(count) == ignored
    values = np.array([[0, 7, 254, count - 1, ignored]])
    saved(tmp_path / "i" / "1.png", np.zeros((1, 5, 3), np.uint8))
    for suffix in (".png", ".tif"):
        (tmp_path / "l").mkdir(exist_ok=True)
        saved(tmp_path / "l" / f"1{suffix}", values.astype(np.uint16))
        _, label = FolderDataset(tmp_path / "i", tmp_path / "l", classes)[0]
        assert label.tolist() == values.tolist()
        assert label.dtype == (torch.uint8 if count == 255 else torch.int32)
        (tmp_path / "l" / f"1{suffix}").unlink()
    for wrong in (max(count, 256), 65534):
        with pytest.raises(ValueError, match=f"holds the value {wrong} on 1 of 2"):
            check_labels(torch.tensor([wrong, ignored]), count, "it")


def test_with_256_classes_255_is_a_class_in_colours_and_mapped_values(tmp_path: Path) -> None:
    classes = Classes([str(k) for k in range(300)])
    saved(tmp_path / "i" / "1.png", np.zeros((1, 3, 3), np.uint8))
    saved(
        tmp_path / "l" / "1.png",
        np.array([[classes.colors[299], classes.colors[255], (1, 1, 1)]], np.uint8),
    )
    with pytest.raises(ValueError, match=r"colour \(1, 1, 1\)"):
        FolderDataset(tmp_path / "i", tmp_path / "l", classes)[0]
    saved(
        tmp_path / "l" / "1.png",
        np.array([[classes.colors[299], classes.colors[255], (0, 0, 0)]], np.uint8),
    )
    assert FolderDataset(tmp_path / "i", tmp_path / "l", classes)[0][1].tolist() == [[299, 255, 0]]
    saved(tmp_path / "l" / "1.png", np.array([[0, 1000, 65535]], np.uint16))
    mapped = FolderDataset(
        tmp_path / "i", tmp_path / "l", classes, label_map={0: 255, 1000: 299, 65535: 65535}
    )
    assert mapped[0][1].tolist() == [[255, 299, 65535]]


@pytest.mark.parametrize("ignored", [255, 11])
def test_masks_whose_second_value_is_ignored_are_refused_before_a_run(
    ignored: int, tmp_path: Path
) -> None:
    for k in range(3):
        saved(tmp_path / "i" / f"{k}.png", np.zeros((2, 4, 3), np.uint8))
        saved(tmp_path / "l" / f"{k}.png", np.where(k < VALUES, ignored, 0).astype(np.uint8))
    classes = Classes(["no", "yes"])
    with pytest.raises(
        DataError,
        match=rf"hold only 0 and {ignored}, .* set `label_map: \{{0: 0, {ignored}: 1\}}`",
    ):
        FolderDataset(tmp_path / "i", tmp_path / "l", classes, ignored).check_files()
    assert (
        FolderDataset(
            tmp_path / "i", tmp_path / "l", classes, label_map={0: 0, ignored: 1}
        ).check_files()
        == ()
    )
    declared = FolderDataset(
        tmp_path / "i", tmp_path / "l", classes, label_map={0: 0, 1: 1, ignored: 255}
    )
    assert declared.check_files() == ("yes",)


def test_every_header_is_read_and_all_faults_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for k in range(6):
        saved(tmp_path / "i" / f"{k}.png", np.zeros((2, 4, 3), np.uint8))
        saved(tmp_path / "l" / f"{k}.png", VALUES % 3)
    dataset = FolderDataset(tmp_path / "i", tmp_path / "l", CLASSES)
    assert dataset.check_files() == ("d",)
    saved(tmp_path / "l" / "5.png", VALUES.astype(np.uint16))
    saved(tmp_path / "l" / "1.png", paletted(VALUES, OTHER_PALETTES["strange"]))
    saved(tmp_path / "l" / "2.png", np.zeros((4, 2), np.uint8))
    (tmp_path / "i" / "4.png").write_bytes(b"")
    monkeypatch.setattr("segformer.data.datasets.SAMPLED_PAIRS", 1)
    with pytest.raises(DataError) as caught:
        dataset.check_files()
    assert len(caught.value.faults) == 3
    for fault, words in zip(
        caught.value.faults, ("1.png' has a palette", "4×2", "4.png"), strict=True
    ):
        assert words in fault
