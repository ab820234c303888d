"""``segformer predict``: label images with a trained network."""

from __future__ import annotations

from argparse import ArgumentParser, ArgumentTypeError, Namespace
from fractions import Fraction
from functools import partial
from pathlib import Path

from segformer.checkpoint import read_processor
from segformer.data.video import Clip, FrameFolder, VideoFile, is_video
from segformer.deploy import load_model
from segformer.evaluation import PROTOCOLS, Slide, find_protocol
from segformer.inference import (
    ByProcessor,
    ByProtocol,
    InWindows,
    Labeller,
    Thresholded,
    WholeImages,
    find_results,
    label_files,
    label_videos,
    plan,
    plan_videos,
)
from segformer.inference.jobs import check_source, wait_for_others
from segformer.inference.results import KINDS
from segformer.inference.scenes import suffixes_of


def add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument(
        "weights",
        metavar="WEIGHTS",
        help="file or folder of weights, Hugging Face id, or exported file, such as model.onnx",
    )
    parser.add_argument(
        "images",
        nargs="+",
        metavar="IMAGE",
        help="image file, folder of images, video, or .npy file, uint8 (H, W, 3), larger than "
        "memory",
    )
    parser.add_argument(
        "--out",
        type=Path,
        required=True,
        metavar="DIR",
        help="folder of the label maps, overlays and videos, created if missing",
    )
    parser.add_argument(
        "--overwrite", action="store_true", help="replace the files of an earlier run"
    )
    parser.add_argument(
        "--skip-existing",
        action="store_true",
        help="leave out images whose files exist: go on where a run stopped",
    )
    parser.add_argument(
        "--write",
        nargs="+",
        metavar="RESULT",
        choices=list(KINDS),
        help=f"what to write: {', '.join(KINDS)}; by default labels and overlay",
    )
    parser.add_argument(
        "--device",
        help="such as cpu or cuda:0; by default the GPU, if any, and the CPU for exported files",
    )
    parser.add_argument(
        "--slide",
        type=int,
        nargs=2,
        metavar=("CROP", "STRIDE"),
        help="label through square windows, such as 1024 768; the sums of logits take at most "
        "1 GiB, or those of two windows",
    )

    parser.add_argument(
        "--threshold",
        type=float,
        metavar="P",
        help="for a model of one logit: label 1 where its probability exceeds P, such as 0.3",
    )
    parser.add_argument(
        "--protocol",
        metavar="NAME",
        help=f"label as a paper measures: {', '.join(PROTOCOLS)}",
    )
    parser.add_argument(
        "--tta",
        action="store_true",
        help="average over several sizes and mirrored images, as --protocol defines",
    )
    parser.add_argument(
        "--processor",
        action="store_true",
        help="label as transformers does, by the preprocessor_config.json beside the weights",
    )
    parser.add_argument(
        "--video",
        type=_rate,
        metavar="FPS",
        help="make a video of each folder of frames, with so many a second, such as 25 or "
        "30000/1001; a video file keeps its own",
    )
    parser.add_argument(
        "--frames", action="store_true", help="keep the label maps of a video, in DIR/NAME"
    )


def run(parser: ArgumentParser, arguments: list[str]) -> None:
    options = parser.parse_args(arguments)
    labeller = _labeller(options)
    clips, images = _clips_and_images(options)
    _check_writing(options, clips)
    results, summaries = (None, ()) if options.write is None else find_results(options.write)
    for source in images:
        check_source(Path(source))
    # All is planned before the slow loading, but for folders: models of bands take other files.
    has_folders = any(Path(source).is_dir() for source in images)
    model = load_model(options.weights, options.device) if has_folders else None
    work = plan(
        images,
        options.out,
        options.overwrite,
        results,
        summaries if images else (),
        options.skip_existing,
        suffixes_of(model) if model is not None else (),
    )
    of_images = [path for job in work.jobs for _, path in job.writes]
    videos_of = plan_videos(
        clips, options.out, options.overwrite, options.frames, summaries, of_images
    )
    model = load_model(options.weights, options.device) if model is None else model
    steps = [partial(label_files, model, work, labeller)] if images else []
    if clips:
        steps.append(partial(label_videos, model, videos_of, labeller, summaries))
    errors = []
    for step in steps:
        try:
            step()
        except ValueError as error:  # the videos are still labelled
            errors.append(str(error))
    wait_for_others()
    if errors:
        raise ValueError("; ".join(errors))


def _check_writing(options: Namespace, clips: list[Clip]) -> None:
    """Raises ValueError if the options of what is written contradict each other."""
    if options.overwrite and options.skip_existing:
        raise ValueError(
            "--overwrite replaces files and --skip-existing keeps them; give only one of them"
        )
    if not clips:
        return
    video, cure = f"{str(clips[0].path)!r} becomes a video", "label it by itself"
    if options.skip_existing:
        raise ValueError(f"--skip-existing is for images, and {video}; {cure}")
    ours = [name for name, kind in KINDS.items() if kind.for_videos]
    for name in options.write or ():
        if name not in ours:
            raise ValueError(
                f"--write {name} is for images, and {video}, beside which --write gives "
                f"{' and '.join(ours)}; {cure}, with --frames for its label maps"
            )


def _rate(text: str) -> Fraction:
    """Returns a number of frames a second."""
    try:
        rate = Fraction(text)
    except (ValueError, ZeroDivisionError):
        rate = Fraction(0)
    if rate <= 0:
        raise ArgumentTypeError(f"{text!r} frames a second; give a number such as 25 or 30000/1001")
    return rate


def _clips_and_images(options: Namespace) -> tuple[list[Clip], list[str]]:
    """Returns the videos and folders of frames, and the other sources.

    Raises:
        FileNotFoundError: If a video or a folder of frames is missing.
        ValueError: If the options do not fit the sources.
    """
    videos = [s for s in options.images if is_video(Path(s)) and not Path(s).is_dir()]
    others = [source for source in options.images if source not in videos]
    clips: list[Clip] = [VideoFile(Path(source)) for source in videos]
    if options.video is not None:
        for source in [*videos, *others]:
            if not Path(source).is_dir():
                raise ValueError(
                    f"--video is for folders of frames, and {source!r} is none; label it without "
                    "--video"
                )
        clips, others = [FrameFolder(Path(source), options.video) for source in others], []
    if options.frames and not clips:
        raise ValueError("--frames is for videos, and none is given; label images without it")
    for clip in clips:
        if not clip.path.exists():
            raise FileNotFoundError(f"no video {str(clip.path)!r}")
    return clips, others


def _labeller(options: Namespace) -> Labeller:
    """Returns how images are labelled.

    Raises:
        ValueError: If the options contradict each other.
    """
    ways = [f"--{name}" for name in ("slide", "protocol", "processor") if getattr(options, name)]
    if len(ways) > 1:
        raise ValueError(
            f"{' and '.join(ways)} each say how images are labelled; give only one of them"
        )
    if options.tta and options.protocol is None:
        raise ValueError("--tta needs a --protocol, which has its ratios")
    way = _way(options)
    return way if options.threshold is None else Thresholded(way, options.threshold)


def _way(options: Namespace) -> Labeller:
    """Returns how the logits are computed."""
    if options.protocol is not None:
        return ByProtocol(find_protocol(options.protocol, options.tta))
    if options.processor:
        return ByProcessor(read_processor(options.weights))
    if options.slide:
        return InWindows(Slide(*((side, side) for side in options.slide)))
    return WholeImages()
