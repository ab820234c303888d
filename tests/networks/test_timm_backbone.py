"""Any timm pyramid under any head, and MiT under the decoders of others."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from conftest import TINY, randomized
from torch import nn

from segformer import MiT, SegFormer, SegmentationModel, TimmBackbone
from segformer.networks.setr import PUPHead
from segformer.timm_models import TimmClassifier

FAMILIES = [
    "resnet18",
    "convnext_atto",
    "swin_tiny_patch4_window7_224",
    "pvt_v2_b0",
    "efficientvit_b0",
    "mobilenetv3_small_100",
    "efficientnet_b0",
    "regnety_002",
    "hrnet_w18_small",
    "edgenext_xx_small",
    "vit_tiny_patch16_224",
    "mit_b0",
]


@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_learns_and_predicts_at_any_size(name: str) -> None:
    model = SegFormer(TimmBackbone(name), num_classes=5, decoder_channels=32).train()
    images = torch.randn(2, 3, 65, 97)
    features = model.backbone(images)
    assert [x.shape[1] for x in features] == list(model.backbone.channels)
    sides = [-(-side // model.backbone.multiple) * model.backbone.multiple for side in (65, 97)]
    assert [list(x.shape[2:]) for x in features] == [
        [-(-side // s) for side in sides] for s in model.backbone.strides
    ]
    assert model.backbone.strides == tuple(sorted(model.backbone.strides))
    logits = model(images)
    assert logits.shape == (2, 5, 65, 97)
    logits.square().sum().backward()
    # The last map is read, hence every block; timm prunes what follows it for the classifier.
    assert [key for key, parameter in model.named_parameters() if parameter.grad is None] == []
    assert model.predict(images).shape == (2, 65, 97)


@pytest.mark.parametrize("name", ["resnet18", "pvt_v2_b0", "convnext_atto"])
def test_the_maps_are_timms(name: str) -> None:
    backbone = TimmBackbone(name).eval()
    oracle = timm.create_model(
        name, features_only=True, out_indices=backbone.config["out_indices"]
    ).eval()
    oracle.load_state_dict(backbone.model.state_dict())
    images = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        torch.testing.assert_close(backbone(images), oracle(images), rtol=0, atol=0)


def test_by_default_one_map_a_stride_is_read_from_4_on() -> None:
    assert TimmBackbone("resnet18").strides == (4, 8, 16, 32)
    assert TimmBackbone("resnet18", out_indices=(1, -1)).strides == (4, 32)
    assert TimmBackbone("vit_tiny_patch16_224").config["out_indices"] == [2, 5, 8, 11]


def test_an_image_between_two_multiples_keeps_its_proportions() -> None:
    """The image is interpolated to whole patches, not padded."""
    backbone = TimmBackbone("vit_tiny_patch16_224", img_size=64).eval()
    images = torch.randn(1, 3, 60, 90)
    whole = nn.functional.interpolate(images, size=(64, 96), mode="bilinear", align_corners=False)
    with torch.no_grad():
        torch.testing.assert_close(backbone(images), backbone(whole), rtol=0, atol=0)


def test_a_model_is_saved_and_read_back(tmp_path: Path) -> None:
    model = randomized(
        SegFormer(TimmBackbone("resnet18", output_stride=16), num_classes=5, decoder_channels=16)
    )
    images = torch.randn(1, 3, 64, 64)
    model.save(tmp_path / "resnet.safetensors")
    again = SegFormer.from_pretrained(tmp_path / "resnet.safetensors")
    assert again.backbone.config == model.backbone.config
    assert torch.equal(again(images), model(images))
    grey = SegFormer.from_pretrained(tmp_path / "resnet.safetensors", in_channels=1)
    images = images[:, :1].double()
    torch.testing.assert_close(
        grey.double()(images), model.double()(images.expand(-1, 3, -1, -1)), rtol=0, atol=1e-5
    )  # a float32 stem


@pytest.mark.parametrize("name", ["swin_tiny_patch4_window7_224", "eva02_tiny_patch14_224"])
def test_tables_that_no_file_holds_are_made_again(name: str, tmp_path: Path) -> None:
    model = SegFormer(TimmBackbone(name), num_classes=3, decoder_channels=8).eval()
    model.save(tmp_path / "model.safetensors")
    again = SegFormer.from_pretrained(tmp_path / "model.safetensors")
    images = torch.randn(1, 3, 129, 161)
    assert torch.equal(again(images), model(images))


def test_a_file_of_timms_weights_is_read(tmp_path: Path) -> None:
    oracle = timm.create_model("resnet18")
    torch.save(oracle.state_dict(), tmp_path / "resnet18.pth")
    backbone = TimmBackbone(
        "resnet18", pretrained=True, pretrained_cfg_overlay={"file": str(tmp_path / "resnet18.pth")}
    )
    state = oracle.state_dict()
    assert all(
        torch.equal(tensor, state[key]) for key, tensor in backbone.model.state_dict().items()
    )


def test_gradient_checkpointing_changes_nothing() -> None:
    for name in ("resnet18", "vit_tiny_patch16_224"):
        model = SegFormer(TimmBackbone(name), num_classes=3, decoder_channels=8).eval()
        images = torch.randn(1, 3, 64, 64)
        expected = torch.autograd.grad(model(images).sum(), model.decode_head.fuse.weight)
        model.set_grad_checkpointing()
        assert torch.equal(
            torch.autograd.grad(model(images).sum(), model.decode_head.fuse.weight)[0], expected[0]
        )


def test_other_heads_take_any_pyramid() -> None:
    backbone = TimmBackbone("resnet18")
    model = SegmentationModel(backbone, PUPHead(backbone.channels, 4, 8)).eval()
    assert model(torch.randn(1, 3, 64, 64)).shape == (1, 4, 64, 64)


def test_mit_under_torchvisions_decoders() -> None:
    from torchvision.models.segmentation.deeplabv3 import DeepLabHead
    from torchvision.ops import FeaturePyramidNetwork

    backbone = MiT(TINY).eval()
    features = backbone(torch.randn(1, 3, 64, 96))
    assert DeepLabHead(backbone.channels[-1], 7).eval()(features[-1]).shape == (1, 7, 2, 3)
    pyramid = FeaturePyramidNetwork(list(backbone.channels), 16)(
        OrderedDict(zip("abcd", features, strict=True))
    )
    assert [tuple(x.shape) for x in pyramid.values()] == [
        (1, 16, 16, 24),
        (1, 16, 8, 12),
        (1, 16, 4, 6),
        (1, 16, 2, 3),
    ]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: TimmBackbone("resnet5o"),
            "unknown timm model 'resnet5o'; did you mean .*resnet50",
        ),
        (
            lambda: TimmBackbone("resnet18", out_indices=(1, 7)),
            r"out_indices \(1, 7\) of 'resnet18', which has 5 feature maps",
        ),
        (lambda: TimmBackbone("resnet18", out_indices=()), r"out_indices \(\)"),
        (
            lambda: TimmBackbone("resnet18", out_indices=(4, 2)),
            r"out_indices=\(4, 2\) of 'resnet18' must be strictly increasing",
        ),
        (lambda: TimmBackbone("mlp_mixer_that_is_not"), "unknown timm model"),
        (
            lambda: TimmBackbone("gmixer_12_224", out_indices=None, class_token=False),
            "no class token|no feature maps",
        ),
        (lambda: TimmBackbone("resnet18", class_token=False), "'resnet18' has no class token"),
        (lambda: TimmBackbone("resnet18", in_channels=0), "in_channels must be at least 1, got 0"),
        (
            lambda: TimmBackbone("resnet18", no_such_argument=1),
            "'resnet18' does not take these arguments.*no_such_argument",
        ),
        (
            lambda: TimmBackbone("resnet18")(torch.randn(1, 3, 16, 64)),
            "images of 16×64 are too small.*32 pixels",
        ),
        (
            lambda: TimmBackbone("resnet18")(torch.zeros(1, 3, 64, 64, dtype=torch.uint8)),
            "images are torch.uint8, not floating point",
        ),
        (lambda: SegFormer(nn.Linear(2, 2), num_classes=5), "Linear has no channels"),
    ],
)
def test_errors(make: Callable[[], Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


def test_a_model_without_feature_maps_is_refused() -> None:
    timm.models.register_model(featureless_for_this_test)
    with pytest.raises(ValueError, match="'featureless_for_this_test' has no feature maps"):
        TimmBackbone("featureless_for_this_test")


def featureless_for_this_test(pretrained: bool = False, **options: Any) -> nn.Module:
    return nn.Linear(2, 2)


def test_weights_that_cannot_be_downloaded_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(*args: Any, **options: Any) -> None:
        raise FileNotFoundError("no connection.")

    monkeypatch.setattr("timm.models._builder.load_pretrained", offline)
    said = r"weights of timm's 'resnet18': no connection; connect .* set pretrained to false"
    with pytest.raises(FileNotFoundError, match=said):
        TimmBackbone("resnet18", pretrained=True)
    with pytest.raises(FileNotFoundError, match=said):
        TimmClassifier("resnet18", pretrained=True)
