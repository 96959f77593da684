"""Studies made in Python, checked as those in YAML files are, and kept as such files."""

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
# What the files begin with that may be written anew.
_MARK = "# Made by blockfit's new_study, which writes it anew; to edit it by hand, remove this line.\n"
_RECIPE, _STUDY = "recipe.yaml", "study.yaml"


class StageOptions(TypedDict, total=False):
    """What a stage searches and how: the fields of `stages` in study.yaml but for the name, with the same defaults."""

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
    """A stage of several: its name, too."""

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
    """A study in `folder` that fits the free alphas of `recipe` to the checkpoint `target`.

        study = new_study(recipe, target="closed.safetensors", folder="my-study", trials=40)
        result = fit(study)

    The folder is made, and study.yaml and recipe.yaml are written into it, so that what was made here and what lies
    there are one thing: `load_study(folder)` and the commands (`blockfit fit my-study`) go on with it. Called again,
    these two files are written anew; trials that were scored otherwise are never mixed with others: `fit` refuses.

    `base` is the model that differences are taken from, by default the one called base. `name` tells its trials from
    those of other studies in a database; by default it is the folder's. `seed`, from 0 up, is the samplers'.

    Checkpoints are looked for in the current folder, in `folder`, then in `folders` and below them, extensions
    optional; "name [a60cfaa90d]" or the hash alone will do, and `hashes` remembers those. In the files they are named
    as seen from `folder`, or as given where that or `folders` is enough to find them.

    All other arguments are those of a stage, as in study.yaml:

    - `metric`: explained (default), delta, weights, elements, attention or encoder; `elsewhere`: the metric for moved
      blocks that it cannot see
    - `steps`: names, default all with free alphas; `blocks`: those that are scored, "OUT03-OUT11", default all that
      the free alphas move and the metric sees
    - `trials`: completed trials of each Optuna study, default 60; `sampler`: blockwise (default), tpe, cmaes, gp or
      random
    - `strategy`: joint (default) or stepwise; `passes` and `tolerance` of a stepwise one
    - `seeds`: random inputs of attention; `tf32`; `prompts` (a file) and `clip_skip` of the encoder metric

    A study of several stages has `stages` instead, a mapping of these and a `name` for each. One stage without a name
    is called as its metric: fits by different metrics may share a folder.

    Raises InputError with one line for each problem, nothing written; also if `folder` holds a study.yaml or
    recipe.yaml that was not made by `new_study`.
    """
    _check_types(recipe, folder, folders)
    folder = Path(folder)
    if stages is not None and stage:
        raise StudyError(f"{_CALLED}: stages: received beside {', '.join(stage)}; give each stage its own")
    metric = stage.get("metric", DEFAULT_METRIC)
    own = metric if isinstance(metric, str) and metric in METRICS else "fit"
    given = [{"name": own, **_stage_as_data(stage, folder)}] if stages is None else _stages_as_data(stages, folder)
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
        # The only stage's fields are arguments.
        inner = f"{_CALLED}: stages.{own}." if stages is None else ""
        raise type(error)(
            problem if not inner else problem.replace(inner, f"{_CALLED}: ", 1) for problem in error.problems
        ) from None
    study = replace(_named_from_folder(study, library), path=folder / _STUDY)
    data["target"] = {"file": study.target_file}
    _write(folder, {_RECIPE: recipe_as_data(study.recipe), _STUDY: data})
    return replace(study, path=folder / _STUDY)


def _check_types(recipe: object, folder: object, folders: object) -> None:
    """Raise StudyError for what would fail before the study's fields are checked, all of it at once."""
    problems: list[str] = []
    if not isinstance(recipe, Recipe):
        problems.append(
            f"recipe: received {shown(recipe)}; must be a Recipe: load_recipe reads one from a file, "
            "new_recipe makes one"
        )
    if not isinstance(folder, str | Path):
        problems.append(f"folder: received {shown(folder)}; must be a path")
    if not (isinstance(folders, list | tuple) and all(isinstance(one, str | Path) for one in folders)):
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
    """The recipe without what an earlier fit noted in it."""
    return replace(recipe, fitted=None, steps=tuple(replace(step, similarity=None) for step in recipe.steps))


def _named_from_folder(study: Study, library: Library) -> Study:
    """Return the study with its files named so that they are found from its folder, the first of `library`."""
    folder, *others = library.folders
    beyond = library.within(others)

    def located(file: str, beside: Path, library: Library) -> Path | None:
        try:
            return library.find(file, beside)
        except CheckpointError:  # one of several of that name
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
    if others := [path for path in texts if path.exists() and not _is_own(path)]:
        raise StudyError(
            f"{_CALLED}: folder: {path} is there, and new_study did not make it; load_study reads it, and another "
            "folder keeps both"
            for path in others
        )
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StudyError(f"{_CALLED}: folder: {folder} cannot be made: {error.strerror}") from None
    for path, text in texts.items():
        replace_text(path, text)


def _is_own(path: Path) -> bool:
    try:
        with path.open(encoding="utf-8") as file:
            return file.readline() == _MARK
    except (OSError, UnicodeDecodeError):
        return False
