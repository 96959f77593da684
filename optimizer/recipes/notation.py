"""SuperMerger's notation: recipes as people write them into articles and model cards, read and written.

A text is read line by line, prose and all. What counts are formulas with a name on either side, `A x 0.9 + B x 0.1 =
TEMP1` or `TEMP1 = ...`, the lines `alpha = (26 numbers)` that belong to them, presets, and reported similarities.
"""

import codecs
import difflib
import itertools
import json
import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from decimal import Decimal
from functools import lru_cache
from pathlib import Path
from typing import Any

from optimizer.checkpoints import CHECKPOINT_SUFFIXES
from optimizer.checkpoints.layout import Layout, load_layout
from optimizer.errors import RecipeError, attempt
from optimizer.recipes.files import alpha_as_data, read_alpha
from optimizer.recipes.formulas import (
    QUOTED,
    Factor,
    KnownNames,
    NotUnderstood,
    Part,
    formula_of,
    interpret,
    normalized,
    parse_formula,
    parse_name,
    percentage,
    quoted,
    unquoted,
    value_of,
)
from optimizer.recipes.presets import Preset, numbered_alpha, parse_preset, preset_alpha, read_presets
from optimizer.recipes.recipe import MOST_STEPS, Alpha, Expected, Model, Recipe, Step
from optimizer.recipes.yaml_files import read_text, shown, yaml_of

__all__ = ["Imported", "import_text", "read_notation", "write_notation"]

# Possessive: no digit follows a number, and trying that again for each digit of a long one takes ages.
_NUMBER = r"-?(?:\d++\.?\d*+|\.\d++)(?:e[-+]?\d++)?"
_NUMBERS = rf"{_NUMBER}(?:\s*,\s*{_NUMBER})+\s*,?"
_LIST = rf"(?:\(\s*{_NUMBERS}\s*\)|\[\s*{_NUMBERS}\s*\])"
_ALPHA = r"(?P<{0}>base[ _]?(?:alpha|beta)|alpha|beta)"
# `alpha = ...` on a line of its own or after a comma; `B x alpha = NAME` is the end of a formula.
_ASSIGNED = re.compile(
    rf"""(?:^|[,;])\s*{_ALPHA.format("name")}\s*=\s*
         (?P<value>{_LIST}|\{{.*\}}|{_NUMBERS}(?![\w.])|{_NUMBER}\s*(?:,\s*$|(?=\s*(?:[,;]|$)))|[^\s,;=][^;=]*$|[^\s,;=]+)
         |(?<![\w.-]){_ALPHA.format("symbol")}\s*(?:=\s*)?(?P<list>{_LIST})""",
    re.IGNORECASE | re.VERBOSE,
)
# Another way to write the sign between a formula and its name.
_ARROW = re.compile(r"\s*(?:->|=>|:=|→|⇒|➡|➔)\s*")
_BULLET = re.compile(r"^\s*(?:>\s*)*(?:(?:[•◦▪●○■□‣·*+-]|\d{1,3}[.)])\s+)?")
_LABEL = re.compile(r"^[A-Za-z][\w ]{0,30}:\s+(?=.*=)")
_DECLARED = re.compile(
    rf"(recipe|layout|mapping|output|model) ?(?P<name>{QUOTED}|[^\":]*?)\s*:\s*(?P<value>{QUOTED})(?P<more>.*)"
)
_MORE = re.compile(rf",\s*(license|sha256)\s+({QUOTED})")
_SIMILARITY = re.compile(
    r"(?:cosine )?similarity of (?P<blocks>[\w, -]+?)(?: between .+?)?"
    r"(?: \((?P<metric>\w+), seed (?P<seed>\d{1,18})\))?"
    rf"\s*:\s*(?P<total>{_NUMBER})?\s*%?",
    re.IGNORECASE,
)
_OF_STEP = re.compile(r"block.level .*?similarity of (?:the )?(?P<step>.+?)\s*:?", re.IGNORECASE)
_TOTAL = re.compile(rf"total\s*:\s*(?P<total>{_NUMBER})\s*%", re.IGNORECASE)
_PERCENT = re.compile(rf"({_NUMBER})\s*%")
_MOST_LINES = 12  # that one formula or list of numbers may be spread over
_LONGEST_LINE = 2000  # characters of a formula that may run on
_LONGEST_PROSE = 300  # characters of a line that may report a similarity
_LONGEST = 10_000  # characters of any line that is looked at; 26 free alphas take some 1500
_MOST_BYTES = 1 << 20  # of a text; the article has some 40,000
_MOST_LINES_OF_A_TEXT = 20_000
_MOST_COMPARED = 200  # names that are looked at for one that is nearly the same


