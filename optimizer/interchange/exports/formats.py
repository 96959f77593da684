"""The registry of export formats. A new format is a module with its `write`, and a line in `EXPORTS`."""

from collections.abc import Callable
from dataclasses import dataclass

from optimizer.choices import FormatName
from optimizer.errors import RecipeError
from optimizer.families import layout_names, load_layout
from optimizer.interchange.exports.comfyui import write_comfyui
from optimizer.interchange.exports.mecha import write_mecha
from optimizer.interchange.exports.mergekit import write_mergekit
from optimizer.interchange.exports.model_mixer import write_model_mixer
from optimizer.interchange.exports.supermerger import write_supermerger
from optimizer.recipes import Recipe

__all__ = ["EXPORTS", "Export", "export_recipe"]


@dataclass(frozen=True)
class Export:
    """A format that recipes can be exported to.

    Attributes:
        name: The name of the format.
        write: Returns the whole text of the file for a recipe without free alphas, or raises RecipeError.
        tool: The tool whose convention for a family the format follows, one of the layout's `tools`; None for a format
            that fits every layout.

    """

    name: FormatName
    write: Callable[[Recipe], str]
    tool: str | None = None

    def layouts(self) -> tuple[str, ...]:
        """Return the names of the layouts that the format can express."""
        return tuple(name for name in layout_names() if self.tool is None or load_layout(name).tools.knows(self.tool))


EXPORTS: dict[str, Export] = {
    export.name: export
    for export in (
        Export("supermerger", write_supermerger, "supermerger"),
        Export("model-mixer", write_model_mixer, "model-mixer"),
        Export("mecha", write_mecha, "mecha"),
        Export("comfyui", write_comfyui, "comfyui"),
        Export("mergekit", write_mergekit, "mergekit"),
    )
}


def export_recipe(recipe: Recipe, format_name: str) -> str:
    """Return the text of the file that makes the recipe's output in another tool.

        Path("workflow.json").write_text(export_recipe(result.recipe, "comfyui"), encoding="utf-8")

    The file contains only the steps that the output needs, each after its inputs.

    Args:
        recipe: A recipe without free alphas.
        format_name: The format, a key of `EXPORTS`.

    Returns:
        The text of the file, to be stored as UTF-8.

    Raises:
        RecipeError: If the format is unknown, the recipe has free alphas, or the format cannot express it. The error
            has a line for each problem.

    """
    if format_name not in EXPORTS:
        raise RecipeError(f"received {format_name!r}; must be one of {', '.join(EXPORTS)}", field="format_name")
    export = EXPORTS[format_name]
    if export.tool is not None and not recipe.layout.tools.knows(export.tool):
        raise RecipeError(
            f"layout: received {recipe.layout.name!r}; the {format_name} export takes {', '.join(export.layouts())}"
        )
    recipe.check_finished("exported")
    return export.write(recipe)
