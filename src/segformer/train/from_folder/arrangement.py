"""How a folder arranges images and label maps: which files form a pair, and in which split."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from segformer.data.bands import SPLIT, SUFFIXES
from segformer.data.images import find_images
from segformer.train.from_folder.roles import File, file_of, no_pairs, with_roles

SKIPPED_FOLDERS = ("SegmentationObject",)  # VOC's label maps of objects, not of classes
SHOWN = 3  # files in a message
PUBLISHED = {  # files of published data sets: the config, or the class of segformer.data.standard
    ("leftImg8bit", "gtFine"): "Cityscapes; use configs/segformer_cityscapes.yaml",
    ("objectInfo150.txt",): "ADE20K; use configs/segformer_ade20k.yaml",
}


@dataclass(frozen=True)
class Pair:
    """An image and its label map.

    Args:
        name: Their common path, without the folders' names for images, label maps and splits.
        image: Path of the image below the folder.
        label: Path of the label map below the folder.
    """

    name: str
    image: PurePosixPath
    label: PurePosixPath


@dataclass
class Arrangement:
    """The pairs of a folder.

    Args:
        root: The folder.
        pairs: Pairs of each split; those of a folder without splits have the key ``""``.
        patterns: Options of :class:`~segformer.train.data.FolderData` that may read the same
            pairs; None if there are none.
        decisions: One sentence for each decision.
        is_annotated: Whether the labels are annotations, not label maps.
        masks: Names of the classes, if each has masks of its own.
    """

    root: Path
    pairs: dict[str, list[Pair]]
    patterns: dict[str, str] | None = None
    decisions: list[str] = field(default_factory=list)
    is_annotated: bool = False
    masks: tuple[str, ...] = ()

    @property
    def is_divided(self) -> bool:
        """Whether the folder's own splits have both training and validation pairs."""
        return {"train", "val"} <= self.pairs.keys()


def find(root: str | os.PathLike[str]) -> Arrangement:
    """Returns the pairs of images and label maps below a folder.

    Raises:
        FileNotFoundError: If there is no such folder, or no image in it.
        ValueError: If the files are no pairs, or form pairs in more than one way.
    """
    folder = Path(root)
    _refuse_published(folder)
    files = [file_of(path.relative_to(folder)) for path in find_images(folder, SUFFIXES)]
    kept = [file for file in files if not set(SKIPPED_FOLDERS) & set(file.path.parts)]
    decisions = ["label maps of objects (SegmentationObject) are left out"] if kept != files else []
    files, how = with_roles(kept, folder)
    images = [file for file in files if file.role == "image"]
    labels = [file for file in files if file.role == "label"]
    if not labels or not images:
        raise ValueError(no_pairs(folder, images or labels))
    found = paired(folder, images, labels)
    splits = ", ".join(f"{name} {len(pairs)}" for name, pairs in found.pairs.items() if name)
    count = sum(map(len, found.pairs.values()))
    decisions.append(f"{count} pairs of an image and a label map ({how})")
    decisions.append(f"splits of the folder: {splits}" if splits else "the folder has no splits")
    found.decisions[:0] = decisions
    return found


def _refuse_published(folder: Path) -> None:
    for names, ready in PUBLISHED.items():
        if all((folder / name).exists() for name in names):
            raise ValueError(
                f"{str(folder)!r} has {' and '.join(names)}, as {ready} with "
                f"--data.root {folder}, which reads its classes"
            )


Key = tuple[str, tuple[str, ...], str]  # a split, folders, and a file's name


def paired(root: Path, images: list[File], labels: list[File]) -> Arrangement:
    """Returns the pairs, by split.

    Raises:
        ValueError: If a file has no partner, or two.
    """
    decisions: list[str] = []
    images, labels = _without_unlabelled_test(images, labels, decisions)
    both = all(any(file.split for file in files) for files in (images, labels))
    image_suffix, label_suffix = _suffixes(images, labels)
    if image_suffix or label_suffix:
        ends = [
            f"{word} in {end!r}"
            for word, end in (("images", image_suffix), ("label maps", label_suffix))
            if end
        ]
        decisions.append(f"names of {' and of '.join(ends)}")
    image_of = _by_key(root, images, image_suffix, both)
    label_of = _by_key(root, labels, label_suffix, both)
    _refuse_alone(root, image_of, label_of)
    pairs: dict[str, list[Pair]] = defaultdict(list)
    for key, image in image_of.items():
        label = label_of[key]
        name = "/".join((*key[1], key[2]))
        pairs[image.split or label.split or ""].append(Pair(name, image.path, label.path))
    ordered = in_order(root, pairs)
    patterns = _patterns(images, labels, image_suffix, label_suffix) if both else None
    return Arrangement(root, ordered, patterns, decisions)


def _without_unlabelled_test(
    images: list[File], labels: list[File], decisions: list[str]
) -> tuple[list[File], list[File]]:
    splits = {file.split for file in labels}
    tested = [file for file in images if file.split == "test"]
    if tested and "test" not in splits and splits != {None}:
        decisions.append(f"{len(tested)} test images have no label maps and are left out")
        images = [file for file in images if file.split != "test"]
    return images, labels


