"""Layouts without a package to compare with.

The tests write their files by the published tables, module by module, and read them back.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from conftest import randomized
from torch import Tensor, nn

from segformer import MiT, SegFormer, SegmentationModel
from segformer.checkpoint import read
from segformer.networks.all_mlp import MMSegHead

State = dict[str, Tensor]
IMAGES = torch.randn(1, 3, 64, 96, generator=torch.Generator().manual_seed(1))


def put(state: State, name: str, module: nn.Module) -> None:
    """Adds all tensors of a module under another name."""
    state.update({f"{name}.{key}": tensor.clone() for key, tensor in module.state_dict().items()})


def nvidia_backbone(model: SegmentationModel, prefix: str = "backbone.") -> State:
    state: State = {}
    for n, stage in enumerate(model.backbone.stages, start=1):
        put(state, f"{prefix}patch_embed{n}.proj", stage.embed.proj)
        put(state, f"{prefix}patch_embed{n}.norm", stage.embed.norm)
        for j, block in enumerate(stage.blocks):
            name = f"{prefix}block{n}.{j}"
            put(state, f"{name}.norm1", block.norm1)
            put(state, f"{name}.attn.q", block.attn.q)
            put(state, f"{name}.attn.kv", block.attn.kv)
            put(state, f"{name}.attn.proj", block.attn.proj)
            if n < 4:
                put(state, f"{name}.attn.sr", block.attn.reduce.conv)
                put(state, f"{name}.attn.norm", block.attn.reduce.norm)
            put(state, f"{name}.norm2", block.norm2)
            put(state, f"{name}.mlp.fc1", block.ffn.fc1)
            put(state, f"{name}.mlp.dwconv.dwconv", block.ffn.dwconv)
            put(state, f"{name}.mlp.fc2", block.ffn.fc2)
        put(state, f"{prefix}norm{n}", stage.norm)
    return state


def nvidia(model: SegmentationModel) -> State:
    state, head = nvidia_backbone(model), model.decode_head
    for n in range(4):
        put(state, f"decode_head.linear_c{n + 1}.proj", head.projections[n])
    put(state, "decode_head.linear_fuse.conv", head.fuse)
    put(state, "decode_head.linear_fuse.bn", head.norm)
    put(state, "decode_head.linear_pred", head.classifier)
    return state


def tao(model: SegmentationModel) -> State:
    state, head = nvidia_backbone(model, "model.backbone."), model.decode_head
    for n in range(4):
        put(state, f"model.decoder.linear_c{n + 1}.proj", head.projections[n])
    put(state, "model.decoder.linear_fuse.0", head.fuse)
    put(state, "model.decoder.linear_fuse.1", head.norm)
    put(state, "model.decoder.linear_pred", head.classifier)
    bias = torch.linspace(-1, 1, len(head.norm.running_mean))
    return state | {
        "model.decoder.linear_fuse.0.bias": bias,
        # The mean that BatchNorm would have measured in training with the bias.
        "model.decoder.linear_fuse.1.running_mean": head.norm.running_mean + bias,
    }


def mmsegmentation(model: SegmentationModel, prefix: str = "backbone.") -> State:
    state: State = {}
    for i, stage in enumerate(model.backbone.stages):
        put(state, f"{prefix}layers.{i}.0.projection", stage.embed.proj)
        put(state, f"{prefix}layers.{i}.0.norm", stage.embed.norm)
        for j, block in enumerate(stage.blocks):
            name, attn = f"{prefix}layers.{i}.1.{j}", block.attn
            put(state, f"{name}.norm1", block.norm1)
            state[f"{name}.attn.attn.in_proj_weight"] = torch.cat([attn.q.weight, attn.kv.weight])
            state[f"{name}.attn.attn.in_proj_bias"] = torch.cat([attn.q.bias, attn.kv.bias])
            put(state, f"{name}.attn.attn.out_proj", attn.proj)
            if i < 3:
                put(state, f"{name}.attn.sr", attn.reduce.conv)
                put(state, f"{name}.attn.norm", attn.reduce.norm)
            put(state, f"{name}.norm2", block.norm2)
            for layer, linear in (("0", block.ffn.fc1), ("4", block.ffn.fc2)):
                state[f"{name}.ffn.layers.{layer}.weight"] = linear.weight[:, :, None, None]
                state[f"{name}.ffn.layers.{layer}.bias"] = linear.bias
            put(state, f"{name}.ffn.layers.1", block.ffn.dwconv)
        put(state, f"{prefix}layers.{i}.2", stage.norm)
    head = model.decode_head
    for i in range(4):
        put(state, f"decode_head.convs.{i}.conv", head.projections[i].conv)
        put(state, f"decode_head.convs.{i}.bn", head.projections[i].norm)
    put(state, "decode_head.fusion_conv.conv", head.fuse)
    put(state, "decode_head.fusion_conv.bn", head.norm)
    put(state, "decode_head.conv_seg", head.classifier)
    return {key: tensor.detach() for key, tensor in state.items()}


def b0(
    head: type[nn.Module] | None = None,
    act: str = "gelu",
    norm_eps: float = 1e-6,
    embed_norm_eps: float = 1e-5,
    **model: Any,
) -> Any:
    """Returns a B0 with 4 classes, with the epsilons and activation of the layout's origin."""
    backbone = MiT("b0", norm_eps=norm_eps, embed_norm_eps=embed_norm_eps, act=act)
    batch_norm_eps = model.pop("batch_norm_eps", 1e-5)
    from segformer import AllMLPHead

    decode_head = (head or AllMLPHead)(backbone.channels, 4, norm_eps=batch_norm_eps)
    return randomized(SegmentationModel(backbone, decode_head, **model))


