"""What the commands of training share: one folder for each run, resuming, lines of progress."""

from __future__ import annotations

import sys
from abc import abstractmethod
from pathlib import Path
from typing import Any, ClassVar

from lightning import Trainer
from lightning.pytorch.callbacks import ModelCheckpoint, ProgressBar
from lightning.pytorch.cli import ArgsType, LightningArgumentParser, LightningCLI
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from lightning.pytorch.utilities.rank_zero import rank_zero_info

from segformer.train.base import ResumableData, ResumableTask
from segformer.train.folders import RunFolder, Runs, follow, run_folder
from segformer.train.parser import Parser
from segformer.train.progress import ProgressLines
from segformer.train.resume import AtomicCheckpointIO, find_checkpoint, read_checkpoint
from segformer.train.weights import drop_callbacks, find_callback, load_best


class RunCLI(LightningCLI):
    """Builds a task, its data and the trainer from a YAML file, and runs a verb.

    The keys of the file are the arguments of these classes.

    Args:
        task: Class of the task.
        data: Class of the data, or a base of those that a file may name.
        args: The arguments, a verb first; by default those of the process.
        run: Whether to run the verb. If False, ``args`` has no verb, and only the parts are built.

    Raises:
        argparse.ArgumentError: If an option is unknown or its value has the wrong type.
        ValueError: If Lightning refuses the settings.
    """

    VERBS: ClassVar[tuple[str, ...]]  # of Lightning's
    LOGGED: ClassVar[tuple[str, ...]]  # names of the scores and losses that the task logs
    WEIGHTS: ClassVar[str]  # option that takes weights of any layout

    def __init__(
        self,
        task: type[ResumableTask],
        data: type[ResumableData],
        args: list[str] | None,
        run: bool,
    ) -> None:
        try:
            super().__init__(
                task,
                data,
                subclass_mode_data=True,
                auto_configure_optimizers=False,
                # ResumableData distributes its samples itself, none of them twice.
                trainer_defaults={"use_distributed_sampler": False},
                seed_everything_default=0,
                load_from_checkpoint_support=False,
                save_config_callback=RunFolder,
                parser_class=Parser,
                args=args,
                run=run,
            )
        except MisconfigurationException as error:
            raise ValueError(str(error)) from error

    @classmethod
    def subcommands(cls) -> dict[str, set[str]]:
        every = LightningCLI.subcommands()
        return {verb: every[verb] for verb in cls.VERBS}

    def parse_arguments(self, parser: LightningArgumentParser, args: ArgsType) -> None:
        """Parses the arguments; raises ValueError if ``--ckpt_path`` is no checkpoint of a run."""
        self.config = parser.parse_args(args)  # type: ignore[arg-type]
        path = self._settings.get("ckpt_path")
        if not path or not Path(path).is_file():
            return
        content = read_checkpoint(Path(path))
        if "state_dict" not in content:
            raise ValueError(
                f"{path!r} is no checkpoint of a run; give weights of other layouts with "
                f"{self.WEIGHTS}"
            )
        if self.config.get("subcommand") == "fit" and "optimizer_states" not in content:
            raise ValueError(
                f"{path!r} holds weights alone, and a run goes on from its optimizer's state, too; "
                "give another checkpoint, or start a new run from these weights"
            )

    @property
    def _settings(self) -> Any:
        return self.config.get(self.config.get("subcommand"), self.config)

    def before_instantiate_classes(self) -> None:
        """Chooses the run's folder; a resumed run keeps its own."""
        config = self._settings
        self._check_checkpoints(config.checkpoint)
        given = config.clone()
        given.pop("ckpt_path", None)
        runs = Runs.of(config.trainer)
        self._checkpoint = self._find_checkpoint(runs)
        trains = self.subcommand in ("fit", None)
        folder = run_folder(runs, self._checkpoint) if trains else runs.next()
        follow(config.trainer, runs, folder)
        if "ckpt_path" in config:  # a measurement loads its weights itself
            resumes = self._checkpoint and self.subcommand == "fit"
            config.ckpt_path = str(self._checkpoint) if resumes else None
        validates = config.trainer.limit_val_batches != 0
        if not validates and str(config.checkpoint.monitor).startswith("val/"):
            config.checkpoint.monitor = None
        self.save_config_kwargs = {"folder": folder, "given": given}

    def _check_checkpoints(self, options: Any) -> None:
        """Raises ValueError if the best checkpoint would not be found, by score or by place."""
        known = (*self.LOGGED, "step", "epoch")
        if options.monitor not in (None, *known) and not self._has_own_callbacks():
            raise ValueError(
                f"checkpoint.monitor={options.monitor!r} is not logged; choose one of "
                f"{', '.join(known)}"
            )
        if options.dirpath is not None:
            raise ValueError(
                f"checkpoint.dirpath={str(options.dirpath)!r}: a run's checkpoints are in its "
                "folder, where --ckpt_path finds them; give trainer.logger.init_args.save_dir"
            )
        if options.save_weights_only:
            raise ValueError(
                "checkpoint.save_weights_only=true: a run goes on from its checkpoints; leave it "
                "out, as the finished run's model.safetensors holds the weights alone"
            )

    def _has_own_callbacks(self) -> bool:
        """Returns whether the trainer has callbacks of the user, which may log other scores."""
        given = self._settings.trainer.callbacks or []
        paths = [str(c.class_path) for c in (given if isinstance(given, list) else [given])]
        return any(not path.startswith(("segformer.", "lightning.")) for path in paths)

    def _find_checkpoint(self, runs: Runs) -> Path | None:
        named = self._settings.get("ckpt_path")
        if not named:
            return None
        monitor = self._settings.checkpoint.monitor
        found = find_checkpoint(str(named), runs.folder, runs.folders(), monitor)
        if found is None and self.subcommand != "fit":
            raise FileNotFoundError(
                f"--ckpt_path {named}: no run in {str(runs.folder)!r} has a checkpoint yet"
            )
        if found is None:
            folder = str(runs.folder)
            rank_zero_info(f"no checkpoint in {folder!r} yet: the run starts from the beginning")
        return found

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """Without a terminal, lines are printed instead of the progress bar."""
        settings = self._get(self.config_init, "trainer")
        given = settings.callbacks if isinstance(settings.callbacks, list) else [settings.callbacks]
        has_own = any(isinstance(callback, ProgressBar) for callback in given)
        is_wanted = settings.enable_progress_bar is not False and not settings.barebones
        if is_wanted and not has_own and not sys.stdout.isatty():
            self.trainer_defaults = {**self.trainer_defaults, "callbacks": [ProgressLines()]}
        return super().instantiate_trainer(**kwargs)

    def before_fit(self) -> None:
        """Writes no half of a checkpoint, and none in a run that only tries the settings."""
        trainer: Any = self.trainer
        trainer.strategy.checkpoint_io = AtomicCheckpointIO()
        if trainer.fast_dev_run:  # Lightning would write the last checkpoint nevertheless
            drop_callbacks(trainer, ModelCheckpoint)

    def after_fit(self) -> None:
        """Loads the best weights and writes the results; a run that tries the settings has none."""
        trainer: Any = self.trainer
        if trainer.fast_dev_run:
            rank_zero_info("fast_dev_run: the run works; nothing is written")
            return
        load_best(self.model, trainer, self._settings.checkpoint.monitor)
        self.write_results()

    @abstractmethod
    def write_results(self) -> None:
        """Writes the weights of a finished run, and what they score."""

    @property
    def _folder(self) -> Path:
        callback: Any = find_callback(self.trainer, RunFolder)
        return callback.folder
