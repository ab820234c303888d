"""A trained model leaves PyTorch: files for other runtimes, and what runs them."""

from segformer.deploy.comparison import Comparison, compare
from segformer.deploy.description import Description
from segformer.deploy.exported import Exported, is_exported, load
from segformer.deploy.exporting import export
from segformer.deploy.formats import FORMATS, format_of
from segformer.deploy.reading import load_model

__all__ = [
    "FORMATS",
    "Comparison",
    "Description",
    "Exported",
    "compare",
    "export",
    "format_of",
    "is_exported",
    "load",
    "load_model",
]
