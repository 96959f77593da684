"""Distinguishes formulas from names and prose, and expands abbreviated formulas."""

import re

from optimizer.interchange.notation.formulas import parse_formula
from optimizer.interchange.notation.tokens import QUOTED, NotUnderstood, masked, outside_quotes
from optimizer.interchange.notation.wording import why_merge_changes
from optimizer.recipes import NUMBER, RATIO, WEIGHT, number_in

__all__ = [
    "LONGEST_FORMULA",
    "as_sum",
    "is_formula",
    "is_half",
    "number_behind",
    "with_alpha",
    "with_factors",
    "with_symbol",
    "without_remark",
]

LONGEST_FORMULA = 2000  # characters
_NAME = rf"(?:{QUOTED}|[\w.-]+)"
_HALF = re.compile(rf"\s*({_NAME})\s*\+\s*({_NAME})\s*")
_DIFFERENCE = re.compile(rf"\s*({_NAME})\s*\+\s*(?:\(\s*({_NAME})\s*-\s*({_NAME})\s*\)|({_NAME})\s+-\s+({_NAME}))\s*")
_BETWEEN = re.compile(r",\s+|;\s*|\s+/\s+|\s+&\s+|\s+and\s+", re.IGNORECASE)
# The WebUI's merger calls its number M or multiplier.
_M = r"(?<![\w.-])(?:M|[Mm]ultiplier)"
_M_IS = re.compile(rf"{_M}\s*[=:]\s*(?=-?{NUMBER}\s*%?\s*(?:$|[,;)]))")
_M_IN_FORMULA = re.compile(rf"{_M}(?![\w.-])(?!\s*[=:])")
_REMARK = re.compile(
    r"(?<=\S)\s*\((?![^()]*(?:[+*@=\d]|\b(?:base|in|out|m|mid|middle|input|output|blocks?|only|encoder|unet)\b))[^()]*\)$",
    re.IGNORECASE,
)


_COLON_FACTOR = re.compile(rf"(?<=[\w)\"]):(?=\s?{WEIGHT}\s*(?:$|[-+)=,←→⇐⇒]|<))")
# A number after two models, or after the name of their sum: (0.3), at 0.3, ratio 0.3, 30%.
_NUMBER_BEHIND = re.compile(
    r"(?:\s*(?P<opened>[(,;])\s*|\s+)"
    r"(?P<key>(?:at|with|weight(?:ed sum)?|ws|(?:merge |mix )?ratio|alpha|multiplier|m)\b\s*[:=@]?\s*)?"
    rf"(?P<number>{RATIO}|(?<!-){WEIGHT})\s*(?P<closed>\))?$",
    re.IGNORECASE,
)


def is_formula(text: str) -> bool:
    """Return whether normalized `text` is a formula with factors or differences, not a name or prose."""
    if len(text) > LONGEST_FORMULA or not re.search(r"[*(%@\d]|\bx", text, re.IGNORECASE):
        return False
    try:
        terms = parse_formula(text).terms
    except NotUnderstood:
        return False
    return any(not (isinstance(operand, str) and (factor.equals(1) or factor.equals(-1))) for factor, operand in terms)


def is_half(text: str) -> bool:
    """Return whether `text` is two names joined by a plus sign, without numbers."""
    return _two_names(text) is not None


def with_alpha(text: str) -> str | None:
    """Return `A + B` or `A + (B - C)` with alpha as its factor, for numbers elsewhere in the text; else None."""
    if (half := _two_names(text)) is not None:
        return f"{half[1]} x (1-alpha) + {half[2]} x alpha"
    if len(text) <= LONGEST_FORMULA and (found := _DIFFERENCE.fullmatch(text)) is not None:
        return f"{found[1]} + ({found[2] or found[4]} - {found[3] or found[5]}) x alpha"
    return None


def _two_names(text: str) -> re.Match[str] | None:
    """Match two names joined by a plus sign; `0.7A` is a factor and a name, so it does not match."""
    found = _HALF.fullmatch(text) if len(text) <= LONGEST_FORMULA else None
    return None if found is None or is_formula(text) else found


def as_sum(text: str) -> str | None:
    """Return `70% A, 30% B` with plus signs between the models; None unless every part is a model with a weight."""
    if len(text) > LONGEST_FORMULA or not _BETWEEN.search(text):
        return None
    parts = _BETWEEN.split(text)
    return " + ".join(parts) if len(parts) > 1 and all(map(_is_weighed, parts)) else None


def _is_weighed(text: str) -> bool:
    return not re.search(r"[+(]\s*\w+\s*[-+]|\s[-+]\s", masked(text)) and is_formula(text)


def with_factors(text: str) -> str:
    """Return `A:0.7 + B:0.3` with multiplication signs instead of colons; any other text unchanged."""
    hidden = masked(text)
    places = [found.start() for found in _COLON_FACTOR.finditer(hidden)]
    if len(places) < 2 or "+" not in hidden or hidden.count(":") != len(places):
        return text
    for place in reversed(places):
        text = f"{text[:place]} x {text[place + 1 :]}"
    return text


def with_symbol(text: str) -> str:
    """Return a line with alpha instead of the M of the WebUI's merger, if the M is unambiguous."""
    hidden = masked(text)
    given = _M_IS.search(hidden) is not None
    if not given and not re.search(rf"\(\s*1\s*-\s*{_M}\s*\)", hidden):
        return text
    return outside_quotes(lambda piece: _M_IN_FORMULA.sub("alpha", _M_IS.sub("alpha = ", piece)), text)


def number_behind(text: str) -> tuple[str, str] | None:
    """Split a text at the number at its end: `A + B (0.3)`, `MIX, ratio 0.3`.

    A bare number after a space may belong to a name, so it must lie strictly between 0 and 1: `SD 1.5` is not split.

    Args:
        text: Normalized text.

    Returns:
        The text before the number, and the number as text; None if no number from 0 to 1 ends the text.
    """
    found = _NUMBER_BEHIND.search(masked(text))
    if found is None:
        return None
    number = text[found.start("number") : found.end("number")]
    try:
        value = number_in(number, ratio=True).value
    except ValueError:
        return None
    bare = not found["opened"] and not found["key"]
    if not 0 <= value <= 1 or (bare and not 0 < value < 1) or bool(found["opened"] == "(") != bool(found["closed"]):
        return None
    return text[: found.start()], number


def without_remark(text: str) -> tuple[str, str] | None:
    """Split a text at a final remark in parentheses; return None if it has none or the remark changes the merge."""
    remark = _REMARK.search(text)
    return None if remark is None or why_merge_changes(remark[0]) else (text[: remark.start()], remark[0].strip())