@dataclass(frozen=True)
class Imported:
    """What was read from a text: the recipe, what had to be guessed, and lines with a formula that made no sense."""

    recipe: Recipe
    warnings: tuple[str, ...] = ()
    not_understood: tuple[str, ...] = ()


def read_notation(
    text: str,
    *,
    name: str = "recipe",
    layout: Layout | None = None,
    mapping: str | None = None,
    presets: Mapping[str, Preset] | None = None,
) -> Imported:
    """The recipe in a text of formulas and prose. `presets` are alphas that it may name.

    `mapping` is the recipe's, whatever the text says; by default what the text declares, else supermerger.

    Names that no formula defines are the sources: the file is the name, with .safetensors. Steps may come in any order.
    Of several steps that no other uses, the output is the one that needs the most steps.

    Raises RecipeError, each problem with its line, for numbers of a wrong count, a step that lacks its alpha, a line
    that is not understood but defines a name that others use, a name defined in two ways, and a text without steps.
    """
    reader = _Reader(layout or load_layout("sd1"), dict(presets or {}))
    reader.read(text)
    return reader.imported(name, mapping)


def import_text(path: Path | str, *, mapping: str | None = None, presets: Path | str | None = None) -> Imported:
    """`read_notation` of the file at `path`, with the presets in another file.

        import_text("article.txt").recipe

    Raises RecipeError, naming the file.
    """
    path = Path(path)
    text = _read(path)
    known = None if presets is None else read_presets(_read(Path(presets)))
    return attempt(lambda: read_notation(text, name=path.stem, mapping=mapping, presets=known), path)


def _read(path: Path) -> str:
    data = read_text(path, RecipeError, most=_MOST_BYTES)
    try:
        # What Windows' editor writes begins with a mark that tells the encoding; without one it is UTF-8.
        utf16 = data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
        return data.decode("utf-16" if utf16 else "utf-8-sig")
    except UnicodeDecodeError as error:
        raise RecipeError(
            f"{path}: not UTF-8 text ({error.reason} at byte {error.start}); save it as UTF-8 and try again"
        ) from None


def write_notation(recipe: Recipe) -> str:
    """The recipe as text that `read_notation` reads as the same recipe, results of a fit (`similarity`) left out.

    Formulas as in the article: one line a step, its 26 numbers below it where one does not hold for all blocks.
    """
    lines = _declarations(recipe)
    for step in recipe.steps:
        formula, apart = formula_of(step, recipe.layout.blocks)
        lines.append(f"{formula} = {quoted(step.name)}")
        lines += [
            f"    {name} = {_alpha_text(alpha, recipe.layout)}" for name, alpha in step.alphas.items() if apart[name]
        ]
        if step.expect is not None:
            lines += _expected_lines(step.expect, recipe.layout)
    return "\n".join(lines) + "\n"


# --- Writing ----------------------------------------------------------------------------------------------------------


def _declarations(recipe: Recipe) -> list[str]:
    """What formulas do not say, where it is not what `read_notation` would assume."""
    lines = [f"recipe: {_json(recipe.name)}"]
    if recipe.layout.name != "sd1":
        lines.append(f"layout: {_json(recipe.layout.name)}")
    # The same numbers make another checkpoint under another mapping, so it always stands there.
    lines.append(f"mapping: {_json(recipe.mapping)}")
    known = [step.name for step in recipe.steps]
    met = [name for step in recipe.steps for name in step.inputs.values() if name not in known]
    assumed = {name: Model(_file_of(name)) for name in met}
    # Declared models are never taken for a step or a model of nearly the same name.
    steps, plain = _ByLikeness(known), {_squeezed(name) for name in recipe.models}
    clear = len(plain) == len(recipe.models) <= _MOST_COMPARED and not any(
        _near(name, step) for name in recipe.models for step in steps.like(name)
    )
    undeclared = clear and list(assumed.items()) == list(recipe.models.items())
    for name, model in () if undeclared else recipe.models.items():
        more = "" if model.license == "unknown" else f", license {_json(model.license)}"
        more += f", sha256 {_json(model.sha256)}" if model.sha256 is not None else ""
        lines.append(f"model {quoted(name)}: {_json(model.file)}{more}")
    if recipe.output != _ending(recipe.steps)[0]:
        lines.append(f"output: {_json(recipe.output)}")
    return lines


def _alpha_text(alpha: Alpha, layout: Layout) -> str:
    if alpha.free:
        return _json(alpha_as_data(alpha, layout))
    values = [alpha.at(block) for block in layout.blocks]
    return value_of(values[0]) if len(set(values)) == 1 else f"({','.join(map(value_of, values))})"


