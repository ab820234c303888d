"""Auxiliary heads: losses on the feature maps of a network, in training only."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from segformer.models import SegmentationModel


class Auxiliary(nn.Module):
    """Heads on feature maps of a module, each with its own loss (SETR, arXiv 2012.15840, 4.1).

    They are part of the training task. The network, and what is saved or exported of it, has none.

    Args:
        network: The network that is trained.
        head: Makes a head from the channels of one map, in a list, and the number of classes.
        levels: Indices of the maps that have a head.
        weights: Weight of each head's loss in the sum, or one weight for all.
        reads: Name of the module whose maps the heads take; it has an attribute ``channels``.

    Raises:
        ValueError: If the network has no such module or level, or the number of weights is not
            that of the levels.
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
                f"{len(self.weights)} auxiliary weights {self.weights} for {len(levels)} heads; "
                "give one for each head, or one for all"
            )
        modules = dict(network.named_modules())
        if not hasattr(modules.get(reads), "channels"):
            raise ValueError(
                f"the network has no module {reads!r} with an attribute channels for auxiliary "
                "heads; set reads to one that has it, such as 'backbone'"
            )
        channels: Any = modules[reads].channels
        if not levels or not all(0 <= level < len(channels) for level in levels):
            raise ValueError(
                f"levels={list(levels)} must be one or more feature maps of {reads!r}, from 0 to "
                f"{len(channels) - 1}"
            )
        self.levels = tuple(levels)
        self.reads = reads
        self.heads = nn.ModuleList(head([channels[level]], network.num_classes) for level in levels)

    @contextmanager
    def watching(self, network: nn.Module) -> Iterator[list[Tensor]]:
        """Context in which the returned list receives the maps of the module that heads read."""
        maps: list[Tensor] = []
        handle = network.get_submodule(self.reads).register_forward_hook(
            lambda module, inputs, output: maps.extend(output)
        )
        try:
            yield maps
        finally:
            handle.remove()

    def forward(self, maps: Sequence[Tensor], loss: Callable[[Tensor], Tensor]) -> Tensor:
        """Returns the weighted sum of the heads' losses.

        Args:
            maps: All feature maps of the module, (B, C_i, h_i, w_i).
            loss: Takes logits (B, K, h, w) of any size.
        """
        losses = [
            weight * loss(head([maps[level]]))
            for weight, head, level in zip(self.weights, self.heads, self.levels, strict=True)
        ]
        return torch.stack(losses).sum()
