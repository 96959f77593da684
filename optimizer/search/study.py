"""Studies as YAML files, and what each of their stages searches and scores."""

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from pydantic import Field, StrictBool, StrictInt, StrictStr

from optimizer.checkpoints import HashCache
from optimizer.checkpoints.layout import Layout
from optimizer.checkpoints.near_names import TEXT_SUFFIXES, missing_file
from optimizer.checkpoints.presence import is_folder, is_there
from optimizer.errors import InputError, StudyError, attempt
from optimizer.printable import unprintable
from optimizer.recipes import Recipe, checkpoints_in, find_models, load_recipe, locate, not_found
from optimizer.recipes.yaml_files import UserFile, named_file, read_yaml, shown, validate
from optimizer.search.samplers import DEFAULT_SAMPLER, SAMPLERS
from optimizer.search.space import Parameter, described_alphas, parameters_of
from optimizer.search.storage import DATABASE, StorageAddress
from optimizer.search.study_files import check_study_folder
from optimizer.similarity import DEFAULT_METRIC, METRICS, STATISTICS, read_prompts

__all__ = [
    "DEFAULT_SEED",
    "MOST_JOINT",
    "MOST_SEARCHED",
    "Stage",
    "StageEntry",
    "Study",
    "StudyEntry",
    "load_study",
    "study_file",
    "study_of",
    "with_found_files",
]

# The seed of the article's attention similarity.
DEFAULT_SEED = 114514
_DEFAULT_TRIALS = 60
# A further pass of a stepwise stage that gains less is the last.
_DEFAULT_TOLERANCE = 1e-6
_STRATEGIES = ("stepwise", "joint")
_NAME = re.compile(r"[\w.-]{1,80}")
_GENERATION = re.compile(r"@\d+$")
# The layers of CLIP's text encoder.
_MOST_SKIPPED = 12
# What a study may ask for; more would take years, and some of it is gone through before a trial is run.
_MOST_STAGES, _MOST_PASSES, _MOST_TRIALS = 100, 1000, 10_000_000
MOST_SEARCHED = 100  # steps with free alphas in a stage; people's recipes have tens
# Numbers that a joint stage searches at once: the time grows faster than their square. 23 steps of 26 alphas are 598.
MOST_JOINT = 600


class _TargetEntry(UserFile):
    file: StrictStr


class StageEntry(UserFile):
    """A stage as a study's YAML file has it."""

    name: StrictStr
    steps: list[StrictStr] | None = None
    blocks: str | list[str] | None = None
    metric: str = DEFAULT_METRIC
    elsewhere: str | None = None
    strategy: str = "joint"
    passes: StrictInt = 1
    tolerance: float = _DEFAULT_TOLERANCE
    trials: StrictInt = _DEFAULT_TRIALS
    sampler: str = DEFAULT_SAMPLER
    seeds: list[StrictInt] = Field(default_factory=lambda: [DEFAULT_SEED])
    tf32: StrictBool = False
    prompts: StrictStr | None = None
    clip_skip: StrictInt = 1


class StudyEntry(UserFile):
    """A study's YAML file."""

    name: StrictStr | None = None
    recipe: StrictStr
    target: _TargetEntry
    base: str | None = None
    seed: StrictInt = 0
    stages: list[StageEntry]


