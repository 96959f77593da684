"""Reads tables of steps in model cards: each row is a step, with its method, its models and the name of the result.

    | Step | Interpolation Method | Primary Model | Secondary Model | Tertiary Model | Merge Name |
    | --- | --- | --- | --- | --- | --- |
    | 1 | Add Difference @ 1.0 | AnythingV3.0 | F222 | sd1.5_pruned | part1 |

The headers identify the columns, in any order. A row without a header must begin with its method. For merges by
block, a table has a column of numbers and a column of base alphas.
"""

import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from optimizer.interchange.notation.console import ReadStep, named_file
from optimizer.interchange.notation.formula_texts import LONGEST_FORMULA
from optimizer.interchange.notation.formulas import Factor, Part
from optimizer.interchange.notation.methods import Method, find_method, is_another_method
from optimizer.interchange.notation.statements import NUMBER_LIST, SIGN, Refused
from optimizer.interchange.notation.tokens import masked, normalized, quoted
from optimizer.interchange.notation.wording import why_merge_changes
from optimizer.recipes import NUMBER, WEIGHT

__all__ = [
    "Table",
    "cells_of",
    "in_percent",
    "is_row",
    "is_rule",
    "percent_of",
    "role_of",
    "row_by_position",
    "step_of_cells",
    "step_of_row",
    "table_at",
]

# Headers of columns, reduced to letters and digits.
_HEADS = {
    "name": "mergename modelname name result output newmodel newname savedas saveas customname merged mergedmodel "
    "customnameoptional outputname 名前 結果",
    "method": "interpolationmethod interpolation method mixinfo mode mergemode mergemethod mergetype type calculation",
    "a": "a modela primarymodel primary primarymodela checkpointa firstmodel モデルa",
    "b": "b modelb secondarymodel secondary secondarymodelb checkpointb secondmodel モデルb",
    "c": "c modelc tertiarymodel tertiary tertiarymodelc checkpointc thirdmodel モデルc",
    "alpha": "alpha weight weights weightsalpha ratio mergeratio multiplier multiplierm m 比率 割合 "
    "mbw mbwalpha blockweight blockweights",
    "beta": "beta weightsbeta mbwbeta",
    "base_alpha": "basealpha alphabase base",
    "base_beta": "basebeta betabase",
    "formula": "recipe formula merge merging expression",
}
_NUMBERS = frozenset(("alpha", "beta", "base_alpha", "base_beta"))
_ROLES = {head: role for role, heads in _HEADS.items() for head in heads.split()}
_NOTHING = frozenset(("", "n/a", "na", "none", "null", "nil", "-", "--", "—", "–", "x", "/"))  # noqa: RUF001
# Words that name a method only in a column of methods.
_MODES = {"sum": "weight_sum", "weighted": "weight_sum", "difference": "add_difference", "add": "add_difference"}
_PERCENT = re.compile(r"\b(?:in\s+)?(?:%|per\s?cent\b)|%", re.IGNORECASE)
_LINK = re.compile(r"!?\[([^\[\]]*)\]\([^()\s]*\)")


class Table(NamedTuple):
    """A table of steps.

    Attributes:
        roles: Role of each column, for example name or alpha; None for other columns.
        head: Number of lines in its header, 1 or 2.
        heads: Headers of the columns.
    """

    roles: tuple[str | None, ...]
    head: int
    heads: tuple[str, ...] = ()


def cells_of(line: str) -> list[str]:
    """Return the cells of a row or of a line with tabs, without surrounding spaces."""
    line = line.strip()
    if "|" not in line and line.count("\t") > 1:
        return [cell.strip() for cell in line.split("\t")]
    cells = re.split(r"(?<!\\)\|", line)
    inner = cells[1 if line.startswith("|") else 0 : -1 if line.endswith("|") and len(cells) > 1 else None]
    return [cell.strip().replace("\\|", "|") for cell in inner]


def is_row(line: str) -> bool:
    """Return whether a line begins like a row of a table."""
    return line.lstrip().startswith("|")


def is_rule(line: str) -> bool:
    """Return whether a line is the rule between a table's header and its rows."""
    return "|" in line and "-" in line and not line.strip("|:- \t")


