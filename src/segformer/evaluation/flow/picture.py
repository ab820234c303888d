"""A data flow as a picture in SVG.

The encoder's maps stand in a row from left to right, from the image on, and the decoder's below
from right to left, so that the labels stand below the image. A map's longer side is the root of its
number of cells, and its depth is the logarithm of its number of channels.
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from segformer.evaluation.flow import svg
from segformer.evaluation.flow.boxes import Box, Head, encoder_boxes, head_boxes, sides
from segformer.evaluation.flow.steps import Shape
from segformer.evaluation.flow.table import count
from segformer.evaluation.flow.tracing import Flow

WIDTH, MARGIN = 960, 20  # of the picture, and of its border
COLUMN, PLACE = 160, 128  # least distance of two maps of the encoder, and of the decoder
LINE, LETTER = 15, 6.4  # height of a line of a caption, and width of a letter
GAP, JOINT = 20, 28  # length of a vertical arrow, and height of a joint
HEADING = 72  # lower end of the title
TALLEST, BESIDE = 150, 40  # height of the tallest map, and room beside the widest
ENCODER, DECODER = ("#c9dcfa", "#e1ebfd", "#9cbdf2"), ("#fbdfa8", "#fdf0d6", "#f0c169")
PHOTO = {"sky": "#d5e5f2", "trees": "#9bb394", "road": "#bcb9b4", "car": "#b9574c"}
LABELS = {"sky": "#4682b4", "trees": "#6b8e23", "road": "#804080", "car": "#00008e"}
AREAS = {  # corners, in shares of the width and the height
    "sky": ((0, 0), (1, 0), (1, 1), (0, 1)),
    "trees": ((0, 0.36), (0.22, 0.24), (0.42, 0.4), (0.66, 0.28), (1, 0.4), (1, 0.7), (0, 0.7)),
    "road": ((0, 0.62), (1, 0.62), (1, 1), (0, 1)),
    "car": (
        *((0.26, 0.86), (0.26, 0.7), (0.36, 0.68), (0.43, 0.54)),
        *((0.65, 0.54), (0.73, 0.68), (0.8, 0.7), (0.8, 0.86)),
    ),
}

Line = tuple[str, dict[str, Any]]  # words, and their style


def draw(flow: Flow) -> str:
    """Returns the picture of a model's data flow, as the text of an SVG file."""
    encoder, decoder, *_ = flow.model.steps
    head = head_boxes(decoder)
    upper = [Box("image", flow.model.inputs[0]), *encoder_boxes(encoder)]
    lower = [*head.chain, _labels(flow)]
    width = max(WIDTH, COLUMN * len(upper) + 2 * MARGIN, PLACE * len(lower) + 2 * MARGIN)
    half = (width - 2 * MARGIN) / len(upper) / 2
    columns = _spread(MARGIN + half, width - MARGIN - half, len(upper))
    places = _spread(columns[-1], columns[0], len(lower))
    scale = min(_scale(upper, columns), _scale(lower, places))
    first = Row(upper, columns, ENCODER, HEADING, scale)
    joint, x, y = _between(head, columns[1:], first.end)
    second = Row(lower, places, DECODER, 0, scale)
    second = replace(second, top=_top(second, y, first.base + 3 * LINE))
    end = second.summit(0) - 4
    elements = [
        *_heading(flow),
        *first.elements(),
        *_scene(first.face(0), PHOTO),
        *joint,
        svg.arrow([(x, y + 4), (x, y + GAP), (places[0], y + GAP), (places[0], end)]),
        *second.elements(),
        *_scene(second.face(-1), LABELS),
    ]
    return svg.document(elements, width, second.end + MARGIN, flow.title)


def _labels(flow: Flow) -> Box:
    """Returns the box of the labels."""
    _, decoder, *last = flow.model.steps
    words = ", ".join(step.operation for step in last)
    return Box("labels", flow.size, words, enlarged=flow.size[0] / decoder.outputs[0][-2])


