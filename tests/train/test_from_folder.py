"""``segformer fit FOLDER``: the run, and the run of the YAML that it wrote, have equal weights."""

from __future__ import annotations

import json
import re
import shlex
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from conftest import TINY
from halves import Halves
from PIL import Image

from segformer import Classes, SegFormer
from segformer.cli import main
from segformer.cli.check import add_arguments as add_check
from segformer.cli.fit import add_arguments as add_fit
from segformer.cli.parser import Parser
from segformer.train.from_folder.arrangement import find
from segformer.train.from_folder.options import own_parser, parse, with_option
from segformer.train.from_folder.plan import make_plan
from segformer.train.from_folder.recipe import STEPS, Situation, class_weights, decisions, settings
from segformer.train.parser import build_data, data_parser

pytestmark = [
    pytest.mark.usefixtures("without_pictures"),
    pytest.mark.filterwarnings("ignore:.*does not have many workers", "ignore:.*GPU available"),
    pytest.mark.filterwarnings(  # of methods that jsonargparse's version 5 renames
        "ignore::DeprecationWarning:jsonargparse",
        "ignore::DeprecationWarning:segformer.train.parser",
    ),
]
VARIANT = {
    "class_path": "segformer.Variant",
    "init_args": {k: list(v) if isinstance(v, tuple) else v for k, v in vars(TINY).items()},
}
SMALL = [
    *("--trainer.max_steps", "2", "--data.batch_size=2", "--trainer.accelerator=cpu"),
    *("--trainer.enable_model_summary", "false", "--model.network.backbone", json.dumps(VARIANT)),
]
NAMES = [f"{video}_{frame:05d}" for video in ("north", "south", "west") for frame in range(3)]
ARRANGEMENTS = {
    "COCO": ("{split}2017/{name}.jpg", "annotations/{split}2017/{name}.png", ("train", "val")),
    "Roboflow": ("{split}/{name}.jpg", "{split}/{name}_mask.png", ("train", "valid")),
    "one folder": ("{name}.jpg", "{name}_mask.png", None),
    "nested": ("site/day/images/{name}.jpg", "site/day/labels/{name}.png", None),
}


def write(root: Path, images: str, labels: str, splits: tuple[str, str] | None = None) -> Path:
    """Nine halves, three frames of each of three videos; two of the videos are for training."""
    for number, name in enumerate(NAMES):
        split = splits[name.startswith("west")] if splits else ""
        image, label = Halves()[number]
        for pattern, array in (
            (images, image.permute(1, 2, 0).numpy()),
            (labels, label.numpy()),
        ):
            path = root / pattern.format(split=split, name=name)
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(array).save(path)
    return root


