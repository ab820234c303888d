"""Vehicles."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import cos, hypot, pi, sin

from segformer.data.scenes.canvas import (
    BACK,
    BLACK,
    GLASS,
    RED,
    WHITE,
    Camera,
    Canvas,
    Ink,
    Spot,
    Triple,
    between,
    tone,
)
from segformer.data.scenes.classes import CAR

PAINTS = (
    (104, 105, 108),
    (44, 46, 50),
    (220, 220, 218),
    (166, 169, 172),
    (156, 34, 34),
    (44, 72, 128),
    (56, 90, 68),
)
# Side views: metres ahead of the middle, and height, from the rear bumper over the roof to the
# front bumper.
SALOON = (
    (-2.25, 0.3),
    (-2.25, 0.95),
    (-1.65, 1.0),
    (-1.0, 1.42),
    (0.3, 1.44),
    (1.05, 1.0),
    (2.15, 0.8),
    (2.2, 0.3),
)
HATCHBACK = (
    (-1.9, 0.3),
    (-1.95, 0.85),
    (-1.9, 1.0),
    (-1.5, 1.47),
    (0.2, 1.52),
    (0.95, 1.03),
    (1.85, 0.82),
    (1.95, 0.3),
)
OFFROADER = (
    (-2.2, 0.4),
    (-2.25, 0.95),
    (-2.22, 1.1),
    (-2.0, 1.75),
    (0.35, 1.78),
    (1.0, 1.2),
    (2.15, 1.0),
    (2.25, 0.4),
)
VAN = (
    (-2.6, 0.4),
    (-2.65, 1.1),
    (-2.65, 1.3),
    (-2.55, 2.15),
    (1.2, 2.15),
    (1.95, 1.3),
    (2.6, 1.05),
    (2.65, 0.4),
)
BODIES = (SALOON, SALOON, HATCHBACK, HATCHBACK, OFFROADER, VAN)
HALF = 0.88  # of a vehicle's width
CIRCLE = [(cos(pi * k / 6), sin(pi * k / 6)) for k in range(12)]


@dataclass(frozen=True)
class Pose:
    """Position and heading of a vehicle on the ground.

    Args:
        camera: Camera of the scene.
        x: Metres to the right of the middle of the vehicle.
        z: Metres ahead.
        heading: Radians from straight ahead.
    """

    camera: Camera
    x: float
    z: float
    heading: float

    def spot(self, along: float, across: float) -> Spot:
        """Returns a point on the ground, in metres along and across the vehicle."""
        sine, cosine = sin(self.heading), cos(self.heading)
        return self.x + along * sine + across * cosine, self.z + along * cosine - across * sine

    def pixel(self, along: float, across: float, y: float) -> Spot:
        """Returns a point of the vehicle on the canvas."""
        x, z = self.spot(along, across)
        return self.camera.project(x, y, z)


def car(canvas: Canvas, x: float, z: float, heading: float) -> None:
    """Draws a vehicle, turned ``heading`` radians from straight ahead: a side view with a width."""
    body, paint = BODIES[canvas.rng.integers(len(BODIES))], canvas.pick(PAINTS)
    pose = Pose(canvas.camera, x, z, heading)
    # The body's left and right outline on the canvas, narrower at the roof than at the waist.
    left, right = (
        [
            pose.pixel(a, side * HALF * (0.84 if k in (3, 4) else 1), y)
            for k, (a, y) in enumerate(body)
        ]
        for side in (-1, 1)
    )
    draw_underside(canvas, pose, body)
    draw_faces(canvas, pose, body, paint, left, right)
    for side, outline in ((-1, left), (1, right)):
        if turns_right(outline) == (side > 0):
            draw_side(canvas, pose, body, paint, side, outline)


def ink(canvas: Canvas, pose: Pose, color: Triple) -> Ink:
    """Returns the ink of an unpainted part."""
    return canvas.weather.ink(CAR, color, pose.z, BACK)


def draw_underside(canvas: Canvas, pose: Pose, body: Sequence[Spot]) -> None:
    """Draws the shadows on the ground, and the treads of the wheels."""
    tail, nose = body[0][0], body[7][0]
    base = [
        pose.spot(*corner) for corner in ((tail, -HALF), (tail, HALF), (nose, HALF), (nose, -HALF))
    ]
    canvas.cast(base[0], base[2], 0, 0.8 * body[3][1])
    canvas.cast(base[1], base[3], 0, 0.8 * body[3][1])
    canvas.darken(base, 0.4)
    black = ink(canvas, pose, BLACK)
    for along in axles(body):
        for across in (-HALF, HALF - 0.25):
            tread = ((0, 0), (0, 0.5), (0.25, 0.5), (0.25, 0))
            canvas.pen.polygon([pose.pixel(along, across + dx, y) for dx, y in tread], black)


def draw_faces(
    canvas: Canvas,
    pose: Pose,
    body: Sequence[Spot],
    paint: Triple,
    left: Sequence[Spot],
    right: Sequence[Spot],
) -> None:
    """Draws the visible faces from the rear over the roof to the front, between two outlines."""
    fill, (sine, cosine) = canvas.pen.polygon, (sin(pose.heading), cos(pose.heading))
    black, white, red, glass = (ink(canvas, pose, c) for c in (BLACK, WHITE, RED, GLASS))
    for k in range(7):
        face = [left[k], left[k + 1], right[k + 1], right[k]]
        if not turns_right(face):
            continue
        along, up = body[k + 1][0] - body[k][0], body[k + 1][1] - body[k][1]
        slope = hypot(along, up)
        normal = (-up / slope * sine, along / slope, -up / slope * cosine)
        fill(face, canvas.weather.ink(CAR, paint, pose.z, normal))
        if k in (2, 4):
            fill(patch(face, 0.07, 0.93, 0.1, 0.9), glass)
        elif k in (0, 6):
            light, bumper = (red, 0.0) if k == 0 else (white, 0.8)
            fill(patch(face, 0.0, 1.0, bumper, bumper + 0.2), black)
            for start, end, color in ((0.03, 0.2, light), (0.8, 0.97, light), (0.38, 0.62, white)):
                fill(patch(face, start, end, 0.35, 0.65), color)


def draw_side(
    canvas: Canvas,
    pose: Pose,
    body: Sequence[Spot],
    paint: Triple,
    side: int,
    outline: Sequence[Spot],
) -> None:
    """Draws the left (-1) or right (1) side, with windows and wheels."""
    fill, normal = canvas.pen.polygon, (side * cos(pose.heading), 0.0, -side * sin(pose.heading))
    glass, black = ink(canvas, pose, GLASS), ink(canvas, pose, BLACK)
    fill(outline, canvas.weather.ink(CAR, paint, pose.z, normal))
    fill(patch(outline[2:6], 0.1, 0.48, 0.12, 0.88), glass)
    fill(patch(outline[2:6], 0.54, 0.92, 0.12, 0.88), glass)
    hub = ink(canvas, pose, tone(WHITE, 0.65))
    for along in axles(body):
        for radius, color in ((0.34, black), (0.19, hub)):
            circle = [(along + radius * a, side * HALF, 0.34 + radius * b) for a, b in CIRCLE]
            fill([pose.pixel(*point) for point in circle], color)


def axles(body: Sequence[Spot]) -> tuple[float, float]:
    """Returns the positions of the axles, in metres ahead of the middle."""
    front = 0.62 * body[7][0]
    return -front, front


def turns_right(path: Sequence[Spot]) -> bool:
    """Returns whether a path on the canvas is clockwise, as the visible sides of a body are."""
    a, b, c, d = path[0], path[len(path) // 4], path[len(path) // 2], path[-1]
    return (c[0] - a[0]) * (d[1] - b[1]) > (c[1] - a[1]) * (d[0] - b[0])


def patch(
    corners: Sequence[Spot], left: float, right: float, low: float, high: float
) -> list[Spot]:
    """Returns a part of a face with four corners, in order from bottom left to bottom right."""
    (a, b, c, d), spots = corners, ((left, low), (left, high), (right, high), (right, low))
    return [between(between(a, d, s), between(b, c, s), t) for s, t in spots]