def _top(row: Row, chain: float, labels: float) -> float:
    """Returns where the decoder's row begins: its chain and its labels below these heights.

    Args:
        row: The row, which begins at 0.
        chain: Lower end of what is above the chain.
        labels: Lower end of what is above the labels.
    """
    last = len(row.boxes) - 1
    free = [chain + 2 * GAP - row.summit(k) for k in range(last)]
    return max([*free, labels + GAP - row.summit(last)])


def _heading(flow: Flow) -> list[str]:
    """Returns the title, and the costs of the whole model."""
    model, (height, width) = flow.model, flow.size
    costs = f"{model.parameters:,} parameters, {count(model.multiply_adds)} multiply-adds"
    left = {"text_anchor": "start"}
    return [
        svg.text(MARGIN, 34, flow.title, font_size=16, font_weight=600, **left),
        svg.text(MARGIN, 53, f"one image of {height} × {width}: {costs}", fill=svg.GREY, **left),
    ]


def _spread(start: float, stop: float, number: int) -> list[float]:
    """Returns numbers at equal distances, both ends among them."""
    return [start + (stop - start) * k / max(1, number - 1) for k in range(number)]


def _scale(boxes: Sequence[Box], places: Sequence[float]) -> float:
    """Returns the greatest scale at which maps have room between their places."""
    room = abs(places[0] - places[-1]) / max(1, len(places) - 1) - BESIDE
    widths, heights = zip(*(_sides_of(box.shape, 1) for box in boxes), strict=True)
    depth = max(_depth(box.shape)[0] for box in boxes)
    return min((room - depth) / max(widths), TALLEST / max(heights))


def _sides_of(shape: Shape, scale: float) -> tuple[float, float]:
    """Returns the width and the height of a map in the picture."""
    height, width = shape[-2:]
    factor = scale / math.sqrt(max(height, width))
    return width * factor, height * factor


def _depth(shape: Shape) -> tuple[float, float]:
    """Returns how far the back of a map lies to the right of its front, and above it."""
    length = 2.4 * math.log2(1 + (shape[0] if len(shape) > 2 else 1))
    return 0.8 * length, 0.5 * length


@dataclass(frozen=True)
class Row:
    """Maps that stand beside one another, with captions and arrows between them.

    Args:
        boxes: The maps, in the order of the data flow.
        places: The middle of each.
        colors: Of a map's front, top and side.
        top: Upper end of the row.
        scale: Size of the maps.
    """

    boxes: Sequence[Box]
    places: Sequence[float]
    colors: tuple[str, str, str]
    top: float
    scale: float

    @property
    def base(self) -> float:
        """Height at which the maps stand."""
        return self.top + max(self._extent(box)[1] for box in self.boxes)

    @property
    def end(self) -> float:
        """Lower end of the captions."""
        return self.base + 8 + LINE * max(len(self._caption(box)) for box in self.boxes)

    def _extent(self, box: Box) -> tuple[float, float]:
        """Returns the width and the height of a map, its depth among them."""
        sides, depth = _sides_of(box.shape, self.scale), _depth(box.shape)
        return sides[0] + depth[0], sides[1] + depth[1]

    def summit(self, number: int) -> float:
        """Returns the upper end of a map."""
        return self.base - self._extent(self.boxes[number])[1]

    def face(self, number: int) -> tuple[float, float, float, float]:
        """Returns the left, the upper end, the width and the height of a map's front."""
        box = self.boxes[number]
        width, height = _sides_of(box.shape, self.scale)
        return self.places[number] - self._extent(box)[0] / 2, self.base - height, width, height

    def elements(self) -> Iterator[str]:
        """Yields the elements of the row."""
        for number, box in enumerate(self.boxes):
            yield from self._map(number)
            yield from _caption(self.places[number], self.base + 6, self._caption(box))
        for number in range(len(self.boxes) - 1):
            yield from self._arrow(number)

    def _map(self, number: int) -> Iterator[str]:
        """Yields the front, the top and the side of a map."""
        left, top, width, height = self.face(number)
        front, above, beside = self.colors
        across, up = _depth(self.boxes[number].shape)
        right, bottom = left + width, top + height
        yield svg.polygon(_rectangle(left, top, width, height), front)
        back = [(right + across, top - up), (left + across, top - up)]
        yield svg.polygon([(left, top), (right, top), *back], above)
        corners = [(right, top), back[0], (right + across, bottom - up), (right, bottom)]
        yield svg.polygon(corners, beside)

    def _arrow(self, number: int) -> Iterator[str]:
        """Yields the arrow to the next map, and how many times that enlarges its input."""
        start, stop = self.places[number : number + 2]
        toward = math.copysign(1, stop - start)
        here, there = self.boxes[number : number + 2]
        start += toward * (self._extent(here)[0] / 2 + 7)
        stop -= toward * (self._extent(there)[0] / 2 + 5)
        height = self.base - min(_sides_of(box.shape, self.scale)[1] for box in self.boxes) / 2
        yield svg.arrow([(start, height), (stop, height)])
        if there.enlarged != 1:
            middle = (start + stop) / 2
            yield svg.text(middle, height - 7, f"×{there.enlarged:.3g}", fill=svg.GREY)

    def _caption(self, box: Box) -> list[Line]:
        """Returns the lines below a map."""
        room = abs(self.places[0] - self.places[-1]) / max(1, len(self.places) - 1)
        width = min(room, COLUMN)
        title = [(words, {"font_weight": 600}) for words in _wrapped(box.title, width)]
        maps = f"{box.maps} maps of " if box.maps > 1 else ""
        return [*title, (maps + sides(box.shape), {}), *_costs(box, width)]


