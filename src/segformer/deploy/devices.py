"""Devices of the engines, by the names that a user gives."""

from __future__ import annotations

import torch


def torch_device(name: str) -> torch.device:
    """Returns a device of PyTorch.

    Raises:
        ValueError: If this machine, or this build of PyTorch, has no device of this name.
    """
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, ImportError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise ValueError(f"PyTorch has no device {name!r} here ({reason}); use the cpu") from error
    return device


def only_cpu(engine: str, name: str) -> None:
    """Raises ValueError if a device is not the CPU, the only one of an engine."""
    if name != "cpu":
        raise ValueError(f"{engine} runs on the cpu only, not on {name!r}; use the cpu")
