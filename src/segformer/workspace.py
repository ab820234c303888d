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
    return not (torch.is_grad_enabled() or is_traced(x) or is_transformed()) and x.device.type == "cpu" and x.numel() > 0


def is_transformed() -> bool:
    """Whether a transform of torch.func (vmap, jvp, …) or forward-mode differentiation is active.

    They follow operations that return new tensors, not those that write into existing ones.
    """
    in_torch_func = torch._C._functorch.peek_interpreter_stack() is not None
    return in_torch_func or torch.autograd.forward_ad._current_level >= 0


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


def is_plain(module: Any, *kinds: type[nn.Module]) -> bool:
    """Whether a module computes what its class defines, from tensors that only PyTorch touches.

    Only then may its parameters be used without calling it. The class must be exactly one of
    ``kinds``. The module must have no ``forward`` of its own and no hooks, nor may there be global
    ones: adapters, offloading, old-style weight norm and pruning use these. Its tensors must be no
    subclass, such as a DTensor or a quantised tensor.
    """
    return (
        type(module) in kinds
        and "forward" not in module.__dict__
        and not any(getattr(module, hooks) for hooks in HOOKS)
        and not has_global_hooks()
        and all(_is_plain_tensor(x) for x in (*module._parameters.values(), *module._buffers.values()))
    )


def is_plain_convolution(module: Any, kernel_size: int, groups: int = 1, bias: bool | None = None) -> bool:
    """Whether a module is a plain convolution that keeps the size of its map, padded with zeros.

    Args:
        module: any module.
        kernel_size: height and width of its kernel.
        groups: number of its groups.
        bias: whether it has a bias; None if that does not matter.
    """
    return (
        is_plain(module, nn.Conv2d)
        and module.kernel_size == (kernel_size, kernel_size)
        and module.padding == (kernel_size // 2, kernel_size // 2)
        and module.padding_mode == "zeros"
        and module.stride == (1, 1)
        and module.dilation == (1, 1)
        and module.groups == groups
        and bias in (None, module.bias is not None)
    )


def hooked_module(model: nn.Module) -> str | None:
    """The name of the first module with a hook, "every module" where hooks are global, or None."""
    if has_global_hooks():
        return "every module"
    for name, module in model.named_modules():
        if any(getattr(module, hooks) for hooks in HOOKS):
            return repr(name or type(module).__name__)
    return None


HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


def has_global_hooks() -> bool:
    """Whether hooks are registered for all modules (torch.nn.modules.module.register_module_…)."""
    return bool(torch.nn.modules.module._has_any_global_hook())


def _is_plain_tensor(x: Tensor | None) -> bool:
    # While a graph is recorded, parameters are stand-ins of a subclass.
    return x is None or type(x) in (nn.Parameter, Tensor) or hasattr(x, "fake_mode")
