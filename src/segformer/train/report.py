"""The report of a run: tables, curves, and pictures of labels and predictions."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.utilities import rank_zero_only
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor

from segformer.data.classes import Classes
from segformer.evaluation import normalize_for
from segformer.evaluation.metrics import Scores
from segformer.inference.pictures import colored, sheet, shown
from segformer.train.data import SegmentationData
from segformer.train.task import SegmentationTask


class Report(Callback):
    """Records the history of a run and writes its tables and pictures.

    Args:
        samples: Number of validation samples in ``predictions.png``, evenly spaced.
        every_n_batches: Number of batches whose mean loss is a point of the loss curve.
    """

    def __init__(self, samples: int = 6, every_n_batches: int = 20) -> None:
        self.samples = samples
        self.every_n_batches = every_n_batches
        self.history: dict[str, list[tuple[int, float]]] = {"train/loss": [], "val/miou": []}
        self._losses: list[Tensor] = []

    def state_dict(self) -> dict[str, Any]:
        return {"history": self.history}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.history = state_dict["history"]

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self._losses.append(outputs["loss"].detach())  # item() would wait for the device
        if len(self._losses) == self.every_n_batches:
            loss = torch.stack(self._losses).mean().item() * trainer.accumulate_grad_batches
            self.history["train/loss"].append((trainer.global_step, loss))
            self._losses.clear()

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.state.fn == "fit" and not trainer.sanity_checking:
            self.history["val/miou"].append(
                (trainer.global_step, float(trainer.callback_metrics["val/miou"]))
            )

    @rank_zero_only
    def write_scores(self, scores: dict[str, Scores], classes: Classes, folder: Path) -> None:
        """Writes ``results.json`` and ``confusion.png``; prints the table of the last split.

        Args:
            scores: Scores of each split, in the order of their measurement.
            classes: Names of the classes.
            folder: The run's folder.
        """
        results = {split: score.to_dict(classes) for split, score in scores.items()}
        (folder / "results.json").write_text(
            json.dumps(results, indent=2, allow_nan=False) + "\n", encoding="utf-8"
        )
        split = list(scores)[-1]
        confusion_picture(scores[split], classes).savefig(folder / "confusion.png", dpi=110)
        print(f"\n{split}\n{scores[split].table(classes)}")

    @rank_zero_only
    def draw(self, task: SegmentationTask, data: SegmentationData, folder: Path) -> None:
        """Writes ``curves.png`` and ``predictions.png``, and prints the paths of all results."""
        self.curves().savefig(folder / "curves.png", dpi=110)
        self.predictions(task, data).save(folder / "predictions.png")
        print(f"\nweights   {folder / 'model.safetensors'}")
        print(f"curves    {folder / 'curves.png'}")
        print(f"look at   {folder / 'predictions.png'}")

    def curves(self) -> Figure:
        """Returns the curves of training loss and validation mIoU over the steps."""
        figure = Figure((9, 3.6), layout="constrained")
        for place, (name, points) in enumerate(self.history.items()):
            axes = figure.add_subplot(1, 2, place + 1)
            steps, values = zip(*points, strict=True) if points else ((), ())
            axes.plot(steps, values, marker="." if len(points) < 40 else None)
            axes.set(xlabel="step", title=name)
            axes.grid(alpha=0.3)
        return figure

    def predictions(self, task: SegmentationTask, data: SegmentationData) -> Image.Image:
        """Returns image, label and prediction of validation samples, side by side.

        They are labelled by the task's protocol, as for the scores.
        """
        columns: dict[str, list[Image.Image]] = {"image": [], "label": [], "prediction": []}
        count = len(data.val)
        indices = np.linspace(0, count - 1, min(self.samples, count)).round().astype(int)
        for index in indices.tolist():
            image, label = data.val[index]
            images = normalize_for(task.network)(image)[None].to(next(task.network.parameters()))
            prediction = task.labels(images)[0].cpu()
            columns["image"].append(shown(image))
            for name, labels in (("label", label), ("prediction", prediction)):
                columns[name].append(colored(labels.numpy(), data.classes))
        return sheet(columns, data.classes)


def confusion_picture(scores: Scores, classes: Classes) -> Figure:
    """Returns the confusion matrix: a row has the predictions for one labelled class, in shares."""
    shares = scores.confusion / scores.confusion.sum(1, keepdim=True).clamp_min(1)
    names = classes.of_labels().names
    side = max(5.0, min(0.32 * len(names) + 2.5, 30.0))
    figure = Figure((side + 0.8, side), layout="constrained")
    axes = figure.add_subplot()
    image = axes.imshow(shares.numpy(force=True), vmin=0, vmax=1, cmap="viridis")
    axes.set_xticks(range(len(names)), names, rotation=90)
    axes.set_yticks(range(len(names)), names)
    axes.tick_params(labelsize=8)
    axes.set(xlabel="predicted", ylabel="labelled")
    if len(names) <= 30:
        _write_percentages(axes, shares)
    figure.colorbar(image, shrink=0.8, label="share of the labelled pixels")
    return figure


def _write_percentages(axes: Any, shares: Tensor) -> None:
    """Writes each share of at least 1 % into its cell of the confusion matrix."""
    for row, column in (shares >= 0.01).nonzero().tolist():
        share = float(shares[row, column])
        color = "w" if share < 0.6 else "k"
        text = {"ha": "center", "va": "center", "fontsize": 7, "color": color}
        axes.text(column, row, f"{100 * share:.0f}", **text)
