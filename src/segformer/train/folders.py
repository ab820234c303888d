"""One folder for each run, with any logger: its checkpoints, its config and its results."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jsonargparse import Namespace
from lightning import LightningModule, Trainer
from lightning.pytorch.cli import SaveConfigCallback
from lightning.pytorch.utilities import rank_zero_only

CSV = "lightning.pytorch.loggers.CSVLogger"
FOLLOWERS = ("CSVLogger", "TensorBoardLogger")  # loggers that write into SAVE_DIR/NAME/VERSION
NAMES = ("name", "project", "experiment_name")  # options of loggers for the name of several runs
UNNAMED = "lightning_logs"  # Lightning's default name
OWN = "Resumable"  # callback whose checkpoints are always in the run's folder
CHECKPOINTS = "checkpoints"  # folder of the checkpoints in a run's folder


@dataclass(frozen=True)
class Runs:
    """The runs of a config: ``folder/version_0``, ``folder/version_1`` and so on.

    Args:
        folder: SAVE_DIR/NAME of the first logger; without one, ``default_root_dir/lightning_logs``.
        version: Name that the config gives the run, if any.
    """

    folder: Path
    version: str | None

    @classmethod
    def of(cls, trainer: Namespace) -> Runs:
        """Returns the runs of a trainer's settings."""
        root = trainer.get("default_root_dir") or "."
        loggers = loggers_of(trainer)
        options = (loggers[0].get("init_args") if loggers else None) or Namespace()
        name = next((options[key] for key in NAMES if options.get(key) is not None), UNNAMED)
        version = options.get("version")
        named = version if version is None or isinstance(version, str) else f"version_{version}"
        return cls(Path(options.get("save_dir") or root) / str(name), named)

    def folders(self) -> list[Path]:
        """Returns the folder that the config names, or those of all runs, the newest first."""
        if self.version is not None:
            return [self.folder / self.version]
        return [path for _, path in sorted(self._numbered(), reverse=True)]

    def next(self) -> Path:
        """Returns the folder of a new run."""
        last = max((number for number, _ in self._numbered()), default=-1)
        return self.folder / f"version_{last + 1}"

    def _numbered(self) -> list[tuple[int, Path]]:
        numbers = (
            (path.name.removeprefix("version_"), path) for path in self.folder.glob("version_*")
        )
        return [(int(number), path) for number, path in numbers if number.isdigit()]


def run_folder(runs: Runs, checkpoint: Path | None) -> Path:
    """Returns the folder of the resumed run, the one that the config names, or a new one.

    Args:
        runs: The runs of the config.
        checkpoint: The checkpoint from which a run is resumed, if any.

    Raises:
        FileExistsError: If the config names the folder of another run.
    """
    for folder in runs.folders():
        checkpoints = (folder / CHECKPOINTS).resolve()
        if checkpoint and checkpoint.resolve().parent == checkpoints:
            # Loggers warn of a folder that exists, as that of a resumed run does.
            warnings.filterwarnings("ignore", "(Experiment logs|Checkpoint) directory .* exists")
            keep_metrics(folder)
            return folder
    if runs.version is None:
        return runs.next()
    refuse_to_overwrite(runs.folder / runs.version)
    return runs.folder / runs.version


def loggers_of(trainer: Namespace) -> list[Namespace]:
    """Returns the settings of a trainer's loggers; those of the default logger are set first."""
    if trainer.get("logger") in (None, True):
        options = Namespace(
            save_dir=trainer.get("default_root_dir") or ".", name=UNNAMED, version=None
        )
        trainer.logger = Namespace(class_path=CSV, init_args=options)
    if trainer.logger is False:
        return []
    return trainer.logger if isinstance(trainer.logger, list) else [trainer.logger]


def follow(trainer: Namespace, runs: Runs, folder: Path) -> None:
    """Sets the run's folder for all loggers that write into the folder of the runs."""
    for logger in loggers_of(trainer):
        follows = str(logger.class_path).rpartition(".")[2] in FOLLOWERS
        if follows and Runs.of(Namespace(logger=logger)).folder == runs.folder:
            logger.init_args.version = folder.name


def refuse_to_overwrite(folder: Path) -> None:
    """Raises FileExistsError if a folder holds a run already."""
    if (folder / "model.safetensors").exists() or any(folder.glob(f"{CHECKPOINTS}/*.ckpt")):
        raise FileExistsError(
            f"{str(folder)!r} holds a run already; go on with it by --ckpt_path last, "
            "or give another logger version"
        )


@rank_zero_only
def keep_metrics(folder: Path) -> None:
    """Renames the metrics of a resumed run, which the CSV logger would overwrite."""
    metrics = folder / "metrics.csv"
    if metrics.is_file():
        metrics.rename(folder / f"metrics_{len(list(folder.glob('metrics*.csv')))}.csv")


class RunFolder(SaveConfigCallback):
    """Sets the folder of a run's checkpoints, and writes the config into the run's folder.

    Args:
        parser: Writes the config.
        config: The settings after defaults and changes; not used.
        folder: The run's folder.
        given: The settings as the command received them, which are written.
    """

    def __init__(self, parser: Any, config: Namespace, folder: Path, given: Namespace) -> None:
        super().__init__(parser, given, save_to_log_dir=False)
        self.folder = folder

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        # Another process may have counted the folders later, when there was one more.
        self.folder = Path(trainer.strategy.broadcast(str(self.folder)))
        for callback in trainer.checkpoint_callbacks:
            if getattr(callback, "dirpath", "") is None:
                callback.dirpath = str(self.folder / CHECKPOINTS)  # type: ignore[attr-defined]
        super().setup(trainer, pl_module, stage)

    def save_config(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # jsonargparse renames skip_none
            self.parser.save(
                self.config, self.folder / self.config_filename, skip_none=False, overwrite=True
            )

    def on_load_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Corrects the paths in the callbacks' states, if the run's folder was moved."""
        here = self.folder / CHECKPOINTS
        path = Path(str(trainer.ckpt_path))
        if path.resolve().parent != here.resolve():
            return
        states = checkpoint["callbacks"]
        old = next((s["dirpath"] for name, s in states.items() if name.startswith(OWN)), None)
        for state in states.values():
            if old is not None and state.get("dirpath") == old:  # others are where they were
                _move(state, str(here))


def _move(state: dict[str, Any], here: str) -> None:
    """Replaces the folder of a ModelCheckpoint's paths."""

    def moved(path: str) -> str:
        return str(Path(here) / Path(path).name) if path else path

    for key in ("best_model_path", "kth_best_model_path", "last_model_path"):
        state[key] = moved(state[key])
    state["best_k_models"] = {moved(path): score for path, score in state["best_k_models"].items()}
    state["dirpath"] = here
