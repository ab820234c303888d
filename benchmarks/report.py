"""The results as tables and a plot."""

from __future__ import annotations

import statistics
from collections import defaultdict
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt

# What each table is asked to reach: at least so many times the speed of a contestant, under the default and the retaining allocator
TARGETS: dict[tuple[str, str, str], tuple[float, float | None]] = {
    ("logits", "b0 150 512×512", "transformers"): (4, 3),
    ("logits", "b2 150 512×512", "transformers"): (4.5, 3.5),
    ("logits", "b5 150 512×512", "transformers"): (3, 2.4),
    ("logits", "b0 150 512×512", "onnxruntime on transformers' graph"): (1.3, None),
    ("logits", "b2 150 512×512", "onnxruntime on transformers' graph"): (1.5, None),
    ("logits", "b5 150 512×512", "onnxruntime on transformers' graph"): (1.3, None),
    ("logits", "b0 150 512×512", "openvino on transformers' graph"): (1.0, None),
    ("logits", "b2 150 512×512", "openvino on transformers' graph"): (1.1, None),
    ("logits", "b5 150 512×512", "openvino on transformers' graph"): (1.0, None),
    ("logits", "b0 19 1024×2048", "transformers"): (4, 2.3),
    ("logits", "b2 19 1024×2048", "transformers"): (4, 2.8),
    ("labels", "b0 150 512×512", "transformers"): (6, None),
    ("labels", "b2 150 512×512", "transformers"): (5, None),
    ("argmax", "150 512×512", "interpolate + argmax"): (12, None),
    ("step", "b0 150 512×512", "transformers"): (2.5, None),
}
TITLES = {
    "logits": "Image tensor → stride-4 logits",
    "labels": "Image tensor → label map of the image's size",
    "argmax": "Stride-4 logits → label map (like a trained model's: see the share of boundary cells)",
    "step": "Training step: forward, loss at full size, backward, AdamW; batch 2",
}


def write(results: dict[str, Any], folder: Path) -> None:
    """The tables at the end of ``folder/README.md``, and ``folder/ratios.png``."""
    lines = [
        "## Results",
        "",
        f"Machine: {results['machine']['cpu']}; {results['machine']['versions']}.",
        "",
    ]
    for part, title in TITLES.items():
        if part in results:
            lines += [f"### {title}", "", *_table(part, results[part]), ""]
    if "memory" in results:
        lines += [
            "### Peak memory above what the models themselves take, and growth with the image's size",
            "",
            *_memory(results["memory"]),
            "",
        ]
    if "loading" in results:
        lines += [
            "### Loading: training samples of 512×512 from photographs of 640×480, one process and thread",
            "",
            *_loading(results["loading"]),
            "",
        ]
    if "accuracy" in results:
        title = (
            "### Time to accuracy: B0 on CamVid from random weights, mIoU on the validation images"
        )
        lines += [
            title,
            "",
            *_accuracy(results["accuracy"]),
            "",
            "![mIoU against minutes of training](accuracy.png)",
            "",
        ]
        _plot_accuracy(results["accuracy"], folder / "accuracy.png")
    readme = folder / "README.md"
    prose, marker, _ = readme.read_text().partition("<!-- tables -->\n")
    readme.write_text("\n".join([prose + marker, *lines]))
    _plot(results, folder / "ratios.png")


def _table(part: str, entries: dict[str, Any]) -> list[str]:
    lines = [
        "| variant, classes, size | contestant | default allocator: ms, times ours (range) | retaining: ms, times ours (range) | asked |"
    ]
    lines.append("|---|---|---|---|---|")
    notes = []
    for key, entry in entries.items():
        if entry["allocator"] != "default" or "failed" in entry:
            continue
        name = key.removesuffix(" default")
        other = entries.get(f"{name} retaining", {})
        others = {row["name"]: row for row in other.get("rows", [])}
        for row in entry["rows"]:
            asked = TARGETS.get((part, name, row["name"]))
            goal = (
                ""
                if asked is None
                else f"{asked[0]:g}×" + (f" / {asked[1]:g}×" if asked[1] else "")
            )
            lines.append(
                f"| {name} | {row['name']} | {_cell(row)} | {_cell(others.get(row['name']))} | {goal} |"
            )
        for what, of in (("default", entry), ("retaining", other)):
            if "share of matrix-product rate" in of:
                share, rate = of["share of matrix-product rate"], of["matrix products"] / 1e9
                notes.append(
                    f"{name}, {what}: {100 * share:.0f} % of the {rate:.0f} GFLOP/s that the best matrix product reached in the run"
                )
            if "boundary" in of and what == "default":
                notes.append(
                    f"{name}: {100 * of['boundary']:.1f} % of the quads of cells lie on a boundary"
                )
    return [*lines, "", *(f"- {note}" for note in notes)]


def _cell(row: dict[str, Any] | None) -> str:
    if row is None:
        return ""
    seconds, ratio = row["seconds"], row["ratio"]
    return f"{1e3 * seconds['median']:.0f}, {ratio['median']:.2f}× ({ratio['min']:.2f}–{ratio['max']:.2f})"


