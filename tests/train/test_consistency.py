"""Training with images without labels: by its papers' formula, resumable, on several processes."""

from __future__ import annotations

import copy
import shutil
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import yaml
from conftest import TINY
from halves import Halves, halves, quiet_trainer, small_config, write_folder
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor

from segformer import SegFormer
from segformer.data.images import read_image
from segformer.data.mixing import CutMix
from segformer.data.transforms import TrainTransform
from segformer.data.unlabelled import UnlabelledImages, Views, WeakAndStrong
from segformer.train.averaging import EMA, Average
from segformer.train.consistency import Consistency
from segformer.train.data import SegmentationData
from segformer.train.task import SegmentationTask


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Seven images without labels, in two folders."""
    root = tmp_path_factory.mktemp("unlabelled")
    return write_folder(root, train=5, more=2)


def data(folder: Path, workers: int = 0, **options: Any) -> SegmentationData:
    images = UnlabelledImages(["images/*"], WeakAndStrong((32, 32), **options), batch_size=2)
    return SegmentationData(
        Halves(),
        Halves(2, seed=1),
        TrainTransform((32, 32), (0.9, 1.1)),
        batch_size=4,
        num_workers=workers,
        unlabelled_images=images,
        root=folder,
    )


def task(**options: Any) -> SegmentationTask:
    torch.manual_seed(1)
    return SegmentationTask(
        SegFormer(TINY, num_classes=2), consistency=partial(Consistency, **options)
    )


def views(count: int = 4) -> Views:
    weak, strong = torch.randn(2, count, 3, 32, 40, dtype=torch.double)
    valid, box = torch.ones(2, count, 32, 40, dtype=torch.bool)
    valid[0, 20:] = False
    box[:] = False
    box[1, 4:20, 8:30] = True
    box[2, 16:, :10] = True
    return Views(weak, strong, valid, box)


@pytest.mark.parametrize("classes", [1, 3])
def test_the_loss_is_unimatchs(classes: int) -> None:
    """Equations 1 and 2 of arXiv 2208.09910, image by image with PyTorch's cross-entropy."""
    torch.manual_seed(3)
    student = SegFormer(TINY, num_classes=classes).double().eval()
    consistency = Consistency(student, threshold=0.6).double()
    given = views()
    consistency.update(student, 0)
    loss, share = consistency(student, given)

    def logits_of(images: Tensor) -> Tensor:
        logits = student(images)
        return torch.cat([torch.zeros_like(logits), logits], 1) if classes == 1 else logits

    confidence, labels = logits_of(given.weak).softmax(1).max(1)
    total = torch.zeros((), dtype=torch.double)
    confident = count = 0
    for k, neighbour in enumerate([1, 0, 3, 2]):
        box = given.box[k]
        image = torch.where(box, given.strong[neighbour], given.strong[k])
        label, sure, valid = (
            torch.where(box, x[neighbour], x[k]) for x in (labels, confidence >= 0.6, given.valid)
        )
        each = F.cross_entropy(logits_of(image[None]), label[None], reduction="none")[0]
        total += each[sure & valid].sum()
        confident += int((sure & valid).sum())
        count += int(valid.sum())
    assert 0 < confident < count
    torch.testing.assert_close(loss, total / count, rtol=1e-9, atol=0)
    assert share.item() == pytest.approx(confident / count)


def test_only_the_student_has_a_gradient() -> None:
    student = SegFormer(TINY, num_classes=2).double()
    consistency = Consistency(student, threshold=0.0).double()
    consistency(student, views())[0].backward()
    assert all(p.grad is not None for p in student.decode_head.parameters())
    assert all(p.grad is None for p in consistency.teacher.parameters())
    assert not list(consistency.parameters())
    assert not consistency.train().teacher.training


def test_the_teacher_is_the_average_of_the_steps_not_of_the_batches() -> None:
    student = SegFormer(TINY, num_classes=2).double()
    consistency, average = Consistency(student, decay=0.7).double(), Average(student, 0.7)
    for step in range(3):
        with torch.no_grad():
            student.decode_head.classifier.weight.normal_()
        expected = copy.deepcopy(student)
        for _ in range(2):  # the second batch of a step changes the student's statistics only
            consistency.update(student, step)
            consistency(student, views())
        average.update_parameters(expected)
    for own, theirs in zip(consistency.teacher.parameters(), average.parameters(), strict=True):
        torch.testing.assert_close(own, theirs, rtol=0, atol=0)
    assert consistency.to("meta").teacher.n_averaged.device.type == "cpu"


