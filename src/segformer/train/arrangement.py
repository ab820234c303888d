"""How a folder arranges images and label maps: which files form a pair, and in which split."""

from __future__ import annotations

import os
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import Any, Literal

from segformer.data.bands import SPLIT, SUFFIXES
from segformer.data.images import files_below, find_images
from segformer.data.pairing import composed, read_names
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
SKIPPED_FOLDERS = ("SegmentationObject",)  # VOC's label maps of objects, not of classes
SPLIT_OF = {word: split for split, words in SPLIT_NAMES.items() for word in words}
JPEG_SUFFIXES = (".jpg", ".jpeg", ".jpe", ".jfif")
VOC_LISTS = "ImageSets/Segmentation"
SHOWN = 3  # files in a message

READY = {  # files of published data sets: the config, or the class of segformer.data.standard
    ("leftImg8bit", "gtFine"): "Cityscapes; use configs/segformer_cityscapes.yaml",
    ("objectInfo150.txt",): "ADE20K; use configs/segformer_ade20k.yaml",
}


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
    files, how = _with_roles(kept, folder)
    images = [file for file in files if file.role == "image"]
    labels = [file for file in files if file.role == "label"]
    if not labels or not images:
        raise ValueError(_no_pairs(folder, images or labels))
    found = paired(folder, images, labels)
    splits = ", ".join(f"{name} {len(pairs)}" for name, pairs in found.pairs.items() if name)
    count = sum(map(len, found.pairs.values()))
    decisions.append(f"{count} pairs of an image and a label map ({how})")
    decisions.append(f"splits of the folder: {splits}" if splits else "the folder has no splits")
    found.decisions[:0] = decisions
    return found


def _refuse_published(folder: Path) -> None:
    for names, ready in READY.items():
        if all((folder / name).exists() for name in names):
            raise ValueError(
                f"{str(folder)!r} has {' and '.join(names)}, as {ready} with "
                f"--data.root {folder}, which reads its classes"
            )


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


def _with_roles(files: list[File], folder: Path) -> tuple[list[File], str]:
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
    raise ValueError(_no_pairs(folder, files))


def _no_pairs(folder: Path, files: list[File]) -> str:
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


def found_lists(root: Path) -> dict[str, Path]:
    """Returns the text files below a folder that list the names of its splits.

    Raises:
        ValueError: If more than one folder has such files.
    """
    lists: dict[Path, dict[str, Path]] = defaultdict(dict)
    for path in sorted(files_below(root)):
        if path.suffix == ".txt" and path.stem.lower() in SPLIT_OF:
            lists[path.parent][SPLIT_OF[path.stem.lower()]] = path
    complete = {
        folder: files for folder, files in lists.items() if {"train", "val"} <= files.keys()
    }
    if root / VOC_LISTS in complete:
        return complete[root / VOC_LISTS]
    if len(complete) > 1:
        folders = " and in ".join(repr(str(folder)) for folder in complete)
        raise ValueError(
            f"train.txt and val.txt are in {folders}; choose by --train_names and --val_names"
        )
    return next(iter(complete.values()), {})


def listed(pairs: Sequence[Pair], names: Path) -> list[Pair]:
    """Returns the pairs that a text file lists, one per line.

    A line is a pair's name, or the path of its image, with or without the file type; a second
    path in the line, that of the label map, is not used.

    Raises:
        ValueError: If a line names no pair, or several.
    """
    found: dict[str, set[Pair]] = defaultdict(set)
    for pair in pairs:
        for name in _names_of(pair):
            found[name].add(pair)
    return list(dict.fromkeys(_named(found, line, names) for line in read_names(names)))


def _names_of(pair: Pair) -> Iterable[str]:
    whole = composed(str(pair.image))
    return {
        *(
            pair.name,
            PurePosixPath(pair.name).name,
            whole,
            composed(str(pair.image.with_suffix(""))),
        ),
        *(PurePosixPath(whole).name, PurePosixPath(whole).stem),
    }


def _named(found: dict[str, set[Pair]], line: str, names: Path) -> Pair:
    for name in (line, line.split()[0]):
        matches = found.get(name.removeprefix("./"), set())
        if len(matches) == 1:
            return next(iter(matches))
        if matches:
            shown = " and ".join(sorted(repr(str(pair.image)) for pair in matches)[:2])
            raise ValueError(
                f"{str(names)!r} lists {name!r}, which may be {shown}; write the path of the image"
            )
    raise ValueError(
        f"{str(names)!r} lists {line!r}, and no image has this name; add it, or remove the line"
    )
