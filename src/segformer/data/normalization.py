"""How the pixels of images are normalised before they enter a network."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Normalization:
    """``(pixels · scale - mean) / std``, for each channel separately.

    It belongs to a network's weights: a :class:`segformer.SegmentationModel` has one and saves it,
    and every command normalises images by it.

    Args:
        mean: Mean of each channel, after scaling.
        std: Standard deviation of each channel, after scaling.
        scale: Factor of the pixels, which are 0 to 255.

    Raises:
        ValueError: If mean and std differ in number, a value is not finite, or std or scale is not
            positive.
    """

    mean: Sequence[float]
    std: Sequence[float]
    scale: float = 1 / 255

    def __post_init__(self) -> None:
        for name in ("mean", "std"):
            object.__setattr__(self, name, tuple(map(float, getattr(self, name))))
        if len(self.mean) != len(self.std) or not self.mean:
            raise ValueError(
                f"mean={self.mean} and std={self.std} must have one value for each channel"
            )
        if not all(map(math.isfinite, (*self.mean, *self.std, self.scale))):
            raise ValueError(
                f"mean={self.mean}, std={self.std} and scale={self.scale} must be finite"
            )
        if min(*self.std, self.scale) <= 0:
            raise ValueError(f"std={self.std} and scale={self.scale} must be greater than 0")

    def __call__(self, image: Tensor) -> Tensor:
        """Returns pixels (…, C, H, W) of 0 to 255 as float32, normalised.

        Raises:
            ValueError: If the image has another number of channels.
        """
        if image.shape[-3] != len(self.mean):
            raise ValueError(
                f"an image of {image.shape[-3]} channels, to be normalised with the mean and std "
                f"of {len(self.mean)}; give the model a normalization with one value for each "
                "channel"
            )
        mean = torch.tensor(self.mean, device=image.device)[:, None, None]
        std = torch.tensor(self.std, device=image.device)[:, None, None]
        factor = std.mul(1 / self.scale).reciprocal()
        return image.to(torch.float32, copy=True).mul_(factor).sub_(mean / std)

    def for_channels(self, channels: int) -> Normalization:
        """Returns the normalization of another number of channels.

        Each channel gets the mean of the values of all channels, as in timm.
        """
        if channels == len(self.mean):
            return self
        mean, std = (sum(values) / len(values) for values in (self.mean, self.std))
        return Normalization([mean] * channels, [std] * channels, self.scale)


IMAGENET = Normalization(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
