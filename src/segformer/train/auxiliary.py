"""Losses on what a network computes on its way to the logits, which only training needs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from segformer.models import SegmentationModel


class Auxiliary(nn.Module):
    """Heads on some of a module's feature maps, each with a loss of its own (SETR, arXiv 2012.15840, section 4.1).

    They belong to the training task: the network, and what is saved or exported of it, has none.

    Args:
        network: the network that is trained.
        head: makes a head of one map's channels, in a list, and the number of classes.
        levels: which of the maps have a head.
        weights: of each head's loss in the sum, or one for all.
        reads: the network's module whose maps are read, by its name; it has their ``channels``.

    Raises:
        ValueError: when the network has no such module or level, or the weights are not as many as the levels.
    """

    def __init__(
        self,
        network: SegmentationModel,
        head: Callable[[Sequence[int], int], nn.Module],
        levels: Sequence[int] = (0, 1, 2),
        weights: float | Sequence[float] = 0.4,
        reads: str = "backbone",
    ) -> None:
        super().__init__()
        self.weights = (
            [weights] * len(levels) if isinstance(weights, int | float) else list(weights)
        )
        if len(self.weights) != len(levels):
            raise ValueError(
                f"{len(self.weights)} auxiliary weights {self.weights} for {len(levels)} heads; give one a head, or one for all"
            )
        modules = dict(network.named_modules())
        if not hasattr(modules.get(reads), "channels"):
            raise ValueError(
                f"the network has no module {reads!r} with feature maps for auxiliary heads to read"
            )
        channels: Any = modules[reads].channels
        if not levels or not all(0 <= level < len(channels) for level in levels):
            raise ValueError(
                f"auxiliary heads on levels {list(levels)} of {reads!r}, which has {len(channels)}: 0 to {len(channels) - 1}"
            )
        self.levels = tuple(levels)
        self.reads = reads
        self.heads = nn.ModuleList(head([channels[level]], network.num_classes) for level in levels)

    @contextmanager
    def watching(self, network: nn.Module) -> Iterator[list[Tensor]]:
        """Inside, the list fills with the maps of the watched module, once it is called."""
        maps: list[Tensor] = []
        handle = network.get_submodule(self.reads).register_forward_hook(
            lambda module, inputs, output: maps.extend(output)
        )
        try:
            yield maps
        finally:
            handle.remove()

    def forward(self, maps: Sequence[Tensor], loss: Callable[[Tensor], Tensor]) -> Tensor:
        """The weighted sum of the heads' losses; ``loss`` takes logits (B, K, h, w) of any size."""
        losses = [
            weight * loss(head([maps[level]]))
            for weight, head, level in zip(self.weights, self.heads, self.levels, strict=True)
        ]
        return torch.stack(losses).sum()
