"""SegFormer's training augmentation (arXiv 2105.15203, section 4.1).

The classes are torchvision v2 transforms of an image and its label map.
"""

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
    """Resizes by a random factor, and crops a random window.

    Only the window is resized: bilinear for the image, nearest for the label map. Another window is
    drawn (up to ten times) while one class fills more than ``cat_max_ratio`` of it. If the resized
    image is smaller than ``size``, so is the result; :class:`PadTo` pads it.

    Args:
        size: Height and width of the window in pixels.
        scale: Smallest and greatest factor.
        base: (long side, short side) in pixels that the image is first fitted into, with its aspect
            ratio; by default its own size.
        cat_max_ratio: Greatest share of a class in the window's labelled pixels; 1 accepts any
            window.

    Raises:
        ValueError: If ``scale`` is not two positive factors in ascending order.
    """

    ATTEMPTS = 10

    def __init__(
        self,
        size: Sequence[int],
        scale: Sequence[float] = (0.5, 2.0),
        base: Sequence[int] | None = None,
        cat_max_ratio: float = 0.75,
    ) -> None:
        super().__init__()
        if not 0 < scale[0] <= scale[1]:
            raise ValueError(
                f"scale={tuple(scale)} must be two positive factors, the smaller first"
            )
        self.size, self.scale, self.base = tuple(size), tuple(scale), tuple(base) if base else None
        self.cat_max_ratio = cat_max_ratio

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
        """Returns the window in the unscaled image, and its size after resizing."""
        image_size = query_size(flat_inputs)
        factor = float(torch.empty(()).uniform_(*self.scale))
        if self.base is not None:
            factor *= min(max(self.base) / max(image_size), min(self.base) / min(image_size))
        size = [
            min(limit, max(1, round(length * factor)))
            for limit, length in zip(self.size, image_size, strict=True)
        ]
        height, width = (
            max(1, min(length, round(resized / factor)))
            for resized, length in zip(size, image_size, strict=True)
        )
        labels = [inpt for inpt in flat_inputs if isinstance(inpt, tv_tensors.Mask)]
        for _ in range(self.ATTEMPTS):
            top = int(torch.randint(image_size[0] - height + 1, ()))
            left = int(torch.randint(image_size[1] - width + 1, ()))
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
    """Pads right and bottom up to ``size``: images with 0, label maps with the ignored value.

    Larger inputs are returned unchanged. After normalisation an image's 0 is the mean colour, as in
    the official pipeline. The ignored value is 255, and 65535 for int32 label maps, which have more
    than 255 classes.

    Args:
        size: Smallest height and width of the result in pixels.
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
    """Changes brightness, contrast, saturation and hue, each with a probability of one half.

    Brightness is added (on the scale of 0 to 255), contrast and HSV's saturation are multiplied,
    and HSV's hue is rotated. Contrast comes before or after the others at random.

    Args:
        brightness: Greatest change in either direction.
        contrast: Smallest and greatest factor.
        saturation: Smallest and greatest factor.
        hue: Greatest rotation in either direction, in degrees. The published value of 18 is in
            OpenCV's 8-bit units of 2°.
    """

    CHANGES = ("brightness", "contrast", "saturation", "hue")
    PIXELS = 1 << 16  # at a time, so that each operation finds the last one's result in the cache

    def __init__(
        self,
        brightness: float = 32.0,
        contrast: Sequence[float] = (0.5, 1.5),
        saturation: Sequence[float] = (0.5, 1.5),
        hue: float = 36.0,
    ) -> None:
        super().__init__()
        self.brightness, self.hue = brightness, hue
        self.contrast, self.saturation = tuple(contrast), tuple(saturation)

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
        """Returns a random amount for each change, or None for no change."""
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
        if inpt.shape[-3] != 3 or inpt.dtype != torch.uint8:
            raise ValueError(
                f"an image of {inpt.shape[-3]} bands of {inpt.dtype}; saturation and hue are those "
                "of 8-bit RGB: give other images segformer.data.augmentation.BandDistortion"
            )
        image = inpt.as_subclass(Tensor)
        changed = torch.empty(image.shape, dtype=torch.uint8, device=image.device)
        height = max(1, self.PIXELS // image.shape[-1])
        for rows, target in zip(image.split(height, -2), changed.split(height, -2), strict=True):
            pixels = torch.empty(rows.shape, device=image.device).copy_(rows)
            target.copy_(
                self._changed(pixels, params).round_().int()
            )  # twice as fast as a direct conversion
        return tv_tensors.wrap(changed, like=inpt)

    def _changed(self, image: Tensor, params: dict[str, Any]) -> Tensor:
        """Changes RGB (3, H, W) from 0 to 255 in place."""
        if params["brightness"] is not None:
            image.add_(params["brightness"]).clamp_(0, 255)
        if params["contrast"] is not None and params["contrast_first"]:
            image.mul_(params["contrast"]).clamp_(0, 255)
        if params["hue"] is not None:
            saturation = 1.0 if params["saturation"] is None else params["saturation"]
            _rotate_hue(image, params["hue"], saturation)
        elif params["saturation"] is not None:
            _saturate(image, params["saturation"])
        if params["contrast"] is not None and not params["contrast_first"]:
            image.mul_(params["contrast"]).clamp_(0, 255)
        return image


def _value_and_chroma(image: Tensor) -> tuple[Tensor, Tensor]:
    """Returns HSV's value, the greatest channel, and its chroma, greatest minus smallest channel.

    Saturation is chroma divided by value.
    """
    red, green, blue = image
    value, smallest = torch.maximum(red, green), torch.minimum(red, green)
    torch.maximum(value, blue, out=value)
    torch.minimum(smallest, blue, out=smallest)
    return value, torch.sub(value, smallest, out=smallest)


def _saturate(image: Tensor, factor: float) -> None:
    """Multiplies HSV's saturation, in place, up to at most 1."""
    value, chroma = _value_and_chroma(image)
    factors = torch.minimum(chroma * factor, value).div_(chroma.clamp_min_(1e-6))
    for channel in image:
        torch.addcmul(value, value - channel, factors, value=-1, out=channel)


