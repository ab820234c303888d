from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest
import torch
from conftest import TINY, randomized
from safetensors.torch import save_file

from segformer import Classes, MiT, SegFormer
from segformer.checkpoint import NVIDIA, state_dict_as

IMAGES = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def b0() -> SegFormer:
    torch.manual_seed(0)
    return randomized(SegFormer("b0", num_classes=3))


def nvidia_file(model: SegFormer, path: Path, **changes: torch.Tensor | None) -> Path:
    state = {**state_dict_as(model, NVIDIA), **changes}
    torch.save({"state_dict": {key: tensor for key, tensor in state.items() if tensor is not None}}, path)
    return path


def test_a_saved_model_comes_back_whole(tiny: SegFormer, tmp_path: Path) -> None:
    tiny.classes = Classes(["a", "b", "c", "d", "e"], [(k, k, k) for k in range(5)])
    tiny.save(tmp_path / "model.safetensors")
    again = SegFormer.from_pretrained(tmp_path / "model.safetensors")
    assert type(again) is SegFormer
    assert not again.training
    assert again.classes == tiny.classes
    assert str(again) == str(tiny.eval())
    torch.testing.assert_close(again.state_dict(), tiny.state_dict(), rtol=0, atol=0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float64], ids=str)
def test_a_saved_model_keeps_its_precision(tiny: SegFormer, dtype: torch.dtype, tmp_path: Path) -> None:
    tiny.to(dtype).save(tmp_path / "model.safetensors")
    again = SegFormer.from_pretrained(tmp_path / "model.safetensors")
    torch.testing.assert_close(again.state_dict(), tiny.state_dict(), rtol=0, atol=0)


def test_nothing_random_is_built_before_reading(b0: SegFormer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    b0.save(tmp_path / "b0.safetensors")
    monkeypatch.setattr(
        "segformer.initialization.trunc_normal_", lambda weight, std: weight if weight.is_meta else pytest.fail("random weights")
    )
    SegFormer.from_pretrained(tmp_path / "b0.safetensors")


@pytest.mark.parametrize("wrapped", [True, False])
def test_nvidia_layout_by_the_published_names(b0: SegFormer, wrapped: bool, tmp_path: Path) -> None:
    """The names as published, written out here by hand for one block, one embedding and the head."""
    state = state_dict_as(b0, NVIDIA)
    stage, block = b0.backbone.stages[1], b0.backbone.stages[1].blocks[1]
    head = b0.decode_head
    by_hand = {
        "backbone.patch_embed2.proj.weight": stage.embed.proj.weight,
        "backbone.patch_embed2.norm.bias": stage.embed.norm.bias,
        "backbone.block2.1.norm1.weight": block.norm1.weight,
        "backbone.block2.1.attn.q.weight": block.attn.q.weight,
        "backbone.block2.1.attn.kv.bias": block.attn.kv.bias,
        "backbone.block2.1.attn.sr.weight": block.attn.reduce.conv.weight,
        "backbone.block2.1.attn.norm.weight": block.attn.reduce.norm.weight,
        "backbone.block2.1.attn.proj.bias": block.attn.proj.bias,
        "backbone.block2.1.mlp.fc1.weight": block.ffn.fc1.weight,
        "backbone.block2.1.mlp.dwconv.dwconv.weight": block.ffn.dwconv.weight,
        "backbone.block2.1.mlp.fc2.weight": block.ffn.fc2.weight,
        "backbone.norm2.weight": stage.norm.weight,
        "decode_head.linear_c2.proj.weight": head.projections[1].weight,
        "decode_head.linear_fuse.conv.weight": head.fuse.weight,
        "decode_head.linear_fuse.bn.running_mean": head.norm.running_mean,
        "decode_head.linear_pred.weight": head.classifier.weight,
    }
    for key, tensor in by_hand.items():
        assert torch.equal(state[key], tensor), key
    torch.save({"state_dict": state} if wrapped else state, tmp_path / "b0.pth")
    torch.testing.assert_close(SegFormer.from_pretrained(tmp_path / "b0.pth")(IMAGES), b0(IMAGES), rtol=0, atol=0)


def test_the_unused_conv_seg_is_dropped_by_name(b0: SegFormer, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    unused = {"decode_head.conv_seg.weight": torch.zeros(3, 128, 1, 1), "decode_head.conv_seg.bias": torch.zeros(3)}
    with caplog.at_level(logging.INFO, "segformer"):
        SegFormer.from_pretrained(nvidia_file(b0, tmp_path / "b0.pth", **unused))
    assert "dropped decode_head.conv_seg.weight, decode_head.conv_seg.bias" in caplog.text


def test_a_new_classifier_is_made_on_request_and_said_aloud(b0: SegFormer, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    b0.save(tmp_path / "b0.safetensors")
    model = SegFormer.from_pretrained(tmp_path / "b0.safetensors", num_classes=7)
    assert "3 classes: made a new, random classifier for 7" in caplog.text
    assert model(IMAGES).shape[1] == 7
    assert len(model.classes) == 7
    for key, tensor in model.state_dict().items():
        assert key.startswith("decode_head.classifier") or torch.equal(tensor, b0.state_dict()[key])
    assert 0 < model.decode_head.classifier.weight.std() < 1


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"backbone.norm1.weight": None}, "1 missing: backbone.norm1.weight"),
        ({"backbone.norm1.gamma": torch.zeros(1)}, "1 left over: backbone.norm1.gamma"),
        ({"backbone.block1.0.attn.q.weight": torch.zeros(32, 31)}, r"backbone.block1.0.attn.q.weight is \(32, 31\), not \(32, 32\)"),
        ({"backbone.patch_embed1.proj.weight": None}, "none of the known layouts .* its first keys are"),
        ({"backbone.block3.1.norm1.weight": None}, r"dims \(32, 64, 160, 256\) and depths \(2, 2, 1, 2\), which no variant has"),
    ],
)
def test_keys_that_do_not_fit_are_named(b0: SegFormer, changes: dict[str, torch.Tensor | None], said: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=said):
        SegFormer.from_pretrained(nvidia_file(b0, tmp_path / "b0.pth", **changes))


