"""What a benchmark measured: its table, its plot, and the best for this machine."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import product
from typing import Any

PYTORCH = "pytorch"
NOISE = 0.05  # share of a time that may differ between two runs
AGREEMENT = 0.99  # share of labels that equal PyTorch's, if there are no data


@dataclass
class Contestant:
    """A format and precision in a benchmark, and what was measured.

    Args:
        format: ``"pytorch"``, or a format of exported files.
        precision: Precision that was asked for.
        model: What labels images; None if there is no such file.
        engine: What runs it, as it says itself.
        megabytes: Size of all its files.
        milliseconds: Time from one image to its labels, in each round.
        miou: mIoU from 0 to 1.
        equal: Share of labels that equal PyTorch's.
        reason: Why it could not be exported, run or measured.
    """

    format: str
    precision: str
    model: Any = field(default=None, repr=False)
    engine: str = ""
    megabytes: float | None = None
    milliseconds: list[float] = field(default_factory=list)
    miou: float | None = None
    equal: float | None = None
    reason: str = ""

    @property
    def name(self) -> str:
        return f"{self.format} {self.precision}"

    @property
    def median(self) -> float:
        return statistics.median(self.milliseconds)

    def fail(self, error: Exception) -> None:
        """Takes it out of the benchmark, for the reason that an error states."""
        self.model = None
        sentence = str(error).strip().partition("\n")[0]
        is_refusal = isinstance(error, (ValueError, OSError)) and sentence
        self.reason = sentence if is_refusal else f"{type(error).__name__}: {sentence}"

    def to_dict(self) -> dict[str, Any]:
        """Returns what was measured, for JSON."""
        measured = {key: value for key, value in vars(self).items() if key != "model"}
        if self.milliseconds:
            measured["median_milliseconds"] = self.median
        return measured


@dataclass(frozen=True)
class Benchmark:
    """The result of a benchmark.

    Args:
        rows: The contestants, PyTorch first.
        size: Height and width of the image that was timed.
        threads: Number of threads of each engine.
        images: What the labels were compared on, in words.
        max_drop: Greatest loss of mIoU of the best, in points.
        notes: What was left out, one sentence for each.
    """

    rows: list[Contestant]
    size: tuple[int, int]
    threads: int
    images: str
    max_drop: float = 0.5
    notes: tuple[str, ...] = ()

    @property
    def best(self) -> Contestant:
        """The fastest that is as accurate as PyTorch, or the first whose time is within 5 % of it.

        Its mIoU is at most ``max_drop`` points lower; if mIoU was not measured, at least 99 % of
        its labels are equal.
        """
        fit = [row for row in self.rows if row.milliseconds and self._is_accurate(row)]
        fastest = min(row.median for row in fit)
        return next(row for row in fit if row.median <= (1 + NOISE) * fastest)

    def _is_accurate(self, row: Contestant) -> bool:
        reference = self.rows[0]
        if row is reference:
            return True
        if reference.miou is None:
            return row.equal is not None and row.equal >= AGREEMENT
        return row.miou is not None and 100 * (reference.miou - row.miou) <= self.max_drop + 1e-9

    def __str__(self) -> str:
        height, width = self.size
        rounds = max(len(row.milliseconds) for row in self.rows)
        heading = (
            f"one image of {height}×{width} to its labels, {self.threads} "
            f"thread{'s' if self.threads > 1 else ''}, medians of {rounds} rounds; labels and mIoU "
            f"on {self.images}"
        )
        return "\n\n".join([heading, table(self.rows), "\n".join([*self.notes, self.verdict()])])

    def verdict(self) -> str:
        """Returns a sentence that names the best for this machine."""
        best, reference = self.best, self.rows[0]
        if reference.miou is None:
            rule = f"the fastest with at least {100 * AGREEMENT:g} % of labels equal"
        else:
            rule = f"the fastest that loses at most {self.max_drop:g} points of mIoU"
        times = reference.median / best.median
        gain = "" if best is reference else f", {times:.2f} × as fast as PyTorch"
        return f"best for this machine: {best.name}, {best.median:.1f} ms{gain} ({rule})"

    def to_dict(self) -> dict[str, Any]:
        """Returns all measurements, for JSON."""
        return {
            "size": self.size,
            "threads": self.threads,
            "images": self.images,
            "max_drop": self.max_drop,
            "best": self.best.name,
            "rows": [row.to_dict() for row in self.rows],
        }


COLUMNS: dict[str, Callable[[Contestant, Contestant], str]] = {  # of a row and of PyTorch's
    "format": lambda row, _: row.format,
    "precision": lambda row, _: row.precision,
    "MB": lambda row, _: "" if row.megabytes is None else f"{row.megabytes:.1f}",
    "ms": lambda row, _: f"{row.median:.1f}" if row.milliseconds else "",
    "min–max": lambda row, _: (
        f"{min(row.milliseconds):.1f}–{max(row.milliseconds):.1f}" if row.milliseconds else ""
    ),
    "speed": lambda row, first: f"{first.median / row.median:.2f} ×" if row.milliseconds else "",
    "mIoU %": lambda row, _: "" if row.miou is None else f"{100 * row.miou:.2f}",
    "equal %": lambda row, _: "" if row.equal is None else f"{100 * row.equal:.2f}",
    "engine": lambda row, _: "; ".join(filter(None, (row.engine, row.reason))),
}
LEFT_ALIGNED = ("format", "precision", "engine")


def table(rows: Sequence[Contestant]) -> str:
    """Returns a table of contestants, PyTorch first; columns that nobody has are left out."""
    columns = []
    for name, write in COLUMNS.items():
        cells = [write(row, rows[0]) for row in rows]
        if any(cells):
            width = max(map(len, (name, *cells)))
            align = str.ljust if name in LEFT_ALIGNED else str.rjust
            columns.append([align(cell, width) for cell in (name, *cells)])
    return "\n".join("  ".join(cells).rstrip() for cells in zip(*columns, strict=True))


def plot(result: Benchmark) -> Any:
    """Returns a figure of mIoU over milliseconds, which has a point for each contestant.

    Bars show the fastest and the slowest round. The best is in a circle, and a line shows the
    lowest mIoU that it may have. The legend names all three.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    rows = [row for row in result.rows if row.milliseconds and row.miou is not None]
    figure = Figure((8, 5), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)  # which measures the names
    axes: Any = figure.add_subplot()
    formats = dict.fromkeys(row.format for row in rows)
    color_of = {name: f"C{k}" for k, name in enumerate(formats)}
    for row in rows:
        around = [[row.median - min(row.milliseconds)], [max(row.milliseconds) - row.median]]
        style = {"fmt": "o", "markersize": 5, "linewidth": 1, "color": color_of[row.format]}
        axes.errorbar([row.median], [_percent(row)], xerr=around, **style)
    lowest = _percent(result.rows[0]) - result.max_drop
    line = {"color": "0.6", "linewidth": 1, "linestyle": "--"}
    axes.axhline(lowest, **line, label=f"{result.max_drop:g} points below PyTorch")
    best = result.best
    circle = {"marker": "o", "markersize": 13, "color": "k", "fillstyle": "none", "linestyle": ""}
    axes.plot([best.median], [_percent(best)], **circle, label="the best for this machine")
    axes.plot([], [], color="0.3", linewidth=1, label="fastest to slowest round")
    height, width = result.size
    threads = f"{result.threads} thread{'s' if result.threads > 1 else ''}"
    axes.set(
        xlabel=f"milliseconds for one image of {height}×{width}, {threads}",
        ylabel=f"mIoU on {result.images}, %",
    )
    _set_limits(axes, rows, lowest)
    axes.grid(alpha=0.3)
    axes.legend(loc="lower right", fontsize=8)
    _write_names(figure, axes, rows, color_of)
    return figure


