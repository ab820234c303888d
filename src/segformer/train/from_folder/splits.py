"""Which pairs of a folder train, validate and test: by its folders, by lists, or by a share."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from segformer.train.from_folder.arrangement import Arrangement, Pair
from segformer.train.from_folder.division import SINGLY, divide, groups_by, groups_of
from segformer.train.from_folder.name_lists import found_lists, listed
from segformer.train.from_folder.options import Options

DEFAULT_SHARE = 0.2  # of the images, for validation


def divided(found: Arrangement, options: Options) -> tuple[dict[str, list[Pair]], list[str]]:
    """Returns the pairs of each split, and one sentence for each decision.

    Raises:
        ValueError: If a folder with splits should be divided otherwise, or one side is empty.
    """
    divides = options.val_share is not None or options.group is not None
    if options.train_names or options.val_names:
        return _by_lists(found, options.train_names, options.val_names)
    if found.is_divided:
        if divides:
            raise ValueError(
                f"{str(found.root)!r} has the splits {', '.join(found.pairs)}, which --val_share "
                "and --group would divide again; remove these options, or the folders of splits"
            )
        return dict(found.pairs), []
    tested = {"test": found.pairs["test"]} if "test" in found.pairs else {}
    undivided = found.pairs.get("train") or found.pairs[""]
    lists = {} if divides or tested else found_lists(found.root)
    if lists:
        return _by_lists(found, lists["train"], lists["val"], lists.get("test"))
    parts, decisions = _by_share(undivided, options)
    return {**parts, **tested}, decisions


def _by_lists(
    found: Arrangement, train: Path | None, val: Path | None, test: Path | None = None
) -> tuple[dict[str, list[Pair]], list[str]]:
    """Returns the pairs that text files list; without one of the first two, it gets the rest."""
    every = [pair for pairs in found.pairs.values() for pair in pairs]
    given = {"train": train, "val": val, "test": test}
    parts = {split: listed(every, path) for split, path in given.items() if path}
    decisions = [f"{split}: {len(parts[split])} pairs, listed in {given[split]}" for split in parts]
    taken = [pair for pairs in parts.values() for pair in pairs]
    twice = [pair.name for pair, count in Counter(taken).items() if count > 1]
    if twice:
        raise ValueError(
            f"{twice[0]!r} and {len(twice) - 1} other names are listed in two splits; remove them "
            "from one"
        )
    rest = [pair for pair in every if pair not in set(taken)]
    missing = next((split for split in ("train", "val") if split not in parts), None)
    if missing:
        parts[missing] = rest
        decisions.append(f"{missing}: the other {len(rest)} pairs")
    elif rest:
        decisions.append(f"{len(rest)} pairs that no list names are left out")
    if not parts["train"] or not parts["val"]:
        raise ValueError("the lists leave no pair for training or for validation; correct them")
    return {split: parts[split] for split in ("train", "val", "test") if split in parts}, decisions


def _by_share(pairs: Sequence[Pair], options: Options) -> tuple[dict[str, list[Pair]], list[str]]:
    if len(pairs) < 2:
        raise ValueError(
            f"{str(options.folder)!r} has {len(pairs)} pair; training and validation need one each"
        )
    if options.group:
        groups = groups_by(options.group, [str(pair.image) for pair in pairs])
        how = f"{len(set(groups))} groups by --group {options.group!r}"
    else:
        groups, how = groups_of([pair.name for pair in pairs])
    share = DEFAULT_SHARE if options.val_share is None else options.val_share
    validates = divide(groups, share, options.val_seed)
    val = [pair for pair, chosen in zip(pairs, validates, strict=True) if chosen]
    train = [pair for pair, chosen in zip(pairs, validates, strict=True) if not chosen]
    percent = 100 * len(val) / len(pairs)
    decisions = [
        how,
        f"train {len(train)}, val {len(val)} ({percent:.0f} %; wanted {100 * share:.0f} %, seed "
        f"{options.val_seed})",
    ]
    is_near = 0.5 < len(val) / (share * len(pairs)) < 1.5
    if len(set(groups)) < len(pairs) and not is_near:
        decisions.append(
            f"{len(set(groups))} groups cannot be divided nearer to {100 * share:.0f} %; if they "
            f"are kinds of images, such as classes, {SINGLY} divides them singly"
        )
    return {"train": train, "val": val}, decisions
