"""Teachers: networks whose predictions another network is trained with."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from segformer.ops import at_least_float32, with_background


class WithTeacher(nn.Module):
    """A module that holds a teacher.

    The teacher follows the module to its device and type. It is in evaluation mode and has no
    gradients, and it is none of the module's parts: it is not trained, saved or copied with it.

    Args:
        teacher: The network.
    """

    def __init__(self, teacher: nn.Module) -> None:
        super().__init__()
        self._held = Held(teacher.eval().requires_grad_(False))

    @property
    def teacher(self) -> Any:
        return self._held.network

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        """Applies what PyTorch applies to all tensors, such as a move to a device."""
        if self.teacher is not None:
            self.teacher._apply(fn, recurse)
        return super()._apply(fn, recurse)


class Held:
    """Hides a network from the module that it is an attribute of, and from copies of the module.

    A callback that averages weights copies the task; the copy does not train.
    """

    def __init__(self, network: nn.Module | None) -> None:
        self.network = network

    def __deepcopy__(self, memo: Any) -> Held:
        return Held(None)


def maps_and_logits(network: Any, images: Tensor) -> tuple[Sequence[Tensor], Tensor]:
    """Returns a network's feature maps, and its logits (B, K, h, w) of at least float32."""
    maps = network.backbone(images)
    return maps, at_least_float32(with_background(network.decode_head(maps)))
