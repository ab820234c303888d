"""Training from end to end, at a size of seconds."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from conftest import TINY
from halves import Halves, camvid_config, halves, quiet_trainer, write_folder
from PIL import Image
from torch import Tensor, nn
from torchvision.transforms import v2

from segformer import Classes, SegFormer
from segformer.cli import main
from segformer.data.normalization import IMAGENET
from segformer.data.transforms import TrainTransform
from segformer.evaluation import TTA_RATIOS, Protocol
from segformer.losses import CrossEntropy, Lovasz, Sum
from segformer.train.data import FolderData, SegmentationData
from segformer.train.distillation import Distillation, FeatureMaps
from segformer.train.parser import data_of
from segformer.train.report import Report
from segformer.train.task import SegmentationTask

pytestmark = pytest.mark.filterwarnings(
    "ignore:.*does not have many workers",
    "ignore:.*number of training batches",
    "ignore:.*GPU available",
)


def test_a_few_steps_learn_an_easy_task(tmp_path: Path) -> None:
    task = SegmentationTask(
        SegFormer(TINY, num_classes=2),
        optimizer=lambda groups: torch.optim.AdamW(groups, lr=3e-3),
        head_lr_mult=1.0,
    )
    data = halves()
    trainer = quiet_trainer(tmp_path, max_epochs=15)
    before = trainer.validate(task, data, verbose=False)[0]["val/miou"]
    trainer.fit(task, data)
    after = trainer.validate(task, data, verbose=False)[0]["val/miou"]
    assert before < 0.6
    assert after > 0.9


def test_plain_tensors_are_cropped_with_their_labels() -> None:
    """torchvision's transforms leave all plain tensors but the first alone."""
    label = (torch.arange(64)[:, None] + torch.arange(64)).to(torch.uint8)

    class Plain(list):  # type: ignore[type-arg]
        classes = Classes([str(k) for k in range(127)])

    samples = Plain([(label.expand(3, -1, -1), label)] * 4)
    transform = TrainTransform((64, 64), (1.5, 1.5), distortion=v2.Identity())
    batch = next(
        iter(
            SegmentationData(
                samples, samples, transform, batch_size=4, num_workers=0
            ).train_dataloader()
        )
    )
    images, target = batch
    pixels = 255 * (images[:, 0] * IMAGENET.std[0] + IMAGENET.mean[0])
    assert target.shape == (4, 64, 64)
    assert not torch.equal(target[0], label)
    assert (pixels - target).abs().max() <= 2.1  # bilinear beside nearest, on a slope of two pixels


def test_the_loss_is_taken_at_full_size_and_255_is_ignored(tmp_path: Path) -> None:
    task = SegmentationTask(SegFormer(TINY, num_classes=2, dropout=0.0, drop_path=0.0))
    images, target = torch.randn(2, 3, 40, 48), torch.randint(0, 2, (2, 40, 48))
    target[:, :5] = 255
    task.log = lambda *args, **kwargs: None  # type: ignore[method-assign]
    loss = task.training_step((images, target.to(torch.uint8)), 0)
    torch.testing.assert_close(
        loss, torch.nn.functional.cross_entropy(task(images), target, ignore_index=255)
    )


def test_gradient_accumulation_counts_optimizer_steps(tmp_path: Path) -> None:
    """16 samples in batches of 4, 2 batches a step, 3 epochs: 6 steps, and the rate ends at 0."""
    task = SegmentationTask(SegFormer(TINY, num_classes=2))
    trainer = quiet_trainer(tmp_path, max_epochs=3, accumulate_grad_batches=2)
    trainer.fit(task, halves())
    assert trainer.global_step == 6
    assert trainer.optimizers[0].param_groups[0]["lr"] == pytest.approx(0, abs=1e-12)


