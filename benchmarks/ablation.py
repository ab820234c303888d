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
    """Seconds and memory of the work, and of the work without each implementation that it uses.

    Memory that an allocator keeps anyway is not shown.
    """
    gradients = job["what"] == "step"
    works = (_exported if job["what"] == "exported" else _run)(job)
    found = measure.interleaved(works, job["repeats"], gradients)
    if job["allocator"] == "default" and job["what"] != "exported":
        with torch.enable_grad() if gradients else torch.inference_mode():
            for row in found:
                row["bytes"] = measure.peak_growth(works[row["name"]], 1)
    return {"rows": found}


def _run(job: dict[str, Any]) -> dict[str, Work]:
    """A prediction or a training step."""
    of_network = contestants.our_step if job["what"] == "step" else contestants.our_labels
    work = of_network(job["variant"], job["classes"], tuple(job["size"]))
    works = {_name(switch): _without(work, *switch) for switch in used(work)}
    return {"all": work, **works}


def _exported(job: dict[str, Any]) -> dict[str, Work]:
    """Stride-4 logits by OpenVINO, from graphs that were exported with the implementations."""
    network = contestants.stride_4(contestants.ours(job["variant"], job["classes"]))
    images = torch.randn(1, 3, *job["size"])
    works = {"all": contestants.openvino(network, images)}
    for switch in used(lambda: torch.export.export(network, (images,))):
        with without(*switch):
            works[_name(switch)] = contestants.openvino(network, images)
    return works


def _name(switch: Switch) -> str:
    operator, implementation = switch
    return f"{operator.plain.__name__}, {implementation.function.__name__}"


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
