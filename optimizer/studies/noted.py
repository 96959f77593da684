"""The notes of studies in recipes: similarities, searches, scores on other random inputs."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from optimizer.errors import RecipeError, StudyError, attempt
from optimizer.recipes import FittedScores, FittedSearch, Recipe, Step, load_recipe
from optimizer.similarity import METRICS, OPTIONS, Options, total_similarity
from optimizer.studies.study import Study

__all__ = [
    "ALIKE",
    "NotedSearch",
    "NotedSpread",
    "StepScores",
    "best_recipe",
    "needs_prompts",
    "noted_scores",
    "noted_searches",
    "noted_spreads",
    "noted_step_scores",
]

# Noted and measured similarities that differ by more are of different inputs; devices differ by less.
ALIKE = 1e-5


def noted_scores(
    scores: Mapping[str, float],
    *,
    unchanged: Sequence[str] = (),
    pooled: float | None = None,
    order: Sequence[str] = (),
) -> dict[str, Any]:
    """Return similarities as recipes hold them, with their total.

    Args:
        scores: The similarities {block: value}, in [-1, 1].
        unchanged: Blocks that are listed without a value.
        pooled: The share explained of all blocks together, at most 1.
        order: The order of the blocks, used if any are unchanged.

    Returns:
        The plain values that a recipe's YAML file holds.
    """
    rounded: dict[str, float | None] = {block: round(value, 9) for block, value in scores.items()}
    if unchanged:
        rounded |= dict.fromkeys(unchanged)
        rounded = {block: rounded[block] for block in (*order, *rounded) if block in rounded}
    return {
        "total": round(total_similarity(scores), 9) if scores else None,
        **({} if pooled is None else {"pooled": round(pooled, 9)}),
        "blocks": rounded,
    }


@dataclass(frozen=True)
class StepScores:
    """The similarities of a step under the final alphas.

    Attributes:
        stage: The name of the stage.
        step: The name of the step.
        metric: The metric, or both joined by +.
        before: The similarities {block: value} of the step's input a; empty if the recipe does not note them.
        after: The similarities {block: value} of the step's result.
        unchanged: Blocks that the metric does not score because the target has them from the base.
        pooled: The share explained of all blocks together, at most 1; the metric `explained` alone has it.
    """

    stage: str
    step: str
    metric: str
    before: Mapping[str, float]
    after: Mapping[str, float]
    unchanged: tuple[str, ...] = ()
    pooled: float | None = None


def best_recipe(study: Study) -> Recipe | None:
    """Return the recipe in the study's best.yaml, None without one; raise StudyError if it fits another recipe."""
    path = study.outputs.best
    recipe = load_recipe(path) if path.is_file() else None
    if recipe is not None and recipe.formulas != study.recipe.formulas:
        raise StudyError(f"{path}: its steps are not those of {study.recipe_path}; fit anew, or move it away")
    return recipe


@dataclass(frozen=True)
class NotedSearch:
    """A search noted in a recipe's `fitted`.

    Attributes:
        name: The name of the search.
        step: The step whose result was scored.
        measured: The metrics with their scored blocks, ((metric, blocks), ...).
        options: The options of the metrics; files are relative to the recipe.
        similarity: The similarity reached, in [-1, 1].
        before: The similarity reached before the recipe was simplified, in [-1, 1].
    """

    name: str
    step: str
    measured: tuple[tuple[str, tuple[str, ...]], ...]
    options: Options = field(default_factory=Options)
    similarity: float | None = None
    before: float | None = None

    @property
    def metric(self) -> str:
        """The metric as recipes name it: one name, or two joined by +."""
        return "+".join(name for name, _ in self.measured)

    @property
    def blocks(self) -> tuple[str, ...]:
        """All scored blocks."""
        return tuple(block for _, blocks in self.measured for block in blocks)

    @property
    def uses_prompts(self) -> bool:
        """Whether a metric reads prompts."""
        return any(METRICS[name].needs_prompts for name, _ in self.measured)


def noted_searches(recipe: Recipe) -> tuple[NotedSearch, ...]:
    """Return the searches noted in a recipe, perhaps none; raise RecipeError if a note cannot be read."""
    if (problem := recipe.noted.problems.get("searches")) is not None:
        raise RecipeError(f"fitted.searches: {problem}")
    return tuple(_noted_search(recipe, entry, position) for position, entry in enumerate(recipe.noted.searches or ()))


def _noted_search(recipe: Recipe, entry: FittedSearch, position: int) -> NotedSearch:
    where = f"fitted.searches[{position}]"
    # These texts are required.
    missing = [key for key in ("name", "metric", "blocks") if getattr(entry, key) is None]
    problems = {**dict.fromkeys(missing, "received None; must be text, as a fit writes it"), **entry.problems}
    names = (entry.metric or "").split("+")
    unknown = [name for name in names if name not in METRICS]
    if unknown and "metric" not in problems:
        problems["metric"] = f"received {unknown[0]!r}; must be one of {', '.join(METRICS)}"
    with_prompts = not unknown and any(map(needs_prompts, names))
    used = (
        "metric",
        "blocks",
        "seeds",
        *(("clip_skip", "prompts") if with_prompts else ()),
        "similarity",
        "before",
        "name",
    )
    if wrong := [f"{where}.{key}: {problems[key]}" for key in used if key in problems]:
        raise RecipeError(wrong)
    name, text = entry.name or "", entry.blocks or ""
    blocks = attempt(lambda: recipe.layout.parse_blocks(text), f"{where}.blocks")
    kinds = [kind for kind in OPTIONS if any(METRICS[metric].options is kind for metric in names)]
    return NotedSearch(
        name=name,
        step=_noted_step(recipe, entry, "+".join(names), blocks, where),
        measured=_split(recipe, names, blocks, where),
        options=Options(tuple(kind.of_noted(entry) for kind in kinds)),
        similarity=entry.similarity,
        before=entry.before,
    )


