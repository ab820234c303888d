"""``segformer fit | validate | test``: Lightning's command line over this package's task and data."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.callbacks import ModelCheckpoint, StochasticWeightAveraging, WeightAveraging
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI

from segformer.checkpoint import describe
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
        best = trainer.checkpoint_callback.best_model_path
        if best:
            self.model.load_state_dict(torch.load(best, map_location="cpu", weights_only=True)["state_dict"])

    def after_validate(self) -> None:
        self._print_scores()

    def after_test(self) -> None:
        self._print_scores()

    def _print_scores(self) -> None:
        print(self.model.scores.table(self.datamodule.classes))


def main() -> None:
    """Run the verb of the command line."""
    SegmentationCLI(
        SegmentationTask,
        SegmentationData,
        subclass_mode_data=True,
        auto_configure_optimizers=False,
        seed_everything_default=0,
        load_from_checkpoint_support=False,
        save_config_kwargs={"overwrite": True},
    )
