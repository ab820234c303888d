"""From image files to label maps and pictures."""

from segformer.inference.labellers import ByProtocol, InWindows, Labeller, WholeImages
from segformer.inference.pipeline import label_file, label_files, plan
from segformer.inference.scenes import label_array, label_scene

__all__ = [
    "ByProtocol",
    "InWindows",
    "Labeller",
    "WholeImages",
    "label_array",
    "label_file",
    "label_files",
    "label_scene",
    "plan",
]
