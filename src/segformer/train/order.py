"""Which samples a batch holds, and with which random numbers: functions of the seed and the batch's number in the run.

That number is the one thing to save: Lightning counts the batches that training has taken, and its checkpoints hold the
count. An interrupted run goes on exactly as if it had not been, with any number of loader processes.
"""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, Sampler


def run_seed() -> int:
    """The seed of the run, as ``seed_everything`` leaves it for all of its processes."""
    return int(os.environ.get("PL_GLOBAL_SEED", 0))


def mixed(*numbers: int) -> int:
    """A seed that depends on all of the numbers."""
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0] >> np.uint64(1))


@dataclass(frozen=True)
class Draw:
    """One sample of one epoch.

    Args:
        index: of the sample in its data set.
        seed: of its augmentation's random numbers.
    """

    index: int
    seed: int


class Seeded(Dataset):
    """A data set whose samples are asked for by :class:`Draw`, and made with its random numbers."""

    def __init__(self, dataset: Any) -> None:
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, draw: Draw) -> Any:
        others = (
            random.getstate(),
            np.random.get_state(),
        )  # a transform of the user's may draw from these
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(draw.seed)
            random.seed(draw.seed)
            np.random.seed(draw.seed % 2**32)
            try:
                return self.dataset[draw.index]
            finally:
                random.setstate(others[0])
                np.random.set_state(others[1])


class Batches(Sampler[list[Draw]]):
    """An epoch's batches for one process of several, each sample drawn once; what fills no batch for all of them is left for other epochs.

    Args:
        length: samples there are.
        batch_size: samples a batch.
        seed: of the run.
        rank: this process's number of ``world_size``.
        world_size: processes that share an epoch.
        start: epoch and batch to begin with, asked for each time the batches are iterated.
    """

    def __init__(
        self,
        length: int,
        batch_size: int,
        seed: int,
        rank: int = 0,
        world_size: int = 1,
        start: Callable[[], tuple[int, int]] = lambda: (0, 0),
    ) -> None:
        self.length, self.batch_size, self.seed = length, batch_size, seed
        self.rank, self.world_size, self.start = rank, world_size, start
        self._known = -1, torch.empty(0)  # the last epoch that was asked for, and its order

    def __len__(self) -> int:
        return self.length // (self.batch_size * self.world_size)

    def batch(self, epoch: int, number: int) -> list[Draw]:
        """The batch of a number, without those before it."""
        place = (number * self.world_size + self.rank) * self.batch_size
        return [
            Draw(index, mixed(self.seed, epoch, index))
            for index in self._order(epoch)[place : place + self.batch_size].tolist()
        ]

    def _order(self, epoch: int) -> torch.Tensor:
        if epoch != self._known[0]:
            self._known = (
                epoch,
                torch.randperm(
                    self.length, generator=torch.Generator().manual_seed(mixed(self.seed, epoch))
                ),
            )
        return self._known[1]

    def __iter__(self) -> Iterator[list[Draw]]:
        epoch, first = self.start()
        return (self.batch(epoch, number) for number in range(first, len(self)))


class ResumableLoader(DataLoader):
    """A loader that starts when its first batch is asked for: a resumed run has read its place in the data by then.

    Lightning makes the iterator before that, where the schedule needs the length of an epoch (``max_epochs``).
    """

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        yield from super().__iter__()

    def state_dict(self) -> dict[str, Any]:
        """Nothing: the place is Lightning's own count of batches."""
        return {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Nothing is to be restored."""


class Share(Sampler[int]):
    """The samples that one process of several measures, each by one process only."""

    def __init__(self, length: int, rank: int, world_size: int) -> None:
        self.indices = range(rank, length, world_size)

    def __len__(self) -> int:
        return len(self.indices)

    def __iter__(self) -> Iterator[int]:
        return iter(self.indices)
