"""Street scenes drawn on demand: training data without files or downloads.

A scene is a small world in metres: x to the right of the road's middle, y up from the ground, z ahead. A pinhole camera
looks at it, and its things are painted far to near, so that near ones hide far ones.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from math import cos, dist, exp, hypot, inf, pi, sin
from typing import Concatenate, ParamSpec

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from torch.utils.data import Dataset
from torchvision import tv_tensors

from segformer.data.classes import Classes

P = ParamSpec("P")
Floats = NDArray[np.float32]
Triple = tuple[float, float, float]  # a point x, y, z or a colour
Spot = tuple[float, float]  # a place on the ground x, z or a position on the canvas
Ink = tuple[int, int, int, int]  # red, green, blue and class

CLASSES = Classes(
    ("road", "pavement", "building", "fence", "pole", "sign", "tree", "grass", "sky", "person", "car"),
    (
        *((128, 64, 128), (244, 35, 232), (70, 70, 70), (190, 153, 153), (153, 153, 153), (220, 220, 0)),
        *((107, 142, 35), (152, 251, 152), (70, 130, 180), (220, 20, 60), (0, 0, 142)),
    ),
)
ROAD, PAVEMENT, BUILDING, FENCE, POLE, SIGN, TREE, GRASS, SKY, PERSON, CAR = range(len(CLASSES))
GROUND = np.isin(np.arange(256), (ROAD, PAVEMENT, GRASS))
# How strongly fine and coarse noise (standard deviation in grey levels) roughen each class.
GRAIN = np.array([5, 5, 4, 4, 2, 1, 9, 9, 0, 3, 1], np.float32)
BLOTCH = np.array([3, 4, 4, 3, 0, 0, 8, 9, 0, 0, 0], np.float32)

FAR = 230.0  # where the ground ends and the skyline stands
SLICES = [FAR ** (k / 14) for k in range(15)]
UP, BACK = (0.0, 1.0, 0.0), (0.0, 0.0, -1.0)

WHITE, BLACK, GLASS, BARK = (235.0, 235.0, 232.0), (28.0, 28.0, 30.0), (60.0, 70.0, 82.0), (88.0, 76.0, 66.0)
ASPHALT = ((100, 100, 102), (120, 118, 116), (82, 83, 88), (138, 136, 132))
SLABS = ((158, 155, 150), (134, 133, 132), (170, 156, 144), (146, 114, 102), (116, 116, 118))
LAWNS = ((98, 122, 62), (128, 132, 76), (84, 108, 60), (148, 138, 94))
LEAVES = ((66, 92, 42), (88, 108, 50), (52, 80, 46), (114, 116, 52), (134, 98, 46))
NEEDLES = ((48, 70, 52), (64, 86, 64), (70, 88, 54))
WALLS = ((156, 92, 74), (202, 186, 158), (174, 170, 164), (228, 224, 216), (138, 146, 158), (190, 146, 102), (116, 108, 104))
ROOFS = ((134, 74, 58), (90, 88, 92), (110, 90, 76))
PAINTS = (
    *((104, 105, 108), (44, 46, 50), (220, 220, 218), (166, 169, 172)),
    *((156, 34, 34), (44, 72, 128), (56, 90, 68), (192, 174, 136)),
)
CLOTHES = (
    *((46, 50, 62), (90, 90, 92), (72, 94, 132), (150, 44, 44)),
    *((196, 190, 180), (78, 96, 60), (206, 160, 60), (120, 84, 70)),
)
SKINS, HAIRS = ((224, 184, 158), (190, 140, 108), (120, 82, 60)), ((50, 38, 30), (120, 92, 60), (30, 28, 28))
TIMBERS = ((128, 96, 70), (210, 208, 202), (90, 100, 88), (114, 114, 116))
METALS = ((100, 104, 106), (64, 70, 68), (150, 152, 152), (108, 88, 70))
BOARDS = ((32, 76, 158), (30, 106, 66), (222, 220, 210), (214, 176, 44))
# Frame, face and number of corners of a sign plate; many corners make a disc.
RED, BLUE = (190.0, 30.0, 34.0), (32.0, 76.0, 158.0)
PLATES = ((RED, WHITE, 3), (RED, WHITE, 20), (WHITE, BLUE, 20), (WHITE, RED, 8))

# Side views of vehicles: along (metres ahead of the middle) and height, from the rear bumper over the roof to the front one.
SALOON = ((-2.25, 0.3), (-2.25, 0.95), (-1.65, 1.0), (-1.0, 1.42), (0.3, 1.44), (1.05, 1.0), (2.15, 0.8), (2.2, 0.3))
HATCHBACK = ((-1.9, 0.3), (-1.95, 0.85), (-1.9, 1.0), (-1.5, 1.47), (0.2, 1.52), (0.95, 1.03), (1.85, 0.82), (1.95, 0.3))
OFFROADER = ((-2.2, 0.4), (-2.25, 0.95), (-2.22, 1.1), (-2.0, 1.75), (0.35, 1.78), (1.0, 1.2), (2.15, 1.0), (2.25, 0.4))
VAN = ((-2.6, 0.4), (-2.65, 1.1), (-2.65, 1.3), (-2.55, 2.15), (1.2, 2.15), (1.95, 1.3), (2.6, 1.05), (2.65, 0.4))
BUS = ((-5.5, 0.4), (-5.5, 1.0), (-5.5, 1.25), (-5.4, 3.0), (5.3, 3.0), (5.5, 1.1), (5.55, 0.9), (5.5, 0.4))
BODIES = (SALOON, SALOON, HATCHBACK, HATCHBACK, OFFROADER, VAN)
CIRCLE = [2 * pi * k / 12 for k in range(12)]


@dataclass(frozen=True)
class Camera:
    """A pinhole that looks down a street, which may bend; projects metres to pixels of the canvas."""

    focal: float
    centre: float
    horizon: float
    x: float
    height: float
    bend: float
    roll: float

    def project(self, x: float, y: float, z: float) -> Spot:
        """Column and row of a point; ``z`` must be positive."""
        scale = self.focal / z
        across = scale * (x - self.x + self.bend * z * z)
        return self.centre + across, self.horizon + scale * (self.height - y) + self.roll * across


@dataclass(frozen=True)
class Weather:
    """Colours of the sky, and what light and air do to the colours of things."""

    zenith: Triple
    skyline: Triple
    cloud: Triple
    sunlight: Triple
    daylight: Triple
    shade: float  # brightness of ground in shadow
    lamps: float  # share of windows that are lit
    haze: float  # share of light lost per metre
    sun: Triple  # unit vector towards it

    def ink(self, label: int, color: Triple, z: float, normal: Triple) -> Ink:
        """How a surface that faces along ``normal`` looks from ``z`` metres away, with its class."""
        # Written out: this runs for every polygon of a scene, and loops over three channels would take a fifth of its time.
        (nx, ny, nz), (sx, sy, sz) = normal, self.sun
        facing, clear = max(0.0, 0.3 + 0.7 * (nx * sx + ny * sy + nz * sz)), exp(-self.haze * z)
        (r, g, b), (dr, dg, db), (sr, sg, sb), (hr, hg, hb) = color, self.daylight, self.sunlight, self.skyline
        return (
            min(255, int(clear * r * (dr + sr * facing) + (1 - clear) * hr)),
            min(255, int(clear * g * (dg + sg * facing) + (1 - clear) * hg)),
            min(255, int(clear * b * (db + sb * facing) + (1 - clear) * hb)),
            label,
        )


def weather(rng: np.random.Generator) -> Weather:
    """A clear, an overcast or a dusky sky."""
    turn, rise, haze, grey = rng.uniform(0, 2 * pi), rng.uniform(0.5, 1.1), rng.uniform(0.001, 0.007), rng.uniform(165, 225)
    sun = (cos(rise) * sin(turn), sin(rise), cos(rise) * cos(turn))
    kind = rng.random()
    if kind < 0.5:
        zenith = (rng.uniform(50, 120), rng.uniform(115, 160), rng.uniform(185, 220))
        return Weather(zenith, (200, 215, 228), (246, 246, 244), (0.72, 0.68, 0.6), (0.5, 0.52, 0.56), 0.52, 0.0, haze, sun)
    if kind < 0.8:
        pale, dark = (grey, grey + 2, grey + 4), (grey - 25, grey - 20, grey - 14)
        return Weather(dark, pale, (grey - 10,) * 3, (0.12,) * 3, (0.86, 0.87, 0.89), 0.88, 0.06, 2 * haze, sun)
    glow = (rng.uniform(205, 245), rng.uniform(140, 185), rng.uniform(110, 150))
    return Weather((82, 90, 138), glow, (155, 116, 126), (0.4, 0.28, 0.18), (0.5, 0.49, 0.56), 0.75, 0.3, haze, sun)


class Canvas:
    """Image and label map of a scene as one RGBA picture whose alpha is the class, so that the two cannot disagree.

    The picture is twice as wide and high as the scene and averaged down in the end; labels are sampled, not averaged.
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
        self.things: list[tuple[float, Callable[[], None]]] = []

    def place(
        self, draw: Callable[Concatenate[Canvas, float, float, P], None], x: float, z: float, *args: P.args, **options: P.kwargs
    ) -> None:
        """Have a thing drawn at ``x`` and ``z``, over all that is farther away; unless it is well out of sight."""
        if abs(self.camera.project(x, 0, z)[0] - self.size[1]) < self.size[1] + 8 * self.camera.focal / z:
            self.things.append((z, partial(draw, self, x, z, *args, **options)))

    def draw_things(self) -> None:
        """Draw what was placed, far to near."""
        self.things.sort(key=lambda thing: thing[0])
        while self.things:  # things refer to the canvas: letting go of them frees its memory at once
            self.things.pop()[1]()

    def pick(self, palette: Sequence[Triple]) -> Triple:
        """A colour like one of the palette."""
        which, bright, warm = self.rng.random(3).tolist()
        r, g, b = tone(palette[int(which * len(palette))], 0.8 + 0.4 * bright)
        return r + 16 * warm - 8, g, b - 16 * warm + 8

    def polygon(self, label: int, color: Triple, points: Sequence[Triple], normal: Triple = BACK) -> None:
        """Fill a polygon with these corners."""
        project = self.camera.project
        self.pen.polygon([project(x, y, z) for x, y, z in points], self.weather.ink(label, color, points[0][2], normal))

    def stroke(self, label: int, color: Triple, points: Sequence[Triple], width: float) -> None:
        """Draw a line, at least a pixel of the scene wide so that none goes missing from the label map."""
        z = points[0][2]
        path = [self.camera.project(*point) for point in points]
        self.pen.line(path, self.weather.ink(label, color, z, BACK), max(2, round(self.camera.focal * width / z)))

    def disc(self, centre: Triple, radius: float, ink: Ink) -> None:
        """Fill a disc that faces the camera."""
        (u, v), r = self.camera.project(*centre), self.camera.focal * radius / centre[2]
        self.pen.ellipse((u - r, v - r, u + r, v + r), ink)

    def strip(self, label: int, color: Triple, x0: float, x1: float, z0: float = 1.0, z1: float = FAR) -> None:
        """Fill a rectangle of ground; the haze over it comes with the shadows, when the picture is complete."""
        depths = [z0, *(z for z in SLICES if z0 < z < z1), z1]
        edge = [self.camera.project(x0, 0, z) for z in depths] + [self.camera.project(x1, 0, z) for z in reversed(depths)]
        self.pen.polygon(edge, self.weather.ink(label, color, 0, UP))

    def cast(self, a: Spot, b: Spot, low: float, high: float) -> None:
        """Cast the shadow of a wall between two places on the ground, ``low`` to ``high`` above it."""
        x, y, z = self.weather.sun
        outline = [(p[0] - h * x / y, p[1] - h * z / y) for p, h in ((a, low), (b, low), (b, high), (a, high))]
        self.darken(outline, self.weather.shade)

    def darken(self, outline: Sequence[Spot], brightness: float) -> None:
        """Leave the ground within the outline only a share of its brightness."""
        corners = [self.camera.project(x, 0, max(1.0, z)) for x, z in outline]
        self.shadow_pen.polygon([(u / 2, v / 2) for u, v in corners], int(255 * brightness))

    def cast_round(self, x: float, z: float, radius: float, low: float, high: float) -> None:
        """Cast the shadow of an upright cylinder: that of a wall square to the sun."""
        sx, _, sz = self.weather.sun
        dx, dz = radius * sz / hypot(sx, sz), -radius * sx / hypot(sx, sz)
        self.cast((x - dx, z - dz), (x + dx, z + dz), low, high)


