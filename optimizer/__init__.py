"""blockfit: fit the recipe of a closed merge from its sources, block by block.

    from optimizer import fit, new_recipe, new_study

    recipe = new_recipe(
        {"base": "base.safetensors", "bra": "bra.safetensors"},
        steps=[dict(name="OUT", mode="add_difference", a="base", b="bra", c="base", alpha={"search": [0, 1]})],
    )
    study = new_study(recipe, target="closed.safetensors", folder="my-study", trials=40)
    result = fit(study)
    print(result.similarity, result.recipe.step("OUT").alpha)

All names of `__all__` can be imported from here. Each is loaded, with the libraries that it needs, when it is first
asked for: `import optimizer` alone takes no time. What they are, `help` tells: `help(optimizer.new_study)`.

Imports point one way, see CONTRIBUTING.md: files, families, checkpoints, library and recipes, merging, interchange and
similarity, pictures, samplers, studies, analysis, search, reports, demo, cli.
"""

import importlib
import warnings
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    # For editors and type checkers; at run time `_HOMES` says the same.
    from optimizer.analysis import Ceiling, Simplified, found_ceilings, simplify_file, study_ceilings, verify
    from optimizer.demo import copy_family
    from optimizer.errors import BlockfitWarning, CheckpointError, InputError, RecipeError, StudyError
    from optimizer.interchange import export_recipe, import_text
    from optimizer.library import HashCache, Inspection, default_cache_folder, inspect_checkpoint
    from optimizer.merging import merge
    from optimizer.pictures import Preview, preview
    from optimizer.recipes import (
        Alpha,
        Free,
        Model,
        Recipe,
        Step,
        block_coefficients,
        load_recipe,
        new_recipe,
        save_recipe,
    )
    from optimizer.reports.frames import (
        alphas_frame,
        ceiling_frame,
        coefficients_frame,
        similarity_frame,
        sources_frame,
    )
    from optimizer.reports.page import write_report
    from optimizer.reports.plots import figures, write_plots
    from optimizer.reports.trials import trials_table, write_trials
    from optimizer.search import FitEvents, FitResult, StudyStatus, fit, found_result, study_status
    from optimizer.similarity import compare, total_similarity
    from optimizer.studies import Stage, Study, load_study, new_study

from optimizer.version import __version__  # noqa: F401  as `optimizer.__version__`

__all__ = [
    "Alpha",
    "BlockfitWarning",
    "Ceiling",
    "CheckpointError",
    "FitEvents",
    "FitResult",
    "Free",
    "HashCache",
    "InputError",
    "Inspection",
    "Model",
    "Preview",
    "Recipe",
    "RecipeError",
    "Simplified",
    "Stage",
    "Step",
    "Study",
    "StudyError",
    "StudyStatus",
    "alphas_frame",
    "block_coefficients",
    "ceiling_frame",
    "coefficients_frame",
    "compare",
    "copy_family",
    "default_cache_folder",
    "export_recipe",
    "figures",
    "fit",
    "found_ceilings",
    "found_result",
    "import_text",
    "inspect_checkpoint",
    "load_recipe",
    "load_study",
    "merge",
    "new_recipe",
    "new_study",
    "preview",
    "save_recipe",
    "similarity_frame",
    "simplify_file",
    "sources_frame",
    "study_ceilings",
    "study_status",
    "total_similarity",
    "trials_table",
    "verify",
    "write_plots",
    "write_report",
    "write_trials",
]

# Which part each name comes from.
_HOMES = {
    "analysis": ("Ceiling", "Simplified", "found_ceilings", "simplify_file", "study_ceilings", "verify"),
    "demo": ("copy_family",),
    "errors": ("BlockfitWarning", "CheckpointError", "InputError", "RecipeError", "StudyError"),
    "interchange": ("export_recipe", "import_text"),
    "library": ("HashCache", "Inspection", "default_cache_folder", "inspect_checkpoint"),
    "merging": ("merge",),
    "pictures": ("Preview", "preview"),
    "recipes": (
        "Alpha", "Free", "Model", "Recipe", "Step", "block_coefficients", "load_recipe", "new_recipe", "save_recipe",
    ),
    "reports.frames": (
        "alphas_frame", "ceiling_frame", "coefficients_frame", "similarity_frame", "sources_frame",
    ),
    "reports.page": ("write_report",),
    "reports.plots": ("figures", "write_plots"),
    "reports.trials": ("trials_table", "write_trials"),
    "search": ("FitEvents", "FitResult", "StudyStatus", "fit", "found_result", "study_status"),
    "similarity": ("compare", "total_similarity"),
    "studies": ("Stage", "Study", "load_study", "new_study"),
}  # fmt: skip
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}


def __getattr__(name: str) -> Any:
    """Load what is asked for, once (PEP 562)."""
    if name not in _HOME_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    with warnings.catch_warnings():
        # In a notebook the progress bars of libraries miss a library of their own; none of them is shown.
        warnings.filterwarnings("ignore", "IProgress not found")
        value = getattr(importlib.import_module(f"{__name__}.{_HOME_OF[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """The public names, loaded or not."""
    return sorted({*globals(), *__all__})
