"""``python -m benchmarks recipes --camvid FOLDER``: what helps where images are few.

Each recipe of ``recipes.yaml`` is trained by ``segformer fit``, and measured by ``segformer
validate`` or ``test``, on images as they are, averaged with mirrored ones, and with sides rounded
up to multiples of 32. Each training run is a row of ``recipes.json``, written when it ends: a
command that was stopped goes on at its row. A row whose weights are gone is trained again, and all
splits that it has are measured again. A run that a recipe names as ``first``, whose weights it
needs, is done once for all rows. Two commands with other seeds or recipes may run at the same time.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import combinations, product
from pathlib import Path
from typing import Any

import torch
import yaml
from PIL import Image

from benchmarks.provenance import cpu, provenance, warn_if_busy, watched
from benchmarks.report import Row, Rows
from segformer.data.complete import complete
from segformer.data.images import find_images

HERE = Path(__file__).parent
RECIPES = HERE / "recipes.yaml"
RESULTS = HERE / "recipes.json"
VALIDATIONS = 5  # of a training run
MULTIPLE = 32  # of the sides of crops of images at another size
HELD_OUT = "held-out"  # the split of the training images that are held out
VERBS = {"val": "validate", "test": "test", HELD_OUT: "test"}
PROTOCOL = "--model.protocol=segformer.evaluation.Protocol"
MEASURES = {  # of the weights: names and options
    "miou": [PROTOCOL],
    "flip": [PROTOCOL, "--model.protocol.flip=true"],
    "aligned": [PROTOCOL, "--model.protocol.multiple=32"],
}


def parse(arguments: list[str]) -> argparse.Namespace:
    """The options."""
    parser = argparse.ArgumentParser("python -m benchmarks recipes", description=__doc__)
    parser.add_argument(
        "--camvid", required=True, help="folder with images/{train,val,test} and labels/{…}"
    )
    parser.add_argument("--recipes", type=Path, default=RECIPES, help="YAML file of recipes")
    parser.add_argument(
        "--only", nargs="+", metavar="NAME", help="recipes, a+b for two together; by default all"
    )
    parser.add_argument("--steps", type=int, default=700, help="optimizer steps of a run")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1])
    parser.add_argument(
        "--hold-out",
        metavar="PREFIX",
        help="train without the images whose names begin with this, and measure them, too",
    )
    parser.add_argument(
        "--split", nargs="+", choices=("val", "test"), default=["val"], help="what is measured"
    )
    parser.add_argument(
        "--size", type=float, default=1.0, help="factor of the images' and the crops' sides"
    )
    parser.add_argument(
        "--minutes", type=float, default=float("inf"), help="start no row after this time"
    )
    parser.add_argument(
        "--work",
        type=Path,
        default=Path("runs/recipes"),
        help="folder of the runs and weights; those of another --out are in a folder in it",
    )
    parser.add_argument("--out", type=Path, default=RESULTS, help="JSON file of the rows")
    options = parser.parse_args(arguments)
    if options.hold_out:
        if "test" in options.split:
            parser.error("--split test is for networks that are trained on all training images")
        options.split = [*options.split, HELD_OUT]
    return options


def run(options: argparse.Namespace) -> None:
    """Trains and measures what the results lack, row by row.

    A row that fails is said, and left out.

    Raises:
        SystemExit: If a recipe is unknown, two contradict each other, or rows have failed.
    """
    rows = [Training(name, seed, options) for seed in options.seeds for name in names_of(options)]
    results = saved(options.out)
    wanted = [row for row in rows if not row.is_measured(results.get(row.key))]
    print(f"{len(wanted)} of {len(rows)} rows are not measured yet", flush=True)
    if not wanted:
        return
    warn_if_busy()
    end = time.monotonic() + 60 * options.minutes
    root, failed = data_of(options), 0
    for row in wanted:
        if time.monotonic() > end:
            print("stopped after --minutes; the same command measures the rest", file=sys.stderr)
            break
        try:
            result = results.get(row.key)
            if result is None or not row.is_trained(result):
                result = row.train(root, result)
                save(row.key, result, options.out)
            for split in row.missing(result):
                row.measure(split, root, result)
                save(row.key, result, options.out)
                print(line_of(result, split), flush=True)
        except CommandError as error:
            print(error, file=sys.stderr, flush=True)
            failed += 1
    if failed:
        sys.exit(f"{failed} rows failed")


def runs_of(options: argparse.Namespace) -> Path:
    """The folder of the runs: each file of rows has its own, as the names of the runs are equal."""
    if options.out.resolve() == RESULTS.resolve():
        return Path(options.work)
    return Path(options.work, f"{options.out.stem}-{digest_of(str(options.out.resolve()), 8)}")


def digest_of(text: str, length: int) -> str:
    """The beginning of a text's digest."""
    return hashlib.sha256(text.encode()).hexdigest()[:length]


