"""The formats of annotation files, told by their content."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from segformer.data.annotations import coco, cvat, geojson, kaggle, label_studio, labelme, yolo
from segformer.data.annotations.areas import Annotated, Picture
from segformer.data.annotations.fields import Record, read_json
from segformer.data.annotations.image_names import ImageNames
from segformer.data.annotations.markup import read_xml
from segformer.data.images import find_images
from segformer.data.pairing import ANNOTATION_SUFFIXES as SUFFIXES

# Starts of the names of files beside annotations.
OTHERS = (
    *(*yolo.LINES, "classes.json", "notes.json", "readme"),
    *("train.txt", "val.txt", "valid.txt", "validation.txt", "trainval.txt", "test.txt"),
)
FORMATS = "COCO, LabelMe, Label Studio or GeoJSON"


@dataclass(frozen=True)
class Annotations:
    """The annotations at a path.

    Args:
        path: A file, or a folder.
        listed: Those of files that name their images.
        files: Files of one image each, which are read with their images.
        yolo: Reader of those that are YOLO's text.
    """

    path: Path
    listed: list[Annotated] = field(default_factory=list)
    files: list[Path] = field(default_factory=list)
    yolo: yolo.Yolo | None = None

    @cached_property
    def index(self) -> ImageNames:
        """Those of files that name their images; one image has each, also of several folders."""
        return ImageNames(self.listed)

    def source(self, path: Path) -> ImageFile:
        """Returns the annotations of one of the files."""
        return ImageFile(path, self.yolo if path.suffix.lower() == ".txt" else None)


@dataclass(frozen=True)
class ImageFile:
    """A file with the annotations of one image, which is read with its image.

    Args:
        path: The file.
        yolo: Its reader, if it is YOLO's text.
    """

    path: Path
    yolo: yolo.Yolo | None = None

    def of(self, picture: Picture) -> Annotated:
        """Reads the file.

        Raises:
            ValueError: If it is of no known format, or a value is wrong.
        """
        if self.yolo is not None:
            return self.yolo(self.path, picture)
        content = read_json(self.path)
        if not isinstance(content, dict) or not _says_one_image(content):
            raise _unknown(self.path, content)
        document = Record(self.path, "", content)
        reader = labelme.read if "shapes" in content else geojson.read
        return reader(document, picture)


def _says_one_image(content: dict[str, Any]) -> bool:
    return "shapes" in content or content.get("type") in ("FeatureCollection", "Feature")


def is_of_image(path: Path) -> bool:
    """Returns whether a JSON file has the annotations of one image.

    Raises:
        ValueError: If it is no whole JSON.
    """
    content = read_json(path) if path.suffix.lower() == ".json" else None
    return isinstance(content, dict) and _says_one_image(content)


def _unknown(path: Path, content: Any) -> ValueError:
    found = (
        f"the keys {', '.join(map(str, content))}"[:80] if isinstance(content, dict) else "a list"
    )
    return ValueError(
        f"{str(path)!r} is no JSON of {FORMATS}: it holds {found}; export it again as one of these"
    )


def find_annotations(labels: Path, images: Path, label_suffix: str = "") -> Annotations | None:
    """Returns the annotations at a path, None for a folder of label maps.

    Args:
        labels: A file, or a folder. A folder with image files that are not images has label maps.
        images: The folder of images.
        label_suffix: End of the files' names, which may include their type.

    Raises:
        FileNotFoundError: If there is no such file or folder.
        ValueError: If a file is of no known format, or a value in it is wrong.
    """
    if labels.is_file():
        return read_annotations([labels], labels, images)
    if not labels.is_dir():
        raise FileNotFoundError(f"no folder {str(labels)!r}, nor a file of annotations")
    paths = find_images(labels, SUFFIXES)
    found = annotation_files(paths, label_suffix)
    is_chosen = label_suffix.lower().endswith(SUFFIXES)
    if not found or (not is_chosen and _has_label_maps(labels, images, paths, label_suffix)):
        return None
    if len(kinds := sorted({path.suffix.lower() for path in found})) > 1:
        raise ValueError(
            f"{str(labels)!r} holds annotations in {' and '.join(kinds)} files; choose one by "
            f"label_suffix, such as `label_suffix: {kinds[0]}`"
        )
    return read_annotations(found, labels, images)


def annotation_files(paths: Sequence[Path], label_suffix: str) -> list[Path]:
    """Returns the files that have annotations, as their names and starts say.

    If there is nothing else, files whose starts do not say it are returned, so that reading them
    raises an error with their name.
    """
    possible = [path for path in paths if _may_be_annotations(path, label_suffix)]
    found = [path for path in possible if _starts_like_annotations(path)]
    if any(path.suffix.lower() == ".txt" for path in found):  # a file with a fault is not left out
        found = [path for path in possible if path in found or path.suffix.lower() == ".txt"]
    has_others = any(path.suffix.lower() not in SUFFIXES for path in paths)
    return found if found or has_others else possible


def _may_be_annotations(path: Path, label_suffix: str) -> bool:
    if path.suffix.lower() not in SUFFIXES or path.name.lower().startswith(OTHERS):
        return False
    return path.name.endswith(label_suffix) or path.stem.endswith(label_suffix)


def _starts_like_annotations(path: Path) -> bool:
    suffix = path.suffix.lower()
    if suffix == ".csv":
        return kaggle.is_header(_first_line(path))
    return suffix != ".txt" or yolo.is_segments(_first_line(path))


def _first_line(path: Path) -> str:
    with path.open(encoding="utf-8", errors="replace") as file:
        return file.readline(1 << 16)


def _has_label_maps(labels: Path, images: Path, paths: Sequence[Path], label_suffix: str) -> bool:
    """Returns whether a folder has image files that are not images."""
    maps = [path for path in paths if path.suffix.lower() not in SUFFIXES]
    if labels.resolve() == images.resolve():
        return bool(label_suffix) and any(path.stem.endswith(label_suffix) for path in maps)
    if images.resolve().is_relative_to(labels.resolve()):
        maps = [path for path in maps if not path.resolve().is_relative_to(images.resolve())]
    return bool(maps)


def read_annotations(paths: Sequence[Path], labels: Path, images: Path) -> Annotations:
    """Returns the annotations of files of one type; those of one image each are not read yet.

    Raises:
        ValueError: If a file is of no known format, or a value in it is wrong.
    """
    suffix = paths[0].suffix.lower()
    if suffix == ".txt":
        return Annotations(labels, [], list(paths), yolo.reader_of(paths[0].parent, images))
    if suffix == ".geojson":
        return Annotations(labels, [], list(paths))
    if suffix == ".csv":
        return Annotations(labels, [image for path in paths for image in kaggle.read(path)])
    if suffix == ".xml":
        return Annotations(labels, [image for path in paths for image in _of_xml(path)])
    if suffix != ".json":
        raise ValueError(
            f"{str(paths[0])!r} is no file of annotations; they end in {', '.join(SUFFIXES)}"
        )
    first = read_json(paths[0])
    if isinstance(first, dict) and _says_one_image(first):
        return Annotations(labels, [], list(paths))
    contents = [first, *map(read_json, paths[1:])]
    return Annotations(
        labels,
        [
            image
            for path, content in zip(paths, contents, strict=True)
            for image in _of_json(path, content)
        ],
    )


def _of_json(path: Path, content: Any) -> list[Annotated]:
    if isinstance(content, list) and content and isinstance(content[0], dict):
        tasks = Record(path, "", {"tasks": content})
        if {"annotations", "completions"} & content[0].keys():
            return label_studio.read(tasks)
        if "image" in content[0]:
            raise ValueError(f"{str(path)!r} is Label Studio's JSON-MIN; export it as JSON")
    if isinstance(content, dict) and {"images", "annotations"} <= content.keys():
        return coco.read(Record(path, "", content))
    raise _unknown(path, content)


def _of_xml(path: Path) -> list[Annotated]:
    root = read_xml(path)
    if root.tag != "annotations":
        raise ValueError(
            f"{str(path)!r} begins with <{root.tag}>, and CVAT's XML with <annotations>; export it "
            "as CVAT for images 1.1"
        )
    return cvat.read(path, root)
