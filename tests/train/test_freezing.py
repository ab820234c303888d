"""Frozen parts stay exactly as they were, and all others are trained."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from conftest import TINY
from halves import halves, quiet_trainer
from torch import Tensor, nn

from segformer import SegFormer, SegmentationModel
from segformer.networks.all_mlp import MMSegHead
from segformer.train.averaging import EMA
from segformer.train.freezing import freeze
from segformer.train.task import SegmentationTask


def network() -> SegmentationModel:
    """With a BatchNorm in each projection, beside the head's own, and drop path."""
    backbone = SegFormer(TINY, drop_path=0.5).backbone
    return SegmentationModel(backbone, MMSegHead(TINY.dims, 2, 16))


def state(model: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("names", "stay"),
    [
        (["backbone"], ("backbone.",)),
        (
            ["backbone.stages.0", "decode_head.projections.?", "decode_head.fuse.weight"],
            ("backbone.stages.0.", "decode_head.projections.", "decode_head.fuse."),
        ),
    ],
)
def test_a_run_changes_all_but_the_frozen_parts(
    names: list[str], stay: tuple[str, ...], tmp_path: Path
) -> None:
    """BatchNorm's statistics too; validation in between restores the modes of modules."""
    task = SegmentationTask(network(), frozen=names)
    before = state(task.network)
    trainer = quiet_trainer(tmp_path, max_epochs=2, num_sanity_val_steps=2)
    trainer.callbacks.append(EMA(0.5))
    trainer.fit(task, halves())
    after = state(task.network)
    for name, tensor in before.items():
        if "stages.3.blocks.0.attn.q" not in name:  # without gradient: the only key is one pixel
            assert torch.equal(after[name], tensor) == name.startswith(stay), name
    held = {id(p) for group in trainer.optimizers[0].param_groups for p in group["params"]}
    assert held == {
        id(p) for name, p in task.network.named_parameters() if not name.startswith(stay)
    }


def test_frozen_modules_stay_in_evaluation_mode() -> None:
    task = SegmentationTask(network(), frozen=["backbone.stages.1", "*.norm1"])
    for mode in (True, False, True):
        task.train(mode)
        stages = task.network.backbone.stages
        assert not any(module.training for module in stages[1].modules())
        assert not stages[0].blocks[0].norm1.training
        assert stages[0].blocks[0].norm2.training == mode
        assert task.network.decode_head.norm.training == mode


@pytest.mark.parametrize("names", [["decode_head.*norm*"], ["*.norm1", "decode_head"]])
def test_frozen_norms_stay_frozen_when_they_are_synchronized(names: list[str]) -> None:
    """``trainer.sync_batchnorm`` puts another module in the place of each BatchNorm."""
    task = nn.SyncBatchNorm.convert_sync_batchnorm(SegmentationTask(network(), frozen=names))
    task.train()
    modules = task.network.decode_head.modules()
    norms = [module for module in modules if isinstance(module, nn.SyncBatchNorm)]
    assert norms
    assert not any(norm.training for norm in norms)


def test_a_parameter_is_frozen_alone() -> None:
    model = network()
    assert freeze(model, ["decode_head.classifier.bias"]) == ()
    assert [n for n, p in model.named_parameters() if not p.requires_grad] == [
        "decode_head.classifier.bias"
    ]


def test_errors_name_the_cure() -> None:
    with pytest.raises(ValueError, match=r"no .*'backbone.stage.0'; did you .*backbone.stages.0"):
        freeze(network(), ["backbone.stage.0"])
    with pytest.raises(ValueError, match=r"'head\.\*'; did you mean .*decode_head"):
        freeze(network(), ["head.*"])
    with pytest.raises(ValueError, match="leaves nothing to train; remove a name"):
        freeze(network(), ["backbone", "decode_head"])
