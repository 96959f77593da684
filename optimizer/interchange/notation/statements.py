"""Reads one line of a text as a step, as the numbers of an alpha, or as prose.

    MIX = A x (1-alpha) + B x alpha (numbers)           a name, a formula, and the numbers of its alpha
    A x 0.7 + B x 0.3 -> MIX, MIX: ..., MIX is ...      other signs between name and formula
    (Weighted Sum 0.3) A + B = MIX                      a method with its number, and its models
    base_alpha: 0.2                                     numbers for the formula above

The reader first removes lists of numbers, then `alpha = ...` and similar assignments. The rest is the formula with its
name.
"""

import itertools
import re
from collections.abc import Container, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

from optimizer.interchange.notation.formula_texts import (
    as_sum,
    is_formula,
    is_half,
    number_behind,
    with_alpha,
    with_factors,
    with_symbol,
    without_remark,
)
from optimizer.interchange.notation.formulas import Part
from optimizer.interchange.notation.methods import Method, find_method, is_another_method
from optimizer.interchange.notation.tokens import (
    CIRCLED,
    QUOTED,
    masked,
    outside_quotes,
    parse_name,
    quoted,
    value_of,
    without_hash,
)
from optimizer.interchange.notation.wording import IS, KEY, KEY_WORDS, field_of
from optimizer.recipes import NUMBER, RATIO, WEIGHT, Expected, number_in

__all__ = [
    "NEAR_LINES",
    "NUMBER_LIST",
    "POINTING",
    "SIGN",
    "Assigned",
    "NamedFormula",
    "Read",
    "Refuse",
    "Refused",
    "SameAs",
    "Statement",
    "is_share",
    "label_of",
    "number_line",
    "read_statement",
    "sides_of",
    "symbols_in",
]

NEAR_LINES = 3  # lines below a formula that are searched for its number
_FEWEST_SPACED = 20  # consecutive numbers without commas that form a list
_SIGNED = rf"-?{NUMBER}"
# At least two numbers with commas, or many with only spaces.
NUMBER_LIST = re.compile(
    rf"""(?<![\w.]){_SIGNED}(?:\s*[,;]\s*{_SIGNED})+(?![\w.%])(?:\s*[,;])?
       | (?<![\w.]){_SIGNED}(?:\s+{_SIGNED}){{{_FEWEST_SPACED - 1},}}(?![\w.%])""",
    re.VERBOSE,
)
_DECIMAL_COMMA = re.compile(r"-?\d{1,2},\d+")
# SuperMerger's names for merges formerly contained a nested list: (0.5,[0.1,...]).
_INNER_LIST = re.compile(rf"([(\[]\s*{_SIGNED}\s*,\s*)\[([^()\[\]]*)\](?=\s*[)\]])")
_OPEN, _CLOSE = "\x02", "\x03"  # around the index of a list that was removed
_PLACE = re.compile(rf"{_OPEN}(\d+){_CLOSE}")
_SYMBOL = re.compile(r"(?<![a-wyz_])(?:alpha|beta)(?:_?\d{1,2})?(?![^\W_])", re.IGNORECASE)
_ALONE = re.compile(rf"{_SIGNED}\s*(?:,\s*$|(?=\s*(?:[,;)]|$)))")
_COMMA_ALONE = re.compile(r"-?\d{1,2},\d+(?=\s*(?:[;)]|$))")
_WEIGHT_ALONE = re.compile(rf"(?:{WEIGHT}|{RATIO})(?=\s*(?:[,;)]|$))")
_NUMBER_LINE = re.compile(
    rf"(?:(?P<key>{KEY_WORDS}|m)\s?[:=@]?\s?)?[(\[]?\s?(?P<number>{WEIGHT}|{RATIO})\s?[)\]]?\s?\.?", re.IGNORECASE
)
_TEXT = re.compile(r"[^\s,;=][^;=]*$|[^\s,;=]+")
_IN_PARENTHESES = re.compile(
    rf"(?<![\w.-])(?P<symbol>alpha|beta)\s*=?\s*\(\s*(?P<value>{_SIGNED}\s*%?)\s*\)", re.IGNORECASE
)
# Signs between a formula and its name. Arrows usually point at the name, but either side can be the name.
_ARROW = re.compile(r"<[-=]{1,2}(?!>)|<?[-=]{1,2}>|:=|[←⇐⬅⟵→⇒➡➔➜➝⟶⟹≈≒≡]")
SIGN = re.compile(rf"{_ARROW.pattern}|=")
# Signs before the name of the formula on the line above.
POINTING = re.compile(rf"(?:{_ARROW.pattern}|=|[↓⇓⇩⬇↳⤷⤵]\ufe0f?)\s*")
# Labels that can stand for their line's result.
_NUMBERED = re.compile(
    rf"(?P<circled>[{CIRCLED}])\s*[.:,)]?\s*(?=\S)|(?P<step>(?:step|stage|merge|part)\s*#?\d{{1,3}})\s*[.:)]\s*(?=\S)",
    re.IGNORECASE,
)


