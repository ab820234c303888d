"""The released checkpoints give the published logits: ``pytest -m released_weights``.

The image is COCO val2017's 000000039769, downloaded from images.cocodataset.org, or read from the
path in SEGFORMER_IMAGE.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from segformer import SegFormer
from segformer.data.transforms import Normalize

pytestmark = pytest.mark.released_weights
PUBLISHED = json.loads((Path(__file__).parent / "released_logits.json").read_text())
IMAGE = "http://images.cocodataset.org/val2017/000000039769.jpg"


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Tensor:
    """Returns the image (1, 3, 512, 512), resized with PIL's bilinear filter and normalised."""
    path = os.environ.get("SEGFORMER_IMAGE")
    if path is None:
        path = str(tmp_path_factory.mktemp("coco") / "000000039769.jpg")
        torch.hub.download_url_to_file(IMAGE, path)
    image = Image.open(path).convert("RGB").resize((512, 512), Image.Resampling.BILINEAR)
    return Normalize()(torch.from_numpy(np.array(image)).permute(2, 0, 1))[None]


@torch.inference_mode()
@pytest.mark.parametrize("name", PUBLISHED["transformers"])
def test_logits_are_the_published_ones(name: str, images: Tensor) -> None:
    model = SegFormer.from_pretrained(name)
    logits = model.decode_head(model.backbone(images))[0, :3, :3, :3]
    torch.testing.assert_close(
        logits, torch.tensor(PUBLISHED["transformers"][name]), rtol=0, atol=1e-2
    )


@torch.inference_mode()
@pytest.mark.parametrize("name", PUBLISHED["smp"])
def test_full_size_logits_are_smps(name: str) -> None:
    logits = SegFormer.from_pretrained(name)(torch.ones(1, 3, 512, 512))
    torch.testing.assert_close(
        logits[0, 0, 256, :6], torch.tensor(PUBLISHED["smp"][name]), rtol=0, atol=1e-2
    )
