"""The words of a formula: names, numbers, symbols and signs, in the spellings that people use.

A text is brought to plain signs first (`normalized`), quoted names excepted, and then cut into tokens.
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
    | dict.fromkeys("\u200b\u200c\u200d\u2060\ufeff", "")  # of no width: pasted along, and not seen
    | {"、": ",", "：": ": ", "α": "alpha", "β": "beta", "⁄": "/"}
)
# A text in quotation marks, escapes as JSON has them.
QUOTED = r'"(?:[^"\\]|\\.)*"'
# Numbers in circles count lines and name their results; NFKC would make plain digits of them.
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
_SPACE, _UNSPACED, _GOES_ON = re.compile(r"\s*"), re.compile(r"\S+"), re.compile(r"[\w.]*\w")
_HASH_BEHIND = re.compile(_HASH)
# Markdown's code, bold, struck and marked text, and its escapes.
_MARKS = re.compile(
    r"""`|(?<![*\w)\]"])\*\*(?=\S)|(?<=\S)\*\*(?![*\w(\["])|(?<!\s)\s*\[\s*\]|\\(?=[_*+#-])
    |==(?=[^\s=](?:[^=]*[^\s=])?==)|(?<=\S)==(?=\s|$)""",
    re.VERBOSE,
)
# What surrounds text on pages: tags, links, addresses, and options of commands; quoted names may hold any of it.
_MARKUP = re.compile(
    rf"""(?P<quoted>{QUOTED})
    | </?(?:img|a|br|p|b|i|em|strong|code|pre|span|div|details|summary|h[1-6]|li|[uo]l|t[drh]|table|font|center|hr)
      (?:\s[^<>]*|/)?>
    | !?\[(?P<text>[^\[\]]*)\]\(\s*+[^()\s]*+\s*+\)
    | \bhttps?://[^\s|<>"]+ | (?<!\S)--[a-z][\w-]*=\S+""",
    re.IGNORECASE | re.VERBOSE,
)
# Words that begin or end as a number with a model does: 2B, Bx0.3; but 3D and 7th are said of models.
GLUED_NUMBER = re.compile(r"^\d{1,2}(?!(?:st|nd|rd|th|[dD])(?![a-z]))[A-Za-z]|x(?:\d*\.\d+|\d+%)$")
_GLUED = re.compile(rf"(?P<name>.*?)x(?P<factor>{NUMBER}|{_SYMBOL}|)", re.IGNORECASE)

# 1-alpha, 1-0.1, 1-alpha-beta, alpha: no names, though every letter could stand in one.
_FACTOR = rf"(?:{_SYMBOL}|{NUMBER})"
_REST = re.compile(rf"(?:1-+{_FACTOR}|{_SYMBOL})(?:-+{_FACTOR})?", re.IGNORECASE)


class NotUnderstood(ValueError):
    """Part of a text that is no formula; the message shows that part and says why."""


class KnownNames:
    """Names that are known from elsewhere in a text; those with spaces can then be told in a formula."""

    def __init__(self, names: Iterable[str] = ()) -> None:
        self._names = frozenset(names)
        self._spaced: dict[str, list[str]] = {}
        for name in sorted(self._names, key=len, reverse=True):
            if " " in name.strip():
                self._spaced.setdefault(name.split()[0], []).append(name)

    def __contains__(self, name: object) -> bool:
        return name in self._names

    def spaced_at(self, text: str, start: int) -> str | None:
        """The longest name with spaces in it that stands at this place of `text`."""
        if not self._spaced or not (first := _UNSPACED.match(text, start)):
            return None
        return next(
            (
                name
                for name in self._spaced.get(first[0], ())
                if text.startswith(name, start) and not _GOES_ON.match(text, start + len(name))
            ),
            None,
        )


@dataclass(frozen=True)
class Token:
    """One word or sign at `start` of a text.

    `kind` is name, number, symbol (alpha, beta), or the sign itself: + - * @ ( ). `bare` is whether a name stands
    without quotation marks and is not known, `weight` whether a number is written as a factor is: 0.3, 30%, 1/3.
    `hash` is the short hash that follows a name, `note` what had to be interpreted.
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
    """`text` with full-width signs, odd spaces, multiplication signs and dashes as ASCII has them.

    Quoted names stay as they are, but for the quotation marks around them: typographic, Japanese and single ones become
    double ones. Marks of bold text and code are left out.
    """
    pieces = re.split(rf"({QUOTED})", closed(re.sub("[“”„‟「」『』]", '"', text)))
    pieces[::2] = [re.sub(r"(?<![\w\\])['‘]([^'‘’\"]+)['’](?!\w)", r'"\1"', piece) for piece in pieces[::2]]
    pieces = re.split(rf"({QUOTED})", closed("".join(pieces)))
    return "".join(
        piece if piece.startswith('"') and place % 2 else _MARKS.sub("", _compatible(piece))
        for place, piece in enumerate(pieces)
    )


def without_markup(text: str) -> str:
    """`text` without tags, addresses and the targets of links, but for those in quoted names."""
    if not any(sign in text for sign in ("<", "](", "://", "--")):
        return text
    text = closed(text)
    return _MARKUP.sub(lambda found: found["quoted"] or found["text"] or " ", text)


def _compatible(text: str) -> str:
    text = _FRACTIONS.sub(r" \g<0> ", text)  # ½ becomes 1/2, and 1½ no 11/2
    pieces = re.split(f"([{CIRCLED}])", text.translate(_SYMBOLS))
    pieces[::2] = [unicodedata.normalize("NFKC", piece).translate(_SYMBOLS) for piece in pieces[::2]]
    # Of many spaces one is enough, and patterns take long over them.
    return re.sub(r"\s+", " ", "".join(pieces))


def masked(text: str) -> str:
    """`text` with everything in quotation marks blotted out, letter by letter."""
    return re.sub(QUOTED, lambda found: '"' + "_" * (len(found[0]) - 2) + '"', closed(text))


def closed(text: str) -> str:
    """`text` with a sign that is none of a formula for each quotation mark that is never closed.

    Looking for the end of each of many of them takes ages; behind the first one none is closed.
    """
    position = text.find('"')
    while position >= 0:
        found = _QUOTED.match(text, position)
        if found is None:
            return text[:position] + text[position:].replace('"', _UNCLOSED)
        position = text.find('"', found.end())
    return text


def outside_quotes(change: Callable[[str], str], text: str) -> str:
    """`text` with a change made to what stands outside quotation marks."""
    pieces = re.split(rf"({QUOTED})", closed(text))
    pieces[::2] = map(change, pieces[::2])
    return "".join(pieces)


def quoted(name: str) -> str:
    """`name` as formulas hold it: in quotation marks wherever something else could be read into it."""
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
    """The name that this side of an equation is: quoted, or up to four words; None if it is none."""
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
    """A name without the hash in brackets that WebUIs write behind it, and that hash."""
    found = re.search(rf"(?<=\S){_HASH}\s*$", text)
    return (text, None) if found is None else (text[: found.start()], found[1].lower())


def unquoted(text: str) -> str:
    """What stands between the quotation marks of `text`; taken as it is where it has signs that are no escapes."""
    try:
        return str(json.loads(text, strict=False))
    except ValueError:
        return text[1:-1]


def value_of(number: float) -> str:
    """A number as the notation writes it: the shortest text that reads back as the same number."""
    return repr(float(number))


def tokens_of(text: str, known: KnownNames) -> Iterator[Token]:
    """The tokens of normalized `text`; `known` names help where spaces or operators are missing.

    Raises NotUnderstood at the first sign that no formula has.
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
        # Behind a sign of multiplication a number is one, whatever dash follows: B*0.3-C*0.3.
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
                raise NotUnderstood(f"{value}: a name without a letter")
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
    """The token of anything but a word."""
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
        # A number in a circle is never part of a longer name: in `② ① x 0.7 ...` the first one counts the line.
        yield Token("name", value, start, bare=value not in known and not re.match(f"[{CIRCLED}]", value))


def _unglued(value: str, found: re.Match[str], start: int, known: KnownNames) -> Iterator[Token]:
    """`Ax0.5`, `x0.5` and `0.5x` without their spaces, where the rest is a name known from elsewhere."""
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
    """The token of a symbol or a number."""
    if text[0].isalpha():
        return Token("symbol", text.lower(), start)
    return Token("number", text, start, float(text), weight="." in text)