@dataclass(frozen=True)
class Stage:
    """One search: `parameters` of `steps`, scored on `measured` = ((metric, blocks), ...).

    `trials` is the number of completed trials of each Optuna study; `seeds` those of the random inputs. A stepwise
    stage goes over its steps at most `passes` times, until one raises the total similarity by less than `tolerance`.
    `tf32` lets a card compute attention faster and with similarities exact to some 1e-3 only. `prompts` are what the
    encoder metric reads, None those that come with the layout, `prompts_file` what the study calls the file that they
    are from, and `clip_skip` which of the encoder's layers.
    """

    name: str
    steps: tuple[str, ...]
    measured: tuple[tuple[str, tuple[str, ...]], ...]
    strategy: str
    trials: int
    sampler: str
    seeds: tuple[int, ...]
    parameters: tuple[Parameter, ...]
    passes: int = 1
    tolerance: float = _DEFAULT_TOLERANCE
    tf32: bool = False
    prompts: tuple[str, ...] | None = None
    clip_skip: int = 1
    prompts_file: str | None = None

    @property
    def blocks(self) -> tuple[str, ...]:
        """All scored blocks, in the order of the scores."""
        return tuple(block for _, blocks in self.measured for block in blocks)

    @property
    def draws(self) -> bool:
        """Whether random inputs matter."""
        return any(METRICS[name].needs_seed for name, _ in self.measured)

    @property
    def reads(self) -> bool:
        """Whether prompts matter."""
        return any(METRICS[name].needs_prompts for name, _ in self.measured)

    @property
    def metric(self) -> str:
        """What the total is called: the metric, or both joined by +."""
        return "+".join(name for name, _ in self.measured)

    def searches(self, number: int = 1) -> tuple[tuple[str, str, tuple[Parameter, ...]], ...]:
        """(Optuna study name, scored step, parameters) of pass `number` from 1 up, in the order in which they run.

        A joint stage scores its last step. The first pass of a stepwise one scores every step by itself; further ones
        score the last step, the alphas of all others filled.
        """
        if self.strategy == "joint":
            return ((self.name, self.steps[-1], self.parameters),)
        own = ((step, tuple(entry for entry in self.parameters if entry.step == step)) for step in self.steps)
        searched = ((step, parameters) for step, parameters in own if parameters)
        if number == 1:
            return tuple((f"{self.name}/{step}", step, parameters) for step, parameters in searched)
        last = self.steps[-1]
        return tuple((f"{self.name}/{step}/pass {number}", last, parameters) for step, parameters in searched)


