"""What recipes note of the studies that found them: similarities, searches, other random inputs."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from optimizer.errors import InputError, RecipeError, StudyError
from optimizer.files import shown
from optimizer.recipes import Recipe, load_recipe
from optimizer.similarity import METRICS, prompts_sha256, total_similarity
from optimizer.studies.stage import DEFAULT_SEED
from optimizer.studies.study import Study

__all__ = [
    "ALIKE",
    "NotedSearch",
    "NotedSpread",
    "StepScores",
    "best_recipe",
    "needs_prompts",
    "noted_reading",
    "noted_scores",
    "noted_searches",
    "noted_spreads",
    "noted_step_scores",
]

# Noted and measured similarities that differ by more are of different things; devices differ by less.
ALIKE = 1e-5


def noted_scores(
    scores: Mapping[str, float],
    *,
    unchanged: Sequence[str] = (),
    pooled: float | None = None,
    order: Sequence[str] = (),
) -> dict[str, Any]:
    """Similarities {block: value} as recipes hold them, with their total; `unchanged` blocks without a value.

    If there are such, the blocks are in the given `order`.
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
    """A step's similarities {block: value} under the final alphas, `before` of its input a, `after` of its result.

    `before` is empty where it was read from a recipe that does not note it. `unchanged` are the blocks that the metric
    does not score because the target has them from the base. `pooled` is the share explained of all blocks together,
    of the metric `explained` alone.
    """

    stage: str
    step: str
    metric: str
    before: Mapping[str, float]
    after: Mapping[str, float]
    unchanged: tuple[str, ...] = ()
    pooled: float | None = None


def best_recipe(study: Study) -> Recipe | None:
    """The recipe in the study's best.yaml; None if there is none. Raises InputError if it is of another recipe."""
    path = study.folder / "best.yaml"
    recipe = load_recipe(path) if path.is_file() else None
    if recipe is not None and recipe.formulas != study.recipe.formulas:
        raise StudyError(f"{path}: its steps are not those of {study.recipe_path}; fit anew, or move it away")
    return recipe


def noted_reading(file: str | None, prompts: Sequence[str] | None, clip_skip: int) -> dict[str, Any]:
    """What the encoder metric reads, as recipes hold it: nothing where it is what the metric reads by default.

    Of prompts the `file` and its hash: they may be many, and a recipe goes into every merge of it, for all to read.
    """
    return {
        **({} if prompts is None else {"prompts": {"file": file, "sha256": prompts_sha256(prompts)}}),
        **({} if clip_skip == 1 else {"clip_skip": clip_skip}),
    }


@dataclass(frozen=True)
class NotedSearch:
    """A search noted in a recipe's `fitted`: the result of `step` was scored on `measured` = ((metric, blocks), ...).

    `similarity` is what it reached; `before`, once the recipe was simplified, what it reached before. `clip_skip` is
    the layer that the encoder metric read, `prompts_file` the file that its prompts are in, seen from the recipe, and
    `prompts_sha256` which prompts these were; None for those that ship. `prompts` are the prompts themselves, where
    they are known.
    """

    name: str
    step: str
    measured: tuple[tuple[str, tuple[str, ...]], ...]
    seeds: tuple[int, ...]
    similarity: float | None = None
    before: float | None = None
    prompts: tuple[str, ...] | None = None
    clip_skip: int = 1
    prompts_file: str | None = None
    prompts_sha256: str | None = None

    @property
    def metric(self) -> str:
        """What recipes call the metric: its name, or both joined by +."""
        return "+".join(name for name, _ in self.measured)

    @property
    def blocks(self) -> tuple[str, ...]:
        """All scored blocks."""
        return tuple(block for _, blocks in self.measured for block in blocks)

    @property
    def reads(self) -> bool:
        """Whether prompts matter."""
        return any(METRICS[name].needs_prompts for name, _ in self.measured)


def noted_searches(recipe: Recipe) -> tuple[NotedSearch, ...]:
    """The searches in `recipe.fitted`; none if it tells of none. Raises RecipeError for what cannot be understood."""
    noted = (recipe.fitted or {}).get("searches")
    if noted is None:
        return ()
    if not isinstance(noted, list) or not all(isinstance(entry, Mapping) for entry in noted):
        raise RecipeError("fitted.searches: must be a list of mappings, as a fit writes it")
    return tuple(_noted_search(recipe, entry, position) for position, entry in enumerate(noted))


