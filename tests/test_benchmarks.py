"""The benchmarks' contestants do the same work, and each row of the results has its origin."""

from __future__ import annotations

import datetime
import json
import os
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pytest
import torch
from benchmarks import __main__ as main
from benchmarks import ablation, contestants, cuda, jobs, measure, provenance, report
from conftest import TINY, randomized
from PIL import Image

from segformer import SegFormer
from segformer.data.datasets import FolderDataset
from segformer.ops.registry import OPERATORS

ORIGIN = {
    "machine": "a processor",
    "versions": {"torch": "9"},
    "commit": "abc1234",
    "date": "2026-01-02",
    "load": {"average": 0.1, "others": 0.02},
    "command": "python -m benchmarks logits",
}


def described(path: Path) -> str:
    with Image.open(path) as picture:
        return str(picture.info["Description"])


@torch.inference_mode()
def test_contestants_make_the_same_things() -> None:
    for part, shape in ((contestants.logits, (1, 3, 16, 24)), (contestants.labels, (1, 64, 96))):
        works = part("b0", 3, (64, 96), ["smp"])
        assert list(works) == ["segformer", "transformers", "smp"]
        assert {tuple(work().shape) for work in works.values()} == {shape}
    labels = [work() for work in contestants.argmax(5, (64, 96)).values()]
    assert all(torch.equal(labels[0], other) for other in labels[1:])


def test_logits_like_a_trained_models_have_their_share_of_boundaries() -> None:
    """Of a trained model's cells about 14 % lie on a boundary."""
    assert contestants.boundary_share(
        contestants.like_a_trained_models(150, 128, 128)
    ) == pytest.approx(0.14, abs=0.03)