def _split(
    recipe: Recipe, names: Sequence[str], blocks: Sequence[str], where: str
) -> tuple[tuple[str, tuple[str, ...]], ...]:
    """Return the metrics with their blocks: each scores the blocks that it sees and no earlier metric does."""
    found: list[tuple[str, tuple[str, ...]]] = []
    left = list(blocks)
    for name in names:
        seen = tuple(block for block in METRICS[name].sees(recipe.layout) if block in left)
        left = [block for block in left if block not in seen]
        if seen:
            found.append((name, seen))
    if left:
        blocks = recipe.layout.describe_blocks(left)
        raise RecipeError(f"{where}.blocks: {blocks} cannot be measured by {'+'.join(names)!r}")
    return tuple(found)


def _noted_step(recipe: Recipe, entry: FittedSearch, label: str, blocks: Sequence[str], where: str) -> str:
    """Return the step whose result a search scored.

    Stepwise searches are named STAGE/STEP. A joint search scored the last step of its stage. This is, of the steps that
    note similarities by its metric on its blocks, the one with the similarity that the search reached, else the last.

    Raises:
        RecipeError: The notes name no step of the recipe.
    """
    names = [step.name for step in recipe.steps]
    if (problem := entry.problems.get("step")) is not None:
        raise RecipeError(f"{where}.step: {problem}")
    if entry.step is not None:
        if entry.step not in names:
            raise RecipeError(
                f"{where}.step: received {entry.step!r}; must be one of the recipe's steps: {', '.join(names)}"
            )
        return entry.step
    name = entry.name or ""
    if entry.strategy == "stepwise":
        fitting = [step for step in names if name.endswith(f"/{step}")]
        if fitting:
            return max(fitting, key=len)
        raise RecipeError(f"{where}.name: received {name!r}; no step of the recipe has this name")
    ordered = dict.fromkeys(inner.name for step in names for inner in recipe.ancestors(step))
    scores = {step: _scores(recipe.step(step), label).of(tuple(blocks)) for step in ordered}
    noting = [step for step, noted in scores.items() if len(noted) == len(blocks)]
    equal = [
        step
        for step in noting
        if entry.similarity is not None and abs(sum(scores[step].values()) / len(blocks) - entry.similarity) < ALIKE
    ]
    return [recipe.output, *noting, *equal[-1:]][-1]


def _scores(step: Step, metric: str) -> FittedScores:
    """Return the similarities that a step notes by a metric, empty if none can be used."""
    noted = (step.similarity or {}).get(metric)
    return FittedScores.from_data(noted if isinstance(noted, Mapping) else {})


def needs_prompts(metric: str) -> bool:
    """Return whether a metric reads prompts."""
    return METRICS[metric].needs_prompts


@dataclass(frozen=True)
class NotedSpread:
    """The similarities of a stage's last step on random inputs that were not fitted on.

    Attributes:
        stage: The name of the stage.
        step: The name of its last step.
        metric: The metric.
        fitted: The total similarity on the inputs that were fitted on; None if the recipe does not note it.
        seeds: The seeds of the other inputs.
        totals: The total similarity, in [-1, 1], for each seed.
    """

    stage: str
    step: str
    metric: str
    fitted: float | None
    seeds: tuple[int, ...]
    totals: tuple[float, ...]


def noted_step_scores(study: Study, recipe: Recipe) -> Iterator[StepScores]:
    """Yield the similarities that the recipe notes, by stage, step and metric; the stage's own metric first."""
    for stage in study.stages:
        for name in stage.steps:
            step = recipe.step(name)
            noted = list(step.similarity or {})
            for metric in sorted(noted, key=lambda metric: (metric != stage.metric, noted.index(metric))):
                scores = _scores(step, metric)
                after = scores.of(stage.blocks)
                unchanged = tuple(block for block in stage.blocks if block in scores.unchanged)
                # Another stage's metric may score other blocks of this step.
                if len(after) + len(unchanged) == len(stage.blocks):
                    before = (scores.before or FittedScores()).of(stage.blocks)
                    if not before and step.a not in recipe.models:
                        before = _scores(recipe.step(step.a), metric).of(stage.blocks)
                    before = before if len(before) == len(after) else {}
                    yield StepScores(stage.name, name, metric, before, after, unchanged, scores.pooled)


def noted_spreads(study: Study, recipe: Recipe, scores: Sequence[StepScores]) -> Iterator[NotedSpread]:
    """Yield the readable notes on the study's stages under other random inputs."""
    stages = {stage.name: stage for stage in study.stages}
    for spread in recipe.noted.other_random_inputs or ():
        stage, metric = stages.get(spread.stage or ""), spread.metric
        if stage is None or metric not in METRICS or spread.seeds is None or not spread.totals:
            continue
        if len(spread.totals) != len(spread.seeds):
            continue
        step = stage.steps[-1]
        blocks = next((blocks for name, blocks in stage.measured if name == metric), ())
        of_stage = [
            entry.after
            for entry in scores
            if (entry.stage, entry.step, entry.metric) == (stage.name, step, stage.metric)
        ]
        values = [after[block] for after in of_stage for block in blocks if block in after]
        fitted = math.fsum(values) / len(values) if values else None
        yield NotedSpread(stage.name, step, metric, fitted, spread.seeds, spread.totals)
