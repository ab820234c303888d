"""What a run of ``segformer predict`` will write, which is checked before the model is loaded."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import timedelta
from itertools import chain
from pathlib import Path

import torch.distributed

from segformer.data.images import find_images
from segformer.inference.journal import Journal
from segformer.inference.large import ARRAY
from segformer.inference.results import DEFAULT, Labels, Result, Summary
from segformer.inference.scenes import is_scene

TIFF_SUFFIXES = (".tif", ".tiff")


@dataclass(frozen=True)
class Job:
    """An image and the files to write for it.

    Args:
        source: The image file.
        name: Its name with its subfolder, as summaries have it.
        writes: Each result and its path.
        large: Whether it is labelled in windows, from its file.
    """

    source: Path
    name: str
    writes: tuple[tuple[Result, Path], ...]
    large: bool = False

    def target(self, kind: type[Result]) -> Path | None:
        """Returns the path of a kind of result; None if it is not written."""
        return next((path for result, path in self.writes if isinstance(result, kind)), None)


@dataclass(frozen=True)
class Work:
    """The work of a run.

    Args:
        jobs: The images to label.
        names: Names of all images of this process, in their order.
        journals: The summaries.
    """

    jobs: tuple[Job, ...]
    names: tuple[str, ...]
    journals: tuple[Journal, ...] = ()


def plan(
    sources: Iterable[str],
    out: Path,
    overwrite: bool = False,
    results: Sequence[Result] | None = None,
    summaries: Sequence[Summary] = (),
    skip_existing: bool = False,
    also: Sequence[str] = (),
) -> Work:
    """Returns what is to be written for each image: by default ``NAME.png`` and an overlay.

    For ``NAME.npy``, and for a raster ``NAME.tif`` with a place on the earth, the label map is a
    file of the same name; there is no overlay. Subfolders are kept. Processes that ``torchrun``
    starts share the images, and each writes its own summaries.

    Args:
        sources: Image files, and folders of them.
        out: Folder to write into; made if it is missing.
        overwrite: Whether existing files are replaced; an image to label never is.
        results: What is written for each image.
        summaries: What is written for the run.
        skip_existing: Whether files that exist are kept; images are left out if all of theirs do,
            and their entries in the summaries.
        also: Suffixes of images in folders, beside those of photographs, such as ``.npy``.

    Raises:
        FileNotFoundError: If a file or folder is missing or a folder holds no image.
        FileExistsError: If a file to write exists already, or a folder to replace holds others.
        ModuleNotFoundError: If a package that a summary needs is missing.
        OSError: If the folder cannot be written.
        ValueError: If two images would be written to the same file, or a result cannot be written
            for an image that is labelled in windows.
    """
    for summary in summaries:
        summary.check()
    jobs: dict[Path, Job] = {}
    for source in map(Path, sources):
        check_source(source)
        folder = source if source.is_dir() else source.parent
        for path in find_images(source, also, out) if source.is_dir() else [source]:
            name = path.relative_to(folder)
            jobs[path] = _job(path, name, out, results, summaries)
    _check_names(jobs.values(), summaries)
    targets_of = {path: tuple(target for _, target in job.writes) for path, job in jobs.items()}
    own = list(checked(targets_of, out, overwrite or skip_existing))
    rank, size = _place()
    part = f"{rank + 1}-of-{size}" if size > 1 else ""
    journals = tuple(Journal(summary, out, part, skip_existing) for summary in summaries)
    _check_summaries(journals, targets_of)
    if not (overwrite or skip_existing):
        for path in (path for journal in journals for path in (journal.path, journal.target)):
            check_missing(path)
    names = tuple(jobs[path].name for path in own)
    left = [jobs[path] for path in own]
    if skip_existing:
        missing = _missing_entries(names, journals)
        rests = (_rest(job, job.name in missing) for job in left)
        left = [job for job in rests if job is not None]
    if overwrite:
        for result, path in chain(*(job.writes for job in left)):
            result.check_replaceable(path)
    return Work(tuple(left), names, journals)


def _rest(job: Job, lacks_entry: bool) -> Job | None:
    """Returns what an earlier run has left of a job, None if nothing: files that exist are kept.

    Raises:
        FileExistsError: If the label map exists, and is needed for the rest.
    """
    writes = tuple((result, path) for result, path in job.writes if not path.exists())
    if not (writes or lacks_entry):
        return None
    labels = job.target(Labels)
    if job.large and labels is not None and labels.exists():
        raise FileExistsError(
            f"{str(labels)!r} exists, and the rest of its results is made while it is written; "
            "remove it, or give --overwrite in place of --skip-existing"
        )
    return replace(job, writes=writes)


def check_source(source: Path) -> None:
    """Raises FileNotFoundError if there is no such image or folder."""
    if not source.exists():
        raise FileNotFoundError(f"no image or folder {str(source)!r}")


def _missing_entries(names: Sequence[str], journals: Iterable[Journal]) -> set[str]:
    """Returns the images that lack an entry in a summary."""
    missing: set[str] = set()
    for journal in journals:
        missing |= set(journal.summary.chosen(names)) - set(journal.entries)
    return missing


def _check_summaries(
    journals: Iterable[Journal], targets_of: Mapping[Path, tuple[Path, ...]]
) -> None:
    """Raises an error if a summary would be written in place of an image, or of its results."""
    source_of = {target: path for path, targets in targets_of.items() for target in targets}
    images = {path.resolve() for path in targets_of}
    for journal in journals:
        _check_kept(journal.target, images)
        if journal.target in source_of:
            raise ValueError(
                f"{journal.summary.name} and a result of {str(source_of[journal.target])!r} would "
                f"both be written to {str(journal.target)!r}; rename the image"
            )


def _check_names(jobs: Iterable[Job], summaries: Sequence[Summary]) -> None:
    """Raises ValueError if a summary would have two images of one name."""
    source_of: dict[str, Path] = {}
    for job in jobs if summaries else ():
        if not _is_text(job.name):
            raise ValueError(
                f"the name of {str(job.source)!r} is no text in UTF-8, as {summaries[0].file} is; "
                "rename the file"
            )
        if job.name in source_of:
            raise ValueError(
                f"{str(source_of[job.name])!r} and {str(job.source)!r} would both be "
                f"{job.name!r} in {summaries[0].file}; label them one by one, into different "
                "folders"
            )
        source_of[job.name] = job.source


def _is_text(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:  # bytes of another encoding
        return False
    return True


def _job(
    path: Path,
    name: Path,
    out: Path,
    results: Sequence[Result] | None,
    summaries: Sequence[Summary],
) -> Job:
    """Returns the files to write for an image."""
    target = out / name
    if not (path.suffix.lower() == ARRAY or is_scene(path)):
        chosen = DEFAULT if results is None else results
        return Job(path, name.as_posix(), tuple((r, r.path(target)) for r in chosen))
    chosen = [Labels()] if results is None else results
    kinds: tuple[Result | Summary, ...] = (*chosen, *summaries)
    refused = [kind.name for kind in kinds if not kind.for_large]
    if refused:
        raise ValueError(
            f"{str(path)!r} is labelled in windows, as it may be larger than memory, and "
            f"{refused[0]} needs it whole; leave {refused[0]} out of --write, or label it in a run "
            "of its own"
        )
    if not any(isinstance(result, Labels) for result in chosen):
        raise ValueError(
            f"{str(path)!r} is labelled in windows, into a file from which the others are made; "
            "add labels to --write"
        )
    if path.suffix.lower() not in (ARRAY, *TIFF_SUFFIXES):  # such as a slide's, or a VRT's
        target = target.with_suffix(TIFF_SUFFIXES[0])
    writes = tuple((result, result.path_of_large(target)) for result in chosen)
    return Job(path, name.as_posix(), writes, large=True)


def checked(
    targets_of: Mapping[Path, tuple[Path, ...]], out: Path, overwrite: bool = False
) -> dict[Path, tuple[Path, ...]]:
    """Returns this process's share of the files to write, after it made their folder.

    The arguments and errors are those of :func:`segformer.inference.jobs.plan`.
    """
    _check_distinct(targets_of)
    kept = _with_folders(path.resolve() for path in targets_of)
    rank, size = _place()
    own = dict(list(targets_of.items())[rank::size])
    for target in chain(*own.values()):
        _check_kept(target, kept)
        if not overwrite:
            check_missing(target)
    _check_writable(out)
    return own


def _with_folders(paths: Iterable[Path]) -> set[Path]:
    """Returns paths and all folders that they are in."""
    return {part for path in paths for part in (path, *path.parents)}


def _check_kept(target: Path, kept: Container[Path]) -> None:
    """Raises FileExistsError if a file or folder to write is an image to label, or holds one."""
    if target.resolve() in kept:
        raise FileExistsError(
            f"{str(target)!r} is one of the images to label, or holds one; choose another folder "
            "with --out"
        )


def check_missing(path: Path) -> None:
    """Raises FileExistsError if a file to write exists already."""
    if path.exists():
        raise FileExistsError(
            f"{str(path)!r} exists already; choose another folder with --out, or add --overwrite"
        )


def _check_distinct(targets_of: Mapping[Path, tuple[Path, ...]]) -> None:
    source_of: dict[Path, Path] = {}
    for path, targets in targets_of.items():
        for target in targets:
            if target in source_of:
                raise ValueError(
                    f"{str(source_of[target])!r} and {str(path)!r} would both be written to "
                    f"{str(target)!r}; label them one by one, into different folders"
                )
            source_of[target] = path
    for target, path in source_of.items():
        if outer := next((folder for folder in target.parents if folder in source_of), None):
            raise ValueError(
                f"{str(outer)!r}, a result of {str(source_of[outer])!r}, would hold "
                f"{str(target)!r}, one of {str(path)!r}; label them one by one, into different "
                "folders"
            )


def _place() -> tuple[int, int]:
    """Returns the number of this process and of all, as ``torchrun`` says them."""
    return int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))


def wait_for_others() -> None:
    """Waits until all processes of ``torchrun`` are done: when one fails, it stops the others."""
    processes = torch.distributed
    if processes.is_available() and processes.is_torchelastic_launched():
        processes.init_process_group("gloo", timeout=timedelta(days=365))
        processes.barrier()
        processes.destroy_process_group()


def _check_writable(folder: Path) -> None:
    """Makes a folder; raises OSError if no file can be written into it."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        raise OSError(
            f"the folder {str(folder)!r} cannot be written ({error.strerror}); choose another with "
            "--out"
        ) from error
