"""Saving writes a complete file or none, keeps links and permissions, and names its errors."""

from __future__ import annotations

import json
import logging
import os
import re
from dataclasses import replace
from pathlib import Path

import processes
import pytest
import torch
from conftest import TINY, randomized
from torch import nn

from segformer import Classes, SegFormer

FULL = """
import resource, signal, sys
from pathlib import Path
from segformer import SegFormer
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
folder = Path(sys.argv[1])
model = SegFormer("b0", num_classes=2)
names = {
    "native": "m.safetensors", "nvidia": "m.pth", "smp": "smp.safetensors", "huggingface": "hf"
}
for layout, name in names.items():
    model.save(folder / name, layout)
before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))
for layout, name in names.items():
    for path in (folder / name, folder / f"new_{name}"):
        try:
            model.save(path, layout)
        except OSError as error:
            print("refused", error)
print("kept", all(path.read_bytes() == content for path, content in before.items()))
print("left", sorted(p.name for p in folder.rglob("*") if p.is_file() and p not in before))
"""


def test_a_full_disk_raises_oserror_in_every_layout(tmp_path: Path) -> None:
    """Simulated by a limit of the file size, with which the same system call fails."""
    folder = tmp_path / "full"
    folder.mkdir()
    printed = processes.run(FULL, folder, output=tmp_path / "printed")
    refused = [line for line in printed.splitlines() if line.startswith("refused")]
    assert len(refused) == 8, printed
    for line in refused:
        assert f"cannot write '{folder}" in line
        assert ("kept" in line) == ("new_" not in line)
    assert "kept True" in printed
    assert "left []" in printed


@pytest.mark.parametrize(("layout", "name"), [("native", "m.safetensors"), ("nvidia", "m.pth")])
def test_a_symbolic_link_is_kept(layout: str, name: str, tmp_path: Path) -> None:
    model = randomized(SegFormer("b0", num_classes=2))
    (tmp_path / "real").mkdir()
    (tmp_path / name).symlink_to(tmp_path / "real" / name)  # dangling at first
    for _ in range(2):
        model.save(tmp_path / name, layout)
        assert (tmp_path / name).is_symlink()
        assert [path.name for path in (tmp_path / "real").iterdir()] == [name]
    again = SegFormer.from_pretrained(tmp_path / "real" / name)
    torch.testing.assert_close(again.state_dict(), model.state_dict(), rtol=0, atol=0)


@pytest.mark.parametrize("umask", [0o022, 0o077])
def test_files_have_the_permissions_of_new_files_or_of_the_file_they_replace(
    tiny: SegFormer, umask: int, tmp_path: Path
) -> None:
    before = os.umask(umask)
    try:
        tiny.save(tmp_path / "m.safetensors")
        tiny.save(tmp_path / "hf", "huggingface")
        (tmp_path / "kept.safetensors").touch(0o640)
        (tmp_path / "kept.safetensors").chmod(0o640)
        tiny.save(tmp_path / "kept.safetensors")
    finally:
        os.umask(before)
    modes = {
        path.name: path.stat().st_mode & 0o777 for path in tmp_path.rglob("*") if path.is_file()
    }
    assert modes.pop("kept.safetensors") == 0o640
    assert set(modes.values()) == {0o666 & ~umask}