@pytest.mark.filterwarnings("ignore")
def test_the_teacher_has_the_statistics_before_the_step(folder: Path, tmp_path: Path) -> None:
    """Those that all processes share, which DDP broadcasts when its forward pass begins."""
    module = task()
    before = copy.deepcopy(module.network.state_dict())
    quiet_trainer(tmp_path, max_steps=1, limit_val_batches=0).fit(module, data(folder))
    assert module.consistency is not None
    teacher = module.consistency.teacher.module.state_dict()
    torch.testing.assert_close(teacher, before, rtol=0, atol=0)
    norm = "decode_head.norm.running_mean"
    assert not torch.equal(module.network.state_dict()[norm], before[norm])


def test_the_views_of_an_image_are_at_the_same_place() -> None:
    """With a strong view that keeps the colours, both are the same, and padding is not valid."""
    image = Halves()[0][0]
    make = WeakAndStrong((32, 80), (1.0, 1.0), strong=torch.nn.Identity(), mixing=CutMix(1.0))  # type: ignore[arg-type]
    weak, strong, valid, box = make(image)
    assert torch.equal(weak, strong)
    assert weak.shape == (3, 32, 80)
    assert valid[:, :48].all()
    assert not valid[:, 48:].any()
    assert (weak[:, ~valid] == 0).all()
    assert box.any()
    fitted = WeakAndStrong((32, 80), (1.0, 1.0), base=(24, 20))(image)  # 40×48 becomes 20×24
    assert fitted.valid.sum() == fitted.valid[:20, :24].sum() == 20 * 24
    changed = WeakAndStrong((32, 80), (1.0, 1.0))
    pairs = [changed(image) for _ in range(8)]
    assert sum(not torch.equal(pair.weak, pair.strong) for pair in pairs) >= 4


def batches(module: SegmentationData) -> list[Any]:
    return list(module.train_dataloader())


@pytest.mark.filterwarnings("ignore")
def test_batches_are_those_of_the_seed(folder: Path) -> None:
    """With any number of workers, whatever the generator's state, and the labelled ones as ever."""
    torch.manual_seed(1)
    one = batches(data(folder))
    torch.manual_seed(2)
    two = batches(data(folder, workers=1))
    torch.testing.assert_close(one, two, rtol=0, atol=0)
    labelled = list(halves().train_dataloader())
    torch.testing.assert_close([pair for pair, _ in one], labelled, rtol=0, atol=0)
    assert [tuple(x.shape) for x in one[0][1]] == 2 * [(2, 3, 32, 32)] + 2 * [(2, 32, 32)]


def test_every_unlabelled_image_comes_as_often() -> None:
    """Four batches an epoch of three batches of others: twelve batches show each image 4 times."""
    from segformer.train.order import Batches, InterleavedBatches

    epoch = 0
    first = Batches(8, 2, seed=0, start=lambda: (epoch, 0))
    both = InterleavedBatches(first, Batches(6, 2, seed=1))
    seen = []
    for epoch in range(3):  # noqa: B007 - start returns it
        seen += [draw for batch in both for which, draw in batch if which == 1]
    assert sorted(draw.index for draw in seen) == sorted(4 * list(range(6)))
    assert len({draw.seed for draw in seen}) == 24


@pytest.mark.filterwarnings("ignore")
def test_a_resumed_run_ends_as_an_undisturbed_one(folder: Path, tmp_path: Path) -> None:
    """The teacher is in the checkpoint; the network that is read from it is the student alone."""
    keep = ModelCheckpoint(tmp_path / "kept", "{step}", every_n_train_steps=3, save_top_k=-1)
    whole, resumed = task(threshold=0.0), task(threshold=0.0)
    trainer = quiet_trainer(tmp_path, max_steps=6, callbacks=[EMA(0.9)])
    trainer.callbacks.append(keep)
    trainer.fit(whole, data(folder))
    path = str(tmp_path / "kept" / "step=3.ckpt")
    quiet_trainer(tmp_path, max_steps=6, callbacks=[EMA(0.9)]).fit(
        resumed, data(folder), ckpt_path=path
    )
    assert whole.consistency is not None
    assert resumed.consistency is not None
    assert whole.consistency.teacher.n_averaged == 6
    for one, two in (
        (whole.state_dict(), resumed.state_dict()),
        (whole.consistency.teacher.state_dict(), resumed.consistency.teacher.state_dict()),
    ):
        torch.testing.assert_close(one, two, rtol=0, atol=0)
    again = SegFormer.from_pretrained(path)
    assert again.state_dict().keys() == whole.network.state_dict().keys()


