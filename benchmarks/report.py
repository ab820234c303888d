"""The results as Markdown tables and plots, and the figures in the project's README.

``python -m benchmarks.report`` writes the figures and the picture of the README from the results.
"""

from __future__ import annotations

import json
import statistics
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt

HERE = Path(__file__).parent
README = HERE.parent / "README.md"
PICTURE = HERE.parent / "docs" / "speed.png"
START, END = "<!-- figures from benchmarks/*.json -->\n", "<!-- end of figures -->\n"

Row = dict[str, Any]
Rows = dict[str, Row]

# The least speed-up over a contestant that is asked, under the default and the retaining allocator
TARGETS: dict[tuple[str, str, str], tuple[float | None, float | None]] = {
    ("logits", "b0 150 512×512", "transformers"): (4, 2.4),
    ("logits", "b2 150 512×512", "transformers"): (5, 3),
    ("logits", "b5 150 512×512", "transformers"): (3, 2.4),
    ("logits", "b0 150 512×512", "openvino on transformers' graph"): (1.05, None),
    ("logits", "b2 150 512×512", "openvino on transformers' graph"): (1.4, None),
    ("logits", "b5 150 512×512", "openvino on transformers' graph"): (1.0, None),
    ("logits", "b0 19 1024×2048", "transformers"): (None, 2.3),
    ("logits", "b2 19 1024×2048", "transformers"): (None, 2.8),
    ("labels", "b0 150 512×512", "transformers"): (6, None),
    ("labels", "b2 150 512×512", "transformers"): (5, None),
    ("exported", "b0 150 512×512", "onnxruntime on transformers' graph"): (2.5, None),
    ("exported", "b2 150 512×512", "onnxruntime on transformers' graph"): (2.5, None),
    ("argmax", "150 512×512", "interpolate + argmax"): (12, None),
    ("step", "b0 150 512×512", "transformers"): (3.5, None),
}
TITLES = {
    "logits": "Images to stride-4 logits",
    "labels": "Images to label maps of the images' size",
    "exported": "Images to label maps by exported files",
    "argmax": "Stride-4 logits to label maps",
    "step": "Training step: forward, loss at full size, backward, AdamW; batch of 2",
    "small": "Small images in batches",
}


def read(name: str) -> Any:
    """The results in ``benchmarks/NAME``."""
    return json.loads((HERE / name).read_text())


def write(results: dict[str, Rows], folder: Path) -> None:
    """Write ``folder/speed.md`` and the curves that it shows."""
    (folder / "speed.md").write_text(speed(results))
    if "accuracy" in results:
        _plot_accuracy(results["accuracy"], folder / "accuracy.png")


def speed(results: dict[str, Rows]) -> str:
    """Markdown of all results of ``python -m benchmarks``."""
    runs = Runs()
    lines = []
    for part, title in TITLES.items():
        if part in results:
            lines += [f"## {title}", "", *_table(part, results[part], runs), ""]
    if "memory" in results:
        lines += ["## Peak memory above the models' own", "", *_memory(results["memory"], runs), ""]
    if "loading" in results:
        title = "## Loading: training samples of 512×512 from photographs of 640×480"
        lines += [title, "", *_loading(results["loading"], runs), ""]
    if "accuracy" in results:
        title = "## Time to accuracy: B0 on CamVid from random weights"
        lines += [title, "", *_accuracy(results["accuracy"], runs), ""]
    if "operators" in results:
        title = "## What each implementation saves"
        lines += [title, "", *_operators(results["operators"], runs), ""]
    if missed := list(_missed(results)):
        lines += ["## Targets that were not reached", "", *missed, ""]
    lines += ["## Machines, versions and dates", "", *runs.table(), ""]
    lines += ["## Commands", "", *_commands(results), ""]
    return "\n".join(lines)


