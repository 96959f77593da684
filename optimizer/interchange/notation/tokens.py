"""Splits formulas into names, numbers, symbols and signs, in the many spellings that people use.

`normalized` first replaces special characters outside quoted names by ASCII; `tokens_of` then splits the text.
"""

# ruff: noqa: RUF001

import json
import re
import unicodedata
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache

from optimizer.interchange.notation.wording import is_sentence_word, makes_it_another, names_blocks
from optimizer.recipes import NUMBER, number_in, percentage

__all__ = [
    "CIRCLED",
    "GLUED_NUMBER",
    "QUOTED",
    "KnownNames",
    "NotUnderstood",
    "Token",
    "closed",
    "masked",
    "normalized",
    "outside_quotes",
    "parse_name",
    "quoted",
    "tokens_of",
    "unquoted",
    "value_of",
    "without_hash",
    "without_markup",
]

_RESERVED = ("alpha", "beta", "x")
_SYMBOLS = str.maketrans(
    dict.fromkeys("×✕✖⨉⨯∗⋅·", " x ")
    | dict.fromkeys("−–—‒﹣", "-")
    | dict.fromkeys("\u200b\u200c\u200d\u2060\ufeff", "")  # invisible characters of zero width from pasted text
    | {"、": ",", "：": ": ", "α": "alpha", "β": "beta", "⁄": "/"}
)
# A text in quotation marks with JSON's escapes.
QUOTED = r'"(?:[^"\\]|\\.)*"'
# Circled numbers label lines and their results. NFKC would turn them into plain digits.
CIRCLED = "①-⑳㉑-㉟㊱-㊿❶-❿➀-➉➊-➓⓫-⓴⓵-⓾"
_QUOTED = re.compile(QUOTED)
_UNCLOSED = "″"
_FRACTIONS = re.compile("[¼-¾⅐-⅞]")
_WORD = r"\w(?:[\w.]*\w)?(?:-+(?:\w(?:[\w.]*\w)?))*"
_HASH = r"\s*\[\s*([0-9a-fA-F]{8,64})\s*\]"
_SYMBOL = r"(?:(?:alpha|beta)(?:_?\d{1,2})?)"
_TOKEN = re.compile(
    rf"""\s*(?:
      (?P<quoted>{QUOTED})
    | (?P<fraction>\d+(?:\.\d+)?\s*/\s*\d+(?:\.\d+)?)(?![\w./])
    | (?P<percent>{NUMBER})\s*%(?:\s+of(?!\w))?
    | /\s*(?P<divided>{NUMBER})(?![\w.])
    | (?P<comma>\d{{1,2}},\d+)(?![\w.,])
    | (?P<number>{NUMBER})(?![\w.]|-+\w)
    | (?P<glued>0?\.\d+|1\.0+|\d+\.\d+(?=[^\W\d][\w.-]*+\s*(?:[-+)]|$)))(?=[^\W\d])
    | (?P<times>[xX])(?=\d{{1,2}},\d+(?![\w.,]))
    | (?P<word>{_WORD})
    | (?P<operator>[-+*@()\[\]])
    )""",
    re.VERBOSE,
)
_MULTIPLIED = re.compile(rf"\s*(?P<number>{NUMBER})(?=-+[^\W\d])")
_BARE = re.compile(_WORD)
_SPACE, _UNSPACED, _REST_OF_NAME = re.compile(r"\s*"), re.compile(r"\S+"), re.compile(r"[\w.]*\w")
_HASH_BEHIND = re.compile(_HASH)
# Markdown's code, bold, struck and marked text, and its escapes.
_MARKS = re.compile(
    r"""`|(?<![*\w)\]"])\*\*(?=\S)|(?<=\S)\*\*(?![*\w(\["])|(?<!\s)\s*\[\s*\]|\\(?=[_*+#-])
    |==(?=[^\s=](?:[^=]*[^\s=])?==)|(?<=\S)==(?=\s|$)""",
    re.VERBOSE,
)
# Markup of web pages: tags, links, addresses, and options of commands. Quoted names can contain any of it.
_MARKUP = re.compile(
    rf"""(?P<quoted>{QUOTED})
    | </?(?:img|a|br|p|b|i|em|strong|code|pre|span|div|details|summary|h[1-6]|li|[uo]l|t[drh]|table|font|center|hr)
      (?:\s[^<>]*|/)?>
    | !?\[(?P<text>[^\[\]]*)\]\(\s*+[^()\s]*+\s*+\)
    | \bhttps?://[^\s|<>"]+ | (?<!\S)--[a-z][\w-]*=\S+""",
    re.IGNORECASE | re.VERBOSE,
)
# Words that look like a number joined to a model: 2B, Bx0.3. But 3D and 7th occur in the names of models.
GLUED_NUMBER = re.compile(r"^\d{1,2}(?!(?:st|nd|rd|th|[dD])(?![a-z]))[A-Za-z]|x(?:\d*\.\d+|\d+%)$")
_GLUED = re.compile(rf"(?P<name>.*?)x(?P<factor>{NUMBER}|{_SYMBOL}|)", re.IGNORECASE)

