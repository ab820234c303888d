"""``segformer fit``, ``validate`` and ``test``: Lightning's command line for our task and data."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

from jsonargparse import Namespace
from lightning.pytorch.callbacks import WeightAveraging
from lightning.pytorch.cli import LightningArgumentParser

from segformer.checkpoint import METADATA_KEY, describe
from segformer.evaluation import check_logits, find_protocol
from segformer.evaluation.metrics import Scores
from segformer.train.data import SegmentationData
from segformer.train.folders import RunFolder
from segformer.train.lora import without_adapters
from segformer.train.parser import add_options, drop_unlabelled
from segformer.train.per_image import Compared, PerImage, write_images
from segformer.train.report import Report
from segformer.train.resume import read_checkpoint
from segformer.train.run_cli import RunCLI
from segformer.train.task import SegmentationTask
from segformer.train.weights import (
    drop_callbacks,
    find_callback,
    load_checkpoint,
    load_network,
    match_classes,
)

# Options that training does not use.
OF_MEASUREMENT = ("weights", "protocol", "tta", "per_image", "compare")


def main(arguments: list[str]) -> None:
    """Runs the verb that comes first in the arguments; the errors are those of the class."""
    SegmentationCLI(arguments)


class SegmentationCLI(RunCLI):
    """Builds the task, the data and the trainer from a YAML file, and runs a verb.

    The keys of the file are the arguments of these classes. The number of classes is that of the
    data.

    Args:
        args: The arguments, a verb first; by default those of the process.
        run: Whether to run the verb. If False, ``args`` has no verb, and only the parts are built.
    """

    VERBS = ("fit", "validate", "test")
    WEIGHTS = "--weights"
    LOGGED = (
        *("val/miou", "val/pixel_accuracy", "train/loss"),
        *("train/distillation", "train/consistency", "train/confident"),
    )

    def __init__(self, args: list[str] | None = None, run: bool = True) -> None:
        super().__init__(SegmentationTask, SegmentationData, args, run)

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        add_options(parser, self._logits)

    def _logits(self, num_classes: int) -> int:
        if not self._settings.one_logit:
            return num_classes
        if num_classes != 2:
            raise ValueError(f"one_logit separates two classes; the data have {num_classes}")
        return 1

    def before_instantiate_classes(self) -> None:
        """Chooses the run's folder, and the network: its number of bands, or another one."""
        _refuse_unused(self.subcommand, self._settings)
        super().before_instantiate_classes()
        measures = self.subcommand in ("validate", "test")
        self._measured = self._find_measured() if measures else None
        loads_checkpoint = self._checkpoint is not None and self._measured is None
        if measures:
            _drop_training_parts(self._settings, keeps_adapters=loads_checkpoint)
        if self._measured is not None:
            _drop_network(self._settings.model)
        elif self.subcommand == "fit" or loads_checkpoint:
            _take_bands(self._settings)
        if self.subcommand == "fit" and self._checkpoint is not None:
            _start_from(self._checkpoint, self._settings.model.network)

    def _find_measured(self) -> str | None:
        """The file whose network is measured; None if it is the config's, with its weights."""
        weights: str | None = self._settings.weights
        if weights is None and self._checkpoint is not None:
            is_described = METADATA_KEY in read_checkpoint(self._checkpoint)
            return str(self._checkpoint) if is_described else None
        return weights

    def before_fit(self) -> None:
        """Checks before the run that the data can be read and the network can be saved."""
        super().before_fit()
        if self.model.frozen:  # as it was asked for
            warnings.filterwarnings("ignore", "Found .* in eval mode")
        network = self.model.network
        match_classes(network, self.datamodule.classes)
        network.classes = self.datamodule.classes
        describe(without_adapters(network))
        self.datamodule.check_files()

    def write_results(self) -> None:
        """Writes the weights, then their scores on each split, then the pictures."""
        self.model.network = without_adapters(self.model.network)
        self.model.network.save(self._folder / "model.safetensors")
        self._measure_splits()
        self._report.draw(self.model, self.datamodule, self._folder)

    def _measure_splits(self) -> None:
        trainer: Any = self.trainer
        scores: dict[str, Scores] = {}
        for split, measure, limit in (
            ("val", trainer.validate, trainer.limit_val_batches),
            ("test", trainer.test, trainer.limit_test_batches),
        ):
            if getattr(self.datamodule, split) is not None and limit != 0:
                measure(self.model, self.datamodule, verbose=False)
                scores[split] = self.model.scores
                self._report.write_scores(scores, self.datamodule.classes, self._folder)

    @property
    def _report(self) -> Report:
        callback: Any = find_callback(self.trainer, Report)
        return callback

    def before_validate(self) -> None:
        self._load_measured()
        self._prepare_images(self.datamodule.val, self.trainer.limit_val_batches)

    def before_test(self) -> None:
        self._load_measured()
        self._prepare_images(self.datamodule.test, self.trainer.limit_test_batches)

    def _load_measured(self) -> None:
        """Loads the weights to measure, and sets the protocol."""
        config = self._settings
        drop_callbacks(self.trainer, WeightAveraging)
        if self._measured is not None:
            self.model.network = load_network(self._measured, self.datamodule.classes)
        elif self._checkpoint is not None:
            load_checkpoint(self.model, self._checkpoint)
            self.model.network.normalization = (
                getattr(self.datamodule, "statistics", None) or self.model.network.normalization
            )
        if config.tta and config.protocol is None:
            raise ValueError("--tta needs a --protocol, which has its ratios")
        if config.protocol is not None:
            self.model.protocol = find_protocol(config.protocol, config.tta)
        if self.model.protocol is not None:
            check_logits(self.model.network, self.model.protocol)

    def _prepare_images(self, dataset: Any, limit: float) -> None:
        """Has each image measured on its own, and loads the network to compare, if asked for.

        Args:
            dataset: The images.
            limit: Lightning's limit of the batches, which are single images then: their number, or
                their share.

        Raises:
            ValueError: If that network has other classes, or the protocol needs its logits, or
                there is one image only.
        """
        config = self._settings
        if not (config.per_image or config.compare):
            return
        self.datamodule.val_batch_size = 1  # changes no score
        per_image = PerImage(dataset, len(dataset.classes.of_labels()))
        self.trainer.callbacks.append(per_image)  # type: ignore[attr-defined]
        if config.compare:
            allowed = limit if isinstance(limit, int) else int(limit * len(dataset))
            if min(allowed, len(dataset)) < 2:
                raise ValueError(
                    "--compare estimates chance from several images, and one image cannot be "
                    "resampled; give more, or measure both weights without --compare"
                )
            self._other = load_network(config.compare, self.datamodule.classes)
            if self.model.protocol is not None:
                check_logits(self._other, self.model.protocol)

    def after_validate(self) -> None:
        self._write_scores("val", self.trainer.validate)

    def after_test(self) -> None:
        self._write_scores("test", self.trainer.test)

    def _write_scores(self, split: str, measure: Any) -> None:
        if not find_callback(self.trainer, RunFolder):  # a fast_dev_run has none
            return
        scores = {split: self.model.scores}
        self._report.write_scores(scores, self.datamodule.classes, self._folder)
        per_image = find_callback(self.trainer, PerImage)
        if per_image is not None:
            write_images(per_image.images, self.datamodule.classes, self._folder / "per_image.csv")
            if self._settings.compare:
                self._compare(per_image, measure)

    def _compare(self, per_image: PerImage, measure: Any) -> None:
        """Measures the other network in the same way, and writes the differences."""
        config, images = self._settings, per_image.images
        networks = self.model.network, self._other
        self.model.network = self._other
        measure(self.model, self.datamodule, verbose=False)
        own = config.weights or self._checkpoint or config.model.network.init_args.source
        Compared(
            task=self.model,
            dataset=per_image.dataset,
            networks=networks,
            sources=(str(own), config.compare),
            images=(images, per_image.images),
        ).write(self._folder)


