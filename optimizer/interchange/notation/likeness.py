"""Finds names that are nearly the same: typing errors, and different spellings of one name."""

import difflib
import re
from collections.abc import Iterable, Iterator
from functools import lru_cache

__all__ = ["NamesByLikeness", "is_near", "squeezed"]


class NamesByLikeness:
    """Names indexed by first letters and length, so that a search compares only a few."""

    def __init__(self, names: Iterable[str] = ()) -> None:
        self._names: dict[tuple[str, int], dict[str, None]] = {}
        for name in names:
            self.add(name)

    def add(self, name: str) -> None:
        """Add a name."""
        self._names.setdefault(self._key(name), {})[name] = None

    def discard(self, name: str) -> None:
        """Remove a name, if present."""
        self._names.get(self._key(name), {}).pop(name, None)

    def like(self, name: str) -> Iterator[str]:
        """Yield the names with the same first 4 letters as `name` and a length within 2 letters of its length."""
        start, length = self._key(name)
        for difference in (0, 1, -1, 2, -2):
            yield from self._names.get((start, length + difference), ())

    def same(self, name: str) -> Iterator[str]:
        """Yield the names with the same letters and digits as `name`."""
        letters = squeezed(name)
        return (known for known in self._names.get(self._key(name), ()) if letters and squeezed(known) == letters)

    @staticmethod
    def _key(name: str) -> tuple[str, int]:
        letters = squeezed(name)
        return letters[:4], len(letters)


@lru_cache(maxsize=10_000)
def squeezed(name: str) -> str:
    """Return the letters and digits of a name in lower case: Any_V3 equals any-v3, but v1.1 differs from v11."""
    return re.sub(r"[\W_]+", "", re.sub(r"(?<=\d)[\W_]+(?=\d)", "ˑ", name)).casefold()


def is_near(used: str, defined: str) -> bool:
    """Return whether `used` likely means `defined`: up to 2 letters are missing at the end, or a letter is mistyped."""
    first, second = squeezed(used), squeezed(defined)
    if first == second != "":
        return True
    shorter, longer = sorted((first, second), key=len)
    if longer.startswith(shorter) and len(shorter) >= 4 and len(longer) - len(shorter) <= 2:
        return True
    same_numbers = re.findall(r"\d+", first) == re.findall(r"\d+", second)
    return same_numbers and difflib.SequenceMatcher(None, first, second).ratio() >= 0.9
