"""From videos and folders of frames to videos of their labels."""

from __future__ import annotations

import math
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from tqdm import tqdm

from segformer.data.video import Clip, Frame, Timing, check_installed
from segformer.inference.jobs import checked
from segformer.inference.labellers import Labeller
from segformer.inference.pictures import above, indexed, legend_of, overlay, shown
from segformer.inference.pipeline import WHOLE, count, histogram, labelled
from segformer.inference.results import Prediction, Summary
from segformer.inference.results.base import Entry
from segformer.inference.results.pictures import check_only

# MPEG-4 holds times as multiples of one 65535th of a second, or of a longer unit.
FINEST = 65535


def plan_videos(
    clips: Iterable[Clip],
    out: Path,
    overwrite: bool = False,
    frames: bool = False,
    summaries: Sequence[Summary] = (),
    others: Sequence[Path] = (),
) -> dict[Clip, tuple[Path, ...]]:
    """Returns the files to write for each clip: ``out/NAME.mp4``.

    Processes that ``torchrun`` starts share the clips.

    Args:
        clips: Videos and folders of frames.
        out: Folder to write into; made if it is missing.
        overwrite: Whether existing files are replaced; a video to label never is.
        frames: Whether the label maps are kept, in the folder ``out/NAME``.
        summaries: Written beside each video, such as ``out/NAME_shares.csv``; these files are
            checked, too.
        others: Files that the same run writes for images.

    Raises:
        FileExistsError: If a file or folder to write exists already.
        OSError: If the folder cannot be written.
        ValueError: If two videos would be written to the same file, a video and an image to the
            same folder, a folder of frames to itself, or PyAV is not installed.
    """
    of_path: dict[Path, Clip] = {clip.path: clip for clip in clips}
    if of_path:
        check_installed()
    targets_of, files_of = {}, {}
    for path in of_path:
        name = _name(path)
        targets_of[path] = (out / f"{name}.mp4", *([out / name] if frames else []))
        if path.is_dir() and path.resolve() in (out.resolve(), *out.resolve().parents):
            raise ValueError(
                f"the results would be in {str(out)!r}, in the folder of frames {str(path)!r}; "
                "choose another with --out"
            )
        for other in others:
            if out / name in other.parents and frames:
                raise ValueError(
                    f"{str(other)!r} would be in the folder of the label maps of {str(path)!r}; "
                    "label the images and the video one by one, into different folders"
                )
        tables = (_table(targets_of[path][0], summary) for summary in summaries)
        files_of[path] = (*targets_of[path], *tables)
        if frames and overwrite:
            check_only(out / name, r"\d{6,}\.png")
    return {of_path[path]: targets_of[path] for path in checked(files_of, out, overwrite)}


def _name(path: Path) -> str:
    """Returns the name of what is written for a clip, from its path."""
    return path.resolve().name if path.is_dir() else path.stem


def _table(video: Path, summary: Summary) -> Path:
    """Returns the path of a summary of a video's frames."""
    return video.with_name(f"{video.stem}_{summary.file}")


def label_videos(
    model: Any,
    targets_of: Mapping[Clip, tuple[Path, ...]],
    labeller: Labeller = WHOLE,
    summaries: Sequence[Summary] = (),
) -> None:
    """Writes a video of each clip's labels, and prints the classes' shares.

    Args:
        model: A :class:`~segformer.SegmentationModel`, or an exported file as a model.
        targets_of: The files to write for each clip, from :func:`plan_videos`.
        labeller: How the frames are labelled, by default whole.
        summaries: Written beside each video.

    Raises:
        OSError: If a file cannot be written.
        ValueError: If the model cannot be used in this way; or if clips cannot be labelled: the
            others still are.
    """
    labeller.check(model)
    if model.normalization.bands is not None:
        raise ValueError(
            "frames of videos are 8-bit RGB, and the model takes images of other bands: "
            f"{model.normalization.bands}; label its images one by one"
        )
    counts = np.zeros(len(model.classes), dtype=np.int64)
    errors = []
    for clip, targets in targets_of.items():
        try:
            counts += label_video(model, clip, targets, labeller, summaries)
        except ValueError as error:  # the other clips are still labelled
            errors.append(str(error))
    if counts.any():
        print(histogram(counts, model))
    print(f"{len(targets_of) - len(errors)} videos labelled")
    if errors:
        raise ValueError("; ".join(errors))


