"""Reads SuperMerger's console and history, which list the settings of a merge line by line or in a row.

The console prints one line for each setting, beginning with `  model A  : photoA`. The history, `mergehistory.csv`, has
one row for each merge. Both contain the fields of SuperMerger's metadata under other names, so one reader handles all.
"""

import ast
import csv
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from optimizer.errors import RecipeError
from optimizer.families import Layout
from optimizer.files import CHECKPOINT_SUFFIXES
from optimizer.interchange.notation.fields import Fields, is_empty
from optimizer.interchange.notation.formula_texts import LONGEST_FORMULA
from optimizer.interchange.notation.formulas import Factor, Part
from optimizer.interchange.notation.supermerger import read_supermerge
from optimizer.interchange.notation.tokens import value_of, without_hash
from optimizer.recipes import MODES

__all__ = ["ReadStep", "console_block", "console_step", "history_step", "is_history_row", "named_file"]

_SETTINGS = (
    "model A", "model B", "model C", "alpha,beta", "weights_alpha", "weights_beta", "mode", "MBW", "CalcMode",
    "Elemental", "Weights Seed", "Off", "Include", "Exclude", "Adjust", "Device",
)  # fmt: skip
_SETTING = re.compile(rf"\s*(?P<name>{'|'.join(map(re.escape, _SETTINGS))})\s*:\s*(?P<value>.*?)\s*", re.IGNORECASE)
_BY_NAME = {name.lower(): name for name in _SETTINGS}
# Columns of the history's rows. The header has one more, "plus lora", which no row has.
_COLUMNS = (
    "ID", "time", "name", "weights alpha", "weights beta", "model A", "model B", "model C", "alpha", "beta", "mode",
    "use MBW", "custom name", "save setting", "use ID", "elemental", "calcmode", "seed", "adjust", "additional value",
    "include or exclude", "blocks", "elements",
)  # fmt: skip
_FEWEST_COLUMNS = _COLUMNS.index("use MBW") + 1
_HISTORY_ROW = re.compile(r'\s*"?\d+"?,"?\d{4}\.\d{2}\.\d{2} \d{2}\.\d{2}\.\d{2}"?,')
_HISTORY_HEADER = re.compile(r'\s*"?ID"?,"?time"?,"?name"?,', re.IGNORECASE)


@dataclass(frozen=True)
class ReadStep:
    """A step read from settings or table cells rather than a formula: its part, and its numbers as texts by field.

    `files` maps a model's name to its file, if the file is not just the name. `notes` describe each interpretation.
    """

    name: str | None
    part: Part
    given: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    files: Mapping[str, str] = field(default_factory=dict)


def console_block(lines: Sequence[str], start: int) -> tuple[dict[str, str], int] | None:
    """Return the settings that SuperMerger printed from the line at `start` on, and the number of lines they take.

    Args:
        lines: All lines of the text.
        start: Index of the first line to read, from 0.

    Returns:
        Values by setting, and the number of lines; None if the lines are not a console's.
    """
    found = _SETTING.fullmatch(lines[start][:LONGEST_FORMULA])
    # With quotation marks, `model A: "a.safetensors"` is a declaration in a printed recipe.
    if found is None or _BY_NAME[found["name"].lower()] != "model A" or found["value"].startswith('"'):
        return None
    settings: dict[str, str] = {}
    count = 0
    for line in lines[start : start + 2 * len(_SETTINGS)]:
        found = _SETTING.fullmatch(line[:LONGEST_FORMULA])
        if found is None or (name := _BY_NAME[found["name"].lower()]) in settings:
            break
        settings[name] = found["value"]
        count += 1
    if "model B" not in settings or not {"alpha,beta", "weights_alpha", "mode", "MBW"} & settings.keys():
        return None
    return settings, count