def saved(path: Path) -> Rows:
    """The rows of a file, if there is one."""
    rows: Rows = json.loads(path.read_text()) if path.is_file() else {}
    return rows


def save(key: str, row: Row, path: Path) -> None:
    """Write a row beside those that the file has now, of which another command may be the author.

    An earlier file is kept until the new one is whole.
    """
    with complete(path) as partial:
        partial.write_text(json.dumps({**saved(path), key: row}, indent=1) + "\n")


def line_of(row: Row, split: str) -> str:
    """A row in a line."""
    scores = row["scores"][split]
    return (
        f"{row['recipe']}, seed {row['seed']}: {100 * scores['miou']:.1f} % mIoU on {split}, "
        f"{100 * scores['flip']:.1f} % with mirrored images, "
        f"{100 * scores['aligned']:.1f} % aligned, {row['minutes']:.1f} minutes"
    )


def names_of(options: argparse.Namespace) -> list[str]:
    """The recipes that are asked for.

    Raises:
        SystemExit: If one is unknown.
    """
    known = read(options.recipes)["recipes"]
    wanted = options.only or list(known)
    for name in wanted:
        if unknown := set(name.split("+")) - set(known):
            sys.exit(f"no recipe {', '.join(unknown)} in {options.recipes}; it has {list(known)}")
    return wanted


class CommandError(Exception):
    """A command of a row that failed."""


@dataclass
class Run:
    """A training run, and measurements of its weights.

    Args:
        folder: folder of the logs and results.
        configs: settings, each of which changes those before it.
    """

    folder: Path
    configs: list[Any]

    @property
    def weights(self) -> Path:
        return self.folder / "run" / "fit" / "model.safetensors"

    def fit(self, *options: str) -> float:
        """Trains from the beginning; returns the minutes that it took.

        The test images are not looked at.

        Raises:
            CommandError: If it fails.
        """
        shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir(parents=True)
        begun = time.monotonic()
        always = ("--trainer.logger.version=fit", "--trainer.limit_test_batches=0")
        self.command("fit", "run", *always, *options)
        minutes = (time.monotonic() - begun) / 60
        shutil.rmtree(self.weights.parent / "checkpoints")  # ten times as large as the weights
        return minutes

    def results(self, verb: str, runs: str, *options: str) -> Any:
        """Measures the weights; returns what the verb writes into ``results.json``.

        Raises:
            CommandError: If it fails.
        """
        shutil.rmtree(self.folder / runs, ignore_errors=True)
        self.command(verb, runs, f"--weights={self.weights}", *options)
        return json.loads((self.folder / runs / "version_0" / "results.json").read_text())

    def command(self, verb: str, runs: str, *options: str) -> None:
        """Runs a verb with the configs in a process of its own; its output is in a log.

        Raises:
            CommandError: If it fails.
        """
        words = [sys.executable, "-m", "segformer", verb]
        for number, config in enumerate(self.configs):
            path = self.folder / f"{number}.yaml"
            path.write_text(yaml.safe_dump(config, sort_keys=False))
            words.append(f"--config={path}")
        words += [f"--trainer.logger.save_dir={self.folder}", f"--trainer.logger.name={runs}"]
        log = self.folder / f"{runs}.log"
        if call([*words, *options], log):
            last = (log.read_text().strip().splitlines() or ["no output"])[-1]
            raise CommandError(f"{self.folder}: segformer {verb} failed; see {log}: {last}")


class First:
    """A training run whose weights those of a recipe start or learn from, once for all rows.

    Args:
        settings: ``configs`` of the run, and ``into``: the setting of the recipe that gets the
            path of the weights.
        file: the file of recipes.
        options: those of the command.
        precision: the recipe's settings of the precision, which is that of this run, too.
    """

    def __init__(
        self,
        settings: dict[str, Any],
        file: dict[str, Any],
        options: argparse.Namespace,
        precision: list[Any],
    ) -> None:
        configs = [*configs_of(settings["configs"], file), *precision]
        self.digested = [settings["into"], configs]
        data = ""
        self.has_root = "data.init_args.root" in keys(configs[0])
        if self.has_root:  # its images are those of the rows
            data = f"{options.size:g} {options.hold_out}"
            configs = [sized(config, options.size) for config in configs]
        folder = runs_of(options) / f"first-{digest_of(json.dumps([configs, data]), 8)}"
        self.run = Run(folder, configs)
        self.config: Any = str(self.run.weights)
        for key in reversed(settings["into"].split(".")):
            self.config = {key: self.config}

    def train(self, root: str) -> float:
        """Trains, unless there are weights; returns the minutes that it took.

        Args:
            root: folder of the data, for configs that have one.
        """
        taken = self.run.folder / "minutes.json"
        if not taken.is_file():
            own = replace(self.run, folder=Path(f"{self.run.folder}.{os.getpid()}"))
            minutes = own.fit(*[f"--data.root={root}"] if self.has_root else [])
            (own.folder / taken.name).write_text(json.dumps(round(minutes, 2)))
            own.folder.rename(self.run.folder)
        return float(json.loads(taken.read_text()))


