"""A step whose results are computed in a thread, while the step after it works on the last."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, Future
from typing import TypeVar

Item = TypeVar("Item")
Value = TypeVar("Value")


def ahead(
    thread: Executor, step: Callable[[Item], Value], items: Iterable[Item]
) -> Iterator[Value]:
    """Yields what a step returns for each item, in order, while the next item's is computed.

    As with ``map``, an error of the step is raised in its turn, and no later item is begun.

    Args:
        thread: Computes the step.
        step: The function of an item.
        items: The items; the next one is taken while the last one's result is computed.
    """
    begun: Future[Value] | None = None
    for item in items:
        done = [begun.result()] if begun else []  # an error ends the steps before the next one
        begun = thread.submit(step, item)
        yield from done
    if begun:
        yield begun.result()
