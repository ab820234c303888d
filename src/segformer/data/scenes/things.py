"""The sky and the objects of a street. Each function draws one."""

from __future__ import annotations

from collections.abc import Sequence
from math import cos, dist, pi, sin

import numpy as np
from PIL import Image

from segformer.data.scenes.canvas import (
    BACK,
    BLACK,
    FAR,
    GLASS,
    RED,
    UP,
    WHITE,
    Canvas,
    Spot,
    Triple,
    between,
    cells,
    tone,
    upright,
)
from segformer.data.scenes.classes import BUILDING, FENCE, PERSON, POLE, SIGN, SKY, TREE

BARK, BLUE, LAMPLIGHT = (88.0, 76.0, 66.0), (32.0, 76.0, 158.0), (480.0, 400.0, 250.0)
LEAVES = ((66, 92, 42), (88, 108, 50), (52, 80, 46), (114, 116, 52), (134, 98, 46))
WALLS = (
    (156, 92, 74),
    (202, 186, 158),
    (174, 170, 164),
    (228, 224, 216),
    (138, 146, 158),
    (190, 146, 102),
    (116, 108, 104),
)
ROOFS = ((134, 74, 58), (90, 88, 92), (110, 90, 76))
METALS = ((100, 104, 106), (64, 70, 68), (150, 152, 152), (108, 88, 70))
# Frame, face and number of corners of a sign plate; many corners make a disc.
PLATES = ((RED, WHITE, 3), (RED, WHITE, 20), (WHITE, BLUE, 20), (WHITE, RED, 8))
CLOTHES = (
    (46, 50, 62),
    (90, 90, 92),
    (72, 94, 132),
    (150, 44, 44),
    (196, 190, 180),
    (78, 96, 60),
    (206, 160, 60),
)
SKINS, HAIRS = (
    ((224, 184, 158), (190, 140, 108), (120, 82, 60)),
    ((50, 38, 30), (120, 92, 60), (30, 28, 28)),
)


