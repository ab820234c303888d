"""How much memory one temporary may take, and how glibc's allocator treats large blocks.

A CPU's allocator gives large blocks back to the system as soon as they are free, and touching a
fresh one costs more than filling it. A map that is needed once is better made in pieces that stay
in cache.
"""

from __future__ import annotations

import ctypes
import platform

import torch

PIECE = 8 << 20  # bytes of one temporary on a CPU
GPU_PIECE = 256 << 20  # on a GPU, where each piece costs some launches


def keep_large_blocks() -> None:
    """Let glibc keep the large blocks that this process frees, for the next ones.

    It is a setting of the whole process, which from then on keeps as much memory as it once took:
    programs such as the command line choose it, importing a library does not.
    """
    if platform.libc_ver()[0] == "glibc":
        mallopt = ctypes.CDLL(None).mallopt
        no_maps, no_trimming = (-4, 0), (-1, -1)  # M_MMAP_MAX, M_TRIM_THRESHOLD
        mallopt(*no_maps)
        mallopt(*no_trimming)


# From the largest block that a program has freed, glibc learns which ones to serve from memory that
# it holds (mallopt(3), the dynamic threshold, 32 MiB at most). The first forward pass would free
# such a block after its work; here one is freed before it. It is never touched, so it takes no
# memory.
_freed = torch.empty((32 << 20) - (64 << 10), dtype=torch.uint8, device="cpu")
del _freed
