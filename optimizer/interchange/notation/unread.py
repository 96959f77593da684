"""Lines of which nothing was read, though they look like a step: those are named, so that no step vanishes.

A line looks like a step if it names a known step beside a weight or a sign of a formula, a method with its number, or
two models with weights, or a name beside a sum with weights; if it holds twenty numbers; and if it is a row of a
table with any of these.
"""

import itertools
import re
from collections.abc import Collection, Iterator

from optimizer.interchange.notation.methods import find_method
from optimizer.interchange.notation.statements import SIGN
from optimizer.interchange.notation.tables import cells_of, is_row, is_rule
from optimizer.interchange.notation.tokens import NUMBER, KnownNames, masked, normalized

__all__ = ["looks_like_step", "mentions", "reason"]

_LONGEST = 2000  # characters of a line that are looked at
_MANY = 20  # numbers that are an alpha, or part of one
_SHOWN = 100  # characters of a line in a message
_NUMBERS = re.compile(rf"(?<![\w.])-?{NUMBER}(?![\w.])")
# Letters beside a number or a name are those of ASCII: in Japanese no spaces set them apart.
_WEIGHT = re.compile(rf"(?<![\w.])(?:0?\.\d+|1\.0+|0,\d+|{NUMBER}\s*%|\d+/\d+)(?![\w.,]*\w)", re.ASCII)
_SIGN = re.compile(r"[=+*@←→⇐⇒]|<-|->|=>|(?<!\w)[xX](?!\w)")
_SUM = re.compile(r"\s\+\s|[*×]|\d\s*[xX]\s|\s[xX]\s*\d")  # noqa: RUF001
_IS = re.compile(r"\S(?::|\s(?:is|equals|becomes|gives|makes))\s", re.IGNORECASE)
_PLUS = re.compile(r"[\w)]\s[+]\s")
_PICTURE = re.compile(r"steps: \d+, sampler: ", re.IGNORECASE)  # how a picture was drawn, model and all
_WORD = re.compile(r"\w[\w.-]*")
_ASCII_WORD = re.compile(r"\w[\w.-]*", re.ASCII)
_PAIRS = re.compile(
    rf"""(?<![\w.-])(?P<name>[^\W\d][\w.-]*+)\s*(?:[x*@]\s*|\(\s*)?(?P<behind>\d?\.\d+|{NUMBER}\s*%)\s*\)?(?![\w.])
       | (?<![\w.:])(?P<before>\d?\.\d+|{NUMBER}\s*%)\s*(?:[x*@]\s*|\(\s*)?(?P<named>[^\W\d][\w.-]*+)""",
    re.VERBOSE,
)


def reason(line: int, text: str, why: str) -> str:
    """Return the message about a line that is not understood."""
    shown = text if len(text) <= _SHOWN else text[: _SHOWN - 3] + "..."
    return f"line {line}: not understood: {why}, in {shown!r}" if why not in shown else f"line {line}: {why}"


def looks_like_step(text: str, steps: KnownNames, names: Collection[str]) -> str | None:
    """Return why a line looks like a step; None for prose. `names` are those of models and steps that others take."""
    plain = re.sub(r"^[\s#>*•-]+", "", normalized(text[:_LONGEST]))
    if is_rule(plain) or _PICTURE.match(plain):
        return None
    hidden = masked(plain)
    if len(_NUMBERS.findall(hidden)) >= _MANY:
        return f"{_MANY} numbers or more that belong to no formula"
    weighed = _WEIGHT.search(hidden) is not None
    method = find_method(hidden)
    step = next(_known_in(plain, steps), None)
    if is_row(text):
        filled = [cell for cell in cells_of(text) if cell]
        if len(filled) > 1 and (weighed or step or (method and method.number is not None)):
            return "a row of a table that is no table of steps"
        return None
    if method is not None and method.number is not None:
        return "a method of merging with a number, but no line that says what it takes and makes"
    if step is not None and (weighed or _SIGN.search(hidden)):
        return f"no step, though it names {step!r}"
    word = _IS.search(hidden)
    if weighed and (
        (SIGN.search(hidden) and _SUM.search(hidden)) or (word is not None and _PLUS.search(hidden, word.end()))
    ):
        return "neither a formula and a name, nor the numbers of one"
    return "two models with numbers, but no formula" if _are_weights(hidden, names) else None


def _known_in(text: str, names: KnownNames) -> Iterator[str]:
    """The known names in a text."""
    for found in _WORD.finditer(text):
        word = found[0].rstrip(".-")
        if word in names:
            yield word
        elif (spaced := names.spaced_at(text, found.start())) is not None:
            yield spaced
        elif not word.isascii():
            yield from (inner for part in _ASCII_WORD.findall(word) if (inner := part.rstrip(".-")) in names)


def _are_weights(text: str, names: Collection[str]) -> bool:
    """Whether two names or more have weights beside them: known ones, with a sign of a formula, or weights of sum 1."""
    pairs = [(found["name"] or found["named"], found["behind"] or found["before"]) for found in _PAIRS.finditer(text)]
    if len(pairs) < 2:
        return False
    if any(name in names for name, _ in pairs) or SIGN.search(text) or re.search(r"[\w)%]\s*\+", text):
        return True
    weights = [float(number.rstrip("% ")) / (100 if "%" in number else 1) for _, number in pairs]
    return any(abs(sum(some) - 1) < 0.02 for some in (weights, *itertools.pairwise(weights)))


def mentions(text: str, name: str) -> bool:
    """Return whether a name stands in a text as a word of its own."""
    return re.search(rf"(?<!\w){re.escape(name)}(?!\w)", text, re.ASCII) is not None
