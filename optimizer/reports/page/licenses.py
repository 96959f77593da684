"""What the licences of checkpoints are known to say about commercial use, cautiously.

Nothing here calls a use allowed unless the licence is one of the few that say so plainly; whatever else stands in a
recipe is to be checked by the user.
"""

import re
from dataclasses import dataclass
from enum import StrEnum

__all__ = ["License", "Standing", "license_of"]


class Standing(StrEnum):
    """What is known of a licence; the values are what the page calls it."""

    UNKNOWN = "unknown"
    NO_COMMERCIAL_USE = "no commercial use"
    CONDITIONS = "conditions"
    PERMISSIVE = "permissive"
    CHECK = "check it"


@dataclass(frozen=True)
class License:
    """A licence as a recipe states it, and what is known of it."""

    stated: str
    standing: Standing
    remark: str

    @property
    def alarming(self) -> bool:
        """Whether a user has to be warned before doing anything with the merge."""
        return self.standing in (Standing.UNKNOWN, Standing.NO_COMMERCIAL_USE)


_NOTHING_STATED = ("", "unknown", "none", "n-a", "na", "no-license", "no-licence", "unlicensed")
_NOTICE = "commercial use is allowed; the copyright notice and the licence's text have to go with copies"
_RAIL = (
    "commercial use is allowed, but not the uses that the licence lists; its restrictions have to be passed on with "
    "every copy, merges included"
)
_SHARE_ALIKE = "what is made from it has to be shared under the same terms; read what they ask for"

_ASK = "nobody has stated it: look it up or ask, and until then take it that nothing is allowed"
_BAN = "it reads as a ban on commercial use, which then holds for every merge of it"
_NO_MERGES = "it reads as a ban on sharing what is made from it, such as a merge"

# By SPDX's identifiers and those of model sites, as `_plain` writes them.
_KNOWN: dict[str, tuple[Standing, str]] = {
    **dict.fromkeys(("mit", "isc", "bsd-2-clause", "bsd-3-clause", "0bsd"), (Standing.PERMISSIVE, _NOTICE)),
    "apache-2-0": (Standing.PERMISSIVE, f"{_NOTICE}; changes have to be stated"),
    **dict.fromkeys(("cc0-1-0", "cc0", "unlicense"), (Standing.PERMISSIVE, "given up to the public domain")),
    "cc-by-4-0": (Standing.CONDITIONS, "commercial use is allowed; its authors have to be credited, changes stated"),
    **dict.fromkeys(("cc-by-sa-4-0", "gpl-3-0", "agpl-3-0", "lgpl-3-0"), (Standing.CONDITIONS, _SHARE_ALIKE)),
    **dict.fromkeys(
        (
            "creativeml-openrail-m",
            "creativeml-open-rail-m",
            "creativeml-open-rail++-m",
            "bigscience-openrail-m",
            "openrail",
            "openrail++",
        ),
        (Standing.CONDITIONS, _RAIL),
    ),
}
_NO_DERIVATIVES = re.compile(r"\bnd\b|no-?deriv|no-merg")
_NO_COMMERCIAL_USE = re.compile(
    r"\bnc\b|non?-?commerc|not-(?:for-)?(?:any-)?commerc|no-selling|not-for-sale|research-(?:use-|purposes?-)?only|"
    r"only-(?:for-)?research|\bacademic|personal-use|non-?profit"
)


def license_of(stated: str) -> License:
    """What is known of the licence that a recipe states, "unknown" where it states none."""
    plain = _plain(stated)
    if plain in _NOTHING_STATED or not re.search(r"\w", plain):
        return License(stated, Standing.UNKNOWN, _ASK)
    # Looked for first: "MIT, non-commercial" is not MIT.
    if _NO_COMMERCIAL_USE.search(plain):
        return License(stated, Standing.NO_COMMERCIAL_USE, _BAN)
    if _NO_DERIVATIVES.search(plain):
        return License(stated, Standing.CHECK, _NO_MERGES)
    if plain in _KNOWN:
        return License(stated, *_KNOWN[plain])
    return License(stated, Standing.CHECK, "it is not among those that are known here")


def _plain(stated: str) -> str:
    """In lower case, words parted by single dashes."""
    return re.sub(r"[^\w+]+", "-", stated.strip().lower().replace("_", "-")).strip("-")
