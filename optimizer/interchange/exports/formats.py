"""The registry of export formats. A new format is a module with its `write`, and a line in `EXPORTS`."""

from collections.abc import Callable
from dataclasses import dataclass

from optimizer.choices import FormatName
from optimizer.errors import RecipeError
from optimizer.families import layout_names, load_layout
from optimizer.interchange.exports.approximation import Approximation
from optimizer.interchange.exports.comfyui import approximate_for_comfyui, write_comfyui
from optimizer.interchange.exports.mecha import write_mecha
from optimizer.interchange.exports.mergekit import write_mergekit
from optimizer.interchange.exports.model_mixer import (
    approximate_for_model_mixer,
    model_mixer_notes,
    write_model_mixer,
)
from optimizer.interchange.exports.supermerger import supermerger_notes, write_supermerger
from optimizer.recipes import Recipe

__all__ = ["EXPORTS", "Export", "approximate_recipe", "export_notes", "export_recipe"]


@dataclass(frozen=True)
class Export:
    """A format that recipes can be exported to.

    Attributes:
        name: The name of the format.
        write: Returns the whole text of the file for a recipe without free alphas, or raises RecipeError.
        tool: The tool whose convention for a family the format follows, one of the layout's `tools`; None for a format
            that fits every layout.
        approximate: Returns the nearest recipe that the format can express; None for a format without.
        notes: Returns sentences on what the export does not show, and on what to set in the tool.

    """

    name: FormatName
    write: Callable[[Recipe], str]
    tool: str | None = None
    approximate: Callable[[Recipe], Approximation] | None = None
    notes: Callable[[Recipe], list[str]] = lambda _: []

    def layouts(self) -> tuple[str, ...]:
        """Return the names of the layouts that the format can express."""
        return tuple(name for name in layout_names() if self.tool is None or load_layout(name).tools.knows(self.tool))


EXPORTS: dict[str, Export] = {
    export.name: export
    for export in (
        Export("supermerger", write_supermerger, "supermerger", notes=supermerger_notes),
        Export("model-mixer", write_model_mixer, "model-mixer", approximate_for_model_mixer, model_mixer_notes),
        Export("mecha", write_mecha, "mecha"),
        Export("comfyui", write_comfyui, "comfyui", approximate_for_comfyui),
        Export("mergekit", write_mergekit, "mergekit"),
    )
}


def export_recipe(recipe: Recipe, format_name: str, *, approximate: bool = False) -> str:
    """Return the text of the file that makes the recipe's output in another tool.

        Path("workflow.json").write_text(export_recipe(result.recipe, "comfyui"), encoding="utf-8")

    The file contains only the steps that the output needs, each after its inputs. RecipeError, with a line for each
    problem, is raised if the format is unknown, the recipe has free alphas, or the format cannot express it.

    Args:
        recipe: A recipe without free alphas.
        format_name: The format, a key of `EXPORTS`.
        approximate: Change what the format cannot express; `approximate_recipe` says what that is.

    Returns:
        The text of the file, to be stored as UTF-8.

    """
    export = _checked(recipe, format_name)
    return export.write(approximate_recipe(recipe, format_name).recipe if approximate else recipe)


def export_notes(recipe: Recipe, format_name: str) -> tuple[str, ...]:
    """Return sentences on an export: steps written in another way, and what to set in the tool.

    RecipeError is raised if the format is unknown, or the recipe has free alphas.

    Args:
        recipe: The exported recipe.
        format_name: The format, a key of `EXPORTS`.

    Returns:
        The sentences; none if there is nothing to say.

    """
    return tuple(_checked(recipe, format_name).notes(recipe))


def approximate_recipe(recipe: Recipe, format_name: str) -> Approximation:
    """Return the nearest recipe that a format can express, and what was changed.

        found = approximate_recipe(result.recipe, "comfyui")
        text = export_recipe(found.recipe, "comfyui")

    For comfyui alphas are clipped to 0..1, the alpha of a triple sum to a share of its a of at least 0, and a mixed VAE
    becomes that of the source with the largest share. For model-mixer the VAE becomes model A's, and time_embed moves
    as in model-mixer. `conversion_loss` measures what that costs.

    Args:
        recipe: A recipe without free alphas.
        format_name: The format, comfyui or model-mixer.

    Returns:
        The recipe and its changes, none if the format can express it as it is. The export of this recipe may still be
        refused for other reasons, names of files for example.

    Raises:
        RecipeError: The format is another one, or the recipe has free alphas.

    """
    export = _checked(recipe, format_name)
    if export.approximate is None:
        able = " and ".join(name for name, other in EXPORTS.items() if other.approximate is not None)
        raise RecipeError(
            f"received {format_name}, which is exact wherever it is not refused; {able} are approximated; leave the "
            "option out",
            field="approximate",
        )
    return export.approximate(recipe)


def _checked(recipe: Recipe, format_name: str) -> Export:
    """Return the format of this name, or raise RecipeError if it is unknown or does not fit the recipe."""
    if format_name not in EXPORTS:
        raise RecipeError(f"received {format_name!r}; must be one of {', '.join(EXPORTS)}", field="format_name")
    export = EXPORTS[format_name]
    if export.tool is not None and not recipe.layout.tools.knows(export.tool):
        raise RecipeError(
            f"layout: received {recipe.layout.name!r}; the {format_name} export takes {', '.join(export.layouts())}"
        )
    recipe.check_finished("exported")
    return export
