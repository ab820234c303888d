"""SETR beside its published sizes, timm's ViT, and the layouts of its weights."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import torch.nn.functional as F
from conftest import randomized
from torch import Tensor, nn

from segformer import SETR, MLAHead, NaiveHead, PUPHead, SegFormer, SegmentationModel, TimmBackbone
from segformer.checkpoint import LAYOUTS, BackboneOnlyError, state_dict_as
from segformer.networks.setr import FCNHead, UpsamplingHead
from segformer.train.auxiliary import Auxiliary

HEADS = [NaiveHead, PUPHead, MLAHead]
IMAGES = torch.randn(1, 3, 64, 96, generator=torch.Generator().manual_seed(1))


def tiny(head: type[nn.Module], **options: Any) -> SETR:
    return randomized(SETR("tiny", 5, head, channels=16, img_size=64, **options))


# mmsegmentation's configurations for ADE20K. The authors' own differ by a 3×3 classifier in MLA
# (+ 0.6 M), a fourth auxiliary head in PUP (+ 2.4 M), and biases.
@pytest.mark.parametrize(
    ("head", "auxiliary", "published"),
    [
        (NaiveHead, partial(Auxiliary, head=partial(NaiveHead, scales=(4, 4))), 305.6),
        (PUPHead, partial(Auxiliary, head=partial(PUPHead, scales=(4, 1))), 317.3),
        (
            MLAHead,
            partial(Auxiliary, head=FCNHead, levels=(0, 1, 2, 3), reads="decode_head.aggregation"),
            309.6,
        ),
    ],
)
def test_parameters_are_the_published_ones(
    head: type[nn.Module], auxiliary: Callable[..., nn.Module], published: float
) -> None:
    with torch.device("meta"):
        model = SETR("large", 150, head, img_size=512)
        modules = [model, auxiliary(model)]
    count = sum(parameter.numel() for module in modules for parameter in module.parameters())
    assert count / 1e6 == pytest.approx(published, abs=0.1)


@pytest.mark.parametrize(
    ("head", "blocks"),
    [(NaiveHead, (10, 15, 20, 24)), (PUPHead, (10, 15, 20, 24)), (MLAHead, (6, 12, 18, 24))],
)
def test_the_large_one_reads_the_published_blocks(
    head: type[nn.Module], blocks: tuple[int, ...]
) -> None:
    with torch.device("meta"):
        model = SETR("large", 19, head)
    assert model.backbone.config["out_indices"] == [block - 1 for block in blocks]
    assert model.backbone.channels == (1024,) * 4


@pytest.mark.parametrize("size", [(384, 384), (96, 160)], ids=str)
def test_tokens_are_timms(size: tuple[int, int]) -> None:
    model = SETR("tiny", 5).double().eval()
    vit: Any = (
        timm.create_model("vit_tiny_patch16_384", num_classes=0, dynamic_img_size=True)
        .double()
        .eval()
    )
    vit.load_state_dict(model.backbone.model.model.state_dict(), strict=False)
    images = torch.randn(1, 3, *size, dtype=torch.double)
    x = vit.norm_pre(vit.patch_drop(vit._pos_embed(vit.patch_embed(images))))
    expected = []
    for number, block in enumerate(vit.blocks, start=1):
        x = block(x)
        if number in (5, 7, 10, 12):
            expected.append(x[:, 1:].mT.unflatten(2, [side // 16 for side in size]))
    torch.testing.assert_close(model.backbone(images), expected, rtol=0, atol=0)


def test_tokens_after_the_published_blocks_are_timms() -> None:
    """ViT-L's 24 blocks, at a sixteenth of its width."""
    narrow = {"embed_dim": 64, "num_heads": 4, "img_size": 64}
    backbone = (
        TimmBackbone("vit_large_patch16_384", out_indices=(9, 14, 19, 23), **narrow).double().eval()
    )
    vit: Any = timm.create_model("vit_large_patch16_384", num_classes=0, **narrow).double().eval()
    vit.load_state_dict(backbone.model.model.state_dict(), strict=False)
    images = torch.randn(2, 3, 64, 64, dtype=torch.double)
    found: dict[int, Tensor] = {}
    for number, block in enumerate(vit.blocks, start=1):
        block.register_forward_hook(
            lambda module, inputs, output, number=number: found.update({number: output})
        )
    with torch.no_grad():
        vit(images)
        for x, number in zip(backbone(images), (10, 15, 20, 24), strict=True):
            assert torch.equal(x, found[number][:, 1:].mT.unflatten(2, (4, 4)))


