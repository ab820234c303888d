"""Two processes measure what one measures, and train with the gradients of one."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Any

import processes
import torch
from halves import write_folder

from segformer.evaluation.metrics import counts_of

SCRIPT = """
import os
import sys
import warnings

warnings.filterwarnings("ignore")
import torch
from functools import partial

from conftest import TINY, randomized
from halves import Halves
from lightning import Trainer, seed_everything

from segformer import SegFormer
from segformer.data.transforms import TrainTransform
from segformer.data.unlabelled import UnlabelledImages, Views, WeakAndStrong
from segformer.losses import CrossEntropy
from segformer.train.consistency import Consistency
from segformer.train.data import SegmentationData
from segformer.train.per_image import PerImage
from segformer.train.distillation import Distillation, FeatureMaps
from segformer.train.task import SegmentationTask


class Labelled(Halves):  # a loss is a mean over the valid pixels of each process
    def __getitem__(self, index):
        image, label = super().__getitem__(index)
        return image, label.clamp_max(1)


class Task(SegmentationTask):
    def on_train_batch_start(self, batch, batch_idx):
        super().on_train_batch_start(batch, batch_idx)
        self.network.decode_head.norm.eval()  # only GPUs synchronise its statistics

    def on_before_optimizer_step(self, optimizer):
        if self.global_rank == 0:
            torch.save({name: p.grad for name, p in self.named_parameters()}, out + "_gradients.pt")


count, out, rank, port = int(sys.argv[1]), *sys.argv[2:]
if count > 1:
    os.environ |= {"WORLD_SIZE": str(count), "LOCAL_RANK": rank, "MASTER_PORT": port}
torch.set_num_threads(1)
seed_everything(0)
network = SegFormer(TINY, num_classes=2, dropout=0.0, drop_path=0.0)
teacher = randomized(SegFormer(TINY, num_classes=2))
task = Task(
    network, CrossEntropy(over_all_pixels=True),
    distillation=partial(Distillation, teacher=teacher, features=FeatureMaps),
    consistency=partial(Consistency, threshold=0.5),
).double()
views = WeakAndStrong((32, 32), (0.9, 1.1))
data = SegmentationData(
    Labelled(9), Halves(7, seed=1), TrainTransform((32, 32), (0.9, 1.1)),
    batch_size=4 // count, num_workers=0,
    unlabelled_images=UnlabelledImages(["images"], views, batch_size=4 // count),
    root=os.path.dirname(out),
)
def doubled(batch, _):  # in validation a list of pairs, one for each size
    if isinstance(batch, torch.Tensor):
        return batch.double() if batch.is_floating_point() else batch
    parts = [doubled(part, _) for part in batch]
    return Views(*parts) if isinstance(batch, Views) else parts


data.on_after_batch_transfer = doubled
trainer = Trainer(
    accelerator="cpu", devices=count, strategy="ddp" if count > 1 else "auto",
    max_steps=1, logger=False, barebones=False, enable_checkpointing=False,
    enable_progress_bar=False, use_distributed_sampler=False, num_sanity_val_steps=0,
    limit_val_batches=1.0,
)
trainer.callbacks.append(per_image := PerImage(data.val, 2))
data.val_batch_size = 1
task.network.decode_head.norm.running_mean += int(rank)  # as between the batches of a step
trainer.validate(task, data, verbose=False)
confusion = task.scores.confusion
images = [(image.name, image.counts, image.boundary) for image in per_image.images]
if trainer.global_rank == 0:
    torch.save((confusion, images), out + "_confusion.pt")
trainer.fit(task, data)
"""


def run(folder: Path, count: int) -> tuple[Any, dict[str, Any]]:
    """What ``count`` processes counted, in all images and in each, and their gradients.

    Lightning's variables join the processes.
    """
    out = folder / str(count)
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    ranks = [
        processes.start(SCRIPT, count, out, rank, port, output=folder / f"{count}_{rank}.txt")
        for rank in range(count)
    ]
    for rank, process in enumerate(ranks):
        process.join(300)
        assert process.exitcode == 0, (folder / f"{count}_{rank}.txt").read_text()[-3000:]
    return torch.load(f"{out}_confusion.pt"), torch.load(f"{out}_gradients.pt")


def test_two_processes_are_one(tmp_path: Path) -> None:
    """With a teacher's losses and that of images without labels."""
    write_folder(tmp_path, unlabelled=5)
    ((confusion, images), gradients), ((of_two, images_of_two), shared) = (
        run(tmp_path, count) for count in (1, 2)
    )
    assert sum(counted for _, counted, _ in images).equal(counts_of(confusion))
    for image, of_it in zip(images, images_of_two, strict=True):
        assert image[0] == of_it[0]
        assert all(map(torch.equal, image[1:], of_it[1:]))
    assert confusion.sum() == 7 * 38 * 48  # each of the seven images once, without the ignored rows
    assert torch.equal(confusion, of_two)
    assert gradients.keys() == shared.keys()
    for name, gradient in gradients.items():
        torch.testing.assert_close(shared[name], gradient, rtol=1e-9, atol=1e-12, msg=name)
