"""Fit the demo family in four studies, show the found coefficients beside the true ones, draw pictures and report."""

import shutil
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from optimizer.errors import BlockfitWarning, InputError
from optimizer.extras import has_extra, missing_extra
from optimizer.files import atomic_path, refuse_links, temporary_folder
from optimizer.library import Library
from optimizer.merging import merge
from optimizer.recipes import Recipe, block_coefficients, load_recipe
from optimizer.search import FitResult
from optimizer.similarity import total_similarity
from optimizer.studies import Study, StudyFolder, load_study

__all__ = ["Demo", "copy_family", "family_folder", "run_demo"]

# {title in the tables: folder of the study below the demo's}. The article's study needs the extra `encoder`.
STUDIES = {"delta": "", "attention": "attention", "stepwise": "stepwise", "article": "article"}
_FILES = (
    "answer",
    "article/recipe.yaml",
    "article/study.yaml",
    "attention/study.yaml",
    "models",
    "recipe.yaml",
    "stepwise/study.yaml",
    "study.yaml",
    "target.safetensors",
)
# Files that the demo writes beside those, and beside the files of each fit.
_WRITTEN = (
    "assembled.safetensors",
    "digits.png",
    "fit.safetensors",
    "half.safetensors",
    StudyFolder(Path()).pictures.name,
    StudyFolder(Path()).report.name,
)
_SEED = 7
# The pictures in the report.
_SHOWN = ("a digit three", "a digit five", "a digit eight", "a digit two")


def family_folder() -> Path:
    """Return the folder of the family that ships with blockfit: in a wheel beside this file, else studies/demo.

    Raises:
        InputError: If the installation lacks the family.

    """
    here = Path(__file__).resolve()
    for folder in (here.parent / "family", here.parents[2] / "studies" / "demo"):
        if (folder / "study.yaml").is_file():
            return folder
    raise InputError("the demo's checkpoints are missing from this installation; install blockfit from its wheel")


@dataclass(frozen=True)
class Demo:
    """The results of the demo.

    Attributes:
        fits: The fits by the name of their study.
        recipes: The fitted recipes by the same names, after the true one.
        pictures: The file of the contact sheet; None without the extra `pictures`.
        report: The page of the first fit.

    """

    fits: Mapping[str, FitResult]
    recipes: Mapping[str, Recipe]
    pictures: Path | None
    report: Path

    def as_dict(self) -> dict[str, Any]:
        """Return the results for JSON, with the mean coefficient of each source in each recipe and its mean error."""
        means = mean_coefficients(self.recipes)
        return {
            "fits": {name: result.as_dict() for name, result in self.fits.items()},
            "coefficients": {
                name: {source: {"mean": found[name][0], "error": found[name][1]} for source, found in means.items()}
                for name in self.recipes
            },
            "pictures": None if self.pictures is None else str(self.pictures),
            "report": str(self.report),
        }


def run_demo(
    folder: Path,
    *,
    fit: Callable[[Study], FitResult],
    fit_briefly: Callable[[Study], FitResult],
    report: Callable[[Path, Sequence[str]], Path],
    console: Console,
) -> Demo:
    """Copy the family to `folder` unless it exists, fit it, and write digits.png and report.html beside the results.

    Without the extra `pictures`, a BlockfitWarning names what the demo leaves out: the pictures and, without the extra
    `encoder` too, the article's study. A folder that cannot be written gives an InputError.

    Args:
        folder: The folder of the demo.
        fit: A function that runs a study, writes its results and prints them.
        fit_briefly: The same for all studies but the first, of which one line each is printed.
        report: A function that draws target and clone of a study's folder with prompts, if any, writes the study's
            report, and returns its file.
        console: The console for headings and tables.

    Returns:
        The results.

    """
    copy_family(folder)
    with_article, with_pictures = has_extra("encoder"), has_extra("pictures")
    if not with_pictures:
        left_out = "drawing digits" if with_article else "drawing digits and fitting the article's text encoder"
        warnings.warn(f"{missing_extra('pictures', left_out)}; the rest is fitted", BlockfitWarning, stacklevel=2)
    fits: dict[str, FitResult] = {}
    for name, below in STUDIES.items():
        if name == "article" and not with_article:
            continue
        console.rule(f"{name}: {_PURPOSE[name]}")
        fits[name] = (fit_briefly if fits else fit)(load_study(folder / below))
        if len(fits) > 1:
            console.print(_summary(fits[name]), markup=False)
    recipes = {"true": load_recipe(folder / "answer" / "recipe.yaml")}
    recipes |= {name: result.recipe for name, result in fits.items()}
    console.rule("fitted beside true")
    console.print(coefficient_table(recipes))
    console.print(_REMARK, markup=False)
    _merge(folder, recipes)
    sheet = None
    if with_pictures:
        sheet, distances = _draw(folder)
        listed = ", ".join(f"{label} {distance:.3f}" for label, distance in distances.items())
        console.print(
            f"digits, with the distance of each picture to the target's: {sheet}", markup=False, soft_wrap=True
        )
        console.print(f"mean distance: {listed}", markup=False)
    page = report(folder, _SHOWN if with_pictures else ())
    console.print(f"report: {page}", markup=False, soft_wrap=True)
    return Demo(fits, recipes, sheet, page)


