"""The table of recipes: what reaches a run, what is resumed, and what the tables show."""

from __future__ import annotations

import copy
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from benchmarks import recipes, recipes_report
from halves import camvid_config, write_folder
from PIL import Image
from test_configs import stand_in_data, stand_in_lists

from segformer import Classes, SegFormer
from segformer.cli import main
from segformer.data.datasets import FolderDataset
from segformer.evaluation import Protocol, evaluate

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture
def words(tmp_path: Path) -> list[str]:
    """A command that trains a tiny network for two steps by two recipes."""
    root = write_folder(tmp_path / "data", train=4, val=2, test=2)
    file = {
        "base": [str(camvid_config(root, tmp_path))],
        "recipes": {
            "present": {},
            "plain": {
                "trainer": {"callbacks": []},
                "model": {"network": {"init_args": {"drop_path": 0.3}}},
            },
        },
    }
    (tmp_path / "recipes.yaml").write_text(yaml.safe_dump(file, sort_keys=False))
    options = {"camvid": root, "recipes": tmp_path / "recipes.yaml", "out": tmp_path / "rows.json"}
    options |= {"work": tmp_path / "work", "steps": 2, "seeds": 3}
    return [word for name, value in options.items() for word in (f"--{name}", str(value))]


class Commands:
    """Runs commands in this process, which saves the imports, and notes them."""

    def __init__(self, stop_at: int | None = None) -> None:
        self.verbs: list[str] = []
        self.stop_at = stop_at

    def __call__(self, words: list[str], log: Path) -> int:
        if len(self.verbs) == self.stop_at:
            raise KeyboardInterrupt
        self.verbs.append(words[3])
        main(words[3:])
        return 0


def commands_of(
    words: list[str], monkeypatch: pytest.MonkeyPatch, stop_at: int | None = None
) -> list[str]:
    """The verbs that the table runs."""
    commands = Commands(stop_at)
    with monkeypatch.context() as patch:
        patch.setattr("benchmarks.recipes.call", commands)
        patch.setattr("benchmarks.recipes.warn_if_busy", lambda: None)
        try:
            recipes.run(recipes.parse(words))
        except KeyboardInterrupt:
            assert stop_at is not None
    return commands.verbs


