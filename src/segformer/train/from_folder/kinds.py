"""What the images of a folder are: photographs, or images of other bands."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from segformer.data.bands import SUFFIXES, Bands, start_of
from segformer.data.datasets import DataError, check_sizes
from segformer.data.families import geotiff
from segformer.data.families.dicom import is_dicom
from segformer.data.images import read_header
from segformer.train.from_folder.label_values import READERS


@dataclass(frozen=True)
class Images:
    """What all images of a folder are.

    Args:
        kinds: Number of images of each kind, such as ``RGB with 8 bits``.
        bands: How they are read, None for photographs.
        augmentation: Class in :mod:`segformer.data.augmentation` that fits them.
    """

    kinds: Counter[str]
    bands: Bands | None = None
    augmentation: str = "Street"

    @property
    def summary(self) -> str:
        """The start of a sentence about them."""
        kinds = ", ".join(f"{kind} ({count})" for kind, count in self.kinds.most_common(3))
        return f"images: {kinds}, read {'with their values' if self.bands else 'as RGB'}"


@dataclass(frozen=True)
class _Image:
    kind: str = ""
    is_on_earth: bool = False
    fault: str = ""


def survey_images(
    pairs: Sequence[tuple[Path, Path]],
    sizes: Mapping[Path, tuple[int, int]],
    bands: Bands | None = None,
) -> Images:
    """Returns what images are.

    They are photographs if all have 8 bits, and one band, or red, green and blue.

    Args:
        pairs: Paths of images and of their label maps.
        sizes: Height and width of each label map.
        bands: How they are read, if the user says it.

    Raises:
        DataError: If an image cannot be read, has another size than its label map, or other bands
            than the first.
    """
    with ThreadPoolExecutor(READERS) as readers:
        if bands is None and not all(readers.map(_is_photograph, (image for image, _ in pairs))):
            bands = Bands()
        found = list(readers.map(lambda pair: _survey(pair, sizes[pair[1]], bands), pairs))
    faults = [image.fault for image in found if image.fault]
    kinds = Counter(image.kind for image in found)
    if bands is not None and not faults and len(kinds) > 1:
        first = {image.kind: path for image, (path, _) in zip(found, pairs, strict=True)}
        shown = " and ".join(f"{str(path)!r} has {kind}" for kind, path in [*first.items()][:2])
        faults = [f"{shown}; convert the images to one kind, or choose bands by data.bands.select"]
    if faults:
        raise DataError(faults, pairs)
    is_medical = all(_is_medical(image) for image, _ in pairs)
    is_aerial = any(image.is_on_earth for image in found)
    fitting = "Medical" if is_medical else "Aerial" if is_aerial else "Street"
    return Images(kinds, bands, fitting)


def _survey(pair: tuple[Path, Path], size: tuple[int, int], bands: Bands | None) -> _Image:
    path, label = pair
    try:
        if bands is None:
            header = read_header(path)
            kind = f"{header.mode} with {header.greatest.bit_length()} bits"
            is_on_earth, own = header.is_on_earth, header.shown_size
        else:
            image = bands.open(path)
            count = image.shape[0]
            kind = f"{count} band{'s' * (count > 1)} of {image.dtype}"
            is_on_earth, own = image.grid is not None, image.size
        check_sizes(path, own, label, size)
    except (OSError, ValueError) as error:
        return _Image(fault=str(error))
    return _Image(kind, is_on_earth)


def _is_photograph(path: Path) -> bool:
    """Returns whether 8-bit RGB holds all of an image; also for one that nothing can read."""
    if path.suffix.lower() in SUFFIXES:
        return False
    is_raster = geotiff.is_raster(path)
    try:
        header = read_header(path)
    except (OSError, ValueError):
        return not is_raster
    return header.greatest <= 255 and not (is_raster and header.mode not in ("1", "L", "P", "RGB"))


def _is_medical(path: Path) -> bool:
    return path.suffix.lower() == ".svs" or is_dicom(start_of(path))