def label_video(
    model: Any,
    clip: Clip,
    targets: tuple[Path, ...],
    labeller: Labeller = WHOLE,
    summaries: Sequence[Summary] = (),
) -> np.ndarray:
    """Writes a clip under the colours of its labels, above a legend of all classes that occur.

    The clip is read twice: its label maps are kept in a temporary folder until all classes that
    occur are known. One frame at a time is in memory.

    Args:
        model: The model.
        clip: A video or a folder of frames.
        targets: The video to write, ``.mp4``; and a folder for the label maps, if they are kept:
            indexed PNGs, numbered from 000000. Both are created when they are complete.
        labeller: How the frames are labelled, by default whole.
        summaries: Written beside the video, with an entry for each frame.

    Returns:
        The number of pixels of each class.

    Raises:
        ValueError: If the clip cannot be read. The message names it. Nothing is written then.
    """
    target, *kept = targets
    timing = clip.timing()
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{target.stem}.") as folder:
        maps, video = Path(folder, "labels"), Path(folder, target.name)
        maps.mkdir()
        entries: dict[Summary, dict[str, Entry]] = {summary: {} for summary in summaries}
        counts = _label_frames(model, clip, timing, maps, labeller, entries)
        _draw_frames(model, clip, timing, maps, video, np.flatnonzero(counts).tolist())
        for summary, of_frames in entries.items():
            summary.write(_table(target, summary), of_frames, model.classes)
        for place in kept:
            if place.exists():
                shutil.rmtree(place)
            os.replace(maps, place)
        os.replace(video, target)
    return counts


def _label_frames(
    model: Any,
    clip: Clip,
    timing: Timing,
    folder: Path,
    labeller: Labeller,
    entries: Mapping[Summary, dict[str, Entry]],
) -> np.ndarray:
    """Writes the label map of each frame; returns the number of pixels of each class.

    Args:
        entries: An entry of each frame is added for each summary.
    """
    counts = np.zeros(len(model.classes), dtype=np.int64)
    wanted = any(summary.uses_probabilities for summary in entries)
    bar = tqdm(clip.frames(), f"label {clip.path.name}", timing.count, unit="frame")
    for index, frame in enumerate(bar):
        begun = time.perf_counter()
        labels, probabilities = labelled(model, frame.image, labeller, wanted)
        seconds = time.perf_counter() - begun
        target = _label_map(folder, index)
        indexed(labels, model.classes).save(target)
        counts += count(labels, len(counts))
        for summary, of_frames in entries.items():
            prediction = Prediction(
                name=f"{_name(clip.path)}/{target.name}",
                image=shown(frame.image),
                labels=labels,
                classes=model.classes,
                probabilities=probabilities,
                seconds=seconds,
                time=float(frame.time),
            )
            of_frames[prediction.name] = summary.entry(prediction)
    return counts


def _draw_frames(
    model: Any, clip: Clip, timing: Timing, folder: Path, target: Path, shown: list[int]
) -> None:
    """Writes the video of a clip whose label maps are in a folder."""
    with _writing(target, timing) as write:
        bar = tqdm(clip.frames(), f"write {clip.path.name}", timing.count, unit="frame")
        for index, frame in enumerate(bar):
            image = Image.fromarray(frame.image.permute(1, 2, 0).numpy())
            with Image.open(_label_map(folder, index)) as labels:
                picture = overlay(image, np.array(labels), model.classes)
            key = legend_of(model.classes, image.width, shown)
            write(above(picture, key), frame)


def _label_map(folder: Path, index: int) -> Path:
    return folder / f"{index:06}.png"


@contextmanager
def _writing(target: Path, timing: Timing) -> Iterator[Callable[[Image.Image, Frame], None]]:
    """Yields a function that appends a picture, at the time of its frame, to a video.

    The video is H.264, or MPEG-4 where PyAV has no encoder of H.264. Its colours are those of
    BT.709. They take even sides only: of a picture of an odd side, the last line is repeated.
    """
    import av

    unit = Fraction(1, _ticks(timing))
    with av.open(target, "w", options={"movflags": "faststart"}) as container:
        codec, options = _encoder()
        stream: Any = container.add_stream(codec, timing.rate, options)
        stream.codec_context.time_base = unit
        stream.pix_fmt = "yuv420p"
        for name in ("colorspace", "color_primaries", "color_trc", "color_range"):
            setattr(stream.codec_context, name, 1)  # BT.709, and the range of television

        def write(picture: Image.Image, source: Frame) -> None:
            even = _even(picture)
            if not stream.codec_context.is_open:
                stream.width, stream.height = even.size
                stream.codec_context.sample_aspect_ratio = source.aspect
            frame = av.VideoFrame.from_image(even).reformat(
                format="yuv420p", dst_colorspace="ITU709", dst_color_range="MPEG"
            )
            frame.pts, frame.time_base = round(source.time / unit), unit
            container.mux(stream.encode(frame))

        yield write
        container.mux(stream.encode(None))


def _encoder() -> tuple[str, dict[str, str]]:
    """Returns the name and options of the encoder: H.264, or MPEG-4 where there is none."""
    import av

    if "libx264" in av.codecs_available:
        return "libx264", {"crf": "18"}
    return "mpeg4", {"qmin": "2", "qmax": "4"}


def _ticks(timing: Timing) -> int:
    """Returns the units a second in which the times of frames are written, exact if possible."""
    frames, ticks = timing.rate.numerator, math.lcm(timing.rate.numerator, timing.unit.denominator)
    if ticks <= FINEST:
        return ticks
    return FINEST // frames * frames if frames <= FINEST else FINEST


def _even(picture: Image.Image) -> Image.Image:
    """Returns a picture of even sides: its last column or row is repeated if needed."""
    width, height = picture.size
    padded = np.pad(np.array(picture), ((0, height % 2), (0, width % 2), (0, 0)), "edge")
    return Image.fromarray(padded)
