"""SuperMerger's notation: recipes as people write them into articles and model cards, read line by line, prose and all.

What counts are steps, in whatever words (see `statements`), in tables and on SuperMerger's console; the numbers that
belong to them, presets, and reported similarities. Nothing that looks like a step is passed over: a line is read, or
named with the reason why it is not.
"""

import math
import re
from collections import ChainMap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from optimizer.errors import RecipeError
from optimizer.families import Layout, load_layout
from optimizer.interchange.notation.console import (
    ReadStep,
    console_block,
    console_step,
    history_step,
    is_history_row,
    named_file,
)
from optimizer.interchange.notation.formula_texts import is_formula, with_alpha
from optimizer.interchange.notation.formulas import Part, names_in, read_formula, renamed
from optimizer.interchange.notation.lines import LONGEST_LINE, MOST_LINES, is_key, joined_lines
from optimizer.interchange.notation.methods import find_method
from optimizer.interchange.notation.model_mixer import mixer_line
from optimizer.interchange.notation.reported import ReportedSimilarities
from optimizer.interchange.notation.statement_names import StatementNames
from optimizer.interchange.notation.statement_steps import StepBuilder
from optimizer.interchange.notation.statements import (
    SIGN,
    Assigned,
    Read,
    Refused,
    Said,
    SameAs,
    Statement,
    label_of,
    read_statement,
    sides_of,
    symbols_in,
)
from optimizer.interchange.notation.tables import (
    Table,
    cells_of,
    is_row,
    is_rule,
    row_by_position,
    step_of_row,
    table_at,
)
from optimizer.interchange.notation.tokens import (
    CIRCLED,
    QUOTED,
    KnownNames,
    NotUnderstood,
    masked,
    normalized,
    parse_name,
    unquoted,
    without_markup,
)
from optimizer.interchange.notation.unread import looks_like_step, mentions, reason
from optimizer.interchange.notation.writing import ending_of, file_of, write_notation
from optimizer.recipes import MOST_STEPS, Model, Preset, Recipe, Step, built_in_presets, parse_preset, preset_alpha

__all__ = ["Imported", "read_notation", "write_notation"]

_BULLET = re.compile(r"^\s*(?:>\s*)*(?:(?:[•◦▪●○■□‣·*+-]|\d{1,3}[.)]|\(\d{1,3}\)|\[\d{1,3}\]|[A-Za-z]\))\s+)?")
_LABEL = re.compile(rf"^[^\W\d_][\w ]{{0,30}}:\s+(?=.*(?:{SIGN.pattern}))")
_DECLARED = re.compile(
    rf"(recipe|layout|mapping|output|model) ?(?P<name>{QUOTED}|[^\":]*?)\s*:\s*(?P<value>{QUOTED})(?P<more>.*)"
)
_MORE = re.compile(rf",\s*(license|sha256)\s+({QUOTED})")
_OPERATION = re.compile(r"[+*@×]|(?<!\w)[xX](?!\w)|\s-\s|\d\s*%")  # noqa: RUF001
_CALL = re.compile(r"\w\s*\([^(),]*,[^()]*\)")
_MOST_LINES_OF_A_TEXT = 20_000
_MOST_LISTED = 6  # names in one warning


@dataclass(frozen=True)
class Imported:
    """What was read: the recipe, what had to be interpreted or guessed, and lines that look like steps and are none."""

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
    """Return the recipe in a text of formulas, tables and prose. `presets` are alphas that it may name.

    `mapping` is the recipe's, whatever the text says; by default what the text declares, else supermerger (for a line
    of model-mixer's: model-mixer).

    Names that no formula defines are the sources: the file is the name, with .safetensors. Steps may come in any order.
    Of several steps that no other uses, the output is the one that needs the most steps.

    Raises RecipeError, each problem with its line, for numbers of a wrong count, a step that lacks its alpha, a line
    that is not understood but defines a name that others use or goes on from what would be the output, a name defined
    in two ways, and a text without steps.
    """
    reader = _Reader(layout or load_layout("sd1"), dict(presets or {}))
    reader.read(text)
    return reader.imported(name, mapping)


