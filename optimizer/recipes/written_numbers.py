"""Read numbers as people write them: 0.3, .3, 0,3, 30%, 1/3, and 7:3 for two models. All readers of texts use it."""

import re
from decimal import Decimal
from typing import NamedTuple

__all__ = ["NUMBER", "RATIO", "WEIGHT", "Written", "number_in", "percentage"]

# Possessive quantifiers: backtracking over the digits of a long number would take quadratic time.
NUMBER = r"(?:\d++\.?\d*+|\.\d++)(?:[eE][-+]?\d++)?"
_ENDS = r"(?![\w%]|[.,]\w|\s*%|\s*[~/:]\s*\.?\d|\s?-\s?\.?\d)"
# One number by itself, not the beginning of 0.3~0.5 or 0.3/0.5.
WEIGHT = rf"-?(?:\d{{1,2}},\d++|\d++(?:\.\d++)?\s?/\s?\d++(?:\.\d++)?|{NUMBER}(?:\s?%)?){_ENDS}"
# The shares of two models.
RATIO = rf"{NUMBER}\s?%?\s?:\s?{NUMBER}\s?%?{_ENDS}"
_COMMA = re.compile(r"-?\d{1,2},\d+")
_FRACTION = re.compile(r"(-?\d+(?:\.\d+)?)\s*/\s*(\d+(?:\.\d+)?)")
_RATIO = re.compile(rf"({NUMBER})\s*%?\s*(?P<sign>[:/])\s*({NUMBER})\s*%?")


class Written(NamedTuple):
    """A number read from text, and a note on its interpretation; None if there was none."""

    value: float
    note: str | None = None


def number_in(text: str, *, ratio: bool = False) -> Written:
    """Return the number that `text` is as a whole.

    Args:
        text: The text.
        ratio: Whether two numbers with a colon between them, or with a slash if they add up to 1 or 100, are the shares
            of two models. The result is then the second share.

    Returns:
        The number, with a note if it was interpreted.

    Raises:
        ValueError: The text is no number, or is ambiguous.
    """
    text = text.strip()
    if ratio and (found := _RATIO.fullmatch(text)) is not None:
        first, second = float(found[1]), float(found[3])
        if found["sign"] == ":" or "%" in text or first + second in (1, 100):
            if not first + second:
                raise ValueError(text)
            share = second / (first + second)
            return Written(share, f"{text} is read as {1 - share:.6g} of the first and {share:.6g} of the second model")
        if first + second == 10:
            raise ValueError(f"{text}: either a fraction or the shares of two models")
    if (found := _FRACTION.fullmatch(text)) is not None:
        if not float(found[2]):
            raise ValueError(f"{text}: a division by 0")
        return Written(float(found[1]) / float(found[2]))
    if _COMMA.fullmatch(text):
        plain = text.replace(",", ".")
        return Written(float(plain), f"{text} is read as {plain}")
    if text.endswith("%"):
        return Written(percentage(text[:-1].strip()))
    return Written(float(text))


def percentage(text: str) -> float:
    """Return a hundredth of the number in `text`, a percentage without its sign, rounded only once."""
    try:
        return float(Decimal(text) / 100)
    except ArithmeticError:  # exponent beyond the range of Decimal, or no number
        return float(text) / 100
