"""No group of images is in training and in validation."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from segformer.train.from_folder.division import divide, groups_by, groups_of

SCENES = st.lists(st.from_regex(r"[a-z]{2,6}[0-9]?[a-z]", fullmatch=True), min_size=2, unique=True)
NUMBERS = st.lists(st.integers(0, 99999), min_size=1, max_size=9, unique=True)


@st.composite
def named(draw: st.DrawFn) -> list[tuple[str, str]]:
    """Names of tiles or of frames, as they are or as Roboflow exports them, each with its scene.

    Another name may be beside them.
    """
    kind = draw(st.sampled_from(["{}_{:05d}", "clips/{}/{:06d}", "{}_f{:05d}", "{} frame {:05d}"]))
    tile = draw(st.sampled_from(["{}_r{}_c{}", "{}-row{}-col{}", "{}_y{}_x{}"]))
    of_tiles, copies = draw(st.booleans()), draw(st.sampled_from([0, 1, 2]))
    names = [("overview", "overview")] if draw(st.booleans()) else []
    for scene in draw(SCENES):
        for number in draw(NUMBERS):
            name = tile.format(scene, number // 7, number) if of_tiles else kind
            name = name.format(scene, number)
            exported = [f"{name}_jpg.rf.{copy}a{number:x}" for copy in range(copies)] or [name]
            names += [(shown, scene) for shown in exported]
    return names


@given(named(), st.floats(0.01, 0.99), st.integers(0, 9))
def test_no_scene_or_video_is_on_both_sides(
    names: list[tuple[str, str]], share: float, seed: int
) -> None:
    groups, _ = groups_of([name for name, _ in names])
    validates = divide(groups, share, seed)
    sides: dict[str, set[bool]] = {}
    for (_, scene), side in zip(names, validates, strict=True):
        sides.setdefault(scene, set()).add(side)
    assert all(len(found) == 1 for found in sides.values())
    assert set(validates) == {True, False}


@given(
    st.lists(st.text("abcde/", min_size=1, max_size=3), min_size=2, max_size=60),
    st.floats(0.05, 0.95),
    st.integers(0, 9),
)
def test_the_division_depends_on_the_groups_alone(
    groups: list[str], share: float, seed: int
) -> None:
    if len(set(groups)) < 2:
        with pytest.raises(ValueError, match="in one group"):
            divide(groups, share, seed)
        return
    validates = divide(groups, share, seed)
    assert divide(groups[::-1], share, seed) == validates[::-1]
    assert set(validates) == {True, False}
    sides = {
        group: {v for g, v in zip(groups, validates, strict=True) if g == group} for group in groups
    }
    assert all(len(found) == 1 for found in sides.values())


@pytest.mark.parametrize("count", [10, 1000])
def test_the_share_of_single_images_is_exact_and_seeds_differ(count: int) -> None:
    names = [f"{k}" for k in range(count)]
    chosen = [divide(names, 0.2, seed) for seed in (0, 0, 1)]
    assert [sum(validates) for validates in chosen] == [count // 5] * 3
    assert chosen[0] == chosen[1] != chosen[2]


def test_another_image_moves_few_of_the_others() -> None:
    names = [f"{k}" for k in range(500)]
    before = dict(zip(names, divide(names, 0.2, 0), strict=True))
    after = dict(zip([*names, "new"], divide([*names, "new"], 0.2, 0), strict=True))
    assert sum(before[name] != after[name] for name in names) <= 1


@pytest.mark.parametrize(
    ("names", "groups"),
    [
        (["lake_0_0", "lake_0_512", "lake_512_0", "lake_512_512", "sea_0_0"], 2),
        (["0001TP_006690", "0001TP_006720", "Seq05VD_f00000", "Seq05VD_f00030"], 2),
        (["a/000001", "a/000002", "b/000001"], 2),
        (["clip0_000", "clip0_001", "clip1_000", "clip1_001", "clip2_000"], 3),
        ([f"{scene}_{k // 2}_{k % 2}" for scene in ("lake", "sea") for k in range(4)] + ["map"], 3),
        (["a_0001_jpg.rf.0a", "a_0002_jpg.rf.9c", "b_0001_png.rf.77", "b_0001_png.rf.78"], 2),
        (["x_jpg.rf.0a1b", "x_jpg.rf.9c8d", "y_jpg.rf.77aa"], 2),
        (["IMG_0001", "IMG_0002", "DSC_0001", "holiday"], 4),
        (["IMG_20240131_142233", "IMG_20240131_142235", "IMG_20240201_090000"], 3),
        (["000000000139", "000000000285", "000000000632"], 3),  # COCO's
        (["leaf", "tree", "road"], 3),
    ],
)
def test_groups_that_names_show(names: list[str], groups: int) -> None:
    found, said = groups_of(names)
    assert len(set(found)) == groups
    assert ("stay together" in said) == (groups < len(names))


def test_tiles_of_one_scene_are_refused_and_divided_on_request() -> None:
    names = [f"map_r{k // 4}_c{k % 4}" for k in range(16)]
    with pytest.raises(ValueError, match=re.escape("--group '.+' divides them nevertheless")):
        groups_of(names)
    assert sum(divide(groups_by(".+", names), 0.25, 0)) == 4


@pytest.mark.parametrize(
    ("pattern", "message"),
    [("(", "is no regular expression"), ("day", "does not occur in 'night/2' and 0 other")],
)
def test_patterns_that_are_refused(pattern: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        groups_by(pattern, ["day/1", "night/2"])


def test_a_pattern_names_a_group_by_its_first_group_or_its_match() -> None:
    names = ["a/b1/x", "a/b2/y", "c/b1/z"]
    assert groups_by("^[^/]+", names) == ["a", "a", "c"]
    assert groups_by("/(b.)/", names) == ["b1", "b2", "b1"]


@pytest.mark.parametrize("share", [0, 1, -0.2, 20])
def test_a_share_that_leaves_one_side_empty_is_refused(share: float) -> None:
    with pytest.raises(ValueError, match=r"must be between 0 and 1"):
        divide(["a", "b"], share, 0)