def console_step(settings: Mapping[str, str], layout: Layout, where: str) -> ReadStep:
    """Return the merge that the settings describe; raise RecipeError for settings that a recipe cannot express.

    Args:
        settings: Printed values by setting.
        layout: Layout that defines the blocks.
        where: Text before the setting's name in messages.

    Returns:
        The step, without a name.
    """
    alphas = [part.strip() for part in settings.get("alpha,beta", "").strip("() ").split(",")]
    data: dict[str, Any] = {
        "mode": settings.get("mode", "Add" if _model(settings.get("model C")) else "Weight"),
        "mbw": settings.get("MBW", "").lower() == "true",
        "calcmode": settings.get("CalcMode", "normal"),
        "elemental_merge": _literal(settings.get("Elemental", "")),
        "base_alpha": alphas[0],
        "base_beta": alphas[1] if len(alphas) > 1 else "",
        "weights_alpha": settings.get("weights_alpha"),
        "weights_beta": settings.get("weights_beta"),
        "Adjust": settings.get("Adjust", ""),
    }
    data |= {kind: _literal(settings[kind]) for kind in ("Include", "Exclude") if kind in settings}
    return _step(None, data, {place: settings.get(f"model {place.upper()}") for place in "abc"}, layout, where)


def is_history_row(line: str) -> bool:
    """Return whether a line begins like the header or a row of SuperMerger's history."""
    return _HISTORY_ROW.match(line) is not None or _HISTORY_HEADER.match(line) is not None


def history_step(line: str, layout: Layout, where: str) -> ReadStep | None:
    """Return the merge in one row of the history; None for the header.

    The row's name for the merge contains the models' names; they are used if their number fits the mode. The row's
    short hashes identify the files.

    Args:
        line: The row; quoted values may contain line breaks.
        layout: Layout that defines the blocks.
        where: Text before the column's name in messages.

    Returns:
        The step; None for the header.

    Raises:
        RecipeError: The row is malformed, or contains settings that a recipe cannot express.
    """
    if _HISTORY_HEADER.match(line):
        return None
    try:
        (row,) = csv.reader([line], strict=True)
    except (csv.Error, ValueError):
        raise RecipeError(
            f"{where}not a row of SuperMerger's history; its values must be separated by commas"
        ) from None
    if len(row) < _FEWEST_COLUMNS:
        raise RecipeError(
            f"{where}received {len(row)} values; a row of SuperMerger's history has {_FEWEST_COLUMNS} or more"
        )
    values = dict(zip(_COLUMNS, row, strict=False))
    blocks = values["use MBW"].strip().lower() == "true"
    data: dict[str, Any] = {
        "mode": values["mode"],
        "mbw": blocks,
        "calcmode": values.get("calcmode") or "normal",
        "elemental_merge": _literal(values.get("elemental", "")),
        "base_alpha": values["alpha"],
        "base_beta": values["beta"],
        "weights_alpha": values["weights alpha"],
        "weights_beta": values["weights beta"],
        "weights_alpha_orig": values["weights alpha"],
        "weights_beta_orig": values["weights beta"],
        "Adjust": values.get("adjust", ""),
    }
    kind = values.get("include or exclude", "Off")
    if kind in ("Include", "Exclude"):
        data[kind] = [_literal(values.get("blocks", "")), _literal(values.get("elements", ""))]
    names = _names_in(values["name"])
    if len(names) != (3 if re.search("add|triple|twice", values["mode"], re.IGNORECASE) else 2):
        names = []
    hashes = [values[f"model {place.upper()}"].strip() for place in "abc"]
    models = {place: _history_model(place, hashes, names) for place in "abc"}
    return _step(values.get("custom name", "").strip() or None, data, models, layout, where)


def _history_model(place: str, hashes: Sequence[str], names: Sequence[str]) -> str | None:
    """Return a model of the history: its name, if the row contains it, and its short hash in brackets."""
    position = "abc".index(place)
    digits = hashes[position]
    # Without a third model, the history repeats the hash of the first.
    name = names[position] if position < len(names) else ""
    if re.fullmatch(r"[0-9a-fA-F]{8,64}", digits):
        return f"{name} [{digits}]" if name else digits
    return name or digits or None


