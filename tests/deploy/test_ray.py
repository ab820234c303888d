"""Exported files as actors of Ray Data, which label many images on many machines."""

from __future__ import annotations

import os
import re
import shutil
import time
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
GUIDE = Path(__file__).parents[2] / "docs" / "guides" / "export.md"


@pytest.fixture
def ray(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Ray on this machine, which counts five CPUs; it sets the threads of its workers itself."""
    ray = pytest.importorskip("ray", reason="needs ray[data]")
    pytest.importorskip("pyarrow", reason="needs ray[data]")
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setenv("RAY_agent_register_timeout_ms", "300000")
    monkeypatch.setenv("RAY_raylet_start_wait_time_s", "300")
    ray.init(num_cpus=5, include_dashboard=False, log_to_driver=False)
    yield ray
    ray.shutdown()


def test_the_documentations_actors_label_a_folder_of_images(
    ray: Any,
    exported: Callable[[str], Path],
    model: SegFormer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("photos").mkdir()
    for k in range(COUNT):
        colors = np.random.default_rng(k).integers(0, 256, (5, 6, 3), np.uint8)
        Image.fromarray(colors).resize((48, 40)).save(f"photos/{k}.png")
    shutil.copy(exported("labels.onnx"), "model.onnx")
    (code,) = re.findall(r"^```py\n(.*?)^```", GUIDE.read_text(), re.MULTILINE | re.DOTALL)
    exec(compile(code, str(GUIDE), "exec"), {})
    rows = ray.data.read_parquet(str(tmp_path / "labels")).take_all()
    assert len(rows) == COUNT
    for row in rows:
        pixels = torch.from_numpy(np.array(Image.open(row["path"]))).permute(2, 0, 1)
        expected = model.predict(model.normalization(pixels)[None])[0]
        assert (torch.from_numpy(np.array(row["labels"])) == expected).float().mean() > 0.999


def test_workers_share_the_work_and_use_their_cpus(
    ray: Any, exported: Callable[[str], Path], tmp_path: Path
) -> None:
    class Label:  # in a function, so that Ray pickles it as it does the classes of a script
        def __init__(self, path: str) -> None:
            self.model = deploy.load(path)

        def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
            self.model.predict(torch.zeros(1, 3, 40, 48))
            (tmp_path / str(os.getpid())).touch()
            end = time.monotonic() + 120
            while len(list(tmp_path.iterdir())) < 2 and time.monotonic() < end:
                time.sleep(0.1)  # until the other has begun
            return {"threads": [torch.get_num_threads()], "process": [os.getpid()]}

    labelled = ray.data.range(COUNT, override_num_blocks=COUNT).map_batches(
        Label,
        fn_constructor_args=[str(exported("labels.onnx"))],
        batch_size=1,
        num_cpus=1,
        compute=ray.data.ActorPoolStrategy(size=2, max_tasks_in_flight_per_actor=1),
    )
    rows = labelled.take_all()
    assert {row["threads"] for row in rows} == {1}  # that of num_cpus
    assert len({row["process"] for row in rows}) == 2
    assert os.getpid() not in {row["process"] for row in rows}


def test_a_loaded_file_is_sent_to_the_workers(
    ray: Any, exported: Callable[[str], Path], model: SegFormer
) -> None:
    loaded = deploy.load(exported("labels.onnx"))
    images = torch.randn(2, 3, 40, 48)
    labels = ray.get(ray.remote(lambda given, x: given.predict(x)).remote(loaded, images))
    assert torch.equal(labels, loaded.predict(images))
