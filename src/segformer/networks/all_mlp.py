"""The all-MLP decoder of SegFormer (arXiv 2105.15203, section 3.2)."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor, nn

from segformer.networks.config import Config
from segformer.networks.initialization import init_weights
from segformer.ops import all_mlp, upsample_and_fuse


@dataclass(frozen=True)
class AllMLPConfig(Config):
    """The arguments of :class:`AllMLPHead`, which describes them.

    Raises:
        ValueError: as :class:`AllMLPHead`.
    """

    in_channels: tuple[int, ...]
    num_classes: int
    channels: int = 256
    dropout: float = 0.1
    norm_eps: float = 1e-5

    def __post_init__(self) -> None:
        object.__setattr__(self, "in_channels", tuple(self.in_channels))
        if self.num_classes < 1:
            raise ValueError(f"num_classes must be at least 1, got {self.num_classes}")
        if self.channels < 1:
            raise ValueError(f"the decoder's width must be at least 1 channel, got {self.channels}")
        if not self.in_channels:
            raise ValueError("in_channels is empty; the head needs at least one feature map")


class AllMLPHead(nn.Module):
    """The all-MLP decoder (equation 4).

    It projects each level to ``channels``, upsamples all to the finest, concatenates them, coarsest
    first, fuses them, and classifies each pixel:

        F̂_i = Linear(C_i, C)(F_i)
        F̂_i = Upsample(H/4 × W/4)(F̂_i)
        F = ReLU(BatchNorm(Linear(4C, C)(Concat(F̂_i))))
        M = Linear(C, K)(Dropout(F))

    Args:
        in_channels: number of channels of each feature map, finest first.
        num_classes: number of classes K.
        channels: width of the decoder (256 in B0 and B1, 768 in B2 to B5).
        dropout: probability that a whole channel is dropped before the classifier.
        norm_eps: BatchNorm epsilon.

    Attributes:
        config: the arguments that build this head again.

    Raises:
        ValueError: if ``num_classes`` or ``channels`` is below 1, or there are no feature maps.
    """

    def __init__(
        self,
        in_channels: Sequence[int],
        num_classes: int,
        channels: int = 256,
        *,
        dropout: float = 0.1,
        norm_eps: float = 1e-5,
    ) -> None:
        super().__init__()
        self.config = AllMLPConfig(tuple(in_channels), num_classes, channels, dropout, norm_eps)
        self.num_classes = num_classes
        self.projections = nn.ModuleList(
            self.projection(c, channels, norm_eps) for c in in_channels
        )
        self.fuse = nn.Conv2d(len(in_channels) * channels, channels, 1, bias=False)
        self.norm = nn.BatchNorm2d(channels, eps=norm_eps)
        self.dropout = nn.Dropout2d(dropout)
        self.classifier = nn.Conv2d(channels, num_classes, 1)
        self.apply(init_weights)

    @staticmethod
    def projection(in_channels: int, channels: int, norm_eps: float) -> nn.Module:
        """The layer that projects one level to the decoder's width."""
        return nn.Linear(in_channels, channels)

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        """Maps (B, C_i, H_i, W_i), finest first, to logits (B, num_classes, H_0, W_0)."""
        return all_mlp(
            features, self.projections, self.fuse, self.norm, self.dropout, self.classifier
        )


class MMSegHead(AllMLPHead):
    """The all-MLP decoder as mmsegmentation builds it.

    Each level goes through a 1×1 convolution, BatchNorm and ReLU before it is upsampled, and the
    concatenation is finest first. Arguments and attributes are those of :class:`AllMLPHead`; a width
    of 256 is what its configurations use for all variants.
    """

    @staticmethod
    def projection(in_channels: int, channels: int, norm_eps: float) -> nn.Module:
        """The layers that project one level to the decoder's width."""
        conv = nn.Conv2d(in_channels, channels, 1, bias=False)
        norm = nn.BatchNorm2d(channels, eps=norm_eps)
        return nn.Sequential(OrderedDict(conv=conv, norm=norm, act=nn.ReLU()))

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        """Maps (B, C_i, H_i, W_i), finest first, to logits (B, num_classes, H_0, W_0)."""
        levels = [project(x) for x, project in zip(features, self.projections, strict=True)]
        x = self.norm(upsample_and_fuse(levels, self.fuse))
        logits: Tensor = self.classifier(self.dropout(F.relu(x)))
        return logits
