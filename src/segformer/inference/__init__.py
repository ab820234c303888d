"""From image files to label maps and pictures."""

from segformer.inference.labellers import ByProtocol, InWindows, Labeller, WholeImages
from segformer.inference.pipeline import label_file, label_files, plan
from segformer.inference.processor import ByProcessor
from segformer.inference.scenes import label_array, label_scene
from segformer.inference.video import label_video, label_videos, plan_videos

__all__ = [
    "ByProcessor",
    "ByProtocol",
    "InWindows",
    "Labeller",
    "WholeImages",
    "label_array",
    "label_file",
    "label_files",
    "label_scene",
    "label_video",
    "label_videos",
    "plan",
    "plan_videos",
]