def _percent(row: Contestant) -> float:
    assert row.miou is not None
    return 100 * row.miou


def _set_limits(axes: Any, rows: Sequence[Contestant], lowest: float) -> None:
    """Leaves room for the names; distances of the times are their ratios."""
    from matplotlib.ticker import FuncFormatter, LogLocator

    values = [lowest, *map(_percent, rows)]
    room = 0.35 * (max(values) - min(values)) + 0.05
    axes.set_ylim(min(values) - room, max(values) + room)
    times = [time for row in rows for time in row.milliseconds]
    axes.set_xscale("log")
    axes.set_xlim(min(times) / 1.6, 1.6 * max(times))
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda time, _: f"{time:g}"))
    axes.xaxis.set_minor_locator(LogLocator(subs=range(1, 10)))
    axes.xaxis.set_minor_formatter("")


def _write_names(
    figure: Any, axes: Any, rows: Sequence[Contestant], color_of: dict[str, str]
) -> None:
    """Writes the name of each row beside its point, where it covers no other name or point."""
    from matplotlib.text import Text

    figure.canvas.draw()
    renderer = figure.canvas.get_renderer()
    points = axes.transData.transform([(row.median, _percent(row)) for row in rows])
    taken: list[Any] = []
    for row, (x, y) in zip(rows, points, strict=True):
        for offset, align in _places():
            text = axes.annotate(
                row.name,
                (row.median, _percent(row)),
                offset,
                textcoords="offset points",
                ha=align,
                va="center",
                fontsize=8,
                color=color_of[row.format],
                arrowprops={"arrowstyle": "-", "color": "0.7", "linewidth": 0.7},
            )
            text.update_positions(renderer)
            box = Text.get_window_extent(text).padded(2)  # without the line to the point
            others = [point for point in points if tuple(point) != (x, y)]
            is_inside = axes.bbox.containsx(box.x0) and axes.bbox.containsx(box.x1)
            is_free = is_inside and not any(box.overlaps(other) for other in taken)
            if is_free and not any(box.contains(*point) for point in others):
                break
            text.remove()
        else:
            continue
        taken.append(box)


def _places() -> Iterator[tuple[tuple[float, float], str]]:
    """Yields offsets of a name from its point, the closest first, and its alignment."""
    for distance, (across, align) in product(
        range(14, 160, 12), ((6, "left"), (-6, "right"), (0, "center"))
    ):
        yield (across, distance), align
        yield (across, -distance), align
