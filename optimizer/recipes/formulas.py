"""One formula of SuperMerger's notation, such as `A x (1-alpha) + B x alpha` or `A + (B - C) x 0.08`.

A formula is a sum of models, each with a factor that is a polynomial in alpha and beta. Which of the four modes it is
follows from the factors alone (`interpret`), so spelling, order and nesting do not matter:

    factors add up to 1, two models                weight sum
    1, and a difference of two models              add difference
    factors add up to 1, three models              triple sum
    two models, the first a weight sum itself      sum twice
"""

import json
import math
import re
import unicodedata
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from decimal import Decimal

from optimizer.recipes.recipe import Alpha, Step

__all__ = [
    "QUOTED",
    "Factor",
    "KnownNames",
    "NotUnderstood",
    "Part",
    "Sum",
    "formula_of",
    "interpret",
    "normalized",
    "parse_formula",
    "parse_name",
    "percentage",
    "quoted",
    "unquoted",
    "value_of",
]

_RESERVED = ("alpha", "beta", "x")
_MOST_TERMS = 400  # products of terms that are multiplied out
_MOST_DIFFERENCES = 50  # in one formula: each is a step of its own, inside the next
_SYMBOLS = str.maketrans(
    dict.fromkeys("×✕✖⨉⨯∗⋅·", " x ")  # noqa: RUF001
    | dict.fromkeys("−–—‒﹣", "-")  # noqa: RUF001
    | dict.fromkeys("\u200b\u200c\u200d\u2060\ufeff", "")  # of no width: pasted along, and not seen
    | {"、": ",", "α": "alpha", "β": "beta"}  # noqa: RUF001
)
# A text in quotation marks, escapes as JSON has them.
QUOTED = r'"(?:[^"\\]|\\.)*"'
# Possessive: no digit follows a number, and trying that again for each digit of a long one takes ages.
_NUMBER = r"(?:\d++\.?\d*+|\.\d++)(?:[eE][-+]?\d++)?"
_WORD = r"\w(?:[\w.]*\w)?(?:-+(?:\w(?:[\w.]*\w)?))*"
_TOKENS = re.compile(
    rf"\s*(?:(?P<quoted>{QUOTED})|(?P<percent>{_NUMBER})\s*%|(?P<number>\.\d+(?![\w.]))|(?P<word>{_WORD})|(?P<operator>[-+*()]))"
)
_BARE = re.compile(_WORD)
# Markdown's code and bold text, and the hash that WebUIs write behind a name.
_MARKS = re.compile(r"`|(?<![*\w)\]\"])\*\*(?=\S)|(?<=\S)\*\*(?![*\w(\[\"])|\s*\[[0-9a-fA-F]{8,64}\]")
_GLUED = re.compile(rf"(?P<name>.*?)x(?P<factor>{_NUMBER}|alpha|beta|)", re.IGNORECASE)

# 1-alpha, 1-0.1, 1-alpha-beta, alpha: no names, though every letter could stand in one.
_FACTOR = rf"(?:alpha|beta|{_NUMBER})"
_REST = re.compile(rf"(?:1-+{_FACTOR}|alpha|beta)(?:-+{_FACTOR})?", re.IGNORECASE)


class NotUnderstood(ValueError):
    """Part of a text that is no formula; the message shows that part and says why."""


class KnownNames:
    """Names that are known from elsewhere in a text; those with spaces can then be told in a formula."""

    def __init__(self, names: Iterable[str] = ()) -> None:
        self._names = frozenset(names)
        self._spaced: dict[str, list[str]] = {}
        for name in sorted(self._names, key=len, reverse=True):
            if " " in name:
                self._spaced.setdefault(name.split()[0], []).append(name)

    def __contains__(self, name: object) -> bool:
        return name in self._names

    def spaced_at(self, text: str, start: int) -> str | None:
        """The longest name with spaces in it that stands at this place of `text`."""
        if not self._spaced or not (first := _BARE.match(text, start)):
            return None
        return next(
            (
                name
                for name in self._spaced.get(first[0], ())
                if text.startswith(name, start) and not re.match(r"[\w.]*\w", text[start + len(name) :])
            ),
            None,
        )