def _expected_lines(expect: Expected, layout: Layout) -> list[str]:
    standard = (expect.metric, expect.seed) == (Expected.metric, Expected.seed)
    how = "" if standard else f" ({expect.metric}, seed {expect.seed})"
    total = "" if expect.total is None else f" {_percent(expect.total)}"
    lines = [f"    Cosine similarity of {layout.describe_blocks(expect.blocks)}{how}:{total}"]
    if expect.similarities:
        lines.append("    | " + " | ".join(expect.similarities) + " |")
        lines.append("    | " + " | ".join(_percent(value) for value in expect.similarities.values()) + " |")
    return lines


def _percent(value: float) -> str:
    percents = Decimal(repr(value)) * 100
    return f"{percents.normalize():f}%" if not 0 < abs(percents) < 1e-9 else f"{percents:e}%"


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


def _file_of(name: str) -> str:
    return name if name.lower().endswith(CHECKPOINT_SUFFIXES) else f"{name}.safetensors"


def _ending(steps: Iterable[Step]) -> tuple[str, tuple[str, ...]]:
    """The step that needs the most others, the last of several; and all steps that none uses."""
    inputs = {step.name: tuple(step.inputs.values()) for step in steps}
    used = {name for needed in inputs.values() for name in needed}
    endings = tuple(name for name in inputs if name not in used) or tuple(inputs)

    def needs(name: str) -> int:
        found, queue = set[str](), [name]
        while queue:
            current = queue.pop()
            if current not in found and current in inputs:
                found.add(current)
                queue += inputs[current]
        return len(found)

    return max(reversed(endings), key=needs), endings


# --- Reading ----------------------------------------------------------------------------------------------------------


@dataclass
class _Statement:
    """A formula with its name; `symbols` are those of alpha and beta that stand in it.

    `given` are their values as written, with the lines they stand on.
    """

    line: int
    text: str
    name: str
    formula: str
    symbols: tuple[str, ...]
    given: dict[str, tuple[int, str]] = field(default_factory=dict)
    part: Part | None = None
    expect: Expected | None = None
    label: str | None = None
    indent: int = 0


