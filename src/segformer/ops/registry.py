"""Operators: functions with a plain definition, and faster implementations beside it.

The plain definition is the reference: it is differentiable and traceable, and it calls each module
that it is given. A faster implementation runs only if its condition holds.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import update_wrapper
from typing import Any, Generic, ParamSpec, TypeVar

import torch

P = ParamSpec("P")
R = TypeVar("R")

VARIABLE = "SEGFORMER_PLAIN"
_plain = ContextVar("plain", default=os.environ.get(VARIABLE, "0") not in ("", "0"))


@contextmanager
def plain() -> Iterator[None]:
    """Context in which every operator of this thread runs its plain definition, for debugging.

    With gradient checkpointing, which computes again in the backward pass and on GPUs in another
    thread, set the variable instead.

    The environment variable SEGFORMER_PLAIN=1 does the same for a whole process.
    """
    token = _plain.set(True)
    try:
        yield
    finally:
        _plain.reset(token)


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def only_plain() -> bool:
    """Whether only plain definitions run.

    Compiled code keeps the answer of its compilation: PyTorch 2.6 cannot trace context variables.
    """
    return _plain.get()


@dataclass(frozen=True)
class Implementation(Generic[P, R]):
    """A faster way to compute an operator.

    Args:
        function: returns the same as the operator's plain definition.
        when: takes the operator's arguments and returns whether ``function`` may run. The first
            line of its docstring is the condition in the printed table.
    """

    function: Callable[P, R]
    when: Callable[..., bool]


class Operator(Generic[P, R]):
    """A function with a plain definition and faster implementations.

    A call runs the first implementation whose condition holds, else the plain definition.
    """

    def __init__(self, plain: Callable[P, R]) -> None:
        self.plain = plain
        self.implementations: list[Implementation[P, R]] = []
        update_wrapper(self, plain)

    def implementation(
        self, when: Callable[..., bool]
    ) -> Callable[[Callable[P, R]], Callable[P, R]]:
        """Decorator that registers an implementation, to be tried after the earlier ones."""

        def register(function: Callable[P, R]) -> Callable[P, R]:
            self.implementations.append(Implementation(function, when))
            return function

        return register

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        if not only_plain():
            for implementation in self.implementations:
                if implementation.when(*args, **kwargs):
                    return implementation.function(*args, **kwargs)
        return self.plain(*args, **kwargs)


OPERATORS: dict[str, Operator[Any, Any]] = {}


def operator(plain: Callable[P, R]) -> Operator[P, R]:
    """Decorator that turns a plain definition into an operator."""
    made = Operator(plain)
    OPERATORS[plain.__name__] = made
    return made


def table() -> str:
    """Which implementation runs when, as text: one row each, in the order of trial."""
    rows = [("operator", "implementation", "runs when")]
    for name, made in OPERATORS.items():
        names = [name, *[""] * len(made.implementations)]
        for cell, implementation in zip(names, made.implementations, strict=False):
            rows.append((cell, implementation.function.__name__, first_line(implementation.when)))
        rows.append((names[len(made.implementations)], "plain", "otherwise"))
    widths = [max(len(row[column]) for row in rows) for column in (0, 1)]
    return "\n".join(f"{a:{widths[0]}}  {b:{widths[1]}}  {c}".rstrip() for a, b, c in rows)


def first_line(function: Callable[..., Any]) -> str:
    """The first line of a docstring."""
    return (function.__doc__ or "").strip().partition("\n")[0].rstrip(".")