def tone(color: Triple, brightness: float) -> Triple:
    """A colour made darker or, above 1, brighter."""
    return color[0] * brightness, color[1] * brightness, color[2] * brightness


def upright(a: Spot, b: Spot, low: float, high: float) -> list[Triple]:
    """Corners of a wall between two places on the ground."""
    return [(a[0], low, a[1]), (a[0], high, a[1]), (b[0], high, b[1]), (b[0], low, b[1])]


def between(a: Spot, b: Spot, share: float) -> Spot:
    """The place ``share`` of the way from ``a`` to ``b``."""
    return a[0] + share * (b[0] - a[0]), a[1] + share * (b[1] - a[1])


def cells(rng: np.random.Generator, size: tuple[int, int], rows: int, columns: int) -> Floats:
    """Smooth noise of this height and width, -1 to 1, with about so many bumps down and across."""
    coarse = Image.frombytes("L", (columns, rows), rng.bytes(rows * columns))
    return np.asarray(coarse.resize(size[::-1], Image.Resampling.BILINEAR), np.float32) / 127.5 - 1


def speckle(rng: np.random.Generator, size: tuple[int, int]) -> Floats:
    """White noise with mean 0 and standard deviation 1; uniform, as it costs a fraction of normal noise."""
    return (np.frombuffer(rng.bytes(size[0] * size[1]), np.uint8).reshape(size) - np.float32(127.5)) / np.float32(73.9)