@dataclass(frozen=True)
class Factor:
    """A polynomial in alpha and beta: `terms` maps their powers to numbers, {(0, 0): 1, (1, 0): -1} for 1 - alpha."""

    terms: Mapping[tuple[int, int], float]

    @staticmethod
    def of(number: float) -> "Factor":
        """A factor that is this number."""
        return Factor({(0, 0): number})

    def __add__(self, other: "Factor") -> "Factor":
        powers = dict.fromkeys([*self.terms, *other.terms])
        return Factor({power: self.terms.get(power, 0.0) + other.terms.get(power, 0.0) for power in powers})

    def __neg__(self) -> "Factor":
        return Factor({power: -number for power, number in self.terms.items()})

    def __mul__(self, other: "Factor") -> "Factor":
        if len(self.terms) * len(other.terms) > _MOST_TERMS:
            raise NotUnderstood("alpha and beta to high powers; a mode has them multiplied with each other at most")
        result: dict[tuple[int, int], float] = {}
        for (a, b), number in self.terms.items():
            for (c, d), factor in other.terms.items():
                result[a + c, b + d] = result.get((a + c, b + d), 0.0) + number * factor
        return Factor(result)

    def __call__(self, alpha: float, beta: float) -> float:
        """The factor's value."""
        return math.fsum(number * alpha**a * beta**b for (a, b), number in self.terms.items())

    def equals(self, number: float) -> bool:
        """Whether this is `number` whatever alpha and beta are, to a millionth."""
        return all(
            abs(value - (number if power == (0, 0) else 0.0)) < 1e-6
            for power, value in (self + Factor.of(0.0)).terms.items()
        )

    @property
    def symbols(self) -> frozenset[str]:
        """Which of alpha and beta it depends on."""
        used = [power for power, number in self.terms.items() if number]
        return frozenset(name for axis, name in enumerate(("alpha", "beta")) if any(power[axis] for power in used))

    @property
    def symbol(self) -> str | None:
        """`alpha` or `beta` if it is just that, else None."""
        used = {power: number for power, number in self.terms.items() if number}
        return {(1, 0): "alpha", (0, 1): "beta"}.get(next(iter(used))) if list(used.values()) == [1.0] else None


@dataclass(frozen=True)
class Sum:
    """Models, or sums of models in parentheses, each with its factor."""

    terms: "_Terms"


_Terms = tuple[tuple[Factor, "str | Sum"], ...]


@dataclass(frozen=True)
class Part:
    """One step that a formula stands for: its mode, its inputs by place (names, or parts of their own), its factors."""

    mode: str
    inputs: Mapping[str, "str | Part"]
    alpha: Factor
    beta: Factor | None = None


def normalized(text: str) -> str:
    """`text` with full-width signs, odd spaces, multiplication signs and dashes as ASCII has them.

    Quoted names stay as they are, but for the quotation marks around them: typographic, Japanese and single ones become
    double ones. Marks of bold text and code, and short hashes behind names, are left out.
    """
    pieces = re.split(rf"({QUOTED})", re.sub("[“”„‟「」『』]", '"', text))
    pieces[::2] = [re.sub(r"(?<![\w\\])['‘]([^'‘’\"]+)['’](?!\w)", r'"\1"', piece) for piece in pieces[::2]]  # noqa: RUF001
    pieces = re.split(rf"({QUOTED})", "".join(pieces))
    return "".join(
        piece
        if piece.startswith('"') and place % 2
        else _MARKS.sub("", unicodedata.normalize("NFKC", piece.translate(_SYMBOLS)).translate(_SYMBOLS))
        for place, piece in enumerate(pieces)
    )


