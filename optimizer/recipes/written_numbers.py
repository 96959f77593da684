"""Numbers as people write them: 0.3, .3, 0,3, 30%, 1/3, and 7:3 for two models. All readers of texts read them here."""

import re
from decimal import Decimal
from typing import NamedTuple

__all__ = ["NUMBER", "RATIO", "WEIGHT", "Written", "number_in", "percentage"]

# Possessive: no digit follows a number, and trying that again for each digit of a long one takes ages.
NUMBER = r"(?:\d++\.?\d*+|\.\d++)(?:[eE][-+]?\d++)?"
_ENDS = r"(?![\w%]|[.,]\w|\s*%|\s*[~/:]\s*\.?\d|\s?-\s?\.?\d)"
# One number that stands for itself: what goes on, as in 0.3~0.5 and 0.3/0.5, is another thing.
WEIGHT = rf"-?(?:\d{{1,2}},\d++|\d++(?:\.\d++)?\s?/\s?\d++(?:\.\d++)?|{NUMBER}(?:\s?%)?){_ENDS}"
# The shares of two models.
RATIO = rf"{NUMBER}\s?%?\s?:\s?{NUMBER}\s?%?{_ENDS}"
_COMMA = re.compile(r"-?\d{1,2},\d+")
_FRACTION = re.compile(r"(-?\d+(?:\.\d+)?)\s*/\s*(\d+(?:\.\d+)?)")
_RATIO = re.compile(rf"({NUMBER})\s*%?\s*(?P<sign>[:/])\s*({NUMBER})\s*%?")


class Written(NamedTuple):
    """A number that was written, and what had to be interpreted in it."""

    value: float
    note: str | None = None


def number_in(text: str, *, ratio: bool = False) -> Written:
    """Return the number that the whole of `text` is.

    With `ratio`, two numbers with a colon between them are the shares of two models, and the second one's is meant; so
    are two with a slash that add up to 1 or 100. Raises ValueError for anything else, and for what may mean two things.
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
    """The number that `text`, a percentage without its sign, is a hundredth of: exactly where it can be."""
    try:
        return float(Decimal(text) / 100)
    except ArithmeticError:  # more powers of ten than Decimal has, or no number
        return float(text) / 100
