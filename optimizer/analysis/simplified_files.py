"""Finished recipes on disk, simplified against their target."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from optimizer.analysis.simplifying import (
    SHARE,
    TOLERANCE,
    Judged,
    Number,
    Scored,
    Simplified,
    default_numbers,
    simplify,
)
from optimizer.checkpoints import check_unchanged
from optimizer.errors import InputError, RecipeError, attempt
from optimizer.files import check_output, named_file
from optimizer.library import HashCache, locate, locate_models, not_found, seen_from, sha256
from optimizer.merging import check_noted_hashes, fits_hash, other_hash
from optimizer.recipes import Recipe, folders_of, load_recipe, parameters_of, save_recipe
from optimizer.similarity import (
    DEFAULT_METRIC,
    METRICS,
    Combined,
    Comparison,
    ExplainedMetric,
    Measured,
    Statistics,
    build_metric,
    check_installed,
    measure_statistics,
    open_recipe_comparison,
    prompts_sha256,
    read_prompts,
)
from optimizer.studies import ALIKE, DEFAULT_SEED, NotedSearch, Study, needs_prompts, noted_reading, noted_searches

__all__ = ["simple_path", "simplify_file", "simplify_fit"]

# Steps of a recipe that is simplified: the work grows with their number's cube. People's have tens.
_MOST_STEPS = 100


def simple_path(recipe: Path) -> Path:
    """Where the simpler recipe goes unless the user says otherwise: NAME.simple.yaml beside NAME.yaml."""
    return recipe.with_name(f"{recipe.stem}.simple.yaml")


def simplify_file(
    path: Path | str,
    output: Path | str,
    *,
    share: float = SHARE,
    tolerance: float = TOLERANCE,
    target: Path | str | None = None,
    metric: str | None = None,
    base: str | None = None,
    seeds: Sequence[int] | None = None,
    prompts: Path | None = None,
    folders: Sequence[Path] = (),
    check_hashes: bool = True,
    device: torch.device | str | None = None,
    hashes: HashCache | None = None,
    progress: Callable[[str, int, int], None] | None = None,
    warn: Callable[[str], None] = lambda text: None,
) -> Simplified:
    """Write the recipe in `path` to `output`, simpler, and as good in every block but for what `simplify` may lose.

        simplify_file("my-study/best.yaml", "my-study/best.simple.yaml")

    A block may lose `share` of what the recipe leaves unexplained of it, and `tolerance`. What is judged, and what else
    is told of, is what the recipe notes of the searches that found it. `target`, `metric`, `seeds` (of attention's
    random inputs), `prompts` (a file of those that encoder reads) and `base` (the model that differences are taken
    from; default: the one noted, the one called base, the first) stand for what it does not note, or instead of it. A
    recipe that notes no search is scored by `explained` unless `metric` says otherwise, on all blocks that it moves and
    the metric sees. Files must have the sha256 that the recipe notes of them, unless `check_hashes` is off; the target
    too, if it is the noted one. `warn` is told what is odd.

    Raises InputError, nothing written, for a recipe that is not finished or has more than 100 steps, a target that
    nobody names, prompts that are gone or are others than were noted, or files that are missing, do not fit, or change
    meanwhile.
    """
    path, output, target = Path(path), Path(output), None if target is None else Path(target)
    check_output(output, beside=path)
    if output.resolve() == path.resolve():
        raise InputError(f"{output}: is the recipe itself; write to another file")
    if not output.resolve().parent.is_dir():
        raise InputError(f"{output}: the folder {output.resolve().parent} does not exist; create it first")
    if metric is not None and metric not in METRICS:
        raise InputError(f"--metric: received {metric!r}; there are {', '.join(METRICS)}")
    recipe = load_recipe(path)
    if len(recipe.steps) > _MOST_STEPS:
        raise RecipeError(
            f"{path}: steps: received {len(recipe.steps):,}; a recipe of at most {_MOST_STEPS} can be simplified; "
            "merge the first ones into a file (blockfit merge --step), and simplify the others with that as a source"
        )
    try:
        recipe.check_finished("simplified", *(step.name for step in recipe.steps))
        searches = _asked(noted_searches(recipe), recipe, metric, seeds)
    except RecipeError as error:
        raise RecipeError(f"{path}: {problem}" for problem in error.problems) from None
    beside, *others = folders_of(recipe, path, folders)
    reading = any(search.reads for search in searches) if searches else metric is not None and needs_prompts(metric)
    if prompts is not None and not reading:
        raise InputError("--prompts: only the metric `encoder` reads prompts; leave it out, or write --metric encoder")
    given = None if prompts is None else (prompts, attempt(lambda: read_prompts(prompts), "--prompts"))
    searches = tuple(_with_prompts(search, path, (beside, *others), output, given) for search in searches)
    relative = _needs_base(searches) or (metric is not None and METRICS[metric].needs_base)
    base = _base(recipe, base, path, needed=relative)
    goal, file = _target(recipe, path, target, (beside, *others), hashes, progress)
    used = {name for step in recipe.steps for name in step.inputs.values()} | {base}
    files = {name: model.file for name, model in recipe.models.items() if name in used}
    sources = locate_models(files, beside, others, named_in=path, hashes=hashes, progress=progress)
    if check_hashes:
        check_noted_hashes(recipe.models, sources, named_in=path, hashes=hashes, progress=progress)
    noted_base = (recipe.fitted or {}).get("base")
    with open_recipe_comparison(recipe, sources, goal, base=base, device=device, progress=progress) as comparison:
        digest = sha256(goal, hashes, progress=_hashing(goal, progress))
        noted = _is_noted_target(recipe, path, goal, digest, must=check_hashes and target is None)
        same = noted and noted_base in (None, base)
        if not searches:
            whole = _whole_recipe(recipe, comparison, metric or DEFAULT_METRIC, seeds, path)
            searches = (_with_prompts(whole, path, (beside, *others), output, given),)
        judging = _judging(recipe, [(search.step, search.blocks) for search in searches])
        read = {block for search in searches for name, own in search.measured for block in own if _reads(name)}
        read |= {block for blocks in judging.values() for block in blocks}
        statistics = measure_statistics(comparison, [block for block in comparison.layout.blocks if block in read])
        simplified = simplify(
            recipe,
            _judged(judging, comparison, statistics, _noted_shares(recipe) if same else {}),
            groups=comparison.groups,
            sources=tuple(comparison.sources),
            share=share,
            tolerance=tolerance,
            scored=_scored(searches, comparison, statistics, as_noted=same),
            numbers=_searched_numbers(recipe, path, judging),
            # Without its base, nobody could measure the same again.
            keep=() if base is None else (base,),
        )
        # The hash that is noted has to be of what was scored.
        check_unchanged([comparison.target])
    for problem in _differences(searches, simplified) if same else ():
        warn(f"{path}: {problem}")
    origin = (recipe.fitted or {}).get("recipe")
    fitted = {
        "recipe": seen_from(output.parent, path.parent / origin if isinstance(origin, str) else path),
        "target": {
            "file": file if _same_folder(path, output) else seen_from(output.parent, goal),
            "sha256": digest,
        },
        **({} if base is None else {"base": base}),
        "searches": _as_noted(searches, simplified, (recipe.fitted or {}).get("searches") or ()),
    }
    simplified = _with_notes(simplified, recipe, fitted, path, share, tolerance)
    save_recipe(simplified.recipe, output)
    return simplified


def _differences(searches: Sequence[NotedSearch], simplified: Simplified) -> Iterator[str]:
    """What to say of searches that were found to be of another similarity than the recipe notes."""
    for search in searches:
        measured, _ = simplified.totals[search.name]
        noted = search.similarity if search.before is None else None
        if noted is not None and abs(measured - noted) > ALIKE:
            yield (
                f"fitted.searches.{search.name}: measured {measured:.9f}, but {noted:.9f} is noted; were other random "
                "inputs (--seed), other prompts (--prompts), another base (--base) or other files used?"
            )


def simplify_fit(study: Study, recipe: Recipe, measured: Measured, output: Path) -> Simplified:
    """Write the recipe that a fit of `study` found to `output`, simpler, by what was `measured` of the checkpoints.

    Similarities that cannot be told from that alone, by attention and encoder, are not noted in it. Raises InputError
    as `simplify` does, or if `output` cannot be written.
    """
    path, statistics = study.folder / "best.yaml", measured.statistics
    searches = [search for search in noted_searches(recipe) if all(_reads(name) for name, _ in search.measured)]
    judging = _judging(recipe, [(stage.steps[-1], stage.blocks) for stage in study.stages])
    numbers = [Number(one.step, one.alpha, one.blocks) for stage in study.stages for one in stage.parameters]
    simplified = simplify(
        recipe,
        _judged(judging, measured, statistics, {}),
        groups=measured.groups,
        sources=tuple(measured.sources),
        scored=_scored(searches, measured, statistics, as_noted=False),
        numbers=dict.fromkeys(numbers),
        keep=() if study.base is None else (study.base,),
    )
    noted = (recipe.fitted or {}).get("searches") or ()
    simplified = _with_notes(simplified, recipe, {"searches": _as_noted(searches, simplified, noted)}, path, SHARE,
                             TOLERANCE)  # fmt: skip
    save_recipe(simplified.recipe, output)
    return simplified


def _judging(recipe: Recipe, covered: Sequence[tuple[str, Sequence[str]]]) -> dict[str, tuple[str, ...]]:
    """The blocks that each step's result is judged on, {step: blocks}, of results and the blocks that they cover.

    A block is judged on the last result only: what comes before it is no result by itself.
    """
    leading = {step: {inner.name for inner in recipe.ancestors(step)} - {step} for step, _ in covered}
    found: dict[str, dict[str, None]] = {}
    for step, blocks in covered:
        last = [block for block in blocks if not any(step in leading[other] and block in own for other, own in covered)]
        if last:
            found.setdefault(step, {}).update(dict.fromkeys(last))
    return {step: tuple(blocks) for step, blocks in found.items()}


def _judged(
    judging: Mapping[str, tuple[str, ...]],
    comparison: Comparison | Measured,
    statistics: Statistics,
    reference: Mapping[str, float],
) -> list[Judged]:
    found = []
    for step, blocks in judging.items():
        metric = build_metric(DEFAULT_METRIC, comparison, blocks, statistics)
        assert isinstance(metric, ExplainedMetric)
        found.append(Judged(step, metric, reference))
    return found


def _noted_shares(recipe: Recipe) -> dict[str, float]:
    """What each block explained before the recipe was simplified, as far as it notes that."""
    noted = (recipe.fitted or {}).get("simplified")
    shares = noted.get("explained") if isinstance(noted, Mapping) else None
    return {
        block: float(share)
        for block, share in (shares.items() if isinstance(shares, Mapping) else ())
        if isinstance(share, int | float) and not isinstance(share, bool) and share <= 1
    }


def _with_notes(
    simplified: Simplified, recipe: Recipe, fitted: Mapping[str, Any], path: Path, share: float, tolerance: float
) -> Simplified:
    """The result with what its recipe notes of the fit, and of having been simplified from `recipe` in `path`."""
    noted = {
        # What other random inputs gave was of the recipe as it was.
        **{key: value for key, value in (recipe.fitted or {"by": "blockfit"}).items() if key != "other_random_inputs"},
        **fitted,
        "simplified": {
            "from": _first_of(recipe) or path.name,
            "share": share,
            "tolerance": tolerance,
            # Not rounded: what is simplified again must not lose more in all.
            "explained": dict(simplified.before),
        },
    }
    return replace(simplified, recipe=replace(simplified.recipe, fitted=noted))


def _with_prompts(
    search: NotedSearch,
    path: Path,
    folders: Sequence[Path],
    output: Path,
    given: tuple[Path, tuple[str, ...]] | None,
) -> NotedSearch:
    """The search with the prompts that it is to read, those noted in `path`, and their file as seen from `output`.

    Or those `given` instead, (file, prompts). Raises RecipeError if the noted ones are not to be had.
    """
    if not search.reads:
        return search
    if given is not None:
        file, prompts = given
        digest = prompts_sha256(prompts)
        return replace(
            search,
            prompts=prompts,
            prompts_file=seen_from(output.parent, file),
            prompts_sha256=digest,
            before=search.before if digest == search.prompts_sha256 else None,
        )
    if search.prompts_file is None:
        return search
    where = f"{path}: fitted.searches.{search.name}.prompts"
    found = next((one for folder in folders if (one := named_file(folder, search.prompts_file)) is not None), None)
    if found is None:
        looked = ", ".join(map(str, folders))
        raise RecipeError(f"{where}.file: {search.prompts_file!r} not found; looked in {looked}; name it (--prompts)")
    prompts = attempt(lambda: read_prompts(found), where)
    if (digest := prompts_sha256(prompts)) != search.prompts_sha256:
        raise RecipeError(
            f"{where}: {found} holds other prompts now (sha256 {digest[:10]}) than were read then "
            f"({search.prompts_sha256!s:.10}); put those back, or name others (--prompts)"
        )
    named = search.prompts_file if _same_folder(path, output) else seen_from(output.parent, found)
    return replace(search, prompts=prompts, prompts_file=named)


def _asked(
    searches: Sequence[NotedSearch], recipe: Recipe, metric: str | None, seeds: Sequence[int] | None
) -> tuple[NotedSearch, ...]:
    """The noted searches, scored by another metric or other random inputs if the user wants that.

    Raises InputError for metrics whose libraries are not installed.
    """
    noted = [name for search in searches for name, _ in search.measured]
    check_installed(noted if metric is None else [metric])
    if metric is not None:
        visible = METRICS[metric].sees(recipe.layout)
        for search in searches:
            if not set(search.blocks) & set(visible):
                raise RecipeError(
                    f"fitted.searches: {search.name!r} scores {recipe.layout.describe_blocks(search.blocks)}, but "
                    f"{metric!r} sees {recipe.layout.describe_blocks(visible)}"
                )
        searches = [
            search
            if search.metric == metric
            else replace(
                search,
                measured=((metric, tuple(block for block in visible if block in search.blocks)),),
                similarity=None,
                before=None,
            )
            for search in searches
        ]
    if seeds is not None:
        searches = [
            search
            if search.seeds == tuple(seeds)
            else replace(search, seeds=tuple(seeds), before=None if _draws(search) else search.before)
            for search in searches
        ]
    return tuple(searches)


def _whole_recipe(
    recipe: Recipe, comparison: Comparison, metric: str, seeds: Sequence[int] | None, path: Path
) -> NotedSearch:
    """For a recipe that notes no search: its output, on all blocks that it moves and that can be scored."""
    visible = METRICS[metric].sees(recipe.layout)
    alphas = [alpha for step in recipe.ancestors() for alpha in step.alphas.values()]
    held = {part.block for part in comparison.parts if part.scored and part.held_by(comparison.target)}
    blocks = tuple(block for block in visible if block in held and any(alpha.at(block) for alpha in alphas))
    if not blocks:
        raise RecipeError(f"{path}: no alpha moves a block that {metric!r} sees; --metric names another one")
    return NotedSearch(recipe.output, recipe.output, ((metric, blocks),), tuple(seeds or (DEFAULT_SEED,)))


def _scored(
    searches: Sequence[NotedSearch], comparison: Comparison | Measured, statistics: Statistics, *, as_noted: bool
) -> tuple[Scored, ...]:
    built: dict[object, Combined] = {}
    found = []
    for search in searches:
        key = (search.measured, search.seeds, search.prompts, search.clip_skip)
        if key not in built:
            given = comparison
            if isinstance(comparison, Comparison):
                given = replace(comparison, seeds=search.seeds, prompts=search.prompts, clip_skip=search.clip_skip)
            built[key] = Combined([build_metric(name, given, own, statistics) for name, own in search.measured])
        reference = search.before if as_noted else None
        found.append(Scored(search.name, search.step, search.metric, built[key], reference))
    return tuple(found)


def _reads(metric: str) -> bool:
    return METRICS[metric].reads_statistics


def _draws(search: NotedSearch) -> bool:
    return any(METRICS[name].needs_seed for name, _ in search.measured)


def _needs_base(searches: Iterable[NotedSearch]) -> bool:
    return any(METRICS[name].needs_base for search in searches for name, _ in search.measured)


def _searched_numbers(recipe: Recipe, path: Path, judging: Mapping[str, Sequence[str]]) -> tuple[Number, ...]:
    """The numbers that were searched, as the recipe that was fitted tells if it is there; else what can be guessed."""
    searched = [step.name for step in recipe.steps if step.similarity is not None]
    steps = searched or [step.name for step in recipe.steps]
    origin = (recipe.fitted or {}).get("recipe")
    told: list[Number] = []
    if isinstance(origin, str) and (file := named_file(path.parent, origin)) is not None:
        fitted_from = load_recipe(file)
        modes = {step.name: step.mode for step in fitted_from.steps}
        # Steps that have changed since then are judged by what they are now.
        alike = [step.name for step in recipe.steps if modes.get(step.name) == step.mode]
        told = [Number(one.step, one.alpha, one.blocks) for one in parameters_of(fitted_from, alike)]
        if told:
            steps = [step for step in steps if step not in alike]
    return (*told, *default_numbers(recipe, judging, steps))


def _base(recipe: Recipe, base: str | None, path: Path, *, needed: bool) -> str | None:
    """The model that differences are taken from: the one asked for, the one noted, the one called base; or none."""
    if base is not None and base not in recipe.models:
        raise InputError(f"--base: received {base!r}; the recipe's models are {', '.join(recipe.models)}")
    found = recipe.noted_base if base is None else base
    if found is None and needed:
        raise InputError(
            f"{path}: delta needs a base, the model that differences are taken from; name one of its models (--base)"
        )
    return found


def _target(
    recipe: Recipe,
    path: Path,
    target: Path | None,
    folders: Sequence[Path],
    hashes: HashCache | None,
    progress: Callable[[str, int, int], None] | None,
) -> tuple[Path, str]:
    """The target's path, and how the recipe is to note it."""
    if target is not None:
        return target, seen_from(path.parent, target)
    file = _noted_target(recipe).get("file")
    if not isinstance(file, str):
        raise InputError(f"{path}: fitted.target: missing, so what to score against is not known; name it (--target)")
    found = attempt(
        lambda: locate(file, folders[0], folders[1:], hashes=hashes, progress=progress),
        f"{path}: fitted.target.file",
    )
    if found is None:
        missing = not_found(file, folders[0], folders[1:])
        raise InputError(f"{path}: fitted.target.file: {missing}; name it (--target)")
    return found, file