CASES: dict[str, tuple[Callable[[], Any], Callable[[Any], State], str | None]] = {
    "nvidia": (b0, nvidia, None),
    "sithu": (lambda: b0(norm_eps=1e-5), nvidia, "sithu"),
    "bubbliiiing": (
        lambda: b0(act="gelu_tanh", batch_norm_eps=1e-3, align_corners=True),
        nvidia,
        "bubbliiiing",
    ),
    "tao": (b0, tao, None),
    "mmsegmentation": (lambda: b0(MMSegHead, embed_norm_eps=1e-6), mmsegmentation, None),
}


@torch.inference_mode()
@pytest.mark.parametrize("wrapped", ["bare", "state_dict", "module.", "model_ema"])
@pytest.mark.parametrize("name", CASES)
def test_a_file_of_the_published_table_gives_the_same_model(
    name: str, wrapped: str, tmp_path: Path
) -> None:
    make, write, layout = CASES[name]
    model = make()
    state = write(model)
    content: Any = {
        "bare": state,
        "state_dict": {"state_dict": state, "optimizer": {"state": {}}, "meta": {"epoch": 3}},
        "module.": {f"module.{key}": tensor for key, tensor in state.items()},
        "model_ema": {
            "model": {key: torch.zeros_like(tensor) for key, tensor in state.items()},
            "model_ema": state,
            "epoch": 3,
        },
    }[wrapped]
    torch.save(content, tmp_path / "model.pth")
    for path in (tmp_path / "model.pth", tmp_path / "native.safetensors"):
        ours = SegFormer.from_pretrained(path, layout=layout if path.suffix == ".pth" else None)
        torch.testing.assert_close(ours(IMAGES), model(IMAGES), rtol=0, atol=1e-5)
        # Every epsilon and activation.
        assert str(ours) == str(model).replace("SegmentationModel", "SegFormer")
        assert ours.align_corners == model.align_corners
        ours.save(tmp_path / "native.safetensors")
    if layout is None:
        assert read(tmp_path / "model.pth").report.layout == name


def test_tensors_are_read_bit_for_bit(tmp_path: Path) -> None:
    for name, (make, write, layout) in CASES.items():
        model = make()
        torch.save(write(model), tmp_path / "model.pth")
        state = SegFormer.from_pretrained(tmp_path / "model.pth", layout=layout).state_dict()
        atol = 1e-6 if name == "tao" else 0  # adding and subtracting a bias rounds
        torch.testing.assert_close(state, model.state_dict(), rtol=0, atol=atol)


def test_the_folded_bias_is_reported_and_exact(tmp_path: Path) -> None:
    torch.save(tao(b0()), tmp_path / "tao.pth")
    report = read(tmp_path / "tao.pth").report
    assert (
        "folded",
        "decoder.linear_fuse.0.bias",
        "into the running mean of the BatchNorm after it",
    ) in report.rows
    assert report.is_harmless


