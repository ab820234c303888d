"""The argument parser of the verbs."""

from __future__ import annotations

import argparse
from typing import NoReturn


class Parser(argparse.ArgumentParser):
    """Raises ArgumentError where argparse exits.

    The error has the names of the parser's options, ``options``, to suggest the closest.
    """

    def error(self, message: str) -> NoReturn:
        error: argparse.ArgumentError = argparse.ArgumentError(None, message)
        names = [name.lstrip("-") for name in self._option_string_actions]
        error.options = names  # type: ignore[attr-defined]
        raise error