def test_without_its_class_token_the_transformer_sees_the_patches_alone() -> None:
    backbone = SETR("tiny", 5, MLAHead, img_size=64).backbone.double().eval()
    vit: Any = (
        timm.create_model(
            "vit_tiny_patch16_384", img_size=64, class_token=False, global_pool="avg", num_classes=0
        )
        .double()
        .eval()
    )
    vit.load_state_dict(backbone.model.model.state_dict(), strict=False)
    images = torch.randn(1, 3, 64, 64, dtype=torch.double)
    with torch.no_grad():
        expected = vit.forward_intermediates(images, indices=[2, 5, 8, 11], intermediates_only=True)
        torch.testing.assert_close(backbone(images), expected, rtol=0, atol=0)


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("size", [(64, 64), (65, 97), (128, 48)], ids=str)
def test_any_size_works(head: type[nn.Module], size: tuple[int, int]) -> None:
    model = tiny(head)
    images = torch.randn(2, 3, *size)
    assert model(images).shape == (2, 5, *size)
    with torch.no_grad():
        assert torch.equal(model.predict(images), model(images).argmax(1))


def test_every_parameter_has_a_gradient() -> None:
    for head in (PUPHead, MLAHead):
        model = tiny(head).train()
        model(IMAGES).sum().backward()
        assert [
            name for name, parameter in model.named_parameters() if parameter.grad is None
        ] == []


def plain_upsampling(head: UpsamplingHead, x: Tensor, enlarged: int) -> Tensor:
    """The paper's way: an enlargement after every layer, before the classifier."""
    x = F.layer_norm(
        x.permute(0, 2, 3, 1), (x.shape[1],), head.norm.weight, head.norm.bias, 1e-6
    ).permute(0, 3, 1, 2)
    for layer in head.layers:
        x = F.interpolate(layer(x), scale_factor=enlarged, mode="bilinear", align_corners=False)
    return head.classifier(x)


@pytest.mark.parametrize(("kind", "enlarged"), [(NaiveHead, 16), (PUPHead, 2)])
def test_the_last_enlargement_commutes_with_the_classifier(
    kind: type[UpsamplingHead], enlarged: int
) -> None:
    head = randomized(kind([12, 8], 5, 6)).double()
    features = [
        torch.randn(1, 12, 3, 4, dtype=torch.double),
        torch.randn(1, 8, 3, 4, dtype=torch.double),
    ]
    logits = F.interpolate(head(features), size=(48, 64), mode="bilinear", align_corners=False)
    torch.testing.assert_close(
        logits, plain_upsampling(head, features[-1], enlarged), rtol=0, atol=1e-12
    )


def test_multi_level_aggregation_sums_from_the_deepest_up() -> None:
    head = randomized(MLAHead([8, 8, 8, 8], 5, 6, level_channels=4)).double()
    features = [torch.randn(1, 8, 3, 4, dtype=torch.double) for _ in range(4)]
    total, expected = 0, []
    for level in (3, 2, 1, 0):
        total = total + head.aggregation.projections[level](
            head.aggregation.norms[level](features[level])
        )
        expected.append(head.aggregation.layers[level](total))
    torch.testing.assert_close(head.aggregation(features), expected[::-1], rtol=0, atol=1e-12)
    maps = [
        F.interpolate(head.levels[level](x), scale_factor=4, mode="bilinear")
        for level, x in zip((3, 2, 1, 0), expected, strict=True)
    ]
    torch.testing.assert_close(
        head(features), head.classifier(torch.cat(maps, 1)), rtol=0, atol=1e-12
    )


@pytest.mark.parametrize("head", HEADS)
def test_a_model_is_saved_and_read_back(head: type[nn.Module], tmp_path: Path) -> None:
    model = tiny(head)
    model.save(tmp_path / "setr.safetensors")
    again = SETR.from_pretrained(tmp_path / "setr.safetensors")
    assert isinstance(again, SETR)
    assert torch.equal(again(IMAGES), model(IMAGES))
    other = SETR.from_pretrained(tmp_path / "setr.safetensors", num_classes=3, in_channels=1)
    assert other(IMAGES[:, :1]).shape == (1, 3, 64, 96)


def put(state: dict[str, Tensor], name: str, module: nn.Module) -> None:
    state.update({f"{name}.{key}": tensor.clone() for key, tensor in module.state_dict().items()})


