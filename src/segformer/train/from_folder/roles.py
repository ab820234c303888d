"""Which files of a folder are images and which are label maps, by the words of their paths."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Literal

from segformer.data.bands import SPLIT
from segformer.data.images import JPEG_SUFFIXES
from segformer.data.pairing import composed
from segformer.train.data import SPLIT_NAMES

Role = Literal["image", "label"]
# Words of folders' names, and at the ends of files' names.
IMAGE_WORDS = frozenset(
    (
        *("image", "images", "img", "imgs", "jpegimages", "rgb", "input", "inputs", "sat"),
        *("photo", "photos", "picture", "pictures"),
    )
)
LABEL_WORDS = frozenset(
    (
        *("label", "labels", "lbl", "labelmap", "labelmaps", "labelids", "mask", "masks"),
        *("annotation", "annotations", "annot", "annots", "ann", "anns", "gt", "gts", "truth"),
        *("groundtruth", "seg", "segmentation", "segmentations", "segmentationclass"),
        *("segmentationclassaug", "stuffthingmaps", "target", "targets"),
    )
)
OTHER_WORDS = frozenset(
    ("dir", "folder", "set", "data", "files", "ground", "semantic", "map", "maps", "class")
)
CAMVID_SUFFIX = "L"  # of the names of CamVid's label maps
SPLIT_OF = {word: split for split, words in SPLIT_NAMES.items() for word in words}


@dataclass(frozen=True)
class File:
    """An image file, and what the names of its folders say.

    Args:
        path: Path below the folder.
        role: Whether it is an image or a label map, if that is known.
        split: ``train``, ``val`` or ``test``, if a folder's name says so.
        folder: Names of its folders that state neither a role nor a split.
        pattern: Its folders down to the last one that says either, with ``{split}`` in place of
            the name of the split.
        word: Name of the split in that path.
    """

    path: PurePosixPath
    role: Role | None
    split: str | None
    folder: tuple[str, ...]
    pattern: str
    word: str

    @property
    def stem(self) -> str:
        return composed(self.path.stem)


def file_of(path: Path) -> File:
    """Returns a file with the role and the split that its folders state.

    Raises:
        ValueError: If they state two splits.
    """
    role: Role | None = None
    split, word, last = None, "", 0
    folder = []
    parts = list(path.parts[:-1])
    for number, part in enumerate(path.parts[:-1]):
        part_role, part_split, part_word = _read_name(part)
        if part_role is None and part_split is None:
            folder.append(composed(part))
            continue
        if part_split and split not in (None, part_split):
            raise ValueError(
                f"{str(path)!r} is below a folder for {split} and below one for {part_split}; "
                "move it out of one of them"
            )
        role, split, last = part_role or role, part_split or split, number + 1
        if part_split:
            word = part_word
            parts[number] = part.replace(part_word, SPLIT, 1)
    return File(
        PurePosixPath(path), role, split, tuple(folder), "/".join(parts[:last]) or ".", word
    )


def words_of(name: str) -> list[str]:
    """Returns the words of a name, without a year."""
    lower = re.sub(r"(?<=[a-z])(19|20)\d\d$", "", name.lower())
    return [token for token in re.split(r"[ _.-]+", lower) if token]


def _read_name(name: str) -> tuple[Role | None, str | None, str]:
    """Returns what a folder's name says: a role, a split, and the word for the split."""
    tokens = words_of(name)
    for word in SPLIT_OF:
        rest = tokens[0].removeprefix(word) if len(tokens) == 1 else ""
        if rest in IMAGE_WORDS | LABEL_WORDS and rest != tokens[0]:
            tokens = [word, rest]  # trainannot
    if not set(tokens) <= IMAGE_WORDS | LABEL_WORDS | OTHER_WORDS | SPLIT_OF.keys():
        return None, None, ""
    words = [token for token in tokens if token in SPLIT_OF]
    role = _role(tokens)
    return role, SPLIT_OF[words[0]] if words else None, words[0] if words else ""


def _role(words: Sequence[str]) -> Role | None:
    """Returns the role of the last word that names one; None without such a word."""
    for word in reversed(words):
        if word in LABEL_WORDS:
            return "label"
        if word in IMAGE_WORDS:
            return "image"
    return None


def with_roles(files: list[File], folder: Path) -> tuple[list[File], str]:
    """Returns the files with a role each, and what showed the roles."""
    roles = {file.role for file in files}
    if roles == {"image", "label"}:
        return files, "told apart by their folders"
    if roles == {"image", "label", None}:
        others = [file for file in files if file.role is None]
        raise ValueError(
            f"{str(folder)!r} has folders of images and of label maps, and {len(others)} image "
            f"files outside of them, such as {str(others[0].path)!r}; move these out of the folder"
        )
    if roles in ({"image", None}, {"label", None}):
        other: Role = "label" if "image" in roles else "image"
        found = [replace(file, role=file.role or other) for file in files]
        return found, "told apart by their folders"
    for roles_of, how in (
        (_by_words, "told apart by the ends of their names"),
        (_by_longer_name, "told apart by the ends of their names"),
        (_by_type, "told apart by their file types"),
    ):
        shown = roles_of(files)
        if set(shown) == {"image", "label"}:
            return [replace(file, role=r) for file, r in zip(files, shown, strict=True)], how
    raise ValueError(no_pairs(folder, files))


def no_pairs(folder: Path, files: list[File]) -> str:
    return (
        f"{str(folder)!r} has {len(files)} image files, such as {str(files[0].path)!r}, and "
        "neither folders nor names show which are label maps; put images into images/ and label "
        "maps into labels/, or end the names of label maps in _mask"
    )


def _by_words(files: list[File]) -> list[Role]:
    """Returns the role of each file: the name of a label map ends in a word such as _mask."""

    def role(file: File) -> Role:
        *others, last = re.split(r"[ _.-]+", file.stem)
        is_label = last.lower() in LABEL_WORDS or last == CAMVID_SUFFIX
        return "label" if is_label and others else "image"

    return [role(file) for file in files]


def _by_longer_name(files: list[File]) -> list[Role]:
    """Returns the role of each file: a label map is named as another file, with a suffix.

    The suffix has no digits. There are no roles if half of the files do not fit.
    """
    names = {(file.split, file.folder, file.stem) for file in files}

    def ends(file: File) -> set[str]:
        cuts = range(1, len(file.stem))
        before = (k for k in cuts if (file.split, file.folder, file.stem[:k]) in names)
        return {file.stem[k:] for k in before if not re.search(r"\d", file.stem[k:])}

    of_files = [ends(file) for file in files]
    counts = Counter(end for found in of_files for end in found)
    if not counts or max(counts.values()) * 2 != len(files):
        return []
    suffix = max(counts, key=lambda end: counts[end])
    return ["label" if suffix in found else "image" for found in of_files]


def _by_type(files: list[File]) -> list[Role]:
    """Images are JPEG files, label maps files of one other type."""
    others = {file.path.suffix.lower() for file in files} - set(JPEG_SUFFIXES)
    if len(others) != 1:
        return []
    return ["label" if file.path.suffix.lower() in others else "image" for file in files]
