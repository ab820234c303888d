"""``segformer fit | validate | test``: Lightning's command line over this package's task and data."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.callbacks import ModelCheckpoint, StochasticWeightAveraging, WeightAveraging
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.utilities.rank_zero import rank_zero_info

from segformer.checkpoint import describe
from segformer.evaluation import PROTOCOLS, find_protocol
from segformer.metrics import Scores
from segformer.models import SegmentationModel
from segformer.train.data import SegmentationData
from segformer.train.report import Report
from segformer.train.resume import AtomicCheckpointIO, Resumable, find_checkpoint
from segformer.train.task import SegmentationTask


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
            trainer_defaults={"use_distributed_sampler": False},  # the data share themselves out, no sample twice
            seed_everything_default=0,
            load_from_checkpoint_support=False,
            save_config_kwargs={"overwrite": True},
            args=args,
            run=run,
        )

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.add_argument("--one_logit", type=bool, default=False, help="tell two classes apart by one logit, in place of two")
        parser.link_arguments("data.num_classes", "model.network.init_args.num_classes", compute_fn=self._logits, apply_on="instantiate")
        parser.add_lightning_class_args(ModelCheckpoint, "checkpoint")
        parser.set_defaults({"checkpoint.monitor": "val/miou", "checkpoint.mode": "max", "checkpoint.save_last": True})
        parser.add_lightning_class_args(Resumable, "resume")
        parser.add_lightning_class_args(Report, "report")
        parser.add_argument("--weights", type=str | None, default=None, help="to measure: in any layout that from_pretrained reads")
        parser.add_argument("--protocol", type=str | None, default=None, help=f"to measure by: {', '.join(PROTOCOLS)}")
        parser.add_argument("--tta", action="store_true", help="measure at several sizes, each mirrored too, as the papers' ms column")

    @property
    def _settings(self) -> Any:
        return self.config[self.subcommand] if self.subcommand else self.config

    def _logits(self, num_classes: int) -> int:
        if not self._settings.one_logit:
            return num_classes
        if num_classes != 2:
            raise ValueError(f"one_logit tells two classes apart; the data have {num_classes}")
        return 1

    def before_instantiate_classes(self) -> None:
        """A run that is resumed goes on in its own folder."""
        config = self._settings
        self._refuse_what_would_be_ignored(config)
        logger: Any = (config.get("trainer") or {}).get("logger")
        if self.subcommand != "fit" or not config.ckpt_path or not hasattr(logger, "init_args"):
            return
        runs = (Path(logger.init_args.save_dir) / (logger.init_args.get("name") or "")).resolve()
        found = find_checkpoint(str(config.ckpt_path), runs)
        if found is None:
            rank_zero_info(f"no checkpoint in {str(runs)!r} yet: the run starts from the beginning")
        elif (found := found.resolve()).parent.parent.parent == runs:
            logger.init_args.version = found.parents[1].name
            earlier = found.parents[1] / "metrics.csv"
            warnings.filterwarnings("ignore", "(Experiment logs|Checkpoint) directory .* exists")  # it shall
            if earlier.is_file():  # the logger would begin it anew
                earlier.rename(earlier.with_name(f"metrics_{len(list(earlier.parent.glob('metrics*.csv')))}.csv"))
        config.ckpt_path = None if found is None else str(found)

    def _refuse_what_would_be_ignored(self, config: Any) -> None:
        if self.subcommand == "fit":
            for name in ("weights", "protocol", "tta"):
                if config.get(name):
                    raise ValueError(f"--{name} is for measuring; to start from weights: --model.network segformer.Pretrained")
        elif self.subcommand in ("validate", "test"):
            if config.weights and config.ckpt_path:
                raise ValueError("--weights and --ckpt_path both name what to measure; give one")
            given = config.weights or config.ckpt_path
            if not given and not str(config.model.network.class_path).endswith("Pretrained"):
                raise ValueError("the network has random weights; say what to measure with --weights or --ckpt_path")

    def before_fit(self) -> None:
        self.trainer.strategy.checkpoint_io = AtomicCheckpointIO()
        network = self.model.network
        network.classes = self.datamodule.classes
        describe(network)  # refuses now, not after the run, what could not be saved

    def after_fit(self) -> None:
        """Leave the best weights, their scores on every split there is, and the pictures: the dearest first."""
        trainer: Any = self.trainer
        self._take_best_weights()
        folder = Path(trainer.log_dir or trainer.default_root_dir)
        self.model.network.save(folder / "model.safetensors")
        report = next(callback for callback in trainer.callbacks if isinstance(callback, Report))
        scores: dict[str, Scores] = {}
        for split, measure in (("val", trainer.validate), ("test", trainer.test)):
            if getattr(self.datamodule, split) is not None:
                measure(self.model, self.datamodule, verbose=False)
                scores[split] = self.model.scores
                report.write_scores(scores, self.datamodule.classes, folder)
        report.draw(self.model, self.datamodule, folder)

    def _take_best_weights(self) -> None:
        """The best checkpoint's (a run without a validation keeps its last), averaged where the run averages.

        Stochastic weight averaging makes its average at the end of the run; no checkpoint has it, and it is kept.
        """
        trainer: Any = self.trainer
        if any(isinstance(callback, StochasticWeightAveraging) for callback in trainer.callbacks):
            return
        # After the fit the network itself holds the average; the callback would go on swapping it out and in.
        trainer.callbacks = [callback for callback in trainer.callbacks if not isinstance(callback, WeightAveraging)]
        best = next(callback for callback in trainer.checkpoint_callbacks if not isinstance(callback, Resumable)).best_model_path
        if best:
            self.model.load_state_dict(torch.load(best, map_location="cpu", weights_only=True)["state_dict"])

    def before_validate(self) -> None:
        self._take_what_to_measure()

    def before_test(self) -> None:
        self._take_what_to_measure()

    def _take_what_to_measure(self) -> None:
        config = self._settings
        if config.weights is not None:
            self.model.network = SegmentationModel.from_pretrained(config.weights)
            labels = max(2, self.model.network.num_classes)  # one logit tells two apart
            if labels != self.datamodule.num_classes:
                raise ValueError(f"{config.weights!r} tells {labels} classes apart, the data have {self.datamodule.num_classes}")
        if config.tta and config.protocol is None:
            raise ValueError("--tta needs a --protocol, which has its ratios")
        if config.protocol is not None:
            self.model.protocol = find_protocol(config.protocol, config.tta)

    def after_validate(self) -> None:
        self._write_scores("val")

    def after_test(self) -> None:
        self._write_scores("test")

    def _write_scores(self, split: str) -> None:
        trainer: Any = self.trainer
        folder = Path(trainer.log_dir or trainer.default_root_dir)
        folder.mkdir(parents=True, exist_ok=True)
        report = next(callback for callback in trainer.callbacks if isinstance(callback, Report))
        report.write_scores({split: self.model.scores}, self.datamodule.classes, folder)
