"""From image files to label maps."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from tqdm import tqdm

from segformer.data.images import find_images, read_image
from segformer.data.labels import file_type
from segformer.evaluation import WINDOWS, Slide, as_batch, label_large
from segformer.inference.pictures import indexed, overlay, with_legend
from segformer.models import SegFormer, SegmentationModel

ARRAY = ".npy"  # an image of any size, mapped into memory


def label_file(
    model: SegmentationModel, path: str | os.PathLike[str], slide: Slide | None = None
) -> tuple[Image.Image, np.ndarray]:
    """An image file, turned upright, and its labels (H, W) at its own size.

    Labels are uint8, or uint16 for more than 255 classes.

    Args:
        model: the network.
        path: the image file.
        slide: label it through windows, for images larger than what the network was trained on, or whose logits are larger than memory.

    Raises:
        ValueError: naming the file, when it cannot be decoded.
    """
    image, device = read_image(path), next(model.parameters()).device
    if slide is not None and (
        image.shape[1] > slide.crop_size[0] or image.shape[2] > slide.crop_size[1]
    ):
        pixels = image.permute(1, 2, 0).numpy()
        labels = np.zeros(pixels.shape[:2], file_type(model.num_classes))
        label_large(model, pixels, labels, slide, device=device)
        return Image.fromarray(pixels), labels
    predicted = model.predict(as_batch(model, image, device))[0, : image.shape[1], : image.shape[2]]
    labels = predicted.cpu().numpy().astype(file_type(model.num_classes))
    return Image.fromarray(image.permute(1, 2, 0).numpy()), labels


def label_array(model: SegmentationModel, path: Path, target: Path, slide: Slide) -> np.ndarray:
    """An image that need not fit into memory, ``.npy``, RGB uint8 (H, W, 3), and its labels, another: mapped, not read.

    Args:
        model: the network.
        path: the image's file.
        target: the labels' file, uint8 (H, W), or uint16 for more than 255 classes; it is there
            when all of it is.
        slide: the windows, of which a band at a time is in memory.

    Raises:
        ValueError: naming the file, when it holds no RGB image.
    """
    partial = target.with_name(f".{target.name}.part")
    try:
        image = np.lib.format.open_memmap(path, "r")
        dtype = file_type(model.num_classes)
        labels = np.lib.format.open_memmap(partial, "w+", dtype, image.shape[:2])
        label_large(model, image, labels, slide, device=next(model.parameters()).device)
        labels.flush()
        os.replace(partial, target)
    except ValueError as error:
        raise ValueError(f"cannot label {str(path)!r}: {error}") from error
    finally:
        partial.unlink(missing_ok=True)
    return labels


def plan(
    sources: Iterable[str], out: Path, overwrite: bool = False, share: slice = slice(None)
) -> dict[Path, tuple[Path, ...]]:
    """The files to write for each image of the given files and folders: label map ``out/NAME.png`` and ``out/NAME_overlay.png``.

    Of ``NAME.npy``, given by itself, it is ``out/NAME.npy`` alone. Subfolders are kept. Of several processes each takes its ``share``.

    Raises:
        FileNotFoundError: when a file or folder is missing or a folder holds no image.
        FileExistsError: when a file to write is there already, unless ``overwrite`` says so; an image to label is never overwritten.
        ValueError: when two images would share a file to write.
    """
    targets_of: dict[Path, tuple[Path, ...]] = {}
    for source in map(Path, sources):
        if not source.exists():
            raise FileNotFoundError(f"no image or folder {str(source)!r}")
        folder, paths = (
            (source, find_images(source)) if source.is_dir() else (source.parent, [source])
        )
        for path in paths:
            target = out / path.relative_to(folder)
            label_map = target.with_suffix(".png")
            targets_of[path] = (
                (target,)
                if path.suffix == ARRAY
                else (label_map, label_map.with_name(f"{target.stem}_overlay.png"))
            )
    images = {path.resolve() for path in targets_of}
    taken: dict[Path, Path] = {}
    for path, targets in targets_of.items():
        for target in targets:
            if target in taken:
                both = f"{str(taken[target])!r} and {str(path)!r}"
                raise ValueError(
                    f"{both} would both be written to {str(target)!r}; label them one by one"
                )
            taken[target] = path
    mine = dict(list(targets_of.items())[share])
    for targets in mine.values():
        for target in targets:
            if target.resolve() in images or (target.exists() and not overwrite):
                raise FileExistsError(
                    f"{str(target)!r} is there already; choose another folder with --out, or add --overwrite"
                )
    return mine


def label_files(
    weights: str,
    sources: Iterable[str],
    out: Path,
    *,
    windows: tuple[int, int] | None = None,
    overwrite: bool = False,
    device: str | None = None,
) -> None:
    """Write ``NAME.png`` and ``NAME_overlay.png`` for each image, and print each class's share.

    ``NAME.png`` contains class indices, with the classes' colours as its palette. The overlay
    shows the colours over the image, with a legend. Of several processes that ``torchrun`` starts,
    each labels its share of the images.

    Args:
        weights: File, folder or Hugging Face id of the network.
        sources: Image files, or folders of images.
        out: Folder of the written files; created if missing.
        windows: Size and stride of the square windows through which images are labelled; by
            default images are labelled whole.
        overwrite: Replace files of an earlier run.
        device: Such as ``"cpu"``; by default the GPU, if there is one.

    Raises:
        OSError: If a file or folder is missing, exists already or cannot be written.
        ValueError: If images cannot be read; all others are labelled before.
    """
    slide = Slide((windows[0],) * 2, (windows[1],) * 2) if windows else None
    targets_of = plan(sources, out, overwrite, _share())
    _create(out)
    model = SegFormer.from_pretrained(weights).to(device or _default_device())
    counts = np.zeros(max(2, len(model.classes)), dtype=np.int64)  # one logit means two classes
    refused = []
    for path, targets in tqdm(targets_of.items(), "predict", unit="image"):
        targets[0].parent.mkdir(parents=True, exist_ok=True)
        try:
            labels = _label(model, path, targets, slide)
        except ValueError as error:  # one broken image must not stop the others
            refused.append(str(error))
            continue
        for row in labels:  # NumPy's copy of a row has eight times its size
            counts += np.bincount(row, minlength=len(counts))
    if counts.any():
        print(_histogram(counts, model))
    print(f"{len(targets_of) - len(refused)} images labelled in {out}")
    if refused:
        raise ValueError("; ".join(refused))


def _share() -> slice:
    """This process's share of the images, as ``torchrun`` numbers its processes."""
    return slice(int(os.environ.get("RANK", 0)), None, int(os.environ.get("WORLD_SIZE", 1)))


