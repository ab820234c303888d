"""Augmentation of images of any bands: presets for streets, aerial and medical images.

All are made of torchvision's v2 transforms, and of this package's where there is none. After
:class:`~segformer.data.transforms.Normalize` the values of a band are in units of its standard
deviation, so that the same noise and contrast fit every sensor.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms import v2
from torchvision.transforms.v2 import query_size

from segformer.data.labels import ignored_in
from segformer.data.transforms import Normalize, PadTo, RandomScaledCrop


class BandDistortion(v2.Transform):
    """Changes brightness and contrast of each band of a normalised image, independently.

    Args:
        brightness: Greatest change in either direction, in standard deviations.
        contrast: Smallest and greatest factor of the distance from the mean.
    """

    def __init__(self, brightness: float = 0.5, contrast: Sequence[float] = (0.5, 1.5)) -> None:
        super().__init__()
        self.brightness, self.contrast = brightness, tuple(contrast)

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
        (image,) = (inpt for inpt in flat_inputs if isinstance(inpt, tv_tensors.Image))
        shape = (image.shape[-3], 1, 1)
        return {
            "factor": torch.empty(shape).uniform_(*self.contrast),
            "change": torch.empty(shape).uniform_(-self.brightness, self.brightness),
        }

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
        if not isinstance(inpt, tv_tensors.Image):
            return inpt
        changed = inpt.as_subclass(Tensor) * params["factor"] + params["change"]
        return tv_tensors.wrap(changed, like=inpt)


class RandomQuarterTurn(v2.Transform):
    """Turns by 0, 90, 180 or 270 degrees; images that are not square by 0 or 180."""

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
        height, width = query_size(flat_inputs)
        step = 1 if height == width else 2
        return {"turns": step * int(torch.randint(4 // step, ()))}

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
        turned = torch.rot90(inpt.as_subclass(Tensor), params["turns"], (-2, -1))
        return tv_tensors.wrap(turned.contiguous(), like=inpt)


class RandomRotation(v2.RandomRotation):
    """Turns by a free angle; the corners are the mean colour, and ignored.

    Args:
        degrees: Greatest angle in either direction.
    """

    def __init__(self, degrees: float) -> None:
        super().__init__(degrees, v2.InterpolationMode.BILINEAR)

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
        fill = 0 if isinstance(inpt, tv_tensors.Image) else ignored_in(inpt)
        return self._call_kernel(
            v2.functional.rotate,
            inpt,
            **params,
            interpolation=self.interpolation,
            expand=False,
            center=None,
            fill=fill,
        )


class Street(v2.Compose):
    """Photographs taken upright: scale, crop, mirror, and change each band.

    It is :class:`~segformer.data.transforms.TrainTransform` for images of any bands.

    Args:
        crop_size: Height and width of the result in pixels.
        scale: Smallest and greatest factor of the random scale.
        cat_max_ratio: See :class:`~segformer.data.transforms.RandomScaledCrop`.
    """

    def __init__(
        self,
        crop_size: Sequence[int],
        scale: Sequence[float] = (0.5, 2.0),
        cat_max_ratio: float = 0.75,
    ) -> None:
        super().__init__(
            [
                RandomScaledCrop(crop_size, scale, None, cat_max_ratio),
                v2.RandomHorizontalFlip(),
                Normalize(),
                BandDistortion(),
                PadTo(crop_size),
            ]
        )


class Aerial(v2.Compose):
    """Images from above, which have no upright: also mirrored upside down, and turned.

    The scale changes less than in the street, since the distance to the ground is known.

    Args:
        crop_size: Height and width of the result in pixels.
        scale: Smallest and greatest factor of the random scale.
        cat_max_ratio: See :class:`~segformer.data.transforms.RandomScaledCrop`.
    """

    def __init__(
        self,
        crop_size: Sequence[int],
        scale: Sequence[float] = (0.75, 1.33),
        cat_max_ratio: float = 1.0,
    ) -> None:
        super().__init__(
            [
                RandomScaledCrop(crop_size, scale, None, cat_max_ratio),
                v2.RandomHorizontalFlip(),
                v2.RandomVerticalFlip(),
                Normalize(),
                BandDistortion(),
                v2.RandomApply([v2.GaussianBlur(5, (0.1, 1.0))], 0.2),
                v2.RandomApply([v2.GaussianNoise(0.0, 0.05, clip=False)], 0.2),
                PadTo(crop_size),
                RandomQuarterTurn(),
            ]
        )


class Medical(v2.Compose):
    """Radiographs, slices and slides: mirrored, turned freely, blurred and noisy.

    Args:
        crop_size: Height and width of the result in pixels.
        scale: Smallest and greatest factor of the random scale.
        degrees: Greatest angle of rotation in either direction.
        cat_max_ratio: See :class:`~segformer.data.transforms.RandomScaledCrop`.
    """

    def __init__(
        self,
        crop_size: Sequence[int],
        scale: Sequence[float] = (0.7, 1.4),
        degrees: float = 30.0,
        cat_max_ratio: float = 1.0,
    ) -> None:
        super().__init__(
            [
                RandomScaledCrop(crop_size, scale, None, cat_max_ratio),
                v2.RandomHorizontalFlip(),
                Normalize(),
                PadTo(crop_size),
                RandomRotation(degrees),
                BandDistortion(0.3, (0.7, 1.3)),
                v2.RandomApply([v2.GaussianBlur(5, (0.1, 1.5))], 0.2),
                v2.RandomApply([v2.GaussianNoise(0.0, 0.1, clip=False)], 0.2),
            ]
        )
