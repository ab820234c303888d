"""Layer-wise learning-rate decay; timm's parameter groups are the judge."""

from __future__ import annotations

from typing import Any

import pytest
import timm
import torch
from conftest import TINY
from timm.optim import param_groups_layer_decay
from torch import nn

from segformer import SETR, SegFormer, TimmBackbone
from segformer.networks.initialization import without_values
from segformer.networks.mit import MiT
from segformer.train.optim import apply_lr_mult, layer_factors, param_groups

DECAY = 0.8
NAMES = [
    "vit_tiny_patch16_224",
    "pvt_v2_b0",
    "convnext_atto",
    "swin_tiny_patch4_window7_224",
    "resnet18",
    "mobilenetv3_small_100",
    "hrnet_w18_small",
    "mit_b0",
]


def timms_factors(name: str) -> dict[str, float]:
    """Of a whole model, by the names of its parameters with underscores in place of dots."""
    with without_values():
        model = timm.create_model(name)
    names = {id(parameter): path for path, parameter in model.named_parameters()}
    return {
        names[id(parameter)].replace(".", "_"): group["lr_scale"]
        for group in param_groups_layer_decay(model, layer_decay=DECAY)
        for parameter in group["params"]
    }


@pytest.mark.parametrize("name", NAMES)
def test_any_backbone_of_timm_has_timms_factors(name: str) -> None:
    with without_values():
        backbone = TimmBackbone(name)
    expected = timms_factors(name)
    found = layer_factors(backbone, DECAY)
    assert len(set(found.values())) > 3
    for path, factor in found.items():
        path = path.removeprefix("model.").removeprefix("model.").replace(".", "_")
        assert factor == pytest.approx(expected[path], rel=1e-12), path


def test_mit_has_the_factors_of_its_timm_model() -> None:
    expected = timms_factors("mit_b0")
    with without_values():
        found = layer_factors(MiT("b0"), DECAY)
    for path, factor in found.items():
        assert factor == pytest.approx(expected[path.replace(".", "_")], rel=1e-12), path


@pytest.mark.parametrize("build", [lambda: SegFormer(TINY), lambda: SETR("tiny", img_size=32)])
def test_rates_are_those_of_depth_and_head_and_norms_have_no_decay(build: Any) -> None:
    with without_values():
        model = build()
    names = {id(p): name for name, p in model.named_parameters()}
    adamw = torch.optim.AdamW(param_groups(model, 10.0, None, DECAY), lr=1e-3, weight_decay=0.01)
    settings = {
        names[id(p)]: (group["lr"], group["weight_decay"])
        for group in apply_lr_mult(adamw).param_groups
        for p in group["params"]
    }
    assert settings.keys() == set(names.values())
    factors = layer_factors(model.backbone, DECAY)
    for name, (lr, decay) in settings.items():
        if name.startswith("decode_head"):
            assert (lr, decay) == (pytest.approx(1e-2), 0.01), name
        else:
            factor = factors[name.removeprefix("backbone.")]
            assert lr == pytest.approx(1e-3 * factor), name
            assert decay == (0 if "norm" in name else 0.01), name


@pytest.mark.parametrize("name", ["pvt_v2_b0", "vit_tiny_patch16_224"])
def test_an_adapter_has_the_factor_of_the_layer_it_is_added_to(name: str) -> None:
    backbone = TimmBackbone(name)
    path = next(path for path, m in backbone.named_modules() if path.endswith("mlp.fc1"))
    before = layer_factors(backbone, DECAY)[f"{path}.weight"]
    parent, _, last = path.rpartition(".")
    wrapped = nn.ModuleDict({"base_layer": backbone.get_submodule(path), "A": nn.Linear(2, 2)})
    setattr(backbone.get_submodule(parent), last, wrapped)
    after = layer_factors(backbone, DECAY)
    assert {after[f"{path}.A.weight"], after[f"{path}.base_layer.weight"]} == {before}


def test_errors_name_the_cure() -> None:
    with pytest.raises(ValueError, match="'caformer_s18' has no method group_matcher"):
        layer_factors(TimmBackbone("caformer_s18"), DECAY)
    backbone = nn.Conv2d(3, 4, 1)
    for decay in (0.0, 1.5):
        with pytest.raises(ValueError, match=f"layer_decay={decay}"):
            layer_factors(backbone, decay)
    with pytest.raises(ValueError, match="Conv2d has no method group_matcher"):
        layer_factors(backbone, 0.9)
    assert set(layer_factors(backbone, 1.0).values()) == {1.0}
