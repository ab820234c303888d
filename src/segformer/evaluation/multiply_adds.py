"""Multiply-adds of a model, counted on the meta device."""

from __future__ import annotations

from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from segformer.checkpoint import build, describe
from segformer.models import SegmentationModel


class MultiplyAdds(TorchDispatchMode):
    """Counts the multiply-adds of what is computed inside, by PyTorch's formulas.

    :class:`torch.utils.flop_counter.FlopCounterMode` registers hooks on every module. The faster
    implementations of the decode head do not run with hooks, so that its count would be higher.
    """

    def __init__(self) -> None:
        super().__init__()
        self.total = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func._overloadpacket not in flop_registry:
            with self:
                decomposed = func.decompose(*args, **kwargs)
            if decomposed is not NotImplemented:
                return decomposed
        out = func(*args, **kwargs)
        if count := flop_registry.get(func._overloadpacket):
            self.total += count(*args, **kwargs, out_val=out) // 2
        return out


def multiply_adds(model: SegmentationModel, height: int, width: int) -> int:
    """Returns the multiply-adds from one image of this size to its stride-4 logits."""
    with torch.device("meta"), torch.no_grad():
        twin = build(describe(model)).eval()
        images = torch.empty(1, model.backbone.in_channels, height, width)
        with MultiplyAdds() as counter:
            twin.decode_head(twin.backbone(images))
    return counter.total
