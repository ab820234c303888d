"""From image files to label maps."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterable, Mapping
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from tqdm import tqdm

from segformer.data.bands import read_pixels, valid_pixels
from segformer.data.images import find_images, read_image
from segformer.evaluation import Blend, Protocol, check_logits
from segformer.inference.labellers import Labeller, WholeImages
from segformer.inference.pictures import indexed, overlay, shown, with_legend
from segformer.inference.scenes import is_scene, label_array, label_scene, open_for

ARRAY = ".npy"  # images of any size, which are mapped into memory
WHOLE = WholeImages()


def label_file(
    model: Any, path: str | os.PathLike[str], labeller: Labeller = WHOLE
) -> tuple[Image.Image, np.ndarray]:
    """Returns an image, turned upright, and its labels (H, W).

    Labels are uint8, or uint16 for more than 255 classes.

    Args:
        model: A :class:`~segformer.SegmentationModel`, or an exported file as a model.
        path: Path of the image file.
        labeller: How the image is labelled, by default whole.

    Raises:
        ValueError: If the file cannot be decoded. The message names it.
    """
    if model.normalization.bands is None:
        image = read_image(path)
        return shown(image), labeller.labels(model, image)
    opened = open_for(model, Path(path))
    image, valid = read_pixels(opened), valid_pixels(opened)
    labels = labeller.labels(model, image)
    if valid is not None:
        labels[~valid] = model.classes.ignore_index
    return shown(image), labels


def plan(
    sources: Iterable[str], out: Path, overwrite: bool = False
) -> dict[Path, tuple[Path, ...]]:
    """Returns the files to write for each image: ``out/NAME.png`` and ``out/NAME_overlay.png``.

    For ``NAME.npy``, and for a raster ``NAME.tif`` with a place on the earth, it is only a file of
    the same name. Subfolders are kept. Processes that ``torchrun``
    starts share the images.

    Args:
        sources: Image files, and folders of them.
        out: Folder to write into; made if it is missing.
        overwrite: Whether existing files are replaced; an image to label never is.

    Raises:
        FileNotFoundError: If a file or folder is missing or a folder holds no image.
        FileExistsError: If a file to write exists already.
        OSError: If the folder cannot be written.
        ValueError: If two images would be written to the same file.
    """
    targets_of: dict[Path, tuple[Path, ...]] = {}
    for source in map(Path, sources):
        if not source.exists():
            raise FileNotFoundError(f"no image or folder {str(source)!r}")
        folder = source if source.is_dir() else source.parent
        for path in find_images(source) if source.is_dir() else [source]:
            targets_of[path] = _targets(path, out / path.relative_to(folder))
    return checked(targets_of, out, overwrite)


def checked(
    targets_of: Mapping[Path, tuple[Path, ...]], out: Path, overwrite: bool = False
) -> dict[Path, tuple[Path, ...]]:
    """Returns this process's share of the files to write, after it made their folder.

    The arguments and errors are those of :func:`plan`.
    """
    _check_distinct(targets_of)
    images = {path.resolve() for path in targets_of}
    own = dict(list(targets_of.items())[_share()])
    for target in chain(*own.values()):
        if target.resolve() in images:
            raise FileExistsError(
                f"{str(target)!r} is one of the images to label; choose another folder with --out"
            )
        if target.exists() and not overwrite:
            raise FileExistsError(
                f"{str(target)!r} exists already; choose another folder with --out, or add "
                "--overwrite"
            )
    _check_writable(out)
    return own


def _targets(source: Path, path: Path) -> tuple[Path, ...]:
    """Returns the files to write for an image in the output folder, at a path like its own."""
    if source.suffix == ARRAY or is_scene(source):
        return (path,)
    label_map = path.with_suffix(".png")
    return label_map, label_map.with_name(f"{path.stem}_overlay.png")


def _check_distinct(targets_of: Mapping[Path, tuple[Path, ...]]) -> None:
    source_of: dict[Path, Path] = {}
    for path, targets in targets_of.items():
        for target in targets:
            if target in source_of:
                raise ValueError(
                    f"{str(source_of[target])!r} and {str(path)!r} would both be written to "
                    f"{str(target)!r}; label them one by one, into different folders"
                )
            source_of[target] = path


def label_files(
    model: Any, targets_of: Mapping[Path, tuple[Path, ...]], labeller: Labeller = WHOLE
) -> None:
    """Writes a label map and an overlay for each image, and prints the classes' shares.

    The first file holds the class indices, with a palette; the second the image under the classes'
    colours, with a legend.

    Args:
        model: A :class:`~segformer.SegmentationModel`, or an exported file as a model.
        targets_of: The files to write for each image, from :func:`plan`.
        labeller: How images are labelled, by default whole.

    Raises:
        OSError: If a file cannot be written.
        ValueError: If the model, or an image, cannot be labelled in this way; or if images cannot
            be labelled: the others still are.
    """
    labeller.check(model)
    for path, targets in targets_of.items():
        if len(targets) == 1:
            _check_windows(model, path, labeller)
    counts = np.zeros(max(2, len(model.classes)), dtype=np.int64)  # one logit is for two classes
    errors = []
    for path, targets in tqdm(targets_of.items(), "predict", unit="image"):
        try:
            labels = _label_and_save(model, path, targets, labeller)
        except ValueError as error:  # the other images are still labelled
            errors.append(str(error))
            continue
        counts += count(labels, len(counts))
    if counts.any():
        print(histogram(counts, model))
    print(f"{len(targets_of) - len(errors)} images labelled")
    if errors:
        raise ValueError("; ".join(errors))


def _check_windows(model: Any, path: Path, labeller: Labeller) -> None:
    """Raises ValueError if an array or a scene cannot be labelled in windows."""
    if labeller.windows is None:
        raise ValueError(
            f"{str(path)!r} is labelled in windows, and a protocol or processor needs the whole "
            "image; label it by itself, with --slide, or save it as PNG"
        )
    check_logits(model, Protocol(labeller.windows))


def _share() -> slice:
    """Returns this process's share of the images, as ``torchrun`` numbers its processes."""
    return slice(int(os.environ.get("RANK", 0)), None, int(os.environ.get("WORLD_SIZE", 1)))