class _TwoNumbersError(ValueError):
    """A line that gives one field two numbers."""


class Refused(NamedTuple):
    """A line that looks like a step but is not valid: the reason, and the names that it may define."""

    why: str
    names: tuple[str, ...] = ()


class Assigned(NamedTuple):
    """Numbers on a line without a formula: texts by field (alpha, beta, base_alpha, base_beta)."""

    values: Mapping[str, str]
    alone: bool = False  # numbers without the name of a field


class SameAs(NamedTuple):
    """Two names with a sign between them. One may be a second name for the step of the other."""

    first: str
    second: str


class NamedFormula(NamedTuple):
    """A formula with its name.

    Attributes:
        name: Name of the result; None if the line has none.
        formula: Text of the formula.
        given: Texts of the numbers on the same line, by field.
        tentative: True if the formula is a step only in connection with a known one.
        notes: One clause for each interpretation.
    """

    name: str | None
    formula: str
    given: Mapping[str, str]
    tentative: bool = False
    notes: tuple[str, ...] = ()


Read = NamedFormula | SameAs | Assigned | Refused | None


class Refuse(Protocol):
    """Function that records a line that looks like a step but is not one."""

    def __call__(self, line: int, text: str, why: str, names: tuple[str, ...] = (), /) -> None:
        """Record a line's number, its text, the reason, and the names that it may define."""


@dataclass
class Statement:
    """A step as written in a text.

    Attributes:
        line: Line number, from 1.
        text: The line.
        name: Name of the result; None if the text has none.
        formula: Text of the formula; empty for steps of tables and settings.
        symbols: Symbols in the formula, for example alpha.
        given: Texts of the numbers by field, each with its line.
        part: The parsed step; None until the formula is parsed.
        expect: Reported similarity.
        reported: Label of the blocks in the reported similarity.
        indent: Number of spaces before the line.
        alias: Number or label before the line that can stand for its result.
        tentative: True if it is a step only in connection with a known one.
        table: Line of the table's header; None outside tables.
        half_note: The note on a formula without a number, which is read as half of each model; None for others.
        by_tool: True if a tool wrote the numbers that it used.
    """

    line: int
    text: str
    name: str | None
    formula: str = ""
    symbols: tuple[str, ...] = ()
    given: dict[str, tuple[int, str]] = field(default_factory=dict)
    part: Part | None = None
    expect: Expected | None = None
    reported: str | None = None
    indent: int = 0
    alias: str | None = None
    tentative: bool = False
    table: int | None = None
    half_note: str | None = None
    by_tool: bool = False


# --- Numbers ----------------------------------------------------------------------------------------------------------


def _lists_out(text: str) -> tuple[str, list[str]]:
    """Return the text with its lists of numbers replaced by placeholders, and the lists with their brackets."""
    text = _INNER_LIST.sub(r"\1\2", text.replace(_OPEN, "").replace(_CLOSE, ""))
    hidden = masked(text)
    pieces: list[str] = []
    lists: list[str] = []
    end = 0
    mapping = range(hidden.find("{"), hidden.rfind("}"))  # {OUT03: {search: [0, 1]}}
    for found in NUMBER_LIST.finditer(hidden):
        if _DECIMAL_COMMA.fullmatch(found[0]) or found.start() in mapping:
            continue
        start, stop = _with_brackets(hidden, found.start(), found.end())
        start = max(start, end)
        pieces += [text[end:start], f"{_OPEN}{len(lists)}{_CLOSE}"]
        lists.append(text[start:stop].strip())
        end = stop
    return "".join([*pieces, text[end:]]), lists


