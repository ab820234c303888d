"""Folders whose labels are annotations: which file belongs to which image, and the classes."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path, PurePosixPath

import numpy as np
from tqdm import tqdm

from segformer.data.annotations.areas import Annotated, Picture, Source
from segformer.data.annotations.class_masks import split_name
from segformer.data.annotations.drawing import (
    IGNORE,
    IGNORED_NAMES,
    Drawing,
    Drawn,
    Treatment,
    sentence_on_invalid,
)
from segformer.data.annotations.formats import (
    annotation_files,
    is_of_image,
    read_annotations,
)
from segformer.data.annotations.matching import match_pairs
from segformer.data.bands import SUFFIXES, Bands
from segformer.data.classes import Classes
from segformer.data.datasets import DataError, count_labels, faults_in
from segformer.data.images import find_images, read_header
from segformer.data.pairing import ANNOTATION_SUFFIXES, CLASS
from segformer.train.from_folder.arrangement import Arrangement, Pair, in_order, paired
from segformer.train.from_folder.class_names import BACKGROUND, UNLABELLED
from segformer.train.from_folder.labelling import Labelling, summary
from segformer.train.from_folder.roles import SPLIT_OF, File, file_of, words_of

REST = "(without annotation)"  # stands for a class while pixels are counted
MOST_UNLABELLED = 0.005  # of the pixels, which are ignored and no class of their own


def find_annotated(root: Path) -> Arrangement | None:
    """Returns the images of a folder and their annotations, None if there are none.

    Raises:
        ValueError: If a file has a fault, or images and annotations do not match.
    """
    paths = find_images(root, (*SUFFIXES, *ANNOTATION_SUFFIXES))
    images = [path for path in paths if path.suffix.lower() not in ANNOTATION_SUFFIXES]
    if not images:
        return None
    files = [path for path in annotation_files(paths, "") if path.suffix.lower() != ".csv"]
    found = None
    if files:
        of_type = Counter(path.suffix.lower() for path in files).most_common(1)[0][0]
        found = _with_annotations(root, images, [p for p in files if p.suffix.lower() == of_type])
    return found or _with_class_masks(root, images)


def _with_annotations(root: Path, images: list[Path], files: list[Path]) -> Arrangement | None:
    if files[0].suffix.lower() in (".txt", ".geojson") or is_of_image(files[0]):
        found = paired(
            root,
            [replace(file_of(path.relative_to(root)), role="image") for path in images],
            [replace(file_of(path.relative_to(root)), role="label") for path in files],
        )
        found.patterns = None
        how = f"a {files[0].suffix} file for each image"
    else:
        found = _by_index(root, images, files)
        how = f"{', '.join(str(path.relative_to(root)) for path in files[:3])}"
    count = sum(map(len, found.pairs.values()))
    found.decisions.insert(0, f"{count} images with annotations ({how})")
    found.is_annotated = True
    return found


def _by_index(root: Path, images: list[Path], files: list[Path]) -> Arrangement:
    """Returns the images that files of annotations list.

    Raises:
        ValueError: If a listed image is missing.
    """
    indices = [
        (_split_of(path.relative_to(root)), path, read_annotations([path], path, root))
        for path in files
    ]
    names = [(split, path, annotations.index) for split, path, annotations in indices]
    pairs: dict[str, list[Pair]] = defaultdict(list)
    taken: set[int] = set()
    for image in images:
        below = image.relative_to(root)
        own = file_of(below).split
        for split, path, index in names:
            if own and split and own != split:
                continue
            annotated = index.of(image, Path(image.name))
            if annotated is not None:
                taken.add(id(annotated))
                label = PurePosixPath(path.relative_to(root))
                pair = Pair(below.with_suffix("").as_posix(), PurePosixPath(below), label)
                pairs[own or split or ""].append(pair)
                break
    _refuse_missing((a for _, _, annotations in indices for a in annotations.listed), taken, root)
    left = len(images) - sum(map(len, pairs.values()))
    decisions = [f"{left} images that no file of annotations lists are left out"] if left else []
    return Arrangement(root, in_order(root, pairs), None, decisions)


def _refuse_missing(listed: Iterable[Annotated], taken: set[int], root: Path) -> None:
    missing = [image for image in listed if id(image) not in taken]
    if missing:
        raise ValueError(
            f"{str(missing[0].path)!r} lists {len(missing)} images that are not in {str(root)!r}, "
            f"such as {missing[0].names[0]!r}; add them, or remove their annotations"
        )


def _split_of(path: Path) -> str | None:
    """Returns the split that the name of a file, or of its folder, says."""
    found = [SPLIT_OF[word] for word in words_of(path.stem) if word in SPLIT_OF]
    return found[0] if found else file_of(path).split


def _with_class_masks(root: Path, images: list[Path]) -> Arrangement | None:
    """Returns the images of a folder with a mask for each class, None if it has none."""
    files = [file_of(path.relative_to(root)) for path in images]
    if {file.role for file in files} != {"image", "label"}:
        return None
    image_of = {_name(file): file for file in files if file.role == "image"}
    patterns: dict[str, set[PurePosixPath]] = defaultdict(set)
    classes = set()
    for mask in (file for file in files if file.role == "label"):
        image, of_class = split_name(_name(mask), image_of)
        if image is None:
            return None
        classes.add(of_class)
        patterns[image].add(_pattern(mask.path, of_class))
    if len(classes) < 2 or any(len(of_image) > 1 for of_image in patterns.values()):
        return None
    pairs: dict[str, list[Pair]] = defaultdict(list)
    for name, (pattern,) in patterns.items():
        pairs[image_of[name].split or ""].append(Pair(name, image_of[name].path, pattern))
    decisions = [f"{len(patterns)} images with a mask for each class"]
    if left := len(image_of) - len(patterns):
        decisions.append(f"{left} images without a mask are left out")
    return Arrangement(root, in_order(root, pairs), None, decisions, True, tuple(sorted(classes)))


def _name(file: File) -> str:
    """Returns the path of a file without the words for roles and splits, and its split at last."""
    return "/".join([*file.folder, f"{file.split or ''}:{file.stem}"])


def _pattern(path: PurePosixPath, of_class: str) -> PurePosixPath:
    """Returns the path of a mask with ``{class}`` in place of its class."""
    if of_class in path.parts[:-1]:
        parts = [CLASS if part == of_class else part for part in path.parts]
        return PurePosixPath(*parts)
    return path.with_name(f"{path.stem[: len(path.stem) - len(of_class)]}{CLASS}{path.suffix}")


def survey_annotations(
    found: Arrangement,
    pairs: Sequence[tuple[Path, Path]],
    unlabelled: int | str | None = None,
    invalid_polygons: Treatment = "refuse",
    class_map: Mapping[str, str] | None = None,
) -> tuple[Labelling, dict[Path, tuple[int, int]]]:
    """Returns the classes of annotations, and the size of each image; shows a progress bar.

    Args:
        found: The folder.
        pairs: Paths of images and of their annotations.
        unlabelled: Class of pixels without annotation, if the user gave it.
        invalid_polygons: Whether polygons that cross themselves or have no area are drawn.
        class_map: Class of names that annotations have, or ``"ignore"``, if the user gave it.

    Raises:
        DataError: If a file has a fault.
        ValueError: If there is no class.
    """
    matched = match_pairs(pairs, found.masks)
    assert matched is not None
    if matched.faults:
        raise DataError(matched.faults, pairs)
    pictures = {path: _picture(path) for path in matched.sources}
    used = _used_names(matched.sources, pictures)
    void = [name for name in used if name.lower() in UNLABELLED or name in IGNORED_NAMES]
    class_map = {**dict.fromkeys(void, IGNORE), **(class_map or {})}
    names = sorted({class_map.get(name, name) for name in used} - {IGNORE})
    if not names:
        raise ValueError(
            f"the annotations in {str(found.root)!r} have no area of a class; draw some"
        )
    counted = Classes([*names, REST])
    drawn = Drawn(matched.sources, Drawing(counted, REST, class_map, invalid_polygons))
    counts = np.zeros(len(counted) + 1, np.int64)
    faults: list[str] = []

    def count(picture: Picture) -> None:
        counts[:] += count_labels(drawn.label(picture), len(counted))

    for picture in tqdm(pictures.values(), "annotations", unit="image"):
        faults += faults_in(lambda picture=picture: count(picture))
    if faults:
        raise DataError(faults, pairs)
    sizes = {path: picture.size for path, picture in pictures.items()}
    labelling = _labelling(names, counts, class_map, unlabelled)
    if invalid := sum(map(drawn.invalid, pictures)):
        labelling = replace(
            labelling, decisions=(*labelling.decisions, sentence_on_invalid(invalid))
        )
    return labelling, sizes


def _picture(path: Path) -> Picture:
    try:
        return Picture(path, read_header(path).shown_size)
    except ValueError:
        image = Bands().open(path)
        return Picture(path, image.size, image.grid)


def _used_names(sources: Mapping[Path, Source], pictures: Mapping[Path, Picture]) -> list[str]:
    """Returns the names of all classes with an area, sorted."""
    names: set[str] = set()
    faults: list[str] = []

    def collect(path: Path, source: Source) -> None:
        names.update(area.name for area in source.of(pictures[path]).areas)

    for path, source in sources.items():
        faults += faults_in(lambda path=path, source=source: collect(path, source))
    if faults:
        raise DataError(faults, sources)
    return sorted(names)


def _labelling(
    names: list[str],
    counts: np.ndarray,
    class_map: dict[str, str],
    unlabelled: int | str | None,
) -> Labelling:
    *of_names, without, _ = counts.tolist()
    share = without / max(1, counts.sum())
    rest = next((name for name in names if name.lower() in (*BACKGROUND, *UNLABELLED)), None)
    pixels = dict(zip(names, of_names, strict=True))
    chosen: int | str = IGNORE
    if unlabelled is not None:
        chosen = unlabelled
        decision = (
            f"pixels without annotation, {100 * share:.1f} %, are {unlabelled}, as it is given"
        )
        is_index = str(unlabelled).isdecimal() and int(unlabelled) < len(names)
        own = names[int(unlabelled)] if is_index else str(unlabelled)
        if own != IGNORE:
            pixels = {**({} if own in pixels else {own: 0}), **pixels}
            pixels[own] += without
    elif share <= MOST_UNLABELLED:
        decision = f"pixels without annotation, {100 * share:.1f} %, are ignored"
    else:
        chosen = rest or BACKGROUND[0]
        pixels = {chosen: pixels.pop(chosen, 0) + without, **pixels}
        decision = (
            f"pixels without annotation, {100 * share:.1f} %, are {chosen!r}; pass "
            f"--data.unlabelled {IGNORE} if they may be anything"
        )
    options: dict[str, object] = {"unlabelled": chosen}
    if class_map:
        options["class_map"] = class_map
    classes = Classes(list(pixels))
    shares = tuple(pixels.values())
    if len(classes) < 2:
        raise ValueError(
            f"the annotations have one class, {classes.names[0]!r}, on all pixels; a network needs "
            "at least two"
        )
    return Labelling(classes, shares, options, (decision, *summary(classes, shares)))
