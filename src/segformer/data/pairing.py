"""Which image and which label map, or file of annotations, belong together."""

from __future__ import annotations

import csv
import os
import unicodedata
from collections.abc import Sequence
from pathlib import Path

from segformer.data.bands import SUFFIXES
from segformer.data.images import IMAGE_SUFFIXES, find_images

CLASS = "{class}"  # is replaced by the name of a class in the path of a mask
ANNOTATION_SUFFIXES = (".json", ".geojson", ".xml", ".csv", ".txt")


def find_pairs(
    images: Path,
    labels: Path,
    image_suffix: str,
    label_suffix: str,
    names: str | os.PathLike[str] | None,
    also: Sequence[str],
) -> tuple[list[tuple[Path, Path]], list[str]]:
    """Returns the pairs of two folders, and one sentence for each error.

    Args:
        images: See :class:`~segformer.data.datasets.FolderDataset`, also for the next four.
        also: Suffixes of images, beside those of photographs.
    """
    if names is not None and Path(names).suffix.lower() == ".csv":
        return listed_pairs(images, labels, Path(names))
    faults: list[str] = []
    image_paths, label_paths = _image_and_label_paths(
        images, labels, image_suffix, label_suffix, also
    )
    image_of = by_name(images, image_paths, image_suffix, faults)
    label_of = by_name(labels, label_paths, label_suffix, faults)
    if names is not None:
        listed = read_names(names)
        faults += [
            f"{str(names)!r} lists {name!r}, but {str(images)!r} has no such image and "
            f"{str(labels)!r} no such label map; add them, or remove the line"
            for name in listed
            if name not in image_of and name not in label_of
        ]
        image_of, label_of = (
            {name: path_of[name] for name in listed if name in path_of}
            for path_of in (image_of, label_of)
        )
    faults += unpaired(image_of, label_of, f"label map for {{}}: none below {str(labels)!r}")
    faults += unpaired(label_of, image_of, f"image for {{}}: none below {str(images)!r}")
    pairs = [(image_of[name], label_of[name]) for name in image_of if name in label_of]
    return pairs, sorted(faults)


def listed_pairs(
    images: Path, labels: Path, table: Path
) -> tuple[list[tuple[Path, Path]], list[str]]:
    """Returns the pairs that a CSV file lists, and one sentence for each missing file."""
    rows = list(csv.DictReader(read_text(table).splitlines()))
    if not rows or any(not row.get("image") or not row.get("label") for row in rows):
        raise ValueError(
            f"{str(table)!r} must have the columns image and label, and the two paths of a pair in "
            "each line; correct it"
        )
    pairs = [(images / row["image"], labels / row["label"]) for row in rows]
    paths = [path for pair in pairs for path in pair]
    missing = [path for path in paths if not path.is_file() and CLASS not in str(path)]
    faults = [
        f"{str(table)!r} lists {str(path)!r}, which does not exist; add it, or remove the line"
        for path in missing
    ]
    gone = set(missing)
    return [pair for pair in pairs if gone.isdisjoint(pair)], sorted(faults)


def unpaired(files: dict[str, Path], partners: dict[str, Path], missing: str) -> list[str]:
    """Returns one sentence for each file without a partner of the same name."""
    by_case = {name.casefold(): path for name, path in partners.items()}
    faults = []
    for name in files.keys() - partners.keys():
        file, similar = repr(str(files[name])), by_case.get(name.casefold())
        hint = f" ({str(similar)!r} differs in case)" if similar else ""
        faults.append(
            f"no {missing.format(file)} has its path and name, apart from the suffix{hint}; add "
            f"it, or remove {file}"
        )
    return faults


def read_names(path: str | os.PathLike[str]) -> list[str]:
    """Returns the lines of a text file that are not empty.

    Raises:
        ValueError: If it is no text in UTF-8, or all lines are empty.
    """
    lines = read_text(Path(path)).splitlines()
    listed = [composed(name) for line in lines if (name := line.strip())]
    if not listed:
        raise ValueError(f"{str(path)!r} lists no name; write the name of one pair on each line")
    return listed


def read_text(path: Path) -> str:
    """Returns a file's text.

    Raises:
        ValueError: If it is not in UTF-8.
    """
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{str(path)!r} is not text in UTF-8 ({error.reason}); save it as UTF-8"
        ) from error


def _image_and_label_paths(
    images: Path, labels: Path, image_suffix: str, label_suffix: str, also: Sequence[str]
) -> tuple[list[Path], list[Path]]:
    """Returns the images and the label maps of two folders, one of which may contain the other."""
    image_paths, label_paths = find_images(images, also), find_images(labels)
    in_both = set(image_paths) & set(label_paths)
    if images.resolve() == labels.resolve():
        image_paths, label_paths = _split_by_suffix(image_paths, image_suffix, label_suffix)
    elif labels.resolve().is_relative_to(images.resolve()):
        image_paths = [path for path in image_paths if path not in in_both]
    else:
        label_paths = [path for path in label_paths if path not in in_both]
    for folder, paths, wanted, others in (
        (images, image_paths, "images", "label maps"),
        (labels, label_paths, "label maps", "images"),
    ):
        if not paths:
            raise FileNotFoundError(
                f"{str(folder)!r} holds only {others}, and no {wanted}; add {wanted}, or correct "
                "the folders and suffixes"
            )
    return image_paths, label_paths


def _split_by_suffix(
    paths: list[Path], image_suffix: str, label_suffix: str
) -> tuple[list[Path], list[Path]]:
    """Returns the images and the label maps of one folder.

    If a name ends in both suffixes, the longer one decides.
    """
    if image_suffix == label_suffix:
        raise ValueError(
            f"images and label maps are in the folder {str(paths[0].parent)!r} with the same "
            f"suffix {image_suffix!r}; set image_suffix or label_suffix, such as _mask or .png"
        )
    is_longer = len(label_suffix) > len(image_suffix)

    def is_label(path: Path) -> bool:
        fits_image, fits_label = (
            _without_suffix(path, suffix) is not None for suffix in (image_suffix, label_suffix)
        )
        return fits_label and (is_longer or not fits_image)

    return (
        [path for path in paths if not is_label(path)],
        [path for path in paths if is_label(path)],
    )


def by_name(folder: Path, paths: list[Path], suffix: str, faults: list[str]) -> dict[str, Path]:
    """Returns the files of a folder by the name of their pair.

    If two files have the same name, an error is added to ``faults``.
    """
    path_of: dict[str, Path] = {}
    for path in paths:
        name = _without_suffix(path.relative_to(folder), suffix)
        if name in path_of:
            faults.append(
                f"{str(path_of[name])!r} and {str(path)!r} have the same name, apart from the "
                "suffix; remove one of them"
            )
        elif name is not None:
            path_of[name] = path
    if not path_of:
        raise FileNotFoundError(
            f"no image in {str(folder)!r} has a name that ends in {suffix!r}; correct the suffix"
        )
    return path_of


def _without_suffix(path: Path, suffix: str) -> str | None:
    """Returns a file's name without type and suffix; None if it does not end in the suffix."""
    has_file_type = suffix.lower().endswith((*IMAGE_SUFFIXES, *SUFFIXES, *ANNOTATION_SUFFIXES))
    name = (path if has_file_type else path.with_suffix("")).as_posix()
    return composed(name.removesuffix(suffix)) if name.endswith(suffix) else None


def composed(name: str) -> str:
    """Returns a name with composed accents; macOS writes ä as two characters, others as one."""
    return unicodedata.normalize("NFC", name)