# 1-alpha, 1-0.1, 1-alpha-beta and alpha are factors, although they consist of characters of names.
_FACTOR = rf"(?:{_SYMBOL}|{NUMBER})"
_REST = re.compile(rf"(?:1-+{_FACTOR}|{_SYMBOL})(?:-+{_FACTOR})?", re.IGNORECASE)


class NotUnderstood(ValueError):
    """A part of a text is not a formula. The message contains that part and the reason."""


class KnownNames:
    """Names defined elsewhere in a text, so that a formula can contain them with spaces but without quotation marks."""

    def __init__(self, names: Iterable[str] = ()) -> None:
        self._names = frozenset(names)
        self._spaced: dict[str, list[str]] = {}
        for name in sorted(self._names, key=len, reverse=True):
            if " " in name.strip():
                self._spaced.setdefault(name.split()[0], []).append(name)

    def __contains__(self, name: object) -> bool:
        return name in self._names

    def spaced_at(self, text: str, start: int) -> str | None:
        """Return the longest known name with spaces at index `start` of a text, or None."""
        if not self._spaced or not (first := _UNSPACED.match(text, start)):
            return None
        return next(
            (
                name
                for name in self._spaced.get(first[0], ())
                if text.startswith(name, start) and not _REST_OF_NAME.match(text, start + len(name))
            ),
            None,
        )


@dataclass(frozen=True)
class Token:
    """One word or sign of a formula.

    Attributes:
        kind: name, number, symbol (alpha, beta), or the sign itself: + - * @ ( ).
        text: The word or sign.
        start: Its index in the text.
        value: Value of a number.
        bare: True for a name that is neither quoted nor known.
        weight: True for a number in the form of a factor: 0.3, 30%, 1/3.
        hash: Short hash after a name, lower-case hexadecimal.
        note: Interpretation of the text; None if it needs none.
    """

    kind: str
    text: str
    start: int
    value: float = 0.0
    bare: bool = False
    weight: bool = False
    hash: str | None = None
    note: str | None = None


@lru_cache(maxsize=256)
def normalized(text: str) -> str:
    """Return the text with full-width characters, unusual spaces, multiplication signs and dashes in ASCII.

    Typographic, Japanese and single quotation marks become double ones; the names inside remain unchanged. Markup of
    bold text and code is removed.

    Args:
        text: Any text.

    Returns:
        The text with single spaces, and with ASCII signs outside quotation marks.
    """
    pieces = re.split(rf"({QUOTED})", closed(re.sub("[“”„‟「」『』]", '"', text)))
    pieces[::2] = [re.sub(r"(?<![\w\\])['‘]([^'‘’\"]+)['’](?!\w)", r'"\1"', piece) for piece in pieces[::2]]
    pieces = re.split(rf"({QUOTED})", closed("".join(pieces)))
    return "".join(
        piece if piece.startswith('"') and place % 2 else _MARKS.sub("", _compatible(piece))
        for place, piece in enumerate(pieces)
    )


def without_markup(text: str) -> str:
    """Return the text without tags, addresses and targets of links; quoted names remain unchanged."""
    if not any(sign in text for sign in ("<", "](", "://", "--")):
        return text
    text = closed(text)
    return _MARKUP.sub(lambda found: found["quoted"] or found["text"] or " ", text)


