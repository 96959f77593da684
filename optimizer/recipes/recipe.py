"""The data model: a recipe has named sources and steps; an alpha has a number per block, or is free there.

A recipe with free alphas is a search space. The result of a search is the same recipe with numbers in their place.
"""

import difflib
import graphlib
import heapq
import math
import re
from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from optimizer.errors import RecipeError
from optimizer.families import Layout
from optimizer.printable import unprintable
from optimizer.recipes.fitted import Fitted
from optimizer.recipes.modes import MODES

__all__ = ["LARGEST_USUAL", "MOST_STEPS", "Alpha", "Expected", "Free", "Model", "Recipe", "Step", "beyond_usual"]

# Larger weights, in absolute value, are probably mistakes: 30 for 30 %. People extrapolate by 1.5, and add differences
# two or three times.
LARGEST_USUAL = 3.0
MOST_STEPS = 2000  # in a recipe; real ones have tens
_MOST_MODELS = 5000
_LONGEST_NAME = 500  # characters
_MOST_PLACES = 12  # listed places of an undefined name
# Models and lines of a recipe that are shown.
_MOST_NAMED, _MOST_LINES = 12, 18
_MOST_GUESSES = 20  # unknown names with a suggestion; each is compared with all names


@dataclass(frozen=True)
class Model:
    """A source checkpoint: the file as the recipe names it, the licence that the user states, and the SHA-256."""

    file: str
    license: str = "unknown"
    sha256: str | None = None


@dataclass(frozen=True)
class Free:
    """A free alpha.

    Attributes:
        low: The lower bound.
        high: The upper bound.
        blocks: The blocks.
        tie: Whether all blocks share one number.
        step: The spacing of a grid that starts at `low`; None for any value.
        start: The value at which the search begins, and that wins among equally good ones. Default: 0, or the bound
            nearest to 0.

    Raises:
        RecipeError: Bounds, grid and start value do not fit each other.
    """

    low: float
    high: float
    blocks: tuple[str, ...]
    tie: bool = False
    step: float | None = None
    start: float | None = None

    def __post_init__(self) -> None:
        if not (math.isfinite(self.low) and math.isfinite(self.high)):
            raise RecipeError(f"search: received [{self.low:g}, {self.high:g}]; both bounds must be finite numbers")
        if self.low >= self.high:
            raise RecipeError(
                f"search: received [{self.low:g}, {self.high:g}]; the lower bound comes first, as [low, high]"
            )
        if self.step is not None and not 0 < self.step <= self.high - self.low:
            raise RecipeError(f"step: received {self.step:g}; must be above 0 and at most {self.high - self.low:g}")
        if self.start is not None and not self.low <= self.start <= self.high:
            raise RecipeError(f"start: received {self.start:g}; must lie within [{self.low:g}, {self.high:g}]")

    @property
    def starting_value(self) -> float:
        """The value before any search, within the bounds and on the grid."""
        value = min(max(0.0, self.low), self.high) if self.start is None else self.start
        return self.on_grid(value)

    def on_grid(self, value: float) -> float:
        """Return the nearest value within the bounds and on the grid."""
        value = min(max(value, self.low), self.high)
        if self.step is None:
            return value
        steps = min(round((value - self.low) / self.step), math.floor((self.high - self.low) / self.step + 1e-9))
        return round(self.low + steps * self.step, 12)