@torch.inference_mode()
def test_mmsegmentations_head_is_the_published_one() -> None:
    """Each level passes convolution, BatchNorm and ReLU, and is upsampled.

    The levels are concatenated, finest first, fused and classified.
    """
    head = randomized(MMSegHead((8, 16, 20, 24), 5, channels=12)).double()
    features = [
        torch.randn(2, c, 32 // s, 48 // s).double()
        for c, s in zip((8, 16, 20, 24), (1, 2, 4, 8), strict=True)
    ]
    levels = [F.relu(p.norm(p.conv(x))) for x, p in zip(features, head.projections, strict=True)]
    levels = [F.interpolate(x, size=(32, 48), mode="bilinear", align_corners=False) for x in levels]
    expected = head.classifier(F.relu(head.norm(head.fuse(torch.cat(levels, 1)))))
    torch.testing.assert_close(head(features), expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize("write", [nvidia_backbone, mmsegmentation])
@pytest.mark.parametrize("with_classifier", [False, True])
def test_a_pretrained_backbone_gets_a_new_head(
    write: Any, with_classifier: bool, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model = b0(MMSegHead if write is mmsegmentation else None)
    state = {
        key: tensor
        for key, tensor in write(model, prefix="").items()
        if not key.startswith("decode_head.")
    }
    if with_classifier:
        state |= {"head.weight": torch.zeros(1000, 256), "head.bias": torch.zeros(1000)}
    torch.save({"state_dict": state}, tmp_path / "mit_b0.pth")
    with pytest.raises(
        ValueError,
        match=r"mit_b0.pth' holds a backbone without a decode head; pass "
        "num_classes=…",
    ):
        SegFormer.from_pretrained(tmp_path / "mit_b0.pth")
    ours = SegFormer.from_pretrained(tmp_path / "mit_b0.pth", num_classes=7)
    torch.testing.assert_close(
        ours.backbone.state_dict(), model.backbone.state_dict(), rtol=0, atol=0
    )
    assert ours(IMAGES).shape == (1, 7, 64, 96)
    assert "new      " in caplog.text
    assert "decode_head" in caplog.text
    assert ("the ImageNet classifier" in caplog.text) == with_classifier


def test_a_hint_names_the_layouts_with_the_same_names(tmp_path: Path) -> None:
    torch.save(nvidia(b0()), tmp_path / "b0.pth")
    assert "sithu, bubbliiiing" in str(read(tmp_path / "b0.pth").report)
    conv_seg = {
        "decode_head.conv_seg.weight": torch.zeros(4, 128, 1, 1),
        "decode_head.conv_seg.bias": torch.zeros(4),
    }
    torch.save(nvidia(b0()) | conv_seg, tmp_path / "b0.pth")
    assert "sithu" not in str(read(tmp_path / "b0.pth").report)


def test_the_class_names_of_mmsegmentation_are_read(tmp_path: Path) -> None:
    names, palette = ("a", "b", "c", "d"), [[k, k, k] for k in range(4)]
    for meta in (
        {"CLASSES": names, "PALETTE": palette},
        {"dataset_meta": {"classes": names, "palette": palette}},
    ):
        torch.save({"meta": meta, "state_dict": nvidia(b0())}, tmp_path / "b0.pth")
        classes = SegFormer.from_pretrained(tmp_path / "b0.pth").classes
        assert classes.names == names
        assert classes.colors[2] == (2, 2, 2)


def test_an_unknown_or_wrong_layout_is_refused(tmp_path: Path) -> None:
    torch.save(nvidia(b0()), tmp_path / "b0.pth")
    with pytest.raises(
        ValueError, match="unknown layout 'nvidea'; choose one of native, huggingface"
    ):
        SegFormer.from_pretrained(tmp_path / "b0.pth", layout="nvidea")
    with pytest.raises(
        ValueError,
        match="is in no mmsegmentation layout: its first keys are "
        "backbone.patch_embed1.proj.weight",
    ):
        SegFormer.from_pretrained(tmp_path / "b0.pth", layout="mmsegmentation")


def test_two_models_in_one_file_are_refused(tmp_path: Path) -> None:
    state = nvidia(b0())
    torch.save(
        {f"{who}.{key}": tensor for key, tensor in state.items() for who in ("student", "teacher")},
        tmp_path / "two.pth",
    )
    with pytest.raises(
        ValueError, match=r"holds 2 models, under 'student.', 'teacher.'; save only one of them"
    ):
        SegFormer.from_pretrained(tmp_path / "two.pth")
