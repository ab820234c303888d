"""How much memory one temporary may take, and how glibc's allocator treats large blocks.

A CPU's allocator returns large blocks to the system as soon as they are free, and the first access
to a new block costs more than filling it. A map that is used once is computed in pieces that stay
in cache.
"""

from __future__ import annotations

import ctypes
import platform

import torch

PIECE = 8 << 20  # bytes of one temporary on a CPU
GPU_PIECE = 256 << 20  # on a GPU, where each piece costs some launches


def keep_large_blocks() -> None:
    """Make glibc keep the large blocks that this process frees, and reuse them.

    The setting holds for the whole process, whose memory never shrinks afterwards. Programs such as
    the command line choose it; importing this library does not.
    """
    if platform.libc_ver()[0] == "glibc":
        mallopt = ctypes.CDLL(None).mallopt
        no_maps, no_trimming = (-4, 0), (-1, -1)  # M_MMAP_MAX, M_TRIM_THRESHOLD
        mallopt(*no_maps)
        mallopt(*no_trimming)


# glibc serves blocks up to the size of the largest one freed so far (mallopt(3), the dynamic
# threshold, 32 MiB at most) from memory that it keeps. The first forward pass would free such a
# block only at its end, so one is freed here. It is never accessed, so it takes no memory.
_freed = torch.empty((32 << 20) - (64 << 10), dtype=torch.uint8, device="cpu")
del _freed
