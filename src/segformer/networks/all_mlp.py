"""The all-MLP decoder of SegFormer (arXiv 2105.15203, section 3.2).

``all_mlp`` and ``upsample_and_fuse`` return what the equations beside them say. Their plain
definitions are in :mod:`segformer.ops`, together with faster implementations.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from segformer.networks.config import Config, check_at_least_1, check_features
from segformer.networks.initialization import init_weights
from segformer.ops import all_mlp, upsample_and_fuse

DROPOUTS: dict[str, type[nn.Dropout | nn.Dropout2d]] = {  # of values, of whole channels
    kind.__name__: kind for kind in (nn.Dropout, nn.Dropout2d)
}


@dataclass(frozen=True)
class AllMLPConfig(Config):
    """The arguments of :class:`AllMLPHead`, checked; see there for their meaning.

    Raises:
        ValueError: as :class:`AllMLPHead`.
    """

    in_channels: tuple[int, ...]
    num_classes: int
    channels: int = 256
    dropout: float | tuple[str, float] = 0.1  # of channels; or a layer's class and its rate
    norm_eps: float = 1e-5

    def __post_init__(self) -> None:
        object.__setattr__(self, "in_channels", tuple(self.in_channels))
        check_features(self.in_channels)
        check_at_least_1(num_classes=self.num_classes, channels=self.channels)

    def make_dropout(self) -> nn.Module:
        """Returns the layer before the classifier."""
        given = self.dropout
        kind, rate = given if isinstance(given, tuple) else ("Dropout2d", given)
        return DROPOUTS[kind](rate)


def _described(dropout: Any) -> float | tuple[str, float]:
    """Returns a rate, a layer, or the pair that a file holds, as :class:`AllMLPConfig` has it."""
    if not isinstance(dropout, nn.Module):
        return tuple(dropout) if isinstance(dropout, list | tuple) else dropout
    kind = type(dropout).__name__
    if DROPOUTS.get(kind) is not type(dropout):
        raise ValueError(f"dropout is a {kind}; give a rate, or torch.nn.Dropout or Dropout2d")
    rate = float(dropout.p)
    return rate if kind == "Dropout2d" else (kind, rate)


class AllMLPHead(nn.Module):
    """The all-MLP decoder (equation 4), with BatchNorm, ReLU and dropout as released.

        F̂_i = Linear(C_i, C)(F_i)                                    for each level i
        F̂_i = Upsample(H/4 × W/4)(F̂_i)                               bilinear, align_corners=False
        F = ReLU(BatchNorm(Linear(4C, C)(Concat(F̂_4, F̂_3, F̂_2, F̂_1))))
        M = Linear(C, K)(Dropout(F))

    The first Linear acts on the channels of (B, H_i, W_i, C_i); the others are 1×1 convolutions of
    (B, C, H_1, W_1). The concatenation is coarsest first, as in the released weights. The caller
    upsamples M to the size of the image.

    Args:
        in_channels: number of channels C_i of each feature map, finest first.
        num_classes: number of classes K.
        channels: width C of the decoder (256 in B0 and B1, 768 in B2 to B5).
        dropout: probability that a whole channel is dropped before the classifier; or a
            ``torch.nn.Dropout``, which drops single values.
        norm_eps: BatchNorm epsilon.

    Attributes:
        config: the arguments, from which the head can be built again.

    Raises:
        ValueError: if ``num_classes`` or ``channels`` is below 1, there are no feature maps, or
            ``dropout`` is another layer.
    """

    def __init__(
        self,
        in_channels: Sequence[int],
        num_classes: int,
        channels: int = 256,
        *,
        dropout: float | nn.Module = 0.1,
        norm_eps: float = 1e-5,
    ) -> None:
        super().__init__()
        self.config = AllMLPConfig(
            tuple(in_channels), num_classes, channels, _described(dropout), norm_eps
        )
        self.num_classes = num_classes
        self.projections = nn.ModuleList(
            self.projection(c, channels, norm_eps) for c in in_channels
        )
        # No bias: BatchNorm has one.
        self.fuse = nn.Conv2d(len(in_channels) * channels, channels, 1, bias=False)
        self.norm = nn.BatchNorm2d(channels, eps=norm_eps)
        self.dropout = self.config.make_dropout()
        self.classifier = nn.Conv2d(channels, num_classes, 1)
        self.apply(init_weights)

    @staticmethod
    def projection(in_channels: int, channels: int, norm_eps: float) -> nn.Module:
        """The layer that projects one level to the decoder's width.

        ``norm_eps`` is for subclasses whose projection has a norm.
        """
        return nn.Linear(in_channels, channels)

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        """Maps (B, C_i, H_i, W_i), finest first, to logits (B, num_classes, H_1, W_1)."""
        # Equation 4, the four lines above; it concatenates coarsest first.
        return all_mlp(
            features, self.projections, self.fuse, self.norm, self.dropout, self.classifier
        )


class MMSegHead(AllMLPHead):
    """The all-MLP decoder of mmsegmentation, for its checkpoints.

    Each level goes through a 1×1 convolution, BatchNorm and ReLU before it is upsampled, and the
    concatenation is finest first. Arguments and attributes are those of :class:`AllMLPHead`;
    mmsegmentation's configurations use a width of 256 for all variants.
    """

    @staticmethod
    def projection(in_channels: int, channels: int, norm_eps: float) -> nn.Module:
        """The layers that project one level to the decoder's width."""
        conv = nn.Conv2d(in_channels, channels, 1, bias=False)
        norm = nn.BatchNorm2d(channels, eps=norm_eps)
        return nn.Sequential(OrderedDict(conv=conv, norm=norm, act=nn.ReLU()))

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        """Maps (B, C_i, H_i, W_i), finest first, to logits (B, num_classes, H_1, W_1)."""
        levels = [project(x) for x, project in zip(features, self.projections, strict=True)]
        # fuse(concat(upsampled levels)), in the order of the levels: (B, C, H_1, W_1)
        x: Tensor = upsample_and_fuse(levels, self.fuse)
        x = self.dropout(F.relu(self.norm(x)))
        x = self.classifier(x)
        return x
