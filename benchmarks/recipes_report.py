"""The rows of ``recipes.json`` as Markdown tables and plots."""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from pathlib import Path

import matplotlib.pyplot as plt

from benchmarks.report import Row, Rows, Runs

PRESENT = "present"  # the recipe that the others are compared with
SCORES = ("miou", "flip", "aligned")
NUMERICS = ("float32", "muon_bfloat16")  # make a recipe faster on some machine, and no other one


def tables(rows: Rows) -> str:
    """Markdown of the results: a table for each budget and split."""
    runs, lines = Runs(), []
    for budget, of_budget in budgets(rows).items():
        lines += [f"## {title(budget)}", "", *_table(of_budget, budget[-1], runs), ""]
        if is_shown(of_budget):
            lines += [f"![mIoU of each recipe](../generated/{picture(budget)})", ""]
    if not lines:
        return "Not measured yet."
    return "\n".join([*lines, "## Machines, versions and dates", "", *runs.table(), ""])


# Steps, size, which training images are held out, and the split that is measured.
Budget = tuple[int, float, str, str]


def title(budget: Budget) -> str:
    """What a budget's table shows."""
    steps, size, held_out, split = budget
    images = "" if size == 1 else f", sides of images and crops × {size:g}"
    drive = f", trained without {held_out}" if held_out else ""
    return f"{steps} steps, {split}{drive}{images}"


def budgets(rows: Rows) -> dict[Budget, dict[str, list[Row]]]:
    """The rows of each budget, by recipe, the best recipe first."""
    found: dict[Budget, dict[str, list[Row]]] = {}
    for row in rows.values():
        for split in (split for split, scores in row["scores"].items() if scores):
            budget = (row["steps"], row["size"], row["held_out"] or "", split)
            of_budget = found.setdefault(budget, {})
            of_budget.setdefault(without_numerics(row["recipe"]), []).append(row)
    return {
        budget: dict(sorted(of_it.items(), key=lambda item: -mean_of(item[1], budget[-1])))
        for budget, of_it in sorted(found.items())
    }


def without_numerics(recipe: str) -> str:
    """The name of a recipe without the parts that only change the precision of others."""
    first, *others = recipe.split("+")
    return "+".join([first, *(part for part in others if part not in NUMERICS)])


def is_shown(recipes: dict[str, list[Row]]) -> bool:
    """Whether a budget has a picture: there is something to compare."""
    return len(recipes) > 1


def mean_of(rows: list[Row], split: str, measure: str = "miou") -> float:
    """The mean of a score over the seeds."""
    return statistics.fmean(row["scores"][split][measure] for row in rows)


def _table(recipes: dict[str, list[Row]], split: str, runs: Runs) -> Iterator[str]:
    yield (
        "| recipe | mIoU % | against `present` | with mirrored images | aligned | minutes "
        "| seeds | other work | run |"
    )
    yield "|---|---|---|---|---|---|---|---|---|"
    present = {row["seed"]: row for row in recipes.get(PRESENT, [])}
    for recipe, unsorted in recipes.items():
        rows = sorted(unsorted, key=lambda row: row["seed"])
        scores, flipped, aligned = (
            spread([100 * row["scores"][split][measure] for row in rows]) for measure in SCORES
        )
        gains = [
            100 * (row["scores"][split]["miou"] - present[row["seed"]]["scores"][split]["miou"])
            for row in rows
            if row["seed"] in present and recipe != PRESENT
        ]
        minutes = f"{statistics.fmean(row['minutes'] for row in rows):.1f}"
        if before := statistics.fmean(row.get("minutes_before", 0) for row in rows):
            minutes = f"{before:.1f} + {minutes}"
        seeds = ", ".join(str(row["seed"]) for row in rows)
        busy = max(row["load"]["others"] for row in rows)
        numbers = ", ".join(dict.fromkeys(str(runs.number(row)) for row in rows))
        yield (
            f"| `{recipe}` | {scores} | {spread(gains, '+.1f')} | {flipped} | {aligned} "
            f"| {minutes} | {seeds} | {100 * busy:.0f} % | {numbers} |"
        )


def spread(values: list[float], form: str = ".1f") -> str:
    """The mean of values and, of several, their sample standard deviation."""
    if not values:
        return ""
    deviation = f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else ""
    return f"{statistics.fmean(values):{form}}{deviation}".replace("-", "−")


def picture(budget: Budget) -> str:
    """The name of the picture of a budget."""
    steps, size, held_out, split = budget
    return "-".join(filter(None, ("recipes", str(steps), f"{size:g}x", held_out, f"{split}.png")))


def plot(rows: Rows, folder: Path) -> None:
    """Write a picture for each budget of several recipes.

    It has a point for each seed, and a line at each recipe's mean.
    """
    for budget, recipes in budgets(rows).items():
        if not is_shown(recipes):
            continue
        split = budget[-1]
        names = [recipe.replace("+", " +\n") for recipe in recipes]
        lines = sum(name.count("\n") + 1 for name in names)
        figure, axes = plt.subplots(figsize=(8, 0.3 * lines + 1.2), layout="constrained")
        for place, (recipe, of_recipe) in enumerate(recipes.items()):
            color = "#cc6677" if recipe == PRESENT else "#4477aa"
            scores = [100 * row["scores"][split]["miou"] for row in of_recipe]
            axes.plot(scores, [place] * len(scores), "o", color=color, markersize=5)
            axes.plot(100 * mean_of(of_recipe, split), place, "|", color=color, markersize=16)
            if recipe == PRESENT:
                axes.axvline(100 * mean_of(of_recipe, split), color=color, linewidth=0.8)
        axes.set_yticks(range(len(recipes)), names)
        axes.set_ylim(len(recipes) - 0.5, -0.5)
        axes.set(xlabel=f"mIoU on {split}, %; a point for each seed")
        axes.grid(axis="x", alpha=0.3)
        figure.savefig(folder / picture(budget), dpi=110)
        plt.close(figure)
