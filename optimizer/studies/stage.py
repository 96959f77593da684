"""Stages of a study: the alphas that each searches and the blocks that it scores."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import Field, StrictInt, StrictStr, create_model

from optimizer.choices import StrategyName, words_of
from optimizer.errors import InputError, StudyError
from optimizer.families import Layout
from optimizer.files import UserFile, shown
from optimizer.recipes import Parameter, Recipe, described_alphas, parameters_of
from optimizer.samplers import DEFAULT_SAMPLER, SAMPLERS
from optimizer.similarity import DEFAULT_METRIC, EXACT_METRICS, METRICS, OPTIONS, MetricOptions, Options

__all__ = [
    "MOST_JOINT",
    "MOST_SEARCHED",
    "MOST_STAGES",
    "Stage",
    "StageEntry",
    "read_stage",
    "scoring_steps",
    "unsearched",
]

# Trials of a search that no exact optimum ends.
_DEFAULT_TRIALS = 60
# Gain in total similarity below which a pass of a stepwise stage is the last.
_DEFAULT_TOLERANCE = 1e-6
_STRATEGIES = words_of(StrategyName)
# Limits of a study; more would take years, and much of that before the first trial.
MOST_STAGES, _MOST_PASSES, _MOST_TRIALS = 100, 1000, 10_000_000
MOST_SEARCHED = 100  # steps with free alphas in a stage; real recipes have tens
# Free alphas of a joint stage: the time grows faster than their square. 23 steps of 26 alphas are 598.
MOST_JOINT = 600


class _StageFields(UserFile):
    """One stage: the free alphas it searches, the similarity, and the method."""

    name: StrictStr = Field(description="The name.", examples=["outputs"])
    steps: list[StrictStr] | None = Field(
        None, description="The steps whose free alphas are searched. Default: all that have some.", examples=[["TEMP1"]]
    )
    blocks: str | list[str] | None = Field(
        None,
        description="The blocks that are scored. Default: all that the free alphas move and the metric sees.",
        examples=["OUT03-OUT11"],
    )
    metric: str = Field(
        DEFAULT_METRIC,
        description="; ".join(f"{kind.name}: {kind.title}" for kind in METRICS.values()),
        json_schema_extra={"enum": list(METRICS)},
    )
    elsewhere: str | None = Field(
        None,
        description="The metric of the moved blocks that `metric` does not see.",
        json_schema_extra={"enum": [*METRICS, None]},
    )
    strategy: str = Field(
        "joint",
        description="joint: all free alphas at once; stepwise: each step on its own result, one after another.",
        json_schema_extra={"enum": list(_STRATEGIES)},
    )
    passes: StrictInt = Field(1, description="The largest number of passes of a stepwise stage over its steps.")
    tolerance: float = Field(
        _DEFAULT_TOLERANCE,
        description="The gain in total similarity below which a pass of a stepwise stage is the last.",
    )
    trials: StrictInt | None = Field(
        None,
        description="The number of completed trials of each Optuna study. Default: the exact optimum alone if the "
        f"metric is {', '.join(EXACT_METRICS[:-1])} or {EXACT_METRICS[-1]} and each free alpha moves one scored block; "
        f"else {_DEFAULT_TRIALS}.",
        examples=[_DEFAULT_TRIALS],
    )
    sampler: str = Field(
        DEFAULT_SAMPLER, description="The sampler of the trials.", json_schema_extra={"enum": list(SAMPLERS)}
    )

    def problems(self, base: str | None) -> list[str]:
        """Return a line for each field that no recipe can use; `base` is the study's base."""
        problems: list[str] = []
        for name, value, known in (
            ("metric", self.metric, METRICS),
            ("elsewhere", self.elsewhere, METRICS),
            ("strategy", self.strategy, _STRATEGIES),
            ("sampler", self.sampler, SAMPLERS),
        ):
            if value is not None and value not in known:
                problems.append(f"{name}: received {value!r}; must be one of {', '.join(known)}")
            elif value in METRICS and METRICS[value].needs_base and base is None:
                problems.append(f"{name}: {value!r} needs `base`, the model that differences are taken from")
        if not 1 <= self.passes <= _MOST_PASSES:
            problems.append(f"passes: received {shown(self.passes)}; must be at least 1, at most {_MOST_PASSES}")
        elif self.passes > 1 and self.strategy == "joint":
            problems.append(
                "passes: a joint stage searches all alphas at once; leave it out, or write strategy: stepwise"
            )
        if not (math.isfinite(self.tolerance) and self.tolerance >= 0):
            problems.append(f"tolerance: received {self.tolerance:g}; must be a number, at least 0, for example 1e-6")
        if self.trials is not None and not 1 <= self.trials <= _MOST_TRIALS:
            problems.append(f"trials: received {shown(self.trials)}; must be at least 1, at most {_MOST_TRIALS:,}")
        return problems


if TYPE_CHECKING:
    StageEntry = _StageFields
else:
    # The options of metrics are fields of a stage.
    StageEntry = create_model(
        "StageEntry",
        __base__=_StageFields,
        __doc__=_StageFields.__doc__,
        **{name: (option.annotation, option) for kind in OPTIONS for name, option in kind.model_fields.items()},
    )