@pytest.fixture
def photos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder without splits, in the folder in which the commands run."""
    monkeypatch.chdir(tmp_path)
    return write(tmp_path / "photos", "images/{name}.jpg", "masks/{name}.png")


def segformer(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> None:
    monkeypatch.setattr(sys, "argv", ["segformer", *map(str, arguments)])
    main()


def weights(run: Path) -> dict[str, torch.Tensor]:
    return SegFormer.from_pretrained(run / "model.safetensors").state_dict()


def data(plan_file: Path) -> Any:
    return build_data(data_parser("data").parse_args([f"--config={plan_file}"]).data)


@pytest.mark.parametrize("name", ARRANGEMENTS)
def test_one_command_trains_to_the_weights_of_the_yaml_that_it_wrote(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    root = write(tmp_path / "photos", *ARRANGEMENTS[name])
    segformer(monkeypatch, "fit", "photos", *SMALL)
    printed = capsys.readouterr().out
    assert "9 pairs" in printed
    assert "train 6, val 3" in printed
    config = Path("runs/photos/version_0/run.yaml")
    assert f"wrote {config}" in printed
    segformer(monkeypatch, "fit", "--config", config)
    first, second = (weights(Path(f"runs/photos/version_{k}")) for k in (0, 1))
    assert first.keys() == second.keys()
    assert all(torch.equal(first[key], second[key]) for key in first)
    other = SegFormer(TINY, num_classes=2).state_dict()
    assert not all(torch.equal(first[key], other[key]) for key in first)
    read = data(config)
    own = {root / pair.image for pairs in find(root).pairs.values() for pair in pairs}
    assert {image for split in (read.train, read.val) for image, _ in split.pairs} == own
    videos = [{image.name[:5] for image, _ in split.pairs} for split in (read.train, read.val)]
    assert not videos[0] & videos[1]


@pytest.mark.filterwarnings("ignore:the schedule was OneCycle of")  # it gets more steps
def test_the_run_goes_on_from_its_own_files(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    segformer(monkeypatch, "fit", photos, *SMALL)
    run = Path("runs/photos/version_0")
    assert {"run.yaml", "run_train.csv", "run_val.csv", "config.yaml", "results.json"} < {
        path.name for path in run.iterdir()
    }
    longer = ["--ckpt_path=last", "--trainer.max_steps=3"]
    segformer(monkeypatch, "fit", "--config", run / "config.yaml", *longer)
    assert [path.name for path in run.parent.iterdir()] == ["version_0"]
    state = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)
    assert state["global_step"] == 3


def test_a_run_starts_from_weights_of_other_classes(
    photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a step at AdamW's low rate, the backbone is still close to the given one."""
    given = SegFormer(TINY, num_classes=5)
    given.save("given.safetensors")
    options = [
        option for option in SMALL if "backbone" not in option and "class_path" not in option
    ]
    segformer(monkeypatch, "fit", photos, "--weights=given.safetensors", *options)
    trained = weights(Path("runs/photos/version_0"))
    for name, tensor in given.backbone.state_dict().items():
        torch.testing.assert_close(trained[f"backbone.{name}"], tensor, rtol=0, atol=1e-3)
    assert trained["decode_head.classifier.weight"].shape[0] == 2


def test_large_images_are_validated_in_windows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for k in range(4):
        label = np.zeros((40, 2100), np.uint8)
        label[:, 900 + k :] = 1
        for kind, array in (("images", 200 * label), ("masks", label)):
            Path("wide", kind).mkdir(parents=True, exist_ok=True)
            Image.fromarray(array).save(f"wide/{kind}/{'abcd'[k]}.png")
    segformer(monkeypatch, "fit", "wide", *SMALL)
    config = yaml.safe_load(Path("runs/wide/version_0/config.yaml").read_text(encoding="utf-8"))
    mode = config["model"]["protocol"]["mode"]
    assert mode == {"crop_size": [1024, 1024], "stride": [768, 768]}
    assert Path("runs/wide/version_0/results.json").is_file()


