"""What the lines of a text mean together: which of them are steps, what their names stand for, and what is missing."""

import bisect
import math
import re
from collections.abc import Collection, Container, Mapping, Sequence
from dataclasses import dataclass

from optimizer.errors import RecipeError
from optimizer.interchange.notation.console import named_file
from optimizer.interchange.notation.formulas import Part, names_in, read_formula, renamed
from optimizer.interchange.notation.lines_read import LinesRead, Rejected
from optimizer.interchange.notation.statement_names import StatementNames
from optimizer.interchange.notation.statement_steps import StepBuilder
from optimizer.interchange.notation.statements import Statement, number_line
from optimizer.interchange.notation.tokens import KnownNames, NotUnderstood
from optimizer.interchange.notation.unread import Known, holds_weight, looks_like_step, reason, says_more_of_step
from optimizer.interchange.notation.writing import ending_of, file_of
from optimizer.recipes import Model, Recipe, Step

__all__ = ["Imported", "Settling"]

_NEAR = 3  # lines below a formula in which its number is looked for
_MOST_LISTED = 6  # names in one warning


@dataclass(frozen=True)
class Imported:
    """What was read: the recipe, what had to be interpreted or guessed, and lines that look like steps and are none."""

    recipe: Recipe
    warnings: tuple[str, ...] = ()
    not_understood: tuple[str, ...] = ()


