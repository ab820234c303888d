"""Which annotations belong to which image."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from segformer.data.annotations.areas import Source
from segformer.data.annotations.class_masks import ClassMasks, masks_of
from segformer.data.annotations.fields import fault
from segformer.data.annotations.formats import (
    Annotations,
    find_annotations,
    read_annotations,
)
from segformer.data.images import find_images
from segformer.data.pairing import (
    ANNOTATION_SUFFIXES,
    CLASS,
    by_name,
    listed_pairs,
    read_names,
    unpaired,
)


@dataclass
class Matched:
    """The annotations of images.

    Args:
        sources: Annotations by the path of their image.
        faults: One sentence for each error.
    """

    sources: dict[Path, Source] = field(default_factory=dict)
    faults: list[str] = field(default_factory=list)


def find_sources(
    images: Path,
    labels: str | os.PathLike[str] | Annotations,
    suffixes: tuple[str, str],
    names: str | os.PathLike[str] | None,
    also: Sequence[str],
    classes: Sequence[str],
) -> Matched | None:
    """Returns the annotations of images, None if the labels are label maps.

    Args:
        images: Folder of images.
        labels: Folder or file of labels; or annotations that belong to other folders, too.
        suffixes: Ends of the names of images and of files of labels that are not part of them.
        names: File that lists the images to use, if there is one.
        also: Suffixes of images, beside those of photographs.
        classes: Names of classes that files may use, in the order in which masks are drawn.

    Raises:
        FileNotFoundError: If there is no such file or folder, or no image in it.
        ValueError: If a file is of no known format, or a value in it is wrong.
    """
    is_shared = isinstance(labels, Annotations)
    if names is not None and Path(names).suffix.lower() == ".csv":
        assert not isinstance(labels, Annotations)
        pairs, faults = listed_pairs(images, Path(labels), Path(names))
        matched = match_pairs(pairs, classes)
        return matched and Matched(matched.sources, faults + matched.faults)
    if not is_shared and not Path(str(labels)).exists():
        find_images(images, also)  # what is wrong with the images is said first
    found = (
        labels
        if isinstance(labels, Annotations)
        else find_annotations(Path(labels), images, suffixes[1])
    )
    if found is None:
        assert not isinstance(labels, Annotations)
        return match_class_masks(images, Path(labels), suffixes, names, also, classes)
    of_name, faults = _images_of(images, suffixes[0], names, also)
    matched = match(found, images, of_name, suffixes[1], is_shared or names is not None)
    return Matched(matched.sources, faults + matched.faults)


def _images_of(
    folder: Path, suffix: str, names: str | os.PathLike[str] | None, also: Sequence[str]
) -> tuple[dict[str, Path], list[str]]:
    """Returns the images of a folder, or those that are listed, and one sentence for each error."""
    faults: list[str] = []
    found = by_name(folder, find_images(folder, also), suffix, faults)
    if names is None:
        return found, faults
    listed = read_names(names)
    faults += [
        f"{str(names)!r} lists {name!r}, but {str(folder)!r} has no such image; add it, or remove "
        "the line"
        for name in listed
        if name not in found
    ]
    return {name: found[name] for name in listed if name in found}, faults


def match(
    annotations: Annotations,
    folder: Path,
    images: Mapping[str, Path],
    label_suffix: str = "",
    is_shared: bool = False,
) -> Matched:
    """Returns the annotations of a folder's images.

    Args:
        annotations: The annotations.
        folder: The folder of images.
        images: The images by their path without suffix.
        label_suffix: End of the files' names that images do not have.
        is_shared: Whether the annotations of other images are no error.

    Raises:
        FileNotFoundError: If no image has annotations.
    """
    if annotations.files:
        return _by_file_name(annotations, images, label_suffix, is_shared)
    matched, missing = Matched(), []
    index = annotations.index
    for path in images.values():
        try:
            found = index.of(path, path.relative_to(folder))
        except ValueError as error:
            matched.faults.append(str(error))
            continue
        if found is None:
            missing.append(
                f"image {str(path)!r} has no annotation in {str(annotations.path)!r}; annotate it, "
                "or remove it"
            )
        else:
            matched.sources[path] = found
    if len(missing) == len(images) and index.names:
        raise FileNotFoundError(
            f"{str(annotations.listed[0].path)!r} lists none of the {len(images)} images in "
            f"{str(folder)!r}: it lists {index.names[0]!r}, …; correct the names or the folder"
        )
    matched.faults += missing
    if not is_shared:
        matched.faults += without_image(annotations, matched.sources.values(), str(folder))
    return matched


def without_image(annotations: Annotations, used: Iterable[Source], where: str) -> list[str]:
    """Returns one sentence for each annotated image that is missing."""
    taken = {id(source) for source in used}
    return [
        fault(
            image.path,
            image.where,
            f"there is no image {image.names[0]!r} in {where}; add it, or remove its annotations",
        ).args[0]
        for image in annotations.listed
        if id(image) not in taken
    ]


def _by_file_name(
    annotations: Annotations, images: Mapping[str, Path], label_suffix: str, is_shared: bool
) -> Matched:
    matched = Matched()
    root = annotations.path if annotations.path.is_dir() else annotations.path.parent
    files = by_name(root, annotations.files, label_suffix, matched.faults)
    where = f"annotation for {{}}: none below {str(root)!r}"
    matched.faults += unpaired(dict(images), files, where)
    if not is_shared:
        matched.faults += unpaired(files, dict(images), "image for {}: none")
    matched.sources = {
        path: annotations.source(files[name]) for name, path in images.items() if name in files
    }
    return matched


def match_class_masks(
    images: Path,
    labels: Path,
    suffixes: tuple[str, str],
    names: str | os.PathLike[str] | None,
    also: Sequence[str],
    classes: Sequence[str],
) -> Matched | None:
    """Returns the masks of a folder's images, None if they are not one a class.

    Args:
        images: See :func:`find_sources`, also for the other arguments.
    """
    if images.resolve() == labels.resolve():
        return None
    try:
        of_name, faults = _images_of(images, suffixes[0], names, also)
        taken = set(of_name.values())
        paths = [path for path in find_images(labels) if path not in taken]
        masks = by_name(labels, paths, suffixes[1], faults)
    except (FileNotFoundError, ValueError):
        return None  # what is wrong is said where label maps are paired
    if not of_name.keys().isdisjoint(masks):
        return None
    found = masks_of(of_name, masks, classes)
    if found is None:
        return None
    of_image, alone = found
    faults += [
        f"mask {str(path)!r} has the name of no image; rename or remove it"
        for path in (alone if names is None else ())
    ]
    faults += [
        f"image {str(path)!r} has no mask below {str(labels)!r}; add one, or remove the image"
        for name, path in of_name.items()
        if name not in of_image
    ]
    return Matched({of_name[name]: source for name, source in of_image.items()}, faults)


def match_pairs(pairs: Iterable[tuple[Path, Path]], order: Sequence[str]) -> Matched | None:
    """Returns the annotations of listed pairs, None if their label files are label maps.

    A label file whose path contains ``{class}`` is one mask a class.

    Args:
        pairs: Paths of images and of their label files.
        order: Names of the known classes.

    Raises:
        ValueError: If only some label files are label maps.
    """
    pairs = list(pairs)
    drawn = [_is_drawn(label) for _, label in pairs]
    if not any(drawn):
        return None
    if not all(drawn):
        raise ValueError(
            f"{str(pairs[drawn.index(True)][1])!r} holds annotations and "
            f"{str(pairs[drawn.index(False)][1])!r} is a label map; list one kind"
        )
    matched, read = Matched(), {}
    for image, label in pairs:
        if CLASS in str(label):
            masks = [(name, Path(str(label).replace(CLASS, name))) for name in order]
            masks = [(name, path) for name, path in masks if path.is_file()]
            if masks:
                matched.sources[image] = ClassMasks(tuple(masks))
            else:
                matched.faults.append(f"image {str(image)!r} has no mask {str(label)!r}; add one")
            continue
        try:
            if label not in read:
                read[label] = read_annotations([label], label, image.parent)
            annotations = read[label]
            if annotations.files:
                matched.sources[image] = annotations.source(label)
                continue
            found = annotations.index.of(image, Path(image.name))
            if found is None:
                raise ValueError(f"{str(label)!r} does not list image {str(image)!r}; add it")
            matched.sources[image] = found
        except ValueError as error:
            matched.faults.append(str(error))
    return matched


def _is_drawn(label: Path) -> bool:
    return CLASS in str(label) or label.suffix.lower() in ANNOTATION_SUFFIXES
