"""``segformer predict`` on videos and folders of frames; the clips are made and read by PyAV."""

from __future__ import annotations

import csv
import json
import shutil
import struct
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import TINY, randomized, varied
from PIL import Image
from test_docs import ROOT, commands

from segformer import Classes, SegFormer
from segformer.cli import main as command
from segformer.data.images import read_image
from segformer.data.video import FrameFolder, VideoFile, _by_number
from segformer.inference import WholeImages

COLORS = [(200, 30, 30), (30, 180, 60), (40, 60, 210), (220, 200, 40), (160, 60, 190)]
NTSC = Fraction(30000, 1001)


def main(*arguments: Any) -> None:
    command(["predict", *map(str, arguments)])


@pytest.fixture(scope="module")
def model() -> SegFormer:
    """A small network whose labels vary."""
    torch.manual_seed(0)
    model = randomized(SegFormer(TINY, num_classes=5, classes=Classes(list("abcde"), COLORS)))
    torch.nn.init.normal_(model.decode_head.classifier.weight)
    torch.nn.init.zeros_(model.decode_head.classifier.bias)
    return varied(model, model.decode_head.norm, torch.randn(2, 3, 64, 96))


@pytest.fixture(scope="module")
def weights(model: SegFormer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("weights") / "tiny.safetensors"
    model.save(path)
    return path


def pictures(count: int, height: int = 64, width: int = 96) -> list[np.ndarray]:
    """Smooth colours that move to the right."""
    coarse = Image.fromarray(np.random.default_rng(1).integers(0, 256, (4, 8, 3), np.uint8))
    wide = np.array(coarse.resize((2 * width, height), Image.Resampling.BICUBIC))
    return [np.roll(wide, 3 * k, 1)[:, :width].copy() for k in range(count)]


def clip(
    path: Path,
    images: list[np.ndarray],
    rate: Fraction = Fraction(25),
    times: list[Fraction] | None = None,
    rotation: int = 0,
    codec: str = "libx264",
) -> Path:
    """Writes a video with PyAV."""
    import av

    with av.open(path, "w") as container:
        stream: Any = container.add_stream(codec, rate=rate)
        stream.height, stream.width = images[0].shape[:2]
        stream.pix_fmt = "yuv420p"
        if codec == "libx264":
            stream.options = {"crf": "8"}
        if times is not None:
            stream.codec_context.time_base = Fraction(1, 1000)
        if rotation:
            stream.set_display_rotation(rotation)
        for index, pixels in enumerate(images):
            frame = av.VideoFrame.from_ndarray(pixels, "rgb24")
            if times is not None:
                frame.pts, frame.time_base = round(1000 * times[index]), Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def decoded(path: Path) -> tuple[Any, list[Any]]:
    """The video stream's properties and its frames."""
    import av

    with av.open(path) as container:
        stream = container.streams.video[0]
        facts = (stream.average_rate, stream.codec_context.name, container.format.name)
        return facts, list(container.decode(stream))


def rgb(frame: Any) -> np.ndarray:
    return frame.to_ndarray(format="rgb24").astype(int)


def test_frames_are_sorted_by_their_numbers() -> None:
    names = [f"f{k}.png" for k in (10, 9, 1, 100, 2)]
    found = sorted(map(Path, [*names, "a/f3.png"]), key=_by_number)
    assert [p.name for p in found] == [
        *("f3.png", "f1.png", "f2.png", "f9.png", "f10.png", "f100.png")
    ]


def test_without_pyav_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("segformer.data.video.find_spec", lambda name: None)
    (tmp_path / "a.mp4").touch()
    with pytest.raises(SystemExit, match=r'videos need PyAV; pip install "segformer\[video\]"'):
        main("none.safetensors", tmp_path / "a.mp4", "--out", tmp_path / "out")


@pytest.mark.parametrize("rate", ["0", "-3", "1/0", "fast"])
def test_a_wrong_rate_is_refused(rate: str, tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match=rf"'{rate}' frames a second; give a number such as 25"):
        main("none.safetensors", tmp_path, "--out", tmp_path / "out", f"--video={rate}")


def test_options_that_do_not_fit_the_sources_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a.mp4").touch()
    (tmp_path / "a.png").touch()
    for name in ("a.mp4", "a.png"):
        with pytest.raises(SystemExit, match=f"--video is for folders of frames, and .*{name}'"):
            main("none", tmp_path / name, "--out", tmp_path / "out", "--video", "25")
    with pytest.raises(SystemExit, match="--frames is for videos, and none is given"):
        main("none", tmp_path / "a.png", "--out", tmp_path / "out", "--frames")
    with pytest.raises(SystemExit, match=r"no video .*none.mp4"):
        main("none", tmp_path / "none.mp4", "--out", tmp_path / "out")


@pytest.mark.extras
@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".mov", ".avi"])
@pytest.mark.parametrize("rate", [Fraction(25), NTSC, Fraction(24000, 1001)], ids=str)
def test_a_video_keeps_its_frames_rate_and_size(
    rate: Fraction, suffix: str, weights: Path, tmp_path: Path
) -> None:
    source = clip(tmp_path / f"clip{suffix}", pictures(12), rate)
    main(weights, source, "--out", tmp_path / "out")
    (found, codec, container), frames = decoded(tmp_path / "out" / "clip.mp4")
    assert found == rate
    assert codec == "h264"
    assert "mp4" in container
    assert [frame.time for frame in frames] == pytest.approx([float(k / rate) for k in range(12)])
    assert frames[0].width == 96
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["clip.mp4"]


