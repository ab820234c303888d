"""Mixed training samples depend on the run's seed, the epoch and the sample alone."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from halves import Halves, quiet_trainer

from segformer.data.mixing import ClassMix, CopyPaste, CutMix, Mixing
from segformer.data.transforms import TrainTransform
from segformer.train.data import SegmentationData
from segformer.train.order import Batches, Mixed, Seeded
from segformer.train.samples import Transformed

LENGTH = 8


def data(mixing: Mixing | None, workers: int = 0) -> SegmentationData:
    transform = TrainTransform((32, 32))
    return SegmentationData(
        Halves(LENGTH), Halves(2), transform, batch_size=4, num_workers=workers, mixing=mixing
    )


def batches(module: SegmentationData) -> list[Any]:
    return list(module.train_dataloader())


@pytest.mark.parametrize("mixing", [CutMix(1.0), ClassMix(1.0), CopyPaste(1.0)])
def test_mixed_batches_are_those_of_the_seed(mixing: Mixing) -> None:
    """With any number of workers, whatever the generator's state."""
    torch.manual_seed(1)
    one = batches(data(mixing))
    torch.manual_seed(2)
    two = batches(data(mixing, workers=1))
    torch.testing.assert_close(one, two, rtol=0, atol=0)
    plain = batches(data(None))
    assert not torch.equal(one[0][1], plain[0][1])
    assert one[0][0].dtype == plain[0][0].dtype
    assert one[0][1].dtype == plain[0][1].dtype
    assert type(one[0][1]) is torch.Tensor


def test_the_share_of_mixed_samples_is_p() -> None:
    samples = Transformed(Halves(400), TrainTransform((8, 8)))
    draws = [draw for number in range(4) for draw in Batches(400, 100, 0).batch(0, number)]
    plain, mixed = Seeded(samples), Mixed(samples, CutMix(0.25, alpha=1000.0), Halves.classes)
    changed = sum(not torch.equal(plain[draw][0], mixed[draw][0]) for draw in draws)
    assert changed / 400 == pytest.approx(0.25, abs=0.06)  # three standard deviations


def test_two_processes_mix_the_samples_that_one_mixes() -> None:
    one = Batches(23, 4, seed=0)
    two = [Batches(23, 2, seed=0, rank=rank, world_size=2) for rank in range(2)]
    for number in range(len(one)):
        assert one.batch(3, number) == [draw for share in two for draw in share.batch(3, number)]


def test_each_sample_is_mixed_with_another_one_and_taken_once_in_an_epoch() -> None:
    whole = Batches(12, 4, seed=0)
    draws = [draw for number in range(3) for draw in whole.batch(0, number)]
    assert sorted(draw.other for draw in draws) == list(range(12))
    assert all(draw.other != draw.index for draw in draws)


def test_the_files_of_a_batch_include_those_it_is_mixed_with() -> None:
    module = data(CutMix())
    module.trainer = quiet_trainer(".", max_steps=1)  # type: ignore[arg-type]
    module.trainer.fit_loop.max_batches = 2
    module.train_dataloader()
    draws = module.batches.batch(0, 1)
    names = module.names_of(1)
    assert set(names) == {f"sample {k}" for draw in draws for k in (draw.index, draw.other)}
    assert names[:4] == [f"sample {draw.index}" for draw in draws]


def test_an_unknown_class_is_refused_before_the_run() -> None:
    with pytest.raises(ValueError, match="no class 'brigt' to copy and paste; choose from bright"):
        data(CopyPaste(names=["brigt"]))