def _compatible(text: str) -> str:
    text = _FRACTIONS.sub(r" \g<0> ", text)  # ½ becomes 1/2; the spaces keep 1½ from becoming 11/2
    pieces = re.split(f"([{CIRCLED}])", text.translate(_SYMBOLS))
    pieces[::2] = [unicodedata.normalize("NFKC", piece).translate(_SYMBOLS) for piece in pieces[::2]]
    # Patterns are slow on long runs of spaces.
    return re.sub(r"\s+", " ", "".join(pieces))


def masked(text: str) -> str:
    """Return the text, of unchanged length, with each character inside quotation marks replaced by an underscore."""
    return re.sub(QUOTED, lambda found: '"' + "_" * (len(found[0]) - 2) + '"', closed(text))


def closed(text: str) -> str:
    """Return the text with each unclosed quotation mark replaced by a sign that formulas do not contain.

    Otherwise patterns would search the rest of the text again for each of many unclosed marks. After the first unclosed
    mark, all others are unclosed as well.

    Args:
        text: Any text.

    Returns:
        The text of unchanged length, in which every quotation mark has its partner.
    """
    position = text.find('"')
    while position >= 0:
        found = _QUOTED.match(text, position)
        if found is None:
            return text[:position] + text[position:].replace('"', _UNCLOSED)
        position = text.find('"', found.end())
    return text


def outside_quotes(change: Callable[[str], str], text: str) -> str:
    """Return the text with `change` applied to each piece outside quotation marks."""
    pieces = re.split(rf"({QUOTED})", closed(text))
    pieces[::2] = map(change, pieces[::2])
    return "".join(pieces)


def quoted(name: str) -> str:
    """Return a name for a formula, with quotation marks if it could be misread without them."""
    plain = (
        _BARE.fullmatch(name) is not None
        and normalized(name) == name
        and not re.search(f"[{CIRCLED}]", name)
        and not _GLUED.fullmatch(name)
        and not GLUED_NUMBER.search(name)
        and [(token.kind, token.text) for token in tokens_of(name, KnownNames())] == [("name", name)]
    )
    return name if plain else json.dumps(name, ensure_ascii=False)


def parse_name(text: str) -> str | None:
    """Return the name that a text consists of, quoted or up to four words; None if it is not a name."""
    text = without_hash(text)[0].strip()
    if _QUOTED.fullmatch(text):
        name = unquoted(text)
        return name if name.strip() else None
    words = text.split()
    if not 0 < len(words) <= 4 or not all(_BARE.fullmatch(word) for word in words):
        return None
    if any(word.lower() in _RESERVED for word in words) or re.fullmatch(NUMBER, text):
        return None
    if len(words) > 1 and (
        any(map(is_sentence_word, words)) or makes_it_another(text, surely=True) or names_blocks(text)
    ):
        return None
    return " ".join(words)


def without_hash(text: str) -> tuple[str, str | None]:
    """Split a name from the short hash in brackets that WebUIs write after it; the hash is None if missing."""
    found = re.search(rf"(?<=\S){_HASH}\s*$", text)
    return (text, None) if found is None else (text[: found.start()], found[1].lower())


def unquoted(text: str) -> str:
    """Return a quoted text without its quotation marks; malformed escapes remain unchanged."""
    try:
        return str(json.loads(text, strict=False))
    except ValueError:
        return text[1:-1]


def value_of(number: float) -> str:
    """Return the shortest text that reads back as the same number."""
    return repr(float(number))