def _with_brackets(text: str, start: int, end: int) -> tuple[int, int]:
    """Return start and end of a list with its brackets; at the end of a line the closing bracket may be missing."""
    before, after = text[:start].rstrip(), text[end:].lstrip()
    if before[-1:] not in ("(", "["):
        return start, end
    if after[:1] == {"(": ")", "[": "]"}[before[-1]]:
        return len(before) - 1, len(text) - len(after) + 1
    return (len(before) - 1, end) if not after else (start, end)


def symbols_in(formula: str) -> tuple[str, ...]:
    """Return the symbols in a formula, for example alpha and beta, in lower case and sorted."""
    return tuple(sorted({found[0].lower() for found in _SYMBOL.finditer(masked(formula))}))


def _assignments(text: str, lists: Sequence[str], presets: Container[str]) -> tuple[str, dict[str, str]]:
    """Return the text without `alpha = ...` and similar assignments, and their values by field."""
    hidden = masked(text)
    given: dict[str, str] = {}
    pieces: list[str] = []
    end = 0
    for key in KEY.finditer(hidden):
        before = hidden[: key.start()].rstrip()[-1:]
        step = "".join([*pieces, hidden[end : key.start()]]).rstrip()
        if key.start() < end or (before not in ("", ",", ";", "(", _CLOSE) and not _is_set_apart(step)):
            continue
        found_value = _value_at(hidden, key, presets, at_start=not before)
        if found_value is None:
            continue
        stop, place = found_value
        value = lists[int(place)] if place is not None else _restored(text[key.end() : stop].strip(), lists)
        if given.setdefault(name := field_of(key[0].rstrip(" =:")), value) != value:
            raise _TwoNumbersError(name)
        # Remove the separator before the assignment as well.
        kept = text[end : key.start()].rstrip()
        pieces.append(kept.removesuffix(",").removesuffix(";"))
        end = stop
    rest = "".join([*pieces, text[end:]])
    for found in _IN_PARENTHESES.finditer(masked(rest)):
        given.setdefault(found["symbol"].lower(), found["value"])
    rest = outside_quotes(lambda piece: _IN_PARENTHESES.sub(r" \g<symbol> ", piece), rest)
    before, opened, inner = rest.rstrip().removesuffix(")").rpartition("(")
    if opened and before.strip() and rest.rstrip().endswith(")") and "alpha" not in given and inner.strip() in presets:
        rest, given["alpha"] = before.rstrip(), inner.strip()
    return outside_quotes(lambda piece: re.sub(r"\(\s*[,;]?\s*\)", " ", piece), rest), given


def _is_set_apart(before: str) -> bool:
    """Return whether a key may follow without a comma: `... = MIX alpha = 30%`, but not `... + B x alpha = 0.3`."""
    return (
        SIGN.search(before) is not None
        and re.search(r"[\w)\"]$", before) is not None
        and not re.search(r"(?:^|\s)[xX]$|\dx$", before)
    )


def _value_at(
    text: str, key: re.Match[str], presets: Container[str], *, at_start: bool
) -> tuple[int, str | None] | None:
    """Return the end of the value after a key, and its index if it is a list; None if the key has no value."""
    found = _PLACE.match(text, key.end())
    if found is not None:
        return found.end(), found[1]
    if key["weights"]:  # "Weight: 3.97 GB" is a size
        found = _WEIGHT_ALONE.match(text, key.end())
        if found is not None:
            return found.end(), None
        return (len(text), None) if text[key.end() :].strip() in presets else None
    if text[key.end() : key.end() + 1] == "{" and "}" in text[key.end() :]:
        return text.rindex("}") + 1, None
    found = (
        _COMMA_ALONE.match(text, key.end())
        or _ALONE.match(text, key.end())
        or (_TEXT.match(text, key.end()) if at_start or key["sign"] == "=" else None)
    )
    return None if found is None else (found.end(), None)


def _restored(text: str, lists: Sequence[str]) -> str:
    """Return a text with its lists of numbers restored."""
    return _PLACE.sub(lambda found: lists[int(found[1])], text)


