"""Connected components of a map of whole numbers."""

from __future__ import annotations

import torch
from torch import Tensor


def components(values: Tensor) -> Tensor:
    """Returns the index (H, W) of each pixel's component, counted from 0; -1 where a value is.

    Pixels are in one component if they are joined by a path of pixels of the same value, each
    beside, above or below the next.

    Args:
        values: Whole numbers (H, W); pixels of -1 are in no component.
    """
    values = values.cpu()
    index = torch.arange(values.numel()).view(values.shape)
    below = (values[1:] == values[:-1]) & (values[1:] >= 0)
    beside = (values[:, 1:] == values[:, :-1]) & (values[:, 1:] >= 0)
    first = torch.cat([index[1:][below], index[:, 1:][beside]])
    second = torch.cat([index[:-1][below], index[:, :-1][beside]])
    root = _roots(index.flatten(), first, second).view(values.shape)
    found = torch.full_like(root, -1)
    is_inside = values >= 0
    found[is_inside] = root[is_inside].unique(return_inverse=True)[1]
    return found


def _roots(root: Tensor, first: Tensor, second: Tensor) -> Tensor:
    """Returns the least number that each number is joined to, by pairs of neighbours.

    Each round joins the roots of all pairs whose roots differ, and shortens all paths to a root.
    """
    while True:
        a, b = root[first], root[second]
        differ = a != b
        if not differ.any():
            return root
        first, second = first[differ], second[differ]
        low, high = torch.minimum(a, b)[differ], torch.maximum(a, b)[differ]
        root = root.scatter_reduce(0, high, low, "amin")
        while not torch.equal(shorter := root[root], root):
            root = shorter