def _check_writable(folder: Path) -> None:
    """Makes a folder; raises OSError if no file can be written into it."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        raise OSError(
            f"the folder {str(folder)!r} cannot be written ({error.strerror}); choose another with "
            "--out"
        ) from error


def _label_and_save(
    model: Any, path: Path, targets: tuple[Path, ...], labeller: Labeller
) -> Iterable[np.ndarray]:
    """Writes the files of an image; returns its labels in parts."""
    targets[0].parent.mkdir(parents=True, exist_ok=True)
    if len(targets) == 1 and labeller.windows is not None:
        slide = labeller.windows
        if path.suffix == ARRAY:
            return label_array(model, path, targets[0], slide)
        return label_scene(model, path, targets[0], Blend(slide.crop_size, slide.stride))
    image, labels = label_file(model, path, labeller)
    label_map, picture = targets
    indexed(labels, model.classes).save(label_map)
    under_colors = overlay(image, labels, model.classes)
    with_legend(under_colors, labels, model.classes).save(picture)
    return labels


def count(parts: Iterable[np.ndarray], num_labels: int) -> np.ndarray:
    """Returns the number of pixels of each class in the rows or blocks of labels."""
    counts = np.zeros(num_labels, dtype=np.int64)
    for part in parts:  # as NumPy counts in a copy of eight times the size
        counts += np.bincount(part[part < num_labels].ravel(), minlength=num_labels)
    return counts


def histogram(counts: np.ndarray, model: Any) -> str:
    """Returns a table of each class's share of the pixels, the greatest first."""
    shares = counts / counts.sum()
    names = model.classes.names
    width = max(map(len, names))
    rows = [
        f"{names[k]:{width}}  {100 * shares[k]:6.2f} %  {'#' * round(40 * shares[k])}".rstrip()
        for k in np.argsort(-shares, kind="stable")
        if counts[k]
    ]
    return "\n".join(rows)
