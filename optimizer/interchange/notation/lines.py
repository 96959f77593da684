"""Joins the lines of a formula or a list of numbers that continues on further lines."""

import re
from collections.abc import Sequence

from optimizer.interchange.notation.formula_texts import is_formula
from optimizer.interchange.notation.methods import find_method
from optimizer.interchange.notation.statements import POINTING, SIGN
from optimizer.interchange.notation.tables import role_of
from optimizer.interchange.notation.tokens import masked, normalized, parse_name
from optimizer.interchange.notation.wording import IS, is_key

__all__ = ["LONGEST_LINE", "MOST_LINES", "joined_lines"]

MOST_LINES = 12  # that continue one formula or list of numbers
LONGEST_LINE = 10_000  # characters in a line that is read; a free alpha for each block takes about 1500
_IS = re.compile(
    rf":(?!\.?\d)|{IS.pattern}", re.IGNORECASE
)  # a colon before a number introduces a weight, not a formula
_LONGEST_JOINED = 2000  # characters in a line that can be continued


def joined_lines(lines: Sequence[str], start: int) -> tuple[str, int]:
    """Return the line at `start` joined with its continuation lines, and their number.

    Args:
        lines: All lines of the text.
        start: Index of the line, from 0.

    Returns:
        The joined line, and the number of continuation lines (0 to MOST_LINES).
    """
    line, more = lines[start], 0
    while more < MOST_LINES and start + more + 1 < len(lines):
        following = lines[start + more + 1]
        if not following.strip() or len(following) > LONGEST_LINE or not _continues(line, following):
            break
        line, more = f"{line.rstrip()} {following.strip()}", more + 1
    return line, more


def _continues(line: str, following: str) -> bool:
    """Return whether the next line continues the formula or the numbers of this line."""
    if len(line) > _LONGEST_JOINED or (line.isascii() and not re.search("[=:x*(+>]", line)):
        return False
    text, after = masked(normalized(line).strip()), normalized(following).strip()
    if POINTING.fullmatch(text):  # an arrow alone, and the name on the next line
        return parse_name(after) is not None
    signs = list(SIGN.finditer(text))
    has_sign = bool(signs)
    words = _IS.search(text)
    is_named = has_sign or (words is not None and parse_name(text[: words.start()]) is not None)
    if _is_another_step(masked(after), has_sign=is_named):
        return False
    if re.search(r"(?:[+*=]|\s[-x])$", text) and (has_sign or re.search(r"\sx\s|[*(]", text)):
        return True
    if (
        has_sign
        and signs[-1].end() == len(text)
        and parse_name(after) is not None
        and is_formula(text[: signs[-1].start()])
    ):
        return True
    pointed = None if has_sign or "|" in text or "\t" in line else POINTING.match(after)
    if pointed is not None and parse_name(after[pointed.end() :]) is not None:
        method = find_method(text)  # (Weighted Sum 0.3) A + B, and its name on the next line
        if method is not None and method.number is not None:
            return True
    opened = sum(text.count(sign) for sign in "([{") - sum(text.count(sign) for sign in ")]}")
    if has_sign and opened > 0 and re.match(r"[-+*\d.(\[]|x\s", after):
        return True
    if re.search(r"(?:alpha|beta|weights?)\s*[=:][-\d.,\se]*,$", text, re.IGNORECASE) and re.match(r"-?\.?\d", after):
        return True
    if is_key(text.rstrip(" :=")) and text[-1:] in ":=" and re.match(r"[(\[]?\s*-?\.?\d", after):
        return True
    # A formula after its name can continue with a sign. But `- ` can also begin the next item of a list.
    last = text[signs[-1].end() :] if signs else text
    return (
        has_sign
        and re.match(r"[-+*]\s*\S|x\s", after) is not None
        and SIGN.search(masked(after)) is None
        and parse_name(last) is None
        and is_formula(last)
        and is_formula(f"A {after}")
    )


def _is_another_step(after: str, *, has_sign: bool) -> bool:
    """Return whether a line is a complete step, or a row of a table, regardless of the line before it."""
    if after.startswith("|"):
        return True
    method = find_method(after) if has_sign else None
    if method is not None and method.number is not None:
        return True
    sign = SIGN.search(after)
    words = sign or _IS.search(after)
    if words is None:
        return False
    left = after[: words.start()]
    if is_key(left) or re.search(r"\b(?:alpha|beta)\s*$", left, re.IGNORECASE):
        return False
    return (has_sign and sign is not None) or (
        (parse_name(left) is not None or role_of(left) is not None) and (has_sign or is_formula(after[words.end() :]))
    )