def _memory(entries: dict[str, Any]) -> list[str]:
    lines = [
        "| work | size | allocator | segformer | transformers | share | segformer, ns a pixel | transformers, ns a pixel |"
    ]
    lines.append("|---|---|---|---|---|---|---|---|")
    for key, entry in entries.items():
        if entry["who"] != "segformer" or "failed" in entry:
            continue
        other = entries.get(key.replace("segformer", "transformers"), {})
        if "bytes" not in other:
            continue
        mine, theirs, (height, width) = entry["bytes"], other["bytes"], entry["size"]
        rates = [
            f"{1e9 * e['seconds'] / height / width:.0f}" if "seconds" in e else ""
            for e in (entry, other)
        ]
        lines.append(
            f"| {entry['what']}, {entry['variant']}, {entry['classes']} classes | {height}×{width} | {entry['allocator']} "
            f"| {mine / 2**20:.0f} MiB | {theirs / 2**20:.0f} MiB | {mine / theirs:.2f} | {rates[0]} | {rates[1]} |"
        )
    return lines


def _loading(entries: dict[str, Any]) -> list[str]:
    lines = ["| work | contestant | images/s | times ours (range) |", "|---|---|---|---|"]
    for entry in entries.values():
        for work in ("augmenting", "decoding and augmenting"):
            for row in entry.get(work, []):
                ratio = row["ratio"]
                rate = entry["images"] / row["seconds"]["median"]
                lines.append(
                    f"| {work} | {row['name']} | {rate:.0f} | {ratio['median']:.2f}× ({ratio['min']:.2f}–{ratio['max']:.2f}) |"
                )
    return lines


def _runs(entries: dict[str, Any]) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    """This package's runs, each with its peer's."""
    pairs = [
        (entry, entries.get(key.replace("segformer", "transformers"), {}))
        for key, entry in entries.items()
        if "segformer" in key
    ]
    return [(mine, theirs) for mine, theirs in pairs if "points" in mine and "points" in theirs]


def _accuracy(entries: dict[str, Any]) -> list[str]:
    lines = [
        "| seed, allocator | contestant | steps, minutes | best mIoU | reaches the lower of the two bests after | share |"
    ]
    lines.append("|---|---|---|---|---|---|")
    shares: dict[str, list[float]] = defaultdict(list)
    for both in _runs(entries):
        bests = [max(point["miou"] for point in run["points"]) for run in both]
        seconds = [seconds_to(run["points"], min(bests)) for run in both]
        shares[both[0]["allocator"]].append(seconds[0] / seconds[1])
        for run, best, reached in zip(both, bests, seconds, strict=True):
            last = run["points"][-1]
            share = f"{reached / seconds[1]:.2f}"
            lines.append(
                f"| {run['seed']}, {run['allocator']} | {run['who']} | {last['step']}, {last['seconds'] / 60:.1f} | {100 * best:.1f} % "
                f"| {reached / 60:.1f} min | {share} |"
            )
    medians = [
        f"{statistics.median(of_one):.2f} with the {allocator} allocator"
        for allocator, of_one in shares.items()
    ]
    return [*lines, "", f"Median share of the peer's time: {', '.join(medians)}."]


def seconds_to(points: list[dict[str, float]], miou: float) -> float:
    """When a run first had an mIoU, by straight lines between its validations; infinite if it never had."""
    before = {"seconds": 0.0, "miou": 0.0}
    for point in points:
        if point["miou"] >= miou:
            share = (
                (miou - before["miou"]) / (point["miou"] - before["miou"])
                if point["miou"] > before["miou"]
                else 1.0
            )
            return before["seconds"] + share * (point["seconds"] - before["seconds"])
        before = point
    return float("inf")


def _plot_accuracy(entries: dict[str, Any], path: Path) -> None:
    figure, axes = plt.subplots(figsize=(7, 4), constrained_layout=True)
    labels = set()
    for both in _runs(entries):
        for run, color in zip(both, ("#4477aa", "#cc6677"), strict=True):
            minutes, mious = [0.0], [0.0]
            minutes += [point["seconds"] / 60 for point in run["points"]]
            mious += [100 * point["miou"] for point in run["points"]]
            style = "--" if run["allocator"] == "retaining" else "-"
            label = f"{run['who']}, {run['allocator']} allocator"
            axes.plot(
                minutes,
                mious,
                style,
                color=color,
                marker=".",
                linewidth=1,
                label=None if label in labels else label,
            )
            labels.add(label)
    axes.set(
        xlabel="minutes of training (validation apart)",
        ylabel="mIoU on the validation images, %",
        ylim=(0, None),
        xlim=(0, None),
    )
    axes.grid(alpha=0.3)
    axes.legend(loc="lower right")
    figure.savefig(path, dpi=110)
    plt.close(figure)


def _plot(results: dict[str, Any], path: Path) -> None:
    """How many times longer each contestant takes, as bars with their ranges."""
    bars = [
        (f"{part}: {key.removesuffix(' default')}\n{row['name']}", row["ratio"])
        for part in TITLES
        for key, entry in results.get(part, {}).items()
        if entry["allocator"] == "default" and "rows" in entry
        for row in entry["rows"][1:]
    ]
    figure, axes = plt.subplots(figsize=(9, 0.42 * len(bars) + 1.2), constrained_layout=True)
    medians = [ratio["median"] for _, ratio in bars]
    reach = [[r["median"] - r["min"] for _, r in bars], [r["max"] - r["median"] for _, r in bars]]
    axes.barh(
        [name for name, _ in bars],
        medians,
        xerr=reach,
        color=["#4477aa" if m >= 1 else "#cc6677" for m in medians],
    )
    axes.axvline(1, color="black", linewidth=1)
    axes.invert_yaxis()
    axes.margins(y=0.01)
    axes.set_xlabel("time over segformer's (1 = as fast; default allocator)")
    axes.tick_params(axis="y", labelsize=7)
    figure.savefig(path, dpi=110)
    plt.close(figure)
