"""Multiply-adds of a model, counted on the meta device."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from segformer.models import SegmentationModel
from segformer.ops.conditions import HOOKS


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
                self.add(func, args, decomposed, 0)
                return decomposed
        out = func(*args, **kwargs)
        count = flop_registry.get(func._overloadpacket)
        self.add(func, args, out, count(*args, **kwargs, out_val=out) // 2 if count else 0)
        return out

    def add(self, func: Any, args: Any, out: Any, multiply_adds: int) -> None:
        """Adds what one of PyTorch's functions has computed to the total."""
        self.total += multiply_adds


def multiply_adds(model: SegmentationModel, height: int, width: int) -> int:
    """Returns the multiply-adds from one image of this size to its stride-4 logits.

    Raises:
        ValueError: If the model does not take images of this size.
    """
    counter = MultiplyAdds()
    with without_data(model, height, width) as (backbone, decode_head, image), counter:
        decode_head(backbone(image))
    return counter.total


@contextmanager
def without_data(
    model: SegmentationModel, height: int, width: int
) -> Iterator[tuple[nn.Module, nn.Module, Tensor]]:
    """Context of copies of the backbone and the decode head on the meta device, and of an image.

    The copies have no hooks.

    Raises:
        ValueError: If the model does not take images of this size.
    """
    if min(height, width) < model.min_size:
        raise ValueError(
            f"an image of {height}×{width} is too small for this model; give a height and a width "
            f"of at least {model.min_size} pixels"
        )
    parts = [getattr(part, "_orig_mod", part) for part in (model.backbone, model.decode_head)]
    tensors = [tensor for part in parts for tensor in (*part.parameters(), *part.buffers())]
    copies = {id(tensor): _without_data(tensor) for tensor in tensors}
    backbone, decode_head = deepcopy(parts, copies)
    for module in (*backbone.modules(), *decode_head.modules()):
        for hooks in HOOKS:
            getattr(module, hooks).clear()
    dtype = next((tensor.dtype for tensor in tensors if tensor.is_floating_point()), None)
    with torch.device("meta"), torch.no_grad():
        image = torch.empty(1, len(model.normalization.mean), height, width, dtype=dtype)
        try:
            yield backbone.eval(), decode_head.eval(), image
        except (AssertionError, RuntimeError) as error:  # timm's models of one size
            reason = " ".join(str(error).split()) or type(error).__name__
            raise ValueError(
                f"this model does not take an image of {height}×{width}: {reason}"
            ) from error


def _without_data(tensor: Tensor) -> Tensor:
    empty = torch.empty_like(tensor, device="meta")
    if isinstance(tensor, nn.Parameter):
        return nn.Parameter(empty, requires_grad=tensor.requires_grad)
    return empty
