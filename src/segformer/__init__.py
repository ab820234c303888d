"""SegFormer: simple and efficient semantic segmentation with Transformers (arXiv 2105.15203), and its family."""

from segformer import timm_models  # noqa: F401  # registers mit_b0 … mit_b5 with timm
from segformer.convolutional import Segformer
from segformer.data.classes import Classes
from segformer.heads import AllMLPHead
from segformer.mit import VARIANTS, MiT, Variant
from segformer.models import Pretrained, SegFormer, SegmentationModel
from segformer.setr import SETR, MLAHead, NaiveHead, PUPHead
from segformer.timm_backbone import TimmBackbone

__all__ = [
    "SETR",
    "VARIANTS",
    "AllMLPHead",
    "Classes",
    "MLAHead",
    "MiT",
    "NaiveHead",
    "PUPHead",
    "Pretrained",
    "SegFormer",
    "Segformer",
    "SegmentationModel",
    "TimmBackbone",
    "Variant",
]
__version__ = "0.1.1"