def _rectangle(left: float, top: float, width: float, height: float) -> list[svg.Point]:
    right, bottom = left + width, top + height
    return [(left, top), (right, top), (right, bottom), (left, bottom)]


def _scene(face: tuple[float, float, float, float], colors: dict[str, str]) -> Iterator[str]:
    """Yields a small street on the front of a map."""
    left, top, width, height = face
    for name, corners in AREAS.items():
        points = [(left + x * width, top + y * height) for x, y in corners]
        yield svg.polygon(points, colors[name])


def _between(head: Head, columns: Sequence[float], y: float) -> tuple[list[str], float, float]:
    """Returns what is between the feature maps and the chain, and where it ends."""
    elements = []
    if head.projections:
        height = max(map(_panel_height, head.projections.values()))
        for level, box in head.projections.items():
            x = columns[level]
            elements.append(svg.arrow([(x, y + 4), (x, y + GAP)]))
            elements.append(svg.panel(x - COLUMN / 2, y + GAP + 2, COLUMN, height, DECODER[1]))
            elements += _caption(x, y + GAP + 8, _panel_lines(box))
        y += GAP + 2 + height
    read = [columns[level] for level in head.reads]
    if len(read) > 1:
        elements += [svg.arrow([(x, y + 4), (x, y + GAP)]) for x in read]
        left, right = read[0] - COLUMN / 2, read[-1] + COLUMN / 2
        y += GAP + 2
        elements.append(svg.panel(left, y, right - left, JOINT, DECODER[1]))
        elements.append(svg.text((left + right) / 2, y + 18, head.joint))
        y += JOINT
    end = read[0] if len(read) == 1 else columns[-1]
    return elements, end, y


def _panel_lines(box: Box) -> list[Line]:
    return [(words, {}) for words in _wrapped(box.title, COLUMN - 12)] + _costs(box, COLUMN)


def _panel_height(box: Box) -> float:
    return LINE * len(_panel_lines(box)) + 16


def _caption(x: float, y: float, lines: Sequence[Line]) -> Iterator[str]:
    """Yields centred lines of text below a height."""
    for number, (words, style) in enumerate(lines, 1):
        yield svg.text(x, y + number * LINE, words, **style)


def _costs(box: Box, width: float) -> list[Line]:
    """Returns the lines with the name, the parameters and the multiply-adds of a box."""
    lines = [box.name] if box.name else []
    lines += [f"{box.parameters:,} parameters"] if box.parameters else []
    lines += [f"{count(box.multiply_adds)} multiply-adds"] if box.multiply_adds else []
    style = {"fill": svg.GREY, "font_size": 11}
    return [(words, style) for line in lines for words in _wrapped(line, width)]


def _wrapped(words: str, width: float) -> list[str]:
    """Returns lines that are not wider than ``width``."""
    return textwrap.wrap(words, int(width / LETTER), break_on_hyphens=False)
