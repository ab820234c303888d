"""Pre-training by classification: timm's own functions are the judge of the recipe."""

from __future__ import annotations

import json
import random
import re
import signal
import socket
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import processes
import pytest
import timm
import torch
import yaml
from lightning import Callback, Trainer, seed_everything
from PIL import Image
from timm.data import Mixup, create_transform, resolve_data_config
from timm.loss import SoftTargetCrossEntropy
from timm.optim import create_optimizer_v2
from timm.scheduler import CosineLRScheduler
from torch import Tensor, nn
from torchvision import transforms

from _segformer_verbs import EXAMPLES
from segformer import Classes, SegFormer, TimmBackbone
from segformer.checkpoint import METADATA_KEY, describe
from segformer.cli import main
from segformer.data.classification import CenterCrop, ClassFolders, RandAugmentation
from segformer.data.images import read_image
from segformer.data.scenes import Scenes
from segformer.networks.timm_backbone import timms_normalization
from segformer.timm_models import TimmClassifier
from segformer.train.averaging import EMA
from segformer.train.classification import ClassificationTask, ImageFolderData, MixupCutMix
from segformer.train.optim import WarmupCosine
from segformer.train.resume import Resumable, newest_checkpoint
from segformer.train.weights import match_classes

pytestmark = pytest.mark.filterwarnings("ignore")
CONFIGS = Path(__file__).parents[2] / "configs"
SIDE = 32
adamw = partial(torch.optim.AdamW, lr=1e-3, weight_decay=0.05)


