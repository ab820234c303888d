"""Adapters of low rank are trained in place of the backbone's weights, and merged in the end."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import yaml
from conftest import TINY, randomized
from halves import small_config
from torch.nn import functional as F

from segformer import SegFormer, TimmBackbone
from segformer.cli import main
from segformer.train.lora import LoRA, without_adapters
from segformer.train.optim import layer_factors
from segformer.train.task import SegmentationTask

pytest.importorskip("peft", reason="needs the package peft")


def network() -> SegFormer:
    return randomized(SegFormer(TINY, num_classes=2))


def test_only_adapters_and_the_head_are_trained() -> None:
    task = SegmentationTask(network(), lora=LoRA(rank=2))
    trained = [name for name, p in task.network.named_parameters() if p.requires_grad]
    assert all("lora_" in name for name in trained if name.startswith("backbone"))
    assert {name for name, _ in task.network.named_parameters() if "decode_head" in name} < {
        *trained
    }
    linear = [m for m in network().backbone.modules() if type(m) is torch.nn.Linear]
    assert sum("lora_" in name for name in trained) == 2 * len(linear)


def test_a_merged_layer_is_the_papers_sum() -> None:
    """W + α/r · BA (arXiv 2106.09685, section 4.1), in plain layers."""
    model = network()
    LoRA(rank=2, alpha=6, modules=["fc1"]).adapt(model)
    name = "backbone.stages.2.blocks.1.ffn.fc1"
    layer = model.get_submodule(name)
    torch.nn.init.normal_(layer.lora_B["default"].weight)
    product = layer.lora_B["default"].weight @ layer.lora_A["default"].weight
    expected = layer.base_layer.weight + 6 / 2 * product
    merged = without_adapters(model)
    plain = merged.get_submodule(name)
    assert type(plain) is torch.nn.Linear
    torch.testing.assert_close(plain.weight, expected)
    assert merged.state_dict().keys() == network().state_dict().keys()
    images = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        logits = model.eval()(images), merged.eval()(images)
    assert F.mse_loss(*logits) < 1e-10
    assert without_adapters(merged) is merged


def test_layers_that_are_trained_whole_are_plain_in_the_end() -> None:
    model = network()
    LoRA(rank=2, modules=["fc1"], options={"modules_to_save": ["norm1"]}).adapt(model)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.normal_()
        images = torch.randn(1, 3, 64, 64)
        merged = without_adapters(model)
        assert merged.state_dict().keys() == network().state_dict().keys()
        norm = merged.backbone.stages[0].blocks[0].norm1
        assert type(norm) is type(network().backbone.stages[0].blocks[0].norm1)
        assert not torch.equal(norm.weight, network().backbone.stages[0].blocks[0].norm1.weight)
        logits = model.eval()(images), merged.eval()(images)
    torch.testing.assert_close(*logits, rtol=1e-3, atol=1e-3)


def test_adapters_of_a_frozen_stage_are_frozen() -> None:
    task = SegmentationTask(network(), lora=LoRA(), frozen=["backbone.stages.0"])
    trained = [name for name, p in task.network.named_parameters() if p.requires_grad]
    assert not any("stages.0." in name for name in trained)
    assert any("stages.1." in name for name in trained)


@pytest.mark.parametrize("name", [None, "pvt_v2_b0"])
def test_adapters_have_the_learning_rate_of_their_layer(name: str | None) -> None:
    model = network() if name is None else SegFormer(TimmBackbone(name), num_classes=2)
    before = layer_factors(model.backbone, 0.5)
    LoRA(rank=1).adapt(model)
    after = layer_factors(model.backbone, 0.5)
    for path, factor in after.items():
        layer = path.partition(".lora_")[0].replace(".base_layer", "").removesuffix(".weight")
        own = before.get(path) or before.get(f"{layer}.weight") or before[layer]
        assert factor == own, path


def test_a_run_writes_plain_weights_and_measures_them(tmp_path: Path) -> None:
    """With a frozen pattern that matches adapters, too, which are gone when it ends."""
    config = small_config(tmp_path, max_epochs=1)
    settings = yaml.safe_load(config.read_text())
    settings["model"] |= {"lora": {"rank": 2}, "frozen": ["backbone.stages.0.*"]}
    settings["trainer"]["enable_progress_bar"] = False
    config.write_text(yaml.safe_dump(settings))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path)
        main(["fit", "--config", str(config)])
        main(["validate", "--config", str(config), "--ckpt_path=best"])
        other = ["--ckpt_path=last", "--model.network.decoder_channels=8"]
        with pytest.raises(SystemExit, match="is of another network than the config's"):
            main(["validate", "--config", str(config), *other])
    folder, measured = (tmp_path / "runs" / "small" / f"version_{k}" for k in (0, 1))
    model = SegFormer.from_pretrained(folder / "model.safetensors")
    assert model.state_dict().keys() == network().state_dict().keys()
    checkpoint = folder / "checkpoints" / "last.ckpt"
    assert any("lora_A" in key for key in torch.load(checkpoint, weights_only=True)["state_dict"])
    scores = [json.loads((path / "results.json").read_text()) for path in (folder, measured)]
    # Merged weights round otherwise: a label may differ.
    assert scores[0]["val"]["miou"] == pytest.approx(scores[1]["val"]["miou"], abs=1e-3)


def test_layers_that_the_backbone_does_not_have_are_refused() -> None:
    for modules in (["query"], ["q", "query"]):
        with pytest.raises(ValueError, match=r"lora.modules: .* ends in 'query'; did you mean"):
            LoRA(modules=modules).adapt(network())
    without = SegFormer(TimmBackbone("resnet18"), num_classes=2, decoder_channels=8)
    with pytest.raises(ValueError, match=r"all-linear, .* no linear layer; name its .* conv1"):
        LoRA().adapt(without)
    LoRA(modules=["layer4.1.conv2", "conv1"]).adapt(without)