class _Reader:
    def __init__(self, layout: Layout, presets: dict[str, Preset]) -> None:
        self._layout = layout
        self._presets = presets
        self._statements: list[_Statement] = []
        self._models: dict[str, Model] = {}
        self._declared: dict[str, str] = {}
        self._rejected: list[tuple[int, str, str]] = []  # line, text, why
        self._candidates: dict[int, tuple[str, ...]] = {}  # the names that a rejected line may define
        self._problems: list[str] = []
        self._warnings: list[str] = []
        self._of_step: str | None = None
        self._header: tuple[str, ...] = ()
        self._labels: dict[str, tuple[str, ...]] = {}
        self._indent = 0
        self._last: dict[str, _Statement] = {}  # the last formula with alpha, with beta
        self._orphans: list[tuple[int, str]] = []  # lines with numbers above every formula, and whose

    def read(self, text: str) -> None:
        lines = text.removeprefix("\ufeff").replace("\r\n", "\n").replace("\r", "\n").split("\n")
        if len(lines) > _MOST_LINES_OF_A_TEXT:
            raise RecipeError(f"{len(lines):,} lines; at most {_MOST_LINES_OF_A_TEXT:,} are read: leave out the prose")
        number = 0
        while number < len(lines):
            if len(lines[number]) > _LONGEST:
                if "=" in lines[number]:
                    self._reject(number + 1, lines[number], f"a line of {len(lines[number]):,} characters")
                number += 1
                continue
            line, more = _joined(lines, number)
            self._line(number + 1, lines[number], line)
            number += 1 + more
        self._parse()

    def imported(self, name: str, mapping: str | None) -> Imported:
        steps = self._steps() if not self._problems else []
        rejected = [self._reason(*line) for line in self._rejected]
        if not self._statements and not self._problems:
            self._problems = ["no formula was found; a step is a line such as A x 0.9 + B x 0.1 = TEMP1"]
        if self._problems:
            # Why a formula lacks its numbers may be told by the line that holds them.
            told = "\n".join(self._problems)
            raise RecipeError([*(reason for reason in rejected if reason not in told), *self._problems])
        defined = {step.name for step in steps}
        used = dict.fromkeys(n for step in steps for n in step.inputs.values() if n not in defined)
        models = {**self._models, **{n: Model(_file_of(n)) for n in used if n not in self._models}}
        output, endings = _ending(steps)
        if "output" in self._declared:
            output = self._declared["output"]
        elif len(endings) > 1:
            listed = ", ".join(repr(ending) for ending in endings)
            self._warnings.append(f"the text ends in {listed}; {output!r}, which needs the most steps, is the output")
        recipe = Recipe(
            name=self._declared.get("recipe", name),
            layout=self._layout,
            models=models,
            steps=tuple(steps),
            output=output,
            mapping=mapping or self._declared.get("mapping", "supermerger"),
        )
        return Imported(recipe, tuple(self._warnings), tuple(rejected))

    # What a line is

    def _line(self, number: int, raw: str, line: str) -> None:
        self._indent = len(raw) - len(raw.lstrip())
        plain = normalized(line).strip()
        if self._declaration(raw.strip()) or self._similarity(number, plain):
            return
        preset = self._preset(raw, number)
        if preset is not None:
            known = self._presets.setdefault(preset.name, preset)
            if known.numbers != preset.numbers:
                self._reject(number, raw.strip(), f"preset {preset.name!r} is another on line {known.line}")
            return
        # A comment may follow a formula; a quoted name may hold the sign.
        text = _LABEL.sub("", _BULLET.sub("", normalized(re.sub(r'\s(?:#|//)[^"]*$', "", line)))).strip()
        if text.startswith("|"):
            for cell in text.strip("|").split("|"):
                self._formula(number, cell.strip())
        elif text.startswith("#"):
            if "=" in _masked(text) and any(_is_formula(side) for side in text.lstrip("# ").split("=")):
                self._reject(number, text, "a comment or heading; take the # away to have it read")
        else:
            self._formula(number, text)

    def _formula(self, number: int, text: str) -> None:
        """A formula with a name, or an alpha, if the text is one; prose is passed over."""
        text = re.sub(r"^((?:base[ _]?)?(?:alpha|beta))\s*:\s*", r"\1 = ", text, flags=re.IGNORECASE)
        if "=" in _masked(re.sub("=>|:=", "", text)):
            if not re.match(r"\S*://", text):
                self._statement(number, text)
            return
        sides = _ARROW.split(text) if _ARROW.search(_masked(text)) else re.split(r":\s", text, maxsplit=1)
        if len(sides) == 2 and sum(map(_is_formula, sides)) == 1 and any(map(parse_name, sides)):
            self._statement(number, " = ".join(sides))
        elif _is_formula(text):
            self._reject(number, text, "a formula without a name; write = NAME behind it")

    def _declaration(self, line: str) -> bool:
        found = _DECLARED.fullmatch(line)
        if found is None:
            return False
        kind, value = found[1], unquoted(found["value"])
        if kind == "model":
            name = parse_name(found["name"])
            more = {key: unquoted(text) for key, text in _MORE.findall(found["more"])}
            if name is not None:
                self._models[name] = Model(value, more.get("license", "unknown"), more.get("sha256"))
        elif not found["name"]:
            self._declared[kind] = value
            if kind == "layout":
                self._layout = load_layout(value)
        return True

    def _preset(self, raw: str, number: int) -> Preset | None:
        preset = parse_preset(raw, number) if re.search(r"[\t:]", raw) and "=" not in raw else None
        if preset is None or len(preset.numbers) < len(self._layout.blocks) // 2:
            return None
        try:
            preset_alpha(preset, self._layout, 0.0 if len(preset.numbers) == len(self._layout.blocks) - 1 else None)
        except RecipeError as error:
            self._reject(number, raw.strip(), error.problems[0])
        return preset

    def _similarity(self, number: int, line: str) -> bool:
        line = _BULLET.sub("", line)
        if line.startswith("|") or self._header:
            return self._table(number, line)
        if len(line) > _LONGEST_PROSE:
            return False
        if found := _OF_STEP.fullmatch(line):
            self._of_step = parse_name(found["step"])
            return True
        step = self._described()
        found = _SIMILARITY.fullmatch(line)
        if found is None or step is None:
            return False
        label = found["blocks"].strip()
        try:
            blocks = self._blocks(label)
        except RecipeError:
            return False
        total = percentage(found["total"]) if found["total"] else None
        if total is not None and not -1 <= total <= 1:
            self._reject(number, line, f"{found['total']} % is no similarity")
            return True
        step.label = label
        step.expect = Expected(
            blocks,
            total=total,
            metric=found["metric"] or Expected.metric,
            seed=int(found["seed"]) if found["seed"] else Expected.seed,
        )
        return True

    def _blocks(self, label: str) -> tuple[str, ...]:
        """The blocks that `output_blocks` and the like stand for: those with attention, the middle among the inputs."""
        kind = label.lower().removesuffix("_blocks")
        if kind in ("input", "output"):
            wanted = {"input": "input,middle", "output": "output"}[kind]
            return tuple(block for block in self._layout.parse_blocks(wanted) if block in self._layout.attention)
        return self._layout.parse_blocks(label)

    def _table(self, number: int, line: str) -> bool:
        """Two rows of a table, blocks and percentages, and a line with their total."""
        cells = [cell.strip() for cell in line.strip("|").split("|")] if line.startswith("|") else []
        step = self._table_step()
        if (total := _TOTAL.fullmatch(line)) and step is not None and step.expect is not None:
            step.expect = replace(step.expect, total=percentage(total["total"]))
            self._header, self._of_step = (), None
            return True
        percents = [_PERCENT.fullmatch(cell) for cell in cells]
        if cells and self._header and len(cells) == len(self._header) and all(percents) and step is not None:
            values = dict(zip(self._header, (percentage(found[1]) for found in percents if found), strict=True))
            if not all(-1 <= value <= 1 for value in values.values()):
                self._reject(number, line, "a similarity above 100 %")
                return True
            ordered = {block: values[block] for block in self._layout.blocks if block in values}
            expect = step.expect or Expected(())
            step.expect = replace(expect, blocks=tuple(ordered), similarities=ordered)
            if step.label is not None:
                self._labels[step.label] = tuple(ordered)
            return True
        try:
            named = [self._layout.parse_blocks(cell) for cell in cells]
            self._header = tuple(block for (block,) in named)
        except (RecipeError, ValueError):
            self._header = ()
        return bool(cells) and bool(self._header)

    def _table_step(self) -> _Statement | None:
        named = next((step for step in reversed(self._statements) if step.name == self._of_step), None)
        return named or self._described()

    def _described(self) -> _Statement | None:
        """The formula that this line says something of: the last one indented less, else the last."""
        above = (step for step in reversed(self._statements) if step.indent < self._indent)
        return next(above, self._statements[-1] if self._statements else None)

    def _statement(self, number: int, text: str) -> None:
        masked = _masked(text)
        given: dict[str, tuple[int, str]] = {}
        rest, end = "", 0
        for found in _ASSIGNED.finditer(masked):
            name, kind = (found["name"], "value") if found["name"] else (found["symbol"], "list")
            given[name.lower().replace(" ", "_")] = (number, text[slice(*found.span(kind))])
            # The symbol itself belongs to the formula where its numbers just follow it: `x alpha (1.0, ...)`.
            rest, end = rest + text[end : found.start()] + (f" {name} " if kind == "list" else ""), found.end()
        rest = re.sub(r"\s*[.;,]+$", "", rest + text[end:]).strip()
        if not rest or (given and set(rest.lower().split()) <= {"alpha", "beta"}):
            self._assign(number, text, given)
            return
        marks = [place for place, sign in enumerate(_masked(rest)) if sign == "="]
        ends = [-1, *marks, len(rest)]
        sides = [rest[before + 1 : after] for before, after in itertools.pairwise(ends)]
        names = [parse_name(side) for side in sides]
        self._candidates[number] = tuple(name for name in names if name)
        if len(sides) != 2 or not any(names):
            self._reject(
                number, text, "a step is a formula, `=` and a name" if len(sides) == 2 else "more than one `=`"
            )
            return
        if all(names):
            self._reject(number, text, "a second name for a model; there is nothing to merge")
            return
        place = 0 if names[0] else 1
        if given and not re.search("alpha|beta", _masked(sides[1 - place]), re.IGNORECASE):
            self._reject(number, text, "numbers for an alpha that the formula does not have")
            return
        formula = sides[1 - place]
        symbols = tuple(symbol for symbol in ("alpha", "beta") if symbol in _masked(formula).lower())
        if len(self._statements) == MOST_STEPS:
            raise RecipeError(f"line {number}: more than {MOST_STEPS:,} steps; a recipe has at most {MOST_STEPS:,}")
        statement = _Statement(number, text, names[place] or "", formula, symbols, given, indent=self._indent)
        self._statements.append(statement)
        self._last |= dict.fromkeys(symbols, statement)

    def _assign(self, number: int, text: str, given: Mapping[str, tuple[int, str]]) -> None:
        """Numbers on a line of their own belong to the last formula with that symbol in it."""
        for name, value in given.items():
            symbol = "beta" if name.endswith("beta") else "alpha"
            field_name = f"base_{symbol}" if name.startswith("base") else symbol
            step = self._last.get(symbol)
            if step is None:
                self._orphans.append((number, symbol))
                self._reject(number, text, f"no formula above has {symbol} in it")
            elif field_name in step.given:
                earlier = step.given[field_name][0]
                self._reject(number, text, f"{step.name!r} has its {field_name} from line {earlier} already")
            else:
                step.given[field_name] = value

    def _reject(self, number: int, text: str, why: str) -> None:
        self._rejected.append((number, text, why))

    @staticmethod
    def _reason(number: int, text: str, why: str) -> str:
        shown = text if len(text) <= 100 else text[:97] + "..."
        return f"line {number}: not understood: {why}, in {shown!r}" if why not in shown else f"line {number}: {why}"

    # What the formulas say

    def _parse(self) -> None:
        known = KnownNames(statement.name for statement in self._statements)
        understood: list[_Statement] = []
        for statement in self._statements:
            try:
                statement.part = interpret(parse_formula(statement.formula, known))
                understood.append(statement)
            except NotUnderstood as error:
                self._reject(statement.line, statement.text, str(error))
                self._candidates[statement.line] = (statement.name,)
        for line, symbol in self._orphans:
            later = next((one for one in understood if one.line > line and symbol in one.symbols), None)
            if later is not None:
                self._problems.append(
                    f"line {line}: {symbol} stands above the formula of line {later.line}; "
                    "write it below the formula that it belongs to"
                )
        self._statements = self._distinct(understood)
        self._rejected.sort()
        self._resolve()
        defined = {statement.name for statement in self._statements}
        needed = {name: s.line for s in reversed(self._statements) for name in _names(s.part) if name not in defined}
        for line, text, why in self._rejected:
            for name in self._candidates.get(line, ()):
                if name in needed:
                    reason = self._reason(line, text, why)
                    self._problems.append(f"{reason}; line {needed[name]} needs {name!r}, which it defines")

    def _distinct(self, statements: Sequence[_Statement]) -> list[_Statement]:
        first: dict[str, _Statement] = {}
        for statement in statements:
            known = first.setdefault(statement.name, statement)
            if known is not statement and (known.part, known.given) != (statement.part, statement.given):
                self._problems.append(
                    f"line {statement.line}: {statement.name!r} is defined otherwise on line {known.line}; "
                    "a step has one name"
                )
        return list(first.values())

    def _resolve(self) -> None:
        """Near-miss names: a step that nobody uses, where a later formula uses almost its name."""
        places = {statement.name: place for place, statement in enumerate(self._statements)}
        first: dict[str, int] = {}
        beside: dict[str, set[str]] = {}
        for place, statement in enumerate(self._statements):
            names = _names(statement.part)
            for name in names:
                first.setdefault(name, place)
                beside.setdefault(name, set()).update(names)
        renamed: dict[str, str] = {}
        spare = _ByLikeness(name for name in places if name not in first)
        sources = _ByLikeness([])
        for name in [name for name in first if name not in places and name not in self._models]:
            # Used before the step was there, or in making it: then it is a model of its own.
            near = next(
                (
                    step
                    for step in itertools.islice(spare.like(name), _MOST_COMPARED)
                    if places[step] < first[name] and _near(name, step)
                ),
                None,
            )
            if near is not None:
                spare.discard(near)
                renamed[name] = near
                line = self._statements[first[name]].line
                self._warnings.append(f"line {line}: {name!r} is taken for the step {near!r}, which no formula uses")
                continue
            # Two models of one formula are two models.
            twin = next((other for other in sources.same(name) if other not in beside[name]), None)
            if twin is None:
                sources.add(name)
            else:
                renamed[name] = twin
                line = self._statements[first[name]].line
                self._warnings.append(f"line {line}: {name!r} is taken for the model {twin!r}")
        for statement in self._statements:
            if statement.part is not None:
                statement.part = _renamed(statement.part, renamed)

    def _steps(self) -> list[Step]:
        steps: list[Step] = []
        taken = {statement.name for statement in self._statements} | {
            name for statement in self._statements for name in _names(statement.part)
        }
        for statement in self._statements:
            try:
                symbols = [name for name in ("alpha", "beta") if name in statement.given]
                alphas: dict[str, Alpha] = {name: self._given(statement, name) for name in symbols}
                assert statement.part is not None
                steps += self._built(statement, statement.name, statement.part, alphas, taken)
            except RecipeError as error:
                self._problems += error.problems
        return steps

    def _given(self, statement: _Statement, symbol: str) -> Alpha:
        line, text = statement.given[symbol]
        where = f"line {line}: {statement.name}.{symbol}"
        base_line, base_text = statement.given.get(f"base_{symbol}", (line, ""))
        try:
            base = _value(base_text) if base_text else None
        except ValueError:
            raise RecipeError(
                f"line {base_line}: base_{symbol}: received {shown(base_text)}; must be a number"
            ) from None
        inner = re.sub(r"^[(\[]\s*|\s*[)\]]$", "", text.strip())
        try:
            numbers = [_value(item) for item in inner.removesuffix(",").split(",")]
        except ValueError:
            return self._other_alpha(text.strip(), base, where)
        if not all(math.isfinite(number) for number in (*numbers, base or 0.0)):
            raise RecipeError(f"{where}: received {shown(text.strip())}; must be finite numbers")
        if len(numbers) == 1 and not inner.endswith(","):
            rest = dict.fromkeys(self._layout.blocks, numbers[0])
            return Alpha(rest if base is None else rest | {self._layout.blocks[0]: base})
        return attempt(lambda: numbered_alpha(self._layout, numbers, base, base_name=f"base_{symbol}"), where)

    def _other_alpha(self, text: str, base: float | None, where: str) -> Alpha:
        if re.fullmatch(r"[A-Za-z][^{}]*:\s*[-\d.]+\s*", text):
            text = f"{{{text}}}"
        if text.startswith("{"):
            try:
                value = yaml_of(text)
            except Exception:  # a broken text fails in many ways, not all of them ruamel's own
                raise RecipeError(f"{where}: received {shown(text)}; not readable as a mapping of blocks") from None
            return read_alpha(value, self._layout, where, base)
        name = parse_name(text) or text
        if name in self._presets:
            return attempt(lambda: preset_alpha(self._presets[name], self._layout, base), where)
        known = f"; presets are {', '.join(self._presets)}" if self._presets else ""
        raise RecipeError(
            f"{where}: received {shown(text)}; must be {len(self._layout.blocks)} numbers in parentheses, one number, "
            f"or the name of a preset{known}"
        )

    def _built(
        self, statement: _Statement, name: str, part: Part, alphas: Mapping[str, Alpha], taken: set[str]
    ) -> list[Step]:
        """The steps of a formula, those in its parentheses first."""
        steps: list[Step] = []
        inputs: dict[str, str] = {}
        for place, operand in part.inputs.items():
            if isinstance(operand, str):
                inputs[place] = operand
                continue
            number = next(n for n in itertools.count(1) if f"{statement.name}_{n}" not in taken)
            inner = f"{statement.name}_{number}"
            taken.add(inner)
            steps += self._built(statement, inner, operand, alphas, taken)
            inputs[place] = inner
        alpha = self._alpha(statement, part.alpha, alphas)
        beta = None if part.beta is None else self._alpha(statement, part.beta, alphas)
        expect = statement.expect if name == statement.name else None
        if expect is not None and statement.label in self._labels and not expect.similarities:
            expect = replace(expect, blocks=self._labels[statement.label])
        return [*steps, Step(name, part.mode, inputs["a"], inputs["b"], inputs.get("c"), alpha, beta, expect)]

    def _alpha(self, statement: _Statement, factor: Factor, alphas: Mapping[str, Alpha]) -> Alpha:
        if missing := [symbol for symbol in sorted(factor.symbols) if symbol not in alphas]:
            raise RecipeError(
                f"line {statement.line}: {statement.name}.{missing[0]}: never given; "
                f"write {missing[0]} = ({len(self._layout.blocks)} numbers) below the formula"
            )
        if factor.symbol is not None:
            return alphas[factor.symbol]
        if any(alphas[symbol].free for symbol in factor.symbols):
            raise RecipeError(f"line {statement.line}: {statement.name}: a free alpha must stand alone as a factor")

        def value(block: str) -> float:
            try:
                number = factor(*(alphas[s].at(block) if s in factor.symbols else 0.0 for s in ("alpha", "beta")))
            except (OverflowError, ValueError):  # as powers and sums of enormous numbers end
                number = math.inf
            if not math.isfinite(number):
                raise RecipeError(f"line {statement.line}: {statement.name}: the factor of {block} is not finite")
            return number

        return Alpha({block: value(block) for block in self._layout.blocks})


