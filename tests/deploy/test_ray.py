"""Exported files as actors of Ray Data, which label many images on many machines."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from segformer import SegFormer, deploy

pytestmark = [pytest.mark.extras, pytest.mark.filterwarnings("ignore")]
COUNT = 6


@pytest.fixture
def ray(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Ray on this machine, with two CPUs; it sets the threads of its workers itself."""
    ray = pytest.importorskip("ray", reason="needs ray[data]")
    pytest.importorskip("pyarrow", reason="needs ray[data]")
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setenv("RAY_agent_register_timeout_ms", "300000")
    monkeypatch.setenv("RAY_raylet_start_wait_time_s", "300")
    ray.init(num_cpus=3, include_dashboard=False, log_to_driver=False)
    yield ray
    ray.shutdown()


def test_two_workers_label_a_folder_of_images(
    ray: Any, exported: Callable[[str], Path], model: SegFormer, tmp_path: Path
) -> None:
    for k in range(COUNT):
        colors = np.random.default_rng(k).integers(0, 256, (5, 6, 3), np.uint8)
        Image.fromarray(colors).resize((48, 40)).save(tmp_path / f"{k}.png")

    class Label:  # in a function, so that Ray pickles it as it does the classes of a script
        def __init__(self, path: str) -> None:
            self.model = deploy.load(path)

        def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
            images = torch.from_numpy(batch["image"]).permute(0, 3, 1, 2)
            labels = self.model.predict(self.model.normalization(images)).numpy()
            count = len(labels)
            threads = np.full(count, torch.get_num_threads())
            process = np.full(count, os.getpid())
            paths = batch["path"]
            return {"path": paths, "labels": labels, "threads": threads, "process": process}

    images = ray.data.read_images(str(tmp_path), include_paths=True, override_num_blocks=COUNT)
    labelled = images.map_batches(
        Label,
        fn_constructor_args=[str(exported("labels.onnx"))],
        batch_size=1,
        num_cpus=1,
        compute=ray.data.ActorPoolStrategy(size=2, max_tasks_in_flight_per_actor=1),
    )
    rows = labelled.take_all()
    assert len(rows) == COUNT
    for row in rows:
        pixels = torch.from_numpy(np.array(Image.open(row["path"]))).permute(2, 0, 1)
        expected = model.predict(model.normalization(pixels)[None])[0]
        assert (torch.from_numpy(row["labels"]) == expected).float().mean() > 0.999
        assert row["threads"] == 1  # that of num_cpus
    assert os.getpid() not in {row["process"] for row in rows}
    assert len({row["process"] for row in rows}) == 2


def test_a_loaded_file_is_sent_to_the_workers(
    ray: Any, exported: Callable[[str], Path], model: SegFormer
) -> None:
    loaded = deploy.load(exported("labels.onnx"))
    images = torch.randn(2, 3, 40, 48)
    labels = ray.get(ray.remote(lambda given, x: given.predict(x)).remote(loaded, images))
    assert torch.equal(labels, loaded.predict(images))