class Training:
    """A row: a training run by a recipe.

    Args:
        recipe: name of the recipe, or several joined by "+".
        seed: seed of the run.
        options: those of the command.
    """

    def __init__(self, recipe: str, seed: int, options: argparse.Namespace) -> None:
        self.recipe, self.seed, self.options = recipe, seed, options
        file = read(options.recipes)
        changes = {name: dict(file["recipes"][name]) for name in recipe.split("+")}
        check_contradictions(changes)
        firsts = [change.pop("first") for change in changes.values() if "first" in change]
        precision = [
            {"trainer": {"precision": change["trainer"]["precision"]}}
            for change in changes.values()
            if "precision" in change.get("trainer", {})
        ]
        self.first = First(firsts[0], file, options, precision) if firsts else None
        parts = [*configs_of(file["base"], file), *changes.values()]
        configs = [sized(part, options.size) for part in parts]
        of_first, last = (self.first.digested, [self.first.config]) if self.first else ([], [])
        self.digest = digest_of(json.dumps(configs + of_first), 12)
        folder = runs_of(options) / self.key.replace(" ", "-").replace("×", "x")
        self.run = Run(folder, configs + last)

    @property
    def key(self) -> str:
        """The name of the row."""
        without = f" without {self.options.hold_out}" if self.options.hold_out else ""
        return (
            f"{self.recipe} seed {self.seed} steps {self.options.steps} "
            f"{self.options.size:g}×{without}"
        )

    def is_measured(self, row: Row | None) -> bool:
        """Whether a row has all of its scores, by this recipe as it is now."""
        return row is not None and self._is_own(row) and not self.missing(row)

    def missing(self, row: Row) -> list[str]:
        """The splits that are asked for, or that the row had before, and that lack a measure."""
        scores = row["scores"]
        return [
            split
            for split in {**scores, **dict.fromkeys(self.options.split)}
            if MEASURES.keys() - (scores.get(split) or {}).keys()
        ]

    def is_trained(self, row: Row | None) -> bool:
        """Whether a row is of this recipe as it is now, and its weights are still there."""
        return self._is_own(row) and self.run.weights.is_file()

    def _is_own(self, row: Row | None) -> bool:
        return row is not None and row["config"] == self.digest

    def train(self, root: str, earlier: Row | None) -> Row:
        """Trains from the beginning.

        Args:
            root: folder of the data.
            earlier: the row that this one replaces, if there is one.

        Returns:
            The row, whose scores are None: of the splits that are asked for, and of those that
            the earlier row had.
        """
        before = self.first.train(root) if self.first else 0.0
        with watched() as load:
            minutes = self.run.fit(
                f"--data.root={root}",
                f"--seed_everything={self.seed}",
                f"--trainer.max_steps={self.options.steps}",
                f"--trainer.val_check_interval={max(1, self.options.steps // VALIDATIONS)}",
            )
        scores = dict.fromkeys([*(earlier["scores"] if earlier else ()), *self.options.split])
        return {
            "recipe": self.recipe,
            "seed": self.seed,
            "steps": self.options.steps,
            "size": self.options.size,
            "held_out": self.options.hold_out,
            "config": self.digest,
            "minutes": round(minutes, 2),
            "minutes_before": before,
            "scores": scores,
            **provenance(self._command(scores), machine(), load),
        }

    def measure(self, split: str, root: str, row: Row) -> None:
        """Adds the scores of the weights on a split to the row."""
        verb, scores = VERBS[split], row["scores"].get(split) or {}
        for name, of_measure in MEASURES.items():
            if name in scores:
                continue
            results = self.run.results(verb, f"{split}-{name}", f"--data.root={root}", *of_measure)
            of_split = results["test" if split == HELD_OUT else split]
            scores[name] = of_split["miou"]
            if name == "miou":
                scores["iou"] = of_split["iou"]
        row["scores"][split] = scores
        row["command"] = self._command(row["scores"])

    def _command(self, scores: Iterable[str]) -> str:
        """The command that trains this row again, and measures these splits."""
        recipes = self.options.recipes
        of_file = "" if recipes == RECIPES else f" --recipes path/to/{recipes.name}"
        hold_out = f" --hold-out {self.options.hold_out}" if self.options.hold_out else ""
        return (
            f"python -m benchmarks recipes --camvid path/to/camvid{of_file} --only {self.recipe} "
            f"--seeds {self.seed} --steps {self.options.steps} --size {self.options.size:g}"
            f"{hold_out} --split {' '.join(split for split in scores if split != HELD_OUT)}"
        )


