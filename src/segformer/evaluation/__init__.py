"""The papers' evaluation protocols, metrics, and images larger than memory."""

from segformer.evaluation.batches import (
    as_batch,
    device_of,
    normalize_for,
    own_size_labels,
    pad_to_min_size,
)
from segformer.evaluation.large import average_windows, label_large, label_windows
from segformer.evaluation.metrics import Scores
from segformer.evaluation.protocols import (
    PROTOCOLS,
    TTA_RATIOS,
    WINDOWS,
    Blend,
    Protocol,
    Slide,
    Whole,
    check_logits,
    evaluate,
    find_protocol,
)

__all__ = [
    "PROTOCOLS",
    "TTA_RATIOS",
    "WINDOWS",
    "Blend",
    "Protocol",
    "Scores",
    "Slide",
    "Whole",
    "as_batch",
    "average_windows",
    "check_logits",
    "device_of",
    "evaluate",
    "find_protocol",
    "label_large",
    "label_windows",
    "normalize_for",
    "own_size_labels",
    "pad_to_min_size",
]
