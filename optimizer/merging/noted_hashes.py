"""Check files against the sha256 that recipes note for their models: the same name may be another version."""

import re
from collections.abc import Mapping
from pathlib import Path

from optimizer.errors import CheckpointError
from optimizer.library import Library, short_hash
from optimizer.recipes import Model

__all__ = ["check_noted_hashes", "fits_hash", "other_hash"]

# All 64 digits of a file's sha256, or the first 10, which people quote.
_HASH = re.compile(r"[0-9a-fA-F]{64}|[0-9a-fA-F]{10}")


def check_noted_hashes(
    models: Mapping[str, Model],
    paths: Mapping[str, Path],
    library: Library,
    *,
    named_in: Path | str = "recipe",
    known: bool = False,
) -> dict[str, str]:
    """Check the files of models for which the recipe notes a sha256.

    Args:
        models: The models of the recipe, by name.
        paths: The files, by the models' names.
        library: The library with the files' hashes. Missing hashes are computed and stored, in about 1.5 s for 2 GB.
        named_in: The recipe, for messages.
        known: Check only files whose hashes are in the cache.

    Returns:
        The sha256 of the checked files, by the models' names.

    Raises:
        CheckpointError: If a file has another hash or cannot be read, or the noted text is no hash; a line for each.

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
        digest = library.known_sha256(path)
        if digest is None and not known:
            try:
                digest = library.sha256(path)
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
    """Return whether a file's sha256 is the noted one, given whole or by its first 10 digits."""
    return digest.startswith(noted.lower())


def other_hash(noted: str, path: Path, digest: str) -> str:
    """Return the message for a file whose sha256 differs from the noted one."""
    both = noted.lower(), digest
    if short_hash(both[0]) != short_hash(digest):
        both = short_hash(both[0]), short_hash(digest)
    return (
        f"{both[0]} is noted, but {path} has the hash {both[1]}: it is not the file that was used; put that file "
        "there, correct or leave out `sha256`, or continue anyway (`check_hashes=False`)"
    )
