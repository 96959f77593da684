"""Recipes printed in SuperMerger's notation, so that they are read back as the same recipe."""

import json
from collections.abc import Iterable
from decimal import Decimal
from typing import Any

from optimizer.families import DEFAULT_LAYOUT, Layout
from optimizer.files import CHECKPOINT_SUFFIXES
from optimizer.interchange.notation.formulas import formula_of
from optimizer.interchange.notation.likeness import NamesByLikeness, is_near, squeezed
from optimizer.interchange.notation.tokens import quoted, value_of
from optimizer.recipes import Alpha, Expected, Model, Recipe, Step, alpha_as_data

__all__ = ["MOST_COMPARED", "ending_of", "file_of", "write_notation"]

MOST_COMPARED = 200  # names that are looked at for one that is nearly the same


def write_notation(recipe: Recipe) -> str:
    """The recipe as text that `read_notation` reads as the same recipe, results of a fit (`similarity`) left out.

    Formulas as in the article: one line a step, its numbers by block below it where one does not hold for all blocks.
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


def _declarations(recipe: Recipe) -> list[str]:
    """What formulas do not say, where it is not what `read_notation` would assume."""
    lines = [f"recipe: {_json(recipe.name)}"]
    if recipe.layout.name != DEFAULT_LAYOUT:
        lines.append(f"layout: {_json(recipe.layout.name)}")
    # The same numbers make another checkpoint under another mapping, so it always stands there.
    lines.append(f"mapping: {_json(recipe.mapping)}")
    known = [step.name for step in recipe.steps]
    met = [name for step in recipe.steps for name in step.inputs.values() if name not in known]
    assumed = {name: Model(file_of(name)) for name in met}
    # Declared models are never taken for a step or a model of nearly the same name.
    steps, plain = NamesByLikeness(known), {squeezed(name) for name in recipe.models}
    clear = len(plain) == len(recipe.models) <= MOST_COMPARED and not any(
        is_near(name, step) for name in recipe.models for step in steps.like(name)
    )
    undeclared = clear and list(assumed.items()) == list(recipe.models.items())
    for name, model in () if undeclared else recipe.models.items():
        more = "" if model.license == "unknown" else f", license {_json(model.license)}"
        more += f", sha256 {_json(model.sha256)}" if model.sha256 is not None else ""
        lines.append(f"model {quoted(name)}: {_json(model.file)}{more}")
    if recipe.output != ending_of(recipe.steps)[0]:
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


def file_of(name: str) -> str:
    """Return the file that a model is assumed to be where nothing but its name is known."""
    return name if name.lower().endswith(CHECKPOINT_SUFFIXES) else f"{name}.safetensors"


def ending_of(steps: Iterable[Step]) -> tuple[str, tuple[str, ...], tuple[str, ...]]:
    """The step that needs the most others, the last of several; all steps that none uses; those that need as many."""
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

    counts = {name: needs(name) for name in endings}
    most = max(counts.values())
    alike = tuple(name for name, count in counts.items() if count == most)
    return alike[-1], endings, alike
