"""Properties of tensors and modules that the conditions of implementations test."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


def in_pieces(x: Tensor) -> bool:
    """Whether ``x`` is on a CPU, and neither gradients nor a graph is recorded.

    Then work may be done piece by piece, in place.
    """
    records = torch.is_grad_enabled() or is_recorded(x)
    return not records and x.device.type == "cpu" and x.numel() > 0


def is_recorded(x: Tensor) -> bool:
    """Whether operations on ``x`` are recorded as a graph or transformed by torch.func.

    Then the computation may not depend on sizes and values, or write in place.
    """
    return is_traced(x) or is_transformed()


def is_traced(x: Tensor) -> bool:
    """Whether operations on ``x`` are recorded as a graph, for export or compilation."""
    is_stand_in = isinstance(x, torch.fx.Proxy) or hasattr(x, "fake_mode")  # a FakeTensor
    return is_stand_in or torch.compiler.is_compiling() or torch.jit.is_tracing()


def is_transformed() -> bool:
    """Whether a transform of torch.func (vmap, jvp, …) or forward-mode differentiation is active.

    These transforms track operations that return new tensors, not writes into existing tensors.
    """
    in_torch_func = torch._C._functorch.peek_interpreter_stack() is not None
    return in_torch_func or torch.autograd.forward_ad._current_level >= 0


def without_autocast(x: Tensor) -> AbstractContextManager[Any]:
    """Context in which operations on the device of ``x`` keep their precision."""
    if x.is_meta:  # autocast does not support meta tensors
        return nullcontext()
    return torch.autocast(x.device.type, enabled=False)


def is_plain(module: Any, *kinds: type[nn.Module]) -> bool:
    """Whether a module computes exactly what its class defines.

    Only then may its parameters be used without calling it. The module's class is one of ``kinds``,
    and no subclass. The instance has no ``forward`` and no hooks, and there are no global hooks:
    adapters, offloading, weight norm and pruning use these. Its tensors are no subclass, such as a
    DTensor or a quantised tensor.
    """
    return (
        type(module) in kinds
        and _is_unchanged(module)
        and not has_global_hooks()
        and all(map(_is_plain_tensor, (*module._parameters.values(), *module._buffers.values())))
    )


def calls_forward_of(module: nn.Module, kind: type[nn.Module]) -> bool:
    """Whether calling a module does what the ``forward`` of a base class defines, and no more."""
    return type(module).forward is kind.forward and _is_unchanged(module)


def _is_unchanged(module: nn.Module) -> bool:
    """Whether an instance has no ``forward`` of its own, no hooks, and is not compiled."""
    is_compiled = module._compiled_call_impl is not None
    return not (is_compiled or "forward" in module.__dict__ or _has_hooks(module))


def _has_hooks(module: nn.Module) -> bool:
    return any(getattr(module, hooks) for hooks in HOOKS)


def is_plain_convolution(
    module: Any, kernel_size: int, *, groups: int = 1, bias: bool | None = None
) -> bool:
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


def _is_plain_tensor(x: Tensor | None) -> bool:
    # While a graph is recorded, parameters are stand-ins of a subclass.
    return x is None or type(x) in (nn.Parameter, Tensor) or hasattr(x, "fake_mode")


def has_global_hooks() -> bool:
    """Whether hooks are registered for all modules (torch.nn.modules.module.register_module_…)."""
    return any(getattr(torch.nn.modules.module, f"_global{hooks}") for hooks in HOOKS)


def hooked_module(model: nn.Module) -> str | None:
    """The name of the first module with a hook, "every module" if hooks are global, or None."""
    if has_global_hooks():
        return "every module"
    for name, module in model.named_modules():
        if _has_hooks(module):
            return repr(name or type(module).__name__)
    return None
