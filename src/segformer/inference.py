"""From image files to label maps: ``segformer predict WEIGHTS IMAGE… --out DIR``."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms.v2 import functional as F
from tqdm import tqdm

from segformer.data.datasets import find_images, read_image
from segformer.data.transforms import normalize
from segformer.models import SegFormer, SegmentationModel
from segformer.visualize import indexed, overlay


def label_file(model: SegmentationModel, path: str | os.PathLike[str]) -> tuple[Image.Image, np.ndarray]:
    """An image file and its labels (H, W) at its own size, uint8.

    Raises:
        ValueError: naming the file, when it cannot be decoded.
    """
    image = read_image(path)
    images = pad_to_at_least(normalize()(image)[None], getattr(model.backbone, "MIN_SIZE", 1))
    images = images.to(next(model.parameters()).device)
    labels = model.predict(images)[0, : image.shape[1], : image.shape[2]]
    return Image.fromarray(image.permute(1, 2, 0).numpy()), labels.to("cpu", torch.uint8).numpy()


def pad_to_at_least(images: Tensor, size: int) -> Tensor:
    """Images (B, C, H, W) padded right and bottom with 0, the mean colour, to ``size`` pixels a side at the least."""
    height, width = images.shape[-2:]
    if height >= size and width >= size:
        return images
    return F.pad(images, [0, 0, max(0, size - width), max(0, size - height)])


def plan(sources: Iterable[str], out: Path) -> dict[Path, Path]:
    """The label map to write for each image of the given files and folders: ``out/NAME.png``, subfolders kept.

    Raises:
        FileNotFoundError: when a file or folder is missing or a folder holds no image.
        ValueError: when two images would share a label map, or a label map would overwrite an image.
    """
    image_of: dict[Path, Path] = {}
    for source in map(Path, sources):
        if not source.exists():
            raise FileNotFoundError(f"no image or folder {str(source)!r}")
        folder, paths = (source, find_images(source)) if source.is_dir() else (source.parent, [source])
        for path in paths:
            target = out / path.relative_to(folder).with_suffix(".png")
            if target in image_of:
                raise ValueError(f"{str(image_of[target])!r} and {str(path)!r} would both be written to {str(target)!r}; label them one by one")
            image_of[target] = path
    images = {path.resolve() for path in image_of.values()}
    for target, path in image_of.items():
        if target.resolve() in images:
            raise ValueError(f"the label map of {str(path)!r} would overwrite the image {str(target)!r}; choose another folder with --out")
    return {path: target for target, path in image_of.items()}


def main(args: list[str]) -> None:
    """``segformer predict``: writes ``NAME.png``, class indices with their palette, and ``NAME_overlay.png`` for each image."""
    parser = argparse.ArgumentParser("segformer predict", description="Label images with a trained network.")
    parser.add_argument("weights", help="file, folder or Hugging Face id, in any layout that SegFormer.from_pretrained reads")
    parser.add_argument("images", nargs="+", help="image files, or folders of them")
    parser.add_argument("--out", type=Path, required=True, help="folder for the label maps and overlays; made where it is missing")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="such as cpu or cuda:0")
    options = parser.parse_args(args)
    try:
        _predict(options)
    except (OSError, ValueError) as error:
        sys.exit(f"segformer predict: {error}")


def _predict(options: argparse.Namespace) -> None:
    target_of = plan(options.images, options.out)
    options.out.mkdir(parents=True, exist_ok=True)
    if not os.access(options.out, os.W_OK):
        raise PermissionError(f"the folder {str(options.out)!r} cannot be written; choose another with --out")
    model = SegFormer.from_pretrained(options.weights).to(options.device)
    counts = np.zeros(256, dtype=np.int64)
    refused = []
    for path, target in tqdm(target_of.items(), "predict", unit="image"):
        try:
            image, labels = label_file(model, path)
        except ValueError as error:  # one broken image must not cost the others
            refused.append(str(error))
            continue
        target.parent.mkdir(parents=True, exist_ok=True)
        indexed(labels, model.classes).save(target)
        overlay(image, labels, model.classes).save(target.with_name(f"{target.stem}_overlay.png"))
        counts += np.bincount(labels.ravel(), minlength=256)
    if counts.any():
        print(_histogram(counts, model))
    print(f"{len(target_of) - len(refused)} label maps and overlays in {options.out}")
    if refused:
        raise ValueError("; ".join(refused))


def _histogram(counts: np.ndarray, model: SegmentationModel) -> str:
    """Each class's share of all pixels, the greatest first."""
    shares = counts / counts.sum()
    width = max(map(len, model.classes.names))
    rows = [
        f"{model.classes.names[k]:{width}}  {100 * shares[k]:6.2f} %  {'█' * round(40 * shares[k])}".rstrip()
        for k in np.argsort(-shares, kind="stable")
        if counts[k]
    ]
    return "\n".join(rows)
