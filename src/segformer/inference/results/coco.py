"""The masks of a run as COCO JSON."""

from __future__ import annotations

import json
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from segformer.data.classes import Classes
from segformer.data.complete import complete
from segformer.inference.results.base import Entry, Prediction, Summary


class Coco(Summary):
    """``coco.json``: a run-length mask for each class of each image, as pycocotools reads them.

    The number of a category is the class index plus 1.
    """

    name = "coco"
    file = "coco.json"

    def check(self) -> None:
        """Raises ModuleNotFoundError if pycocotools is missing."""
        if find_spec("pycocotools") is None:
            raise ModuleNotFoundError(
                "coco needs pycocotools; install segformer[annotations]", name="pycocotools"
            )

    def entry(self, prediction: Prediction) -> Entry:
        """Returns the size of an image and the masks of its classes."""
        labels, num = prediction.labels, len(prediction.classes)
        height, width = labels.shape
        present = np.unique(labels[labels < num]).tolist()
        masks = [_mask(labels == k, k) for k in present]
        return {"file": prediction.name, "height": height, "width": width, "masks": masks}

    def write(self, path: Path, entries: Mapping[str, Entry], classes: Classes) -> None:
        """Writes the file; images and masks are numbered from 1."""
        images: list[Entry] = []
        annotations: list[Entry] = []
        for image, entry in enumerate(entries.values(), 1):
            size = {key: entry[key] for key in ("width", "height")}
            images.append({"id": image, "file_name": entry["file"], **size})
            for mask in entry["masks"]:
                annotations.append({"id": len(annotations) + 1, "image_id": image, **mask})
        categories = [{"id": k + 1, "name": name} for k, name in enumerate(classes.names)]
        content = {"images": images, "annotations": annotations, "categories": categories}
        with complete(path) as partial:
            partial.write_text(json.dumps(content, ensure_ascii=False) + "\n", encoding="utf-8")


def _mask(mask: np.ndarray, k: int) -> dict[str, Any]:
    from pycocotools import mask as coco

    run_lengths = coco.encode(np.asfortranarray(mask, np.uint8))
    return {
        "category_id": k + 1,
        "segmentation": {**run_lengths, "counts": run_lengths["counts"].decode()},
        "area": int(coco.area(run_lengths)),
        "bbox": coco.toBbox(run_lengths).tolist(),
        "iscrowd": 0,
    }