def run(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> None:
    monkeypatch.setattr(sys, "argv", ["segformer", *arguments])
    main()


@pytest.fixture
def camvid_like(tmp_path: Path) -> Path:
    """A folder in the layout of configs/camvid.yaml, with 11 for 255, and a small config."""
    return write_folder(tmp_path / "data", train=8, val=3, test=3)


@pytest.fixture
def config(camvid_like: Path, tmp_path: Path) -> Path:
    return camvid_config(camvid_like, tmp_path)


def test_fit_leaves_checkpoints_weights_tables_and_pictures(
    config: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    run(monkeypatch, "fit", "--config", str(config))
    out = tmp_path / "runs" / "camvid" / "version_0"
    assert {"last.ckpt"} < {path.name for path in (out / "checkpoints").iterdir()}
    results = json.loads((out / "results.json").read_text())
    assert set(results) == {"val", "test"}
    assert set(results["test"]["iou"]) == {"dark", "bright"}
    printed = capsys.readouterr().out
    assert "mIoU" in printed
    assert "predictions.png" in printed
    model = SegFormer.from_pretrained(out / "model.safetensors")
    assert model.classes.names == ("dark", "bright")
    for picture in ("predictions.png", "curves.png"):
        with Image.open(out / picture) as image:
            assert min(image.size) > 50

    # The weights are the best checkpoint's averages, not the last step's, and have its scores.
    checkpoint = torch.load(next(out.glob("checkpoints/epoch*.ckpt")), weights_only=True)
    for key, tensor in model.state_dict().items():
        assert torch.equal(tensor, checkpoint["state_dict"][f"network.{key}"]), key
    assert not torch.equal(
        model.decode_head.fuse.weight,
        checkpoint["current_model_state"]["network.decode_head.fuse.weight"],
    )
    again = SegFormer.from_pretrained(
        next(out.glob("checkpoints/epoch*.ckpt"))
    )  # the checkpoint itself reads as the model, names and all
    torch.testing.assert_close(again.state_dict(), model.state_dict(), rtol=0, atol=0)
    assert again.classes == model.classes
    trainer, folder = quiet_trainer(tmp_path), folder_data(config)
    (val,) = trainer.validate(SegmentationTask(model), folder, verbose=False)
    (test,) = trainer.test(SegmentationTask(model), folder, verbose=False)
    assert val["val/miou"] == pytest.approx(results["val"]["miou"], abs=1e-6)
    assert test["test/miou"] == pytest.approx(results["test"]["miou"], abs=1e-6)


def folder_data(config: Path) -> FolderData:
    root = yaml.safe_load(config.read_text())["data"]["init_args"]["root"]
    return FolderData(
        root, Classes(["dark", "bright"]), TrainTransform((32, 32)), ignore_index=11, num_workers=0
    )


@pytest.mark.filterwarnings("ignore:the schedule was OneCycle of 6 steps and is OneCycle of 9")
def test_fit_resumes_in_its_own_folder(
    config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(monkeypatch, "fit", "--config", str(config), "--report.every_n_batches=1")
    out = tmp_path / "runs" / "camvid" / "version_0"
    run(
        monkeypatch,
        "fit",
        "--config",
        str(config),
        "--report.every_n_batches=1",
        "--trainer.max_steps=9",
        "--ckpt_path=last",
    )
    assert [path.name for path in out.parent.iterdir()] == ["version_0"]
    resumed = torch.load(out / "checkpoints" / "last.ckpt", weights_only=True)
    assert resumed["global_step"] == 9
    history = next(
        state["history"]
        for name, state in resumed["callbacks"].items()
        if name.startswith("Report")
    )
    assert [step for step, _ in history["train/loss"]] == list(range(1, 10))
    assert [step for step, _ in history["val/miou"]] == [3, 6, 9]
    assert (out / "metrics_1.csv").is_file()  # the first part's


def test_a_run_without_a_validation_leaves_its_weights_all_the_same(
    config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(monkeypatch, "fit", "--config", str(config), "--trainer.max_steps=2")
    out = tmp_path / "runs" / "camvid" / "version_0"
    assert SegFormer.from_pretrained(out).num_classes == 2
    assert set(json.loads((out / "results.json").read_text())) == {"val", "test"}


@pytest.mark.filterwarnings(
    "ignore:SWA is currently only supported every epoch"
)  # it is: its own schedule takes the place of ours
@pytest.mark.filterwarnings("ignore:Swapping scheduler")
@pytest.mark.filterwarnings("ignore:Detected call of `lr_scheduler.step")
def test_stochastic_weight_averages_are_what_is_saved(
    config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = yaml.safe_load(config.read_text())
    swa = {
        "class_path": "lightning.pytorch.callbacks.StochasticWeightAveraging",
        "init_args": {"swa_lrs": 1e-3, "swa_epoch_start": 1, "device": None},
    }
    settings["trainer"].update(callbacks=[swa], max_steps=-1, max_epochs=3, val_check_interval=4)
    config.write_text(yaml.safe_dump(settings))
    run(monkeypatch, "fit", "--config", str(config), "--resume.every_n_train_steps=4")
    out = tmp_path / "runs" / "camvid" / "version_0"
    saved = SegFormer.from_pretrained(out / "model.safetensors").state_dict()[
        "decode_head.fuse.weight"
    ]
    ends = [  # of each epoch that is averaged
        torch.load(out / "checkpoints" / f"resume-step={step}.ckpt", weights_only=True)[
            "state_dict"
        ]["network.decode_head.fuse.weight"]
        for step in (8, 12)
    ]
    assert not any(torch.equal(saved, end) for end in ends)
    between = sum(ends) / 2
    assert (saved - between).norm() < (ends[0] - ends[1]).norm()


def test_fit_starts_from_given_weights_with_a_new_classifier(
    config: Path, tiny: SegFormer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny.save(tmp_path / "five.safetensors")
    settings = yaml.safe_load(config.read_text())
    settings["model"]["network"] = {
        "class_path": "segformer.Pretrained",
        "init_args": {"source": str(tmp_path / "five.safetensors")},
    }
    settings["trainer"]["callbacks"] = []
    config.write_text(yaml.safe_dump(settings))
    run(
        monkeypatch,
        "fit",
        "--config",
        str(config),
        "--trainer.max_steps=1",
        "--model.optimizer.init_args.lr=1e-9",
    )
    model = SegFormer.from_pretrained(tmp_path / "runs" / "camvid" / "version_0")
    assert model.num_classes == 2
    torch.testing.assert_close(model.decode_head.fuse.weight, tiny.decode_head.fuse.weight)


def test_two_classes_by_one_logit(
    config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(monkeypatch, "fit", "--config", str(config), "--one_logit=true", "--trainer.max_steps=3")
    out = tmp_path / "runs" / "camvid" / "version_0"
    model = SegFormer.from_pretrained(out)
    assert model.num_classes == 1
    assert model.classes.names == ("dark", "bright")
    assert set(json.loads((out / "results.json").read_text())["val"]["iou"]) == {"dark", "bright"}
    assert set(model.predict(torch.randn(2, 3, 64, 64)).unique().tolist()) <= {0, 1}
    run(
        monkeypatch,
        "validate",
        "--config",
        str(config),
        "--one_logit=true",
        "--weights",
        str(out / "model.safetensors"),
    )


def test_one_logit_tells_no_three_classes_apart(
    config: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(SystemExit, match="one_logit separates two classes; the data have 3"):
        run(
            monkeypatch,
            "fit",
            "--config",
            str(config),
            "--one_logit=true",
            "--data.classes.names=[dark, bright, third]",
        )


def test_an_unreadable_test_split_costs_neither_weights_nor_val_scores(
    config: Path, camvid_like: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (camvid_like / "images" / "test" / "1.png").write_bytes(b"no picture")
    with pytest.raises(SystemExit, match=r"cannot read image .*test/1.png"):
        run(monkeypatch, "fit", "--config", str(config))
    out = tmp_path / "runs" / "camvid" / "version_0"
    assert SegFormer.from_pretrained(out).num_classes == 2
    assert set(json.loads((out / "results.json").read_text())) == {"val"}


def test_validate_measures_given_weights_by_a_protocol(
    config: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setitem(
        TTA_RATIOS, "whole", (1.0, 1.25)
    )  # of pictures of 40×48, which half as large are too small
    SegFormer(TINY, num_classes=2).save(tmp_path / "two.safetensors")
    run(
        monkeypatch,
        "validate",
        "--config",
        str(config),
        "--weights",
        str(tmp_path / "two.safetensors"),
        "--protocol",
        "whole",
        "--tta",
    )
    printed = capsys.readouterr().out
    assert "dark" in printed
    assert "mIoU" in printed
    assert (tmp_path / "runs" / "camvid" / "version_0" / "confusion.png").is_file()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["validate"], "random weights; give the weights to measure with --weights or --ckpt_path"),
        (["validate", "--weights", "a", "--ckpt_path", "b"], "both name what to measure"),
        (["validate", "--weights", "{three}"], r"has 3 classes \(.*\), the data have 2"),
        (["validate", "--weights", "{swapped}"], "class 0 is 'dark' in the data and 'bright' in"),
        (
            ["validate", "--weights", "{two}", "--compare", "{swapped}"],
            "class 0 is 'dark' in the data and 'bright' in .*swapped",
        ),
        (
            ["validate", "--weights", "{three}", "--tta"],
            "the data have 2|--tta needs a --protocol",
        ),
        (["fit", "--weights", "a"], "--weights is for measuring; to start from weights"),
        (["fit", "--ckpt_path", "gone.ckpt"], "no checkpoint 'gone.ckpt'"),
    ],
)
def test_arguments_that_would_be_ignored_are_refused(
    arguments: list[str],
    message: str,
    config: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    swapped = Classes(["bright", "dark"])
    for name, classes in (("three", Classes.unnamed(3)), ("swapped", swapped), ("two", None)):
        network = SegFormer(TINY, num_classes=len(classes or swapped), classes=classes)
        network.save(tmp_path / f"{name}.safetensors")
    files = {path.stem: str(path) for path in tmp_path.glob("*.safetensors")}
    verb, *more = (word.format_map(files) for word in arguments)
    with pytest.raises(SystemExit, match=message):
        run(monkeypatch, verb, "--config", str(config), *more)


def test_part_of_an_epoch_is_an_epoch(tmp_path: Path) -> None:
    class Seen(SegmentationTask):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            seen.append((self.current_epoch, batch_idx, batch[0].sum().item()))
            return super().training_step(batch, batch_idx)

    seen: list[tuple[int, int, float]] = []
    data = halves()
    quiet_trainer(tmp_path, max_epochs=3, limit_train_batches=2).fit(
        Seen(SegFormer(TINY, num_classes=2)), data
    )
    assert [(epoch, number) for epoch, number, _ in seen] == [
        (epoch, number) for epoch in range(3) for number in range(2)
    ]
    dataset = data.train_dataloader().dataset
    for epoch, number, total in seen:
        batch = torch.stack([dataset[draw][0] for draw in data.batches.batch(epoch, number)])
        assert batch.sum().item() == pytest.approx(total, abs=1e-2)


def test_the_picture_of_predictions_is_labelled_by_the_protocol() -> None:
    """As the scores are."""

    @dataclass(frozen=True)
    class One(Protocol):
        label: int = 0

        def predict(self, model: Any, images: Tensor, size: Any = None) -> Tensor:
            return images.new_full((len(images), *images.shape[-2:]), self.label).long()

    def bright(label: int) -> int:
        task = SegmentationTask(SegFormer(TINY, num_classes=2), protocol=One(label=label))
        picture = np.asarray(Report(samples=2).predictions(task, halves()))
        return int((picture == Halves.classes.colors[1]).all(-1).sum())

    assert bright(1) - bright(0) == 2 * 40 * 48


def test_fewer_images_than_a_batch_are_refused(
    config: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(
        SystemExit, match="8 training images make no batch of 9; set data.batch_size to 8 or less"
    ):
        run(monkeypatch, "fit", "--config", str(config), "--data.batch_size=9")


def test_fewer_images_to_measure_than_devices_are_refused() -> None:
    data: Any = halves()
    data.trainer = SimpleNamespace(global_rank=0, world_size=7)
    with pytest.raises(ValueError, match="6 images to measure on 7 devices, and each needs one"):
        data.val_dataloader()


def test_blocks_are_computed_again_in_the_backward_pass_and_nothing_else_changes(
    tmp_path: Path,
) -> None:
    def trained(again: bool) -> tuple[list[Tensor], int]:
        torch.manual_seed(0)
        network, saved = SegFormer(TINY, num_classes=2, drop_path=0.5), []
        task = SegmentationTask(network, grad_checkpointing=again)
        with torch.autograd.graph.saved_tensors_hooks(lambda x: saved.append(x) or x, lambda x: x):
            quiet_trainer(tmp_path, max_steps=2).fit(task, halves())
        return [parameter.detach() for parameter in network.parameters()], len(saved)

    (plain, kept), (recomputed, kept_again) = trained(False), trained(True)
    torch.testing.assert_close(recomputed, plain)
    assert kept_again < kept
    backbone: Any = nn.Conv2d(3, 8, 4, 4)
    backbone.channels = [8]
    with pytest.raises(ValueError, match="backbone Conv2d has no set_grad_checkpointing"):
        SegmentationTask(SegFormer(backbone, 2), grad_checkpointing=True)


def test_weights_of_the_loss_must_match_the_classes() -> None:
    with pytest.raises(ValueError, match="the loss weighs 3 classes, the network has 2"):
        SegmentationTask(SegFormer(TINY, num_classes=2), loss=CrossEntropy([1, 2, 3]))


class Edges(nn.Module):
    """A loss with a fixed filter, a number called weight, and a weight that it learns."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = 0.5
        self.sobel = nn.Conv2d(1, 1, 3).requires_grad_(False)
        self.log_variance = nn.Parameter(torch.zeros(()))

    def forward(self, logits: Tensor, target: Tensor, align_corners: bool) -> Tensor:
        edges = self.sobel(logits[:, :1]).square().mean()
        return CrossEntropy()(logits, target, align_corners) * (-self.log_variance).exp() + edges


def test_a_loss_of_the_users_is_trained(tmp_path: Path) -> None:
    loss = Edges()
    task = SegmentationTask(SegFormer(TINY, num_classes=2), loss)
    trained = [p for group in task.parameter_groups() for p in group["params"]]
    assert sum(p is loss.log_variance for p in trained) == 1
    assert not any(p is loss.sobel.weight for p in trained)
    quiet_trainer(tmp_path, max_steps=3).fit(task, halves())
    assert loss.log_variance != 0


@pytest.mark.parametrize("loss", [CrossEntropy(ignore_index=11), Sum([Lovasz(ignore_index=11)])])
def test_a_loss_that_ignores_what_files_ignore_is_refused(loss: nn.Module) -> None:
    """Label maps reach it with 255 for no class, whatever their files have."""
    with pytest.raises(ValueError, match=r"ignores 11, but .* with 255 .* data.ignore_index to 11"):
        SegmentationTask(SegFormer(TINY, num_classes=2), loss)
    SegmentationTask(SegFormer(TINY, num_classes=2), CrossEntropy(ignore_index=255))
    SegmentationTask(SegFormer(TINY, num_classes=300), Lovasz(ignore_index=65535))


def test_a_wrong_label_stops_the_fit_by_name(
    config: Path, camvid_like: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Image.fromarray(np.full((40, 48), 9, np.uint8)).save(camvid_like / "labels" / "train" / "5.png")
    with pytest.raises(SystemExit, match=r"train/5.png' holds the value 9 on 1920 of 1920 pixels"):
        run(monkeypatch, "fit", "--config", str(config))


def test_masks_of_0_and_255_stop_the_fit_before_it_begins(
    config: Path, camvid_like: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for path in (camvid_like / "labels").rglob("*.png"):
        with Image.open(path) as label:
            mask = np.where(np.array(label) == 1, 255, 0).astype(np.uint8)
        Image.fromarray(mask).save(path)
    with pytest.raises(SystemExit, match=r"hold only 0 and 255.*set `label_map: \{0: 0, 255: 1\}`"):
        run(monkeypatch, "fit", "--config", str(config), "--data.ignore_index=255")
    assert not list((tmp_path / "runs").rglob("*.ckpt"))


@pytest.mark.usefixtures("without_pictures")
def test_a_measurement_needs_nothing_that_only_training_uses(
    config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither the teacher's file, nor images without labels, nor peft."""
    network = SegFormer(TINY, num_classes=2)
    make = partial(Distillation, teacher=network, features=FeatureMaps)
    checkpoint, weights = tmp_path / "run.ckpt", tmp_path / "weights.safetensors"
    torch.save(
        {"state_dict": SegmentationTask(network, distillation=make).state_dict()}, checkpoint
    )
    network.save(weights)

    settings = yaml.safe_load(config.read_text())
    views = {
        "class_path": "segformer.data.unlabelled.WeakAndStrong",
        "init_args": {"crop_size": [32, 32]},
    }
    settings["data"]["init_args"]["unlabelled_images"] = {"images": ["gone"], "views": views}
    settings["model"].update(
        distillation={
            "class_path": "segformer.train.distillation.Distillation",
            "init_args": {
                "teacher": str(tmp_path / "gone.safetensors"),
                "features": "segformer.train.distillation.FeatureMaps",
            },
        },
        consistency={"class_path": "segformer.train.consistency.Consistency"},
    )
    config.write_text(yaml.safe_dump(settings))
    run(monkeypatch, "validate", "--config", str(config), "--ckpt_path", str(checkpoint))
    monkeypatch.setitem(sys.modules, "peft", None)
    settings["model"]["lora"] = {"rank": 2}
    config.write_text(yaml.safe_dump(settings))
    run(monkeypatch, "test", "--config", str(config), "--weights", str(weights))
    runs = tmp_path / "runs" / "camvid"
    of_both = [json.loads((path / "results.json").read_text()) for path in sorted(runs.iterdir())]
    assert [set(scores) for scores in of_both] == [{"val"}, {"test"}]
    assert len(data_of(str(config)).val) == 3
    with pytest.raises(SystemExit, match="gone"):
        run(monkeypatch, "fit", "--config", str(config))
