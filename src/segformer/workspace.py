"""When a map may be worked piece by piece, and how large a piece is.

A CPU's allocator gives large blocks back to the system as soon as they are free, and touching a fresh one costs more than filling it:
what is needed once is better made in pieces that stay in cache. Where gradients or a graph are recorded, the whole map is worked at once.
"""

from __future__ import annotations

import ctypes
import functools
import platform
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

PIECE = 8 << 20  # bytes of one temporary on a CPU
GPU_PIECE = 256 << 20  # on a GPU, where each piece costs some launches


def in_pieces(x: Tensor) -> bool:
    """Whether what is computed of ``x`` may be computed piece by piece: on a CPU, with neither gradients nor a graph recorded."""
    return not (torch.is_grad_enabled() or is_traced(x)) and x.device.type == "cpu"


def is_traced(x: Tensor) -> bool:
    """Whether what is computed of ``x`` is being recorded as a graph, for export or compilation."""
    is_stand_in = isinstance(x, torch.fx.Proxy) or hasattr(x, "fake_mode")  # a FakeTensor, without importing it
    return is_stand_in or torch.compiler.is_compiling() or torch.jit.is_tracing()


def without_autocast(x: Tensor) -> AbstractContextManager[Any]:
    """A context in which operations on the device of ``x`` keep their precision."""
    return nullcontext() if x.is_meta else torch.autocast(x.device.type, enabled=False)  # meta tensors have no autocast


def reuse_blocks() -> None:
    """Let glibc know, once a process, that blocks of up to 32 MiB will be asked for again.

    From the largest block that a program has freed it learns which ones to serve from memory it holds, and to hold up to twice as much
    (mallopt(3), the dynamic threshold). One is freed here; it was never touched, so that it took no memory.
    """
    if not torch.compiler.is_compiling():
        _free_a_block()


@functools.cache
def _free_a_block() -> None:
    torch.empty((32 << 20) - (64 << 10), dtype=torch.uint8, device="cpu")


def keep_large_blocks() -> None:
    """Let glibc keep the large blocks that this process frees, for the next ones.

    It is a setting of the whole process, which from then on keeps as much memory as it once took: programs such as the command line choose
    it, importing a library does not.
    """
    if platform.libc_ver()[0] == "glibc":
        mallopt = ctypes.CDLL(None).mallopt
        no_maps, no_trimming = (-4, 0), (-1, -1)  # M_MMAP_MAX, M_TRIM_THRESHOLD
        mallopt(*no_maps)
        mallopt(*no_trimming)


def is_plain(module: nn.Module, *kinds: type[nn.Module]) -> bool:
    """Whether a module is of one of these classes to the letter and nobody listens to it, so that its weights are all there is to it."""
    listeners = (module._forward_hooks, module._forward_pre_hooks, module._backward_hooks, module._backward_pre_hooks)
    return type(module) in kinds and not any(listeners)