def _left_over(
    rest: str, lists: Sequence[str], symbols: Sequence[str], given: Mapping[str, str]
) -> dict[str, str] | None:
    """Return the lists after a formula by symbol; None if their assignment is ambiguous."""
    places = list(_PLACE.finditer(rest))
    missing = [symbol for symbol in symbols if symbol not in given]
    beside = [
        re.search(r"(?<![\w.-])((?:alpha|beta)(?:_\d+)?)\s*$", rest[: place.start()], re.IGNORECASE) for place in places
    ]
    named = [found[1].lower() for found in beside if found is not None]
    values = [lists[int(place[1])] for place in places]
    if len(named) == len(values) == len(set(named)) and (len(values) == 1 or not missing):
        return dict(zip(named, values, strict=True))
    if len(values) == len(missing) or (len(values) == 1 and missing):
        return dict(zip(missing, values, strict=False))
    return None


# --- Lines ------------------------------------------------------------------------------------------------------------


def label_of(text: str) -> tuple[str | None, str]:
    """Split a line at the number or label before it, which can stand for its result; the label is None if missing."""
    found = _NUMBERED.match(text)
    if found is None:
        return None, text
    return found["circled"] or " ".join(found["step"].split()), text[found.end() :]


def read_statement(text: str, presets: Container[str] = ()) -> Read:
    """Return the contents of a normalized line; None for prose, which does not look like a step.

    Args:
        text: Normalized line without label and comment.
        presets: Names that can replace the numbers of an alpha.

    Returns:
        A formula with its name, two names, numbers, or a refusal; None for prose.
    """
    by_method = _read_method(text, presets)
    if by_method is not None:
        return by_method
    simple, lists = _lists_out(with_factors(with_symbol(text)))
    try:
        rest, given = _assignments(simple, lists, presets)
    except _TwoNumbersError as error:
        return Refused(f"two numbers for {error}", tuple(filter(None, map(parse_name, sides_of(simple)))))
    bare = re.sub(rf"(?<![\s_,;])[\s_,;]*{_PLACE.pattern}", " ", rest)
    symbols = symbols_in(bare)
    if _PLACE.search(rest):
        more = _left_over(rest, lists, symbols, given)
        if more is None and not symbols and not given and len(lists) == 1 and _is_whole_with_alpha(bare):
            more = {"alpha": lists[0]}
        if more is None:
            return _numbers_alone(bare, given, lists) or _refused_numbers(bare)
        given |= more
    rest = bare.rstrip(" .;,").strip()
    if not rest or (given and set(rest.lower().split()) <= set(symbols)):
        return Assigned(given) if given else None
    read = _formula_with_name(rest, given)
    return Refused("numbers beside a text that is not a formula") if read is None and given else read


def number_line(text: str) -> Assigned | None:
    """Return the number of a line that contains only it and perhaps its field: `M 0.3`, `(30%)`, `70:30`; else None."""
    found = _NUMBER_LINE.fullmatch(text)
    if found is None:
        return None
    key = found["key"]
    return Assigned({field_of(key) if key else "alpha": found["number"]}, alone=not key)


def is_share(values: Mapping[str, str]) -> bool:
    """Return whether all texts are numbers from 0 to 1, which are weights even without the name of a field."""
    try:
        return all(0 <= number_in(value, ratio=True).value <= 1 for value in values.values())
    except ValueError:
        return False


def _is_whole_with_alpha(text: str) -> bool:
    """Return whether a side of a text is two or three models without a number, to which numbers after it belong."""
    return any(with_alpha(side.strip(" ,;")) is not None for side in sides_of(text))


def _numbers_alone(bare: str, given: Mapping[str, str], lists: Sequence[str]) -> Assigned | None:
    """Return the numbers of a line that contains only one long list; None for other lines."""
    if (
        re.sub(r"[\W_]+", "", bare)
        or given
        or len(lists) != 1
        or lists[0].count(",") + lists[0].count(" ") < _FEWEST_SPACED
    ):
        return None
    return Assigned({"alpha": lists[0]}, alone=True)


def _refused_numbers(bare: str) -> Refused | None:
    """Refuse numbers that do not match the formula of their line; return None for a line without a formula."""
    sides = list(sides_of(bare))
    if len(sides) < 2 and not is_formula(bare):
        return None
    return Refused("numbers for an alpha that the formula does not have", tuple(filter(None, map(parse_name, sides))))


