"""What the page of `segformer demo` shows, against PyTorch; and the page in a real browser.

The browser's test runs with `pytest -m extras tests/deploy/test_demo.py`, after

    pip install "segformer[demo]" playwright
    apt-get install chromium
"""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from conftest import TINY, M, randomized
from PIL import Image, ImageOps
from torch import Tensor

from segformer import Classes, ConvSegFormer, SegFormer, deploy
from segformer.cli import main
from segformer.data.normalization import IMAGENET
from segformer.deploy import demo
from segformer.deploy.demo import segment

CLASSES = Classes(
    ["road", "sky", "car <b>", "tree", "person"],
    [(128, 64, 128), (70, 130, 180), (0, 0, 142), (107, 142, 35), (220, 20, 60)],
)


def photo(height: int = 48, width: int = 70) -> Image.Image:
    """Coarse noise of all colours."""
    cells = np.random.default_rng(1).integers(0, 256, (height // 8 + 1, width // 8 + 1, 3))
    return Image.fromarray(cells.astype(np.uint8)).resize((width, height), Image.Resampling.NEAREST)


def pixels(picture: Image.Image) -> Tensor:
    return torch.from_numpy(np.array(picture.convert("RGB"))).permute(2, 0, 1)


def normalized(picture: Image.Image) -> Tensor:
    """By the formula of ImageNet's mean and standard deviation."""
    mean, std = (torch.tensor(values)[:, None, None] for values in (IMAGENET.mean, IMAGENET.std))
    return ((pixels(picture) / 255 - mean) / std)[None]


def balanced(model: M) -> M:
    """The network with random parameters, and a bias that gives each class some pixels."""
    with torch.no_grad():
        logits = randomized(model)(normalized(photo()))
        model.decode_head.classifier.bias -= logits.mean((0, 2, 3))
    return model


@pytest.fixture
def model() -> SegFormer:
    return balanced(SegFormer(TINY, classes=CLASSES))


def test_labels_shares_and_confidence_are_those_of_pytorch(model: SegFormer) -> None:
    found = segment(model, pixels(photo()))
    with torch.no_grad():
        probabilities = model(normalized(photo())).softmax(1)[0]
    confidence, labels = probabilities.max(0)
    assert len(labels.unique()) > 1
    assert np.array_equal(found.labels, labels.numpy())
    assert found.confidence is not None
    assert np.allclose(found.confidence, confidence.numpy(), atol=1e-6)
    shares = [(labels == k).double().mean().item() for k in range(len(CLASSES))]
    assert found.shares.tolist() == pytest.approx(shares)
    assert np.array_equal(np.array(found.picture), np.array(photo()))


def test_the_network_runs_once_and_in_evaluation_mode(model: SegFormer) -> None:
    calls = []
    model.train().backbone.register_forward_hook(lambda *_: calls.append(model.training))
    segment(model, pixels(photo()))
    assert calls == [False]
    assert model.training


def test_one_logit_is_labelled_by_its_threshold() -> None:
    model = balanced(SegFormer(TINY, num_classes=1))
    with torch.no_grad():
        probability = model(normalized(photo())).sigmoid()[0, 0]
    found = segment(model, pixels(photo()))
    assert np.array_equal(found.labels, (probability > 0.5).numpy())
    assert set(np.unique(found.labels)) == {0, 1}
    assert found.confidence is not None
    expected = torch.where(probability > 0.5, probability, 1 - probability)
    assert np.allclose(found.confidence, expected.numpy(), atol=1e-6)


def test_more_than_255_classes() -> None:
    model = balanced(SegFormer(TINY, num_classes=300))
    with torch.no_grad():
        model.decode_head.classifier.bias[:256] -= 1000
        labels = model(normalized(photo())).argmax(1)[0]
    found = segment(model, pixels(photo()))
    assert labels.min() > 255
    assert np.array_equal(found.labels, labels.numpy())
    assert f"class {int(labels.flatten().mode()[0])}<" in demo.legend_html(
        found.shares, model.classes
    )


@pytest.mark.parametrize("size", [(1, 1), (20, 90), (31, 33)])
def test_a_photo_below_the_smallest_size_keeps_its_own(
    size: tuple[int, int], model: SegFormer
) -> None:
    found = segment(model, pixels(photo(*size)))
    assert found.labels.shape == size
    assert found.confidence is not None
    assert found.confidence.shape == size
    padded = torch.nn.functional.pad(normalized(photo(*size)), (0, 64, 0, 64))
    height, width = (max(32, side) for side in size)
    expected = model.predict(padded[..., :height, :width])[0, : size[0], : size[1]]
    assert np.array_equal(found.labels, expected.numpy())


def test_a_large_photo_is_made_smaller(model: SegFormer) -> None:
    found = segment(model, pixels(photo(120, 200)), max_side=100)
    assert found.picture.size == (100, 60)
    assert found.labels.shape == (60, 100)


def labels_only(rule: Any) -> SimpleNamespace:
    """A file that gives labels only, as a model."""
    return SimpleNamespace(
        classes=CLASSES,
        normalization=IMAGENET,
        gives_logits=False,
        predict=lambda images, size=None: rule(images),
    )


def test_a_model_that_gives_labels_only_has_no_confidence_map() -> None:
    found = segment(labels_only(lambda images: (images[:, 0] > 0).long() * 3), pixels(photo()))
    assert np.array_equal(found.labels, (normalized(photo())[0, 0] > 0).numpy() * 3)
    assert found.confidence is None


@pytest.mark.parametrize("output", ["labels", "logits"])
def test_an_exported_file_of_a_fixed_size(output: str, tmp_path: Path) -> None:
    model = balanced(ConvSegFormer(dims=(8, 16, 40, 64), num_layers=1, num_classes=5))
    path = tmp_path / "model.pt2"
    deploy.export(model, path, output=output, size=(64, 96))
    found = segment(deploy.load(path), pixels(photo(100, 90)))
    assert found.picture.size == (58, 64)
    padded = torch.nn.functional.pad(normalized(found.picture), (0, 96 - 58))
    expected = model.predict(padded)[0, :, :58].numpy()
    assert np.mean(found.labels == expected) > 0.999
    assert (found.confidence is None) == (output == "labels")


def test_the_legend_lists_the_classes_of_the_photo_greatest_share_first() -> None:
    text = demo.legend_html(np.array([0.25, 0.0, 0.7497, 0.0003, 0.0]), CLASSES)
    names = re.findall(r'class="name">(.*?)</span>', text)
    assert names == ["car &lt;b&gt;", "road", "tree"]
    assert re.findall(r'class="share">(.*?)</span>', text) == ["75.0 %", "25.0 %", "< 0.1 %"]
    assert re.findall(r"background:rgb\((.*?)\)", text)[0] == "0, 0, 142"


def test_the_heat_map_is_lighter_where_the_model_is_more_confident() -> None:
    ramp = demo.heat_map(np.linspace(0, 1, 256, dtype=np.float32)[None])
    grey = np.array(ramp.convert("L")).astype(int)[0]
    assert (np.diff(grey) >= 0).all()
    assert grey[-1] - grey[0] > 150


def test_a_model_of_other_channels_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo, "find_spec", lambda name: True)
    model = SegFormer(TINY, num_classes=2, in_channels=4)
    with pytest.raises(ValueError, match=r"takes images of 4 uint8 bands.*segformer predict"):
        demo.check(model)


def test_a_missing_gradio_is_one_sentence(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(demo, "find_spec", lambda name: None)
    with pytest.raises(SystemExit) as stop:
        main(["demo", "model.safetensors"])
    assert stop.value.code == 2
    expected = 'segformer demo: the demo needs gradio; pip install "segformer[demo]"\n'
    assert capsys.readouterr().err == expected


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--port", "70000"), "--port 70000; give a number from 1 to 65535"),
        (("--max-side", "0"), "--max-side 0; give a number of pixels, at least 1"),
    ],
)
def test_numbers_that_cannot_be_are_refused(words: tuple[str, str], message: str) -> None:
    with pytest.raises(SystemExit, match=message):
        main(["demo", "none.safetensors", *words])