def _default_device() -> str:
    return f"cuda:{os.environ.get('LOCAL_RANK', 0)}" if torch.cuda.is_available() else "cpu"


def _create(folder: Path) -> None:
    """Create a folder, and see that files can be written into it."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        raise OSError(
            f"the folder {str(folder)!r} cannot be written ({error.strerror}); "
            "choose another with --out"
        ) from error


def _label(
    model: SegmentationModel, path: Path, targets: tuple[Path, ...], slide: Slide | None
) -> np.ndarray:
    """Label one image, write its files and return its labels (H, W)."""
    if path.suffix == ARRAY:
        return label_array(model, path, targets[0], slide or WINDOWS)
    image, labels = label_file(model, path, slide)
    indexed(labels, model.classes).save(targets[0])
    shown = overlay(image, labels, model.classes)
    with_legend(shown, labels, model.classes).save(targets[1])
    return labels


def _histogram(counts: np.ndarray, model: SegmentationModel) -> str:
    """Each class's share of all pixels, the greatest first."""
    shares = counts / counts.sum()
    width = max(map(len, model.classes.names))
    rows = [
        f"{model.classes.names[k]:{width}}  {100 * shares[k]:6.2f} %  {'#' * round(40 * shares[k])}".rstrip()
        for k in np.argsort(-shares, kind="stable")
        if counts[k]
    ]
    return "\n".join(rows)
