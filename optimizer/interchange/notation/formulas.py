"""Parses one formula of SuperMerger's notation, for example `A x (1-alpha) + B x alpha` or `A + (B - C) x 0.08`.

A formula is a sum of models. The factor of each model is a polynomial in alpha and beta. The factors alone determine
the mode (`interpret`), so spelling, order and nesting do not matter:

    two models whose factors add up to 1           weight sum
    a model, and a difference of two models        add difference
    three models whose factors add up to 1         triple sum
    two models, the first itself a weight sum      sum twice

Multiplication signs may be missing where the text is unambiguous: `0.7(A) + 0.3(B)`, `A 70% + B 30%`.
"""

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

from optimizer.interchange.notation.tokens import (
    GLUED_NUMBER,
    KnownNames,
    NotUnderstood,
    Token,
    quoted,
    tokens_of,
    value_of,
)
from optimizer.interchange.notation.wording import is_sentence_word
from optimizer.recipes import Alpha, Step

__all__ = [
    "Factor",
    "Part",
    "Reading",
    "Sum",
    "formula_of",
    "interpret",
    "names_in",
    "parse_formula",
    "read_formula",
    "renamed",
]

_MOST_TERMS = 400  # products of terms in one multiplication
_MOST_DIFFERENCES = 50  # in one formula; each becomes a step nested in the next
_DEEPEST = 50  # levels of parentheses
_MOST_WORDS = 6  # in a name with spaces but without quotation marks
# Powers of alpha and beta: () for a constant, (("alpha", 1),) for alpha.
_Powers = tuple[tuple[str, int], ...]
_ALONE: _Powers = ()


@dataclass(frozen=True)
class Factor:
    """A polynomial in symbols like alpha and beta. `terms` maps powers of symbols to their coefficients.

    The polynomial 1 - alpha is {(): 1, (("alpha", 1),): -1}.
    """

    terms: Mapping[_Powers, float]

    @staticmethod
    def of(number: float) -> "Factor":
        """Return a constant factor."""
        return Factor({_ALONE: number})

    @staticmethod
    def named(symbol: str) -> "Factor":
        """Return the factor that equals a symbol."""
        return Factor({((symbol, 1),): 1.0})

    def __add__(self, other: "Factor") -> "Factor":
        powers = dict.fromkeys([*self.terms, *other.terms])
        return Factor({power: self.terms.get(power, 0.0) + other.terms.get(power, 0.0) for power in powers})

    def __neg__(self) -> "Factor":
        return Factor({power: -number for power, number in self.terms.items()})

    def __mul__(self, other: "Factor") -> "Factor":
        if len(self.terms) * len(other.terms) > _MOST_TERMS:
            raise NotUnderstood("alpha and beta to high powers; a mode contains at most their product")
        result: dict[_Powers, float] = {}
        for left, number in self.terms.items():
            for right, factor in other.terms.items():
                powers = dict(left)
                for symbol, power in right:
                    powers[symbol] = powers.get(symbol, 0) + power
                key = tuple(sorted(powers.items()))
                result[key] = result.get(key, 0.0) + number * factor
        return Factor(result)

    def __call__(self, values: Mapping[str, float]) -> float:
        """Return the factor's value for these values of its symbols."""
        return math.fsum(
            number * math.prod(values[symbol] ** power for symbol, power in powers)
            for powers, number in self.terms.items()
        )

    def equals(self, number: float) -> bool:
        """Return whether this factor is the constant `number`, within 1e-6 per coefficient."""
        return all(
            abs(value - (number if powers == _ALONE else 0.0)) < 1e-6
            for powers, value in (self + Factor.of(0.0)).terms.items()
        )

    @property
    def number(self) -> float:
        """Constant term: the factor's value where all symbols are 0."""
        return self.terms.get(_ALONE, 0.0)

    @property
    def symbols(self) -> frozenset[str]:
        """Symbols on which the factor depends."""
        return frozenset(symbol for powers, number in self.terms.items() if number for symbol, _ in powers)

    @property
    def symbol(self) -> str | None:
        """Symbol that the factor equals; None for any other polynomial."""
        used = [(powers, number) for powers, number in self.terms.items() if number]
        match used:
            case [(((symbol, 1),), 1.0)]:
                return symbol
        return None