@dataclass(frozen=True)
class Alpha:
    """One alpha per block: `values` of fixed blocks (0 where absent), and the `free` alphas of the others."""

    values: Mapping[str, float] = field(default_factory=dict)
    free: tuple[Free, ...] = ()

    def __post_init__(self) -> None:
        seen: set[str] = set(self.values)
        for free in self.free:
            both = sorted(seen & set(free.blocks))
            if both:
                raise RecipeError(f"{both[0]} is given more than once")
            seen |= set(free.blocks)

    def at(self, block: str) -> float:
        """Return the number of a block; a free alpha has its start value."""
        for free in self.free:
            if block in free.blocks:
                return free.starting_value
        return self.values.get(block, 0.0)

    def describe(self, layout: Layout) -> str:
        """Return the number, or the least and the greatest one, and the ranges of free alphas with their blocks."""
        fixed = [block for block in layout.blocks if not any(block in free.blocks for free in self.free)]
        numbers = sorted({self.at(block) for block in fixed})
        ranges = [
            f"{free.low:g} to {free.high:g} (free) on {layout.describe_blocks(free.blocks)}" for free in self.free
        ]
        if not numbers or (ranges and numbers == [0.0]):
            return " and ".join(ranges)
        ends = f"{numbers[0]:.6g}" if len(numbers) == 1 else f"{numbers[0]:.6g} to {numbers[-1]:.6g}"
        return " and ".join([ends, *ranges])

    def filled(self, values: Mapping[str, float]) -> "Alpha":
        """Return the alpha with the blocks in `values` fixed at these numbers."""
        left = tuple(
            replace(free, blocks=tuple(block for block in free.blocks if block not in values)) for free in self.free
        )
        return Alpha({**self.values, **values}, tuple(free for free in left if free.blocks))


def beyond_usual(alpha: Alpha) -> tuple[str, float] | None:
    """Return the first block whose fixed number is beyond `LARGEST_USUAL`, with that number; None without any."""
    return next(((block, number) for block, number in alpha.values.items() if abs(number) > LARGEST_USUAL), None)


@dataclass(frozen=True)
class Expected:
    """The similarity to the target reported for a step, to be measured again.

    Attributes:
        blocks: The scored blocks in the order reported, perhaps with some that the metric cannot see.
        similarities: The reported similarities of single blocks, in [-1, 1].
        total: Their mean.
        metric: The metric.
        seed: The seed of attention's random inputs.
    """

    blocks: tuple[str, ...]
    similarities: Mapping[str, float] = field(default_factory=dict)
    total: float | None = None
    metric: str = "attention"
    seed: int = 114514


@dataclass(frozen=True)
class Step:
    """One step of a recipe: the mode applied to the inputs.

    Attributes:
        name: The name, which other steps use as an input.
        mode: The name of the mode.
        a: The first input, a model or a step.
        b: The second input.
        c: The third input, for modes with three.
        alpha: The alpha per block.
        beta: The second alpha per block, for modes with two.
        expect: The similarity reported for the result.
        similarity: The similarities that a fit measured, by metric.
    """

    name: str
    mode: str
    a: str
    b: str
    c: str | None = None
    alpha: Alpha = field(default_factory=Alpha)
    beta: Alpha | None = None
    expect: Expected | None = None
    similarity: Mapping[str, Any] | None = None

    @property
    def inputs(self) -> dict[str, str]:
        """The names of the inputs, by their letter in the formula."""
        given = {"a": self.a, "b": self.b, "c": self.c}
        return {place: name for place in MODES[self.mode].inputs if (name := given[place]) is not None}

    @property
    def alphas(self) -> dict[str, Alpha]:
        """The alphas that the mode uses, by name."""
        return {name: getattr(self, name) for name in MODES[self.mode].alphas}

    def describe(self, layout: Layout) -> str:
        """Return the step as a line: "TEMP1 = bold + (inverted - base) x alpha, alpha 0 to 0.05"."""
        formula = re.sub(r"\b[ABC]\b", lambda letter: self.inputs[letter[0].lower()], MODES[self.mode].formula)
        return ", ".join([f"{self.name} = {formula}", *(f"{n} {a.describe(layout)}" for n, a in self.alphas.items())])

    def problems(self) -> list[str]:
        """Return a line for each problem of the step by itself."""
        if self.mode not in MODES:
            return [f"steps.{self.name}.mode: received {self.mode!r}; must be one of {', '.join(MODES)}"]
        expected = MODES[self.mode].inputs
        found = []
        if "c" in expected and self.c is None:
            found.append(f"steps.{self.name}.c: missing; {self.mode} is {MODES[self.mode].formula}")
        if "c" not in expected and self.c is not None:
            found.append(f"steps.{self.name}.c: received {self.c!r}; {self.mode} takes no third input")
        if "beta" in MODES[self.mode].alphas and self.beta is None:
            found.append(f"steps.{self.name}.beta: missing; {self.mode} is {MODES[self.mode].formula}")
        if "beta" not in MODES[self.mode].alphas and self.beta is not None:
            found.append(f"steps.{self.name}.beta: received one; {self.mode} is {MODES[self.mode].formula}")
        return found


