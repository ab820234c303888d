"""Names and colours of the classes of a data set."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources

Color = tuple[int, int, int]
IGNORE_INDEX = 255  # up to 255 classes
IGNORED_16_BITS = 65535  # of more
VOC_NAMES = {"aeroplane", "motorbike", "sheep", "sofa"}  # some of them


@cache
def voc_palette(num_classes: int) -> tuple[Color, ...]:
    """Returns PASCAL VOC's colours of the first class indices, the default of data sets.

    The bits of an index go to R, G and B in turn, the lowest bits to the highest bits of a channel.
    The colours of the first 2²⁴ indices differ.
    """
    channels = (
        [sum((k >> 3 * bit + c & 1) << 7 - bit for bit in range(8)) for c in range(3)]
        for k in range(num_classes)
    )
    return tuple((r, g, b) for r, g, b in channels)


@cache
def distinct_palette() -> tuple[Color, ...]:
    """Returns 255 colours that also differ for colour-blind eyes, the first ones most.

    The first two are of Okabe and Ito's palette (2008). Each further one is, of a grid of colours,
    the farthest from all before it, and from black and white. The distance is the Euclidean one in
    CIELAB, the smallest of those seen by normal eyes and by eyes with protanopia, deuteranopia and
    tritanopia as Machado, Oliveira and Fernandes (2009) simulate them.
    """
    rows = _table("distinct")
    return tuple((int(row["red"]), int(row["green"]), int(row["blue"])) for row in rows)


def _table(name: str) -> list[dict[str, str]]:
    """Returns the rows of a CSV file of this package."""
    table = resources.files("segformer.data") / "tables" / f"{name}.csv"
    return list(csv.DictReader(table.read_text(encoding="utf-8").splitlines()))


def number_of_labels(num_logits: int) -> int:
    """Returns how many labels a number of logits gives: one logit separates two classes."""
    return max(2, num_logits)


def ignore_index(num_classes: int) -> int:
    """Returns the label of ignored pixels: 255, or 65535 for more than 255 classes.

    Raises:
        ValueError: If there are more than 65535 classes.
    """
    if num_classes > IGNORED_16_BITS:
        raise ValueError(
            f"{num_classes} classes; use at most 65535, as 16-bit label maps hold no more beside "
            "the ignored value"
        )
    return IGNORE_INDEX if num_classes <= IGNORE_INDEX else IGNORED_16_BITS


@dataclass(frozen=True)
class Classes:
    """Names and colours of the class indices in a label map.

    Args:
        names: Name of each class, in the order of the indices.
        colors: RGB triple (0 to 255) of each class; by default the PASCAL VOC palette.

    Raises:
        ValueError: If there are no names, a name occurs twice, names and colours differ in number,
            or a colour is not three integers from 0 to 255.
    """

    names: Sequence[str]
    colors: Sequence[Color] = ()

    def __post_init__(self) -> None:
        if not self.names:
            raise ValueError("no class names; give at least one")
        colors = [tuple(color) for color in self.colors] or voc_palette(len(self.names))
        if len(colors) != len(self.names):
            raise ValueError(
                f"{len(self.names)} class names but {len(colors)} colours; give one RGB colour for "
                "each class, or no colours"
            )
        repeated = [name for k, name in enumerate(self.names) if name in self.names[:k]]
        if repeated:
            raise ValueError(
                f"the class name {repeated[0]!r} occurs more than once; give each class a name of "
                "its own"
            )
        for name, color in zip(self.names, colors, strict=True):
            if len(color) != 3 or not all(
                isinstance(channel, int) and 0 <= channel <= 255 for channel in color
            ):
                raise ValueError(
                    f"the colour of {name!r} is {color}; give three integers (red, green, blue) "
                    "from 0 to 255"
                )
        object.__setattr__(self, "names", tuple(map(str, self.names)))
        object.__setattr__(self, "colors", tuple(colors))

    def __len__(self) -> int:
        return len(self.names)

    @property
    def ignore_index(self) -> int:
        """The label of ignored pixels, which is 255, or 65535 for more than 255 classes."""
        return ignore_index(len(self))

    @property
    def shown_colors(self) -> tuple[Color, ...]:
        """Colour of each class in pictures: its own, or one that colour-blind eyes tell apart.

        The classes have no colours of their own if these are VOC's and the names are not, up to
        255 classes. Files of labels keep VOC's palette, by which they are read.
        """
        colors = tuple(self.colors)
        is_default = len(self) <= IGNORE_INDEX and colors == voc_palette(len(self))
        if not is_default or set(self.names) >= VOC_NAMES:
            return colors
        return distinct_palette()[: len(self)]

    @classmethod
    def of_table(cls, name: str) -> Classes:
        """Returns the classes in a CSV file of this package, with columns name, red, green, blue.

        A file without the last three gives the PASCAL VOC colours.
        """
        rows = _table(name)
        colors = (
            [(int(row["red"]), int(row["green"]), int(row["blue"])) for row in rows]
            if "red" in rows[0]
            else ()
        )
        return cls([row["name"] for row in rows], colors)

    @classmethod
    def unnamed(cls, num_classes: int) -> Classes:
        """Returns classes named ``class 0``, ``class 1``, … in the PASCAL VOC colours."""
        return cls([f"class {k}" for k in range(num_classes)])

    @classmethod
    def of_logits(cls, num_logits: int) -> Classes:
        """Returns the unnamed classes of a number of logits; one logit is for two classes."""
        return cls.unnamed(number_of_labels(num_logits))

    def fit(self, num_logits: int) -> bool:
        """Returns whether a number of logits fits: one for each class, or one for two classes."""
        return len(self) in (num_logits, number_of_labels(num_logits))

    def of_labels(self) -> Classes:
        """Returns the classes of label maps: a single one is label 1, label 0 the background."""
        return self.with_background() if len(self) == 1 else self

    def with_background(self) -> Classes:
        """Returns a black background class followed by these classes, for a model of one logit."""
        name = "other" if "background" in self.names else "background"
        colors = () if (0, 0, 0) in self.colors else [(0, 0, 0), *self.colors]
        return Classes([name, *self.names], colors)