def sky(canvas: Canvas) -> None:
    """Fill the canvas with a gradient and clouds, and close the view with distant woods or roofs."""
    rng, air, camera = canvas.rng, canvas.weather, canvas.camera
    down = np.clip(np.linspace(0, 2 * canvas.size[0] / camera.horizon, 48), 0, 1)[:, None, None] ** 1.3
    blue = np.array(air.zenith) + down * (np.array(air.skyline) - air.zenith)
    puffs = cells(rng, (48, 48), 4, 3) + 0.7 * cells(rng, (48, 48), 9, 6) + 0.4 * cells(rng, (48, 48), 24, 16)
    cover = np.clip(puffs + rng.uniform(-0.8, 0.6), 0, 0.9)[..., None]
    small = Image.fromarray((blue + cover * (np.array(air.cloud) - blue)).clip(0, 255).astype(np.uint8))
    smooth = small.resize((canvas.size[1] // 2, canvas.size[0] // 2), Image.Resampling.BICUBIC)
    smooth.putalpha(SKY)
    canvas.image.paste(smooth.resize(canvas.image.size, Image.Resampling.NEAREST))

    label, color, blocky = (TREE, canvas.pick(LEAVES), 0) if rng.random() < 0.5 else (BUILDING, canvas.pick(WALLS), 1)
    heights = (rng.uniform(3, 12) * (1 + blocky) * (1 + 0.5 * cells(rng, (1, 80), 1, 20)[0])).tolist()
    tops = [(10.0 * (k + end) - 400, y, FAR) for k, y in enumerate(heights) for end in ((0, 1) if blocky else (0,))]
    canvas.polygon(label, color, [(-400, 0, FAR), *tops, (400, 0, FAR)])


def glaze(canvas: Canvas, wall: Ink, a: Spot, b: Spot, rows: Sequence[Spot], bay: float, share: float) -> None:
    """Windows in the wall from ``a`` to ``b``, a row for each (low, high): bands of glass, parted by piers of wall."""
    rng, (start, end) = canvas.rng, [canvas.camera.project(x, 0, z)[0] for x, z in (a, b)]
    number = max(1, round(min(dist(a, b) / bay, abs(end - start) / 14)))  # far away, fewer that can be told apart
    feet = []  # of each pier's two sides: column and row on the canvas, and pixels a metre
    for k in range(number + 1):
        for along in ((k - 0.5 + share / 2) / number, (k + 0.5 - share / 2) / number):
            x, z = between(a, b, min(1.0, max(0.0, along)))
            feet.append((*canvas.camera.project(x, 0, z), canvas.camera.focal / z))

    def panel(ink: Ink, left: int, right: int, low: float, high: float) -> None:
        (u, v, scale), (w, x, size) = feet[left], feet[right]
        canvas.pen.polygon([(u, v - low * scale), (u, v - high * scale), (w, x - high * size), (w, x - low * size)], ink)

    panes = [canvas.weather.ink(BUILDING, tone(canvas.pick([GLASS]), k), a[1], BACK) for k in (1, 0.7, 1.6)]
    lamp = (245, 205, 130, BUILDING)
    for low, high in rows:
        panel(panes[0], 0, -1, low, high)
        for k in rng.integers(number, size=number // 3).tolist():
            other = lamp if rng.random() < 3 * canvas.weather.lamps else panes[1 + k % 2]
            panel(other, 2 * k + 1, 2 * k + 2, low, high)
    for k in range(number + 1):
        panel(wall, 2 * k, 2 * k + 1, rows[0][0], rows[-1][1])


def building(canvas: Canvas, x: float, z: float, length: float) -> None:
    """A house along the street, its far end at ``z`` and its front at ``x``, left (below 0) or right of the street."""
    rng, side, near = canvas.rng, 1 if x > 0 else -1, z - length
    floors, storey, deep = int(rng.integers(1, 7)), rng.uniform(2.8, 3.6), rng.uniform(8, 12)
    height, back, middle = floors * storey + 0.6, x + side * deep, x + side * deep / 2
    color, trim, shop = canvas.pick(WALLS), canvas.pick(WALLS), floors > 2 and rng.random() < 0.6
    canvas.cast((x, near), (x, z), 0, height)
    canvas.cast((x, near), (back, near), 0, height)
    if floors < 4 and rng.random() < 0.7:
        ridge = height + deep * rng.uniform(0.25, 0.5)
        if (canvas.camera.height - height) * deep / 2 > side * (canvas.camera.x - x) * (ridge - height):  # its outside is seen
            slope = [(x, height, near), (middle, ridge, near), (middle, ridge, z), (x, height, z)]
            canvas.polygon(BUILDING, canvas.pick(ROOFS), slope, UP)
        canvas.polygon(BUILDING, color, [(x, height, near), (middle, ridge, near), (back, height, near)])
    tall, bay, share = rng.uniform(1.2, 1.8), rng.uniform(2, 3.6), rng.uniform(0.35, 0.75)
    rows = [(k * storey + 0.9, k * storey + 0.9 + tall) for k in range(shop, floors)]
    windowed = rng.random() < 0.4  # in the gable too
    for a, b, normal in (((back, near), (x, near), BACK), ((x, near), (x, z), (-float(side), 0.0, 0.0))):
        columns = [canvas.camera.project(spot[0], 0, spot[1])[0] for spot in (a, b)]
        if max(columns) < 0 or min(columns) > canvas.image.width:
            continue
        canvas.polygon(BUILDING, color, upright(a, b, 0, height), normal)
        canvas.polygon(BUILDING, trim, upright(a, b, height - 0.5, height), normal)
        if normal != BACK or windowed:
            glaze(canvas, canvas.weather.ink(BUILDING, color, a[1], normal), a, b, rows, bay, share)
        if shop:
            canvas.polygon(BUILDING, trim, upright(a, b, 0, storey), normal)
            glaze(canvas, canvas.weather.ink(BUILDING, trim, a[1], normal), a, b, [(0.4, storey - 0.7)], 2 * bay, 0.8)


def tree(canvas: Canvas, x: float, z: float, height: float, trunk: float = 0.0) -> None:
    """A tree, or a bush if it has no trunk: a heap of leaf clumps, the sunlit ones brighter."""
    rng, (sx, sy, _) = canvas.rng, canvas.weather.sun
    color, half = canvas.pick(LEAVES), (height - trunk) / 2
    wide = half * rng.uniform(0.6, 1.0)
    canvas.cast_round(x, z, 0.1, 0, trunk)
    canvas.cast_round(x, z, wide, trunk + 0.5 * half, trunk + 1.5 * half)
    canvas.cast_round(x, z, 0.6 * wide, trunk, height)
    if trunk:
        thick, top = 0.025 * height, trunk + half
        canvas.polygon(TREE, canvas.pick([BARK]), [(x - thick, 0, z), (x - 0.1, top, z), (x + 0.1, top, z), (x + thick, 0, z)])
    inks = [canvas.weather.ink(TREE, tone(color, 0.55 + 0.13 * k), z, BACK) for k in range(6)]
    number = min(70, max(8, int(canvas.camera.focal * half / z / 4)))
    clumps = rng.normal(0, 0.33, (number, 2)).clip(-0.75, 0.75)
    light = clumps @ (sx, sy) + rng.normal(0, 0.3, number)
    # Large clumps in the heart of the crown hold together the small ones at its rim.
    sizes = rng.uniform(0.08, 0.24, number) + 0.32 * np.exp(-4 * (clumps**2).sum(1))
    for dx, dy, shade, size in np.column_stack((clumps, (2.5 + 3 * light).clip(0, 5), sizes))[light.argsort()].tolist():
        canvas.disc((x + dx * wide, trunk + (1 + dy) * half, z), size * wide, inks[int(shade)])


def conifer(canvas: Canvas, x: float, z: float, height: float) -> None:
    """A fir: tiers of branches on a trunk."""
    rng, color = canvas.rng, canvas.pick(NEEDLES)
    canvas.cast_round(x, z, 0.2 * height, 0, 0.6 * height)
    canvas.stroke(TREE, BARK, [(x, 0, z), (x, height / 2, z)], 0.3)
    for k in range(6):
        low, wide, shade = height * (0.1 + 0.13 * k), height * 0.045 * (6.5 - k) * rng.uniform(0.85, 1.1), 0.75 + 0.08 * k
        fringe = [(x + wide * (s / 3 - 1), low + height * rng.uniform(-0.04, 0.03), z) for s in range(7)]
        canvas.polygon(TREE, tone(color, shade), [*fringe, (x, low + 0.3 * height, z)])


def fence(canvas: Canvas, x: float, z: float, length: float, height: float, color: Triple, boards: bool) -> None:
    """A piece of fence along the street, its far end at ``z``: boards, or rails between posts."""
    near, side = z - length, (1.0 if x < canvas.camera.x else -1.0, 0.0, 0.0)
    canvas.cast((x, near), (x, z), 0, height)
    if boards:
        number = max(1, int(80 / z))
        for k in range(number):
            start, end = z - (k + 1) * length / number, z - k * length / number
            canvas.polygon(FENCE, tone(color, canvas.rng.uniform(0.82, 1.1)), upright((x, start), (x, end), 0.05, height), side)
        return
    for y in (0.4, 0.7, 1.0):
        canvas.polygon(FENCE, color, upright((x, near), (x, z), y * height - 0.12, y * height), side)
    canvas.stroke(FENCE, color, [(x, 0, near), (x, height, near)], 0.12)


def lamp(canvas: Canvas, x: float, z: float) -> None:
    """A lamp post that leans its arm over the street."""
    color, height, arm = canvas.pick(METALS), canvas.rng.uniform(5, 8), canvas.rng.uniform(0.8, 2) * (1 if x < 0 else -1)
    canvas.cast_round(x, z, 0.1, 0, height)
    canvas.stroke(POLE, color, [(x, 0, z), (x, height, z), (x + arm, height + 0.3, z)], 0.15)
    canvas.stroke(POLE, color, [(x, 0, z), (x, 1.2, z)], 0.24)
    canvas.stroke(POLE, WHITE, [(x + 0.6 * arm, height + 0.15, z), (x + arm, height + 0.25, z)], 0.2)


def sign(canvas: Canvas, x: float, z: float) -> None:
    """A traffic sign or a direction board on its post."""
    rng, top = canvas.rng, canvas.rng.uniform(2.2, 2.9)
    canvas.cast_round(x, z, 0.08, 0, top)
    canvas.stroke(POLE, METALS[0], [(x, 0, z), (x, top, z)], 0.1)
    if rng.random() < 0.35:
        half, high, color = rng.uniform(0.3, 0.8), rng.uniform(0.4, 0.9), canvas.pick(BOARDS)
        canvas.polygon(SIGN, color, upright((x - half, z), (x + half, z), top - high, top))
        for y in (top - 0.3 * high, top - 0.65 * high):
            ink = WHITE if sum(color) < 450 else BLACK
            canvas.stroke(SIGN, ink, [(x - 0.7 * half, y, z), (x + rng.uniform(0, 0.7) * half, y, z)], 0.08)
        return
    (frame, face, corners), radius = PLATES[rng.integers(len(PLATES))], rng.uniform(0.35, 0.5)
    for color, r in ((frame, radius), (face, 0.72 * radius)):
        turns = [2 * pi * (k + 0.5 * (corners == 8)) / corners for k in range(corners)]
        canvas.polygon(SIGN, color, [(x + r * sin(t), top + r * cos(t), z) for t in turns])
    glyph = [(x + s * 0.15 * radius, top + s * 0.3 * radius, z) for s in (-1, 1)]
    canvas.stroke(SIGN, BLACK if face == WHITE else WHITE, glyph, 0.3 * radius)


def person(canvas: Canvas, x: float, z: float) -> None:
    """Somebody who stands or walks."""
    rng = canvas.rng
    k = rng.uniform(0.9, 1.08) if rng.random() < 0.85 else rng.uniform(0.6, 0.85)
    coat, legs, skin, hair = (canvas.pick(palette) for palette in (CLOTHES, CLOTHES[:3], SKINS, HAIRS))
    sleeve = tone(coat, 0.8)
    stride, swing, ahead = rng.uniform(-0.25, 0.25), rng.uniform(-0.25, 0.25), rng.uniform(-0.05, 0.05)

    def at(*points: Spot) -> list[Triple]:
        return [(x + dx * k, y * k, z) for dx, y in points]

    canvas.cast_round(x, z, 0.2, 0, 1.7 * k)
    canvas.stroke(PERSON, sleeve, at((-0.2, 1.38), (-0.24 - swing / 2, 1.1), (-0.2 - swing, 0.85)), 0.11 * k)
    for hip, foot in ((0.08, stride), (-0.08, -stride)):
        canvas.stroke(PERSON, legs, at((hip, 0.9), (0.5 * (hip + foot), 0.45), (hip + foot, 0.02)), 0.16 * k)
    canvas.polygon(PERSON, coat, at((-0.19, 0.78), (-0.23, 1.36), (-0.1, 1.48), (0.1, 1.48), (0.23, 1.36), (0.19, 0.78)))
    canvas.stroke(PERSON, sleeve, at((0.2, 1.38), (0.24 + swing / 2, 1.1), (0.2 + swing, 0.85)), 0.11 * k)
    for color, spot, radius in ((hair, (0.0, 1.64), 0.12), (skin, (ahead, 1.6), 0.095)):
        canvas.disc(at(spot)[0], radius * k, canvas.weather.ink(PERSON, color, z, BACK))


def car(canvas: Canvas, x: float, z: float, heading: float, body: Sequence[Spot]) -> None:
    """A vehicle, turned ``heading`` radians from straight ahead: a side view drawn out to a width."""
    half, color = 1.25 if body is BUS else 0.88, canvas.pick(PAINTS)
    sine, cosine, axle = sin(heading), cos(heading), 0.62 * body[7][0]
    black, white, red, glass, hub = [canvas.weather.ink(CAR, c, z, BACK) for c in (BLACK, WHITE, RED, GLASS, METALS[2])]
    fill, project = canvas.pen.polygon, canvas.camera.project

    def spot(along: float, across: float) -> Spot:
        return x + along * sine + across * cosine, z + along * cosine - across * sine

    def at(along: float, across: float, y: float) -> Spot:
        px, pz = spot(along, across)
        return project(px, y, pz)

    base = [spot(a, s * half) for a, s in ((body[0][0], -1), (body[0][0], 1), (body[7][0], 1), (body[7][0], -1))]
    canvas.cast(base[0], base[2], 0, 0.8 * body[3][1])
    canvas.cast(base[1], base[3], 0, 0.8 * body[3][1])
    canvas.darken(base, 0.4)
    for along, across in ((-axle, -half), (-axle, half - 0.25), (axle, -half), (axle, half - 0.25)):
        fill([at(along, across + dx, y) for dx, y in ((0, 0), (0, 0.5), (0.25, 0.5), (0.25, 0))], black)
    # The body's left and right outline on the canvas, narrower at the roof than at the waist.
    hull = [[at(a, s * half * (0.84 if k in (3, 4) else 1), y) for s in (-1, 1)] for k, (a, y) in enumerate(body)]
    for k in range(7):
        face = [hull[k][0], hull[k + 1][0], hull[k + 1][1], hull[k][1]]
        if not turns_right(face):
            continue
        along, up = body[k + 1][0] - body[k][0], body[k + 1][1] - body[k][1]
        slope = hypot(along, up)
        fill(face, canvas.weather.ink(CAR, color, z, (-up / slope * sine, along / slope, -up / slope * cosine)))
        if k in (2, 4):
            fill(patch(face, 0.07, 0.93, 0.1, 0.9), glass)
        elif k in (0, 6):
            light, low, bumper = (red, 0.55, 0.0) if k == 0 else (white, 0.15, 0.8)
            fill(patch(face, 0.03, 0.2, low, low + 0.35), light)
            fill(patch(face, 0.8, 0.97, low, low + 0.35), light)
            fill(patch(face, 0.38, 0.62, 0.4, 0.6), white)
            fill(patch(face, 0.0, 1.0, bumper, bumper + 0.2), black)
    for s, side in enumerate((-1, 1)):
        flank, cabin = [hull[k][s] for k in (0, 1, 2, 5, 6, 7)], [hull[k][s] for k in (2, 3, 4, 5)]
        if turns_right(flank) != (side > 0):
            continue
        paint = canvas.weather.ink(CAR, color, z, (side * cosine, 0.0, -side * sine))
        fill(flank, paint)
        fill(cabin, paint)
        for start in (0.1, 0.54):
            fill(patch(cabin, start, start + 0.38, 0.12, 0.88), glass)
        for along in (-axle, axle):
            # The wheel's hub on the canvas, its foremost point and its top.
            (u, v), (ahead, slope), (_, top) = (at(along + a, side * half, 0.34 + y) for a, y in ((0, 0), (0.34, 0), (0, 0.34)))
            for size, shade in ((1.0, black), (0.55, hub)):
                wheel = [(size * cos(t), size * sin(t)) for t in CIRCLE]
                fill([(u + a * (ahead - u), v + a * (slope - v) + b * (top - v)) for a, b in wheel], shade)


def turns_right(path: Sequence[Spot]) -> bool:
    """Whether a path on the canvas runs clockwise, which the outsides of a body do for who sees them."""
    a, b, c, d = path[0], path[len(path) // 4], path[len(path) // 2], path[-1]
    return (c[0] - a[0]) * (d[1] - b[1]) > (c[1] - a[1]) * (d[0] - b[0])


def patch(corners: Sequence[Spot], left: float, right: float, low: float, high: float) -> list[Spot]:
    """A part of a four-cornered face, whose corners run from bottom left over the top to bottom right."""
    (a, b, c, d), places = corners, ((left, low), (left, high), (right, high), (right, low))
    return [between(between(a, d, s), between(b, c, s), t) for s, t in places]


def roadside(canvas: Canvas, side: int, kerb: float, crossing: float) -> None:
    """Pave one side of the street, beyond ``kerb`` metres from its middle, and put houses, gardens and people there."""
    rng, place = canvas.rng, canvas.place
    verge, garden = rng.uniform(1, 2.5) * (rng.random() < 0.3), rng.uniform(2, 7) * (rng.random() < 0.5)
    park, inner, outer = rng.random() < 0.15, kerb + verge, kerb + verge + rng.uniform(2, 5)
    green, slabs, lawn = bool(garden) or park, canvas.pick(SLABS), canvas.pick(LAWNS)

    def along(start: float, stop: float, low: float, high: float) -> Iterator[float]:
        """Distances a step of ``low`` to ``high`` apart, none on the crossing."""
        z = start
        while z < stop:
            if not crossing - 3 < z < crossing + 10:
                yield z
            z += rng.uniform(low, high)

    canvas.strip(GRASS if green or rng.random() < 0.5 else PAVEMENT, lawn if green else slabs, side * outer, side * 150)
    canvas.strip(GRASS, lawn, side * kerb, side * inner)
    canvas.strip(PAVEMENT, slabs, side * inner, side * outer)
    canvas.strip(PAVEMENT, tone(slabs, 1.2), side * kerb, side * (kerb + 0.2))
    for z in np.arange(2, 22, rng.uniform(0.9, 2)).tolist():
        canvas.strip(PAVEMENT, tone(slabs, 0.85), side * inner, side * outer, z, z + 0.04)

    end = rng.uniform(-10, 2)
    while end < 110 and not park:
        length, gap = rng.uniform(8, 24), rng.random()
        end += length
        if gap < 0.12:
            place(tree, side * (outer + garden + rng.uniform(0, 4)), max(5.0, end - length / 2), rng.uniform(4, 9), 1.5)
        elif end > 3 and not crossing - 3 < end < crossing + 10 + length:
            place(building, side * (outer + garden), end, min(length, end - 1))
        end += rng.uniform(1, 4) * (gap > 0.8)
    if rng.random() < (0.8 if green else 0.3):
        height, color, boards = rng.uniform(0.9, 1.6), canvas.pick(TIMBERS), green and rng.random() < 0.6
        start = rng.uniform(4, 20)
        for z in along(start, start + rng.uniform(10, 45), 3, 3):
            place(fence, side * (outer if green else kerb + 0.3), z, 3.0, height, color, boards)
    for z in along(rng.uniform(5, 9), 60 if park else 35, 1, 8 if park else 12) if green else ():
        x, kind = side * rng.uniform(outer + 1, outer + (25 if park else max(2, garden))), rng.random()
        if kind < 0.25:
            place(conifer, x, z, rng.uniform(3, 9))
        else:
            place(tree, x, z, *((rng.uniform(0.8, 2), 0.0) if kind < 0.6 else (rng.uniform(4, 9), rng.uniform(1, 2))))
    if rng.random() < 0.45:
        size = rng.uniform(5, 9)
        for z in along(rng.uniform(6, 18), 70, 9, 16):
            place(tree, side * (kerb + 0.6), z, size * rng.uniform(0.8, 1.2), rng.uniform(1.8, 2.6))
    if rng.random() < 0.65:
        for z in along(rng.uniform(6, 20), 80, 16, 30):
            place(lamp, side * (kerb + 0.5), z)
    for z in along(rng.uniform(6, 20), 45, 6, 30):
        place(sign, side * (kerb + rng.uniform(0.4, 1.2)), z)
    for z in along(rng.uniform(5, 12), 45, 1, 16):
        place(person, side * rng.uniform(inner + 0.3, outer - 0.3), z)


def traffic(canvas: Canvas, lanes: int, kerb: float, crossing: float) -> None:
    """Put vehicles on the lanes, along the kerbs and on the crossing."""
    rng, place = canvas.rng, canvas.place
    for lane in range(lanes):
        z, x = rng.uniform(8, 45), (lane + 0.5 - lanes / 2) * 3.2
        while z < 75:
            body = BUS if rng.random() < 0.08 and z > 18 else BODIES[rng.integers(len(BODIES))]
            if not crossing - 7 < z < crossing + 13:
                place(car, x + rng.uniform(-0.3, 0.3), z, pi * (x < 0) + rng.normal(0, 0.02), body)
            z += rng.uniform(14, 60)
    for side in (-1, 1):
        if rng.random() < 0.55:
            for z in np.arange(rng.uniform(5, 12), rng.uniform(20, 60), 6.2).tolist():
                if rng.random() < 0.7 and not crossing - 7 < z < crossing + 13:
                    body = BODIES[rng.integers(len(BODIES))]
                    place(car, side * (kerb - 1.1), z + rng.uniform(-0.4, 0.4), pi * (side < 0), body)
    if crossing < FAR and rng.random() < 0.6:
        for x in np.arange(rng.uniform(-20, -5), 20, rng.uniform(9, 25)).tolist():
            place(car, x, crossing + 5.2, -pi / 2, BODIES[rng.integers(len(BODIES))])


def street(canvas: Canvas) -> None:
    """Lay out a street: its ground is painted, what stands on it is placed."""
    rng = canvas.rng
    lanes, crossing = int(rng.choice((2, 2, 3, 4))), rng.uniform(14, 50) if rng.random() < 0.45 else inf
    kerb, tar, slabs, paint = lanes * 1.6 + rng.uniform(1.2, 2), canvas.pick(ASPHALT), canvas.pick(SLABS), canvas.pick([WHITE])
    canvas.strip(GRASS, canvas.pick(LAWNS), -400, 400)
    for side in (-1, 1):
        roadside(canvas, side, kerb, crossing)
    if crossing < FAR:
        canvas.strip(PAVEMENT, slabs, -80, 80, crossing - 2.5, crossing + 9.5)
        canvas.strip(ROAD, tar, -80, 80, crossing, crossing + 7)
    canvas.strip(ROAD, tar, -kerb, kerb)
    for _ in range(rng.integers(8)):
        x, z, worn = rng.uniform(-kerb, kerb - 1), rng.uniform(3, 40), rng.uniform(0.85, 1.1)
        canvas.strip(ROAD, tone(tar, worn), x, min(kerb, x + rng.uniform(0.5, 2.5)), z, z + rng.uniform(0.5, 8))
    for z in np.arange(rng.uniform(1, 6), 90, 6).tolist():
        for lane in range(1, lanes) if not crossing - 7 < z < crossing + 8 else ():
            x = (lane - lanes / 2) * 3.2
            canvas.strip(ROAD, paint, x - 0.07, x + 0.07, z, z + 3)
    if crossing < FAR or rng.random() < 0.25:
        zebra = crossing - 4 if crossing < FAR else rng.uniform(8, 25)
        for x in np.arange(0.3 - kerb, kerb - 0.5).tolist():
            canvas.strip(ROAD, paint, x, x + 0.5, zebra, zebra + 3)
        for _ in range(rng.integers(4)):
            canvas.place(person, rng.uniform(-kerb, kerb), zebra + rng.uniform(0.5, 2.5))
    traffic(canvas, lanes, kerb, crossing)


def photograph(canvas: Canvas) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Image (3, height, width) and label map (height, width) of a picture: rough surfaces, shadows, haze, lens and sensor."""
    rng, size, camera, air = canvas.rng, canvas.size, canvas.camera, canvas.weather
    label = np.array(canvas.image.resize(size[::-1], Image.Resampling.NEAREST).getchannel("A"))
    flat = np.asarray(canvas.image.convert("RGB").reduce(2)).transpose(2, 0, 1)
    y, x = (np.linspace(-1, 1, n, dtype=np.float32) for n in size)
    rough = GRAIN.take(label) * speckle(rng, size) + BLOTCH.take(label) * cells(rng, size, 70, 50)
    # Shadows and haze on the ground come last, since only now is it known where the ground is in sight.
    ground = GROUND.take(label)
    below = (y[:, None] + 1) * size[0] - camera.horizon - camera.roll * ((x + 1) * size[1] - camera.centre)
    clear = np.where(ground, np.exp(-air.haze * camera.focal * camera.height / np.maximum(below, 1)), 1)
    lit = np.where(ground, np.asarray(canvas.shadows) / np.float32(255), 1) * clear
    lens = rng.uniform(0.85, 1.25) * (1 - rng.uniform(0, 0.15) * (y[:, None] ** 2 + x**2))
    image, balance, grain = np.empty(flat.shape, np.float32), rng.normal(1, 0.025, 3).tolist(), rng.uniform(0.5, 4)
    for k in range(3):
        image[k] = ((flat[k] + rough) * lit + (1 - clear) * air.skyline[k]) * (lens * balance[k]) + grain * speckle(rng, size)
    return image.clip(0, 255).astype(np.uint8), label


class Scenes(Dataset[tuple[tv_tensors.Image, tv_tensors.Mask]]):
    """Endless street scenes with exact label maps; ``scenes[i]`` depends on ``seed``, ``i`` and ``size`` alone.

    An item is an image, uint8 (3, height, width), and its label map, uint8 (height, width), of indices into
    ``Scenes.classes``. Every index is another scene, whatever process draws it; another seed gives other scenes.

    Args:
        length: how many scenes an epoch has.
        size: height and width of a scene in pixels, each at least 32.
        seed: which of the endless series to draw, zero or more; say 0 to train and 1 to validate.

    Raises:
        ValueError: for a length below 1, a size below 32 or a negative seed.
    """

    classes = CLASSES

    def __init__(self, length: int, size: tuple[int, int] = (256, 384), seed: int = 0) -> None:
        if length < 1:
            raise ValueError(f"length is {length}; ask for at least 1 scene")
        if len(size) != 2 or min(size) < 32:
            raise ValueError(f"size is {size}; give a height and a width of at least 32 pixels each")
        if seed < 0:
            raise ValueError(f"seed is {seed}; give zero or a positive number")
        self.length, self.size, self.seed = length, (size[0], size[1]), seed

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> tuple[tv_tensors.Image, tv_tensors.Mask]:
        """Scene ``index``.

        Raises:
            IndexError: unless ``0 <= index < len(self)``.
        """
        if not 0 <= index < self.length:
            raise IndexError(f"scene {index} of {self.length}; indices run from 0 to {self.length - 1}")
        canvas = Canvas(self.size, np.random.default_rng((self.seed, index)))
        sky(canvas)
        street(canvas)
        canvas.draw_things()
        image, label = photograph(canvas)
        return tv_tensors.Image(torch.from_numpy(image)), tv_tensors.Mask(torch.from_numpy(label))