def training(rows: list[Row]) -> str:
    """Markdown of the training results in ``benchmarks/training.json``."""
    runs = Runs()
    commands = list(dict.fromkeys(row["command"] for row in rows))
    lines = [
        "| data | network | steps | minutes | val mIoU | test mIoU | seed | run | command "
        "| remark |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        test = "" if row["test"] is None else f"{row['test']:.1f}"
        number = commands.index(row["command"]) + 1
        lines.append(
            f"| {row['data']} | {row['network']} | {row['steps']} | {row['minutes']:g} "
            f"| {row['val']:.1f} | {test} | {row['seed']} | {runs.number(row)} | {number} "
            f"| {row['remark']} |"
        )
    numbered = [f"{number}. `{command}`" for number, command in enumerate(commands, 1)]
    return "\n".join([*lines, "", "Runs:", "", *runs.table(), "", "Commands:", "", *numbered, ""])


def figures(results: dict[str, Rows], recipes: Rows) -> list[str]:
    """What the package is best at, as five lines for the README."""

    def times(part: str, name: str, contestant: str) -> str:
        rows = results[part][f"{name} default"]["rows"]
        return f"{next(r['ratio']['median'] for r in rows if r['name'] == contestant):.1f}"

    memory = results["memory"]
    ours, theirs = (
        memory[f"b0 150 2048×2048 labels {who} default"]["bytes"]
        for who in ("segformer", "transformers")
    )
    share = statistics.median(_shares(results["accuracy"])["default"])
    best = max(
        (
            row
            for row in recipes.values()
            if (row["scores"].get("test") or {}).get("aligned")
            and row["machine"].startswith("AMD EPYC")  # that of the other figures
        ),
        key=lambda row: row["scores"]["val"]["aligned"],
    )
    val, test = (100 * best["scores"][split]["aligned"] for split in ("val", "test"))
    minutes = best["minutes"] + best.get("minutes_before", 0)
    threads = best["machine"].rpartition(", ")[-1]
    first = ", generated streets first" if "from_scenes" in best["recipe"] else ""
    b0 = "b0 150 512×512"
    return [
        f"- Inference: {times('logits', b0, 'transformers')}× (B0) and "
        f"{times('logits', 'b2 150 512×512', 'transformers')}× (B2) as fast as transformers at "
        "512×512.",
        f"- Label maps: {times('labels', b0, 'transformers')}× as fast (B0, 150 classes); a "
        f"2048×2048 map takes {100 * ours / theirs:.0f} % of the memory.",
        f"- A training step: {times('step', b0, 'transformers')}× as fast (B0, batch of 2).",
        f"- Training on CamVid to the same mIoU: {100 * share:.0f} % of the time of transformers' "
        "network in a plain loop.",
        f"- CamVid from random weights{first}: {val:.1f} % mIoU on val, {test:.1f} % on test (B0, "
        f"{minutes:.0f} minutes of {threads} in bfloat16).",
    ]


class Runs:
    """Numbers for the distinct machines, versions, commits and dates of the rows."""

    def __init__(self) -> None:
        self.numbers: dict[tuple[str, ...], int] = {}

    def number(self, row: Row) -> int:
        """The number of a row's run."""
        versions = ", ".join(f"{name} {value}" for name, value in row["versions"].items())
        of_row = row["date"], row["machine"], versions, row.get("commit", "")
        return self.numbers.setdefault(of_row, len(self.numbers) + 1)

    def table(self) -> list[str]:
        """One row a run."""
        rows = [f"| {number} | {' | '.join(of_rows)} |" for of_rows, number in self.numbers.items()]
        heading = "| run | date | machine | versions | commit |"
        return [heading, "|---|---|---|---|---|", *rows]


def _table(part: str, entries: Rows, runs: Runs) -> list[str]:
    lines = [
        "| variant, classes, size | contestant | default allocator: ms, times ours (range) "
        "| retaining: ms, times ours (range) | asked | run |",
        "|---|---|---|---|---|---|",
    ]
    notes = []
    for key, entry in entries.items():
        if entry["allocator"] != "default" or "failed" in entry:
            continue
        name = key.removesuffix(" default")
        retaining = entries.get(f"{name} retaining", {})
        others = {row["name"]: row for row in retaining.get("rows", [])}
        numbers = dict.fromkeys(runs.number(e) for e in (entry, retaining) if e)
        for row in entry["rows"]:
            asked = _asked(TARGETS.get((part, name, row["name"])))
            both = f"{_cell(row)} | {_cell(others.get(row['name']))}"
            run = ", ".join(map(str, numbers))
            lines.append(f"| {name} | {row['name']} | {both} | {asked} | {run} |")
        notes += _notes(name, entry, retaining)
    return [*lines, "", *(f"- {note}" for note in notes)]


def _notes(name: str, entry: Row, retaining: Row) -> Iterable[str]:
    for what, of in (("default", entry), ("retaining", retaining)):
        if "share of matrix-product rate" in of:
            share, rate = of["share of matrix-product rate"], of["matrix products"] / 1e9
            yield (
                f"{name}, {what}: {100 * share:.0f} % of the {rate:.0f} GFLOP/s that the best "
                "matrix product reached in the run"
            )
    if "boundary" in entry:
        yield f"{name}: {100 * entry['boundary']:.1f} % of the quads of cells lie on a boundary"


def _asked(target: tuple[float | None, float | None] | None) -> str:
    if target is None:
        return ""
    return " / ".join(f"{value:g}×" if value else "–" for value in target).removesuffix(" / –")


def _cell(row: Row | None) -> str:
    if row is None:
        return ""
    return f"{1e3 * row['seconds']['median']:.0f}, {_ratio(row)}"


def _ratio(row: Row) -> str:
    ratio = row["ratio"]
    return f"{ratio['median']:.2f}× ({ratio['min']:.2f}–{ratio['max']:.2f})"


def _missed(results: dict[str, Rows]) -> Iterable[str]:
    for (part, name, contestant), asked in TARGETS.items():
        for allocator, target in zip(("default", "retaining"), asked, strict=True):
            entry = results.get(part, {}).get(f"{name} {allocator}", {})
            for row in entry.get("rows", []):
                if row["name"] == contestant and target and row["ratio"]["median"] < target:
                    yield (
                        f"- {part}, {name}, {allocator} allocator: {row['ratio']['median']:.2f}× "
                        f"of {target:g}× over {contestant}"
                    )


def _commands(results: dict[str, Rows]) -> list[str]:
    rows = [
        f"| {part} | {key} | {_other_work(entry)} | `{entry['command']}` |"
        for part, entries in results.items()
        for key, entry in entries.items()
    ]
    heading = "| part | row | other work on the machine | command that measures it |"
    return [heading, "|---|---|---|---|", *rows]


def _other_work(entry: Row) -> str:
    """The share of the cores' time that other processes took, where it was recorded."""
    if "load" not in entry:
        return ""
    share = f"{100 * entry['load']['others']:.0f} %"
    return f"**{share}**: busy" if "note" in entry else share


def _operators(entries: Rows, runs: Runs) -> list[str]:
    lines = [
        "| work | network, classes, size | threads, allocator | without | ms with it "
        "| times with it (range) | cores' time | MiB with, without | run |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for entry in entries.values():
        if "failed" in entry:
            continue
        first, *others = entry["rows"]
        height, width = entry["size"]
        what = f"{entry['what']} | {entry['variant']}, {entry['classes']}, {height}×{width}"
        where = f"{entry['threads']}, {entry['allocator']}"
        for row in others:
            memory = (
                f"{first['bytes'] / 2**20:.0f}, {row['bytes'] / 2**20:.0f}"
                if "bytes" in row
                else ""
            )
            lines.append(
                f"| {what} | {where} | {row['name']} | {1e3 * first['seconds']['median']:.0f} "
                f"| {_ratio(row)} | {row['cpu']['median']:.2f}× | {memory} | {runs.number(entry)} |"
            )
    return lines


@dataclass(frozen=True)
class Saving:
    """What an implementation saves in one measurement.

    Args:
        where: the work, the network and the size.
        time: the share of the time without it.
        memory: the share of the peak memory without it, or None.
    """

    where: str
    time: float
    memory: float | None


def savings(entries: Rows) -> dict[str, list[Saving]]:
    """What each implementation saves, by the names of the operator and the implementation.

    Measurements on a busy machine do not count.
    """
    found: dict[str, list[Saving]] = defaultdict(list)
    for entry in entries.values():
        if "note" in entry:  # the machine was busy
            continue
        first, *others = entry.get("rows", [{}])
        height, width = entry["size"]
        for row in others:
            is_shown = row.get("bytes", 0) >= 2**20
            memory = 1 - first["bytes"] / row["bytes"] if is_shown else None
            where = f"{WORDS[entry['what']]} {entry['variant']}, {height}×{width}"
            saved = 1 - 1 / row["ratio"]["median"]
            found[row["name"]].append(Saving(where, saved, memory))
    return found


WORDS = {"labels": "label map,", "step": "training step,", "exported": "exported to OpenVINO,"}


def _memory(entries: Rows, runs: Runs) -> list[str]:
    lines = [
        "| work | size | allocator | segformer | transformers | share "
        "| segformer, ns a pixel | transformers, ns a pixel | run |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for key, entry in entries.items():
        other = entries.get(key.replace("segformer", "transformers"), {})
        if entry["who"] != "segformer" or not ("bytes" in entry and "bytes" in other):
            continue
        mine, theirs, (height, width) = entry["bytes"], other["bytes"], entry["size"]
        rates = " | ".join(
            f"{1e9 * e['seconds'] / height / width:.0f}" if "seconds" in e else ""
            for e in (entry, other)
        )
        work = f"{entry['what']}, {entry['variant']}, {entry['classes']} classes"
        lines.append(
            f"| {work} | {height}×{width} | {entry['allocator']} | {mine / 2**20:.0f} MiB "
            f"| {theirs / 2**20:.0f} MiB | {mine / theirs:.2f} | {rates} | {runs.number(entry)} |"
        )
    return lines


def _loading(entries: Rows, runs: Runs) -> list[str]:
    lines = ["| work | contestant | images/s | times ours (range) | run |", "|---|---|---|---|---|"]
    for entry in entries.values():
        for work in ("augmenting", "decoding and augmenting"):
            for row in entry.get(work, []):
                rate = entry["images"] / row["seconds"]["median"]
                lines.append(
                    f"| {work} | {row['name']} | {rate:.0f} | {_ratio(row)} "
                    f"| {runs.number(entry)} |"
                )
    return lines


def _pairs(entries: Rows) -> list[tuple[Row, Row]]:
    """This package's training runs, each with its peer's."""
    pairs = [
        (entry, entries.get(key.replace("segformer", "transformers"), {}))
        for key, entry in entries.items()
        if "segformer" in key
    ]
    return [(mine, theirs) for mine, theirs in pairs if "points" in mine and "points" in theirs]


def _times(pair: tuple[Row, Row]) -> tuple[list[float], list[float]]:
    """The best mIoU of two runs, and the seconds in which each reaches the lower of the two."""
    bests = [max(point["miou"] for point in run["points"]) for run in pair]
    return bests, [seconds_to(run["points"], min(bests)) for run in pair]


def _shares(entries: Rows) -> dict[str, list[float]]:
    """By allocator, the shares of the peer's time in which this package reaches the same mIoU."""
    shares: dict[str, list[float]] = defaultdict(list)
    for pair in _pairs(entries):
        _, (mine, theirs) = _times(pair)
        shares[pair[0]["allocator"]].append(mine / theirs)
    return shares


def _accuracy(entries: Rows, runs: Runs) -> list[str]:
    lines = [
        "| seed, allocator | contestant | steps, minutes | best mIoU "
        "| reaches the lower of the two bests after | share | run |",
        "|---|---|---|---|---|---|---|",
    ]
    for pair in _pairs(entries):
        bests, seconds = _times(pair)
        for run, best, reached in zip(pair, bests, seconds, strict=True):
            last = run["points"][-1]
            lines.append(
                f"| {run['seed']}, {run['allocator']} | {run['who']} "
                f"| {last['step']}, {last['seconds'] / 60:.1f} | {100 * best:.1f} % "
                f"| {reached / 60:.1f} min | {reached / seconds[1]:.2f} | {runs.number(run)} |"
            )
    medians = [
        f"{statistics.median(shares):.2f} with the {allocator} allocator"
        for allocator, shares in _shares(entries).items()
    ]
    return [*lines, "", f"Median share of the peer's time: {', '.join(medians)}."]


def seconds_to(points: list[dict[str, float]], miou: float) -> float:
    """Seconds until a run first reached an mIoU, interpolated between its validations.

    Infinite if it never reached it.
    """
    before = {"seconds": 0.0, "miou": 0.0}
    for point in points:
        if point["miou"] >= miou:
            rise = point["miou"] - before["miou"]
            share = (miou - before["miou"]) / rise if rise > 0 else 1.0
            return before["seconds"] + share * (point["seconds"] - before["seconds"])
        before = point
    return float("inf")


def _plot_accuracy(entries: Rows, path: Path) -> None:
    figure, axes = plt.subplots(figsize=(7, 4), constrained_layout=True)
    labels = set()
    for pair in _pairs(entries):
        for run, color in zip(pair, ("#4477aa", "#cc6677"), strict=True):
            minutes = [0.0, *(point["seconds"] / 60 for point in run["points"])]
            mious = [0.0, *(100 * point["miou"] for point in run["points"])]
            style = "--" if run["allocator"] == "retaining" else "-"
            label = f"{run['who']}, {run['allocator']} allocator"
            shown = None if label in labels else label
            axes.plot(minutes, mious, style, color=color, marker=".", linewidth=1, label=shown)
            labels.add(label)
    axes.set(
        xlabel="minutes of training, without validation",
        ylabel="mIoU on the validation images, %",
        ylim=(0, None),
        xlim=(0, None),
    )
    axes.grid(alpha=0.3)
    axes.legend(loc="lower right")
    figure.savefig(path, dpi=110)
    plt.close(figure)


@dataclass(frozen=True)
class Bar:
    """A kind of work in the picture.

    Args:
        work: what is done.
        details: the network, the size, and the peer.
        times: how many times as fast as the peer this package is.
    """

    work: str
    details: str
    times: float

    def __str__(self) -> str:
        return f"{self.work} ({self.details}): {self.times:.1f}×"


def bars(results: dict[str, Rows]) -> list[Bar]:
    """The picture's bars, one a kind of work that was measured."""

    def times(part: str, key: str, peer: str, rows: str = "rows") -> float:
        of_peers = {row["name"]: row["ratio"] for row in results[part][key][rows]}
        return float(of_peers[peer]["median"])

    size = "150 512×512 default"
    found = []
    if "logits" in results:
        found.append(Bar("Network", "B0, 512×512", times("logits", f"b0 {size}", PEER)))
    if "labels" in results:
        speedup = times("labels", f"b0 {size}", PEER)
        found.append(Bar("Image to label map", "B0, 512×512", speedup))
    if "exported" in results:
        speedup = times("exported", f"b0 {size}", "openvino on transformers' graph")
        details = "B0, 512×512, against transformers' export"
        found.append(Bar("The same in OpenVINO", details, speedup))
    if "step" in results:
        found.append(Bar("Training step", "B0, 512×512", times("step", f"b0 {size}", PEER)))
    if "accuracy" in results:
        share = statistics.median(_shares(results["accuracy"])["default"])
        found.append(Bar("Training to equal mIoU", "B0, CamVid", 1 / share))
    if "loading" in results:
        peer, work = "OpenCV and albumentations", "decoding and augmenting"
        speedup = times("loading", "default", peer, work)
        found.append(Bar("Loading training images", "against OpenCV, albumentations", speedup))
    return found


PEER = "transformers"


def draw(shown: list[Bar], path: Path) -> None:
    """Draw bars, and write their values into the file's description, too."""
    height = 0.72 * len(shown) + 1.3
    figure, axes = plt.subplots(figsize=(10, height), layout="constrained")
    values = [bar.times for bar in shown]
    colors = ["#2f6db5" if value >= 1 else "#c8553d" for value in values]
    places = range(len(shown))
    axes.barh(places, values, color=colors, height=0.62)
    for place, bar in enumerate(shown):
        number = f" {bar.times:.1f}×"
        beyond = max(bar.times, 1.04)  # not over the line
        axes.text(beyond, place, number, va="center", fontsize=18, fontweight="bold")
        side = {"transform": axes.get_yaxis_transform(), "ha": "right"}
        axes.text(-0.015, place - 0.13, bar.work, va="center", fontsize=16, **side)
        axes.text(-0.015, place + 0.25, bar.details, va="center", fontsize=11, color="0.4", **side)
    axes.axvline(1, color="0.2", linewidth=1.5, linestyle="--")
    axes.set_yticks([])
    axes.set_ylim(len(shown) - 0.4, -1.0)
    axes.text(1.08, -0.72, "equally fast", fontsize=12, color="0.2", va="center")
    axes.set_xticks([])
    axes.set_xlim(0, 1.14 * max(values))
    axes.spines[["top", "right", "bottom"]].set_visible(False)
    axes.set_title(
        "Times as fast as transformers, on two CPU cores", fontsize=18, loc="left", pad=10
    )
    figure.savefig(path, dpi=110, metadata={"Description": described(shown)})
    plt.close(figure)


def described(shown: list[Bar]) -> str:
    """The values that the picture shows, as text."""
    return "; ".join(map(str, shown))


def readme_with(figures: list[str], text: str) -> str:
    """The README with these figures between its markers."""
    before, start, rest = text.partition(START)
    _, end, after = rest.partition(END)
    if not (start and end):
        raise ValueError(f"README.md lacks the marker {START.strip()} or {END.strip()}; restore it")
    return "".join([before, start, *(f"{line}\n" for line in figures), end, after])


if __name__ == "__main__":
    measured = read("results.json")
    lines = figures(measured, read("recipes.json"))
    README.write_text(readme_with(lines, README.read_text()))
    draw(bars(measured), PICTURE)
