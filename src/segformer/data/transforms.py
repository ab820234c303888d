"""SegFormer's training augmentation (arXiv 2105.15203, section 4.1) as torchvision v2 transforms of an image and its label map."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as F
from torchvision.transforms.v2 import query_size

from segformer.data.labels import ignored_in
from segformer.data.normalization import IMAGENET, Normalization


class RandomScaledCrop(v2.Transform):
    """Resize by one random factor for height and width, and cut out a random window; only the window is ever resized.

    The image is resized bilinear, the label map to its nearest pixel. The window is drawn again (ten times at most) while one class fills
    more than ``cat_max_ratio`` of it. What is smaller than ``size`` once resized is left as small; :class:`PadTo` fills it up.

    Args:
        size: height and width of the window in pixels.
        scale: the least and the greatest factor.
        base: (long side, short side) in pixels into which the unscaled image is fitted first, aspect kept; by default its own size.
        cat_max_ratio: the greatest share of the window's labelled pixels that one class may have; 1 takes any window.
    """

    TRIES = 10

    def __init__(
        self,
        size: Sequence[int],
        scale: Sequence[float] = (0.5, 2.0),
        base: Sequence[int] | None = None,
        cat_max_ratio: float = 0.75,
    ) -> None:
        super().__init__()
        if not 0 < scale[0] <= scale[1]:
            raise ValueError(f"scale={tuple(scale)} must be two positive factors, the least first")
        self.size, self.scale, self.base = tuple(size), tuple(scale), tuple(base) if base else None
        self.cat_max_ratio = cat_max_ratio

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
        """The window in the unscaled image, and its size once resized."""
        whole = query_size(flat_inputs)
        factor = float(torch.empty(()).uniform_(*self.scale))
        if self.base is not None:
            factor *= min(max(self.base) / max(whole), min(self.base) / min(whole))
        size = [
            min(most, max(1, round(side * factor)))
            for most, side in zip(self.size, whole, strict=True)
        ]
        height, width = (
            max(1, min(side, round(new / factor))) for new, side in zip(size, whole, strict=True)
        )
        labels = [inpt for inpt in flat_inputs if isinstance(inpt, tv_tensors.Mask)]
        for _ in range(self.TRIES):
            top = int(torch.randint(whole[0] - height + 1, ()))
            left = int(torch.randint(whole[1] - width + 1, ()))
            if all(
                self._is_varied(label[..., top : top + height, left : left + width])
                for label in labels
            ):
                break
        return {"top": top, "left": left, "height": height, "width": width, "size": size}

    def _is_varied(self, label: Tensor) -> bool:
        if self.cat_max_ratio >= 1:
            return True
        ignored = ignored_in(label)
        counts = torch.bincount(label.flatten(), minlength=ignored + 1)
        counts[ignored] = 0
        return bool(counts.max() < self.cat_max_ratio * counts.sum())

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
        return self._call_kernel(
            F.resized_crop,
            inpt,
            **params,
            interpolation=F.InterpolationMode.BILINEAR,
            antialias=True,
        )


class PadTo(v2.Transform):
    """Pad right and bottom up to ``size``: images with 0, label maps with the ignored value.

    Larger inputs pass unchanged.
    After normalisation an image's 0 is the mean colour, as in the official pipeline. The ignored
    value is 255, and 65535 in label maps of int32, which have more than 255 classes.
    """

    def __init__(self, size: Sequence[int]) -> None:
        super().__init__()
        self.size = tuple(size)

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
        height, width = query_size(flat_inputs)
        return {"padding": [0, 0, max(0, self.size[1] - width), max(0, self.size[0] - height)]}

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
        if not any(params["padding"]):
            return inpt
        fill = ignored_in(inpt) if isinstance(inpt, tv_tensors.Mask) else 0
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

    CHANGES = ("brightness", "contrast", "saturation", "hue")
    PIXELS = 1 << 16  # at once: what one operation leaves is still in cache for the next

    def __init__(
        self,
        brightness: float = 32.0,
        contrast: Sequence[float] = (0.5, 1.5),
        saturation: Sequence[float] = (0.5, 1.5),
        hue: float = 36.0,
    ) -> None:
        super().__init__()
        self.brightness, self.contrast, self.saturation, self.hue = (
            brightness,
            tuple(contrast),
            tuple(saturation),
            hue,
        )

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
        ranges = (
            (-self.brightness, self.brightness),
            self.contrast,
            self.saturation,
            (-self.hue, self.hue),
        )
        changes = [
            float(torch.empty(()).uniform_(*bounds)) if torch.rand(()) < 0.5 else None
            for bounds in ranges
        ]
        return dict(
            zip(self.CHANGES, changes, strict=True), contrast_first=bool(torch.rand(()) < 0.5)
        )

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
        if isinstance(inpt, tv_tensors.Mask) or not any(
            params[name] is not None for name in self.CHANGES
        ):
            return inpt
        image = inpt.as_subclass(Tensor)
        changed = torch.empty(image.shape, dtype=torch.uint8, device=image.device)
        height = max(1, self.PIXELS // image.shape[-1])
        for rows, target in zip(image.split(height, -2), changed.split(height, -2), strict=True):
            pixels = torch.empty(rows.shape, device=image.device).copy_(rows)
            target.copy_(self._changed(pixels, params).round_().int())  # by int: twice as fast
        return tv_tensors.wrap(changed, like=inpt)

    def _changed(self, image: Tensor, params: dict[str, Any]) -> Tensor:
        """RGB (3, H, W) from 0 to 255, changed in place."""
        if params["brightness"] is not None:
            image.add_(params["brightness"]).clamp_(0, 255)
        if params["contrast"] is not None and params["contrast_first"]:
            image.mul_(params["contrast"]).clamp_(0, 255)
        if params["hue"] is not None:
            _turn(
                image, params["hue"], 1.0 if params["saturation"] is None else params["saturation"]
            )
        elif params["saturation"] is not None:
            _saturate(image, params["saturation"])
        if params["contrast"] is not None and not params["contrast_first"]:
            image.mul_(params["contrast"]).clamp_(0, 255)
        return image


def _value_and_chroma(image: Tensor) -> tuple[Tensor, Tensor]:
    """HSV's value, and what it leaves of the least channel; saturation is their ratio."""
    red, green, blue = image
    value = torch.maximum(red, green)
    least = torch.minimum(red, green)
    torch.maximum(value, blue, out=value)
    return value, torch.sub(value, torch.minimum(least, blue, out=least), out=least)


