"""Classifies a text's lines as steps, numbers, tables, settings, reports, declarations or prose.

The reader classifies each line by itself, or together with its continuation lines. `settling` combines the results.
"""

import re
from collections.abc import Callable, Mapping, Sequence

from optimizer.errors import RecipeError
from optimizer.families import Layout, load_layout
from optimizer.interchange.notation.block_numbers import block_numbers_at
from optimizer.interchange.notation.console import ReadStep, console_block, console_step, history_step, is_history_row
from optimizer.interchange.notation.formula_texts import is_formula, with_alpha
from optimizer.interchange.notation.lines import LONGEST_LINE, MOST_LINES, joined_lines
from optimizer.interchange.notation.lines_read import LinesRead
from optimizer.interchange.notation.methods import find_method
from optimizer.interchange.notation.model_mixer import mixer_line
from optimizer.interchange.notation.remarks import refusal_of_comment, without_comment
from optimizer.interchange.notation.reported import ReportedSimilarities
from optimizer.interchange.notation.settings import settings_at, weights_at
from optimizer.interchange.notation.statements import (
    NEAR_LINES,
    POINTING,
    SIGN,
    Assigned,
    NamedFormula,
    Read,
    Refused,
    SameAs,
    Statement,
    is_share,
    label_of,
    number_line,
    read_statement,
    sides_of,
    symbols_in,
)
from optimizer.interchange.notation.tables import (
    Table,
    cells_of,
    is_row,
    is_rule,
    percent_of,
    row_by_position,
    step_of_row,
    table_at,
)
from optimizer.interchange.notation.tokens import (
    CIRCLED,
    QUOTED,
    masked,
    normalized,
    parse_name,
    unquoted,
    without_markup,
)
from optimizer.interchange.notation.wording import KEY_WORDS, is_key, why_merge_changes, without_bullet
from optimizer.recipes import MOST_STEPS, Model, Preset, lacks_first, parse_preset, preset_alpha

__all__ = ["LineReader"]

_LABEL = re.compile(rf"^[^\W\d_][\w ]{{0,30}}:\s+(?=.*(?:{SIGN.pattern}))")
_DECLARED = re.compile(
    rf"(recipe|layout|mapping|output|vae|model) ?(?P<name>{QUOTED}|[^\":]*+)\s*:\s*(?P<value>{QUOTED})(?P<more>.*)"
)
_MORE = re.compile(rf",\s*(license|sha256)\s+({QUOTED})")
# `Weight (%): 30`, where the key contains the unit.
_KEY_IN_PERCENT = re.compile(
    rf"(?P<key>{KEY_WORDS}|m)\s?[(\[]?\s?(?:in )?%\s?[)\]]?\s?(?P<sign>[:=]\s?)?(?P<numbers>[-(\[\d.].*)", re.IGNORECASE
)
_MOST_LINES_OF_A_TEXT = 20_000


def _with_percent(text: str) -> str:
    """Return `weight: 30%` for `weight (%): 30`, any other line unchanged; raise ValueError for a doubtful number."""
    found = _KEY_IN_PERCENT.fullmatch(text)
    return text if found is None else f"{found['key']}{found['sign'] or ': '}{percent_of(found['numbers'])}"


