"""Finds lines read as prose that look like a step, so that they are reported and no step is lost.

A line looks like a step if it contains one of these:

    a known step, and a weight or a sign of a formula
    a method with its number
    two models with weights
    a name, and a sum with weights
    twenty numbers

A row of a table looks like a step under the same conditions.
"""

import itertools
import re
from collections.abc import Collection, Iterator
from typing import NamedTuple

from optimizer.interchange.notation.methods import find_method
from optimizer.interchange.notation.statements import SIGN, number_line, sides_of
from optimizer.interchange.notation.tables import cells_of, is_row, is_rule, role_of
from optimizer.interchange.notation.tokens import KnownNames, masked, normalized, parse_name
from optimizer.interchange.notation.wording import HAS_VERB, IS, MERGES, makes_it_another, names_blocks
from optimizer.recipes import NUMBER

__all__ = ["Known", "continues_step", "holds_weight", "looks_like_step", "mentions", "reason", "why_step_changes"]

_LONGEST = 2000  # characters of a line that are searched
_MANY = 20  # numbers that look like an alpha
_SHOWN = 100  # characters of a line in a message
_NUMBERS = re.compile(rf"(?<![\w.])-?{NUMBER}(?![\w.])")
# Only ASCII letters continue a number or a name, since Japanese has no spaces between words.
_WEIGHT = re.compile(rf"(?<![\w.])(?:0?\.\d+|1\.0+|0,\d+|{NUMBER}\s*%|\d+/\d+)(?![\w.,]*\w)", re.ASCII)
_SIGN = re.compile(r"[=+*@←→⇐⇒]|<-|->|=>|(?<!\w)[xX](?!\w)")
_SUM = re.compile(r"\s\+\s|[*×]|\d\s*[xX]\s|\s[xX]\s*\d")  # noqa: RUF001
_IS = re.compile(rf"\S:\s|\S{IS.pattern}", re.IGNORECASE)
_ARROW = re.compile(r"[←→⇐⇒➡]|<-|->|=>")
_MIXES = re.compile(r"\b(?:merg|mix|blend|combin)(?:e|es|ed|ing)?\b|マージ|混ぜ|合成", re.IGNORECASE)
_SHARES = re.compile(r"(?<![\w.:])\d{1,2}\s?:\s?\d{1,2}(?![\w.:]*\w)", re.ASCII)
_OPERATION = re.compile(r"[+*@×]|(?<!\w)[xX](?!\w)|\s-\s|\d\s*%")  # noqa: RUF001
_CALL = re.compile(r"\w\s*\([^(),]*,[^()]*\)")
_ADDED = re.compile(r"\s*[\w.()\" -]{1,80}\+[\w.()\" -]{1,80}")  # T1 + C
_SEQUENCE_WORD = re.compile(r"(?:and |& )?(?:then|finally|next|lastly|last|after that)\b", re.IGNORECASE)
_REFERENCE = r"(?:\(\d{1,2}\)|\[\d{1,2}\]|#\d{1,2})"
_BY_NUMBER = re.compile(rf"(?:^|[\s=]){_REFERENCE}\s?(?:[x*+@]|0?\.\d)|[+=]\s?{_REFERENCE}")  # (1) x 0.7
_EMPTY = re.compile(r":\s?(?:normal|none|no|off|false|\[\])?$", re.IGNORECASE)
_SETTING = re.compile("exclude|include", re.IGNORECASE)  # blocks that a merger excludes, regardless of the numbers
_LONGEST_REMARK = 200  # characters
_MOST_WORDS = 8  # in a remark; a longer text is a sentence
_PLUS = re.compile(r"[\w)]\s[+]\s")
_PICTURE = re.compile(r"steps: \d+, sampler: ", re.IGNORECASE)  # the parameters of a picture, which include its model
_WORD = re.compile(r"\w[\w.-]*")
_ASCII_WORD = re.compile(r"\w[\w.-]*", re.ASCII)
_PAIRS = re.compile(
    rf"""(?<![\w.-])(?P<name>[^\W\d][\w.-]*+)\s*(?:[x*@]\s*|\(\s*)?(?P<behind>\d?\.\d+|{NUMBER}\s*%)\s*\)?(?![\w.])
       | (?<![\w.:])(?P<before>\d?\.\d+|{NUMBER}\s*%)\s*(?:[x*@]\s*|\(\s*)?(?P<named>[^\W\d][\w.-]*+)""",
    re.VERBOSE,
)


def reason(line: int, text: str, why: str) -> str:
    """Return the message about a line that is not understood, with up to 100 characters of its text."""
    shown = text if len(text) <= _SHOWN else text[: _SHOWN - 3] + "..."
    return f"line {line}: not understood: {why}, in {shown!r}" if why not in shown else f"line {line}: {why}"


class Known(NamedTuple):
    """Names in a text: those of steps, those of sources, and those of all inputs."""

    steps: KnownNames
    sources: KnownNames
    names: Collection[str]


def looks_like_step(text: str, known: Known) -> str | None:
    """Return why a line looks like a step; None for prose."""
    steps, names = known.steps, known.names
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
            return "a row of a table that is not a table of steps"
        return None
    if method is not None and (method.number is not None or method.unclear is not None):
        return "a method of merging with a number, but without its models and the name of its result"
    if step is not None and (weighed or _SIGN.search(hidden)):
        return f"not a step, although it contains {step!r}"
    word = _IS.search(hidden)
    if weighed and (
        (SIGN.search(hidden) and _SUM.search(hidden)) or (word is not None and _PLUS.search(hidden, word.end()))
    ):
        return "neither a formula and a name, nor the numbers of one"
    if _are_weights(hidden, names):
        return "two models with numbers, but no formula"
    if MERGES.search(hidden) and (weighed or _SHARES.search(hidden)):
        return "a merge with a number, but without the name of its result"
    if number_line(plain) is not None and not plain.isdigit():
        return "a number that no formula takes"
    return _makes_source(plain, hidden, known.sources, weighed=weighed)


