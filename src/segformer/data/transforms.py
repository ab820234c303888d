"""SegFormer's training augmentation (arXiv 2105.15203, section 4.1) as torchvision v2 transforms of an image and its label map."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as F
from torchvision.transforms.v2 import query_size

from segformer.data.datasets import IGNORE_INDEX

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


class RandomScale(v2.Transform):
    """Resize by one random factor for height and width: the image bilinear, the label map to its nearest pixel.

    Args:
        scale: the least and the greatest factor.
        base: (long side, short side) in pixels into which the unscaled image is fitted first, aspect kept; by default its own size.
    """

    def __init__(self, scale: Sequence[float] = (0.5, 2.0), base: Sequence[int] | None = None) -> None:
        super().__init__()
        if not 0 < scale[0] <= scale[1]:
            raise ValueError(f"scale={tuple(scale)} must be two positive factors, the least first")
        self.scale = tuple(scale)
        self.base = tuple(base) if base else None

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
        height, width = query_size(flat_inputs)
        factor = float(torch.empty(()).uniform_(*self.scale))
        if self.base is not None:
            factor *= min(max(self.base) / max(height, width), min(self.base) / min(height, width))
        return {"size": [max(1, round(height * factor)), max(1, round(width * factor))]}

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
        return self._call_kernel(F.resize, inpt, params["size"], interpolation=F.InterpolationMode.BILINEAR, antialias=True)


class RandomCrop(v2.Transform):
    """Cut out a random window, drawn again (ten times at most) while one class fills more than ``cat_max_ratio`` of it.

    An image smaller than ``size`` is left as small; :class:`PadTo` fills it up.

    Args:
        size: height and width in pixels.
        cat_max_ratio: the greatest share of the window's labelled pixels that one class may have.
    """

    TRIES = 10

    def __init__(self, size: Sequence[int], cat_max_ratio: float = 0.75) -> None:
        super().__init__()
        self.size = tuple(size)
        self.cat_max_ratio = cat_max_ratio

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
        height, width = query_size(flat_inputs)
        labels = [inpt for inpt in flat_inputs if isinstance(inpt, tv_tensors.Mask)]
        for _ in range(self.TRIES):
            window = self._window(height, width)
            if all(self._is_varied(F.crop(label, **window)) for label in labels):
                break
        return window

    def _window(self, height: int, width: int) -> dict[str, int]:
        h, w = min(self.size[0], height), min(self.size[1], width)
        top = int(torch.randint(height - h + 1, ()))
        left = int(torch.randint(width - w + 1, ()))
        return {"top": top, "left": left, "height": h, "width": w}

    def _is_varied(self, label: Tensor) -> bool:
        counts = torch.bincount(label.flatten(), minlength=256)
        counts[IGNORE_INDEX] = 0
        return bool(counts.max() < self.cat_max_ratio * counts.sum())

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
        return self._call_kernel(F.crop, inpt, **params)


class PadTo(v2.Transform):
    """Pad right and bottom up to ``size``: images with 0, label maps with 255. Larger inputs pass unchanged.

    After normalisation an image's 0 is the mean colour, as in the official pipeline.
    """

    def __init__(self, size: Sequence[int]) -> None:
        super().__init__()
        self.size = tuple(size)

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
        height, width = query_size(flat_inputs)
        return {"padding": [0, 0, max(0, self.size[1] - width), max(0, self.size[0] - height)]}

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
        fill = IGNORE_INDEX if isinstance(inpt, tv_tensors.Mask) else 0
        return self._call_kernel(F.pad, inpt, params["padding"], fill=fill)


class PhotometricDistortion(v2.Transform):
    """Brightness, contrast, saturation and hue, each changed half the time; contrast before or after the others at random.

    Brightness is added (on the scale of 0 to 255), contrast and saturation multiply (the saturation of HSV), hue turns.

    Args:
        brightness: the greatest change in either direction.
        contrast: least and greatest factor.
        saturation: least and greatest factor.
        hue: the greatest turn in either direction, in degrees. The published 18 counts OpenCV's 8-bit hues, of 2° each.
    """

    def __init__(
        self,
        brightness: float = 32.0,
        contrast: Sequence[float] = (0.5, 1.5),
        saturation: Sequence[float] = (0.5, 1.5),
        hue: float = 36.0,
    ) -> None:
        super().__init__()
        self.brightness, self.contrast, self.saturation, self.hue = brightness, tuple(contrast), tuple(saturation), hue

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
        ranges = ((-self.brightness, self.brightness), self.contrast, self.saturation, (-self.hue, self.hue))
        changes = [float(torch.empty(()).uniform_(*bounds)) if torch.rand(()) < 0.5 else None for bounds in ranges]
        return dict(zip(("brightness", "contrast", "saturation", "hue"), changes, strict=True), contrast_first=bool(torch.rand(()) < 0.5))

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
        if isinstance(inpt, tv_tensors.Mask):
            return inpt
        image = inpt.as_subclass(Tensor).float()
        if params["brightness"] is not None:
            image = (image + params["brightness"]).clamp_(0, 255)
        if params["contrast"] is not None and params["contrast_first"]:
            image = (image * params["contrast"]).clamp_(0, 255)
        if params["hue"] is not None:
            image = _turned(image, params["hue"], params["saturation"] or 1.0)
        elif params["saturation"] is not None:
            value, least = image.amax(0), image.amin(0)
            factor = torch.minimum(params["saturation"] * torch.ones_like(value), _most(value, value - least))
            image = value - (value - image) * factor
        if params["contrast"] is not None and not params["contrast_first"]:
            image = (image * params["contrast"]).clamp_(0, 255)
        return tv_tensors.wrap(image.round_().to(torch.uint8), like=inpt)


def _most(value: Tensor, chroma: Tensor) -> Tensor:
    """The greatest factor of the saturation at which no channel would be negative."""
    return value / chroma.clamp_min(1e-3)


def _turned(image: Tensor, degrees: float, saturation: float) -> Tensor:
    """RGB (3, H, W) of HSV whose hue is turned and whose saturation is multiplied.

    The hue h is counted in sixths of the circle; back in RGB a channel is value - chroma · clamp(min(k, 4 - k), 0, 1), where k = h + 5, 3
    and 1 for red, green and blue, modulo 6. torchvision's own takes several times as long.
    """
    red, green, blue = image.unbind(0)
    value = torch.maximum(torch.maximum(red, green), blue)
    chroma = value - torch.minimum(torch.minimum(red, green), blue)
    inverse = chroma.clamp_min(1e-6).reciprocal_()
    hue = torch.where(
        value == red,
        (green - blue) * inverse,
        torch.where(value == green, (blue - red).mul_(inverse).add_(2), (red - green).mul_(inverse).add_(4)),
    )
    hue += degrees / 60
    chroma *= _most(value, chroma).clamp_max_(saturation)
    turned = torch.empty_like(image)
    for channel, offset in zip(turned, (5, 3, 1), strict=True):
        k = (hue + offset).div_(6)
        k = k.sub_(k.floor()).mul_(6)
        torch.addcmul(value, chroma, torch.minimum(k, 4 - k).clamp_(0, 1), value=-1, out=channel)
    return turned


def normalize() -> v2.Compose:
    """uint8 RGB to float, ImageNet mean 0 and standard deviation 1 in each channel; label maps pass."""
    return v2.Compose([v2.ToDtype(torch.float32, scale=True), v2.Normalize(IMAGENET_MEAN, IMAGENET_STD)])


class TrainTransform(v2.Compose):
    """The published augmentation: random scale, crop, flip, photometric distortion, normalisation, padding.

    Args:
        crop_size: height and width of the result in pixels.
        scale: least and greatest factor of the random scale.
        base: see :class:`RandomScale`.
        cat_max_ratio: see :class:`RandomCrop`.
        distortion: what becomes of the colours; by default :class:`PhotometricDistortion`.
    """

    def __init__(
        self,
        crop_size: Sequence[int],
        scale: Sequence[float] = (0.5, 2.0),
        base: Sequence[int] | None = None,
        cat_max_ratio: float = 0.75,
        distortion: v2.Transform | None = None,
    ) -> None:
        super().__init__(
            [
                RandomScale(scale, base),
                RandomCrop(crop_size, cat_max_ratio),
                v2.RandomHorizontalFlip(),
                distortion or PhotometricDistortion(),
                normalize(),
                PadTo(crop_size),
            ]
        )
