"""The data sets of the papers, in the folders and files in which they are published."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from torchvision import datasets

from segformer.data.classes import IGNORE_INDEX, Classes
from segformer.data.datasets import FolderDataset

Root = str | os.PathLike[str]


class ADE20K(FolderDataset):
    """ADE20K with the 150 classes of the scene-parsing challenge.

    In the label maps 0 is ignored, and 1 to 150 are the classes 0 to 149.

    Args:
        root: The folder ``ADEChallengeData2016``, with ``images/{split}`` and
            ``annotations/{split}``.
        split: ``"training"`` or ``"validation"``.
    """

    CLASSES = Classes.of_table("ade20k")

    def __init__(self, root: Root, split: str) -> None:
        label_map = {0: IGNORE_INDEX} | {k + 1: k for k in range(len(self.CLASSES))}
        super().__init__(
            Path(root, "images", split),
            Path(root, "annotations", split),
            self.CLASSES,
            label_map=label_map,
        )


class Cityscapes(FolderDataset):
    """Cityscapes with the 19 classes of its evaluation, from ``*_gtFine_labelIds.png``.

    Args:
        root: Folder with ``leftImg8bit`` and ``gtFine``.
        split: ``"train"`` or ``"val"``.
    """

    EVALUATED = sorted(
        (c for c in datasets.Cityscapes.classes if 0 <= c.train_id < IGNORE_INDEX),
        key=lambda c: c.train_id,
    )
    CLASSES = Classes([c.name for c in EVALUATED], [c.color for c in EVALUATED])
    LABEL_IDS = {c.id: c.train_id for c in datasets.Cityscapes.classes if c.id >= 0}  # noqa: RUF012

    def __init__(self, root: Root, split: str) -> None:
        super().__init__(
            Path(root, "leftImg8bit", split),
            Path(root, "gtFine", split),
            self.CLASSES,
            label_map=self.LABEL_IDS,
            image_suffix="_leftImg8bit",
            label_suffix="_gtFine_labelIds",
        )


class VOC2012(FolderDataset):
    """PASCAL VOC 2012: 20 classes and the background; the objects' outlines are ignored (255).

    Args:
        root: The folder ``VOCdevkit/VOC2012``.
        split: ``"train"``, ``"val"``, ``"trainval"`` or another list in ``ImageSets/Segmentation``.
        labels: Name of the folder of label maps.
    """

    CLASSES = Classes.of_table("voc2012")

    def __init__(self, root: Root, split: str, labels: str = "SegmentationClass") -> None:
        names = Path(root, "ImageSets", "Segmentation", f"{split}.txt")
        super().__init__(Path(root, "JPEGImages"), Path(root, labels), self.CLASSES, names=names)


class VOC2012Aug(VOC2012):
    """PASCAL VOC 2012 with additional label maps of SBD, all in ``SegmentationClassAug``.

    Its training split is ``"trainaug"``.
    """

    def __init__(self, root: Root, split: str) -> None:
        super().__init__(root, split, "SegmentationClassAug")


class COCOStuff(FolderDataset):
    """COCO-Stuff with 171 things and stuffs, from the label maps ``stuffthingmaps_trainval2017``.

    Args:
        root: Folder with ``images/{split}`` and ``annotations/{split}``.
        split: ``"train2017"`` or ``"val2017"``.
    """

    CLASSES = Classes.of_table("coco_stuff")
    UNUSED = (11, 25, 28, 29, 44, 65, 67, 68, 70, 82, 90)  # of the 182 values

    def __init__(self, root: Root, split: str) -> None:
        values = [value for value in range(182) if value not in self.UNUSED]
        label_map = {value: k for k, value in enumerate(values)} | {IGNORE_INDEX: IGNORE_INDEX}
        super().__init__(
            Path(root, "images", split),
            Path(root, "annotations", split),
            self.CLASSES,
            label_map=label_map,
        )


class CamVid(FolderDataset):
    """CamVid with 11 classes, in the copy of the SegNet tutorial; 11 is ignored.

    Args:
        root: Folder with ``images/{split}`` and ``labels/{split}``.
        split: ``"train"``, ``"val"`` or ``"test"``.
    """

    CLASSES = Classes.of_table("camvid11")

    def __init__(self, root: Root, split: str) -> None:
        super().__init__(
            Path(root, "images", split), Path(root, "labels", split), self.CLASSES, ignore_index=11
        )


class CamVid32(FolderDataset):
    """CamVid with its own 31 classes, from its label maps in colours, ``*_L.png``.

    The 32nd class, void, is black and ignored.

    Args:
        root: Folder with ``images/{split}`` and ``labels/{split}``.
        split: Name of the split.
    """

    CLASSES = Classes.of_table("camvid32")

    def __init__(self, root: Root, split: str) -> None:
        super().__init__(
            Path(root, "images", split),
            Path(root, "labels", split),
            self.CLASSES,
            label_suffix="_L",
        )


STANDARD: dict[str, Any] = {
    kind.__name__: kind
    for kind in (ADE20K, Cityscapes, VOC2012, VOC2012Aug, COCOStuff, CamVid, CamVid32)
}
