"""Data sets as Lightning data modules."""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from lightning.pytorch.utilities.rank_zero import rank_zero_info
from torch.utils.data import DataLoader, Dataset

from segformer.data.annotations.areas import Source
from segformer.data.annotations.drawing import Treatment, notes
from segformer.data.annotations.formats import Annotations, find_annotations
from segformer.data.annotations.matching import without_image
from segformer.data.bands import NAME, SPLIT, Bands
from segformer.data.classes import Classes
from segformer.data.datasets import SAMPLED_PAIRS, DataError, FolderDataset, faults_in
from segformer.data.images import read_header, read_image
from segformer.data.labels import Coding
from segformer.data.mixing import Mixing
from segformer.data.normalization import IMAGENET, Normalization
from segformer.data.rasters import RasterDataset
from segformer.data.transforms import Normalize, normalizers
from segformer.data.unlabelled import UnlabelledDataset, UnlabelledImages
from segformer.train.base import ResumableData
from segformer.train.last_steps import LastSteps
from segformer.train.order import (
    InterleavedBatches,
    Mixed,
    Order,
    PhasedBatches,
    ResumableLoader,
    Seeded,
    TwoDatasets,
    combined_seed,
    run_seed,
)
from segformer.train.samples import Pixels, Transformed, both_collated, by_size, collated
from segformer.train.sampling import Sampling

logger = logging.getLogger(__name__)


def _settings(part: Any) -> str:
    """Returns the class and the attributes of a part; "None" if there is none."""
    if part is None:
        return "None"
    settings = ", ".join(f"{name}={value!r}" for name, value in vars(part).items())
    return f"{type(part).__name__}({settings})"