@dataclass(frozen=True)
class Study:
    """A recipe with holes, the target it is fitted to, and the stages of the search. `folder` takes the results.

    `name` tells its trials from those of other studies in a database; by default it is the folder's. `files` are the
    sources that the stages need, as the recipe names them; `sources` those that were found. `missing`
    tells, a line each, what was not found: the statistics that an earlier run left in `folder` may stand in for it.
    `path` is the study's own file; `asked_trials` the budget that was asked for instead of the stages' own.
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

    def prefix(self, address: StorageAddress) -> str:
        """What the names of its Optuna studies begin with: its own name where those of other studies may lie too."""
        own = (self.folder / DATABASE).resolve()
        return "" if address.path is not None and address.path.resolve() == own else f"{self.name}:"

    def disturbs(self, stage: Stage, other: Stage) -> bool:
        """Whether `stage` moves what `other` scores."""
        leading = {step.name for step in self.recipe.ancestors(other.steps[-1])}
        moved = {block for one in stage.parameters if one.step in leading for block in one.blocks}
        return bool(moved & set(other.blocks))

    @property
    def needed_files(self) -> dict[str, str]:
        """The sources that the stages need, and the base, as the recipe names their files: {source: file}."""
        recipe = self.recipe
        used = {name for stage in self.stages for step in stage.steps for name in recipe.sources(step)} | {self.base}
        return {name: model.file for name, model in recipe.models.items() if name in used}

    def without_files(self) -> "Study":
        """The same study as if none of its checkpoints were there: what was measured of them stands in."""
        kept = self.folder / STATISTICS
        missing = f"{kept}: was not measured of the checkpoints that this study names; fit it again"
        return replace(self, sources={}, target=Path(), files=self.needed_files, missing=(missing,))

    def with_trials(self, trials: int) -> "Study":
        """The same study with this budget of completed trials for each of its Optuna studies."""
        if trials < 1:
            raise StudyError(f"--trials: received {trials}; must be at least 1")
        return replace(self, stages=tuple(replace(stage, trials=trials) for stage in self.stages), asked_trials=trials)


def study_file(path: Path | str) -> Path:
    """The YAML file of the study that a user names by the file or by its folder."""
    path = Path(path)
    return path / "study.yaml" if is_folder(path) else path


def load_study(
    path: Path | str,
    folders: Sequence[Path | str] = (),
    *,
    with_files: bool = True,
    hashes: HashCache | None = None,
    progress: Callable[[str, int, int], None] | None = None,
) -> Study:
    """The study in a YAML file or in the folder that holds `study.yaml`, its checkpoints located in `folders` too.

        result = fit(load_study("my-study", ["D:/webui/models/Stable-diffusion"]))

    Without `with_files` the checkpoints are not looked for: enough to read what was found, not to fit. `hashes` and
    `progress` are for files that are named by their hash, as in `locate`.
    Raises InputError with one line for each problem, such as a link among what is written into the folder.
    """
    given, path = Path(path), study_file(path)
    check_study_folder(path.parent)
    if path != given and not is_there(path):
        raise StudyError(f"{given}: {_no_study(given, path)}")
    entry = validate(StudyEntry, read_yaml(path, StudyError), path, StudyError)
    recipe_path = path.parent / entry.recipe.replace("\\", "/")
    if named_file(path.parent, entry.recipe) is None:
        raise StudyError(f"{path}: recipe: {recipe_path}: {missing_file(recipe_path, TEXT_SUFFIXES)}")
    recipe = load_recipe(recipe_path)
    study = attempt(lambda: study_of(entry, recipe, path.parent, path.resolve().parent.name), path)
    study = replace(study, path=path)
    if not with_files:
        return study
    looked = [Path(folder) for folder in folders]
    return with_found_files(
        study, looked, recipe_given=recipe_path, target_given=f"{path}: target.file", hashes=hashes, progress=progress
    )


def _no_study(folder: Path, missing: Path) -> str:
    """What a folder is in which no study is, and what makes one."""
    found = len(checkpoints_in(folder))
    holds = f"holds {'a checkpoint' if found == 1 else f'{found} checkpoints'} and " if found else ""
    said = missing_file(missing, TEXT_SUFFIXES)
    return (
        f"is no study: it {holds}lacks {missing.name} ({said}); `blockfit init TARGET SOURCE... -o FOLDER` makes a "
        "study, which is a folder of its own"
    )


def study_of(entry: StudyEntry, recipe: Recipe, folder: Path, name: str) -> Study:
    """The study in `folder` whose YAML file says `entry`, its checkpoints not looked for; `name` is the default name.

    Raises StudyError with one line for each problem.
    """
    problems: list[str] = []
    stages: list[Stage] = []
    base = entry.base if entry.base is not None else ("base" if "base" in recipe.models else None)
    if base is not None and base not in recipe.models:
        problems.append(f"base: received {base!r}; the recipe's models are {', '.join(recipe.models)}")
    if not 0 <= entry.seed < 2**63:
        problems.append(f"seed: received {shown(entry.seed)}; must be a whole number from 0 up, below 2^63")
    if not 0 < len(entry.stages) <= _MOST_STAGES:
        received = len(entry.stages) or "empty"
        raise StudyError(f"stages: {received}; a study has at least one stage, at most {_MOST_STAGES}")
    names = [stage.name for stage in entry.stages]
    problems += [f"stages.{name}: defined twice" for name in sorted({name for name in names if names.count(name) > 1})]
    problems += [
        f"stages.{name}: the name holds a '/', which stands between a stage's name and a step's; leave it out"
        for name in dict.fromkeys(names)
        if "/" in name
    ]
    if entry.name is not None and not _NAME.fullmatch(entry.name):
        problems.append(f"name: received {entry.name!r}; letters, digits, '.', '_' and '-' may be used, 80 at most")
    problems += [
        f"stages.{name}: the name ends like that of a later generation of trials; leave out the '@' and the number"
        for name in dict.fromkeys(names)
        if _GENERATION.search(name)
    ]
    problems += [
        f"stages.{name[:80]}: the name holds the character {letter!r}; write it on one line, without"
        for name in dict.fromkeys(names)
        if (letter := unprintable(name)) is not None
    ]
    for stage in entry.stages:
        try:
            stages.append(_read_stage(stage, recipe, base, folder))
        except InputError as error:
            problems += [f"stages.{stage.name}.{problem}" for problem in error.problems]
    if not problems:
        problems += _unsearched(recipe, stages)
    if problems:
        raise StudyError(problems)
    return Study(
        folder, recipe, folder / entry.recipe.replace("\\", "/"), {}, folder / entry.target.file, entry.target.file,
        base, entry.seed, tuple(stages), name=entry.name if entry.name is not None else name,
    )  # fmt: skip


def with_found_files(
    study: Study,
    folders: Sequence[Path],
    *,
    recipe_given: Path | str,
    target_given: str,
    beside: Path | None = None,
    hashes: HashCache | None = None,
    progress: Callable[[str, int, int], None] | None = None,
) -> Study:
    """The same study with its checkpoints found, the target's not among the sources'.

    They are looked for in `beside`, by default beside the recipe and the study that name them, then in `folders`.
    `recipe_given` and `target_given` are where they were named, for messages. `hashes` and `progress` are for files
    that are named by their hash, as in `locate`.

    Raises InputError with one line for each problem.
    """
    files = study.needed_files
    of_recipe, of_target = beside or study.recipe_path.parent, beside or study.folder
    sources, problems = find_models(files, of_recipe, folders, named_in=recipe_given, hashes=hashes, progress=progress)
    target = None
    try:
        target = locate(study.target_file, of_target, folders, hashes=hashes, progress=progress)
        if target is None:
            problems.append(f"{target_given}: {not_found(study.target_file, of_target, folders)}")
    except InputError as error:
        problems += [f"{target_given}: {problem}" for problem in error.problems]
    if problems and not (study.folder / STATISTICS).exists():
        raise StudyError(problems)
    for name, source in sources.items():
        if target is not None and source.resolve() == target.resolve():
            raise StudyError(
                f"{target_given}: {study.target_file!r} is the recipe's source {name!r} too; "
                "the target may not be among the sources"
            )
    return replace(study, sources=sources, target=target or study.target, files=files, missing=tuple(problems))


def _read_stage(entry: StageEntry, recipe: Recipe, base: str | None, folder: Path) -> Stage:
    problems = []
    for name, value, known in (
        ("metric", entry.metric, METRICS),
        ("elsewhere", entry.elsewhere, METRICS),
        ("strategy", entry.strategy, _STRATEGIES),
        ("sampler", entry.sampler, SAMPLERS),
    ):
        if value is not None and value not in known:
            problems.append(f"{name}: received {value!r}; there are {', '.join(known)}")
        elif value in METRICS and METRICS[value].needs_base and base is None:
            problems.append(f"{name}: {value!r} needs `base`, the model that differences are taken from")
    if not 1 <= entry.passes <= _MOST_PASSES:
        problems.append(f"passes: received {shown(entry.passes)}; must be at least 1, at most {_MOST_PASSES}")
    elif entry.passes > 1 and entry.strategy == "joint":
        problems.append("passes: a joint stage searches all alphas at once; leave it out, or write strategy: stepwise")
    if not (math.isfinite(entry.tolerance) and entry.tolerance >= 0):
        problems.append(f"tolerance: received {entry.tolerance:g}; must be a number from 0 up, such as 1e-6")
    if not 1 <= entry.trials <= _MOST_TRIALS:
        problems.append(f"trials: received {shown(entry.trials)}; must be at least 1, at most {_MOST_TRIALS:,}")
    distinct = set(entry.seeds)
    if not entry.seeds or min(distinct) < 0 or max(distinct) >= 2**63 or len(distinct) < len(entry.seeds):
        received = shown(entry.seeds)
        problems.append(
            f"seeds: received {received}; must be one or more different whole numbers from 0 up, below 2^63"
        )
    reading = [name for name in (entry.metric, entry.elsewhere) if name in METRICS and METRICS[name].needs_prompts]
    problems += [
        f"{name}: only the metric `encoder` reads prompts; leave it out, or write metric: encoder"
        for name in ("prompts", "clip_skip")
        if not reading and name in entry.model_fields_set
    ]
    if not 1 <= entry.clip_skip <= _MOST_SKIPPED:
        received = shown(entry.clip_skip)
        problems.append(f"clip_skip: received {received}; must be 1, the last layer, or 2 to {_MOST_SKIPPED}")
    prompts: tuple[str, ...] | None = None
    if reading and entry.prompts is not None:
        try:
            if (named := named_file(folder, entry.prompts)) is None:
                raise InputError(f"{folder / entry.prompts}: {missing_file(folder / entry.prompts, TEXT_SUFFIXES)}")
            prompts = read_prompts(named)
        except InputError as error:
            problems += [f"prompts: {problem}" for problem in error.problems]
    steps = _stage_steps(entry, recipe, problems)
    if problems:
        raise StudyError(problems)
    if len(steps) > MOST_SEARCHED:
        raise StudyError(
            f"steps: {len(steps):,} steps with free alphas; a stage searches at most {MOST_SEARCHED}; "
            "search them in several stages, each naming its `steps`"
        )
    free = parameters_of(recipe, steps)
    if entry.strategy == "joint" and len(free) > MOST_JOINT:
        raise StudyError(
            f"strategy: {len(free):,} free alphas at once; a joint stage searches at most {MOST_JOINT}; search them "
            "in several stages, each naming its `steps`, tie those of a step (`tie: true`), or write strategy: stepwise"
        )
    measured = _measured(entry, recipe.layout, free)
    scored = {block for _, blocks in measured for block in blocks}
    if not any(scored & set(parameter.blocks) for parameter in free):
        raise StudyError(f"blocks: no free alpha of {', '.join(steps)} moves {recipe.layout.describe_blocks(scored)}")
    return Stage(
        name=entry.name,
        steps=steps,
        measured=measured,
        strategy=entry.strategy,
        trials=entry.trials,
        sampler=entry.sampler,
        seeds=tuple(entry.seeds),
        parameters=tuple(parameter for parameter in free if scored & set(parameter.blocks)),
        passes=entry.passes,
        tolerance=entry.tolerance,
        tf32=entry.tf32,
        prompts=prompts,
        clip_skip=entry.clip_skip,
        prompts_file=None if prompts is None else entry.prompts,
    )


def _stage_steps(entry: StageEntry, recipe: Recipe, problems: list[str]) -> tuple[str, ...]:
    """The stage's steps in the order of evaluation."""
    order = _evaluation_order(recipe)
    free = [name for name in order if parameters_of(recipe, [name])]
    if not free:
        problems.append("steps: the recipe has no free alpha; write `alpha: {search: [0, 1]}` in a step")
    elif entry.steps is not None and not entry.steps:
        problems.append(f"steps: received []; the steps with free alphas are {', '.join(free)}")
    named = dict.fromkeys(entry.steps or ())
    if unknown := [repr(name) for name in named if name not in order]:
        problems.append(f"steps: received {', '.join(unknown)}; the recipe's steps are {', '.join(order)}")
    if fixed := [repr(name) for name in named if free and name in order and name not in free]:
        has = "has" if len(fixed) == 1 else "have"
        problems.append(f"steps: {', '.join(fixed)} {has} no free alpha; write `alpha: {{search: [0, 1]}}` there")
    chosen = tuple(name for name in free if entry.steps is None or name in entry.steps)
    if (entry.strategy == "joint" or entry.passes > 1) and chosen:
        what = "a joint stage scores" if entry.strategy == "joint" else "further passes score"
        leading = {step.name for step in recipe.ancestors(chosen[-1])}
        if apart := [repr(name) for name in chosen if name not in leading]:
            does = "does" if len(apart) == 1 else "do"
            problems.append(f"steps: {', '.join(apart)} {does} not lead to {chosen[-1]!r}, which {what}")
    return chosen