def test_folders_patterns_and_lists_are_found(folder: Path, tmp_path: Path) -> None:
    table = tmp_path / "some.csv"
    table.write_text("image\nimages/more/0.png\nimages/train/3.png\n")
    make = WeakAndStrong((32, 32))

    def names(*images: str) -> list[str]:
        found = UnlabelledImages(list(images), make).find(folder)
        return [str(path.relative_to(folder / "images")) for path in found]

    assert names("images/more") == ["more/0.png", "more/1.png"]
    assert names("images/*/1.png") == ["more/1.png", "train/1.png"]
    assert names(str(table), "images/more") == ["more/0.png", "train/3.png", "more/1.png"]
    assert len(names("images/*")) == 7
    assert len(UnlabelledImages(["**/*.png"], make).find(folder)) == 14  # images and labels
    shutil.copytree(folder, tmp_path / "run[1]")
    assert len(UnlabelledImages(["images/*"], make).find(tmp_path / "run[1]")) == 7
    with pytest.raises(FileNotFoundError, match="nothing matches '.*/nowhere'"):
        names("nowhere")
    table.write_text("image\nimages/9.png\n")
    with pytest.raises(FileNotFoundError, match=r"lists '.*images/9.png', which does not exist"):
        names(str(table))
    table.write_text("file\nimages/9.png\n")
    with pytest.raises(ValueError, match="must have the column image"):
        names(str(table))
    table.unlink()
    with pytest.raises(FileNotFoundError, match=r"no file '.*some.csv' in the working directory"):
        names(str(table))
    (folder / "images/more/notes.txt").write_text("")
    assert len(names("images/more")) == 2  # a folder is searched for images
    with pytest.raises(
        ValueError, match=r"'images/more/\*' matches 'notes.txt', .* narrow .*\.jpg"
    ):
        names("images/more/*")
    with pytest.raises(ValueError, match=r"batch_size=3, and pairs .* are mixed; give an even"):
        UnlabelledImages(["images"], make, batch_size=3)


@pytest.mark.filterwarnings("ignore")
def test_images_and_their_loss_are_given_together(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"nothing learns from them; set model.consistency"):
        quiet_trainer(tmp_path, max_steps=1).fit(
            SegmentationTask(SegFormer(TINY, num_classes=2)), data(folder)
        )
    with pytest.raises(ValueError, match=r"needs images without labels; set data.unlabelled_im"):
        quiet_trainer(tmp_path, max_steps=1).fit(task(), halves())
    with pytest.raises(ValueError, match=r"threshold=1.0; give a number from 0 to below 1"):
        task(threshold=1.0)
    large = UnlabelledImages(["images"], WeakAndStrong((32, 32)), batch_size=8)  # of 7 images
    module = SegmentationData(
        Halves(), Halves(2), TrainTransform((32, 32)), unlabelled_images=large, root=folder
    )
    with pytest.raises(ValueError, match=r"^7 unlabelled images .*_images.batch_size to 6 or less"):
        module.train_dataloader()


@pytest.mark.filterwarnings("ignore")
def test_a_broken_image_is_named_before_training(folder: Path, tmp_path: Path) -> None:
    write_folder(tmp_path, train=2)
    (tmp_path / "images" / "train" / "0.png").write_bytes(b"no image")
    module = data(tmp_path)
    with pytest.raises(ValueError, match=r"train/0.png"):
        module.check_files()
    assert read_image(tmp_path / "images" / "train" / "1.png").shape == (3, 40, 48)


@pytest.mark.filterwarnings("ignore")
def test_a_config_names_the_parts(folder: Path, tmp_path: Path) -> None:
    from segformer.train.lightning_cli import SegmentationCLI

    settings = yaml.safe_load(small_config(tmp_path).read_text())
    settings["model"]["consistency"] = {
        "class_path": "segformer.train.consistency.Consistency",
        "init_args": {"threshold": 0.9},
    }
    make = {
        "class_path": "segformer.data.unlabelled.WeakAndStrong",
        "init_args": {"crop_size": [32, 32]},
    }
    settings["data"]["init_args"].update(
        unlabelled_images={"images": ["images/*"], "views": make, "batch_size": 2},
        root=str(folder),
    )
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(settings))
    cli = SegmentationCLI([f"--config={tmp_path / 'config.yaml'}"], run=False)
    assert cli.model.consistency.threshold == 0.9
    assert len(cli.datamodule.unlabelled) == 7
    cli.datamodule.normalize_as(cli.model.network.normalization)
    weak, *_ = cli.datamodule.unlabelled[0]
    assert weak.shape == (3, 32, 32)


def test_a_teacher_that_would_not_move_is_refused(folder: Path, tmp_path: Path) -> None:
    trainer = quiet_trainer(tmp_path, max_steps=1, precision="bf16-true")
    with pytest.raises(ValueError, match=r"precision is bf16-true, .* give bf16-mixed or 32-true"):
        trainer.fit(task(), data(folder))