def _drop_training_parts(config: Any, keeps_adapters: bool) -> None:
    """Leaves out what only training uses: teachers, images without labels and adapters.

    A measurement needs none of their files and packages. A checkpoint contains the adapters that
    it was trained with.
    """
    config.model.distillation = config.model.consistency = None
    if not keeps_adapters:
        config.model.lora = None
    drop_unlabelled(config.data)


def _drop_network(model: Any) -> None:
    """Leaves out the config's network, in whose place that of a file is measured.

    It may start from weights that are gone, or not be the one of the file at all.
    """
    arguments = Namespace(backbone="b0", num_classes=None)  # which becomes that of the data
    model.network = Namespace(class_path="segformer.SegFormer", init_args=arguments)
    model.frozen, model.auxiliary = [], None


def _start_from(checkpoint: Path, network: Any) -> None:
    """Has a resumed run read its network from its checkpoint: the first weights may be gone.

    A checkpoint with LoRA's adapters does not describe its network, which needs the first weights.
    """
    starts_from_weights = str(network.class_path).endswith("Pretrained")
    if starts_from_weights and METADATA_KEY in read_checkpoint(checkpoint):
        network.init_args.source, network.init_args.layout = str(checkpoint), None


def _take_bands(config: Any) -> None:
    """Builds the network for the number of bands of the data.

    Raises:
        ValueError: If the data have bands and no statistics.
    """
    data = config.data.get("init_args", Namespace())
    if not (data.get("bands") or isinstance(data.get("images"), list)):
        return
    if not data.get("normalization"):
        raise ValueError(
            "the data have bands, and no statistics to normalise them; run `segformer check "
            "--write-statistics` with the same --config, which adds data.normalization to it"
        )
    network = config.model.network.get("init_args", Namespace())
    backbone = network.get("backbone")
    part = network
    if isinstance(backbone, Namespace) and "in_channels" in backbone.get("init_args", ()):
        part = backbone.init_args
    name = "in_channels" if "in_channels" in part else "channels"  # that of ConvSegFormer
    if part.get(name, 0) in (None, 3):  # the default
        part[name] = len(data.normalization.mean)


def _refuse_unused(verb: str | None, config: Any) -> None:
    """Raises ValueError if a verb would ignore an option, or would measure random weights."""
    if verb == "fit":
        for name in OF_MEASUREMENT:
            if config.get(name):
                raise ValueError(
                    f"--{name} is for measuring; to start from weights: "
                    "--model.network segformer.Pretrained"
                )
    elif verb is not None:
        if config.weights and config.ckpt_path:
            raise ValueError("--weights and --ckpt_path both name what to measure; give one")
        given = config.weights or config.ckpt_path
        if not given and not str(config.model.network.class_path).endswith("Pretrained"):
            raise ValueError(
                "the network has random weights; give the weights to measure with --weights or "
                "--ckpt_path"
            )
