"""Read sd-mecha's `.mecha` texts of version 0.1.0, exported by blockfit or made by hand, as recipes.

A text is a list of instructions; each can refer to earlier ones by number (&3). The reader takes the methods that make
weighted sums and differences, and those that make alphas: weighted_sum, add_difference, subtract, fallback, cast,
get_device, omit_component of an alpha, and the conversions of alphas by block. Written after sd-mecha 1.1.8,
serialization.py and extensions/builtin.
"""

import re
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import count
from typing import Any

from optimizer.errors import RecipeError
from optimizer.families import Layout, default_layout, layout_names, load_layout
from optimizer.families.records import MechaNames
from optimizer.interchange.notation import json_text, number_in, received
from optimizer.interchange.placed import PlacedStep, SourceNames, recipe_of_steps
from optimizer.recipes import MODES, MOST_STEPS, Recipe

__all__ = ["is_mecha", "read_mecha"]

_VERSION = re.compile(r"\s*version (\S+)\s*")
_MAPPING = re.compile(r"# (?P<name>\"(?:[^\"\\]|\\.)*\"), mapping (?P<mapping>[\w-]+)")
_TOKEN = re.compile(r'(?P<key>[\w.-]+=)?(?:"(?P<text>(?:[^"\\]|\\.)*)"|(?P<word>[^\s"]+))')
_CONSTANTS = {"null": None, "true": True, "false": False}
_ONE, _CONVERT_ONE = "singleton-mecha", "convert_singleton"
_MOST_LINES = 200_000


def is_mecha(text: str) -> bool:
    """Return whether a text begins like a recipe of sd-mecha."""
    return _VERSION.fullmatch(text.split("\n", 1)[0][:80]) is not None


@dataclass(frozen=True)
class _Model:
    """A checkpoint, or the result of a step, by its name in the recipe."""

    name: str


@dataclass(frozen=True)
class _Difference:
    """The difference of two models, first - second."""

    first: _Model
    second: _Model


@dataclass(frozen=True)
class _Alpha:
    """Numbers by prefix; sd-mecha leaves tensors without a number out of its output."""

    numbers: Mapping[str, float]


@dataclass(frozen=True)
class _Literal:
    """Numbers before conversion: by block, by tensor, or one for all, depending on `config`."""

    config: str
    numbers: Mapping[str, Any]


class _Presence:
    """The set of a model's tensors; alphas are cast to it, so that tensors missing in b pass through."""


def read_mecha(text: str, name: str) -> tuple[Recipe, list[str]]:
    """Return the recipe in a `.mecha` text, and notes about it.

    Args:
        text: The whole text.
        name: The name of the recipe if the text does not give one.

    Returns:
        The recipe, and the notes as sentences.

    Raises:
        RecipeError: If the text is of another version, is broken, or uses a method that makes no weighted sum or
            difference. The error names the line.

    """
    reader = _Reader(*_named_in(text))
    lines = text.replace("\r\n", "\n").split("\n")
    version = _VERSION.fullmatch(lines[0][:80])
    if version is None or version[1] != "0.1.0":
        raise RecipeError(
            f"line 1: received {received(lines[0][:80])}; blockfit reads version 0.1.0 of sd-mecha's recipes"
        )
    if len(lines) > _MOST_LINES:
        raise RecipeError(f"{len(lines):,} lines; at most {_MOST_LINES:,} are read")
    for number, line in enumerate(lines[1:], 2):
        try:
            reader.line(line.strip())
        except RecipeError as error:
            raise RecipeError(f"line {number}: {error.problems[0]}") from None
    return reader.recipe(name)


def _named_in(text: str) -> tuple[Layout, MechaNames]:
    """Return the layout that a text names, or the default one, and sd-mecha's names for it."""
    layouts = [default_layout(), *map(load_layout, layout_names())]
    known = [(layout, layout.tools.mecha) for layout in layouts if layout.tools.mecha is not None]
    found = (pair for pair in known if f'"{pair[1].model}"' in text or f'"{pair[1].blocks}"' in text)
    return next(found, known[0])


