"""Merges told line by line: the settings of the WebUI's merger, and models below a heading, each with its weight.

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
from optimizer.interchange.notation.statements import Refused, Said
from optimizer.interchange.notation.tables import in_percent, percent_of, role_of, step_of_cells
from optimizer.interchange.notation.tokens import masked, normalized, parse_name, quoted
from optimizer.interchange.notation.wording import is_key, says_more, without_bullet
from optimizer.recipes import WEIGHT, number_in

__all__ = ["Settings", "settings_at", "weights_at"]

_LONGEST = 300  # characters of one line
_MOST = 20  # lines
_SETTING = re.compile(r"(?P<key>[^:=]{1,40}?)\s?:\s?(?P<value>\S.*)?")
# Settings of the WebUI's merger that are no part of what it makes, and those that are.
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
    """A step that was read from several lines, or why they are none, and how many lines they take.

    `at` is how far below the first line the one stands that tells why.
    """

    read: ReadStep | Refused
    lines: int
    at: int = 0


def settings_at(lines: Sequence[str], start: int) -> Settings | None:
    """Return the step that the settings from the line at `start` on make; None if these are none.

    There must be model A, model B, and a method, a number or a name.
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
            return None  # a number may be that of a formula above
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
        place, why_not = unclear
        name = parse_name(cells.get("name", ""))
        return Settings(Refused(why_not, () if name is None else (name,)), count, place)
    for place, text in others:
        why = says_more(text)
        if why is not None and not _UNCHANGED.search(text):
            name = parse_name(cells.get("name", ""))
            return Settings(Refused(why, () if name is None else (name,)), count, place)
    return Settings(step_of_cells(cells), count)


def _is_number(text: str) -> bool:
    return re.fullmatch(WEIGHT, text.strip()) is not None


def _name(text: str) -> str | None:
    """The name of a model; X, alpha and beta are names where no formula stands."""
    return text if text in ("X", "Alpha", "Beta") else parse_name(text)


def weights_at(lines: Sequence[str], start: int) -> tuple[Said | Refused, int] | None:
    """Return the sum of the models below a heading, `MIX:`, whose weights add up to 1, and how many lines it takes.

    It is refused if the heading says more than a name.
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
        return Refused(f"models and their weights stand below {name!r}, and {rest!r} belongs to none", (name,)), 1
    formula = " + ".join(f"{quoted(model)} x {number}" for model, number, _ in terms)
    return Said(name, formula, {}, notes=(f"the models below {name!r} are read as {formula}",)), 1 + len(terms)