def _makes_source(plain: str, hidden: str, sources: KnownNames, *, weighed: bool) -> str | None:
    """Return why a line may define a model that steps use as a source; None if it does not look so."""
    source = next(_known_in(plain, sources), None)
    if source is None:
        return None
    key, colon, value = plain.partition(":")
    named = bool(colon) and role_of(key) == "name" and value.strip(' "') == source
    headed = plain.rstrip(" *_") in (f"{source}:", f"{source} =")
    if weighed or named or headed or _ARROW.search(hidden) or _MIXES.search(hidden) or _SHARES.search(hidden):
        return f"{source!r} is read as a source, but this line may define it"
    return None


def why_step_changes(text: str, *, has_blocks: bool) -> str | None:
    """Return why a remark below a step may change it; None if it does not.

    Args:
        text: The remark. In a sentence, only words for blocks count.
        has_blocks: Whether the step has numbers by block. Then remarks about blocks do not change it, but the settings
            of a merger do.

    Returns:
        The reason for reporting the remark, or None.
    """
    plain = re.sub(r"^[\s#>*•-]+", "", normalized(text[:_LONGEST]))
    if len(plain) > _LONGEST_REMARK or _EMPTY.search(plain):
        return None
    sentence = HAS_VERB.search(plain) is not None or len(plain.split()) > _MOST_WORDS
    if (word := makes_it_another(plain, surely=True)) is not None and not sentence:
        return f"{word!r} means a merge that is not a weighted sum or difference"
    words = names_blocks(plain)
    if words is None or re.match("block.?merge", words, re.IGNORECASE):
        return None
    if has_blocks and _SETTING.match(words) is None:
        return None
    # "Only BASE was used" describes a later use of the step.
    if sentence and ("only" not in words.lower() or re.search(r"\bused\b", plain)):
        return None
    return f"{words!r} is about some blocks alone, and the step above has one number for all"


def holds_weight(text: str, names: Collection[str] = ()) -> bool:
    """Return whether a line contains a weight and does not report a similarity.

    Args:
        text: The line.
        names: Names beside which any number is a weight.

    Returns:
        True if the line contains a number in the form of a weight, or any number and one of `names`.
    """
    plain = normalized(text[:_LONGEST])
    hidden = masked(plain)
    beside = [name for name in names if mentions(plain, name)]
    for name in beside:
        plain = plain.replace(name, " ")
    if beside and re.search(r"(?<![\w.])\d", plain):
        return True
    return (_WEIGHT.search(hidden) or _SHARES.search(hidden)) is not None and not re.search(
        "similar", hidden, re.IGNORECASE
    )


def continues_step(text: str, output: str, *, remark: bool, defines: bool, below: bool) -> bool:
    """Return whether a line that is not understood probably continues from the step `output`.

    Args:
        text: Normalized line.
        output: Name of the step.
        remark: Whether the line was read as prose.
        defines: Whether the line names its result.
        below: Whether the line is below the last step.

    Returns:
        True if the recipe may lack the line's step.
    """
    hidden = masked(text)
    if (below and re.match(r"[+*]\s*[\w(\"]|(?:=|->|→)\s*\w", text)) or (
        below and _SEQUENCE_WORD.match(text) and (holds_weight(text) or SIGN.search(hidden))
    ):
        return True
    if below and _BY_NUMBER.search(hidden) and _OPERATION.search(hidden):
        return True
    if not mentions(text, output):
        return False
    signed, multiplied = SIGN.search(text) is not None, _OPERATION.search(text) is not None
    if not remark and (signed or (multiplied and defines)) and (multiplied or _CALL.search(text)):
        return True
    if multiplied and _PLUS.search(hidden) and holds_weight(text):
        return True
    if _ADDED.fullmatch(hidden) or (MERGES.search(hidden) and (holds_weight(text) or signed)):
        return True
    sides = list(sides_of(text))
    taking = [re.search(r"\d", side.replace(output, "")) is not None and mentions(side, output) for side in sides]
    return len(sides) == 2 and sum(taking) == 1 and parse_name(sides[taking.index(False)]) is not None


def _known_in(text: str, names: KnownNames) -> Iterator[str]:
    """Yield the known names in a text."""
    for found in _WORD.finditer(text):
        word = found[0].rstrip(".-")
        if word in names:
            yield word
        elif (spaced := names.spaced_at(text, found.start())) is not None:
            yield spaced
        elif not word.isascii():
            yield from (inner for part in _ASCII_WORD.findall(word) if (inner := part.rstrip(".-")) in names)


def _are_weights(text: str, names: Collection[str]) -> bool:
    """Return whether two or more weighted names look like a sum: by a known name, a sign, or a total weight of 1."""
    pairs = [(found["name"] or found["named"], found["behind"] or found["before"]) for found in _PAIRS.finditer(text)]
    if len(pairs) < 2:
        return False
    if any(name in names for name, _ in pairs) or SIGN.search(text) or re.search(r"[\w)%]\s*\+", text):
        return True
    weights = [float(number.rstrip("% ")) / (100 if "%" in number else 1) for _, number in pairs]
    return any(abs(sum(addends) - 1) < 0.02 for addends in (weights, *itertools.pairwise(weights)))


def mentions(text: str, name: str) -> bool:
    """Return whether a text contains a name as a separate word."""
    return re.search(rf"(?<!\w){re.escape(name)}(?!\w)", text, re.ASCII) is not None
