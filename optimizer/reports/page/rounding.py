"""Numbers of the report page with few digits; cells and copy buttons keep all of them."""

import math
from collections.abc import Iterable

__all__ = ["MISSING", "decimals_of", "few_digits", "number_in_short", "share_in_short"]

MISSING = "\N{EN DASH}"
_MOST_DECIMALS = 4
# Shares closer to 0 or 1 than this differ from it by rounding errors only.
_SAME = 1e-7


def decimals_of(shares: Iterable[float | None], least: int = 1) -> int:
    """Return the decimals with which shares, shown as per cent, tell their story: `least` to 4.

    Each share has two digits of its distance to 0 or 100 %, whichever is nearer.

    Args:
        shares: Shares in [-1, 1]; None and numbers that are not finite do not count.
        least: The fewest decimals.

    Returns:
        The number of decimals.
    """
    known = [share for share in shares if share is not None and math.isfinite(share)]
    near = [min(abs(share), abs(1 - abs(share))) for share in known]
    needed = [1 - math.floor(math.log10(100 * distance) + 1e-9) for distance in near if distance > _SAME]
    return min(max([least, *needed]), _MOST_DECIMALS)


def share_in_short(share: float | None, decimals: int | None = None) -> str:
    """Return a share in [-1, 1] as per cent, "96.4 %", with the decimals of `decimals_of` unless given."""
    if share is None or not math.isfinite(share):
        return MISSING
    if decimals is None and min(abs(share), abs(1 - abs(share))) <= _SAME:
        return f"{100 * round(share)} %"
    text = f"{100 * share:.{decimals_of([share]) if decimals is None else decimals}f}"
    return f"{text.removeprefix('-') if float(text) == 0 else text} %"


def number_in_short(number: float | None, error: float | None = None) -> str:
    """Return a coefficient or alpha with three decimals, and its standard error if given: "0.015 +- 0.001"."""
    if number is None or not math.isfinite(number):
        return MISSING
    if error is None:
        return few_digits(number)
    decimals = min(max(3, -math.floor(math.log10(error))), 6) if error > 0 else 3
    return f"{number:.{decimals}f} \N{PLUS-MINUS SIGN} {error:.{decimals}f}"


def few_digits(number: float, decimals: int = 3) -> str:
    """Return a number with at most `decimals` decimals, in its shortest form."""
    text = f"{number:.{decimals}f}".rstrip("0").rstrip(".")
    return "0" if text == "-0" else text
