"""Read studies from YAML files, and find their checkpoints."""

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from pydantic import Field, StrictInt, StrictStr

from optimizer.errors import InputError, StudyError, attempt
from optimizer.events import ProgressOption
from optimizer.files import TEXT_SUFFIXES, UserFile, missing_file, named_file, read_yaml, schema_of, shown, validate
from optimizer.html import html_table
from optimizer.library import HashCache, Library, checkpoints_in
from optimizer.printable import unprintable
from optimizer.recipes import Recipe, load_recipe
from optimizer.studies.folder import StudyFolder, check_study_folder
from optimizer.studies.stage import MOST_STAGES, Stage, StageEntry, read_stage, unsearched

__all__ = [
    "Study",
    "StudyEntry",
    "load_study",
    "read_study",
    "study_file",
    "study_of",
    "study_schema",
    "with_found_files",
]

# Stages that a study shows of itself.
_MOST_STAGES = 15
_FILE = "study.yaml"
_NAME = re.compile(r"[\w.-]{1,80}")
_GENERATION = re.compile(r"@\d+$")


class TargetEntry(UserFile):
    """The target: the checkpoint that the recipe is fitted to."""

    file: StrictStr = Field(
        description="The file, beside the study or in the folders of models; or its hash.",
        examples=["target.safetensors"],
    )


class StudyEntry(UserFile):
    """A study: a recipe with free alphas, the target that it is fitted to, and the stages of the search."""

    name: StrictStr | None = Field(
        None,
        description="The name, which separates its trials from other studies' in a database. Default: the folder's.",
    )
    recipe: StrictStr = Field(description="The recipe's file, relative to the study.", examples=["recipe.yaml"])
    target: TargetEntry
    base: str | None = Field(
        None,
        description="The model of the recipe that differences are taken from. Default: the one called base.",
    )
    seed: StrictInt = Field(0, description="The seed of the samplers, at least 0.")
    stages: list[StageEntry] = Field(description="The searches, one after another.")


def study_schema() -> dict[str, Any]:
    """Return the JSON schema of study.yaml."""
    return schema_of(StudyEntry, "blockfit study")


@dataclass(frozen=True, repr=False)
class Study:
    """A recipe with free alphas, the target it is fitted to, and the stages of the search.

    Attributes:
        folder: The folder of the study and its results.
        recipe: The recipe with free alphas.
        recipe_path: The file of the recipe.
        sources: The paths of the sources that were found, by model name.
        target: The path of the target.
        target_file: The target as the study names it.
        base: The name of the model that differences are taken from; None without one.
        seed: The seed of the samplers, at least 0.
        stages: The stages, in the order in which they run.
        files: The sources that the stages need, as the recipe names them, {model: file}.
        missing: One line per file not found. Saved statistics in `folder` may replace these files.
        name: The name that separates its trials from those of other studies in a database; the folder's by default.
        path: The study's YAML file.
        asked_trials: The requested number of trials that replaced the stages' own; None if none was requested.
    """

    folder: Path
    recipe: Recipe
    recipe_path: Path
    sources: dict[str, Path]
    target: Path
    target_file: str
    base: str | None
    seed: int
    stages: tuple[Stage, ...]
    files: Mapping[str, str] = field(default_factory=dict)
    missing: tuple[str, ...] = ()
    name: str = ""
    path: Path | None = None
    asked_trials: int | None = None

    def __repr__(self) -> str:
        """Return the folder, the target, and a line for each stage, at most 20 lines."""
        lines = [f"study in {self.folder}: {self.target_file} from {len(self.recipe.models)} models"]
        stages = [
            f"  {stage.name}: {', '.join(stage.steps)} by {stage.metric} on {self._blocks(stage)}, "
            f"{stage.trials} trials"
            for stage in self.stages
        ]
        more = [f"  ... and {len(stages) - _MOST_STAGES} more stages"] if len(stages) > _MOST_STAGES else []
        return "\n".join([*lines, *stages[:_MOST_STAGES], *more])

    def _repr_html_(self) -> str:
        """Return the stages as a table, for notebooks."""
        rows = [
            (stage.name, ", ".join(stage.steps), stage.metric, self._blocks(stage), str(stage.trials))
            for stage in self.stages[:_MOST_STAGES]
        ]
        first, *_ = repr(self).splitlines()
        return html_table(("stage", "steps", "metric", "blocks", "trials"), rows, [first])

    def _blocks(self, stage: Stage) -> str:
        return self.recipe.layout.describe_blocks(stage.blocks)

    @property
    def argument(self) -> Path:
        """The study as an argument of commands: its folder, or its YAML file if that has another name than usual."""
        return self.folder if self.path is None or self.path.name == _FILE else self.path

    @property
    def outputs(self) -> StudyFolder:
        """The paths of the files that blockfit writes into the study's folder."""
        return StudyFolder(self.folder)

    def affects(self, stage: Stage, other: Stage) -> bool:
        """Return whether the alphas of `stage` change a score of `other`."""
        leading = {step.name for step in self.recipe.ancestors(other.steps[-1])}
        moved = {block for entry in stage.parameters if entry.step in leading for block in entry.blocks}
        return bool(moved & set(other.blocks))

    @property
    def needed_files(self) -> dict[str, str]:
        """The sources that the stages need, the base included, as the recipe names them, {model: file}."""
        recipe = self.recipe
        used = {name for stage in self.stages for step in stage.steps for name in recipe.sources(step)} | {self.base}
        return {name: model.file for name, model in recipe.models.items() if name in used}

    def without_files(self) -> "Study":
        """Return the study without its checkpoints; saved statistics replace them."""
        kept = self.outputs.statistics
        missing = f"{kept}: holds no statistics of the checkpoints that this study names; fit it again"
        return replace(self, sources={}, target=Path(), files=self.needed_files, missing=(missing,))

    def with_trials(self, trials: int) -> "Study":
        """Return the study with `trials` completed trials for each Optuna study; raise StudyError below 1."""
        if trials < 1:
            raise StudyError(f"received {trials}; must be at least 1", field="trials")
        return replace(self, stages=tuple(replace(stage, trials=trials) for stage in self.stages), asked_trials=trials)


