"""Videos, and folders of frames, as streams of images with their times."""

from __future__ import annotations

import logging
import re
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from segformer.data.images import find_images, read_header, read_image

logger = logging.getLogger(__name__)

VIDEO_SUFFIXES = (
    *(".mp4", ".m4v", ".mov", ".avi", ".mkv", ".webm", ".mpg", ".mpeg", ".ts", ".mts", ".m2ts"),
    *(".wmv", ".flv", ".ogv", ".3gp"),
)
AGAIN = "record it or copy it again"
HIGH_RANGE = (16, 18)  # transfers of ITU-T H.273: PQ and HLG


class Frame(NamedTuple):
    """An image, RGB uint8 (3, H, W), and its time in seconds after the first one's.

    ``aspect`` is the width of its pixels divided by their height.
    """

    image: Tensor
    time: Fraction
    aspect: Fraction = Fraction(1)


@dataclass(frozen=True)
class Timing:
    """Number of frames, their mean number a second, and the unit of their times in seconds."""

    count: int
    rate: Fraction
    unit: Fraction


@dataclass(frozen=True)
class Clip(ABC):
    """A stream of frames of one size.

    Args:
        path: A file or a folder.
    """

    path: Path

    @abstractmethod
    def timing(self) -> Timing:
        """Returns the number and rate of the frames, without decoding them.

        Raises:
            ValueError: If the clip cannot be read, is truncated, or has no frame.
        """

    @abstractmethod
    def frames(self) -> Iterator[Frame]:
        """Yields the frames, upright, in the order of their times.

        Raises:
            ValueError: If a frame cannot be decoded, or has another size than the first.
        """


@dataclass(frozen=True)
class VideoFile(Clip):
    """A video file, in any format that PyAV decodes. Its first video stream is read."""

    def timing(self) -> Timing:
        """Returns the number and rate of the frames, from the packets of the file.

        A warning is logged if the file ends a second before the end that it states.
        """
        with self._opened() as (container, stream):
            packets = [packet for packet in container.demux() if packet.size]
            stated, unit = stream.frames, Fraction(stream.time_base or 1)
            rate = Fraction(stream.average_rate or stream.guessed_rate or 25)
            own = [packet for packet in packets if packet.stream_index == stream.index]
            ends = max(float(stated / rate), (container.duration or 0) / 1e6)
            counts_frames = "mp4" in container.format.name  # others estimate their number
        last = max(map(_seconds, packets), default=0.0) - min(map(_seconds, packets), default=0.0)
        if not own:
            raise ValueError(f"the video {str(self.path)!r} has no frames; {AGAIN}")
        if counts_frames and len(own) < stated and self._count_stored() < stated:
            raise ValueError(
                f"the video {str(self.path)!r} is truncated: it holds {len(own)} of its {stated} "
                f"frames, the last at {last:.2f} s; {AGAIN}"
            )
        if last < ends - 1 - float(1 / rate):
            logger.warning(
                "the video %r ends at %.2f s, and states that it ends at %.2f s; it may be "
                "truncated",
                str(self.path),
                last,
                ends,
            )
        return Timing(sum(not packet.is_discard for packet in own), rate, unit)

    def _count_stored(self) -> int:
        """Returns the number of frames in the file, with those that an edit list cuts off."""
        with self._opened(ignore_editlist="1") as (container, stream):
            return sum(packet.size > 0 for packet in container.demux(stream))

    def frames(self) -> Iterator[Frame]:
        """Yields the frames, turned and mirrored as the file states."""
        with self._opened() as (container, stream):
            aspect = Fraction(stream.sample_aspect_ratio or 1)
            rate = Fraction(stream.average_rate or stream.guessed_rate or 25)
            unit = Fraction(stream.time_base or 1)
            untimed = container.format.name == "avi"  # it holds no times of reordered frames
            start, time, size = None, Fraction(-1), None
            for index, frame in enumerate(self._decoded(container, stream)):
                if index == 0 and frame.color_trc in HIGH_RANGE:
                    logger.warning(
                        "the video %r has a high dynamic range, which is read as if it had the "
                        "usual one: its colours are pale; convert it first",
                        str(self.path),
                    )
                pts = round(index / rate / unit) if frame.pts is None or untimed else frame.pts
                start = pts if start is None else start
                time = max(_on_grid((pts - start) * unit, rate, unit), time + unit)
                matrix = _matrix(frame)
                image = _upright(frame, matrix)
                size = size or image.shape
                if image.shape != size:
                    raise ValueError(
                        f"the frames of {str(self.path)!r} change from {size[2]}×{size[1]} to "
                        f"{image.shape[2]}×{image.shape[1]} pixels at {float(time):.2f} s; cut the "
                        "video there"
                    )
                yield Frame(image, time, 1 / aspect if _is_on_its_side(matrix) else aspect)
        if size is None:
            raise ValueError(f"the video {str(self.path)!r} has no frames; {AGAIN}")

    def _decoded(self, container: Any, stream: Any) -> Iterator[Any]:
        import av

        seconds = 0.0
        try:
            for frame in container.decode(stream):
                if frame.is_corrupt:
                    raise ValueError(self._broken("a frame is damaged", seconds))
                yield frame
                seconds = seconds if frame.time is None else float(frame.time)
        except av.error.FFmpegError as error:
            raise ValueError(self._broken(str(error.strerror), seconds)) from error

    def _broken(self, reason: str, seconds: float) -> str:
        return (
            f"the video {str(self.path)!r} cannot be decoded after {seconds:.2f} s ({reason}); "
            "copy it again, or cut it there"
        )

    @contextmanager
    def _opened(self, **options: str) -> Iterator[tuple[Any, Any]]:
        check_installed()
        import av

        try:
            container = av.open(self.path, options=options)
        except av.error.FileNotFoundError as error:
            raise FileNotFoundError(f"no video {str(self.path)!r}") from error
        except av.error.FFmpegError as error:
            raise ValueError(
                f"cannot read the video {str(self.path)!r}: {error.strerror}; {AGAIN}"
            ) from error
        with container:
            if not container.streams.video:
                raise ValueError(
                    f"{str(self.path)!r} has no video stream; give a file with pictures"
                )
            yield container, container.streams.video[0]


