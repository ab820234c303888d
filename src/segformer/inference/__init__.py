"""From image files to label maps and pictures."""

from segformer.inference.jobs import Job, Work, plan
from segformer.inference.labellers import ByProtocol, InWindows, Labeller, Thresholded, WholeImages
from segformer.inference.large import label_array, label_scene
from segformer.inference.pipeline import label_file, label_files, predict_file
from segformer.inference.processor import ByProcessor
from segformer.inference.results import Prediction, find_results
from segformer.inference.video import label_video, label_videos, plan_videos

__all__ = [
    "ByProcessor",
    "ByProtocol",
    "InWindows",
    "Job",
    "Labeller",
    "Prediction",
    "Thresholded",
    "WholeImages",
    "Work",
    "find_results",
    "label_array",
    "label_file",
    "label_files",
    "label_scene",
    "label_video",
    "label_videos",
    "plan",
    "plan_videos",
    "predict_file",
]