def sides_of(text: str) -> Iterator[str]:
    """Yield the parts of a text between signs like = and arrows; consecutive signs count as one."""
    ends = [(0, 0), *(found.span() for found in SIGN.finditer(masked(text))), (len(text), len(text))]
    parts = [text[before[1] : after[0]].strip() for before, after in itertools.pairwise(ends)]
    yield from (part for place, part in enumerate(parts) if part or place in (0, len(parts) - 1))


def _formula_with_name(rest: str, given: Mapping[str, str]) -> NamedFormula | SameAs | Refused | None:
    sides = list(sides_of(rest))
    strict = "=" in _ARROW.sub("", masked(rest))
    if len(sides) < 2:
        return _without_sign(rest, given)
    notes: list[str] = []
    if len(sides) == 2:
        sides, given = _with_numbers_behind(sides, given)
        sides = _without_remarks(sides, notes)
    names = [parse_name(side) for side in sides]
    known = tuple(name for name in names if name)
    if len(sides) != 2 or not known:
        sign = "`=`" if strict else "arrow"
        why = f"a step is a formula, {sign if strict else 'an arrow'} and a name"
        sign_of_times = next((side for side in sides if side.strip(" .").lower() in ("x", "alpha", "beta")), None)
        if sign_of_times is not None:
            why = f"{sign_of_times!r} is read as part of a formula; as a name it needs quotation marks"
        refused = Refused(why if len(sides) == 2 else f"more than one {sign}", known or _first_words(sides))
        return refused if strict or any(map(is_formula, sides)) else None
    if all(names):
        return SameAs(*known) if strict else None
    place = 0 if names[0] else 1
    read = _named_formula(names[place], sides[1 - place], given, sure=strict)
    return read._replace(notes=(*notes, *read.notes)) if isinstance(read, NamedFormula) else read


def _with_numbers_behind(sides: Sequence[str], given: Mapping[str, str]) -> tuple[list[str], Mapping[str, str]]:
    """Return the sides of `A + B (0.3) = MIX` or `A + B = MIX (0.3)` without the number, and the number as alpha."""
    for place, side in enumerate(sides):
        found = number_behind(side) if not given else None
        if found is None:
            continue
        text, number = found
        opposite = sides[1 - place]
        if (is_half(text) and parse_name(opposite)) or (parse_name(text) and with_alpha(opposite) is not None):
            both = list(sides)
            both[place] = text
            return both, {"alpha": number}
    return list(sides), given


def _without_remarks(sides: Sequence[str], notes: list[str]) -> list[str]:
    """Return both sides without remarks in parentheses, `... = MIX (with its VAE)`; add a note for each."""
    found = list(sides)
    for place, side in enumerate(sides):
        shorter = without_remark(side) if parse_name(side) is None and not is_formula(side) else None
        if shorter is None:
            continue
        text, remark = shorter
        if is_formula(text) or (parse_name(text) and parse_name(sides[1 - place]) is None):
            found[place] = text
            notes.append(f"{remark!r} is ignored")
    return found


def _first_words(sides: Sequence[str]) -> tuple[str, ...]:
    """Return the names that a line may define: the first word of each side that is not a formula."""
    words = [re.match(rf"{QUOTED}|[\w.-]+", side) for side in sides if "+" not in side and not is_formula(side)]
    return tuple(name for word in words if word is not None and (name := parse_name(word[0])))


def _named_formula(
    name: str | None, formula: str, given: Mapping[str, str], *, sure: bool
) -> NamedFormula | Refused | None:
    notes: tuple[str, ...] = ()
    if not is_formula(formula) and (summed := as_sum(formula)) is not None:
        formula, notes = summed, (f"{formula} is read as a sum",)
    whole = with_alpha(formula) if given else None
    if whole is not None:
        formula, notes = whole, (f"{formula} with numbers is read as {whole}",)
    if not sure and not is_formula(formula):
        return NamedFormula(name, formula, given, tentative=True) if is_half(formula) else None
    unknown = [key for key in given if key.removeprefix("base_") not in symbols_in(formula)]
    if unknown:
        return Refused("numbers for an alpha that the formula does not have", (name,) if name else ())
    return NamedFormula(name, formula, given, notes=notes)