def test_ratios_are_taken_round_by_round(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter(range(1000))
    monkeypatch.setattr("time.perf_counter", lambda: next(clock))
    rows = measure.interleaved(
        {"one": lambda: None, "three": lambda: [next(clock), next(clock)]}, repeats=3
    )
    assert [row["ratio"]["median"] for row in rows] == [1, 3]
    assert rows[1]["seconds"] == {"median": 3, "min": 3, "max": 3}


def test_the_report_shows_what_was_measured(tmp_path: Path) -> None:
    row = {
        "name": "segformer",
        "seconds": {"median": 0.1, "min": 0.1, "max": 0.2},
        "ratio": {"median": 1, "min": 1, "max": 1},
    }
    peer = {
        "name": "transformers",
        "seconds": {"median": 0.4, "min": 0.3, "max": 0.5},
        "ratio": {"median": 4, "min": 3, "max": 5},
    }
    entry = {
        "allocator": "default",
        "rows": [row, peer],
        "share of matrix-product rate": 0.5,
        "matrix products": 1.7e11,
        **ORIGIN,
    }
    newer = {**entry, "rows": [row, peer], "versions": {"torch": "10"}, "date": "2026-02-03"}
    newer |= {"load": {"average": 2.5, "others": 0.4}, "note": "other work took 40 % of the time"}
    results = {"logits": {"b0 150 512×512 default": entry, "b2 150 512×512 default": newer}}
    report.write(json.loads(json.dumps(results)), tmp_path)
    text = (tmp_path / "speed.md").read_text()
    assert "| b0 150 512×512 | transformers | 400, 4.00× (3.00–5.00) |  | 4× / 2.4× |" in text
    assert "50 % of the 170 GFLOP/s" in text
    for line in (
        "| 1 | 2026-01-02 | a processor | torch 9 | abc1234 |",
        "| 2 | 2026-02-03 | a processor | torch 10 | abc1234 |",
        "| logits | b0 150 512×512 default | 2 % | `python -m benchmarks logits` |",
        "| logits | b2 150 512×512 default | **40 %**: busy | `python -m benchmarks logits` |",
    ):
        assert line in text
    bars = report.bars(results)
    assert [bar.times for bar in bars] == [4]
    report.draw(bars, tmp_path / "speed.png")
    assert described(tmp_path / "speed.png") == report.described(bars)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_what_is_measured_on_a_device_runs_on_any(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda, "ADE", (3, (64, 96)))
    monkeypatch.setattr(cuda, "CITYSCAPES", (2, (64, 64)))
    monkeypatch.setattr(torch, "compile", lambda function, mode: function)
    results = {}
    for part in cuda.PARTS:
        for name, (make, gradients) in cuda.jobs(part, ["b0"]).items():
            if "batch 16" not in name:
                results[name] = {**cuda.measured(make, 1, gradients, "cpu"), **ORIGIN}
    assert not [result for result in results.values() if "failed" in result]
    text = cuda.table(results)
    for row in (
        "b0, 3 classes, 64×96, bfloat16, batch 1 | transformers |",
        "3 classes, 64×96, batch 2: label map | interpolate + argmax |",
        "2 classes, 64×64, batch 2: loss and gradient | segformer |",
        "b0, 2 classes, 64×64: labels | smp |",
        "b0, 3 classes, 64×96: training step, batch 2 | transformers |",
    ):
        assert row in text
    failing = cuda.measured(lambda: {"segformer": lambda: 1 / 0}, 1, False, "cpu")
    assert failing == {"failed": "ZeroDivisionError: division by zero"}
    assert "failed: ZeroDivisionError" in cuda.table({"work": {**failing, **ORIGIN}})


def test_time_to_accuracy_is_read_off_the_curves(tmp_path: Path) -> None:
    points = [
        {"step": 10, "seconds": 100.0, "miou": 0.2},
        {"step": 20, "seconds": 200.0, "miou": 0.6},
    ]
    assert report.seconds_to(points, 0.2) == 100
    assert report.seconds_to(points, 0.1) == 50
    assert report.seconds_to(points, 0.3) == 125
    assert report.seconds_to(points, 0.7) == float("inf")
    slower = [
        {**point, "seconds": 3 * point["seconds"], "miou": point["miou"] - 0.1} for point in points
    ]
    entries = {
        f"0 {who} default": {
            "seed": 0,
            "allocator": "default",
            "who": who,
            "points": curve,
            **ORIGIN,
        }
        for who, curve in (("segformer", points), ("transformers", slower))
    }
    report.write({"accuracy": entries}, tmp_path)
    text = (tmp_path / "speed.md").read_text()
    assert (
        "| 0, default | segformer | 20, 3.3 | 60.0 % | 2.9 min | 0.29 |" in text
    )  # 50 % after 175 s of the peer's 600
    assert (tmp_path / "accuracy.png").stat().st_size > 1000


@pytest.mark.filterwarnings("ignore")
@pytest.mark.slow
def test_time_to_accuracy_runs_both_contestants_on_the_same_batches(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from benchmarks import accuracy

    monkeypatch.setattr(accuracy, "STEPS", 2)
    monkeypatch.setattr(accuracy, "EVERY", 1)
    generator = np.random.default_rng(0)
    for split, count in (("train", 8), ("val", 1)):
        for n in range(count):
            for kind, shape, below in (("images", (70, 90, 3), 256), ("labels", (70, 90), 11)):
                path = tmp_path / kind / split / f"{n}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(generator.integers(0, below, shape, np.uint8)).save(path)
    seen: list[float] = []
    loaded = FolderDataset.__getitem__
    monkeypatch.setattr(
        FolderDataset,
        "__getitem__",
        lambda self, n: (seen.append(torch.rand(()).item()), loaded(self, n))[1],
    )
    draws = []
    for who in ("segformer", "transformers"):
        seen.clear()
        points = accuracy.run(who, str(tmp_path), seed=3)
        assert [point["step"] for point in points] == [1, 2]
        assert 0 < points[0]["seconds"] < points[1]["seconds"]
        draws.append(seen[:8])  # each sample's first random number
    assert draws[0] == draws[1]


def test_every_row_of_the_results_has_its_own_origin() -> None:
    results, training = report.read("results.json"), report.read("training.json")
    rows = [row for part in results.values() for row in part.values()] + training
    assert len(rows) > 40
    for row in rows:
        assert row["machine"]
        assert "segformer" in row["versions"]
        assert datetime.date.fromisoformat(row["date"]).year >= 2026
        assert row["command"].startswith(("python -m benchmarks ", "segformer fit "))
        if "load" in row or (row["date"] > "2026-11-28" and "python -m" in row["command"]):
            assert row["commit"]
            assert (row["load"]["others"] > provenance.BUSY) == ("note" in row)


@pytest.mark.skipif(not Path("/proc/stat").is_file(), reason="reason: this system tells no load")
def test_other_work_is_told_from_the_measurements_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two cores for 10 s, of which this process works 8 s, others 5 s, and 7 s are idle."""
    hertz = os.sysconf("SC_CLK_TCK")
    ticks = iter([(0,) * 8, (600, 100, 400, 500, 200, 0, 100, 100)])

    def read_text(path: Path) -> str:
        return f"cpu  {' '.join(str(tick * hertz // 100) for tick in next(ticks))} 0 0\ncpu0 1 2\n"

    own = iter([2.0, 10.0])
    monkeypatch.setattr(Path, "read_text", read_text)
    monkeypatch.setattr(provenance, "_own", lambda: next(own))
    with provenance.watched() as load:
        pass
    assert load.others == pytest.approx(5 / 20)
    assert load.note() == "other work took 25 % of the cores' time"
    monkeypatch.undo()
    row = provenance.provenance("a command", "a machine", load)
    assert row["note"] == load.note()
    assert "note" not in provenance.provenance("a command", "a machine", provenance.Load(1, 0.01))
    assert len(row["commit"].rstrip("+")) >= 7


def test_a_busy_machine_is_warned_of(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for busy, expected in ((0.0, ""), (1.0, "the machine is busy: other work took 50 %")):
        cores = iter([(0.0, 0.0), (busy, 2.0)])
        monkeypatch.setattr(provenance, "_cores", lambda cores=cores: next(cores))
        monkeypatch.setattr(provenance, "_own", lambda: 0.0)
        provenance.warn_if_busy(0)
        assert capsys.readouterr().err.startswith(expected)


def test_the_picture_shows_the_results() -> None:
    """`python -m benchmarks.report` draws it again."""
    bars = report.bars(report.read("results.json"))
    assert len({bar.work for bar in bars}) == len(bars) <= 8
    assert described(report.PICTURE) == report.described(bars)


def test_a_partial_run_keeps_the_origin_of_the_rows_that_it_does_not_measure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = {"allocator": "default", "repeats": 1, **ORIGIN}
    path = tmp_path / "results.json"
    path.write_text(json.dumps({"argmax": {"150 512×512 default": old}}))
    monkeypatch.setattr(main, "measured", lambda job: {"rows": []})
    monkeypatch.setattr("sys.argv", ["benchmarks", "loading", "--out", str(path)])
    main.main()
    results = json.loads(path.read_text())
    assert results["argmax"]["150 512×512 default"] == old
    new = results["loading"]["default"]
    assert new["versions"]["torch"] == version("torch")
    assert new["date"] == datetime.datetime.now(datetime.UTC).date().isoformat()
    assert new["command"].startswith("python -m benchmarks loading")
    assert new["commit"]
    assert 0 <= new["load"]["others"] <= 1


def test_a_run_stops_after_its_minutes_and_a_later_one_measures_the_rest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = iter([0.0, *range(30, 10000, 40)])  # the first measurement starts after 30 s
    monkeypatch.setattr(main, "measured", lambda job: {"rows": []})
    monkeypatch.setattr(main, "warn_if_busy", lambda: None)
    monkeypatch.setattr("benchmarks.__main__.time.monotonic", lambda: next(clock))
    path = tmp_path / "results.json"
    words = ["argmax", "--out", str(path), "--minutes", "1", "--resume"]
    monkeypatch.setattr("sys.argv", ["benchmarks", *words])
    main.main()
    assert len(json.loads(path.read_text())["argmax"]) == 1
    clock = iter([0.0] * 100)
    main.main()
    assert len(json.loads(path.read_text())["argmax"]) == 4


def test_what_was_measured_on_a_busy_machine_is_measured_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    quiet, busy = ({"rows": [], **ORIGIN}, {"rows": [], **ORIGIN, "note": "other work took 40 %"})
    rows = {f"{work} retaining": quiet for work in ("150 512×512", "19 1024×2048")}
    rows |= {"150 512×512 default": busy, "19 1024×2048 default": {"failed": "MemoryError"}}
    path = tmp_path / "results.json"
    path.write_text(json.dumps({"argmax": rows}))
    measured: list[str] = []
    monkeypatch.setattr(main, "measured", lambda job: measured.append(jobs.key(job)) or {})
    monkeypatch.setattr(main, "warn_if_busy", lambda: None)
    monkeypatch.setattr("sys.argv", ["benchmarks", "argmax", "--resume", "--out", str(path)])
    main.main()
    assert measured == ["150 512×512 default", "19 1024×2048 default"]


def test_the_readmes_figures_are_those_of_the_results() -> None:
    figures = report.figures(report.read("results.json"), report.read("recipes.json"))
    text = report.README.read_text()
    assert report.readme_with(figures, text) == text


def test_an_ablation_leaves_out_one_implementation_and_no_other() -> None:
    model, images = randomized(SegFormer(TINY, num_classes=5)), torch.randn(1, 3, 96, 96)

    def work() -> torch.Tensor:
        with torch.inference_mode():
            return model.predict(images)

    registered = {name: list(made.implementations) for name, made in OPERATORS.items()}
    found = ablation.used(work)
    assert {operator.plain.__name__ for operator, _ in found} >= {"all_mlp", "upsample_argmax"}
    for operator, implementation in found:
        with ablation.without(operator, implementation):
            assert (operator, implementation) not in ablation.used(work)
            assert torch.equal(work(), model.predict(images))
    assert {name: made.implementations for name, made in OPERATORS.items()} == registered
