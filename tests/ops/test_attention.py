"""Attention in tiles beside PyTorch's."""

from __future__ import annotations

from importlib import import_module
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from segformer import SegFormer
from segformer.ops import memory

attention: Any = import_module("segformer.ops.attention")  # of the same name as its operator


@pytest.fixture
def tiles(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Every processor works in tiles; the sizes of the tiles that were worked."""
    monkeypatch.setattr(attention, "products_by_convolution", lambda x: True)
    monkeypatch.setattr(attention, "TILE", 32 * 64)  # small maps too
    in_tiles, sizes = attention._attend, []

    def counted(q: Tensor, *args: Tensor, rows: int) -> None:
        sizes.extend(len(tile) for tile in q.split(rows))
        in_tiles(q, *args, rows=rows)

    monkeypatch.setattr(attention, "_attend", counted)
    return sizes


def plain(q: Tensor, kv: Tensor, heads: int) -> Tensor:
    """Equation 1, as it is written."""
    batch, height, width, channels = q.shape
    q = q.view(batch, height * width, heads, -1).transpose(1, 2)
    k, v = kv.view(batch, -1, 2, heads, channels // heads).permute(2, 0, 3, 1, 4)
    shares = torch.softmax(q @ k.mT / (channels // heads) ** 0.5, -1)
    return (shares @ v).transpose(1, 2).reshape(batch, height, width, channels)


@given(st.data())
def test_tiles_are_the_plain_attention(data: st.DataObject) -> None:
    sizes = st.integers(1, 6)
    batch, heads, depth = (data.draw(sizes) for _ in range(3))
    (height, width), (h, w) = (data.draw(st.tuples(sizes, sizes)) for _ in range(2))
    rows, together = data.draw(st.integers(1, 40)), data.draw(st.integers(1, heads))
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 99)))
    q = torch.randn(batch, height, width, heads * depth, dtype=torch.double, generator=generator)
    kv = torch.randn(batch, h, w, 2 * heads * depth, dtype=torch.double, generator=generator)
    kv *= data.draw(st.sampled_from([0.1, 1.0, 100.0]))
    with torch.no_grad():
        tiled = attention._in_tiles(q, kv, heads, together, rows * together)
    torch.testing.assert_close(tiled, plain(q, kv, heads), rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(
        attention.attention(q, kv, heads), plain(q, kv, heads), rtol=1e-10, atol=1e-10
    )  # with gradients: PyTorch's


@pytest.mark.parametrize(
    ("queries", "keys", "heads", "expected"),
    [
        (4096, 256, 4, [8192 // 4] * 2),
        (4096, 2048, 2, [1024] * 8),
        (4096, 4096, 1, []),
        (1023, 256, 4, []),
        (256, 4, 1, []),
    ],
)
def test_a_tile_holds_a_pieces_scores(
    queries: int,
    keys: int,
    heads: int,
    expected: list[int],
    tiles: list[int],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Heads together where keys are few, one by one where they are many.

    Where a tile would be too small, PyTorch's attention.
    """
    monkeypatch.setattr(attention, "TILE", 32 * 1024)
    q, kv = torch.randn(1, queries, 1, 32 * heads), torch.randn(1, keys, 1, 64 * heads)
    with torch.no_grad():
        result = attention.attention(q, kv, heads)
    torch.testing.assert_close(result, plain(q, kv, heads), rtol=1e-5, atol=1e-5)
    assert tiles == expected
    assert memory.PIECE == 4 * 8192 * 256


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_precision_is_computed_in_float32(dtype: torch.dtype, tiles: list[int]) -> None:
    q, kv = torch.randn(1, 16, 8, 64).to(dtype), torch.randn(1, 4, 4, 128).to(dtype)
    with torch.no_grad():
        result = attention.attention(q, kv, 2)
        with torch.autocast("cpu", torch.bfloat16):
            assert torch.equal(attention.attention(q, kv, 2), result)
    assert result.dtype == dtype
    assert torch.equal(result, plain(q.float(), kv.float(), 2).to(dtype)) or torch.allclose(
        result.float(), plain(q.float(), kv.float(), 2), rtol=torch.finfo(dtype).eps, atol=1e-6
    )
    assert len(tiles) == 2


@pytest.mark.usefixtures("tiles")
def test_scores_that_are_not_finite_stay_so() -> None:
    q, kv = torch.randn(1, 16, 8, 32), torch.randn(1, 2, 2, 64)
    q[0, 1, 2, 3] = torch.nan
    with torch.no_grad():
        result = attention.attention(q, kv, 1)
    assert result[0, 1, 2].isnan().all()
    assert result.isnan().sum() == 32


def test_a_model_is_the_same_either_way(tiny: SegFormer, tiles: list[int]) -> None:
    model = tiny.double()
    images = torch.randn(2, 3, 96, 64, dtype=torch.double)
    with torch.enable_grad():
        expected = model(images)
    assert not tiles
    with torch.no_grad():
        torch.testing.assert_close(model(images), expected, rtol=0, atol=1e-12)
    assert tiles