def quoted(name: str) -> str:
    """`name` as formulas hold it: in quotation marks wherever something else could be read into it."""
    plain = (
        _BARE.fullmatch(name) is not None
        and normalized(name) == name
        and name.lower() not in _RESERVED
        and not re.fullmatch(_NUMBER, name)
        and not _REST.fullmatch(name)
        and not _GLUED.fullmatch(name)
    )
    return name if plain else json.dumps(name, ensure_ascii=False)


def parse_name(text: str) -> str | None:
    """The name that this side of an equation is: quoted, or up to four words; None if it is none."""
    text = text.strip()
    if re.fullmatch(QUOTED, text):
        return unquoted(text)
    words = text.split()
    if not 0 < len(words) <= 4 or not all(_BARE.fullmatch(word) for word in words):
        return None
    if any(word.lower() in _RESERVED for word in words) or re.fullmatch(_NUMBER, text):
        return None
    return " ".join(words)


def parse_formula(text: str, known: KnownNames | None = None) -> Sum:
    """The sum that the normalized `text` is; `known` names help where spaces or operators are missing.

    Raises NotUnderstood with the part of the text that is no formula.
    """
    return _Parser(text, known or KnownNames()).formula()


def interpret(formula: Sum) -> Part:
    """The step, or nested steps, that a formula stands for. Raises NotUnderstood if it is none of the modes."""
    terms = formula.terms
    while len(terms) == 1 and isinstance(terms[0][1], Sum):
        outer = terms[0][0]
        terms = tuple((outer * factor, operand) for factor, operand in terms[0][1].terms)
    found = _add_difference(terms)
    if found is None and len(terms) > 1 and any(_difference([term]) for term in terms):
        raise NotUnderstood("beside differences, as (B - C) x alpha, there must be one model with the factor 1")
    found = found or _weight_sum(terms) or _triple_sum(terms)
    if found is not None:
        return found
    if len(terms) == 1:
        raise NotUnderstood("a single model: there is nothing to merge")
    raise NotUnderstood(_why_not(terms))


def _why_not(terms: _Terms) -> str:
    total = sum((factor for factor, _ in terms), Factor.of(0.0))
    if total.equals(1):
        return f"{len(terms)} models in one sum; write steps of two or three"
    what = "something with alpha" if total.symbols else f"{total.terms.get((0, 0), 0.0):.6g}"
    unclear = next((name for _, name in terms if isinstance(name, str) and re.search(r"-|x[\d.]", name)), None)
    hint = "" if unclear is None else f"; if {unclear!r} is not one name, write spaces around its - and x"
    return f"the factors add up to {what}; those of a weight sum add up to 1, a difference's to 0{hint}"


def formula_of(step: Step, blocks: Iterable[str]) -> tuple[str, dict[str, bool]]:
    """The right-hand side of `step` in the notation, and which of its alphas it leaves to a line of their own.

    Numbers stand in the formula where one number holds for all `blocks`; otherwise alpha and beta do.
    """
    every = tuple(blocks)
    a, b, c = (quoted(name) if name is not None else "" for name in (step.a, step.b, step.c))
    numbers = {name: _single(alpha, every) for name, alpha in step.alphas.items()}
    apart = {name: number is None for name, number in numbers.items()}
    if step.mode == "add_difference":
        return f"{a} + ({b} - {c}) x {_text(numbers['alpha'], 'alpha')}", apart
    inside = [numbers[name] for name in step.alphas]
    if step.mode == "triple_sum":
        rest = None if any(number is None for number in inside) else 1 - sum(number or 0.0 for number in inside)
        if rest is None or min(rest, *(number or 0.0 for number in inside)) < 0:
            return f"{a} x (1-alpha-beta) + {b} x alpha + {c} x beta", dict.fromkeys(apart, True)
        return f"{a} x {rest:.12g} + {b} x {_text(inside[0])} + {c} x {_text(inside[1])}", apart
    first, apart["alpha"] = _weighted(a, b, numbers["alpha"], "alpha")
    if step.mode == "weight_sum":
        return first, apart
    second, apart["beta"] = _weighted(f"({first})", c, numbers["beta"], "beta")
    return second, apart


