"""The order of a map's values in memory."""

from __future__ import annotations

import torch
from torch import Tensor

from segformer.ops.conditions import is_traced, is_transformed


def channels_last(x: Tensor) -> Tensor:
    """A map (B, C, H, W) whose channels lie side by side in memory."""
    if not is_traced(x) and is_transformed():  # torch.func.vmap has no rule for memory formats
        return x.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2)
    return x.contiguous(memory_format=torch.channels_last)
