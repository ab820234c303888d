"""How the pixels of images are normalised before they enter a network."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import chain
from typing import Any

import torch
from torch import Tensor
from torchvision import tv_tensors

from segformer.data.bands import Bands, read_pixels, valid_bands
from segformer.data.families.opened import Opened, Window


@dataclass(frozen=True)
class Normalization:
    """``(pixels · scale - mean) / std``, for each channel separately.

    It belongs to a network's weights: a :class:`segformer.SegmentationModel` has one and saves it,
    and every command normalises images by it. Values that are no numbers, as where a raster has no
    data, become the mean.

    Args:
        mean: Mean of each channel, after scaling.
        std: Standard deviation of each channel, after scaling.
        scale: Factor of the pixels.
        dtype: Type of the pixels: ``"uint8"``, 0 to 255, or that of other sensors, such as
            ``"uint16"``.
        limits: Lowest and highest value of each channel, before scaling, to which pixels are
            clipped; by default they are not.
        bands: Which bands of image files these channels are; by default red, green and blue of
            8-bit photographs.

    Raises:
        ValueError: If mean, std and limits differ in number, a value is not finite, std or scale is
            not positive, or a limit is below the other.
    """

    mean: Sequence[float]
    std: Sequence[float]
    scale: float = 1 / 255
    dtype: str = "uint8"
    limits: Sequence[Sequence[float]] = ()
    bands: Bands | None = None

    def __post_init__(self) -> None:
        for name in ("mean", "std"):
            object.__setattr__(self, name, tuple(map(float, getattr(self, name))))
        object.__setattr__(self, "limits", tuple(tuple(map(float, pair)) for pair in self.limits))
        if isinstance(self.bands, Mapping):  # as it is read from a file
            object.__setattr__(self, "bands", Bands(**self.bands))
        if len(self.mean) != len(self.std) or not self.mean:
            raise ValueError(
                f"mean={self.mean} and std={self.std} must have one value for each channel"
            )
        if not all(map(math.isfinite, (*self.mean, *self.std, self.scale, *chain(*self.limits)))):
            raise ValueError(
                f"mean={self.mean}, std={self.std}, scale={self.scale} and limits={self.limits} "
                "must be finite"
            )
        if min(*self.std, self.scale) <= 0:
            raise ValueError(f"std={self.std} and scale={self.scale} must be greater than 0")
        if self.limits and (
            len(self.limits) != len(self.mean)
            or not all(len(pair) == 2 and pair[0] < pair[1] for pair in self.limits)
        ):
            raise ValueError(
                f"limits={self.limits} must have a lower and a higher value for each of "
                f"{len(self.mean)} channels"
            )

    def __call__(self, image: Tensor) -> Tensor:
        """Returns pixels (…, C, H, W), which are of any type, as float32, normalised.

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
        pixels = image.to(torch.float32, copy=True)
        if self.limits:
            low, high = torch.tensor(self.limits, device=image.device).T[..., None, None]
            pixels = torch.clamp(pixels, low, high)
        pixels = pixels.mul_(factor).sub_(mean / std)
        return pixels.nan_to_num_(0) if image.is_floating_point() else pixels

    def pixels(self, shares: Tensor) -> Tensor:
        """Returns pixels (…, C, H, W) of the values' own type, from shares 0 to 1 of their range.

        The range is that of the limits, or 0 to 255.
        """
        low, high = torch.tensor(self.limits or [(0.0, 255.0)]).T[..., None, None]
        dtype = getattr(torch, self.dtype)
        values = low + shares * (high - low)
        return values.to(dtype) if dtype.is_floating_point else values.round().to(dtype)

    def read(
        self, image: Opened, window: Window | None = None
    ) -> tuple[tv_tensors.Image, Tensor | None]:
        """Returns the pixels of an image file (C, H, W), and where each channel has data.

        The second is (C, H, W), bool; None if that is everywhere. Where a channel has no data it
        has its mean, so that neither resizing nor a window's border brings the value for no data
        into the others.

        Args:
            image: The image.
            window: A part of it, by default all.

        Raises:
            ValueError: If it cannot be read. The message names it.
        """
        pixels = read_pixels(image, window)
        valid = valid_bands(image, window, pixels)
        if valid is not None and len(pixels) == len(self.mean):  # otherwise check names the fault
            self._fill(pixels, valid)
        return pixels, valid

    def _fill(self, pixels: Tensor, valid: Tensor) -> None:
        bands = pixels.numpy()  # PyTorch sets no values of uint16 by a mask
        for band, has_data, mean in zip(bands, valid.numpy(), self.mean, strict=True):
            value = mean / self.scale
            band[~has_data] = value if pixels.is_floating_point() else round(value)

    def check(self, image: Tensor) -> None:
        """Checks that the pixels of an image file (C, H, W) are of the kind that it was made for.

        Raises:
            ValueError: If they are of another type or number of channels, or most of a channel's
                values are far outside the limits.
        """
        dtype = str(image.dtype).removeprefix("torch.")
        if (dtype, image.shape[0]) != (self.dtype, len(self.mean)):
            raise ValueError(
                f"it has {image.shape[0]} bands of {dtype}, and the model takes {len(self.mean)} "
                f"of {self.dtype}{self._names}; select the bands, and keep the values, as for the "
                "training images"
            )
        for number, (low, high) in enumerate(self.limits):
            values = image[number].to(torch.float32)
            values = values[~values.isnan()]
            outside = (values < 2 * low - high) | (values > 2 * high - low)
            if outside.sum() * 2 > values.numel():
                raise ValueError(
                    f"most values of its band {self._name(number)} are outside {low:g} to "
                    f"{high:g}, the "
                    f"range of the training images: their median is {float(values.median()):g}; "
                    "scale the values as for the training images"
                )

    def _name(self, number: int) -> str:
        names = self.bands.names if self.bands else ()
        return repr(names[number]) if names else str(number + 1)

    @property
    def _names(self) -> str:
        names = self.bands.names if self.bands else ()
        return f" ({', '.join(names)})" if names else ""

    def to_dict(self) -> dict[str, Any]:
        """Returns its arguments, without those that say that images are photographs, if they are.

        Earlier versions do not know these, and read the files of such models.
        """
        stated = asdict(self)
        of_photographs: dict[str, Any] = {"dtype": "uint8", "limits": (), "bands": None}
        return {
            name: value
            for name, value in stated.items()
            if name not in of_photographs or value != of_photographs[name]
        }

    def for_channels(self, channels: int) -> Normalization:
        """Returns the normalization of another number of channels.

        Each channel gets the mean of the values of all channels, as in timm.
        """
        if channels == len(self.mean):
            return self
        mean, std = (sum(values) / len(values) for values in (self.mean, self.std))
        limits = [self._widest] * channels if self.limits else ()
        return replace(
            self, mean=[mean] * channels, std=[std] * channels, limits=limits, bands=None
        )

    @property
    def _widest(self) -> tuple[float, float]:
        lows, highs = zip(*self.limits, strict=True)
        return min(lows), max(highs)


IMAGENET = Normalization(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