def table_at(lines: Sequence[str], start: int) -> Table | None:
    """Return the table of steps whose header is at `start`; None for other tables and other lines.

    Args:
        lines: All lines of the text.
        start: Index of the header, from 0.

    Returns:
        The table without its rows, or None.
    """
    line = lines[start]
    if "|" not in line or len(line) > LONGEST_FORMULA or is_rule(line):
        return None
    heads = tuple(cells_of(line))
    # A column of percentages contains no models: `A (%)` is the share of A.
    roles = tuple(role if (role := role_of(cell)) in _NUMBERS or not in_percent(cell) else None for cell in heads)
    if "formula" in roles and "name" in roles and not {"a", "b"} & set(roles):
        pass
    elif not {"a", "b"} <= set(roles) or not {"name", "method", "alpha"} & set(roles):
        return None
    ruled = start + 1 < len(lines) and is_rule(lines[start + 1])
    return Table(roles, 2 if ruled else 1, heads)


def role_of(head: str) -> str | None:
    """Return the role of a column or setting: name, method, a, b, c, alpha, beta, base_alpha, ...; None if unknown."""
    return _ROLES.get(re.sub(r"[\W_]+", "", _PERCENT.sub(" ", normalized(head))).lower())


def in_percent(head: str) -> bool:
    """Return whether a column's header, or a setting's name, contains per cent as the unit."""
    return _PERCENT.search(normalized(head)) is not None


def percent_of(cell: str) -> str:
    """Return a cell of a column in per cent with a per cent sign after each number.

    A number strictly between 0 and 1, for example 0.3, raises ValueError, since it may be a share despite the header.
    """
    numbers = re.compile(rf"(?<![\w.])-?{NUMBER}(?![\w.])(?!\s?[%:/])")
    text = re.sub(r"^(-?\d{1,2}),(\d+)(?=\s*%?$)", r"\1.\2", normalized(cell).strip())

    def with_sign(found: re.Match[str]) -> str:
        if 0 < abs(float(found[0])) < 1:
            raise ValueError(f"{found[0]} as per cent? write {found[0]} % or {float(found[0]) * 100:g} %")
        return f"{found[0]}%"

    return text if re.search(r"[:/]", text) else numbers.sub(with_sign, text)


def step_of_row(line: str, table: Table) -> ReadStep | Refused | str | None:
    """Return the step of a row.

    Args:
        line: The row.
        table: The table with the roles of its columns.

    Returns:
        The step, or the refusal of the row; a text if the row contains a formula; None for an empty row.
    """
    cells = cells_of(line)
    if not any(cells):
        return None
    named: dict[str, str] = {}
    for role, cell in zip(table.roles, cells, strict=False):
        if role is not None:
            named.setdefault(role, cell)
    if len(cells) > len(table.roles) and any(cells[len(table.roles) :]):
        by_position = row_by_position(line)
        if isinstance(by_position, ReadStep):  # from another table, without a header
            return by_position
        return Refused(f"{len(cells)} cells under {len(table.roles)} headers", _result(named))
    named_already = {role for role in table.roles if role is not None}
    for head, role, cell in zip(table.heads, table.roles, cells, strict=False):
        if role is None and _model(cell) is not None and (why := why_merge_changes(normalized(f"{head}: {cell}"))):
            return Refused(why, _result(named))
    heads = {role: head for head, role in reversed(tuple(zip(table.heads, table.roles, strict=True)))}
    for role in _NUMBERS.intersection(named):
        if in_percent(heads[role]) and _model(named[role]) is not None:
            try:
                named[role] = percent_of(named[role])
            except ValueError as error:
                return Refused(str(error), _result(named))
    if "a" not in named_already:
        return _formula_of_row(named)
    return step_of_cells(named)


def _formula_of_row(named: Mapping[str, str]) -> str | None:
    """Return the line `name = formula` of a row with a column of formulas; None if the cell is empty."""
    formula, name = named.get("formula", ""), _model(named.get("name", ""))
    if not formula or name is None or SIGN.search(masked(normalized(formula))):
        return formula or None
    return f"{quoted(name[0])} = {formula}"


def row_by_position(line: str) -> ReadStep | Refused | None:
    """Return the step of a row without a header: a method, A, B, perhaps C, and the name; None for other rows."""
    cells = cells_of(line)
    if cells and re.fullmatch(r"\D{0,6}\d{1,3}[.)]?", cells[0]) and find_method(normalized(cells[0])) is None:
        cells = cells[1:]
    elif cells:
        cells = [re.sub(r"^\(?\d{1,3}[.)]\s+", "", cells[0]), *cells[1:]]
    if len(cells) < 3 or (method := find_method(normalized(cells[0]))) is None or method.number is None:
        return None
    if method.start > 0 or method.mode not in ("weight_sum", "add_difference"):
        return None
    names = cells[1:]
    roles = ("a", "b", "c", "name") if len(names) > 3 or method.mode == "add_difference" else ("a", "b", "name")
    if len(names) > len(roles):
        return Refused(f"{len(cells)} cells; a row is a method, two or three models and a name")
    return step_of_cells({"method": cells[0], **dict(zip(roles, names, strict=False))})


