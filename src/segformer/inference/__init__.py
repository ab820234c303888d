"""From image files to label maps and pictures."""

from segformer.inference.pipeline import label_array, label_file, label_files, plan

__all__ = ["label_array", "label_file", "label_files", "plan"]