def _rotate_hue(image: Tensor, degrees: float, saturation: float) -> None:
    """Rotates HSV's hue and multiplies its saturation, in place.

    The hue h is in sixths of the circle, from red. In RGB a channel is value - chroma ·
    clamp(u, 0, 1), where u is 2 - |h - 3| for red, |h - 2| - 1 for green and |h - 4| - 1 for blue.
    Masks of 0 and 1 blend the cases, as PyTorch's `where` takes several times as long on CPUs.
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
    """Normalises images (C, H, W) to float32; returns label maps unchanged.

    Args:
        normalization: Mean, standard deviation and scale, by default ImageNet's. ``segformer fit``
            replaces it by the network's own
            (:meth:`segformer.train.data.SegmentationData.normalize_as`).

    Raises:
        TypeError: If an image is not of the normalization's type, so that its scale of values is
            unknown.
    """

    def __init__(self, normalization: Normalization = IMAGENET) -> None:
        super().__init__()
        self.normalization = normalization

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
        if isinstance(inpt, tv_tensors.Mask):
            return inpt
        if str(inpt.dtype) != f"torch.{self.normalization.dtype}":
            raise TypeError(
                f"an image of {inpt.dtype}, and the normalization takes "
                f"{self.normalization.dtype}; convert it, or make statistics of the images with "
                "segformer check"
            )
        return tv_tensors.wrap(self.normalization(inpt.as_subclass(Tensor)), like=inpt)


def normalizers(transform: Any) -> Iterator[Normalize]:
    """Yields every :class:`Normalize` in a transform and in the transforms it is composed of."""
    if isinstance(transform, Normalize):
        yield transform
    for part in getattr(transform, "transforms", ()):
        yield from normalizers(part)


class TrainTransform(v2.Compose):
    """The published augmentation: scale, crop, flip, distort colours, normalise, and pad.

    Args:
        crop_size: Height and width of the result in pixels.
        scale: Smallest and greatest factor of the random scale.
        base: See :class:`RandomScaledCrop`.
        cat_max_ratio: See :class:`RandomScaledCrop`.
        distortion: Transform of the colours; by default :class:`PhotometricDistortion`.
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