def _saturate(image: Tensor, factor: float) -> None:
    """Multiply HSV's saturation, in place; 1 is the most there is."""
    value, chroma = _value_and_chroma(image)
    factors = torch.minimum(chroma * factor, value).div_(chroma.clamp_min_(1e-6))
    for channel in image:
        torch.addcmul(value, value - channel, factors, value=-1, out=channel)


def _turn(image: Tensor, degrees: float, saturation: float) -> None:
    """Turn HSV's hue and multiply its saturation, in place.

    The hue h is counted in sixths of the circle, from red; back in RGB a channel is value - chroma · clamp(u, 0, 1), where u is 2 - |h - 3|
    for red, |h - 2| - 1 for green and |h - 4| - 1 for blue. Choices are blends by masks of 0 and 1: on CPUs PyTorch's `where` takes
    several times as long.
    """
    red, green, blue = image
    value, chroma = _value_and_chroma(image)
    inverse = chroma.clamp_min(1e-6).reciprocal_()
    from_blue = torch.sub(red, green).mul_(inverse).add_(4)
    from_green = torch.sub(blue, red).mul_(inverse).add_(2)
    from_red = torch.sub(green, blue).mul_(inverse)
    is_red, is_green = torch.eq(value, red, out=red), torch.eq(value, green, out=green)
    hue = from_blue.lerp_(from_green, is_green).lerp_(from_red, is_red).add_(degrees / 60)
    hue -= torch.div(hue, 6, out=blue).floor_().mul_(6)
    torch.minimum(chroma.mul_(saturation), value, out=chroma)
    for channel, (centre, slope, offset) in zip(
        image, ((3, -1, 2), (2, 1, -1), (4, 1, -1)), strict=True
    ):
        share = torch.sub(hue, centre, out=channel).abs_().mul_(slope).add_(offset).clamp_(0, 1)
        torch.addcmul(value, chroma, share, value=-1, out=channel)


class Normalize(v2.Transform):
    """uint8 images (C, H, W) to float32, normalised; label maps pass.

    Args:
        normalization: mean, standard deviation and scale, by default ImageNet's. In a fit the
            network's own takes its place (:meth:`segformer.train.data.SegmentationData.normalize_as`).

    Raises:
        TypeError: for an image that is not uint8, whose scale of values is unknown.
    """

    def __init__(self, normalization: Normalization = IMAGENET) -> None:
        super().__init__()
        self.normalization = normalization

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
        if isinstance(inpt, tv_tensors.Mask):
            return inpt
        if inpt.dtype != torch.uint8:
            raise TypeError(f"an image of {inpt.dtype}; normalisation takes uint8, 0 to 255")
        return tv_tensors.wrap(self.normalization(inpt.as_subclass(Tensor)), like=inpt)


def normalizers(transform: Any) -> Iterator[Normalize]:
    """Every :class:`Normalize` in a transform, and in those that it is composed of."""
    if isinstance(transform, Normalize):
        yield transform
    for part in getattr(transform, "transforms", ()):
        yield from normalizers(part)


class TrainTransform(v2.Compose):
    """The published augmentation: random scale, crop, flip, photometric distortion, normalisation, padding.

    Args:
        crop_size: height and width of the result in pixels.
        scale: least and greatest factor of the random scale.
        base: see :class:`RandomScaledCrop`.
        cat_max_ratio: see :class:`RandomScaledCrop`.
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
                RandomScaledCrop(crop_size, scale, base, cat_max_ratio),
                v2.RandomHorizontalFlip(),
                distortion or PhotometricDistortion(),
                Normalize(),
                PadTo(crop_size),
            ]
        )