def value_of(number: float) -> str:
    """A number as the notation writes it: the shortest text that reads back as the same number."""
    return repr(float(number))


def _weighted(a: str, b: str, number: float | None, symbol: str) -> tuple[str, bool]:
    if number is None or not 0 <= number <= 1:
        return f"{a} x (1-{symbol}) + {b} x {symbol}", True
    return f"{a} x {1 - number:.12g} + {b} x {_text(number)}", False


def _single(alpha: Alpha, blocks: Iterable[str]) -> float | None:
    """The one number that an alpha is in all blocks, or None."""
    distinct = {alpha.at(block) for block in blocks}
    return None if alpha.free or len(distinct) > 1 else float(distinct.pop())


def _text(number: float | None, symbol: str = "") -> str:
    return symbol if number is None else value_of(number).removesuffix(".0")


def _weight_sum(terms: _Terms) -> Part | None:
    if len(terms) != 2 or not (terms[0][0] + terms[1][0]).equals(1):
        return None
    # With alpha in it, A is the one whose factor is 1 - alpha; with numbers, the one that comes first.
    ordered = terms if not terms[0][0].symbols or _remains(terms[0][0]) else terms[::-1]
    (_, first), (factor, second) = ordered
    # Only where the inner sum is A: elsewhere the steps' rules for tensors that a model lacks would be others.
    inner = _weight_sum(first.terms) if isinstance(first, Sum) and isinstance(second, str) else None
    if inner is not None and inner.mode == "weight_sum":
        return Part("sum_twice", {**inner.inputs, "c": _operand(second)}, inner.alpha, factor)
    return Part("weight_sum", {"a": _operand(first), "b": _operand(second)}, factor)


def _triple_sum(terms: _Terms) -> Part | None:
    if len(terms) != 3 or not sum((factor for factor, _ in terms), Factor.of(0.0)).equals(1):
        return None
    rest = next((place for place, (factor, _) in enumerate(terms) if factor.symbols and _remains(factor)), 0)
    a, b, c = terms[rest], *(term for place, term in enumerate(terms) if place != rest)
    return Part("triple_sum", dict(zip("abc", map(_operand, (a[1], b[1], c[1])), strict=True)), b[0], c[0])


def _add_difference(terms: _Terms) -> Part | None:
    """A + (B - C) x alpha, and further differences added to that."""
    for place in (place for place, (factor, _) in enumerate(terms) if factor.equals(1)):
        others = [term for number, term in enumerate(terms) if number != place]
        whole = _difference(others)
        found = [whole] if whole is not None else [_difference([term]) for term in others]
        differences = [difference for difference in found if difference is not None]
        if not found or len(differences) < len(found) or (len(others) > 1 and differences[0][1].equals(0)):
            continue
        if len(differences) > _MOST_DIFFERENCES:
            raise NotUnderstood(f"{len(differences)} differences in one formula; write steps of one")
        result = _operand(terms[place][1])
        for (first, second), factor in differences:
            result = Part("add_difference", {"a": result, "b": _operand(first), "c": _operand(second)}, factor)
        assert isinstance(result, Part)
        return result
    return None


def _difference(
    terms: list[tuple[Factor, "str | Sum"]],
) -> tuple[tuple["str | Sum", "str | Sum"], Factor] | None:
    """What is subtracted from what, and the factor of the difference."""
    if len(terms) == 1 and isinstance(terms[0][1], Sum):
        inner = terms[0][1].terms
        if len(inner) == 2 and {1, -1} == {next((n for n in (1, -1) if f.equals(n)), 0) for f, _ in inner}:
            first, second = (operand for factor, operand in sorted(inner, key=lambda term: term[0].equals(-1)))
            return _upright(first, second, terms[0][0])
    if len(terms) == 2 and (terms[0][0] + terms[1][0]).equals(0):
        return _upright(terms[0][1], terms[1][1], terms[0][0])
    return None


