"""Text files that list the names of a folder's splits."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path, PurePosixPath

from segformer.data.images import files_below
from segformer.data.pairing import composed, read_names
from segformer.train.from_folder.arrangement import Pair
from segformer.train.from_folder.roles import SPLIT_OF

VOC_LISTS = "ImageSets/Segmentation"


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
