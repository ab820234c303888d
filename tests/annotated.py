"""One scene with holes and overlaps, written in every format of annotations."""

from __future__ import annotations

import base64
import csv
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pycocotools.mask
import shapely
from PIL import Image
from shapely import Polygon

from segformer import Classes

HEIGHT, WIDTH = 40, 56
CLASSES = Classes(["background", "road", "car", "person"])
# In the annotators' order. The corners are such that no pixel's centre is on an edge.
OBJECTS: list[tuple[str, list[Polygon]]] = [
    (
        "road",
        [Polygon([(2, 3), (54, 3), (54, 38), (2, 38)], [[(10, 8), (30, 8), (30, 30), (10, 30)]])],
    ),
    ("car", [Polygon([(5.2, 10.1), (40.3, 5.7), (33.9, 28.4)])]),
    ("road", [Polygon([(20, 10), (26, 10), (26, 16), (20, 16)])]),  # a road over a car
    (
        "person",
        [Polygon([(1, 1), (8, 1), (8, 9), (1, 9)]), Polygon([(45, 30), (60, 30), (50, 44)])],
    ),
]
# The first road as label_studio_sdk 2.1.2 packs its mask (converter.brush.mask2rle).
BRUSHED_ROAD = (
    "AAAjADkb/wKnANn/98A2f/3wDZ//fANn/98A2f/3wDD//k8Ay//3wDD//k8Ay//3wDD//k8Ay//3wDD//k8Ay//3wDD//"
    "k8Ay//3wDD//k8Ay//3wDD//k8Ay//3wDD//k8Ay//3wDD//k8Ay//3wDD//k8Ay//3wDD//k8Ay//3wDD//k8Ay//3wD"
    "D//k8Ay//3wDD//k8Ay//3wDD//k8Ay//3wDD//k8Ay//3wDD//k8Ay//3wDD//k8Ay//3wDD//k8Ay//3wDD//k8Ay//"
    "3wDD//k8Ay//3wDD//k8Ay//3wDZ//fANn/98A2f/3wDZ//fANn/98A2f/3wDZ//fANn//AccAA=="
)
SIZE = {"height": HEIGHT, "width": WIDTH}


def mask(polygons: list[Polygon]) -> np.ndarray:
    """The pixels whose centres are in a polygon, by shapely."""
    y, x = np.mgrid[:HEIGHT, :WIDTH] + 0.5
    return np.any([shapely.contains_xy(polygon, x, y) for polygon in polygons], 0)


def label_map(unlabelled: int = 0) -> np.ndarray:
    labels = np.full((HEIGHT, WIDTH), unlabelled, np.uint8)
    for name, polygons in OBJECTS:
        labels[mask(polygons)] = CLASSES.names.index(name)
    return labels


def corners(ring: Any) -> list[list[float]]:
    return [list(point) for point in ring.coords[:-1]]


def bridged(polygon: Polygon) -> list[list[float]]:
    """Its outline, and its holes by bridges that are walked twice."""
    outline = corners(polygon.exterior)
    for hole in polygon.interiors:
        ring = corners(hole)
        outline += [outline[0], *ring, ring[0]]
    return outline


def has_hole(polygons: list[Polygon]) -> bool:
    return any(polygon.interiors for polygon in polygons)


def runs_of_rows(pixels: np.ndarray) -> list[int]:
    values = np.concatenate([[0], pixels.ravel().astype(int), [1 - int(pixels.ravel()[-1])]])
    edges = np.flatnonzero(np.diff(values))
    return np.diff(np.concatenate([[0], edges])).tolist()


def coco(path: Path, image: str, is_compressed: bool = True, runs: bool = False) -> Path:
    annotations = []
    for number, (name, polygons) in enumerate(OBJECTS, 1):
        segmentation: Any = [[c for xy in corners(p.exterior) for c in xy] for p in polygons]
        if runs or has_hole(polygons):
            if is_compressed:
                segmentation = pycocotools.mask.encode(np.asfortranarray(mask(polygons), np.uint8))
                segmentation["counts"] = segmentation["counts"].decode()
            else:
                segmentation = {"size": [HEIGHT, WIDTH], "counts": runs_of_rows(mask(polygons).T)}
        annotations.append(
            {
                "id": number,
                "image_id": 7,
                "category_id": 10 * CLASSES.names.index(name),
                "segmentation": segmentation,
                "iscrowd": int(isinstance(segmentation, dict)),
                "bbox": [0, 0, 1, 1],
                "area": 1.0,
            }
        )
    categories = [{"id": 10 * k, "name": name} for k, name in enumerate(CLASSES.names)]
    images = [{"id": 7, "file_name": image, **SIZE}]
    path.write_text(
        json.dumps({"images": images, "annotations": annotations, "categories": categories})
    )
    return path


