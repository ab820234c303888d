from __future__ import annotations

import json
import logging
import re
import shutil
from dataclasses import replace
from pathlib import Path

import processes
import pytest
import torch
from conftest import TINY, randomized, tiny_peer
from safetensors.torch import save_file

from segformer import VARIANTS, Classes, MiT, SegFormer, SegmentationModel, Variant
from segformer.checkpoint import LAYOUTS, read, state_dict_as
from segformer.networks.all_mlp import MMSegHead

IMAGES = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def b0() -> SegFormer:
    torch.manual_seed(0)
    return randomized(SegFormer("b0", num_classes=3))


def nvidia_file(model: SegFormer, path: Path, **changes: torch.Tensor | None) -> Path:
    state = {**state_dict_as(model, LAYOUTS["nvidia"]), **changes}
    torch.save(
        {"state_dict": {key: tensor for key, tensor in state.items() if tensor is not None}}, path
    )
    return path


def test_a_saved_model_is_read_back_unchanged(tiny: SegFormer, tmp_path: Path) -> None:
    tiny.classes = Classes(["a", "b", "c", "d", "e"], [(k, k, k) for k in range(5)])
    tiny.save(tmp_path / "model.safetensors")
    again = SegFormer.from_pretrained(tmp_path / "model.safetensors")
    assert type(again) is SegFormer
    assert not again.training
    assert again.classes == tiny.classes
    assert str(again) == str(tiny.eval())
    torch.testing.assert_close(again.state_dict(), tiny.state_dict(), rtol=0, atol=0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float64], ids=str)
def test_a_saved_model_keeps_its_precision(
    tiny: SegFormer, dtype: torch.dtype, tmp_path: Path
) -> None:
    tiny.to(dtype).save(tmp_path / "model.safetensors")
    again = SegFormer.from_pretrained(tmp_path / "model.safetensors")
    torch.testing.assert_close(again.state_dict(), tiny.state_dict(), rtol=0, atol=0)


def test_nothing_random_is_built_before_reading(
    b0: SegFormer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    b0.save(tmp_path / "b0.safetensors")
    monkeypatch.setattr(
        "segformer.networks.initialization.trunc_normal_",
        lambda weight, std: weight if weight.is_meta else pytest.fail("random weights"),
    )
    SegFormer.from_pretrained(tmp_path / "b0.safetensors")


def test_the_unused_conv_seg_is_dropped_and_reported(
    b0: SegFormer, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    unused = {
        "decode_head.conv_seg.weight": torch.zeros(3, 128, 1, 1),
        "decode_head.conv_seg.bias": torch.zeros(3),
    }
    with caplog.at_level(logging.INFO, "segformer"):
        SegFormer.from_pretrained(nvidia_file(b0, tmp_path / "b0.pth", **unused))
    assert re.search(
        "dropped +decode_head.conv_seg.weight, decode_head.conv_seg.bias +mmsegmentation's default",
        caplog.text,
    )


def test_a_new_classifier_is_made_on_request_and_reported(
    b0: SegFormer, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    b0.save(tmp_path / "b0.safetensors")
    model = SegFormer.from_pretrained(tmp_path / "b0.safetensors", num_classes=7)
    assert (
        "decode_head.classifier  random weights: num_classes=7, but the file has 3 classes"
        in caplog.text
    )
    assert model(IMAGES).shape[1] == 7
    assert len(model.classes) == 7
    for key, tensor in model.state_dict().items():
        assert key.startswith("decode_head.classifier") or torch.equal(tensor, b0.state_dict()[key])
    assert 0 < model.decode_head.classifier.weight.std() < 1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"backbone.norm1.weight": None}, "1 missing: backbone.norm1.weight"),
        ({"backbone.norm1.gamma": torch.zeros(1)}, "1 left over: backbone.norm1.gamma"),
        (
            {"backbone.block1.0.attn.q.weight": torch.zeros(32, 31)},
            r"backbone.block1.0.attn.q.weight is \(32, 31\), not \(32, 32\)",
        ),
        (
            {"backbone.patch_embed1.proj.weight": None},
            "none of the known layouts: its first keys are backbone.patch_embed1.proj.bias",
        ),
        (
            {"backbone.block3.1.norm1.weight": None},
            r"dims \(32, 64, 160, 256\) and depths \(2, 2, 1, 2\), which no variant has",
        ),
    ],
)
def test_keys_that_do_not_fit_are_named(
    b0: SegFormer, changes: dict[str, torch.Tensor | None], message: str, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=message):
        SegFormer.from_pretrained(nvidia_file(b0, tmp_path / "b0.pth", **changes))