def stripes(kind: int, noise: np.random.Generator) -> Image.Image:
    """An image of noisy stripes in random colours, whose direction and width are its class."""
    angle, width = kind % 5 * np.pi / 5, 4 + 5 * (kind // 5)
    y, x = np.mgrid[:40, :48]
    wave = np.sin((x * np.cos(angle) + y * np.sin(angle)) * 2 * np.pi / width + noise.uniform(0, 6))
    colors = noise.uniform(0, 255, (2, 3))
    pixels = np.where(wave[..., None] > 0, *colors) + noise.normal(0, 10, (40, 48, 3))
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def write_folders(root: Path, classes: int = 3, **counts: int) -> Path:
    """A folder with this number of images of each class in each split."""
    noise = np.random.default_rng(0)
    for split, count in counts.items():
        for kind in range(classes):
            folder = root / split / f"class_{kind}"
            folder.mkdir(parents=True)
            for k in range(count):
                stripes(kind, noise).save(folder / f"{k}.png")
    return root


def data(root: Path, transform: Any = None, **options: Any) -> ImageFolderData:
    settings = {"batch_size": 4, "num_workers": 0, **options}
    return ImageFolderData(root, transform or RandAugmentation(SIDE), CenterCrop(SIDE), **settings)


def quiet_trainer(*callbacks: Callback, **options: Any) -> Trainer:
    return Trainer(
        accelerator="cpu", callbacks=list(callbacks), logger=False, use_distributed_sampler=False,
        enable_progress_bar=False, enable_model_summary=False, **options,
    )  # fmt: skip


@pytest.mark.parametrize("name", ["mit_b0", "pvt_v2_b0"])
def test_weight_decay_is_timms(name: str) -> None:
    with torch.device("meta"):
        task = ClassificationTask(TimmClassifier(name), adamw)
    ours = task.make_optimizer(task.parameter_groups())
    theirs = create_optimizer_v2(task.network.model, opt="adamw", lr=1e-3, weight_decay=0.05)

    def decays(optimizer: Any) -> dict[int, tuple[float, float]]:
        groups = optimizer.param_groups
        return {id(p): (g["weight_decay"], g["lr"]) for g in groups for p in g["params"]}

    assert decays(ours) == decays(theirs)
    assert len(decays(ours)) == len(list(task.parameters()))


def test_rates_are_those_of_timms_schedule() -> None:
    """DeiT's schedule is set at each epoch, ours at each step, as timm's is by choice."""
    epochs, steps = 300, 7
    layer = nn.Linear(1, 1)
    ours, each, epochwise = (
        torch.optim.AdamW(layer.parameters(), lr=1e-3, weight_decay=0.05) for _ in range(3)
    )
    schedule = WarmupCosine(ours, epochs * steps)
    settings = {"lr_min": 1e-5, "warmup_lr_init": 1e-6}
    by_step = CosineLRScheduler(
        each, t_initial=epochs * steps, warmup_t=5 * steps, t_in_epochs=False, **settings
    )
    by_epoch = CosineLRScheduler(epochwise, t_initial=epochs, warmup_t=5, **settings)
    for step in range(epochs * steps):
        by_step.step_update(step)
        (rate,) = schedule.get_last_lr()
        assert rate == pytest.approx(each.param_groups[0]["lr"], rel=1e-12)
        if step % steps == 0:
            by_epoch.step(step // steps)
            assert rate == pytest.approx(epochwise.param_groups[0]["lr"], rel=1e-12)
        ours.step()
        schedule.step()
    assert schedule.get_last_lr() == [pytest.approx(1e-5)]


def seed(number: int) -> None:
    torch.manual_seed(number)
    random.seed(number)
    np.random.seed(number)


def test_augmentation_is_timms() -> None:
    """With the published colour jitter, which timm ignores beside RandAugment."""
    ours = RandAugmentation()
    theirs: Any = create_transform(
        224, is_training=True, color_jitter=0.4, auto_augment="rand-m9-mstd0.5-inc1",
        interpolation="bicubic", re_prob=0.25, re_mode="pixel", re_count=1,
    )  # fmt: skip
    image = stripes(1, np.random.default_rng(0)).resize((250, 230))
    results = []
    for number in range(8):
        seed(number)
        expected = theirs(image)
        seed(number)
        results.append(ours(image))
        assert torch.equal(results[-1], expected)
    assert not torch.equal(results[0], results[1])


@pytest.mark.parametrize("policy", ["", "3a"])  # beside which timm jitters colours by default
def test_there_is_no_color_jitter(policy: str) -> None:
    parts = RandAugmentation(auto_augment=policy).transform.transforms
    assert not any(isinstance(part, transforms.ColorJitter) for part in parts)


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "pvt_v2_b0"])
def test_images_are_normalized_as_timm_does_for_the_network(name: str, tmp_path: Path) -> None:
    """So are those of its backbone, which starts from the weights of the run."""
    images = data(write_folders(tmp_path, train=2, val=1))
    with torch.device("meta"):
        task = ClassificationTask(TimmClassifier(name, 3), adamw)
        backbone = TimmBackbone(name)
    task._trainer = quiet_trainer(max_steps=1)
    task._trainer.datamodule = images  # type: ignore[attr-defined]
    task.setup("fit")
    stated = resolve_data_config(model=task.network.model)
    settings = {"mean": stated["mean"], "std": stated["std"], "interpolation": "bicubic"}
    random_crop: Any = create_transform(
        SIDE, is_training=True, auto_augment="rand-m9-mstd0.5-inc1", re_prob=0.25, re_mode="pixel",
        **settings,
    )  # fmt: skip
    middle: Any = create_transform(SIDE, crop_pct=0.875, **settings)
    image = stripes(1, np.random.default_rng(0))
    for samples, expected in ((images.train, random_crop), (images.val, middle)):
        seed(0)
        wanted = expected(image)
        seed(0)
        assert torch.equal(samples.transform(image), wanted)
    assert timms_normalization(backbone.model).mean == stated["mean"]


@pytest.mark.parametrize("name", ["vgg11", "densenet121"])
def test_networks_without_stochastic_depth_are_built(name: str) -> None:
    with torch.device("meta"):
        assert TimmClassifier(name, 3)(torch.zeros(2, 3, 64, 64)).shape == (2, 3)
        with pytest.raises(ValueError, match="leave them out, or set them to null"):
            TimmClassifier(name, 3, drop_path_rate=0.1)


def test_validation_resizes_to_256_and_crops_224() -> None:
    expected = transforms.Compose(
        [
            transforms.Resize(256, transforms.InterpolationMode.BICUBIC),
            transforms.CenterCrop(224),
            transforms.ToTensor(),
            transforms.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
        ]
    )
    image = stripes(1, np.random.default_rng(0)).resize((300, 270))
    torch.testing.assert_close(CenterCrop()(image), expected(image), rtol=0, atol=0)