@pytest.mark.extras
def test_frames_at_varying_times_keep_them(weights: Path, tmp_path: Path) -> None:
    times = [Fraction(t, 1000) for t in (0, 40, 47, 310, 311, 500, 1000)]
    source = clip(tmp_path / "clip.mkv", pictures(7), times=times)
    main(weights, source, "--out", tmp_path / "out")
    _, frames = decoded(tmp_path / "out" / "clip.mp4")
    assert [f.time for f in frames] == pytest.approx([float(t) for t in times], abs=2e-4)


@pytest.mark.extras
def test_the_picture_is_the_overlay_and_the_legend_stays(
    model: SegFormer, weights: Path, tmp_path: Path
) -> None:
    source = clip(tmp_path / "clip.mp4", pictures(10))
    main(weights, source, "--out", tmp_path / "out", "--frames")
    _, originals = decoded(source)
    _, frames = decoded(tmp_path / "out" / "clip.mp4")
    label_maps = sorted((tmp_path / "out" / "clip").iterdir())
    assert [path.name for path in label_maps] == [f"{k:06}.png" for k in range(10)]
    occurring = set()
    for original, frame, path in zip(originals, frames, label_maps, strict=True):
        with Image.open(path) as labels:
            assert labels.mode == "P"
            found = np.array(labels)
        pixels = original.to_ndarray(format="rgb24")
        Image.fromarray(pixels).save(tmp_path / "frame.png")
        expected = WholeImages().labels(model, read_image(tmp_path / "frame.png"))
        assert np.array_equal(found, expected)
        mixed = 0.45 * pixels + 0.55 * np.array(COLORS)[found]
        # The video's colours have half of its resolution, so edges differ.
        assert np.median(np.abs(rgb(frame)[:64] - mixed)) < 4
        occurring |= set(np.unique(found).tolist())
    assert len(occurring) > 1
    keys = [rgb(frame)[64:] for frame in frames]
    assert all((np.abs(key - keys[0]) > 20).mean() < 0.01 for key in keys)
    for k, color in enumerate(COLORS):  # boxes of the classes that occur in any frame
        near = (np.abs(keys[-1] - color).max(-1) < 30).sum()
        assert (near > 60) == (k in occurring)


def with_matrix(path: Path, a: int, b: int, c: int, d: int) -> Path:
    """Writes a matrix into the track header of an MP4 file (ISO/IEC 14496-12, 8.3.2)."""
    data, one = bytearray(path.read_bytes()), 1 << 16
    start = data.index(b"tkhd") + 4 + 40  # of version 0
    struct.pack_into(">9i", data, start, a * one, b * one, 0, c * one, d * one, 0, 0, 0, 1 << 30)
    path.write_bytes(data)
    return path


