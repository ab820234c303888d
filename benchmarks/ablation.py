"""What each faster implementation saves: the same network with it, and without it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch

from benchmarks import contestants, measure
from benchmarks.contestants import Work
from segformer.ops.registry import OPERATORS, Implementation, Operator

Switch = tuple[Operator[Any, Any], Implementation[Any, Any]]


def rows(job: dict[str, Any]) -> dict[str, Any]:
    """Seconds and memory of the network, and of the network without each implementation."""
    work = _work(job)
    works = {"all": work}
    for operator, implementation in used(work):
        name = f"{operator.plain.__name__}, {implementation.function.__name__}"
        works[name] = _without(work, operator, implementation)
    gradients = job["what"] == "step"
    found = measure.interleaved(works, job["repeats"], gradients)
    with torch.enable_grad() if gradients else torch.inference_mode():
        for row in found:
            row["bytes"] = measure.peak_growth(works[row["name"]], 1)
    return {"rows": found}


def _work(job: dict[str, Any]) -> Work:
    variant, classes, size = job["variant"], job["classes"], tuple(job["size"])
    if job["what"] == "step":
        return contestants.step(variant, classes, size)["segformer"]
    model, images = contestants.ours(variant, classes), torch.randn(1, 3, *size)
    return lambda: model.predict(images)


def used(work: Work) -> list[Switch]:
    """The implementations that run during the work."""
    found: list[Switch] = []

    def noting(operator: Operator[Any, Any], implementation: Implementation[Any, Any]) -> Any:
        def function(*args: Any, **kwargs: Any) -> Any:
            if (operator, implementation) not in found:
                found.append((operator, implementation))
            return implementation.function(*args, **kwargs)

        return replace(implementation, function=function)

    kept = {operator: operator.implementations for operator in OPERATORS.values()}
    try:
        for operator, implementations in kept.items():
            operator.implementations = [noting(operator, made) for made in implementations]
        work()
    finally:
        for operator, implementations in kept.items():
            operator.implementations = implementations
    return found


def _without(work: Work, operator: Operator[Any, Any], unused: Implementation[Any, Any]) -> Work:
    def run() -> Any:
        with without(operator, unused):
            return work()

    return run


@contextmanager
def without(operator: Operator[Any, Any], unused: Implementation[Any, Any]) -> Iterator[None]:
    """Context in which an operator does not have one of its implementations."""
    kept = operator.implementations
    operator.implementations = [made for made in kept if made is not unused]
    try:
        yield
    finally:
        operator.implementations = kept
