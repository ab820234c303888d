"""Files that are more than plain state dicts: containers, shared memory, precisions, subfolders."""

from __future__ import annotations

import json
import logging
from collections import defaultdict
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import TINY, randomized
from halves import halves, quiet_trainer
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from segformer import SETR, Classes, MiT, Pretrained, SegFormer, TimmBackbone
from segformer.checkpoint import LAYOUTS, read, state_dict_as
from segformer.data.normalization import Normalization
from segformer.train.distillation import Distillation
from segformer.train.task import SegmentationTask
from segformer.train.weights import load_network

State = dict[str, Tensor]
NORM1, NORM2 = "backbone.block1.0.norm1.weight", "backbone.block1.0.norm2.weight"


@pytest.fixture(scope="module")
def b0() -> SegFormer:
    torch.manual_seed(0)
    return randomized(SegFormer("b0", num_classes=3))


@pytest.fixture(scope="module")
def state(b0: SegFormer) -> State:
    return state_dict_as(b0, LAYOUTS["nvidia"])


def shared(state: State) -> State:
    return {**state, NORM2: state[NORM1]}


def expanded(state: State) -> State:
    return {**state, NORM1: torch.ones(1).expand(32)}


def transposed(state: State) -> State:
    key = "backbone.block1.0.attn.q.weight"
    return {**state, key: state[key].t().contiguous().t()}


def in_one_storage(state: State) -> State:
    flat = torch.cat([tensor.flatten().float() for tensor in state.values()])
    parts = flat.split([tensor.numel() for tensor in state.values()])
    return {key: part.view_as(state[key]) for key, part in zip(state, parts, strict=True)}


def frozen(state: State) -> State:
    floats = {key: tensor for key, tensor in state.items() if tensor.is_floating_point()}
    return state | {
        key: nn.Parameter(tensor, requires_grad=False) for key, tensor in floats.items()
    }


@pytest.mark.parametrize("change", [shared, expanded, transposed, in_one_storage, frozen])
def test_every_parameter_has_memory_of_its_own_and_can_be_trained(
    state: State,
    change: Any,
    tmp_path: Path,
) -> None:
    changed = change(state)
    torch.save(changed, tmp_path / "x.pth")
    model = SegFormer.from_pretrained(tmp_path / "x.pth")
    addresses = [parameter.untyped_storage().data_ptr() for parameter in model.parameters()]
    assert len(set(addresses)) == len(addresses)
    written = state_dict_as(model, LAYOUTS["nvidia"])
    assert all(torch.equal(written[key], changed[key]) for key in written if "tracked" not in key)
    optimizer = torch.optim.AdamW(model.parameters())
    model.train()(torch.randn(2, 3, 64, 64)).square().mean().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
    optimizer.step()
    block = model.backbone.stages[0].blocks[0]
    assert not torch.equal(block.norm1.weight, block.norm2.weight)


def test_meta_tensors_are_refused_with_their_name(state: State, tmp_path: Path) -> None:
    torch.save({**state, NORM1: torch.empty(32, device="meta")}, tmp_path / "x.pth")
    with pytest.raises(ValueError, match=rf"x.pth': {NORM1} is a meta tensor; save one with plain"):
        SegFormer.from_pretrained(tmp_path / "x.pth")


@pytest.mark.filterwarnings("ignore:Validating sparse tensor invariants")
def test_sparse_tensors_are_refused_with_their_name(state: State, tmp_path: Path) -> None:
    torch.save({**state, NORM1: torch.ones(32).to_sparse()}, tmp_path / "x.pth")
    with pytest.raises(
        ValueError, match=rf"x.pth': {NORM1} is a sparse tensor; save one with plain"
    ):
        SegFormer.from_pretrained(tmp_path / "x.pth")


