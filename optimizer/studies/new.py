"""Make studies in Python; they are checked like YAML files and saved as such."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypedDict, Unpack

from optimizer.errors import CheckpointError, InputError, StudyError, attempt
from optimizer.files import dump_yaml, plain, refuse_links, replace_text, shown, validate
from optimizer.library import HashCache, Library, seen_from
from optimizer.recipes import Recipe, recipe_as_data
from optimizer.similarity import DEFAULT_METRIC, METRICS
from optimizer.studies.study import Study, StudyEntry, study_of, with_found_files

__all__ = ["StageFields", "StageOptions", "new_study"]

_CALLED = "new_study"
# First line of files that may be overwritten.
_MARK = "# Made by blockfit's new_study, which writes it anew; to edit it by hand, remove this line.\n"
_RECIPE, _STUDY = "recipe.yaml", "study.yaml"


class StageOptions(TypedDict, total=False):
    """The fields of a stage in study.yaml without its name, with the same defaults."""

    steps: Sequence[str]
    blocks: str | Sequence[str]
    metric: str
    elsewhere: str | None
    strategy: str
    passes: int
    tolerance: float
    trials: int
    sampler: str
    seeds: Sequence[int]
    tf32: bool
    prompts: str | Path | None
    clip_skip: int


class StageFields(StageOptions, total=False):
    """The fields of one of several stages, its name included."""

    name: str


def new_study(
    recipe: Recipe,
    target: str | Path,
    folder: str | Path,
    *,
    base: str | None = None,
    seed: int = 0,
    name: str | None = None,
    folders: Sequence[str | Path] = (),
    hashes: HashCache | None = None,
    stages: Sequence[StageFields] | None = None,
    **stage: Unpack[StageOptions],
) -> Study:
    """Make a study that fits the free alphas of a recipe to a checkpoint, and write its files.

        study = new_study(recipe, target="closed.safetensors", folder="my-study", trials=40)
        result = fit(study)

    `folder` is created, with study.yaml and recipe.yaml in it. `load_study(folder)` and the commands
    (`blockfit fit my-study`) continue with these files. A second call overwrites both. Trials are never mixed with
    trials that were scored differently: `fit` refuses them.

    Checkpoints are searched in the current folder, in `folder`, then in `folders` and below. The extension is optional.
    "name [a60cfaa90d]" or the hash alone works too. The files name checkpoints relative to `folder`, or as given if
    they are found by that.

    The fields of a stage are those of study.yaml:

    - `metric`: explained (default), delta, weights, elements, attention or encoder; `elsewhere`: the metric of moved
      blocks that `metric` cannot see
    - `steps`: names, default all with free alphas; `blocks`: the scored blocks, "OUT03-OUT11", default all that the
      free alphas move and the metric sees
    - `trials`: completed trials of each Optuna study; default: the exact optimum alone for explained, delta and
      weights if each free alpha moves one scored block, else 60; `sampler`: blockwise (default), tpe, cmaes, gp or
      random
    - `strategy`: joint (default) or stepwise; `passes` and `tolerance` of a stepwise stage
    - `seeds`: random inputs of attention; `tf32`; `prompts` (a file) and `clip_skip` of the encoder metric

    Args:
        recipe: The recipe with free alphas.
        target: The checkpoint to fit to.
        folder: The folder of the study.
        base: The model that differences are taken from. Default: the one called "base".
        seed: The seed of the samplers, at least 0.
        name: The name that separates its trials from those of other studies in a database. Default: the folder's.
        folders: Folders to search for checkpoints.
        hashes: A cache of hashes.
        stages: The stages, each a mapping of the fields of a stage and a `name`. Default: one stage, named after its
            metric, so that fits by different metrics may share a folder.
        **stage: The fields of the only stage.

    Returns:
        The study, with its checkpoints found.

    Raises:
        StudyError: One line for each problem; nothing is written then. Also if `folder` holds a study.yaml or
            recipe.yaml that `new_study` did not write.
    """
    _check_types(recipe, folder, folders)
    folder = Path(folder)
    if stages is not None and stage:
        raise StudyError(f"{_CALLED}: stages: received beside {', '.join(stage)}; give each stage its own")
    metric = stage.get("metric", DEFAULT_METRIC)
    stage_name = metric if isinstance(metric, str) and metric in METRICS else "fit"
    given = (
        [{"name": stage_name, **_stage_as_data(stage, folder)}] if stages is None else _stages_as_data(stages, folder)
    )
    data = {
        **({} if name is None else {"name": name}),
        "recipe": _RECIPE,
        "target": {"file": plain(target)},
        **({} if base is None else {"base": base}),
        "seed": plain(seed),
        "stages": given,
    }
    library = Library.of((folder, *folders), hashes)
    try:
        entry = validate(StudyEntry, data, _CALLED, StudyError)
        study = attempt(lambda: study_of(entry, _without_notes(recipe), folder, folder.resolve().name), _CALLED)
        study = with_found_files(
            study, library, beside=Path(), recipe_given=f"{_CALLED}: recipe", target_given=f"{_CALLED}: target"
        )  # fmt: skip
    except InputError as error:
        # The fields of the only stage are arguments.
        inner = f"{_CALLED}: stages.{stage_name}." if stages is None else ""
        raise type(error)(
            problem if not inner else problem.replace(inner, f"{_CALLED}: ", 1) for problem in error.problems
        ) from None
    study = replace(_named_from_folder(study, library), path=folder / _STUDY)
    data["target"] = {"file": study.target_file}
    _write(folder, {_RECIPE: recipe_as_data(study.recipe), _STUDY: data})
    return replace(study, path=folder / _STUDY)


def _check_types(recipe: object, folder: object, folders: object) -> None:
    """Raise StudyError, with all problems at once, for arguments of wrong types that no later check covers."""
    problems: list[str] = []
    if not isinstance(recipe, Recipe):
        problems.append(
            f"recipe: received {shown(recipe)}; must be a Recipe: load_recipe reads one from a file, "
            "new_recipe makes one"
        )
    if not isinstance(folder, str | Path):
        problems.append(f"folder: received {shown(folder)}; must be a path")
    if not (isinstance(folders, list | tuple) and all(isinstance(item, str | Path) for item in folders)):
        problems.append(f"folders: received {shown(folders)}; must be a list of paths")
    if problems:
        raise StudyError(f"{_CALLED}: {problem}" for problem in problems)


def _stages_as_data(stages: object, folder: Path) -> Any:
    if not isinstance(stages, Iterable) or isinstance(stages, str | bytes | Mapping):
        return plain(stages)
    return [_stage_as_data(stage, folder) if isinstance(stage, Mapping) else plain(stage) for stage in stages]


def _stage_as_data(stage: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    data = {key: plain(value) for key, value in stage.items() if value is not None}
    if isinstance(data.get("prompts"), str):
        data["prompts"] = seen_from(folder, Path(data["prompts"]))
    return data


def _without_notes(recipe: Recipe) -> Recipe:
    """Return the recipe without the notes of an earlier fit."""
    return replace(recipe, fitted=None, steps=tuple(replace(step, similarity=None) for step in recipe.steps))


def _named_from_folder(study: Study, library: Library) -> Study:
    """Return the study with files named so that they are found from its folder, the first of `library`."""
    folder, *further = library.folders
    beyond = library.within(further)

    def located(file: str, beside: Path, library: Library) -> Path | None:
        try:
            return library.find(file, beside)
        except CheckpointError:  # several files have that name
            return None

    def named(file: str, found: Path | None) -> str:
        if found is None:
            return file
        again = located(file, folder, beyond)
        return file if again is not None and again.resolve() == found.resolve() else seen_from(folder, found)

    models = {
        key: replace(model, file=named(model.file, study.sources.get(key) or located(model.file, Path(), library)))
        for key, model in study.recipe.models.items()
    }
    return replace(
        study,
        recipe=replace(study.recipe, models=models),
        target_file=named(study.target_file, study.target if study.target.is_file() else None),
        files={key: models[key].file for key in study.files},
    )


def _write(folder: Path, files: Mapping[str, Mapping[str, Any]]) -> None:
    texts = {folder / name: _MARK + dump_yaml(data) for name, data in files.items()}
    attempt(lambda: refuse_links(folder, replaced=texts), f"{_CALLED}: folder")
    if foreign := [path for path in texts if path.exists() and not _is_made_here(path)]:
        raise StudyError(
            f"{_CALLED}: folder: {path} exists, and new_study did not write it; load_study reads it, or name another "
            "folder"
            for path in foreign
        )
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StudyError(f"{_CALLED}: folder: {folder} cannot be made: {error.strerror}") from None
    for path, text in texts.items():
        replace_text(path, text)


def _is_made_here(path: Path) -> bool:
    try:
        with path.open(encoding="utf-8") as file:
            return file.readline() == _MARK
    except (OSError, UnicodeDecodeError):
        return False