def _joined(lines: Sequence[str], start: int) -> tuple[str, int]:
    """The line at `start`, and how many more belong to it because a formula or a list of numbers runs on over them."""
    line, more = lines[start], 0
    while more < _MOST_LINES and start + more + 1 < len(lines):
        following = lines[start + more + 1]
        if not following.strip() or not _runs_on(line, following):
            break
        line, more = f"{line.rstrip()} {following.strip()}", more + 1
    return line, more


def _runs_on(line: str, following: str) -> bool:
    """Whether the next line belongs to the formula or the numbers of this one."""
    if len(line) > _LONGEST_LINE or (line.isascii() and not re.search("[=x*(+]", line)):
        return False
    text, after = _masked(normalized(line).strip()), normalized(following).strip()
    has_sign = "=" in text
    if re.search(r"(?:[+*=]|\s[-x])$", text) and (has_sign or re.search(r"\sx\s|[*(]", text)):
        return True
    opened = sum(text.count(sign) for sign in "([{") - sum(text.count(sign) for sign in ")]}")
    if has_sign and opened > 0 and re.match(r"[-+*\d.(\[]|x\s", after):
        return True
    if re.search(r"(?:alpha|beta)\s*[=:][-\d.,\se]*,$", text, re.IGNORECASE) and re.match(r"-?\.?\d", after):
        return True
    # A formula that stands behind its name may go on with a sign; `- ` may also begin the next point of a list.
    last = text.rsplit("=", 1)[-1]
    return (
        has_sign
        and re.match(r"[-+*]\s*\S|x\s", after) is not None
        and "=" not in _masked(after)
        and parse_name(last) is None
        and _is_formula(last)
        and _is_formula(f"A {after}")
    )


