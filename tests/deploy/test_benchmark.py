"""``segformer benchmark``: its table, its choice, its clock, and its mIoU beside validate's."""

from __future__ import annotations

import json
import re
import shlex
import time
from argparse import Namespace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from conftest import TINY, randomized
from halves import Halves, write_folder
from PIL import Image
from torch import Tensor

from segformer import Classes, SegFormer
from segformer.cli import main
from segformer.cli.benchmark import _export_line
from segformer.data.normalization import IMAGENET
from segformer.deploy import benchmark as module
from segformer.deploy.benchmark import benchmark, compare_all, plan, time_all
from segformer.deploy.ranking import Benchmark, Contestant, plot, table
from segformer.evaluation import evaluate
from segformer.train.parser import data_of

pytestmark = pytest.mark.filterwarnings("ignore")


def row(name: str, milliseconds: float | None = None, **measured: Any) -> Contestant:
    times = [milliseconds + extra for extra in (-1, 0, 4)] if milliseconds else []
    return Contestant(*name.split(), milliseconds=times, **measured)


def result(*rows: Contestant, max_drop: float = 0.5) -> Benchmark:
    return Benchmark(list(rows), (512, 512), 2, "3 images", max_drop)


MEASURED = (
    row("pytorch fp32", 69, miou=0.645, equal=1.0, engine="PyTorch", megabytes=14.9),
    row("openvino fp32", 37, miou=0.645, equal=1.0, engine="OpenVINO, f32"),
    row("openvino bf16", 26, miou=0.6449, equal=0.9987, engine="OpenVINO, bf16"),
    row("onnx int8", 20, miou=0.60, equal=0.97, engine="ONNX Runtime"),
    row("executorch fp32", 15, reason="images of 600×600 are larger than 512×512"),
    row("onnx bf16", reason="the format onnx has no precision bf16"),
)


@pytest.mark.parametrize(
    ("max_drop", "best"),
    [(0.5, "openvino bf16"), (0.001, "openvino fp32"), (5, "onnx int8"), (4.5, "onnx int8")],
)
def test_the_best_is_the_fastest_that_loses_little_miou(max_drop: float, best: str) -> None:
    assert result(*MEASURED, max_drop=max_drop).best.name == best


def test_without_data_the_best_is_the_fastest_whose_labels_agree() -> None:
    rows = [
        row("pytorch fp32", 69, equal=1.0),
        row("pt2 fp32", 60, equal=1.0),
        row("onnx fp16", 30, equal=0.995),
        row("onnx int8", 20, equal=0.98),
    ]
    assert result(*rows).best.name == "onnx fp16"
    assert "onnx fp16, 30.0 ms, 2.30 × as fast" in str(result(*rows))
    assert result(rows[0], rows[3]).best.name == "pytorch fp32"


def test_a_lower_precision_is_best_only_if_it_is_clearly_faster() -> None:
    fp32, fp16 = row("openvino fp32", 30, equal=1.0), row("openvino fp16", 29, equal=1.0)
    clearly = row("openvino fp16", 28, equal=1.0)
    first = row("pytorch fp32", 69, equal=1.0)
    assert result(first, fp32, fp16).best is fp32
    assert result(first, fp32, clearly).best is clearly


def test_the_table_states_what_was_measured_or_why_not() -> None:
    lines = table(MEASURED).splitlines()
    assert re.split(r"\s{2,}", lines[0])[2:] == [
        *("MB", "ms", "min–max", "speed", "mIoU %", "equal %", "engine")
    ]
    assert re.split(r"\s{2,}", lines[1]) == [
        *("pytorch", "fp32", "14.9", "69.0", "68.0–73.0", "1.00 ×", "64.50", "100.00", "PyTorch")
    ]
    assert lines[1].index("PyTorch") == lines[2].index("OpenVINO") == lines[0].index("engine")
    assert re.search(r"26\.0  25\.0–30\.0  2\.65 ×   64\.49 +99\.87  OpenVINO, bf16", lines[3])
    assert lines[5].endswith("  images of 600×600 are larger than 512×512")
    assert "15.0" in lines[5]
    assert lines[6].split()[:3] == ["onnx", "bf16", "the"]


