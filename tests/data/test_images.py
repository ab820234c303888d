"""Image files are read without loss, or refused; none is left out silently."""

from __future__ import annotations

import struct
import unicodedata
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from png import png

from segformer import Classes
from segformer.data.datasets import DataError, FolderDataset
from segformer.data.images import ORIENTATION, decode_rgb, find_images, read_image
from segformer.data.labels import read_label_map

PIXELS = np.random.default_rng(0).integers(0, 256, (4, 6, 3), np.uint8)


def saved(path: Path, image: Image.Image | np.ndarray, **options: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    (Image.fromarray(image) if isinstance(image, np.ndarray) else image).save(path, **options)
    return path


@pytest.mark.parametrize("bits", [9, 10, 12, 14, 15])
@pytest.mark.parametrize("kind", ["grey.png", "grey.tif", "rgb.png"])
def test_16_bit_files_that_may_hold_fewer_bits_are_refused(
    kind: str, bits: int, tmp_path: Path
) -> None:
    values = np.random.default_rng(0).integers(0, 1 << bits, (8, 8), np.uint16)
    values[0, 0] = (1 << bits) - 1
    path = tmp_path / kind
    if kind == "rgb.png":
        path.write_bytes(png(np.stack([values] * 3, -1), 16))
    else:
        saved(path, values)
    with pytest.raises(
        ValueError,
        match=rf"{kind}' has 16 bits and no value above {values.max()}: .* scale its values",
    ):
        read_image(path)


def test_files_that_use_16_bits_are_read_as_their_upper_8_bits(tmp_path: Path) -> None:
    values = np.random.default_rng(0).integers(0, 65536, (8, 8), np.uint16)
    values[0, 0] = 65535
    for name in ("1.png", "1.tif"):
        assert np.array_equal(read_image(saved(tmp_path / name, values))[0].numpy(), values // 257)
    big = Image.fromarray(values.astype(">u2"))
    assert np.array_equal(read_image(saved(tmp_path / "2.tif", big))[0].numpy(), values // 257)
    (tmp_path / "3.png").write_bytes(png(np.stack([values] * 3, -1), 16))
    assert np.array_equal(read_image(tmp_path / "3.png")[1].numpy(), values >> 8)


def test_the_maximum_in_a_header_is_read_as_255(tmp_path: Path) -> None:
    values = np.array([[0, 1000, 4095]])
    (tmp_path / "1.pgm").write_bytes(b"P5\n3 1\n4095\n" + values.astype(">u2").tobytes())
    assert np.abs(read_image(tmp_path / "1.pgm")[0].numpy() - values * (255 / 4095)).max() < 1
    with pytest.raises(
        ValueError, match=r"signed.tif' has mode I, whose scale of values is unknown"
    ):
        read_image(saved(tmp_path / "signed.tif", np.array([[-5, 7]], np.int32)))


@pytest.mark.parametrize("suffix", [".tif", ".gif", ".webp", ".png"])
def test_files_of_several_images_are_refused(suffix: str, tmp_path: Path) -> None:
    pages = [Image.fromarray(PIXELS), Image.fromarray(255 - PIXELS), Image.fromarray(PIXELS // 2)]
    path = saved(tmp_path / f"pages{suffix}", pages[0], save_all=True, append_images=pages[1:])
    with pytest.raises(
        ValueError, match=rf"pages{suffix}' holds 3 images .* save each to a file of its own"
    ):
        read_image(path)


def test_reduced_copies_in_a_tiff_do_not_count_as_images(tmp_path: Path) -> None:
    overview = Image.fromarray(PIXELS[::2, ::2].copy())
    overview.encoderinfo = {"tiffinfo": {254: 1}}
    path = saved(
        tmp_path / "map.tif", Image.fromarray(PIXELS), save_all=True, append_images=[overview]
    )
    assert np.array_equal(read_image(path).permute(1, 2, 0).numpy(), PIXELS)


@pytest.mark.parametrize("suffix", [".jp2", ".avif", ".gif", ".jfif", ".PNG"])
def test_every_format_that_pillow_reads_is_found(suffix: str, tmp_path: Path) -> None:
    kind = {".jfif": "JPEG", ".PNG": "PNG"}.get(suffix)
    saved(tmp_path / "1.jpg", PIXELS)
    path = saved(tmp_path / f"2{suffix}", PIXELS, **({"format": kind} if kind else {}))
    assert find_images(tmp_path)[-1] == path
    assert read_image(path).shape == (3, 4, 6)


@pytest.mark.parametrize("name", ["2.heic", "2.HEIF", "2.jxl", "2.dng"])
def test_a_format_that_is_not_read_is_named_and_not_skipped(name: str, tmp_path: Path) -> None:
    for folder in ("i", "l"):
        saved(tmp_path / folder / "1.png", PIXELS)
    (tmp_path / "i" / name).write_bytes(b"\0\0\0\x18ftypheic")
    with pytest.raises(ValueError, match=rf"cannot read image .*{name}.* save it as PNG"):
        read_image(find_images(tmp_path / "i")[1])
    with pytest.raises(DataError, match=rf"no label map for .*{name}"):
        FolderDataset(tmp_path / "i", tmp_path / "l", Classes(["a"]))


def test_hidden_files_and_system_folders_are_left_out(tmp_path: Path) -> None:
    kept = saved(tmp_path / "a" / "1.png", PIXELS)
    for name in (
        "._1.png",
        ".ipynb_checkpoints/1-checkpoint.png",
        "__MACOSX/a/1.png",
        "@eaDir/1.png",
    ):
        saved(tmp_path / name, PIXELS)
    (tmp_path / "Thumbs.db").write_bytes(b"")
    (tmp_path / "notes.txt").write_bytes(b"")
    assert find_images(tmp_path) == [kept]


def test_links_to_folders_are_followed_but_not_in_circles(tmp_path: Path) -> None:
    saved(tmp_path / "disk" / "part" / "1.png", PIXELS)
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "linked").symlink_to(tmp_path / "disk")
    (tmp_path / "disk" / "part" / "up").symlink_to(tmp_path / "disk")
    (tmp_path / "disk" / "back").symlink_to(tmp_path / "data")
    assert [path.relative_to(tmp_path).as_posix() for path in find_images(tmp_path / "data")] == [
        "data/linked/part/1.png"
    ]


@pytest.mark.parametrize("listed", [None, "NFC", "NFD"])
def test_both_encodings_of_an_accent_are_the_same_name(listed: str | None, tmp_path: Path) -> None:
    name = "Straße/für Müller 道"
    saved(tmp_path / "i" / f"{unicodedata.normalize('NFD', name)}.png", PIXELS)
    saved(tmp_path / "l" / f"{unicodedata.normalize('NFC', name)}.png", PIXELS[..., 0] % 2)
    names = None
    if listed:
        names = tmp_path / "names.txt"
        names.write_bytes(
            b"\xef\xbb\xbf" + unicodedata.normalize(listed, name).encode() + b"\r\n\r\n"
        )
    assert len(FolderDataset(tmp_path / "i", tmp_path / "l", Classes(["a", "b"]), names=names)) == 1


def test_a_list_of_names_that_is_not_utf_8_is_refused(tmp_path: Path) -> None:
    for folder in ("i", "l"):
        saved(tmp_path / folder / "1.png", PIXELS)
    (tmp_path / "names.txt").write_bytes("Müller".encode("latin-1"))
    with pytest.raises(ValueError, match=r"names.txt' is not text in UTF-8"):
        FolderDataset(tmp_path / "i", tmp_path / "l", Classes(["a"]), names=tmp_path / "names.txt")


@pytest.mark.parametrize(
    ("image", "label", "suffixes"),
    [
        ("a/1.jpg", "a/1_mask.png", ("", "_mask")),
        ("a/1_rgb.png", "a/1.png", ("_rgb", "")),
        ("a/1_x_rgb.png", "a/1_x.png", ("_rgb", "")),
        ("a/1.jpg", "a/1.png", (".jpg", ".png")),
        ("a/1.png", "a/1.png.mask.png", ("", ".png.mask")),
    ],
    ids=str,
)
def test_one_folder_may_hold_images_and_label_maps(
    image: str, label: str, suffixes: tuple[str, str], tmp_path: Path
) -> None:
    saved(tmp_path / image, PIXELS)
    saved(tmp_path / label, PIXELS[..., 0] % 2)
    dataset = FolderDataset(
        tmp_path, tmp_path, Classes(["a", "b"]), image_suffix=suffixes[0], label_suffix=suffixes[1]
    )
    assert [[path.relative_to(tmp_path).as_posix() for path in pair] for pair in dataset.pairs] == [
        [image, label]
    ]


def test_one_folder_needs_suffixes_and_a_folder_inside_another_does_not(
    tmp_path: Path,
) -> None:
    saved(tmp_path / "1.png", PIXELS)
    saved(tmp_path / "masks" / "1.png", PIXELS[..., 0] % 2)
    with pytest.raises(
        ValueError, match="with the same suffix ''; set image_suffix or label_suffix"
    ):
        FolderDataset(tmp_path, tmp_path, Classes(["a", "b"]))
    assert len(FolderDataset(tmp_path, tmp_path / "masks", Classes(["a", "b"]))) == 1
    assert len(FolderDataset(tmp_path / "masks", tmp_path, Classes(["a", "b"]))) == 1


def test_the_message_for_a_missing_pair_names_a_file_that_differs_in_case(tmp_path: Path) -> None:
    saved(tmp_path / "i" / "IMG_1.png", PIXELS)
    saved(tmp_path / "l" / "img_1.png", PIXELS[..., 0] % 2)
    with pytest.raises(
        DataError, match=r"no label map for .*IMG_1.png.*img_1.png' differs in case"
    ):
        FolderDataset(tmp_path / "i", tmp_path / "l", Classes(["a", "b"]))


def bmp(values: np.ndarray, bits: int, palette: list[int]) -> bytes:
    """Returns a BMP with a grey palette, written by the format's definition."""
    shifts = np.arange(bits - 1, -1, -1)
    rows = [np.packbits((row[:, None] >> shifts) & 1).tobytes() for row in values[::-1]]
    pixels = b"".join(row + bytes(-len(row) % 4) for row in rows)
    colors = b"".join(bytes([grey, grey, grey, 0]) for grey in palette)
    height, width = values.shape
    info = struct.pack("<IiiHHIIiiII", 40, width, height, 1, bits, 0, 0, 0, 0, len(palette), 0)
    start = 14 + len(info) + len(colors)
    return b"BM" + struct.pack("<IHHI", start + len(pixels), 0, 0, start) + info + colors + pixels


@pytest.mark.parametrize(("bits", "count"), [(1, 2), (8, 16), (4, 2), (8, 2), (4, 16)])
def test_bmps_of_few_greys_are_read_correctly_or_refused(
    bits: int, count: int, tmp_path: Path
) -> None:
    """Pillow reads two greys of 4 or 8 bits per pixel as one bit per pixel."""
    values = np.arange(16).reshape(2, 8) % count
    palette = [0, 255] if count == 2 else list(range(count))
    (tmp_path / "1.bmp").write_bytes(bmp(values, bits, palette))
    if (bits, count) in ((1, 2), (8, 16)):
        assert np.array_equal(read_label_map(tmp_path / "1.bmp"), values)
        assert np.array_equal(read_image(tmp_path / "1.bmp")[0], np.array(palette)[values])
    else:
        for read in (read_label_map, read_image):
            with pytest.raises(ValueError, match=r"1.bmp' is a BMP with a grey palette"):
                read(tmp_path / "1.bmp")


def save_jpegs(folder: Path) -> list[Path]:
    """JPEGs of the kinds that decoders treat differently."""
    pixels = np.random.default_rng(0).integers(0, 255, (9, 13, 3), np.uint8)
    photo = Image.fromarray(pixels).resize((77, 50), Image.Resampling.BICUBIC)
    turned = Image.Exif()
    turned[ORIENTATION] = 6
    kinds: dict[str, tuple[Image.Image, dict[str, Any]]] = {
        **{f"chroma{k}": (photo, {"subsampling": k, "quality": 40}) for k in range(3)},
        "progressive": (photo, {"progressive": True}),
        "turned": (photo, {"exif": turned}),
        "stored_as_rgb": (photo, {"keep_rgb": True}),
        "grey": (photo.convert("L"), {}),
        "cmyk": (photo.convert("CMYK"), {}),
        "pixel": (photo.crop((0, 0, 1, 1)), {}),
    }
    for name, (image, options) in kinds.items():
        image.save(folder / f"{name}.jpg", **options)
    photo.save(folder / "a_png.png")
    (folder / "a_png.png").rename(folder / "a_png.jpg")
    whole = (folder / "chroma0.jpg").read_bytes()
    (folder / "truncated.jpg").write_bytes(whole[: len(whole) // 2])
    (folder / "with_more.jpg").write_bytes(whole + b"more")
    (folder / "empty.jpg").write_bytes(b"")
    return sorted(folder.glob("*.jpg"))


@pytest.mark.extras
def test_simplejpeg_gives_the_pixels_and_errors_of_pillow(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("simplejpeg", reason="reason: simplejpeg is not installed")

    def outcomes() -> list[Any]:
        found: list[Any] = []
        for path in save_jpegs(tmp_path):
            try:
                header, image = decode_rgb(path)
                found.append((header, image.shape, image.numpy().tobytes()))
            except ValueError as error:
                found.append(str(error))
        return found

    ours = outcomes()
    monkeypatch.setattr("segformer.data.images._simplejpeg", lambda: None)
    assert ours == outcomes()
    assert sum(isinstance(outcome, str) for outcome in ours) == 2  # truncated, empty
