"""The official optimisation of SegFormer (arXiv 2105.15203, section 4.1): parameter groups and learning-rate schedules."""

from __future__ import annotations

import math
from typing import Any

from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from segformer.models import SegmentationModel


def param_groups(network: SegmentationModel, head_lr_mult: float = 10.0) -> list[dict[str, Any]]:
    """The published groups: the backbone's norms without weight decay; the decode head, its norm included, at ``head_lr_mult`` × the rate.

    Biases decay, as they did in the published runs. A group's ``lr_mult`` is for :func:`apply_lr_mult`.
    """
    norms = {
        id(parameter)
        for module in network.backbone.modules()
        if isinstance(module, nn.LayerNorm | nn.GroupNorm | nn.BatchNorm2d)
        for parameter in module.parameters()
    }
    backbone = list(network.backbone.parameters())
    return [
        {"params": [p for p in backbone if id(p) not in norms], "lr_mult": 1.0},
        {"params": [p for p in backbone if id(p) in norms], "lr_mult": 1.0, "weight_decay": 0.0},
        {"params": list(network.decode_head.parameters()), "lr_mult": head_lr_mult},
    ]


def apply_lr_mult(optimizer: Optimizer) -> Optimizer:
    """Multiply each group's learning rate by its ``lr_mult``, before a scheduler takes it as its base."""
    for group in optimizer.param_groups:
        group["lr"] *= group.get("lr_mult", 1.0)
    return optimizer


class Poly(LambdaLR):
    """Linear warm-up from ``warmup_ratio``, then (1 - step / total)^power down to 0.

    Args:
        optimizer: its learning rates are the ones without warm-up at step 0.
        total_steps: optimizer steps of the whole run.
        warmup_steps: steps of the warm-up; a run shorter than ten times that warms up for a tenth of it.
        warmup_ratio: the first step's share of the learning rate.
        power: 1.0 is a straight line.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        total_steps: int,
        warmup_steps: int = 1500,
        warmup_ratio: float = 1e-6,
        power: float = 1.0,
    ) -> None:
        warmup_steps = min(warmup_steps, total_steps // 10)

        def factor(step: int) -> float:
            poly = max(0.0, 1 - step / total_steps) ** power
            if step >= warmup_steps:
                return poly
            return poly * (1 - (1 - step / warmup_steps) * (1 - warmup_ratio))

        super().__init__(optimizer, factor)


class OneCycle(LambdaLR):
    """Cosine warm-up from ``start`` × the learning rate over the first ``warmup`` of the run, cosine decay to ``end`` × after it."""

    def __init__(self, optimizer: Optimizer, total_steps: int, warmup: float = 0.1, start: float = 0.04, end: float = 1e-3) -> None:
        def factor(step: int) -> float:
            done = min(1.0, step / total_steps)
            if done < warmup:
                return _cosine(start, 1.0, done / warmup)
            return _cosine(1.0, end, (done - warmup) / (1 - warmup))

        super().__init__(optimizer, factor)


def _cosine(first: float, last: float, done: float) -> float:
    return last + (first - last) * (1 + math.cos(math.pi * done)) / 2