def _noted_search(recipe: Recipe, entry: Mapping[str, Any], position: int) -> NotedSearch:
    where = f"fitted.searches[{position}]"

    def text(field: str) -> str:
        value = entry.get(field)
        if not isinstance(value, str):
            raise RecipeError(f"{where}.{field}: received {value!r}; must be text, as a fit writes it")
        return value

    def similarity(field: str) -> float | None:
        value = entry.get(field)
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, int | float) or not -1 <= value <= 1:
            raise RecipeError(f"{where}.{field}: received {value!r}; must be a number in [-1, 1]")
        return float(value)

    names = text("metric").split("+")
    if unknown := [name for name in names if name not in METRICS]:
        raise RecipeError(f"{where}.metric: received {unknown[0]!r}; must be one of {', '.join(METRICS)}")
    try:
        blocks = recipe.layout.parse_blocks(text("blocks"))
    except InputError as error:
        raise RecipeError(f"{where}.blocks: {problem}" for problem in error.problems) from None
    seeds = entry.get("seeds", [DEFAULT_SEED])
    # ruamel has a class of its own for some whole numbers, 0 among them.
    whole = isinstance(seeds, list) and all(isinstance(one, int) and not isinstance(one, bool) for one in seeds)
    if not whole or not seeds or not all(0 <= seed < 2**63 for seed in seeds):
        raise RecipeError(f"{where}.seeds: received {seeds!r}; must be one or more whole numbers from 0 up")
    reading = _noted_reading(entry, where) if any(map(needs_prompts, names)) else {}
    reached = similarity("similarity")
    name = text("name")
    return NotedSearch(
        name=name,
        step=_noted_step(recipe, entry, name, "+".join(names), blocks, reached, where),
        measured=_split(recipe, names, blocks, where),
        seeds=tuple(seeds),
        similarity=reached,
        before=similarity("before"),
        **reading,
    )


def _noted_reading(entry: Mapping[str, Any], where: str) -> dict[str, Any]:
    """The fields of a `NotedSearch` that are about what the encoder metric read."""
    clip_skip = entry.get("clip_skip", 1)
    if type(clip_skip) is not int or clip_skip < 1:
        raise RecipeError(f"{where}.clip_skip: received {shown(clip_skip)}; must be a whole number from 1 up")
    prompts = entry.get("prompts")
    if prompts is None:
        return {"clip_skip": clip_skip}
    # Recipes have held the prompts themselves.
    if isinstance(prompts, list) and prompts and all(isinstance(prompt, str) for prompt in prompts):
        return {"clip_skip": clip_skip, "prompts": tuple(prompts), "prompts_sha256": prompts_sha256(prompts)}
    named = [prompts.get(field) for field in ("file", "sha256")] if isinstance(prompts, Mapping) else [None]
    if not all(isinstance(text, str) for text in named):
        raise RecipeError(
            f"{where}.prompts: received {shown(prompts)}; must be a file and its sha256, as a fit writes it"
        )
    return {"clip_skip": clip_skip, "prompts_file": named[0], "prompts_sha256": named[1]}


def _split(
    recipe: Recipe, names: Sequence[str], blocks: Sequence[str], where: str
) -> tuple[tuple[str, tuple[str, ...]], ...]:
    """Which metric scores which blocks: each those that it sees and no earlier one does."""
    found: list[tuple[str, tuple[str, ...]]] = []
    left = list(blocks)
    for name in names:
        own = tuple(block for block in METRICS[name].sees(recipe.layout) if block in left)
        left = [block for block in left if block not in own]
        if own:
            found.append((name, own))
    if left:
        blocks = recipe.layout.describe_blocks(left)
        raise RecipeError(f"{where}.blocks: {blocks} cannot be measured by {'+'.join(names)!r}")
    return tuple(found)


def _noted_step(
    recipe: Recipe,
    entry: Mapping[str, Any],
    name: str,
    label: str,
    blocks: Sequence[str],
    reached: float | None,
    where: str,
) -> str:
    """The step whose result a search scored.

    Stepwise searches are named STAGE/STEP. A joint one scored the last step of its stage: of the steps that note
    similarities by its metric on its blocks, the one that notes what the search reached, else the last.
    """
    names = [step.name for step in recipe.steps]
    given = entry.get("step")
    if given is not None:
        if given not in names:
            raise RecipeError(f"{where}.step: received {given!r}; the recipe's steps are {', '.join(names)}")
        return str(given)
    if entry.get("strategy") == "stepwise":
        fitting = [step for step in names if name.endswith(f"/{step}")]
        if fitting:
            return max(fitting, key=len)
        raise RecipeError(f"{where}.name: received {name!r}; no step of the recipe has this name")
    ordered = dict.fromkeys(inner.name for step in names for inner in recipe.ancestors(step))
    noting = [step for step in ordered if set(blocks) <= set(_noted_scores(recipe, step, label))]
    equal = [
        step
        for step in noting
        if reached is not None
        and abs(sum(_noted_scores(recipe, step, label)[block] for block in blocks) / len(blocks) - reached) < ALIKE
    ]
    return [recipe.output, *noting, *equal[-1:]][-1]