def _result(cells: Mapping[str, str]) -> tuple[str, ...]:
    name = _model(cells.get("name", ""))
    return () if name is None else (name[0],)


def _model(cell: str) -> tuple[str, str | None] | None:
    """Return the model in a cell without markup: its name, and its file if that differs; None for n/a and similar."""
    text = _LINK.sub(r"\1", cell)
    text = re.sub(r"`|\*\*|~~|==|<br ?/?>|\[\s*\]|\\(?=[_*~])", "", text).strip()
    text = re.sub(r'^["“](.*)["”]$', r"\1", text)
    return None if text != "X" and text.lower() in _NOTHING else named_file(" ".join(text.split()))


def step_of_cells(cells: Mapping[str, str]) -> ReadStep | Refused:
    """Return the step of cells by role (`role_of`), or the refusal of them."""
    method = find_method(normalized(cells.get("method", "")))
    if method is None and (mode := _MODES.get(cells.get("method", "").lower())) is not None:
        method = Method(mode, None, 0, 0)
    if method is not None and is_another_method(cells["method"]):
        method = None
    if method is not None and (why := _why_method_changes(method, normalized(cells["method"]))):
        return Refused(why, _result(cells))
    if method is None and cells.get("method", "") and _model(cells["method"]):
        return Refused(f"the method {cells['method'][:40]!r} must be weighted sum or add difference", _result(cells))
    if method is not None and method.mode == "none":
        return Refused("no interpolation: a single model; nothing to merge", _result(cells))
    remarks = [
        text for place in ("a", "b", "c", "name") for text in re.findall(r"[(\[][^()\[\]]*[)\]]", cells.get(place, ""))
    ]
    if (why := next(filter(None, map(why_merge_changes, remarks)), None)) is not None:
        return Refused(why, _result(cells))
    models = {place: found for place in "abc" if (found := _model(cells.get(place, ""))) is not None}
    mode = method.mode if method is not None else ("add_difference" if "c" in models else "weight_sum")
    places = "ab" if mode == "weight_sum" else "abc"
    missing = [place for place in places if place not in models]
    if missing:
        return Refused(
            f"model {missing[0].upper()} is missing; {mode.replace('_', ' ')} takes {len(places)}", _result(cells)
        )
    numbers = _numbers(cells, method, mode)
    if isinstance(numbers, str):
        return Refused(numbers, _result(cells))
    factors, given, notes = numbers
    if "c" in models and mode == "weight_sum":
        notes.append(f"{models['c'][0]!r} is not part of a weighted sum")
    name = _model(cells.get("name", ""))
    part = Part(mode, {place: models[place][0] for place in places}, *factors)
    files = {called: file for place in places for called, file in [models[place]] if file is not None}
    return ReadStep(None if name is None else name[0], part, given, tuple(notes), files)


def _why_method_changes(method: Method, cell: str) -> str | None:
    """Return why the rest of a method's cell may change the merge; None if it does not."""
    if method.unclear:
        return f"{method.unclear!r} after the method is not one number"
    rest = cell[: method.start] + " " + cell[method.end :]
    if why := why_merge_changes(rest):
        return why
    return f"{rest.strip()!r} beside the method is not understood" if method.end and re.search(r"\d", rest) else None


def _numbers(
    cells: Mapping[str, str], method: Method | None, mode: str
) -> tuple[list[Factor], dict[str, str], list[str]] | str:
    """Return the factors of a row, the texts of its numbers by field, and notes; or the reason for refusing them."""
    notes = [] if method is None or method.note is None else [method.note]
    factors: list[Factor] = []
    given: dict[str, str] = {}
    for symbol in ("alpha", "beta") if mode in ("triple_sum", "sum_twice") else ("alpha",):
        text = normalized(cells.get(symbol, "")).strip()
        by_method = method.number if method is not None and symbol == "alpha" else None
        if _model(text) is None:
            if by_method is None:
                return f"no number for {symbol}"
            factors.append(Factor.of(by_method))
            continue
        factors.append(Factor.named(symbol))
        given[symbol] = f"({text})" if NUMBER_LIST.search(text) and text[:1] not in "([" else text
        if by_method not in (None, 1.0):
            notes.append(f"the numbers of the column are used, not the {by_method:g} of the method")
        base = normalized(cells.get(f"base_{symbol}", "")).strip()
        if re.fullmatch(WEIGHT, base):
            given[f"base_{symbol}"] = base
        elif _model(base) is not None:
            return f"{base!r} is not a base alpha; it must be a number"
    return factors, given, notes