def _upright(first: "str | Sum", second: "str | Sum", factor: Factor) -> tuple[tuple["str | Sum", "str | Sum"], Factor]:
    """The same difference with `- alpha` turned into `+ alpha`."""
    return ((second, first), -factor) if (-factor).symbol else ((first, second), factor)


def _remains(factor: Factor) -> bool:
    """Whether this is 1 less something: what is left of A."""
    return abs(factor.terms.get((0, 0), 0.0) - 1) < 1e-6


def _operand(operand: "str | Sum") -> "str | Part":
    return operand if isinstance(operand, str) else interpret(operand)


def percentage(text: str) -> float:
    """The number that `text`, a percentage without its sign, is a hundredth of: exactly where it can be."""
    try:
        return float(Decimal(text) / 100)
    except ArithmeticError:  # more powers of ten than Decimal has
        return float(text) / 100


def unquoted(text: str) -> str:
    """What stands between the quotation marks of `text`; taken as it is where it has signs that are no escapes."""
    try:
        return str(json.loads(text, strict=False))
    except ValueError:
        return text[1:-1]


class _Parser:
    """Recursive descent over sum, product, factor; every failure shows the text from where it was met."""

    def __init__(self, text: str, known: KnownNames) -> None:
        self._text = text
        self._known = known
        self._tokens = list(self._split())
        self._position = 0
        self._depth = 0

    def formula(self) -> Sum:
        result = self._sum()
        if self._kind() is not None:
            raise self._failure()
        if isinstance(result, Factor):
            raise NotUnderstood(f"{self._text.strip()!r}: no model is named in it")
        return result

    def _split(self) -> Iterator[tuple[str, str, int]]:
        position, text = 0, self._text.rstrip()
        while position < len(text):
            start = position + len(text[position:]) - len(text[position:].lstrip())
            name = self._known.spaced_at(text, start)
            if name is not None:
                yield "name", name, start
                position = start + len(name)
                continue
            found = _TOKENS.match(text, position)
            if found is None:
                raise NotUnderstood(repr(text[position:].strip()))
            kind, value = str(found.lastgroup), found[str(found.lastgroup)]
            yield from self._refined(kind, value, start)
            position = found.end()

    def _refined(self, kind: str, value: str, start: int) -> Iterator[tuple[str, str, int]]:
        if kind == "quoted":
            yield "name", unquoted(value), start
        elif kind == "operator":
            yield value, value, start
        elif kind == "percent":
            yield "number", str(percentage(value)), start
        elif re.fullmatch(_NUMBER, value):
            yield "number", value, start
        elif value.lower() == "x":
            yield "*", value, start
        elif _REST.fullmatch(value):
            for place, part in enumerate(re.split("-+", value)):
                if place:
                    yield "-", "-", start
                yield ("symbol" if part[0].isalpha() else "number"), part.lower(), start
        elif value not in self._known and (found := _GLUED.fullmatch(value)):
            yield from self._unglued(value, found, start)
        else:
            yield "name", value, start

    def _unglued(self, value: str, found: re.Match[str], start: int) -> Iterator[tuple[str, str, int]]:
        """`Ax0.5`, `x0.5` and `0.5x` without their spaces, where the rest is a name known from elsewhere."""
        name, factor = found["name"], found["factor"]
        number = re.fullmatch(_NUMBER, name) is not None
        if name and not number and name not in self._known:
            yield "name", value, start
            return
        if name:
            yield ("number" if number else "name"), name, start
        yield "*", "x", start
        if factor:
            yield ("symbol" if factor[0].isalpha() else "number"), factor.lower(), start

    def _kind(self) -> str | None:
        return self._tokens[self._position][0] if self._position < len(self._tokens) else None

    def _take(self) -> str:
        self._position += 1
        return self._tokens[self._position - 1][1]

    def _failure(self) -> NotUnderstood:
        if self._position >= len(self._tokens):
            return NotUnderstood(f"{self._text.strip()!r} breaks off")
        kind, _, start = self._tokens[self._position]
        after_name = kind == "name" and self._position > 0 and self._tokens[self._position - 1][0] == "name"
        hint = "; a name with spaces needs quotation marks" if after_name else ""
        return NotUnderstood(f"{self._text[start:].strip()!r}{hint}")

    def _sum(self) -> "Factor | Sum":
        negative = self._sign()
        parts = [self._signed(self._product(), negative=negative)]
        while self._kind() in ("+", "-"):
            negative = self._take() == "-"
            parts.append(self._signed(self._product(), negative=negative))
        scalars = [part for part in parts if isinstance(part, Factor)]
        if len(scalars) == len(parts):
            return sum(scalars, Factor.of(0.0))
        if scalars:
            raise NotUnderstood(f"{self._text.strip()!r} adds a number to a model")
        return Sum(tuple(term for part in parts if isinstance(part, Sum) for term in part.terms))

    def _sign(self) -> bool:
        if self._kind() in ("+", "-"):
            return self._take() == "-"
        return False

    @staticmethod
    def _signed(part: "Factor | Sum", *, negative: bool) -> "Factor | Sum":
        """A product as a sum of one term, with its sign."""
        if isinstance(part, Factor):
            return -part if negative else part
        return Sum(tuple((-factor if negative else factor, operand) for factor, operand in part.terms))

    def _product(self) -> "Factor | Sum":
        """A factor, or a sum of the one model (or parenthesis) that the product holds."""
        scale, operand = Factor.of(1.0), None
        while True:
            part = self._factor()
            if isinstance(part, Factor):
                scale *= part
            elif operand is None:
                operand = part
            else:
                raise NotUnderstood(f"{self._text.strip()!r} multiplies models with each other")
            if self._kind() != "*":
                break
            self._take()
        return scale if operand is None else Sum(((scale, operand),))

    def _factor(self) -> "Factor | str | Sum":
        signed, negative = False, False
        while self._kind() in ("+", "-"):
            signed, negative = True, negative != (self._take() == "-")
        part = self._unsigned()
        if not signed:
            return part
        if not isinstance(part, Factor):
            raise self._failure()
        return -part if negative else part

    def _unsigned(self) -> "Factor | str | Sum":
        kind = self._kind()
        if kind == "number":
            return Factor.of(float(self._take()))
        if kind == "symbol":
            return Factor({(1, 0) if self._take() == "alpha" else (0, 1): 1.0})
        if kind == "name":
            return self._take()
        if kind == "(":
            return self._parenthesis()
        raise self._failure()

    def _parenthesis(self) -> "Factor | str | Sum":
        self._take()
        self._depth += 1
        if self._depth > 50:
            raise NotUnderstood("parentheses nested more than 50 deep")
        inner = self._sum()
        if self._kind() != ")":
            raise self._failure()
        self._take()
        self._depth -= 1
        if isinstance(inner, Sum) and len(inner.terms) == 1 and inner.terms[0][0].equals(1):
            operand = inner.terms[0][1]
            return self._apart(operand) if isinstance(operand, str) else operand
        return inner

    def _apart(self, name: str) -> "str | Sum":
        """`(B-C)` without spaces: a difference where both sides are known, or where there is only one place to cut."""
        if name in self._known or "-" not in name:
            return name
        cuts = [(name[: found.start()], name[found.end() :]) for found in re.finditer("-", name)]
        fitting = [cut for cut in cuts if all(side in self._known for side in cut)]
        if len(fitting) == 1 or len(cuts) == 1:
            first, second = (fitting or cuts)[0]
            return Sum(((Factor.of(1.0), first), (Factor.of(-1.0), second)))
        return name
