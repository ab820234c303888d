"""Which images to label next, and their labels as a model suggests them."""

from __future__ import annotations

import csv
import io
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from tqdm import tqdm

from segformer.data.annotations.editable import editable
from segformer.data.annotations.for_tools import TOOLS, Suggested
from segformer.data.complete import complete
from segformer.data.images import find_images
from segformer.evaluation import Protocol, Whole, check_logits
from segformer.evaluation.uncertainty import Uncertainty, choose, uncertainty
from segformer.inference.pictures import overlay, sheet
from segformer.inference.pipeline import label_file
from segformer.inference.results.pictures import save_png
from segformer.inference.scenes import read_for

logger = logging.getLogger(__name__)

TABLE, PICTURE = "suggestions.csv", "suggestions.png"
SHOWN = 12  # images of the picture


@dataclass(frozen=True)
class Suggestion:
    """An image to label next.

    Args:
        path: Path of the image file.
        found: How sure the model is of it.
        image: The image.
        labels: The labels (H, W) that the model gives it.
    """

    path: Path
    found: Uncertainty
    image: Image.Image
    labels: np.ndarray


def suggest(
    model: Any, paths: Sequence[Path], count: int, labelled: Sequence[Path] = ()
) -> list[Suggestion]:
    """Returns the images to label next, the most useful first, with progress bars.

    Args:
        model: Model that gives logits.
        paths: Image files without labels.
        count: Number of images to choose.
        labelled: Image files that have labels, from which the chosen shall differ.

    Raises:
        ValueError: If none of the images can be read, or one with labels cannot, or the model
            gives labels only. Other images that cannot be read are left out, with a warning.
    """
    check_logits(model, Protocol(Whole()))
    known = [
        features
        for path in tqdm(labelled, "labelled images", unit="image", disable=not labelled)
        if (features := _look(model, path).features) is not None
    ]
    found: dict[Path, Uncertainty] = {}
    faults = []
    for path in tqdm(paths, "unlabelled images", unit="image"):
        try:
            found[path] = _look(model, path)
        except ValueError as error:  # the others are still looked at
            faults.append(str(error))
    if not found:
        raise ValueError("; ".join(faults))
    for fault in faults:
        logger.warning("%s; it is left out", fault)
    suggestions, readable = [], list(found)
    for index in tqdm(choose(list(found.values()), count, known), "suggested labels", unit="image"):
        path = readable[index]
        image, labels = label_file(model, path)
        suggestions.append(Suggestion(path, found[path], image, labels))
    return suggestions


def _look(model: Any, path: Path) -> Uncertainty:
    image, valid = read_for(model, path)
    if valid is not None and not valid.any():
        raise ValueError(f"{str(path)!r} has no pixel with data; take it out of the folder")
    return uncertainty(model, image, None if valid is None else torch.as_tensor(valid))


def write_suggestions(
    suggestions: Sequence[Suggestion], model: Any, root: Path, out: Path, tool: str
) -> list[Path]:
    """Writes a table of images, their labels as a tool opens them, and a picture.

    Args:
        suggestions: The images, the most useful first.
        model: The model, whose classes the labels are.
        root: Folder of the images.
        out: Folder to write into.
        tool: Name of an annotation tool, one of ``TOOLS``.

    Returns:
        The files: ``suggestions.csv``, ``suggestions.png``, and those of the tool.
    """
    out.mkdir(parents=True, exist_ok=True)
    files = [
        Suggested(
            suggestion.path,
            suggestion.path.relative_to(root),
            suggestion.labels.shape,
            editable(suggestion.labels, ignore_index=model.classes.ignore_index),
            1 - place / len(suggestions),
        )
        for place, suggestion in enumerate(suggestions)
    ]
    table, picture = out / TABLE, out / PICTURE
    with complete(table) as partial:
        partial.write_text(_table(suggestions, root), encoding="utf-8")
    save_png(_sheet(suggestions, model), picture)
    written = TOOLS[tool](out / tool, files, model.classes)
    _warn_of_earlier(out / tool, written)
    return [table, picture, *written]


def _warn_of_earlier(folder: Path, written: Sequence[Path]) -> None:
    """Warns of other files in the folder of a tool, which may be corrected already."""
    others = sorted({path for path in folder.rglob("*") if path.is_file()} - set(written))
    if others:
        logger.warning(
            "%s holds %d files of an earlier run, such as %s, which are kept; remove those that "
            "are not corrected before you train on the folder",
            folder,
            len(others),
            others[0].relative_to(folder),
        )


def _table(suggestions: Sequence[Suggestion], root: Path) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["rank", "image", "entropy", "disagreement"])
    for rank, suggestion in enumerate(suggestions, 1):
        found, name = suggestion.found, suggestion.path.relative_to(root).as_posix()
        writer.writerow([rank, name, f"{found.entropy:.4f}", f"{found.disagreement:.4f}"])
    return text.getvalue()


def _sheet(suggestions: Sequence[Suggestion], model: Any) -> Image.Image:
    columns: dict[str, list[Image.Image]] = {"image": [], "suggested labels": []}
    for suggestion in suggestions[:SHOWN]:
        labelled = overlay(suggestion.image, suggestion.labels, model.classes)
        columns["image"].append(suggestion.image)
        columns["suggested labels"].append(labelled)
    return sheet(columns, model.classes)


def unlabelled(
    folder: Path, labelled: Sequence[Path], also: Sequence[str] = (), out: Path | None = None
) -> list[Path]:
    """Returns the images of a folder, without those that have labels.

    Args:
        folder: The folder.
        labelled: Image files that have labels.
        also: Suffixes of images beside those of photographs, such as ``.npy``.
        out: Folder of the suggestions, whose pictures are left out.

    Raises:
        FileNotFoundError: If there is no such folder, or no image in it.
        ValueError: If all of them have labels.
    """
    known = {path.resolve() for path in labelled}
    found = [path for path in find_images(folder, also, out) if path.resolve() not in known]
    if not found:
        raise ValueError(
            f"all images of {str(folder)!r} are in --labelled; name a folder of images to label"
        )
    return found
