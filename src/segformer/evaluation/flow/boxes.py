"""What a picture of a data flow shows: boxes for maps, and for the modules that return them."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import takewhile

from segformer.evaluation.flow.recording import ACTIVATIONS, CONCATENATION
from segformer.evaluation.flow.steps import Shape, Step


@dataclass(frozen=True)
class Box:
    """What the picture says about maps, and about the modules that return them.

    Args:
        title: What the modules compute, in words.
        shape: Channels, height and width of a map.
        name: Name of the modules.
        parameters: Number of their parameters.
        multiply_adds: Their multiply-adds.
        maps: Number of maps.
        enlarged: How many times as high their input is as the map before.
    """

    title: str
    shape: Shape
    name: str = ""
    parameters: int = 0
    multiply_adds: int = 0
    maps: int = 1
    enlarged: float = 1

    def with_costs_of(self, step: Step) -> Box:
        """Returns the box with the costs of a further step."""
        return replace(
            self,
            parameters=self.parameters + step.parameters,
            multiply_adds=self.multiply_adds + step.multiply_adds,
        )


@dataclass(frozen=True)
class Head:
    """The boxes of a decode head.

    Args:
        reads: Numbers of the feature maps that it reads, from 0.
        projections: What reads one feature map each, by its number; empty if nothing does.
        joint: What is done to several maps before the chain.
        chain: The other modules, one after another.
    """

    reads: list[int]
    projections: dict[int, Box]
    joint: str
    chain: list[Box]


def encoder_boxes(encoder: Step) -> list[Box]:
    """Returns a box for each feature map, with what all modules cost since the one before."""
    totals = dict(_totals(encoder, [0, 0]))
    totals[len(encoder.outputs) - 1] = (encoder.parameters, encoder.multiply_adds)
    boxes, spent = [], (0, 0)
    for level, shape in enumerate(encoder.outputs):
        title, name = _makers(encoder, level)
        total = totals.get(level, spent)
        boxes.append(Box(title, shape, name, total[0] - spent[0], total[1] - spent[1]))
        spent = total
    return boxes


def _totals(step: Step, spent: list[int]) -> Iterator[tuple[int, tuple[int, int]]]:
    """Yields each feature map with the parameters and multiply-adds of all steps up to it."""
    spent[0] += step.own_parameters
    spent[1] += step.own_multiply_adds
    for inner in step.steps:
        yield from _totals(inner, spent)
    if step.produces is not None:
        yield step.produces, (spent[0], spent[1])


def _makers(encoder: Step, level: int) -> tuple[str, str]:
    """Returns what the modules compute that return a feature map, and their name."""
    for caller in encoder.walk():
        levels = [step.produces for step in caller.steps]
        if level in levels:
            last = levels.index(level)
            start = max((k + 1 for k in range(last) if levels[k] is not None), default=0)
            return _group(caller.steps[start : last + 1])
    return "", ""


def _group(steps: Sequence[Step]) -> tuple[str, str]:
    """Returns what the last step and those numbered before it compute, and their name."""
    last = steps[-1]
    stem = re.sub(r"\d+$", "", last.name)
    alike = [step for step in steps if re.fullmatch(re.escape(stem) + r"\d*", step.name)]
    name = last.name.removeprefix("model.")
    if len(alike) == 1:
        return last.operation, name
    first, number = (step.name.removeprefix(stem) for step in (alike[0], last))
    return f"{len(alike)} × {last.operation}", f"{name.removesuffix(number)}{first}–{number}"


def head_boxes(head: Step) -> Head:
    """Returns the boxes of a decode head."""
    reads = sorted(set().union(*(step.levels for step in head.steps)))
    readers = {min(step.levels): step for step in head.steps if len(step.levels) == 1}
    if len(readers) < 2:  # the only map goes through the whole chain
        return Head(reads, {}, f"{len(reads)} maps", _chain(head))
    projections = {
        level: Box(step.operation, step.outputs[0], step.name, step.parameters, step.multiply_adds)
        for level, step in readers.items()
    }
    rest = replace(head, steps=[step for step in head.steps if len(step.levels) != 1])
    return Head(reads, projections, _joint(rest.steps), _chain(rest))


def _joint(steps: Sequence[Step]) -> str:
    """Returns what is done to the projected maps before the first module, in words."""
    before = list(takewhile(lambda step: not step.name, steps))
    words = ", ".join(dict.fromkeys(step.operation for step in before))
    return f"{words}: {sides(before[-1].outputs[0])}" if before else "all maps"


def _chain(head: Step) -> list[Box]:
    """Returns a box for each step with multiply-adds; the others belong to a box beside them."""
    boxes: list[Box] = []
    waiting: list[Step] = []  # modules before the first box
    is_joined = False
    for step in head.folded().steps:
        if step.multiply_adds and step.outputs and len(step.outputs[-1]) > 1:
            box = Box(step.operation, step.outputs[-1], step.name)
            box = replace(box, maps=step.times * len(step.outputs))
            for part in (*waiting, step):
                box = box.with_costs_of(part)
            if boxes:
                title = f"{CONCATENATION}, {box.title}" if is_joined else box.title
                enlarged = step.inputs[0][-2] / boxes[-1].shape[-2]
                box = replace(box, title=title, enlarged=enlarged)
            boxes.append(box)
            waiting, is_joined = [], False
        elif step.operation == CONCATENATION:
            is_joined = True
        elif boxes and (step.name or step.operation in ACTIVATIONS.values()):
            title = f"{boxes[-1].title}, {step.operation}"
            boxes[-1] = replace(boxes[-1].with_costs_of(step), title=title)
        elif step.name:
            waiting.append(step)
    boxes = boxes or [Box(head.operation, head.outputs[0], head.name)]
    return [*boxes[:-1], replace(boxes[-1], title=f"logits: {boxes[-1].title}")]


def sides(shape: Shape) -> str:
    """Returns a shape as ``32 × 128 × 128``."""
    return " × ".join(map(str, shape))
