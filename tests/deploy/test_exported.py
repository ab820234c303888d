"""Exported files as models: in Python, in predict, validate and test; and what is refused."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import interpolate
from halves import FiveClasses, small_config
from PIL import Image
from torch import Tensor
from torch.nn.utils import prune

from segformer import SegFormer, SegmentationModel, deploy
from segformer.cli import main
from segformer.deploy.description import KEY
from segformer.evaluation import Protocol, Slide, Whole, evaluate, label_large
from segformer.inference import InWindows, Labeller, WholeImages, label_file

File = Callable[[str], Path]
WINDOWS = Slide((32, 40), (24, 32))
WITH_LOGITS = ("logits.onnx", "pixels.onnx", "probabilities.xml", "logits.pt2")
WITH_LABELS = ("labels.onnx", "labels.xml", "sized.onnx")

pytestmark = pytest.mark.filterwarnings("ignore")


def pixels(*shape: int) -> Tensor:
    """Smooth pictures (B, 3, H, W) uint8, in which labels have areas."""
    count, height, width = shape
    generator = torch.Generator().manual_seed(height)
    coarse = torch.rand(count, 3, 2 + height // 8, 2 + width // 8, generator=generator)
    return (255 * interpolate(coarse, (height, width))).round().to(torch.uint8)


def normalized(model: SegFormer, *shape: int) -> Tensor:
    return model.normalization(pixels(*shape))


def share_equal(labels: Any, expected: Any) -> float:
    labels, expected = torch.as_tensor(labels), torch.as_tensor(expected)
    assert labels.shape == expected.shape
    return float((labels == expected).float().mean())


def picture(path: Path, height: int, width: int) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels(1, height, width)[0].permute(1, 2, 0).numpy()).save(path)
    return path


# In Python


@pytest.mark.parametrize(
    "name",
    [
        *("pixels.onnx", "probabilities.xml", "logits.pt2", "labels.onnx"),
        *(
            pytest.param(name, marks=pytest.mark.slow)
            for name in ("logits.onnx", "labels.xml", "sized.onnx")
        ),
    ],
)
def test_labels_are_those_of_the_model_at_changing_sizes(
    name: str, exported: File, model: SegFormer
) -> None:
    loaded = deploy.load(exported(name))
    for shape in ((1, 32, 32), (2, 65, 97), (1, 32, 32), (3, 40, 33)):
        images = normalized(model, *shape)
        labels = loaded.predict(images)
        assert labels.dtype == torch.int64
        assert share_equal(labels, model.predict(images)) > 0.999
    assert loaded.classes == model.classes
    assert loaded.normalization == model.normalization
    assert (loaded.num_classes, loaded.min_size) == (model.num_classes, model.min_size)


@pytest.mark.parametrize("name", WITH_LOGITS)
def test_the_logits_have_the_models_softmax(name: str, exported: File, model: SegFormer) -> None:
    images = normalized(model, 2, 50, 70)
    with torch.no_grad():
        expected = model(images).softmax(1)
    found = deploy.load(exported(name))(images).softmax(1)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)


def resized_logits(model: SegFormer, images: Tensor, size: tuple[int, int]) -> Tensor:
    with torch.no_grad():
        return interpolate(model(images), size).argmax(1)


def nearest_labels(model: SegFormer, images: Tensor, size: tuple[int, int]) -> Tensor:
    labels = model.predict(images)[:, None].double()
    return F.interpolate(labels, size, mode="nearest-exact")[:, 0].long()


@pytest.mark.parametrize("size", [(90, 131), (21, 30), (48, 64)], ids=str)
@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("logits.onnx", resized_logits),
        ("probabilities.xml", resized_logits),
        ("labels.onnx", nearest_labels),
        ("sized.onnx", SegmentationModel.predict),
    ],
)
def test_labels_of_another_size(
    name: str, expected: Any, size: tuple[int, int], exported: File, model: SegFormer
) -> None:
    loaded, images = deploy.load(exported(name)), normalized(model, 2, 48, 64)
    labels = loaded.predict(images, size)
    assert share_equal(labels, expected(model, images, size)) > 0.999
    for same in (list(size), torch.tensor(size), torch.Size(size), np.array(size)):
        assert torch.equal(loaded.predict(images, same), labels)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16], ids=str)
def test_images_of_any_precision_and_device(
    dtype: torch.dtype, device: torch.device, exported: File, model: SegFormer
) -> None:
    loaded, images = deploy.load(exported("logits.onnx")), normalized(model, 1, 40, 50).to(dtype)
    on_device = images.to(device).requires_grad_()
    assert loaded(on_device).device.type == device.type
    assert torch.equal(loaded.predict(on_device).cpu(), loaded.predict(images.float()))


def test_probabilities_of_zero_can_be_interpolated(
    exported: File, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded = deploy.load(exported("probabilities.xml"))
    certain = F.one_hot(torch.arange(40) // 20, 5).T[None, :, None].expand(1, 5, 32, 40).float()
    monkeypatch.setattr(loaded, "session", lambda images: certain)
    images = torch.zeros(1, 3, 32, 40)
    assert loaded(images).isfinite().all()
    expected = (torch.arange(80) // 40).expand(1, 64, 80)
    assert torch.equal(loaded.predict(images, (64, 80)), expected)
    assert torch.equal(Protocol(flip=False).predict(loaded, images, (64, 80)), expected)


def test_a_file_that_normalises_takes_pixels_and_normalised_images(
    exported: File, model: SegFormer
) -> None:
    loaded, raw = deploy.load(exported("pixels.onnx")), pixels(2, 48, 50)
    assert torch.equal(loaded(raw), loaded(model.normalization(raw)))
    every = torch.arange(256, dtype=torch.uint8).expand(3, 4, 256)[None]
    back = loaded._pixels(model.normalization(every))
    assert torch.equal(back, every.permute(0, 2, 3, 1))


@pytest.mark.parametrize("size", [(48, 64), (70, 95), (20, 90), (1, 1)], ids=str)
@pytest.mark.parametrize("labeller", [WholeImages(), InWindows(WINDOWS)], ids=str)
@pytest.mark.parametrize("name", ["pixels.onnx", "logits.pt2"])
def test_image_files_have_the_labels_of_the_model(
    name: str,
    labeller: Labeller,
    size: tuple[int, int],
    exported: File,
    model: SegFormer,
    tmp_path: Path,
) -> None:
    path = picture(tmp_path / "a.png", *size)
    _, labels = label_file(deploy.load(exported(name)), path, labeller)
    _, expected = label_file(model, path, labeller)
    # Images below 32 pixels are padded with the mean colour, which pixels hold in 8 bits.
    assert share_equal(labels, expected) > (0.97 if min(size) < 32 else 0.999)


@pytest.mark.parametrize(
    "protocol",
    [
        None,
        Protocol(Whole(), scale=(80, 60), multiple=32),
        Protocol(WINDOWS),
        Protocol(WINDOWS, ratios=(0.75, 1.0, 1.5), flip=True),
    ],
    ids=str,
)
@pytest.mark.parametrize("name", WITH_LOGITS)
def test_evaluation_has_the_scores_of_the_model(
    name: str, protocol: Protocol | None, exported: File, model: SegFormer
) -> None:
    dataset = FiveClasses(2)
    scores = evaluate(deploy.load(exported(name)), dataset, protocol)
    expected = evaluate(model, dataset, protocol)
    moved = (scores.confusion - expected.confusion).abs().sum() / 2
    # Resized images are rounded to pixels before a file normalises them.
    assert moved <= (0.02 if name == "pixels.onnx" else 0.001) * expected.confusion.sum()


class Unread(FiveClasses):
    def __getitem__(self, index: int) -> Any:
        raise AssertionError("the data were read")


@pytest.mark.parametrize("name", WITH_LABELS)
def test_a_file_of_labels_is_evaluated_in_one_pass_and_otherwise_refused(
    name: str, exported: File, model: SegFormer
) -> None:
    loaded = deploy.load(exported(name))
    for protocol, moved in (
        (Protocol(), 0.001),
        (Protocol(multiple=32), 0.02),
        (Protocol(scale=(64, 48)), 0.02),
    ):
        found = evaluate(loaded, FiveClasses(2), protocol).confusion
        expected = evaluate(model, FiveClasses(2), protocol).confusion
        assert (found - expected).abs().sum() / 2 <= moved * expected.sum()
    for protocol in (Protocol(WINDOWS), Protocol(flip=True), Protocol(ratios=(0.5, 1.0))):
        with pytest.raises(ValueError, match="gives labels only; export it with --output logits"):
            evaluate(loaded, Unread(), protocol)
    image, out = np.zeros((70, 90, 3), np.uint8), np.zeros((70, 90), np.uint8)
    with pytest.raises(ValueError, match="export it with --output logits"):
        label_large(loaded, image, out, WINDOWS)


def test_a_large_image_is_labelled_in_windows(exported: File, model: SegFormer) -> None:
    image = pixels(1, 75, 100)[0].permute(1, 2, 0).numpy()
    out, expected = (np.zeros((75, 100), np.uint8) for _ in range(2))
    label_large(deploy.load(exported("logits.onnx")), image, out, WINDOWS)
    label_large(model, image, expected, WINDOWS)
    assert share_equal(out, expected) > 0.999


@pytest.mark.parametrize("count", [1, 2, 3])
def test_a_fixed_file_takes_any_number_of_smaller_images(
    count: int, exported: File, model: SegFormer
) -> None:
    """Each is padded with the mean colour, and the last batch of two is filled up."""
    images = normalized(model, count, 50, 80)
    expected = model.predict(F.pad(images, (0, 16, 0, 14)))[:, :50, :80]
    assert share_equal(deploy.load(exported("fixed.onnx")).predict(images), expected) > 0.999


@pytest.mark.parametrize("factor", [1, 2])
def test_a_fixed_file_with_a_size_has_no_labels_of_its_padding(
    factor: int, exported: File, model: SegFormer
) -> None:
    images = normalized(model, 2, 48, 64)
    padded = F.pad(images, (0, 96 - 64, 0, 64 - 48))
    expected = model.predict(padded, (64 * factor, 96 * factor))[:, : 48 * factor, : 64 * factor]
    found = deploy.load(exported("fixed and sized.pt2")).predict(images, (48 * factor, 64 * factor))
    assert share_equal(found, expected) > 0.999


def test_a_file_beside_an_export_is_kept_unless_it_is_asked(
    model: SegFormer, tmp_path: Path
) -> None:
    pytest.importorskip("openvino", reason="needs an extra of export")
    (tmp_path / "model.bin").write_bytes(b"other weights")
    with pytest.raises(FileExistsError, match=r"model\.bin' exists already"):
        deploy.export(model, tmp_path / "model.xml")
    assert (tmp_path / "model.bin").read_bytes() == b"other weights"


@pytest.mark.parametrize("name", ["labels.onnx", "labels.xml", "logits.pt2"])
def test_it_pickles_and_is_found_from_another_folder(
    name: str, exported: File, model: SegFormer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    path = exported(name)
    monkeypatch.chdir(path.parent)
    loaded = deploy.load(path.name)
    packed = pickle.dumps(loaded)
    assert len(packed) < 1000  # the path, not the weights
    monkeypatch.chdir(tmp_path)
    images = normalized(model, 1, 40, 50)
    assert torch.equal(pickle.loads(packed).predict(images), loaded.predict(images))


@pytest.mark.parametrize("name", ["labels.xml", "labels.onnx"])
def test_several_threads_share_one(name: str, exported: File, model: SegFormer) -> None:
    loaded = deploy.load(exported(name))
    batches = [model.normalization(pixels(1, 32, 32 + step)) for step in (0, 1, 0, 2, 1, 3, 4, 0)]
    expected = [model.predict(images) for images in batches]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(loaded.predict, batches))
    assert all(share_equal(*pair) > 0.999 for pair in zip(found, expected, strict=True))


DROPPED_IN_A_THREAD = """
import signal, subprocess, sys, threading, torch
from segformer import deploy