def _is_formula(text: str) -> bool:
    """Whether normalized `text` is models with factors, or differences, and not a name or prose."""
    if len(text) > _LONGEST_LINE or not re.search(r"[*(%]|\bx|\dx", text, re.IGNORECASE):
        return False
    try:
        terms = parse_formula(text).terms
    except NotUnderstood:
        return False
    return any(not isinstance(operand, str) or not factor.equals(1) for factor, operand in terms)


def _value(text: str) -> float:
    """A number, or a percentage. Raises ValueError for other texts."""
    text = text.strip()
    return float(text[:-1]) / 100 if text.endswith("%") else float(text)


def _masked(text: str) -> str:
    """`text` with everything in quotation marks blotted out, letter by letter."""
    return re.sub(QUOTED, lambda found: '"' + "_" * (len(found[0]) - 2) + '"', text)


def _names(part: Part | None) -> list[str]:
    if part is None:
        return []
    return [
        name
        for operand in part.inputs.values()
        for name in ([operand] if isinstance(operand, str) else _names(operand))
    ]


def _renamed(part: Part, names: Mapping[str, str]) -> Part:
    inputs = {
        place: names.get(operand, operand) if isinstance(operand, str) else _renamed(operand, names)
        for place, operand in part.inputs.items()
    }
    return replace(part, inputs=inputs)


