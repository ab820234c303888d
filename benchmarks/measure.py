"""How time and memory are measured: interleaved, with medians and ranges, in one process, under two allocators."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

# glibc's settings under which large blocks are kept instead of being given back to the system as soon as they are free
RETAINING = {
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TRIM_THRESHOLD_": "100000000000",
    "MALLOC_TOP_PAD_": "500000000",
}

PAUSE = 0.1  # seconds


def interleaved(
    works: dict[str, Callable[[], Any]], repeats: int, gradients: bool = False, warm_up: int = 1
) -> list[dict[str, Any]]:
    """Each contestant in turn, again and again, after rounds to warm up: seconds, and how many times longer than the first's.

    In each turn it works twice, and the second time counts, as in a loop over images: the first runs into what the others have left behind.
    A pause before lets the threads of libraries that wait for more work go to sleep, or they would take the next one's cores.
    """
    times: dict[str, list[float]] = {name: [] for name in works}
    with torch.enable_grad() if gradients else torch.inference_mode():
        for round_ in range(repeats + warm_up):
            for name, work in works.items():
                time.sleep(PAUSE)
                _finish(work)
                start = time.perf_counter()
                _finish(work)
                if round_ >= warm_up:
                    times[name].append(time.perf_counter() - start)
    first = next(iter(times.values()))
    return [
        {
            "name": name,
            "seconds": _spread(seconds),
            "ratio": _spread([b / a for a, b in zip(first, seconds, strict=True)]),
        }
        for name, seconds in times.items()
    ]


def _finish(work: Callable[[], Any]) -> None:
    work()
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()


def _spread(values: list[float]) -> dict[str, float]:
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


def matrix_product_rate(side: int = 1536, repeats: int = 7) -> float:
    """Multiply-adds a second that the best square float32 matrix product reaches on this machine, now, by either of PyTorch's libraries."""
    a, b = torch.randn(side, side), torch.randn(side, side)
    image = a.T.reshape(1, side, 1, side).contiguous(memory_format=torch.channels_last)
    kernels = b[:, :, None, None]
    rows = interleaved(
        {"product": lambda: a @ b, "1×1 convolution": lambda: torch.conv2d(image, kernels)}, repeats
    )
    return side**3 / min(row["seconds"]["min"] for row in rows)


def peak_growth(work: Callable[[], Any], repeats: int = 2) -> int:
    """Bytes by which the process's memory grows at the most while it works, over what it takes before (Linux)."""
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
