"""How transformers prepares images for a checkpoint, from its ``preprocessor_config.json``."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from segformer.checkpoint.files import open_preprocessor
from segformer.checkpoint.huggingface_config import read_normalization
from segformer.data.normalization import Normalization

SIZE = {"height": 512, "width": 512}  # of a file that has none
BILINEAR = 2  # Pillow's numbers of interpolations
RESAMPLINGS = {0: "nearest", 1: "Lanczos", BILINEAR: "bilinear", 3: "bicubic"}
TYPES = (
    "SegformerImageProcessor",
    "SegformerImageProcessorFast",
    "SegformerImageProcessorPil",
    "SegformerFeatureExtractor",
)
STEPS = ("do_resize", "do_rescale", "do_normalize")  # of what happens to pixels
OTHER_STEPS = ("do_reduce_labels", "do_convert_rgb")  # to label maps, and to what is read as RGB


@dataclass(frozen=True)
class Processor:
    """What transformers' ``SegformerImageProcessor`` does to images.

    Args:
        size: Height and width that images are resized to; one number for the length of the shorter
            side, which keeps the aspect ratio; None for the images' own size.
        resample: Pillow's number of the interpolation: 0 nearest, 1 Lanczos, 2 bilinear, 3 bicubic.
        normalization: How the resized images are normalised.

    Raises:
        ValueError: If a length or the interpolation is none of these.
    """

    size: tuple[int, int] | int | None
    resample: int
    normalization: Normalization

    def __post_init__(self) -> None:
        lengths = self.size if isinstance(self.size, tuple) else (self.size or 1,)
        if not all(type(length) is int and length > 0 for length in lengths):
            raise ValueError(f"size={self.size!r} must have lengths in pixels of at least 1")
        if type(self.resample) is not int or self.resample not in RESAMPLINGS:
            known = ", ".join(f"{number} ({name})" for number, name in RESAMPLINGS.items())
            raise ValueError(f"resample={self.resample!r} must be one of {known}")


def read_processor(source: str | os.PathLike[str]) -> Processor:
    """Returns the processor of a Hugging Face checkpoint.

    Args:
        source: Folder or Hugging Face id of the checkpoint, or a file in its folder.

    Raises:
        FileNotFoundError: If there is no such source, or it has no processor.
        ValueError: If the processor is of another class than SegFormer's, or has a setting that
            changes pixels in a way that is not known here.
    """
    content, path = open_preprocessor(source)
    try:
        _check_class(content)
        size = _size(content) if content.get("do_resize", True) else None
        normalization = read_normalization(content, Path(source))
        return Processor(size, content.get("resample", BILINEAR), normalization)
    except ValueError as error:
        raise ValueError(
            f"{str(path)!r} cannot be obeyed: {error}; correct the file, or label without it"
        ) from error


def _check_class(content: dict[str, Any]) -> None:
    """Raises ValueError for another class of processors, and for steps that SegFormer's lacks."""
    for key in ("image_processor_type", "feature_extractor_type"):
        if content.get(key, TYPES[0]) not in TYPES:
            raise ValueError(f"{key} is {content[key]!r}, and only {', '.join(TYPES)} are known")
    if content.get("auto_map"):
        raise ValueError(f"auto_map={content['auto_map']!r} names code of its own")
    known = (*STEPS, *OTHER_STEPS)
    for key, value in content.items():
        if key.startswith("do_") and value and key not in known:
            raise ValueError(f"{key}={value!r} is no step of SegFormer's processor")


def _size(content: dict[str, Any]) -> tuple[int, int] | int:
    """Returns the size that images are resized to, in any of the forms that it has had."""
    size: Any = content.get("size", SIZE)
    if isinstance(size, dict):
        stated = {key: value for key, value in size.items() if value is not None}
        if set(stated) == {"height", "width"}:
            return stated["height"], stated["width"]
        if set(stated) == {"shortest_edge"} and isinstance(stated["shortest_edge"], int):
            return stated["shortest_edge"]
    elif isinstance(size, int):
        return (size, size) if content.get("default_to_square", True) else size
    raise ValueError(
        f'size={size!r} is none of N, {{"height": N, "width": N}} and {{"shortest_edge": N}}'
    )
