"""Distillation: losses by their papers' formulas, and a teacher that training leaves as it is."""

from __future__ import annotations

import copy
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import yaml
from conftest import TINY, quick, randomized
from halves import Halves, halves, quiet_trainer, small_config
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor

from segformer import SETR, Classes, MLAHead, Normalization, SegFormer
from segformer.deploy import export, load
from segformer.train.averaging import EMA
from segformer.train.distillation import KL, ChannelWise, Distillation, FeatureMaps
from segformer.train.optim import OfficialAdamW, param_groups
from segformer.train.task import SegmentationTask

quiet = pytest.mark.filterwarnings(
    "ignore:.*does not have many workers", "ignore:.*number of training batches"
)
WIDER = TINY.__class__(
    dims=(16, 24, 32, 40), depths=(1, 1, 1, 1), decoder_channels=16, heads=(1, 2, 4, 5)
)


def wider(num_classes: int = 2, **options: Any) -> SegFormer:
    return randomized(SegFormer(WIDER, num_classes=num_classes, **options))


def logits_and_mask() -> tuple[Tensor, Tensor, Tensor]:
    student, teacher = torch.randn(2, 2, 5, 6, 7, dtype=torch.double)
    return student, teacher, torch.rand(2, 1, 6, 7) < 0.6


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_kl_is_that_of_the_distributions(temperature: float) -> None:
    """torch.distributions', pixel by pixel, of the valid pixels only."""
    student, teacher, valid = logits_and_mask()
    p, q = (
        torch.distributions.Categorical(logits=x.movedim(1, -1) / temperature)
        for x in (teacher, student)
    )
    expected = temperature**2 * torch.distributions.kl_divergence(p, q)[valid[:, 0]].mean()
    torch.testing.assert_close(
        KL(temperature)(student, teacher, valid), expected, rtol=1e-12, atol=0
    )


def test_at_a_high_temperature_the_gradient_is_that_of_the_logits_difference() -> None:
    """Equation 4 of arXiv 1503.02531: (z - v) / N for logits of zero mean, times T²/T²."""
    student, teacher, _ = logits_and_mask()
    student, teacher = (x - x.mean(1, keepdim=True) for x in (student, teacher))
    student.requires_grad_()
    KL(1e5)(student, teacher, torch.ones(2, 1, 6, 7, dtype=torch.bool)).backward()
    expected = (student - teacher).detach() / (5 * 2 * 6 * 7)
    assert student.grad is not None
    torch.testing.assert_close(student.grad, expected, rtol=1e-3, atol=1e-7)


def test_channel_wise_is_the_divergence_over_the_places_of_each_channel() -> None:
    student, teacher, valid = logits_and_mask()
    valid[1] = False  # an image without labels has no loss
    expected = torch.zeros((), dtype=torch.double)
    for k in range(5):
        p, q = (
            torch.distributions.Categorical(logits=x[0, k][valid[0, 0]] / 4)
            for x in (teacher, student)
        )
        expected += 16 * torch.distributions.kl_divergence(p, q)
    torch.testing.assert_close(
        ChannelWise()(student, teacher, valid), expected / (5 * 2), rtol=1e-12, atol=0
    )


def test_one_logit_and_two_of_the_same_probabilities_are_equal_by_channel() -> None:
    z, shift = torch.randn(2, 2, 1, 6, 7, dtype=torch.double)
    valid = torch.ones(2, 1, 6, 7, dtype=torch.bool)
    of_one, of_two = torch.cat([0 * z, z], 1), torch.cat([shift, z + shift], 1)
    assert ChannelWise()(of_one, of_two, valid) == pytest.approx(0, abs=1e-12)
    other = torch.cat([0 * z, z.flip(-1)], 1)
    single = ChannelWise()(other[:, 1:], z, valid)  # of the maps themselves
    torch.testing.assert_close(ChannelWise()(other, of_one, valid), single)


