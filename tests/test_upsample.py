import pytest
import torch
import torch.nn.functional as F

from segformer.upsample import upsample, upsample_argmax, upsample_cross_entropy, upsample_sum


def interpolate(x: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    return F.interpolate(x, size=size, mode="bilinear", align_corners=False)


def test_upsample_is_bilinear_with_half_pixel_centres() -> None:
    x = torch.tensor([[[[0.0, 1.0]]]])
    torch.testing.assert_close(upsample(x, (1, 4)), torch.tensor([[[[0.0, 0.25, 0.75, 1.0]]]]))


def test_sum_is_the_sum_of_the_upsampled_maps() -> None:
    maps = [torch.randn(2, 3, h, w) for h, w in ((9, 14), (5, 7), (3, 4))]
    torch.testing.assert_close(upsample_sum(maps), sum(interpolate(m, (9, 14)) for m in maps))


def test_argmax_is_the_argmax_of_the_upsampled_logits() -> None:
    logits = torch.randn(2, 5, 7, 9)
    assert torch.equal(upsample_argmax(logits, (30, 33)), interpolate(logits, (30, 33)).argmax(1))


@pytest.mark.parametrize("weight", [None, torch.tensor([1.0, 2.0, 0.5])], ids=["plain", "weighted"])
def test_cross_entropy_is_torchs_over_the_upsampled_logits(weight: torch.Tensor | None) -> None:
    logits = torch.randn(2, 3, 5, 6)
    target = torch.randint(0, 3, (2, 19, 24))
    target[0, :7] = 255
    expected = F.cross_entropy(interpolate(logits, (19, 24)), target, weight, ignore_index=255)
    torch.testing.assert_close(upsample_cross_entropy(logits, target, weight), expected)


def test_a_batch_without_labels_costs_nothing() -> None:
    logits = torch.randn(1, 3, 4, 4, requires_grad=True)
    loss = upsample_cross_entropy(logits, torch.full((1, 16, 16), 255))
    loss.backward()
    assert loss == 0
    assert not logits.grad.any()
