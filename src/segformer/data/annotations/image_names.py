"""Images by the names that files of annotations give them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from segformer.data.annotations.areas import Annotated
from segformer.data.annotations.fields import fault
from segformer.data.images import IMAGE_SUFFIXES
from segformer.data.pairing import composed


class ImageNames:
    """Annotations by the name of their image's file.

    Names may be longer than the paths below a folder, as they come from other computers, and
    shorter, without folders.
    """

    def __init__(self, listed: Sequence[Annotated]) -> None:
        self.names = [image.names[0] for image in listed]
        self._by_file: dict[str, list[tuple[PurePosixPath, Annotated]]] = defaultdict(list)
        self._taken: dict[int, Path] = {}
        for image in listed:
            for name in image.names:
                path = PurePosixPath(composed(name.replace("\\", "/")))
                self._by_file[path.name].append((path, image))

    def of(self, image: Path, below: Path) -> Annotated | None:
        """Returns the annotations of an image, None if there are none.

        Args:
            image: Path of the image.
            below: Its path below the folder of images.

        Raises:
            ValueError: If there are two, or they may be those of another image.
        """
        own = PurePosixPath(composed(below.as_posix()))
        whole = PurePosixPath(composed(image.absolute().as_posix()))
        found: dict[int, tuple[tuple[bool, int], Annotated]] = {}
        for file in (own.name, own.stem):
            for path, annotated in self._by_file.get(file, ()):
                name = path.with_name(own.name) if _has_no_type(path) else path
                if name.name != own.name or _is_of_another(name, image):
                    continue
                if _ends(name, own) or _ends(whole, name):
                    found[id(annotated)] = (name == own, _common(name, whole)), annotated
        best = max((likeness for likeness, _ in found.values()), default=None)
        matches = [annotated for likeness, annotated in found.values() if likeness == best]
        if not matches:
            return None
        if len(matches) > 1:
            one, two = matches[:2]
            raise fault(
                one.path,
                one.where,
                f"image {str(image)!r} has two annotations, also {two.where} in {str(two.path)!r}; "
                "remove one",
            )
        other = self._taken.setdefault(id(matches[0]), image)
        if other != image:
            raise fault(
                matches[0].path,
                matches[0].where,
                f"it may be {str(other)!r} or {str(image)!r}; write the folder into its name",
            )
        return matches[0]


def _is_of_another(name: PurePosixPath, image: Path) -> bool:
    """Returns whether a name is that of an image in another folder, as val/1.png is of train's."""
    parts = list(image.absolute().parts)
    common = _common(name, PurePosixPath(composed(image.absolute().as_posix())))
    if common in (len(name.parts), len(parts)):
        return False
    parts[-1 - common] = name.parts[-1 - common]
    return Path(*parts).is_file()


def _has_no_type(path: PurePosixPath) -> bool:
    return path.suffix.lower() not in IMAGE_SUFFIXES


def _ends(path: PurePosixPath, end: PurePosixPath) -> bool:
    return path.parts[-len(end.parts) :] == end.parts


def _common(one: PurePosixPath, other: PurePosixPath) -> int:
    """Returns the number of last parts that two paths have in common."""
    pairs = zip(reversed(one.parts), reversed(other.parts), strict=False)
    return next((k for k, (a, b) in enumerate(pairs) if a != b), len(one.parts))
