"""Combines a text's classified lines into a recipe: selects the steps, resolves their names, and reports problems."""

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
from optimizer.interchange.notation.statements import NEAR_LINES, Statement, number_line
from optimizer.interchange.notation.tokens import KnownNames, NotUnderstood
from optimizer.interchange.notation.unread import Known, holds_weight, looks_like_step, reason, why_step_changes
from optimizer.interchange.notation.writing import ending_of, file_of
from optimizer.recipes import Model, Recipe, Step

__all__ = ["Imported", "Settling"]

_MOST_LISTED = 6  # names in one warning


@dataclass(frozen=True)
class Imported:
    """The recipe read from a text.

    Attributes:
        recipe: The recipe.
        warnings: One sentence for each interpretation.
        not_understood: One message for each line that looks like a step but is not one.
    """

    recipe: Recipe
    warnings: tuple[str, ...] = ()
    not_understood: tuple[str, ...] = ()


class Settling:
    """The combination of a text's lines. Statements become steps; unused lines that look like steps are reported."""

    def __init__(self, found: LinesRead) -> None:
        self._found = found
        self._problems: list[str] = []
        self._unnamed: set[str | None] = set()  # names given to steps without one

    def imported(self, name: str, mapping: str | None) -> Imported:
        """Return the recipe; raise RecipeError with all problems of the text.

        Args:
            name: Name of the recipe, unless the text declares one.
            mapping: Mapping of the recipe, which overrides the text; None to use the text's, or the default.

        Returns:
            The recipe with its warnings.

        Raises:
            RecipeError: The text has no steps, or a step is incomplete or contradictory.
        """
        self._parse()
        # A text written by `write_notation` begins with `recipe:` and contains a recipe's exact numbers.
        written = "recipe" in self._found.declared
        builder = StepBuilder(self._found.layout, self._found.presets, self._found.labels, allow_beyond_usual=written)
        if not self._problems:
            self._assign_by_name()
        steps = [] if self._problems else builder.steps(self._found.statements)
        self._found.notes += builder.notes
        self._problems += builder.problems
        for label, (line, text) in self._found.labelled.items():
            if label not in builder.used:
                self._found.rejected.append(
                    Rejected(line, text, "numbers under a name that no alpha uses", remark=True)
                )
        self._found.rejected.sort(key=lambda rejected: rejected.line)
        if not self._found.statements and not self._problems:
            self._problems = ["no formula was found; a step is a line such as A x 0.9 + B x 0.1 = TEMP1"]
        output = "" if self._problems else self._output(steps)
        self._problems += [] if self._problems else self._unread_continuations(output)
        if self._problems:
            # A rejected line with numbers can explain why a formula lacks them.
            reported = "\n".join(self._problems)
            raise RecipeError(
                [*(text for text in map(str, self._found.rejected) if text not in reported), *self._problems]
            )
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
            vae=self._found.declared.get("vae"),
        )
        notes = [
            f"line {line}: {text}" if line else text
            for line, text in sorted(self._found.notes, key=lambda note: note[0] or math.inf)
        ]
        return Imported(recipe, tuple(dict.fromkeys(notes)), tuple(map(str, self._found.rejected)))

    def _assign_by_name(self) -> None:
        """Assign presets named after a step, `T1: numbers` or `T1 alpha: numbers`, to the step if it lacks numbers."""
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

    def _unread_continuations(self, output: str) -> list[str]:
        """Return a problem for each line that is not understood but probably continues from the output."""
        defined = {statement.name for statement in self._found.statements}
        last = max(statement.line for statement in self._found.statements)
        unread = [
            f"{line}; the formula above already has its numbers, or takes others: remove one of them"
            for line in self._found.rejected
            if line.line in self._found.unread_numbers
            and self._found.statements
            and self._found.statements[0].line < line.line
        ]
        unread += [str(line) for line in self._found.rejected if line.line in self._found.unread_names]
        return unread + [
            f"{line}; it continues from {output!r}, and the recipe would end a step too early: rewrite the line, or "
            "remove it"
            for line in self._found.rejected
            if line.line not in self._found.unread_names
            and line.continues_from(output, last)
            and not (line.names and defined.issuperset(line.names))
        ]

    def _mixer_mapping(self, steps: Sequence[Step]) -> str:
        """Return the mapping of a text: model-mixer if all numbers are its own, otherwise the layout's default."""
        usual = self._found.layout.default_mapping
        if not self._found.mixer_lines:
            return usual
        line = self._found.mixer_lines[0]
        if len(self._found.mixer_lines) < len(self._found.statements):
            self._found.notes.append(
                (line, f"only some numbers are model-mixer's; the mapping is {usual}, see `mapping`")
            )
            return usual
        if all(len(set(alpha.values.values())) == 1 for step in steps for alpha in step.alphas.values()):
            return usual  # without block weights model-mixer merges all tensors, including the VAE
        self._found.notes.append((line, "the mapping is model-mixer, which wrote this line"))
        return "model-mixer"

    def _parse(self) -> None:
        accepted = self._accepted(self._readings())
        unnamed = [statement for statement in accepted if statement.name is None]
        names = StatementNames(accepted, self._found.models, self._found.same, self._found.reject)
        self._found.statements[:] = names.settle()
        self._found.notes += names.notes
        self._unnamed = {statement.name for statement in unnamed}
        for line, symbol in self._found.orphans:
            later = next((step for step in self._found.statements if step.line > line and symbol in step.symbols), None)
            if later is not None:
                self._problems.append(
                    f"line {line}: {symbol} is above the formula of line {later.line}; write it below its formula"
                )
        self._problems += names.problems
        self._report_unread()
        self._found.rejected.sort(key=lambda rejected: rejected.line)
        defined = {statement.name for statement in self._found.statements}
        needed = {
            name: s.line for s in reversed(self._found.statements) for name in names_in(s.part) if name not in defined
        }
        for rejected in self._found.rejected:
            for name in rejected.names:
                if name in needed:
                    self._problems.append(
                        f"{rejected}; line {needed[name]} needs {name!r}, which line {rejected.line} defines"
                    )

    def _readings(self) -> list[tuple[Statement, tuple[str, ...]]]:
        """Return the valid statements, each with the notes on its formula; reject the others."""
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
            statement.part, hashes, statement.half_note = reading.part, dict(reading.hashes), reading.half_note
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
        """Return the readings; reject those with a name like T1-T2 that may be the difference of two known names."""
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
        """Return the part with model-mixer's names without extension and hash; record both in the files."""
        titles = {name: f"{name} [{hashes[name]}]" if name in hashes else name for name in names_in(part)}
        found = {name: named_file(title) for name, title in titles.items()}
        self._found.files |= {name: file for name, file in found.values() if file is not None}
        return renamed(part, {name: short for name, (short, _) in found.items()})

    def _refuse(self, statement: Statement, why: str) -> None:
        if statement.tentative:
            self._found.passed.append((statement.line, statement.text))
        elif statement.name is None:
            self._found.reject(statement.line, statement.text, "a formula without a name; write = NAME after it")
        else:
            self._found.reject(statement.line, statement.text, why, (statement.name,))

    def _accepted(self, readings: Sequence[tuple[Statement, tuple[str, ...]]]) -> list[Statement]:
        """Return the statements that are steps; reject the others.

        A formula without a name or a number is a step only if it shares a name with a certain step.
        """
        sure = [statement for statement, _ in readings if _is_sure(statement)]
        known = {name for step in sure for name in (step.name, step.alias, *names_in(step.part)) if name is not None}
        doubtful = [statement for statement, _ in readings if not _is_sure(statement)]
        while joining := [
            step for step in doubtful if not sure or known.intersection((step.name, *names_in(step.part)))
        ]:
            known.update(name for step in joining for name in (step.name, *names_in(step.part)) if name is not None)
            joined = set(map(id, joining))
            doubtful = [step for step in doubtful if id(step) not in joined]
        left_out = set(map(id, doubtful))
        accepted: list[Statement] = []
        for statement, notes in readings:
            if id(statement) in left_out and statement.tentative:
                self._found.passed.append((statement.line, statement.text))
            elif id(statement) in left_out:
                self._found.reject(statement.line, statement.text, "a formula without a name; write = NAME after it")
            elif statement.name is None and any(symbol not in statement.given for symbol in statement.symbols):
                self._found.reject(statement.line, statement.text, "a formula without a name and without its numbers")
            else:
                accepted.append(statement)
                self._found.notes += [(statement.line, note) for note in notes]
        return self._without_weights_of_halves(accepted)

    def _without_weights_of_halves(self, accepted: Sequence[Statement]) -> list[Statement]:
        """Return the statements; merge a line of mere weights, `A 0.7, B 0.3`, into the half of A and B above it."""
        kept: list[Statement] = []
        for statement in accepted:
            above = kept[-1] if kept else None
            same = above is not None and sorted(names_in(above.part)) == sorted(names_in(statement.part))
            if above is not None and same and above.half_note and statement.name is None and not statement.given:
                self._found.notes = [note for note in self._found.notes if note != (above.line, above.half_note)]
                above.part, above.half_note = statement.part, None
                self._found.notes.append((statement.line, f"the weights of the models of line {above.line}"))
            else:
                kept.append(statement)
        return kept

    def _report_unread(self) -> None:
        """Report the lines read as prose that look like a step, or that may change one."""
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
            if why is None and following is not None and following - line < NEAR_LINES:
                why = why_step_changes(text, has_blocks=True)
            if why is None and last is not None:
                why = why_step_changes(text, has_blocks=any(value.count(",") > 1 for _, value in last.given.values()))
            if text in self._found.preset_names:
                why = "the name of a preset without an alpha"
            near = last is not None and last.half_note is not None and line - last.line <= NEAR_LINES
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
                    reason(line, text, f"the name of the formula above? write = {text.strip(' >:*')} after it")
                )
            elif why is not None:
                self._found.rejected.append(Rejected(line, text, why, remark=True))


def _is_cut(name: str, names: Container[str | None]) -> bool:
    """Return whether both sides of a dash in a name are names themselves."""
    return any(name[: dash.start()] in names and name[dash.end() :] in names for dash in re.finditer("-", name))


def _is_sure(statement: Statement) -> bool:
    """Return whether a statement is certainly a step, regardless of the rest of the text."""
    return statement.name is not None and not statement.tentative