def _common_folders(files: list[File]) -> int:
    """Returns the number of first folders that all files have in common."""
    return _common_start([file.folder for file in files])


def _common_start(sequences: Sequence[Any]) -> int:
    """Returns the number of first elements that all sequences have in common."""
    first, last = min(sequences), max(sequences)
    same = (k for k, (a, b) in enumerate(zip(first, last, strict=False)) if a != b)
    return next(same, min(len(first), len(last)))


def _suffixes(images: list[File], labels: list[File]) -> tuple[str, str]:
    """Returns the ends of names with which most images and label maps have the same name."""
    best, most = ("", ""), 0
    stems = [[file.stem for file in files] for files in (images, labels)]
    label_ends = _common_ends(stems[1])
    for image_end in _common_ends(stems[0]):
        names = {stem[: len(stem) - len(image_end)] for stem in stems[0]}
        for label_end in label_ends:
            same = sum(stem[: len(stem) - len(label_end)] in names for stem in stems[1])
            if same > most:
                best, most = (image_end, label_end), same
    return best


def _common_ends(stems: list[str]) -> list[str]:
    """Returns the common ends of names that begin with no digit.

    The empty one is the first; then come those that begin with a separator such as ``_``.
    """
    length = _common_start([stem[::-1] for stem in stems])
    common = stems[0][len(stems[0]) - length :]
    ends = (common[k:] for k in range(len(common)))
    possible = [end for end in ends if not end[0].isdigit() and end not in stems]
    return ["", *sorted(possible, key=lambda end: end[0].isalpha())]


def _by_key(root: Path, files: list[File], suffix: str, with_split: bool) -> dict[Key, File]:
    """Returns the files by split, folders and name without suffix."""
    common = _common_folders(files)
    file_of: dict[Key, File] = {}
    for file in files:
        split = (file.split or "") if with_split else ""
        key = (split, file.folder[common:], file.stem[: len(file.stem) - len(suffix)])
        if key in file_of:
            what = {"image": "images", "label": "label maps"}[file.role or "image"]
            raise ValueError(
                f"{str(root)!r} has two {what} of one name, {str(file_of[key].path)!r} and "
                f"{str(file.path)!r}; move one of the two out of the folder"
            )
        file_of[key] = file
    return file_of


def _refuse_alone(root: Path, image_of: dict[Key, File], label_of: dict[Key, File]) -> None:
    for files, partners, what, missing in (
        (image_of, label_of, "images", "label map"),
        (label_of, image_of, "label maps", "image"),
    ):
        alone = [str(files[key].path) for key in files if key not in partners]
        if alone:
            shown = ", ".join(map(repr, alone[:SHOWN])) + (", …" if len(alone) > SHOWN else "")
            raise ValueError(
                f"{len(alone)} of {len(files)} {what} in {str(root)!r} have no {missing} of their "
                f"name ({shown}); add it, or move them out of the folder"
            )


def in_order(root: Path, pairs: dict[str, list[Pair]]) -> dict[str, list[Pair]]:
    """Returns the pairs by split, training first.

    Raises:
        ValueError: If some pairs have a split and others none, or there is no training split.
    """
    order = ("train", "val", "test", "")
    ordered = {split: pairs[split] for split in order if split in pairs}
    _check_splits(root, ordered)
    return ordered


def _check_splits(root: Path, pairs: dict[str, list[Pair]]) -> None:
    if "" in pairs and len(pairs) > 1:
        split = next(iter(pairs))
        raise ValueError(
            f"{str(root)!r} has folders of splits, such as {str(pairs[split][0].image)!r}, and "
            f"{len(pairs[''])} pairs outside of them, such as {str(pairs[''][0].image)!r}; move "
            "these into a split, or out of the folder"
        )
    if "" not in pairs and "train" not in pairs:
        raise ValueError(
            f"{str(root)!r} has the splits {', '.join(pairs)}, and no train; add its folder"
        )


def _patterns(
    images: list[File], labels: list[File], image_suffix: str, label_suffix: str
) -> dict[str, str] | None:
    """Returns the options of FolderData, None if the folders have no common pattern."""
    found = [{(file.pattern, file.word) for file in files} for files in (images, labels)]
    patterns = [{pattern for pattern, _ in of_files} for of_files in found]
    if any(len(of_files) != 1 for of_files in patterns):
        return None
    (image_pattern,), (label_pattern,) = patterns
    if SPLIT not in image_pattern or SPLIT not in label_pattern:
        return None
    if image_pattern == label_pattern and image_suffix == label_suffix:  # told apart by type
        types = [{file.path.suffix for file in files} for files in (images, labels)]
        if any(len(of_files) != 1 for of_files in types):
            return None
        image_suffix, label_suffix = (
            suffix + next(iter(of_files))
            for suffix, of_files in zip((image_suffix, label_suffix), types, strict=True)
        )
    return {
        "images": image_pattern,
        "labels": label_pattern,
        "image_suffix": image_suffix,
        "label_suffix": label_suffix,
    }