def fudan_backbone(model: SegmentationModel) -> dict[str, Tensor]:
    state = {
        f"backbone.{key}": tensor for key, tensor in model.backbone.model.model.state_dict().items()
    }
    state["backbone.norm.weight"] = torch.ones(192)
    state["auxiliary_head.conv_0.weight"] = torch.ones(1)
    return state


def fudan(model: SegmentationModel) -> dict[str, Tensor]:
    state, head = fudan_backbone(model), model.decode_head
    put(state, "decode_head.norm", head.norm)
    for place, layer in enumerate(head.layers):
        put(state, f"decode_head.conv_{place}", layer.conv)
        put(state, f"decode_head.syncbn_fc_{place}", layer.norm)
        bias = torch.linspace(-1, 1, layer.conv.out_channels)
        state[f"decode_head.conv_{place}.bias"] = bias
        state[f"decode_head.syncbn_fc_{place}.running_mean"] += (
            bias  # what training with the bias would have measured
        )
    put(state, f"decode_head.conv_{len(head.layers)}", head.classifier)
    return state


def fudan_mla(model: SegmentationModel) -> dict[str, Tensor]:
    state, head = fudan_backbone(model), model.decode_head
    vit = model.backbone.model.model
    state["backbone.cls_token"] = torch.ones(1, 1, 192)
    state["backbone.pos_embed"] = torch.cat([torch.ones(1, 1, 192), vit.pos_embed.detach()], 1)
    for place in range(4):
        put(state, f"backbone.norm_{place}", head.aggregation.norms[place])
        put(state, f"backbone.mla.mla_p{place + 2}_1x1.0", head.aggregation.projections[place].conv)
        put(state, f"backbone.mla.mla_p{place + 2}_1x1.1", head.aggregation.projections[place].norm)
        put(state, f"backbone.mla.mla_p{place + 2}.0", head.aggregation.layers[place].conv)
        put(state, f"backbone.mla.mla_p{place + 2}.1", head.aggregation.layers[place].norm)
        for layer, (conv, norm) in enumerate(((0, 1), (3, 4))):
            put(
                state, f"decode_head.mlahead.head{place + 2}.{conv}", head.levels[place][layer].conv
            )
            put(
                state, f"decode_head.mlahead.head{place + 2}.{norm}", head.levels[place][layer].norm
            )
    put(state, "decode_head.cls", head.classifier)
    state["decode_head.cls.weight"] = torch.cat(
        state["decode_head.cls.weight"].chunk(4, 1)[::-1], 1
    )  # shallowest first
    return state


@pytest.mark.parametrize(("head", "write"), [(NaiveHead, fudan), (PUPHead, fudan)])
def test_the_authors_layout_is_read(
    head: type[nn.Module], write: Callable[[SegmentationModel], Any], tmp_path: Path
) -> None:
    model = tiny(head)
    torch.save({"state_dict": write(model)}, tmp_path / "setr.pth")
    again = SETR.from_pretrained(tmp_path / "setr.pth")
    torch.testing.assert_close(again(IMAGES), model(IMAGES), rtol=0, atol=1e-5)


def test_the_authors_layout_of_mla_is_read_with_its_own_numerics(tmp_path: Path) -> None:
    model = tiny(MLAHead)
    model = randomized(
        SETR.compose(
            model.backbone,
            MLAHead([192] * 4, 5, 16, level_channels=8, kernel_size=3, align_corners=True),
        )
    )
    torch.save({"state_dict": fudan_mla(model)}, tmp_path / "setr.pth")
    again = SETR.from_pretrained(tmp_path / "setr.pth")
    assert again.decode_head.config == model.decode_head.config
    torch.testing.assert_close(again(IMAGES), model(IMAGES), rtol=0, atol=1e-5)


def mmsegmentations_logits(model: SegmentationModel, images: Tensor) -> Tensor:
    """Patches of the image padded right and below, bilinear positions, then the head."""
    vit, head, (height, width) = model.backbone.model.model, model.decode_head, images.shape[-2:]
    padded = F.pad(images, (0, -width % 16, 0, -height % 16))
    x = F.conv2d(padded, vit.patch_embed.proj.weight, vit.patch_embed.proj.bias, stride=16)
    grid = list(x.shape[-2:])
    class_place, places = vit.pos_embed[:, :1], vit.pos_embed[:, 1:].mT.unflatten(2, (4, 4))
    places = F.interpolate(places, size=grid, mode="bilinear", align_corners=False)
    x = x.flatten(2).mT + places.flatten(2).mT
    x = torch.cat([vit.cls_token + class_place, x], 1)
    for block in vit.blocks:
        x = block(x)
    x = x[:, 1:].mT.unflatten(2, grid).permute(0, 2, 3, 1)
    x = F.layer_norm(x, (192,), head.norm.weight, head.norm.bias, 1e-6).permute(0, 3, 1, 2)
    factor = 4 if isinstance(head, NaiveHead) else 2
    for layer in head.layers:
        x = layer(x)
        x = F.interpolate(x, scale_factor=factor, mode="bilinear", align_corners=False)
    x = head.classifier(x)
    return F.interpolate(x, size=(height, width), mode="bilinear", align_corners=False)