@pytest.mark.parametrize("number", range(4))
def test_mixing_and_loss_are_timms(number: int) -> None:
    """timm smooths the labels where it mixes, PyTorch where it computes the loss."""
    images, labels, logits = torch.randn(6, 3, 32, 40), torch.arange(6), torch.randn(6, 7)
    theirs = Mixup(mixup_alpha=0.8, cutmix_alpha=1.0, label_smoothing=0.1, num_classes=7)
    torch.manual_seed(number)
    np.random.seed(int(torch.randint(2**32, ())))
    expected_images, target = theirs(images.clone(), labels)
    state = np.random.get_state()[1]
    torch.manual_seed(number)
    mixed, shares = MixupCutMix()(images.clone(), labels, 7)
    assert torch.equal(mixed, expected_images)
    assert not torch.equal(mixed, images)
    assert np.array_equal(np.random.get_state()[1], state)  # NumPy's own numbers go on
    loss = ClassificationTask(TimmClassifier("test_resnet", 7), adamw).loss
    torch.testing.assert_close(loss(logits, shares), SoftTargetCrossEntropy()(logits, target))


def test_a_step_does_not_wait_for_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """The meta device has no value to read."""
    with torch.device("meta"):
        task = ClassificationTask(TimmClassifier("mit_b0", 3), adamw, mixing=MixupCutMix()).train()
        batch = torch.zeros(4, 3, 64, 64), torch.zeros(4, dtype=torch.long)
        optimizer = task.make_optimizer(task.parameter_groups())
    task._trainer = quiet_trainer(max_steps=1, log_every_n_steps=3)
    monkeypatch.setattr(task, "log", lambda *_, **__: None)
    task.training_step(batch, 0).backward()
    optimizer.step()


class Record(Callback):
    """The batches of a run."""

    def __init__(self) -> None:
        self.batches: list[float] = []

    def on_train_batch_start(self, trainer: Any, module: Any, batch: Any, batch_idx: int) -> None:
        self.batches.append(batch[0].sum().item())


class Stop(Callback):
    """Stops a run while it trains on a batch: at once, or by a signal after the step."""

    def __init__(self, batch: int, number: signal.Signals | None) -> None:
        self.batch, self.number = batch, number

    def on_train_batch_start(self, trainer: Any, module: Any, batch: Any, batch_idx: int) -> None:
        if trainer.fit_loop.total_batch_idx + 1 == self.batch:
            if self.number is None:
                raise RuntimeError("killed")
            signal.raise_signal(self.number)


def fit(root: Path, folder: Path, *interruption: Callback) -> tuple[dict[str, Tensor], list[float]]:
    """The weights and the batches of a run of eight batches, or of its rest."""
    seed_everything(0)
    torch.manual_seed(len(interruption))  # the state of the generators does not matter
    network = TimmClassifier("mit_b0", 3, drop_path_rate=0.3)
    if not interruption:
        network.load_state_dict(torch.load(root / "start.pt"))
    else:
        torch.save(network.state_dict(), root / "start.pt")
    task = ClassificationTask(network, adamw, mixing=MixupCutMix())
    seen, resume = Record(), Resumable(1)
    resume.dirpath = str(folder)
    trainer = quiet_trainer(
        seen, EMA(0.9), resume, *interruption, max_epochs=2, accumulate_grad_batches=2
    )
    checkpoint = newest_checkpoint(folder)
    with pytest.raises((SystemExit, RuntimeError)) if interruption else nullcontext():
        trainer.fit(task, data(root), ckpt_path=checkpoint and str(checkpoint))
    return task.network.state_dict(), seen.batches


@pytest.mark.parametrize("number", [None, pytest.param(signal.SIGTERM, marks=pytest.mark.slow)])
def test_a_stopped_run_ends_with_the_same_weights(number: Any, tmp_path: Path) -> None:
    """In the midst of accumulated gradients of mixed images, with stochastic depth."""
    root = write_folders(tmp_path, train=6, val=1)
    _, first = fit(root, tmp_path / "stopped", Stop(6, number))
    resumed, second = fit(root, tmp_path / "stopped")
    whole, batches = fit(root, tmp_path / "whole")
    assert batches[: len(first)] == first
    assert batches[-len(second) :] == second
    assert len(batches) == 8 > len(second)
    torch.testing.assert_close(resumed, whole, rtol=0, atol=0)


