"""Initialisation of the layers of backbones and heads."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from timm.layers import trunc_normal_
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode


def init_weights(module: nn.Module) -> None:
    """Initialise one layer in place; meant for :meth:`torch.nn.Module.apply`.

    Linear layers: normal with standard deviation 0.02, truncated at ±2. Convolutions: normal with
    variance 2 / fan-out, where the fan-out of a grouped convolution is that of one group. Biases:
    zero. Norms keep PyTorch's weight 1 and bias 0.
    """
    if isinstance(module, nn.Linear):
        trunc_normal_(module.weight, std=0.02)
    elif isinstance(module, nn.Conv2d):
        fan_out = math.prod(module.kernel_size) * module.out_channels // module.groups
        nn.init.normal_(module.weight, std=math.sqrt(2 / fan_out))
    if isinstance(module, nn.Linear | nn.Conv2d) and module.bias is not None:
        nn.init.zeros_(module.bias)


@contextmanager
def without_values() -> Iterator[None]:
    """Modules that are built inside have the shapes of their tensors, and no values (meta)."""
    with torch.device("meta"), _Unclamped():
        yield


class _Unclamped(TorchFunctionMode):
    """Leaves tensors without values as they are.

    The initialisation of many layers clamps. On such tensors that does nothing, and takes most of
    the time in which a model is built: PyTorch derives its result by a decomposition in Python.
    """

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if func is Tensor.clamp_:
            return args[0]
        return func(*args, **(kwargs or {}))
