"""Names that are nearly the same: slips of the pen, and other spellings of one name."""

import difflib
import re
from collections.abc import Iterable, Iterator
from functools import lru_cache

__all__ = ["NamesByLikeness", "is_near", "squeezed"]


class NamesByLikeness:
    """Names by how they begin and how long they are, so that few have to be compared with another."""

    def __init__(self, names: Iterable[str] = ()) -> None:
        self._names: dict[tuple[str, int], dict[str, None]] = {}
        for name in names:
            self.add(name)

    def add(self, name: str) -> None:
        """Add a name."""
        self._names.setdefault(self._key(name), {})[name] = None

    def discard(self, name: str) -> None:
        """Remove a name, if it is there."""
        self._names.get(self._key(name), {}).pop(name, None)

    def like(self, name: str) -> Iterator[str]:
        """Yield the names that begin like `name` and are about as long."""
        start, length = self._key(name)
        for off in (0, 1, -1, 2, -2):
            yield from self._names.get((start, length + off), ())

    def same(self, name: str) -> Iterator[str]:
        """Yield the names of the same letters and numbers as `name`."""
        wanted = squeezed(name)
        return (other for other in self._names.get(self._key(name), ()) if wanted and squeezed(other) == wanted)

    @staticmethod
    def _key(name: str) -> tuple[str, int]:
        letters = squeezed(name)
        return letters[:4], len(letters)


@lru_cache(maxsize=10_000)
def squeezed(name: str) -> str:
    """Return the letters and numbers of a name: v1.1 is not v11, but Any_V3 is any-v3."""
    return re.sub(r"[\W_]+", "", re.sub(r"(?<=\d)[\W_]+(?=\d)", "ˑ", name)).casefold()


def is_near(used: str, defined: str) -> bool:
    """Return whether one is likely meant by the other: a few letters missing at the end, or a slip of the pen."""
    one, other = squeezed(used), squeezed(defined)
    if one == other != "":
        return True
    shorter, longer = sorted((one, other), key=len)
    if longer.startswith(shorter) and len(shorter) >= 4 and len(longer) - len(shorter) <= 2:
        return True
    same_numbers = re.findall(r"\d+", one) == re.findall(r"\d+", other)
    return same_numbers and difflib.SequenceMatcher(None, one, other).ratio() >= 0.9
