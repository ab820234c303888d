"""The command ``segformer``: one module per verb, which parses the arguments and runs it.

A verb's module has two functions: ``add_arguments(parser)`` adds its options, and
``run(parser, arguments)`` runs it.
"""

from __future__ import annotations

import logging
import os
import sys
from argparse import RawDescriptionHelpFormatter
from importlib import import_module
from io import TextIOWrapper
from types import ModuleType

from _segformer_verbs import COMPLETION, DEBUG, EXAMPLES, VERBS, refuse, split
from segformer.cli import errors
from segformer.cli.parser import Parser
from segformer.ops.memory import keep_large_blocks

__all__ = ["VERBS", "main", "parser_of"]
INTERRUPTED = 130  # as a shell reports Ctrl-C


def main(arguments: list[str] | None = None) -> None:
    """Runs the verb that the arguments name; by default those of the process.

    Raises:
        SystemExit: With code 2 after one sentence on the error stream, if the arguments or the
            input are wrong; with code 130 if it is interrupted.
    """
    verb, rest = split(sys.argv[1:] if arguments is None else arguments)
    _prepare_streams()
    keep_large_blocks()
    try:
        if verb == COMPLETION:
            import_module("segformer.cli.completion").run(*rest)
        else:
            _module_of(verb).run(parser_of(verb), rest)
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)
    except SystemExit as stop:
        if isinstance(stop.__context__, KeyboardInterrupt):  # Lightning exits with 1
            sys.exit(INTERRUPTED)
        raise
    except Exception as error:
        sentence = errors.explain(error, verb, rest)
        if sentence is None or os.environ.get(DEBUG):
            raise
        refuse(sentence, error)


def parser_of(verb: str) -> Parser:
    """Returns the parser of a verb, with its own help."""
    parser = Parser(
        f"segformer {verb}",
        description=VERBS[verb],
        epilog=f"example:\n  {EXAMPLES[verb]}",
        formatter_class=RawDescriptionHelpFormatter,
    )
    _module_of(verb).add_arguments(parser)
    return parser


def _module_of(verb: str) -> ModuleType:
    return import_module(f"segformer.cli.{verb}")


def _prepare_streams() -> None:
    """Logs on the error stream, each message once, without the advertisements of Lightning."""
    if isinstance(sys.stdout, TextIOWrapper):  # a class name may have letters the terminal lacks
        sys.stdout.reconfigure(errors="replace")
    handler = logging.StreamHandler()
    handler.addFilter(lambda record: "\N{ELECTRIC LIGHT BULB}" not in record.getMessage())
    logging.basicConfig(format="%(message)s", handlers=[handler])