@dataclass(frozen=True)
class Stage:
    """One stage of a study.

    Attributes:
        name: The name.
        steps: The names of the steps whose free alphas are searched, in the order of evaluation.
        measured: The metrics with their scored blocks, ((metric, blocks), ...).
        strategy: "joint" or "stepwise".
        trials: The number of completed trials of each Optuna study.
        sampler: The name of the sampler.
        parameters: The free alphas that are searched.
        options: The options of the metrics.
        passes: The largest number of passes over the steps of a stepwise stage.
        tolerance: The gain in total similarity below which a pass is the last.
    """

    name: str
    steps: tuple[str, ...]
    measured: tuple[tuple[str, tuple[str, ...]], ...]
    strategy: str
    trials: int
    sampler: str
    parameters: tuple[Parameter, ...]
    options: Options = field(default_factory=Options)
    passes: int = 1
    tolerance: float = _DEFAULT_TOLERANCE

    @property
    def blocks(self) -> tuple[str, ...]:
        """All scored blocks, in the order of the scores."""
        return tuple(block for _, blocks in self.measured for block in blocks)

    @property
    def uses_seeds(self) -> bool:
        """Whether a metric draws random inputs."""
        return any(METRICS[name].needs_seed for name, _ in self.measured)

    @property
    def uses_prompts(self) -> bool:
        """Whether a metric reads prompts."""
        return any(METRICS[name].needs_prompts for name, _ in self.measured)

    @property
    def used_options(self) -> tuple[tuple[MetricOptions, bool], ...]:
        """The options of every metric that has any, each with whether the stage scores by that metric."""
        used = {METRICS[name].options for name, _ in self.measured}
        return tuple((self.options.of(kind), kind in used) for kind in OPTIONS)

    @property
    def described_options(self) -> list[str]:
        """Short descriptions of the options that affect the scores."""
        return [text for options, used in self.used_options for text in options.described(used=used)]

    @property
    def metric(self) -> str:
        """The name of the total similarity: the metric, or both joined by +."""
        return "+".join(name for name, _ in self.measured)

    def searches(self, number: int = 1) -> tuple[tuple[str, str, tuple[Parameter, ...]], ...]:
        """Return the searches of one pass, in the order in which they run.

        A joint stage scores its last step. The first pass of a stepwise stage scores every step by itself. Further
        passes score the last step, with the alphas of all other steps filled in.

        Args:
            number: The number of the pass, at least 1.

        Returns:
            (name of the Optuna study, scored step, parameters) for each search.
        """
        if self.strategy == "joint":
            return ((self.name, self.steps[-1], self.parameters),)
        by_step = ((step, tuple(entry for entry in self.parameters if entry.step == step)) for step in self.steps)
        searched = ((step, parameters) for step, parameters in by_step if parameters)
        if number == 1:
            return tuple((f"{self.name}/{step}", step, parameters) for step, parameters in searched)
        last = self.steps[-1]
        return tuple((f"{self.name}/{step}/pass {number}", last, parameters) for step, parameters in searched)


def read_stage(entry: StageEntry, recipe: Recipe, base: str | None, folder: Path) -> Stage:
    """Return the stage that an entry of a study's file describes.

    Args:
        entry: The entry.
        recipe: The recipe of the study.
        base: The name of the model that differences are taken from; None without one.
        folder: The folder of the study; files of prompts are relative to it.

    Returns:
        The checked stage.

    Raises:
        StudyError: One line for each problem.
    """
    problems = entry.problems(base)
    options = _metric_options(entry, recipe.layout, folder, problems)
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
    searched = tuple(parameter for parameter in free if scored & set(parameter.blocks))
    if not searched:
        raise StudyError(f"blocks: no free alpha of {', '.join(steps)} moves {recipe.layout.describe_blocks(scored)}")
    return Stage(
        name=entry.name,
        steps=steps,
        measured=measured,
        strategy=entry.strategy,
        trials=_default_trials(measured, searched, entry.passes) if entry.trials is None else entry.trials,
        sampler=entry.sampler,
        parameters=searched,
        passes=entry.passes,
        tolerance=entry.tolerance,
        options=options,
    )


def _default_trials(measured: Sequence[tuple[str, tuple[str, ...]]], searched: Sequence[Parameter], passes: int) -> int:
    """Return the trials of a stage that names no number: no more than those at exact optima, if these are the best.

    A search begins with the exact optima of `explained` and of its own metric. The latter is the best point if the
    metric has one in each block. A tied alpha on several scored blocks, or a second metric, makes it a good start only.
    Further passes begin with the alphas so far.
    """
    metrics = [name for name, _ in measured]
    scored = {block for _, blocks in measured for block in blocks}
    tied = any(len(scored & set(parameter.blocks)) > 1 for parameter in searched)
    if tied or len(metrics) > 1 or not METRICS[metrics[0]].exact:
        return _DEFAULT_TRIALS
    return len({DEFAULT_METRIC, *metrics}) + (passes > 1)