def _noted_target(recipe: Recipe) -> Mapping[str, Any]:
    noted = (recipe.fitted or {}).get("target")
    return noted if isinstance(noted, Mapping) else {}


def _is_noted_target(recipe: Recipe, path: Path, goal: Path, digest: str, *, must: bool) -> bool:
    """Whether the target has the hash that the recipe notes; it `must`, if the recipe notes one."""
    noted = _noted_target(recipe).get("sha256")
    if must and isinstance(noted, str) and not fits_hash(digest, noted):
        raise RecipeError(f"{path}: fitted.target.sha256: {other_hash(noted, goal, digest)}")
    return digest == noted


def _as_noted(
    searches: Sequence[NotedSearch], simplified: Simplified, noted: Sequence[Mapping[str, Any]]
) -> list[dict[str, Any]]:
    """The searches as the simpler recipe notes them; those are left out whose step has become a source."""
    earlier = {entry["name"]: entry for entry in noted}
    steps = {one.name: one.step for one in simplified.scored}
    found = []
    for search in searches:
        if search.name not in steps:
            continue
        inputs = _noted_inputs(search)
        entry = {
            **earlier.get(search.name, {"name": search.name}),
            "metric": search.metric,
            "blocks": ",".join(search.blocks),
            **inputs,
            "step": steps[search.name],
            "similarity": round(simplified.totals[search.name][1], 9),
            "before": simplified.totals[search.name][0],
        }
        # What an earlier metric was given says nothing of this one.
        stale = {"seeds", "prompts", "clip_skip"} - inputs.keys()
        found.append({key: value for key, value in entry.items() if key not in stale})
    return found


def _noted_inputs(search: NotedSearch) -> dict[str, Any]:
    """What its metrics draw and read, as recipes hold it."""
    inputs: dict[str, Any] = {"seeds": list(search.seeds)} if _draws(search) else {}
    if search.reads:
        inputs |= noted_reading(search.prompts_file, search.prompts, search.clip_skip)
        if search.prompts is not None and search.prompts_file is None:
            inputs["prompts"] = list(search.prompts)  # as they were noted: nothing tells what file they are from
    return inputs


def _first_of(recipe: Recipe) -> str | None:
    noted = (recipe.fitted or {}).get("simplified")
    first = noted.get("from") if isinstance(noted, Mapping) else None
    return first if isinstance(first, str) else None


def _hashing(path: Path, progress: Callable[[str, int, int], None] | None) -> Callable[[int, int], None] | None:
    return None if progress is None else lambda done, total: progress(f"hashing {path.name}", done, total)


def _same_folder(path: Path, output: Path) -> bool:
    return path.resolve().parent == output.resolve().parent
