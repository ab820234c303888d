"""A graph captured by ``torch.export``, with dynamic batch, height and width."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.export import Dim, ExportedProgram
from torch.utils._sympy.value_ranges import ValueRanges

from segformer.deploy.description import Description
from segformer.deploy.graph import Graph

BATCH = 2  # an example batch of 1 would become a constant


def example(description: Description) -> tuple[torch.Tensor, ...]:
    """Returns inputs like those that a graph is captured with."""
    height, width = description.size or _example_size(description)
    batch = description.batch or BATCH
    images = torch.zeros(batch, description.channels, height, width)
    if description.input == "uint8":
        images = images.permute(0, 2, 3, 1).to(torch.uint8).contiguous()
    size = torch.tensor([height + 1, width + 2])
    return (images, size) if description.takes_size else (images,)


def _example_size(description: Description) -> tuple[int, int]:
    """Returns a size whose maps are larger than one cell, and differ between both axes."""
    side = 32 * -(-description.min_size // 32)
    return 5 * side, 7 * side


def capture(graph: Graph, description: Description) -> ExportedProgram:
    """Returns a graph, in its description's precision, as a program of PyTorch's ATen operators.

    Raises:
        ValueError: If the network has parts that torch.export cannot capture.
    """
    lowest = 2 * description.min_size
    axes: dict[int, Any] = {}
    if description.batch is None:
        axes[0] = Dim("batch")
    if description.size is None:
        first = 1 if description.input == "uint8" else 2
        axes |= {first: Dim("height", min=lowest), first + 1: Dim("width", min=lowest)}
    shapes = (axes, None) if description.takes_size else (axes,)
    names = ("images", "size")
    try:
        program = torch.export.export(
            graph.to_precision(description.precision),
            example(description),
            dynamic_shapes=dict(zip(names, shapes, strict=False)),
            # otherwise facts that PyTorch cannot prove for all sizes are errors
            prefer_deferred_runtime_asserts_over_guards=True,
        )
    except Exception as error:
        kinds = " and ".join(
            sorted({type(part).__name__ for part in (graph.backbone, graph.decode_head)})
        )
        reason = str(error).strip().partition("\n")[0]
        raise ValueError(
            f"torch.export cannot capture {kinds}: {reason}; export a model of this library's own "
            "parts, or at a fixed size with --size"
        ) from error
    if any(node.target in DECOMPOSITIONS for node in program.graph.nodes):
        program = program.run_decompositions(DECOMPOSITIONS)
    _widen(program, lowest, description.min_size)
    return program


def _widen(program: ExportedProgram, lowest: int, min_size: int) -> None:
    """Lets a program take heights and widths from ``min_size``, without assertions about sizes.

    PyTorch chooses memory formats for maps of more than one cell, and asserts that they have more.
    The operators are right for one cell, too: an exported file is compared at the smallest size.
    """
    for symbol, values in program.range_constraints.items():
        if values.lower == lowest:
            program.range_constraints[symbol] = ValueRanges(min_size, values.upper)
    for node in list(program.graph.nodes):
        if node.target is torch.ops.aten._assert_scalar.default:
            program.graph.erase_node(node)
    program.graph.eliminate_dead_code()
    program.graph_module.recompile()
    program._guards_code.clear()


@contextlib.contextmanager
def quiet() -> Any:
    """Context without the exporters' progress lines and warnings about themselves."""
    disabled = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(disabled)


def bicubic_antialiased(
    x: Tensor, size: Sequence[Any], align_corners: bool, scales: Any = None
) -> Tensor:
    """PyTorch's ``_upsample_bicubic2d_aa``, by which timm resamples position embeddings.

    OpenVINO ignores the antialiasing of ONNX, so that it is exported as two matrix products.
    """
    rows, columns = (
        _resampling(source, target, x) for source, target in zip(x.shape[-2:], size, strict=True)
    )
    return rows @ x @ columns.mT


def _resampling(source: Any, target: Any, like: Tensor) -> Tensor:
    """Returns the matrix (target, source) of Keys' cubic kernel, a = -0.5, along one axis."""
    cells = torch.arange(source, dtype=like.dtype, device=like.device) + 0.5
    pixels = torch.arange(target, dtype=like.dtype, device=like.device) + 0.5
    scale = torch.ones_like(pixels).sum().reciprocal() * source  # source / target
    distance = (cells - scale * pixels[:, None]).abs() / scale.clamp_min(1)
    near = (1.5 * distance - 2.5) * distance * distance + 1
    far = ((-0.5 * distance + 2.5) * distance - 4) * distance + 2
    weights = torch.where(distance < 1, near, torch.where(distance < 2, far, 0.0))
    return weights / weights.sum(1, keepdim=True)


DECOMPOSITIONS = {torch.ops.aten._upsample_bicubic2d_aa.vec: bicubic_antialiased}