@dataclass(frozen=True)
class _Rejected:
    """A line that looks like a step, why it is none, and the names that it may define."""

    line: int
    text: str
    why: str
    names: tuple[str, ...] = ()
    remark: bool = False

    def __str__(self) -> str:
        return reason(self.line, self.text, self.why)

    def goes_on_from(self, output: str) -> bool:
        """Whether the line would make something of a step and other models, and is no remark on it."""
        if self.text.startswith("#") or not mentions(self.text, output):
            return False
        if is_row(self.text):
            return bool(self.names) and not self.remark
        text = normalized(self.text)
        signed, multiplied = SIGN.search(text) is not None, _OPERATION.search(text) is not None
        if not self.remark and (signed or (multiplied and self.names)) and (multiplied or _CALL.search(text)):
            return True
        sides = list(sides_of(text))
        taking = [re.search(r"\d", side.replace(output, "")) is not None and mentions(side, output) for side in sides]
        return len(sides) == 2 and sum(taking) == 1 and parse_name(sides[taking.index(False)]) is not None


class _Reader:
    def __init__(self, layout: Layout, presets: dict[str, Preset]) -> None:
        self._layout = layout
        self._presets = presets
        self._statements: list[Statement] = []
        self._models: dict[str, Model] = {}
        self._files: dict[str, str] = {}  # of models that stand in the text with a hash or an extension
        self._declared: dict[str, str] = {}
        self._rejected: list[_Rejected] = []
        self._problems: list[str] = []
        self._notes: list[tuple[int, str]] = []
        self._reported = ReportedSimilarities(layout, self._statements, self._reject)
        self._indent = 0
        self._last: dict[str, Statement] = {}  # the last formula with alpha, with beta
        self._orphans: list[tuple[int, str]] = []  # lines with numbers above every formula, and whose
        self._passed: list[tuple[int, str]] = []  # lines of which nothing was read
        self._labelled: dict[str, tuple[int, str]] = {}  # presets `name: numbers`, which may be something else
        self._mixer_lines: list[int] = []
        self._same: list[tuple[int, str, SameAs]] = []
        self._preset_names = ChainMap[str, object](self._presets, dict(built_in_presets()))  # type: ignore[arg-type]

    def read(self, text: str) -> None:
        lines = text.removeprefix("\ufeff").replace("\r\n", "\n").replace("\r", "\n").split("\n")
        if len(lines) > _MOST_LINES_OF_A_TEXT:
            raise RecipeError(f"{len(lines):,} lines; at most {_MOST_LINES_OF_A_TEXT:,} are read: leave out the prose")
        number = 0
        while number < len(lines):
            number += self._too_long(lines, number) or self._block(lines, number) or self._single(lines, number)
        self._parse()

    def imported(self, name: str, mapping: str | None) -> Imported:
        builder = StepBuilder(self._layout, self._presets, self._reported.labels)
        steps = [] if self._problems else builder.steps(self._statements)
        self._notes += builder.notes
        self._problems += builder.problems
        for label, (line, text) in self._labelled.items():
            if label not in builder.used:
                self._rejected.append(_Rejected(line, text, "numbers that no alpha takes by this name", remark=True))
        self._rejected.sort(key=lambda rejected: rejected.line)
        if not self._statements and not self._problems:
            self._problems = ["no formula was found; a step is a line such as A x 0.9 + B x 0.1 = TEMP1"]
        output = "" if self._problems else self._output(steps)
        self._problems += [] if self._problems else self._going_on(output)
        if self._problems:
            # Why a formula lacks its numbers may be told by the line that holds them.
            told = "\n".join(self._problems)
            raise RecipeError([*(text for text in map(str, self._rejected) if text not in told), *self._problems])
        defined = {step.name for step in steps}
        used = dict.fromkeys(n for step in steps for n in step.inputs.values() if n not in defined)
        models = {
            **self._models,
            **{n: Model(self._files.get(n) or file_of(n)) for n in used if n not in self._models},
        }
        recipe = Recipe(
            name=self._declared.get("recipe", name),
            layout=self._layout,
            models=models,
            steps=tuple(steps),
            output=output,
            mapping=mapping or self._declared.get("mapping") or self._mixer_mapping(steps),
        )
        notes = [
            f"line {line}: {text}" if line else text
            for line, text in sorted(self._notes, key=lambda note: note[0] or math.inf)
        ]
        return Imported(recipe, tuple(dict.fromkeys(notes)), tuple(map(str, self._rejected)))

    def _output(self, steps: Sequence[Step]) -> str:
        if "output" in self._declared:
            return self._declared["output"]
        output, endings = ending_of(steps)
        if len(endings) > 1:
            listed = ", ".join(map(repr, endings[:_MOST_LISTED]))
            more = f" and {len(endings) - _MOST_LISTED} more" if len(endings) > _MOST_LISTED else ""
            self._notes.append(
                (0, f"the text ends in {listed}{more}; {output!r}, which needs the most steps, is the output")
            )
        return output

    def _going_on(self, output: str) -> list[str]:
        """A problem for each line that would make another step of the output, and is not understood."""
        defined = {statement.name for statement in self._statements}
        return [
            f"{line}; it goes on from {output!r}, and the recipe would end a step too early: write it otherwise, or "
            "take the line out"
            for line in self._rejected
            if line.goes_on_from(output) and not (line.names and defined.issuperset(line.names))
        ]

    def _mixer_mapping(self, steps: Sequence[Step]) -> str:
        """The mapping of a text: model-mixer's where the numbers are its own."""
        if not self._mixer_lines:
            return "supermerger"
        line = self._mixer_lines[0]
        if len(self._mixer_lines) < len(self._statements):
            self._notes.append(
                (line, "model-mixer's numbers stand beside others; the mapping is supermerger, see --mapping")
            )
            return "supermerger"
        if all(len(set(alpha.values.values())) == 1 for step in steps for alpha in step.alphas.values()):
            return "supermerger"  # without block weights it merges everything, the VAE too
        self._notes.append((line, "the mapping is model-mixer, whose line this is"))
        return "model-mixer"

    # --- What lines are ---

    def _too_long(self, lines: Sequence[str], number: int) -> int:
        line = lines[number]
        if len(line) <= LONGEST_LINE:
            return 0
        if "=" in line or any(sign.isdigit() for sign in line):
            self._reject(number + 1, line, f"a line of {len(line):,} characters")
        return 1

    def _block(self, lines: Sequence[str], number: int) -> int:
        """Read a table of steps or SuperMerger's console; return how many lines it takes, 0 if there is none."""
        line = lines[number]
        if is_history_row(line):
            return self._history(lines, number)
        block = console_block(lines, number)
        if block is not None:
            settings, count = block
            self._add_read(number + 1, line, lambda where: console_step(settings, self._layout, where))
            return count
        table = table_at(lines, number)
        return 0 if table is None else self._table(lines, number, table)

    def _history(self, lines: Sequence[str], number: int) -> int:
        """A row of SuperMerger's history; values in quotation marks may run on over lines."""
        row, count = lines[number], 1
        while row.count('"') % 2 and count < MOST_LINES and number + count < len(lines):
            row, count = f"{row}\n{lines[number + count]}", count + 1
        self._add_read(number + 1, lines[number], lambda where: history_step(row, self._layout, where))
        return count

    def _table(self, lines: Sequence[str], number: int, table: Table) -> int:
        end = number + table.head
        while end < len(lines) and "|" in lines[end] and len(lines[end]) <= LONGEST_LINE:
            if not is_rule(lines[end]):
                self._row(end + 1, lines[end], step_of_row(lines[end], table), number)
            end += 1
        return end - number

    def _row(self, line: int, text: str, read: ReadStep | Refused | None, table: int | None = None) -> bool:
        if isinstance(read, Refused):
            self._reject(line, text.strip(), read.why, read.names)
        elif read is not None:
            self._add_step(line, text.strip(), read, table)
        return read is not None

    def _add_read(self, line: int, text: str, read: Callable[[str], ReadStep | None]) -> None:
        try:
            step = read("")
        except RecipeError as error:
            self._reject(line, text.strip(), error.problems[0])
            return
        if step is not None:
            self._add_step(line, text.strip(), step)

    def _add_step(self, line: int, text: str, read: ReadStep, table: int | None = None) -> None:
        given = {name: (line, value) for name, value in read.given.items()}
        self._files = {**read.files, **self._files}
        self._notes += [(line, note) for note in read.notes]
        self._append(Statement(line, text, read.name, given=given, part=read.part, table=table))

    def _single(self, lines: Sequence[str], number: int) -> int:
        line, more = joined_lines(lines, number)
        if not self._line(number + 1, lines[number], line) and line.strip():
            self._passed.append((number + 1, without_markup(line).strip()))
        return 1 + more

    def _line(self, number: int, raw: str, line: str) -> bool:
        """Read a line; return whether it was of any use."""
        self._indent = len(raw) - len(raw.lstrip())
        line = without_markup(line)
        plain = normalized(line).strip()
        if self._declaration(raw.strip()) or self._reported.read(number, _BULLET.sub("", plain), self._indent):
            return True
        preset = self._preset(raw, number)
        if preset is not None:
            known = self._presets.setdefault(preset.name, preset)
            if "\t" not in raw:
                self._labelled[preset.name] = (number, raw.strip())
            if known.numbers != preset.numbers:
                self._reject(number, raw.strip(), f"preset {preset.name!r} is another on line {known.line}")
            return True
        if is_row(plain) or "\t" in raw.strip():
            if self._row(number, raw, row_by_position(raw)):
                return True
            if is_row(plain):
                cells = [self._formula(number, normalized(cell), cell=True) for cell in cells_of(raw)]
                return any(cells) or is_rule(raw)
        # A comment may follow a formula; a quoted name may hold the sign.
        text = _BULLET.sub("", normalized(re.sub(r'\s(?:#|//)[^"]*$', "", line))).strip()
        if text.startswith("#"):
            return self._heading(number, text)
        return self._formula(number, text)

    def _heading(self, number: int, text: str) -> bool:
        if "=" not in masked(text) or not any(is_formula(side) for side in text.lstrip("# ").split("=")):
            return False
        self._reject(number, text, "a comment or heading; take the # away to have it read")
        return True

    def _formula(self, number: int, text: str, *, cell: bool = False) -> bool:
        """Read a step or numbers; return whether the text is either, or looks like it."""
        mixed = mixer_line(text)
        if mixed is not None:
            self._mixer_lines += [number] if isinstance(mixed, Said) else []
            return self._take(number, text, mixed)
        # A number in a circle before a formula counts the line, or is its first model.
        text = re.sub(f"^([{CIRCLED}])(?=\\w)", r"\1 ", text)
        alias, rest = label_of(text)
        said = self._read(rest if alias is not None and not re.match(f"[{CIRCLED}]", alias) else text)
        if alias is not None and re.match(f"[{CIRCLED}]", alias):
            if self._makes_sense(said):
                alias = None
            else:
                said = self._read(rest)
        if cell and isinstance(said, Refused):
            return False
        return self._take(number, text, said, alias)

    def _read(self, text: str) -> Read:
        label = _LABEL.match(text)
        if label is None:
            return read_statement(text, self._preset_names)
        # "MIX: Weighted sum (A, B, M=0.3)" begins with its name; "Add diff: alpha = ..." with a word that says nothing.
        method = find_method(masked(text))
        whole = None if method is None or method.number is None else read_statement(text, self._preset_names)
        return whole if isinstance(whole, Said) else read_statement(text[label.end() :], self._preset_names)

    @staticmethod
    def _makes_sense(said: Read) -> bool:
        """Whether a line can be left as it is: with a label before it its formula would be none."""
        if isinstance(said, Said):
            counted = re.match(f"[{CIRCLED}] ", said.name or "")
            return is_formula(said.formula) and counted is None
        return isinstance(said, Assigned)

    def _take(self, number: int, text: str, said: Read, alias: str | None = None) -> bool:
        match said:
            case Refused(why, names):
                self._reject(number, text, why, names)
            case Assigned():
                self._assign(number, text, said)
            case SameAs():
                self._same.append((number, text, said))
            case Said(name, formula, given, tentative, notes):
                self._notes += [(number, note) for note in notes]
                values = {field: (number, value) for field, value in given.items()}
                symbols = symbols_in(formula)
                if name is None and alias is not None:
                    name, alias = alias, None
                self._append(Statement(number, text, name, formula, symbols, values, alias=alias, tentative=tentative))
        return said is not None

    def _append(self, statement: Statement) -> None:
        if len(self._statements) == MOST_STEPS:
            raise RecipeError(
                f"line {statement.line}: more than {MOST_STEPS:,} steps; a recipe has at most {MOST_STEPS:,}"
            )
        statement.indent = self._indent
        self._statements.append(statement)
        self._last |= dict.fromkeys(statement.symbols, statement)

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
                self._layout = self._reported.layout = load_layout(value)
        return True

    def _preset(self, raw: str, number: int) -> Preset | None:
        preset = parse_preset(raw, number) if re.search(r"[\t:]", raw) and "=" not in raw else None
        if preset is None or len(preset.numbers) < len(self._layout.blocks) // 2 or is_key(preset.name):
            return None
        try:
            preset_alpha(preset, self._layout, 0.0 if len(preset.numbers) == len(self._layout.blocks) - 1 else None)
        except RecipeError as error:
            self._reject(number, raw.strip(), error.problems[0])
        return preset

    def _assign(self, number: int, text: str, assigned: Assigned) -> None:
        """Numbers on a line of their own belong to the last formula with that symbol in it."""
        for name, value in assigned.values.items():
            symbol = name.removeprefix("base_")
            step = self._without_numbers(symbol, name) or self._last.get(symbol)
            if step is None:
                self._orphans.append((number, symbol))
                self._reject(number, text, f"no formula above has {symbol} in it")
            elif name in step.given:
                earlier = step.given[name][0]
                self._reject(number, text, f"{step.name!r} has its {name} from line {earlier} already")
            else:
                step.given[name] = (number, value)
                if assigned.alone:
                    self._notes.append((number, f"numbers by themselves are read as {symbol} of line {step.line}"))

    def _without_numbers(self, symbol: str, name: str) -> Statement | None:
        """The formula right above, if it is two or three models without a number, and the numbers are another's if not
        its own: it then has the alpha that they are."""
        above, last = self._statements[-1] if self._statements else None, self._last.get(symbol)
        if (
            above is None
            or above.part is not None
            or symbol != "alpha"
            or (last is not None and name not in last.given)
        ):
            return None
        whole = with_alpha(above.formula)
        if whole is None:
            return None
        self._notes.append((above.line, f"{above.formula} with the numbers below is read as {whole}"))
        above.formula, above.symbols, above.tentative = whole, symbols_in(whole), False
        self._last["alpha"] = above
        return above

    def _reject(self, number: int, text: str, why: str, names: tuple[str, ...] = ()) -> None:
        self._rejected.append(_Rejected(number, text, why, names))

    # --- What they say ---

    def _parse(self) -> None:
        accepted = self._accepted(self._readings())
        names = StatementNames(accepted, self._models, self._same, self._reject)
        self._statements[:] = names.settle()
        self._notes += names.notes
        for line, symbol in self._orphans:
            later = next((one for one in self._statements if one.line > line and symbol in one.symbols), None)
            if later is not None:
                self._problems.append(
                    f"line {line}: {symbol} stands above the formula of line {later.line}; "
                    "write it below the formula that it belongs to"
                )
        self._problems += names.problems
        self._name_the_unread()
        self._rejected.sort(key=lambda rejected: rejected.line)
        defined = {statement.name for statement in self._statements}
        needed = {name: s.line for s in reversed(self._statements) for name in names_in(s.part) if name not in defined}
        for rejected in self._rejected:
            for name in rejected.names:
                if name in needed:
                    self._problems.append(f"{rejected}; line {needed[name]} needs {name!r}, which it defines")

    def _readings(self) -> list[tuple[Statement, tuple[str, ...]]]:
        """The statements that make sense, each with the notes on its formula; the others are named."""
        known = KnownNames(
            name
            for statement in self._statements
            for name in (statement.name, statement.alias, *names_in(statement.part))
            if name is not None
        )
        readings: list[tuple[Statement, tuple[str, ...]]] = []
        for statement in self._statements:
            if statement.part is not None:
                readings.append((statement, ()))
                continue
            try:
                reading = read_formula(statement.formula, known)
            except NotUnderstood as error:
                self._refuse(statement, str(error))
                continue
            statement.part, hashes = reading.part, dict(reading.hashes)
            if statement.line in self._mixer_lines:
                statement.part, hashes = self._by_title(reading.part, hashes), {}
            self._files = {**{name: f"{file_of(name)} [{digits}]" for name, digits in hashes.items()}, **self._files}
            readings.append((statement, reading.notes))
        return readings

    def _by_title(self, part: Part, hashes: Mapping[str, str]) -> Part:
        """The part with models named without extension and hash, which model-mixer writes; files keep both."""
        titles = {name: f"{name} [{hashes[name]}]" if name in hashes else name for name in names_in(part)}
        found = {name: named_file(title) for name, title in titles.items()}
        self._files |= {name: file for name, file in found.values() if file is not None}
        return renamed(part, {name: short for name, (short, _) in found.items()})

    def _refuse(self, statement: Statement, why: str) -> None:
        if statement.tentative:
            self._passed.append((statement.line, statement.text))
        elif statement.name is None:
            self._reject(statement.line, statement.text, "a formula without a name; write = NAME behind it")
        else:
            self._reject(statement.line, statement.text, why, (statement.name,))

    def _accepted(self, readings: Sequence[tuple[Statement, tuple[str, ...]]]) -> list[Statement]:
        """The statements without those that only look like one.

        A formula without a name, or without a number, is a step if it has to do with one that is sure.
        """
        sure = [statement for statement, _ in readings if _is_sure(statement)]
        known = {name for one in sure for name in (one.name, one.alias, *names_in(one.part)) if name is not None}
        doubtful = [statement for statement, _ in readings if not _is_sure(statement)]
        while joining := [one for one in doubtful if not sure or known.intersection((one.name, *names_in(one.part)))]:
            known.update(name for one in joining for name in (one.name, *names_in(one.part)) if name is not None)
            joined = set(map(id, joining))
            doubtful = [one for one in doubtful if id(one) not in joined]
        left_out = set(map(id, doubtful))
        accepted: list[Statement] = []
        for statement, notes in readings:
            if id(statement) in left_out and statement.tentative:
                self._passed.append((statement.line, statement.text))
            elif id(statement) in left_out:
                self._reject(statement.line, statement.text, "a formula without a name; write = NAME behind it")
            elif statement.name is None and any(symbol not in statement.given for symbol in statement.symbols):
                self._reject(statement.line, statement.text, "a formula without a name and without its numbers")
            else:
                accepted.append(statement)
                self._notes += [(statement.line, note) for note in notes]
        return accepted

    def _name_the_unread(self) -> None:
        """Name the lines that were passed over, though they look like a step."""
        defined = [statement.name for statement in self._statements if statement.name is not None]
        steps = KnownNames([*defined, *(name for rejected in self._rejected for name in rejected.names)])
        names = {name for statement in self._statements for name in names_in(statement.part)}
        for line, text in self._passed:
            why = looks_like_step(text, steps, names)
            if text in self._preset_names:
                why = "the name of a preset, without the alpha that takes it"
            if why is not None:
                self._rejected.append(_Rejected(line, text, why, remark=True))


def _is_sure(statement: Statement) -> bool:
    """Whether a statement is a step whatever else stands in the text."""
    return statement.name is not None and not statement.tentative
