"""Parts of a network that are not trained."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from fnmatch import filter as matching

from torch import nn


def freeze(network: nn.Module, names: Sequence[str]) -> tuple[str, ...]:
    """Makes parts of a network need no gradient, and puts the modules into evaluation mode.

    In evaluation mode BatchNorm keeps its statistics, and dropout does nothing. A module gets back
    into training mode with its parents; the training task prevents it.

    Args:
        network: The network.
        names: Modules and parameters, by their names in ``named_modules()`` and
            ``named_parameters()``, or by patterns in which ``*`` stands for any letters.

    Returns:
        The names of the frozen modules. Modules themselves may be replaced later, as
        ``trainer.sync_batchnorm`` does with BatchNorm.

    Raises:
        ValueError: If a name stands for nothing in the network, or nothing is left to train.
    """
    modules = {name: module for name, module in network.named_modules() if name}
    parameters = dict(network.named_parameters())
    frozen: list[str] = []
    for name in names:
        found = matching(modules, name), matching(parameters, name)
        if not any(found):
            known = [*modules, *parameters]
            near = difflib.get_close_matches(name, known, 3) or list(dict(network.named_children()))
            raise ValueError(
                f"frozen: the network has no module or parameter {name!r}; did you mean "
                f"{', '.join(near)}?"
            )
        frozen += found[0]
        for path in found[0]:
            modules[path].requires_grad_(False).eval()
        for path in found[1]:
            parameters[path].requires_grad_(False)
    if names and not any(parameter.requires_grad for parameter in network.parameters()):
        raise ValueError(f"frozen={list(names)} leaves nothing to train; remove a name")
    return tuple(frozen)
