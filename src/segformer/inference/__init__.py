"""From image files to label maps and pictures."""

from segformer.inference.labellers import ByProtocol, InWindows, Labeller, WholeImages
from segformer.inference.pipeline import label_array, label_file, label_files, plan
from segformer.inference.processor import ByProcessor

__all__ = [
    "ByProcessor",
    "ByProtocol",
    "InWindows",
    "Labeller",
    "WholeImages",
    "label_array",
    "label_file",
    "label_files",
    "plan",
]