@dataclass(frozen=True)
class Sum:
    """A sum of models, or of sums in parentheses, each with its factor."""

    terms: "_Terms"


_Terms = tuple[tuple[Factor, "str | Sum"], ...]


@dataclass(frozen=True)
class Part:
    """One step of a formula: its mode, its factors, and its inputs by place (names or nested parts)."""

    mode: str
    inputs: Mapping[str, "str | Part"]
    alpha: Factor
    beta: Factor | None = None


@dataclass(frozen=True)
class Reading:
    """The meaning of a formula: its step, and the interpretations that led to it.

    Attributes:
        part: The step.
        notes: One clause for each interpretation, for example "0.3C is read as 0.3 x C".
        hashes: Short hashes by model name, lower-case hexadecimal.
        half_note: The note on a formula without a number, which is read as half of each model; None for others.
        dashed: Unknown, unquoted names with a dash, which may be differences.
    """

    part: Part
    notes: tuple[str, ...] = ()
    hashes: Mapping[str, str] = field(default_factory=dict)
    half_note: str | None = None
    dashed: frozenset[str] = frozenset()


def parse_formula(text: str, known: KnownNames | None = None) -> Sum:
    """Return the sum in a normalized text; raise NotUnderstood with the part of the text that is not a formula.

    Args:
        text: Normalized text of a formula.
        known: Names defined elsewhere; they resolve missing spaces and operators.

    Returns:
        The sum of all models with their factors.
    """
    return _Parser(text, known or KnownNames()).formula()


def read_formula(text: str, known: KnownNames | None = None) -> Reading:
    """Return the step, or nested steps, of a normalized text.

    Two spellings have a meaning beyond their factors. `A + B` without any number is half of each model. `A + B @0.3` is
    the WebUI's weighted sum at 0.3, which equals A x 0.7 + B x 0.3.

    Args:
        text: Normalized text of a formula.
        known: Names defined elsewhere; they resolve missing spaces and operators.

    Returns:
        The step, with a note for each interpretation.

    Raises:
        NotUnderstood: A part of the text is not a formula, or the formula is none of the modes.
    """
    parser = _Parser(text, known or KnownNames())
    formula = parser.formula()
    parser.check_glued_numbers()
    whole = parser.half_and_half(formula) or parser.at_a_weight(formula)
    try:
        part = interpret(whole or formula)
    except NotUnderstood:
        if not parser.cut:
            raise
        # `0.7(my-model) + 0.3(B)`: the parenthesis contains a name, not a difference.
        names = parser.cut
        parser = _Parser(text, known or KnownNames(), cutting=False)
        part = interpret(parser.formula())
        parser.notes += [f"{name!r} is taken for one name" for name in names]
    dashed = parser.bare_with_dash().intersection(names_in(part))
    return Reading(part, tuple(dict.fromkeys(parser.notes)), parser.hashes, parser.half_note, dashed)


def interpret(formula: Sum) -> Part:
    """Return the step, or nested steps, of a formula; raise NotUnderstood if it is none of the modes."""
    terms = formula.terms
    while len(terms) == 1 and isinstance(terms[0][1], Sum):
        outer = terms[0][0]
        terms = tuple((outer * factor, operand) for factor, operand in terms[0][1].terms)
    found = _add_difference(terms)
    if found is None and len(terms) > 1 and any(_difference([term]) for term in terms):
        found = _several(terms)
        if found is None:
            raise NotUnderstood(
                "beside differences, (B - C) x alpha for example, one model or a sum must have the factor 1"
            )
    found = found or _weight_sum(terms) or _triple_sum(terms) or _several(terms)
    if found is not None:
        return found
    if len(terms) == 1:
        raise NotUnderstood("a single model; nothing to merge")
    raise NotUnderstood(_why_not(terms))


