"""Time and memory, measured in turn in one process, as medians with ranges."""

from __future__ import annotations

import ctypes
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

# glibc keeps large blocks with these, instead of returning them to the system when they are free
RETAINING = {
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TRIM_THRESHOLD_": "100000000000",
    "MALLOC_TOP_PAD_": "500000000",
}

PAUSE = 0.1  # seconds


def interleaved(
    works: dict[str, Callable[[], Any]], repeats: int, gradients: bool = False, warm_up: int = 1
) -> list[dict[str, Any]]:
    """Seconds of each contestant in turn, and their ratios to the first contestant's.

    In each turn a contestant works twice and the second time counts, as in a loop over images: the
    first pays for caches that the others have filled. The pause before lets waiting threads of the
    other libraries go to sleep; otherwise they would take cores from the next contestant.

    The ratio of the time that all cores worked, ``cpu``, hardly depends on other work on the
    machine. It differs from ``ratio`` where threads wait for each other.
    """
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in works}
    with torch.enable_grad() if gradients else torch.inference_mode():
        for round_ in range(repeats + warm_up):
            for name, work in works.items():
                time.sleep(PAUSE)
                _finish(work)
                start, cpu = time.perf_counter(), time.process_time()
                _finish(work)
                if round_ >= warm_up:
                    times[name].append((time.perf_counter() - start, time.process_time() - cpu))
    first = next(iter(times.values()))
    return [
        {
            "name": name,
            "seconds": _spread([seconds for seconds, _ in of_it]),
            "ratio": _spread([b[0] / a[0] for a, b in zip(first, of_it, strict=True)]),
            "cpu": _spread([b[1] / max(a[1], 1e-9) for a, b in zip(first, of_it, strict=True)]),
        }
        for name, of_it in times.items()
    ]


def _finish(work: Callable[[], Any]) -> None:
    work()
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()


def _spread(values: list[float]) -> dict[str, float]:
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


def matrix_product_rate(side: int = 1536, repeats: int = 7) -> float:
    """Multiply-adds a second of the best square float32 matrix product on this machine, now.

    The better of PyTorch's two libraries, MKL and oneDNN, counts.
    """
    a, b = torch.randn(side, side), torch.randn(side, side)
    image = a.T.reshape(1, side, 1, side).contiguous(memory_format=torch.channels_last)
    kernels = b[:, :, None, None]
    rows = interleaved(
        {"product": lambda: a @ b, "1×1 convolution": lambda: torch.conv2d(image, kernels)}, repeats
    )
    return side**3 / min(row["seconds"]["min"] for row in rows)


def peak_growth(work: Callable[[], Any], repeats: int = 2) -> int:
    """Largest growth of the process's memory during the work, in bytes (Linux with glibc only).

    Memory that earlier work has freed is returned to the system before.
    """
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")  # forgets the peak so far
    before = _memory("VmRSS")
    for _ in range(repeats):
        work()
    return _memory("VmHWM") - before


def _memory(name: str) -> int:
    line = next(
        line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(name)
    )
    return 1024 * int(line.split()[1])
