"""The first screen of the report page: the sources in and out of the target, and the texts to go on with."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath

from optimizer.analysis import Verdict
from optimizer.interchange import approximate_recipe, formula_of, write_notation
from optimizer.printable import printable, quoted
from optimizer.recipes import Recipe, Step, preset_blocks, preset_line
from optimizer.reports.page.rounding import few_digits, number_in_short
from optimizer.studies import StudyFolder

__all__ = [
    "Command",
    "Numbers",
    "SourceLine",
    "commands",
    "for_supermerger",
    "numbers_of",
    "source_lines",
    "step_title",
]

_DECIMALS = 2  # of a coefficient, as in the verdict


@dataclass(frozen=True)
class SourceLine:
    """A source on the first screen.

    Attributes:
        name: The source.
        inside: Whether the target needs it; None if that is unknown.
        target: Its mean coefficient in the target in few digits, with its standard error where it matters.
        spread: Its least and largest coefficient in a block; empty if they are alike.
        recipe: Its mean coefficient in the recipe.
        gain: Share of the target, in [0, 1], that is explained only with it; None if unknown.

    """

    name: str
    inside: bool | None
    target: str
    spread: str
    recipe: float
    gain: float | None


def source_lines(coefficients: Mapping[str, float], verdict: Verdict | None, base: str) -> tuple[SourceLine, ...]:
    """Return a line for each source but the base: those in the target first, by what they explain.

    Args:
        coefficients: The mean coefficient of each source in the recipe.
        verdict: The verdict; None without the sources' statistics.
        base: The study's base, by its name in the recipe.

    Returns:
        The lines.
    """
    lines = []
    for name, recipe in coefficients.items():
        found = None if verdict is None else verdict.sources.get(name)
        if found is None:
            if name != base:
                lines.append(SourceLine(name, None, "", "", recipe, None))
            continue
        least, most = few_digits(found.least, _DECIMALS), few_digits(found.most, _DECIMALS)
        spread = "" if least == most else f"{least} to {most}"
        inside = few_digits(found.coefficient, _DECIMALS)
        target = inside if found.inside else number_in_short(found.coefficient, found.error)
        lines.append(SourceLine(name, found.inside, target, spread, recipe, max(found.gain, 0.0)))
    return tuple(sorted(lines, key=lambda line: (line.inside is not True, -(line.gain or 0.0))))


def step_title(recipe: Recipe, step: Step) -> str:
    """Return what a step adds or mixes in, by the models' names: "slanted - base", "dreamshaper_8"."""
    if step.mode == "add_difference":
        return f"{printable(step.b)} \N{MINUS SIGN} {printable(step.c or '')}"
    if step.mode == "triple_sum":
        return f"{printable(step.b)} and {printable(step.c or '')}"
    # Where a step is mixed in, its own name says less than that of the model that it is mixed into.
    return printable(step.b) if step.b in recipe.models else f"{printable(step.a)} with {printable(step.b)}"


@dataclass(frozen=True)
class Numbers:
    """An alpha of a step in SuperMerger's form.

    Attributes:
        step: The step's name.
        title: What the step adds or mixes in.
        alpha: The alpha's name.
        formula: The step's formula.
        numbers: Its numbers, separated by commas, with all digits.
        shown: The same in few digits; one number if all are equal.

    """

    step: str
    title: str
    alpha: str
    formula: str
    numbers: str
    shown: str


def numbers_of(recipe: Recipe) -> list[Numbers]:
    """Return the alphas of all steps that the recipe's output needs."""
    blocks = recipe.layout.blocks
    found = []
    for step in recipe.ancestors():
        formula, _ = formula_of(step, blocks)
        for name, alpha in step.alphas.items():
            shown = [few_digits(alpha.at(block)) for block in blocks]
            found.append(
                Numbers(
                    step.name,
                    step_title(recipe, step),
                    name,
                    f"{formula} = {step.name}",
                    _preset(recipe, step, name, blocks).partition("\t")[2],
                    f"{shown[0]} in every block" if len(set(shown)) == 1 else ", ".join(shown),
                )
            )
    return found


def _preset(recipe: Recipe, step: Step, alpha: str, blocks: Sequence[str]) -> str:
    values = {block: step.alphas[alpha].at(block) for block in recipe.layout.blocks}
    return preset_line(step.name if alpha == "alpha" else f"{step.name}_{alpha}", values, blocks)


def for_supermerger(recipe: Recipe) -> str:
    """Return a line for SuperMerger's presets for each alpha, then the formulas of the steps, with all digits."""
    listed = preset_blocks(recipe.layout)
    presets = [_preset(recipe, step, alpha, listed) for step in recipe.ancestors() for alpha in step.alphas]
    return "\n".join([*presets, "", write_notation(recipe.trimmed())])


@dataclass(frozen=True)
class Command:
    """A command line with the word for what it does; `first` marks those of the first screen."""

    what: str
    line: str
    first: bool = False


def commands(named: str, folder: PurePath, storage: str | None, recipe: Recipe) -> Iterator[Command]:
    """Yield the commands that go on from here.

    Args:
        named: The study's folder or file as the user typed it.
        folder: The study's folder as the user typed it.
        storage: Address of the trials, without secrets; None for the study's folder.
        recipe: The fitted recipe.

    Yields:
        The commands.
    """
    best = quoted(StudyFolder(Path(folder)).best.as_posix())
    study = quoted(named)
    stored = "" if storage is None else f" --storage {quoted(storage)}"
    yield Command("fit, or resume the fit", f"blockfit fit {study}{stored}")
    yield Command("merge", f"blockfit merge {best} -o {_file_name(recipe.name)}.safetensors", first=True)
    tools = recipe.layout.tools
    # ComfyUI merges with ratios from 0 to 1, text encoders in its own way, and no VAEs.
    if tools.knows("comfyui") and not approximate_recipe(recipe, "comfyui").changes:
        yield Command("export to ComfyUI", f"blockfit export {best} --to comfyui -o workflow.json", first=True)
    elif tools.knows("mecha"):
        yield Command("export to sd-mecha", f"blockfit export {best} --to mecha -o recipe.mecha", first=True)
    if tools.knows("supermerger"):
        yield Command("export for SuperMerger", f"blockfit export {best} --to supermerger -o recipe.txt")
    yield Command("compute what these sources can reach", f"blockfit ceiling {study}")
    yield Command("write this page", f"blockfit report {study}{stored}")


def _file_name(name: str) -> str:
    return "".join(letter if letter.isalnum() or letter in "._-" else "-" for letter in name)[:60] or "clone"