class SegmentationData(ResumableData):
    """Training, validation and test sets with the same classes.

    Args:
        train: Samples (image (C, H, W), label (H, W) of integers), with ``classes``. Images are
            uint8 RGB unless they are read with bands.
        val: Samples measured during and after training.
        train_transform: Makes a training sample of a fixed size from a sample of any size.
        test: Samples measured once, after training.
        batch_size: Training images per step and device.
        val_batch_size: Images per batch in validation and test. Images are measured at their own
            size; those of a batch that have the same size are computed together.
        num_workers: Number of loader processes for training, and of as many for validation, which
            wait meanwhile.
        mixing: How some training samples are mixed with another one, such as
            :class:`~segformer.data.mixing.ClassMix`; by default none are.
        sampling: How often training samples are drawn, such as
            :class:`~segformer.train.sampling.RareClasses`; by default each once in an epoch.
        unlabelled_images: Images without labels for
            :class:`~segformer.train.consistency.Consistency`; a batch of them is added to each
            training batch. By default there are none.
        root: Folder below which these are.
        last_steps: Another ``train_transform`` for the last steps of a run; see
            :class:`~segformer.train.last_steps.LastSteps`. By default there is none.

    Raises:
        ValueError: If there are images without labels, and the others are read with bands.
    """

    FROM_WEIGHTS = "--model.network segformer.Pretrained --model.network.source CHECKPOINT"

    def __init__(
        self,
        train: Dataset,
        val: Dataset,
        train_transform: Callable[..., Any],
        test: Dataset | None = None,
        batch_size: int = 8,
        val_batch_size: int = 1,
        num_workers: int = 2,
        mixing: Mixing | None = None,
        sampling: Sampling | None = None,
        unlabelled_images: UnlabelledImages | None = None,
        root: str | os.PathLike[str] = "",
        last_steps: LastSteps | None = None,
    ) -> None:
        super().__init__(train, batch_size, num_workers, root)
        self.val: Any = val
        self.test: Any = test
        self.train_transform = train_transform
        self.normalization = IMAGENET
        self.val_batch_size = val_batch_size
        self.mixing, self.sampling, self.last_steps = mixing, sampling, last_steps
        if len(self.classes) < 2:
            raise ValueError(
                f"the data have one class, {', '.join(self.classes.names)}, and a network needs at "
                "least two; name the background, too"
            )
        if mixing is not None:
            mixing.check(self.classes)
        self.unlabelled: UnlabelledDataset | None = None
        self.unlabelled_batch_size = 0
        if unlabelled_images is not None:
            self._add_unlabelled(unlabelled_images, Path(root))

    def _add_unlabelled(self, images: UnlabelledImages, root: Path) -> None:
        if isinstance(self.train, RasterDataset):
            raise ValueError(
                "unlabelled_images are read as photographs, and the labelled ones with their "
                "bands; leave one of unlabelled_images and bands out"
            )
        self.unlabelled = UnlabelledDataset(images.find(root), images.views)
        self.unlabelled_batch_size = images.batch_size

    @property
    def classes(self) -> Classes:
        return self.train.classes

    @property
    def statistics(self) -> Normalization | None:
        """Statistics of images with bands; None for photographs, whose network has its own."""
        return getattr(self.train, "normalization", None)

    @property
    def num_classes(self) -> int:
        return len(self.classes)

    def calibration_images(self, count: int = 300) -> Pixels:
        """Returns at most ``count`` training images, as they are, uint8 (C, H, W)."""
        return Pixels(self.train, count)

    def normalize_as(self, normalization: Normalization) -> None:
        """Sets the normalization of the images of all splits.

        The training task calls this before a run. It sets each
        :class:`~segformer.data.transforms.Normalize` in the training transform. If there is none,
        the transform stays unchanged and a warning is logged.
        """
        transforms = {"data.train_transform": self.train_transform}
        if self.last_steps is not None:
            transforms["data.last_steps.transform"] = self.last_steps.transform
        for setting, transform in transforms.items():
            parts = list(normalizers(transform))
            if not parts and normalization != IMAGENET:
                logger.warning(
                    "the network takes images normalized by %s, but %s has no "
                    "segformer.data.transforms.Normalize; make it normalize in the same way",
                    normalization,
                    setting,
                )
            for part in parts:
                part.normalization = normalization
        for part in normalizers(self.unlabelled.views) if self.unlabelled else ():
            part.normalization = normalization
        self.normalization = normalization

    def check_files(self) -> None:
        """Checks the files of training and validation before a run.

        Reads the headers of all files, and the pixels of 64 pairs of each split. Logs the classes
        that do not occur in these pairs. Data sets that are no
        :class:`~segformer.data.datasets.FolderDataset` are not checked.

        Raises:
            DataError: If a file cannot be read, or the meaning of a label map is ambiguous.
        """
        faults = []
        for split, dataset in (("training", self.train), ("validation", self.val)):
            if not isinstance(dataset, FolderDataset):
                continue
            try:
                absent = dataset.check_files()
            except DataError as error:
                faults += error.faults
                continue
            if absent:
                more = f" and {len(absent) - 10} more" if len(absent) > 10 else ""
                looked = f"{min(SAMPLED_PAIRS, len(dataset))} of {len(dataset)} {split} label maps"
                rank_zero_info(f"{looked} were read: none holds {', '.join(absent[:10])}{more}")
        if self.unlabelled is not None:
            paths = self.unlabelled.paths
            sampled = paths[:: -(-len(paths) // SAMPLED_PAIRS)]  # the headers of the others
            pixels = (partial(read_image, path) for path in sampled)
            faults += faults_in(*pixels, *(partial(read_header, path) for path in paths))
        if faults:
            raise DataError(faults, self)

    def training_loader(self, batches: Any) -> ResumableLoader:
        samples: Any = self._seeded(self.train_transform)
        collate: Callable[..., Any] = collated
        if self.last_steps is not None:
            samples = TwoDatasets(samples, self._seeded(self.last_steps.transform))
            batches = PhasedBatches(batches, self._batches_to_the_last)
        if self.unlabelled is not None:
            others = self._batches(
                len(self.unlabelled),
                self.unlabelled_batch_size,
                combined_seed(run_seed(), 1),  # another order than that of the labelled images
                "unlabelled",
                "data.unlabelled_images.batch_size",
                multiple=2,
            )
            samples = TwoDatasets(samples, Seeded(self.unlabelled))
            batches = InterleavedBatches(batches, others)
            collate = partial(both_collated, self.batch_size)
        return ResumableLoader(
            samples, batch_sampler=batches, collate_fn=collate, **self._options()
        )

    def _seeded(self, transform: Callable[..., Any]) -> Seeded:
        samples = Transformed(self.train, transform)
        return Mixed(samples, self.mixing, self.classes) if self.mixing else Seeded(samples)

    def _batches_to_the_last(self) -> float:
        """Returns the number of batches from the next one to the last steps of the run."""
        trainer: Any = self.trainer
        if trainer is None or self.last_steps is None:
            return math.inf
        batches = min(len(self.batches), trainer.num_training_batches)
        taken = trainer.fit_loop.total_batch_idx + 1
        return self.last_steps.first_batch(trainer, batches) - taken

    def order(self) -> Order | None:
        return None if self.sampling is None else self.sampling.order(self.train)

    def state_dict(self) -> dict[str, Any]:
        trainer: Any = self.trainer
        return {
            **super().state_dict(),
            "data.sampling": _settings(self.sampling),
            "data.mixing": _settings(self.mixing),
            "data.last_steps.share": self.last_steps and self.last_steps.share,
            "unlabelled images": len(self.unlabelled or ()),
            "unlabelled images a step of all devices": (
                self.unlabelled_batch_size * trainer.world_size
            ),
        }

    def files(self) -> Sequence[str | Path]:
        paths = [path for pair in getattr(self.train, "pairs", ()) for path in pair]
        return paths + (self.unlabelled.paths if self.unlabelled else [])

    def name_of(self, index: int) -> str:
        pairs = getattr(self.train, "pairs", None)
        return str(pairs[index][0]) if pairs else super().name_of(index)

    def names_of(self, taken: int) -> list[str]:
        """Adds the files that may be mixed with those of the batch."""
        draws = self.batches.batch(*self._epoch_and_batch(taken))
        mixed = [self.name_of(draw.other) for draw in draws if self.mixing]
        return list(dict.fromkeys([*super().names_of(taken), *mixed]))

    def val_dataloader(self) -> DataLoader:
        return self._whole_images(self.val)

    def test_dataloader(self) -> DataLoader:
        if self.test is None:
            raise ValueError(
                "these data have no test split; "
                "run `segformer validate` in place of `segformer test`"
            )
        return self._whole_images(self.test)

    def _whole_images(self, dataset: Dataset) -> DataLoader:
        samples = Transformed(dataset, Normalize(self.normalization))
        return self._share_loader(samples, self.val_batch_size, by_size)


class StandardData(SegmentationData):
    """A data set of the papers.

    Args:
        dataset: Class in :mod:`segformer.data.standard`.
        root: Folder of the data set.
        train_split: Name of the training split in this data set.
        val_split: Name of the validation split in this data set.
        train_transform: See :class:`SegmentationData`.
        **options: Further arguments of :class:`SegmentationData`.
    """

    def __init__(
        self,
        dataset: type[FolderDataset],
        root: str | os.PathLike[str],
        train_split: str,
        val_split: str,
        train_transform: Callable[..., Any],
        **options: Any,
    ) -> None:
        make: Any = dataset
        faults: list[str] = []
        train, val = (_collecting(faults, make, root, name) for name in (train_split, val_split))
        super().__init__(train, val, train_transform, None, root=root, **options)
        if faults:
            raise DataError(faults, self)


SPLIT_NAMES = {
    "train": ("train", "training"),
    "val": ("val", "valid", "validation"),
    "test": ("test", "testing"),
}


class FolderData(SegmentationData):
    """A folder with ``images/{split}`` and ``labels/{split}``, for train, val and optionally test.

    A split's folders may also be named training; valid or validation; testing.

    Args:
        root: The folder.
        classes: Names and colours.
        train_transform: See :class:`SegmentationData`.
        ignore_index: Value of label maps for no class; by default 255, and 65535 for more than
            255 classes.
        label_map: Class of each value of a label map; see
            :class:`~segformer.data.datasets.FolderDataset`.
        images: Pattern of the folders of images below ``root``; or, if several files are bands of
            one image, a list of their patterns, such as ``[rgb/{split}/{name}.tif,
            nir/{split}/{name}.tif]``.
        labels: Pattern of the folders of label maps below ``root``; may equal ``images``. Or that
            of annotations, files or folders; one file without ``{split}`` may hold those of all
            splits. See :class:`~segformer.data.datasets.FolderDataset`.
        image_suffix: End of image names that label maps do not have; see
            :class:`~segformer.data.datasets.FolderDataset`.
        label_suffix: End of label map names that images do not have, such as ``_mask``.
        palette: Meaning of the values in palette files, if their palettes do not show it:
            ``index`` or ``color``.
        unlabelled: Class of pixels without annotation, by index or name, or ``ignore``.
        class_map: Class of names that annotations have and the classes have not, or ``ignore``.
        invalid_polygons: Whether polygons of annotations that cross themselves or their holes, or
            have no area, are refused, or drawn by the even-odd rule: ``refuse`` or ``draw``.
        bands: Which bands of the images are read, with the values that the files store; by default
            they are read as 8-bit RGB.
        normalization: Statistics of the bands; ``segformer check --write-statistics`` makes them.
        tile: Height and width in pixels of the windows that large images are read in; see
            :class:`~segformer.data.rasters.RasterDataset`.
        **options: Further arguments of :class:`SegmentationData`.

    Raises:
        FileNotFoundError: If a folder is missing or empty.
        ValueError: If a pattern has no ``{split}``, a split has two folders, or images and label
            maps have no pair.
    """

    def __init__(
        self,
        root: str | os.PathLike[str],
        classes: Classes,
        train_transform: Callable[..., Any],
        ignore_index: int | None = None,
        label_map: dict[int, int] | None = None,
        images: str | list[str] = "images/{split}",
        labels: str = "labels/{split}",
        *,
        image_suffix: str = "",
        label_suffix: str = "",
        palette: Coding | None = None,
        bands: Bands | None = None,
        normalization: Normalization | None = None,
        tile: list[int] | None = None,
        unlabelled: int | str | None = None,
        class_map: dict[str, str] | None = None,
        invalid_polygons: Treatment = "refuse",
        **options: Any,
    ) -> None:
        if isinstance(images, list):
            bands = replace(bands or Bands(), files=images)
            images, image_suffix = _first_file(images)
        _check_patterns(images=images)
        shared = _shared_annotations(Path(root, labels), Path(root))
        if shared is None:
            _check_patterns(labels=labels)
        make = _reader(bands, normalization, tile)

        def split(name: str) -> FolderDataset:
            return make(
                Path(root, images.replace(SPLIT, name)),
                shared or Path(root, labels.replace(SPLIT, name)),
                classes,
                ignore_index=ignore_index,
                label_map=label_map,
                image_suffix=image_suffix,
                label_suffix=label_suffix,
                palette=palette,
                unlabelled=unlabelled,
                class_map=class_map,
                invalid_polygons=invalid_polygons,
            )

        names = {kind: _split_name(Path(root), images, kind) for kind in SPLIT_NAMES}
        faults: list[str] = []
        train, val = (_collecting(faults, split, names[kind] or kind) for kind in ("train", "val"))
        test = _test_split(faults, split, names["test"]) if names["test"] else None
        super().__init__(train, val, train_transform, test, root=root, **options)
        if shared:
            faults += without_image(shared, _sources(train, val, test), "the folders of the splits")
        _log_notes(train, val, test)
        if faults:
            raise DataError(faults, self)


def _shared_annotations(labels: Path, root: Path) -> Annotations | None:
    """Returns the annotations in a file that holds those of all splits, None if it is no file."""
    return find_annotations(labels, root) if labels.is_file() else None


def _sources(*datasets: FolderDataset | None) -> list[Source]:
    return [
        source
        for dataset in datasets
        if dataset and dataset.drawn
        for source in dataset.drawn.sources.values()
    ]


def _log_notes(*datasets: FolderDataset | None) -> None:
    """Logs what a user should know about annotations, once for all splits."""
    for sentence in notes([dataset.drawn for dataset in datasets if dataset and dataset.drawn]):
        rank_zero_info(sentence)


def _reader(
    bands: Bands | None, normalization: Normalization | None, tile: list[int] | None
) -> Callable[..., FolderDataset]:
    """Returns the class of data set that reads photographs, or images of other bands.

    Raises:
        ValueError: If photographs are given what only images of other bands have.
    """
    if bands is not None:
        if normalization is not None:
            normalization = replace(normalization, bands=bands)
        return partial(RasterDataset, bands=bands, normalization=normalization, tile=tile)
    if tile or normalization:
        raise ValueError(
            f"tile={tile} and normalization={normalization} are for images that are read with "
            "their bands; add `bands: {}`"
        )
    return FolderDataset


def _first_file(patterns: list[str]) -> tuple[str, str]:
    """Returns the folder and the suffix of the first of several files of an image."""
    folder, _, suffix = patterns[0].partition(NAME)
    if folder and not folder.endswith("/"):
        raise ValueError(
            f"the pattern {patterns[0]!r} has {folder.rpartition('/')[2]!r} before {NAME}; a pair "
            f"is named by the beginning of its files: write {NAME} there, and rename the files"
        )
    return folder.rstrip("/"), suffix


class ListedData(SegmentationData):
    """Pairs of images and label maps that CSV files list, for train, val and optionally test.

    Each file has the columns ``image`` and ``label``, with the paths of a pair's files below
    ``root``. ``segformer fit FOLDER`` writes such files.

    Args:
        root: The folder of the images and label maps.
        classes: Names and colours.
        train_transform: See :class:`SegmentationData`.
        train: CSV file of the training pairs.
        val: CSV file of the validation pairs.
        test: CSV file of the test pairs, if there are any.
        ignore_index: See :class:`FolderData`.
        label_map: See :class:`FolderData`.
        palette: See :class:`FolderData`.
        unlabelled: See :class:`FolderData`, also for ``class_map`` and ``invalid_polygons``. Label
            files may be annotations, or masks of one class each, whose path has ``{class}`` for the
            class.
        bands: See :class:`FolderData`, also for ``normalization`` and ``tile``.
        **options: Further arguments of :class:`SegmentationData`.

    Raises:
        FileNotFoundError: If there is no such CSV file.
        ValueError: If a CSV file lacks a column, or lists a file that does not exist.
    """

    def __init__(
        self,
        root: str | os.PathLike[str],
        classes: Classes,
        train_transform: Callable[..., Any],
        train: str | os.PathLike[str],
        val: str | os.PathLike[str],
        test: str | os.PathLike[str] | None = None,
        ignore_index: int | None = None,
        label_map: dict[int, int] | None = None,
        palette: Coding | None = None,
        *,
        bands: Bands | None = None,
        normalization: Normalization | None = None,
        tile: list[int] | None = None,
        unlabelled: int | str | None = None,
        class_map: dict[str, str] | None = None,
        invalid_polygons: Treatment = "refuse",
        **options: Any,
    ) -> None:
        faults: list[str] = []
        make = _reader(bands, normalization, tile)

        def listed(pairs: str | os.PathLike[str]) -> FolderDataset:
            return make(
                root,
                root,
                classes,
                ignore_index=ignore_index,
                label_map=label_map,
                names=pairs,
                palette=palette,
                unlabelled=unlabelled,
                class_map=class_map,
                invalid_polygons=invalid_polygons,
            )

        read_train, read_val = (_collecting(faults, listed, pairs) for pairs in (train, val))
        read_test = _collecting(faults, listed, test) if test is not None else None
        super().__init__(read_train, read_val, train_transform, read_test, root=root, **options)
        _log_notes(read_train, read_val, read_test)
        if faults:
            raise DataError(faults, self)


def _check_patterns(**patterns: str) -> None:
    for name, pattern in patterns.items():
        if SPLIT not in pattern:
            raise ValueError(
                f"{name}={pattern!r} does not contain {SPLIT}, so that all splits would have the "
                f"same files; write {SPLIT} in place of the name of the split"
            )


def _collecting(
    faults: list[str], make: Callable[..., FolderDataset], *arguments: Any
) -> FolderDataset:
    """Returns a data set of the valid pairs; adds the faults of the others to ``faults``."""
    try:
        return make(*arguments)
    except DataError as error:
        faults += error.faults
        return error.found


def _split_name(root: Path, images: str, kind: str) -> str | None:
    """Returns the name of a split's folder of images, None if there is none.

    Raises:
        ValueError: If there are two.
    """
    folder_of = {name: Path(root, images.replace(SPLIT, name)) for name in SPLIT_NAMES[kind]}
    found = [name for name, folder in folder_of.items() if folder.is_dir()]
    if len(found) > 1:
        folders = " and ".join(str(folder_of[name]) for name in found)
        raise ValueError(f"{kind} images are in {folders}; remove one")
    if found and found[0] != kind:
        rank_zero_info(f"{str(folder_of[found[0]])!r} is used as the split {kind}")
    return found[0] if found else None


def _test_split(
    faults: list[str], make: Callable[[str], FolderDataset], name: str
) -> FolderDataset | None:
    """Returns the test split, None if it has no label maps."""
    try:
        return _collecting(faults, make, name)
    except FileNotFoundError as error:
        rank_zero_info(f"these data have no test split: {error}")
        return None