def names_in(part: Part | None) -> list[str]:
    """Return the names of all models and steps that a part takes, including nested parts."""
    if part is None:
        return []
    return [
        name
        for operand in part.inputs.values()
        for name in ([operand] if isinstance(operand, str) else names_in(operand))
    ]


def renamed(part: Part, names: Mapping[str, str]) -> Part:
    """Return the part with its inputs renamed, {old: new}."""
    inputs = {
        place: names.get(operand, operand) if isinstance(operand, str) else renamed(operand, names)
        for place, operand in part.inputs.items()
    }
    return replace(part, inputs=inputs)


def _why_not(terms: _Terms) -> str:
    total = sum((factor for factor, _ in terms), Factor.of(0.0))
    if total.equals(1):
        return f"{len(terms)} models in one sum; write steps of two or three"
    total_text = "an expression in alpha" if total.symbols else f"{total.number:.6g}"
    unclear = next((name for _, name in terms if isinstance(name, str) and re.search(r"-|x\d*\.\d", name)), None)
    hint = "" if unclear is None else f"; if {unclear!r} is not one name, write spaces around its - and x"
    match terms:
        case ((unit, str(first)), (weight, str(second))) if (
            unit.equals(1) and not weight.symbols and 0 < weight.number < 1
        ):
            hint = f"; a weighted sum is {first} x {1 - weight.number:.12g} + {second} x {weight.number:.12g}"
    return f"the factors add up to {total_text}; those of a weight sum add up to 1, a difference's to 0{hint}"


def formula_of(step: Step, blocks: Iterable[str]) -> tuple[str, dict[str, bool]]:
    """Return the formula of a step, and which of its alphas need a line of their own.

    The formula contains the number of an alpha that is the same in all blocks, and the symbol of any other.

    Args:
        step: The step to write.
        blocks: Names of the layout's blocks.

    Returns:
        The right-hand side in the notation; and for each alpha, whether its numbers need a separate line.
    """
    every = tuple(blocks)
    a, b, c = (quoted(name) if name is not None else "" for name in (step.a, step.b, step.c))
    numbers = {name: _single(alpha, every) for name, alpha in step.alphas.items()}
    on_own_line = {name: number is None for name, number in numbers.items()}
    if step.mode == "add_difference":
        return f"{a} + ({b} - {c}) x {_text(numbers['alpha'], 'alpha')}", on_own_line
    inside = [numbers[name] for name in step.alphas]
    if step.mode == "triple_sum":
        rest = None if any(number is None for number in inside) else 1 - sum(number or 0.0 for number in inside)
        if rest is None or min(rest, *(number or 0.0 for number in inside)) < 0:
            return f"{a} x (1-alpha-beta) + {b} x alpha + {c} x beta", dict.fromkeys(on_own_line, True)
        return f"{a} x {rest:.12g} + {b} x {_text(inside[0])} + {c} x {_text(inside[1])}", on_own_line
    first, on_own_line["alpha"] = _weighted(a, b, numbers["alpha"], "alpha")
    if step.mode == "weight_sum":
        return first, on_own_line
    second, on_own_line["beta"] = _weighted(f"({first})", c, numbers["beta"], "beta")
    return second, on_own_line


def _weighted(a: str, b: str, number: float | None, symbol: str) -> tuple[str, bool]:
    if number is None or not 0 <= number <= 1:
        return f"{a} x (1-{symbol}) + {b} x {symbol}", True
    return f"{a} x {1 - number:.12g} + {b} x {_text(number)}", False


def _single(alpha: Alpha, blocks: Iterable[str]) -> float | None:
    """Return the number that an alpha has in all blocks; None if blocks differ or are free."""
    distinct = {alpha.at(block) for block in blocks}
    return None if alpha.free or len(distinct) > 1 else float(distinct.pop())


def _text(number: float | None, symbol: str = "") -> str:
    return symbol if number is None else value_of(number).removesuffix(".0")


