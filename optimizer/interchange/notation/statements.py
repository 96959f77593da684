"""What one line of a text says: a step, the numbers of an alpha, or nothing that has to do with a recipe.

    MIX = A x (1-alpha) + B x alpha (numbers)           a name, a formula, and the numbers of its alpha
    A x 0.7 + B x 0.3 -> MIX, MIX: ..., MIX is ...      other signs between the two
    (Weighted Sum 0.3) A + B = MIX                      a method with its number, and the models it takes
    base_alpha: 0.2                                     numbers for the formula above

Lists of numbers are taken out first, then `alpha = ...` and the like; what is left is the formula with its name.
"""

import itertools
import re
from collections.abc import Container, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

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
    "NUMBER_LIST",
    "POINTING",
    "SIGN",
    "Assigned",
    "Read",
    "Refused",
    "Said",
    "SameAs",
    "Statement",
    "is_share",
    "label_of",
    "number_line",
    "read_statement",
    "sides_of",
    "symbols_in",
]

_FEWEST_SPACED = 20  # numbers in a row without commas that are a list, and no prose
_SIGNED = rf"-?{NUMBER}"
# Two numbers or more with commas, or many with spaces alone.
NUMBER_LIST = re.compile(
    rf"""(?<![\w.]){_SIGNED}(?:\s*[,;]\s*{_SIGNED})+(?![\w.%])(?:\s*[,;])?
       | (?<![\w.]){_SIGNED}(?:\s+{_SIGNED}){{{_FEWEST_SPACED - 1},}}(?![\w.%])""",
    re.VERBOSE,
)
_DECIMAL_COMMA = re.compile(r"-?\d{1,2},\d+")
# SuperMerger's names of merges once held a list in the list: (0.5,[0.1,...]).
_INNER_LIST = re.compile(rf"([(\[]\s*{_SIGNED}\s*,\s*)\[([^()\[\]]*)\](?=\s*[)\]])")
_OPEN, _CLOSE = "\x02", "\x03"  # around the number of a list that was taken out
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
# Signs between a formula and its name; <- and the like point at the name, but either side may be the name anyway.
_ARROW = re.compile(r"<[-=]{1,2}(?!>)|<?[-=]{1,2}>|:=|[←⇐⬅⟵→⇒➡➔➜➝⟶⟹≈≒≡]")
SIGN = re.compile(rf"{_ARROW.pattern}|=")
# Those that begin a line by which the formula above gets its name.
POINTING = re.compile(rf"(?:{_ARROW.pattern}|=|[↓⇓⇩⬇↳⤷⤵]\ufe0f?)\s*")
# Labels whose line can be referred to by them.
_NUMBERED = re.compile(
    rf"(?P<circled>[{CIRCLED}])\s*[.:,)]?\s*(?=\S)|(?P<step>(?:step|stage|merge|part)\s*#?\d{{1,3}})\s*[.:)]\s*(?=\S)",
    re.IGNORECASE,
)


class _TwoNumbersError(ValueError):
    """A line that gives one field two numbers."""


class Refused(NamedTuple):
    """A line that looks like a step and makes no sense: why, and the names that it may define."""

    why: str
    names: tuple[str, ...] = ()


class Assigned(NamedTuple):
    """Numbers on a line of their own: texts by field (alpha, beta, base_alpha, base_beta)."""

    values: Mapping[str, str]
    alone: bool = False  # a list without a word that tells what it is


class SameAs(NamedTuple):
    """Two names with a sign between them: one may be another name of what the other one is."""

    first: str
    second: str


class Said(NamedTuple):
    """A formula with its name; `given` are the numbers that stand with it, by field.

    `tentative` is whether it is a step only if it has to do with one that is known.
    """

    name: str | None
    formula: str
    given: Mapping[str, str]
    tentative: bool = False
    notes: tuple[str, ...] = ()


Read = Said | SameAs | Assigned | Refused | None


