"""SegFormer (arXiv 2105.15203) and its family: networks for semantic segmentation."""

import warnings
from typing import Any

from segformer import timm_models  # noqa: F401  # registers mit_b0 … mit_b5 with timm
from segformer.data.classes import Classes
from segformer.data.normalization import Normalization
from segformer.models import SETR, ConvSegFormer, Pretrained, SegFormer, SegmentationModel
from segformer.networks.all_mlp import AllMLPHead
from segformer.networks.mit import VARIANTS, MiT, Variant
from segformer.networks.setr import MLAHead, NaiveHead, PUPHead
from segformer.networks.timm_backbone import TimmBackbone

__all__ = [
    "SETR",
    "VARIANTS",
    "AllMLPHead",
    "Classes",
    "ConvSegFormer",
    "MLAHead",
    "MiT",
    "NaiveHead",
    "Normalization",
    "PUPHead",
    "Pretrained",
    "SegFormer",
    "SegmentationModel",
    "TimmBackbone",
    "Variant",
]
__version__ = "0.2.0"


def __getattr__(name: str) -> Any:
    if name == "Segformer":
        warnings.warn(
            "segformer.Segformer is now called segformer.ConvSegFormer; use the new name",
            DeprecationWarning,
            stacklevel=2,
        )
        return ConvSegFormer
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
