"""Another augmentation in the last steps of a run, such as one that keeps whole images."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class LastSteps:
    """The augmentation of the last steps of a run.

    A network that is trained on crops at random scales sees things at other sizes than in the whole
    images that it is measured on. Some last steps at the size of the measurement adapt it (FixRes,
    arXiv 1906.06423, for classification). With
    :class:`~segformer.data.transforms.TrainTransform`, whole images of one size are crops of this
    size at the scale 1; larger images are cropped, and smaller ones padded.

    Args:
        transform: Makes a training sample of a fixed size, in place of the data's
            ``train_transform``.
        share: Share of the run's optimizer steps, above 0. With 1 these are all steps, which shows
            whether they fit into memory.

    Raises:
        ValueError: If ``share`` is not above 0 and at most 1.
    """

    transform: Callable[..., Any]
    share: float = 0.1

    def __post_init__(self) -> None:
        if not 0 < self.share <= 1:
            raise ValueError(
                f"last_steps.share={self.share}; give a number above 0, at most 1, such as 0.1"
            )

    def first_batch(self, trainer: Any, batches: int) -> int:
        """Returns the number of the first of these batches in a run.

        Args:
            trainer: The trainer of the run.
            batches: Number of batches in an epoch.
        """
        accumulated = trainer.accumulate_grad_batches
        steps = int(trainer.estimated_stepping_batches)
        first = steps - max(1, round(self.share * steps))
        epoch, in_epoch = divmod(first, -(-batches // accumulated))
        return epoch * batches + in_epoch * accumulated
