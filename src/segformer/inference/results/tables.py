"""The classes' shares, and the manifest of a run."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from segformer.data.classes import Classes
from segformer.data.complete import complete
from segformer.data.families.geotiff import pixel_area
from segformer.inference.large import LargeImage
from segformer.inference.results.base import Counted, Entry, Prediction, Summary


class Shares(Summary):
    """``shares.csv``: for each image the pixels of each class, and its share of those labelled.

    Square metres are added if an image has a projected coordinate reference system, and the time
    in seconds to the frames of a video.
    """

    name = "shares"
    file = "shares.csv"
    for_large = True
    for_videos = True

    def entry(self, prediction: Prediction) -> Entry:
        """Returns the pixels of each class."""
        return _pixels(prediction.counted)

    def entry_of_large(self, image: LargeImage, counted: Counted) -> Entry:
        """Returns the pixels of each class, and the square metres of a pixel."""
        return _pixels(counted)

    def write(self, path: Path, entries: Mapping[str, Entry], classes: Classes) -> None:
        """Writes a row for each image."""
        units = ["pixels", "share"]
        if any(entry["area"] is not None for entry in entries.values()):
            units.append("m2")
        header = [f"{name} {unit}" for name in classes.names for unit in units]
        of_frames = any(entry.get("time") is not None for entry in entries.values())
        first = ["file", "time"] if of_frames else ["file"]
        rows: list[list[Any]] = [[*first, *header, "ignored pixels"]]
        for entry in entries.values():
            cells = [cell for n in entry["pixels"] for cell in _cells(n, entry)[: len(units)]]
            time = [entry["time"]] if of_frames else []
            rows.append([entry["file"], *time, *cells, entry["ignored"]])
        text = io.StringIO(newline="")
        csv.writer(text).writerows(rows)
        with complete(path) as partial:
            partial.write_bytes(text.getvalue().encode())


def _pixels(counted: Counted) -> Entry:
    """Returns the pixels of each class, and the square metres of a pixel."""
    height, width = counted.size
    return {
        "file": counted.name,
        "pixels": counted.counts.tolist(),
        "ignored": height * width - int(counted.counts.sum()),
        "area": None if counted.grid is None else pixel_area(counted.grid),
        "time": counted.time,
    }


def _cells(pixels: int, entry: Entry) -> tuple[int, str, str]:
    """Returns the pixels, the share and the square metres of a class."""
    share = pixels / max(1, sum(entry["pixels"]))
    area = "" if entry["area"] is None else f"{pixels * entry['area']:.10g}"
    return pixels, f"{share:.6f}", area


class Manifest(Summary):
    """``manifest.jsonl``: a line for each image as soon as it is done.

    It holds ``file``; ``shares`` of the classes that occur; ``mean_entropy`` in nats of the pixels
    that have data, null where there are none or a model gives labels only; ``error``, null or the
    sentence why it could not be labelled; and ``seconds`` of reading and labelling. The frames of
    a video also have their ``time``.
    """

    name = "manifest"
    file = "manifest.jsonl"
    uses_probabilities = True
    for_large = True
    for_videos = True

    def entry(self, prediction: Prediction) -> Entry:
        """Returns the line of an image."""
        return _line(prediction.counted)

    def entry_of_large(self, image: LargeImage, counted: Counted) -> Entry:
        """Returns the line of an image."""
        return _line(counted)

    def failure(self, name: str, error: str, seconds: float) -> Entry:
        """Returns the line of an image that could not be labelled."""
        shown = {"file": name, "shares": None, "mean_entropy": None, "error": error}
        return {**shown, "seconds": round(seconds, 3)}

    def write(self, path: Path, entries: Mapping[str, Entry], classes: Classes) -> None:
        """Writes a line for each image, in the images' order."""
        write_lines(path, entries.values())


def _line(counted: Counted) -> Entry:
    """Returns the line of an image."""
    pairs = zip(counted.classes.names, counted.shares.tolist(), strict=True)
    shares = {name: round(share, 6) for name, share in pairs if share}
    mean = counted.mean_entropy
    return {
        "file": counted.name,
        **({} if counted.time is None else {"time": counted.time}),
        "shares": shares,
        "mean_entropy": None if mean is None else round(mean, 6),
        "error": None,
        "seconds": round(counted.seconds, 3),
    }


def write_lines(path: Path, entries: Iterable[Entry]) -> None:
    """Writes a line of JSON for each entry, whole or not at all."""
    with complete(path) as partial:
        partial.write_text("".join(map(as_line, entries)), encoding="utf-8")


def as_line(entry: Entry) -> str:
    """Returns an entry as a line of JSON."""
    return json.dumps(entry, ensure_ascii=False) + "\n"
