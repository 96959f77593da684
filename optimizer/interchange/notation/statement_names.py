"""Resolves the names in a text's statements: labels, second names, typing errors, and names with several meanings."""

import itertools
import math
from collections.abc import Collection, Mapping, Sequence

from optimizer.files import CHECKPOINT_SUFFIXES
from optimizer.interchange.notation.formulas import names_in, renamed
from optimizer.interchange.notation.likeness import NamesByLikeness, is_near
from optimizer.interchange.notation.statements import Refuse, SameAs, Statement
from optimizer.interchange.notation.writing import MOST_COMPARED

__all__ = ["StatementNames"]

_UNNAMED = "merged"  # the name of a step without one, as in a merged file's metadata


class StatementNames:
    """The names of a text's statements. `settle` resolves them, one kind after the other.

    Attributes:
        statements: The statements, changed in place.
        notes: Interpretations, each with its line.
        problems: Contradictions that prevent a recipe.
    """

    def __init__(
        self,
        statements: Sequence[Statement],
        declared: Collection[str],
        same: Sequence[tuple[int, str, SameAs]],
        refuse: Refuse,
    ) -> None:
        """Prepare to resolve the names of `statements`.

        Args:
            statements: The statements in the order of their lines.
            declared: Names of the models that the text declares.
            same: Lines with two names and a sign between them, each with its number and text.
            refuse: Function that records a refused line.
        """
        self.statements = list(statements)
        self.notes: list[tuple[int, str]] = []
        self.problems: list[str] = []
        self._declared = declared
        self._same = same
        self._refuse = refuse

    def settle(self) -> list[Statement]:
        """Return the statements, each with a unique name and with the names in its formula resolved."""
        self._name_unnamed()
        self._replace_references(self._second_names())
        self._rename_in_tables()
        self._rename_redefined()
        self.statements = self._distinct()
        self._resolve()
        return self.statements

    def _name_unnamed(self) -> None:
        """Name the steps without a name; drop those whose formula also occurs with a name."""
        named = {repr((s.part, _texts(s.given))) for s in self.statements if s.name is not None}
        taken: set[str | None] = {name for s in self.statements for name in (s.name, *names_in(s.part))}
        kept: list[Statement] = []
        for statement in self.statements:
            if statement.name is None:
                if repr((statement.part, _texts(statement.given))) in named:
                    continue
                names = (_UNNAMED if n == 1 else f"{_UNNAMED}-{n}" for n in itertools.count(1))
                statement.name = next(name for name in names if name not in taken)
                taken.add(statement.name)
                self.notes.append((statement.line, f"a step without a name; it is called {statement.name!r}"))
            kept.append(statement)
        self.statements = kept

    def _second_names(self) -> dict[str, str]:
        """Return the steps by their second names, as in `FINAL = TEMP7`; refuse second names of models."""
        steps = {statement.name for statement in self.statements}
        second_names: dict[str, str] = {}
        for line, text, (first, second) in self._same:
            if (first in steps) == (second in steps):
                self._refuse(line, text, "a second name for a model; nothing to merge", (first, second))
                continue
            step, second_name = (first, second) if first in steps else (second, first)
            second_names[second_name] = step
            self.notes.append((line, f"{second_name!r} is another name of the step {step!r}"))
        return second_names

    def _replace_references(self, second_names: Mapping[str, str]) -> None:
        """Replace second names and labels in formulas by the names of steps.

        A label, for example ① or Step 1, means the result of the last line above with that label.
        """
        labelled: dict[str, str] = {}
        defined = {statement.name for statement in self.statements}
        for statement in self.statements:
            names = [name for name in names_in(statement.part) if name not in defined]
            used = {name: labelled[key] for name in names if (key := name.replace(" ", "").lower()) in labelled}
            self.notes += [(statement.line, f"{label!r} is taken for {step!r}") for label, step in used.items()]
            used |= {name: second_names[name] for name in names if name in second_names}
            if used and statement.part is not None:
                statement.part = renamed(statement.part, used)
            if statement.alias is not None and statement.name is not None:
                labelled[statement.alias.replace(" ", "").lower()] = statement.name

    def _rename_in_tables(self) -> None:
        """Rename steps of different tables that share a name: the second part1 becomes part1-2.

        In the rows below, the name means the last of these steps.
        """
        first: dict[str | None, Statement] = {}
        latest: dict[str, str] = {}
        taken = {name for statement in self.statements for name in (statement.name, *names_in(statement.part))}
        for statement in self.statements:
            if statement.table is not None and statement.part is not None:
                statement.part = renamed(statement.part, latest)
            known = first.setdefault(statement.name, statement)
            again = (
                known is not statement and None not in (known.table, statement.table) and known.table != statement.table
            )
            if (
                again
                and statement.name
                and (known.part, _texts(known.given)) != (statement.part, _texts(statement.given))
            ):
                old = statement.name
                free = (f"{old}-{n}" for n in itertools.count(2))
                statement.name = latest[old] = next(name for name in free if name not in taken)
                taken.add(statement.name)
                self.notes.append(
                    (statement.line, f"a different {old!r} than on line {known.line}; it is called {statement.name!r}")
                )

    def _rename_redefined(self) -> None:
        """Rename a step made from its namesake, `MIX = MIX x 0.7 + C x 0.3`, to MIX-2; below, MIX means MIX-2."""
        defined: dict[str | None, Statement] = {}
        latest: dict[str, str] = {}
        ahead: set[str] = set()
        taken = {name for statement in self.statements for name in (statement.name, *names_in(statement.part))}
        for statement in sorted(self.statements, key=lambda statement: statement.line):
            old = statement.name
            again = old is not None and old in defined and old in names_in(statement.part) and old not in ahead
            # A use above the first definition is ambiguous.
            ahead.update(name for name in names_in(statement.part) if name not in defined)
            if statement.part is not None:
                statement.part = renamed(statement.part, latest)
            if again and old is not None:
                free = (f"{old}-{n}" for n in itertools.count(2))
                statement.name = latest[old] = next(name for name in free if name not in taken)
                taken.add(statement.name)
                self.notes.append(
                    (
                        statement.line,
                        f"made from the {old!r} of line {defined[old].line}; called {statement.name!r} from here on",
                    )
                )
            defined.setdefault(old, statement)
            if old is not None:
                defined[old] = statement

    def _distinct(self) -> list[Statement]:
        """Return the statements without repetitions; note a problem for each name with two definitions."""
        first: dict[str | None, Statement] = {}
        for statement in self.statements:
            known = first.setdefault(statement.name, statement)
            if known is not statement and (known.part, _texts(known.given)) != (
                statement.part,
                _texts(statement.given),
            ):
                self.problems.append(
                    f"line {statement.line}: {statement.name!r} is defined differently on line {known.line}; "
                    "a name must have one definition"
                )
        return list(first.values())

    def _resolve(self) -> None:
        """Replace names in formulas that nearly match the name of an unused earlier step, or of a model."""
        places = {str(statement.name): place for place, statement in enumerate(self.statements)}
        first: dict[str, int] = {}
        beside: dict[str, set[str]] = {}
        for place, statement in enumerate(self.statements):
            names = names_in(statement.part)
            for name in names:
                first.setdefault(name, place)
                beside.setdefault(name, set()).update(names)
        meant: dict[str, str] = {}
        spare = NamesByLikeness(name for name in places if name not in first)
        # A later line can call `T1 fp16 pruned` T1.
        longer: dict[str, list[str]] = {}
        for name in places:
            if name not in first and " " in name:
                longer.setdefault(name.split()[0], []).append(name)
        sources = NamesByLikeness()
        kept: set[str] = set()
        for name in [name for name in first if name not in places and name not in self._declared]:
            # A name used before the step, or in its formula, is a separate model.
            file = next(
                (step for step in _with_and_without_extension(name) if places.get(step, math.inf) < first[name]), None
            )
            if file is not None:
                spare.discard(file)
                meant[name] = file
                self.notes.append((self.statements[first[name]].line, f"{name!r} is taken for the step {file!r}"))
                continue
            candidates = [step for step in longer.get(name, ()) if places[step] < first[name]]
            near = candidates[0] if len(candidates) == 1 else None
            near = near or next(
                (
                    step
                    for step in itertools.islice(spare.like(name), MOST_COMPARED)
                    if places[step] < first[name] and is_near(name, step)
                ),
                None,
            )
            if near is not None:
                spare.discard(near)
                meant[name] = near
                line = self.statements[first[name]].line
                self.notes.append((line, f"{name!r} is taken for the step {near!r}, which no formula uses"))
                continue
            # Two names in one formula are two models.
            alike = (*_with_and_without_extension(name), *sources.same(name))
            twin = next((model for model in alike if model in kept and model not in beside[name]), None)
            if twin is None:
                sources.add(name)
                kept.add(name)
            else:
                meant[name] = twin
                line = self.statements[first[name]].line
                self.notes.append((line, f"{name!r} is taken for the model {twin!r}"))
        for statement in self.statements:
            if statement.part is not None:
                statement.part = renamed(statement.part, meant)


def _with_and_without_extension(name: str) -> list[str]:
    """Return the name without its extension; or, if it has none, the name with each possible extension."""
    for suffix in CHECKPOINT_SUFFIXES:
        if name.lower().endswith(suffix):
            return [name[: -len(suffix)]]
    return [f"{name}{suffix}" for suffix in CHECKPOINT_SUFFIXES]


def _texts(given: Mapping[str, tuple[int, str]]) -> dict[str, str]:
    """Return the numbers as written, without their lines."""
    return {name: text for name, (_, text) in given.items()}
