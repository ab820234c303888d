"""A local web page that shows a model's labels over a photo.

:func:`segment` computes what the page shows and needs no gradio; :func:`page` lays it out, and
:func:`serve` runs it.
"""

from __future__ import annotations

import html
import os
import signal
import socket
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from threading import Event
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms.v2.functional import resize

from segformer.data.classes import Classes, Color
from segformer.data.images import read_image
from segformer.data.labels import file_type
from segformer.evaluation import as_batch, device_of
from segformer.evaluation.batches import in_evaluation
from segformer.evaluation.protocols import gives_logits
from segformer.inference.pictures import RAMP, heat_map, overlay
from segformer.ops import with_background

HOST = "127.0.0.1"  # this machine only
PORTS = range(7860, 7960)
MAX_SIDE = 1024  # pixels
OPACITY = 55  # %
BAND = 64  # rows of logits whose softmax is computed at a time
NO_CONFIDENCE = (
    "There is no confidence map, because this file gives labels only: export it with "
    "<code>--output logits</code> to see one."
)
START = "<p>Drop a photo, or take one with the camera.</p>"
CSS = """
#header h1 {font-size: 1.6rem; font-weight: 650; margin: 0;}
#header p, #legend p, #key {color: var(--body-text-color-subdued); font-size: .9rem; margin: 0;}
#labels img, #confidence img, #photo img {height: 100%; object-fit: contain; width: 100%;}
#key .key {align-items: center; display: flex; gap: .6rem;}
#key .key i {border-radius: 3px; flex: 1; height: .7rem;}
#key .key span:first-child {margin-right: .6rem;}
#key b {color: var(--body-text-color); font-variant-numeric: tabular-nums;}
#legend ul {
  column-gap: 2rem; display: grid; grid-template-columns: repeat(auto-fill, minmax(13rem, 1fr));
  list-style: none; margin: 0; max-height: 40vh; overflow-y: auto; padding: 0;
}
#legend li {align-items: center; display: flex; gap: .6rem; margin: 0; padding: .16rem 0;}
#legend i {
  border: 1px solid rgb(0 0 0 / .25); border-radius: 4px; flex: none; height: 1rem; width: 1rem;
}
#legend .name {flex: 1; overflow: hidden; text-overflow: ellipsis; white-space: nowrap;}
#legend .share {color: var(--body-text-color-subdued); font-variant-numeric: tabular-nums;}
"""


@dataclass(frozen=True, eq=False)
class Segmentation:
    """A photo, and the classes of its pixels by a model.

    Args:
        picture: The photo, RGB.
        labels: Class index of each pixel, (H, W).
        confidence: Probability of that class, (H, W) float32; None for a model that gives labels
            only.
        classes: Names and colours of the classes.
    """

    picture: Image.Image
    labels: np.ndarray
    confidence: np.ndarray | None
    classes: Classes

    @property
    def shares(self) -> np.ndarray:
        """Fraction of the pixels that have each class, (K,)."""
        counts = np.bincount(self.labels.ravel(), minlength=len(self.classes))
        return counts / self.labels.size

    def overlay(self, opacity: float) -> Image.Image:
        """Returns the photo under the colours of its labels, with an opacity from 0 to 1."""
        return overlay(self.picture, self.labels, self.classes, opacity)


def segment(model: Any, image: Tensor, max_side: int = MAX_SIDE) -> Segmentation:
    """Returns the segmentation of a photo; the network runs once.

    Args:
        model: A :class:`~segformer.SegmentationModel`, or an exported file as a model.
        image: The photo, RGB uint8 (3, H, W).
        max_side: A photo with a longer side is made smaller first, and so is one that does not fit
            into the fixed size of an exported file.
    """
    image = fit(image, _fixed_size(model) or (max_side, max_side))
    height, width = image.shape[1:]
    with torch.no_grad(), in_evaluation(model):
        batch = as_batch(model, image, device_of(model))
        if gives_logits(model):
            logits = with_background(model(batch))[0, :, :height, :width]
            labels, confidence = logits.argmax(0), confidence_of(logits).cpu().numpy()
        else:
            labels, confidence = model.predict(batch)[0, :height, :width], None
    return Segmentation(
        Image.fromarray(image.permute(1, 2, 0).numpy()),
        labels.cpu().numpy().astype(file_type(len(model.classes))),
        confidence,
        model.classes,
    )