def _metric_options(entry: StageEntry, layout: Layout, folder: Path, problems: list[str]) -> Options:
    """Return the options in a stage's fields; read the files that the options of its metrics name in `folder`."""
    used = {METRICS[name].options for name in (entry.metric, entry.elsewhere) if name in METRICS}
    found = []
    for kind in OPTIONS:
        given = {name: getattr(entry, name) for name in kind.model_fields if name in entry.model_fields_set}
        options = kind(**given)
        problems += options.problems(given, layout, used=kind in used)
        if kind in used:
            try:
                options = options.loaded(folder)
            except InputError as error:
                problems += error.problems
        found.append(options)
    return Options(tuple(found))


def _stage_steps(entry: StageEntry, recipe: Recipe, problems: list[str]) -> tuple[str, ...]:
    """Return the steps of a stage in the order of evaluation; add a line to `problems` for each mistake."""
    order = _evaluation_order(recipe)
    free = [name for name in order if parameters_of(recipe, [name])]
    if not free:
        problems.append("steps: the recipe has no free alpha; write `alpha: {search: [0, 1]}` in a step")
    elif entry.steps is not None and not entry.steps:
        problems.append(f"steps: received []; must be among the steps with free alphas: {', '.join(free)}")
    named = dict.fromkeys(entry.steps or ())
    if unknown := [repr(name) for name in named if name not in order]:
        problems.append(f"steps: received {', '.join(unknown)}; must be among the recipe's steps: {', '.join(order)}")
    if fixed := [repr(name) for name in named if free and name in order and name not in free]:
        has = "has" if len(fixed) == 1 else "have"
        problems.append(f"steps: {', '.join(fixed)} {has} no free alpha; write `alpha: {{search: [0, 1]}}` there")
    chosen = tuple(name for name in free if entry.steps is None or name in entry.steps)
    if (entry.strategy == "joint" or entry.passes > 1) and chosen:
        scoring = "a joint stage scores" if entry.strategy == "joint" else "further passes score"
        leading = {step.name for step in recipe.ancestors(chosen[-1])}
        if aside := [repr(name) for name in chosen if name not in leading]:
            does = "does" if len(aside) == 1 else "do"
            problems.append(f"steps: {', '.join(aside)} {does} not lead to {chosen[-1]!r}, which {scoring}")
    return chosen


def _evaluation_order(recipe: Recipe) -> tuple[str, ...]:
    """Return the names of all steps, each after its inputs."""
    names: dict[str, None] = {}
    for step in recipe.steps:
        # A shortcut for steps that already follow their inputs.
        if all(name in names or name in recipe.models for name in step.inputs.values()):
            names[step.name] = None
        elif step.name not in names:
            names |= dict.fromkeys(inner.name for inner in recipe.ancestors(step.name))
    return tuple(names)


def _measured(entry: StageEntry, layout: Layout, free: Sequence[Parameter]) -> tuple[tuple[str, tuple[str, ...]], ...]:
    """Return the metrics with their blocks: `elsewhere` scores the moved blocks that `metric` cannot see."""
    for key, name in (("metric", entry.metric), ("elsewhere", entry.elsewhere)):
        if name is not None:
            try:
                METRICS[name].check_offered(layout)
            except InputError as error:
                raise StudyError(f"{key}: {problem}" for problem in error.problems) from None
    seen = METRICS[entry.metric].sees(layout)
    moved = {block for parameter in free for block in parameter.blocks}
    untied = {parameter.blocks[0] for parameter in free if not parameter.free.tie}
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
                f"{layout.describe_blocks(seen)}; leave these blocks out, or name a metric that sees them as "
                "`elsewhere`"
            )
        listed |= {block for block in untied if block not in seen}
    if blind := [block for block in untied if block not in seen and block not in beyond]:
        searched = described_alphas(
            (entry.name for entry in free if not entry.free.tie and entry.blocks[0] in blind), layout
        )
        problems.append(
            f"metric: no metric sees {layout.describe_blocks(blind)}, where {', '.join(searched)} would be searched: "
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


def scoring_steps(stages: Sequence[Stage]) -> dict[str, str]:
    """Return the step on whose result each scored block counts, {block: step}.

    It is the last step of the block's stage; if several stages score a block, the last of them counts.
    """
    return {block: stage.steps[-1] for stage in stages for block in stage.blocks}


def unsearched(recipe: Recipe, stages: Sequence[Stage]) -> list[str]:
    """Return a line for free alphas that no stage scores: they would silently keep their start value."""
    searched = {parameter.name for stage in stages for parameter in stage.parameters}
    steps = dict.fromkeys(step for stage in stages for step in stage.steps)
    missed = [parameter for parameter in parameters_of(recipe, steps) if parameter.name not in searched]
    if not missed:
        return []
    blocks = recipe.layout.describe_blocks({block for parameter in missed for block in parameter.blocks})
    names = described_alphas((parameter.name for parameter in missed), recipe.layout)
    advice = "add these blocks to a stage's `blocks`, or give the alphas numbers"
    return [f"{', '.join(names)}: no stage scores {blocks}; {advice}"]