def _without_sign(text: str, given: Mapping[str, str]) -> NamedFormula | Refused | None:
    """Return the formula of `NAME: formula`, `NAME is formula`, or a formula alone; None for other lines."""
    found = number_behind(text) if not given else None
    if found is not None and is_half(found[0]):
        return _named_formula(None, found[0], {"alpha": found[1]}, sure=False)
    for sides in (re.split(r":\s*", text, maxsplit=1), IS.split(text, maxsplit=1)):
        if len(sides) == 2:
            names = [parse_name(side) for side in sides]
            formulas = [_is_sum(side) for side in sides]
            if sum(formulas) == 1 and names[formulas.index(False)]:
                return _named_formula(names[formulas.index(False)], sides[formulas.index(True)], given, sure=False)
    return _named_formula(None, text, given, sure=False) if _is_sum(text) else None


def _is_sum(text: str) -> bool:
    """Return whether a text is a formula with several models; one number is not enough, since prose has numbers too."""
    return is_formula(text) if "+" in text or "-" in text else as_sum(text) is not None


def _read_method(text: str, presets: Container[str]) -> NamedFormula | Refused | None:
    """Return the formula of `(Weighted Sum 0.3) A + B = MIX`; the method may be anywhere, without parentheses too."""
    method = find_method(masked(text))
    if method is None:
        return None
    if method.unclear:
        names = tuple(name for side in sides_of(text) if (name := parse_name(side.strip(" :,;-"))))
        return Refused(f"{method.unclear!r} after the method is not one number", names)
    if method.number is None:
        return None
    start, end = method.start, method.end
    if text[:start].rstrip().endswith("(") and text[end:].lstrip().startswith(")"):
        start, end = text[:start].rstrip().rindex("("), end + text[end:].index(")") + 1
    elif text[start:end].count("(") > text[start:end].count(")") and text[end:].lstrip().startswith(")"):
        end += text[end:].index(")") + 1
    models = "" if method.models is None else text[slice(*method.models)]
    rest = f"{text[:start]} {models} {text[end:]}"
    sides = [side.strip(" :,;-") for side in sides_of(rest)]
    sides = [side for side in sides if side]
    if len(sides) == 1:  # `NAME: ...`
        sides = [side.strip(" ,;-") for side in re.split(r":\s", sides[0], maxsplit=1)]
    before = re.search(r"[^\W\d_]+[ _-]$", text[:start])
    words = text[start : end if method.models is None else method.models[0]]
    if is_another_method(words if before is None else before[0] + words):
        names = tuple(filter(None, map(parse_name, sides)))
        return Refused("a method of merging that is not a weighted sum; a recipe contains only weighted sums", names)
    for place in (0, 1) if len(sides) == 2 else ():
        name, formula = parse_name(sides[place]), _formula_of_method(method, sides[1 - place])
        if name and formula is not None:
            return NamedFormula(name, formula, {}, notes=() if method.note is None else (method.note,))
    if method.models is not None:
        names = tuple(filter(None, map(parse_name, sides)))
        return Refused("a method with a number, but without its models and a name", names) if names else None
    # A formula with its own numbers does not need the method.
    read = read_statement(rest.strip(" :,;-"), presets) if len(sides) == 2 else None
    if not isinstance(read, NamedFormula) or not is_formula(read.formula):
        return None
    return read._replace(
        notes=(*read.notes, f"{text[start:end].strip()!r} is ignored: the formula has its own numbers")
    )


def _formula_of_method(method: Method, text: str) -> str | None:
    """Return the formula of a method for a list of models, `A + B` or `A, B`; None if their number does not fit."""
    names = [without_hash(part.strip()) for part in re.split(r"[+,&]", text)]
    models = [parse_name(name) for name, _ in names]
    if len(models) != {"weight_sum": 2, "add_difference": 3}.get(method.mode) or method.number is None:
        return None
    terms = [
        quoted(name) + (f" [{digits}]" if digits else "")
        for name, (_, digits) in zip(models, names, strict=True)
        if name is not None
    ]
    if len(terms) < len(models):
        return None
    number = value_of(method.number)
    if method.mode == "weight_sum":
        return f"{terms[0]} x (1 - ({number})) + {terms[1]} x {number}"
    return f"{terms[0]} + ({terms[1]} - {terms[2]}) x {number}"
