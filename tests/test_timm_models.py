"""timm's own generic tests for the models that this package registers."""

from __future__ import annotations

from pathlib import Path

import pytest
import timm
import torch
from conftest import randomized
from timm.models import FeatureInfo

from segformer import VARIANTS, SegFormer
from segformer.checkpoint import LAYOUTS, state_dict_as

NAMES = [f"mit_{variant}" for variant in VARIANTS]
SMALL = NAMES[:2]


def test_all_variants_are_registered() -> None:
    assert timm.list_models("mit_*") == NAMES
    assert timm.list_pretrained("mit_*") == [f"{name}.nvidia_in1k" for name in NAMES]


# Published counts of the encoders' parameters
@pytest.mark.parametrize(
    ("name", "count"),
    list(
        zip(
            NAMES,
            (3_319_392, 13_151_424, 24_196_288, 44_072_128, 60_842_688, 81_443_008),
            strict=True,
        )
    ),
)
def test_parameter_count_is_the_published_one_plus_the_classifier(name: str, count: int) -> None:
    with torch.device("meta"):
        model = timm.create_model(name)
    assert sum(p.numel() for p in model.parameters()) == count + 1000 * (model.num_features + 1)


@torch.no_grad()
@pytest.mark.parametrize("name", SMALL)
@pytest.mark.parametrize("size", [224, 97])
def test_forward(name: str, size: int) -> None:
    outputs = timm.create_model(name).eval()(torch.randn(2, 3, size, size))
    assert outputs.shape == (2, 1000)
    assert outputs.isfinite().all()


@pytest.mark.parametrize("name", SMALL)
def test_backward_reaches_every_parameter(name: str) -> None:
    model = timm.create_model(name, num_classes=42).train()
    model(torch.randn(2, 3, 64, 64)).mean().backward()
    assert [n for n, p in model.named_parameters() if p.grad is None] == []
    assert sum(p.grad.isnan().sum() for p in model.parameters()) == 0


@torch.no_grad()
@pytest.mark.parametrize("name", SMALL)
def test_default_config_is_correct(name: str) -> None:
    model = randomized(timm.create_model(name))
    config = model.default_cfg
    images = torch.randn(1, *config["input_size"])
    features = model.forward_features(images)
    assert features.shape[-2:] == config["pool_size"]
    assert f"{config['classifier']}.weight" in model.state_dict()
    assert f"{config['first_conv']}.weight" in model.state_dict()
    assert model.get_classifier().out_features == 1000
    assert model.forward_head(features, pre_logits=True).shape == (1, model.head_hidden_size)
    torch.testing.assert_close(model.forward_head(features), model(images))
    for change in (lambda: model.reset_classifier(0), lambda: None):
        change()
        assert model(images).shape == (1, model.num_features)
    model.reset_classifier(0, "")
    assert model(images).shape[-2:] == config["pool_size"]
    model.reset_classifier(7, "avg")
    assert model(images).shape == (1, 7)
    assert (
        timm.create_model(name, num_classes=0, global_pool="")(images).shape[-2:]
        == config["pool_size"]
    )
    with pytest.raises(ValueError, match="global_pool='max'; choose 'avg' or ''"):
        model.reset_classifier(7, "max")


