"""``segformer fit | validate | test``: Lightning's command line over this package's task and data."""

from __future__ import annotations

import sys
import warnings
from pathlib import Path
from typing import Any

import torch
from lightning import Trainer
from lightning.pytorch.callbacks import (
    ModelCheckpoint,
    ProgressBar,
    StochasticWeightAveraging,
    WeightAveraging,
)
from lightning.pytorch.cli import ArgsType, LightningArgumentParser, LightningCLI
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from lightning.pytorch.utilities.rank_zero import rank_zero_info

from segformer.checkpoint import describe
from segformer.evaluation import PROTOCOLS, find_protocol
from segformer.evaluation.metrics import Scores
from segformer.models import SegmentationModel
from segformer.train.data import SegmentationData
from segformer.train.folders import RunFolder, Runs, follow, keep_metrics, refuse_to_overwrite
from segformer.train.progress import ProgressLines
from segformer.train.report import Report
from segformer.train.resume import AtomicCheckpointIO, Resumable, find_checkpoint, read_checkpoint
from segformer.train.task import SegmentationTask


def main() -> None:
    """Run the verb of the process's arguments.

    Raises:
        ValueError: If Lightning refuses the settings.
    """
    try:
        SegmentationCLI()
    except MisconfigurationException as error:
        raise ValueError(str(error)) from error


