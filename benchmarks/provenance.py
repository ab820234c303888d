"""Where a measurement comes from: machine, versions, commit, date, command, and the load."""

from __future__ import annotations

import datetime
import os
import platform
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

import segformer

PACKAGES = (
    "torch",
    "transformers",
    "segmentation-models-pytorch",
    "onnxruntime",
    "openvino",
    "albumentations",
)


BUSY = 0.05  # share of the cores' time that other processes may take


def provenance(command: str, machine: str, load: Load) -> dict[str, Any]:
    """The fields that each row of the results carries beside what was measured."""
    note = {} if load.others <= BUSY else {"note": load.note()}
    return {
        "machine": machine,
        "versions": versions(),
        "commit": commit(),
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "load": {"average": round(load.average, 2), "others": round(load.others, 3)},
        "command": command,
        **note,
    }


class Load:
    """How busy the machine was with other work.

    Attributes:
        average: the number of processes that ran or waited, in the minute before.
        others: the share of all cores' time that other processes took, and other machines on the
            same host. It is 0 where the system does not tell (outside Linux).
    """

    def __init__(self, average: float, others: float) -> None:
        self.average, self.others = average, others

    def note(self) -> str:
        """What the machine was busy with, as a sentence for a reader of the results."""
        return f"other work took {100 * self.others:.0f} % of the cores' time"


@contextmanager
def watched() -> Iterator[Load]:
    """Context that measures the load; ``others`` is set at its end.

    The time of this process and of the processes that it has waited for is its own.
    """
    load, (busy, total), own = Load(os.getloadavg()[0], 0.0), _cores(), _own()
    yield load
    now_busy, now_total = _cores()
    if now_total > total:
        load.others = max(0.0, (now_busy - busy - (_own() - own)) / (now_total - total))


def warn_if_busy(seconds: float = 1.0) -> None:
    """Write a warning to standard error if other work takes the cores now."""
    with watched() as load:
        time.sleep(seconds)
    if load.others > BUSY:
        print(f"the machine is busy: {load.note()}; the times will be too long", file=sys.stderr)


def _cores() -> tuple[float, float]:
    """Seconds that all cores have worked, and seconds in all, since the system started."""
    path = Path("/proc/stat")
    if not path.is_file():
        return 0.0, 0.0
    ticks = [int(word) for word in path.read_text().splitlines()[0].split()[1:9]]
    idle = sum(ticks[3:5])  # idle, and waiting for a disk
    hertz = os.sysconf("SC_CLK_TCK")
    return (sum(ticks) - idle) / hertz, sum(ticks) / hertz


def _own() -> float:
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


def commit() -> str:
    """The commit of the source, with "+" if files differ from it; empty outside a repository."""
    folder = Path(__file__).parent

    def git(*words: str) -> str:
        process = subprocess.run(
            ["git", "-C", str(folder), *words], capture_output=True, text=True, check=False
        )
        return process.stdout.strip()

    changed = git("status", "--porcelain", "--untracked-files=no", "--", "../src", ".")
    is_other = [line for line in changed.splitlines() if not line.endswith(".json")]
    return git("rev-parse", "--short", "HEAD") + ("+" if is_other else "")


def versions() -> dict[str, str]:
    """Versions of this package and of its peers, where they are installed."""
    found = {"segformer": segformer.__version__}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def cpu(threads: int) -> str:
    """The processor, its vector instructions as PyTorch uses them, and the number of threads."""
    name = platform.processor()
    info = Path("/proc/cpuinfo")
    if info.is_file():
        lines = info.read_text().splitlines()
        name = next(
            (line.split(":")[1].strip() for line in lines if line.startswith("model name")), name
        )
    counted = "1 thread" if threads == 1 else f"{threads} threads"
    return f"{name}, {torch.backends.cpu.get_cpu_capability()}, {counted}"