@dataclass
class Statement:
    """A step that a text defines, as it stands there: `given` are values as written, with the lines they stand on.

    `part` is what it means, from the formula or from the cells of a table. `alias` is a number or label before it, by
    which other lines may refer to its result; `reported` the words for the blocks that a similarity was reported of.
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
    table: int | None = None  # the line of the table's head
    half: bool = False  # for want of a number
    by_tool: bool = False  # its numbers are those that a tool used and wrote down


# --- Numbers ----------------------------------------------------------------------------------------------------------


def _lists_out(text: str) -> tuple[str, list[str]]:
    """`text` with its lists of numbers replaced by their places, and the lists, brackets included."""
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
    """The place of a list with the brackets around it; the last one may be missing at the end of a line."""
    before, after = text[:start].rstrip(), text[end:].lstrip()
    if before[-1:] not in ("(", "["):
        return start, end
    if after[:1] == {"(": ")", "[": "]"}[before[-1]]:
        return len(before) - 1, len(text) - len(after) + 1
    return (len(before) - 1, end) if not after else (start, end)


def symbols_in(formula: str) -> tuple[str, ...]:
    """Return the symbols, such as alpha and beta, that stand in a formula."""
    return tuple(sorted({found[0].lower() for found in _SYMBOL.finditer(masked(formula))}))


def _assignments(text: str, lists: Sequence[str], presets: Container[str]) -> tuple[str, dict[str, str]]:
    """What is left of `text` without `alpha = ...` and the like, and their values by field."""
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
        # The sign before it goes with it.
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
    """Whether a key may follow without a comma: `... = MIX alpha = 30%`, but not `... + B x alpha = 0.3`."""
    return (
        SIGN.search(before) is not None
        and re.search(r"[\w)\"]$", before) is not None
        and not re.search(r"(?:^|\s)[xX]$|\dx$", before)
    )


def _value_at(
    text: str, key: re.Match[str], presets: Container[str], *, at_start: bool
) -> tuple[int, str | None] | None:
    """Where the value behind a key ends, and which list it is, if it is one; None if there is none."""
    found = _PLACE.match(text, key.end())
    if found is not None:
        return found.end(), found[1]
    if key["weights"]:  # "Weight: 3.97 GB" is about something else
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
    """A text with its lists of numbers where they stood."""
    return _PLACE.sub(lambda found: lists[int(found[1])], text)


def _left_over(
    rest: str, lists: Sequence[str], symbols: Sequence[str], given: Mapping[str, str]
) -> dict[str, str] | None:
    """The lists that stand behind a formula, by its symbols; None if they cannot be told apart."""
    places = list(_PLACE.finditer(rest))
    wanted = [symbol for symbol in symbols if symbol not in given]
    beside = [
        re.search(r"(?<![\w.-])((?:alpha|beta)(?:_\d+)?)\s*$", rest[: place.start()], re.IGNORECASE) for place in places
    ]
    named = [found[1].lower() for found in beside if found is not None]
    values = [lists[int(place[1])] for place in places]
    if len(named) == len(values) == len(set(named)) and (len(values) == 1 or not wanted):
        return dict(zip(named, values, strict=True))
    if len(values) == len(wanted) or (len(values) == 1 and wanted):
        return dict(zip(wanted, values, strict=False))
    return None


# --- Lines ------------------------------------------------------------------------------------------------------------


def label_of(text: str) -> tuple[str | None, str]:
    """The number or label before a line by which others may refer to its result, and the rest of the line."""
    found = _NUMBERED.match(text)
    if found is None:
        return None, text
    return found["circled"] or " ".join(found["step"].split()), text[found.end() :]


def read_statement(text: str, presets: Container[str] = ()) -> Read:
    """What a line of normalized text says; None for prose, that is all that does not look like a step.

    `presets` are the names that may stand where the numbers of an alpha do.
    """
    by_method = _said_by_method(text, presets)
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
    said = _formula_with_name(rest, given)
    return Refused("numbers beside something that is no formula") if said is None and given else said


def number_line(text: str) -> Assigned | None:
    """Return the number that is all of a line but for a word that tells whose it is: `M 0.3`, `(30%)`, `70:30`."""
    found = _NUMBER_LINE.fullmatch(text)
    if found is None:
        return None
    key = found["key"]
    return Assigned({field_of(key) if key else "alpha": found["number"]}, alone=not key)


def is_share(values: Mapping[str, str]) -> bool:
    """Return whether the texts are numbers of 0..1, which stand for themselves where no word tells whose they are."""
    try:
        return all(0 <= number_in(value, ratio=True).value <= 1 for value in values.values())
    except ValueError:
        return False


def _is_whole_with_alpha(text: str) -> bool:
    """Whether a side of a text is two or three models without a number, which take the numbers behind it."""
    return any(with_alpha(side.strip(" ,;")) is not None for side in sides_of(text))


def _numbers_alone(bare: str, given: Mapping[str, str], lists: Sequence[str]) -> Assigned | None:
    """A line that is nothing but a list of numbers, or `alpha` and such a list."""
    if (
        re.sub(r"[\W_]+", "", bare)
        or given
        or len(lists) != 1
        or lists[0].count(",") + lists[0].count(" ") < _FEWEST_SPACED
    ):
        return None
    return Assigned({"alpha": lists[0]}, alone=True)


def _refused_numbers(bare: str) -> Refused | None:
    """Refuse numbers that cannot be told to belong to a formula, if there is one."""
    sides = list(sides_of(bare))
    if len(sides) < 2 and not is_formula(bare):
        return None
    return Refused("numbers for an alpha that the formula does not have", tuple(filter(None, map(parse_name, sides))))


def sides_of(text: str) -> Iterator[str]:
    """Yield the parts of a text between the signs that set a name and its formula apart; signs in a row are one."""
    ends = [(0, 0), *(found.span() for found in SIGN.finditer(masked(text))), (len(text), len(text))]
    parts = [text[before[1] : after[0]].strip() for before, after in itertools.pairwise(ends)]
    yield from (part for place, part in enumerate(parts) if part or place in (0, len(parts) - 1))


def _formula_with_name(rest: str, given: Mapping[str, str]) -> Said | SameAs | Refused | None:
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
            why = f"{sign_of_times!r} is read as a sign of a formula; a name of that kind needs quotation marks"
        refused = Refused(why if len(sides) == 2 else f"more than one {sign}", known or _first_words(sides))
        return refused if strict or any(map(is_formula, sides)) else None
    if all(names):
        return SameAs(*known) if strict else None
    place = 0 if names[0] else 1
    said = _said(names[place], sides[1 - place], given, sure=strict)
    return said._replace(notes=(*notes, *said.notes)) if isinstance(said, Said) else said


def _with_numbers_behind(sides: Sequence[str], given: Mapping[str, str]) -> tuple[list[str], Mapping[str, str]]:
    """The sides of `A + B (0.3) = MIX` or `A + B = MIX (0.3)` without the number, and that number as the alpha."""
    for place, side in enumerate(sides):
        found = number_behind(side) if not given else None
        if found is None:
            continue
        text, number = found
        other = sides[1 - place]
        if (is_half(text) and parse_name(other)) or (parse_name(text) and with_alpha(other) is not None):
            both = list(sides)
            both[place] = text
            return both, {"alpha": number}
    return list(sides), given


def _without_remarks(sides: Sequence[str], notes: list[str]) -> list[str]:
    """The two sides without words in parentheses behind the name or the formula, `... = MIX (with its VAE)`."""
    found = list(sides)
    for place, side in enumerate(sides):
        shorter = without_remark(side) if parse_name(side) is None and not is_formula(side) else None
        if shorter is None:
            continue
        text, remark = shorter
        if is_formula(text) or (parse_name(text) and parse_name(sides[1 - place]) is None):
            found[place] = text
            notes.append(f"{remark!r} is left out")
    return found


def _first_words(sides: Sequence[str]) -> tuple[str, ...]:
    """The names that a line without one may mean: what stands first on a side that is no formula."""
    words = [re.match(rf"{QUOTED}|[\w.-]+", side) for side in sides if "+" not in side and not is_formula(side)]
    return tuple(name for word in words if word is not None and (name := parse_name(word[0])))


def _said(name: str | None, formula: str, given: Mapping[str, str], *, sure: bool) -> Said | Refused | None:
    notes: tuple[str, ...] = ()
    if not is_formula(formula) and (summed := as_sum(formula)) is not None:
        formula, notes = summed, (f"{formula} is read as a sum",)
    whole = with_alpha(formula) if given else None
    if whole is not None:
        formula, notes = whole, (f"{formula} with numbers is read as {whole}",)
    if not sure and not is_formula(formula):
        return Said(name, formula, given, tentative=True) if is_half(formula) else None
    unknown = [key for key in given if key.removeprefix("base_") not in symbols_in(formula)]
    if unknown:
        return Refused("numbers for an alpha that the formula does not have", (name,) if name else ())
    return Said(name, formula, given, notes=notes)


def _without_sign(text: str, given: Mapping[str, str]) -> Said | Refused | None:
    """`NAME: formula`, `NAME is formula`, or a formula alone."""
    found = number_behind(text) if not given else None
    if found is not None and is_half(found[0]):
        return _said(None, found[0], {"alpha": found[1]}, sure=False)
    for sides in (re.split(r":\s*", text, maxsplit=1), IS.split(text, maxsplit=1)):
        if len(sides) == 2:
            names = [parse_name(side) for side in sides]
            formulas = [_is_sum(side) for side in sides]
            if sum(formulas) == 1 and names[formulas.index(False)]:
                return _said(names[formulas.index(False)], sides[formulas.index(True)], given, sure=False)
    return _said(None, text, given, sure=False) if _is_sum(text) else None


def _is_sum(text: str) -> bool:
    """Whether a text is a formula of several models: prose has numbers, too."""
    return is_formula(text) if "+" in text or "-" in text else as_sum(text) is not None


def _said_by_method(text: str, presets: Container[str]) -> Said | Refused | None:
    """`(Weighted Sum 0.3) A + B = MIX`, with the method anywhere in it, in parentheses or not."""
    method = find_method(masked(text))
    if method is None:
        return None
    if method.unclear:
        names = tuple(name for side in sides_of(text) if (name := parse_name(side.strip(" :,;-"))))
        return Refused(f"{method.unclear!r} behind the method is not one number", names)
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
        return Refused("a method of merging that is no weighted sum, which recipes are made of", names)
    for place in (0, 1) if len(sides) == 2 else ():
        name, formula = parse_name(sides[place]), _formula_of_method(method, sides[1 - place])
        if name and formula is not None:
            return Said(name, formula, {}, notes=() if method.note is None else (method.note,))
    if method.models is not None:
        names = tuple(filter(None, map(parse_name, sides)))
        return Refused("a method with a number, but not the models that it takes and a name", names) if names else None
    # A formula that has its numbers itself needs no method beside it.
    said = read_statement(rest.strip(" :,;-"), presets) if len(sides) == 2 else None
    if not isinstance(said, Said) or not is_formula(said.formula):
        return None
    return said._replace(notes=(*said.notes, f"{text[start:end].strip()!r} is left out: the formula has its numbers"))


def _formula_of_method(method: Method, text: str) -> str | None:
    """What a method makes of a list of models, `A + B` or `A, B`; None if it is none that it takes."""
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