@dataclass
class _Reader:
    """The results of the instructions read so far, and the steps among them."""

    layout: Layout
    names: MechaNames
    results: list[Any] = field(default_factory=list)
    sources: SourceNames = field(default_factory=SourceNames)
    steps: dict[str, PlacedStep] = field(default_factory=dict)
    title: str | None = None  # the step that the comments above name
    mapping: str | None = None
    called: str | None = None
    commented: dict[str, list[str]] = field(default_factory=dict)

    def line(self, line: str) -> None:
        """Read one line: an instruction, a comment or nothing."""
        if not line:
            return
        if line.startswith("#"):
            self._comment(line)
            return
        arguments, named = [], {}
        if left := _TOKEN.sub("", line).strip():
            raise RecipeError(f"received {received(left)}; a quotation mark is missing")
        command, *tokens = _TOKEN.finditer(line)
        for token in tokens:
            value = self._value(token)
            if token["key"]:
                named[token["key"][:-1]] = value
            else:
                arguments.append(value)
        read = {"model": self._model, "dict": self._dict, "literal": self._literal, "merge": self._merge}.get(
            command[0]
        )
        if read is None:
            raise RecipeError(f"received {received(command[0])}; an instruction is model, dict, literal or merge")
        self.results.append(read(arguments, named))

    def _comment(self, line: str) -> None:
        """Take the names of steps and mapping from a comment of blockfit's export; the merge itself needs none."""
        if found := _MAPPING.fullmatch(line):
            self.mapping = found["mapping"]
            self.called = json_text(found["name"])
        for mode in MODES.values():
            start, sign, _ = line.removeprefix("# ").partition(f": {mode.formula} a=")
            if sign:
                self.title = start

    def _value(self, token: re.Match[str]) -> Any:
        """Return the value of a token: a text, a constant, the result of an earlier instruction, or a number."""
        if token["text"] is not None:
            return re.sub(r"\\(.)", r"\1", token["text"])
        word = token["word"]
        if word in _CONSTANTS:
            return _CONSTANTS[word]
        if word.startswith("&"):
            number = int(word[1:]) if word[1:].isdecimal() else -1
            if not 0 <= number < len(self.results):
                raise RecipeError(
                    f"received {received(word)}; must be one of the {len(self.results)} instructions above"
                )
            return self.results[number]
        try:
            return float(word)
        except ValueError:
            raise RecipeError(f"received {received(word)}; must be a number, a text or a reference (&0)") from None

    def _model(self, arguments: Sequence[Any], named: Mapping[str, Any]) -> Any:
        if not arguments or not isinstance(arguments[0], str):
            raise RecipeError("a model must have a file")
        config = named.get("model_config")
        if config is not None and config != self.names.model:
            raise RecipeError(f"model_config: received {received(config)}; blockfit reads {self.names.model}")
        space = named.get("merge_space", "weight")
        if space == "param":
            return _Presence()
        if space not in ("weight", None):
            raise RecipeError(f"merge_space: received {received(space)}; must be weight")
        return _Model(self.sources.name(arguments[0]))

    def _dict(self, arguments: Sequence[Any], named: Mapping[str, Any]) -> dict[str, Any]:
        return dict(named)

    def _literal(self, arguments: Sequence[Any], named: Mapping[str, Any]) -> Any:
        value, config = (arguments[0] if arguments else None), named.get("model_config")
        if not isinstance(value, dict):
            return value
        blocks, model = self.names.blocks, self.names.model
        if config not in (blocks, model, _ONE):
            raise RecipeError(f"model_config: received {received(config)}; blockfit reads {blocks}, {model} and {_ONE}")
        literal = _Literal(str(config), value)
        return self._by_tensor(literal) if config == model else literal

    def _by_tensor(self, literal: _Literal) -> _Alpha:
        """Return the alpha of numbers by tensor; a place without a block (time_embed) gets its number this way."""
        values = set(literal.numbers.values())
        for place, tensors in self.names.tensors.items():
            if set(literal.numbers) == {place + tensor for tensor in tensors} and len(values) == 1:
                return _Alpha({place: _number(values.pop())})
        raise RecipeError("received numbers for single tensors; a recipe has one number for each block")

    def _merge(self, arguments: Sequence[Any], named: Mapping[str, Any]) -> Any:
        method, *rest = arguments or [None]
        converters = {self.names.converter: self.names.blocks, _CONVERT_ONE: _ONE}
        if isinstance(method, str) and method in converters:
            return self._converted(rest[0] if rest else None, converters[method])
        read = _METHODS.get(method) if isinstance(method, str) else None
        if read is None:
            raise RecipeError(
                f"the method {received(method)} is no weighted sum or difference; a recipe has no other steps"
            )
        return read(self, rest, named)

    def _converted(self, literal: Any, config: str) -> _Alpha:
        if not isinstance(literal, _Literal) or literal.config != config:
            raise RecipeError(f"a conversion must take numbers for {config}")
        if config == _ONE:
            return self.alpha(next(iter(literal.numbers.values()), None))
        others = self.names.others
        unknown = [block for block in literal.numbers if block not in (*self.layout.blocks, *others)]
        if unknown:
            raise RecipeError(f"received the block {received(unknown[0])}; {self.layout.name} has no such block")
        places = [place for place in self.layout.places if place not in others.values()]
        blocks = {place: self.layout.block_of(place, self.names.mapping) for place in places}
        numbers = {block: _number(value) for block, value in literal.numbers.items()}
        by_prefix = {prefix: numbers[block] for prefix, block in blocks.items() if block in numbers}
        return _Alpha(by_prefix | {prefix: numbers[block] for block, prefix in others.items() if block in numbers})

    def alpha(self, value: Any) -> _Alpha:
        """Return the alpha by prefix; a single number holds for all prefixes."""
        return value if isinstance(value, _Alpha) else _Alpha(dict.fromkeys(self.layout.places, _number(value)))

    def step(self, mode: str, inputs: Mapping[str, Any], alpha: Any) -> _Model:
        """Add a step and return its result."""
        for place, model in inputs.items():
            if not isinstance(model, _Model):
                raise RecipeError(f"input {place} of {mode} must be a model")
        numbers = self.alpha(alpha).numbers
        if missing := [place for place in self.layout.places if place not in numbers]:
            raise RecipeError(f"no alpha for {missing[0]}*; sd-mecha leaves such tensors out of its output")
        if len(self.steps) == MOST_STEPS:
            raise RecipeError(f"more than {MOST_STEPS:,} steps; a recipe has at most {MOST_STEPS:,}")
        key = f"\0{len(self.steps)}"
        if self.title is not None:
            self.commented.setdefault(self.title, []).append(key)
        self.steps[key] = PlacedStep(
            key, mode, {place: model.name for place, model in inputs.items()}, {"alpha": numbers}
        )
        return _Model(key)

    def takes(self, step: str, model: str) -> bool:
        """Return whether a step takes a model, directly or through other steps."""
        seen, waiting = {step}, deque([step])
        while waiting:
            key = waiting.popleft()
            if key == model:
                return True
            inputs = self.steps[key].inputs.values() if key in self.steps else ()
            new = [name for name in inputs if name not in seen]
            seen.update(new)
            waiting += new
        return False

    def recipe(self, name: str) -> tuple[Recipe, list[str]]:
        """Return the recipe of the last instruction's result, and notes about it as sentences."""
        result = self.results[-1] if self.results else None
        if not isinstance(result, _Model) or result.name not in self.steps:
            raise RecipeError("the last instruction must be a merge of models")
        needed: set[str] = set()
        queue = [result.name]
        while queue:
            key = queue.pop()
            if key in self.steps and key not in needed:
                needed.add(key)
                queue += self.steps[key].inputs.values()
        order = [key for key in self.steps if key in needed]
        order.sort(key=lambda key: key == result.name)
        names = self._names(order)
        steps = [
            PlacedStep(
                names[key],
                self.steps[key].mode,
                {place: names.get(model, model) for place, model in self.steps[key].inputs.items()},
                self.steps[key].alphas,
            )
            for key in order
        ]
        used = {model for step in steps for model in step.inputs.values()}
        models = {model: entry for model, entry in self.sources.models.items() if model in used}
        return recipe_of_steps(
            self.called or name, self.layout, models, steps, prefer=self.mapping or self.names.mapping
        )

    def _names(self, order: Sequence[str]) -> dict[str, str]:
        """Return the steps' names: the last step under a comment gets the comment's, others TEMP1, TEMP2, ..."""
        taken, needed = set(self.sources.models), set(order)
        named: dict[str, str] = {}
        for title, keys in self.commented.items():
            *inner, last = [key for key in keys if key in needed] or [""]
            named |= {key: f"{title}_{number}" for number, key in enumerate(inner, 1)} | ({last: title} if last else {})
        names: dict[str, str] = {}
        for position, key in enumerate(order, 1):
            name = named.get(key, f"TEMP{position}")
            names[key] = next(free for n in count(1) if (free := name if n == 1 else f"{name}-{n}") not in taken)
            taken.add(names[key])
        return names