class SegmentationCLI(LightningCLI):
    """The YAML nests as the Python composes; the number of classes comes from the data.

    Args:
        args: the command's arguments; by default those of the process.
        run: whether a verb among them is run; without one, network, data and trainer are only built.
    """

    def __init__(self, args: list[str] | None = None, run: bool = True) -> None:
        super().__init__(
            SegmentationTask,
            SegmentationData,
            subclass_mode_data=True,
            auto_configure_optimizers=False,
            trainer_defaults={
                "use_distributed_sampler": False
            },  # the data share themselves out, no sample twice
            seed_everything_default=0,
            load_from_checkpoint_support=False,
            save_config_callback=RunFolder,
            parser_kwargs={
                "exit_on_error": False,
                **{verb: {"exit_on_error": False} for verb in self.subcommands()},
            },
            args=args,
            run=run,
        )

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.add_argument(
            "--one_logit",
            type=bool,
            default=False,
            help="tell two classes apart by one logit, in place of two",
        )
        parser.link_arguments(
            "data.num_classes",
            "model.network.init_args.num_classes",
            compute_fn=self._logits,
            apply_on="instantiate",
        )
        parser.add_lightning_class_args(ModelCheckpoint, "checkpoint")
        parser.set_defaults(
            {
                "checkpoint.monitor": "val/miou",
                "checkpoint.mode": "max",
                "checkpoint.save_last": True,
            }
        )
        parser.add_lightning_class_args(Resumable, "resume")
        parser.add_lightning_class_args(Report, "report")
        parser.add_argument(
            "--weights",
            type=str | None,
            default=None,
            help="to measure: in any layout that from_pretrained reads",
        )
        parser.add_argument(
            "--protocol",
            type=str | None,
            default=None,
            help=f"to measure by: {', '.join(PROTOCOLS)}",
        )
        parser.add_argument(
            "--tta",
            action="store_true",
            help="measure at several sizes, each mirrored too, as the papers' ms column",
        )

    @property
    def _settings(self) -> Any:
        return self.config[self.subcommand] if self.subcommand else self.config

    def _logits(self, num_classes: int) -> int:
        if not self._settings.one_logit:
            return num_classes
        if num_classes != 2:
            raise ValueError(f"one_logit tells two classes apart; the data have {num_classes}")
        return 1

    def parse_arguments(self, parser: LightningArgumentParser, args: ArgsType) -> None:
        super().parse_arguments(parser, args)
        path = (
            self.config[self.config.subcommand] if self.config.get("subcommand") else self.config
        ).get("ckpt_path")
        if path and Path(path).is_file() and "state_dict" not in read_checkpoint(Path(path)):
            raise ValueError(
                f"{path!r} is no checkpoint of a run; weights of other layouts are given with --weights"
            )

    def before_instantiate_classes(self) -> None:
        """Choose the run's folder; a run that is resumed goes on in its own."""
        config = self._settings
        given = config.clone()
        given.pop("ckpt_path", None)
        self._refuse_what_would_be_ignored(config)
        runs = Runs.of(config.trainer)
        self._checkpoint = self._find_checkpoint(runs)
        folder = self._folder(runs)
        follow(config.trainer, runs, folder)
        if "ckpt_path" in config:  # a measurement reads the weights by itself
            config.ckpt_path = (
                str(self._checkpoint) if self._checkpoint and self.subcommand == "fit" else None
            )
        if config.trainer.limit_val_batches == 0 and str(config.checkpoint.monitor).startswith(
            "val/"
        ):
            config.checkpoint.monitor = None  # nothing will be measured
        self.save_config_kwargs = {"folder": folder, "given": given}

    def _find_checkpoint(self, runs: Runs) -> Path | None:
        named = self._settings.get("ckpt_path")
        if not named:
            return None
        found = find_checkpoint(str(named), runs.folder, runs.folders())
        if found is None and self.subcommand != "fit":
            raise FileNotFoundError(
                f"--ckpt_path {named}: no run in {str(runs.folder)!r} has a checkpoint yet"
            )
        if found is None:
            rank_zero_info(
                f"no checkpoint in {str(runs.folder)!r} yet: the run starts from the beginning"
            )
        return found

    def _folder(self, runs: Runs) -> Path:
        """The folder of a resumed run, the one that the config names, or a new one, as always for a measurement."""
        if self.subcommand not in ("fit", None):
            return runs.next()
        for folder in runs.folders():
            if (
                self._checkpoint
                and self._checkpoint.resolve().parent == (folder / "checkpoints").resolve()
            ):
                warnings.filterwarnings(
                    "ignore", "(Experiment logs|Checkpoint) directory .* exists"
                )  # it shall
                keep_metrics(folder)
                return folder
        if runs.version is None:
            return runs.next()
        refuse_to_overwrite(runs.folder / runs.version)
        return runs.folder / runs.version

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """Without a terminal, lines take the place of the progress bar."""
        settings = self._get(self.config_init, "trainer")
        callbacks = (
            settings.callbacks if isinstance(settings.callbacks, list) else [settings.callbacks]
        )
        wanted = settings.enable_progress_bar is not False and not settings.barebones
        if (
            wanted
            and not sys.stdout.isatty()
            and not any(isinstance(callback, ProgressBar) for callback in callbacks)
        ):
            self.trainer_defaults = {**self.trainer_defaults, "callbacks": [ProgressLines()]}
        return super().instantiate_trainer(**kwargs)

    def _callback(self, kind: type) -> Any:
        trainer: Any = self.trainer
        return next(
            (callback for callback in trainer.callbacks if isinstance(callback, kind)), None
        )

    def _refuse_what_would_be_ignored(self, config: Any) -> None:
        if self.subcommand == "fit":
            for name in ("weights", "protocol", "tta"):
                if config.get(name):
                    raise ValueError(
                        f"--{name} is for measuring; to start from weights: --model.network segformer.Pretrained"
                    )
        elif self.subcommand in ("validate", "test"):
            if config.weights and config.ckpt_path:
                raise ValueError("--weights and --ckpt_path both name what to measure; give one")
            given = config.weights or config.ckpt_path
            if not given and not str(config.model.network.class_path).endswith("Pretrained"):
                raise ValueError(
                    "the network has random weights; say what to measure with --weights or --ckpt_path"
                )

    def before_fit(self) -> None:
        trainer: Any = self.trainer
        trainer.strategy.checkpoint_io = AtomicCheckpointIO()
        if trainer.fast_dev_run:  # Lightning would write the last checkpoint all the same
            trainer.callbacks = [
                callback
                for callback in trainer.callbacks
                if not isinstance(callback, ModelCheckpoint)
            ]
        network = self.model.network
        network.classes = self.datamodule.classes
        describe(network)  # refuses now, not after the run, what could not be saved
        self.datamodule.prove()

    def after_fit(self) -> None:
        """Leave the best weights, their scores on every split there is, and the pictures: the dearest first."""
        trainer: Any = self.trainer
        if trainer.fast_dev_run:
            rank_zero_info("fast_dev_run: the run works; nothing is written")
            return
        self._take_best_weights()
        folder = self._callback(RunFolder).folder
        self.model.network.save(folder / "model.safetensors")
        report = self._callback(Report)
        scores: dict[str, Scores] = {}
        for split, measure, limit in (
            ("val", trainer.validate, trainer.limit_val_batches),
            ("test", trainer.test, trainer.limit_test_batches),
        ):
            if getattr(self.datamodule, split) is not None and limit != 0:
                measure(self.model, self.datamodule, verbose=False)
                scores[split] = self.model.scores
                report.write_scores(scores, self.datamodule.classes, folder)
        report.draw(self.model, self.datamodule, folder)

    def _take_best_weights(self) -> None:
        """The best checkpoint's (a run without a validation keeps its last), averaged where the run averages.

        Stochastic weight averaging makes its average at the end of the run; no checkpoint has it, and it is kept.
        """
        trainer: Any = self.trainer
        if self._callback(StochasticWeightAveraging):
            return
        self._drop_averages()
        checkpoint = next(c for c in trainer.checkpoint_callbacks if not isinstance(c, Resumable))
        if checkpoint.monitor and checkpoint.best_model_path:
            self._load(Path(checkpoint.best_model_path))

    def _drop_averages(self) -> None:
        """After the fit the network itself holds the average; the callback would go on swapping it out and in."""
        trainer: Any = self.trainer
        trainer.callbacks = [
            callback for callback in trainer.callbacks if not isinstance(callback, WeightAveraging)
        ]

    def _load(self, checkpoint: Path) -> None:
        state = torch.load(checkpoint, map_location="cpu", weights_only=True)["state_dict"]
        try:
            self.model.load_state_dict(state)
        except RuntimeError as error:
            raise ValueError(
                f"the checkpoint {str(checkpoint)!r} is of another network than the config's: {error}"
            ) from error

    def before_validate(self) -> None:
        self._take_what_to_measure()

    def before_test(self) -> None:
        self._take_what_to_measure()

    def _take_what_to_measure(self) -> None:
        config = self._settings
        self._drop_averages()
        if self._checkpoint is not None:
            self._load(self._checkpoint)
        if config.weights is not None:
            self.model.network = SegmentationModel.from_pretrained(config.weights)
            labels = max(2, self.model.network.num_classes)  # one logit tells two apart
            if labels != self.datamodule.num_classes:
                raise ValueError(
                    f"{config.weights!r} tells {labels} classes apart, the data have {self.datamodule.num_classes}"
                )
        if config.tta and config.protocol is None:
            raise ValueError("--tta needs a --protocol, which has its ratios")
        if config.protocol is not None:
            self.model.protocol = find_protocol(config.protocol, config.tta)

    def after_validate(self) -> None:
        self._write_scores("val")

    def after_test(self) -> None:
        self._write_scores("test")

    def _write_scores(self, split: str) -> None:
        if self._callback(RunFolder):  # not in a fast_dev_run
            folder = self._callback(RunFolder).folder
            self._callback(Report).write_scores(
                {split: self.model.scores}, self.datamodule.classes, folder
            )
