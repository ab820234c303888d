"""Processes of their own for tests, forked from one that has imported the library already."""

from __future__ import annotations

import multiprocessing
import os
import sys
from multiprocessing.context import ForkServerProcess
from pathlib import Path

SERVER = multiprocessing.get_context("forkserver")  # forks a process that runs no threads
SERVER.set_forkserver_preload(["lightning", "segformer", "segformer.cli"])


def execute(code: str, arguments: tuple[str, ...], output: Path) -> None:
    with output.open("ab") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    sys.argv = ["-c", *arguments]
    # Of the ways to start a process, the platform's own is the first; this one was the parent's.
    multiprocessing.set_start_method(multiprocessing.get_all_start_methods()[0], force=True)
    exec(compile(code, "<test>", "exec"), {"__name__": "__main__"})


def start(code: str, *arguments: object, output: Path) -> ForkServerProcess:
    """Begin ``code`` with these ``sys.argv[1:]``; what it prints is added to ``output``."""
    process = SERVER.Process(target=execute, args=(code, tuple(map(str, arguments)), output))
    process.start()
    return process


def run(code: str, *arguments: object, output: Path) -> str:
    """What ``code`` prints, run to its end in a process of its own."""
    process = start(code, *arguments, output=output)
    process.join(300)
    printed = output.read_text()
    assert process.exitcode == 0, printed[-3000:]
    return printed
