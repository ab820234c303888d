"""mmsegmentation's own SETR and SegFormer as judges; off unless asked for.

    pip install --no-deps mmsegmentation==1.2.2 mmengine==0.10.7 mmcv-lite==2.1.0 addict yapf \
        platformdirs terminaltables prettytable ftfy wcwidth termcolor opencv-python-headless
    pytest -m mmsegmentation
"""

from __future__ import annotations

import sys
import types
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from conftest import randomized
from torch import nn

from segformer import SETR, SegFormer

pytestmark = [pytest.mark.mmsegmentation, pytest.mark.filterwarnings("ignore")]


class AnyOperator(types.ModuleType):
    """In place of mmcv's compiled operators, which none of these models calls."""

    __path__: list[str] = []  # noqa: RUF012

    def __getattr__(self, name: str) -> type:
        if name.startswith("__"):
            raise AttributeError(name)
        return type(name, (), {})


def mmsegmentation(name: str, **changes: Any) -> nn.Module:
    """The model of one of the package's own configurations, with some settings changed.

    Its parameters are random.
    """
    sys.modules.setdefault("mmcv.ops", AnyOperator("mmcv.ops"))
    import mmseg
    from mmengine.config import Config
    from mmseg.registry import MODELS
    from mmseg.utils import register_all_modules

    register_all_modules()
    config = Config.fromfile(str(Path(mmseg.__file__).parent / ".mim" / "configs" / name))
    config.merge_from_dict({"model.pretrained": None, "model.backbone.init_cfg": None, **changes})
    return randomized(MODELS.build(_without_synchronization(config.model))).double()


def _without_synchronization(settings: Any) -> Any:
    if isinstance(settings, list):
        return [_without_synchronization(value) for value in settings]
    if not isinstance(settings, dict):
        return settings
    changed = {key: _without_synchronization(value) for key, value in settings.items()}
    return {**changed, "type": "BN"} if changed.get("type") == "SyncBN" else changed


def logits(model: Any, images: torch.Tensor) -> torch.Tensor:
    return F.interpolate(
        model.decode_head(model.extract_feat(images)),
        size=images.shape[-2:],
        mode="bilinear",
        align_corners=False,
    )


TINY_VIT = {
    "model.backbone.embed_dims": 192,
    "model.backbone.num_layers": 12,
    "model.backbone.num_heads": 3,
    "model.backbone.img_size": 96,
}
AUXILIARY = {f"model.auxiliary_head.{place}.in_channels": 192 for place in range(3)}


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        (
            "setr/setr_vit-l_naive_8xb2-160k_ade20k-512x512.py",
            {"model.decode_head.in_channels": 192, **AUXILIARY},
        ),
        (
            "setr/setr_vit-l_pup_8xb2-160k_ade20k-512x512.py",
            {"model.decode_head.in_channels": 192, **AUXILIARY},
        ),
        ("setr/setr_vit-l_mla_8xb2-160k_ade20k-512x512.py", {"model.neck.in_channels": [192] * 4}),
    ],
)
@torch.no_grad()
def test_setr(name: str, changes: dict[str, Any], tmp_path: Path) -> None:
    read = (2, 5, 8, 11) if "mla" in name else (4, 6, 9, 11)
    oracle = mmsegmentation(name, **TINY_VIT, **changes, **{"model.backbone.out_indices": read})
    torch.save({"meta": {}, "state_dict": oracle.state_dict()}, tmp_path / "setr.pth")
    model = SETR.from_pretrained(tmp_path / "setr.pth")
    # The training's size; one that is not; one that 16 does not divide. timm resamples positions in
    # float32, the other two sizes are measured against that.
    for size, atol in (((96, 96), 1e-10), ((128, 160), 1e-5), ((65, 97), 1e-5)):
        images = torch.randn(1, 3, *size, dtype=torch.double)
        torch.testing.assert_close(model(images), logits(oracle, images), rtol=0, atol=atol)


@torch.no_grad()
def test_segformer(tmp_path: Path) -> None:
    oracle = mmsegmentation("segformer/segformer_mit-b0_8xb2-160k_ade20k-512x512.py")
    torch.save({"meta": {}, "state_dict": oracle.state_dict()}, tmp_path / "segformer.pth")
    model = SegFormer.from_pretrained(tmp_path / "segformer.pth")
    images = torch.randn(1, 3, 64, 96, dtype=torch.double)
    torch.testing.assert_close(model(images), logits(oracle, images), rtol=0, atol=1e-10)


@pytest.mark.parametrize(("kind", "millions"), [("naive", 305.6), ("pup", 317.3), ("mla", 309.6)])
def test_setrs_parameters(kind: str, millions: float) -> None:
    oracle = mmsegmentation(f"setr/setr_vit-l_{kind}_8xb2-160k_ade20k-512x512.py")
    assert sum(parameter.numel() for parameter in oracle.parameters()) / 1e6 == pytest.approx(
        millions, abs=0.05
    )
