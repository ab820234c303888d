"""From an error to the one sentence that the command prints."""

from __future__ import annotations

import re
from argparse import ArgumentError
from collections.abc import Iterator
from types import TracebackType

from _segformer_verbs import closest

EXPECTED = (OSError, ValueError, FloatingPointError, ArgumentError)  # a user can correct these
PARSERS = ("jsonargparse", "argparse", "segformer.train.parser", "segformer.cli.parser")  # modules


def explain(error: BaseException, verb: str, arguments: list[str]) -> str | None:
    """Returns the sentence for an error that a user can correct, None for any other.

    Args:
        error: The error.
        verb: The verb that raised it.
        arguments: The arguments of the verb.
    """
    is_argument = isinstance(error, ArgumentError)
    cause = _root_cause(error)
    if not isinstance(error if is_argument else cause, EXPECTED):
        return None
    sentence = f"segformer {verb}: "
    if not is_argument:
        return sentence + _one_line(cause)
    key = _key(error)
    sentence += (f"{key}: " if key else "") + _one_line(cause)
    hint = f" (segformer {verb} --help lists the options)"
    return sentence + (_suggestion(error, str(cause), key, arguments) or hint)


def _chain(error: BaseException) -> Iterator[BaseException]:
    """Yields the error, then those that it was raised from, to the first not of a parser."""
    below: BaseException | None = error
    while below is not None:
        yield below
        if not _module_of(below.__traceback__).startswith(PARSERS):
            return
        below = below.__cause__ or below.__context__


def _root_cause(error: BaseException) -> BaseException:
    return list(_chain(error))[-1]


def _key(error: BaseException) -> str:
    """Returns the key of the YAML, or the option, at which a parser failed."""
    found = [key for e in _chain(error) for key in re.findall(r'Parser key "([^"]+)"', str(e))]
    return ".".join(dict.fromkeys(found))


def _suggestion(error: BaseException, message: str, key: str, arguments: list[str]) -> str:
    """Returns the option that is closest to an unknown one; with dashes if it is an argument."""
    unknown = re.search(
        r"(?:[Oo]ption|[Kk]ey) '([^']+)'|unrecognized arguments: --([^\s=]+)", message
    )
    options = [e.options for e in _chain(error) if hasattr(e, "options")]
    if unknown is None or not options:
        return ""
    name = unknown[1] or unknown[2]
    full = f"{key}.{name}" if key else name
    is_option = any(word.partition("=")[0] == f"--{full}" for word in arguments)
    return closest(name, options[-1], ("--" if is_option else "") + full.removesuffix(name))


def _module_of(traceback: TracebackType | None) -> str:
    """Returns the name of the module that raised an error."""
    name = ""
    while traceback is not None:
        name, traceback = traceback.tb_frame.f_globals.get("__name__", ""), traceback.tb_next
    return name


def _one_line(error: BaseException) -> str:
    text = re.sub(r"<class '([^']+)'>", r"\1", str(error))
    text = re.sub(r"\.? Got value: Namespace\(.*", "", text, flags=re.DOTALL)
    return " ".join(text.split())