def test_a_tilde_is_the_home_folder(
    tiny: SegFormer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    tiny.save("~/m.safetensors")
    assert (tmp_path / "m.safetensors").is_file()
    again = SegFormer.from_pretrained("~/m.safetensors")
    torch.testing.assert_close(again.state_dict(), tiny.state_dict(), rtol=0, atol=0)


def test_tied_parameters_are_written_twice(tiny: SegFormer, tmp_path: Path) -> None:
    blocks = tiny.backbone.stages[2].blocks
    blocks[1].ffn.fc1.weight = blocks[0].ffn.fc1.weight
    for layout, name in (("native", "m.safetensors"), ("huggingface", "hf")):
        tiny.save(tmp_path / name, layout)
        again = SegFormer.from_pretrained(tmp_path / name)
        torch.testing.assert_close(again.state_dict(), tiny.state_dict(), rtol=0, atol=0)


@pytest.mark.parametrize(("layout", "name"), [("native", "m.safetensors"), ("nvidia", "m.pth")])
def test_overlapping_parameters_are_written_without_the_rest_of_their_storage(
    layout: str, name: str, tmp_path: Path
) -> None:
    model = randomized(SegFormer("b0", num_classes=2))
    model.save(tmp_path / name, layout)
    size = (tmp_path / name).stat().st_size
    storage = torch.randn(1 << 20)
    block = model.backbone.stages[0].blocks[0]
    block.norm1.weight, block.norm2.weight = (
        nn.Parameter(storage[start : start + 32]) for start in (0, 16)
    )
    model.save(tmp_path / name, layout)
    again = SegFormer.from_pretrained(tmp_path / name)
    torch.testing.assert_close(again.state_dict(), model.state_dict(), rtol=0, atol=0)
    assert (tmp_path / name).stat().st_size == pytest.approx(size, abs=1000)


def test_a_tensor_subclass_is_refused_with_its_name(tiny: SegFormer, tmp_path: Path) -> None:
    """Such as torchao's quantised weights."""

    class Packed(torch.Tensor):
        pass

    weight = tiny.decode_head.fuse.weight.detach().as_subclass(Packed)
    tiny.decode_head.fuse.weight = nn.Parameter(weight)
    with pytest.raises(
        ValueError, match=r"decode_head.fuse.weight is a Packed, which no layout has"
    ):
        tiny.save(tmp_path / "m.safetensors")
    assert not list(tmp_path.iterdir())


SHARDED = """
import sys
import torch
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from conftest import TINY
from segformer import SegFormer
torch.distributed.init_process_group(
    "gloo", init_method="file://" + sys.argv[2], rank=int(sys.argv[3]), world_size=2
)
torch.manual_seed(0)
model = SegFormer(TINY, num_classes=5)
whole = {key: tensor.clone() for key, tensor in model.state_dict().items()}
mesh = init_device_mesh("cpu", (2,))
for module in (*model.backbone.stages, model.backbone, model):
    fully_shard(module, mesh=mesh)
model.save(sys.argv[1])
torch.distributed.barrier()
again = SegFormer.from_pretrained(sys.argv[1]).state_dict()
print(all(torch.equal(again[key], whole[key]) for key in whole))
torch.distributed.destroy_process_group()
"""


def test_a_sharded_model_is_gathered(tmp_path: Path) -> None:
    arguments = [tmp_path / "m.safetensors", tmp_path / "rendezvous"]
    ranks = [
        processes.start(SHARDED, *arguments, rank, output=tmp_path / str(rank)) for rank in (0, 1)
    ]
    for rank, process in enumerate(ranks):
        process.join(120)
        printed = (tmp_path / str(rank)).read_text()
        assert printed.endswith("True\n"), printed


@torch.no_grad()
def test_a_model_of_large_images_only_is_written_for_transformers(tmp_path: Path) -> None:
    """Its sequence reduction takes 256×256 pixels."""
    from transformers import SegformerForSemanticSegmentation

    model = randomized(SegFormer(replace(TINY, sr_ratios=(64, 8, 4, 2)), num_classes=3))
    model.save(tmp_path / "hf", "huggingface")
    peer = SegformerForSemanticSegmentation.from_pretrained(tmp_path / "hf")
    images = torch.randn(1, 3, 256, 256)
    expected = peer(pixel_values=images).logits
    coarse = model.decode_head(model.backbone(images))
    torch.testing.assert_close(coarse, expected, rtol=0, atol=1e-3)


@torch.no_grad()
def test_a_model_of_one_logit_is_written_for_transformers_and_read_back(
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    from transformers import SegformerForSemanticSegmentation

    classes = Classes(["dry", "wet"], [(0, 0, 0), (0, 0, 255)])
    model = randomized(SegFormer(TINY, num_classes=1, classes=classes))
    with caplog.at_level(logging.WARNING, "segformer"):
        model.save(tmp_path / "one", "huggingface")
    assert "'wet' is written, and 'dry', the name of label 0, is not" in caplog.text
    config = json.loads((tmp_path / "one" / "config.json").read_text())
    assert (config["id2label"], config["label2id"]) == ({"0": "wet"}, {"wet": 0})
    peer = SegformerForSemanticSegmentation.from_pretrained(tmp_path / "one")
    images = torch.randn(1, 3, 64, 64)
    expected = peer(pixel_values=images).logits
    torch.testing.assert_close(
        model.decode_head(model.backbone(images)), expected, rtol=0, atol=1e-4
    )
    again = SegFormer.from_pretrained(tmp_path / "one")
    assert again.classes.names == ("background", "wet")


def test_models_of_one_logit_in_any_layout_label_and_draw_two_classes(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    import segmentation_models_pytorch as smp
    from PIL import Image
    from transformers import SegformerConfig, SegformerForSemanticSegmentation

    from segformer.cli import main

    SegformerForSemanticSegmentation(SegformerConfig(num_labels=1)).save_pretrained(tmp_path / "hf")
    torch.save(
        smp.Segformer("mit_b0", encoder_weights=None, classes=1).state_dict(), tmp_path / "smp.pth"
    )
    SegFormer(TINY, num_classes=1, classes=Classes(["sky"])).save(tmp_path / "own.safetensors")
    Image.new("RGB", (64, 64), (200, 10, 10)).save(tmp_path / "image.png")
    for name in ("hf", "smp.pth", "own.safetensors"):
        arguments = [str(tmp_path / name), str(tmp_path / "image.png")]
        out = ["--out", str(tmp_path / f"out_{name}"), "--device", "cpu"]
        monkeypatch.setattr("sys.argv", ["segformer", "predict", *arguments, *out])
        main()
        assert (tmp_path / f"out_{name}" / "image_overlay.jpg").is_file()
        model = SegFormer.from_pretrained(tmp_path / name)
        assert len(model.classes) == 2
        assert model.classes.colors[0] != model.classes.colors[1]


@pytest.mark.parametrize(("layout", "name"), [("native", "x.safetensors"), ("nvidia", "x.pth")])
def test_a_model_without_values_is_not_saved(
    layout: str, name: str, tiny: SegFormer, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=r"is a meta tensor, which has no values"):
        SegFormer("b0", num_classes=2).to("meta").save(tmp_path / name, layout)
    assert not list(tmp_path.iterdir())


def test_a_folder_is_not_written_under_the_name_of_a_file(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"layout is a folder; call it b0$"):
        SegFormer("b0", num_classes=2).save(tmp_path / "b0.pth", "huggingface")
    assert not list(tmp_path.iterdir())


def test_lost_numerics_of_one_logit_change_labels(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model = randomized(SegFormer("b0", num_classes=1))
    torch.nn.init.normal_(model.decode_head.classifier.weight, std=0.3)
    model.save(tmp_path / "x.pth", "smp")
    (share,) = re.findall(r"and (\S+) % of their labels", caplog.text)
    assert 0 < float(share) < 50
