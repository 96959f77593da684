"""Builds steps from a text's statements and the numbers that the text gives for their alphas."""

import itertools
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace

from optimizer.errors import RecipeError, attempt
from optimizer.families import Layout
from optimizer.files import shown, yaml_of
from optimizer.interchange.notation.formulas import Factor, Part, names_in
from optimizer.interchange.notation.statements import Statement
from optimizer.interchange.notation.tokens import parse_name
from optimizer.recipes import (
    LARGEST_USUAL,
    Alpha,
    Preset,
    Step,
    beyond_usual,
    built_in_alpha,
    dropped_note,
    numbered_alpha,
    numbers_of,
    preset_alpha,
    read_alpha,
)

__all__ = ["StepBuilder"]


class StepBuilder:
    """A builder of steps from statements.

    Attributes:
        used: Names of the presets in use.
        notes: Interpretations, each with its line.
        problems: Reasons why steps could not be built.
    """

    def __init__(
        self,
        layout: Layout,
        presets: Mapping[str, Preset],
        labels: Mapping[str, tuple[str, ...]],
        *,
        allow_beyond_usual: bool = False,
    ) -> None:
        """Prepare to build steps.

        Args:
            layout: Layout that defines the blocks.
            presets: Alphas that statements can refer to by name.
            labels: Blocks by label, for reported similarities.
            allow_beyond_usual: Whether weights beyond the usual range are noted rather than refused, since a tool
                wrote the text.
        """
        self._layout = layout
        self._presets = presets
        self._labels = labels
        self._allow_beyond_usual = allow_beyond_usual
        self.used: set[str] = set()
        self.notes: list[tuple[int, str]] = []
        self.problems: list[str] = []

    def steps(self, statements: Sequence[Statement]) -> list[Step]:
        """Return the steps of all statements; nested steps come before the step that contains them."""
        steps: list[Step] = []
        taken = {str(statement.name) for statement in statements} | {
            name for statement in statements for name in names_in(statement.part)
        }
        for statement in statements:
            try:
                symbols = [name for name in statement.given if not name.startswith("base_")]
                alphas = {name: self._given(statement, name) for name in symbols}
                assert statement.part is not None
                steps += self._built(statement, str(statement.name), statement.part, alphas, taken)
            except RecipeError as error:
                self.problems += error.problems
        return steps

    def _given(self, statement: Statement, symbol: str) -> Alpha:
        line, text = statement.given[symbol]
        where = f"line {line}: {statement.name}.{symbol}"
        base_line, base_text = statement.given.get(f"base_{symbol}", (line, ""))
        try:
            base = numbers_of(base_text, self._layout)[0][0] if base_text else None
        except ValueError:
            raise RecipeError(
                f"line {base_line}: base_{symbol}: received {shown(base_text)}; must be a number"
            ) from None
        inner = re.sub(r"^[(\[]\s*|\s*[)\]]$", "", text.strip())
        try:
            numbers, note = self._numbers(inner)
        except ValueError:
            return self._alpha_without_numbers(text.strip(), base, where, line)
        if not all(math.isfinite(number) for number in (*numbers, base or 0.0)):
            raise RecipeError(f"{where}: received {shown(text.strip())}; must be finite numbers")
        if note is not None:
            self.notes.append((line, note))
        if len(numbers) == 1 and not inner.endswith(","):
            rest = dict.fromkeys(self._layout.blocks, numbers[0])
            return Alpha(rest if base is None else rest | {self._layout.blocks[0]: base})
        if (dropped := dropped_note(self._layout, len(numbers))) is not None:
            self.notes.append((line, dropped))
        return attempt(lambda: numbered_alpha(self._layout, numbers, base, base_name=f"base_{symbol}"), where)

    def _numbers(self, text: str) -> tuple[list[float], str | None]:
        """Return the numbers of a list with a note; raise ValueError for too few numbers without commas."""
        numbers, note = numbers_of(text, self._layout)
        if len(numbers) > 1 and not re.search(r"[,;]", text) and len(numbers) < len(self._layout.blocks) - 1:
            raise ValueError(text)
        return numbers, note

    def _alpha_without_numbers(self, text: str, base: float | None, where: str, line: int) -> Alpha:
        if re.fullmatch(r"[A-Za-z][^{}]*:\s*[-\d.]+\s*", text):
            text = f"{{{text}}}"
        if text.startswith("{"):
            try:
                value = yaml_of(text)
            except Exception:  # a malformed text raises many errors, not only ruamel's
                raise RecipeError(f"{where}: received {shown(text)}; must be a mapping of blocks") from None
            return read_alpha(value, self._layout, where, base)
        name = parse_name(text) or text
        if name in self._presets:
            self.used.add(name)
            if (dropped := dropped_note(self._layout, len(self._presets[name].numbers))) is not None:
                self.notes.append((line, dropped))
            return attempt(lambda: preset_alpha(self._presets[name], self._layout, base), where)
        built_in = attempt(lambda: built_in_alpha(name, self._layout, base), where)
        if built_in is not None:
            first = self._layout.blocks[0]
            self.notes.append((line, f"{name} is SuperMerger's own preset, {first} {built_in.at(first):g}"))
            return built_in
        known = f"; presets are {', '.join(self._presets)}, and SuperMerger's own" if self._presets else ""
        raise RecipeError(
            f"{where}: received {shown(text)}; must be {len(self._layout.blocks)} numbers in parentheses, one number, "
            f"or the name of a preset{known}"
        )

    def _built(
        self, statement: Statement, name: str, part: Part, alphas: Mapping[str, Alpha], taken: set[str]
    ) -> list[Step]:
        """Return the steps of a formula; those in its parentheses come first."""
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
        self._check_size(statement, part.alpha, alpha)
        if part.beta is not None and beta is not None:
            self._check_size(statement, part.beta, beta)
        expect = statement.expect if name == statement.name else None
        labelled = self._labels.get(statement.reported or "")
        if expect is not None and labelled is not None and not expect.similarities:
            expect = replace(expect, blocks=labelled)
        return [*steps, Step(name, part.mode, inputs["a"], inputs["b"], inputs.get("c"), alpha, beta, expect)]

    def _check_size(self, statement: Statement, factor: Factor, alpha: Alpha) -> None:
        """Raise RecipeError for weights beyond the usual range, probably per cent; only note those of a tool."""
        found = beyond_usual(alpha)
        if found is None:
            return
        block, number = found
        line = statement.line if factor.symbol is None else statement.given[factor.symbol][0]
        whose = f"{statement.name}.{factor.symbol}" if factor.symbol is not None else str(statement.name)
        where = "" if len(set(alpha.values.values())) == 1 else f" of {block}"
        if self._allow_beyond_usual or statement.by_tool:
            self.notes.append(
                (line, f"{whose}: the weight {number:g}{where} is beyond {LARGEST_USUAL:g}; is it per cent?")
            )
            return
        raise RecipeError(
            f"line {line}: {whose}: {number:g}{where} as a weight? write {number / 100:g} or {number:g} %; "
            f"weights are from {-LARGEST_USUAL:g} to {LARGEST_USUAL:g}"
        )

    def _alpha(self, statement: Statement, factor: Factor, alphas: Mapping[str, Alpha]) -> Alpha:
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
                number = factor({symbol: alphas[symbol].at(block) for symbol in factor.symbols})
            except (OverflowError, ValueError):  # powers and sums of very large numbers
                number = math.inf
            if not math.isfinite(number):
                raise RecipeError(f"line {statement.line}: {statement.name}: the factor of {block} is not finite")
            return number

        return Alpha({block: value(block) for block in self._layout.blocks})
