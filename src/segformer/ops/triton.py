"""Checks that the Triton kernels run on a device and agree with the plain definitions."""

from __future__ import annotations

import functools
import warnings
from typing import Any

import torch
from torch import Tensor

from segformer.ops.conditions import is_recorded


def runs_on(x: Tensor) -> bool:
    """Whether the kernels run on the device of ``x``; false while a graph is recorded."""
    return x.is_cuda and not is_recorded(x) and agrees_on(x.device)


@functools.cache
def agrees_on(device: torch.device) -> bool:
    """Whether the kernels agree with the plain definitions; compared once a process and device."""
    try:
        _compare(device)
    except Exception as error:  # of the compiler, the driver or the comparison
        warnings.warn(
            f"the Triton kernels do not run on {device}, slower implementations are used: "
            f"{type(error).__name__}: {error}",
            stacklevel=2,
        )
        return False
    return True


def _compare(device: torch.device) -> None:
    """Raise an error if the kernels, in float32, differ from the plain definitions in float64."""
    from segformer.ops import argmax, bilinear, cross_entropy

    def moved(x: Tensor) -> Tensor:
        return x.to(device, torch.float32 if x.is_floating_point() else x.dtype)

    def check(ours: Any, theirs: Any) -> None:
        torch.testing.assert_close(
            ours, theirs, rtol=1e-4, atol=1e-4, check_device=False, check_dtype=False
        )

    with torch.inference_mode(False), torch.no_grad(), torch.device("cpu"):
        logits = torch.arange(2 * 40 * 3 * 5, dtype=torch.double).mul(0.7).sin().view(2, 40, 3, 5)
        target, weight = torch.arange(2 * 13 * 7).view(2, 13, 7) % 41, torch.arange(1.0, 41.0)
        size, maps = (13, 7), [torch.ones(2, 40, 13, 7, dtype=torch.double), logits]
        labels = argmax.argmax_by_triton(moved(logits), size)
        check(labels, argmax.upsample_argmax.plain(logits, size))
        total = bilinear.sum_by_triton([moved(x) for x in maps])
        check(total, bilinear.upsample_sum.plain(maps))
        for smoothing in (0.0, 0.1):
            losses, gradients = [], []
            for loss, move in (
                (cross_entropy.cross_entropy_by_triton, moved),
                (cross_entropy.upsample_cross_entropy.plain, torch.Tensor.double),
            ):
                leaf = move(logits).requires_grad_()
                labels = target.to(leaf.device)
                with torch.enable_grad():
                    value = loss(leaf, labels, move(weight), 40, label_smoothing=smoothing)
                losses.append(value)
                gradients.append(torch.autograd.grad(value, leaf)[0])
            check(*losses)
            check(*gradients)
