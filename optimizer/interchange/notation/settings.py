"""Reads merges written line by line: settings of the WebUI's merger, and weighted models below a heading.

Primary model (A): photo        MIX:
Secondary model (B): comic      - photo 70%
Multiplier (M): 0.3             - comic 30%
Custom Name: MIX
"""

import re
from collections.abc import Sequence
from typing import NamedTuple

from optimizer.interchange.notation.console import ReadStep
from optimizer.interchange.notation.formula_texts import is_formula, with_alpha
from optimizer.interchange.notation.statements import NamedFormula, Refused
from optimizer.interchange.notation.tables import in_percent, percent_of, role_of, step_of_cells
from optimizer.interchange.notation.tokens import masked, normalized, parse_name, quoted
from optimizer.interchange.notation.wording import is_key, why_merge_changes, without_bullet
from optimizer.recipes import WEIGHT, number_in

__all__ = ["Settings", "settings_at", "weights_at"]

_LONGEST = 300  # characters in one line
_MOST = 20  # lines in one merge
_SETTING = re.compile(r"(?P<key>[^:=]{1,40}?)\s?:\s?(?P<value>\S.*)?")
# Other settings of the WebUI's merger. Some change the merge, so `why_merge_changes` checks their values.
_OTHERS = re.compile(
    r"(?:save as|checkpoint format|calc ?mode|config|copy config|discard|bake|vae|metadata|interpolation|elemental"
    r"|exclude|include|save|format|precision|device|merge|step)\b[^:]*",
    re.IGNORECASE,
)
_UNCHANGED = re.compile(r":\s?(?:normal|none|no|off|false)?$", re.IGNORECASE)
_RESULT = re.compile(r"(?:->|=>|→|⇒|=)\s?(?P<name>.+)")
_HEADING = re.compile(r"(?P<name>[^:=]+?)\s?[:=](?P<rest>.*)")
_WEIGHED = re.compile(
    rf"(?P<name>[^:@()]+?)\s?(?:[:@(]\s?|\s[x*-]\s|\s)(?P<behind>{WEIGHT})\s?\)?|(?P<before>{WEIGHT})\s?(?:[x*:-]\s|\s)(?P<named>.+)"
)


class Settings(NamedTuple):
    """A step read from several lines, or the refusal of them.

    Attributes:
        read: The step or the refusal.
        lines: Number of lines.
        at: Offset of the refused line from the first one.
    """

    read: ReadStep | Refused
    lines: int
    at: int = 0


def settings_at(lines: Sequence[str], start: int) -> Settings | None:
    """Return the step in the settings from the line at `start` on; None if the lines are not settings.

    The settings must include model A, model B, and one of method, number and name.

    Args:
        lines: All lines of the text.
        start: Index of the first line, from 0.

    Returns:
        The step or its refusal; None if the lines are not the settings of a merge.
    """
    cells: dict[str, str] = {}
    others: list[tuple[int, str]] = []
    unclear: tuple[int, str] | None = None
    count = 0
    for line in lines[start : start + _MOST]:
        text = without_bullet(normalized(line[: _LONGEST + 1])).strip()
        arrow = _RESULT.fullmatch(text) if {"a", "b"} <= cells.keys() and "name" not in cells else None
        if arrow is not None and parse_name(arrow["name"]):
            cells["name"] = arrow["name"]
            count += 1
            break
        found = _SETTING.fullmatch(text) if len(text) <= _LONGEST else None
        role = None if found is None else role_of(found["key"])
        if (
            found is None
            or role in ("formula", *cells)
            or (role is None and not (count and _OTHERS.fullmatch(found["key"])))
        ):
            break
        if not count and role not in ("a", "name", "method"):
            return None  # the number of a formula above, perhaps
        if role in ("a", "b", "c", "name") and is_formula(found["value"] or ""):
            break
        if role is None:
            others.append((count, text))
        else:
            cells[role] = found["value"] or ""
            if role.endswith(("alpha", "beta")) and in_percent(found["key"]) and cells[role]:
                try:
                    cells[role] = percent_of(cells[role])
                except ValueError as error:
                    unclear = unclear or (count, str(error))
        count += 1
    if not {"a", "b"} <= cells.keys() or not {"method", "alpha", "name"} & cells.keys():
        return None
    if _is_number(cells["a"]) or _is_number(cells["b"]):
        return None
    if unclear is not None:
        place, why = unclear
        name = parse_name(cells.get("name", ""))
        return Settings(Refused(why, () if name is None else (name,)), count, place)
    for place, text in others:
        change = why_merge_changes(text)
        if change is not None and not _UNCHANGED.search(text):
            name = parse_name(cells.get("name", ""))
            return Settings(Refused(change, () if name is None else (name,)), count, place)
    return Settings(step_of_cells(cells), count)


def _is_number(text: str) -> bool:
    return re.fullmatch(WEIGHT, text.strip()) is not None


def _name(text: str) -> str | None:
    """Return the name of a model. Outside formulas X, Alpha and Beta are names as well."""
    return text if text in ("X", "Alpha", "Beta") else parse_name(text)


def weights_at(lines: Sequence[str], start: int) -> tuple[NamedFormula | Refused, int] | None:
    """Return the sum of the models listed below a heading, `MIX:`, if their weights add up to 1.

    The sum is refused if the heading contains more than a name.

    Args:
        lines: All lines of the text.
        start: Index of the heading, from 0.

    Returns:
        The formula or its refusal, and the number of lines; None if the lines are not such a list.
    """
    heading = _HEADING.fullmatch(without_bullet(normalized(lines[start][: _LONGEST + 1])).strip(" #*"))
    name = None if heading is None else parse_name(heading["name"])
    if heading is None or name is None or is_key(name):
        return None
    rest = heading["rest"].strip()
    if is_formula(rest) or with_alpha(rest) is not None:
        return None
    terms: list[tuple[str, str, float]] = []
    for line in lines[start + 1 : start + 1 + _MOST]:
        text = without_bullet(normalized(line[: _LONGEST + 1])).strip(" ,;+")
        found = _WEIGHED.fullmatch(masked(text)) if len(text) <= _LONGEST else None
        if found is None:
            break
        kind = "name" if found["behind"] else "named"
        model = _name(text[slice(*found.span(kind))].strip())
        number = found["behind"] or found["before"]
        if model is None:
            break
        try:
            terms.append((model, number, number_in(number).value))
        except ValueError:
            break
    if len(terms) < 2 or abs(sum(weight for _, _, weight in terms) - 1) > 1e-6:
        return None
    if rest:
        return Refused(f"models with weights follow below {name!r}, but {rest!r} belongs to none of them", (name,)), 1
    formula = " + ".join(f"{quoted(model)} x {number}" for model, number, _ in terms)
    return NamedFormula(name, formula, {}, notes=(f"the models below {name!r} are read as {formula}",)), 1 + len(terms)
