"""Street scenes drawn on demand: training data without files or downloads.

Coordinates of a scene are in metres: x to the right of the road's middle, y up from the ground, z
ahead. A pinhole camera views it. Objects are painted from far to near, so that near ones hide far
ones.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch.utils.data import Dataset
from torchvision import tv_tensors

from segformer.data.scenes.canvas import Canvas, Floats, cells
from segformer.data.scenes.classes import BLOTCH, CLASSES, GRAIN, GROUND
from segformer.data.scenes.street import lay_out
from segformer.data.scenes.things import sky

__all__ = ["CLASSES", "Scenes"]


def speckle(rng: np.random.Generator, size: tuple[int, int]) -> Floats:
    """Returns white noise with mean 0 and standard deviation 1.

    It is uniform, which takes a fraction of the time of normal noise.
    """
    noise = np.frombuffer(rng.bytes(size[0] * size[1]), np.uint8).reshape(size)
    return (noise - np.float32(127.5)) / np.float32(73.9)


def photograph(canvas: Canvas) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Returns the image (3, height, width) and the label map (height, width) of a canvas.

    Adds rough surfaces, shadows, haze, and the effects of lens and sensor to the image.
    """
    rng, size, camera, air = canvas.rng, canvas.size, canvas.camera, canvas.weather
    label = np.array(canvas.image.resize(size[::-1], Image.Resampling.NEAREST).getchannel("A"))
    flat = np.asarray(canvas.image.convert("RGB").reduce(2)).transpose(2, 0, 1)
    y, x = (np.linspace(-1, 1, n, dtype=np.float32) for n in size)
    rough = GRAIN.take(label) * speckle(rng, size) + BLOTCH.take(label) * cells(rng, size, 70, 50)
    # Shadows and haze on the ground come last, when no more objects can hide the ground.
    ground = GROUND.take(label)
    below = (
        (y[:, None] + 1) * size[0]
        - camera.horizon
        - camera.roll * ((x + 1) * size[1] - camera.centre)
    )
    clear = np.where(
        ground, np.exp(-air.haze * camera.focal * camera.height / np.maximum(below, 1)), 1
    )
    lit = np.where(ground, np.asarray(canvas.shadows) / np.float32(255), 1) * clear
    lens = rng.uniform(0.85, 1.25) * (1 - rng.uniform(0, 0.15) * (y[:, None] ** 2 + x**2))
    image = np.empty(flat.shape, np.float32)
    balance, grain = rng.normal(1, 0.025, 3).tolist(), rng.uniform(0.5, 4)
    for k in range(3):
        image[k] = ((flat[k] + rough) * lit + (1 - clear) * air.skyline[k]) * (
            lens * balance[k]
        ) + grain * speckle(rng, size)
    return image.clip(0, 255).astype(np.uint8), label


class Scenes(Dataset[tuple[tv_tensors.Image, tv_tensors.Mask]]):
    """Street scenes with exact label maps.

    An item is an image, uint8 (3, height, width), and its label map, uint8 (height, width), of
    indices into ``Scenes.classes``. It depends only on ``seed``, ``size`` and its index, not on the
    process that draws it.

    Args:
        length: Number of scenes in an epoch.
        size: Height and width of a scene in pixels, each at least 32.
        seed: Random seed, zero or more; use different seeds to train and to validate.

    Raises:
        ValueError: If the length is below 1, the size below 32 or the seed negative.
    """

    classes = CLASSES

    def __init__(self, length: int, size: tuple[int, int] = (256, 384), seed: int = 0) -> None:
        if length < 1:
            raise ValueError(f"length is {length}; ask for at least 1 scene")
        if len(size) != 2 or min(size) < 32:
            raise ValueError(
                f"size is {size}; give a height and a width of at least 32 pixels each"
            )
        if seed < 0:
            raise ValueError(f"seed is {seed}; give zero or a positive number")
        self.length, self.size, self.seed = length, (size[0], size[1]), seed

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> tuple[tv_tensors.Image, tv_tensors.Mask]:
        """Returns a scene's image and label map.

        Raises:
            IndexError: If not ``0 <= index < len(self)``.
        """
        if not 0 <= index < self.length:
            raise IndexError(
                f"scene {index} of {self.length}; indices run from 0 to {self.length - 1}"
            )
        canvas = Canvas(self.size, np.random.default_rng((self.seed, index)))
        sky(canvas)
        lay_out(canvas)
        canvas.draw_things()
        image, label = photograph(canvas)
        return tv_tensors.Image(torch.from_numpy(image)), tv_tensors.Mask(torch.from_numpy(label))
