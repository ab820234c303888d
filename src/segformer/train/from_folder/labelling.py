"""The classes of a folder, from the values and colours of all of its label maps."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np

from segformer.data.classes import (
    IGNORE_INDEX,
    IGNORED_16_BITS,
    Classes,
    Color,
    number_of_labels,
)
from segformer.data.classes import ignore_index as own_ignore_index
from segformer.train.from_folder.class_names import BACKGROUND, UNLABELLED, NamedClasses
from segformer.train.from_folder.label_values import LabelMaps

MOST_COLORS = 255  # of label maps without a file of names; more are edges that were smoothed
RARE = 0.001  # share of the pixels below which a colour may be that of a smoothed edge
MOST_MIXED = 0.75  # share of colours between two others; palettes of classes have some, too
SOFT_SHARE = 0.9  # of the pixels of a mask with soft edges are 0 or 255
MOST_MASK_VALUES = 64  # of a mask of classes in which few pixels are neither 0 nor 255
MOST_VALUES = 200  # of 8-bit label maps; photographs have more
SHOWN = 8  # values or names in a sentence
UNSET = "remove the statement by gdal_edit.py -unsetnodata"  # of a value for no data


@dataclass(frozen=True)
class Labelling:
    """The classes of a folder, and how its label maps are read.

    Args:
        classes: Names and colours.
        pixels: Number of pixels of each class.
        options: Options ``ignore_index``, ``label_map`` and ``palette`` of the data.
        decisions: One sentence for each decision.
    """

    classes: Classes
    pixels: tuple[int, ...]
    options: dict[str, Any]
    decisions: tuple[str, ...] = ()


def labelling(
    found: LabelMaps,
    named: NamedClasses | None = None,
    ignore_index: int | None = None,
    label_map: Mapping[int, int] | None = None,
) -> Labelling:
    """Returns the classes that label maps hold, and how they are read.

    Args:
        found: What the label maps hold.
        named: The classes that a file names, if there is one.
        ignore_index: Value for no class, if the user gave it.
        label_map: Class of each value, if the user gave it.

    Raises:
        ValueError: If they can be read in more than one way.
    """
    if label_map is not None and ignore_index is not None:
        raise ValueError(
            f"--data.ignore_index {ignore_index} and --data.label_map are given; leave the first "
            f"out, and map {ignore_index} to 255 in label_map"
        )
    _refuse_mixed_no_data(found)
    if _is_by_color(found) or _has_palette_in_another_order(found, named):
        _refuse_values(found, ignore_index=ignore_index, label_map=label_map)
        return _by_color(found, named)
    if label_map is not None:
        return _by_given_map(found, named, label_map)
    values = sorted(value for value in found.values if value != ignore_index)
    if values and values[0] < 0:
        raise ValueError(
            f"the label maps, such as {_example(found)!r}, hold {values[0]}, which can be no "
            f"class; pass --data.ignore_index={values[0]} if it means none"
        )
    if named and named.values:
        order, decisions = _listed(values, named)
    elif named:
        order, decisions = _counted(values, named, found, ignore_index)
    else:
        order, decisions = _unnamed([value for value in values if value != IGNORED_16_BITS], found)
    if ignore_index is not None:
        decisions = [*decisions, f"value {ignore_index} means no class, as it is given"]
    given = {ignore_index} if ignore_index is not None else set()
    if not named and IGNORED_16_BITS in values:
        given.add(IGNORED_16_BITS)
        decisions = [*decisions, f"value {IGNORED_16_BITS} means no class"]
    names = list(named.names) if named else _names(order)
    _refuse_named_no_data(order, names, found)
    void = {v for v, name in zip(order, names, strict=True) if name.lower() in UNLABELLED}
    if void:
        decisions = [*decisions, f"value {_shown(sorted(void))} means no class, as its name says"]
    kept = [(value, name) for value, name in zip(order, names, strict=True) if value not in void]
    order, names = [value for value, _ in kept], [name for _, name in kept]
    _refuse_one_class(order, values, found)
    decisions = [*decisions, *(f"value {v} means no class, as files state" for v in found.no_data)]
    options = _reading(order, void | given, found)
    classes = Classes(names, _colors(found, named, order))
    pixels = tuple(found.values[value] for value in order)
    return Labelling(classes, pixels, options, (*decisions, *summary(classes, pixels)))


def _refuse_mixed_no_data(found: LabelMaps) -> None:
    """Raises ValueError if a value is no data in some files, and data in others."""
    for value, path in found.no_data.items():
        if found.values[value]:
            raise ValueError(
                f"label map {str(path)!r} states {value} as no data, and others hold it as data; "
                f"{UNSET} there, or make all state it"
            )


def _refuse_named_no_data(order: Sequence[int], names: Sequence[str], found: LabelMaps) -> None:
    """Raises ValueError if the value of a class is no data to the files."""
    for value, name in zip(order, names, strict=True):
        if value in found.no_data:
            raise ValueError(
                f"{name!r} has the value {value}, which label maps such as "
                f"{str(found.no_data[value])!r} state as no data; {UNSET} there, or name the other "
                "classes by their values in class_dict.csv"
            )


def _refuse_one_class(order: Sequence[int], values: Sequence[int], found: LabelMaps) -> None:
    """Raises ValueError if there are fewer than two classes."""
    if len(order) > 1:
        return
    stated = ", ".join(map(str, sorted(found.no_data)))
    beside, cure = (f", beside {stated}, which is no data", f"; {UNSET}") if stated else ("", "")
    raise ValueError(
        f"the label maps, such as {_example(found)!r}, hold only {_shown(values)}{beside}, which "
        f"is one class; a network needs at least two{cure}"
    )


def _reading(order: list[int], ignored: set[int], found: LabelMaps) -> dict[str, Any]:
    """Returns the options of the data that read the classes, in this order, from values.

    Args:
        order: Value of each class.
        ignored: Values that mean no class, beside 255 (65535).
        found: What the label maps hold.
    """
    own = own_ignore_index(len(order))
    options: dict[str, Any] = {}
    if order != list(range(len(order))) or len(ignored - {own}) > 1:
        label_map = dict.fromkeys({*ignored, own} - set(order), own)
        options["label_map"] = label_map | {value: k for k, value in enumerate(order)}
    else:
        options |= {"ignore_index": min(ignored - {own})} if ignored - {own} else {}
        if "palette" in found.files or "grey RGB" in found.files:
            options["palette"] = "index"
    return options


def _is_by_color(found: LabelMaps) -> bool:
    """Returns whether colours are the classes.

    Raises:
        ValueError: If some files have colours, others values.
    """
    kinds = found.files
    if "color" in kinds and "value" in kinds:
        raise ValueError(
            f"label map {str(kinds['color'])!r} has colours, and {str(kinds['value'])!r} values of "
            "one channel; save all in the same way"
        )
    if "color" in kinds:
        return True
    is_optimised = any(len(colors) > 1 for colors in found.colors_of.values())
    if is_optimised and "value" in kinds:
        raise ValueError(
            f"label maps such as {str(kinds['palette'])!r} have different palettes, so that their "
            f"colours are the classes, but {str(kinds['value'])!r} has no colours; save all in one "
            "way"
        )
    return is_optimised


def _has_palette_in_another_order(found: LabelMaps, named: NamedClasses | None) -> bool:
    """Returns whether the values of palettes are not those of the colours that a file names."""
    if named is None or named.colors is None or named.values or "value" in found.files:
        return False
    colors = dict(enumerate(named.colors))
    differ = any(of_value != {colors.get(k)} for k, of_value in found.colors_of.items())
    return differ and set(found.colors) <= {*named.colors, (0, 0, 0)}


def _refuse_values(found: LabelMaps, **options: Any) -> None:
    """Raises ValueError if an option of values is given for label maps of colours."""
    for name, value in options.items():
        if value is not None:
            raise ValueError(
                f"--data.{name} {value} is given, and the label maps, such as {_example(found)!r}, "
                "are coded by colour; leave it out, and name the classes and their colours in "
                "class_dict.csv: black that it does not name means no class"
            )


def _by_color(found: LabelMaps, named: NamedClasses | None) -> Labelling:
    """Returns the classes of label maps that are coded by colour."""
    if named and named.colors:
        return _by_named_color(found, named)
    if len(found.colors) > MOST_COLORS or _are_mixed(found.colors):
        raise ValueError(
            f"the label maps, such as {_example(found)!r}, have {len(found.colors)} colours; edges "
            "were smoothed when they were drawn or resized: save them with the classes' colours "
            "alone, or name these in class_dict.csv"
        )
    colors = sorted(found.colors)
    if named and len(named.names) != len(colors):
        raise ValueError(
            f"{str(named.path)!r} names {len(named.names)} classes, and the label maps have "
            f"{len(colors)} colours; write names and colours into class_dict.csv"
        )
    if named:
        raise ValueError(
            f"{str(named.path)!r} does not say which colour each class has; write class_dict.csv "
            "with the columns name, r, g, b"
        )
    classes = Classes([f"class {k}" for k in range(len(colors))], colors)
    pixels = tuple(found.colors[color] for color in colors)
    decisions = ["label maps are coded by colour; each colour is a class"]
    if (0, 0, 0) in colors:
        decisions.append(
            "black is class 0; if it means no class, remove its name and colour from the YAML"
        )
    return Labelling(classes, pixels, {"palette": "color"}, (*decisions, *summary(classes, pixels)))


def _are_mixed(colors: Mapping[Color, int]) -> bool:
    """Returns whether most colours are rare mixtures of two frequent ones, as at smoothed edges.

    Args:
        colors: The number of pixels of each colour.
    """
    least = RARE * sum(colors.values())
    frequent, rare = (
        np.array([c for c, n in colors.items() if (n >= least) is wanted]).reshape(-1, 3)
        for wanted in (True, False)
    )
    is_mixed = np.zeros(len(rare), bool)
    for one, other in combinations(frequent, 2):
        line = other - one
        place = ((rare - one) @ line / (line @ line)).clip(0, 1)
        distance = np.abs(rare - one - place[:, None] * line).max(1)
        is_mixed |= distance <= 1  # of rounding
    return bool(is_mixed.sum() > max(16, MOST_MIXED * len(colors)))


def _by_named_color(found: LabelMaps, named: NamedClasses) -> Labelling:
    assert named.colors is not None
    pairs = [
        (name, color)
        for name, color in zip(named.names, named.colors, strict=True)
        if not (color == (0, 0, 0) and name.lower() in UNLABELLED)
    ]
    for name, color in pairs:
        if name.lower() in UNLABELLED:
            raise ValueError(
                f"{name!r} in {str(named.path)!r} has the colour {color}, and only black can mean "
                "no class; save its pixels black, or give it another name, if it is a class"
            )
    classes = Classes([name for name, _ in pairs], [color for _, color in pairs])
    unknown = [c for c in found.colors if c not in classes.colors and c != (0, 0, 0)]
    if unknown:
        worst = max(unknown, key=lambda color: found.colors[color])
        raise ValueError(
            f"the label maps have the colour {worst} on {found.colors[worst]} pixels, which "
            f"{str(named.path)!r} does not name; add it"
        )
    pixels = tuple(found.colors[color] for color in classes.colors)
    decisions = [f"label maps are coded by colour; {str(named.path)!r} names the classes"]
    if (0, 0, 0) in found.colors and (0, 0, 0) not in classes.colors:
        decisions.append("black means no class")
    return Labelling(classes, pixels, {"palette": "color"}, (*decisions, *summary(classes, pixels)))


def _by_given_map(
    found: LabelMaps, named: NamedClasses | None, label_map: Mapping[int, int]
) -> Labelling:
    ignored = (IGNORE_INDEX, IGNORED_16_BITS)
    count = max((k for k in label_map.values() if k not in ignored), default=-1) + 1
    decisions = ["label_map is given"]
    places = _places(named, label_map, count) if named else None
    if named and places is not None:
        chosen = named.colors or ()
        classes = Classes(
            [named.names[place] for place in places], [chosen[place] for place in places if chosen]
        )
    else:
        classes = Classes(_names(range(number_of_labels(count))))
    if named and places is None:
        decisions.append(
            f"the {len(named.names)} names in {str(named.path)!r} do not fit its {count} classes; "
            "write them into the YAML"
        )
    pixels = [0] * len(classes)
    for value, k in label_map.items():
        if k < len(classes):
            pixels[k] += found.values[value]
    decisions += summary(classes, pixels)
    return Labelling(classes, tuple(pixels), {"label_map": dict(label_map)}, tuple(decisions))


def _places(named: NamedClasses, label_map: Mapping[int, int], count: int) -> list[int] | None:
    """Returns the place in a file of the name of each class, None if they do not fit.

    The file names the classes, or the values, of which one belongs to each class.
    """
    if len(named.names) == count:
        return list(range(count))
    of_class: dict[int, list[int]] = defaultdict(list)
    for place, value in enumerate(named.values or range(len(named.names))):
        of_class[label_map.get(value, IGNORE_INDEX)].append(place)
    places = [of_class[k] for k in range(count)]
    return [place for (place,) in places] if all(len(found) == 1 for found in places) else None


def _listed(values: list[int], named: NamedClasses) -> tuple[list[int], list[str]]:
    """Returns the value of each class as a file lists it."""
    assert named.values is not None
    order = list(named.values)
    unknown = [value for value in values if value not in (*order, own_ignore_index(len(order)))]
    if unknown:
        raise ValueError(
            f"the label maps hold {_shown(unknown)}, which {str(named.path)!r} does not list; add "
            "the classes, or pass --data.ignore_index VALUE"
        )
    return order, [f"{str(named.path)!r} names the classes and their values"]


def _counted(
    values: list[int], named: NamedClasses, found: LabelMaps, ignore_index: int | None
) -> tuple[list[int], list[str]]:
    """Returns the value of each class of a file that lists names alone."""
    count = len(named.names)
    held = [value for value in values if value != own_ignore_index(count)]
    decisions = [f"{str(named.path)!r} names the {count} classes"]
    if values == [0, 255] and count == 2:
        return values, [*decisions, "values 0 and 255 are the two classes"]
    if held and held[0] > 0 and (held[-1] == count or (ignore_index == 0 and held[-1] < count)):
        return list(range(1, count + 1)), [*decisions, "values are counted from 1"]
    if held and held[-1] < count and values != [0, 255]:
        if held[0] > 0 and named.names[0].lower() not in (*UNLABELLED, *BACKGROUND):
            raise ValueError(
                f"{str(named.path)!r} names {count} classes, and the label maps, such as "
                f"{_example(found)!r}, hold {_shown(held)}, which may be counted from 0 or from 1; "
                f"pass --data.label_map '{_map_from(0, count)}' or '{_map_from(1, count)}'"
            )
        return list(range(count)), decisions
    raise ValueError(
        f"{str(named.path)!r} names {count} classes, and the label maps, such as "
        f"{_example(found)!r}, hold {_shown(values)}; add the missing names (that of 0, such as "
        "background, comes first), or pass --data.ignore_index VALUE for a value that is no class"
    )


def _map_from(first: int, count: int) -> dict[int, int]:
    """Returns the label_map of values that are counted from a number."""
    return {first + k: k for k in range(count)} | {own_ignore_index(count): own_ignore_index(count)}


def _unnamed(values: list[int], found: LabelMaps) -> tuple[list[int], list[str]]:
    """Returns the value of each class of label maps without a file of names."""
    # Beside greater values, 255 is one as any other.
    held = values[:-1] if values[-1:] == [IGNORE_INDEX] else values
    if values == [0, IGNORE_INDEX]:
        return values, ["values 0 and 255 are background and object"]
    is_dense = bool(held) and 2 * len(held) > held[-1] + 1
    _refuse_soft_edges(values, is_dense, found)
    decisions = ["value 255 means no class"] if held != values else []
    if not held:
        return held, decisions
    if held[0] == 1 and held == list(range(1, len(held) + 1)):
        decisions.append("values are counted from 1")
        return held, decisions
    if is_dense:
        absent = sorted(set(range(held[-1] + 1)) - set(held) - found.no_data.keys())
        if absent:
            decisions.append(
                f"no pixel has the value {_shown(absent)}, which is a class nevertheless"
            )
        return [k for k in range(held[-1] + 1) if k not in found.no_data], decisions
    if IGNORE_INDEX in values:
        classes = [value for value in values if value != IGNORE_INDEX]
        label_map = {value: k for k, value in enumerate(classes)} | {IGNORE_INDEX: IGNORE_INDEX}
        raise ValueError(
            f"the label maps, such as {_example(found)!r}, hold {_shown(values)}, and 255 may be a "
            "class or mean no class; pass --data.label_map with a class for each value, such as "
            f"'{label_map}' for no class"
        )
    return held, [*decisions, f"each of the values {_shown(held)} is a class (label_map)"]


def _refuse_soft_edges(values: list[int], is_dense: bool, found: LabelMaps) -> None:
    """Raises ValueError if label maps look like masks whose edges were smoothed."""
    extremes = found.values[0] + found.values[255]
    is_mask = found.values[255] > 0 and extremes > SOFT_SHARE * sum(found.values.values())
    is_soft = is_mask and len(values) > (MOST_MASK_VALUES if is_dense else 3)
    if is_soft or (len(values) > MOST_VALUES and values[-1] <= IGNORE_INDEX):
        raise ValueError(
            f"the label maps, such as {_example(found)!r}, hold {len(values)} values, "
            f"{_shown(values)}: edges were smoothed, or they are photographs; save masks with 0 "
            "and 255 alone, or class indices"
        )


def _names(order: Sequence[int]) -> list[str]:
    return (
        ["background", "object"]
        if list(order) == [0, 255]
        else [f"class {k}" for k in range(len(order))]
    )


def _colors(found: LabelMaps, named: NamedClasses | None, order: Sequence[int]) -> Sequence[Color]:
    """Returns the colours of the file of names, or of the palettes; none if they are not unique."""
    if named and named.colors:
        kept = zip(named.names, named.colors, strict=True)
        return [color for name, color in kept if name.lower() not in UNLABELLED]
    if list(order) == [0, 255]:
        return [(0, 0, 0), (255, 255, 255)]
    colors = [color for value in order for color in found.colors_of.get(value, ())]
    return colors if len(set(colors)) == len(order) and "value" not in found.files else ()


def summary(classes: Classes, pixels: Sequence[int]) -> list[str]:
    """Returns a sentence with each class's share of the pixels."""
    total = max(1, sum(pixels))
    shares = [
        f"{name} {100 * count / total:.1f} %"
        for name, count in zip(classes.names, pixels, strict=True)
    ]
    more = f", … ({len(shares)} in all)" if len(shares) > SHOWN else ""
    return [f"{len(classes)} classes: {', '.join(shares[:SHOWN])}{more}"]


def _shown(values: Sequence[int]) -> str:
    more = f", … {values[-1]}" if len(values) > SHOWN else ""
    return ", ".join(map(str, values[:SHOWN])) + more


def _example(found: LabelMaps) -> str:
    return str(next(iter(found.files.values())))