@pytest.mark.extras
@pytest.mark.parametrize("b_c", [False, True], ids=["upright", "on its side"])
@pytest.mark.parametrize("x", [1, -1])
@pytest.mark.parametrize("y", [1, -1])
def test_frames_are_mirrored_as_the_file_states(b_c: bool, x: int, y: int, tmp_path: Path) -> None:
    """A point (p, q) of a frame is shown at (a·p + c·q, b·p + d·q)."""
    a, b, c, d = (0, y, x, 0) if b_c else (x, 0, 0, y)
    corners = {(-1, -1): 40, (1, -1): 100, (-1, 1): 160, (1, 1): 220}  # grey at left top, …
    image = np.zeros((64, 96, 3), np.uint8)
    for (p, q), grey in corners.items():
        image[32 if q > 0 else 0 :, 48 if p > 0 else 0 :] = grey
    path = with_matrix(clip(tmp_path / "clip.mp4", [image] * 3), a, b, c, d)
    shown = next(VideoFile(path).frames()).image[0].numpy().astype(int)
    assert shown.shape == ((96, 64) if b_c else (64, 96))
    for (p, q), grey in corners.items():
        left, top = a * p + c * q, b * p + d * q
        assert abs(shown[-10 if top > 0 else 10, -10 if left > 0 else 10] - grey) < 8


@pytest.mark.extras
@pytest.mark.parametrize("rotation", [0, 90])
def test_pixels_that_are_not_square_keep_their_shape(
    rotation: int, weights: Path, tmp_path: Path
) -> None:
    import av

    path = tmp_path / "clip.mp4"
    with av.open(path, "w") as container:
        stream: Any = container.add_stream("libx264", rate=25)
        stream.height, stream.width, stream.pix_fmt = 64, 96, "yuv420p"
        stream.codec_context.sample_aspect_ratio = Fraction(4, 3)
        stream.set_display_rotation(rotation)
        for pixels in pictures(3):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, "rgb24")))
        container.mux(stream.encode(None))
    main(weights, path, "--out", tmp_path / "out")
    with av.open(tmp_path / "out" / "clip.mp4") as container:
        aspect = container.streams.video[0].sample_aspect_ratio
    assert aspect == (Fraction(3, 4) if rotation else Fraction(4, 3))


@pytest.mark.extras
@pytest.mark.parametrize("transfer", [1, 16, 18])
def test_a_high_dynamic_range_is_said(
    transfer: int, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    import av

    path = tmp_path / "clip.mp4"
    with av.open(path, "w") as container:
        stream: Any = container.add_stream("libx264", rate=25)
        stream.height, stream.width, stream.pix_fmt = 64, 96, "yuv420p"
        stream.codec_context.color_trc = transfer
        for pixels in pictures(2):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, "rgb24")))
        container.mux(stream.encode(None))
    assert len(list(VideoFile(path).frames())) == 2
    assert ("has a high dynamic range" in caplog.text) == (transfer != 1)


