"""A data flow as lines of text."""

from __future__ import annotations

from collections.abc import Iterator

from segformer.evaluation.flow.steps import Shape, Step

HEADINGS = ("module", "input", "output", "operation", "parameters", "multiply-adds")
ALIGNMENTS = (str.ljust, str.ljust, str.ljust, str.ljust, str.rjust, str.rjust)
UNITS = {"T": 10**12, "G": 10**9, "M": 10**6, "k": 10**3}
Row = tuple[str, ...]


def table(model: Step, depth: int | None = None) -> list[str]:
    """Returns the lines of a table of all steps, and of their sums.

    Args:
        model: The step that holds all others.
        depth: Number of levels of modules that are shown; by default all.
    """
    rows: list[Row] = [HEADINGS]
    for step in model.folded().steps:
        rows += _rows(step, 0, 1, depth)
    rows.append(("total", "", "", "", f"{model.parameters:,}", count(model.multiply_adds)))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for row in rows:
        cells = zip(ALIGNMENTS, row, widths, strict=True)
        lines.append("  ".join(align(cell, width) for align, cell, width in cells).rstrip())
    return lines


def _rows(step: Step, level: int, times: int, depth: int | None) -> Iterator[Row]:
    """Yields the cells of a step that is called ``times`` times, and of the steps inside."""
    yield (
        "  " * level + step.name + (f" × {step.times}" if step.times > 1 else ""),
        _shapes(step.inputs),
        _shapes(step.outputs),
        step.operation,
        f"{times * step.parameters:,}" if step.parameters else "",
        count(times * step.multiply_adds) if step.multiply_adds else "",
    )
    if depth is None or level + 1 < depth:
        for inner in step.steps:
            yield from _rows(inner, level + 1, times * step.times, depth)


def _shapes(shapes: tuple[Shape, ...]) -> str:
    """Returns a shape as ``3×512×512``, or the number of several maps."""
    if len(shapes) > 1:
        return f"{len(shapes)} maps"
    return "×".join(str(side) for shape in shapes for side in shape)


def count(number: int) -> str:
    """Returns a number in three digits and a unit, such as ``8.39 G``."""
    for unit, size in UNITS.items():
        value = number / size
        if value >= 0.9995:
            decimals = 2 if value < 9.995 else 1 if value < 99.95 else 0
            return f"{value:.{decimals}f} {unit}"
    return str(number)