def study_file(path: Path | str) -> Path:
    """Return the YAML file of a study that is named by its file or its folder."""
    path = Path(path)
    return path / _FILE if os.path.isdir(path) else path


def load_study(
    path: Path | str,
    folders: Sequence[Path | str] = (),
    *,
    with_files: bool = True,
    hashes: HashCache | None = None,
    progress: ProgressOption = None,
) -> Study:
    """Read a study and find its checkpoints.

        result = fit(load_study("my-study", ["D:/webui/models/Stable-diffusion"]))

    Raises StudyError with one line for each problem, links in the place of result files included.

    Args:
        path: The study's YAML file, or the folder that holds study.yaml.
        folders: Folders to search for checkpoints, after those of the study and the recipe.
        with_files: Whether to find the checkpoints. A study without them can be read, but not fitted.
        hashes: A cache of hashes, for files that are named by their hash.
        progress: Called with a description, the bytes hashed and their total.

    Returns:
        The study. `missing` lists files that were not found, if saved statistics may replace them.
    """
    return read_study(path, Library.of(folders, hashes, progress) if with_files else None)


def read_study(path: Path | str, library: Library | None) -> Study:
    """Read a study and find its checkpoints in a library.

    Args:
        path: The study's YAML file, or the folder that holds study.yaml.
        library: The library to search after the folders of the study and the recipe. None does not look for the
            checkpoints.

    Returns:
        The study, as `load_study` returns it.

    Raises:
        StudyError: One line for each problem, links in the place of result files included.
    """
    given, path = Path(path), study_file(path)
    check_study_folder(path.parent)
    if path != given and not os.path.exists(path):
        raise StudyError(f"{given}: {_no_study(given, path)}")
    entry = validate(StudyEntry, read_yaml(path, StudyError), path, StudyError)
    recipe_path = path.parent / entry.recipe.replace("\\", "/")
    if named_file(path.parent, entry.recipe) is None:
        raise StudyError(f"{path}: recipe: {recipe_path}: {missing_file(recipe_path, TEXT_SUFFIXES)}")
    recipe = load_recipe(recipe_path)
    study = attempt(lambda: study_of(entry, recipe, path.parent, path.resolve().parent.name), path)
    study = replace(study, path=path)
    if library is None:
        return study
    return with_found_files(study, library, recipe_given=recipe_path, target_given=f"{path}: target.file")