@pytest.mark.extras
def test_frames_that_an_edit_list_cuts_off_are_not_missed(tmp_path: Path) -> None:
    """The edit list (ISO/IEC 14496-12, 8.6.6) begins after the second key frame."""
    import av

    path = tmp_path / "clip.mp4"
    with av.open(path, "w", options={"use_editlist": "1"}) as container:
        stream: Any = container.add_stream("libx264", rate=25, options={"g": "10", "bf": "2"})
        stream.height, stream.width, stream.pix_fmt = 64, 96, "yuv420p"
        for pixels in pictures(50):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, "rgb24")))
        container.mux(stream.encode(None))
    data = bytearray(path.read_bytes())
    start = data.index(b"elst") + 4
    assert struct.unpack_from(">II", data, start) == (0, 1)  # version, number of edits
    duration, time = struct.unpack_from(">Ii", data, start + 8)
    ticks = struct.unpack_from(">I", data, data.index(b"mdhd") + 16)[0]  # a second of the media
    struct.pack_into(">Ii", data, start + 8, duration // 2, time + ticks)
    path.write_bytes(data)
    frames = list(VideoFile(path).frames())
    assert len(frames) == VideoFile(path).timing().count == 25


@pytest.mark.extras
def test_the_folder_of_the_shell_has_a_name(
    weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "walk").mkdir()
    for index, pixels in enumerate(pictures(2)):
        Image.fromarray(pixels).save(tmp_path / "walk" / f"{index}.png")
    monkeypatch.chdir(tmp_path / "walk")
    main(weights, ".", "--video", "25", "--out", tmp_path / "out", "--frames")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["walk", "walk.mp4"]


@pytest.mark.extras
@pytest.mark.parametrize("rotation", [90, -90, 180])
def test_frames_are_turned_as_the_file_states(rotation: int, weights: Path, tmp_path: Path) -> None:
    """The matrix says by how many degrees a player turns the frame counterclockwise."""
    image = np.full((64, 96, 3), 90, np.uint8)
    image[:16, :24] = (250, 0, 0)
    source = clip(tmp_path / "clip.mp4", [image] * 3, rotation=rotation)
    (frame, *_) = VideoFile(source).frames()
    upright = np.array(Image.fromarray(image).rotate(rotation, expand=True)).astype(int)
    assert np.abs(frame.image.permute(1, 2, 0).numpy() - upright).mean() < 5
    main(weights, source, "--out", tmp_path / "out", "--frames")
    with Image.open(tmp_path / "out" / "clip" / "000000.png") as labels:
        assert labels.size == upright.shape[1::-1]
    _, frames = decoded(tmp_path / "out" / "clip.mp4")
    assert frames[0].rotation == 0
    assert frames[0].width == upright.shape[1]


@pytest.mark.extras
def test_the_last_line_of_odd_sides_is_repeated(weights: Path, tmp_path: Path) -> None:
    folder = tmp_path / "shot"
    folder.mkdir()
    for k, image in enumerate(pictures(3, 51, 85)):
        Image.fromarray(image).save(folder / f"{k}.png")
    main(weights, folder, "--out", tmp_path / "out", "--video", "10")
    _, frames = decoded(tmp_path / "out" / "shot.mp4")
    assert frames[0].width == 86
    assert frames[0].height % 2 == 0
    assert np.abs(rgb(frames[0])[:, 85] - rgb(frames[0])[:, 84]).max() < 10


@pytest.mark.extras
def test_a_folder_of_frames_becomes_a_video_or_stays_images(weights: Path, tmp_path: Path) -> None:
    folder = tmp_path / "shot.1"
    folder.mkdir()
    for k, image in enumerate(pictures(12)):
        Image.fromarray(image).save(folder / f"f{k}.png")
    main(weights, folder, "--out", tmp_path / "out", "--video", "30000/1001", "--frames")
    (rate, _, _), frames = decoded(tmp_path / "out" / "shot.1.mp4")
    assert (rate, len(frames)) == (NTSC, 12)
    main(weights, folder, "--out", tmp_path / "images")
    for k in range(12):
        one = np.array(Image.open(tmp_path / "images" / f"f{k}.png"))
        other = np.array(Image.open(tmp_path / "out" / "shot.1" / f"{k:06}.png"))
        assert np.array_equal(one, other)
    Image.new("RGB", (90, 64)).save(folder / "f3.png")
    with pytest.raises(SystemExit, match=r"f3.png' has 90×64 pixels, and the first .* 96×64"):
        main(weights, folder, "--out", tmp_path / "new", "--video", "25")


@pytest.mark.extras
def test_windows_and_protocols_label_frames(weights: Path, tmp_path: Path) -> None:
    source = clip(tmp_path / "clip.mp4", pictures(2))
    (frame, *_) = VideoFile(source).frames()
    Image.fromarray(frame.image.permute(1, 2, 0).numpy()).save(tmp_path / "frame.png")
    options = ("--protocol", "whole", "--tta")
    main(weights, source, "--out", tmp_path / "video", "--frames", *options)
    main(weights, tmp_path / "frame.png", "--out", tmp_path / "image", *options)
    one = np.array(Image.open(tmp_path / "video" / "clip" / "000000.png"))
    other = np.array(Image.open(tmp_path / "image" / "frame.png"))
    assert np.array_equal(one, other)


@pytest.mark.extras
def test_shares_and_manifest_are_of_each_frame(
    model: SegFormer, weights: Path, tmp_path: Path
) -> None:
    """Judged by the label maps of the frames."""
    times = [Fraction(0), Fraction(1, 10), Fraction(1, 2)]
    clip(tmp_path / "a.mp4", pictures(3), times=times)
    out = tmp_path / "out"
    words = [weights, tmp_path / "a.mp4", "--out", out, "--write", "shares", "manifest"]
    main(*words, "--frames")
    assert {path.name for path in out.iterdir()} == {
        *("a", "a.mp4", "a_shares.csv", "a_manifest.jsonl")
    }
    lines = [json.loads(s) for s in (out / "a_manifest.jsonl").read_text().splitlines()]
    with (out / "a_shares.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    frames = list(VideoFile(tmp_path / "a.mp4").frames())
    assert len(lines) == len(rows) == len(frames) == 3
    for line, row, time, frame in zip(lines, rows, times, frames, strict=True):
        assert line["file"] == row["file"]
        assert line["time"] == float(row["time"]) == float(time)
        with Image.open(out / line["file"]) as image:
            labels = np.array(image)
        for k, name in enumerate("abcde"):
            assert line["shares"].get(name, 0) == pytest.approx((labels == k).mean(), abs=1e-6)
            assert int(row[f"{name} pixels"]) == (labels == k).sum()
        _, p = WholeImages().with_probabilities(model, frame.image)
        entropy = -(p * np.log(p)).sum(0).mean()
        assert line["mean_entropy"] == pytest.approx(entropy, abs=1e-3)
    with pytest.raises(SystemExit, match="exists already"):
        main(*words, "--frames")
    (out / "a.mp4").unlink()
    with pytest.raises(SystemExit, match=r"a_shares.csv' exists already"):
        main(*words)


@pytest.mark.extras
def test_existing_files_are_kept_without_overwrite(weights: Path, tmp_path: Path) -> None:
    source = clip(tmp_path / "clip.mp4", pictures(3))
    arguments = (weights, source, "--out", tmp_path / "out", "--frames")
    main(*arguments)
    with pytest.raises(SystemExit, match=r"clip.mp4' exists already; .*--overwrite"):
        main(*arguments)
    (tmp_path / "out" / "clip" / "000009.png").touch()  # of a longer clip
    main(*arguments, "--overwrite")
    assert len(list((tmp_path / "out" / "clip").iterdir())) == 3
    (tmp_path / "out" / "clip" / "notes.txt").touch()
    with pytest.raises(SystemExit, match=r"would be replaced and holds 'notes.txt'"):
        main(*arguments, "--overwrite")
    before = source.read_bytes()
    with pytest.raises(SystemExit, match="is one of the images to label"):
        main(weights, source, "--out", tmp_path, "--overwrite")
    assert source.read_bytes() == before


@pytest.mark.extras
def test_images_and_videos_of_one_run_do_not_disturb_each_other(
    weights: Path, tmp_path: Path
) -> None:
    source, photos = clip(tmp_path / "clip.mp4", pictures(3)), tmp_path / "photos"
    (photos / "clip").mkdir(parents=True)
    Image.fromarray(pictures(1)[0]).save(photos / "clip" / "a.png")
    words = (weights, photos, source, "--out", tmp_path / "out")
    with pytest.raises(SystemExit, match=r"a.png' would be in the folder of the label maps of"):
        main(*words, "--frames")
    (photos / "bad.png").write_bytes(b"no image")
    with pytest.raises(SystemExit, match=r"bad.png"):
        main(*words)
    assert (tmp_path / "out" / "clip" / "a.png").exists()
    assert (tmp_path / "out" / "clip.mp4").exists()
    frames = photos / "clip"
    with pytest.raises(SystemExit, match=r"the results would be in .*in the folder of frames"):
        main(weights, frames, "--video", "25", "--out", frames / "out")


def broken(kind: str, folder: Path) -> Path:
    """A file that is no complete video."""
    import av

    path = folder / "clip.mp4"
    if kind == "no video":
        with av.open(path, "w") as container:
            stream: Any = container.add_stream("aac", rate=8000)
            frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), "fltp", "mono")
            frame.sample_rate = 8000
            container.mux(stream.encode(frame))
            container.mux(stream.encode(None))
    elif kind == "no frames":
        with av.open(path, "w", format="avi") as container:
            stream = container.add_stream("libx264", rate=25)
            stream.width, stream.height, stream.pix_fmt = 64, 64, "yuv420p"
            container.start_encoding()
    elif kind == "text":
        path.write_text("this is no video\n" * 100)
    elif kind == "empty":
        path.touch()
    else:
        clip(path, [image[:, :, [k % 3] * 3] for k, image in enumerate(pictures(40, 128, 192))])
        content = path.read_bytes()
        start = content.index(b"mdat")
        if kind == "no index":  # it follows the frames
            path.write_bytes(content[: start + (len(content) - start) // 2])
        else:
            moved = folder / "fast.mp4"
            with (
                av.open(path) as source,
                av.open(moved, "w", options={"movflags": "faststart"}) as target,
            ):
                copy = target.add_stream_from_template(source.streams.video[0])
                for packet in source.demux(video=0):
                    if packet.dts is not None:
                        packet.stream = copy
                        target.mux(packet)
            content = moved.read_bytes()
            start = content.index(b"mdat")
            half = start + (len(content) - start) // 2
            path.write_bytes(content[:half] if kind == "truncated" else content)
            if kind == "damaged":
                noise = np.random.default_rng(0).integers(0, 256, 3000, np.uint8).tobytes()
                path.write_bytes(content[:half] + noise + content[half + 3000 :])
    return path


@pytest.mark.extras
@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("no video", "has no video stream; give a file with pictures"),
        ("no frames", "has no frames; record it or copy it again"),
        ("text", r"cannot read the video .*: .*; record it or copy it again"),
        ("empty", r"cannot read the video .*: .*; record it or copy it again"),
        ("no index", r"cannot read the video .*: .*; record it or copy it again"),
        ("truncated", r"is truncated: it holds \d+ of its 40 frames, the last at \d\.\d+ s"),
        ("damaged", r"cannot be decoded after \d\.\d+ s \(.*\); copy it again, or cut it there"),
    ],
)
def test_a_broken_video_is_named_and_the_others_are_labelled(
    kind: str, message: str, weights: Path, tmp_path: Path
) -> None:
    path = broken(kind, tmp_path)
    good = clip(tmp_path / "good.mkv", pictures(2))
    with pytest.raises(SystemExit, match=rf"clip.mp4' {message}|{message}"):
        main(weights, path, good, "--out", tmp_path / "out", "--frames")
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["good", "good.mp4"]