def test_files_that_hold_no_weights_are_refused_by_name(tiny: SegFormer, tmp_path: Path) -> None:
    class Code:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return print, ("this must never run",)

    def pickled(thing: object) -> bytes:
        torch.save(thing, tmp_path / "thing.pth")
        return (tmp_path / "thing.pth").read_bytes()

    tiny.save(tmp_path / "whole.safetensors")
    whole = (tmp_path / "whole.safetensors").read_bytes()
    torch.save(tiny.state_dict(), tmp_path / "whole.pth")
    files = {
        "empty.pth": (b"", "is empty"),
        "truncated.safetensors": (whole[: len(whole) // 2], "truncated or no safetensors file"),
        "truncated.pth": ((tmp_path / "whole.pth").read_bytes()[:-2000], "truncated or no checkpoint"),
        "page.pth": (b"<!doctype html><p>Sign in to download", "cannot read .* truncated or no checkpoint"),
        "code.pth": (pickled(Code()), "could run foreign code"),
        "number.pth": (pickled(3), "is not a state dict: .* it holds a int"),
    }
    for name, (content, said) in files.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ValueError, match=said) as refusal:
            SegFormer.from_pretrained(tmp_path / name)
        assert name in str(refusal.value)


def test_foreign_weights_are_refused_with_their_first_keys(tmp_path: Path) -> None:
    save_file({"conv1.weight": torch.zeros(1), "fc.bias": torch.zeros(1)}, tmp_path / "resnet.safetensors")
    with pytest.raises(ValueError, match="known layouts .* first keys are conv1.weight, fc.bias"):
        SegFormer.from_pretrained(tmp_path / "resnet.safetensors")


def test_missing_files_and_folders_are_named(tiny: SegFormer, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no file or folder 'nowhere.pth'; a Hugging Face id would read"):
        SegFormer.from_pretrained("nowhere.pth")
    with pytest.raises(FileNotFoundError, match="to write 'model.safetensors' into; make it first"):
        tiny.save(tmp_path / "nowhere" / "model.safetensors")
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(FileNotFoundError, match="no model.safetensors or pytorch_model.bin"):
        SegFormer.from_pretrained(tmp_path)


def test_a_failed_save_keeps_the_file_that_was_there(tiny: SegFormer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny.save(tmp_path / "model.safetensors")
    before = (tmp_path / "model.safetensors").read_bytes()

    def full_disk(state: object, path: Path, metadata: object) -> None:
        Path(path).write_bytes(b"half a fi")
        raise OSError("No space left on device")

    monkeypatch.setattr("segformer.checkpoint.save_file", full_disk)
    with pytest.raises(OSError, match="No space left"):
        tiny.save(tmp_path / "model.safetensors")
    assert (tmp_path / "model.safetensors").read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["model.safetensors"]


def test_a_hugging_face_config_that_contradicts_its_weights_is_refused(tmp_path: Path) -> None:
    from transformers import SegformerConfig, SegformerForSemanticSegmentation

    SegformerForSemanticSegmentation(SegformerConfig(num_labels=5)).save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    for change, said in (
        ({"id2label": {"0": "only one"}}, "5 classes but its config.json names 1 in id2label"),
        ({"hidden_act": "relu"}, "hidden_act 'relu' is none of gelu, gelu_new"),
        ({"mlp_ratios": [8, 8, 4, 4]}, r"mlp_ratios \[8, 8, 4, 4\] differ from stage to stage"),
        ({"strides": [4, 2, 2, 1]}, r"strides \[4, 2, 2, 1\]; MiT's are \[4, 2, 2, 2\]"),
        ({"depths": [2, 2, 3, 2]}, "2[0-9] missing: segformer.encoder.block.2.2"),
        (None, r"config.json.* is no JSON"),
    ):
        (tmp_path / "config.json").write_text(json.dumps(config | change) if change else "{")
        with pytest.raises(ValueError, match=said):
            SegFormer.from_pretrained(tmp_path)
    (tmp_path / "config.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"no .*config.json', which tells the sizes"):
        SegFormer.from_pretrained(tmp_path)


def test_heads_and_activation_of_a_hugging_face_config_are_obeyed(tmp_path: Path) -> None:
    """Neither leaves a trace in the shapes."""
    from transformers import SegformerConfig, SegformerForSemanticSegmentation

    config = SegformerConfig(num_labels=2, num_attention_heads=[2, 4, 5, 4], hidden_act="gelu_new")
    peer = randomized(SegformerForSemanticSegmentation(config))
    peer.save_pretrained(tmp_path)
    ours = SegFormer.from_pretrained(tmp_path)
    torch.testing.assert_close(ours.decode_head(ours.backbone(IMAGES)), peer(pixel_values=IMAGES).logits, rtol=0, atol=1e-5)


def test_a_runs_folder_is_read(tiny: SegFormer, tmp_path: Path) -> None:
    tiny.save(tmp_path / "model.safetensors")
    torch.testing.assert_close(SegFormer.from_pretrained(tmp_path).state_dict(), tiny.state_dict(), rtol=0, atol=0)


def test_what_could_not_be_read_back_is_not_saved(tiny: SegFormer, tmp_path: Path) -> None:
    class MyMiT(MiT):
        pass

    tiny.backbone = MyMiT(TINY)
    with pytest.raises(ValueError, match="a backbone of class MyMiT cannot be saved, since from_pretrained knows only MiT, AllMLPHead"):
        tiny.save(tmp_path / "model.safetensors")


def test_an_unknown_hub_id_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(FileNotFoundError, match="no file or folder 'runs/typo', and as a Hugging Face id: "):
        SegFormer.from_pretrained("runs/typo")


def test_a_custom_size_is_read_from_a_hugging_face_config(tmp_path: Path) -> None:
    from transformers import SegformerConfig, SegformerForSemanticSegmentation

    config = SegformerConfig(
        num_labels=2,
        hidden_sizes=list(TINY.dims),
        depths=list(TINY.depths),
        num_attention_heads=list(TINY.heads),
        decoder_hidden_size=TINY.decoder_channels,
        num_channels=4,
    )
    peer = randomized(SegformerForSemanticSegmentation(config))
    peer.save_pretrained(tmp_path)
    images = torch.randn(1, 4, 64, 64)
    ours = SegFormer.from_pretrained(tmp_path)
    torch.testing.assert_close(ours.decode_head(ours.backbone(images)), peer(pixel_values=images).logits, rtol=0, atol=1e-5)
