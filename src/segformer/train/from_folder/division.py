"""Divides pairs into training and validation, so that no group of images is on both sides."""

from __future__ import annotations

import hashlib
import re
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence

TILE = re.compile(  # scene_0_512, x_r3_c4, scene-row3-col4
    r"(?P<group>.*?)(?<![A-Za-z0-9])(?:row|r|y)?"
    r"(?P<row>\d+)[ _-](?:column|col|c|x)?(?P<column>\d+)"
)
MARKED_TILE = re.compile(r"(?:.*[ _/-])?(?:row|r|y)\d+[ _-](?:column|col|c|x)\d+")
FRAME = re.compile(  # clip_000123, Seq05VD_f00030
    r"(?P<group>.*?)(?:(?<![A-Za-z])(?:frame|f)[ _-]?)?(?P<number>\d{3,})"
)
CAMERA = re.compile(  # numbers its files: IMG_0001, 20240131_142233
    r"(?:(?:img|dsc|dscn|dscf|pxl|image|photo|picture)[ _-]?)?(?:\d{8})?", re.IGNORECASE
)
COPY = re.compile(  # Roboflow's, of one image: clip_000123_jpg.rf.0a1b2c
    r"(?P<group>.+?)(?:_(?:jpe?g|png|bmp|tiff?|webp))?\.rf\.[0-9A-Za-z]+"
)
SINGLY = "--group '.+'"  # each path is a group


def groups_by(pattern: str, names: Sequence[str]) -> list[str]:
    """Returns the group of each name: the pattern's first group, or its whole match.

    Raises:
        ValueError: If the pattern is no regular expression, or does not occur in a name.
    """
    try:
        compiled = re.compile(pattern)
    except re.error as error:
        raise ValueError(
            f"--group {pattern!r} is no regular expression ({error}); correct it"
        ) from error
    matches = [compiled.search(name) for name in names]
    missing = [name for name, match in zip(names, matches, strict=True) if match is None]
    if missing:
        raise ValueError(
            f"--group {pattern!r} does not occur in {missing[0]!r} and {len(missing) - 1} other "
            "names; each name must show its group"
        )
    return [(match[1] or "") if compiled.groups else match[0] for match in matches if match]


def groups_of(names: Sequence[str]) -> tuple[list[str], str]:
    """Returns the group of each name, and a sentence that says how it was found.

    Tiles of one scene, frames of one video and copies of one image are a group; otherwise each
    name is one.

    Raises:
        ValueError: If all names are tiles of one scene.
    """
    originals = [_original(name) for name in names]
    for grouped, what, whole in ((_tiles, "tiles", "scene"), (_frames, "frames", "video")):
        found = grouped(originals)
        if len(set(found)) == len(set(originals)):
            continue
        if len(set(found)) > 1:
            return found, _together(what, whole, found)
        if what == "tiles":
            raise ValueError(
                f"all {len(names)} images look like tiles of one scene, such as {names[0]!r}, so "
                "that validation would see the neighbours of training tiles; add another scene, "
                f"or name parts of it by --group PATTERN; {SINGLY} divides them nevertheless"
            )
    if 1 < len(set(originals)) < len(names):
        return originals, _together("copies", "image", originals)
    return list(names), (
        "each image is divided by itself, as no names of several scenes or videos were seen; "
        "--group PATTERN keeps images together"
    )


def _together(what: str, whole: str, found: Sequence[str]) -> str:
    groups = sorted(set(found))
    shown = ", ".join(map(repr, groups[:3])) + (", …" if len(groups) > 3 else "")
    return (
        f"{what} of one {whole} stay together: {len(groups)} groups ({shown}); {SINGLY} divides "
        "singly"
    )


def _original(name: str) -> str:
    """Returns the name of the image that a name of Roboflow's is a copy of."""
    match = COPY.fullmatch(name)
    return match["group"] if match else name


def _tiles(names: Sequence[str]) -> list[str]:
    """Returns the scene of each tile; a name that is no tile is its own group.

    Names such as IMG_20240131_142233 end in two numbers as well; the positions of tiles occur
    several times in rows and columns, or have letters.
    """
    found = {name: match for name in names if (match := TILE.fullmatch(name))}
    rows = {(_scene(match), match["row"]) for match in found.values()}
    columns = {(_scene(match), match["column"]) for match in found.values()}
    is_grid = len(rows) < len(found) and len(columns) < len(found)
    is_marked = all(map(MARKED_TILE.fullmatch, found))
    if not (is_grid or is_marked):
        return list(names)
    return [_scene(found[name]) if name in found else name for name in names]


def _frames(names: Sequence[str]) -> list[str]:
    """Returns the video of each frame; a name that is no frame is its own group.

    The frames of a video have numbers of one length. Cameras number photographs in this way, too.
    """
    matches = [FRAME.fullmatch(name) for name in names]
    lengths: dict[str, set[int]] = defaultdict(set)
    for match in filter(None, matches):
        lengths[_scene(match)].add(len(match["number"]))

    def is_frame(match: re.Match[str] | None) -> bool:
        return (
            match is not None
            and len(lengths[_scene(match)]) == 1
            and not _is_photograph(_scene(match).rpartition("/")[2])
        )

    found = zip(names, matches, strict=True)
    return [_scene(match) if match and is_frame(match) else name for name, match in found]


def _scene(match: re.Match[str]) -> str:
    return match["group"].rstrip(" _-")


def _is_photograph(prefix: str) -> bool:
    return bool(prefix) and CAMERA.fullmatch(prefix) is not None


def divide(groups: Sequence[str], share: float, seed: int) -> list[bool]:
    """Returns which members of the groups validate.

    The order of the groups is that of a hash of seed and name, so that it does not depend on
    other groups. Groups are taken while they bring the share closer to the wanted one.

    Args:
        groups: Group of each member.
        share: Wanted share of the members that validate.
        seed: Random seed.

    Raises:
        ValueError: If there are fewer than two groups, or share is not between 0 and 1.
    """
    if not 0 < share < 1:
        raise ValueError(f"--val_share {share} must be between 0 and 1, such as 0.2")
    sizes = Counter(groups)
    if len(sizes) < 2:
        raise ValueError(
            f"all {len(groups)} images are in one group, {groups[0]!r}, so that nothing is left "
            "for validation; choose another --group PATTERN"
        )
    chosen = _chosen(sizes, share * len(groups), seed)
    return [group in chosen for group in groups]


def _chosen(sizes: Mapping[str, int], wanted: float, seed: int) -> set[str]:
    order = sorted(sizes, key=lambda group: (_hash(seed, group), group))
    chosen: set[str] = set()
    taken = 0
    for group in order:
        is_closer = abs(taken + sizes[group] - wanted) < abs(taken - wanted)
        if is_closer and len(chosen) < len(sizes) - 1:
            chosen.add(group)
            taken += sizes[group]
    return chosen or {min(order, key=lambda group: sizes[group])}


def _hash(seed: int, group: str) -> bytes:
    return hashlib.blake2b(f"{seed}/{group}".encode(), digest_size=8).digest()
