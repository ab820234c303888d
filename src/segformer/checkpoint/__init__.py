"""Weights on disk: reads every public layout, writes four, each with its own numerics."""

from segformer.checkpoint.descriptions import describe
from segformer.checkpoint.files import NVIDIA_LICENCE
from segformer.checkpoint.formats import METADATA_KEY
from segformer.checkpoint.layout import BackboneOnlyError, Layout
from segformer.checkpoint.layouts import LAYOUTS
from segformer.checkpoint.parts import build, part
from segformer.checkpoint.processor import Processor, read_processor
from segformer.checkpoint.reading import Reading, load, read, translate_encoder
from segformer.checkpoint.report import Report
from segformer.checkpoint.segformer_layouts import Numerics
from segformer.checkpoint.writing import WRITABLE, metadata_of, save, state_dict_as

__all__ = [
    "LAYOUTS",
    "METADATA_KEY",
    "NVIDIA_LICENCE",
    "WRITABLE",
    "BackboneOnlyError",
    "Layout",
    "Numerics",
    "Processor",
    "Reading",
    "Report",
    "build",
    "describe",
    "load",
    "metadata_of",
    "part",
    "read",
    "read_processor",
    "save",
    "state_dict_as",
    "translate_encoder",
]
