"""The weights that a run saves and measures: the best ones of training, or given ones."""

from __future__ import annotations

from pathlib import Path
from typing import Any, TypeVar

import torch
from lightning import Callback
from lightning.pytorch.callbacks import StochasticWeightAveraging, WeightAveraging
from lightning.pytorch.utilities.rank_zero import rank_zero_info
from torch import nn

from segformer.data.classes import Classes
from segformer.deploy import load_model
from segformer.models import SegmentationModel
from segformer.networks.initialization import init_weights
from segformer.train.base import ResumableTask
from segformer.train.resume import Resumable

C = TypeVar("C", bound=Callback)


def find_callback(trainer: Any, kind: type[C]) -> C | None:
    """Returns a trainer's first callback of a class, None if it has none."""
    return next((callback for callback in trainer.callbacks if isinstance(callback, kind)), None)


def drop_callbacks(trainer: Any, kind: type[Callback]) -> None:
    """Removes a trainer's callbacks of a class."""
    trainer.callbacks = [c for c in trainer.callbacks if not isinstance(c, kind)]


def load_best(task: ResumableTask, trainer: Any) -> None:
    """Loads the best checkpoint of a finished run; a run without validation keeps its last weights.

    If weights are averaged during the run, the checkpoints contain the averages. Lightning's
    StochasticWeightAveraging is different: no checkpoint contains its average, so that the final
    weights are kept.
    """
    if find_callback(trainer, StochasticWeightAveraging):
        return
    # The network already has the averaged weights; the callback would swap them out again.
    drop_callbacks(trainer, WeightAveraging)
    checkpoint = next(c for c in trainer.checkpoint_callbacks if not isinstance(c, Resumable))
    if checkpoint.monitor and checkpoint.best_model_path:
        load_checkpoint(task, Path(checkpoint.best_model_path))


def load_checkpoint(task: ResumableTask, checkpoint: Path) -> None:
    """Loads the weights of a run's checkpoint.

    Raises:
        ValueError: If the checkpoint is of another network.
    """
    state = torch.load(checkpoint, map_location="cpu", weights_only=True)["state_dict"]
    try:
        task.load_state_dict(state)
    except RuntimeError as error:
        raise ValueError(
            f"the checkpoint {str(checkpoint)!r} is of another network than the config's: {error}"
        ) from error


def load_network(source: str, num_classes: int) -> Any:
    """Returns weights of any layout or an exported file, to measure it on data of ``num_classes``.

    Raises:
        ValueError: If the network has another number of classes.
    """
    network = load_model(source, "cpu")  # the trainer moves weights to its device
    classes = max(2, network.num_classes)  # one logit separates two classes
    if classes != num_classes:
        raise ValueError(
            f"{source!r} has {classes} classes, the data have {num_classes}; give weights for "
            "these classes"
        )
    return network


@torch.no_grad()
def match_classes(network: SegmentationModel, classes: Classes) -> None:
    """Brings the rows of a classifier that starts from weights into the order of the classes.

    Weights may have as many classes as the data, in another order. Rows then follow the names, and
    those of other names are new and random. If no name has another index, nothing changes: the
    names may only be written in another way.
    """
    known, names = list(network.classes.names), list(classes.names)
    layer = getattr(network.decode_head, "classifier", None)
    moved = [k for k, name in enumerate(names) if name in known and known.index(name) != k]
    if not moved or not isinstance(layer, nn.Conv2d) or layer.out_channels != len(names):
        return
    old = {key: tensor.clone() for key, tensor in layer.state_dict().items()}
    init_weights(layer)
    for key, tensor in layer.state_dict().items():
        for k, name in enumerate(names):
            if name in known:
                tensor[k] = old[key][known.index(name)]
    new = [name for name in names if name not in known]
    rank_zero_info(
        "the weights have the classes in another order: the classifier's rows follow the names"
        + (f"; new and random: {', '.join(new)}" if new else "")
    )