def test_a_table_without_data_has_no_column_of_miou() -> None:
    assert "mIoU" not in table([row("pytorch fp32", 69, equal=1.0)])


def test_the_plot_names_each_point_and_no_name_covers_another() -> None:
    from matplotlib.text import Text

    close = [row(f"f{k} fp32", 30 + k, miou=0.645 + k / 1e5, equal=1.0) for k in range(8)]
    figure = plot(result(MEASURED[0], *close))
    figure.canvas.draw()
    texts = figure.axes[0].texts
    assert [text.get_text() for text in texts] == [r.name for r in (MEASURED[0], *close)]
    boxes = [Text.get_window_extent(text) for text in texts]
    for k, box in enumerate(boxes):
        assert not any(box.overlaps(other) for other in boxes[:k])
        assert figure.axes[0].get_window_extent().padded(1).containsx(box.x0)


class Engine:
    """Takes a known time for an image."""

    normalization = IMAGENET

    def __init__(self, seconds: float, log: list[float], fails: bool = False) -> None:
        self.seconds, self.log, self.fails = seconds, log, fails

    def predict(self, images: Tensor) -> Tensor:
        if self.fails:
            raise RuntimeError("no kernel\nfor this shape")
        self.log.append(self.seconds)
        time.sleep(self.seconds)
        return torch.zeros(len(images), *images.shape[-2:], dtype=torch.long)


def test_engines_are_timed_in_turn_in_changing_order() -> None:
    log: list[float] = []
    rows = [Contestant(f"f{k}", "fp32", Engine(s, log)) for k, s in enumerate((0.02, 0.04, 0.001))]
    rows.append(Contestant("broken", "fp32", Engine(0, log, fails=True)))
    rows.append(Contestant("missing", "fp32", reason="not installed"))
    time_all(rows, torch.zeros(3, 32, 32, dtype=torch.uint8), 6)
    assert [len(r.milliseconds) for r in rows] == [6, 6, 6, 0, 0]
    assert 20 <= rows[0].median < 200
    assert min(rows[1].milliseconds) >= 40
    assert rows[3].reason == "RuntimeError: no kernel"
    assert rows[4].reason == "not installed"
    timed = log[-36:][::2]  # each works twice in its turn
    rounds = [tuple(timed[k : k + 3]) for k in range(0, 18, 3)]
    assert {frozenset(r) for r in rounds} == {frozenset((0.02, 0.04, 0.001))}
    assert len(set(rounds)) > 1


