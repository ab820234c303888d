"""The layout of a street: its pavement, and the positions of its objects."""

from __future__ import annotations

from collections.abc import Iterator
from math import inf, pi

import numpy as np

from segformer.data.scenes.canvas import FAR, WHITE, Canvas, tone
from segformer.data.scenes.car import car
from segformer.data.scenes.classes import GRASS, PAVEMENT, ROAD
from segformer.data.scenes.things import building, fence, lamp, person, sign, tree

ASPHALT = ((100, 100, 102), (120, 118, 116), (82, 83, 88), (138, 136, 132))
SLABS = ((158, 155, 150), (134, 133, 132), (170, 156, 144), (146, 114, 102), (116, 116, 118))
LAWNS = ((98, 122, 62), (128, 132, 76), (84, 108, 60), (148, 138, 94))
TIMBERS = ((128, 96, 70), (210, 208, 202), (90, 100, 88), (114, 114, 116))
LANE = 3.2  # metres wide


def lay_out(canvas: Canvas) -> None:
    """Paints the ground of a street, and places the objects on it."""
    rng, lanes = canvas.rng, int(canvas.rng.choice((2, 2, 3, 4)))
    crossing = rng.uniform(14, 50) if rng.random() < 0.45 else inf  # metres to a crossing street
    kerb = lanes * LANE / 2 + rng.uniform(1.2, 2)
    tar, slabs, paint = canvas.pick(ASPHALT), canvas.pick(SLABS), canvas.pick([WHITE])
    canvas.strip(GRASS, canvas.pick(LAWNS), -400, 400)
    for side in (-1, 1):
        Roadside(canvas, side, kerb, crossing).draw()
    if crossing < FAR:
        canvas.strip(PAVEMENT, slabs, -80, 80, crossing - 2.5, crossing + 9.5)
        canvas.strip(ROAD, tar, -80, 80, crossing, crossing + 7)
        for x in np.arange(rng.uniform(-20, 10), 20, rng.uniform(9, 25)).tolist():
            canvas.place(car, x, crossing + 5.2, -pi / 2)
    canvas.strip(ROAD, tar, -kerb, kerb)
    for _ in range(rng.integers(8)):
        x, z, worn = rng.uniform(-kerb, kerb - 1), rng.uniform(3, 40), rng.uniform(0.85, 1.1)
        canvas.strip(
            ROAD,
            tone(tar, worn),
            x,
            min(kerb, x + rng.uniform(0.5, 2.5)),
            z,
            z + rng.uniform(0.5, 8),
        )
    for z in along(canvas, crossing, rng.uniform(1, 6), 90, 6, 6):
        for lane in range(1, lanes):
            x = (lane - lanes / 2) * LANE
            canvas.strip(ROAD, paint, x - 0.07, x + 0.07, z, z + 3)
    if rng.random() < 0.6:
        zebra = min(crossing - 4, rng.uniform(8, 40))
        for x in np.arange(0.3 - kerb, kerb - 0.5).tolist():
            canvas.strip(ROAD, paint, x, x + 0.5, zebra, zebra + 3)
        for _ in range(rng.integers(4)):
            canvas.place(person, rng.uniform(-kerb, kerb), zebra + rng.uniform(0.5, 2.5))
    for lane in range(lanes):
        x = (lane + 0.5 - lanes / 2) * LANE
        for z in along(canvas, crossing, rng.uniform(8, 45), 75, 14, 60):
            canvas.place(car, x + rng.uniform(-0.3, 0.3), z, pi * (x < 0) + rng.normal(0, 0.02))


def along(
    canvas: Canvas, crossing: float, start: float, stop: float, low: float, high: float
) -> Iterator[float]:
    """Yields distances ahead, ``low`` to ``high`` metres apart, without the crossing."""
    while start < stop:
        if not crossing - 7 < start < crossing + 12:
            yield start
        start += canvas.rng.uniform(low, high)