def _no_study(folder: Path, missing: Path) -> str:
    """Return the message for a folder without a study: its contents, and the way to make a study."""
    found = len(checkpoints_in(folder))
    holds = f"holds {'a checkpoint' if found == 1 else f'{found} checkpoints'} and " if found else ""
    reason = missing_file(missing, TEXT_SUFFIXES)
    return (
        f"is not a study: it {holds}lacks {missing.name} ({reason}); `first_study(TARGET, SOURCE, folder=FOLDER)` "
        "makes a study, which is a folder of its own"
    )


def study_of(entry: StudyEntry, recipe: Recipe, folder: Path, name: str) -> Study:
    """Return the study that an entry describes, without its checkpoints.

    Args:
        entry: The contents of study.yaml.
        recipe: The recipe that it names.
        folder: The folder of the study.
        name: The name of a study that states none.

    Returns:
        The checked study; `sources` is empty.

    Raises:
        StudyError: One line for each problem.
    """
    problems: list[str] = []
    stages: list[Stage] = []
    base = entry.base if entry.base is not None else ("base" if "base" in recipe.models else None)
    if base is not None and base not in recipe.models:
        problems.append(f"base: received {base!r}; must be one of the recipe's models: {', '.join(recipe.models)}")
    if not 0 <= entry.seed < 2**63:
        problems.append(f"seed: received {shown(entry.seed)}; must be a whole number from 0 to 2^63 - 1")
    if not 0 < len(entry.stages) <= MOST_STAGES:
        received = f"received {len(entry.stages)}" if entry.stages else "empty"
        raise StudyError(f"stages: {received}; must be 1 to {MOST_STAGES}")
    names = [stage.name for stage in entry.stages]
    problems += [f"stages.{name}: defined twice" for name in sorted({name for name in names if names.count(name) > 1})]
    problems += [
        f"stages.{name}: the name contains a '/', which separates the names of stage and step; leave it out"
        for name in dict.fromkeys(names)
        if "/" in name
    ]
    if entry.name is not None and not _NAME.fullmatch(entry.name):
        problems.append(f"name: received {entry.name!r}; must be at most 80 letters, digits, '.', '_' or '-'")
    problems += [
        f"stages.{name}: the name ends like that of a later generation of trials; leave out the '@' and the number"
        for name in dict.fromkeys(names)
        if _GENERATION.search(name)
    ]
    problems += [
        f"stages.{name[:80]}: the name contains the character {letter!r}; write it on one line, without"
        for name in dict.fromkeys(names)
        if (letter := unprintable(name)) is not None
    ]
    for stage in entry.stages:
        try:
            stages.append(read_stage(stage, recipe, base, folder))
        except InputError as error:
            problems += [f"stages.{stage.name}.{problem}" for problem in error.problems]
    if not problems:
        problems += unsearched(recipe, stages)
    if problems:
        raise StudyError(problems)
    return Study(
        folder, recipe, folder / entry.recipe.replace("\\", "/"), {}, folder / entry.target.file, entry.target.file,
        base, entry.seed, tuple(stages), name=entry.name if entry.name is not None else name,
    )  # fmt: skip


def with_found_files(
    study: Study, library: Library, *, recipe_given: Path | str, target_given: str, beside: Path | None = None
) -> Study:
    """Return a study with its checkpoints found.

    Args:
        study: The study.
        library: The library to search after the first folder.
        recipe_given: The place where the sources are named, for messages.
        target_given: The place where the target is named, for messages.
        beside: The folder to search first. Default: the folder of the recipe or study that names the file.

    Returns:
        The study. `missing` lists files that were not found, if saved statistics may replace them.

    Raises:
        StudyError: Files are missing without statistics to replace them, or the target is one of the sources.
    """
    files = study.needed_files
    of_recipe, of_target = beside or study.recipe_path.parent, beside or study.folder
    sources, problems = library.find_models(files, of_recipe, named_in=recipe_given)
    target = None
    try:
        target = library.find(study.target_file, of_target)
        if target is None:
            problems.append(f"{target_given}: {library.not_found(study.target_file, of_target)}")
    except InputError as error:
        problems += [f"{target_given}: {problem}" for problem in error.problems]
    if problems and not study.outputs.statistics.exists():
        raise StudyError(problems)
    for name, source in sources.items():
        if target is not None and source.resolve() == target.resolve():
            raise StudyError(
                f"{target_given}: {study.target_file!r} is the recipe's source {name!r} too; "
                "the target may not be among the sources"
            )
    return replace(study, sources=sources, target=target or study.target, files=files, missing=tuple(problems))