def test_files_without_weights_are_refused_with_their_name(tiny: SegFormer, tmp_path: Path) -> None:
    class Code:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return print, ("this must never run",)

    def pickled(thing: object, **options: bool) -> bytes:
        torch.save(thing, tmp_path / "thing.pth", **options)
        return (tmp_path / "thing.pth").read_bytes()

    tiny.save(tmp_path / "whole.safetensors")
    whole = (tmp_path / "whole.safetensors").read_bytes()
    torch.save(tiny.state_dict(), tmp_path / "whole.pth")
    torch.save(tiny.state_dict(), tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    files = {
        "empty.pth": (b"", "is empty"),
        "truncated.safetensors": (whole[: len(whole) // 2], "truncated or no safetensors file"),
        "truncated.pth": (
            (tmp_path / "whole.pth").read_bytes()[:-2000],
            "truncated or no checkpoint",
        ),
        "truncated_old.pth": (
            (tmp_path / "old.pth").read_bytes()[:-2000],
            "truncated or no checkpoint",
        ),
        "numbers.pth": (
            pickled({"backbone.norm": 3}),
            r"holds 'backbone.norm' \(int\), not a state dict of named tensors",
        ),
        "page.pth": (
            b"<!doctype html><p>Sign in to download",
            "is a web page or a Git LFS pointer instead of weights",
        ),
        "noise.pth": (bytes(range(200)), "cannot read .* truncated or no checkpoint"),
        "code.pth": (
            pickled({"state_dict": Code()}),
            r"holds 'state_dict' \(Ignored\), not a state dict .* save only its state dict",
        ),
        "module.pth": (
            pickled(tiny.decode_head),
            "holds an object of foreign code, not a state dict .* save only its state dict",
        ),
        "old_code.pth": (
            pickled(Code(), _use_new_zipfile_serialization=False),
            "unpickling it could run foreign code",
        ),
        "pointer.safetensors": (
            b"version https://git-lfs.github.com/spec/v1\noid",
            "a Git LFS pointer instead of weights; .* git lfs pull",
        ),
        "number.pth": (pickled(3), "holds a int, not a state dict"),
    }
    for name, (content, message) in files.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ValueError, match=message) as refusal:
            SegFormer.from_pretrained(tmp_path / name)
        assert name in str(refusal.value)


def test_foreign_weights_are_refused_with_their_first_keys(tmp_path: Path) -> None:
    save_file(
        {"conv1.weight": torch.zeros(1), "fc.bias": torch.zeros(1)}, tmp_path / "resnet.safetensors"
    )
    with pytest.raises(
        ValueError,
        match="known layouts: its first keys are conv1.weight, fc.bias; "
        "the names of a SegFormer's tensors would end in stages.0",
    ):
        SegFormer.from_pretrained(tmp_path / "resnet.safetensors")


def test_missing_files_and_folders_are_named(tiny: SegFormer, tmp_path: Path) -> None:
    with pytest.raises(
        FileNotFoundError, match=r"no file or folder 'nowhere.pth'; a Hugging Face id has the form"
    ):
        SegFormer.from_pretrained("nowhere.pth")
    with pytest.raises(FileNotFoundError, match="to write 'model.safetensors' into; make it first"):
        tiny.save(tmp_path / "nowhere" / "model.safetensors")
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(
        FileNotFoundError, match=r"no weights \(model.safetensors, .* in .*; found config.json"
    ):
        SegFormer.from_pretrained(tmp_path)


def test_a_failed_save_keeps_the_previous_file(
    tiny: SegFormer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny.save(tmp_path / "model.safetensors")
    before = (tmp_path / "model.safetensors").read_bytes()

    def full_disk(state: object, path: Path, metadata: object) -> None:
        Path(path).write_bytes(b"half a fi")
        raise OSError("No space left on device")

    monkeypatch.setattr("segformer.checkpoint.writing.save_file", full_disk)
    with pytest.raises(OSError, match="No space left"):
        tiny.save(tmp_path / "model.safetensors")
    assert (tmp_path / "model.safetensors").read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["model.safetensors"]


def test_a_hugging_face_config_that_contradicts_its_weights_is_refused(tmp_path: Path) -> None:
    from transformers import SegformerConfig, SegformerForSemanticSegmentation

    SegformerForSemanticSegmentation(SegformerConfig(num_labels=5)).save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    for change, message in (
        ({"hidden_act": "relu"}, "hidden_act 'relu' is none of gelu, gelu_pytorch_tanh, gelu_new"),
        ({"mlp_ratios": [8, 8, 4, 4]}, r"mlp_ratios \[8, 8, 4, 4\] differ from stage to stage"),
        ({"strides": [4, 2, 2, 1]}, r"strides \[4, 2, 2, 1\]; MiT's are \[4, 2, 2, 2\]"),
        ({"depths": [2, 2, 3, 2]}, "2[0-9] missing: segformer.encoder.block.2.2"),
        (None, r"config.json.* is not valid JSON"),
    ):
        (tmp_path / "config.json").write_text(json.dumps(config | change) if change else "{")
        with pytest.raises(ValueError, match=message):
            SegFormer.from_pretrained(tmp_path)
    (tmp_path / "config.json").unlink()
    # The shapes are those of a variant.
    assert SegFormer.from_pretrained(tmp_path).backbone.config["variant"] == "b0"


def test_heads_and_activation_of_a_hugging_face_config_are_used(tmp_path: Path) -> None:
    """Shapes show neither."""
    from transformers import SegformerConfig, SegformerForSemanticSegmentation

    config = SegformerConfig(num_labels=2, num_attention_heads=[2, 4, 5, 4], hidden_act="gelu_new")
    peer = randomized(SegformerForSemanticSegmentation(config))
    peer.save_pretrained(tmp_path)
    ours = SegFormer.from_pretrained(tmp_path)
    torch.testing.assert_close(
        ours.decode_head(ours.backbone(IMAGES)), peer(pixel_values=IMAGES).logits, rtol=0, atol=1e-5
    )


def test_a_runs_folder_is_read(tiny: SegFormer, tmp_path: Path) -> None:
    tiny.save(tmp_path / "model.safetensors")
    torch.testing.assert_close(
        SegFormer.from_pretrained(tmp_path).state_dict(), tiny.state_dict(), rtol=0, atol=0
    )


def test_a_model_that_could_not_be_read_back_is_not_saved(tiny: SegFormer, tmp_path: Path) -> None:
    class MyMiT(MiT):
        pass

    tiny.backbone = MyMiT(TINY)
    with pytest.raises(
        ValueError,
        match="a backbone of class MyMiT cannot be saved, since from_pretrained builds only MiT, "
        "AllMLPHead",
    ):
        tiny.save(tmp_path / "model.safetensors")


def test_an_unknown_hub_id_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(
        FileNotFoundError,
        match="no file or folder 'runs/typo', and the Hugging Face hub gave an error: ",
    ):
        SegFormer.from_pretrained("runs/typo")


def test_a_custom_size_is_read_from_a_hugging_face_config(tmp_path: Path) -> None:
    peer = tiny_peer(num_labels=2, num_channels=4)
    peer.save_pretrained(tmp_path)
    images = torch.randn(1, 4, 64, 64)
    ours = SegFormer.from_pretrained(tmp_path)
    torch.testing.assert_close(
        ours.decode_head(ours.backbone(images)), peer(pixel_values=images).logits, rtol=0, atol=1e-5
    )


def test_an_old_pickle_is_read(b0: SegFormer, tmp_path: Path) -> None:
    torch.save(b0.state_dict(), tmp_path / "b0.pth", _use_new_zipfile_serialization=False)
    torch.testing.assert_close(
        SegFormer.from_pretrained(tmp_path / "b0.pth").state_dict(), b0.state_dict(), rtol=0, atol=0
    )


def test_a_folder_with_two_candidates_is_refused(tiny: SegFormer, tmp_path: Path) -> None:
    for name in ("a", "b"):
        tiny.save(tmp_path / f"{name}.safetensors")
    with pytest.raises(
        ValueError,
        match=r"holds 2 candidates: a.safetensors, b.safetensors; name one of these files",
    ):
        SegFormer.from_pretrained(tmp_path)
    (tmp_path / "b.safetensors").unlink()
    torch.testing.assert_close(
        SegFormer.from_pretrained(tmp_path).state_dict(), tiny.state_dict(), rtol=0, atol=0
    )


def test_shards_that_do_not_fit_their_index_are_named(b0: SegFormer, tmp_path: Path) -> None:
    keys = list(b0.state_dict())
    save_file(b0.state_dict(), tmp_path / "one.safetensors")
    index = tmp_path / "model.safetensors.index.json"
    for weight_map, message in (
        ({}, "has no weight_map"),
        (
            dict.fromkeys(keys, "two.safetensors"),
            "lists 1 files, and these are not beside it: two.safetensors",
        ),
        (
            dict.fromkeys([*keys, "more"], "one.safetensors"),
            "lists files for more that do not hold them",
        ),
    ):
        index.write_text(json.dumps({"weight_map": weight_map}))
        with pytest.raises((ValueError, FileNotFoundError), match=message):
            SegFormer.from_pretrained(tmp_path)


def test_a_tensor_is_read_from_the_shard_that_the_index_names(
    b0: SegFormer, tmp_path: Path
) -> None:
    state, key = b0.state_dict(), "decode_head.norm.bias"
    one, two = ({name: state[name] for name in list(state)[half::2]} for half in (0, 1))
    weight_map = dict.fromkeys(one, "a.safetensors") | dict.fromkeys(two, "b.safetensors")
    for name, shard in (("a.safetensors", one), ("b.safetensors", two)):
        stale = {} if weight_map[key] == name else {key: torch.full_like(state[key], 7)}
        save_file({**shard, **stale}, tmp_path / name)
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": weight_map}))
    again = SegFormer.from_pretrained(tmp_path)
    assert torch.equal(again.state_dict()[key], state[key])


@pytest.mark.parametrize("in_channels", [1, 2, 4, 7])
def test_another_number_of_channels_adapts_the_stem_as_timm_and_smp_do(
    b0: SegFormer, in_channels: int, tmp_path: Path
) -> None:
    from segmentation_models_pytorch.encoders._utils import patch_first_conv

    b0.save(tmp_path / "b0.safetensors")
    model = SegFormer.from_pretrained(tmp_path / "b0.safetensors", in_channels=in_channels)
    assert model(torch.randn(1, in_channels, 64, 64)).shape == (1, 3, 64, 64)
    conv = torch.nn.Sequential(torch.nn.Conv2d(3, 32, 7))
    conv[0].weight.data = b0.backbone.stages[0].embed.proj.weight.data.clone()
    patch_first_conv(conv, in_channels)
    torch.testing.assert_close(model.backbone.stages[0].embed.proj.weight, conv[0].weight)
    model.save(tmp_path / "adapted.safetensors")
    assert (
        SegFormer.from_pretrained(tmp_path / "adapted.safetensors").backbone.in_channels
        == in_channels
    )
    if in_channels == 4:
        with pytest.raises(
            ValueError, match="takes 4 channels; only weights of 3 can be adapted to 5"
        ):
            SegFormer.from_pretrained(tmp_path / "adapted.safetensors", in_channels=5)


def test_a_reading_that_is_not_strict_reports_ignored_and_new_tensors(
    b0: SegFormer, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = nvidia_file(
        b0,
        tmp_path / "b0.pth",
        **{"backbone.norm1.weight": None, "backbone.norm1.gamma": torch.zeros(1)},
    )
    model = SegFormer.from_pretrained(path, strict=False)
    assert re.search("ignored +backbone.norm1.gamma", caplog.text)
    assert "backbone.stages.0.norm  random weights: missing in the file" in caplog.text
    assert model.backbone.stages[0].norm.weight.eq(1).all()


@pytest.mark.parametrize(
    ("layout", "name"),
    [
        ("native", "x.safetensors"),
        ("nvidia", "x.pth"),
        ("nvidia", "x.safetensors"),
        ("huggingface", "x"),
        ("smp", "x.pth"),
    ],
)
def test_round_trips_are_bit_identical(
    b0: SegFormer, layout: str, name: str, tmp_path: Path
) -> None:
    b0.save(tmp_path / name, layout)
    again = SegFormer.from_pretrained(tmp_path / name)
    torch.testing.assert_close(again.state_dict(), b0.state_dict(), rtol=0, atol=0)
    again.save(tmp_path / f"again_{name}", layout)
    twice = SegFormer.from_pretrained(tmp_path / f"again_{name}")
    torch.testing.assert_close(twice.state_dict(), b0.state_dict(), rtol=0, atol=0)
    assert str(twice) == str(again)


def test_a_layout_without_place_for_the_numerics_warns_with_the_difference(
    b0: SegFormer, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    b0.save(tmp_path / "b0.pth", "nvidia")
    assert "has no place" not in caplog.text
    b0.save(tmp_path / "b0_smp.pth", "smp")
    message = re.search(
        r"the smp layout has no place for align_corners=False \(it has True\): on noise, its "
        r"readers' logits differ by up to (\S+) \(of (\S+)\), and (\S+) % of their labels",
        caplog.text,
    )
    images = torch.randn(1, 3, 128, 128, generator=torch.Generator().manual_seed(0))
    smp = SegFormer.from_pretrained(tmp_path / "b0_smp.pth")
    difference = (smp(images) - b0(images)).abs().max().item()
    assert message is not None
    assert float(message[1]) == pytest.approx(difference, rel=0.05)
    assert difference > 0.01


def test_transformers_reads_the_tanh_gelu_of_a_written_folder(tmp_path: Path) -> None:
    from transformers import SegformerForSemanticSegmentation

    model = randomized(SegFormer(MiT("b0", act="gelu_tanh", norm_eps=1e-5), num_classes=2))
    model.save(tmp_path / "model", "huggingface")
    peer = SegformerForSemanticSegmentation.from_pretrained(tmp_path / "model")
    images = IMAGES.double()
    expected = peer.double()(pixel_values=images).logits
    torch.testing.assert_close(
        model.double().decode_head(model.backbone(images)), expected, rtol=0, atol=1e-10
    )


@pytest.mark.parametrize(
    ("layout", "name", "message"),
    [
        (
            "tao",
            "x.pth",
            "cannot write the layout 'tao'; choose one of native, nvidia, huggingface, smp",
        ),
        ("native", "x.pth", "call it x.safetensors instead of x.pth"),
        (
            "nvidia",
            "x",
            "is none of .safetensors, .pth, .* call it x.safetensors or x.pth",
        ),
    ],
)
def test_a_layout_or_name_that_cannot_be_written_is_refused(
    tiny: SegFormer, layout: str, name: str, message: str, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=message):
        tiny.save(tmp_path / name, layout)


def test_a_head_that_a_layout_cannot_hold_is_refused(tmp_path: Path) -> None:
    backbone = MiT(TINY)
    model = SegmentationModel(backbone, MMSegHead(backbone.channels, 3))
    with pytest.raises(
        ValueError,
        match=r"the nvidia layout has no place for 'decode_head.projections.0.conv.weight'",
    ):
        model.save(tmp_path / "x.pth", "nvidia")
    assert not list(tmp_path.iterdir())


def test_weights_are_read_even_if_their_class_names_do_not_fit(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    from transformers import SegformerConfig, SegformerForSemanticSegmentation

    SegformerForSemanticSegmentation(SegformerConfig(num_labels=2)).save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    caplog.set_level(logging.INFO, "segformer")
    for names in ({"0": "only one"}, {"0": "twice", "1": "twice"}, {"a": "x", "b": "y"}):
        caplog.clear()
        (tmp_path / "config.json").write_text(json.dumps(config | {"id2label": names}))
        assert SegFormer.from_pretrained(tmp_path).classes.names == ("class 0", "class 1")
        assert re.search("dropped +class names +they are not 2 different names", caplog.text)


def test_a_file_in_a_hugging_face_folder_is_read_like_the_folder(tmp_path: Path) -> None:
    from transformers import SegformerConfig, SegformerForSemanticSegmentation

    config = SegformerConfig(
        id2label={0: "bg", 1: "road"}, hidden_act="gelu_new", num_attention_heads=[2, 4, 5, 4]
    )
    SegformerForSemanticSegmentation(config).save_pretrained(tmp_path)
    by_folder, by_file = (
        SegFormer.from_pretrained(tmp_path),
        SegFormer.from_pretrained(tmp_path / "model.safetensors"),
    )
    assert str(by_file) == str(by_folder)
    assert by_file.classes == by_folder.classes


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_a_model_does_not_change_with_its_file(b0: SegFormer, suffix: str, tmp_path: Path) -> None:
    """The usual way of fine-tuning: read, train, save to the same path."""
    path = tmp_path / f"live{suffix}"
    b0.save(path, "nvidia")
    model = SegFormer.from_pretrained(path)
    with path.open("r+b") as file:  # written in place, as torch.save and cp do
        file.write(b"\xff" * path.stat().st_size)
        file.truncate(1000)
    torch.testing.assert_close(model.state_dict(), b0.state_dict(), rtol=0, atol=0)


@pytest.mark.parametrize("name", ["model.bin", "model.pth", "model.safetensors"])
def test_files_are_recognised_by_their_content(b0: SegFormer, name: str, tmp_path: Path) -> None:
    b0.save(tmp_path / "model.safetensors")
    (tmp_path / "model.safetensors").rename(tmp_path / name)
    torch.testing.assert_close(
        SegFormer.from_pretrained(tmp_path / name).state_dict(), b0.state_dict(), rtol=0, atol=0
    )


@pytest.mark.parametrize("prefix", ["", "backbone.", "decode_head.", "backbone.block1.0."])
@pytest.mark.parametrize("wrapper", ["module", "_orig_mod"])
def test_names_of_wrapper_modules_are_removed(
    b0: SegFormer, wrapper: str, prefix: str, tmp_path: Path
) -> None:
    """DataParallel and torch.compile, around the model or a part of it."""
    state = state_dict_as(b0, LAYOUTS["nvidia"])
    torch.save(
        {key.replace(prefix, f"{prefix}{wrapper}.", 1): tensor for key, tensor in state.items()},
        tmp_path / "wrapped.pth",
    )
    torch.testing.assert_close(
        SegFormer.from_pretrained(tmp_path / "wrapped.pth").state_dict(),
        b0.state_dict(),
        rtol=0,
        atol=0,
    )


def test_a_model_with_a_compiled_part_is_saved(b0: SegFormer, tmp_path: Path) -> None:
    SegFormer.compose(torch.compile(b0.backbone), b0.decode_head).save(tmp_path / "b0.safetensors")
    torch.testing.assert_close(
        SegFormer.from_pretrained(tmp_path / "b0.safetensors").state_dict(),
        b0.state_dict(),
        rtol=0,
        atol=0,
    )


def test_other_content_of_a_checkpoint_is_ignored_and_never_run(
    b0: SegFormer, tmp_path: Path
) -> None:
    """Such as mmengine's buffers, hyper-parameters, NumPy numbers and objects of foreign code."""
    import argparse

    import numpy as np

    class Code:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return open, (str(tmp_path / "this must never be made"), "w")

    beside = {
        "message_hub": Code(),
        "hyper_parameters": {"root": tmp_path, "args": argparse.Namespace(lr=1)},
        "miou": np.float64(0.5),
    }
    torch.save(
        {
            "state_dict": state_dict_as(b0, LAYOUTS["nvidia"]) | {"epoch": 3},
            "ema": {"decay": 0.9},
            **beside,
        },
        tmp_path / "b0.pth",
    )
    reading = read(tmp_path / "b0.pth")
    torch.testing.assert_close(
        reading.backbone.state_dict(), b0.backbone.state_dict(), rtol=0, atol=0
    )
    assert ("dropped", "epoch", "not tensors with a name") in reading.report.rows
    assert not (tmp_path / "this must never be made").exists()


def test_sizes_that_a_state_dict_cannot_show_are_not_written_into_one(tmp_path: Path) -> None:
    heads = replace(VARIANTS["b0"], heads=(2, 4, 5, 4))
    for variant in (TINY, heads):
        for layout in ("nvidia", "smp"):
            with pytest.raises(
                ValueError,
                match=rf"the {layout} layout has no place for the sizes of Variant\(dims=.*, "
                "which is none of b0, b1",
            ):
                SegFormer(variant, num_classes=2).save(tmp_path / "x.pth", layout)
    assert not list(tmp_path.iterdir())


def test_a_model_of_three_stages_is_written_for_transformers_and_read_back(tmp_path: Path) -> None:
    from transformers import SegformerForSemanticSegmentation

    variant = Variant(
        dims=(8, 16, 24),
        depths=(1, 1, 2),
        decoder_channels=16,
        heads=(1, 2, 3),
        sr_ratios=(8, 4, 2),
    )
    model = randomized(
        SegFormer(MiT(variant, norm_eps=1e-5), num_classes=2, decoder_channels=16)
    ).double()
    model.save(tmp_path / "three", "huggingface")
    peer = SegformerForSemanticSegmentation.from_pretrained(tmp_path / "three").double()
    images = IMAGES.double()
    for logits in (
        peer(pixel_values=images).logits,
        (m := SegFormer.from_pretrained(tmp_path / "three")).decode_head(m.backbone(images)),
    ):
        torch.testing.assert_close(
            logits, model.decode_head(model.backbone(images)), rtol=0, atol=1e-10
        )


def test_a_file_without_a_classifier_gets_a_new_one(b0: SegFormer, tmp_path: Path) -> None:
    gone = {"decode_head.linear_pred.weight": None, "decode_head.linear_pred.bias": None}
    path = nvidia_file(b0, tmp_path / "b0.pth", **gone)
    with pytest.raises(ValueError, match=r"has no decode_head.linear_pred.weight"):
        SegFormer.from_pretrained(path)
    reading = read(path, 7)
    new = ("new", "decode_head.classifier", "random weights: missing in the file")
    assert new in reading.report.rows
    model = SegFormer.from_pretrained(path, num_classes=7)
    torch.testing.assert_close(
        model.decode_head.fuse.weight, b0.decode_head.fuse.weight, rtol=0, atol=0
    )
    assert model.num_classes == 7
    path = nvidia_file(b0, tmp_path / "b0.pth", **{"decode_head.linear_pred.weight": None})
    with pytest.raises(ValueError, match=r"1 left over: decode_head.linear_pred.bias"):
        read(path, 7)


def test_a_default_device_does_not_split_the_model(b0: SegFormer, tmp_path: Path) -> None:
    b0.save(tmp_path / "b0.pth", "nvidia")
    with torch.device("meta"):
        model = SegFormer.from_pretrained(tmp_path / "b0.pth", num_classes=7)
        model.save(tmp_path / "hf", "huggingface")
    assert {tensor.device.type for tensor in model.state_dict().values()} == {"cpu"}


class Hub:
    """A hub of one folder, which keeps uploads and the names of downloads."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.asked: list[tuple[str, str | None]] = []

    def snapshot_download(
        self,
        repository: str,
        revision: str | None,
        allow_patterns: list[str],
        ignore_patterns: list[str],
    ) -> str:
        self.asked.append((repository, revision))
        cache = self.folder.parent / "cache"
        cache.mkdir(exist_ok=True)
        for pattern in allow_patterns:
            for path in self.folder.glob(pattern):
                shutil.copy(path, cache)
        return str(cache)

    def create_repo(self, repository: str, private: bool | None, exist_ok: bool) -> None:
        self.folder.mkdir()

    def upload_folder(
        self, *, repo_id: str, folder_path: str, revision: str | None, commit_message: str
    ) -> str:
        shutil.copytree(folder_path, self.folder, dirs_exist_ok=True)
        return f"{repo_id}@{revision}"


@pytest.mark.parametrize("layout", ["native", "huggingface"])
def test_a_model_pushed_to_the_hub_is_read_back(
    b0: SegFormer, layout: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub = Hub(tmp_path / "repository")
    monkeypatch.setattr("huggingface_hub.HfApi", lambda: hub)
    monkeypatch.setattr("huggingface_hub.snapshot_download", hub.snapshot_download)
    assert b0.push_to_hub("me/roads", layout=layout, revision="v1") == "me/roads@v1"
    again = SegFormer.from_pretrained("me/roads", revision="v1")
    torch.testing.assert_close(again.state_dict(), b0.state_dict(), rtol=0, atol=0)
    assert hub.asked == [("me/roads", "v1")]


def test_an_older_repository_with_only_a_pickle_is_read(
    b0: SegFormer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub = Hub(tmp_path / "repository")
    hub.folder.mkdir()
    torch.save(state_dict_as(b0, LAYOUTS["nvidia"]), hub.folder / "segformer.b0.pth")
    monkeypatch.setattr("huggingface_hub.snapshot_download", hub.snapshot_download)
    torch.testing.assert_close(
        SegFormer.from_pretrained("me/roads").state_dict(), b0.state_dict(), rtol=0, atol=0
    )
    with pytest.raises(ValueError, match=r"revision='v1' given for .* which is a local path"):
        SegFormer.from_pretrained(hub.folder, revision="v1")


@pytest.mark.slow
def test_reading_b5_takes_little_more_memory_than_its_file(tmp_path: Path) -> None:
    """Huggingface is the layout with the most tensors to concatenate.

    The peak is that of a separate process, without the memory of its imports.
    """
    with torch.device("meta"):
        model = SegFormer("b5", num_classes=150)
    model.to_empty(device="cpu").save(tmp_path / "b5", "huggingface")
    code = (
        "import resource, sys, segformer\n"
        "peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024\n"
        "before = peak()\n"
        "model = segformer.SegFormer.from_pretrained(sys.argv[1])\n"
        "total = sum(float(p.detach().sum()) for p in model.parameters())\n"  # touches every page
        "print(peak() - before)"
    )
    output = processes.run(code, tmp_path / "b5", output=tmp_path / "printed")
    assert int(output) < 1.3 * (tmp_path / "b5" / "model.safetensors").stat().st_size