class Roadside:
    """One side of a street, with a random layout.

    From the street outwards it has a kerb, perhaps a verge, a pavement between ``inner`` and
    ``outer``, and perhaps gardens or a park. Distances are in metres from the middle of the street.

    Args:
        canvas: Canvas of the scene.
        side: -1 for the left side, 1 for the right side.
        kerb: Distance of the kerb.
        crossing: Distance ahead of a crossing street.
    """

    def __init__(self, canvas: Canvas, side: int, kerb: float, crossing: float) -> None:
        rng = canvas.rng
        self.canvas, self.rng, self.place = canvas, rng, canvas.place
        self.side, self.kerb, self.crossing = side, kerb, crossing
        verge = rng.uniform(1, 2.5) * (rng.random() < 0.3)
        self.garden = rng.uniform(2, 7) * (rng.random() < 0.5)
        self.is_park = rng.random() < 0.15
        self.inner, self.outer = kerb + verge, kerb + verge + rng.uniform(2, 5)
        self.is_green = bool(self.garden) or self.is_park
        self.slabs, self.lawn = canvas.pick(SLABS), canvas.pick(LAWNS)

    def ahead(self, start: float, stop: float, low: float, high: float) -> Iterator[float]:
        """Yields distances ahead, ``low`` to ``high`` metres apart, without the crossing."""
        return along(self.canvas, self.crossing, start, stop, low, high)

    def draw(self) -> None:
        """Paints the ground, and places the objects on it."""
        self.pave()
        self.place_buildings()
        self.place_fence()
        self.place_plants()
        self.place_lamps_and_signs()
        self.place_people_and_cars()

    def pave(self) -> None:
        """Paints the ground."""
        side, inner, outer, strip = self.side, self.inner, self.outer, self.canvas.strip
        label = GRASS if self.is_green or self.rng.random() < 0.5 else PAVEMENT
        strip(label, self.lawn if self.is_green else self.slabs, side * outer, side * 150)
        strip(GRASS, self.lawn, side * self.kerb, side * inner)
        strip(PAVEMENT, self.slabs, side * inner, side * outer)
        strip(PAVEMENT, tone(self.slabs, 1.2), side * self.kerb, side * (self.kerb + 0.2))
        for z in np.arange(2, 22, self.rng.uniform(0.9, 2)).tolist():
            strip(PAVEMENT, tone(self.slabs, 0.85), side * inner, side * outer, z, z + 0.04)

    def place_buildings(self) -> None:
        """Places a row of buildings with gaps, unless there is a park."""
        rng, crossing = self.rng, self.crossing
        end = rng.uniform(-10, 2)
        while end < 110 and not self.is_park:
            length, gap = rng.uniform(8, 24), rng.random()
            end += length
            if gap > 0.12 and end > 3 and not crossing - 3 < end < crossing + 10 + length:
                x = self.side * (self.outer + self.garden)
                self.place(building, x, end, min(length, end - 1))
            end += rng.uniform(1, 4) * (gap > 0.8)

    def place_fence(self) -> None:
        """Places a fence, mostly around gardens and parks."""
        rng, is_green = self.rng, self.is_green
        if rng.random() >= (0.8 if is_green else 0.3):
            return
        height, color = rng.uniform(0.9, 1.6), self.canvas.pick(TIMBERS)
        boards, start = is_green and rng.random() < 0.6, rng.uniform(4, 20)
        x = self.side * (self.outer if is_green else self.kerb + 0.3)
        for z in self.ahead(start, start + rng.uniform(10, 45), 3, 3):
            self.place(fence, x, z, 3.0, height, color, boards)

    def place_plants(self) -> None:
        """Places trees and bushes in gardens and parks, and perhaps trees along the kerb."""
        rng, outer, is_park = self.rng, self.outer, self.is_park
        if self.is_green:
            limit = outer + (25 if is_park else max(2, self.garden))
            for z in self.ahead(rng.uniform(5, 9), 60 if is_park else 35, 1, 8 if is_park else 12):
                x = self.side * rng.uniform(outer + 1, limit)
                if rng.random() < 0.45:
                    self.place(tree, x, z, rng.uniform(0.8, 2), 0.0)
                else:
                    self.place(tree, x, z, rng.uniform(4, 9), rng.uniform(1, 2))
        if rng.random() < 0.45:
            size, x = rng.uniform(5, 9), self.side * (self.kerb + 0.6)
            for z in self.ahead(rng.uniform(6, 18), 70, 9, 16):
                self.place(tree, x, z, size * rng.uniform(0.8, 1.2), rng.uniform(1.8, 2.6))

    def place_lamps_and_signs(self) -> None:
        """Places signs, and perhaps lamp posts."""
        rng = self.rng
        if rng.random() < 0.65:
            for z in self.ahead(rng.uniform(6, 20), 80, 16, 30):
                self.place(lamp, self.side * (self.kerb + 0.5), z)
        for z in self.ahead(rng.uniform(6, 20), 45, 6, 30):
            self.place(sign, self.side * (self.kerb + rng.uniform(0.4, 1.2)), z)

    def place_people_and_cars(self) -> None:
        """Places people on the pavement, and perhaps parked cars."""
        rng, side = self.rng, self.side
        for z in self.ahead(rng.uniform(5, 12), 45, 1, 16):
            self.place(person, side * rng.uniform(self.inner + 0.3, self.outer - 0.3), z)
        if rng.random() < 0.55:
            for z in self.ahead(rng.uniform(5, 12), rng.uniform(20, 60), 5.6, 12):
                self.place(car, side * (self.kerb - 1.1), z, pi * (side < 0))