def test_a_port_in_use_is_refused_and_not_chosen() -> None:
    with socket.socket() as taken:
        taken.bind((demo.HOST, 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(OSError, match=rf"port {port} is in use.*--port"):
            demo.free_port([port])
        assert demo.free_port(range(port, port + 50)) > port


# The page in a browser.


def test_the_page_has_the_given_name(
    model: SegFormer, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    titles: list[str] = []

    def page(model: SegFormer, title: str, max_side: int) -> Any:
        titles.append(title)
        return SimpleNamespace(close=lambda verbose: None)

    def interrupt(event: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(demo, "check_installed", lambda: None)
    monkeypatch.setattr(demo, "page", page)
    monkeypatch.setattr(demo, "_launch", lambda blocks, port: None)
    monkeypatch.setattr("threading.Event.wait", interrupt)
    monkeypatch.setattr("signal.signal", lambda number, handler: None)
    with pytest.raises(KeyboardInterrupt):
        demo.serve(model, "my streets")
    assert titles == ["my streets"]
    assert capsys.readouterr().out.startswith("my streets: http://127.0.0.1:")


@pytest.fixture
def served(model: SegFormer, tmp_path: Path) -> Iterator[str]:
    """The address of the page of ``model``, which another process serves."""
    if importlib.util.find_spec("gradio") is None:
        pytest.skip('reason: gradio is not installed; pip install "segformer[demo]"')
    model.save(tmp_path / "model.safetensors")
    (folder := tmp_path / "temporary").mkdir()
    port = demo.free_port(range(7960, 8060))
    command = [sys.executable, "-m", "segformer", "demo", str(tmp_path / "model.safetensors")]
    with subprocess.Popen(
        [*command, "--port", str(port)],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "TMPDIR": str(folder)},
    ) as process:
        assert process.stdout is not None
        line = process.stdout.readline()
        try:
            assert line == f"model.safetensors: http://127.0.0.1:{port} (Ctrl-C ends it)\n"
            yield f"http://127.0.0.1:{port}"
        finally:
            process.terminate()
    assert process.returncode == 143
    assert list(folder.glob("segformer-demo-*")) == []  # no photo is left


@pytest.fixture
def browser() -> Iterator[Any]:
    playwright = pytest.importorskip("playwright.sync_api", reason="pip install playwright")
    chromium = shutil.which("chromium")
    if chromium is None:
        pytest.skip("reason: no chromium; apt-get install chromium")
    with playwright.sync_playwright() as tool:
        started = tool.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        yield started
        started.close()


def shown(tab: Any) -> np.ndarray:
    """The pixels of the labels' picture, (H, W, 3), as the browser decodes them."""
    script = """async image => {
        await image.decode();
        const canvas = document.createElement("canvas");
        [canvas.width, canvas.height] = [image.naturalWidth, image.naturalHeight];
        const context = canvas.getContext("2d");
        context.drawImage(image, 0, 0);
        const data = context.getImageData(0, 0, canvas.width, canvas.height).data;
        return [canvas.height, canvas.width, Array.from(data)];
    }"""
    height, width, data = tab.locator("#labels img").evaluate(script)
    return np.array(data).reshape(height, width, 4)[..., :3]


def move_opacity(tab: Any, key: str) -> np.ndarray:
    """Presses a key on the slider; returns the pixels of the next picture of the labels."""
    before = tab.locator("#labels img").get_attribute("src")
    tab.locator("#opacity input[type=range]").press(key)
    changed = "src => document.querySelector('#labels img')?.getAttribute('src') != src"
    tab.wait_for_function(changed, arg=before)
    tab.locator("#labels img").wait_for()
    return shown(tab)


@pytest.mark.extras
def test_the_page_in_a_browser(served: str, browser: Any, model: SegFormer, tmp_path: Path) -> None:
    path = tmp_path / "photo.jpg"
    exif = Image.Exif()
    exif[0x0112] = 6  # stored turned by 90 degrees
    photo(96, 160).save(path, exif=exif, quality=95)
    with torch.no_grad():
        upright = ImageOps.exif_transpose(Image.open(path))
        confidence, labels = model(normalized(upright)).softmax(1)[0].max(0)
    counts = labels.flatten().bincount(minlength=len(CLASSES)).tolist()
    shares = {
        name: 100 * count / labels.numel()
        for name, count in zip(CLASSES.names, counts, strict=True)
    }

    tab = browser.new_page(viewport={"width": 1280, "height": 800})
    tab.set_default_timeout(120_000)
    asked: list[str] = []
    tab.on("request", lambda request: asked.append(request.url))
    tab.goto(served)
    tab.locator("#photo input[type=file]").set_input_files(path)
    tab.locator("#legend li").first.wait_for()
    names = tab.locator("#legend .name").all_inner_texts()
    texts = tab.locator("#legend .share").all_inner_texts()
    assert dict(zip(names, texts, strict=True)) == {
        name: f"{share:.1f} %" for name, share in shares.items() if share
    }
    assert names == sorted(names, key=lambda name: -shares[name])
    assert tab.locator("#key .mean").inner_text() == f"{100 * confidence.mean():.1f} %"

    # The picture is compressed, so that its pixels are not exact.
    bare = move_opacity(tab, "Home")
    assert bare.shape == (160, 96, 3)
    assert np.abs(bare - np.array(upright)).mean() < 8
    covered = move_opacity(tab, "End")
    colors = np.array(CLASSES.colors)[labels.numpy()]
    assert np.abs(covered - colors).mean() < 8

    hosts = {url.split("/")[2] for url in asked if url.startswith("http")}
    assert hosts == {served.removeprefix("http://")}
