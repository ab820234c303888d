"""The command ``segformer``: each verb imports only its own room."""

from __future__ import annotations

import argparse
import logging
import os
import re
import sys
from io import TextIOWrapper
from types import TracebackType
from typing import NoReturn

DEBUG = "SEGFORMER_DEBUG"  # an environment variable: show where an error was raised
EXPECTED = (OSError, ValueError, FloatingPointError, argparse.ArgumentError)  # what a user can mend

VERBS = {
    "check": "read a config's data before a run does: segformer check --config …",
    "fit": "train a network: segformer fit --config configs/scenes.yaml",
    "validate": "measure on the validation split: segformer validate --config … --weights … --protocol … --tta",
    "test": "measure a checkpoint on the test split: segformer test --config … --ckpt_path …",
    "predict": "label images: segformer predict WEIGHTS IMAGE… --out DIR",
    "inspect": "say what a checkpoint holds: segformer inspect FILE|FOLDER|HUB_ID",
    "convert": "write it in another layout: segformer convert IN OUT --layout native|huggingface|nvidia|smp",
}


class Refusal(SystemExit):
    """Ends the command with one sentence and exit code 2."""

    def __init__(self, sentence: str) -> None:
        super().__init__(sentence)
        self.code = 2


def main() -> None:
    """Entry point of the command line.

    Raises:
        SystemExit: With code 2, after one sentence on the standard error stream, if the arguments or the input are wrong.
    """
    parser = argparse.ArgumentParser(
        "segformer",
        description="SegFormer: semantic segmentation with Transformers.",
        epilog="\n".join(
            [
                *(f"  {verb:10}{what}" for verb, what in VERBS.items()),
                "",
                f"  {DEBUG}=1 shows tracebacks.",
            ]
        ),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "verb",
        choices=VERBS,
        metavar="VERB",
        help=f"one of {', '.join(VERBS)}; VERB --help says more",
    )
    verb = parser.parse_args(sys.argv[1:2]).verb
    if isinstance(sys.stdout, TextIOWrapper):  # a name that the terminal cannot show costs no run
        sys.stdout.reconfigure(errors="replace")
    _log()
    from segformer.ops.memory import keep_large_blocks

    keep_large_blocks()
    try:
        _run(verb)
    except SystemExit as stop:
        if isinstance(stop.code, str):
            _refuse(stop.code, stop)
        raise
    except Exception as error:
        cause, keys = _root_cause(error)
        if os.environ.get(DEBUG) or not isinstance(
            error if isinstance(error, argparse.ArgumentError) else cause, EXPECTED
        ):
            raise
        where = f"{'.'.join(keys)}: " if keys and isinstance(error, argparse.ArgumentError) else ""
        hint = (
            f" (segformer {verb} --help lists the options)"
            if isinstance(error, argparse.ArgumentError)
            else ""
        )
        _refuse(f"segformer {verb}: {where}{_one_line(cause)}{hint}", error)


def _log() -> None:
    """Log messages on the standard error stream, each once, without Lightning's advertisements."""
    handler = logging.StreamHandler()
    handler.addFilter(lambda record: "\N{ELECTRIC LIGHT BULB}" not in record.getMessage())
    logging.basicConfig(format="%(message)s", handlers=[handler])


def _run(verb: str) -> None:
    if verb == "predict":
        from segformer.inference import main as predict

        predict(sys.argv[2:])
    elif verb in ("inspect", "convert"):
        from segformer.convert import main as convert

        convert(sys.argv[1:])
    else:
        _train(verb)


def _train(verb: str) -> None:
    try:
        if verb == "check":
            from segformer.train.check import main as check

            return check(sys.argv[2:])
        from segformer.train.cli import main as train
    except ModuleNotFoundError as error:
        sys.exit(
            f"segformer {sys.argv[1]} needs {error.name}; install this package with its training extra, [train]"
        )
    logging.getLogger("lightning").handlers.clear()  # its messages reach the root's handler anyway
    train()


def _refuse(sentence: str, error: BaseException) -> NoReturn:
    print(sentence, file=sys.stderr)
    raise Refusal(sentence) from error


def _root_cause(error: BaseException) -> tuple[BaseException, list[str]]:
    """The error below those of the argument parser, which only quote it, and the keys of the YAML that lead to it."""
    keys: list[str] = []
    while True:
        keys += [key for key in re.findall(r'Parser key "([^"]+)"', str(error)) if key not in keys]
        below = error.__cause__ or error.__context__
        if below is None or not _module_of(error.__traceback__).startswith(
            ("jsonargparse", "argparse")
        ):
            return error, keys
        error = below


def _module_of(traceback: TracebackType | None) -> str:
    """The module in which an error was raised."""
    name = ""
    while traceback is not None:
        name, traceback = traceback.tb_frame.f_globals.get("__name__", ""), traceback.tb_next
    return name


def _one_line(error: BaseException) -> str:
    text = re.sub(r"<class '([^']+)'>", r"\1", str(error))
    text = re.sub(r"\.? Got value: Namespace\(.*", "", text, flags=re.DOTALL)
    return " ".join(text.split())
