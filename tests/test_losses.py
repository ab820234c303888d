import torch
import torch.nn.functional as F

from segformer.losses import CrossEntropy


def test_cross_entropy_is_torchs_at_full_size() -> None:
    logits, target = torch.randn(2, 3, 8, 8), torch.randint(0, 3, (2, 32, 32))
    target[:, :4] = 7
    full = F.interpolate(logits, size=(32, 32), mode="bilinear")
    for weight in (None, [1.0, 2.0, 3.0]):
        expected = F.cross_entropy(full, target, None if weight is None else torch.tensor(weight), ignore_index=7)
        torch.testing.assert_close(CrossEntropy(weight, ignore_index=7)(logits, target), expected)


def test_weights_are_no_part_of_a_checkpoint() -> None:
    assert CrossEntropy([1.0, 2.0]).state_dict() == {}
