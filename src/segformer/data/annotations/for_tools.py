"""Files that annotation tools open: labels that a model suggests, for people to correct.

The formats are those of LabelMe's JSON files (version 5), of CVAT's "CVAT for images 1.1", and of
Label Studio's tasks with predictions.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any
from urllib.parse import quote
from xml.etree import ElementTree

from segformer.data.annotations.shapes import Polygon
from segformer.data.classes import Classes
from segformer.data.complete import complete


@dataclass(frozen=True)
class Suggested:
    """An image and the outlines that a model suggests.

    Args:
        path: Path of the image file.
        name: Its path below the folder of images.
        size: Height and width.
        polygons: Outlines in the order in which they are drawn.
        score: How useful its correction is; greater is more.
    """

    path: Path
    name: PurePath
    size: tuple[int, int]
    polygons: Sequence[Polygon]
    score: float


def write_labelme(folder: Path, images: Sequence[Suggested], classes: Classes) -> list[Path]:
    """Writes a JSON file for each image, which names it by its path from there."""
    written = []
    for image in images:
        shapes: list[dict[str, Any]] = [
            {
                "label": classes.names[polygon.value],
                "points": _points(polygon),
                "group_id": None,
                "description": "",
                "shape_type": "polygon",
                "flags": {},
                "mask": None,
            }
            for polygon in image.polygons
        ]
        path = folder / image.name.with_suffix(".json")
        content: dict[str, Any] = {
            "version": "5.5.0",
            "flags": {},
            "shapes": shapes,
            "imagePath": Path(os.path.relpath(image.path, path.parent)).as_posix(),
            "imageData": None,
            "imageHeight": image.size[0],
            "imageWidth": image.size[1],
        }
        _write(path, json.dumps(content, indent=2, ensure_ascii=False))
        written.append(path)
    return written


def write_cvat(folder: Path, images: Sequence[Suggested], classes: Classes) -> list[Path]:
    """Writes ``annotations.xml`` for all images, which CVAT uploads to a task of these images."""
    root = ElementTree.Element("annotations")
    ElementTree.SubElement(root, "version").text = "1.1"
    task = ElementTree.SubElement(ElementTree.SubElement(root, "meta"), "task")
    labels = ElementTree.SubElement(task, "labels")
    for name, color in zip(classes.names, classes.shown_colors, strict=True):
        label = ElementTree.SubElement(labels, "label")
        ElementTree.SubElement(label, "name").text = name
        ElementTree.SubElement(label, "color").text = _hex(color)
        ElementTree.SubElement(label, "attributes")
    for number, image in enumerate(images):
        height, width = image.size
        element = ElementTree.SubElement(
            root,
            "image",
            {"id": str(number), "name": image.name.as_posix()},
            width=str(width),
            height=str(height),
        )
        for order, polygon in enumerate(image.polygons):
            points = ";".join(f"{x:.2f},{y:.2f}" for x, y in _points(polygon))
            attributes = {
                "label": classes.names[polygon.value],
                "source": "auto",
                "occluded": "0",
                "points": points,
                "z_order": str(order),
            }
            ElementTree.SubElement(element, "polygon", attributes)
    ElementTree.indent(root)
    path = folder / "annotations.xml"
    _write(path, ElementTree.tostring(root, encoding="unicode", xml_declaration=True))
    return [path]


def write_label_studio(folder: Path, images: Sequence[Suggested], classes: Classes) -> list[Path]:
    """Writes ``tasks.json`` with predictions, and ``labels.xml``, the project's labels.

    The images are files of Label Studio's local storage, whose root is the folder of images.
    """
    tasks = [_task(image, classes) for image in images]
    view = ElementTree.Element("View")
    ElementTree.SubElement(view, "Image", {"name": "image", "value": "$image"})
    labels = ElementTree.SubElement(view, "PolygonLabels", {"name": "label", "toName": "image"})
    for name, color in zip(classes.names, classes.shown_colors, strict=True):
        ElementTree.SubElement(labels, "Label", {"value": name, "background": _hex(color)})
    ElementTree.indent(view)
    written = [folder / "tasks.json", folder / "labels.xml"]
    _write(written[0], json.dumps(tasks, indent=1, ensure_ascii=False))
    _write(written[1], ElementTree.tostring(view, encoding="unicode"))
    return written


def _task(image: Suggested, classes: Classes) -> dict[str, Any]:
    height, width = image.size
    result = [
        {
            "id": f"area{number}",
            "type": "polygonlabels",
            "from_name": "label",
            "to_name": "image",
            "original_width": width,
            "original_height": height,
            "image_rotation": 0,
            "value": {
                "points": [[100 * x / width, 100 * y / height] for x, y in _points(polygon)],
                "closed": True,
                "polygonlabels": [classes.names[polygon.value]],
            },
        }
        for number, polygon in enumerate(image.polygons)
    ]
    return {
        "data": {"image": f"/data/local-files/?d={quote(image.name.as_posix())}"},
        "predictions": [{"model_version": "segformer", "score": image.score, "result": result}],
    }


TOOLS: dict[str, Callable[[Path, Sequence[Suggested], Classes], list[Path]]] = {
    "labelme": write_labelme,
    "cvat": write_cvat,
    "label-studio": write_label_studio,
}


def _points(polygon: Polygon) -> list[list[float]]:
    return [[float(x), float(y)] for x, y in polygon.rings[0]]


def _hex(color: Sequence[int]) -> str:
    return "#{:02x}{:02x}{:02x}".format(*color)


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with complete(path) as partial:
        partial.write_text(text, encoding="utf-8")