def sky(canvas: Canvas) -> None:
    """Fills the canvas with a gradient and clouds, and draws distant woods or roofs."""
    rng, air, camera = canvas.rng, canvas.weather, canvas.camera
    down = (
        np.clip(np.linspace(0, 2 * canvas.size[0] / camera.horizon, 48), 0, 1)[:, None, None] ** 1.3
    )
    blue = np.array(air.zenith) + down * (np.array(air.skyline) - air.zenith)
    puffs = (
        cells(rng, (48, 48), 4, 3)
        + 0.7 * cells(rng, (48, 48), 9, 6)
        + 0.4 * cells(rng, (48, 48), 24, 16)
    )
    cover = np.clip(puffs + rng.uniform(-0.8, 0.6), 0, 0.9)[..., None]
    small = Image.fromarray(
        (blue + cover * (np.array(air.cloud) - blue)).clip(0, 255).astype(np.uint8)
    )
    smooth = small.resize((canvas.size[1] // 2, canvas.size[0] // 2), Image.Resampling.BICUBIC)
    smooth.putalpha(SKY)
    canvas.image.paste(smooth.resize(canvas.image.size, Image.Resampling.NEAREST))

    label, color, blocky = (
        (TREE, canvas.pick(LEAVES), 0) if rng.random() < 0.5 else (BUILDING, canvas.pick(WALLS), 1)
    )
    heights = (
        rng.uniform(3, 12) * (1 + blocky) * (1 + 0.5 * cells(rng, (1, 80), 1, 20)[0])
    ).tolist()
    tops = [
        (10.0 * (k + end) - 400, y, FAR)
        for k, y in enumerate(heights)
        for end in ((0, 1) if blocky else (0,))
    ]
    canvas.polygon(label, color, [(-400, 0, FAR), *tops, (400, 0, FAR)])


def building(canvas: Canvas, x: float, z: float, length: float) -> None:
    """Draws a house with its far end at ``z`` and its front at ``x`` (below 0: on the left)."""
    rng, side, near = canvas.rng, 1 if x > 0 else -1, z - length
    floors, storey, deep = int(rng.integers(1, 7)), rng.uniform(2.8, 3.6), rng.uniform(8, 12)
    height, back, middle = floors * storey + 0.6, x + side * deep, x + side * deep / 2
    color, trim, shop = canvas.pick(WALLS), canvas.pick(WALLS), floors > 2 and rng.random() < 0.6
    canvas.cast((x, near), (x, z), 0, height)
    canvas.cast((x, near), (back, near), 0, height)
    if floors < 4 and rng.random() < 0.7:
        ridge = height + deep * rng.uniform(0.25, 0.5)
        if (canvas.camera.height - height) * deep / 2 > side * (canvas.camera.x - x) * (
            ridge - height
        ):  # its outside is seen
            slope = [(x, height, near), (middle, ridge, near), (middle, ridge, z), (x, height, z)]
            canvas.polygon(BUILDING, canvas.pick(ROOFS), slope, UP)
        canvas.polygon(
            BUILDING, color, [(x, height, near), (middle, ridge, near), (back, height, near)]
        )
    tall, bay, share = rng.uniform(1.2, 1.8), rng.uniform(2, 3.6), rng.uniform(0.35, 0.75)
    rows = [(k * storey + 0.9, k * storey + 0.9 + tall) for k in range(shop, floors)]
    for a, b, normal in (
        ((back, near), (x, near), BACK),
        ((x, near), (x, z), (-float(side), 0.0, 0.0)),
    ):
        canvas.polygon(BUILDING, color, upright(a, b, 0, height), normal)
        canvas.polygon(BUILDING, trim, upright(a, b, height - 0.5, height), normal)
        if normal != BACK or rng.random() < 0.4:  # many gables have no windows
            glaze(canvas, color, normal, a, b, rows, bay, share)
        if shop:
            canvas.polygon(BUILDING, trim, upright(a, b, 0, storey), normal)
            glaze(canvas, trim, normal, a, b, [(0.4, storey - 0.7)], 2 * bay, 0.8)


def glaze(
    canvas: Canvas,
    wall: Triple,
    normal: Triple,
    a: Spot,
    b: Spot,
    rows: Sequence[Spot],
    bay: float,
    share: float,
) -> None:
    """Draws windows in the wall from ``a`` to ``b``, one row for each (low, high).

    A row is a band of glass with pieces of wall over it.
    """
    rng, (start, end) = canvas.rng, [canvas.camera.project(x, 0, z)[0] for x, z in (a, b)]
    if max(start, end) < 0 or min(start, end) > canvas.image.width:
        return
    # Fewer windows on distant walls, so that each is wide enough to see.
    number = max(1, round(min(dist(a, b) / bay, abs(end - start) / 14)))
    glass, margin = canvas.pick([GLASS]), (1 - share) / 2

    def panel(
        color: Triple, left: float, right: float, low: float, high: float, normal: Triple = BACK
    ) -> None:
        spots = [between(a, b, min(1.0, max(0.0, bays / number))) for bays in (left, right)]
        canvas.polygon(BUILDING, color, upright(spots[0], spots[1], low, high), normal)

    for low, high in rows:
        panel(glass, 0, number, low, high)
        for k in rng.integers(number, size=number // 3).tolist():
            other = (
                LAMPLIGHT
                if rng.random() < 3 * canvas.weather.lamps
                else tone(glass, rng.uniform(0.6, 1.7))
            )
            panel(other, k + margin, k + 1 - margin, low, high)
    for k in range(number + 1):
        panel(wall, k - margin, k + margin, rows[0][0], rows[-1][1], normal)


def tree(canvas: Canvas, x: float, z: float, height: float, trunk: float = 0.0) -> None:
    """Draws a tree, or without a trunk a bush, of clumps of leaves, brighter towards the sun."""
    rng, (sx, sy, _) = canvas.rng, canvas.weather.sun
    color, half = canvas.pick(LEAVES), (height - trunk) / 2
    wide = half * rng.uniform(0.6, 1.0)
    canvas.cast_round(x, z, 0.1, 0, trunk)
    canvas.cast_round(x, z, wide, trunk + 0.5 * half, trunk + 1.5 * half)
    canvas.cast_round(x, z, 0.6 * wide, trunk, height)
    if trunk:
        canvas.stroke(TREE, canvas.pick([BARK]), [(x, 0, z), (x, trunk + half, z)], 0.045 * height)
    inks = [canvas.weather.ink(TREE, tone(color, 0.55 + 0.13 * k), z, BACK) for k in range(6)]
    number = min(70, max(8, int(canvas.camera.focal * half / z / 4)))
    clumps = rng.normal(0, 0.33, (number, 2)).clip(-0.75, 0.75)
    light = clumps @ (sx, sy) + rng.normal(0, 0.3, number)
    # Clumps are large in the middle of the crown and small at its rim.
    sizes = rng.uniform(0.08, 0.24, number) + 0.32 * np.exp(-4 * (clumps**2).sum(1))
    for dx, dy, shade, size in np.column_stack((clumps, (2.5 + 3 * light).clip(0, 5), sizes))[
        light.argsort()
    ].tolist():
        canvas.disc((x + dx * wide, trunk + (1 + dy) * half, z), size * wide, inks[int(shade)])


def fence(
    canvas: Canvas, x: float, z: float, length: float, height: float, color: Triple, boards: bool
) -> None:
    """Draws a piece of fence with its far end at ``z``: upright boards, or rails and a post."""
    near, side = z - length, (1.0 if x < canvas.camera.x else -1.0, 0.0, 0.0)
    canvas.cast((x, near), (x, z), 0, height)
    rows, number = (
        ([(0.05, height)], max(1, int(80 / z)))
        if boards
        else ([(y * height - 0.12, y * height) for y in (0.4, 0.7, 1)], 1)
    )
    for k in range(number):
        a, b = ((x, z - length * end / number) for end in (k + 1, k))
        for low, high in rows:
            canvas.polygon(
                FENCE, tone(color, canvas.rng.uniform(0.82, 1.1)), upright(a, b, low, high), side
            )
    canvas.stroke(FENCE, color, [(x, 0, near), (x, height, near)], 0.12)


def lamp(canvas: Canvas, x: float, z: float) -> None:
    """Draws a lamp post whose arm is above the street."""
    color, height = canvas.pick(METALS), canvas.rng.uniform(5, 8)
    arm = canvas.rng.uniform(0.8, 2) * (1 if x < 0 else -1)
    canvas.cast_round(x, z, 0.1, 0, height)
    canvas.stroke(POLE, color, [(x, 0, z), (x, height, z), (x + arm, height + 0.3, z)], 0.15)
    canvas.stroke(
        POLE, WHITE, [(x + 0.6 * arm, height + 0.15, z), (x + arm, height + 0.25, z)], 0.2
    )


def sign(canvas: Canvas, x: float, z: float) -> None:
    """Draws a traffic sign on its post."""
    frame, face, corners = PLATES[canvas.rng.integers(len(PLATES))]
    top = canvas.rng.uniform(2.2, 2.9)
    radius = canvas.rng.uniform(0.35, 0.6)
    canvas.cast_round(x, z, 0.08, 0, top)
    canvas.stroke(POLE, METALS[0], [(x, 0, z), (x, top, z)], 0.1)
    for color, r in ((frame, radius), (face, 0.72 * radius)):
        turns = [2 * pi * (k + 0.5 * (corners == 8)) / corners for k in range(corners)]
        canvas.polygon(SIGN, color, [(x + r * sin(t), top + r * cos(t), z) for t in turns])
    glyph = [(x + s * 0.15 * radius, top + s * 0.3 * radius, z) for s in (-1, 1)]
    canvas.stroke(SIGN, BLACK if face == WHITE else WHITE, glyph, 0.3 * radius)


def person(canvas: Canvas, x: float, z: float) -> None:
    """Draws a person who stands or walks."""
    rng = canvas.rng
    k = rng.uniform(0.9, 1.08) if rng.random() < 0.85 else rng.uniform(0.6, 0.85)
    coat, legs, skin, hair = (
        canvas.pick(palette) for palette in (CLOTHES, CLOTHES[:3], SKINS, HAIRS)
    )
    stride, swing, ahead = (
        rng.uniform(-0.25, 0.25),
        rng.uniform(-0.25, 0.25),
        rng.uniform(-0.05, 0.05),
    )

    def at(*points: Spot) -> list[Triple]:
        return [(x + dx * k, y * k, z) for dx, y in points]

    canvas.cast_round(x, z, 0.2, 0, 1.7 * k)
    for s in (-1, 1):
        canvas.stroke(
            PERSON,
            legs,
            at((0.08 * s, 0.9), (0.08 * s + stride * s / 2, 0.45), (0.08 * s + stride * s, 0.02)),
            0.16 * k,
        )
        canvas.stroke(
            PERSON,
            tone(coat, 0.8),
            at((0.2 * s, 1.38), (0.24 * s + swing / 2, 1.1), (0.2 * s + swing, 0.85)),
            0.11 * k,
        )
    canvas.polygon(
        PERSON,
        coat,
        at((-0.19, 0.78), (-0.23, 1.36), (-0.1, 1.48), (0.1, 1.48), (0.23, 1.36), (0.19, 0.78)),
    )
    for color, spot, radius in ((hair, (0.0, 1.64), 0.12), (skin, (ahead, 1.6), 0.095)):
        canvas.disc(at(spot)[0], radius * k, canvas.weather.ink(PERSON, color, z, BACK))
