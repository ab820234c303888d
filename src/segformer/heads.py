"""Decode heads: a list of feature maps, finest first, to stride-4 logits."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from segformer import workspace
from segformer.initialization import init_weights
from segformer.linear import affine, linear
from segformer.upsample import upsample, upsample_into, upsample_sum
from segformer.workspace import in_pieces, is_plain, is_plain_convolution


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
        self.norm: Any = nn.BatchNorm2d(channels, eps=norm_eps)
        self.dropout = nn.Dropout2d(dropout)
        self.classifier: Any = nn.Conv2d(channels, num_classes, 1)
        self.apply(init_weights)

    @staticmethod
    def projection(in_channels: int, channels: int, norm_eps: float) -> nn.Module:
        """What takes one level to the decoder's width."""
        return nn.Linear(in_channels, channels)

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        """Feature maps (B, C_i, H_i, W_i), finest first, to logits (B, num_classes, H_0, W_0)."""
        if self._is_affine():
            return self._in_groups(features) if self._takes_groups(features[0]) else self._at_once(features)
        return self.classifier(self._activate(self.norm(self.project_and_fuse(features))))

    def project_and_fuse(self, features: Sequence[Tensor]) -> Tensor:
        """F · concat(up(W_i x_i + b_i)): (B, channels, H/4, W/4)."""
        maps = [x.permute(0, 2, 3, 1) for x in features]  # (B, h, w, C)
        if is_plain_convolution(self.fuse, 1, bias=False):
            return self._fused_apart(maps)
        size = maps[0].shape[1:3]
        levels = [upsample(project(x).permute(0, 3, 1, 2), size) for x, project in zip(maps, self.projections, strict=True)]
        return self.fuse(torch.cat(levels[::-1], 1))

    def _fused_apart(self, maps: Sequence[Tensor]) -> Tensor:
        """Σ up(F_i (W_i x_i + b_i)): each level fused at its own resolution, of maps (B, h, w, C)."""
        composed = [_composes(x) and _is_linear(project) for x, project in zip(maps, self.projections, strict=True)]
        maps = [x if one else linear(x, project) for x, one, project in zip(maps, composed, self.projections, strict=True)]
        widths = [project.out_features if one else x.shape[-1] for x, one, project in zip(maps, composed, self.projections, strict=True)]
        fuses = self.fuse.weight.flatten(1).split(widths[::-1], 1)[::-1]  # F_i, finest level first
        fused = [
            affine(x, fuse @ project.weight, fuse @ project.bias) if one else affine(x, fuse)
            for x, one, fuse, project in zip(maps, composed, fuses, self.projections, strict=True)
        ]
        return upsample_sum([x.permute(0, 3, 1, 2) for x in fused])

    def _activate(self, x: Tensor) -> Tensor:
        """ReLU and dropout. Plain ones commute, and behind dropout ReLU may write over its input."""
        if is_plain(self.norm, *NORMS) and is_plain(self.dropout, *DROPOUTS):
            return F.relu(self.dropout(x), inplace=True)
        return self.dropout(F.relu(x))

    # In evaluation BatchNorm is an affine map, which composes with F_i W_i; and every channel between the features and the classifier is
    # by itself, so that a group of channels at a time goes all the way, in the same few temporaries.

    def _is_affine(self) -> bool:
        return (
            not (self.training or self.norm.training or self.dropout.training)  # dropout by itself: Monte Carlo's
            and type(self).project_and_fuse is AllMLPHead.project_and_fuse
            and all(map(_is_linear, self.projections))
            and is_plain_convolution(self.fuse, 1, bias=False)
            and self.fuse.weight.dtype in (torch.float32, torch.float64)
            and is_plain(self.norm, *NORMS)
            and self.norm.track_running_stats
            and self.norm.affine
            and is_plain(self.dropout, *DROPOUTS)
            and is_plain_convolution(self.classifier, 1, bias=True)
        )

    def _takes_groups(self, finest: Tensor) -> bool:
        return in_pieces(finest) and not torch.is_autocast_enabled("cpu")

    def _affine(self, features: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor], Tensor]:
        """BN(Σ up(F_i (W_i x_i + b_i))) as Σ up(A_i y_i) + c.

        Returns the y_i (B, h, w, C), the A_i (channels, C), finest level first, and c (channels,).
        """
        maps = [x.permute(0, 2, 3, 1) for x in features]
        widths = [project.out_features for project in self.projections]
        with workspace.without_autocast(maps[0]):
            scale = self.norm.weight * (self.norm.running_var + self.norm.eps).rsqrt()
            fuses = (scale[:, None] * self.fuse.weight.flatten(1)).split(widths[::-1], 1)[::-1]
            bias = self.norm.bias - scale * self.norm.running_mean
            bias = bias + sum(fuse @ project.bias for fuse, project in zip(fuses, self.projections, strict=True))
            weights = [
                fuse @ project.weight if _composes(x) else fuse for x, fuse, project in zip(maps, fuses, self.projections, strict=True)
            ]
        maps = [x if _composes(x) else affine(x, project.weight) for x, project in zip(maps, self.projections, strict=True)]
        return maps, weights, bias

    def _at_once(self, features: Sequence[Tensor]) -> Tensor:
        maps, weights, bias = self._affine(features)
        biases = [bias, *[None] * (len(features) - 1)]
        levels = [_projected(x, weight, b) for x, weight, b in zip(maps, weights, biases, strict=True)]
        return self.classifier(F.relu(upsample_sum(levels), inplace=True))

    def _in_groups(self, features: Sequence[Tensor]) -> Tensor:
        (finest, *coarser), weights, bias = self._affine(features)
        batch, height, width, _ = finest.shape
        pixels = batch * height * width
        size = max(32, min(128, 2 * workspace.PIECE // (pixels * bias.element_size()) // 32 * 32))
        fine = bias.new_empty(pixels * size)
        logits = self.classifier.bias.expand(batch, height, width, -1).contiguous()
        for start in range(0, len(bias), size):
            group = slice(start, start + size)
            x = affine(finest, weights[0][group], bias[group])
            up = fine[: x.numel()].view_as(x)
            for coarse, weight in zip(coarser, weights[1:], strict=True):
                upsample_into(up.permute(0, 3, 1, 2), affine(coarse, weight[group]).permute(0, 3, 1, 2))
                x += up
            logits += affine(x.relu_(), self.classifier.weight[:, group].flatten(1))
        return logits.permute(0, 3, 1, 2)


NORMS = (nn.BatchNorm2d, nn.SyncBatchNorm)
DROPOUTS = (nn.Dropout2d, nn.Dropout, nn.Identity)


def _is_linear(module: nn.Module) -> bool:
    return is_plain(module, nn.Linear) and module.bias is not None


def _composes(x: Tensor) -> bool:
    """Whether F_i W_i is a product of weights, which takes as long as W_i over as many pixels as it has inputs."""
    return workspace.is_traced(x) or x[..., 0].numel() > x.shape[-1]


def _projected(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """A projection of maps (B, h, w, C) to (B, D, h, w): in graphs a convolution, which engines go on from in their own memory order."""
    if torch.compiler.is_compiling():
        return F.conv2d(x.permute(0, 3, 1, 2), weight[..., None, None], bias)
    return affine(x, weight, bias).permute(0, 3, 1, 2)


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
        """F · concat(up(ReLU(BN(W_i x_i)))), as Σ up(F_i ReLU(BN(W_i x_i))) where F is plain."""
        maps = [project(x) for x, project in zip(features, self.projections, strict=True)]
        if is_plain_convolution(self.fuse, 1, bias=False):
            fuses = self.fuse.weight.split([x.shape[1] for x in maps], dim=1)
            return upsample_sum([F.conv2d(x, fuse) for x, fuse in zip(maps, fuses, strict=True)])
        return self.fuse(torch.cat([upsample(x, maps[0].shape[-2:]) for x in maps], 1))
