"""The classes of a scene, and the roughness of their surfaces."""

from __future__ import annotations

import numpy as np

from segformer.data.classes import Classes

CLASSES = Classes(
    (
        "road",
        "pavement",
        "building",
        "fence",
        "pole",
        "sign",
        "tree",
        "grass",
        "sky",
        "person",
        "car",
    ),
    (
        *(
            (128, 64, 128),
            (244, 35, 232),
            (70, 70, 70),
            (190, 153, 153),
            (153, 153, 153),
            (220, 220, 0),
        ),
        *((107, 142, 35), (152, 251, 152), (70, 130, 180), (220, 20, 60), (0, 0, 142)),
    ),
)
ROAD, PAVEMENT, BUILDING, FENCE, POLE, SIGN, TREE, GRASS, SKY, PERSON, CAR = range(len(CLASSES))
GROUND = np.isin(np.arange(256), (ROAD, PAVEMENT, GRASS))
# How strongly fine and coarse noise (standard deviation in grey levels) roughen each class.
GRAIN = np.array([5, 5, 4, 4, 2, 1, 9, 9, 0, 3, 1], np.float32)
BLOTCH = np.array([3, 4, 4, 3, 0, 0, 8, 9, 0, 0, 0], np.float32)