@torch.no_grad()
@pytest.mark.parametrize("name", SMALL)
@pytest.mark.parametrize("out_indices", [(0, 1, 2, 3), (1, 3), (0, 2), (-2, -1)], ids=str)
def test_features_only_is_the_pyramid(name: str, out_indices: tuple[int, ...]) -> None:
    model = timm.create_model(name, features_only=True, out_indices=out_indices, in_chans=4).eval()
    images = torch.randn(1, 4, 96, 128)
    features = model(images)
    assert len(features) == len(out_indices)
    for x, channels, reduction in zip(
        features, model.feature_info.channels(), model.feature_info.reduction(), strict=True
    ):
        assert x.shape == (1, channels, 96 // reduction, 128 // reduction)
    channels = SegFormer(name.removeprefix("mit_"), num_classes=2).backbone.channels
    assert model.feature_info.channels() == [channels[k] for k in out_indices]


@torch.no_grad()
@pytest.mark.parametrize("name", SMALL)
def test_forward_intermediates(name: str) -> None:
    model = timm.create_model(name).eval()
    info = FeatureInfo(model.feature_info, len(model.feature_info))
    images = torch.randn(2, 3, 96, 96)
    output, intermediates = model.forward_intermediates(images)
    torch.testing.assert_close(output, model.forward_features(images))
    assert [x.shape for x in intermediates] == [
        (2, c, 96 // r, 96 // r) for c, r in zip(info.channels(), info.reduction(), strict=True)
    ]
    only = model.forward_intermediates(
        images, indices=[1], stop_early=True, intermediates_only=True
    )
    torch.testing.assert_close(only, intermediates[1:2])
    model.prune_intermediate_layers([1])
    assert len(model.stages) == 2
    torch.testing.assert_close(model.forward_features(images), intermediates[1])
    with pytest.raises(ValueError, match="output_fmt='NLC'; MiT's maps are NCHW"):
        model.forward_intermediates(images, output_fmt="NLC")


@pytest.mark.parametrize("name", SMALL)
def test_gradient_checkpointing_changes_nothing(name: str) -> None:
    model = timm.create_model(name)
    images = torch.randn(1, 3, 64, 64)
    expected = torch.autograd.grad(model(images).sum(), list(model.parameters()))
    model.set_grad_checkpointing()
    torch.testing.assert_close(
        torch.autograd.grad(model(images).sum(), list(model.parameters())), expected
    )


@torch.no_grad()
def test_channels_last_changes_nothing() -> None:
    model = randomized(timm.create_model("mit_b0"))
    images = torch.randn(1, 3, 64, 96)
    expected = model(images)
    model = model.to(memory_format=torch.channels_last)
    torch.testing.assert_close(
        model(images.contiguous(memory_format=torch.channels_last)), expected
    )


@pytest.mark.parametrize("name", SMALL)
def test_parameter_groups_cover_every_parameter(name: str) -> None:
    from timm.models import group_parameters

    model = timm.create_model(name)
    for coarse in (False, True):
        groups = group_parameters(model, model.group_matcher(coarse))
        assert sorted(name for group in groups.values() for name in group) == sorted(
            name for name, _ in model.named_parameters()
        )
        assert len(groups) > 4


def test_layer_decay_puts_a_stages_norm_after_its_blocks() -> None:
    from timm.optim import param_groups_layer_decay

    model = timm.create_model("mit_b0")
    names = {id(p): name for name, p in model.named_parameters()}
    scale = {
        names[id(p)]: group["lr_scale"]
        for group in param_groups_layer_decay(model, layer_decay=0.5)
        for p in group["params"]
    }
    order = [
        "stages.0.embed.proj",
        "stages.0.blocks.0.attn.q",
        "stages.0.blocks.1.attn.q",
        "stages.1.embed.proj",
        "stages.3.norm",
        "head",
    ]
    scales = [scale[f"{name}.weight"] for name in order]
    assert scales == sorted(set(scales))


def test_device_and_precision_are_timms_arguments() -> None:
    model = timm.create_model("mit_b0", device="meta", dtype=torch.float16)
    assert {(p.device.type, p.dtype) for p in model.parameters()} == {("meta", torch.float16)}


@torch.no_grad()
def test_it_exports() -> None:
    """With torch.export; TorchScript is deprecated and cannot compile einops."""
    model = randomized(timm.create_model("mit_b0"))
    images = torch.randn(1, 3, 64, 64)
    torch.testing.assert_close(
        torch.export.export(model, (images,)).module()(images), model(images)
    )


@torch.no_grad()
def test_torch_fx_extracts_features() -> None:
    from timm.models import FeatureGraphNet

    model = randomized(timm.create_model("mit_b0"))
    images = torch.randn(1, 3, 64, 96)
    expected = model.forward_intermediates(images, indices=[1, 3], intermediates_only=True)
    model.feature_info = FeatureInfo(model.feature_info, (1, 3))
    torch.testing.assert_close(FeatureGraphNet(model, (1, 3))(images), expected)


@torch.no_grad()
@pytest.mark.parametrize("decoder", ["Unet", "FPN", "UPerNet"])
def test_smps_decoders_accept_it(decoder: str) -> None:
    import segmentation_models_pytorch as smp

    model = getattr(smp, decoder)("tu-mit_b0", encoder_weights=None, classes=5).eval()
    assert model(torch.randn(1, 3, 64, 96)).shape == (1, 5, 64, 96)


@torch.no_grad()
@pytest.mark.parametrize("layout", ["native", "nvidia", "huggingface", "huggingface_in_memory"])
def test_pretrained_weights_of_any_layout(layout: str, tmp_path: Path) -> None:
    encoder = randomized(timm.create_model("mit_b0"))
    model = SegFormer("b0", num_classes=2)
    model.backbone.load_state_dict(
        {key: tensor for key, tensor in encoder.state_dict().items() if not key.startswith("head.")}
    )
    state = {
        key: tensor
        for key, tensor in state_dict_as(model, LAYOUTS[layout]).items()
        if "decode_head" not in key
    }
    classifier = {
        f"{LAYOUTS[layout].classifier}.{key}": tensor
        for key, tensor in encoder.head.state_dict().items()
    }
    torch.save(state | classifier, tmp_path / "mit_b0.pth")
    overlay = {"file": str(tmp_path / "mit_b0.pth")}

    again = timm.create_model("mit_b0", pretrained=True, pretrained_cfg_overlay=overlay)
    torch.testing.assert_close(again.state_dict(), encoder.state_dict(), rtol=0, atol=0)
    torch.save(
        state_dict_as(model, LAYOUTS[layout]), tmp_path / "whole.pth"
    )  # a segmentation model's encoder
    whole = timm.create_model(
        "mit_b0",
        pretrained=True,
        pretrained_cfg_overlay={"file": str(tmp_path / "whole.pth")},
        num_classes=0,
    )
    torch.testing.assert_close(whole.state_dict(), model.backbone.state_dict(), rtol=0, atol=0)
    finetune = timm.create_model(
        "mit_b0", pretrained=True, pretrained_cfg_overlay=overlay, num_classes=5, in_chans=1
    )
    stem = encoder.stages[0].embed.proj.weight.sum(1, keepdim=True)
    torch.testing.assert_close(finetune.stages[0].embed.proj.weight, stem)
    pyramid = timm.create_model(
        "mit_b0", pretrained=True, pretrained_cfg_overlay=overlay, features_only=True
    ).eval()
    images = torch.randn(1, 3, 64, 64)
    expected = again.eval().forward_intermediates(images, intermediates_only=True)
    torch.testing.assert_close(pyramid(images), expected)


def test_a_classifier_needs_pooled_features() -> None:
    message = "global_pool='' and num_classes=10, but the classifier needs pooled features"
    with pytest.raises(ValueError, match=message):
        timm.create_model("mit_b0", num_classes=10, global_pool="")
    model = timm.create_model("mit_b0", num_classes=0, global_pool="")
    with pytest.raises(ValueError, match=message):
        model.reset_classifier(10)
    model.reset_classifier(10, "avg")
    assert model(torch.randn(1, 3, 64, 64)).shape == (1, 10)