def _weight_sum(terms: _Terms) -> Part | None:
    if len(terms) != 2 or not (terms[0][0] + terms[1][0]).equals(1):
        return None
    # With a symbol, A is the model with the factor 1 - alpha; with numbers alone, A is the first model.
    ordered = terms if not terms[0][0].symbols or _is_remainder(terms[0][0]) else terms[::-1]
    (_, first), (factor, second) = ordered
    # Only an inner sum in place A is sum twice: elsewhere the modes treat tensors that a model lacks differently.
    inner = _weight_sum(first.terms) if isinstance(first, Sum) and isinstance(second, str) else None
    if inner is not None and inner.mode == "weight_sum":
        return Part("sum_twice", {**inner.inputs, "c": _operand(second)}, inner.alpha, factor)
    return Part("weight_sum", {"a": _operand(first), "b": _operand(second)}, factor)


def _triple_sum(terms: _Terms) -> Part | None:
    if len(terms) != 3 or not sum((factor for factor, _ in terms), Factor.of(0.0)).equals(1):
        return None
    rest = next((place for place, (factor, _) in enumerate(terms) if factor.symbols and _is_remainder(factor)), 0)
    a, b, c = terms[rest], *(term for place, term in enumerate(terms) if place != rest)
    return Part("triple_sum", dict(zip("abc", map(_operand, (a[1], b[1], c[1])), strict=True)), b[0], c[0])


def _add_difference(terms: _Terms) -> Part | None:
    """Return the part for A + (B - C) x alpha plus any further differences; None for other sums."""
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
    """Return the two operands of a difference, the subtracted one last, and its factor; None for other terms."""
    if len(terms) == 1 and isinstance(terms[0][1], Sum):
        inner = terms[0][1].terms
        if len(inner) == 2 and {1, -1} == {next((n for n in (1, -1) if f.equals(n)), 0) for f, _ in inner}:
            first, second = (operand for factor, operand in sorted(inner, key=lambda term: term[0].equals(-1)))
            return _with_positive_symbol(first, second, terms[0][0])
    if len(terms) == 2 and (terms[0][0] + terms[1][0]).equals(0):
        return _with_positive_symbol(terms[0][1], terms[1][1], terms[0][0])
    return None


def _with_positive_symbol(
    first: "str | Sum", second: "str | Sum", factor: Factor
) -> tuple[tuple["str | Sum", "str | Sum"], Factor]:
    """Return the operands and factor of a difference, swapped if the factor is a negated symbol like -alpha."""
    return ((second, first), -factor) if (-factor).symbol else ((first, second), factor)


def _several(terms: _Terms) -> Part | None:
    """Return nested steps for three or more terms whose factors add up to 1; None for other sums.

    The terms are models, or a sum plus differences. Each term after the first becomes one step, since the sum of
    f_i M_i equals M_1 plus the sum of f_i (M_i - M_1).

    Returns:
        The outermost step; None if the terms are too few, or their factors do not add up to 1.

    Raises:
        NotUnderstood: The sum has too many terms.
    """
    differences = [term for term in terms if _difference([term])]
    rest = tuple(term for term in terms if not _difference([term]))
    if not rest or len(terms) < 3 or not sum((factor for factor, _ in rest), Factor.of(0.0)).equals(1):
        return None
    if len(terms) > _MOST_DIFFERENCES:
        raise NotUnderstood(f"{len(terms)} models in one formula; write steps of two or three")
    result: str | Part
    if differences:
        result = interpret(Sum(rest)) if len(rest) > 1 else _operand(rest[0][1])
        for difference in filter(None, (_difference([term]) for term in differences)):
            (plus, minus), factor = difference
            result = Part("add_difference", {"a": result, "b": _operand(plus), "c": _operand(minus)}, factor)
        return result if isinstance(result, Part) else None
    negative = [term for term in rest if term[0].number < 0 and not term[0].symbols]
    place = next((n for n, (factor, _) in enumerate(rest) if factor.equals(1)), 0)
    start = rest[place]
    # In A + B x 0.5 + D x 0.3 - C x 0.8, each difference subtracts C.
    subtracted = negative[0] if start[0].equals(1) and len(negative) == 1 else start
    result = _operand(start[1])
    for term in rest:
        if term is not start and term is not subtracted:
            inputs = {"a": result, "b": _operand(term[1]), "c": _operand(subtracted[1])}
            result = Part("add_difference", inputs, term[0])
    return result if isinstance(result, Part) else None