models = [deploy.load(sys.argv[1])]
models[0].predict(torch.zeros(1, 3, 32, 32))
thread = threading.Thread(target=models.clear)
thread.start()
thread.join()
signal.signal(signal.SIGCHLD, lambda *_: print("the worker ended"))  # as PyTorch's loader does
subprocess.run([sys.executable, "-c", ""])
"""


@pytest.mark.skipif(os.name == "nt", reason="reason: Windows has no such signals")
def test_a_model_freed_in_another_thread_leaves_signals_alone(exported: File) -> None:
    """In OpenVINO, freeing the core there ended the process at the next signal."""
    run = subprocess.run(
        [sys.executable, "-c", DROPPED_IN_A_THREAD, str(exported("labels.xml"))],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (run.returncode, run.stdout) == (0, "the worker ended\n"), run.stderr


def test_load_model_reads_weights_and_exported_files(
    exported: File, model: SegFormer, tmp_path: Path
) -> None:
    model.save(tmp_path / "weights.safetensors")
    weights = deploy.load_model(tmp_path / "weights.safetensors", "cpu")
    assert isinstance(weights, SegmentationModel)
    assert isinstance(deploy.load_model(exported("logits.onnx")), deploy.Exported)


# On the command line


def label_maps(folder: Path) -> dict[str, np.ndarray]:
    """The arrays and label maps in a folder."""
    found = {path.name: np.array(Image.open(path)) for path in folder.glob("?.png")}
    return found | {path.name: np.load(path) for path in folder.glob("*.npy")}


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("labels.onnx", []),
        ("logits.onnx", ["--slide", "40", "32"]),
        ("probabilities.xml", ["--slide", "64", "64"]),
        ("logits.pt2", ["--device", "cpu"]),
    ],
)
def test_predict_writes_the_label_maps_of_the_weights(
    name: str, options: list[str], exported: File, model: SegFormer, tmp_path: Path
) -> None:
    for letter, size in (("a", (64, 80)), ("b", (20, 100)), ("c", (1, 1)), ("d", (90, 50))):
        picture(tmp_path / "in" / f"{letter}.png", *size)
    sources = [str(tmp_path / "in")]
    if name != "labels.onnx":
        np.save(tmp_path / "large.npy", pixels(1, 70, 90)[0].permute(1, 2, 0).numpy())
        sources.append(str(tmp_path / "large.npy"))
    model.save(tmp_path / "weights.safetensors")
    for source, out in ((exported(name), "found"), (tmp_path / "weights.safetensors", "expected")):
        main(["predict", str(source), *sources, "--out", str(tmp_path / out), *options])
    found, expected = label_maps(tmp_path / "found"), label_maps(tmp_path / "expected")
    assert len(found) == len(expected) == 3 + len(sources)
    for image, labels in found.items():
        assert share_equal(labels, expected[image]) > 0.998
        assert labels.dtype == np.uint8


def test_predict_names_the_photo_that_a_fixed_size_refuses(
    exported: File, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    picture(tmp_path / "in" / "fits.png", 64, 90)
    picture(tmp_path / "in" / "large.png", 65, 90)
    out = tmp_path / "out"
    sentence = refused(
        ["predict", str(exported("fixed.onnx")), str(tmp_path / "in"), "--out", str(out)], capsys
    )
    assert "images of 65×90 are larger than the 64×96 of" in sentence
    assert "resize them, or export it without --size" in sentence
    assert sorted(path.name for path in out.iterdir()) == ["fits.png", "fits_overlay.jpg"]


@pytest.mark.parametrize("source", ["image.png", "large.npy"])
def test_predict_refuses_windows_with_a_file_of_labels(
    source: str, exported: File, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    picture(tmp_path / "image.png", 64, 90)
    np.save(tmp_path / "large.npy", np.zeros((64, 90, 3), np.uint8))
    options = ["--slide", "32", "32"] if source == "image.png" else []
    arguments = [str(exported("labels.onnx")), str(tmp_path / source), *options]
    sentence = refused(["predict", *arguments, "--out", str(tmp_path / "out")], capsys)
    assert "gives labels only; export it with --output logits" in sentence
    assert list((tmp_path / "out").iterdir()) == []


def refused(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """The one sentence with which the command ends, with code 2."""
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    assert stop.value.code == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("segformer ")]
    assert len(lines) == 1
    return lines[0]


def measured(verb: str, weights: Path, folder: Path, *options: str) -> dict[str, Any]:
    """The content of ``results.json`` after a measurement."""
    folder.mkdir()
    data = ["--data.val=halves.FiveClasses", "--data.val.length=2"]
    if verb == "test":
        data += ["--data.test=halves.FiveClasses", "--data.test.length=2"]
    config = ["--config", str(small_config(folder)), *data]
    main([verb, *config, "--data.train=halves.FiveClasses", "--weights", str(weights), *options])
    (results,) = folder.rglob("results.json")
    return dict(json.loads(results.read_text(encoding="utf-8")))


@pytest.mark.parametrize(
    ("verb", "name", "options"),
    [
        ("validate", "labels.xml", ["--data.val_batch_size=2"]),
        ("validate", "logits.onnx", ["--protocol=slide", "--tta"]),
        ("test", "fixed.onnx", ["--protocol=whole"]),
    ],
)
def test_validate_and_test_measure_what_they_measure_of_the_weights(
    verb: str, name: str, options: list[str], exported: File, model: SegFormer, tmp_path: Path
) -> None:
    model.save(tmp_path / "weights.safetensors")
    found = measured(verb, exported(name), tmp_path / "found", *options)
    expected = measured(verb, tmp_path / "weights.safetensors", tmp_path / "expected", *options)
    split = {"validate": "val", "test": "test"}[verb]
    assert found[split]["miou"] == pytest.approx(expected[split]["miou"], abs=1e-3)
    assert found[split].keys() == expected[split].keys()


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--protocol=slide"], "gives labels only; export it with --output logits"),
        (["--protocol=whole", "--tta"], "gives labels only; export it with --output logits"),
        (
            ["--data.val=halves.Halves", "--data.train=halves.Halves"],
            "has 5 classes (road, sky, tree, …), the data have 2",
        ),
    ],
)
def test_validate_refuses_before_the_data_are_read(
    options: list[str],
    sentence: str,
    exported: File,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("halves.Halves.__getitem__", Unread.__getitem__)
    config = ["--config", str(small_config(tmp_path)), "--data.val=halves.FiveClasses"]
    given = [*config, "--data.train=halves.FiveClasses", "--weights", str(exported("labels.onnx"))]
    assert sentence in refused(["validate", *given, *options], capsys)


# Wrong files and wrong images


def other_tools_file(path: Path) -> None:
    """Writes a file of another tool, with the same format."""
    example = (torch.zeros(1, 3, 32, 32),)
    if path.suffix == ".onnx":
        import onnx
        from onnx import TensorProto, helper

        ends = [helper.make_tensor_value_info(n, TensorProto.FLOAT, [1]) for n in "xy"]
        graph = helper.make_graph([helper.make_node("Relu", "x", "y")], "g", ends[:1], ends[1:])
        onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)]), path)
    elif path.suffix == ".xml":
        import openvino

        model = openvino.convert_model(torch.nn.ReLU(), example_input=example[0])
        openvino.save_model(model, path)
    else:
        torch.export.save(torch.export.export(torch.nn.ReLU(), example), path)


@pytest.mark.parametrize("suffix", [".onnx", ".xml", ".pt2"])
def test_a_file_of_another_tool_is_refused(
    suffix: str, exported: File, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, image = tmp_path / f"other{suffix}", picture(tmp_path / "a.png", 40, 40)
    exported(f"labels{suffix}" if suffix != ".pt2" else "logits.pt2")  # skips without the packages
    other_tools_file(path)
    sentence = refused(["predict", str(path), str(image), "--out", str(tmp_path / "out")], capsys)
    assert sentence.endswith("was not written by segformer export; export it from its weights")


@pytest.mark.parametrize("name", ["logits.onnx", "probabilities.xml", "logits.pt2"])
@pytest.mark.parametrize("damage", ["truncated", "empty", "text"])
def test_a_broken_file_is_refused(
    name: str, damage: str, exported: File, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = exported(name)
    path, image = tmp_path / f"broken{whole.suffix}", picture(tmp_path / "a.png", 40, 40)
    if whole.suffix == ".xml":
        shutil.copy(whole.with_suffix(".bin"), path.with_suffix(".bin"))
    content = whole.read_bytes()
    path.write_bytes(
        {"truncated": content[: len(content) // 2], "empty": b"", "text": b"hello"}[damage]
    )
    sentence = refused(["predict", str(path), str(image), "--out", str(tmp_path / "out")], capsys)
    assert f"cannot read {str(path)!r} (" in sentence
    assert sentence.endswith("it is broken or of another tool: export the model again")


@pytest.mark.parametrize("kept", [None, 0, 999])
def test_an_xml_file_without_its_weights_is_refused(
    kept: int | None, exported: File, tmp_path: Path
) -> None:
    path, whole = tmp_path / "model.xml", exported("labels.xml")
    shutil.copy(whole, path)
    if kept is not None:
        path.with_suffix(".bin").write_bytes(whole.with_suffix(".bin").read_bytes()[:kept])
    with pytest.raises(ValueError, match=r"cannot read .*model.xml' \(.* bin file"):
        deploy.load(path)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"crystals": 3}, "it was written by segformer 99.0 and states crystals"),
        ({"classes": {"names": []}}, "no class names; give at least one"),
        (None, "Expecting value"),
    ],
)
def test_a_description_of_another_version_is_refused(
    change: dict[str, Any] | None, sentence: str, exported: File, tmp_path: Path
) -> None:
    source = exported("labels.onnx")
    import onnx

    file = onnx.load(source)
    for entry in file.metadata_props:
        if entry.key == KEY:
            stated = json.loads(entry.value) | {"version": "99.0"} | (change or {})
            entry.value = json.dumps(stated) if change else "no JSON"
    onnx.save(file, tmp_path / "newer.onnx")
    with pytest.raises(ValueError, match="export the model again with this version") as caught:
        deploy.load(tmp_path / "newer.onnx")
    assert sentence in str(caught.value)


@pytest.mark.parametrize("suffix", [".onnx", ".xml", ".pte"])
def test_a_missing_package_is_named(
    suffix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("segformer.deploy.formats.find_spec", lambda name: None)
    (tmp_path / f"model{suffix}").touch()
    with pytest.raises(ValueError, match=r'needs .*; pip install "segformer\[\w+\]"'):
        deploy.load(tmp_path / f"model{suffix}")


def test_missing_files_folders_and_suffixes_are_named(exported: File, tmp_path: Path) -> None:
    exported("labels.onnx")
    (tmp_path / "model.onnx").mkdir()
    with pytest.raises(ValueError, match="model.onnx' is a folder; name an exported file"):
        deploy.load_model(tmp_path / "model.onnx")
    with pytest.raises(FileNotFoundError, match="no file 'gone.onnx'"):
        deploy.load_model("gone.onnx")
    with pytest.raises(ValueError, match="suffix of no exported file .*.onnx, .pt2, .pte, .xml"):
        deploy.load(tmp_path / "model.safetensors")


@pytest.mark.parametrize(
    ("name", "device", "sentence"),
    [
        ("labels.onnx", "mps", "ONNX Runtime has no device 'mps'; choose cpu or cuda"),
        ("labels.onnx", "cuda", "pip install onnxruntime-gpu, or use the cpu"),
        ("labels.xml", "cuda:0", "OpenVINO has no device 'cuda:0' here; choose one of cpu"),
        ("logits.pt2", "hpu", "PyTorch has no device 'hpu' here"),
        ("logits.pt2", "gpu", "PyTorch has no device 'gpu' here"),
    ],
)
def test_a_device_that_the_engine_lacks_is_refused(
    name: str,
    device: str,
    sentence: str,
    exported: File,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    if name.endswith(".onnx"):
        import onnxruntime

        monkeypatch.setattr(
            onnxruntime, "get_available_providers", lambda: ["CPUExecutionProvider"]
        )
    image = str(picture(tmp_path / "a.png", 40, 40))
    given = [str(exported(name)), image, "--out", str(tmp_path / "out"), "--device", device]
    assert sentence in refused(["predict", *given], capsys)


def test_weights_on_a_device_that_is_missing_are_refused(model: SegFormer, tmp_path: Path) -> None:
    model.save(tmp_path / "weights.safetensors")
    with pytest.raises(ValueError, match="PyTorch has no device 'hpu' here .*; use the cpu"):
        deploy.load_model(tmp_path / "weights.safetensors", "hpu")


@pytest.mark.parametrize(
    ("images", "sentence"),
    [
        (torch.zeros(1, 4, 40, 40), r"\(1, 4, 40, 40\) for .*, which takes \(B, 3, H, W\)"),
        (torch.zeros(3, 40, 40), r"shape \(3, 40, 40\)"),
        (torch.zeros(0, 3, 40, 40), r"shape \(0, 3, 40, 40\) for .* B at least 1"),
        (torch.zeros(1, 3, 31, 40), "31×40 are too small; at least 32×32"),
        (torch.zeros(1, 3, 40, 40, dtype=torch.uint8), "in floating point; normalise them"),
    ],
    ids=lambda given: str(tuple(given.shape)) if isinstance(given, Tensor) else "",
)
def test_images_that_do_not_fit_are_refused(images: Tensor, sentence: str, exported: File) -> None:
    with pytest.raises(ValueError, match=sentence):
        deploy.load(exported("labels.onnx")).predict(images)


@pytest.mark.extras
def test_an_executorch_file_is_a_model_too(
    exported: File, model: SegFormer, tmp_path: Path
) -> None:
    path = exported("logits.pte")
    loaded, images = deploy.load(path), normalized(model, 3, 50, 80)
    expected = model.predict(F.pad(images, (0, 16, 0, 14)))[:, :50, :80]
    assert share_equal(loaded.predict(images), expected) > 0.999
    assert share_equal(pickle.loads(pickle.dumps(loaded)).predict(images), expected) > 0.999
    with pytest.raises(ValueError, match="ExecuTorch runs on the cpu only, not on 'cuda'"):
        deploy.load(path, "cuda")
    other = bytes(4) + b"\xbb\xff\xfe\xfd" + bytes(500)
    for content in (b"", b"hello", other, path.read_bytes()[: os.path.getsize(path) // 2]):
        (tmp_path / "broken.pte").write_bytes(content)
        with pytest.raises(ValueError, match="ExecuTorch cannot read .*broken.pte"):
            deploy.load(tmp_path / "broken.pte")


@pytest.mark.parametrize("size", [64, (64.9, 64.9), (3, 64, 64), "64"])
def test_a_size_that_is_not_two_whole_numbers_is_refused(size: Any, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"give two whole numbers, height and width"):
        deploy.export(SegFormer("b0", num_classes=2), tmp_path / "x.pt2", size=size)


def test_a_pruned_model_is_refused_with_the_cure(tmp_path: Path) -> None:
    model = SegFormer("b0", num_classes=2)
    prune.l1_unstructured(model.decode_head.classifier, "weight", 0.5)
    with pytest.raises(ValueError, match=r"decode_head.classifier.weight is computed from other"):
        deploy.export(model, tmp_path / "x.pt2")
    assert not list(tmp_path.iterdir())
