"""SegFormer: simple and efficient semantic segmentation with Transformers (arXiv 2105.15203)."""

from segformer import timm_models  # noqa: F401  # registers mit_b0 … mit_b5 with timm
from segformer.data.classes import Classes
from segformer.heads import AllMLPHead
from segformer.mit import VARIANTS, MiT, Variant
from segformer.models import Pretrained, SegFormer, SegmentationModel

__all__ = ["VARIANTS", "AllMLPHead", "Classes", "MiT", "Pretrained", "SegFormer", "SegmentationModel", "Variant"]
__version__ = "0.1.0"