def _names_in(formula: str) -> list[str]:
    """Return the models in SuperMerger's name for a merge, in the order A, B, C."""
    text = re.split(r"\((?:alpha\s*=\s*)?-?\d[\d.]*,", formula, maxsplit=1)[0]
    text = re.sub(r"\s+x\s+(?:\(1-alpha(?:-beta)?\)|\(1-beta\)|alpha|beta|-?[\d.]+)|\)\s*x\s*\(1-beta\)", "\n", text)
    found = [_balanced(name.strip(" +")) for name in re.split(r"\n|\s\+\s|\s-\s+", text)]
    return [name for name in found if name]


def _balanced(name: str) -> str:
    """Return a name without an unmatched parenthesis of the formula at either end."""
    if name.count("(") > name.count(")"):
        return name.removeprefix("(").strip()
    return name.removesuffix(")").strip() if name.count(")") > name.count("(") else name


def _step(
    name: str | None, data: Mapping[str, Any], models: Mapping[str, str | None], layout: Layout, where: str
) -> ReadStep:
    fields = Fields(data, where)
    merge = read_supermerge(fields, layout)
    notes = list(merge.notes)
    if not is_empty(data.get("Adjust")):
        raise fields.wrong("Adjust", "adjustments after the merge cannot be expressed as a merge")
    inputs: dict[str, str] = {}
    files: dict[str, str] = {}
    for place in MODES[merge.mode].inputs:
        called = _model(models.get(place))
        if called is None:
            raise RecipeError(f"{where}model {place.upper()}: missing; {merge.mode} is {MODES[merge.mode].formula}")
        inputs[place], file = named_file(called)
        if file is not None:
            files[inputs[place]] = file
    given = {
        symbol: "(" + ",".join(value_of(alpha.at(block)) for block in layout.blocks) + ")"
        for symbol, alpha in merge.alphas.items()
    }
    factors = [Factor.named(symbol) for symbol in merge.alphas]
    return ReadStep(name, Part(merge.mode, inputs, *factors), given, tuple(notes), files)


def _model(text: str | None) -> str | None:
    """Return a model as printed; None for the placeholder of a missing model."""
    text = (text or "").strip()
    return None if text.lower() in ("", "none", "null", "[]") else text


def named_file(called: str) -> tuple[str, str | None]:
    """Return a model's name, without folder, extension and hash, and its file.

    A hash alone is both name and file.

    Args:
        called: The model as written: a path, a title with its hash in brackets, or a hash.

    Returns:
        The name; and the file with its hash, None if it adds nothing to the name.
    """
    text, digits = without_hash(called.strip())
    file = re.split(r"[\\/]", text)[-1] or text
    stem = next((file[: -len(suffix)] for suffix in CHECKPOINT_SUFFIXES if file.lower().endswith(suffix)), file) or file
    if digits is None:
        if re.fullmatch(r"[0-9a-f]{10}|[0-9a-f]{64}", stem):
            return stem[:10], stem
        return stem, None if file == stem else file
    whole = file if file != stem else f"{file}.safetensors"
    return stem, f"{whole} [{digits}]"


def _literal(text: str) -> Any:
    """Return the value of a text printed by Python, for example ['IN00']; the text itself if it is not a literal."""
    try:
        return list(_plain(ast.literal_eval(text.strip()))) if len(text) <= LONGEST_FORMULA else text
    except (ValueError, SyntaxError, RecursionError, MemoryError, TypeError):
        return text.strip()


def _plain(value: object) -> Iterator[object]:
    """Yield the entries of a value, with tuples and sets as lists."""
    for entry in value if isinstance(value, list | tuple | set) else [value]:
        yield list(_plain(entry)) if isinstance(entry, list | tuple | set) else entry
