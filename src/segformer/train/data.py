"""Data sets as Lightning data modules."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from lightning import LightningDataModule
from lightning.pytorch.utilities.rank_zero import rank_zero_info
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, default_collate
from torchvision import tv_tensors

from segformer.data.classes import Classes
from segformer.data.datasets import SAMPLED_PAIRS, DataError, FolderDataset
from segformer.data.labels import Coding, check_labels, label_type
from segformer.data.normalization import IMAGENET, Normalization
from segformer.data.transforms import Normalize, normalizers
from segformer.train.order import Batches, ResumableLoader, Seeded, Share, run_seed

logger = logging.getLogger(__name__)


class Transformed(Dataset):
    """A data set's samples, their labels checked, behind a transform."""

    def __init__(self, dataset: Any, transform: Callable[..., Any]) -> None:
        self.dataset = dataset
        self.transform = transform

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> Any:
        image, label = self.dataset[index]
        check_labels(
            label, len(self.dataset.classes), f"label map {index} of {type(self.dataset).__name__}"
        )
        label = label.to(label_type(len(self.dataset.classes)))
        return self.transform(
            tv_tensors.Image(image), tv_tensors.Mask(label)
        )  # a plain label would not be cropped with its image


def by_size(samples: Sequence[tuple[Tensor, Tensor]]) -> list[Any]:
    """Batches of images (B, 3, H, W) and labels (B, H, W), one for each size among the samples."""
    groups: dict[torch.Size, list[tuple[Tensor, Tensor]]] = {}
    for image, label in samples:
        groups.setdefault(image.shape, []).append((image, label))
    return [default_collate(group) for group in groups.values()]


