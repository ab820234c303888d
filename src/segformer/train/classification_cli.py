"""``segformer pretrain``: trains a classifier, whose backbone segmentation then starts from."""

from __future__ import annotations

import json
from typing import Any

from lightning.pytorch.cli import LightningArgumentParser
from lightning.pytorch.utilities.rank_zero import rank_zero_only
from safetensors.torch import save_file

from segformer.checkpoint import metadata_of
from segformer.train.classification import ClassificationTask, ImageFolderData
from segformer.train.parser import add_callbacks
from segformer.train.run_cli import RunCLI


def main(arguments: list[str]) -> None:
    """Runs the verb that comes first in the arguments; the errors are those of the class."""
    ClassificationCLI(arguments)


class ClassificationCLI(RunCLI):
    """Trains a classifier by a YAML file, and writes its weights and accuracies.

    The keys of the file are the arguments of the task, the data and the trainer. The number of
    classes is that of the data.

    Args:
        args: The arguments, ``fit`` first; by default those of the process.
        run: Whether to train. If False, ``args`` has no verb, and only the parts are built.
    """

    VERBS = ("fit",)
    WEIGHTS = "--model.network.checkpoint_path"
    LOGGED = ("val/top1", "val/top5", "train/loss")

    def __init__(self, args: list[str] | None = None, run: bool = True) -> None:
        super().__init__(ClassificationTask, ImageFolderData, args, run)

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        add_callbacks(parser, "val/top1")
        parser.link_arguments(
            "data.num_classes", "model.network.init_args.num_classes", apply_on="instantiate"
        )

    def write_results(self) -> None:
        """Writes the weights as timm names them, and their accuracies on ``val``."""
        trainer: Any = self.trainer
        self._write_weights()
        if trainer.limit_val_batches != 0:
            trainer.validate(self.model, self.datamodule, verbose=False)
            self._write_scores({"val": self.model.scores})

    @rank_zero_only
    def _write_weights(self) -> None:
        network = self.model.network
        state = {key: x.contiguous() for key, x in network.model.state_dict().items()}
        path = self._folder / "model.safetensors"
        save_file(state, path, metadata_of(network))
        print(f"\nweights   {path}")

    @rank_zero_only
    def _write_scores(self, scores: dict[str, dict[str, float]]) -> None:
        path = self._folder / "results.json"
        path.write_text(json.dumps(scores, indent=2) + "\n", encoding="utf-8")
        for split, values in scores.items():
            print(split, *(f"{name} {100 * value:.2f} %" for name, value in values.items()))
