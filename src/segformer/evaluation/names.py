"""Models by name, with random weights, such as ``b0``, ``setr-large-mla`` and ``resnet50``."""

from __future__ import annotations

import difflib
import os
from itertools import product
from pathlib import Path

import timm
from torch import nn

from segformer.checkpoint.files import SUFFIXES
from segformer.models import SETR, ConvSegFormer, SegFormer, SegmentationModel
from segformer.networks.mit import VARIANTS
from segformer.networks.setr import MLAHead, NaiveHead, PUPHead
from segformer.networks.timm_backbone import TimmBackbone

CONVOLUTIONAL = "conv-segformer"
SETR_HEADS: dict[str, type[nn.Module]] = {
    "": PUPHead,
    "-naive": NaiveHead,
    "-pup": PUPHead,
    "-mla": MLAHead,
}
SETRS = {
    f"setr-{backbone}{suffix}": (backbone, head)
    for backbone, (suffix, head) in product(SETR.BACKBONES, SETR_HEADS.items())
}


def is_name(source: str | os.PathLike[str]) -> bool:
    """Whether a source is a model's name: no path, no Hugging Face id, and no file or folder."""
    text = os.fspath(source)
    is_path = os.sep in text or "/" in text or Path(text).suffix in SUFFIXES
    return not is_path and not Path(text).expanduser().exists()


def build_named(
    name: str, num_classes: int | None = None, in_channels: int | None = None
) -> SegmentationModel:
    """Returns a model with random weights.

    Args:
        name: ``"b0"`` … ``"b5"``; ``"setr-"`` and a backbone of :class:`~segformer.SETR`, with
            ``"-naive"``, ``"-pup"`` or ``"-mla"`` for its head; ``"conv-segformer"``; or timm's
            name of a backbone for the all-MLP head.
        num_classes: Number of classes, by default ADE20K's 150.
        in_channels: Number of image channels, by default 3.

    Raises:
        ValueError: If there is no such name; the message has the closest one.
    """
    classes = 150 if num_classes is None else num_classes
    channels = 3 if in_channels is None else in_channels
    if name in VARIANTS:
        return SegFormer(name, classes, in_channels=channels)
    if name in SETRS:
        backbone, head = SETRS[name]
        return SETR(backbone, classes, head, in_channels=channels)
    if name == CONVOLUTIONAL:
        return ConvSegFormer(num_classes=classes, channels=channels)
    if timm.is_model(name):
        return SegFormer(TimmBackbone(name, in_channels=channels), classes)
    names = [*VARIANTS, *SETRS, CONVOLUTIONAL, *timm.list_models()]
    near = difflib.get_close_matches(name, names, 1, 0.5)
    cure = (
        f"did you mean {near[0]!r}?" if near else "a Hugging Face id has an organisation/ in front"
    )
    raise ValueError(f"no file, folder or model {name!r}; {cure}")
