"""Writes recipes in SuperMerger's notation, from which `read_notation` returns the same recipe."""

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

MOST_COMPARED = 200  # names compared in a search for a similar one


def write_notation(recipe: Recipe) -> str:
    """Return a recipe as text from which `read_notation` returns the same recipe, without results of a fit.

    Each step is one line. Its numbers by block follow on a separate line, unless one number applies to all blocks.

    Args:
        recipe: The recipe; its results of a fit (`similarity`) are not written.

    Returns:
        Lines of text, each ending in a newline.
    """
    lines = _declarations(recipe)
    for step in recipe.steps:
        formula, on_own_line = formula_of(step, recipe.layout.blocks)
        lines.append(f"{formula} = {quoted(step.name)}")
        lines += [
            f"    {name} = {_alpha_text(alpha, recipe.layout)}"
            for name, alpha in step.alphas.items()
            if on_own_line[name]
        ]
        if step.expect is not None:
            lines += _expected_lines(step.expect, recipe.layout)
    return "\n".join(lines) + "\n"


def _declarations(recipe: Recipe) -> list[str]:
    """Return the declarations that formulas lack and `read_notation` would not assume."""
    lines = [f"recipe: {_json(recipe.name)}"]
    if recipe.layout.name != DEFAULT_LAYOUT:
        lines.append(f"layout: {_json(recipe.layout.name)}")
    # The mapping is always written, since the same numbers give another checkpoint under another mapping.
    lines.append(f"mapping: {_json(recipe.mapping)}")
    known = [step.name for step in recipe.steps]
    sources = [name for step in recipe.steps for name in step.inputs.values() if name not in known]
    assumed = {name: Model(file_of(name)) for name in sources}
    # A declaration prevents `read_notation` from confusing a model with a step or model of a similar name.
    steps, plain = NamesByLikeness(known), {squeezed(name) for name in recipe.models}
    clear = len(plain) == len(recipe.models) <= MOST_COMPARED and not any(
        is_near(name, step) for name in recipe.models for step in steps.like(name)
    )
    undeclared = clear and list(assumed.items()) == list(recipe.models.items())
    for name, model in () if undeclared else recipe.models.items():
        more = "" if model.license == "unknown" else f", license {_json(model.license)}"
        more += f", sha256 {_json(model.sha256)}" if model.sha256 is not None else ""
        lines.append(f"model {quoted(name)}: {_json(model.file)}{more}")
    if recipe.vae is not None:
        lines.append(f"vae: {_json(recipe.vae)}")
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
    """Return the assumed file of a model of which only the name is known: the name, with .safetensors if needed."""
    return name if name.lower().endswith(CHECKPOINT_SUFFIXES) else f"{name}.safetensors"


def ending_of(steps: Iterable[Step]) -> tuple[str, tuple[str, ...], tuple[str, ...]]:
    """Return the output of steps, and the candidates for it.

    Args:
        steps: The steps of a recipe, at least one.

    Returns:
        The name of the unused step that needs the most other steps, the last one of several; the names of all unused
        steps; and the names of those that need as many steps as the first.
    """
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
