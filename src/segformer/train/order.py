"""The order of the training samples, and the seeds of their augmentation.

Both are functions of the run's seed and of the batch's number in the run. Lightning counts the
batches of a run, and its checkpoints contain the count. A resumed run therefore gets the same
batches as an uninterrupted one, with any number of loader processes.
"""

from __future__ import annotations

import os
import random
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from segformer.data.classes import Classes
from segformer.data.mixing import Mixing

Order = Callable[..., Tensor]  # the indices of an epoch's samples, from generator=torch.Generator


def run_seed() -> int:
    """Returns the seed of the run, which ``seed_everything`` sets for all processes."""
    return int(os.environ.get("PL_GLOBAL_SEED", 0))


def combined_seed(*numbers: int) -> int:
    """Returns a seed that depends on all of the numbers."""
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0] >> np.uint64(1))


@dataclass(frozen=True)
class Draw:
    """One sample of one epoch.

    Args:
        index: Index of the sample in its data set.
        seed: Seed of its augmentation.
        other: Index of the sample that it may be mixed with.
    """

    index: int
    seed: int
    other: int


class Seeded(Dataset):
    """A data set whose index is a :class:`Draw`, with which the random numbers are seeded."""

    def __init__(self, dataset: Any) -> None:
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, draw: Draw) -> Any:
        # A user's transform may draw from any of the three generators.
        python, numpy = random.getstate(), np.random.get_state()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(draw.seed)
            random.seed(draw.seed)
            np.random.seed(draw.seed % 2**32)
            try:
                return self.sample(draw)
            finally:
                random.setstate(python)
                np.random.set_state(numpy)

    def sample(self, draw: Draw) -> Any:
        """Returns the sample of a draw; the generators have its seed."""
        return self.dataset[draw.index]


class Mixed(Seeded):
    """Samples of which some are mixed with another one.

    Args:
        dataset: Augmented samples, image (C, H, W) and label map (H, W), of one size.
        mixing: How they are mixed.
        classes: The classes of the label maps.
    """

    def __init__(self, dataset: Any, mixing: Mixing, classes: Classes) -> None:
        super().__init__(dataset)
        self.mixing, self.classes = mixing, classes

    def sample(self, draw: Draw) -> tuple[Tensor, Tensor]:
        sample: tuple[Tensor, Tensor] = super().sample(draw)
        if torch.rand(()) >= self.mixing.p:
            return sample
        return self.mixing(sample, self.dataset[draw.other], self.classes)


class Batches(Sampler[list[Draw]]):
    """The batches of an epoch for one of several processes, in random order.

    Samples that do not fill a batch for each process are left out, different ones in each epoch.

    Args:
        length: Number of samples.
        batch_size: Number of samples in a batch.
        seed: Seed of the run.
        rank: Index of this process.
        world_size: Number of processes.
        start: Returns the epoch and the batch to start from; called for each iteration.
        order: Returns the indices (``length``,) of an epoch's samples; by default each sample's
            once.
    """

    def __init__(
        self,
        length: int,
        batch_size: int,
        seed: int,
        rank: int = 0,
        world_size: int = 1,
        start: Callable[[], tuple[int, int]] = lambda: (0, 0),
        order: Order | None = None,
    ) -> None:
        self.length, self.batch_size, self.seed = length, batch_size, seed
        self.rank, self.world_size, self.start = rank, world_size, start
        self.order = order or partial(torch.randperm, length)
        self._latest: tuple[int, list[int], list[int]] = -1, [], []  # an epoch and its order

    def __len__(self) -> int:
        return self.length // (self.batch_size * self.world_size)

    def batch(self, epoch: int, number: int) -> list[Draw]:
        """Returns a batch of an epoch by its number."""
        first = (number * self.world_size + self.rank) * self.batch_size
        order, times = self._order(epoch)
        return [
            Draw(
                order[place],
                combined_seed(self.seed, epoch, order[place], times[place]),
                _partner(order, place),
            )
            for place in range(first, first + self.batch_size)
        ]

    def _order(self, epoch: int) -> tuple[list[int], list[int]]:
        """Returns the indices of an epoch's samples, and how often each occurred before."""
        if epoch != self._latest[0]:
            generator = torch.Generator().manual_seed(combined_seed(self.seed, epoch))
            order = self.order(generator=generator).tolist()
            before: Counter[int] = Counter()
            times = []
            for index in order:
                times.append(before[index])
                before[index] += 1
            self._latest = epoch, order, times
        return self._latest[1:]

    def __iter__(self) -> Iterator[list[Draw]]:
        epoch, first = self.start()
        return (self.batch(epoch, number) for number in range(first, len(self)))


def _partner(order: list[int], place: int) -> int:
    """Returns the sample that is mixed into that of a place: the next other one of an epoch.

    It is the next one of all processes, so that their number has no effect on the pairs.
    """
    following = (order[(place + k) % len(order)] for k in range(1, len(order)))
    return next((index for index in following if index != order[place]), order[place])


class TwoDatasets(Dataset):
    """Two data sets, whose index is 0 or 1 for one of them, and its index there."""

    def __init__(self, *datasets: Any) -> None:
        self.datasets = datasets

    def __len__(self) -> int:
        return sum(map(len, self.datasets))

    def __getitem__(self, place: tuple[int, Any]) -> Any:
        which, index = place
        return self.datasets[which][index]


class PhasedBatches(Sampler[list[tuple[int, Draw]]]):
    """The batches of an epoch, each draw with 0, or with 1 in the last steps of the run.

    Args:
        batches: The batches.
        remaining: Returns the number of batches from the next one to the last steps; called for
            each iteration.
    """

    def __init__(self, batches: Batches, remaining: Callable[[], float]) -> None:
        self.batches, self.remaining = batches, remaining
        self.start = batches.start

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[list[tuple[int, Draw]]]:
        remaining = self.remaining()
        for taken, draws in enumerate(self.batches):
            phase = int(taken >= remaining)
            yield [(phase, draw) for draw in draws]


class InterleavedBatches(Sampler[list[tuple[int, Any]]]):
    """Batches of the first of two data sets, each followed by a batch of the second.

    An epoch is one of the first data set. The second one's batches go on from epoch to epoch.

    Args:
        first: The first one's batches, with a method ``start`` as :class:`Batches` has it.
        second: The second one's batches.
    """

    def __init__(self, first: Any, second: Batches) -> None:
        self.first, self.second = first, second

    def __len__(self) -> int:
        return len(self.first)

    def __iter__(self) -> Iterator[list[tuple[int, Any]]]:
        epoch, start = self.first.start()
        for taken, batch in enumerate(self.first, epoch * len(self) + start):
            both = batch, self.second.batch(*divmod(taken, len(self.second)))
            yield [(which, draw) for which, draws in enumerate(both) for draw in draws]


class ResumableLoader(DataLoader):
    """A data loader that creates its iterator only when the first batch is requested.

    With ``max_epochs``, the schedule needs the length of an epoch, and Lightning calls iter()
    before it restores the number of batches of a resumed run. The order depends on that number.
    """

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        yield from super().__iter__()

    def state_dict(self) -> dict[str, Any]:
        """Returns nothing; Lightning saves the number of batches."""
        return {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Does nothing."""


class Share(Sampler[int]):
    """The samples that one of several processes measures; no two processes share one."""

    def __init__(self, length: int, rank: int, world_size: int) -> None:
        self.indices = range(rank, length, world_size)

    def __len__(self) -> int:
        return len(self.indices)

    def __iter__(self) -> Iterator[int]:
        return iter(self.indices)