def coco_of_lists(path: Path, image: str) -> Path:
    return coco(path, image, is_compressed=False)


def coco_of_masks(path: Path, image: str) -> Path:
    return coco(path, image, runs=True)


def png(pixels: np.ndarray) -> str:
    file = io.BytesIO()
    Image.fromarray(pixels.astype(np.uint8) * 255).convert("1").save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode()


def box(pixels: np.ndarray) -> tuple[int, int, int, int]:
    """First row and column, last row and column."""
    rows, columns = np.flatnonzero(pixels.any(1)), np.flatnonzero(pixels.any(0))
    return int(rows[0]), int(columns[0]), int(rows[-1]), int(columns[-1])


def labelme(path: Path, image: str) -> Path:
    shapes: list[dict[str, Any]] = []
    for name, polygons in OBJECTS:
        if has_hole(polygons):
            top, left, bottom, right = box(mask(polygons))
            cut = mask(polygons)[top : bottom + 1, left : right + 1]
            points = [[left, top], [right, bottom]]
            shapes.append({"shape_type": "mask", "points": points, "mask": png(cut), "label": name})
            continue
        for polygon in polygons:
            points = corners(polygon.exterior)
            is_box = polygon.equals(shapely.envelope(polygon)) and name == "person"
            kind = {"points": [points[0], points[2]], "shape_type": "rectangle"}
            shapes.append({"label": name, "points": points, "shape_type": "polygon"})
            shapes[-1] |= kind if is_box else {}
    common = {"group_id": None, "description": "", "flags": {}, "mask": None}
    content = {
        "version": "5.10.1",
        "flags": {},
        "shapes": [common | shape for shape in shapes],
        "imagePath": f"..\\images\\{Path(image).name}",
        "imageData": None,
        "imageHeight": HEIGHT,
        "imageWidth": WIDTH,
    }
    path.write_text(json.dumps(content))
    return path


def cvat(path: Path, image: str) -> Path:
    """The objects are stored in another order than that of z_order."""
    root = ElementTree.Element("annotations")
    ElementTree.SubElement(root, "version").text = "1.1"
    named = ElementTree.SubElement(
        root, "image", id="0", name=image, **{k: str(v) for k, v in SIZE.items()}
    )
    ElementTree.SubElement(named, "tag", label="sunny")
    for order, (name, polygons) in reversed(list(enumerate(OBJECTS))):
        common = {"label": name, "z_order": str(order), "occluded": "0", "source": "manual"}
        if has_hole(polygons):
            top, left, bottom, right = box(mask(polygons))
            cut = mask(polygons)[top : bottom + 1, left : right + 1]
            place = {"top": top, "left": left, "width": cut.shape[1], "height": cut.shape[0]}
            texts = {key: str(value) for key, value in place.items()}
            rle = ", ".join(map(str, runs_of_rows(cut)))
            ElementTree.SubElement(named, "mask", rle=rle, **texts, **common)
            continue
        for polygon in polygons:
            points = corners(polygon.exterior)
            if polygon.equals(shapely.envelope(polygon)):
                (left, top), (right, bottom) = points[0], points[2]
                sides = {"xtl": left, "ytl": top, "xbr": right, "ybr": bottom}
                texts = {key: str(value) for key, value in sides.items()}
                ElementTree.SubElement(named, "box", **texts, **common)
            else:
                text = ";".join(f"{x},{y}" for x, y in points)
                ElementTree.SubElement(named, "polygon", points=text, **common)
    ElementTree.ElementTree(root).write(path, "utf-8", xml_declaration=True)
    return path


