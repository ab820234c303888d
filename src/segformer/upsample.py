"""The exact operators between stride-4 maps and pixels, all of them bilinear.

The centres of the corner pixels coincide where ``align_corners`` is true, as some public weights were trained; by default their edges do.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor


def upsample(x: Tensor, size: Sequence[int], align_corners: bool = False) -> Tensor:
    """Bilinear interpolation of (B, C, h, w) to (B, C, *size*)."""
    return F.interpolate(x, size=tuple(size), mode="bilinear", align_corners=align_corners)


def upsample_sum(maps: Sequence[Tensor]) -> Tensor:
    """The sum of all maps at the size of the first: Σ up(maps[i]), (B, C, h, w) of maps[0]."""
    total = maps[0]
    for x in maps[1:]:
        total = total + upsample(x, total.shape[-2:])
    return total


def upsample_argmax(logits: Tensor, size: Sequence[int], align_corners: bool = False) -> Tensor:
    """Labels (B, *size*) int64 of logits (B, K, h, w): ``interpolate(logits, size).argmax(1)``."""
    return upsample(logits, size, align_corners).argmax(1)


def upsample_cross_entropy(
    logits: Tensor, target: Tensor, weight: Tensor | None = None, ignore_index: int = 255, align_corners: bool = False
) -> Tensor:
    """Cross-entropy of logits (B, K, h, w) interpolated to the target's size (B, H, W), a mean over the valid pixels.

    A batch without a valid pixel costs 0, and its gradient is 0.
    """
    loss = F.cross_entropy(
        upsample(logits, target.shape[-2:], align_corners).float(), target, weight, ignore_index=ignore_index, reduction="sum"
    )
    valid = target != ignore_index
    total = valid.sum() if weight is None else (weight[target.where(valid, 0)] * valid).sum()
    return loss / total.clamp_min(1e-9)