def test_a_maps_loss_is_one_minus_its_correlation() -> None:
    """Equation 5 of PKD; the correlation is PyTorch's."""
    features = FeatureMaps([4], [4]).double()
    (project,) = features.projections
    assert isinstance(project, torch.nn.Conv2d)
    own, others = torch.randn(2, 3, 4, 8, 8, dtype=torch.double)
    valid = torch.ones(3, 1, 32, 32, dtype=torch.bool)
    valid[:, :, :, 20:] = False
    pairs = zip(
        project(own)[..., :5].flatten(2).flatten(0, 1),
        others[..., :5].flatten(2).flatten(0, 1),
        strict=True,
    )
    expected = torch.stack([1 - torch.corrcoef(torch.stack(pair))[0, 1] for pair in pairs]).mean()
    torch.testing.assert_close(features([own], [others], valid), expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("features", [None, FeatureMaps])
def test_ignored_pixels_have_no_gradient(features: Any) -> None:
    student = SegFormer(TINY, num_classes=2)
    distillation = Distillation(student, wider(), features=features)
    target = torch.zeros(2, 64, 64, dtype=torch.long)
    target[:, :, 32:] = 255
    maps = [x.detach().requires_grad_() for x in student.backbone(torch.randn(2, 3, 64, 64))]
    logits = torch.randn(2, 2, 16, 16, requires_grad=True)
    distillation(torch.randn(2, 3, 64, 64), maps, logits, target).backward()
    for tensor in [logits, *(maps if features else ())]:
        assert tensor.grad is not None
        width = tensor.shape[-1] // 2
        assert tensor.grad[..., width:].abs().sum() == 0
        assert tensor.grad[..., :width].abs().sum() > 0


def test_the_teacher_gets_images_in_its_own_normalization() -> None:
    own = Normalization((0.1, 0.2, 0.3), (0.4, 0.5, 0.6))
    teachers = Normalization((120.0, 110.0, 100.0), (60.0, 50.0, 40.0), scale=1.0)
    student = SegFormer(TINY, num_classes=2, normalization=own).double()
    teacher = wider(normalization=teachers)
    distillation = Distillation(student, teacher).double()
    distillation.adapt_to(student)
    pixels = torch.randint(256, (2, 3, 64, 96), dtype=torch.uint8)
    _, logits = distillation._predict(own(pixels).double(), torch.Size((16, 24)))
    expected = teacher.decode_head(teacher.backbone(teachers(pixels).double()))
    torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-4)


@quiet
def test_only_the_student_and_the_projections_learn(tmp_path: Path) -> None:
    """The teacher is in no checkpoint; the student that is saved is the student alone."""
    teacher = wider()
    before = copy.deepcopy(teacher.state_dict())
    distillation = partial(Distillation, teacher=teacher, features=FeatureMaps)
    task = SegmentationTask(SegFormer(TINY, num_classes=2), distillation=distillation)
    start = copy.deepcopy(task.state_dict())
    trainer = quiet_trainer(tmp_path, max_steps=2)
    trainer.fit(task, halves())
    assert task.distillation is not None
    for name, tensor in teacher.state_dict().items():
        assert torch.equal(tensor, before[name]), name
    assert not teacher.training
    assert all(p.grad is None for p in teacher.parameters())
    moved = {name for name, x in task.state_dict().items() if not torch.equal(x, start[name])}
    assert any(name.startswith("network.backbone") for name in moved)
    assert {f"distillation.features.projections.{k}.weight" for k in range(4)} <= moved
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    saved = torch.load(tmp_path / "last.ckpt", weights_only=True)["state_dict"]
    assert {name.split(".")[0] for name in saved} == {"network", "distillation"}
    assert {name.split(".")[1] for name in saved if name.startswith("dist")} == {"features"}
    again = SegFormer.from_pretrained(tmp_path / "last.ckpt")
    assert again.state_dict().keys() == task.network.state_dict().keys()


@quiet
def test_the_task_adds_the_weighted_losses() -> None:
    student, teacher = SegFormer(TINY, num_classes=2).double().eval(), wider().double()
    distillation = partial(
        Distillation,
        teacher=teacher,
        logits=KL(2.0),
        weight=0.5,
        features=FeatureMaps,
        features_weight=0.25,
    )
    task = SegmentationTask(student, distillation=distillation).double().eval()
    task.log = lambda *args, **kwargs: None  # type: ignore[method-assign]
    images, target = torch.randn(2, 3, 64, 96).double(), torch.randint(2, (2, 64, 96))
    maps, taught = student.backbone(images), teacher.backbone(images)
    logits, others = student.decode_head(maps), teacher.decode_head(taught)
    everywhere = torch.ones(2, 1, 64, 96, dtype=torch.bool)
    assert task.distillation is not None
    assert task.distillation.features is not None
    divergence = F.kl_div((logits / 2).log_softmax(1), (others / 2).softmax(1), reduction="sum") / (
        2 * 16 * 24
    )
    expected = (
        F.cross_entropy(F.interpolate(logits, size=(64, 96), mode="bilinear"), target)
        + 0.5 * 4 * divergence
        + 0.25 * task.distillation.features(maps, taught, everywhere)
    )
    torch.testing.assert_close(
        task.training_step((images, target), 0), expected, rtol=0, atol=1e-10
    )


def test_projections_learn_at_the_heads_rate() -> None:
    student = SegFormer(TINY, num_classes=2)
    task = SegmentationTask(
        student, distillation=partial(Distillation, teacher=wider(), features=FeatureMaps)
    )
    *_, heads = task.parameter_groups()
    *_, without = param_groups(student)
    projections = {id(p) for p in task.distillation.parameters()}  # type: ignore[union-attr]
    assert len(projections) == 8
    assert {id(p) for p in heads["params"]} == projections | {id(p) for p in without["params"]}
    OfficialAdamW(task.parameter_groups())


