"""Averages of the weights during a run."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from lightning.pytorch.callbacks import WeightAveraging
from torch import Tensor
from torch.optim.swa_utils import get_ema_multi_avg_fn


class EMA(WeightAveraging):
    """An exponential moving average of the weights, whose decay warms up.

    After n updates the decay is min(decay, (1 + n) / (10 + n)), as in TensorFlow's
    ``ExponentialMovingAverage`` with ``num_updates``. With a constant decay, the average of a run
    much shorter than 1 / (1 - decay) steps would be close to the initial weights.

    Args:
        decay: Share of the average that an update keeps, from 0 to 1.
        device: Device of the average, by default the model's.
        use_buffers: Average buffers too, such as BatchNorm's statistics.

    Raises:
        ValueError: If ``decay`` is not between 0 and 1.
    """

    def __init__(
        self,
        decay: float = 0.999,
        device: torch.device | str | int | None = None,
        use_buffers: bool = True,
    ) -> None:
        if not 0 <= decay < 1:
            raise ValueError(f"decay={decay}; give a number from 0 to below 1, such as 0.999")
        super().__init__(device, use_buffers, multi_avg_fn=partial(update, decay=decay))


def update(
    averages: Sequence[Tensor], weights: Sequence[Tensor], updates: Any, decay: float
) -> None:
    """Moves averages towards weights.

    Args:
        averages: The averages, changed in place.
        weights: The weights, in the same order.
        updates: Number of earlier updates.
        decay: Share of an average that is kept, after the warm-up.
    """
    count = int(updates)
    get_ema_multi_avg_fn(min(decay, (1 + count) / (10 + count)))(averages, weights, updates)
