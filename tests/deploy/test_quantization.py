"""int8: NNCF's quantisation, judged by mIoU; and halves, judged by the graph that they leave."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from segformer import SegFormer, deploy
from segformer.data.classes import Classes
from segformer.evaluation import evaluate
from segformer.networks.mit import Variant

SIZES = [(1, 96, 128), (3, 65, 97), (2, 333, 500)]


class Scenes:
    """Images of coloured boxes on grey noise, with the labels of the boxes."""

    COLOURS = torch.tensor([[110, 110, 110], [200, 60, 60], [60, 60, 200]])
    classes = Classes(("ground", "red", "blue"))

    def __init__(self, count: int, size: tuple[int, int] = (96, 128), seed: int = 0) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.samples = [self.scene(*size, generator) for _ in range(count)]

    def scene(self, height: int, width: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        label = torch.zeros(height, width, dtype=torch.uint8)
        for kind in (1, 2, 1, 2):
            top, left = (int(torch.randint(n - 24, (), generator=generator)) for n in label.shape)
            label[top : top + 24, left : left + 24] = kind
        noise = 20 * torch.randn(height, width, 3, generator=generator)
        image = (self.COLOURS[label.int()] + noise).clamp(0, 255).to(torch.uint8)
        return image.permute(2, 0, 1).contiguous(), label

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return self.samples[index]

    def images(self) -> list[Tensor]:
        return [image for image, _ in self.samples]


@pytest.fixture(scope="module")
def model() -> SegFormer:
    """A tiny network that tells the boxes from the ground."""
    torch.manual_seed(0)
    variant = Variant(dims=(8, 16, 40, 64), depths=(1, 1, 1, 1), decoder_channels=16)
    network = SegFormer(variant, num_classes=3, classes=Scenes.classes)
    scenes = Scenes(8, seed=1)
    images = network.normalization(torch.stack(scenes.images()))
    labels = torch.stack([label for _, label in scenes]).long()
    optimizer = torch.optim.AdamW(network.parameters(), lr=5e-3)
    for _ in range(60):
        loss = F.cross_entropy(network(images), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return network.eval()
