"""``segformer fit FOLDER`` and ``check FOLDER``: a run, or a check, by the plan of a folder.

The plan is a YAML file that ``segformer fit --config`` takes, and the run is made from it.
"""

from __future__ import annotations

import sys
import tempfile
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jsonargparse import Namespace

from segformer.train import check, lightning_cli
from segformer.train.folders import CSV, FOLLOWERS, Runs, refuse_to_overwrite
from segformer.train.from_folder.options import Options, parse
from segformer.train.from_folder.plan import make_plan

CONFIG = "run.yaml"


def main(arguments: list[str]) -> None:
    """Runs ``fit`` or ``check`` on the folder that follows it in the arguments.

    Raises:
        argparse.ArgumentError: If an option is unknown or its value has the wrong type.
        ValueError: If the folder can be read in more than one way.
        SystemExit: With code 1 if ``check`` finds a problem.
    """
    verb, *rest = arguments
    if verb == "check":
        _check(parse(verb, rest))
    else:
        _fit(parse(verb, rest))


def _fit(options: Options) -> None:
    plan = make_plan(options)
    print("\n".join(plan.decisions), flush=True)
    folder = _run_folder(plan.settings["trainer"], options)
    config = options.out or folder / CONFIG
    plan.write(config)
    print(f"wrote {config}", flush=True)
    if options.dry_run:
        print(f"train by: segformer fit --config {config}")
        return
    command = ["fit", "--config", str(config)]
    if options.out is None:
        command.append(f"--trainer.logger.init_args.version={folder.name}")
        # Loggers warn of a folder that exists; this one holds the config alone.
        warnings.filterwarnings("ignore", "(Experiment logs|Checkpoint) directory .* exists")
    sys.argv[1:] = command  # processes of other devices run it again
    lightning_cli.main(command)


def _run_folder(trainer: Mapping[str, Any], options: Options) -> Path:
    """Returns the folder of a new run.

    Raises:
        ValueError: If a logger that the user gave chooses the folder itself, and --out is missing.
    """
    logger = trainer["logger"]
    follows = isinstance(logger, dict) and logger["class_path"].rpartition(".")[2] in FOLLOWERS
    if options.out is None and not follows:
        raise ValueError(
            f"the logger {logger!r} chooses the run's folder; pass --out FILE for the YAML"
        )
    init_args = Namespace(**logger.get("init_args", {})) if follows else Namespace()
    runs = Runs.of(Namespace(logger=Namespace(class_path=CSV, init_args=init_args)))
    if runs.version is None:
        return runs.next()
    refuse_to_overwrite(runs.folder / runs.version)
    return runs.folder / runs.version


def _check(options: Options) -> None:
    plan = make_plan(options)
    print("\n".join(plan.decisions), flush=True)
    picture = [f"--out={options.out}"] if options.out else []
    workers = [f"--num_workers={options.num_workers}"]
    with tempfile.TemporaryDirectory() as folder:
        config = Path(folder, CONFIG)
        plan.write(config)
        check.main([f"--config={config}", *picture, *workers])
