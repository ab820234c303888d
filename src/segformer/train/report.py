"""What a run leaves behind for a person: tables, curves, and pictures of what the network sees."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.utilities import rank_zero_only
from matplotlib.figure import Figure
from PIL import Image

from segformer.train.data import SegmentationData
from segformer.train.task import SegmentationTask
from segformer.visualize import indexed, overlay, sheet


class Report(Callback):
    """Keeps the history of a run and writes ``curves.png``, ``results.json``, ``predictions.png`` and ``model.safetensors``.

    Args:
        samples: rows of ``predictions.png``, spread evenly over the validation set.
        every_n_steps: steps between two points of the loss curve, each the mean of the steps before it.
    """

    def __init__(self, samples: int = 6, every_n_steps: int = 20) -> None:
        self.samples = samples
        self.every_n_steps = every_n_steps
        self.history: dict[str, list[tuple[int, float]]] = {"train/loss": [], "val/miou": []}
        self._losses: list[float] = []

    def state_dict(self) -> dict[str, Any]:
        return {"history": self.history}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.history = state_dict["history"]

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int) -> None:
        self._losses.append(float(outputs["loss"]))
        if len(self._losses) == self.every_n_steps:
            self.history["train/loss"].append((trainer.global_step, sum(self._losses) / len(self._losses)))
            self._losses.clear()

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.state.fn == "fit" and not trainer.sanity_checking:
            self.history["val/miou"].append((trainer.global_step, float(trainer.callback_metrics["val/miou"])))

    @rank_zero_only
    def write(self, task: SegmentationTask, data: SegmentationData, scores: dict[str, Any], folder: Path) -> None:
        """Write the four files into ``folder`` and print the table of the last split in ``scores``."""
        task.network.save(folder / "model.safetensors")
        results = {split: score.to_dict(data.classes) for split, score in scores.items()}
        (folder / "results.json").write_text(json.dumps(results, indent=2) + "\n")
        self.curves().savefig(folder / "curves.png", dpi=110)
        self.predictions(task, data).save(folder / "predictions.png")
        for split, score in scores.items():
            print(f"\n{split}\n{score.table(data.classes)}")
        print(f"\nweights      {folder / 'model.safetensors'}\nlook at      {folder / 'predictions.png'}\ncurves       {folder / 'curves.png'}")

    def curves(self) -> Figure:
        """Training loss and validation mIoU against the step."""
        figure = Figure((9, 3.6), layout="constrained")
        for place, (name, points) in enumerate(self.history.items()):
            axes = figure.add_subplot(1, 2, place + 1)
            steps, values = zip(*points, strict=True) if points else ((), ())
            axes.plot(steps, values, marker="." if len(points) < 40 else None)
            axes.set(xlabel="step", title=name)
            axes.grid(alpha=0.3)
        return figure

    def predictions(self, task: SegmentationTask, data: SegmentationData) -> Image.Image:
        """Image, label and prediction of evenly spread validation samples, side by side."""
        columns: dict[str, list[Image.Image]] = {"image": [], "label": [], "prediction": []}
        dataset = data.val_dataloader().dataset
        for index in np.linspace(0, len(data.val) - 1, min(self.samples, len(data.val))).round().astype(int):  # type: ignore[arg-type]
            image, label = data.val[int(index)]
            prediction = task.network.predict(dataset[int(index)][0][None].to(task.device))[0].cpu().numpy()
            photo = Image.fromarray(image.permute(1, 2, 0).numpy())
            columns["image"].append(photo)
            columns["label"].append(indexed(label.numpy(), data.classes).convert("RGB"))
            columns["prediction"].append(overlay(photo, prediction, data.classes, alpha=1.0))
        return sheet(columns, data.classes)