@dataclass(frozen=True, repr=False)
class Recipe:
    """Named sources and the steps that combine them.

    Attributes:
        name: The name.
        layout: The model family.
        models: The sources by name.
        steps: The steps, in any order.
        output: The name of the step that the recipe makes.
        mapping: The mapping of tensors to blocks. Default: the layout's first.
        fitted: The notes of a fit (target, hashes, searches); None without any.
        vae: The model whose VAE every step has unchanged. Default: the VAE merges as the mapping says.

    Raises:
        RecipeError: One line for each problem: names that are undefined, defined twice or in a cycle, control
            characters or line breaks in names, spaces around names of models and steps, more than 2000 steps or 5000
            models, a `vae` that is no model or of a layout without one.
    """

    name: str
    layout: Layout
    models: Mapping[str, Model]
    steps: tuple[Step, ...]
    output: str
    mapping: str = ""
    fitted: Fitted | None = None
    vae: str | None = None

    def __repr__(self) -> str:
        """Return the models and a line for each step, at most 20 lines."""
        models = list(self.models)
        named = ", ".join(models[:_MOST_NAMED]) + (", ..." if len(models) > _MOST_NAMED else "")
        lines = [f"recipe {self.name} ({self.layout.name}) of {len(models)} models: {named}"]
        lines += [f"  {step.describe(self.layout)}" for step in self.steps[:_MOST_LINES]]
        left = len(self.steps) - _MOST_LINES
        return "\n".join([*lines, f"  ... and {left} more steps"] if left > 0 else lines)

    def __post_init__(self) -> None:
        object.__setattr__(self, "mapping", self.mapping or self.layout.default_mapping)
        for items, count, most in (("steps", len(self.steps), MOST_STEPS), ("models", len(self.models), _MOST_MODELS)):
            if count > most:
                raise RecipeError(f"{items}: received {count:,}; a recipe has at most {most:,}")
        problems = [*self._unusable_names(), *(problem for step in self.steps for problem in step.problems())]
        if self.mapping not in self.layout.mappings:
            known = ", ".join(self.layout.mappings)
            problems.append(f"mapping: received {self.mapping!r}; {self.layout.name} has {known}")
        problems += self._vae_problems()
        names = [step.name for step in self.steps]
        defined = set(names) | set(self.models)
        nearest = _Nearest(defined)
        problems += [f"steps.{name}: defined twice" for name, count in sorted(Counter(names).items()) if count > 1]
        problems += [f"steps.{name}: a model has this name too" for name in names if name in self.models]
        undefined: dict[str, list[str]] = {}
        for step in self.steps:
            for place, name in (("a", step.a), ("b", step.b), ("c", step.c)):
                if name is not None and name not in defined:
                    undefined.setdefault(name, []).append(f"steps.{step.name}.{place}")
        problems += [
            f"{', '.join(places[:_MOST_PLACES])}{' and more' if places[_MOST_PLACES:] else ''}: received {name!r}; "
            f"neither a model nor a step has this name{nearest(name)}"
            for name, places in undefined.items()
        ]
        if not self.steps:
            problems.append("steps: empty; a recipe needs at least one step")
        elif self.output not in names:
            problems.append(f"output: received {self.output!r}; no step has this name" + _Nearest(names)(self.output))
        if not problems:
            try:
                tuple(graphlib.TopologicalSorter(self._graph()).static_order())
            except graphlib.CycleError as error:
                problems.append(f"steps: cycle {' -> '.join(reversed(error.args[1]))}; a step may not need itself")
        if problems:
            raise RecipeError(problems)

    def _vae_problems(self) -> Iterator[str]:
        """Yield a line if no VAE can be taken from `vae`."""
        if self.vae is None:
            return
        if self.layout.vae is None:
            yield f"vae: received {self.vae!r}; checkpoints of {self.layout.title} have no VAE; leave the field out"
        elif any(step.name == self.vae for step in self.steps):
            yield f"vae: received the step {self.vae!r}; a VAE is copied from a model; must be one of {self._listed()}"
        elif self.vae not in self.models:
            yield f"vae: received {self.vae!r}; no model has this name" + _Nearest(self.models)(self.vae)

    def _listed(self) -> str:
        return ", ".join(sorted(self.models)[:_MOST_PLACES])

    def _unusable_names(self) -> Iterator[str]:
        """Yield a line for each name that would harm tables, logs, metadata or other tools' files."""
        named = [("name", self.name), *((f"models.{name}", name) for name in self.models)]
        named += [(f"models.{name}.file", model.file) for name, model in self.models.items()]
        named += [(f"models.{name}.license", model.license) for name, model in self.models.items()]
        named += [(f"steps.{step.name}", step.name) for step in self.steps]
        for where, name in named:
            if (letter := unprintable(name)) is not None:
                received = f"received {name[:80]!r}, with the character {letter!r}"
                yield f"{where[:100]}: {received}; write it on one line, without"
            elif len(name) > _LONGEST_NAME and not where.endswith((".file", ".license")):
                yield f"{where[:100]}...: a name of {len(name):,} characters; must have at most {_LONGEST_NAME}"
        spaced = [*(("models", name) for name in self.models), *(("steps", step.name) for step in self.steps)]
        for where, name in spaced:
            # Such a space is invisible in a formula, and is lost when the formula is read.
            if name != name.strip():
                yield f"{where}.{name[:80]}: received {name[:80]!r}, which begins or ends with a space; leave that out"

    def step(self, name: str) -> Step:
        """Return the step of this name; raise RecipeError without one."""
        for step in self.steps:
            if step.name == name:
                return step
        names = [step.name for step in self.steps]
        raise RecipeError(f"step {name!r} is not in the recipe {self.name!r}{_Nearest(names)(name)}")

    def trimmed(self) -> "Recipe":
        """Return the recipe with only the steps and models of its output, without reported similarities."""
        models = {name: self.models[name] for name in self.sources()}
        return replace(self, models=models, steps=tuple(replace(step, expect=None) for step in self.ancestors()))

    def ancestors(self, *outputs: str) -> tuple[Step, ...]:
        """Return the steps that outputs need, the outputs included.

        Args:
            *outputs: The names of steps. Default: the recipe's output.

        Returns:
            Each step once and after its inputs, otherwise in the recipe's order.
        """
        graph, needed, queue = self._graph(), set[str](), list(outputs or (self.output,))
        while queue:
            name = queue.pop()
            if name in graph and name not in needed:
                needed.add(name)
                queue += graph[name]
        place = {step.name: position for position, step in enumerate(self.steps) if step.name in needed}
        sorter = graphlib.TopologicalSorter({name: needed.intersection(graph[name]) for name in place})
        sorter.prepare()
        ready: list[int] = []
        ordered: list[Step] = []
        while sorter.is_active():
            for name in sorter.get_ready():
                heapq.heappush(ready, place[name])
            ordered.append(self.steps[heapq.heappop(ready)])
            sorter.done(ordered[-1].name)
        return tuple(ordered)

    def check_finished(self, done: str, *outputs: str) -> None:
        """Raise RecipeError if outputs need free alphas.

        Args:
            done: The participle of the operation that needs numbers, for the message: "merged", "exported".
            *outputs: The names of steps. Default: the recipe's output.

        Raises:
            RecipeError: One line that lists the free alphas.
        """
        free: dict[str, list[str]] = {}
        for step in self.ancestors(*outputs):
            for name, alpha in step.alphas.items():
                if blocks := {block for free_alpha in alpha.free for block in free_alpha.blocks}:
                    free.setdefault(self.layout.describe_blocks(blocks), []).append(f"steps.{step.name}.{name}")
        if free:
            listed = "; ".join(f"{', '.join(names)}: free on {blocks}" for blocks, names in free.items())
            raise RecipeError(
                f"{listed}, and only numbers can be {done}; fit the recipe first (blockfit fit STUDY) and take the "
                "best.yaml that this writes, or put numbers there"
            )

    def sources(self, output: str | None = None) -> tuple[str, ...]:
        """Return the models that `output` needs, that of its VAE included, in the order of the recipe's models."""
        used = {name for step in self.ancestors(output or self.output) for name in step.inputs.values()} | {self.vae}
        return tuple(name for name in self.models if name in used)

    def block_of(self, name: str) -> str | None:
        """Return the block whose alphas move a tensor.

        Args:
            name: The canonical name of the tensor, or its beginning.

        Returns:
            The block; None if no alpha moves the tensor, as with the VAE's if `vae` gives it.
        """
        return None if self.copies(name) else self.layout.block_of(name, self.mapping)

    def copies(self, name: str) -> bool:
        """Return whether `vae` gives the tensor whose canonical name this is, or begins like this."""
        return self.vae is not None and self.layout.vae is not None and name.startswith(self.layout.vae.prefix)

    def first_model(self, output: str | None = None) -> str:
        """Return the model that `output` begins with: follow first inputs until one is a model."""
        name = output or self.output
        while name not in self.models:
            name = self.step(name).a
        return name

    @property
    def noted_base(self) -> str | None:
        """The model that differences are taken from: the one that a fit noted, or "base"; None without either."""
        return next((name for name in (self.noted.base, "base") if name in self.models), None)

    @property
    def noted(self) -> Fitted:
        """The notes of a fit; every field is None in a recipe without notes."""
        return Fitted() if self.fitted is None else self.fitted

    @property
    def formulas(self) -> dict[str, tuple[str, dict[str, str]]]:
        """The formula of each step without its numbers, {step: (mode, {"a": name, ...})}."""
        return {step.name: (step.mode, dict(step.inputs)) for step in self.steps}

    def with_alphas(self, alphas: Mapping[tuple[str, str], Mapping[str, float]]) -> "Recipe":
        """Return the recipe with free alphas set to numbers, {(step, "alpha"): {block: number}}."""
        steps = tuple(
            replace(
                step, **{name: getattr(step, name).filled(alphas.get((step.name, name), {})) for name in step.alphas}
            )
            for step in self.steps
        )
        return replace(self, steps=steps)

    def with_start_values(self) -> "Recipe":
        """Return the recipe with every free alpha set to its start value."""
        return self.with_alphas(
            {
                (step.name, name): {block: free.starting_value for free in alpha.free for block in free.blocks}
                for step in self.steps
                for name, alpha in step.alphas.items()
            }
        )

    def _graph(self) -> dict[str, tuple[str, ...]]:
        return {step.name: tuple(step.inputs.values()) for step in self.steps}


class _Nearest:
    """Suggestions for unknown names: a similar name of `names`, or the first 12 of them."""

    def __init__(self, names: Collection[str]) -> None:
        self._names = sorted(names)
        self._proposed: dict[str, str] = {}

    def __call__(self, name: str) -> str:
        if name not in self._proposed and len(self._proposed) < _MOST_GUESSES:
            close = difflib.get_close_matches(name[:_LONGEST_NAME], self._names, 1)
            listed = f"; must be one of {', '.join(self._names[:12])}" if self._names else ""
            self._proposed[name] = f"; did you mean {close[0]!r}?" if close else listed
        return self._proposed.get(name, "")
