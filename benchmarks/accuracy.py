"""Time to accuracy: B0 on CamVid from the same random weights.

One contestant is this package, the other is transformers' network in a plain PyTorch loop. This
package runs as ``segformer fit`` does, the allocator's setting included; the loop uses glibc's
own, except with ``--allocators retaining``. Batches, augmentation, losses, parameter groups,
optimizer, schedule and averaging are the same. The networks differ in three ways: transformers
drops single values before the classifier, SegFormer drops channels; its keys and values are two
matrices, which Muon orthogonalises one by one; and its norms' epsilon is 1e-5 everywhere.
"""

from __future__ import annotations

import itertools
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch.nn.functional as F
from lightning.pytorch.callbacks import Callback, EMAWeightAveraging
from torch.optim.swa_utils import AveragedModel, get_ema_avg_fn

from segformer.data.classes import IGNORE_INDEX
from segformer.evaluation import evaluate
from segformer.ops.memory import keep_large_blocks
from segformer.train.lightning_cli import SegmentationCLI
from segformer.train.optim import apply_lr_mult, param_groups

CONFIG = Path(__file__).with_name("present.yaml")
STEPS, EVERY = 600, 75  # optimizer steps of a run, and between two of its validations
DECAY = 0.99  # of the validated, averaged weights; present.yaml's 0.998 is for longer runs


class Clock(Callback):
    """Seconds of training, without validation, and the mIoU that they reached."""

    def __init__(self) -> None:
        self.points: list[dict[str, float]] = []
        self.seconds, self.running_since = 0.0, 0.0

    def go(self) -> None:
        self.running_since = time.perf_counter()

    def stop(self) -> None:
        self.seconds += time.perf_counter() - self.running_since

    def note(self, step: int, miou: float) -> None:
        self.points.append({"step": step, "seconds": self.seconds, "miou": miou})

    def on_train_start(self, *_: Any) -> None:
        self.go()

    def on_validation_start(self, *_: Any) -> None:
        self.stop()

    def on_validation_end(self, trainer: Any, *_: Any) -> None:
        self.note(trainer.global_step, float(trainer.callback_metrics["val/miou"]))
        self.go()


def run(who: str, root: str, seed: int) -> list[dict[str, float]]:
    """One training run, as points of step, seconds and validation mIoU."""
    with tempfile.TemporaryDirectory() as folder:
        options = {
            "config": CONFIG,
            "seed_everything": seed,
            "data.root": root,
            "trainer.max_steps": STEPS,
            "trainer.val_check_interval": EVERY,
            "trainer.num_sanity_val_steps": 0,
            "trainer.callbacks": "[]",
            "trainer.logger.init_args.save_dir": folder,
        }
        recipe = SegmentationCLI(
            [f"--{name}={value}" for name, value in options.items()], run=False
        )
        clock = Clock()
        {"segformer": _segformer, "transformers": _transformers}[who](recipe, clock, Path(folder))
        return clock.points


def _segformer(recipe: SegmentationCLI, clock: Clock, folder: Path) -> None:
    keep_large_blocks()  # as `segformer fit` does
    recipe.trainer.callbacks += [EMAWeightAveraging(decay=DECAY), clock]
    recipe.trainer.fit(recipe.model, recipe.datamodule)


def _transformers(recipe: SegmentationCLI, clock: Clock, folder: Path) -> None:
    """A plain loop, with the logits at full size."""
    from transformers import SegformerForSemanticSegmentation

    task, data = recipe.model, recipe.datamodule
    task.network.save(folder / "start", layout="huggingface")
    network = SegformerForSemanticSegmentation.from_pretrained(folder / "start").train()
    parts: Any = SimpleNamespace(backbone=network.segformer, decode_head=network.decode_head)
    optimizer = apply_lr_mult(task.make_optimizer(param_groups(parts, task.head_lr_mult)))
    scheduler = task.make_scheduler(optimizer, STEPS)
    average = AveragedModel(network, avg_fn=get_ema_avg_fn(DECAY), use_buffers=True)
    average.module.eval()
    loader = data.train_dataloader()

    def batches() -> Any:
        for epoch in itertools.count():
            data.batches.start = lambda epoch=epoch: (epoch, 0)
            yield from loader

    clock.go()
    for step, (images, target) in zip(range(1, STEPS + 1), batches(), strict=False):
        logits = F.interpolate(
            network(images).logits, size=target.shape[-2:], mode="bilinear", align_corners=False
        )
        loss = F.cross_entropy(logits, target.long(), task.loss.weight, ignore_index=IGNORE_INDEX)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        scheduler.step()
        average.update_parameters(network)
        if step % EVERY == 0:
            clock.stop()
            clock.note(step, evaluate(lambda images: average.module(images).logits, data.val).miou)
            clock.go()
