"""Records the steps of a data flow while a model runs."""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import partial
from typing import Any

from torch import Tensor, nn

from segformer.evaluation.flow.operations import operation
from segformer.evaluation.flow.steps import Shape, Step
from segformer.evaluation.multiply_adds import MultiplyAdds

ACTIVATIONS = {"relu": "ReLU", "relu_": "ReLU", "gelu": "GELU", "silu": "SiLU", "silu_": "SiLU"}
CONCATENATION = "concatenation"
PRODUCT, ATTENTION = "matrix product", "softmax(q kᵀ / √d) v"
SOFTMAX = ("_softmax", "_safe_softmax")


class Call:
    """A call of a module that has not returned.

    Args:
        step: What is recorded of it.
        module: The module; None outside all modules.
        functions: How many functions of PyTorch had run when it began.
    """

    def __init__(self, step: Step, module: nn.Module | None = None, functions: int = 0) -> None:
        self.step = step
        self.functions = functions
        self.is_leaf = module is not None and not list(module.children())


class Recorder(MultiplyAdds):
    """Records the calls of watched modules, and the operations between them, as steps.

    Attributes:
        root: The step that holds all others.
        features: The feature maps of the backbone; set them when they are known.
        results: Each step that returned one tensor, with the tensor.
    """

    def __init__(self) -> None:
        super().__init__()
        self.root = Step("", "", "")
        self.features: list[Tensor] = []
        self.results: list[tuple[Step, Tensor]] = []
        self._calls = [Call(self.root)]
        self._counted: set[int] = set()  # the parameters that a step has already
        self._functions = 0
        self._result: Any = None  # of the last operation

    def watch(self, path: str, module: nn.Module) -> None:
        """Records the calls of a module and of all modules inside."""
        for name, inner in module.named_modules(prefix=path):
            inner.register_forward_pre_hook(partial(self._begin, name), with_kwargs=True)
            inner.register_forward_hook(self._end, with_kwargs=True)

    def makers(self, tensor: Tensor) -> list[Step]:
        """Returns the steps that returned a tensor, or a view of the same data."""
        return [step for step, result in self.results if _owner(result) is _owner(tensor)]

    def _begin(self, path: str, module: nn.Module, args: Any, kwargs: Any) -> None:
        tensors = list(_tensors((args, kwargs)))
        taken = {id(_owner(tensor)) for tensor in tensors}
        caller = self._calls[-1].step.path
        step = Step(
            path,
            path.removeprefix(f"{caller}.") if caller else path,
            operation(module),
            inputs=tuple(map(_shape, tensors)),
            levels=frozenset(k for k, x in enumerate(self.features) if id(_owner(x)) in taken),
        )
        self._calls.append(Call(step, module, self._functions))

    def _end(self, module: nn.Module, args: Any, kwargs: Any, out: Any) -> None:
        call, caller = self._calls.pop(), self._calls[-1].step
        step, tensors = call.step, list(_tensors(out))
        is_idle = call.functions == self._functions and caller is not self.root
        if is_idle and any(tensor is out for tensor in _tensors((args, kwargs))):
            return  # such as dropout in evaluation
        step.outputs = tuple(map(_shape, tensors))
        self._take_parameters(step, module)
        caller.steps.append(step)
        if len(tensors) == 1:
            self.results.append((step, tensors[0]))

    def _take_parameters(self, step: Step, module: nn.Module) -> None:
        """Gives a step the parameters of its module that no step has."""
        own = {
            name: parameter
            for name, parameter in module.named_parameters()
            if id(parameter) not in self._counted
        }
        self._counted |= {id(parameter) for parameter in own.values()}
        number = sum(parameter.numel() for parameter in own.values())
        if own and step.steps:
            names = ", ".join(list(own)[:2]) + (", …" if len(own) > 2 else "")
            step.steps.insert(0, Step("", names, "parameters", own_parameters=number))
        else:
            step.own_parameters = number

    def add(self, func: Any, args: Any, out: Any, multiply_adds: int) -> None:
        """Adds a function's multiply-adds to the module that calls it, or records it as a step."""
        super().add(func, args, out, multiply_adds)
        self._functions += 1
        call = self._calls[-1]
        if call.is_leaf:
            call.step.own_multiply_adds += multiply_adds
            return
        name, steps = func._overloadpacket.__name__, call.step.steps
        in_product = bool(steps) and steps[-1].operation in (PRODUCT, ATTENTION)
        if multiply_adds and in_product:
            steps[-1].outputs = (tuple(out.shape),)
            steps[-1].own_multiply_adds += multiply_adds
        elif multiply_adds:
            shapes = (tuple(args[0].shape),), (tuple(out.shape),)
            steps.append(Step("", "", PRODUCT, *shapes, own_multiply_adds=multiply_adds))
        elif name in SOFTMAX and in_product:
            steps[-1].operation = ATTENTION
        elif out is not self._result and (words := _words(name, args, out)):
            steps.append(Step("", "", words, tuple(map(_shape, _tensors(args))), (_shape(out),)))
            self._result = out  # a function that is made of this one returns it again


def _words(function: str, args: Any, out: Any) -> str | None:
    """Returns what a function of PyTorch computes, if a figure would show it."""
    if function == "cat":
        return CONCATENATION
    if interpolation := re.match(r"_?upsample_(nearest|linear|bilinear|bicubic)", function):
        if args[0].shape == out.shape:
            return None
        kind = interpolation[1].replace("nearest", "nearest-neighbour")
        return f"{kind} {'upsampling' if out.numel() > args[0].numel() else 'downsampling'}"
    return ACTIVATIONS.get(function)


def _tensors(value: Any) -> Iterator[Tensor]:
    """Yields the tensors in nested containers."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, dict):
        yield from _tensors(list(value.values()))
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _tensors(item)


def _owner(x: Tensor) -> Tensor:
    """Returns the tensor that a view shows, or the tensor itself."""
    return x if x._base is None else x._base


def _shape(x: Tensor) -> Shape:
    """Returns a shape without the batch of one image."""
    return tuple(x.shape[1:] if x.ndim and len(x) == 1 else x.shape)
