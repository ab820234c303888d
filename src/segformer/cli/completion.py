"""``segformer --print-completion SHELL``: the script with which a shell completes the command."""

from __future__ import annotations

import argparse

from _segformer_verbs import VERBS, parser, refuse
from segformer.cli import parser_of


def tree() -> argparse.ArgumentParser:
    """Returns one parser of the whole command, with a subparser for each verb."""
    top = parser()
    verbs = top.add_subparsers(metavar="VERB", parser_class=argparse.ArgumentParser)
    for verb, sentence in VERBS.items():
        verbs.add_parser(verb, help=sentence, parents=[parser_of(verb)], add_help=False)
    return top


def run(shell: str) -> None:
    """Prints the completion script of a shell."""
    print(script(shell))


def script(shell: str) -> str:
    """Returns the completion script of a shell: bash, zsh or tcsh.

    Raises:
        SystemExit: With code 2 if shtab is not installed.
    """
    try:
        import shtab
    except ModuleNotFoundError as error:
        refuse("segformer --print-completion needs shtab; install segformer[completion]", error)
    completed = {"FILE": shtab.FILE, "DIR": shtab.DIRECTORY}
    command = tree()
    for action in _actions(command):
        if action.metavar in completed:
            action.complete = completed[action.metavar]  # type: ignore[attr-defined]
    return shtab.complete(command, shell)


def _actions(command: argparse.ArgumentParser) -> list[argparse.Action]:
    """Returns all actions of a parser and its subparsers."""
    actions = list(command._actions)
    for action in command._actions:
        if isinstance(action, argparse._SubParsersAction):
            actions += [a for subparser in action.choices.values() for a in _actions(subparser)]
    return actions
