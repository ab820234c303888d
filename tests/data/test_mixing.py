"""Parts of one sample on another; torchvision's CutMix and SciPy's regions are the judges."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage
from torch import Tensor
from torchvision.transforms import v2

from segformer import Classes
from segformer.data.mixing import ClassMix, CopyPaste, CutMix, Mixing, Sample

CLASSES = Classes(["road", "car", "tree", "sky", "sign"])
IGNORED = 255
MIXINGS = [CutMix(), ClassMix(), CopyPaste()]


def samples(seed: int, size: tuple[int, int] = (20, 30)) -> tuple[Sample, Sample]:
    """Two samples of patches; the image holds the label of each pixel, plus 1000 in the second."""
    generator = torch.Generator().manual_seed(seed)
    values = torch.tensor([*range(len(CLASSES)), IGNORED])
    coarse = values[torch.randint(len(values), (2, 5, 6), generator=generator)]
    labels = v2.functional.resize(coarse, list(size), v2.InterpolationMode.NEAREST)
    first, second = labels.to(torch.uint8)
    return (first.float().expand(3, -1, -1), first), (
        1000 + second.float().expand(3, -1, -1),
        second,
    )


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 1 << 30), kind=st.sampled_from(MIXINGS))
def test_every_pixel_is_one_of_the_twos_in_image_and_label_map(seed: int, kind: Mixing) -> None:
    one, other = samples(seed)
    torch.manual_seed(seed)
    image, target = kind(one, other, CLASSES)
    is_pasted = image[0] >= 1000
    assert torch.equal(target, other[1].where(is_pasted, one[1]))
    assert torch.equal(image, other[0].where(is_pasted, one[0]))
    assert target.dtype == one[1].dtype


@pytest.mark.parametrize("seed", range(20))
def test_the_box_is_torchvisions(seed: int) -> None:
    """Its own transform, applied to the two as a batch, which it rolls by one."""
    one, other = samples(seed)
    torch.manual_seed(seed)
    ours, _ = CutMix()(one, other, CLASSES)
    torch.manual_seed(seed)
    batch = torch.stack([one[0], other[0]])
    theirs, _ = v2.CutMix(num_classes=2)(batch, torch.tensor([0, 1]))
    assert torch.equal(ours, theirs[0])


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 1 << 30))
def test_classmix_takes_all_pixels_of_half_of_the_classes(seed: int) -> None:
    _, (_, target) = samples(seed)
    torch.manual_seed(seed)
    mask = ClassMix().mask(target, CLASSES)
    found = set(target.unique().tolist()) - {IGNORED}
    pasted, kept = set(target[mask].tolist()), set(target[~mask].tolist())
    assert not pasted & kept
    assert IGNORED not in pasted
    assert len(pasted) == -(-len(found) // 2)


def test_classmix_takes_each_class_as_often() -> None:
    target = torch.arange(4, dtype=torch.uint8)[:, None]
    torch.manual_seed(0)
    counts = sum(ClassMix().mask(target, CLASSES)[:, 0].int() for _ in range(2000))
    assert isinstance(counts, Tensor)
    torch.testing.assert_close(counts / 2000, torch.full((4,), 0.5), rtol=0, atol=0.04)


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 1 << 30), names=st.sampled_from([None, ["car"], ["sign", "sky"]]))
def test_copy_paste_takes_whole_regions_of_the_named_classes(
    seed: int, names: list[str] | None
) -> None:
    _, (_, target) = samples(seed)
    torch.manual_seed(seed)
    mask = CopyPaste(names=names).mask(target, CLASSES)
    for k in range(len(CLASSES)):
        region = torch.from_numpy(ndimage.label(target == k)[0])
        assert not set(region[mask].tolist()) & set(region[~mask].tolist()) - {0}
    wanted = {CLASSES.names.index(name) for name in names or CLASSES.names}
    assert set(target[mask].tolist()) <= wanted
    everything = CopyPaste(names=names, share=1.0).mask(target, CLASSES)
    assert torch.equal(everything, torch.isin(target, torch.tensor(sorted(wanted))))


@pytest.mark.parametrize("kind", [ClassMix(), CopyPaste()])
def test_a_sample_without_labels_covers_nothing(kind: Mixing) -> None:
    assert not kind.mask(torch.full((8, 9), IGNORED, dtype=torch.uint8), CLASSES).any()


def test_more_than_255_classes_have_another_ignored_value() -> None:
    classes = Classes([f"class {k}" for k in range(300)])
    target = torch.tensor([[255, 65535]], dtype=torch.int32)
    assert ClassMix().mask(target, classes).tolist() == [[True, False]]
    assert CopyPaste(share=1.0).mask(target, classes).tolist() == [[True, False]]


def test_errors_name_the_cure() -> None:
    with pytest.raises(ValueError, match=r"p=1.5 is no probability"):
        CutMix(1.5)
    with pytest.raises(ValueError, match=r"share=-1 is no probability"):
        CopyPaste(share=-1)
    with pytest.raises(ValueError, match="no class 'cars' to copy and paste; choose from car"):
        CopyPaste(names=["cars"]).check(CLASSES)
    with pytest.raises(ValueError, match="let train_transform end in a crop of one size"):
        CutMix()(samples(0)[0], samples(0, (20, 31))[0], CLASSES)