@torch.no_grad()
@pytest.mark.parametrize("size", [(96, 128), (65, 97)], ids=str)
@pytest.mark.parametrize("head", [NaiveHead, PUPHead])
def test_mmsegmentations_weights_compute_as_there_at_any_size(
    head: type[nn.Module],
    size: tuple[int, int],
    tmp_path: Path,
) -> None:
    model = tiny(head)
    vit: Any = model.backbone.model.model
    vit.pos_embed.normal_()
    layout = LAYOUTS["mmsegmentation_setr"]
    torch.save({"state_dict": state_dict_as(model, layout)}, tmp_path / "setr.pth")
    images = torch.randn(1, 3, *size)
    expected = mmsegmentations_logits(model, images)
    for path in (tmp_path / "setr.pth", tmp_path / "native.safetensors"):
        again = SETR.from_pretrained(path)
        torch.testing.assert_close(again(images), expected, rtol=0, atol=2e-5)
        again.save(tmp_path / "native.safetensors")


def test_what_fits_no_head_is_refused_by_name(tmp_path: Path) -> None:
    state = fudan(tiny(PUPHead))
    state["decode_head.conv_9.weight"] = state["decode_head.conv_1.weight"]
    torch.save(
        {key: tensor for key, tensor in state.items() if "conv_1" not in key}, tmp_path / "odd.pth"
    )
    with pytest.raises(
        ValueError, match=r"odd\.pth': the PUPHead has 5 layers where 4 are expected"
    ):
        SETR.from_pretrained(tmp_path / "odd.pth")
    torch.save(
        {f"backbone.{key}": tensor for key, tensor in state.items() if key.startswith("backbone.")},
        tmp_path / "vit.pth",
    )
    with pytest.raises((BackboneOnlyError, ValueError), match=r"vit\.pth"):
        SETR.from_pretrained(tmp_path / "vit.pth")


@pytest.mark.parametrize("num_classes", [None, 5])
@pytest.mark.parametrize("prefix", ["", "backbone."])
def test_a_transformer_without_a_head_is_refused_with_the_reason(
    num_classes: int | None, prefix: str, tmp_path: Path
) -> None:
    state = state_dict_as(tiny(PUPHead), LAYOUTS["mmsegmentation_setr"])
    vit = {
        prefix + key.removeprefix("backbone."): tensor
        for key, tensor in state.items()
        if key.startswith("backbone.")
    }
    torch.save(vit, tmp_path / "vit.pth")
    message = r"vit\.pth' holds a Vision Transformer without.*with or without num_classes=…; build"
    with pytest.raises(ValueError, match=message):
        SETR.from_pretrained(tmp_path / "vit.pth", num_classes)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: SETR("huge"), "unknown backbone 'huge'; choose one of large, base, deit, tiny"),
        (lambda: SETR("tiny", 5, nn.Identity), "has no BLOCKS"),
        (lambda: SETR("tiny", 0), "num_classes must be at least 1, got 0"),
        (lambda: PUPHead([], 5), "in_channels is empty"),
        (lambda: PUPHead([8], 5, scales=()), "scales must be at least 1"),
        (
            lambda: SETR("tiny", 5)(torch.randn(1, 3, 15, 64)),
            "images of 15×64 are too small.*16 pixels",
        ),
        (
            lambda: SETR("tiny", 5)(torch.randn(3, 64, 64)),
            r"images must be \(B, 3, H, W\), got shape \(3, 64, 64\)",
        ),
    ],
)
def test_errors(make: Callable[[], Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


def test_segformer_takes_a_plain_transformer_too() -> None:
    model = SegFormer(TimmBackbone("vit_tiny_patch16_224", img_size=64), num_classes=3).eval()
    assert model.backbone.config["out_indices"] == [2, 5, 8, 11]
    assert model.predict(IMAGES).shape == (1, 64, 96)
