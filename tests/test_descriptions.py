"""A file's description of its model: it must be true when written, and is not trusted when read."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import TINY, randomized
from safetensors.torch import save_file
from torch import nn
from torch.nn.utils import parametrizations, prune

from segformer import SETR, MLAHead, SegFormer, TimmBackbone
from segformer.networks.mit import MixFFN


def described(model: Any, path: Path, change: Callable[[dict[str, Any]], object]) -> Path:
    """Writes a file of the model with a changed description."""
    from segformer.checkpoint import describe

    description = describe(model)
    change(description)
    state = {key: tensor.contiguous() for key, tensor in model.state_dict().items()}
    save_file(state, path, {"segformer": json.dumps(description)})
    return path


def resnet() -> SegFormer:
    return SegFormer(TimmBackbone("resnet18"), num_classes=3, decoder_channels=8)


def set_config(**change: Any) -> Callable[[dict[str, Any]], object]:
    return lambda description: description["backbone"]["config"].update(change)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"name": "hf-hub:someone/model"},
            "'hf-hub:someone/model', which is none of timm's models",
        ),
        ({"name": "local-dir:/etc"}, "'local-dir:/etc', which is none of timm's models"),
        ({"name": "https://host/x"}, "'https://host/x', which is none of timm's models"),
        ({"name": ["resnet18"]}, r"\['resnet18'\], which is none of timm's models"),
        (
            {"pretrained_custom_load": True},
            "the argument 'pretrained_custom_load', which it does not",
        ),
        ({"pretrained_filter_fn": "x"}, "the argument 'pretrained_filter_fn', which it does not"),
        ({"features_only": False}, "the argument 'features_only', which it does not have"),
        (
            {"block": {"url": "https://host"}},
            "block={'url': 'https://host'}, which is no plain value",
        ),
    ],
)
def test_a_hostile_description_is_refused(change: Any, message: str, tmp_path: Path) -> None:
    path = described(resnet(), tmp_path / "x.safetensors", set_config(**change))
    with pytest.raises(ValueError, match=rf"x.safetensors': the file .*{message}"):
        SegFormer.from_pretrained(path)


def test_an_argument_of_timms_builder_is_refused_for_models_that_accept_any_argument(
    tmp_path: Path,
) -> None:
    """ByobNet passes all arguments it does not have to its configuration."""
    model = SegFormer(TimmBackbone("mobileone_s0"), num_classes=2, decoder_channels=8)
    path = described(model, tmp_path / "x.safetensors", set_config(kwargs_filter=["x"]))
    with pytest.raises(ValueError, match="the argument 'kwargs_filter', which it does not have"):
        SegFormer.from_pretrained(path)


@pytest.mark.parametrize(
    "change",
    [
        {"pretrained": True},
        {"pretrained": True, "pretrained_cfg": {"url": "https://host/x.pth"}},
        {"pretrained": True, "pretrained_cfg_overlay": {"file": "SECRET"}},
        {"checkpoint_path": "SECRET"},
    ],
    ids=str,
)
def test_a_description_cannot_open_an_address_or_another_file(
    change: dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import timm.models

    secret = tmp_path / "secret.pth"
    secret.write_text("not to be read")
    model = resnet()
    hostile = json.loads(json.dumps(change).replace("SECRET", str(secret)))
    path = described(model, tmp_path / "x.safetensors", set_config(**hostile))
    for name in ("load_pretrained", "load_checkpoint"):
        for module in (timm.models._builder, timm.models._factory):
            monkeypatch.setattr(module, name, lambda *a, **k: pytest.fail("read"), raising=False)
    monkeypatch.setattr(
        "torch.hub.load_state_dict_from_url", lambda *a, **k: pytest.fail("fetched")
    )
    again = SegFormer.from_pretrained(path)
    torch.testing.assert_close(again.state_dict(), model.state_dict(), rtol=0, atol=0)


@pytest.mark.parametrize(
    "change",
    [
        lambda description: description.pop("decode_head"),
        lambda description: description["backbone"].pop("config"),
        lambda description: description["backbone"]["config"].update(no_such=1),
        lambda description: description["backbone"]["config"].update(variant={"dims": 3}),
        lambda description: description["classes"].update(more=1),
        lambda description: description.update(normalization={"mean": [1]}),
        lambda description: description["backbone"].update({"class": "Unknown"}),
    ],
)
def test_a_broken_description_raises_one_sentence(
    tiny: SegFormer,
    change: Callable[[dict[str, Any]], object],
    tmp_path: Path,
) -> None:
    path = described(tiny, tmp_path / "x.safetensors", change)
    with pytest.raises(
        ValueError, match=r"describes its model wrongly|cannot build|holds a Unknown"
    ):
        SegFormer.from_pretrained(path)


def test_broken_json_is_refused_and_metadata_of_other_packages_is_ignored(
    tiny: SegFormer,
    tmp_path: Path,
) -> None:
    path, model = tmp_path / "x.safetensors", SegFormer("b0", num_classes=2)
    save_file(tiny.state_dict(), path, {"segformer": '{"backbone": '})
    with pytest.raises(ValueError, match=r"x.safetensors' describes its model by broken JSON"):
        SegFormer.from_pretrained(path)
    for text in ("b0", "{}"):
        save_file(model.state_dict(), path, {"segformer": text})
        assert SegFormer.from_pretrained(path).backbone.config["variant"] == "b0"


def of(name: str, make: Callable[[], Any]) -> Callable[[nn.Module], None]:
    def change(model: nn.Module) -> None:
        parent, _, child = name.rpartition(".")
        setattr(model.get_submodule(parent), child, make())

    return change


class Doubled(MixFFN):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return 2 * super().forward(x)


CHANGES: dict[str, tuple[Callable[[Any], object], str]] = {
    "classifier": (
        of("decode_head.classifier", lambda: nn.Conv2d(16, 7, 1)),
        r"decode_head.classifier.bias is \(7,\) instead of \(5,\)",
    ),
    "norm": (
        of("decode_head.norm", lambda: nn.GroupNorm(4, 16)),
        "decode_head.norm is a GroupNorm instead of a BatchNorm2d",
    ),
    "activation": (
        of("backbone.stages.0.blocks.0.ffn.act", nn.ReLU),
        "backbone.stages.0.blocks.0.ffn.act is a ReLU instead of a GELU",
    ),
    "stem": (
        of("backbone.stages.0.embed.proj", lambda: nn.Conv2d(4, 8, 7, 4, 3)),
        r"embed.proj.weight is \(8, 4, 7, 7\) instead of \(8, 3, 7, 7\)",
    ),
    "stride": (
        of("backbone.stages.0.embed.proj", lambda: nn.Conv2d(3, 8, 7, 2, 3)),
        r"embed.proj.stride is \(2, 2\) instead of \(4, 4\)",
    ),
    "epsilon": (
        lambda model: setattr(model.backbone.stages[1].norm, "eps", 0.1),
        "backbone.stages.1.norm.eps is 0.1 instead of 1e-06",
    ),
    "heads": (
        lambda model: setattr(model.backbone.stages[3].blocks[0].attn, "heads", 1),
        "attn.heads is 1 instead of 4",
    ),
    "stage": (of("backbone.stages.3", nn.Identity), "backbone.stages.3.* is gone"),
    "weight norm": (
        lambda model: parametrizations.weight_norm(model.decode_head.fuse),
        "decode_head.fuse.parametrizations.weight.original0 is new",
    ),
    "pruning": (
        lambda model: prune.l1_unstructured(model.decode_head.fuse, "weight", 0.5),
        "decode_head.fuse.weight_mask is new",
    ),
    "a subclass": (
        lambda model: setattr(model.backbone.stages[0].blocks[0].ffn, "__class__", Doubled),
        "backbone.stages.0.blocks.0.ffn is a Doubled instead of a MixFFN",
    ),
    "a forward": (
        lambda model: setattr(model.decode_head.fuse, "forward", torch.relu),
        "decode_head.fuse has a forward of its own",
    ),
    "a module more": (lambda model: setattr(model, "extra", nn.Linear(2, 2)), "extra.bias is new"),
}


@pytest.mark.parametrize(("change", "message"), CHANGES.values(), ids=CHANGES)
def test_a_model_that_differs_from_its_config_is_not_saved(
    tiny: SegFormer,
    change: Callable[[Any], object],
    message: str,
    tmp_path: Path,
) -> None:
    change(tiny)
    with pytest.raises(ValueError, match=rf"could not be loaded: .*{message}.* Build a model with"):
        tiny.save(tmp_path / "x.safetensors")
    assert not list(tmp_path.iterdir())


def test_the_cure_in_the_message_works(tiny: SegFormer, tmp_path: Path) -> None:
    tiny.decode_head.classifier = nn.Conv2d(16, 7, 1)
    new = SegFormer(TINY, num_classes=7).eval()
    new.load_state_dict(tiny.state_dict())
    new.save(tmp_path / "x.safetensors")
    images = torch.randn(1, 3, 64, 64)
    assert torch.equal(SegFormer.from_pretrained(tmp_path / "x.safetensors")(images), new(images))


def test_layers_that_only_training_uses_may_be_changed(tiny: SegFormer, tmp_path: Path) -> None:
    tiny.decode_head.dropout = nn.Identity()
    tiny.decode_head.norm.momentum = 0.01
    tiny.backbone.stages[3].blocks[0].drop_path = nn.Identity()
    nn.SyncBatchNorm.convert_sync_batchnorm(tiny).save(tmp_path / "x.safetensors")
    again = SegFormer.from_pretrained(tmp_path / "x.safetensors")
    torch.testing.assert_close(again.state_dict(), tiny.state_dict(), rtol=0, atol=0)


@pytest.mark.parametrize("name", ["hrnet_w18_small", "dla46_c", "densenet121", "iformer_m"])
def test_timm_models_with_unusual_names_are_read_back(name: str, tmp_path: Path) -> None:
    """Names with more than two numbers, a base_layer without adapter, a module called module."""
    model = randomized(SegFormer(TimmBackbone(name), num_classes=2, decoder_channels=8))
    model.save(tmp_path / "x.safetensors")
    again = SegFormer.from_pretrained(tmp_path / "x.safetensors")
    torch.testing.assert_close(again.state_dict(), model.state_dict(), rtol=0, atol=0)


def test_options_of_timm_models_are_kept(tmp_path: Path) -> None:
    options: dict[str, Any] = {
        "img_size": 64,
        "drop_path_rate": 0.1,
        "embed_dim": 64,
        "num_heads": 4,
    }
    backbone = TimmBackbone("vit_tiny_patch16_224", **options)
    SegFormer(backbone, num_classes=2).save(tmp_path / "x.safetensors")
    again = SegFormer.from_pretrained(tmp_path / "x.safetensors")
    assert again.backbone.config.items() >= options.items()


def test_setr_is_inspected(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    from segformer.cli import main

    SETR("tiny", 5, MLAHead, channels=16, img_size=64).save(tmp_path / "setr.safetensors")
    monkeypatch.setattr("sys.argv", ["segformer", "inspect", str(tmp_path / "setr.safetensors")])
    main()
    message = " ".join(capsys.readouterr().out.split())
    assert "vit_tiny_patch16_384" in message
    assert "positions=bicubic, fit=resize" in message


def test_the_numerics_of_pretrained_weights_are_written(tmp_path: Path) -> None:
    """transformers' layout, in which NVIDIA publishes the encoders, has one epsilon for all."""
    randomized(SegFormer("b0", num_classes=2)).save(tmp_path / "mit", "huggingface")
    overlay = {"file": str(tmp_path / "mit" / "model.safetensors")}
    backbone = TimmBackbone("mit_b0", pretrained=True, pretrained_cfg_overlay=overlay)
    model = SegFormer(backbone, num_classes=2).eval()
    model.save(tmp_path / "x.safetensors")
    again = SegFormer.from_pretrained(tmp_path / "x.safetensors")
    assert again.backbone.model.model.stages[0].norm.eps == 1e-5
    images = torch.randn(1, 3, 64, 64)
    assert torch.equal(again(images), model(images))