@pytest.mark.usefixtures("without_pictures")
def test_a_stopped_table_goes_on_at_its_row(
    words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    a_row = ["fit", "validate", "validate", "validate"]
    assert commands_of(words, monkeypatch, stop_at=4) == a_row
    assert list(json.loads((tmp_path / "rows.json").read_text())) == ["present seed 3 steps 2 1×"]
    assert commands_of(words, monkeypatch, stop_at=1) == ["fit"]
    rows = json.loads((tmp_path / "rows.json").read_text())
    assert list(rows) == ["present seed 3 steps 2 1×", "plain seed 3 steps 2 1×"]
    first, second = copy.deepcopy(list(rows.values()))
    assert (set(first["scores"]), second["scores"]) == ({"val"}, {"val": None})
    recipes_report.tables({"first": first, "second": second})  # without scores, it is in no table
    assert set(first) > {"commit", "date", "machine", "versions", "load", "minutes"}
    # Trained already: it is measured only, and the other split by the same weights.
    assert commands_of(words, monkeypatch) == ["validate"] * 3
    assert commands_of(words, monkeypatch) == []
    only = [*words, "--split", "test", "--only", "plain"]
    assert commands_of(only, monkeypatch) == ["test"] * 3
    rows = json.loads((tmp_path / "rows.json").read_text())
    assert rows["present seed 3 steps 2 1×"] == first
    plain = rows["plain seed 3 steps 2 1×"]
    assert set(plain["scores"]) == {"val", "test"}

    # The overlay is in the config of the run, and the scores are those of its weights.
    (fit,) = (tmp_path / "work").glob("rows-*/plain-seed-3-steps-2-1x/run/fit")
    config = yaml.safe_load((fit / "config.yaml").read_text())
    assert config["trainer"]["callbacks"] == []
    assert config["model"]["network"]["init_args"]["drop_path"] == 0.3
    assert (config["seed_everything"], config["trainer"]["max_steps"]) == (3, 2)
    assert set(json.loads((fit / "results.json").read_text())) == {"val"}
    folders = (tmp_path / "data" / kind / "test" for kind in ("images", "labels"))
    dataset = FolderDataset(*folders, Classes(["dark", "bright"]), 11)
    network = SegFormer.from_pretrained(fit)
    for measure, protocol in (
        ("miou", Protocol()),
        ("flip", Protocol(flip=True)),
        ("aligned", Protocol(multiple=32)),
    ):
        expected = evaluate(network, dataset, protocol).miou
        assert plain["scores"]["test"][measure] == pytest.approx(expected, abs=1e-6)

    # A recipe that was changed is another one.
    file = yaml.safe_load((tmp_path / "recipes.yaml").read_text())
    file["recipes"]["plain"]["model"]["network"]["init_args"]["drop_path"] = 0.2
    (tmp_path / "recipes.yaml").write_text(yaml.safe_dump(file, sort_keys=False))
    assert commands_of(words, monkeypatch, stop_at=0) == []
    training = recipes.Training("plain", 3, recipes.parse(words))
    assert not training.is_measured(plain)


def measured(words: list[str], monkeypatch: pytest.MonkeyPatch) -> tuple[dict[str, Any], list[str]]:
    """The row after a command, and its verbs, which a stand-in runs: all scores are a third."""
    verbs = []

    def stand_in(words: list[str], log: Path) -> int:
        folder, runs = (
            next(word.split("=")[1] for word in words if word.startswith(f"--trainer.logger.{key}"))
            for key in ("save_dir", "name")
        )
        verbs.append(words[3])
        version = Path(folder, runs, "fit" if words[3] == "fit" else "version_0")
        (version / "checkpoints").mkdir(parents=True)
        (version / "model.safetensors").touch()
        scores = {split: {"miou": 1 / 3, "iou": {}} for split in ("val", "test")}
        (version / "results.json").write_text(json.dumps(scores))
        return 0

    monkeypatch.setattr("benchmarks.recipes.call", stand_in)
    monkeypatch.setattr("benchmarks.recipes.warn_if_busy", lambda: None)
    options = recipes.parse([*words, "--only", "plain"])
    recipes.run(options)
    return json.loads(options.out.read_text())["plain seed 3 steps 2 1×"], verbs


def test_a_row_whose_weights_are_gone_keeps_all_of_its_splits(
    words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    row, _ = measured(words, monkeypatch)
    assert set(row["scores"]) == {"val"}
    shutil.rmtree(tmp_path / "work")
    row, verbs = measured([*words, "--split", "test"], monkeypatch)
    assert verbs == ["fit", *["validate"] * 3, *["test"] * 3]
    assert row["scores"].keys() == {"val", "test"}
    assert None not in row["scores"].values()
    assert " --recipes path/to/recipes.yaml " in row["command"]
    again = recipes.parse(row["command"].split()[4:])
    assert (again.only, again.seeds, again.split) == (["plain"], [3], ["val", "test"])


def test_a_measure_that_a_row_lacks_is_added(
    words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    row, _ = measured(words, monkeypatch)
    lacking = copy.deepcopy(row)
    del lacking["scores"]["val"]["aligned"]
    recipes.save("plain seed 3 steps 2 1×", lacking, tmp_path / "rows.json")
    assert measured(words, monkeypatch) == (row, ["validate"])


def test_a_run_that_comes_first_is_done_once(
    words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its weights reach the recipe's run, and its minutes the row."""
    file = yaml.safe_load((tmp_path / "recipes.yaml").read_text())
    first = {"configs": [*file["base"], {"trainer": {"max_steps": 7}}, "plain"]}
    first["into"] = "model.distillation.init_args.teacher"
    of_class = {"class_path": "segformer.train.distillation.Distillation"}
    file["recipes"]["taught"] = {"first": first, "model": {"distillation": of_class}}
    (tmp_path / "recipes.yaml").write_text(yaml.safe_dump(file, sort_keys=False))
    options = recipes.parse([*words, "--only", "taught", "--seeds", "3", "4"])
    a_row = ["fit", "validate", "validate", "validate"]
    assert commands_of([*words, "--only", "taught"], monkeypatch) == ["fit", *a_row]
    assert commands_of([*words, "--only", "taught", "--seeds", "4"], monkeypatch) == a_row
    rows = json.loads(options.out.read_text())
    (folder,) = (tmp_path / "work").glob("rows-*/first-*")
    taken = json.loads((folder / "minutes.json").read_text())
    for seed in (3, 4):
        row = recipes.Training("taught", seed, options)
        assert rows[row.key]["minutes_before"] == taken > 0
        config = yaml.safe_load((row.run.weights.parent / "config.yaml").read_text())
        teacher = config["model"]["distillation"]["init_args"]["teacher"]
        assert Path(teacher) == folder / "run" / "fit" / "model.safetensors"
    config = yaml.safe_load((folder / "run" / "fit" / "config.yaml").read_text())
    assert config["trainer"]["max_steps"] == 7
    assert config["model"]["network"]["init_args"]["drop_path"] == 0.3
    # Another first run is another recipe.
    assert rows[row.key]["config"] == row.digest
    first["configs"][1] = {"trainer": {"max_steps": 8}}
    (tmp_path / "recipes.yaml").write_text(yaml.safe_dump(file, sort_keys=False))
    assert recipes.Training("taught", 4, options).digest != row.digest
    # It computes in the precision of the recipe.
    file["recipes"]["float64"] = {"trainer": {"precision": "64-true"}}
    (tmp_path / "recipes.yaml").write_text(yaml.safe_dump(file, sort_keys=False))
    precise = recipes.Training("taught+float64", 4, options).first
    assert precise is not None
    assert precise.run.configs[-1] == file["recipes"]["float64"]
    assert precise.run.folder != row.first.run.folder


def test_another_file_of_rows_leaves_the_weights_of_the_first(
    words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, other = (recipes.parse([*words, f"--out={tmp_path / n}.json"]) for n in ("a", "b"))
    table = recipes.parse(["--camvid", "camvid"])
    assert len({recipes.runs_of(options) for options in (first, other, table)}) == 3
    assert recipes.runs_of(table) == table.work  # that of the table itself
    measured(words, monkeypatch)
    measured([*words, f"--out={tmp_path / 'other.json'}"], monkeypatch)
    _, verbs = measured([*words, "--split", "test"], monkeypatch)
    assert verbs == ["test"] * 3


def test_a_smaller_size_is_that_of_images_label_maps_and_crops(
    words: list[str], tmp_path: Path
) -> None:
    for path in (tmp_path / "data" / "images" / "val").iterdir():  # of CamVid, too
        with Image.open(path) as image:
            image.save(path.with_suffix(".jpg"))
        path.unlink()
    options = recipes.parse([*words, "--size", "0.5"])
    copied = Path(recipes.data_of(options))
    for kind in ("images", "labels"):
        for path in (tmp_path / "data" / kind).rglob("*.png"):
            with (
                Image.open(path) as image,
                Image.open(copied / kind / path.parent.name / path.name) as small,
            ):
                assert small.size == (24, 20)
                values = np.unique(image) if kind == "labels" else range(256)
                assert set(np.unique(small)) <= set(values)
    crop = {"train_transform": {"init_args": {"crop_size": [256, 192], "scale": [0.5, 2.0]}}}
    half = {"train_transform": {"init_args": {"crop_size": [128, 96], "scale": [0.5, 2.0]}}}
    assert recipes.sized(crop, 0.5) == half
    assert recipes.sized(crop, 1) == crop


def test_images_that_are_held_out_are_in_no_other_split(words: list[str], tmp_path: Path) -> None:
    for kind in ("images", "labels"):
        (held_out, *rest) = sorted((tmp_path / "data" / kind / "train").glob("*.png"))
        held_out.rename(held_out.with_name("Drive_2.png"))
    options = recipes.parse([*words, "--hold-out", "Drive"])
    assert options.split == ["val", "held-out"]
    copied = Path(recipes.data_of(options))
    for kind in ("images", "labels"):
        assert [path.name for path in (copied / kind / "test").iterdir()] == ["Drive_2.png"]
        assert sorted(path.name for path in (copied / kind / "train").iterdir()) == [
            path.name for path in rest
        ]
        assert len(list((copied / kind / "val").iterdir())) == 2
    whole = recipes.Training("plain", 3, recipes.parse(words))
    without = recipes.Training("plain", 3, options)
    assert without.key == f"{whole.key} without Drive"
    with pytest.raises(SystemExit):
        recipes.parse([*words, "--hold-out", "Drive", "--split", "test"])
    with pytest.raises(SystemExit, match="no image of test without Cart"):
        recipes.data_of(recipes.parse([*words, "--hold-out", "Cart"]))


def test_two_commands_keep_the_rows_of_each_other(tmp_path: Path) -> None:
    recipes.save("first", {"recipe": "first"}, tmp_path / "rows.json")
    recipes.save("second", {"recipe": "second"}, tmp_path / "rows.json")
    assert set(recipes.saved(tmp_path / "rows.json")) == {"first", "second"}


@pytest.mark.parametrize(
    ("only", "message"),
    [
        ("present+no_ema+b3", "no recipe b3"),
        ("drop_path_0+drop_path_0.2", "both set model.network.init_args.drop_path"),
        ("unweighted+lovasz", "one sets all of model.loss, the other model.loss.init_args.weight"),
        ("colors_stronger+no_ema+colors_unchanged", "one sets all of .*distortion, the other "),
    ],
)
def test_recipes_that_cannot_be_run_are_refused(only: str, message: str) -> None:
    with pytest.raises(SystemExit, match=message):
        recipes.run(recipes.parse(["--camvid", "camvid", "--only", only]))


def test_every_recipe_changes_what_it_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from segformer.train.lightning_cli import SegmentationCLI

    file = recipes.read(recipes.RECIPES)
    data = stand_in_data(recipes.read(recipes.HERE.parent / file["base"][0]), tmp_path)
    monkeypatch.chdir(tmp_path)
    stand_in_lists(tmp_path / "lists")

    def check(run: recipes.Run, options: list[str], changes: list[Any]) -> None:
        run.folder.mkdir(parents=True)
        monkeypatch.setattr("benchmarks.recipes.call", lambda words, log: words_of.append(words))
        words_of: list[list[str]] = []
        run.command("fit", "run")
        configs = [word for word in words_of[0] if word.startswith("--config")]
        cli = SegmentationCLI([*configs, *options], run=False)
        for change in changes:
            assert holds(cli.config, change), run.folder

    for name, changes in file["recipes"].items():
        row = recipes.Training(name, 0, recipes.parse(["--camvid", "camvid"]))
        if row.first:
            check(row.first.run, data if row.first.has_root else [], row.first.run.configs[1:])
            row.first.run.weights.parent.mkdir(parents=True)
            SegFormer("b0", num_classes=11).save(row.first.run.weights)
        changes.pop("first", None)
        check(row.run, data, [changes, row.first.config if row.first else {}])


def holds(settings: Any, changes: Any) -> bool:
    """Whether all values of the changes are in the settings."""
    if isinstance(changes, dict):
        return all(holds(settings[key], value) for key, value in changes.items())
    if isinstance(changes, list):
        return all(map(holds, settings, changes)) and len(settings) == len(changes)
    return bool(settings == changes)


def row(recipe: str, seed: int, miou: float) -> dict[str, Any]:
    return {
        "recipe": recipe,
        "seed": seed,
        "steps": 700,
        "size": 1.0,
        "held_out": None,
        "minutes": 5.0 + seed,
        "scores": {"val": {"miou": miou, "flip": miou + 0.01, "aligned": miou, "iou": {}}},
        "machine": "a processor",
        "versions": {"torch": "9"},
        "commit": "abc1234",
        "date": "2026-01-02",
        "load": {"average": 0.1, "others": 0.02},
    }


def test_the_tables_show_means_and_standard_deviations(tmp_path: Path) -> None:
    mious = {"present": [0.60, 0.62, 0.61], "cutmix": [0.63, 0.64, 0.61], "b1": [0.55]}
    rows = {
        f"{recipe} {seed}": row(recipe, seed, miou)
        for recipe, of_recipe in mious.items()
        for seed, miou in enumerate(of_recipe)
    }
    table = recipes_report.tables(rows)
    present, cutmix = (100 * np.array(mious[name]) for name in ("present", "cutmix"))
    score, gain = (
        f"{values.mean():{form}} ± {values.std(ddof=1):.1f}"
        for values, form in ((cutmix, ".1f"), (cutmix - present, "+.1f"))
    )
    flip = f"{cutmix.mean() + 1:.1f} ± {cutmix.std(ddof=1):.1f}"
    lines = table.splitlines()
    assert f"| `cutmix` | {score} | {gain} | {flip} | {score} | 6.0 | 0, 1, 2 | 2 % | 1 |" in lines
    rows["b1 0"]["minutes_before"] = 22.8
    assert "| 22.8 + 5.0 | 0 | 2 %" in recipes_report.tables(rows)
    assert "| `b1` | 55.0 | −5.0 | 56.0 | 55.0 | 5.0 | 0 | 2 % | 1 |" in lines
    order = [line.split("`")[1] for line in lines if line.startswith("| `")]
    assert order == ["cutmix", "present", "b1"]
    recipes_report.plot(rows, tmp_path)
    assert "(../generated/recipes-700-1x-val.png)" in table
    alone = {"cutmix 9": {**row("cutmix", 9, 0.6), "steps": 7000}}  # nothing to compare it with
    assert ".png" not in recipes_report.tables(alone)
    recipes_report.plot(alone, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["recipes-700-1x-val.png"]


def test_recipes_that_differ_in_precision_only_are_counted_as_one() -> None:
    mious = {
        ("present", 0): 0.60,
        ("present+float32", 1): 0.62,
        ("b1+cutmix+float32", 1): 0.66,
        ("b1+cutmix+muon_bfloat16", 0): 0.68,
        ("muon_bfloat16", 0): 0.59,  # the part itself is a recipe
    }
    table = recipes_report.tables(
        {f"{recipe} {seed}": row(recipe, seed, miou) for (recipe, seed), miou in mious.items()}
    )
    gain = f"+{np.mean([8, 4]):.1f} ± {np.std([8, 4], ddof=1):.1f}"
    assert f"| `b1+cutmix` | 67.0 ± 1.4 | {gain} |" in table
    lines = [line for line in table.splitlines() if line.startswith("| `")]
    names = [line.split("`")[1] for line in lines]
    assert names == ["b1+cutmix", "present", "muon_bfloat16"]
    seeds = [line.split("|")[7].strip() for line in lines]
    assert seeds == ["0, 1", "0, 1", "0"]


def test_nothing_measured_is_said() -> None:
    assert recipes_report.tables({}) == "Not measured yet."