def _noted_scores(recipe: Recipe, step: str, label: str) -> Mapping[str, Any]:
    noted = (recipe.step(step).similarity or {}).get(label)
    blocks = noted.get("blocks") if isinstance(noted, Mapping) else None
    numbers = blocks if isinstance(blocks, Mapping) else {}
    return {block: value for block, value in numbers.items() if isinstance(value, int | float)}


def needs_prompts(metric: str) -> bool:
    """Return whether a metric reads prompts."""
    return METRICS[metric].needs_prompts


@dataclass(frozen=True)
class NotedSpread:
    """The total similarity by `metric` of a stage's last step on random inputs that were not fitted on, for each seed.

    `fitted` is that on those that were; None if the recipe does not note it.
    """

    stage: str
    step: str
    metric: str
    fitted: float | None
    seeds: tuple[int, ...]
    totals: tuple[float, ...]


def noted_step_scores(study: Study, recipe: Recipe) -> Iterator[StepScores]:
    """The similarities that the recipe notes, by stage, step and metric; the stage's own metric first."""
    for stage in study.stages:
        for name in stage.steps:
            step = recipe.step(name)
            noted = step.similarity or {}
            for metric in sorted(noted, key=lambda metric: (metric != stage.metric, list(noted).index(metric))):
                after = _noted(recipe, name, metric, stage.blocks)
                entry = _mapping(noted[metric])
                blocks = _mapping(entry.get("blocks"))
                unchanged = tuple(block for block in stage.blocks if block in blocks and blocks[block] is None)
                # Of a metric that another stage fits this step by there may be nothing on these blocks.
                if len(after) + len(unchanged) == len(stage.blocks):
                    before = _noted(recipe, name, metric, stage.blocks, within="before")
                    if not before and step.a not in recipe.models:
                        before = _noted(recipe, step.a, metric, stage.blocks)
                    before = before if len(before) == len(after) else {}
                    pooled = _number(entry.get("pooled"))
                    yield StepScores(stage.name, name, metric, before, after, unchanged, pooled)


def _noted(
    recipe: Recipe, step: str, metric: str, blocks: Sequence[str], *, within: str | None = None
) -> dict[str, float]:
    """The similarities of these blocks that a step notes by a metric, as far as it does."""
    entry = _mapping((recipe.step(step).similarity or {}).get(metric))
    if within is not None:
        entry = _mapping(entry.get(within))
    scores = _mapping(entry.get("blocks"))
    numbers = {block: _number(scores.get(block)) for block in blocks}
    return {block: number for block, number in numbers.items() if number is not None}


def noted_spreads(study: Study, recipe: Recipe, scores: Sequence[StepScores]) -> Iterator[NotedSpread]:
    """Yield what the recipe notes of the study's stages under other random inputs, as far as it can be understood."""
    noted = (recipe.fitted or {}).get("other_random_inputs")
    stages = {stage.name: stage for stage in study.stages}
    for entry in map(_mapping, noted if isinstance(noted, list) else []):
        stage, metric = stages.get(str(entry.get("stage"))), str(entry.get("metric"))
        seeds, totals = entry.get("seeds"), entry.get("totals")
        if stage is None or metric not in METRICS or not isinstance(seeds, list) or not isinstance(totals, list):
            continue
        numbers = [number for total in totals if (number := _number(total)) is not None]
        if not numbers or len(numbers) != len(seeds) or not all(isinstance(seed, int) for seed in seeds):
            continue
        step = stage.steps[-1]
        blocks = next((blocks for name, blocks in stage.measured if name == metric), ())
        of_stage = [
            one.after for one in scores if (one.stage, one.step, one.metric) == (stage.name, step, stage.metric)
        ]
        own = [after[block] for after in of_stage for block in blocks if block in after]
        fitted = math.fsum(own) / len(own) if own else None
        yield NotedSpread(stage.name, step, metric, fitted, tuple(seeds), tuple(numbers))


def _mapping(value: Any) -> Mapping[Any, Any]:
    return value if isinstance(value, Mapping) else {}


def _number(value: Any) -> float | None:
    """A similarity, None for what is no such number: recipes may have been edited."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not -1 <= value <= 1:
        return None
    return float(value)
