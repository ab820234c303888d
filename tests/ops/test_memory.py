"""The allocator's setting, in processes of their own."""

from __future__ import annotations

import platform
from pathlib import Path

import processes
import pytest

SCRIPT = """
import torch
from segformer.ops.memory import keep_large_blocks

def resident():
    return int(open("/proc/self/statm").read().split()[1]) * 4096

if {keep}:
    keep_large_blocks()
before = resident()
for _ in range(10):
    torch.empty(64 << 20, dtype=torch.uint8).fill_(1)
print(resident() - before)
"""


@pytest.mark.slow
@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="a setting of glibc")
def test_large_blocks_are_kept_where_it_is_asked_for(tmp_path: Path) -> None:
    kept, given_back = (
        int(processes.run(SCRIPT.format(keep=keep), output=tmp_path / str(keep)))
        for keep in (True, False)
    )
    # Of ten blocks two or three, by the heap's alignment, are used again and again.
    assert 60 << 20 < kept < 300 << 20
    assert given_back < kept / 3  # what else the process took since
