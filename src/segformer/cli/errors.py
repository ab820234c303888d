"""From an error to the one sentence that the command prints."""

from __future__ import annotations

import re
from argparse import ArgumentError
from collections.abc import Iterator
from types import TracebackType

from _segformer_verbs import closest

EXPECTED = (OSError, ValueError, FloatingPointError, ArgumentError)  # a user can correct these
UNION = "Does not validate against any of the Union subtypes"  # jsonargparse's words
OTHER_TYPE = re.compile(  # how the fault of a type begins that is not the one that was meant
    r"Expected "
    r"|Import path \S+ does not correspond to a subclass"
    r"|Not a valid subclass"
    r"|\w+\.__init__\(\) got an unexpected keyword"
    r"|.*Parser key",
    re.DOTALL,
)
PARSERS = ("jsonargparse", "argparse", "segformer.train.parser", "segformer.cli.parser")  # modules


def explain(error: BaseException, verb: str, arguments: list[str]) -> str | None:
    """Returns the sentence for an error that a user can correct, None for any other.

    Args:
        error: The error.
        verb: The verb that raised it.
        arguments: The arguments of the verb.
    """
    is_argument = isinstance(error, ArgumentError)
    cause, of_class = _root_cause(error), _fault_of_class(error)
    if of_class is None and not isinstance(error if is_argument else cause, EXPECTED):
        return None
    message = of_class or str(cause)
    sentence = f"segformer {verb}: "
    if not is_argument:
        return sentence + _one_line(message)
    key = _key(error)
    sentence += (f"{key}: " if key else "") + _one_line(message)
    hint = f" (segformer {verb} --help lists the options)"
    return sentence + (_suggestion(error, message, key, arguments) or hint)


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


def _fault_of_class(error: BaseException) -> str | None:
    """Returns what is wrong with a class that is given where several types are possible.

    The parser lists a fault for each of the types, such as that a class is no string, and the cause
    of its error is the first of them.
    """
    texts = [str(e) for e in _chain(error) if UNION in str(e)]
    return _of_union(texts[-1]) if texts else None


def _of_union(text: str) -> str | None:
    faults = text.partition("Errors:\n")[2].rpartition("Given value type:")[0]
    indentation = " " * (len(faults) - len(faults.lstrip()))
    for fault in reversed(re.split(rf"(?m)^{indentation}- ", faults)):
        if UNION in fault:
            return _of_union(fault)
        if fault.strip() and not OTHER_TYPE.match(fault):
            return re.sub(r"(?s).*Problem with given class_path '[^']*':\s*", "", fault).strip()
    return None


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


def _one_line(message: str) -> str:
    text = re.sub(r"<class '([^']+)'>", r"\1", message)
    text = re.sub(r"\.? Got value: Namespace\(.*", "", text, flags=re.DOTALL)
    return " ".join(text.split())
