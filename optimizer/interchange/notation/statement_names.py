"""What the names in a text's statements mean: labels, second names, slips of the pen, and names of several things."""

import itertools
import math
from collections.abc import Callable, Collection, Mapping, Sequence

from optimizer.files import CHECKPOINT_SUFFIXES
from optimizer.interchange.notation.formulas import names_in, renamed
from optimizer.interchange.notation.likeness import NamesByLikeness, is_near
from optimizer.interchange.notation.statements import SameAs, Statement
from optimizer.interchange.notation.writing import MOST_COMPARED

__all__ = ["StatementNames"]

_UNNAMED = "merged"  # what a step without a name is called, as the one of a merged file is

Refuse = Callable[[int, str, str, tuple[str, ...]], None]


class StatementNames:
    """The statements of a text, their names settled one kind after the other (`settle`).

    `declared` are models that the text declares, `same` its lines with two names and a sign between them. `refuse`
    takes a line's number, its text, why it is none, and the names that it may define. `notes` are (line, what had to
    be interpreted), `problems` what makes a recipe impossible.
    """

    def __init__(
        self,
        statements: Sequence[Statement],
        declared: Collection[str],
        same: Sequence[tuple[int, str, SameAs]],
        refuse: Refuse,
    ) -> None:
        self.statements = list(statements)
        self.notes: list[tuple[int, str]] = []
        self.problems: list[str] = []
        self._declared = declared
        self._same = same
        self._refuse = refuse

    def settle(self) -> list[Statement]:
        """Return the statements with a name each, and the names in their formulas resolved."""
        self._name_the_unnamed()
        self._refer(self._other_names())
        self._rename_in_tables()
        self._rename_what_is_made_anew()
        self.statements = self._distinct()
        self._resolve()
        return self.statements

    def _name_the_unnamed(self) -> None:
        """Give the steps without a name one; a formula that stands there with a name as well is no further step."""
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

    def _other_names(self) -> dict[str, str]:
        """Names that a text gives to steps beside their own, `FINAL = TEMP7`, and those steps."""
        steps = {statement.name for statement in self.statements}
        others: dict[str, str] = {}
        for line, text, (first, second) in self._same:
            if (first in steps) == (second in steps):
                self._refuse(line, text, "a second name for a model; there is nothing to merge", (first, second))
                continue
            step, other = (first, second) if first in steps else (second, first)
            others[other] = step
            self.notes.append((line, f"{other!r} is another name of the step {step!r}"))
        return others

    def _refer(self, others: Mapping[str, str]) -> None:
        """Replace what stands for a step by its name: `others` are second names.

        The number or label of a line, such as ① or Step 1, is what the last such line above makes.
        """
        labelled: dict[str, str] = {}
        defined = {statement.name for statement in self.statements}
        for statement in self.statements:
            names = [name for name in names_in(statement.part) if name not in defined]
            used = {name: labelled[key] for name in names if (key := name.replace(" ", "").lower()) in labelled}
            self.notes += [(statement.line, f"{label!r} is taken for {step!r}") for label, step in used.items()]
            used |= {name: others[name] for name in names if name in others}
            if used and statement.part is not None:
                statement.part = renamed(statement.part, used)
            if statement.alias is not None and statement.name is not None:
                labelled[statement.alias.replace(" ", "").lower()] = statement.name

    def _rename_in_tables(self) -> None:
        """Give a name that several tables have for steps of their own, such as part1, a number from the second on.

        In the rows below, the name then means the last of them.
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
                    (statement.line, f"another {old!r} than that of line {known.line}; called {statement.name!r}")
                )

    def _rename_what_is_made_anew(self) -> None:
        """Give `MIX = MIX x 0.7 + C x 0.3`, where a line above makes MIX, a number; below, the name means the last."""
        defined: dict[str | None, Statement] = {}
        latest: dict[str, str] = {}
        ahead: set[str] = set()
        taken = {name for statement in self.statements for name in (statement.name, *names_in(statement.part))}
        for statement in sorted(self.statements, key=lambda statement: statement.line):
            old = statement.name
            again = old is not None and old in defined and old in names_in(statement.part) and old not in ahead
            # Whose result a line above the first of them means cannot be told.
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
                        f"made of the {old!r} of line {defined[old].line}; called {statement.name!r} from here on",
                    )
                )
            defined.setdefault(old, statement)
            if old is not None:
                defined[old] = statement

    def _distinct(self) -> list[Statement]:
        """The statements, each name once."""
        first: dict[str | None, Statement] = {}
        for statement in self.statements:
            known = first.setdefault(statement.name, statement)
            if known is not statement and (known.part, _texts(known.given)) != (
                statement.part,
                _texts(statement.given),
            ):
                self.problems.append(
                    f"line {statement.line}: {statement.name!r} is defined otherwise on line {known.line}; "
                    "a step has one name"
                )
        return list(first.values())

    def _resolve(self) -> None:
        """Near-miss names: a step that nobody uses, where a later formula uses almost its name."""
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
        # `T1 fp16 pruned` is called T1 later.
        longer: dict[str, list[str]] = {}
        for name in places:
            if name not in first and " " in name:
                longer.setdefault(name.split()[0], []).append(name)
        sources = NamesByLikeness()
        kept: set[str] = set()
        for name in [name for name in first if name not in places and name not in self._declared]:
            # Used before the step was there, or in making it: then it is a model of its own.
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
            # Two models of one formula are two models.
            alike = (*_with_and_without_extension(name), *sources.same(name))
            twin = next((other for other in alike if other in kept and other not in beside[name]), None)
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
    """What else a checkpoint may be called whose name ends in an extension, or does not."""
    for suffix in CHECKPOINT_SUFFIXES:
        if name.lower().endswith(suffix):
            return [name[: -len(suffix)]]
    return [f"{name}{suffix}" for suffix in CHECKPOINT_SUFFIXES]


def _texts(given: Mapping[str, tuple[int, str]]) -> dict[str, str]:
    """Numbers as they are written, wherever they stand."""
    return {name: text for name, (_, text) in given.items()}
