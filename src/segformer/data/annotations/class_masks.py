"""One binary mask a class: a folder a class, or names that end in the class."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from segformer.data.annotations.areas import Annotated, Area, Mask, Picture, Size, said_sizes
from segformer.data.images import decode
from segformer.data.labels import to_indices

SEPARATORS = "_-. "


@dataclass(frozen=True, slots=True)
class MaskFile(Mask):
    """A mask in an image file: 0 where it is unset, and one other value.

    Args:
        path: Path of the file.
    """

    path: Path

    def pixels(self, size: Size) -> tuple[int, int, np.ndarray]:
        file = decode(self.path)
        if file.header.shown_size != size:
            stated, own = said_sizes(file.header.shown_size, size)
            raise ValueError(
                f"it is {stated}, and its image {own} (height × width); save both in the same size"
            )
        values = to_indices(file, None, "index").numpy()
        found = np.unique(values[values != 0])
        if len(found) > 1:
            raise ValueError(
                f"it holds 0 and {len(found)} other values, such as {found[0]} and {found[1]}, and "
                "a mask of one class holds one; save it without smoothed edges"
            )
        return 0, 0, values != 0


@dataclass(frozen=True)
class ClassMasks:
    """The masks of an image.

    Args:
        masks: Names of classes and files; later ones lie over earlier ones.
    """

    masks: tuple[tuple[str, Path], ...]

    @property
    def path(self) -> Path:
        return self.masks[0][1]

    def of(self, picture: Picture) -> Annotated:
        areas = tuple(
            Area(name, MaskFile(path), f"mask {str(path)!r}") for name, path in self.masks
        )
        return Annotated(self.path, areas)


def masks_of(
    images: Mapping[str, Path], labels: Mapping[str, Path], order: Sequence[str]
) -> tuple[dict[str, ClassMasks], list[Path]] | None:
    """Returns the masks of each image, and the files that belong to none.

    Returns None if no file belongs to an image and a class.

    Args:
        images: Path of each image by its name.
        labels: Path of each mask by its name.
        order: Names of the known classes; their masks are drawn in this order.
    """
    of_image: dict[str, dict[str, Path]] = defaultdict(dict)
    alone = []
    for name, path in labels.items():
        image, of_class = split_name(name, images)
        if image is None:
            alone.append(path)
        else:
            of_image[image][of_class] = path
    if not {name for masks in of_image.values() for name in masks} & set(order):
        return None
    place = {name: number for number, name in enumerate(order)}
    found = {
        image: ClassMasks(
            tuple(sorted(masks.items(), key=lambda mask: place.get(mask[0], len(order))))
        )
        for image, masks in of_image.items()
    }
    return found, alone


def split_name(name: str, images: Container[str]) -> tuple[str | None, str]:
    """Returns the image and the class in a mask's name."""
    folder, _, rest = name.partition("/")
    if rest in images:
        return rest, folder
    for place in reversed(range(1, len(name))):
        if name[place] in SEPARATORS and name[:place] in images:
            return name[:place], name[place + 1 :]
    return None, ""
