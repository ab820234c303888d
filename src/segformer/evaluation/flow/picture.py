"""A data flow as a picture in SVG.

The encoder's maps stand in a row from left to right, from the image on, and the decoder's below
from right to left, so that the labels stand below the image. A map's longer side is the root of its
number of cells, and its depth is the logarithm of its number of channels.
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from segformer.evaluation.flow import svg
from segformer.evaluation.flow.boxes import Box, Head, encoder_boxes, head_boxes, sides
from segformer.evaluation.flow.steps import Shape
from segformer.evaluation.flow.table import count
from segformer.evaluation.flow.tracing import Flow

WIDTH, MARGIN = 960, 20  # of the picture, and of its border
COLUMN, PLACE = 160, 128  # least distance of two maps of the encoder, and of the decoder
LINE, LETTER = 15, 6.4  # height of a line of a caption, and width of a letter
GAP, PANEL, JOINT = 20, 74, 28  # length of a vertical arrow, heights of a projection and a joint
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


def draw(flow: Flow) -> str:
    """Returns the picture of a model's data flow, as the text of an SVG file."""
    encoder, decoder, *last = flow.model.steps
    maps, head = encoder_boxes(encoder), head_boxes(decoder)
    image = Box("image", flow.model.inputs[0])
    enlarged = flow.size[0] / decoder.outputs[0][-2]
    labels = Box("labels", flow.size, ", ".join(step.operation for step in last), enlarged=enlarged)
    upper, lower = [image, *maps], [*head.chain, labels]
    width = max(WIDTH, COLUMN * len(upper) + 2 * MARGIN, PLACE * len(lower) + 2 * MARGIN)
    half = (width - 2 * MARGIN) / len(upper) / 2
    columns = _spread(MARGIN + half, width - MARGIN - half, len(upper))
    places = _spread(columns[-1], columns[0], len(lower))
    row = partial(Row, scale=min(_scale(upper, columns), _scale(lower, places)))
    encoder_row = row(upper, columns, ENCODER, 72)
    joint, y = _between(head, columns[1:], encoder_row.end)
    decoder_row = row(lower, places, DECODER, 0)
    # The labels may begin beside what lies above the rest of the row.
    below_image = encoder_row.base + 3 * LINE + GAP
    rises = [(y + 2 * GAP, k) for k in range(len(head.chain))] + [(below_image, -1)]
    decoder_row = row(lower, places, DECODER, max(top - decoder_row.summit(k) for top, k in rises))
    down = svg.arrow([(places[0], y + 4), (places[0], decoder_row.summit(0) - 4)])
    elements = [
        *_heading(flow),
        *encoder_row.elements(),
        *_scene(encoder_row.face(0), PHOTO),
        *joint,
        down,
        *decoder_row.elements(),
        *_scene(decoder_row.face(-1), LABELS),
    ]
    return svg.document(elements, width, decoder_row.end + MARGIN, flow.title)


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
            for line, (words, style) in enumerate(self._caption(box), 1):
                yield svg.text(self.places[number], self.base + 6 + line * LINE, words, **style)
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

    def _caption(self, box: Box) -> list[tuple[str, dict[str, Any]]]:
        """Returns the lines below a map, and their styles."""
        room = abs(self.places[0] - self.places[-1]) / max(1, len(self.places) - 1)
        wrap = partial(textwrap.wrap, width=int(min(room, COLUMN) / LETTER), break_on_hyphens=False)
        maps = f"{box.maps} maps of " if box.maps > 1 else ""
        small = {"fill": svg.GREY, "font_size": 11}
        return [
            *((words, {"font_weight": 600}) for words in wrap(box.title)),
            (maps + sides(box.shape), {}),
            *((words, small) for line in _costs(box) for words in wrap(line)),
        ]


def _rectangle(left: float, top: float, width: float, height: float) -> list[svg.Point]:
    right, bottom = left + width, top + height
    return [(left, top), (right, top), (right, bottom), (left, bottom)]


def _scene(face: tuple[float, float, float, float], colors: dict[str, str]) -> Iterator[str]:
    """Yields a small street on the front of a map."""
    left, top, width, height = face
    for name, corners in AREAS.items():
        points = [(left + x * width, top + y * height) for x, y in corners]
        yield svg.polygon(points, colors[name])


def _between(head: Head, columns: Sequence[float], y: float) -> tuple[list[str], float]:
    """Returns what leads from the feature maps to the first map of the chain, and its end."""
    elements = []
    if head.projections:
        for level, box in head.projections.items():
            elements.append(svg.arrow([(columns[level], y + 4), (columns[level], y + GAP)]))
            elements += _panel(columns[level], y + GAP + 2, box)
        y += GAP + PANEL
    read = [columns[level] for level in head.reads]
    if len(read) > 1:
        elements += [svg.arrow([(x, y + 4), (x, y + GAP)]) for x in read]
        left, right = read[0] - COLUMN / 2, read[-1] + COLUMN / 2
        y += GAP + 2
        elements.append(svg.panel(left, y, right - left, JOINT, DECODER[1]))
        elements.append(svg.text((left + right) / 2, y + 18, head.joint))
        y += JOINT
    return elements, y


def _panel(x: float, y: float, box: Box) -> Iterator[str]:
    """Yields the box of a projection."""
    yield svg.panel(x - COLUMN / 2, y, COLUMN, PANEL - 2, DECODER[1])
    yield svg.text(x, y + 20, box.title)
    for line, words in enumerate(_costs(box)):
        yield svg.text(x, y + 35 + 14 * line, words, fill=svg.GREY, font_size=11)


def _costs(box: Box) -> list[str]:
    """Returns the name, the parameters and the multiply-adds of a box, in lines."""
    lines = [box.name] if box.name else []
    lines += [f"{box.parameters:,} parameters"] if box.parameters else []
    return lines + ([f"{count(box.multiply_adds)} multiply-adds"] if box.multiply_adds else [])