def fit(image: Tensor, size: Sequence[int]) -> Tensor:
    """Returns an image (C, H, W), made smaller if it does not fit into a height and width."""
    height, width = image.shape[-2:]
    scale = min(1.0, size[0] / height, size[1] / width)
    if scale == 1:
        return image
    smaller: Tensor = resize(image, [max(1, round(side * scale)) for side in (height, width)])
    return smaller


def confidence_of(logits: Tensor) -> Tensor:
    """Returns the greatest class probability (H, W) of logits (K, H, W)."""
    bands = [(band.amax(0) - band.logsumexp(0)).exp() for band in logits.float().split(BAND, dim=1)]
    return torch.cat(bands)


def _fixed_size(model: Any) -> tuple[int, int] | None:
    """Returns the only height and width that an exported file takes, None if it takes any."""
    return getattr(getattr(model, "description", None), "size", None)


def percent(share: float) -> str:
    """Returns a fraction in per cent with one decimal; a small one is not rounded to nothing."""
    return "< 0.1 %" if 0 < share < 0.0005 else f"{100 * share:.1f} %"


def legend_html(shares: np.ndarray, classes: Classes) -> str:
    """Returns a list of the classes in a photo with their colours and shares, greatest first."""
    order = [k for k in np.argsort(-shares, kind="stable").tolist() if shares[k]]
    rows = [
        f'<li><i style="background:{_css(classes.shown_colors[k])}"></i>'
        f'<span class="name">{html.escape(classes.names[k])}</span>'
        f'<span class="share">{percent(float(shares[k]))}</span></li>'
        for k in order
    ]
    return f'<ul class="legend">{"".join(rows)}</ul>'


def confidence_html(confidence: np.ndarray) -> str:
    """Returns the mean of a confidence map and the key of its colours."""
    colors = ", ".join(map(_css, RAMP))
    return (
        f'<div class="key"><span>Mean <b class="mean">{percent(float(confidence.mean()))}</b>'
        f'</span><span>0 %</span><i style="background:linear-gradient(90deg, {colors})"></i>'
        "<span>100 %</span></div>"
    )


def header_html(model: Any, name: str) -> str:
    """Returns the title of the page: what is shown, and what runs it."""
    engine = getattr(
        model, "engine", f"PyTorch {torch.__version__.partition('+')[0]} on {device_of(model)}"
    )
    return (
        f"<h1>{html.escape(name)}</h1>"
        f"<p>{len(model.classes)} classes · {html.escape(engine)} · photos stay on this "
        "machine</p>"
    )


def _css(color: Color) -> str:
    return f"rgb({color[0]}, {color[1]}, {color[2]})"


def check(model: Any) -> None:
    """Raises ValueError if gradio is missing, or the model does not take photos."""
    check_installed()
    channels = len(model.normalization.mean)
    if channels != 3 or model.normalization.bands is not None:
        raise ValueError(
            f"the model takes images of {channels} {model.normalization.dtype} bands, and photos "
            "are 8-bit RGB; label its images with segformer predict"
        )


def check_installed() -> None:
    """Raises ValueError if gradio is not installed."""
    if find_spec("gradio") is None:
        raise ValueError('the demo needs gradio; pip install "segformer[demo]"')


