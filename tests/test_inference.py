from __future__ import annotations

import socket
import sys
from io import BytesIO, TextIOWrapper
from pathlib import Path

import numpy as np
import processes
import pytest
import torch
from conftest import TINY, randomized
from PIL import Image

from segformer import Classes, SegFormer
from segformer.cli import main as command
from segformer.data.bands import Bands
from segformer.data.images import read_image
from segformer.data.normalization import Normalization
from segformer.data.transforms import Normalize
from segformer.evaluation import Slide
from segformer.inference.results.pictures import LONGEST


def main(arguments: list[str]) -> None:
    command(["predict", *arguments])


@pytest.fixture
def weights(tiny: SegFormer, tmp_path: Path) -> Path:
    tiny.classes = Classes(
        ["road", "sky", "tree", "car", "person"], [(10 * k, 0, 99) for k in range(5)]
    )
    tiny.save(tmp_path / "weights.safetensors")
    return tmp_path / "weights.safetensors"


def noise(path: Path, height: int, width: int) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (height, width, 3), np.uint8)).save(
        path
    )
    return path


@pytest.mark.parametrize("size", [(64, 64), (37, 101), (20, 300), (1, 1)], ids=str)
def test_label_maps_have_the_images_size_and_the_models_colours(
    weights: Path, tmp_path: Path, size: tuple[int, int]
) -> None:
    main([str(weights), str(noise(tmp_path / "a.png", *size)), "--out", str(tmp_path / "out")])
    with Image.open(tmp_path / "out" / "a.png") as label:
        assert label.size == size[::-1]
        assert label.getpalette()[:15] == [0, 0, 99, 10, 0, 99, 20, 0, 99, 30, 0, 99, 40, 0, 99]
    with Image.open(tmp_path / "out" / "a_overlay.jpg") as overlay:  # above its legend
        assert overlay.width >= size[1]
        assert overlay.height > size[0]


def test_labels_equal_those_of_predict(weights: Path, tiny: SegFormer, tmp_path: Path) -> None:
    path = noise(tmp_path / "a.png", 64, 80)
    main([str(weights), str(path), "--out", str(tmp_path / "out")])
    pixels = torch.from_numpy(np.array(Image.open(path)) / 255.0).permute(2, 0, 1).float()
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    expected = tiny.predict(((pixels - mean[:, None, None]) / std[:, None, None])[None])[0]
    assert np.array_equal(np.array(Image.open(tmp_path / "out" / "a.png")), expected.numpy())


