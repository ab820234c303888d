"""From image files to label maps: ``segformer predict WEIGHTS IMAGE… --out DIR``."""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from tqdm import tqdm

from segformer.data.datasets import find_images, read_image
from segformer.data.transforms import Normalize, PadTo
from segformer.evaluation import Slide, label_large
from segformer.models import SegFormer, SegmentationModel
from segformer.visualize import indexed, overlay


def label_file(model: SegmentationModel, path: str | os.PathLike[str], slide: Slide | None = None) -> tuple[Image.Image, np.ndarray]:
    """An image file and its labels (H, W) at its own size, uint8.

    Args:
        model: the network.
        path: the image file.
        slide: label it through windows, for images that are larger than what the network was trained on, or than memory.

    Raises:
        ValueError: naming the file, when it cannot be decoded.
    """
    image = read_image(path)
    if slide is not None and (image.shape[1] > slide.crop_size[0] or image.shape[2] > slide.crop_size[1]):
        pixels = image.permute(1, 2, 0).numpy()
        labels = np.zeros(pixels.shape[:2], np.uint8)
        label_large(model, pixels, labels, slide, device=next(model.parameters()).device)
        return Image.fromarray(pixels), labels
    size = getattr(model.backbone, "min_size", 1)
    images = PadTo((size, size))(Normalize()(image))[None].to(next(model.parameters()))  # device and precision
    predicted = model.predict(images)[0, : image.shape[1], : image.shape[2]]
    return Image.fromarray(image.permute(1, 2, 0).numpy()), predicted.to("cpu", torch.uint8).numpy()


def plan(sources: Iterable[str], out: Path, overwrite: bool = False, share: slice = slice(None)) -> dict[Path, tuple[Path, Path]]:
    """The files to write for each image of the given files and folders: label map ``out/NAME.png`` and ``out/NAME_overlay.png``.

    Subfolders are kept. Of several processes each takes its ``share`` of the images.

    Raises:
        FileNotFoundError: when a file or folder is missing or a folder holds no image.
        FileExistsError: when a file to write is there already, unless ``overwrite`` says so; an image to label is never overwritten.
        ValueError: when two images would share a file to write.
    """
    targets_of: dict[Path, tuple[Path, Path]] = {}
    for source in map(Path, sources):
        if not source.exists():
            raise FileNotFoundError(f"no image or folder {str(source)!r}")
        folder, paths = (source, find_images(source)) if source.is_dir() else (source.parent, [source])
        for path in paths:
            target = out / path.relative_to(folder).with_suffix(".png")
            targets_of[path] = (target, target.with_name(f"{target.stem}_overlay.png"))
    images = {path.resolve() for path in targets_of}
    taken: dict[Path, Path] = {}
    for path, targets in targets_of.items():
        for target in targets:
            if target in taken:
                both = f"{str(taken[target])!r} and {str(path)!r}"
                raise ValueError(f"{both} would both be written to {str(target)!r}; label them one by one")
            taken[target] = path
    mine = dict(list(targets_of.items())[share])
    for targets in mine.values():
        for target in targets:
            if target.resolve() in images or (target.exists() and not overwrite):
                raise FileExistsError(f"{str(target)!r} is there already; choose another folder with --out, or add --overwrite")
    return mine


def main(args: list[str]) -> None:
    """``segformer predict``: writes ``NAME.png``, class indices with their palette, and ``NAME_overlay.png`` for each image."""
    parser = argparse.ArgumentParser("segformer predict", description="Label images with a trained network.")
    parser.add_argument("weights", help="file, folder or Hugging Face id, in any layout that SegFormer.from_pretrained reads")
    parser.add_argument("images", nargs="+", help="image files, or folders of them")
    parser.add_argument("--out", type=Path, required=True, help="folder for the label maps and overlays; made where it is missing")
    parser.add_argument("--overwrite", action="store_true", help="replace label maps and overlays of an earlier run")
    device = f"cuda:{os.environ.get('LOCAL_RANK', 0)}" if torch.cuda.is_available() else "cpu"
    parser.add_argument("--device", default=device, help="such as cpu or cuda:0")
    parser.add_argument("--slide", type=int, nargs=2, metavar=("CROP", "STRIDE"), help="label through square windows, such as 1024 768")
    options = parser.parse_args(args)
    try:
        _predict(options)
    except (OSError, ValueError) as error:
        sys.exit(f"segformer predict: {error}")


def _predict(options: argparse.Namespace) -> None:
    share = slice(int(os.environ.get("RANK", 0)), None, int(os.environ.get("WORLD_SIZE", 1)))  # torchrun's
    targets_of = plan(options.images, options.out, options.overwrite, share)
    try:
        options.out.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=options.out).close()
    except OSError as error:
        raise OSError(f"the folder {str(options.out)!r} cannot be written ({error.strerror}); choose another with --out") from error
    model = SegFormer.from_pretrained(options.weights).to(options.device)
    slide = Slide((options.slide[0],) * 2, (options.slide[1],) * 2) if options.slide else None
    counts = np.zeros(256, dtype=np.int64)
    refused = []
    for path, (label_map, picture) in tqdm(targets_of.items(), "predict", unit="image"):
        try:
            image, labels = label_file(model, path, slide)
        except ValueError as error:  # one broken image must not cost the others
            refused.append(str(error))
            continue
        label_map.parent.mkdir(parents=True, exist_ok=True)
        indexed(labels, model.classes).save(label_map)
        overlay(image, labels, model.classes).save(picture)
        counts += np.bincount(labels.ravel(), minlength=256)
    if counts.any():
        print(_histogram(counts, model))
    print(f"{len(targets_of) - len(refused)} label maps and overlays in {options.out}")
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