def page(model: Any, name: str, max_side: int = MAX_SIDE) -> Any:
    """Returns the page, a ``gradio.Blocks``.

    Args:
        model: A :class:`~segformer.SegmentationModel`, or an exported file as a model.
        name: Title of the page.
        max_side: See :func:`segment`.
    """
    import gradio as gr

    def show(path: str | None, opacity: float) -> list[Any]:
        if path is None:
            return [None, None, None, START, key]
        try:
            found = segment(model, read_image(path), max_side)
        except ValueError as error:
            raise gr.Error(str(error).replace(path, Path(path).name), duration=None) from error
        return [found, blend(found, opacity), *_explained(found)]

    def blend(found: Segmentation | None, opacity: float) -> Image.Image | None:
        return None if found is None else found.overlay(opacity / 100)

    gives_confidence = gives_logits(model)
    key = "" if gives_confidence else NO_CONFIDENCE
    with gr.Blocks(analytics_enabled=False, title=f"{name} · segformer", fill_width=True) as blocks:
        gr.HTML(header_html(model, name), elem_id="header")
        state = gr.State()
        with gr.Row():
            with gr.Column(scale=2, min_width=300):
                photo = gr.Image(
                    label="Photo",
                    placeholder="Drop a photo here\nor click to choose one",
                    type="filepath",
                    image_mode=None,  # the file as it is, for read_image
                    sources=["upload", "webcam", "clipboard"],
                    webcam_options=gr.WebcamOptions(mirror=False),
                    height=270,
                    elem_id="photo",
                )
                confidence = _picture(
                    "Confidence", height=270, visible=gives_confidence, elem_id="confidence"
                )
                explanation = gr.HTML(key, elem_id="key")
            with gr.Column(scale=3, min_width=400):
                labels = _picture("Labels", height=430, elem_id="labels")
                opacity = gr.Slider(
                    0, 100, OPACITY, step=1, label="Opacity of the labels (%)", elem_id="opacity"
                )
                legend = gr.HTML(START, elem_id="legend")
        photo.change(
            show,
            [photo, opacity],
            [state, labels, confidence, legend, explanation],
            api_visibility="private",
        )
        opacity.change(
            blend, [state, opacity], labels, api_visibility="private", show_progress="hidden"
        )
    return blocks


def _picture(label: str, **options: Any) -> Any:
    """Returns an image that the page shows."""
    import gradio as gr

    return gr.Image(label=label, buttons=["download", "fullscreen"], interactive=False, **options)


def _explained(found: Segmentation) -> tuple[Image.Image | None, str, str]:
    """Returns the picture of the confidence, the legend, and the confidence's key."""
    legend = legend_html(found.shares, found.classes)
    if found.confidence is None:
        return None, legend, NO_CONFIDENCE
    return heat_map(found.confidence), legend, confidence_html(found.confidence)


def serve(model: Any, name: str, port: int | None = None, max_side: int = MAX_SIDE) -> None:
    """Serves the page to this machine until the process is interrupted or terminated.

    Uploaded photos are written to a temporary folder, which is removed at the end.

    Args:
        model: A :class:`~segformer.SegmentationModel`, or an exported file as a model.
        name: Title of the page.
        port: Port; by default the first free one from 7860.
        max_side: See :func:`segment`.

    Raises:
        OSError: If the port is in use.
        ValueError: If gradio is missing, or the model does not take photos.
    """
    check(model)
    port = free_port(PORTS if port is None else [port])
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    # Otherwise a signal, as of a closed terminal, would leave the temporary folder behind.
    for end in {"SIGTERM", "SIGHUP"} & set(signal.Signals.__members__):  # Windows lacks one
        signal.signal(signal.Signals[end], lambda number, _: sys.exit(128 + number))
    with tempfile.TemporaryDirectory(prefix="segformer-demo-") as folder:
        os.environ["GRADIO_TEMP_DIR"] = folder
        blocks = page(model, name, max_side)
        _launch(blocks, port)
        print(f"{name}: http://{HOST}:{port} (Ctrl-C ends it)", flush=True)
        try:
            Event().wait()
        finally:
            blocks.close(verbose=False)


def free_port(ports: Sequence[int]) -> int:
    """Returns the first port of this machine that is free.

    Raises:
        OSError: If there is none.
    """
    for port in ports:
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((HOST, port))
            except OSError:
                continue
            return port
    tried = f"port {ports[0]} is" if len(ports) == 1 else f"ports {ports[0]} to {ports[-1]} are"
    raise OSError(f"{tried} in use; choose another with --port")


def _launch(blocks: Any, port: int) -> None:
    """Starts the server in a thread of its own."""
    import gradio as gr

    # The fonts of the system: gradio's own would be loaded from another machine.
    theme = gr.themes.Default(
        primary_hue="indigo",
        neutral_hue="slate",
        font=["system-ui", "sans-serif"],
        font_mono=["ui-monospace", "monospace"],
    )
    blocks.launch(
        server_name=HOST,
        server_port=port,
        share=False,
        pwa=False,
        mcp_server=False,
        ssr_mode=False,
        run_history=False,
        enable_monitoring=False,
        footer_links=[],
        quiet=True,
        show_error=True,
        prevent_thread_lock=True,
        theme=theme,
        css=CSS,
    )