@pytest.mark.filterwarnings("ignore")
def test_an_exported_teacher_teaches_what_its_weights_teach(tmp_path: Path) -> None:
    """The file interpolates its stride-4 logits to the size that it is given."""
    teacher, student = quick(2), SegFormer(TINY, num_classes=2).eval()
    export(teacher, tmp_path / "teacher.onnx", output="logits", takes_size=True)
    images, target = torch.randn(2, 3, 64, 96), torch.randint(2, (2, 64, 96))
    maps = student.backbone(images)
    logits = student.decode_head(maps)
    by_file, by_weights = (
        Distillation(student, source)(images, maps, logits, target)
        for source in (tmp_path / "teacher.onnx", teacher)
    )
    torch.testing.assert_close(by_file, by_weights, rtol=1e-4, atol=0)
    with pytest.raises(ValueError, match="exported file, which gives no feature maps"):
        Distillation(student, tmp_path / "teacher.onnx", features=FeatureMaps)
    exported = load(tmp_path / "teacher.onnx")
    exported.description = replace(exported.description, output="probabilities")
    with pytest.raises(ValueError, match="gives probabilities; export it with --output logits"):
        Distillation(student, exported)


@pytest.mark.filterwarnings("ignore")
def test_a_resumed_run_ends_as_an_undisturbed_one(tmp_path: Path) -> None:
    teacher = wider()
    teacher.save(tmp_path / "teacher.safetensors")

    def task() -> SegmentationTask:
        torch.manual_seed(1)
        source = str(tmp_path / "teacher.safetensors")
        distillation = partial(Distillation, teacher=source, features=FeatureMaps)
        return SegmentationTask(SegFormer(TINY, num_classes=2), distillation=distillation)

    keep = ModelCheckpoint(tmp_path / "kept", "{step}", every_n_train_steps=2, save_top_k=-1)
    whole, resumed = task(), task()
    trainer = quiet_trainer(tmp_path, max_steps=4, callbacks=[EMA(0.9)])
    trainer.callbacks.append(keep)
    trainer.fit(whole, halves())
    trainer = quiet_trainer(tmp_path, max_steps=4, callbacks=[EMA(0.9)])
    trainer.fit(resumed, halves(), ckpt_path=str(tmp_path / "kept" / "step=2.ckpt"))
    assert trainer.global_step == 4
    for name, tensor in whole.state_dict().items():
        assert torch.equal(tensor, resumed.state_dict()[name]), name


def of_other_classes() -> SegFormer:
    return wider(classes=Classes(["bright", "dark"]))


@pytest.mark.parametrize(
    ("teacher", "options", "message"),
    [
        (lambda: wider(3), {}, r"the teacher has 3 classes \(class 0, class 1.*, the data have 2"),
        (
            lambda: SETR("tiny", 2, MLAHead, channels=8, img_size=32),
            {"features": lambda own, others: FeatureMaps(own, others[:3])},
            "student has 4 feature maps and the teacher 3",
        ),
        (wider, {"logits": partial(KL, 0.0)}, "temperature=0.0 must be greater than 0"),
    ],
)
def test_errors(teacher: Any, options: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Distillation(
            SegFormer(TINY, num_classes=2),
            teacher(),
            **{name: value() if name == "logits" else value for name, value in options.items()},
        )


@quiet
@pytest.mark.parametrize(
    ("teacher", "message"),
    [
        (
            of_other_classes,
            "class 0 is 'dark' in the data and 'bright' in the teacher; .* in the same order",
        ),
        (
            partial(wider, normalization=Normalization((0, 0, 0), (1, 1, 1), dtype="uint16")),
            "the student takes images normalised by .* and the teacher by .*uint16",
        ),
    ],
)
def test_what_differs_is_named_before_training(teacher: Any, message: str, tmp_path: Path) -> None:
    student = SegFormer(TINY, num_classes=2, classes=Halves.classes)
    task = SegmentationTask(student, distillation=partial(Distillation, teacher=teacher()))
    with pytest.raises(ValueError, match=message):
        quiet_trainer(tmp_path, max_steps=1).fit(task, halves())


@pytest.mark.filterwarnings("ignore")
def test_a_config_names_the_parts(tmp_path: Path) -> None:
    from segformer.train.lightning_cli import SegmentationCLI

    wider().save(tmp_path / "teacher.safetensors")
    settings = yaml.safe_load(small_config(tmp_path).read_text())
    settings["model"]["distillation"] = {
        "class_path": "segformer.train.distillation.Distillation",
        "init_args": {
            "teacher": str(tmp_path / "teacher.safetensors"),
            "logits": {"class_path": "segformer.train.distillation.ChannelWise"},
            "features": "segformer.train.distillation.FeatureMaps",
        },
    }
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(settings))
    cli = SegmentationCLI([f"--config={tmp_path / 'config.yaml'}"], run=False)
    distillation = cli.model.distillation
    assert isinstance(distillation.logits, ChannelWise)
    assert isinstance(distillation.features, FeatureMaps)
    assert [conv.out_channels for conv in distillation.features.projections] == list(WIDER.dims)
