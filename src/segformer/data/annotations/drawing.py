"""Label maps that are drawn from annotations when a sample is read."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Literal, NamedTuple, get_args

import numpy as np
import torch
from torchvision import tv_tensors

from segformer.data.annotations.areas import (
    Annotated,
    Area,
    Picture,
    Source,
    check_size,
)
from segformer.data.annotations.fields import fault
from segformer.data.annotations.painting import (
    bounds_of,
    check_outlines,
    in_window,
    invalid_polygons,
    none_holds_a_pixel,
    paint,
)
from segformer.data.classes import Classes
from segformer.data.families.opened import Window
from segformer.data.labels import label_type

IGNORE = "ignore"
IGNORED_NAMES = ("__ignore__",)  # LabelMe's own name for no class
# What is done with polygons that cross themselves or their holes, or have no area.
Treatment = Literal["refuse", "draw"]


class Drawing:
    """How annotations become class indices.

    Args:
        classes: Names of the classes.
        unlabelled: Class of pixels without annotation, by index or name, or ``"ignore"``.
        class_map: Class of names that the files have and the classes have not, or ``"ignore"``.
        invalid_polygons: Whether polygons that cross themselves or their holes, or have no area,
            are refused or drawn. A drawn one has the pixels from whose centres a ray crosses its
            edges an odd number of times.

    Raises:
        ValueError: If ``unlabelled`` is None, or a class does not exist.
    """

    def __init__(
        self,
        classes: Classes,
        unlabelled: int | str | None,
        class_map: Mapping[str, str] | None = None,
        invalid_polygons: Treatment = "refuse",
    ) -> None:
        self.classes = classes
        if invalid_polygons not in get_args(Treatment):
            raise ValueError(f"invalid_polygons is {invalid_polygons!r}; choose refuse or draw")
        self.draws_invalid = invalid_polygons == "draw"
        if unlabelled is None:
            raise ValueError(
                "labels are drawn from annotations, and pixels without any may be of a class or "
                f"ignored; set `unlabelled: {classes.names[0]}` or `unlabelled: {IGNORE}`"
            )
        self._value_of = {name: k for k, name in enumerate(classes.names)}
        self._value_of |= dict.fromkeys(
            [name for name in IGNORED_NAMES if name not in self._value_of], classes.ignore_index
        )
        self.unlabelled = self._chosen(unlabelled, "unlabelled")
        own = dict(self._value_of)
        for name, target in (class_map or {}).items():
            own[str(name)] = self._chosen(target, f"class_map maps {name!r}, and its class")
        self._value_of = own

    def _chosen(self, choice: int | str, what: str) -> int:
        """Returns the index of a class that the user gives by name or index."""
        if choice in self._value_of:
            return self._value_of[str(choice)]
        if choice == IGNORE:
            return self.classes.ignore_index
        if str(choice).isdecimal() and int(choice) < len(self.classes):
            return int(choice)
        names = ", ".join(self.classes.names[:8])
        raise ValueError(f"{what} is {choice!r}; choose a class ({names}, …) or {IGNORE!r}")

    @property
    def names(self) -> list[str]:
        """Names that files may use, in the order of the classes."""
        return list(self._value_of)

    @property
    def unlabelled_name(self) -> str:
        """The class of pixels without annotation."""
        if self.unlabelled == self.classes.ignore_index:
            return "ignored"
        return repr(self.classes.names[self.unlabelled])

    def value(self, area: Area, path: Path) -> int:
        """Returns the class index of an area.

        Raises:
            ValueError: If its class is unknown. The message names it.
        """
        if area.name not in self._value_of:
            raise fault(path, area.where, self._unknown(area.name))
        return self._value_of[area.name]

    def _unknown(self, name: str) -> str:
        by_case = {known.casefold(): known for known in self.classes.names}
        similar = by_case.get(name.casefold().strip(), self.classes.names[0])
        more = ", …" if len(self.classes) > 8 else ""
        return (
            f"the class {name!r} is not one of the config's ({', '.join(self.classes.names[:8])}"
            f"{more}); add it to classes.names, or map it by `class_map: {{{name}: {similar}}}` or "
            f"`class_map: {{{name}: {IGNORE}}}`"
        )

    def without_unknown(
        self, sources: Mapping[Path, Source]
    ) -> tuple[dict[Path, Source], list[str]]:
        """Returns the annotations whose classes are known, and one sentence for each other class.

        Annotations that are not read yet are kept.
        """
        kept: dict[Path, Source] = {}
        first: dict[str, tuple[Path, str]] = {}
        count: dict[str, int] = defaultdict(int)
        for image, source in sources.items():
            areas = source.areas if isinstance(source, Annotated) else ()
            unknown = [area for area in areas if area.name not in self._value_of]
            for area in unknown:
                count[area.name] += 1
                first.setdefault(area.name, (source.path, area.where))
            if not unknown:
                kept[image] = source
        return kept, [
            f"{fault(path, where, self._unknown(name))} ({count[name]} annotations)"
            for name, (path, where) in first.items()
        ]


class Checked(NamedTuple):
    """The annotations of an image after their checks.

    Args:
        annotated: The annotations.
        bounds: Left, top, right and bottom of each area (N, 4).
        invalid: Number of polygons that cross themselves or have no area, and are drawn.
    """

    annotated: Annotated
    bounds: np.ndarray
    invalid: int


class Drawn:
    """The label maps of images with annotations.

    Args:
        sources: Annotations by the path of their image.
        drawing: How they become class indices.
    """

    def __init__(self, sources: Mapping[Path, Source], drawing: Drawing) -> None:
        self.sources = sources
        self.drawing = drawing
        # Annotations that were read and checked: an image may have many tiles.
        self._read: dict[Path, Checked] = {}

    def label(self, picture: Picture, window: Window | None = None) -> tv_tensors.Mask:
        """Returns the class indices of an image, or of a window of it.

        Raises:
            ValueError: If its annotations have a fault. The message names it.
        """
        annotated, bounds, _ = self._checked(picture)
        if window:
            annotated = in_window(annotated, bounds, window)
        shape = (window.height, window.width) if window else picture.size
        classes = self.drawing.classes
        labels = torch.full(shape, self.drawing.unlabelled, dtype=label_type(len(classes)))
        path = annotated.path
        paint(
            labels.numpy(),
            annotated,
            lambda area: self.drawing.value(area, path),
            picture.size,
            window,
        )
        return tv_tensors.Mask(labels)

    def check(self, picture: Picture) -> None:
        """Raises ValueError for annotations with a fault that shows without drawing them."""
        annotated = self._checked(picture).annotated
        for area in annotated.areas:
            self.drawing.value(area, annotated.path)

    def stated_size(self, picture: Picture) -> tuple[int, int] | None:
        """Returns the size of an image that its annotations state."""
        return self.sources[picture.path].of(picture).size

    def invalid(self, path: Path) -> int:
        """Returns the number of invalid polygons that were drawn on an image, 0 before that."""
        return self._read[path].invalid if path in self._read else 0

    def _checked(self, picture: Picture) -> Checked:
        if picture.path not in self._read:
            annotated = self.sources[picture.path].of(picture)
            check_size(annotated, picture)
            check_outlines(annotated, picture.size)
            bounds = bounds_of(annotated)
            invalid = chain(invalid_polygons(annotated), none_holds_a_pixel(annotated, bounds))
            if not self.drawing.draws_invalid:
                for error in invalid:
                    raise error
            self._read[picture.path] = Checked(annotated, bounds, sum(1 for _ in invalid))
        return self._read[picture.path]


def sentence_on_invalid(count: int) -> str:
    """Returns the sentence for the invalid polygons that are drawn."""
    return (
        f"{count} polygons that cross themselves or their holes, or have no area, are drawn by the "
        "even-odd rule"
    )


def notes(drawn: Sequence[Drawn]) -> list[str]:
    """Returns one sentence for each thing that a user should know about annotations."""
    sources = {path: source for each in drawn for path, source in each.sources.items()}
    if not sources:
        return []
    listed = [source for source in sources.values() if isinstance(source, Annotated)]
    count = sum(len(source.areas) for source in listed)
    objects = f"the {count} annotated objects" if len(listed) == len(sources) else "the objects"
    sentences = [
        f"{objects} of {len(sources)} images are drawn by their classes; which object a pixel "
        "belongs to is not kept"
    ]
    empty = [
        path
        for path, source in sources.items()
        if isinstance(source, Annotated) and not source.areas
    ]
    if empty:
        sentences.append(
            f"{len(empty)} images have no annotated object, such as {str(empty[0])!r}; all their "
            f"pixels are {drawn[0].drawing.unlabelled_name}"
        )
    return sentences
