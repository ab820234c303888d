"""The benchmarks' contestants do the same work: what they are timed at has the same shape, and is the same where the weights are."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from benchmarks import contestants, measure, report


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
    assert contestants.boundary_share(contestants.like_a_trained_models(150, 128, 128)) == pytest.approx(0.14, abs=0.03)


def test_ratios_are_taken_round_by_round(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter(range(1000))
    monkeypatch.setattr("time.perf_counter", lambda: next(clock))
    rows = measure.interleaved({"one": lambda: None, "three": lambda: [next(clock), next(clock)]}, repeats=3)
    assert [row["ratio"]["median"] for row in rows] == [1, 3]
    assert rows[1]["seconds"] == {"median": 3, "min": 3, "max": 3}


def test_the_report_shows_what_was_measured(tmp_path: Path) -> None:
    row = {"name": "segformer", "seconds": {"median": 0.1, "min": 0.1, "max": 0.2}, "ratio": {"median": 1, "min": 1, "max": 1}}
    peer = {"name": "transformers", "seconds": {"median": 0.4, "min": 0.3, "max": 0.5}, "ratio": {"median": 4, "min": 3, "max": 5}}
    entry = {"allocator": "default", "rows": [row, peer], "share of matrix-product rate": 0.5, "matrix products": 1.7e11}
    results = {"machine": {"cpu": "a processor", "versions": "torch 9"}, "logits": {"b0 150 512×512 default": entry}}
    (tmp_path / "README.md").write_text("# Prose\n<!-- tables -->\nold tables")
    report.write(json.loads(json.dumps(results)), tmp_path)
    text = (tmp_path / "README.md").read_text()
    assert text.startswith("# Prose")
    assert "| b0 150 512×512 | transformers | 400, 4.00× (3.00–5.00) |  | 4× / 3× |" in text
    assert "50 % of the 170 GFLOP/s" in text
    assert "old tables" not in text
    assert (tmp_path / "ratios.png").stat().st_size > 1000