class _ByLikeness:
    """Names by how they begin and how long they are, so that few have to be compared with another."""

    def __init__(self, names: Iterable[str]) -> None:
        self._names: dict[tuple[str, int], dict[str, None]] = {}
        for name in names:
            self.add(name)

    def add(self, name: str) -> None:
        self._names.setdefault(self._key(name), {})[name] = None

    def discard(self, name: str) -> None:
        self._names[self._key(name)].pop(name, None)

    def like(self, name: str) -> Iterator[str]:
        """Names that begin alike and are about as long."""
        start, length = self._key(name)
        for off in (0, 1, -1, 2, -2):
            yield from self._names.get((start, length + off), ())

    def same(self, name: str) -> Iterator[str]:
        """Names of the same letters and numbers."""
        squeezed = _squeezed(name)
        return (other for other in self._names.get(self._key(name), ()) if squeezed and _squeezed(other) == squeezed)

    @staticmethod
    def _key(name: str) -> tuple[str, int]:
        squeezed = _squeezed(name)
        return squeezed[:4], len(squeezed)


@lru_cache(maxsize=10_000)
def _squeezed(name: str) -> str:
    """The letters and numbers of a name: v1.1 is not v11, but Any_V3 is any-v3."""
    return re.sub(r"[\W_]+", "", re.sub(r"(?<=\d)[\W_]+(?=\d)", "ˑ", name)).casefold()


def _near(used: str, defined: str) -> bool:
    """Whether one is likely meant by the other: a few letters missing at the end, or a slip of the pen."""
    one, other = _squeezed(used), _squeezed(defined)
    if one == other != "":
        return True
    shorter, longer = sorted((one, other), key=len)
    if longer.startswith(shorter) and len(shorter) >= 4 and len(longer) - len(shorter) <= 2:
        return True
    same_numbers = re.findall(r"\d+", one) == re.findall(r"\d+", other)
    return same_numbers and difflib.SequenceMatcher(None, one, other).ratio() >= 0.9
