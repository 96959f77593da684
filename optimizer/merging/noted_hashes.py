"""The sha256 that recipes note of their models, checked: a file of the same name may be another version."""

import re
from collections.abc import Callable, Mapping
from pathlib import Path

from optimizer.errors import CheckpointError
from optimizer.library import HashCache, sha256, short_hash
from optimizer.recipes import Model

__all__ = ["check_noted_hashes", "fits_hash", "other_hash"]

# All digits of a file's sha256, or the first ten, which people pass on.
_HASH = re.compile(r"[0-9a-fA-F]{64}|[0-9a-fA-F]{10}")


def check_noted_hashes(
    models: Mapping[str, Model],
    paths: Mapping[str, Path],
    *,
    named_in: Path | str = "recipe",
    hashes: HashCache | None = None,
    progress: Callable[[str, int, int], None] | None = None,
    telling: str = "hashing {}",
    known: bool = False,
) -> dict[str, str]:
    """Return the sha256 of those of `paths` ({model: file}) of which `models` note one, by the models' names.

    Hashes are taken from and kept in `hashes`; files that it lacks are read, which takes some 1.5 s for 2 GB and tells
    `progress` what is done (`telling`, with the file's name), the bytes done and their total. With `known`, those are
    left out.

    Raises CheckpointError, a line for each, for files that have another hash, cannot be read, or of which something
    else than a hash is noted. `named_in` is the recipe, for messages.
    """
    found: dict[str, str] = {}
    problems: list[str] = []
    for name, path in paths.items():
        noted = models[name].sha256 if name in models else None
        if noted is None:
            continue
        where = f"{named_in}: models.{name}.sha256"
        if not _HASH.fullmatch(noted):
            problems.append(
                f"{where}: received {noted[:80]!r}; must be the 64 digits of the file's sha256, or the first 10 of them"
            )
            continue
        digest = hashes.look_up(path, "sha256") if hashes is not None else None
        if digest is None and not known:
            try:
                digest = sha256(path, hashes, progress=_named(telling.format(path.name), progress))
            except CheckpointError as error:
                problems += (f"{where}: {problem}" for problem in error.problems)
        if digest is not None:
            found[name] = digest
            if not fits_hash(digest, noted):
                problems.append(f"{where}: {other_hash(noted, path, digest)}")
    if problems:
        raise CheckpointError(problems)
    return found


def fits_hash(digest: str, noted: str) -> bool:
    """Whether a file's sha256 is the one that was noted, whole or its first ten digits."""
    return digest.startswith(noted.lower())


def other_hash(noted: str, path: Path, digest: str) -> str:
    """What to say of a file whose hash is another one than was noted."""
    both = noted.lower(), digest
    if short_hash(both[0]) != short_hash(digest):
        both = short_hash(both[0]), short_hash(digest)
    return (
        f"{both[0]} is noted, but {path} has the hash {both[1]}: it is another file than the one that was used; put "
        "that one there, correct or leave out `sha256`, or go on all the same (`check_hashes=False`)"
    )


def _named(what: str, progress: Callable[[str, int, int], None] | None) -> Callable[[int, int], None] | None:
    return None if progress is None else lambda done, total: progress(what, done, total)