def tokens_of(text: str, known: KnownNames) -> Iterator[Token]:
    """Yield the tokens of a normalized text.

    Args:
        text: Normalized text of a formula.
        known: Names defined elsewhere; they resolve missing spaces and operators.

    Yields:
        Each word and sign, in order.

    Raises:
        NotUnderstood: The text contains a sign that formulas do not have.
    """
    position, text = 0, text.rstrip()
    before = ""
    while position < len(text):
        start = _end(_SPACE, text, position)
        name = known.spaced_at(text, start)
        if name is not None:
            position = start + len(name)
            digits, position = _hash_at(text, position)
            yield Token("name", name, start, hash=digits)
            continue
        # After a multiplication sign, a number ends before a dash: B*0.3-C*0.3.
        found = _MULTIPLIED.match(text, position) if before in ("*", "@") else None
        found = found or _TOKEN.match(text, position)
        if found is None:
            raise NotUnderstood(repr(text[position:].strip()))
        position = found.end()
        kind, value = str(found.lastgroup), found[str(found.lastgroup)]
        after_name, before = before == "name", value
        if kind in ("word", "quoted"):
            before = "*" if value in ("x", "X") else "name"
        if kind == "operator" and value in "[]":
            if value == "[" and after_name:
                raise NotUnderstood(f"{text[start:].strip()!r}; a name with brackets needs quotation marks")
            yield Token("(" if value == "[" else ")", value, start)
        elif kind == "quoted":
            if not unquoted(value).strip():
                raise NotUnderstood(f"{value}: an empty name")
            digits, position = _hash_at(text, position)
            yield Token("name", unquoted(value), start, hash=digits)
        elif kind == "word":
            words = list(_word(value, start, known))
            if words[-1].kind == "name":
                digits, position = _hash_at(text, position)
                words[-1] = _with_hash(words[-1], digits)
            yield from words
        elif kind == "divided":
            yield Token("*", "/", start)
            yield Token("number", f"1/{value}", start, _fraction(f"1/{value}"), weight=True)
        else:
            yield _sign(kind, value, start, text)


def _end(pattern: re.Pattern[str], text: str, position: int) -> int:
    found = pattern.match(text, position)
    return position if found is None else found.end()


def _hash_at(text: str, position: int) -> tuple[str | None, int]:
    found = _HASH_BEHIND.match(text, position)
    return (None, position) if found is None else (found[1].lower(), found.end())


def _with_hash(token: Token, digits: str | None) -> Token:
    return Token(token.kind, token.text, token.start, bare=token.bare, hash=digits, note=token.note)


def _fraction(text: str) -> float:
    try:
        return number_in(text).value
    except ValueError as error:
        raise NotUnderstood(str(error)) from None


def _sign(kind: str, value: str, start: int, text: str) -> Token:
    """Return the token of a sign or a number."""
    match kind:
        case "operator":
            return Token(value, value, start)
        case "times":
            return Token("*", value, start)
        case "percent":
            return Token("number", value, start, percentage(value), weight=True)
        case "fraction":
            return Token("number", value, start, _fraction(value), weight=True)
        case "comma":
            number, note = number_in(value)
            return Token("number", value, start, number, weight=True, note=note)
        case "glued":
            rest = re.match(r"[\w.-]*", text[start + len(value) :][:80])
            name = "" if rest is None else rest[0]
            glued = None if name.lower() in _RESERVED else f"{value}{name} is read as {value} x {name}"
            return Token("number", value, start, float(value), weight=True, note=glued)
        case _:
            plain = float(value)
            return Token("number", value, start, plain, weight="." in value and 0 <= plain < 1)


def _word(value: str, start: int, known: KnownNames) -> Iterator[Token]:
    if value.lower() == "x":
        yield Token("*", value, start)
    elif _REST.fullmatch(value):
        for place, part in enumerate(re.split("-+", value)):
            if place:
                yield Token("-", "-", start)
            yield _factor(part, start)
    elif value not in known and (found := _GLUED.fullmatch(value)):
        yield from _unglued(value, found, start, known)
    elif value not in known and value[:1] in "xX" and value[1:] in known:
        yield Token("*", value[:1], start)
        yield Token("name", value[1:], start + 1)
    else:
        # A circled number is never part of a longer name: in `② ① x 0.7 ...` the first one labels the line.
        yield Token("name", value, start, bare=value not in known and not re.match(f"[{CIRCLED}]", value))


def _unglued(value: str, found: re.Match[str], start: int, known: KnownNames) -> Iterator[Token]:
    """Yield the tokens of `x0.5`, `0.5x`, or `Ax0.5` if A is known; otherwise the whole word as a name."""
    name, factor = found["name"], found["factor"]
    number = re.fullmatch(NUMBER, name) is not None
    if name and not number and name not in known:
        yield Token("name", value, start, bare=True)
        return
    if name:
        yield _factor(name, start) if number else Token("name", name, start)
    yield Token("*", "x", start)
    if factor:
        yield _factor(factor, start)


def _factor(text: str, start: int) -> Token:
    """Return the token of a symbol or a number."""
    if text[0].isalpha():
        return Token("symbol", text.lower(), start)
    return Token("number", text, start, float(text), weight="." in text)