def _number(value: Any) -> float:
    number = None if isinstance(value, str) else number_in(value)
    if number is None:
        raise RecipeError(f"received {received(value)}; must be a number")
    return number


def _argument(arguments: Sequence[Any], named: Mapping[str, Any], position: int, name: str, default: Any = None) -> Any:
    return arguments[position] if position < len(arguments) else named.get(name, default)


def _weighted_sum(reader: _Reader, arguments: Sequence[Any], named: Mapping[str, Any]) -> _Model:
    a, b = (_argument(arguments, named, place, "ab"[place]) for place in (0, 1))
    return reader.step("weight_sum", {"a": a, "b": b}, _argument(arguments, named, 2, "alpha", 0.5))


def _add_difference(reader: _Reader, arguments: Sequence[Any], named: Mapping[str, Any]) -> _Model:
    difference = _argument(arguments, named, 1, "b")
    if not isinstance(difference, _Difference):
        raise RecipeError("add_difference must take a difference (subtract) as b")
    inputs = {"a": _argument(arguments, named, 0, "a"), "b": difference.first, "c": difference.second}
    return reader.step("add_difference", inputs, _argument(arguments, named, 2, "alpha", 1.0))


def _subtract(reader: _Reader, arguments: Sequence[Any], named: Mapping[str, Any]) -> _Difference:
    first, second = (_argument(arguments, named, place, "ab"[place]) for place in (0, 1))
    if not isinstance(first, _Model) or not isinstance(second, _Model):
        raise RecipeError("subtract must take two models")
    return _Difference(first, second)