def _summary(result: FitResult) -> str:
    """Return a line on the share that the last step of each stage explains, and on the number of trials."""
    last = {(stage.name, stage.steps[-1]) for stage in result.study.stages}
    shares = {
        scores.step: total_similarity(scores.after)
        for scores in result.scores
        if scores.metric == "explained" and (scores.stage, scores.step) in last
    }
    explained = ", ".join(f"{step} {100 * share:.1f} %" for step, share in shares.items())
    trials = sum(len(search.completed) for search in result.searches)
    return f"explained: {explained}; {trials} trials"


_PURPOSE = {
    "delta": "both steps jointly, scored by the weights' differences from the base",
    "attention": "both steps jointly, scored by the article's similarity",
    "stepwise": "one step after the other, as by hand",
    "article": "outputs, inputs and text encoder, each by its own metric, joined by two further steps",
}
_REMARK = (
    "The target contains a sixth finetune that is not among the sources. No recipe over these sources can explain it. "
    "Where it resembles a source, it shifts that source's coefficient. In a stepwise fit the first step also absorbs "
    "what the second should explain: that is the bias of working by hand."
)


def coefficient_table(recipes: Mapping[str, Recipe]) -> Table:
    """Return a table of the mean coefficient of each source over the blocks."""
    table = Table(title="coefficients of the sources: mean over the blocks", title_justify="left")
    table.add_column("source")
    for name in recipes:
        table.add_column(name, justify="right")
    for source, found in mean_coefficients(recipes).items():
        table.add_row(source, *(f"{mean:+.3f}" for mean, _ in found.values()))
    return table


def mean_coefficients(recipes: Mapping[str, Recipe]) -> dict[str, dict[str, tuple[float, float]]]:
    """Return {source: {recipe: (mean coefficient, mean absolute error)}}, over the blocks."""
    by_recipe = {name: block_coefficients(recipe) for name, recipe in recipes.items()}
    found: dict[str, dict[str, tuple[float, float]]] = {}
    for source in dict.fromkeys(source for coefficients in by_recipe.values() for source in coefficients):
        for name, coefficients in by_recipe.items():
            true = by_recipe["true"].get(source, dict.fromkeys(_any(coefficients), 0.0))
            here = coefficients.get(source, dict.fromkeys(true, 0.0))
            mean = sum(here.values()) / len(here)
            error = sum(abs(here[block] - true[block]) for block in true) / len(true)
            found.setdefault(source, {})[name] = (mean, error)
    return found


def _any(coefficients: Mapping[str, Mapping[str, float]]) -> Mapping[str, float]:
    return next(iter(coefficients.values()))


def copy_family(folder: Path | str) -> None:
    """Copy the family's checkpoints and studies to `folder`; existing files stay.

    Raises:
        InputError: If the folder cannot be written, or if a file to be written is a link.

    """
    folder, family = Path(folder), family_folder()
    # Existing files are only read, so they may be links.
    missing = [folder / name for name in _FILES if not (folder / name).exists()]
    refuse_links(folder, replaced=[*missing, *(folder / name for name in _WRITTEN)])
    if folder.resolve() == family.resolve():
        return
    try:
        for name in _FILES:
            source, copy = family / name, folder / name
            if copy.exists():
                continue
            copy.parent.mkdir(parents=True, exist_ok=True)
            # The rename makes each file complete or absent, even if this command is killed.
            with temporary_folder(copy.parent) as scratch:
                whole = scratch / copy.name
                if source.is_dir():
                    shutil.copytree(source, whole)
                else:
                    shutil.copyfile(source, whole)
                whole.rename(copy)
    except OSError as error:
        raise InputError(f"{folder}: the demo cannot be copied here: {error.strerror or error}") from error


def _merge(folder: Path, recipes: Mapping[str, Recipe]) -> None:
    """Merge the fitted recipe, the article's if it was fitted, and a 50/50 merge of the same sources."""
    merges = [
        (recipes["delta"], folder, "fit"),
        (load_recipe(folder / "answer" / "half.yaml"), folder / "answer", "half"),
    ]
    if "article" in recipes:
        merges.append((recipes["article"], folder / "article", "assembled"))
    for recipe, recipe_folder, file in merges:
        paths = Library().all_models({name: model.file for name, model in recipe.models.items()}, recipe_folder)
        merge(recipe, paths, folder / f"{file}.safetensors")


def _draw(folder: Path) -> tuple[Path, dict[str, float]]:
    """Draw the ten digits with the target and each merge, from the same noise.

    Returns:
        The sheet, and the mean distance of each merge's pictures to the target's: root mean square of pixels in [0, 1].
    """
    from optimizer.pictures import contact_sheet, generate  # noqa: PLC0415  needs an extra

    digits = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
    prompts = [f"a digit {digit}" for digit in digits]
    rows = {
        label: generate(folder / f"{file}.safetensors", prompts=prompts, seeds=[_SEED])
        for label, file in (("target", "target"), ("fit", "fit"), ("article", "assembled"), ("50/50", "half"))
    }
    pixels = {label: np.stack([np.asarray(picture) for picture in row]) / 255 for label, row in rows.items()}
    distances = {
        label: np.sqrt(((found - pixels["target"]) ** 2).mean(axis=(1, 2, 3)))
        for label, found in pixels.items()
        if label != "target"
    }
    captions = {label: [f"{distance:.3f}" for distance in found] for label, found in distances.items()}
    sheet = folder / "digits.png"
    with atomic_path(sheet) as temporary:
        contact_sheet(rows, digits, scale=3, captions=captions).save(temporary, format="png")
    return sheet, {label: float(found.mean()) for label, found in distances.items()}