def test_folders_keep_their_subfolders_and_a_histogram_is_printed(
    weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    noise(tmp_path / "in" / "x" / "1.jpg", 40, 40)
    noise(tmp_path / "in" / "y" / "1.jpg", 40, 40)
    main([str(weights), str(tmp_path / "in"), "--out", str(tmp_path / "out")])
    assert sorted(
        str(p.relative_to(tmp_path / "out")) for p in (tmp_path / "out").rglob("*.*")
    ) == [
        "x/1.png",
        "x/1_overlay.jpg",
        "y/1.png",
        "y/1_overlay.jpg",
    ]
    printed = capsys.readouterr().out
    assert "2 images labelled" in printed
    shares = [float(line.split()[1]) for line in printed.splitlines() if "%" in line]
    assert sum(shares) == pytest.approx(100, abs=0.1)
    assert shares == sorted(shares, reverse=True)


def test_a_broken_image_is_named_and_the_others_are_labelled(weights: Path, tmp_path: Path) -> None:
    noise(tmp_path / "in" / "1.png", 40, 40)
    (tmp_path / "in" / "2.png").write_bytes(b"no picture")
    noise(tmp_path / "in" / "3.png", 40, 40)
    with pytest.raises(SystemExit, match=r"cannot read image .*2.png"):
        main([str(weights), str(tmp_path / "in"), "--out", str(tmp_path / "out")])
    assert {p.name for p in (tmp_path / "out").iterdir()} == {
        "1.png",
        "1_overlay.jpg",
        "3.png",
        "3_overlay.jpg",
    }


def test_an_image_to_label_is_never_overwritten(weights: Path, tmp_path: Path) -> None:
    path = noise(tmp_path / "in" / "1.png", 40, 40)
    before = path.read_bytes()
    for extra in ([], ["--overwrite"]):
        with pytest.raises(SystemExit, match="in/1.png' is one of the images to label"):
            main([str(weights), str(tmp_path / "in"), "--out", str(tmp_path / "in"), *extra])
    assert path.read_bytes() == before


@pytest.mark.parametrize("twin", ["1.jpg", "1_overlay.jpg"])
def test_two_images_for_one_output_file_are_refused(
    weights: Path, tmp_path: Path, twin: str
) -> None:
    noise(tmp_path / "in" / "1.png", 40, 40)
    noise(tmp_path / "in" / twin, 40, 40)
    words = [str(weights), str(tmp_path / "in"), "--out", str(tmp_path / "out")]
    with pytest.raises(SystemExit, match="would both be written to"):
        main([*words, "--write", "labels", "overlay-png"])


def test_files_of_an_earlier_run_are_kept_without_overwrite(weights: Path, tmp_path: Path) -> None:
    command = [str(weights), str(noise(tmp_path / "1.png", 40, 40)), "--out", str(tmp_path / "out")]
    main(command)
    with pytest.raises(
        SystemExit, match="exists already; choose another folder with --out, or add --overwrite"
    ):
        main(command)
    main([*command, "--overwrite"])


@pytest.mark.parametrize("size", [(20, 300), (1, 1)], ids=str)
def test_arrays_below_the_networks_smallest_size_are_labelled(
    weights: Path, tmp_path: Path, size: tuple[int, int]
) -> None:
    np.save(tmp_path / "a.npy", np.zeros((*size, 3), np.uint8))
    main(
        [
            str(weights),
            str(tmp_path / "a.npy"),
            "--out",
            str(tmp_path / "out"),
            "--slide",
            "64",
            "48",
        ]
    )
    assert np.load(tmp_path / "out" / "a.npy").shape == size


def test_a_folder_has_the_files_that_only_models_of_bands_take(tmp_path: Path) -> None:
    normalization = Normalization([9, 9], [5, 5], 1.0, "uint16", bands=Bands())
    model = SegFormer(TINY, num_classes=3, in_channels=2, normalization=normalization)
    randomized(model).save(tmp_path / "m.safetensors")
    (tmp_path / "scans").mkdir()
    for name in ("1.npy", "2.npz"):
        pixels = np.random.default_rng(0).integers(0, 20, (40, 48, 2), np.uint16)
        with (tmp_path / "scans" / name).open("wb") as file:
            np.save(file, pixels) if name == "1.npy" else np.savez(file, pixels)
    main([str(tmp_path / "m.safetensors"), str(tmp_path / "scans"), "--out", str(tmp_path / "out")])
    assert {path.stem for path in (tmp_path / "out").iterdir()} >= {"1", "2"}


def test_weights_of_half_precision_label_images(tiny: SegFormer, tmp_path: Path) -> None:
    tiny.bfloat16().save(tmp_path / "half.safetensors")
    path = noise(tmp_path / "1.png", 40, 40)
    np.save(tmp_path / "2.npy", np.array(Image.open(path)))
    main(
        [
            str(tmp_path / "half.safetensors"),
            str(path),
            str(tmp_path / "2.npy"),
            "--out",
            str(tmp_path / "out"),
        ]
    )
    main(
        [
            str(tmp_path / "half.safetensors"),
            str(path),
            "--out",
            str(tmp_path / "windows"),
            "--slide",
            "32",
            "32",
        ]
    )


def test_missing_images_and_weights_and_unusable_folders_are_named(
    weights: Path, tmp_path: Path
) -> None:
    image = noise(tmp_path / "a.png", 40, 40)
    with pytest.raises(SystemExit, match=r"no image or folder .*b.png"):
        main([str(weights), str(tmp_path / "b.png"), "--out", str(tmp_path / "out")])
    with pytest.raises(SystemExit, match=r"no file or folder .*none.pth"):
        main([str(tmp_path / "none.pth"), str(image), "--out", str(tmp_path / "out")])
    (tmp_path / "file").touch()
    with pytest.raises(
        SystemExit, match=r"file' cannot be written \(File exists\); choose another with --out"
    ):
        main([str(weights), str(image), "--out", str(tmp_path / "file")])


def test_windows_as_large_as_the_image_change_nothing_and_smaller_ones_are_averaged(
    weights: Path, tiny: SegFormer, tmp_path: Path
) -> None:
    path = noise(tmp_path / "a.png", 64, 96)
    for crop, stride in ((96, 96), (64, 32)):
        main(
            [
                str(weights),
                str(path),
                "--out",
                str(tmp_path / str(crop)),
                "--slide",
                str(crop),
                str(stride),
            ]
        )
    main([str(weights), str(path), "--out", str(tmp_path / "whole")])
    label_maps = {
        name: np.array(Image.open(tmp_path / name / "a.png")) for name in ("96", "64", "whole")
    }
    assert np.array_equal(label_maps["96"], label_maps["whole"])
    images = Normalize()(read_image(path))[None]
    assert np.array_equal(
        label_maps["64"], Slide((64, 64), (32, 32)).logits(tiny, images).argmax(1)[0].numpy()
    )


def test_two_processes_share_a_folder(
    weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in "abc":
        noise(tmp_path / "in" / f"{name}.png", 40, 40)
    monkeypatch.setenv("WORLD_SIZE", "2")
    for rank in (0, 1):
        monkeypatch.setenv("RANK", str(rank))
        main([str(weights), str(tmp_path / "in"), "--out", str(tmp_path / "out")])
        assert len(list((tmp_path / "out").glob("?.png"))) == (2, 3)[rank]


def test_a_process_that_fails_waits_for_the_others(weights: Path, tmp_path: Path) -> None:
    """torchrun stops all processes when one has failed."""
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "0.png").write_bytes(b"no image")
    for number in range(1, 6):
        noise(tmp_path / "in" / f"{number}.png", 40, 40)
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    code = (
        "import os, sys, time\n"
        "*words, rank, port = sys.argv[1:]\n"
        "place = {'RANK': rank, 'WORLD_SIZE': '2', 'MASTER_ADDR': 'localhost',\n"
        "         'MASTER_PORT': port, 'TORCHELASTIC_RUN_ID': 'test'}\n"
        "os.environ.update(place)\n"
        "from segformer.cli import main\n"
        "from segformer.inference.results import Labels\n"
        "write = Labels.write\n"
        "def slow(*arguments):\n"
        "    time.sleep(int(rank))\n"
        "    write(*arguments)\n"
        "Labels.write = slow\n"
        "try:\n"
        "    main(words)\n"
        "except SystemExit as error:\n"
        "    print('\\n', error, sorted(os.listdir(words[-1])))\n"
    )
    words = ["predict", weights, tmp_path / "in", "--write", "labels", "--out", tmp_path / "out"]
    printed = [tmp_path / "0.txt", tmp_path / "1.txt"]
    started = [processes.start(code, *words, k, port, output=printed[k]) for k in (0, 1)]
    for process in started:
        process.join(300)
        assert process.exitcode == 0
    last = printed[0].read_text().splitlines()[-1]
    assert "in/0.png" in last
    assert last.endswith(str([f"{k}.png" for k in range(1, 6)]))
    assert "3 images labelled" in printed[1].read_text()


def test_an_array_is_mapped_and_labelled_in_windows(
    weights: Path, tiny: SegFormer, tmp_path: Path
) -> None:
    """Its labels equal those of the picture with the same pixels and windows."""
    path = noise(tmp_path / "a.png", 90, 130)
    np.save(tmp_path / "b.npy", np.array(Image.open(path)))
    out = tmp_path / "out"
    main(
        [str(weights), str(path), str(tmp_path / "b.npy"), "--out", str(out), "--slide", "64", "48"]
    )
    labels = np.load(out / "b.npy")
    assert labels.dtype == np.uint8
    assert np.array_equal(labels, np.array(Image.open(out / "a.png")))
    assert sorted(file.name for file in out.iterdir()) == ["a.png", "a_overlay.jpg", "b.npy"]


@pytest.mark.parametrize("broken", ["floats", "grey", "truncated", "none"])
def test_an_array_that_is_no_image_is_named_and_leaves_no_file(
    weights: Path, tmp_path: Path, broken: str
) -> None:
    path = tmp_path / "a.npy"
    np.save(
        path,
        np.zeros(
            (40, 50) if broken == "grey" else (40, 50, 3),
            np.float32 if broken == "floats" else np.uint8,
        ),
    )
    if broken == "truncated":
        path.write_bytes(path.read_bytes()[:-100])
    if broken == "none":
        path.write_bytes(b"no array")
    with pytest.raises(SystemExit, match=r"cannot (read|label) .*a.npy"):
        main([str(weights), str(path), "--out", str(tmp_path / "out")])
    assert not list((tmp_path / "out").iterdir())


def test_the_message_for_an_image_too_large_for_pillow_names_the_cure(
    weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(
        SystemExit, match=r"a.png' is larger than Pillow reads .* save its pixels with numpy.save"
    ):
        main([str(weights), str(noise(tmp_path / "a.png", 40, 40)), "--out", str(tmp_path / "out")])


def test_an_overlay_has_a_legend_of_the_classes_that_occur(weights: Path, tmp_path: Path) -> None:
    words = [str(weights), str(noise(tmp_path / "a.png", 64, 200)), "--out", str(tmp_path / "out")]
    main([*words, "--write", "labels", "overlay", "overlay-png"])
    with Image.open(tmp_path / "out" / "a.png") as labels:
        present = set(np.unique(labels).tolist())
    with Image.open(tmp_path / "out" / "a_overlay.png") as shown:
        exact = np.array(shown)
    key = exact[128:]  # below the picture, in twice its size
    for k in range(5):
        boxes = (key == (10 * k, 0, 99)).all(-1).sum()
        assert (boxes > 100) == (k in present)
    with Image.open(tmp_path / "out" / "a_overlay.jpg") as shown:
        assert shown.format == "JPEG"
        difference = np.array(shown).astype(float) - exact
    assert np.sqrt((difference[64:] ** 2).mean()) < 6  # sharp letters and edges of the boxes


def test_an_overlay_too_large_for_a_jpeg_is_named_with_the_cure(
    weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("segformer.inference.results.pictures.LONGEST", 100)
    words = [str(weights), str(noise(tmp_path / "in" / "a.png", 40, 101)), "--out"]
    with pytest.raises(SystemExit, match="'a.png' .* JPEG .*; write overlay-png in place of"):
        main([*words, str(tmp_path / "out")])
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["a.png"]
    main([*words, str(tmp_path / "png"), "--write", "overlay-png"])


def test_the_longest_side_of_an_overlay_is_the_longest_that_pillow_writes(tmp_path: Path) -> None:
    Image.new("RGB", (LONGEST, 1)).save(tmp_path / "longest.jpg")
    with pytest.raises(OSError, match="when writing image file"):
        Image.new("RGB", (LONGEST + 1, 1)).save(tmp_path / "longer.jpg")


def test_labels_of_more_than_255_classes_are_written_in_16_bits(tmp_path: Path) -> None:
    """In a picture, in windows and in an array; 299 modulo 256 would be 43."""
    model = randomized(SegFormer(TINY, num_classes=300))
    with torch.no_grad():
        model.decode_head.classifier.bias[:256] -= 100
    model.save(tmp_path / "many.safetensors")
    path = noise(tmp_path / "a.png", 64, 80)
    np.save(tmp_path / "b.npy", np.array(Image.open(path)))
    out = tmp_path / "out"
    images = [str(path), str(tmp_path / "b.npy")]
    main([str(tmp_path / "many.safetensors"), *images, "--out", str(out), "--slide", "64", "64"])
    logits = Slide((64, 64), (64, 64)).logits(model, Normalize()(read_image(path))[None])
    expected = logits.argmax(1)[0].numpy()
    assert expected.min() >= 256
    with Image.open(out / "a.png") as label:
        assert label.mode == "I;16"
        assert np.array_equal(np.array(label), expected)
    assert np.load(out / "b.npy").dtype == np.uint16
    assert np.array_equal(np.load(out / "b.npy"), expected)
    main([str(tmp_path / "many.safetensors"), str(path), "--out", str(tmp_path / "whole")])
    assert np.array(Image.open(tmp_path / "whole" / "a.png")).min() >= 256


def test_the_printed_table_needs_only_the_characters_of_a_windows_terminal(
    tiny: SegFormer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its code page has neither blocks nor most letters."""
    tiny.classes = Classes(["道路", "sky", "tree", "car", "person"])
    tiny.save(tmp_path / "weights.safetensors")
    path = noise(tmp_path / "image.png", 40, 40)
    terminal = TextIOWrapper(BytesIO(), encoding="cp1252")
    monkeypatch.setattr(sys, "stdout", terminal)
    arguments = [str(tmp_path / "weights.safetensors"), str(path), "--out", str(tmp_path / "out")]
    monkeypatch.setattr(sys, "argv", ["segformer", "predict", *arguments])
    command()
    terminal.flush()
    assert b"1 images labelled" in terminal.buffer.getvalue()


def test_an_image_in_an_unread_format_is_named_and_the_others_are_labelled(
    weights: Path, tmp_path: Path
) -> None:
    noise(tmp_path / "in" / "1.png", 40, 40)
    (tmp_path / "in" / "2.heic").write_bytes(b"ftypheic")
    with pytest.raises(SystemExit, match=r"2.heic.* save it as PNG, or install"):
        main([str(weights), str(tmp_path / "in"), "--out", str(tmp_path / "out")])
    assert (tmp_path / "out" / "1.png").is_file()
