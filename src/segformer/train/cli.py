"""``segformer fit | validate | test``: Lightning's command line over this package's task and data."""

from __future__ import annotations

from pathlib import Path

from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI

from segformer.metrics import Scores
from segformer.train.data import SegmentationData
from segformer.train.report import Report
from segformer.train.task import SegmentationTask


class SegmentationCLI(LightningCLI):
    """The YAML nests as the Python composes; the number of classes comes from the data."""

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.link_arguments("data.num_classes", "model.network.init_args.num_classes", apply_on="instantiate")
        parser.add_lightning_class_args(ModelCheckpoint, "checkpoint")
        parser.set_defaults({"checkpoint.monitor": "val/miou", "checkpoint.mode": "max", "checkpoint.save_last": True})
        parser.add_lightning_class_args(Report, "report")

    def before_fit(self) -> None:
        self.model.network.classes = self.datamodule.classes

    def after_fit(self) -> None:
        """Measure the best checkpoint on every split there is and leave the report beside it."""
        if not self.trainer.checkpoint_callback.best_model_path:
            return
        scores: dict[str, Scores] = {}
        self.trainer.validate(self.model, self.datamodule, ckpt_path="best", verbose=False, weights_only=False)
        scores["val"] = self.model.scores
        if self.datamodule.test is not None:
            self.trainer.test(self.model, self.datamodule, ckpt_path="best", verbose=False, weights_only=False)
            scores["test"] = self.model.scores
        report = next(callback for callback in self.trainer.callbacks if isinstance(callback, Report))
        report.write(self.model, self.datamodule, scores, Path(self.trainer.log_dir))


def main() -> None:
    """Run the verb of the command line."""
    SegmentationCLI(
        SegmentationTask,
        SegmentationData,
        subclass_mode_data=True,
        auto_configure_optimizers=False,
        seed_everything_default=0,
        save_config_kwargs={"overwrite": True},
    )