def test_a_dry_run_only_writes(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    segformer(monkeypatch, "fit", photos, *SMALL, "--out", "my.yaml", "--dry_run")
    assert {path.name for path in Path().iterdir()} == {
        *("photos", "my.yaml", "my_train.csv", "my_val.csv")
    }
    text = Path("my.yaml").read_text(encoding="utf-8")
    assert "# frames of one video stay together: 3 groups ('north', 'south', 'west')" in text
    assert max(map(len, text.splitlines())) <= 110
    segformer(monkeypatch, "fit", photos, *SMALL, "--out", "my.yaml", "--dry_run")  # the same
    assert Path("my.yaml").read_text(encoding="utf-8") == text
    with pytest.raises(SystemExit):
        segformer(monkeypatch, "fit", photos, "--out", "my.yaml", "--dry_run", "--val_seed=7")
    assert Path("my.yaml").read_text(encoding="utf-8") == text


def test_check_reads_a_folder_as_fit_does(
    photos: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    segformer(monkeypatch, "check", photos, "--num_workers=0", "--out=look.png")
    printed = capsys.readouterr().out
    assert "train: 6 pairs; 6 of 40×48" in printed
    assert "no problems" in printed
    assert {path.name for path in Path().iterdir()} == {"photos", "look.png"}


def plan_of(folder: Path, *arguments: str) -> Any:
    return make_plan(parse("fit", [str(folder), *arguments]))


def names_of(plan: Any, split: str) -> set[str]:
    return {pair.name for pair in plan.lists[split]}


def test_divisions_by_options(photos: Path) -> None:
    by_frame = plan_of(photos, "--group", r"\d+(?=\.jpg)", "--val_share=0.34")
    frames = {name.rpartition("_")[2] for name in names_of(by_frame, "val")}
    assert len(frames) == 1
    assert len(names_of(by_frame, "val")) == 3
    singly = plan_of(photos, "--group", ".+")
    assert len(names_of(singly, "val")) == 2
    far = "3 groups cannot be divided nearer to 20 %"  # three videos: one is 33 %
    assert any(sentence.startswith(far) for sentence in plan_of(photos).decisions)
    assert not any("nearer" in sentence for sentence in (*by_frame.decisions, *singly.decisions))
    seeds = {frozenset(names_of(plan_of(photos, f"--val_seed={k}"), "val")) for k in range(8)}
    assert len(seeds) == 3


def test_divisions_by_lists(photos: Path) -> None:
    Path("val.txt").write_text("\n".join(NAMES[:2]))
    plan = plan_of(photos, "--val_names=val.txt")
    assert names_of(plan, "val") == set(NAMES[:2])
    assert names_of(plan, "train") == set(NAMES[2:])
    (photos / "train.txt").write_text("\n".join(NAMES[3:6]))
    (photos / "val.txt").write_text("\n".join(NAMES[6:8]))
    plan = plan_of(photos)
    assert names_of(plan, "train") == set(NAMES[3:6])
    assert names_of(plan, "val") == set(NAMES[6:8])
    assert "4 pairs that no list names are left out" in plan.decisions


def test_a_folder_with_train_and_test_gets_its_validation_from_train(tmp_path: Path) -> None:
    root = write(tmp_path, "{split}/{name}.jpg", "{split}/{name}_mask.png", ("train", "test"))
    plan = plan_of(root)
    assert names_of(plan, "test") == set(NAMES[6:])
    assert len(names_of(plan, "train")) == len(names_of(plan, "val")) == 3


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--group", "images"], "all 9 images are in one group, 'images'"),
        (["--group", "north"], "does not occur in 'images/south_00000.jpg' and 5 other"),
        (["--val_share", "2"], "--val_share 2.0 must be between 0 and 1"),
        (["--val_names", "gone.txt"], "No such file or directory: 'gone.txt'"),
        (["--val_names", "a.txt", "--group", "x"], "--val_share and --group divide images that no"),
        (["--weights", "gone.safetensors"], "--weights gone.safetensors: there is no such file"),
        (["--weights", "x", "--variant", "b1"], "--weights have their own variant"),
        (["--config", "x.yaml"], "a folder and --config are given"),
        (["--ckpt_path", "last"], "--ckpt_path resumes a run"),
        (["--print_config"], "--dry_run writes the YAML of a folder"),
        (["--val_shar", "0.1"], "did you mean '--val_share'?"),
        (["--trainer.max_steps"], "--trainer.max_steps needs a value"),
        (
            ["--trainer.callbacks.x", "1"],
            "--trainer.callbacks.x changes callbacks, which has no options",
        ),
        (["--trainer.logger", "false"], "pass --out FILE for the YAML"),
        (["--data.ignore_index", "0"], "which is one class"),
        (["--variant", "b9", "--out", "b9.yaml"], "unknown variant 'b9'"),
        (["--trainer.max_stepz", "1"], "does not accept option 'trainer.max_stepz'"),
    ],
)
def test_errors_are_one_sentence(
    arguments: list[str],
    message: str,
    photos: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(SystemExit) as stop:
        segformer(monkeypatch, "fit", photos, *arguments)
    assert stop.value.code == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("folder", "message"),
    [("gone", "no folder 'gone'"), ("x.yaml", "'x.yaml' is a file; pass a config by --config")],
)
def test_what_is_no_folder(
    folder: str,
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("x.yaml").write_text("data: 1")
    with pytest.raises(SystemExit):
        segformer(monkeypatch, "fit", folder)
    assert message in capsys.readouterr().err


def test_a_folder_with_unequal_sizes_or_a_broken_image_is_refused_before_anything_is_written(
    photos: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    Image.new("RGB", (30, 20)).save(photos / "images" / "north_00000.jpg")
    (photos / "images" / "south_00000.jpg").write_bytes(b"no image")
    with pytest.raises(SystemExit):
        segformer(monkeypatch, "fit", photos)
    error = capsys.readouterr().err
    assert "north_00000.jpg' is 20×30 but its label map" in error
    assert "cannot read image" in error
    assert [path.name for path in Path().iterdir()] == ["photos"]


def test_a_folder_of_splits_is_not_divided_again(tmp_path: Path) -> None:
    root = write(tmp_path, *ARRANGEMENTS["Roboflow"])
    with pytest.raises(ValueError, match="which --val_share and --group would divide again"):
        plan_of(root, "--val_share=0.5")


@pytest.mark.parametrize(("verb", "add"), [("fit", add_fit), ("check", add_check)])
def test_the_short_help_has_the_options_of_folders(verb: str, add: Any) -> None:
    short, own = Parser("x"), own_parser(verb)
    add(short)
    names = {name for name in own._option_string_actions if name.startswith("--")}
    if verb == "check":
        names -= {"--variant", "--weights"}
    assert names - {"--help"} <= short._option_string_actions.keys()


OPTIONS = {
    "trainer.max_steps": 7,
    "trainer.precision": "bf16-mixed",
    "model.network.backbone": "b1",
    "model.loss": "segformer.losses.Dice",
    "model.loss.smooth": 0.5,
    "data.train_transform.crop_size": [64, 96],
    "data.val_batch_size": 3,
    "seed_everything": 5,
    "checkpoint.save_top_k": 2,
}


def test_options_change_the_yaml_as_they_change_a_config(
    photos: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Lightning's parser is the judge: the same options after --config give the same config."""
    options = [f"--{key}={value}" for key, value in OPTIONS.items()]
    plan = plan_of(photos)
    plan.write(Path("plain.yaml"))
    changed = plan.settings
    for key, value in OPTIONS.items():
        changed = with_option(changed, key, value)
    type(plan)(changed, plan.lists, plan.decisions).write(Path("changed.yaml"))
    printed = []
    for arguments in (["plain.yaml", *options], ["changed.yaml"]):
        with pytest.raises(SystemExit):
            segformer(monkeypatch, "fit", "--config", *arguments, "--print_config")
        printed.append(yaml.safe_load(capsys.readouterr().out.replace("changed_", "plain_")))
    assert printed[0] == printed[1]


def situation(**given: Any) -> Situation:
    options = {"images": 40, "size": (360, 480), "longest": 480, "on_gpu": False, "cores": 2}
    classes = {"classes": Classes.unnamed(3), "pixels": (60, 30, 10)}
    return Situation(**{**options, **classes, **given})


def test_a_step_of_several_batches_makes_as_many_validations() -> None:
    options = {"trainer.accumulate_grad_batches": 4}
    one, four = situation(images=160), situation(images=160, given=options)
    assert four.steps == one.steps
    intervals = [settings(of)["trainer"]["val_check_interval"] for of in (one, four)]
    assert intervals[1] == 4 * intervals[0]
    assert decisions(one)[0].startswith(
        "4000 steps of 8 crops of 256×256: 200 passes over 160 training"
    )
    assert ": 800 passes over 160 training images" in decisions(four)[0]
    options = {"trainer.max_epochs": 5, **options}
    assert situation(images=160, given=options).steps == 5 * 160 // 32


@pytest.mark.parametrize(
    ("images", "on_gpu", "weights"),
    [
        (1, False, None),
        (10, True, "some.safetensors"),
        (10_000, True, None),
        (10_000, False, "some.safetensors"),
    ],
)
def test_recipes_of_any_number_of_images_are_configs(
    images: int,
    on_gpu: bool,
    weights: str | None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    recipe = settings(situation(images=images, on_gpu=on_gpu, weights=weights, longest=5_000))
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe))
    data = "--data=segformer.train.data.FolderData"
    with pytest.raises(SystemExit) as stop:
        segformer(monkeypatch, "fit", "--config", path, data, "--print_config")
    assert not stop.value.code
    trainer = yaml.safe_load(capsys.readouterr().out)["trainer"]
    assert trainer["max_steps"] in {steps for row in STEPS for steps in row[1:]}
    assert trainer["precision"] == ("bf16-mixed" if on_gpu else None)


@pytest.mark.parametrize(
    ("size", "on_gpu", "crop"),
    [
        ((360, 480), False, [256, 256]),
        ((360, 480), True, [352, 480]),
        ((1080, 1920), True, [512, 512]),
        ((100, 60), False, [96, 32]),
        ((20, 20), False, [32, 32]),
    ],
)
def test_crops_fit_into_the_images(size: tuple[int, int], on_gpu: bool, crop: list[int]) -> None:
    assert situation(size=size, on_gpu=on_gpu).crop_size == crop


def test_the_weights_of_classes_are_those_of_the_camvid_config() -> None:
    """The config has each class's share to the power -1/4, from all training images."""
    shares = np.array([4.0, 1.0, 0.25])
    assert class_weights([4000, 1000, 250]) == pytest.approx(
        (shares**-0.25 / np.mean(shares**-0.25)).round(2)
    )
    assert class_weights([16, 1, 0])[1:] == [class_weights([16, 1, 0])[1]] * 2


def guide_commands() -> list[list[str]]:
    """The commands of the guide's section, in their order."""
    guide = Path(__file__).parents[2] / "docs" / "guides" / "data.md"
    sections = guide.read_text(encoding="utf-8").split("\n## ")
    section = next(text for text in sections if text.startswith("From a folder to a run"))
    blocks = re.findall(r"^```bash\n(.*?)^```", section, re.MULTILINE | re.DOTALL)
    return [shlex.split(line) for block in blocks for line in block.splitlines()]


def test_the_commands_of_the_guide_run(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Their runs are not trained: the two that Lightning would start are parsed."""
    SegFormer(TINY, num_classes=2).save("ade.safetensors")
    Path("val.txt").write_text("\n".join(NAMES[:2]))
    started: list[list[str]] = []
    monkeypatch.setattr("segformer.train.lightning_cli.main", started.append)
    commands = guide_commands()
    for words in commands:
        if "--group" in words:  # of a folder for each group
            root = write(Path("more"), "{name}/images/1.jpg", "{name}/masks/1.png")
            words[words.index("photos")] = str(root)
        segformer(monkeypatch, *words[1:])
    assert len(started) == sum(words[1] == "fit" and "--dry_run" not in words for words in commands)
    for arguments in started:
        data(Path(arguments[arguments.index("--config") + 1]))


def test_the_guide_has_the_table_of_recipes() -> None:
    guide = Path(__file__).parents[2] / "docs" / "guides" / "recipes.md"
    rows = re.findall(
        r"^\| (?:up to )?([\d,]+|more) \| ([\d,]+) \| ([\d,]+) \|$",
        guide.read_text(encoding="utf-8"),
        re.MULTILINE,
    )
    numbers = [[None if n == "more" else int(n.replace(",", "")) for n in row] for row in rows]
    assert [(most, tuned, new) for most, new, tuned in numbers] == list(STEPS)
