"""Prompts of the encoder metric: those in a file, and those that come with a layout."""

import hashlib
from collections.abc import Iterable
from pathlib import Path

from optimizer.checkpoints import TensorSource, pipeline_of
from optimizer.errors import InputError
from optimizer.families import Layout, prompts_file
from optimizer.files import read_text
from optimizer.printable import unprintable

__all__ = ["prompts_sha256", "read_prompts", "shipped_prompts"]

# Most prompts, since more add no information about an encoder, and most bytes of a file (4 MiB).
_MOST_PROMPTS, _LONGEST_FILE = 10_000, 1 << 22


def read_prompts(path: Path) -> tuple[str, ...]:
    """Return the prompts of a UTF-8 text file, one a line, without empty lines.

    Args:
        path: The file, of at most 4 MiB.

    Returns:
        The prompts, stripped.

    Raises:
        InputError: The file cannot be read, is too large, contains no prompt or too many, or unprintable characters.
    """
    try:
        lines = read_text(path, InputError, most=_LONGEST_FILE).decode("utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: is not text in UTF-8 (byte {error.start}); save it as UTF-8") from error
    problems = [
        f"{path}: line {number}: contains the character {letter!r}; leave it out"
        for number, line in enumerate(lines, 1)
        if (letter := unprintable(line.replace("\t", " "))) is not None
    ]
    if problems:
        raise InputError(problems[:8])
    prompts = tuple(line.strip() for line in lines if line.strip())
    if not 0 < len(prompts) <= _MOST_PROMPTS:
        received = f"{len(prompts):,} prompts" if prompts else "no prompt"
        raise InputError(f"{path}: contains {received}; must contain 1 to {_MOST_PROMPTS:,} prompts, one a line")
    return prompts


def prompts_sha256(prompts: Iterable[str]) -> str:
    """Return the identity of prompts: the SHA-256 of a file that contains only them, one a line.

    Line ends and empty lines of the file that they were read from do not matter.

    Args:
        prompts: The prompts.

    Returns:
        64 hexadecimal digits.
    """
    return hashlib.sha256("".join(f"{prompt}\n" for prompt in prompts).encode("utf-8")).hexdigest()


def shipped_prompts(target: TensorSource, layout: Layout) -> tuple[str, ...]:
    """Return the prompts that come with the target's text encoder, or raise CheckpointError if it is unknown."""
    return read_prompts(prompts_file(pipeline_of(target, layout)))