def _fallback(reader: _Reader, arguments: Sequence[Any], named: Mapping[str, Any]) -> Any:
    """Return the first alpha completed from the second; of two models the first, as a recipe carries tensors over."""
    first, default = (_argument(arguments, named, place, ("a", "default")[place]) for place in (0, 1))
    if isinstance(first, _Alpha):
        return _Alpha({**reader.alpha(default).numbers, **first.numbers})
    if isinstance(first, _Model) and isinstance(default, _Model):
        if not reader.takes(first.name, default.name):
            raise RecipeError("a fallback must be to a model that the step merges")
        return first
    if isinstance(first, _Model | _Difference | _Presence):
        return first
    raise RecipeError("a fallback must be for a model or an alpha")


def _cast(reader: _Reader, arguments: Sequence[Any], named: Mapping[str, Any]) -> Any:
    return _argument(arguments, named, 0, "a")


def _get_device(reader: _Reader, arguments: Sequence[Any], named: Mapping[str, Any]) -> _Presence:
    return _Presence()


def _omit_component(reader: _Reader, arguments: Sequence[Any], named: Mapping[str, Any]) -> _Alpha:
    alpha, component = (_argument(arguments, named, place, ("a", "component")[place]) for place in (0, 1))
    places = reader.names.components
    if not isinstance(alpha, _Alpha) or component not in places:
        raise RecipeError(f"omit_component of {received(component)}; a recipe merges whole models")
    return _Alpha({place: number for place, number in alpha.numbers.items() if place != places[component]})


_METHODS: dict[str, Callable[[_Reader, Sequence[Any], Mapping[str, Any]], Any]] = {
    "weighted_sum": _weighted_sum,
    "add_difference": _add_difference,
    "subtract": _subtract,
    "fallback": _fallback,
    "cast": _cast,
    "get_device": _get_device,
    "omit_component": _omit_component,
}
