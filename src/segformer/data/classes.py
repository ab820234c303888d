"""Names and colours of the classes of a data set."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources

Color = tuple[int, int, int]
IGNORE_INDEX = 255  # up to 255 classes


def voc_palette(num_classes: int) -> tuple[Color, ...]:
    """The PASCAL VOC colour of each index: its bits dealt to R, G and B, highest colour bit first.

    Used wherever a data set brings no colours of its own. No two of the first 2²⁴ are equal.
    """
    channels = (
        [sum((k >> 3 * bit + c & 1) << 7 - bit for bit in range(8)) for c in range(3)]
        for k in range(num_classes)
    )
    return tuple((r, g, b) for r, g, b in channels)


def ignore_index(num_classes: int) -> int:
    """Returns the label of pixels that count nowhere: 255, or 65535 for more than 255 classes.

    Raises:
        ValueError: If there are more classes than 16-bit label maps hold.
    """
    if num_classes > 65535:
        raise ValueError(
            f"{num_classes} classes; 16-bit label maps hold 65535 and the ignored value"
        )
    return IGNORE_INDEX if num_classes <= IGNORE_INDEX else 65535


@dataclass(frozen=True)
class Classes:
    """What the indices of a label map stand for: ``names[k]`` and the RGB colour ``colors[k]`` (0 to 255).

    Args:
        names: one name a class, in the order of the indices.
        colors: one RGB triple a class; by default the PASCAL VOC palette.

    Raises:
        ValueError: when there are no names, a name occurs twice, names and colours differ in number, or a colour is none.
    """

    names: Sequence[str]
    colors: Sequence[Color] = ()

    def __post_init__(self) -> None:
        if not self.names:
            raise ValueError("no class names; give at least one")
        colors = [tuple(color) for color in self.colors] or voc_palette(len(self.names))
        if len(colors) != len(self.names):
            raise ValueError(
                f"{len(self.names)} class names but {len(colors)} colours; give one RGB colour a class or none at all"
            )
        repeated = [name for k, name in enumerate(self.names) if name in self.names[:k]]
        if repeated:
            raise ValueError(
                f"the class name {repeated[0]!r} occurs more than once; give each class its own"
            )
        for name, color in zip(self.names, colors, strict=True):
            if len(color) != 3 or not all(
                isinstance(channel, int) and 0 <= channel <= 255 for channel in color
            ):
                raise ValueError(
                    f"the colour of {name!r} is {color}; give three whole numbers (red, green, blue) from 0 to 255"
                )
        object.__setattr__(self, "names", tuple(map(str, self.names)))
        object.__setattr__(self, "colors", tuple(colors))

    def __len__(self) -> int:
        return len(self.names)

    @property
    def ignore_index(self) -> int:
        """The label of ignored pixels, which is 255, or 65535 for more than 255 classes."""
        return ignore_index(len(self))

    @classmethod
    def of_table(cls, name: str) -> Classes:
        """The classes of a table in this package: a name a row, and where they are known its red, green and blue."""
        table = resources.files("segformer.data") / "tables" / f"{name}.csv"
        rows = list(csv.DictReader(table.read_text(encoding="utf-8").splitlines()))
        colors = (
            [(int(row["red"]), int(row["green"]), int(row["blue"])) for row in rows]
            if "red" in rows[0]
            else ()
        )
        return cls([row["name"] for row in rows], colors)

    @classmethod
    def unnamed(cls, num_classes: int) -> Classes:
        """Classes known by number only: ``class 0``, ``class 1``, … in the PASCAL VOC colours."""
        return cls([f"class {k}" for k in range(num_classes)])

    @classmethod
    def of_logits(cls, num_logits: int) -> Classes:
        """The unnamed classes that so many logits tell apart: two by one logit."""
        return cls.unnamed(max(2, num_logits))

    def fit(self, num_logits: int) -> bool:
        """Whether so many logits tell these classes apart: one for each, or one for two."""
        return len(self) in (num_logits, max(2, num_logits))

    def with_background(self) -> Classes:
        """These classes behind a black background, as a model of one logit labels them."""
        name = "other" if "background" in self.names else "background"
        colors = () if (0, 0, 0) in self.colors else [(0, 0, 0), *self.colors]
        return Classes([name, *self.names], colors)
