"""SuperMerger's console and history: the settings of a merge, line by line or in a row.

The console shows a line for each setting, `  model A  : photoA` first; the history, `mergehistory.csv`, has a row for
each merge. Both are what its metadata holds, in other words, and are read as that.
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
# The history's columns as they are written: its header has one that no row has, "plus lora".
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
    """A step that was read from something else than a formula: its part, and its numbers as texts by field.

    `files` are those of its models, where they are not just the names; `notes` what had to be interpreted.
    """

    name: str | None
    part: Part
    given: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    files: Mapping[str, str] = field(default_factory=dict)


def console_block(lines: Sequence[str], start: int) -> tuple[dict[str, str], int] | None:
    """Return the settings that SuperMerger printed from the line at `start` on, and how many lines they take."""
    found = _SETTING.fullmatch(lines[start][:LONGEST_FORMULA])
    # `model A: "a.safetensors"` in quotation marks is how a recipe is printed.
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
    """Return the merge that the settings describe.

    Raises RecipeError, `where` before the setting, for what a recipe cannot say.
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
    """Return whether a line begins as SuperMerger's history and its rows do."""
    return _HISTORY_ROW.match(line) is not None or _HISTORY_HEADER.match(line) is not None


def history_step(line: str, layout: Layout, where: str) -> ReadStep | None:
    """Return the merge of one row of the history; None for its header.

    Models are named as in the row's own name for the merge, if their number fits, and known by the row's short hashes.
    Raises RecipeError, `where` before the column, for what cannot be said.
    """
    if _HISTORY_HEADER.match(line):
        return None
    try:
        (row,) = csv.reader([line], strict=True)
    except (csv.Error, ValueError):
        raise RecipeError(f"{where}no row of SuperMerger's history, whose values stand between commas") from None
    if len(row) < _FEWEST_COLUMNS:
        raise RecipeError(
            f"{where}received {len(row)} values; a row of SuperMerger's history has {_FEWEST_COLUMNS} or more"
        )
    told = dict(zip(_COLUMNS, row, strict=False))
    blocks = told["use MBW"].strip().lower() == "true"
    data: dict[str, Any] = {
        "mode": told["mode"],
        "mbw": blocks,
        "calcmode": told.get("calcmode") or "normal",
        "elemental_merge": _literal(told.get("elemental", "")),
        "base_alpha": told["alpha"],
        "base_beta": told["beta"],
        "weights_alpha": told["weights alpha"],
        "weights_beta": told["weights beta"],
        "weights_alpha_orig": told["weights alpha"],
        "weights_beta_orig": told["weights beta"],
        "Adjust": told.get("adjust", ""),
    }
    kind = told.get("include or exclude", "Off")
    if kind in ("Include", "Exclude"):
        data[kind] = [_literal(told.get("blocks", "")), _literal(told.get("elements", ""))]
    names = _names_in(told["name"])
    if len(names) != (3 if re.search("add|triple|twice", told["mode"], re.IGNORECASE) else 2):
        names = []
    hashes = [told[f"model {place.upper()}"].strip() for place in "abc"]
    models = {place: _called(place, hashes, names) for place in "abc"}
    return _step(told.get("custom name", "").strip() or None, data, models, layout, where)


def _called(place: str, hashes: Sequence[str], names: Sequence[str]) -> str | None:
    """A model of the history: its name, if the row tells it, with its short hash in brackets."""
    position = "abc".index(place)
    digits = hashes[position]
    # Where there is no third model its hash is the first one's.
    name = names[position] if position < len(names) else ""
    if re.fullmatch(r"[0-9a-fA-F]{8,64}", digits):
        return f"{name} [{digits}]" if name else digits
    return name or digits or None


def _names_in(formula: str) -> list[str]:
    """The models in SuperMerger's name for a merge, in the order A, B, C: those between its signs."""
    text = re.split(r"\((?:alpha\s*=\s*)?-?\d[\d.]*,", formula, maxsplit=1)[0]
    text = re.sub(r"\s+x\s+(?:\(1-alpha(?:-beta)?\)|\(1-beta\)|alpha|beta|-?[\d.]+)|\)\s*x\s*\(1-beta\)", "\n", text)
    found = [_balanced(name.strip(" +")) for name in re.split(r"\n|\s\+\s|\s-\s+", text)]
    return [name for name in found if name]


def _balanced(name: str) -> str:
    """A name without the parenthesis of the formula that was left at one of its ends."""
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
        raise fields.wrong("Adjust", "what it changes after the merge cannot be said as a merge")
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
    """A model as it is printed; None for what stands there if there is none."""
    text = (text or "").strip()
    return None if text.lower() in ("", "none", "null", "[]") else text


def named_file(called: str) -> tuple[str, str | None]:
    """Return a model's name, without folder, extension and hash, and its file where that says more than the name.

    A hash alone is name and file.
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
    """What a text that Python printed stands for, such as ['IN00']; the text itself if it is none."""
    try:
        return list(_plain(ast.literal_eval(text.strip()))) if len(text) <= LONGEST_FORMULA else text
    except (ValueError, SyntaxError, RecursionError, MemoryError, TypeError):
        return text.strip()


def _plain(value: object) -> Iterator[object]:
    """Lists for the tuples and sets that Python prints."""
    for entry in value if isinstance(value, list | tuple | set) else [value]:
        yield list(_plain(entry)) if isinstance(entry, list | tuple | set) else entry