def _is_remainder(factor: Factor) -> bool:
    """Return whether the constant term is 1, as in 1 - alpha, the factor of model A."""
    return abs(factor.number - 1) < 1e-6


def _operand(operand: "str | Sum") -> "str | Part":
    return operand if isinstance(operand, str) else interpret(operand)


class _Parser:
    """Recursive descent over sum, product and factor; an error shows the text from the first token not understood.

    Attributes:
        notes: One clause for each interpretation.
        half_note: The note on a formula that is read as half of each model; None for others.
        hashes: Short hashes by model name.
        cut: Names, for example `B-C`, that were read as differences; without `cutting` they remain names.
    """

    def __init__(self, text: str, known: KnownNames, *, cutting: bool = True) -> None:
        self._text = text
        self._known = known
        self._cutting = cutting
        self._tokens = list(tokens_of(text, known))
        self._position = 0
        self._depth = 0
        self._spaced: list[str] = []
        self.notes = [token.note for token in self._tokens if token.note is not None]
        self.half_note: str | None = None
        self.hashes: dict[str, str] = {}
        self.cut: list[str] = []

    def formula(self) -> Sum:
        """Return the sum in the whole text; raise NotUnderstood if it is not a formula, or contains no model."""
        result = self._sum()
        if self._kind() is not None:
            raise self._failure()
        if isinstance(result, Factor):
            raise NotUnderstood(f"{self._text.strip()!r}: contains no model")
        return result

    def half_and_half(self, formula: Sum) -> Sum | None:
        """Return `A + B` without any number as half of each model; None for other formulas."""
        names = [operand for factor, operand in formula.terms if isinstance(operand, str) and factor.equals(1)]
        if len(names) != 2 or len(formula.terms) != 2 or self._has("number", "symbol", "@"):
            return None
        if any(re.search(r"x\d*\.\d", name) for name in names):
            return None
        self._check_dashes(names)
        if self._spaced:
            raise NotUnderstood(
                f"{self._spaced[0]!r}; a name with spaces needs quotation marks where there are no numbers"
            )
        self.half_note = f"{names[0]} + {names[1]} without numbers is read as half of each"
        self.notes.append(self.half_note)
        return Sum(tuple((Factor.of(0.5), name) for name in names))

    def check_glued_numbers(self) -> None:
        """Raise NotUnderstood for names with a number attached, `2B` or `Bx0.3`, and no factor beside them."""
        depth, doubtful = 0, []
        for place, token in enumerate(self._tokens):
            depth += {"(": 1, ")": -1}.get(token.kind, 0)
            beside = [self._tokens[p].kind for p in (place - 1, place + 1) if 0 <= p < len(self._tokens)]
            if (
                token.bare
                and GLUED_NUMBER.search(token.text)
                and not {"*", "@", "number", "symbol"}.intersection(beside)
            ):
                doubtful.append((depth, token.text))
        if len(doubtful) > 1 or any(not depth for depth, _ in doubtful):
            name = doubtful[0][1]
            raise NotUnderstood(
                f"{name!r} was taken for a name; if {name!r} is not one name, write spaces around its number and a "
                "sign between the two, and if it is one, quotation marks around it"
            )

    def _check_dashes(self, names: Iterable[str]) -> None:
        """Raise NotUnderstood for a dash in a name that may be a minus sign: `A+B-C`, or `A + T1-C` if T1 is known."""
        squeezed = not re.search(r"\s\+|\+\s", self._text)
        for name in (name for name in names if "-" in name and name not in self._known):
            sides = [side for found in re.finditer("-", name) for side in (name[: found.start()], name[found.end() :])]
            quoted_name = any(token.text == name and not token.bare for token in self._tokens)
            if not quoted_name and (squeezed or any(side in self._known for side in sides)):
                raise NotUnderstood(
                    f"{name!r} is one name or a difference; write spaces around its -, or quotation marks"
                )

    def bare_with_dash(self) -> frozenset[str]:
        """Return the names with a dash that are neither known nor quoted."""
        return frozenset(
            token.text for token in self._tokens if token.kind == "name" and token.bare and "-" in token.text
        )

    def at_a_weight(self, formula: Sum) -> Sum | None:
        """Return `A + B @0.3` as a weighted sum at 0.3; None for other formulas."""
        if len(formula.terms) != 2 or sum(token.kind == "@" for token in self._tokens) != 1:
            return None
        (unit, first), (weight, second) = formula.terms
        if not (unit.equals(1) and isinstance(first, str) and isinstance(second, str)) or weight.symbols:
            return None
        rest = Factor.of(1 - weight.number)
        self.notes.append(
            f"@{weight.number:g} is read as the weight of a weighted sum: {first} x {rest.number:.12g} + "
            f"{second} x {weight.number:g}"
        )
        return Sum(((rest, first), (weight, second)))

    def _has(self, *kinds: str) -> bool:
        return any(token.kind in kinds for token in self._tokens)

    def _token(self, ahead: int = 0) -> Token | None:
        place = self._position + ahead
        return self._tokens[place] if place < len(self._tokens) else None

    def _kind(self, ahead: int = 0) -> str | None:
        token = self._token(ahead)
        return None if token is None else token.kind

    def _take(self) -> Token:
        self._position += 1
        return self._tokens[self._position - 1]

    def _failure(self, hint: str = "") -> NotUnderstood:
        token = self._token()
        if token is None:
            return NotUnderstood(f"{self._text.strip()!r} breaks off")
        after_name = token.kind == "name" and self._position > 0 and self._tokens[self._position - 1].kind == "name"
        hint = hint or ("; a name with spaces needs quotation marks" if after_name else "")
        return NotUnderstood(f"{self._text[token.start :].strip()!r}{hint}")

    def _sum(self) -> "Factor | Sum":
        negative = self._sign()
        parts = [self._signed(self._product(), negative=negative)]
        while self._kind() in ("+", "-"):
            negative = self._take().kind == "-"
            parts.append(self._signed(self._product(), negative=negative))
        scalars = [part for part in parts if isinstance(part, Factor)]
        if len(scalars) == len(parts):
            return sum(scalars, Factor.of(0.0))
        if scalars:
            raise NotUnderstood(f"{self._text.strip()!r} adds a number to a model")
        return Sum(tuple(term for part in parts if isinstance(part, Sum) for term in part.terms))

    def _sign(self) -> bool:
        if self._kind() in ("+", "-"):
            return self._take().kind == "-"
        return False

    @staticmethod
    def _signed(part: "Factor | Sum", *, negative: bool) -> "Factor | Sum":
        """Return a product, negated if `negative`."""
        if isinstance(part, Factor):
            return -part if negative else part
        return Sum(tuple((-factor if negative else factor, operand) for factor, operand in part.terms))

    def _product(self) -> "Factor | Sum":
        """Return a product: a factor, or a sum with its only model or parenthesis."""
        scale, operand = Factor.of(1.0), None
        while True:
            part = self._factor()
            if isinstance(part, Factor):
                scale *= part
            elif operand is None:
                operand = part
            else:
                raise NotUnderstood(f"{self._text.strip()!r} multiplies models with each other")
            if self._kind() in ("*", "@"):
                self._take()
            elif not self._continues(part):
                break
        if isinstance(operand, Sum) and len(operand.terms) == 1:  # (A x 0.7)
            scale, operand = scale * operand.terms[0][0], operand.terms[0][1]
        return scale if operand is None else Sum(((scale, operand),))

    def _continues(self, part: "Factor | str | Sum") -> bool:
        """Return whether the next token continues the product without a multiplication sign."""
        token, before = self._token(), self._tokens[self._position - 1]
        if token is None:
            return False
        if not isinstance(part, Factor):
            whole = before.kind == ")" and token.text == "1.0"
            return token.kind == "(" or (token.kind == "number" and (token.weight or whole))
        if before.kind != "number":  # (1-alpha) A, alpha A
            return False
        return token.kind == "(" or (token.kind in ("name", "symbol") and (before.weight or "." in before.text))

    def _factor(self) -> "Factor | str | Sum":
        signed, negative = False, False
        while self._kind() in ("+", "-"):
            signed, negative = True, negative != (self._take().kind == "-")
        part = self._unsigned()
        if not signed:
            return part
        if not isinstance(part, Factor):
            raise self._failure()
        return -part if negative else part

    def _unsigned(self) -> "Factor | str | Sum":
        match self._kind():
            case "number":
                return Factor.of(self._take().value)
            case "symbol":
                return Factor.named(self._take().text)
            case "name":
                return self._name()
            case "(":
                return self._parenthesis()
        raise self._failure()

    def _name(self) -> str:
        """Return a name; consecutive unquoted words form one name, together with the numbers between them."""
        words = [self._take()]
        while words[0].bare and len(words) < _MOST_WORDS and (token := self._token()) is not None:
            if words[-1].hash is not None or not (token.bare or (token.kind == "number" and self._in_name(token))):
                break
            if is_sentence_word(token.text) or is_sentence_word(words[-1].text):
                raise self._failure()
            words.append(self._take())
        name = " ".join(word.text for word in words)
        if len(words) > 1:
            if self._kind() == "name" or any(word.text in self._known for word in words):
                raise self._failure("; a name with spaces needs quotation marks")
            if name not in self._known:
                self._spaced.append(name)
                self.notes.append(f"{name!r} is taken for one name")
        if words[-1].hash is not None:
            self.hashes.setdefault(name, words[-1].hash)
        return name

    def _in_name(self, number: Token) -> bool:
        """Return whether a number after a word belongs to the name, as in `Stable Diffusion 1.5 x 0.3`."""
        return not number.weight or self._kind(1) in ("*", "@", "name")

    def _parenthesis(self) -> "Factor | str | Sum":
        self._take()
        self._depth += 1
        if self._depth > _DEEPEST:
            raise NotUnderstood(f"parentheses nested more than {_DEEPEST} deep")
        inner = self._sum()
        if self._kind() != ")":
            raise self._failure()
        self._take()
        self._depth -= 1
        if isinstance(inner, Sum) and len(inner.terms) == 1 and inner.terms[0][0].equals(1):
            operand = inner.terms[0][1]
            return self._as_difference(operand) if isinstance(operand, str) else operand
        return inner

    def _as_difference(self, name: str) -> "str | Sum":
        """Return `(B-C)` as a difference if both sides are known or it has only one dash; otherwise as a name."""
        if not self._cutting or name in self._known or "-" not in name:
            return name
        if any(token.text == name and not token.bare for token in self._tokens):  # in quotation marks
            return name
        cuts = [(name[: found.start()], name[found.end() :]) for found in re.finditer("-", name)]
        fitting = [cut for cut in cuts if all(side in self._known for side in cut)]
        if not fitting and re.fullmatch(r"v?\d[\w.]*", cuts[-1][1], re.IGNORECASE):
            return name  # anything-v3
        if len(fitting) == 1 or len(cuts) == 1:
            first, second = (fitting or cuts)[0]
            self.cut.append(name)
            if not fitting and re.search(r"\s\+|\+\s", self._text):
                self.notes.append(f"({name}) is read as a difference; a name needs quotation marks")
            return Sum(((Factor.of(1.0), first), (Factor.of(-1.0), second)))
        return name
