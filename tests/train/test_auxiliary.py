"""Auxiliary losses: summed as defined, trained, and gone from what is saved."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from conftest import TINY
from halves import halves, quiet_trainer
from torch import Tensor, nn

from segformer import SETR, MLAHead, PUPHead, SegFormer
from segformer.networks.setr import FCNHead
from segformer.train.auxiliary import Auxiliary
from segformer.train.optim import Poly, param_groups
from segformer.train.task import SegmentationTask

pytestmark = pytest.mark.filterwarnings(
    "ignore:.*does not have many workers", "ignore:.*number of training batches"
)


def mla() -> SETR:
    return SETR("tiny", 2, MLAHead, channels=8, img_size=32)


def test_the_loss_is_the_weighted_sum_of_all_heads() -> None:
    network = mla().double().eval()
    auxiliary = partial(
        Auxiliary,
        head=FCNHead,
        levels=(0, 1, 3),
        weights=(0.2, 0.3, 0.4),
        reads="decode_head.aggregation",
    )
    task = SegmentationTask(network, auxiliary=auxiliary).double().eval()
    task.log = lambda *args, **kwargs: None  # type: ignore[method-assign]
    images, target = torch.randn(2, 3, 32, 48, dtype=torch.double), torch.randint(2, (2, 32, 48))

    def at_full_size(logits: Tensor) -> Tensor:
        return F.cross_entropy(F.interpolate(logits, size=(32, 48), mode="bilinear"), target)

    features = network.backbone(images)
    maps = network.decode_head.aggregation(features)
    expected = at_full_size(network.decode_head(features))
    assert task.auxiliary is not None
    for weight, head, level in zip((0.2, 0.3, 0.4), task.auxiliary.heads, (0, 1, 3), strict=True):
        expected = expected + weight * at_full_size(head([maps[level]]))
    torch.testing.assert_close(
        task.training_step((images, target), 0), expected, rtol=0, atol=1e-10
    )
    assert not network.decode_head.aggregation._forward_hooks  # nobody watches between steps


def test_the_heads_learn_at_the_heads_rate_and_are_not_saved(tmp_path: Path) -> None:
    task = SegmentationTask(
        SegFormer(TINY, num_classes=2),
        optimizer=partial(torch.optim.SGD, lr=0.01, momentum=0.9),
        scheduler=partial(Poly, warmup_steps=0, power=0.9, min_lr=1e-4),
        auxiliary=partial(Auxiliary, head=partial(PUPHead, channels=8, scales=(4, 1))),
    )
    assert task.auxiliary is not None
    before = [parameter.clone() for parameter in task.auxiliary.parameters()]
    trainer = quiet_trainer(tmp_path, max_epochs=1)
    trainer.fit(task, halves())
    assert not any(
        torch.equal(a, b) for a, b in zip(before, task.auxiliary.parameters(), strict=True)
    )
    assert [group["initial_lr"] for group in trainer.optimizers[0].param_groups] == pytest.approx(
        [0.01, 0.01, 0.1]
    )
    task.network.save(tmp_path / "model.safetensors")
    again = SegFormer.from_pretrained(tmp_path / "model.safetensors")
    assert again.state_dict().keys() == task.network.state_dict().keys()
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    assert (
        SegFormer.from_pretrained(tmp_path / "last.ckpt").state_dict().keys()
        == task.network.state_dict().keys()
    )


def test_setrs_schedule_is_the_published_one() -> None:
    """mmcv's formula (base - min)(1 - t)^0.9 + min, for the heads with ten times the base."""
    network = mla()
    optimizer = torch.optim.SGD(param_groups(network), lr=0.01, momentum=0.9)
    for group in optimizer.param_groups:
        group["lr"] *= group["lr_mult"]
    scheduler = Poly(optimizer, 80_000, warmup_steps=0, power=0.9, min_lr=1e-4)
    for step in (0, 1, 40_000, 79_999, 80_000):
        scheduler.last_epoch = step - 1
        optimizer.step()
        scheduler.step()
        expected = [(base - 1e-4) * (1 - step / 80_000) ** 0.9 + 1e-4 for base in (0.01, 0.01, 0.1)]
        assert [group["lr"] for group in optimizer.param_groups] == pytest.approx(
            expected, rel=1e-12
        )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"weights": (0.2, 0.3)}, r"auxiliary weights \[0.2, 0.3\] for 3 heads"),
        ({"levels": (0, 4)}, r"levels=\[0, 4\] must be .* of 'backbone', from 0 to 3"),
        ({"levels": ()}, r"levels=\[\]"),
        ({"reads": "neck"}, "no module 'neck' with an attribute channels"),
        (
            {"reads": "decode_head.classifier"},
            "no module 'decode_head.classifier' with an attribute",
        ),
    ],
)
def test_errors(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Auxiliary(mla(), FCNHead, **options)


def test_a_head_is_a_module_of_its_own() -> None:
    assert isinstance(
        FCNHead([4, 8], 3)([torch.zeros(1, 4, 2, 2), torch.zeros(1, 8, 2, 2)]), Tensor
    )
    assert isinstance(Auxiliary(mla(), FCNHead).heads[0], nn.Module)