def test_by_default_formats_that_compile_for_minutes_and_int8_are_left_out_with_a_note() -> None:
    rows, notes = plan()
    names = [r.name for r in rows]
    assert names[0] == "pytorch fp32"
    assert {"pt2 fp32", "pt2 fp16", "pt2 bf16"} <= set(names)
    assert not any(re.search("aoti|executorch|int8", name) for name in names)
    assert [any(re.search(word, note) for note in notes) for word in ("aoti", "int8")] == [True] * 2
    assert [r.name for r in plan(["aoti", "pytorch"], ["fp32", "int8"])[0]] == [
        *("pytorch fp32", "aoti fp32", "aoti int8")
    ]
    assert all(r.precision == "bf16" for r in plan((), ["bf16"])[0][1:])


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A folder data set of two classes, whose ignored value is 11."""
    return write_folder(tmp_path / "data", train=7, val=4)


@pytest.fixture
def config(tmp_path: Path) -> Path:
    transform = "segformer.data.transforms.TrainTransform"
    settings = {
        "data": {
            "class_path": "segformer.train.data.FolderData",
            "init_args": {
                "root": "gone",
                "classes": {"names": ["dark", "bright"]},
                "ignore_index": 11,
                "train_transform": {"class_path": transform, "init_args": {"crop_size": [32, 32]}},
                "num_workers": 0,
            },
        },
        "model": {"network": {"class_path": "segformer.SegFormer"}},
        "trainer": {"accelerator": "cpu", "logger": False, "enable_progress_bar": False},
        "seed_everything": 0,
    }
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(settings), encoding="utf-8")
    return path


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    model = SegFormer(TINY, classes=Classes(["dark", "bright"]))
    randomized(model).save(tmp_path / "model.safetensors")
    return tmp_path / "model.safetensors"


def test_the_data_of_a_config_give_the_miou_of_validate(
    config: Path,
    root: Path,
    weights: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)  # for the folder of the run
    data = data_of(str(config), str(root))
    model = SegFormer.from_pretrained(weights)
    rows = [Contestant("pytorch", "fp32", model), Contestant("pt2", "fp32", model)]
    compare_all(rows, data.val, model.num_classes)
    main(["validate", "--config", str(config), "--data.root", str(root), "--weights", str(weights)])
    printed = capsys.readouterr().out
    logged = re.search(r"val/miou\W+([\d.]+)", printed)
    assert logged is not None, printed
    expected = evaluate(model, data.val).miou
    assert float(logged[1]) == pytest.approx(expected, abs=1e-6)
    assert [r.miou for r in rows] == [expected, expected]
    assert [r.equal for r in rows] == [1.0, 1.0]
    assert 0 < expected < 1


def test_calibration_images_are_training_images_as_they_are(config: Path, root: Path) -> None:
    images = data_of(str(config), str(root)).calibration_images(3)
    files = [root / "images" / "train" / f"{k}.png" for k in (0, 2, 4)]
    assert len(images) == 3
    for image, file in zip(images, files, strict=True):
        assert np.array_equal(image.permute(1, 2, 0).numpy(), np.asarray(Image.open(file)))
    assert len(data_of(str(config), str(root)).calibration_images()) == 7


def test_every_label_of_another_answer_counts_as_different() -> None:
    class Opposite(SegFormer):
        def predict(self, images: Tensor, *args: Any, **kwargs: Any) -> Tensor:
            return 1 - super().predict(images, *args, **kwargs)

    torch.manual_seed(3)
    model = randomized(SegFormer(TINY, num_classes=2))
    other = Opposite(TINY, num_classes=2).eval()
    other.load_state_dict(model.state_dict())
    rows = [Contestant("pytorch", "fp32", model), Contestant("other", "fp32", other)]
    compare_all(rows, Halves(2), 2)
    assert rows[1].equal == 0
    assert rows[1].miou != rows[0].miou


@pytest.mark.slow
def test_the_command_exports_times_and_measures(
    config: Path, root: Path, weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """One precision that works, and one that cannot be exported."""
    threads = torch.get_num_threads()
    out = tmp_path / "out"
    out.mkdir()
    command = ["benchmark", str(weights), "pt2", "--precision", "fp32", "int8", "--rounds", "2"]
    command += ["--size", "48", "64", "--threads", "1", "--out", str(out)]
    command += ["--data", str(config), "--data.root", str(root)]
    main([*command, "--json", str(tmp_path / "rows.json")])
    printed = capsys.readouterr().out
    assert "48×64 to its labels, 1 thread, medians of 2 rounds; " in printed
    assert "on 4 labelled images" in printed
    assert "best for this machine: p" in printed
    saved = json.loads((tmp_path / "rows.json").read_text(encoding="utf-8"))
    pytorch, pt2, int8 = saved["rows"]
    expected = evaluate(SegFormer.from_pretrained(weights), data_of(str(config), str(root)).val)
    assert pytorch["miou"] == expected.miou
    assert pt2["miou"] == pytest.approx(expected.miou, abs=1e-3)
    assert pt2["equal"] > 0.999
    assert "torch.export" in pt2["engine"]
    assert len(pt2["milliseconds"]) == 2
    assert pt2["megabytes"] == (out / "pt2-fp32.pt2").stat().st_size / 1e6
    assert int8["milliseconds"] == []
    assert int8["reason"]
    assert re.search(f"\npt2 +int8 .*{re.escape(int8['reason'])}", printed)
    assert {path.name for path in out.iterdir()} == {"pt2-fp32.pt2", "benchmark.png"}
    with Image.open(out / "benchmark.png") as picture:
        assert picture.format == "PNG"
        assert picture.width >= 800
        assert len(set(picture.convert("RGB").getdata())) > 20
    assert torch.get_num_threads() == threads


def test_the_command_that_exports_the_best_can_be_pasted() -> None:
    options = Namespace(weights="my weights.pth", data="a b.yaml", data_root=None, max_drop=2.0)
    measured: Any = SimpleNamespace(best=row("onnx int8", 20), size=(48, 64))
    line = _export_line(measured, options)
    assert shlex.split(line) == [
        *("segformer", "export", "my weights.pth", "model.onnx", "--format", "onnx"),
        *("--precision", "int8", "--data", "a b.yaml", "--max-drop", "2"),
    ]


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (RuntimeError("the compiler stopped\nat line 7"), "RuntimeError: the compiler stopped"),
        (ValueError("the format needs nothing"), "the format needs nothing"),
    ],
    ids=str,
)
def test_an_export_that_fails_is_a_row(
    error: Exception, reason: str, tiny: SegFormer, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(*args: Any, **kwargs: Any) -> None:
        raise error

    monkeypatch.setattr(module, "export", failing)
    measured = benchmark(tiny, ["pt2"], ["fp32"], size=(32, 32), rounds=1)
    assert measured.rows[1].reason == reason
    assert measured.best.name == "pytorch fp32"
    assert re.search(f"\npt2 +fp32 .* {reason}\n", str(measured))
    assert "pass --data CONFIG for mIoU" in str(measured)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["{weights}", "onx"], "unknown format 'onx'; did you mean 'onnx'?"),
        (["{weights}", "--precision", "fp23"], "unknown precision 'fp23'; did you mean 'fp32'?"),
        (["{weights}", "pt2", "--size", "16", "64"], "a size of 16×64 is too small"),
        (["{weights}", "pt2", "--rounds", "0"], "rounds is 0; give at least 1"),
        (["{weights}", "pt2", "--threads", "0"], "threads is 0; give at least 1"),
        (["{weights}", "pt2", "--max-drop", "-1"], "max_drop is -1.0; give the points"),
        (["{weights}", "pt2", "--plot", "a.png"], "--plot shows mIoU; give labelled images"),
        (["{weights}", "pt2", "--json", "gone/a.json"], "no folder 'gone'"),
        (["{weights}", "pt2", "--out", "gone"], "no folder 'gone'"),
        (["{weights}", "pt2", "--data.root", "x"], "give it with --data"),
        (["{weights}", "pt2", "--data", "gone.yaml"], "gone.yaml"),
        (["{weights}", "pt2", "--data", "{config}"], "no folder 'gone/images/train'"),
        (["{three}", "pt2", "--data", "{config}", "--data.root", "{root}"], "has 3 classes, the"),
        (["gone.safetensors"], "no file or folder 'gone.safetensors'"),
        (["model.onnx"], "'model.onnx' is an exported file; give the weights"),
        (["{weights}", "--siez", "64", "64"], "did you mean '--size'?"),
    ],
    ids=str,
)
def test_wrong_input_is_one_sentence(
    arguments: list[str],
    sentence: str,
    config: Path,
    root: Path,
    weights: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    SegFormer(TINY, num_classes=3).save(tmp_path / "three.safetensors")
    files = {"config": config, "root": root, "weights": weights, "three": "three.safetensors"}
    with pytest.raises(SystemExit) as stopped:
        main(["benchmark", *(word.format(**files) for word in arguments)])
    assert stopped.value.code == 2
    assert sentence in capsys.readouterr().err


def test_files_of_an_earlier_benchmark_are_kept(
    weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "pt2-fp32.pt2").write_bytes(b"mine")
    with pytest.raises(SystemExit):
        main(["benchmark", str(weights), "pt2", "--out", str(tmp_path)])
    assert "add --overwrite" in capsys.readouterr().err
    assert (tmp_path / "pt2-fp32.pt2").read_bytes() == b"mine"