class LineReader:
    """A reader for the lines of one text. `presets` are the alphas that the text can refer to by name."""

    def __init__(self, layout: Layout, presets: Mapping[str, Preset]) -> None:
        self._found = LinesRead(layout, dict(presets))
        self._reported = ReportedSimilarities(layout, self._found.statements, self._found.reject)
        self._indent = 0
        self._ahead: int | None = None  # the last line with only an arrow and a name, and no formula above it
        self._last: dict[str, Statement] = {}  # the last formula with each symbol, alpha or beta

    def read(self, text: str) -> LinesRead:
        """Return the classified lines of a text; raise RecipeError if it has too many lines or steps."""
        lines = text.removeprefix("\ufeff").replace("\r\n", "\n").replace("\r", "\n").split("\n")
        if len(lines) > _MOST_LINES_OF_A_TEXT:
            raise RecipeError(f"{len(lines):,} lines; at most {_MOST_LINES_OF_A_TEXT:,} are read: remove the prose")
        number = 0
        while number < len(lines):
            number += self._too_long(lines, number) or self._block(lines, number) or self._single(lines, number)
        self._found.labels = self._reported.labels
        return self._found

    def _too_long(self, lines: Sequence[str], number: int) -> int:
        line = lines[number]
        if len(line) <= LONGEST_LINE:
            return 0
        if "=" in line or any(sign.isdigit() for sign in line):
            self._found.reject(number + 1, line, f"a line of {len(line):,} characters")
        return 1

    def _block(self, lines: Sequence[str], number: int) -> int:
        """Read a block of lines, for example a table; return the number of its lines, 0 if none begins here."""
        line = lines[number]
        if is_history_row(line):
            return self._history(lines, number)
        block = console_block(lines, number)
        if block is not None:
            settings, count = block
            self._add_read(number + 1, line, lambda where: console_step(settings, self._found.layout, where))
            return count
        table = table_at(lines, number)
        if table is not None:
            return self._table(lines, number, table)
        return self._weights(lines, number) or self._settings(lines, number) or self._block_numbers(lines, number)

    def _weights(self, lines: Sequence[str], number: int) -> int:
        found = weights_at(lines, number)
        if found is None:
            return 0
        self._take(number + 1, lines[number].strip(), found[0])
        return found[1]

    def _settings(self, lines: Sequence[str], number: int) -> int:
        found = settings_at(lines, number)
        if found is None:
            return 0
        self._row(number + 1 + found.at, lines[number + found.at], found.read)
        return found.lines

    def _block_numbers(self, lines: Sequence[str], number: int) -> int:
        """Read numbers by block for the formula above; return the number of their lines, 0 if none begin here."""
        found = block_numbers_at(lines, number, self._found.layout)
        if found is None:
            return 0
        line, text = number + 1, lines[number].strip()
        if found.why is not None:
            self._found.reject(line, text, found.why)
            self._found.unread_numbers.append(line)
        else:
            rejected = len(self._found.rejected)
            self._assign(line, text, Assigned(found.given))
            self._found.unread_numbers += [line] if len(self._found.rejected) > rejected else []
        return found.lines

    def _history(self, lines: Sequence[str], number: int) -> int:
        """Read a row of SuperMerger's history, whose quoted values may span lines; return the number of its lines."""
        row, count = lines[number], 1
        while row.count('"') % 2 and count < MOST_LINES and number + count < len(lines):
            row, count = f"{row}\n{lines[number + count]}", count + 1
        self._add_read(number + 1, lines[number], lambda where: history_step(row, self._found.layout, where))
        return count

    def _table(self, lines: Sequence[str], number: int, table: Table) -> int:
        end = number + table.head
        while end < len(lines) and "|" in lines[end] and len(lines[end]) <= LONGEST_LINE:
            if not is_rule(lines[end]):
                read = step_of_row(lines[end], table)
                if isinstance(read, str):
                    if not self._formula(end + 1, normalized(read)):
                        self._found.reject(end + 1, lines[end].strip(), "a row whose formula is not valid")
                else:
                    self._row(end + 1, lines[end], read, number)
            end += 1
        return end - number

    def _row(self, line: int, text: str, read: ReadStep | Refused | None, table: int | None = None) -> bool:
        if isinstance(read, Refused):
            self._found.reject(line, text.strip(), read.why, read.names)
        elif read is not None:
            self._add_step(line, text.strip(), read, table)
        return read is not None

    def _add_read(self, line: int, text: str, read: Callable[[str], ReadStep | None]) -> None:
        try:
            step = read("")
        except RecipeError as error:
            self._found.reject(line, text.strip(), error.problems[0])
            return
        if step is not None:
            self._add_step(line, text.strip(), step, by_tool=True)

    def _add_step(
        self, line: int, text: str, read: ReadStep, table: int | None = None, *, by_tool: bool = False
    ) -> None:
        given = {name: (line, value) for name, value in read.given.items()}
        self._found.files = {**read.files, **self._found.files}
        self._found.notes += [(line, note) for note in read.notes]
        self._append(Statement(line, text, read.name, given=given, part=read.part, table=table, by_tool=by_tool))

    def _single(self, lines: Sequence[str], number: int) -> int:
        line, more = joined_lines(lines, number)
        if not self._line(number + 1, lines[number], line) and line.strip():
            text = without_markup(line).strip()
            # `NAME: https://...` is not a heading.
            self._found.passed.append((number + 1, text if line.strip().endswith(":") else text.rstrip(":")))
        return 1 + more

    def _line(self, number: int, raw: str, line: str) -> bool:
        """Read a line; return whether it is part of a recipe, or looks like it."""
        self._indent = len(raw) - len(raw.lstrip())
        line = without_markup(line)
        plain = normalized(line).strip()
        if self._declaration(raw.strip()) or self._reported.read(number, without_bullet(plain), self._indent):
            return True
        preset = self._preset(raw, number)
        if preset is not None:
            known = self._found.presets.setdefault(preset.name, preset)
            if "\t" not in raw:
                self._found.labelled[preset.name] = (number, raw.strip())
            if known.numbers != preset.numbers:
                self._found.reject(
                    number, raw.strip(), f"preset {preset.name!r} has other numbers on line {known.line}"
                )
            return True
        if is_row(plain) or "\t" in raw.strip():
            if self._row(number, raw, row_by_position(raw)):
                return True
            if is_row(plain):
                cells = [self._formula(number, normalized(cell), cell=True) for cell in cells_of(raw)]
                return any(cells) or is_rule(raw)
        text, comment = without_comment(without_bullet(normalized(line)).strip())
        try:
            text = _with_percent(text)
        except ValueError as error:
            self._found.reject(number, text, str(error))
            self._found.unread_numbers.append(number)
            return True
        numbers = number_line(text)
        if numbers is not None and (not numbers.alone or (self._lacks_numbers(number) and is_share(numbers.values))):
            if (why := refusal_of_comment(comment, has_numbers=True)) is not None:
                self._found.reject(number, f"{text} # {comment}", why)
            else:
                self._assign(number, text, numbers)
            return True
        if text.startswith("#"):
            return self._heading(number, text)
        pointed = POINTING.match(text) or POINTING.match(plain)
        if pointed is not None and self._points_at_name(number, pointed):
            return True
        parts = re.split(r"\s?;\s", text) if ";" in masked(text) else [text]
        if len(parts) > 1 and all(SIGN.search(part) and any(map(is_formula, sides_of(part))) for part in parts):
            taken = [self._formula(number, part, comment=comment) for part in parts]  # a list, to read every part
            return all(taken)
        return self._formula(number, text, comment=comment, bullet="+ " if re.match(r"[\s>]*\+\s", line) else "")

    def _lacks_numbers(self, number: int) -> bool:
        """Return whether the formula just above a line still lacks its numbers."""
        above = self._found.statements[-1] if self._found.statements else None
        if above is None or above.given or above.part is not None or number - above.line > NEAR_LINES:
            return False
        return bool(above.symbols) or with_alpha(above.formula) is not None

    def _points_at_name(self, number: int, pointed: re.Match[str]) -> bool:
        """Name the formula above after the name behind an arrow; return whether the line was read or refused."""
        above = self._found.statements[-1] if self._found.statements else None
        behind = pointed.string[pointed.end() :].rstrip(" .:")
        if above is None or above.part is not None or number - above.line > NEAR_LINES:
            self._ahead = number if parse_name(behind) is not None else None
            return False
        label = above.name if above.name is not None and label_of(f"{above.name}: x")[0] == above.name else None
        result = self._read(f"{above.formula} -> {behind}")
        if above.name is not None and label is None:
            if pointed[0].strip() == "=":  # names the text in between, which is not understood
                return False
            if isinstance(result, NamedFormula) and above.name != result.name:
                self._found.notes.append(
                    (number, f"{result.name!r} is ignored: the formula above is called {above.name!r}")
                )
            return isinstance(result, NamedFormula)
        if isinstance(result, NamedFormula) and (
            result.name is None or any(name in above.given for name in result.given)
        ):
            result = Refused("numbers in addition to earlier ones")
        elif isinstance(result, NamedFormula) and self._ahead == above.line - 1:
            result = Refused("an arrow and a name above the formula as well; write = NAME after it")
        if not isinstance(result, NamedFormula):
            if isinstance(result, Refused) and not above.tentative:
                self._found.reject(number, pointed.string, result.why, result.names)
                self._found.unread_names.append(number)
            return isinstance(result, Refused) and not above.tentative
        above.name, above.alias = result.name, label or above.alias
        if not above.given:
            above.formula, above.symbols, above.tentative = result.formula, symbols_in(result.formula), result.tentative
        above.given |= {name: (number, value) for name, value in result.given.items()}
        self._found.notes += [(number, note) for note in result.notes]
        self._last |= dict.fromkeys(above.symbols, above)
        return True

    def _heading(self, number: int, text: str) -> bool:
        if "=" not in masked(text) or not any(is_formula(side) for side in text.lstrip("# ").split("=")):
            return False
        self._found.reject(number, text, "a comment or heading; remove the # to have it read")
        return True

    def _formula(self, number: int, text: str, *, cell: bool = False, comment: str = "", bullet: str = "") -> bool:
        """Read a step or numbers; return whether the text is either, or looks like it.

        Args:
            number: Line number, from 1.
            text: Normalized text without comment and bullet.
            cell: Whether the text is a cell of a table; refused cells are ignored.
            comment: Comment after the text; the line is refused if it may change the merge.
            bullet: Bullet before the text that may be a plus sign, for messages.

        Returns:
            True if the line was read or refused, False for prose.
        """
        mixed = mixer_line(text)
        if mixed is not None:
            self._found.mixer_lines += [number] if isinstance(mixed, NamedFormula) else []
            return self._take(number, text, mixed)
        # A circled number before a formula numbers the line, or names the first model.
        text = re.sub(f"^([{CIRCLED}])(?=\\w)", r"\1 ", text)
        alias, rest = label_of(text)
        result = self._read(rest if alias is not None and not re.match(f"[{CIRCLED}]", alias) else text)
        if alias is not None and re.match(f"[{CIRCLED}]", alias):
            if self._makes_sense(result):
                alias = None
            else:
                result = self._read(rest)
        if cell and isinstance(result, Refused):
            return False
        why = refusal_of_comment(
            comment, has_numbers=not isinstance(result, NamedFormula) or is_formula(result.formula)
        )
        if why is not None and result is not None:
            names = result.names if isinstance(result, Refused) else ()
            result = Refused(why, (result.name,) if isinstance(result, NamedFormula) and result.name else names)
        elif result is not None and re.search(r"\d", comment):
            self._found.notes.append((number, f"the comment {comment!r} is ignored"))
        return self._take(number, f"{bullet}{text} # {comment}" if comment else f"{bullet}{text}", result, alias)

    def _read(self, text: str) -> Read:
        label = _LABEL.match(text)
        if label is None:
            return read_statement(text, self._found.preset_names)
        # "MIX: Weighted sum (A, B, M=0.3)" begins with its name, "Add diff: alpha = ..." with a mere label.
        method = find_method(masked(text))
        has_number = method is not None and (method.number is not None or method.unclear is not None)
        whole = read_statement(text, self._found.preset_names) if has_number else None
        if isinstance(whole, NamedFormula | Refused):
            return whole
        result = read_statement(text[label.end() :], self._found.preset_names)
        why = why_merge_changes(label[0])
        if why is not None and result is not None:
            names = result.names if isinstance(result, Refused) else ()
            return Refused(why, (result.name,) if isinstance(result, NamedFormula) and result.name else names)
        named = find_method(label[0])
        if (
            named is not None
            and isinstance(result, NamedFormula)
            and (whole_sum := with_alpha(result.formula)) is not None
        ):
            # The method's number stands elsewhere, so a formula without a number is not half of each.
            return result._replace(formula=whole_sum, tentative=False) if named.mode == "weight_sum" else result
        return result

    @staticmethod
    def _makes_sense(result: Read) -> bool:
        """Return whether a line is valid with its circled number, as a model of the formula."""
        if isinstance(result, NamedFormula):
            counted = re.match(f"[{CIRCLED}] ", result.name or "")
            return is_formula(result.formula) and counted is None
        return isinstance(result, Assigned)

    def _take(self, number: int, text: str, result: Read, alias: str | None = None) -> bool:
        match result:
            case Refused(why, names):
                self._found.reject(number, text, why, names)
            case Assigned():
                self._assign(number, text, result)
            case SameAs():
                self._found.same.append((number, text, result))
            case NamedFormula(name, formula, given, tentative, notes):
                self._found.notes += [(number, note) for note in notes]
                values = {field: (number, value) for field, value in given.items()}
                symbols = symbols_in(formula)
                if name is None and alias is not None:
                    name, alias = alias, None
                statement = Statement(number, text, name, formula, symbols, values, alias=alias, tentative=tentative)
                statement.by_tool = number in self._found.mixer_lines
                self._append(statement)
        return result is not None

    def _append(self, statement: Statement) -> None:
        if len(self._found.statements) == MOST_STEPS:
            raise RecipeError(
                f"line {statement.line}: more than {MOST_STEPS:,} steps; a recipe has at most {MOST_STEPS:,}"
            )
        statement.indent = self._indent
        self._found.statements.append(statement)
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
                self._found.models[name] = Model(value, more.get("license", "unknown"), more.get("sha256"))
        elif not found["name"].strip():
            self._found.declared[kind] = value
            if kind == "layout":
                self._found.layout = self._reported.layout = load_layout(value)
        return True

    def _preset(self, raw: str, number: int) -> Preset | None:
        preset = parse_preset(raw, number) if re.search(r"[\t:]", raw) and "=" not in raw else None
        if preset is None or len(preset.numbers) < len(self._found.layout.blocks) // 2 or is_key(preset.name):
            return None
        try:
            base = 0.0 if lacks_first(self._found.layout, len(preset.numbers)) else None
            preset_alpha(preset, self._found.layout, base)
        except RecipeError as error:
            self._found.reject(number, raw.strip(), error.problems[0])
        return preset

    def _assign(self, number: int, text: str, assigned: Assigned) -> None:
        """Assign the numbers of a line to the last formula with their symbol, or refuse them."""
        for name, value in assigned.values.items():
            symbol = name.removeprefix("base_")
            step = self._without_numbers(symbol, name) or self._last.get(symbol)
            if step is None:
                self._found.orphans.append((number, symbol))
                self._found.reject(number, text, f"no formula above contains {symbol}")
            elif name.startswith("base_") and symbol in step.given and step is not self._found.statements[-1]:
                self._found.reject(
                    number,
                    text,
                    f"{step.name!r} of line {step.line} already has its numbers; another formula follows it",
                )
            elif name in step.given:
                earlier, known = step.given[name]
                if known != value:
                    why = f"{step.name!r} already has its {name} from line {earlier}"
                    self._found.reject(number, text, why)
                    self._found.unread_numbers.append(number)
            else:
                step.given[name] = (number, value)
                if assigned.alone:
                    self._found.notes.append(
                        (number, f"numbers without a symbol are read as {symbol} of line {step.line}")
                    )

    def _without_numbers(self, symbol: str, name: str) -> Statement | None:
        """Return the formula just above, with alpha added, if it lacks numbers and no earlier formula needs these.

        The formula must be two or three models without a number.
        """
        above, last = self._found.statements[-1] if self._found.statements else None, self._last.get(symbol)
        if (
            above is None
            or above.part is not None
            or symbol != "alpha"
            or (last is not None and symbol not in last.given)
        ):
            return None
        whole = with_alpha(above.formula)
        if whole is None:
            return None
        self._found.notes.append((above.line, f"{above.formula} with the numbers below is read as {whole}"))
        above.formula, above.symbols, above.tentative = whole, symbols_in(whole), False
        self._last["alpha"] = above
        return above