@dataclass(frozen=True)
class FrameFolder(Clip):
    """A folder of images, which are frames in the order of the numbers in their names.

    Args:
        rate: Number of frames a second.
    """

    rate: Fraction

    def timing(self) -> Timing:
        """Returns the number and rate of the frames; raises ValueError if their sizes differ."""
        paths = self._paths()
        first = read_header(paths[0]).shown_size
        for path in paths:
            size = read_header(path).shown_size
            if size != first:
                raise ValueError(
                    f"{str(path)!r} has {size[1]}×{size[0]} pixels, and the first frame of the "
                    f"folder {first[1]}×{first[0]}; the frames of a video have one size"
                )
        return Timing(len(paths), self.rate, 1 / self.rate)

    def frames(self) -> Iterator[Frame]:
        """Yields the images of the folder."""
        for index, path in enumerate(self._paths()):
            yield Frame(read_image(path).as_subclass(Tensor), index / self.rate)

    def _paths(self) -> list[Path]:
        return sorted(find_images(self.path), key=_by_number)


def check_installed() -> None:
    """Raises ValueError if PyAV is not installed."""
    if find_spec("av") is None:
        raise ValueError('videos need PyAV; pip install "segformer[video]"')


def is_video(path: Path) -> bool:
    """Returns whether a path has the suffix of a video."""
    return path.suffix.lower() in VIDEO_SUFFIXES


def _by_number(path: Path) -> list[tuple[bool, int, str]]:
    """Returns a key that sorts frame2.png before frame10.png."""
    parts = re.findall(r"(\d+)|(\D+)", str(path))
    return [(not digits, int(digits or 0), text) for digits, text in parts]


def _seconds(packet: Any) -> float:
    return float((packet.pts or packet.dts or 0) * packet.time_base)


def _on_grid(time: Fraction, rate: Fraction, unit: Fraction) -> Fraction:
    """Returns the multiple of 1 / ``rate`` that a container has rounded, or the time itself."""
    nearest = round(time * rate) / rate
    return nearest if abs(nearest - time) <= unit else time


def _matrix(frame: Any) -> np.ndarray:
    """Returns how the file says that a frame is shown: (x, y) becomes (x, y) · matrix.

    Of the nine numbers in the file, whose unit is 2⁻¹⁶, these are the first four that are no shift.
    """
    stated = frame.side_data.get("DISPLAYMATRIX")
    if stated is None:
        return np.eye(2)
    return np.frombuffer(bytes(stated), np.int32).reshape(3, 3)[:2, :2] / 2**16


def _is_on_its_side(matrix: np.ndarray) -> bool:
    """Returns whether a frame's rows are shown as columns."""
    (a, b), (c, d) = np.abs(matrix)
    return bool(b + c > a + d)


def _upright(frame: Any, matrix: np.ndarray) -> Tensor:
    """Returns a decoded frame as RGB uint8 (3, H, W), turned and mirrored by quarter turns."""
    pixels = frame.to_ndarray(format="rgb24")
    if _is_on_its_side(matrix):
        pixels = pixels.transpose(1, 0, 2)
    x, y = matrix.sum(0)  # of each column, only one number is not 0
    shown = pixels[:: -1 if y < 0 else 1, :: -1 if x < 0 else 1]
    return torch.from_numpy(np.ascontiguousarray(shown)).permute(2, 0, 1)