class Settling:
    """The lines of a text, settled once: statements become steps, and lines that nobody took are named."""

    def __init__(self, found: LinesRead) -> None:
        self._found = found
        self._problems: list[str] = []
        self._unnamed: set[str | None] = set()  # names that were made up

    def imported(self, name: str, mapping: str | None) -> Imported:
        """Return the recipe, `name` and `mapping` what the text does not say itself. Raises RecipeError."""
        self._parse()
        # Our own notation, which begins so, holds the numbers of a recipe as they were.
        written = "recipe" in self._found.declared
        builder = StepBuilder(self._found.layout, self._found.presets, self._found.labels, tells_beyond_usual=written)
        if not self._problems:
            self._give_by_name()
        steps = [] if self._problems else builder.steps(self._found.statements)
        self._found.notes += builder.notes
        self._problems += builder.problems
        for label, (line, text) in self._found.labelled.items():
            if label not in builder.used:
                self._found.rejected.append(
                    Rejected(line, text, "numbers that no alpha takes by this name", remark=True)
                )
        self._found.rejected.sort(key=lambda rejected: rejected.line)
        if not self._found.statements and not self._problems:
            self._problems = ["no formula was found; a step is a line such as A x 0.9 + B x 0.1 = TEMP1"]
        output = "" if self._problems else self._output(steps)
        self._problems += [] if self._problems else self._going_on(output)
        if self._problems:
            # Why a formula lacks its numbers may be told by the line that holds them.
            told = "\n".join(self._problems)
            raise RecipeError([*(text for text in map(str, self._found.rejected) if text not in told), *self._problems])
        defined = {step.name for step in steps}
        used = dict.fromkeys(n for step in steps for n in step.inputs.values() if n not in defined)
        models = {
            **self._found.models,
            **{n: Model(self._found.files.get(n) or file_of(n)) for n in used if n not in self._found.models},
        }
        recipe = Recipe(
            name=self._found.declared.get("recipe", name),
            layout=self._found.layout,
            models=models,
            steps=tuple(steps),
            output=output,
            mapping=mapping or self._found.declared.get("mapping") or self._mixer_mapping(steps),
        )
        notes = [
            f"line {line}: {text}" if line else text
            for line, text in sorted(self._found.notes, key=lambda note: note[0] or math.inf)
        ]
        return Imported(recipe, tuple(dict.fromkeys(notes)), tuple(map(str, self._found.rejected)))

    def _give_by_name(self) -> None:
        """Give steps without numbers those that are called after them, `T1: numbers` or `T1 alpha: numbers`."""
        for statement in self._found.statements:
            for symbol in statement.symbols:
                labels = [f"{statement.name} {symbol}", f"{symbol} of {statement.name}", f"{symbol} {statement.name}"]
                labels += [str(statement.name)] if len(statement.symbols) == 1 else []
                found = next((label for label in labels if label in self._found.labelled), None)
                if found is not None and symbol not in statement.given:
                    line, _ = self._found.labelled.pop(found)
                    statement.given[symbol] = (line, f"({','.join(self._found.presets[found].numbers)})")

    def _output(self, steps: Sequence[Step]) -> str:
        if "output" in self._found.declared:
            return self._found.declared["output"]
        output, endings, alike = ending_of(steps)
        if len(endings) > 1:
            listed = ", ".join(map(repr, endings[:_MOST_LISTED]))
            more = f" and {len(endings) - _MOST_LISTED} more" if len(endings) > _MOST_LISTED else ""
            unused = [name for name in endings if name != output]
            others = ", ".join(map(repr, unused[:_MOST_LISTED])) + (" and others" if len(unused) > _MOST_LISTED else "")
            why = "which needs the most steps" if len(alike) == 1 else "the last of them"
            why += " that need the most steps" if 1 < len(alike) < len(endings) else ""
            self._found.notes.append(
                (0, f"the text ends in {listed}{more}; {output!r}, {why}, is the output, and nothing uses {others}")
            )
        return output

    def _going_on(self, output: str) -> list[str]:
        """A problem for each line that would make another step of the output, and is not understood."""
        defined = {statement.name for statement in self._found.statements}
        last = max(statement.line for statement in self._found.statements)
        unread = [
            f"{line}; the formula above has its numbers, or takes others: take one of them out"
            for line in self._found.rejected
            if line.line in self._found.unread_numbers
            and self._found.statements
            and self._found.statements[0].line < line.line
        ]
        unread += [str(line) for line in self._found.rejected if line.line in self._found.unread_names]
        return unread + [
            f"{line}; it goes on from {output!r}, and the recipe would end a step too early: write it otherwise, or "
            "take the line out"
            for line in self._found.rejected
            if line.line not in self._found.unread_names
            and line.goes_on_from(output, last)
            and not (line.names and defined.issuperset(line.names))
        ]

    def _mixer_mapping(self, steps: Sequence[Step]) -> str:
        """The mapping of a text: model-mixer's where the numbers are its own, else the layout's first."""
        usual = self._found.layout.default_mapping
        if not self._found.mixer_lines:
            return usual
        line = self._found.mixer_lines[0]
        if len(self._found.mixer_lines) < len(self._found.statements):
            self._found.notes.append(
                (line, f"model-mixer's numbers stand beside others; the mapping is {usual}, see `mapping`")
            )
            return usual
        if all(len(set(alpha.values.values())) == 1 for step in steps for alpha in step.alphas.values()):
            return usual  # without block weights it merges everything, the VAE too
        self._found.notes.append((line, "the mapping is model-mixer, whose line this is"))
        return "model-mixer"

    def _parse(self) -> None:
        accepted = self._accepted(self._readings())
        unnamed = [statement for statement in accepted if statement.name is None]
        names = StatementNames(accepted, self._found.models, self._found.same, self._found.reject)
        self._found.statements[:] = names.settle()
        self._found.notes += names.notes
        self._unnamed = {statement.name for statement in unnamed}
        for line, symbol in self._found.orphans:
            later = next((one for one in self._found.statements if one.line > line and symbol in one.symbols), None)
            if later is not None:
                self._problems.append(
                    f"line {line}: {symbol} stands above the formula of line {later.line}; "
                    "write it below the formula that it belongs to"
                )
        self._problems += names.problems
        self._name_the_unread()
        self._found.rejected.sort(key=lambda rejected: rejected.line)
        defined = {statement.name for statement in self._found.statements}
        needed = {
            name: s.line for s in reversed(self._found.statements) for name in names_in(s.part) if name not in defined
        }
        for rejected in self._found.rejected:
            for name in rejected.names:
                if name in needed:
                    self._problems.append(f"{rejected}; line {needed[name]} needs {name!r}, which it defines")

    def _readings(self) -> list[tuple[Statement, tuple[str, ...]]]:
        """The statements that make sense, each with the notes on its formula; the others are named."""
        known = KnownNames(
            name
            for statement in self._found.statements
            for name in (statement.name, statement.alias, *names_in(statement.part))
            if name is not None
        )
        readings: list[tuple[Statement, tuple[str, ...]]] = []
        dashed: dict[int, frozenset[str]] = {}
        for statement in self._found.statements:
            if statement.part is not None:
                readings.append((statement, ()))
                continue
            try:
                reading = read_formula(statement.formula, known)
            except NotUnderstood as error:
                self._refuse(statement, str(error))
                continue
            statement.part, hashes, statement.half = reading.part, dict(reading.hashes), reading.half
            dashed[id(statement)] = reading.dashed
            if statement.line in self._found.mixer_lines:
                statement.part, hashes = self._by_title(reading.part, hashes), {}
            self._found.files = {
                **{name: f"{file_of(name)} [{digits}]" for name, digits in hashes.items()},
                **self._found.files,
            }
            readings.append((statement, reading.notes))
        return self._without_differences(readings, dashed)

    def _without_differences(
        self, readings: Sequence[tuple[Statement, tuple[str, ...]]], dashed: Mapping[int, Collection[str]]
    ) -> list[tuple[Statement, tuple[str, ...]]]:
        """The readings without those of a name, T1-T2, that may be the difference of two names of the text."""
        models = {name for statement, _ in readings for name in (statement.name, *names_in(statement.part))}
        kept: list[tuple[Statement, tuple[str, ...]]] = []
        for statement, notes in readings:
            unclear = next(
                (
                    name
                    for name in dashed.get(id(statement), ())
                    if name not in self._found.models and _is_cut(name, models)
                ),
                None,
            )
            if unclear is None:
                kept.append((statement, notes))
            else:
                why = f"{unclear!r} is one name or a difference; write spaces around its -, or quotation marks"
                self._refuse(statement, why)
        return kept

    def _by_title(self, part: Part, hashes: Mapping[str, str]) -> Part:
        """The part with models named without extension and hash, which model-mixer writes; files keep both."""
        titles = {name: f"{name} [{hashes[name]}]" if name in hashes else name for name in names_in(part)}
        found = {name: named_file(title) for name, title in titles.items()}
        self._found.files |= {name: file for name, file in found.values() if file is not None}
        return renamed(part, {name: short for name, (short, _) in found.items()})

    def _refuse(self, statement: Statement, why: str) -> None:
        if statement.tentative:
            self._found.passed.append((statement.line, statement.text))
        elif statement.name is None:
            self._found.reject(statement.line, statement.text, "a formula without a name; write = NAME behind it")
        else:
            self._found.reject(statement.line, statement.text, why, (statement.name,))

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
                self._found.passed.append((statement.line, statement.text))
            elif id(statement) in left_out:
                self._found.reject(statement.line, statement.text, "a formula without a name; write = NAME behind it")
            elif statement.name is None and any(symbol not in statement.given for symbol in statement.symbols):
                self._found.reject(statement.line, statement.text, "a formula without a name and without its numbers")
            else:
                accepted.append(statement)
                self._found.notes += [(statement.line, note) for note in notes]
        return self._without_weights_of_halves(accepted)

    def _without_weights_of_halves(self, accepted: Sequence[Statement]) -> list[Statement]:
        """The statements, each line of weights alone, `A 0.7, B 0.3`, joined to the half of A and B right above it."""
        kept: list[Statement] = []
        for statement in accepted:
            above = kept[-1] if kept else None
            same = above is not None and sorted(names_in(above.part)) == sorted(names_in(statement.part))
            if above is not None and same and above.half and statement.name is None and not statement.given:
                above.part, above.half = statement.part, False
                self._found.notes = [
                    note for note in self._found.notes if note[0] != above.line or "read as half" not in note[1]
                ]
                self._found.notes.append((statement.line, f"the weights of the models of line {above.line}"))
            else:
                kept.append(statement)
        return kept

    def _name_the_unread(self) -> None:
        """Name the lines that were passed over, though they look like a step or say more of one."""
        defined = [statement.name for statement in self._found.statements if statement.name is not None]
        steps = KnownNames([*defined, *(name for rejected in self._found.rejected for name in rejected.names)])
        names = {name for statement in self._found.statements for name in names_in(statement.part)}
        known = Known(steps, KnownNames(names.difference(defined)), names)
        above = sorted(self._found.statements, key=lambda statement: statement.line)
        lines = [statement.line for statement in above]
        for line, text in self._found.passed:
            place = bisect.bisect(lines, line)
            last = above[place - 1] if place else None
            why = looks_like_step(text, known)
            following = lines[place] if place < len(lines) else None
            if why is None and following is not None and following - line < _NEAR:
                why = says_more_of_step(text, has_blocks=True)
            if why is None and last is not None:
                why = says_more_of_step(text, has_blocks=any(value.count(",") > 1 for _, value in last.given.values()))
            if text in self._found.preset_names:
                why = "the name of a preset, without the alpha that takes it"
            near = last is not None and last.half and line - last.line <= _NEAR
            if near and last is not None and (number_line(text) or holds_weight(text, names_in(last.part))):
                self._problems.append(
                    f"{reason(line, text, 'a number')}; line {last.line} has none, and would be half of each: write it "
                    "there"
                )
            elif (
                last is not None
                and line - last.line == 1
                and last.name in self._unnamed
                and text.strip(" >:*") in names
            ):
                self._problems.append(
                    reason(line, text, f"the name of the formula above? write = {text.strip(' >:*')} behind it")
                )
            elif why is not None:
                self._found.rejected.append(Rejected(line, text, why, remark=True))


def _is_cut(name: str, names: Container[str | None]) -> bool:
    """Whether both sides of a dash in a name are names themselves."""
    return any(name[: dash.start()] in names and name[dash.end() :] in names for dash in re.finditer("-", name))


def _is_sure(statement: Statement) -> bool:
    """Whether a statement is a step whatever else stands in the text."""
    return statement.name is not None and not statement.tentative
