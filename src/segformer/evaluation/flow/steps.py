"""The steps of a data flow: calls of modules, and operations between them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

Shape = tuple[int, ...]


@dataclass
class Step:
    """One call of a module, or one operation that is no module.

    Args:
        path: Name of the module in the model; empty for an operation.
        name: The same, below the module that calls it.
        operation: What it computes, in words.
        inputs: Shapes of the tensors that it takes, without the batch.
        outputs: Shapes of the tensors that it returns.
        own_parameters: Number of parameters that belong to none of its steps.
        own_multiply_adds: Multiply-adds outside its steps.
        steps: The calls and operations inside, in their order.
        times: How many equal calls it stands for.
        levels: Numbers of the feature maps that it takes, from 0.
        produces: Number of the feature map that it returns.
    """

    path: str
    name: str
    operation: str
    inputs: tuple[Shape, ...] = ()
    outputs: tuple[Shape, ...] = ()
    own_parameters: int = 0
    own_multiply_adds: int = 0
    steps: list[Step] = field(default_factory=list)
    times: int = 1
    levels: frozenset[int] = frozenset()
    produces: int | None = None

    @property
    def parameters(self) -> int:
        """Number of parameters of this step and all inside."""
        return self.times * (self.own_parameters + sum(step.parameters for step in self.steps))

    @property
    def multiply_adds(self) -> int:
        """Multiply-adds of this step and all inside."""
        inside = sum(step.multiply_adds for step in self.steps)
        return self.times * (self.own_multiply_adds + inside)

    def walk(self) -> Iterator[Step]:
        """Yields this step and all inside, in the order of the calls."""
        yield self
        for step in self.steps:
            yield from step.walk()

    def folded(self) -> Step:
        """Returns the step with one step for consecutive equal ones, such as blocks."""
        steps: list[Step] = []
        for step in (inner.folded() for inner in self.steps):
            joined = _joined(steps[-1], step) if steps else None
            steps[-1:] = [joined] if joined else [*steps[-1:], step]
        return replace(self, steps=steps)


def _joined(first: Step, second: Step) -> Step | None:
    """Returns two steps as one if they are equal and the second's number follows the first's."""
    pattern = r"(.*?)(?:(\d+)–)?(\d+)"
    before, after = (re.fullmatch(pattern, step.name) for step in (first, second))
    if before is None or after is None or _likeness(first) != _likeness(second):
        return None
    if before[1] != after[1] or int(before[3]) + 1 != int(after[3]):
        return None
    start = before[2] or before[3]
    return replace(first, name=f"{before[1]}{start}–{after[3]}", times=first.times + 1)


def _likeness(step: Step) -> tuple[Any, ...]:
    """Returns what equal steps have in common: all but their own names and places."""
    inside = tuple((inner.name, inner.times, _likeness(inner)) for inner in step.steps)
    own = (step.own_parameters, step.own_multiply_adds)
    return (step.operation, step.inputs, step.outputs, own, inside)