@pytest.mark.extras
@pytest.mark.parametrize("suffix", [".mkv", ".avi", ".flv"])
def test_a_truncated_video_is_labelled_with_a_warning_or_refused(
    suffix: str, weights: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The reader of Matroska drops the packet that is cut, the others give it to the decoder."""
    source = clip(tmp_path / f"clip{suffix}", pictures(60, 128, 192))
    VideoFile(source).timing()
    assert not caplog.text
    content = source.read_bytes()
    source.write_bytes(content[: len(content) // 2])
    if suffix == ".mkv":
        main(weights, source, "--out", tmp_path / "out")
        _, frames = decoded(tmp_path / "out" / "clip.mp4")
        assert 10 < len(frames) < 40
    else:
        with pytest.raises(SystemExit, match=r"cannot be decoded after \d\.\d\d s"):
            main(weights, source, "--out", tmp_path / "out")
        assert not list((tmp_path / "out").iterdir())
    assert "s, and states that it ends at 2.4" in caplog.text


@pytest.mark.extras
def test_two_videos_for_one_file_are_refused(weights: Path, tmp_path: Path) -> None:
    first = clip(tmp_path / "clip.mp4", pictures(2))
    second = tmp_path / "clip.mkv"
    shutil.copy(first, second)
    with pytest.raises(SystemExit, match="would both be written to"):
        main(weights, first, second, "--out", tmp_path / "out")


@pytest.mark.extras
def test_without_an_encoder_of_h264_it_is_mpeg4(
    weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import av

    source = clip(tmp_path / "clip.mp4", pictures(5), NTSC)
    monkeypatch.setattr(av, "codecs_available", av.codecs_available - {"libx264"})
    main(weights, source, "--out", tmp_path / "out")
    (rate, codec, _), frames = decoded(tmp_path / "out" / "clip.mp4")
    assert (rate, codec, len(frames)) == (NTSC, "mpeg4", 5)


@pytest.mark.extras
def test_the_commands_of_the_guide_run(
    weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clip(tmp_path / "clip.mp4", pictures(3))
    shutil.copy(weights, tmp_path / "model.safetensors")
    (tmp_path / "shots").mkdir()
    for k, image in enumerate(pictures(3)):
        Image.fromarray(image).save(tmp_path / "shots" / f"frame{k}.png")
    monkeypatch.chdir(tmp_path)
    for words in commands(ROOT / "docs" / "guides" / "video.md"):
        if words[0] == "segformer":
            command(words[1:])
    written = sorted(str(path.relative_to(tmp_path)) for path in tmp_path.glob("*/*.mp4"))
    assert written == ["labelled/clip.mp4", "labelled/shots.mp4", "ntsc/shots.mp4"]
    assert len(list((tmp_path / "labelled" / "clip").iterdir())) == 3


def test_a_folder_without_frames_is_refused(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match=r"no image in .*empty"):
        FrameFolder(tmp_path / "empty", Fraction(25)).timing()