def _evaluation_order(recipe: Recipe) -> tuple[str, ...]:
    names: dict[str, None] = {}
    for step in recipe.steps:
        # What comes after its inputs already needs no search among its ancestors.
        if all(name in names or name in recipe.models for name in step.inputs.values()):
            names[step.name] = None
        elif step.name not in names:
            names |= dict.fromkeys(inner.name for inner in recipe.ancestors(step.name))
    return tuple(names)


def _measured(entry: StageEntry, layout: Layout, free: Sequence[Parameter]) -> tuple[tuple[str, tuple[str, ...]], ...]:
    """Which metric scores which blocks. `elsewhere` takes the moved blocks that the stage's metric cannot see."""
    seen = METRICS[entry.metric].sees(layout)
    moved = {block for parameter in free for block in parameter.blocks}
    own = {parameter.blocks[0] for parameter in free if not parameter.free.tie}
    beyond = () if entry.elsewhere is None else METRICS[entry.elsewhere].sees(layout)
    problems = []
    try:
        listed = set(moved) if entry.blocks is None else set(layout.parse_blocks(entry.blocks))
    except InputError as error:
        raise StudyError(f"blocks: {problem}" for problem in error.problems) from None
    if entry.blocks is not None:
        if unseen := [block for block in listed if block not in seen and block not in beyond]:
            problems.append(
                f"blocks: {layout.describe_blocks(unseen)} cannot be measured by {entry.metric!r}, which sees "
                f"{layout.describe_blocks(seen)}; leave out what it does not see, or name a metric that sees it as "
                "`elsewhere`"
            )
        listed |= {block for block in own if block not in seen}
    if blind := [block for block in own if block not in seen and block not in beyond]:
        searched = described_alphas((one.name for one in free if not one.free.tie and one.blocks[0] in blind), layout)
        problems.append(
            f"metric: nothing sees {layout.describe_blocks(blind)}, where {', '.join(searched)} would be searched: "
            f"{entry.metric!r} sees {layout.describe_blocks(seen)}"
            + ("" if entry.elsewhere else "; name another metric for the rest as `elsewhere`")
        )
    if problems:
        raise StudyError(problems)
    first = tuple(block for block in seen if block in listed)
    second = tuple(block for block in beyond if block in listed and block not in first)
    if not first and not second:
        raise StudyError(f"blocks: none of the moved blocks is seen by {entry.metric!r}")
    pairs = ((entry.metric, first), (entry.elsewhere or "", second))
    return tuple((name, blocks) for name, blocks in pairs if blocks)


def _unsearched(recipe: Recipe, stages: Sequence[Stage]) -> list[str]:
    """A block's own free alpha that no stage scores would stay where it starts, unsaid."""
    searched = {parameter.name for stage in stages for parameter in stage.parameters}
    wanted = dict.fromkeys(step for stage in stages for step in stage.steps)
    missed = [parameter for parameter in parameters_of(recipe, wanted) if parameter.name not in searched]
    if not missed:
        return []
    blocks = recipe.layout.describe_blocks({block for parameter in missed for block in parameter.blocks})
    names = described_alphas((parameter.name for parameter in missed), recipe.layout)
    way = "add what is missing to a stage's `blocks`, or give the alphas numbers"
    return [f"{', '.join(names)}: no stage scores {blocks}; {way}"]