SCRIPT = """
import os
import sys
import warnings

warnings.filterwarnings("ignore")
import torch
from lightning import Trainer, seed_everything

from segformer.data.classification import CenterCrop, RandAugmentation
from segformer.timm_models import TimmClassifier
from segformer.train.classification import ClassificationTask, ImageFolderData


class Task(ClassificationTask):
    def on_before_optimizer_step(self, optimizer):
        if self.global_rank == 0:
            torch.save({name: p.grad for name, p in self.named_parameters()}, out + "_gradients.pt")


count, out, root, rank, port = int(sys.argv[1]), *sys.argv[2:]
if count > 1:
    os.environ |= {"WORLD_SIZE": str(count), "LOCAL_RANK": rank, "MASTER_PORT": port}
torch.set_num_threads(1)
seed_everything(0)
task = Task(TimmClassifier("mit_b0", 6, drop_path_rate=0.0), torch.optim.AdamW).double()
data = ImageFolderData(
    root, RandAugmentation(32), CenterCrop(32), batch_size=4 // count, val_batch_size=2,
    num_workers=0,
)
data.on_after_batch_transfer = lambda batch, _: (batch[0].double(), batch[1])
trainer = Trainer(
    accelerator="cpu", devices=count, strategy="ddp" if count > 1 else "auto", max_steps=1,
    logger=False, enable_checkpointing=False, enable_progress_bar=False,
    use_distributed_sampler=False, num_sanity_val_steps=0, limit_val_batches=1.0,
)
trainer.validate(task, data, verbose=False)
if trainer.global_rank == 0:
    torch.save(task.scores, out + "_scores.pt")
trainer.fit(task, data)
"""


def run(folder: Path, count: int) -> tuple[dict[str, float], dict[str, Tensor]]:
    """The scores and the gradients of ``count`` processes."""
    out = folder / str(count)
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    ranks = [
        processes.start(
            SCRIPT, count, out, folder, rank, port, output=folder / f"{count}{rank}.txt"
        )
        for rank in range(count)
    ]
    for rank, process in enumerate(ranks):
        process.join(300)
        assert process.exitcode == 0, (folder / f"{count}_{rank}").read_text()[-3000:]
    return torch.load(f"{out}_scores.pt"), torch.load(f"{out}_gradients.pt")


def test_two_processes_are_one(tmp_path: Path) -> None:
    """Without stochastic depth and mixing, which each process draws for its part of a batch."""
    write_folders(tmp_path, 6, train=1, val=3)
    (scores, gradients), (of_two, shared) = run(tmp_path, 1), run(tmp_path, 2)
    assert scores == of_two
    assert 0 < scores["top5"] < 1  # as not all images' classes are among the five
    for name, gradient in gradients.items():
        torch.testing.assert_close(shared[name], gradient, rtol=1e-9, atol=1e-12, msg=name)


@pytest.mark.parametrize(
    ("classes", "count", "batch"), [(3, 4, 6), pytest.param(10, 20, 20, marks=pytest.mark.slow)]
)
def test_a_folder_is_learned_by_heart(classes: int, count: int, batch: int, tmp_path: Path) -> None:
    root = write_folders(tmp_path, classes, train=count, val=1)
    seed_everything(0)
    task = ClassificationTask(TimmClassifier("mit_b0", classes, drop_path_rate=0.0), adamw)
    images = data(root, CenterCrop(SIDE), batch_size=batch)
    images.val = images.train
    trainer = quiet_trainer(max_epochs=15, enable_checkpointing=False, check_val_every_n_epoch=15)
    trainer.fit(task, images)
    assert task.scores["top1"] > 0.99


def imagenet(root: Path, *more: str) -> list[str]:
    """The arguments of a short run of the published config."""
    transforms = (f"--data.{split}_transform.size={SIDE}" for split in ("train", "val"))
    return [
        "pretrain", f"--config={CONFIGS / 'imagenet.yaml'}", f"--data.root={root}", *transforms,
        "--data.batch_size=4", "--data.num_workers=0", "--trainer.accelerator=cpu",
        "--trainer.enable_model_summary=false", "--trainer.max_epochs=1",
        f"--trainer.logger.save_dir={root}", *more,
    ]  # fmt: skip