def yolo(path: Path, image: str) -> Path:
    lines = []
    for name, polygons in OBJECTS:
        for polygon in polygons:
            values = [v for x, y in bridged(polygon) for v in (x / WIDTH, y / HEIGHT)]
            lines.append(" ".join(map(repr, [CLASSES.names.index(name), *values])))
    path.write_text("\n".join(lines) + "\n")
    names = "".join(f"  {k}: {name}\n" for k, name in enumerate(CLASSES.names))
    path.with_name("data.yaml").write_text(f"path: .\nnames:\n{names}")
    return path


def label_studio(path: Path, image: str) -> Path:
    result: list[dict[str, Any]] = []
    for name, polygons in OBJECTS:
        common = {"original_width": WIDTH, "original_height": HEIGHT, "image_rotation": 0}
        common |= {"from_name": "label", "to_name": "image", "id": f"r{len(result)}"}
        if has_hole(polygons):
            value = {
                "format": "rle",
                "rle": list(base64.b64decode(BRUSHED_ROAD)),
                "brushlabels": [name],
            }
            result.append(common | {"type": "brushlabels", "value": value})
            continue
        for polygon in polygons:
            points = [[100 * x / WIDTH, 100 * y / HEIGHT] for x, y in corners(polygon.exterior)]
            value = {"points": points, "closed": True, "polygonlabels": [name]}
            result.append(common | {"type": "polygonlabels", "value": value})
    task = {
        "id": 3,
        "annotations": [
            {"id": 1, "was_cancelled": True, "result": []},
            {"id": 2, "was_cancelled": False, "result": result},
        ],
        "data": {"image": f"/data/upload/1/0fe1d2c3-{image}"},
        "predictions": [{"result": []}],
    }
    path.write_text(json.dumps([task]))
    return path


def kaggle(path: Path, image: str) -> Path:
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["ImageId", "ClassId", "EncodedPixels"])
        for name, polygons in OBJECTS:
            counts = np.cumsum([0, *runs_of_rows(mask(polygons).T)])
            starts, ends = counts[1::2], counts[2::2]
            pairs = zip(starts[: len(ends)], ends, strict=True)
            runs = " ".join(f"{start + 1} {end - start}" for start, end in pairs)
            writer.writerow([Path(image).stem, name, runs])
    return path


def geojson(
    path: Path,
    image: str,
    place: Callable[[float, float], tuple[float, float]] = lambda x, y: (x, y),
    crs: str | None = None,
) -> Path:
    features = []
    for name, polygons in OBJECTS:
        moved = [shapely.transform(p, lambda xy: [place(*point) for point in xy]) for p in polygons]
        shape = moved[0] if len(moved) == 1 else shapely.MultiPolygon(moved)
        geometry = json.loads(shapely.to_geojson(shape))
        features.append({"type": "Feature", "properties": {"class": name}, "geometry": geometry})
    content: dict[str, Any] = {"type": "FeatureCollection", "features": features}
    if crs is not None:
        content["crs"] = {"type": "name", "properties": {"name": crs}}
    path.write_text(json.dumps(content))
    return path


def class_folders(folder: Path, image: str) -> Path:
    """Masks do not overlap: each is that of the pixels that are seen."""
    for k, name in enumerate(CLASSES.names[1:], 1):
        target = folder / name / f"{Path(image).stem}.png"
        target.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray((label_map() == k).astype(np.uint8) * 255).save(target)
    return folder


def class_suffixes(folder: Path, image: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for k, name in enumerate(CLASSES.names[1:], 1):
        Image.fromarray(label_map() == k).save(folder / f"{Path(image).stem}_{name}.png")
    return folder


# The writer of each format, and the file that it writes for an image named scene.
FORMATS: dict[str, tuple[Callable[..., Path], str]] = {
    "coco": (coco, "all.json"),
    "coco_of_lists": (coco_of_lists, "all.json"),
    "coco_of_masks": (coco_of_masks, "all.json"),
    "labelme": (labelme, "scene.json"),
    "cvat": (cvat, "all.xml"),
    "yolo": (yolo, "scene.txt"),
    "label_studio": (label_studio, "all.json"),
    "kaggle": (kaggle, "all.csv"),
    "geojson": (geojson, "scene.geojson"),
}