class SegmentationData(LightningDataModule):
    """Training, validation and test sets of one list of classes.

    Args:
        train: samples (image uint8 (3, H, W), label (H, W) of integers), with their ``classes``.
        val: samples measured while training and at its end.
        train_transform: makes a training sample of a fixed size of one of any.
        test: samples measured once, at the end.
        batch_size: training images a step and device.
        val_batch_size: images at once in validation and test, which run at the images' own size:
            those of a batch that have one size run together.
        num_workers: loader processes for training.
    """

    def __init__(
        self,
        train: Dataset,
        val: Dataset,
        train_transform: Callable[..., Any],
        test: Dataset | None = None,
        batch_size: int = 8,
        val_batch_size: int = 1,
        num_workers: int = 2,
    ) -> None:
        super().__init__()
        self.train: Any = train
        self.val: Any = val
        self.test: Any = test
        self.train_transform = train_transform
        self.normalization = IMAGENET
        self.batch_size, self.val_batch_size, self.num_workers = (
            batch_size,
            val_batch_size,
            num_workers,
        )

    @property
    def classes(self) -> Classes:
        return self.train.classes

    @property
    def num_classes(self) -> int:
        return len(self.classes)

    def normalize_as(self, normalization: Normalization) -> None:
        """Normalise the images of all splits so: a network's task says how, before a run.

        Every :class:`~segformer.data.transforms.Normalize` in the training transform is set; a
        transform without one is left as it is, which is logged.
        """
        parts = list(normalizers(self.train_transform))
        if not parts and normalization != IMAGENET:
            logger.warning(
                "the network takes images normalised by %s, and the training transform has no "
                "segformer.data.transforms.Normalize to set; see that it does the same",
                normalization,
            )
        for part in parts:
            part.normalization = normalization
        self.normalization = normalization

    def prove(self) -> None:
        """Look at all files of training and validation before a run does.

        Headers of all are read, and the pixels of 64 pairs of each split. Classes that
        occur in none of these are logged. Data sets that are no
        :class:`~segformer.data.datasets.FolderDataset` are not looked at.

        Raises:
            DataError: If a file is not read, or a label map's meaning is not plain.
        """
        faults = []
        for split, dataset in (("training", self.train), ("validation", self.val)):
            if not isinstance(dataset, FolderDataset):
                continue
            try:
                absent = dataset.prove()
            except DataError as error:
                faults += error.faults
                continue
            if absent:
                more = f" and {len(absent) - 10} more" if len(absent) > 10 else ""
                looked = f"{min(SAMPLED_PAIRS, len(dataset))} of {len(dataset)} {split} label maps"
                rank_zero_info(f"{looked} were read: none holds {', '.join(absent[:10])}{more}")
        if faults:
            raise DataError(faults, self)

    def train_dataloader(self) -> DataLoader:
        rank, world_size = self._place
        if len(self.train) < self.batch_size * world_size:
            raise ValueError(
                f"{len(self.train)} training images make no batch of {self.batch_size}"
                + (f" on each of {world_size} devices" if world_size > 1 else "")
                + f"; set data.batch_size to {len(self.train) // world_size} or less"
            )
        self.batches = Batches(
            len(self.train), self.batch_size, run_seed(), rank, world_size, self._start
        )
        return ResumableLoader(
            Seeded(Transformed(self.train, self.train_transform)),
            batch_sampler=self.batches,
            num_workers=self.num_workers,
            persistent_workers=self.num_workers > 0,
            pin_memory=torch.cuda.is_available(),
        )

    @property
    def _place(self) -> tuple[int, int]:
        """This process's number, of how many."""
        return (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)

    def _start(self) -> tuple[int, int]:
        """The epoch and batch that come next."""
        return (
            self._epoch_and_batch(self.trainer.fit_loop.total_batch_idx + 1)
            if self.trainer
            else (0, 0)
        )

    def _epoch_and_batch(self, taken: int) -> tuple[int, int]:
        """Where the batch is that training takes after so many others; ``overfit_batches`` repeats the same few."""
        trainer: Any = self.trainer
        epoch, number = divmod(taken, min(len(self.batches), trainer.num_training_batches))
        return (0 if trainer.overfit_batches else epoch), number

    def state_dict(self) -> dict[str, Any]:
        """What the order of the batches depends on, besides how many were taken."""
        trainer: Any = self.trainer
        return {
            "seed_everything": run_seed(),
            "training images": len(self.train),
            "images a step of all devices": self.batch_size * trainer.world_size,
            "trainer.limit_train_batches": trainer.limit_train_batches,
            "trainer.overfit_batches": trainer.overfit_batches,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Refuse to go on in another order.

        Raises:
            ValueError: when the run that is resumed had another seed, data or batch size.
        """
        if self.trainer is None or self.trainer.state.fn != "fit":
            return
        changed = [
            f"{name} was {state_dict[name]} and is {now}"
            for name, now in self.state_dict().items()
            if name in state_dict and state_dict[name] != now
        ]
        if changed:
            raise ValueError(
                f"the run cannot be resumed with other batches ({'; '.join(changed)}); set what it had, or start a new run "
                "from its weights with --model.network segformer.Pretrained --model.network.source CHECKPOINT"
            )

    def names_of(self, taken: int) -> list[str]:
        """The files of the batch that this process takes after so many others, or the samples' indices."""
        pairs = getattr(self.train, "pairs", None)
        draws = self.batches.batch(*self._epoch_and_batch(taken))
        return [str(pairs[draw.index][0]) if pairs else f"sample {draw.index}" for draw in draws]

    def val_dataloader(self) -> DataLoader:
        return self._whole_images(self.val)

    def test_dataloader(self) -> DataLoader:
        if self.test is None:
            raise ValueError(
                "these data have no test split; run `segformer validate` in place of `segformer test`"
            )
        return self._whole_images(self.test)

    def _whole_images(self, dataset: Dataset) -> DataLoader:
        sampler = Share(len(dataset), *self._place)  # type: ignore[arg-type]
        return DataLoader(
            Transformed(dataset, Normalize(self.normalization)),
            self.val_batch_size,
            sampler=sampler,
            num_workers=min(1, self.num_workers),
            collate_fn=by_size,
        )


class StandardData(SegmentationData):
    """A data set of the papers.

    Args:
        dataset: its class in :mod:`segformer.data.standard`.
        root: its folder.
        train_split: its name for the training images.
        val_split: its name for the validation images.
        train_transform: see :class:`SegmentationData`, as the others.
    """

    def __init__(
        self,
        dataset: type[FolderDataset],
        root: str | os.PathLike[str],
        train_split: str,
        val_split: str,
        train_transform: Callable[..., Any],
        batch_size: int = 8,
        val_batch_size: int = 1,
        num_workers: int = 2,
    ) -> None:
        make: Any = dataset
        faults: list[str] = []
        train, val = (_collecting(faults, make, root, name) for name in (train_split, val_split))
        super().__init__(train, val, train_transform, None, batch_size, val_batch_size, num_workers)
        if faults:
            raise DataError(faults, self)


SPLIT = "{split}"  # in a pattern, the place of the split's name
SPLIT_NAMES = {
    "train": ("train", "training"),
    "val": ("val", "valid", "validation"),
    "test": ("test", "testing"),
}


class FolderData(SegmentationData):
    """A folder ``root`` with ``images/{split}`` beside ``labels/{split}``, for the splits train, val and, where it is there, test.

    The folders of a split may also be called training; valid or validation; testing.

    Args:
        root: the folder.
        classes: names and colours.
        train_transform: see :class:`SegmentationData`.
        ignore_index: the label maps' value for no class; by default 255, and 65535 for more than
            255 classes.
        label_map: the class of each value of a label map, see :class:`~segformer.data.datasets.FolderDataset`.
        images: pattern of the folders of images below ``root``.
        labels: pattern of the folders of label maps below ``root``; it may be that of the images.
        image_suffix: what image names end in that their label maps' do not, see
            :class:`~segformer.data.datasets.FolderDataset`.
        label_suffix: the same of label maps, such as ``_mask``.
        palette: what values of palette files mean, where their palettes do not prove it: ``index``
            or ``color``.
        batch_size: see :class:`SegmentationData`, as the others.

    Raises:
        FileNotFoundError: when a folder is missing or empty.
        ValueError: when a pattern holds no ``{split}``, a split has two folders, or images and
            label maps have no pair.
    """

    def __init__(
        self,
        root: str | os.PathLike[str],
        classes: Classes,
        train_transform: Callable[..., Any],
        ignore_index: int | None = None,
        label_map: dict[int, int] | None = None,
        images: str = "images/{split}",
        labels: str = "labels/{split}",
        batch_size: int = 8,
        val_batch_size: int = 1,
        num_workers: int = 2,
        image_suffix: str = "",
        label_suffix: str = "",
        palette: Coding | None = None,
    ) -> None:
        for name, pattern in (("images", images), ("labels", labels)):
            if SPLIT not in pattern:
                raise ValueError(
                    f"{name}={pattern!r} holds no {SPLIT}: all splits would be the same files; write it where they differ"
                )

        def split(name: str) -> FolderDataset:
            return FolderDataset(
                Path(root, images.replace(SPLIT, name)),
                Path(root, labels.replace(SPLIT, name)),
                classes,
                ignore_index,
                label_map,
                image_suffix,
                label_suffix,
                palette=palette,
            )

        names = {kind: _split_name(Path(root), images, kind) for kind in SPLIT_NAMES}
        faults: list[str] = []
        train, val = (_collecting(faults, split, names[kind] or kind) for kind in ("train", "val"))
        test = _test_split(faults, split, names["test"]) if names["test"] else None
        super().__init__(train, val, train_transform, test, batch_size, val_batch_size, num_workers)
        if faults:
            raise DataError(faults, self)


def _collecting(
    faults: list[str], make: Callable[..., FolderDataset], *arguments: Any
) -> FolderDataset:
    """A data set of what is whole; what is not joins the faults."""
    try:
        return make(*arguments)
    except DataError as error:
        faults += error.faults
        return error.found


def _split_name(root: Path, images: str, kind: str) -> str | None:
    """The name that a split's folder of images has, None where there is no such folder.

    Raises:
        ValueError: If there are two.
    """
    folder_of = {name: Path(root, images.replace(SPLIT, name)) for name in SPLIT_NAMES[kind]}
    found = [name for name, folder in folder_of.items() if folder.is_dir()]
    if len(found) > 1:
        folders = " and ".join(str(folder_of[name]) for name in found)
        raise ValueError(f"{kind} images are in {folders}; remove one")
    if found and found[0] != kind:
        rank_zero_info(f"{str(folder_of[found[0]])!r} is taken as the split {kind}")
    return found[0] if found else None


def _test_split(
    faults: list[str], make: Callable[[str], FolderDataset], name: str
) -> FolderDataset | None:
    """The test split, which may go without label maps: then there is nothing to measure on it."""
    try:
        return _collecting(faults, make, name)
    except FileNotFoundError as error:
        rank_zero_info(f"these data have no test split: {error}")
        return None