def call(words: list[str], log: Path) -> int:
    """The exit code of a command, whose output is written to a file."""
    with log.open("w") as output:
        return subprocess.run(words, stdout=output, stderr=output, check=False).returncode


def machine() -> str:
    """The processor that trains."""
    is_gpu = torch.cuda.is_available()
    return torch.cuda.get_device_name() if is_gpu else cpu(torch.get_num_threads())


def read(path: Path) -> Any:
    """What a YAML file holds."""
    return yaml.safe_load(path.read_text())


def configs_of(parts: list[Any], file: dict[str, Any]) -> list[Any]:
    """The settings of configs: their paths in the project, names of recipes, or themselves."""
    recipes = file["recipes"]
    return [
        part if isinstance(part, dict) else recipes.get(part) or read(HERE.parent / part)
        for part in parts
    ]


def check_contradictions(changes: dict[str, Any]) -> None:
    """Refuse recipes that set the same key, of which one would be without effect.

    A recipe that sets a class or a value sets all that is below it in the base config, too.

    Raises:
        SystemExit: If two do.
    """
    for (first, of_first), (second, of_second) in combinations(changes.items(), 2):
        for key, other in product(keys(of_first), keys(of_second)):
            owned = (name.removesuffix(".class_path") for name in (key, other))
            above, below = sorted(owned, key=len)
            if f"{below}.".startswith(f"{above}.") and not above.endswith("+"):
                what = f"both set {below}"
                if above != below:
                    what = f"one sets all of {above}, the other {below}"
                sys.exit(f"{first}+{second}: {what}; write a recipe that has both")


def keys(settings: Any, above: str = "") -> Iterator[str]:
    """The keys of all values, such as ``model.network.init_args.drop_path``."""
    if isinstance(settings, dict) and settings:
        for key, value in settings.items():
            yield from keys(value, f"{above}.{key}" if above else key)
    elif above:
        yield above


def sized(settings: Any, size: float) -> Any:
    """Settings whose crops fit images whose sides are multiplied by ``size``."""
    if not isinstance(settings, dict):
        return settings
    return {
        key: [max(1, round(size * side / MULTIPLE)) * MULTIPLE for side in value]
        if key == "crop_size" and size != 1
        else sized(value, size)
        for key, value in settings.items()
    }


def data_of(options: argparse.Namespace) -> str:
    """The folder of the data set.

    With ``--size`` and ``--hold-out`` it is a copy, whose images have that size, and whose test
    images are those that are held out.
    """
    root, size, held_out = Path(options.camvid), options.size, options.hold_out
    if size == 1 and not held_out:
        return str(root)
    source = digest_of(str(root.resolve()), 8)
    copy = runs_of(options) / "-".join(filter(None, ("images", source, f"{size:g}x", held_out)))
    if copy.is_dir():
        return str(copy)
    partial = Path(f"{copy}.{os.getpid()}")
    for kind, filter_ in (("images", Image.Resampling.BOX), ("labels", Image.Resampling.NEAREST)):
        for path in find_images(root / kind):
            split, *folders = path.relative_to(root / kind).parent.parts
            if held_out and split == "test":
                continue
            if held_out and split == "train" and path.name.startswith(held_out):
                split = "test"
            target = Path(partial, kind, split, *folders, f"{path.stem}.png")
            target.parent.mkdir(parents=True, exist_ok=True)
            with Image.open(path) as image:
                width, height = (max(1, round(size * side)) for side in image.size)
                image.resize((width, height), filter_).save(target)
    for split in ("train", "val", "test"):
        if not (partial / "images" / split).is_dir():
            shutil.rmtree(partial)
            sys.exit(f"{root} has no image of {split}" + f" without {held_out}" * bool(held_out))
    partial.rename(copy)
    return str(copy)
