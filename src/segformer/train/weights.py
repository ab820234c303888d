"""The weights that a run saves and measures: the best ones of training, or given ones."""

from __future__ import annotations

from pathlib import Path
from typing import Any, TypeVar

import torch
from lightning import Callback
from lightning.pytorch.callbacks import StochasticWeightAveraging, WeightAveraging
from lightning.pytorch.utilities.rank_zero import rank_zero_info, rank_zero_warn
from torch import nn

from segformer.data.classes import Classes
from segformer.deploy import load_model
from segformer.models import SegmentationModel
from segformer.networks.initialization import init_weights
from segformer.train.base import ResumableTask
from segformer.train.resume import difference

C = TypeVar("C", bound=Callback)


def find_callback(trainer: Any, kind: type[C]) -> C | None:
    """Returns a trainer's first callback of a class, None if it has none."""
    return next((callback for callback in trainer.callbacks if isinstance(callback, kind)), None)


def drop_callbacks(trainer: Any, kind: type[Callback]) -> None:
    """Removes a trainer's callbacks of a class."""
    trainer.callbacks = [c for c in trainer.callbacks if not isinstance(c, kind)]


def load_best(task: ResumableTask, trainer: Any, monitor: str | None) -> None:
    """Loads the best checkpoint of a finished run; a run without validation keeps its last weights.

    The best is that of ``monitor``, a score of validation, None if there is none.

    If weights are averaged during the run, the checkpoints contain the averages. Lightning's
    StochasticWeightAveraging is different: no checkpoint contains its average, so that the final
    weights are kept.
    """
    if find_callback(trainer, StochasticWeightAveraging):
        return
    # The network already has the averaged weights; the callback would swap them out again.
    drop_callbacks(trainer, WeightAveraging)
    # The command line's own comes after those of the user.
    checkpoint = next(c for c in reversed(trainer.checkpoint_callbacks) if c.monitor == monitor)
    if monitor and checkpoint.best_model_path:
        load_checkpoint(task, Path(checkpoint.best_model_path))


def load_checkpoint(task: Any, checkpoint: Path) -> None:
    """Loads the network's weights from a run's checkpoint, and nothing that only training needs.

    Raises:
        ValueError: If the checkpoint is of another network.
    """
    state = torch.load(checkpoint, map_location="cpu", weights_only=True)["state_dict"]
    prefix = "network."
    network = {key[len(prefix) :]: x for key, x in state.items() if key.startswith(prefix)}
    if other := difference(network, task.network.state_dict()):
        raise ValueError(
            f"the checkpoint {str(checkpoint)!r} is of another network than the config's: {other}"
        )
    task.network.load_state_dict(network)


def load_network(source: str, classes: Classes) -> Any:
    """Returns weights of any layout or an exported file, to measure it on data of these classes.

    The weights are float32; the trainer's precision is that of the measurement.

    Raises:
        ValueError: If the network has other classes.
    """
    network = load_model(source, "cpu")  # the trainer moves weights to its device
    if isinstance(network, nn.Module):
        network.float()
    check_classes(classes, network.classes, repr(source))
    return network


def check_classes(ours: Classes, theirs: Classes, source: str) -> None:
    """Checks that a network's classes are those of the data, in the same order.

    Classes without names of their own may be any. Where a name has no other place in the other
    classes, there is only a warning: the same class may be written in two ways.

    Args:
        ours: The classes of the data.
        theirs: The classes of the network.
        source: What the network is, for messages.

    Raises:
        ValueError: If the numbers differ, or a name has another index.
    """
    if len(ours) != len(theirs):
        first = ", ".join(theirs.names[:3])
        raise ValueError(
            f"{source} has {len(theirs)} classes ({first}{', …' if len(theirs) > 3 else ''}), the "
            f"data have {len(ours)}; give a network for these classes"
        )
    if Classes.unnamed(len(ours)).names in (ours.names, theirs.names):
        return
    pairs = enumerate(zip(ours.names, theirs.names, strict=True))
    differing = [(k, own, other) for k, (own, other) in pairs if own != other]
    for k, own, other in differing:
        if own in theirs.names or other in ours.names:
            raise ValueError(
                f"class {k} is {own!r} in the data and {other!r} in {source}; give a network with "
                "these classes in the same order"
            )
    if differing:
        shown = ", ".join(f"{own!r} and {other!r}" for _, own, other in differing[:5])
        rank_zero_warn(
            f"{len(differing)} classes have other names in the data than in {source} ({shown}); "
            "each such pair is taken for one class"
        )


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