def test_a_run_leaves_weights_for_timm_and_a_backbone_for_segmentation(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = write_folders(tmp_path, 6, train=2, val=2)
    main(imagenet(root))
    folder = root / "imagenet" / "version_0"
    weights = str(folder / "model.safetensors")
    classifier = timm.create_model("mit_b0", num_classes=6, checkpoint_path=weights).eval()
    samples = ClassFolders(root / "val", CenterCrop(SIDE))
    images, labels = (torch.stack(x) for x in zip(*[(x, torch.tensor(y)) for x, y in samples]))  # noqa: B905
    with torch.no_grad():
        top5 = classifier(images).topk(5).indices
        correct = top5 == labels[:, None]
        features = classifier.forward_intermediates(images, intermediates_only=True)
    scores = json.loads((folder / "results.json").read_text())["val"]
    assert scores["top1"] == pytest.approx(correct[:, 0].float().mean().item())
    assert scores["top5"] == pytest.approx(correct.any(1).float().mean().item())
    assert "top1" in capsys.readouterr().out
    for source in (weights, str(folder / "checkpoints" / "last.ckpt")):
        model = SegFormer.from_pretrained(source, num_classes=4)
        with torch.no_grad():
            for found, expected in zip(model.backbone(images), features, strict=True):
                torch.testing.assert_close(found, expected)
    main(imagenet(root, f"--model.network.checkpoint_path={weights}", "--trainer.fast_dev_run=1"))


def test_any_classifier_of_timm_becomes_a_backbone(tmp_path: Path) -> None:
    """Its weights have timm's names, so that timm reads them."""
    root = write_folders(tmp_path, train=2, val=1)
    main(imagenet(root, "--model.network.name=pvt_v2_b0"))
    weights = str(root / "imagenet" / "version_0" / "model.safetensors")
    classifier = timm.create_model("pvt_v2_b0", num_classes=3, checkpoint_path=weights).eval()
    backbone = TimmBackbone(
        "pvt_v2_b0", pretrained=True, pretrained_cfg_overlay={"file": weights}
    ).eval()
    images = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        expected = classifier.forward_intermediates(images, intermediates_only=True)
        for found, features in zip(backbone(images), expected, strict=True):
            torch.testing.assert_close(found, features)


def test_the_config_is_the_published_recipe(tmp_path: Path) -> None:
    from segformer.train.classification_cli import ClassificationCLI

    root = write_folders(tmp_path, train=2, val=1)
    arguments = [f"--config={CONFIGS / 'imagenet.yaml'}", f"--data.root={root}"]
    cli = ClassificationCLI([*arguments, "--trainer.accelerator=cpu"], run=False)
    task, module = cli.model, cli.datamodule
    optimizer = task.make_optimizer(task.parameter_groups())
    assert {group["lr"] for group in optimizer.param_groups} == {1e-3}
    assert {group["weight_decay"] for group in optimizer.param_groups} == {0, 0.05}
    trainer = cli.trainer
    assert module.batch_size * trainer.num_devices * trainer.accumulate_grad_batches == 1024
    assert cli.trainer.max_epochs == 300
    mixup = task.mixing.mixup
    assert (mixup.mixup_alpha, mixup.cutmix_alpha, mixup.mix_prob) == (0.8, 1.0, 1.0)
    assert task.loss.label_smoothing == 0.1
    assert task.network.num_classes == module.num_classes == 3
    assert module.train[0][0].shape == module.val[0][0].shape == (3, 224, 224)
    rates = [m.drop_prob for m in task.modules() if type(m).__name__ == "DropPath"]
    assert max(rates) == 0.1


def test_every_documented_command_has_batches_of_1024_images() -> None:
    """The learning rate belongs to them."""
    config = (CONFIGS / "imagenet.yaml").read_text()
    page = (CONFIGS.parent / "docs" / "guides" / "pretraining.md").read_text()
    settings = yaml.safe_load(config)
    commands = re.findall(r"^segformer pretrain .*", page, re.MULTILINE)
    (hint,) = re.findall(r"^#   (--trainer.devices .*)", config, re.MULTILINE)
    commands += [hint, EXAMPLES["pretrain"]]
    assert len(commands) > 5
    for command in commands:
        size = settings["data"]["init_args"]["batch_size"]
        for factor in ("devices", "accumulate_grad_batches"):
            given = re.search(rf"--trainer.{factor} (\d+)", command)
            size *= int(given[1]) if given else settings["trainer"][factor]
        assert size == 1024, command


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--data.batch_size=3"], "data.batch_size=3 is odd; set an even one"),
        (["--model.mixing.mixup=0", "--model.mixing.cutmix=0"], "set mixing to null"),
        (["--model.network.name=mit_b9"], "unknown timm model 'mit_b9'; did you mean mit_b"),
        (["--data.root=gone"], "gone"),
        (["--data.batch_size=8"], "6 training images make no batch of 8"),
    ],
)
def test_what_cannot_work_is_said_in_a_sentence(
    more: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stop:
        main(imagenet(write_folders(tmp_path, train=2, val=1), *more))
    assert stop.value.code == 2
    assert message in capsys.readouterr().err


def test_a_broken_image_and_other_classes_are_named(tmp_path: Path) -> None:
    root = write_folders(tmp_path, train=2, val=1)
    (root / "train" / "class_0" / "0.png").write_bytes(b"no image")
    with pytest.raises(ValueError, match=r"cannot read image .*class_0.*0\.png"):
        data(root).train[0]
    (root / "val" / "class_2").rename(root / "val" / "other")
    with pytest.raises(ValueError, match=r"3 classes in train and 3 in val.* class_2, other"):
        data(root)


def test_images_are_read_as_everywhere(tmp_path: Path) -> None:
    """16 bits, turned ones, other suffixes; folders that programs add are no classes."""
    root = write_folders(tmp_path, train=2)
    folder = root / "train" / "class_0"
    ramp = np.linspace(0, 65535, 32 * 48).reshape(32, 48).astype(np.uint16)
    Image.fromarray(ramp).save(folder / "a.png")
    turned = Image.Exif()
    turned[0x0112] = 6
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (8, 6, 3), np.uint8))
    picture.save(folder / "b.jpg", exif=turned)
    picture.save(folder / "c.jfif", "JPEG")
    for name in (".ipynb_checkpoints", "class_0/.ipynb_checkpoints", "class_1/@eaDir"):
        (root / "train" / name).mkdir()
        picture.save(root / "train" / name / "copy.png")
    found = ClassFolders(root / "train")
    assert found.classes == ["class_0", "class_1", "class_2"]
    paths = [Path(path) for path, _ in found.samples]
    assert {"a.png", "b.jpg", "c.jfif"} <= {path.name for path in paths}
    assert not any(path.name == "copy.png" for path in paths)
    for path, (image, _) in zip(paths, found, strict=True):
        np.testing.assert_array_equal(np.array(image), read_image(path).permute(1, 2, 0))


