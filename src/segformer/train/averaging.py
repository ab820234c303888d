"""Averages of the weights during a run."""

from __future__ import annotations

from itertools import chain
from typing import Any

import torch
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import WeightAveraging
from torch import nn
from torch.optim.swa_utils import AveragedModel


class Average(AveragedModel):
    """A copy of a model whose weights are the exponential moving average of the model's.

    Args:
        model: The model.
        decay: Share of the average that an update keeps, after the warm-up.
        device: Device of the average, by default the model's.
        use_buffers: Average buffers of floating type too; the others are copied.
    """

    def __init__(
        self,
        model: nn.Module,
        decay: float,
        device: torch.device | int | None = None,
        use_buffers: bool = True,
    ) -> None:
        super().__init__(model, device, use_buffers=use_buffers)
        # On the CPU, reading it waits for no device.
        self.n_averaged = torch.zeros((), dtype=torch.long, device="cpu")
        self.decay = decay

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        """Moves the weights to a device or type, and leaves the count on the CPU."""
        count = self.n_averaged
        super()._apply(fn, recurse)
        self.n_averaged = count
        return self

    @torch.no_grad()
    def update_parameters(self, model: nn.Module) -> None:
        """Moves the average towards the model's weights; the first update copies them."""
        count = int(self.n_averaged)
        decay = min(self.decay, (1 + count) / (10 + count)) if count else 0.0
        averages, weights = [], []
        pairs = zip(_tensors(self.module), _tensors(model), strict=True)
        for average, weight in pairs:
            is_averaged = self.use_buffers or isinstance(average, nn.Parameter)
            if is_averaged and average.is_floating_point():
                averages.append(average)
                weights.append(weight.to(average))
            else:
                average.copy_(weight)
        torch._foreach_lerp_(averages, weights, 1 - decay)
        self.n_averaged += 1


def _tensors(module: nn.Module) -> chain[torch.Tensor]:
    return chain(module.parameters(), module.buffers())


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
        super().__init__(device, use_buffers)
        self.decay = decay
        self._kept: list[torch.Tensor] | None = None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Makes the average when training begins, on the device to which the model will move."""
        if stage == "fit":
            device = self._device or trainer.strategy.root_device
            self._average_model = Average(pl_module, self.decay, device, self._use_buffers)

    def _swap_models(self, pl_module: LightningModule) -> None:
        """Exchanges the model's weights and the average for a validation, or exchanges them back.

        A model of another precision rounds the average, whose own values are kept meanwhile.
        """
        assert self._average_model is not None
        average, kept = list(_tensors(self._average_model.module)), self._kept
        rounds = any(a.dtype != b.dtype for a, b in zip(average, _tensors(pl_module), strict=True))
        self._kept = [tensor.clone() for tensor in average] if rounds and kept is None else None
        super()._swap_models(pl_module)
        for tensor, own in zip(average, kept or (), strict=False):
            tensor.data.copy_(own)
