"""Decode heads: a list of feature maps, finest first, to stride-4 logits."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from segformer.initialization import init_weights
from segformer.upsample import upsample_sum


class AllMLPHead(nn.Module):
    """The all-MLP decoder (arXiv 2105.15203, section 3.2, equation 4).

    The paper projects each level to ``channels`` (W_i, b_i), upsamples all to the finest, concatenates, and fuses with a 1×1 convolution
    F before BatchNorm. Nothing non-linear stands between W_i and BatchNorm, and bilinear interpolation acts on each channel alone with
    weights that sum to one, so

        F · concat(up(W_i x_i + b_i)) = Σ up(F_i W_i x_i + F_i b_i),

    the same function of the same parameters with the fusion done at each level's own resolution: in training too, for a twelfth of
    the work in B2 to B5.

    Args:
        in_channels: channels of the feature maps, finest first.
        num_classes: classes to tell apart.
        channels: the decoder's width (256 in B0 and B1, 768 in B2 to B5).
        dropout: probability of dropping a whole channel before the classifier.
        norm_eps: BatchNorm epsilon.

    Attributes:
        config: the arguments that build this head again, JSON-able.

    Raises:
        ValueError: when ``num_classes`` or ``channels`` is below 1, or there are no feature maps.
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
        if num_classes < 1:
            raise ValueError(f"num_classes must be at least 1, got {num_classes}")
        if channels < 1:
            raise ValueError(f"the decoder's width must be at least 1 channel, got {channels}")
        if not in_channels:
            raise ValueError("in_channels is empty; the head needs at least one feature map")
        self.config: dict[str, Any] = {
            "in_channels": list(in_channels),
            "num_classes": num_classes,
            "channels": channels,
            "dropout": dropout,
            "norm_eps": norm_eps,
        }
        self.num_classes = num_classes
        self.projections: Any = nn.ModuleList(self.projection(c, channels, norm_eps) for c in in_channels)
        # The published order of the concatenation is coarsest first.
        self.fuse = nn.Conv2d(len(in_channels) * channels, channels, 1, bias=False)
        self.norm = nn.BatchNorm2d(channels, eps=norm_eps)
        self.dropout = nn.Dropout2d(dropout)
        self.classifier = nn.Conv2d(channels, num_classes, 1)
        self.apply(init_weights)

    @staticmethod
    def projection(in_channels: int, channels: int, norm_eps: float) -> nn.Module:
        """What takes one level to the decoder's width."""
        return nn.Linear(in_channels, channels)

    def project_and_fuse(self, features: Sequence[Tensor]) -> Tensor:
        """Σ up(F_i W_i x_i + F_i b_i): (B, channels, H/4, W/4) in channels-last memory."""
        fuses = self.fuse.weight.flatten(1).chunk(len(self.projections), dim=1)[::-1]  # (D, D) each, finest first
        maps = [  # composed each time: a product of weights costs little beside the maps, and the gradient finds its way to each factor
            F.linear(x.permute(0, 2, 3, 1), fuse @ proj.weight, fuse @ proj.bias).permute(0, 3, 1, 2)
            for x, fuse, proj in zip(features, fuses, self.projections, strict=True)
        ]
        return upsample_sum(maps)

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        """Feature maps (B, C_i, H_i, W_i), finest first, to logits (B, num_classes, H_0, W_0)."""
        x = self.project_and_fuse(features)
        x = F.relu(self.norm(x))
        return self.classifier(self.dropout(x))


class MMSegHead(AllMLPHead):
    """The all-MLP decoder as mmsegmentation builds it: each level through a 1×1 convolution, BatchNorm and ReLU before it is upsampled.

    The concatenation is finest first. Arguments and attributes are those of :class:`AllMLPHead`; a width of 256 is what its
    configurations use for all variants.
    """

    @staticmethod
    def projection(in_channels: int, channels: int, norm_eps: float) -> nn.Module:
        conv, norm = nn.Conv2d(in_channels, channels, 1, bias=False), nn.BatchNorm2d(channels, eps=norm_eps)
        return nn.Sequential(OrderedDict(conv=conv, norm=norm, act=nn.ReLU()))

    def project_and_fuse(self, features: Sequence[Tensor]) -> Tensor:
        """F · concat(up(ReLU(BN(W_i x_i)))) as Σ up(F_i ReLU(BN(W_i x_i)))."""
        fuses = self.fuse.weight.chunk(len(self.projections), dim=1)
        return upsample_sum([F.conv2d(project(x), fuse) for x, fuse, project in zip(features, fuses, self.projections, strict=True)])
