"""Losses on stride-4 logits (B, K, h, w) and full-size targets (B, H, W)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from segformer.upsample import upsample_cross_entropy


class CrossEntropy(nn.Module):
    """Cross-entropy at the target's resolution, without ever making the logits of that size.

    Args:
        weight: one weight a class, for rare classes; by default all 1.
        ignore_index: the target's value that counts nowhere.
        label_smoothing: share of the target that is spread over all classes.
        over_all_pixels: a mean over all pixels, ignored ones too, as in the official training; by default over the valid ones.
    """

    def __init__(
        self,
        weight: Sequence[float] | None = None,
        ignore_index: int = 255,
        label_smoothing: float = 0.0,
        over_all_pixels: bool = False,
    ) -> None:
        super().__init__()
        self.weight: Tensor | None
        self.ignore_index = ignore_index
        self.label_smoothing = label_smoothing
        self.over_all_pixels = over_all_pixels
        self.register_buffer("weight", None if weight is None else torch.tensor(weight, dtype=torch.float32), persistent=False)

    def forward(self, logits: Tensor, target: Tensor, align_corners: bool = False) -> Tensor:
        return upsample_cross_entropy(
            logits,
            target,
            self.weight,
            self.ignore_index,
            align_corners,
            label_smoothing=self.label_smoothing,
            over_all_pixels=self.over_all_pixels,
        )
