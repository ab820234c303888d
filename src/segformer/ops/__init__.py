"""The operators of the networks: a plain definition each, and faster implementations beside it.

``python -m segformer.ops`` prints which implementation runs when. ``with plain():`` turns them off.
"""

from segformer.ops.all_mlp import all_mlp, linear_head, upsample_and_fuse
from segformer.ops.argmax import upsample_argmax, with_background
from segformer.ops.bilinear import at_least_float32, upsample, upsample_sum
from segformer.ops.cross_entropy import upsample_cross_entropy
from segformer.ops.layout import channels_last
from segformer.ops.linear import linear
from segformer.ops.mix_ffn import mix_ffn
from segformer.ops.registry import OPERATORS, operator, plain, table

__all__ = [
    "OPERATORS",
    "all_mlp",
    "at_least_float32",
    "channels_last",
    "linear",
    "linear_head",
    "mix_ffn",
    "operator",
    "plain",
    "table",
    "upsample",
    "upsample_and_fuse",
    "upsample_argmax",
    "upsample_cross_entropy",
    "upsample_sum",
    "with_background",
]