@pytest.mark.parametrize(
    "wrap",
    [
        lambda state: {"segformer": state},
        lambda state: {"segformer": "v1", "state_dict": state},
        lambda state: {
            "my_net": {"inner": state},
            "optimizer": {"state": {0: {"exp_avg": state[NORM1]}}},
        },
        lambda state: {0: state},
        lambda state: {**state, "auxiliary_head.conv.weight": state[NORM1]},
        lambda state: {
            **{f"module.{key}": tensor for key, tensor in state.items()},
            "n_averaged": torch.tensor(3),
        },
    ],
    ids=["our key", "our key beside", "unknown", "a number", "auxiliary", "averaged"],
)
def test_containers_are_unwrapped(b0: SegFormer, state: State, wrap: Any, tmp_path: Path) -> None:
    torch.save(wrap(state), tmp_path / "x.pth")
    again = SegFormer.from_pretrained(tmp_path / "x.pth")
    torch.testing.assert_close(again.state_dict(), b0.state_dict(), rtol=0, atol=0)


@pytest.mark.parametrize(
    ("averaged", "raw"), [("ema_model", "model"), ("state_dict_ema", "state_dict"), ("ema", "net")]
)
def test_state_dicts_that_are_not_read_are_said(
    averaged: str,
    raw: str,
    b0: SegFormer,
    state: State,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    other = {key: torch.zeros_like(tensor) for key, tensor in state.items()}
    torch.save({raw: other, averaged: state}, tmp_path / "x.pth")
    reading = read(tmp_path / "x.pth")
    note = f"other weights: {averaged} is read; save only those that are wanted"
    assert ("note", raw, note) in reading.report.rows
    assert note in caplog.text
    assert torch.equal(reading.decode_head.classifier.weight, b0.decode_head.classifier.weight)


@pytest.mark.parametrize(
    "meta",
    [
        {"CLASSES": ["a", "b"], "PALETTE": [None, None]},
        {"CLASSES": ["a", "b"], "PALETTE": [1, 2]},
        {"CLASSES": ["a", "b"], "dataset_meta": [1]},
        {0: 1, "CLASSES": ["a", "b"]},
    ],
    ids=str,
)
def test_odd_colours_leave_the_weights_and_names(meta: dict[Any, Any], tmp_path: Path) -> None:
    model = SegFormer("b0", num_classes=2)
    torch.save(
        {"state_dict": state_dict_as(model, LAYOUTS["nvidia"]), "meta": meta}, tmp_path / "x.pth"
    )
    found = read(tmp_path / "x.pth", layout="nvidia")
    assert list(found.classes.names) == ["a", "b"]


def test_a_training_config_of_its_own_kind_of_dict_has_a_cure(state: State, tmp_path: Path) -> None:
    torch.save({"state_dict": state, "cfg": defaultdict(dict, lr=0.1)}, tmp_path / "x.pth")
    with pytest.raises(ValueError, match="holds more than tensors, .* save only its state dict"):
        read(tmp_path / "x.pth")


def test_a_decode_head_called_head_is_no_classifier(tmp_path: Path) -> None:
    model = SegFormer("b0", num_classes=3)
    state = {
        key.replace("decode_head.", "head."): tensor
        for key, tensor in state_dict_as(model, LAYOUTS["nvidia"]).items()
    }
    torch.save(state, tmp_path / "x.pth")
    with pytest.raises(ValueError, match="left over: head"):
        read(tmp_path / "x.pth", 3)


def test_the_config_beside_weights_of_any_name_is_read(tmp_path: Path) -> None:
    """As transformers' save_pretrained(variant="fp16") writes them."""
    model = SegFormer(TINY, classes=Classes(["road", "car"]))
    model.save(tmp_path / "folder", layout="huggingface")
    weights = tmp_path / "folder" / "model.safetensors"
    weights.rename(weights.with_name("model.fp16.safetensors"))
    assert list(read(tmp_path / "folder").classes.names) == ["road", "car"]


def test_shards_keep_their_licence(tmp_path: Path) -> None:
    model = SegFormer(TINY, num_classes=2)
    model.licence = "Apache-2.0"
    model.save(tmp_path / "folder", layout="huggingface")
    whole = tmp_path / "folder" / "model.safetensors"
    state = load_file(whole)
    names = {key: f"model-{number % 2}.safetensors" for number, key in enumerate(state)}
    for name in set(names.values()):
        part = {key: state[key] for key in state if names[key] == name}
        save_file(part, whole.with_name(name), {"format": "pt", "licence": "Apache-2.0"})
    whole.unlink()
    index = whole.with_name("model.safetensors.index.json")
    index.write_text(json.dumps({"weight_map": names}))
    assert read(tmp_path / "folder").licence == "Apache-2.0"
    for broken in ("x", {"a": 1}, {"a": index.name}):
        index.write_text(json.dumps({"weight_map": broken}))
        with pytest.raises(ValueError, match="has no weight_map"):
            read(tmp_path / "folder")


def test_an_older_processor_does_not_outlive_its_model(tmp_path: Path) -> None:
    model = SegFormer(TINY, num_classes=2, normalization=Normalization([0.1] * 3, [0.3] * 3))
    processor = tmp_path / "folder" / "processor_config.json"
    processor.parent.mkdir()
    processor.write_text(json.dumps({"image_processor": {"image_mean": [0.9] * 3}, "other": 1}))
    model.save(tmp_path / "folder", layout="huggingface")
    assert read(tmp_path / "folder").normalization.mean == (0.1, 0.1, 0.1)
    assert json.loads(processor.read_text())["other"] == 1


@pytest.mark.parametrize(
    ("layout", "name", "lost"),
    [
        ("smp", "x.pth", "names and colours"),
        ("nvidia", "x.safetensors", "names and colours"),
        ("nvidia", "x.pth", ""),
        ("huggingface", "folder", "colours"),
    ],
)
def test_classes_that_a_layout_has_no_place_for_are_said(
    layout: str, name: str, lost: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model = SegFormer("b0", classes=Classes(["road", "car"], [(1, 2, 3), (4, 5, 6)]))
    model.save(tmp_path / name, layout=layout)
    said = f"no place for the classes' {lost} in such a file"
    assert (said in caplog.text) == bool(lost)


def test_an_averaged_model_of_pytorch_is_read(b0: SegFormer, tmp_path: Path) -> None:
    torch.save(AveragedModel(b0).state_dict(), tmp_path / "x.pth")
    reading = read(tmp_path / "x.pth")
    torch.testing.assert_close(
        reading.backbone.state_dict(), b0.backbone.state_dict(), rtol=0, atol=0
    )
    assert any(subject == "n_averaged" for _, subject, _ in reading.report.rows)


def test_several_state_dicts_are_refused_with_their_names(state: State, tmp_path: Path) -> None:
    torch.save({"generator": state, "critic": state, "epoch": 3}, tmp_path / "x.pth")
    with pytest.raises(
        ValueError, match=r"holds several state dicts, 'generator', 'critic'; save only one of them"
    ):
        SegFormer.from_pretrained(tmp_path / "x.pth")


@pytest.mark.parametrize("layout", ["mmsegmentation", "huggingface", "tao", "smp"])
def test_auxiliary_heads_of_other_layouts_are_dropped(layout: str, tmp_path: Path) -> None:
    from segformer import AllMLPHead, SegmentationModel
    from segformer.networks.all_mlp import MMSegHead

    head = MMSegHead if layout == "mmsegmentation" else AllMLPHead
    backbone = MiT("b0")
    model = SegmentationModel(backbone, head(backbone.channels, 3))
    content = state_dict_as(model, LAYOUTS[layout]) | {"auxiliary_head.0.weight": torch.zeros(1)}
    torch.save(content, tmp_path / "x.pth")
    rows = read(tmp_path / "x.pth").report.rows
    assert ("dropped", "auxiliary_head.0.weight", "for a loss that only training computes") in rows


def test_a_training_checkpoint_with_auxiliary_heads_is_read(tmp_path: Path) -> None:
    from segformer.networks.setr import FCNHead
    from segformer.train.auxiliary import Auxiliary
    from segformer.train.task import SegmentationTask

    network = SegFormer(TINY, num_classes=2)
    task = SegmentationTask(network, auxiliary=lambda network: Auxiliary(network, FCNHead))
    trainer = quiet_trainer(tmp_path, max_steps=1, limit_val_batches=0, num_sanity_val_steps=0)
    trainer.fit(task, halves())
    trainer.save_checkpoint(tmp_path / "run.ckpt")
    again = SegFormer.from_pretrained(tmp_path / "run.ckpt")
    torch.testing.assert_close(again.state_dict(), network.state_dict(), rtol=0, atol=0)


def cast(state: State, backbone: torch.dtype, head: torch.dtype) -> State:
    return {
        key: tensor.to(backbone if key.startswith("backbone.") else head)
        if tensor.is_floating_point()
        else tensor
        for key, tensor in state.items()
    }


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize(
    ("backbone", "head", "widest"),
    [
        (torch.float16, torch.float32, torch.float32),
        (torch.float16, torch.bfloat16, torch.float32),
        (torch.bfloat16, torch.float64, torch.float64),
        (torch.float8_e4m3fn, torch.bfloat16, torch.bfloat16),
        (torch.float8_e5m2, torch.float8_e4m3fn, torch.float32),
    ],
    ids=str,
)
def test_mixed_precisions_are_read_as_the_widest_and_reported(
    state: State,
    backbone: torch.dtype,
    head: torch.dtype,
    widest: torch.dtype,
    suffix: str,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    mixed, path = cast(state, backbone, head), tmp_path / f"x{suffix}"
    (save_file if suffix == ".safetensors" else torch.save)(mixed, path)
    model = SegFormer.from_pretrained(path)
    assert {parameter.dtype for parameter in model.parameters()} == {widest}
    written = state_dict_as(model, LAYOUTS["nvidia"])
    assert all(torch.equal(written[key], mixed[key].to(written[key].dtype)) for key in written)
    assert (
        f"are read as {str(widest).removeprefix('torch.')}; dtype=… chooses another" in caplog.text
    )
    assert model(torch.randn(1, 3, 64, 64, dtype=widest)).dtype == widest
    chosen = SegFormer.from_pretrained(path, num_classes=7, dtype=torch.bfloat16)
    assert {parameter.dtype for parameter in chosen.parameters()} == {torch.bfloat16}


def test_integers_are_refused_as_weights(state: State, tmp_path: Path) -> None:
    key = "backbone.block1.0.attn.q.weight"
    torch.save({**state, key: state[key].to(torch.int8)}, tmp_path / "x.pth")
    with pytest.raises(ValueError, match=rf"{key} is of int8, not of float32"):
        SegFormer.from_pretrained(tmp_path / "x.pth")
    scale = {key.replace("weight", "weight_scale"): torch.ones(1)}
    torch.save({**state, **scale}, tmp_path / "x.pth")
    with pytest.raises(ValueError, match=r"x.pth' is quantised; dequantise it"):
        SegFormer.from_pretrained(tmp_path / "x.pth")


def test_parameters_are_on_the_requested_device(tiny: SegFormer, tmp_path: Path) -> None:
    tiny.save(tmp_path / "x.safetensors")
    model = SegFormer.from_pretrained(tmp_path / "x.safetensors", device="meta")
    assert {tensor.device.type for tensor in model.state_dict().values()} == {"meta"}


def test_a_subfolder_is_read(
    tiny: SegFormer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    folder = tmp_path / "repository" / "models" / "b0"
    folder.mkdir(parents=True)
    tiny.save(folder / "model.safetensors")
    received: dict[str, Any] = {}

    def snapshot_download(repository: str, **options: Any) -> str:
        received.update(options)
        return str(tmp_path / "repository")

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)
    options = {"token": "secret", "cache_dir": tmp_path / "cache"}
    for source, given in ((tmp_path / "repository", {}), ("me/roads", options)):
        again = SegFormer.from_pretrained(source, subfolder="models/b0", **given)
        torch.testing.assert_close(again.state_dict(), tiny.state_dict(), rtol=0, atol=0)
    assert received["allow_patterns"] == ["models/b0/*.json", "models/b0/*.safetensors"]
    assert (received["token"], received["cache_dir"]) == ("secret", tmp_path / "cache")
    with pytest.raises(FileNotFoundError, match="no folder 'nowhere' in "):
        SegFormer.from_pretrained(tmp_path / "repository", subfolder="nowhere")


@pytest.mark.parametrize("no_grad", [False, True])
def test_an_empty_batch_gives_empty_results(no_grad: bool) -> None:
    """As in PyTorch's own layers."""
    model, images = SegFormer("b0", num_classes=3).eval(), torch.empty(0, 3, 64, 96)
    with torch.set_grad_enabled(not no_grad):
        assert model(images).shape == (0, 3, 64, 96)
    assert model.predict(images).shape == (0, 64, 96)
    assert model.predict(images, (10, 20)).shape == (0, 10, 20)


def test_loading_weights_of_other_numerics_warns(
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    theirs = SegFormer(MiT("b0", norm_eps=1e-5, act="gelu_tanh"), num_classes=3)
    theirs.save(tmp_path / "hf", "huggingface")
    SegFormer("b0", num_classes=3).save(tmp_path / "b0.pth", "nvidia")
    caplog.clear()
    model = SegFormer("b0", num_classes=3)
    model.load_weights(tmp_path / "b0.pth")
    theirs.load_weights(tmp_path / "hf")
    torch.save(theirs.state_dict(), tmp_path / "own.pth")  # states no numerics
    theirs.load_weights(tmp_path / "own.pth")
    assert "numerics" not in caplog.text
    model.load_weights(tmp_path / "hf")
    assert "norm_eps=1e-05 (this model has 1e-06)" in caplog.text
    assert "act=gelu_tanh (this model has gelu)" in caplog.text
    assert "embed_norm_eps=" not in caplog.text
    assert model.backbone.stages[0].norm.eps == 1e-6


def test_loading_setr_weights_of_other_numerics_warns(
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    model = SETR("tiny", 5, channels=16, img_size=64)
    layout = LAYOUTS["mmsegmentation_setr"]
    torch.save({"state_dict": state_dict_as(model, layout)}, tmp_path / "setr.pth")
    with caplog.at_level(logging.WARNING, "segformer"):
        model.load_weights(tmp_path / "setr.pth")
    assert "positions=bilinear (this model has bicubic)" in caplog.text
    assert "fit=pad (this model has resize)" in caplog.text


@torch.no_grad()
def test_timms_classifier_has_the_numerics_of_the_file(tmp_path: Path) -> None:
    import timm

    for layout, norm_eps, embed_norm_eps in (
        ("huggingface", 1e-5, 1e-5),
        ("huggingface_in_memory", 1e-5, 1e-5),
        ("nvidia", 1e-6, 1e-5),
    ):
        torch.save(
            state_dict_as(SegFormer("b0", num_classes=2), LAYOUTS[layout]), tmp_path / "x.pth"
        )
        overlay = {"file": str(tmp_path / "x.pth")}
        model = timm.create_model(
            "mit_b0", pretrained=True, pretrained_cfg_overlay=overlay, num_classes=0
        )
        found = {name: m.eps for name, m in model.named_modules() if isinstance(m, nn.LayerNorm)}
        for name, eps in found.items():
            assert eps == (embed_norm_eps if "embed" in name or "reduce" in name else norm_eps)
        assert model.config["norm_eps"] == norm_eps


@pytest.mark.parametrize("in_channels", [1, 4])
def test_a_missing_first_convolution_is_new_for_any_number_of_channels(
    in_channels: int, tmp_path: Path
) -> None:
    stem = "backbone.stages.0.embed.proj.weight"
    path = tmp_path / "model.safetensors"
    model = SegFormer(TINY, num_classes=3)
    model.save(path)
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
    tensors = load_file(path)
    del tensors[stem]
    save_file(tensors, path, metadata)
    reading = read(path, strict=False, in_channels=in_channels)
    assert [event for event, subject, _ in reading.report.rows if "embed.proj" in subject] == [
        "new"
    ]
    again = SegFormer.compose(**reading.parts).eval()
    state = again.state_dict()
    assert state.pop(stem).shape == (8, in_channels, 7, 7)
    torch.testing.assert_close(state, tensors, rtol=0, atol=0)
    assert again(torch.randn(1, in_channels, 64, 64)).isfinite().all()


@pytest.mark.parametrize("name", ["fastvit_t8", "repvgg_a0"])
def test_several_first_convolutions_take_other_channels(name: str, tmp_path: Path) -> None:
    model = SegFormer(TimmBackbone(name), num_classes=3).eval()
    model.save(tmp_path / "m.safetensors")
    grey = torch.randn(1, 1, 64, 64)
    one = SegFormer.from_pretrained(tmp_path / "m.safetensors", in_channels=1)
    with torch.no_grad():
        torch.testing.assert_close(
            one(grey), model(grey.expand(1, 3, 64, 64)), rtol=1e-3, atol=1e-4
        )
    four = SegFormer.from_pretrained(tmp_path / "m.safetensors", in_channels=4)
    assert four(torch.randn(1, 4, 64, 64)).shape == (1, 3, 64, 64)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_weights_of_16_bits_are_trained_and_measured_in_32(
    dtype: torch.dtype, tmp_path: Path
) -> None:
    half = randomized(SegFormer(TINY, num_classes=2)).to(dtype)
    half.save(path := tmp_path / "half.safetensors")
    network = Pretrained(str(path))
    assert {p.dtype for p in network.parameters()} == {torch.float32}
    task = SegmentationTask(network, distillation=partial(Distillation, teacher=path))
    quiet_trainer(tmp_path, max_steps=2).fit(task, halves())
    measured = load_network(str(path), halves().classes)
    images = torch.randn(1, 3, 64, 64)
    torch.testing.assert_close(measured(images), half.float()(images), rtol=1e-4, atol=1e-4)


def test_weights_under_unknown_names_are_reported(state: State, tmp_path: Path) -> None:
    optimizer = {"state": {0: {"exp_avg": state[NORM1]}}}
    torch.save({"model": state, "best": state, "optimizer": optimizer}, tmp_path / "x.pth")
    report = read(tmp_path / "x.pth").report
    assert ("dropped", "best", "other tensors: model is read") in report.rows


def test_keys_and_licences_that_are_no_text_are_not_the_models(
    state: State, tmp_path: Path
) -> None:
    content = {"state_dict": {**state, 3: state[NORM1]}, "meta": {"licence": 7}}
    torch.save(content, tmp_path / "x.pth")
    reading = read(tmp_path / "x.pth")
    assert ("dropped", "3", "not tensors with a name") in reading.report.rows
    assert reading.licence is None


def test_a_config_with_an_empty_list_is_refused_in_one_sentence(tmp_path: Path) -> None:
    SegFormer("b0", num_classes=2).save(tmp_path / "b0", "huggingface")
    path = tmp_path / "b0" / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "mlp_ratios": []}))
    with pytest.raises(ValueError, match=r"has a value of another kind than SegFormer's"):
        SegFormer.from_pretrained(tmp_path / "b0")