@pytest.mark.parametrize("suffix", ["safetensors", "ckpt"])
def test_scenes_are_a_start_for_camvid(suffix: str, tmp_path: Path) -> None:
    """They have as many classes, in another order: the classifier's rows follow the names."""
    from segformer.train.lightning_cli import SegmentationCLI

    for kind in ("images", "labels"):
        for split in ("train", "val"):
            (tmp_path / kind / split).mkdir(parents=True)
            Image.new("L", (64, 64)).save(tmp_path / kind / split / "1.png")
    trained = SegFormer("b0", classes=Scenes.classes, num_classes=11)
    path = tmp_path / f"scenes.{suffix}"
    if suffix == "ckpt":
        state = {f"network.{name}": x for name, x in trained.state_dict().items()}
        torch.save({"state_dict": state, METADATA_KEY: json.dumps(describe(trained))}, path)
    else:
        trained.save(path)
    cli = SegmentationCLI(
        [
            f"--config={CONFIGS / 'camvid.yaml'}",
            f"--data.root={tmp_path}",
            "--model.network=segformer.Pretrained",
            f"--model.network.source={path}",
        ],
        run=False,
    )
    network, names = cli.model.network, cli.datamodule.classes.names
    cli.before_fit()
    assert network.classes.names == names != Scenes.classes.names
    expected = trained.state_dict()
    for name, tensor in network.state_dict().items():
        if "classifier" in name:
            rows = [Scenes.classes.names.index(name) for name in names[:9]]
            torch.testing.assert_close(tensor[:9], expected[name][rows])
            assert not torch.isin(tensor[9:], expected[name]).any() or "bias" in name
        else:
            torch.testing.assert_close(tensor, expected[name])


def test_a_classifier_whose_classes_are_only_renamed_stays() -> None:
    network = SegFormer("b0", classes=Classes(["street", "sky", "tree"]), num_classes=3)
    expected = network.decode_head.classifier.weight.clone()
    match_classes(network, Classes(["road", "sky", "tree"]))
    assert torch.equal(network.decode_head.classifier.weight, expected)
