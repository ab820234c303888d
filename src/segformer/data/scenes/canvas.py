"""The canvas of a scene, with its camera, which projects objects, and its weather."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import cos, exp, hypot, pi, sin
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

Floats = NDArray[np.float32]
Triple = tuple[float, float, float]  # a point x, y, z or a colour
Spot = tuple[float, float]  # a place on the ground x, z or a position on the canvas
Ink = tuple[int, int, int, int]  # red, green, blue and class

FAR = 230.0  # metres to the end of the ground and the skyline
SLICES = [FAR ** (k / 14) for k in range(15)]
UP, BACK = (0.0, 1.0, 0.0), (0.0, 0.0, -1.0)
WHITE, BLACK, GLASS, RED = (
    (235.0, 235.0, 232.0),
    (28.0, 28.0, 30.0),
    (60.0, 70.0, 82.0),
    (190.0, 30.0, 34.0),
)


@dataclass(frozen=True)
class Camera:
    """A pinhole camera above a street, which may bend: projects metres to pixels of the canvas."""

    focal: float
    centre: float
    horizon: float
    x: float
    height: float
    bend: float
    roll: float

    def project(self, x: float, y: float, z: float) -> Spot:
        """Returns the column and row of a point; ``z`` must be positive."""
        scale = self.focal / z
        across = scale * (x - self.x + self.bend * z * z)
        return self.centre + across, self.horizon + scale * (self.height - y) + self.roll * across


@dataclass(frozen=True)
class Weather:
    """Colours of the sky, and the effects of light and air on the colours of objects."""

    zenith: Triple
    skyline: Triple
    cloud: Triple
    sunlight: Triple
    daylight: Triple
    shade: float  # brightness of ground in shadow
    lamps: float  # share of windows that are lit
    haze: float  # share of light lost per metre
    sun: Triple  # unit vector towards the sun

    def ink(self, label: int, color: Triple, z: float, normal: Triple) -> Ink:
        """Returns the colour and class of a surface with this normal, ``z`` metres away."""
        (nx, ny, nz), (sx, sy, sz) = normal, self.sun
        facing, clear = max(0.0, 0.3 + 0.7 * (nx * sx + ny * sy + nz * sz)), exp(-self.haze * z)
        channels = zip(color, self.daylight, self.sunlight, self.skyline, strict=True)
        r, g, b = [
            min(255, int(clear * c * (day + sun * facing) + (1 - clear) * far))
            for c, day, sun, far in channels
        ]
        return r, g, b, label


def weather(rng: np.random.Generator) -> Weather:
    """Returns the weather of a clear, an overcast or a dusky sky, at random."""
    turn, rise = rng.uniform(0, 2 * pi), rng.uniform(0.5, 1.1)
    haze, grey = rng.uniform(0.001, 0.007), rng.uniform(165, 225)
    sun = (cos(rise) * sin(turn), sin(rise), cos(rise) * cos(turn))
    kind = rng.random()
    if kind < 0.5:
        zenith = (rng.uniform(50, 120), rng.uniform(115, 160), rng.uniform(185, 220))
        return Weather(
            zenith,
            (200, 215, 228),
            (246, 246, 244),
            (0.72, 0.68, 0.6),
            (0.5, 0.52, 0.56),
            0.52,
            0.0,
            haze,
            sun,
        )
    if kind < 0.8:
        pale, dark = (grey, grey + 2, grey + 4), (grey - 25, grey - 20, grey - 14)
        return Weather(
            dark, pale, (grey - 10,) * 3, (0.12,) * 3, (0.86, 0.87, 0.89), 0.88, 0.06, 2 * haze, sun
        )
    glow = (rng.uniform(205, 245), rng.uniform(140, 185), rng.uniform(110, 150))
    return Weather(
        (82, 90, 138),
        glow,
        (155, 116, 126),
        (0.4, 0.28, 0.18),
        (0.5, 0.49, 0.56),
        0.75,
        0.3,
        haze,
        sun,
    )


class Canvas:
    """Image and label map of a scene, in one RGBA picture whose alpha is the class.

    The picture is twice as wide and high as the scene. In the end its colours are averaged, and its
    labels sampled.
    """

    def __init__(self, size: tuple[int, int], rng: np.random.Generator) -> None:
        height, width = size
        self.rng, self.size, self.weather = rng, size, weather(rng)
        self.camera = Camera(
            focal=2 * (height * width) ** 0.5 * rng.uniform(0.65, 1.05),
            centre=2 * width * rng.uniform(0.3, 0.7),
            horizon=2 * height * rng.uniform(0.36, 0.56),
            x=rng.uniform(-5, 5),
            height=rng.uniform(1.3, 1.9) if rng.random() < 0.6 else rng.uniform(1.9, 3.5),
            bend=rng.normal(0, 0.0005),
            roll=rng.normal(0, 0.01),
        )
        self.image = Image.new("RGBA", (2 * width, 2 * height))
        self.shadows = Image.new("L", (width, height), 255)
        self.pen, self.shadow_pen = ImageDraw.Draw(self.image), ImageDraw.Draw(self.shadows)
        self.things: list[tuple[float, float, Callable[..., None], tuple[Any, ...]]] = []

    def place(self, draw: Callable[..., None], x: float, z: float, *shape: Any) -> None:
        """Adds an object at ``x`` and ``z`` to those to draw, unless it is far out of sight."""
        distance = abs(self.camera.project(x, 0, z)[0] - self.size[1])
        if distance < self.size[1] + 8 * self.camera.focal / z:
            self.things.append((z, x, draw, shape))

    def draw_things(self) -> None:
        """Draws the placed objects from far to near."""
        for z, x, draw, shape in sorted(self.things, key=lambda thing: -thing[0]):
            draw(self, x, z, *shape)

    def pick(self, palette: Sequence[Triple]) -> Triple:
        """Returns a colour similar to one of the palette."""
        which, bright, warm = self.rng.random(3).tolist()
        r, g, b = tone(palette[int(which * len(palette))], 0.8 + 0.4 * bright)
        return r + 16 * warm - 8, g, b - 16 * warm + 8

    def polygon(
        self, label: int, color: Triple, points: Sequence[Triple], normal: Triple = BACK
    ) -> None:
        """Fills a polygon with these corners."""
        project = self.camera.project
        self.pen.polygon(
            [project(x, y, z) for x, y, z in points],
            self.weather.ink(label, color, points[0][2], normal),
        )

    def stroke(self, label: int, color: Triple, points: Sequence[Triple], width: float) -> None:
        """Draws a line, at least one pixel of the scene wide, so that the label map shows it."""
        z = points[0][2]
        path = [self.camera.project(*point) for point in points]
        self.pen.line(
            path,
            self.weather.ink(label, color, z, BACK),
            max(2, round(self.camera.focal * width / z)),
        )

    def disc(self, centre: Triple, radius: float, ink: Ink) -> None:
        """Fills a disc that faces the camera."""
        (u, v), r = self.camera.project(*centre), self.camera.focal * radius / centre[2]
        self.pen.ellipse((u - r, v - r, u + r, v + r), ink)

    def strip(
        self, label: int, color: Triple, x0: float, x1: float, z0: float = 1.0, z1: float = FAR
    ) -> None:
        """Fills a rectangle of ground; haze is added with the shadows, to the complete picture."""
        depths = [z0, *(z for z in SLICES if z0 < z < z1), z1]
        edge = [self.camera.project(x0, 0, z) for z in depths] + [
            self.camera.project(x1, 0, z) for z in reversed(depths)
        ]
        self.pen.polygon(edge, self.weather.ink(label, color, 0, UP))

    def cast(self, a: Spot, b: Spot, low: float, high: float) -> None:
        """Casts the shadow of a wall between two points, from ``low`` to ``high`` metres."""
        x, y, z = self.weather.sun
        outline = [
            (p[0] - h * x / y, p[1] - h * z / y)
            for p, h in ((a, low), (b, low), (b, high), (a, high))
        ]
        self.darken(outline, self.weather.shade)

    def darken(self, outline: Sequence[Spot], brightness: float) -> None:
        """Reduces the ground's brightness within an outline to a share."""
        corners = [self.camera.project(x, 0, max(1.0, z)) for x, z in outline]
        self.shadow_pen.polygon([(u / 2, v / 2) for u, v in corners], int(255 * brightness))

    def cast_round(self, x: float, z: float, radius: float, low: float, high: float) -> None:
        """Casts the shadow of an upright cylinder, as that of a wall perpendicular to the sun."""
        sx, _, sz = self.weather.sun
        dx, dz = radius * sz / hypot(sx, sz), -radius * sx / hypot(sx, sz)
        self.cast((x - dx, z - dz), (x + dx, z + dz), low, high)


def tone(color: Triple, brightness: float) -> Triple:
    """Returns a colour made darker or, above 1, brighter."""
    return color[0] * brightness, color[1] * brightness, color[2] * brightness


def upright(a: Spot, b: Spot, low: float, high: float) -> list[Triple]:
    """Returns the corners of a wall between two points on the ground."""
    return [(a[0], low, a[1]), (a[0], high, a[1]), (b[0], high, b[1]), (b[0], low, b[1])]


def between(a: Spot, b: Spot, share: float) -> Spot:
    """Returns the point at a share of the way from ``a`` to ``b``."""
    return a[0] + share * (b[0] - a[0]), a[1] + share * (b[1] - a[1])


def cells(rng: np.random.Generator, size: tuple[int, int], rows: int, columns: int) -> Floats:
    """Returns smooth noise (height, width) from -1 to 1 with this number of cells."""
    coarse = Image.frombytes("L", (columns, rows), rng.bytes(rows * columns))
    return np.asarray(coarse.resize(size[::-1], Image.Resampling.BILINEAR), np.float32) / 127.5 - 1
