"""Simplification of finished recipes on disk against their target."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
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
from optimizer.events import ProgressOption
from optimizer.files import check_output, named_file
from optimizer.library import HashCache, Library, seen_from
from optimizer.merging import check_noted_hashes, fits_hash, other_hash
from optimizer.recipes import (
    Fitted,
    FittedSearch,
    FittedTarget,
    Recipe,
    Simplification,
    folders_of,
    load_recipe,
    parameters_of,
    save_recipe,
)
from optimizer.similarity import (
    DEFAULT_METRIC,
    METRICS,
    OPTIONS,
    AttentionOptions,
    Combined,
    Comparison,
    EncoderOptions,
    ExplainedMetric,
    Measured,
    Options,
    Scorable,
    Statistics,
    build_metric,
    check_installed,
    measure_statistics,
    open_recipe_comparison,
    prompts_sha256,
    read_prompts,
)
from optimizer.studies import ALIKE, NotedSearch, Study, needs_prompts, noted_searches

__all__ = ["simple_path", "simplify_file", "simplify_fit"]

# Maximum number of steps, since the work grows with its cube; recipes in use have tens.
_MOST_STEPS = 100


def simple_path(recipe: Path) -> Path:
    """Return the default path of the simpler recipe: NAME.simple.yaml beside NAME.yaml."""
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
    device: torch.device | str = "auto",
    hashes: HashCache | None = None,
    progress: ProgressOption = None,
    warn: Callable[[str], None] = lambda text: None,
) -> Simplified:
    """Write a simpler recipe that explains nearly as much of the target as the recipe in `path` does.

        simplify_file("my-study/best.yaml", "my-study/best.simple.yaml")

    The recipe notes the searches that found it; their blocks are judged, and their similarities are measured again. The
    arguments `target`, `metric`, `seeds`, `prompts` and `base` replace or supply what the recipe notes. A recipe
    without noted searches is scored on all blocks that it moves and the metric covers. Nothing is written if an error
    is raised: InputError for a recipe with free alphas or more than 100 steps, an unknown target, prompts that are
    missing or differ from the noted ones, or files that are missing, do not fit, or change during the work.

    Args:
        path: A finished recipe.
        output: The file to write.
        share: The permitted loss of a block as a share of its unexplained rest, at least 0.
        tolerance: The permitted further loss of a block, in units of |base - target|^2.
        target: The checkpoint to score against.
        metric: The metric to score by; `explained` by default for a recipe without noted searches.
        base: The model that differences are taken from. By default the base noted in the recipe, the model called base,
            or the first model.
        seeds: The seeds of attention's random inputs.
        prompts: A file with the prompts for the metric `encoder`.
        folders: Further folders to search for files.
        check_hashes: Whether files must have the SHA-256 noted in the recipe; for the target only if it is the noted
            one.
        device: A torch device or auto (a GPU if one is available), cpu or cuda.
        hashes: A cache of hashes.
        progress: A callback for progress.
        warn: A callback for warnings.

    Returns:
        The simpler recipe with its changes and similarities.
    """
    request = _Request(
        path=Path(path), output=Path(output), share=share, tolerance=tolerance, check_hashes=check_hashes,
        target=None if target is None else Path(target), metric=metric, base=base, prompts=prompts,
        seeds=None if seeds is None else tuple(seeds),
    )  # fmt: skip
    recipe = _checked_recipe(request)
    inputs = _resolved(request, recipe, Library.of(folders, hashes, progress))
    measured = _measured(request, inputs, device)
    for problem in _differences(measured.searches, measured.simplified) if measured.as_noted else ():
        warn(f"{request.path}: {problem}")
    simplified = _noted_result(request, inputs, measured)
    save_recipe(simplified.recipe, request.output)
    return simplified


@dataclass(frozen=True)
class _Request:
    """The arguments of `simplify_file` by name."""

    path: Path
    output: Path
    share: float
    tolerance: float
    check_hashes: bool
    target: Path | None
    metric: str | None
    base: str | None
    prompts: Path | None
    seeds: tuple[int, ...] | None


@dataclass(frozen=True)
class _Inputs:
    """The recipe, the searches that it notes, and all files, found and named.

    `beside` are the folders in which files named by the recipe may be; `target_file` is the name of the target for the
    recipe; `prompts` are the given file of prompts and its content. `library` has the files' hashes.
    """

    recipe: Recipe
    searches: tuple[NotedSearch, ...]
    base: str | None
    target: Path
    target_file: str
    sources: Mapping[str, Path]
    beside: tuple[Path, ...]
    prompts: tuple[Path, tuple[str, ...]] | None
    library: Library


@dataclass(frozen=True)
class _Simplified:
    """The simpler recipe, the searches that it was scored by, and the SHA-256 of the target.

    `as_noted` is true if the target and the base are those that the recipe notes.
    """

    simplified: Simplified
    searches: tuple[NotedSearch, ...]
    digest: str
    as_noted: bool


def _checked_recipe(request: _Request) -> Recipe:
    """Return the recipe of a request that can be carried out; raise InputError for any other."""
    path, output = request.path, request.output
    check_output(output, beside=path)
    if output.resolve() == path.resolve():
        raise InputError(f"{output}: is the recipe itself; write to another file")
    if not output.resolve().parent.is_dir():
        raise InputError(f"{output}: the folder {output.resolve().parent} does not exist; create it first")
    if request.metric is not None and request.metric not in METRICS:
        raise InputError(f"received {request.metric!r}; must be one of {', '.join(METRICS)}", field="metric")
    recipe = load_recipe(path)
    if len(recipe.steps) > _MOST_STEPS:
        raise RecipeError(
            f"{path}: steps: received {len(recipe.steps):,}; must be at most {_MOST_STEPS} to be simplified; "
            "merge the first ones into a file (`merge(step=...)`), and simplify the others with that as a source"
        )
    attempt(lambda: recipe.check_finished("simplified", *(step.name for step in recipe.steps)), path)
    return recipe


def _resolved(request: _Request, recipe: Recipe, library: Library) -> _Inputs:
    """Return the content of the recipe and the files that it names; raise InputError for missing ones."""
    path, metric = request.path, request.metric
    searches = attempt(lambda: _asked(noted_searches(recipe), recipe, metric, request.seeds), path)
    beside = folders_of(recipe, path, library.folders)
    library = library.within(beside[1:])
    reading = (
        any(search.uses_prompts for search in searches) if searches else metric is not None and needs_prompts(metric)
    )
    file = request.prompts
    if file is not None and not reading:
        raise InputError(
            "only the metric `encoder` reads prompts; leave it out, or write `metric='encoder'`", field="prompts"
        )
    prompts = None if file is None else (file, attempt(lambda: read_prompts(file), field="prompts"))
    searches = tuple(_with_prompts(search, path, beside, request.output, prompts) for search in searches)
    relative = _needs_base(searches) or (metric is not None and METRICS[metric].needs_base)
    base = _base(recipe, request.base, path, needed=relative)
    target, target_file = _target(recipe, path, request.target, beside[0], library)
    used = {name for step in recipe.steps for name in step.inputs.values()} | {base}
    files = {name: model.file for name, model in recipe.models.items() if name in used}
    sources = library.all_models(files, beside[0], named_in=path)
    if request.check_hashes:
        check_noted_hashes(recipe.models, sources, library, named_in=path)
    return _Inputs(recipe, searches, base, target, target_file, sources, beside, prompts, library)


def _measured(request: _Request, inputs: _Inputs, device: torch.device | str) -> _Simplified:
    """Score and simplify the recipe; CheckpointError is raised for files that change or do not fit."""
    recipe, base, library = inputs.recipe, inputs.base, inputs.library
    with open_recipe_comparison(
        recipe, inputs.sources, inputs.target, base=base, device=device, events=library.events
    ) as comparison:
        digest = library.sha256(inputs.target)
        must = request.check_hashes and request.target is None
        noted = _is_noted_target(recipe, request.path, inputs.target, digest, must=must)
        same = noted and recipe.noted.base in (None, base)
        searches = inputs.searches
        if not searches:
            whole = _whole_recipe(recipe, comparison, request.metric or DEFAULT_METRIC, request.seeds, request.path)
            searches = (_with_prompts(whole, request.path, inputs.beside, request.output, inputs.prompts),)
        judging = _judging(recipe, [(search.step, search.blocks) for search in searches])
        read = {block for search in searches for name, blocks in search.measured for block in blocks if _reads(name)}
        read |= {block for blocks in judging.values() for block in blocks}
        statistics = measure_statistics(comparison, [block for block in comparison.layout.blocks if block in read])
        simplified = simplify(
            recipe,
            _judged(judging, comparison, statistics, _explained_before(recipe) if same else {}),
            groups=comparison.groups,
            sources=tuple(comparison.sources),
            share=request.share,
            tolerance=request.tolerance,
            scored=_scored(searches, comparison, statistics, as_noted=same),
            numbers=_searched_numbers(recipe, request.path, judging),
            # The base stays in the recipe so that the measurement can be repeated.
            keep=() if base is None else (base,),
        )
        # The noted hash must be that of the scored file.
        check_unchanged([comparison.target])
    return _Simplified(simplified, searches, digest, same)


def _noted_result(request: _Request, inputs: _Inputs, measured: _Simplified) -> Simplified:
    """Return the result with a recipe that notes its inputs; files are named relative to the output's folder."""
    path, output, recipe = request.path, request.output, inputs.recipe
    origin = recipe.noted.recipe
    file = inputs.target_file if _same_folder(path, output) else seen_from(output.parent, inputs.target)
    fitted = _notes_of(recipe).noting(
        recipe=seen_from(output.parent, path if origin is None else path.parent / origin),
        target=FittedTarget(file=file, sha256=measured.digest),
        **({} if inputs.base is None else {"base": inputs.base}),
        searches=_as_noted(measured.searches, measured.simplified, recipe),
    )
    return _with_notes(measured.simplified, recipe, fitted, path, request.share, request.tolerance)


def _differences(searches: Sequence[NotedSearch], simplified: Simplified) -> Iterator[str]:
    """Yield a line for each search whose similarity differs from the one noted in the recipe."""
    for search in searches:
        measured, _ = simplified.totals[search.name]
        noted = search.similarity if search.before is None else None
        if noted is not None and abs(measured - noted) > ALIKE:
            yield (
                f"fitted.searches.{search.name}: measured {measured:.9f}, but {noted:.9f} is noted; were other random "
                "inputs (`seeds`), other prompts (`prompts`), another base (`base`) or other files used?"
            )


def simplify_fit(study: Study, recipe: Recipe, measured: Measured, output: Path) -> Simplified:
    """Write a simpler version of the recipe found by a fit, using the statistics that the fit has measured.

    Similarities by attention and encoder, which need the checkpoints, are not noted in it.

    Args:
        study: The study.
        recipe: The recipe that the fit has found.
        measured: The statistics of the checkpoints.
        output: The file to write; InputError is raised if that is impossible.

    Returns:
        The simpler recipe with its changes and similarities.
    """
    path, statistics = study.outputs.best, measured.statistics
    searches = [search for search in noted_searches(recipe) if all(_reads(name) for name, _ in search.measured)]
    judging = _judging(recipe, [(stage.steps[-1], stage.blocks) for stage in study.stages])
    numbers = [Number(alpha.step, alpha.alpha, alpha.blocks) for stage in study.stages for alpha in stage.parameters]
    simplified = simplify(
        recipe,
        _judged(judging, measured, statistics, {}),
        groups=measured.groups,
        sources=tuple(measured.sources),
        scored=_scored(searches, measured, statistics, as_noted=False),
        numbers=dict.fromkeys(numbers),
        keep=() if study.base is None else (study.base,),
    )
    fitted = _notes_of(recipe).noting(searches=_as_noted(searches, simplified, recipe))
    simplified = _with_notes(simplified, recipe, fitted, path, SHARE, TOLERANCE)
    save_recipe(simplified.recipe, output)
    return simplified


def _judging(recipe: Recipe, covered: Sequence[tuple[str, Sequence[str]]]) -> dict[str, tuple[str, ...]]:
    """Return the blocks on which each step's result is judged, {step: blocks}, given results and the blocks they cover.

    A block is judged on the last result that covers it, since earlier results are intermediate.
    """
    leading = {step: {inner.name for inner in recipe.ancestors(step)} - {step} for step, _ in covered}
    judging: dict[str, dict[str, None]] = {}
    for step, blocks in covered:
        later = {block for result, scored in covered if step in leading[result] for block in scored}
        last = [block for block in blocks if block not in later]
        if last:
            judging.setdefault(step, {}).update(dict.fromkeys(last))
    return {step: tuple(blocks) for step, blocks in judging.items()}


def _judged(
    judging: Mapping[str, tuple[str, ...]],
    scorable: Scorable,
    statistics: Statistics,
    reference: Mapping[str, float],
) -> list[Judged]:
    found = []
    for step, blocks in judging.items():
        metric = build_metric(DEFAULT_METRIC, scorable, blocks, statistics)
        assert isinstance(metric, ExplainedMetric)
        found.append(Judged(step, metric, reference))
    return found


def _explained_before(recipe: Recipe) -> Mapping[str, float]:
    """Return the share that each block explained before an earlier simplification, if the recipe notes it."""
    noted = recipe.noted.simplified
    return {} if noted is None else noted.explained or {}


def _notes_of(recipe: Recipe) -> Fitted:
    """Return the notes of a recipe that still hold for a simpler one.

    The similarities on other random inputs belong to the recipe as it was, so they are dropped.
    """
    return (Fitted(by="blockfit") if recipe.fitted is None else recipe.fitted).noting(other_random_inputs=None)


def _with_notes(
    simplified: Simplified, recipe: Recipe, fitted: Fitted, path: Path, share: float, tolerance: float
) -> Simplified:
    """Return the result with a recipe that notes `fitted`, and that it was simplified from `recipe` in `path`."""
    earlier = recipe.noted.simplified
    noted = Simplification(
        origin=(None if earlier is None else earlier.origin) or path.name,
        share=share,
        tolerance=tolerance,
        # Not rounded, so that a second simplification does not lose more in total.
        explained=dict(simplified.before),
    )
    return replace(simplified, recipe=replace(simplified.recipe, fitted=fitted.noting(simplified=noted)))


def _with_prompts(
    search: NotedSearch,
    path: Path,
    folders: Sequence[Path],
    output: Path,
    given: tuple[Path, tuple[str, ...]] | None,
) -> NotedSearch:
    """Return the search with the prompts to read: the `given` ones, (file, prompts), or those noted in `path`.

    The file of the prompts is named relative to the folder of `output`.

    Raises:
        RecipeError: The noted prompts are missing or have changed.
    """
    if not search.uses_prompts:
        return search
    noted = search.options.of(EncoderOptions)
    if given is not None:
        file, prompts = given
        options = EncoderOptions(prompts=seen_from(output.parent, file), clip_skip=noted.clip_skip).with_texts(prompts)
        before = search.before if options.sha256 == noted.sha256 else None
        return replace(search, options=search.options.having(options), before=before)
    if noted.prompts is None:
        return search
    file_name = noted.prompts
    where = f"{path}: fitted.searches.{search.name}.prompts"
    files = (named_file(folder, file_name) for folder in folders)
    found = next((file_path for file_path in files if file_path is not None), None)
    if found is None:
        looked = ", ".join(map(str, folders))
        raise RecipeError(f"{where}.file: {file_name!r} not found; looked in {looked}; name it (`prompts`)")
    prompts = attempt(lambda: read_prompts(found), where)
    if (digest := prompts_sha256(prompts)) != noted.sha256:
        raise RecipeError(
            f"{where}: {found} has changed: received sha256 {digest[:10]}; must be {noted.sha256!s:.10}; restore the "
            "file, or name another one (`prompts`)"
        )
    named = file_name if _same_folder(path, output) else seen_from(output.parent, found)
    options = EncoderOptions(prompts=named, clip_skip=noted.clip_skip).with_texts(prompts)
    return replace(search, options=search.options.having(options))


def _asked(
    searches: Sequence[NotedSearch], recipe: Recipe, metric: str | None, seeds: Sequence[int] | None
) -> tuple[NotedSearch, ...]:
    """Return the noted searches, with another metric or other random inputs if the user asks for them.

    Raises:
        RecipeError: A search scores no block that the metric covers. InputError is raised if the libraries of a metric
            are not installed.
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
            if search.options.of(AttentionOptions).seeds == list(seeds)
            else replace(
                search,
                options=search.options.having(AttentionOptions(seeds=list(seeds))),
                before=None if _draws(search) else search.before,
            )
            for search in searches
        ]
    return tuple(searches)


def _whole_recipe(
    recipe: Recipe, comparison: Comparison, metric: str, seeds: Sequence[int] | None, path: Path
) -> NotedSearch:
    """Return a search of the output on all blocks that it moves and that can be scored."""
    visible = METRICS[metric].sees(recipe.layout)
    alphas = [alpha for step in recipe.ancestors() for alpha in step.alphas.values()]
    held = {part.block for part in comparison.parts if part.scored and part.held_by(comparison.target)}
    blocks = tuple(block for block in visible if block in held and any(alpha.at(block) for alpha in alphas))
    if not blocks:
        raise RecipeError(f"{path}: no alpha moves a block that {metric!r} covers; name another metric (`metric`)")
    return NotedSearch(recipe.output, recipe.output, ((metric, blocks),), _drawing(seeds))


def _drawing(seeds: Sequence[int] | None) -> Options:
    return Options((AttentionOptions(seeds=list(seeds)),)) if seeds else Options()


def _scored(
    searches: Sequence[NotedSearch], scorable: Scorable, statistics: Statistics, *, as_noted: bool
) -> tuple[Scored, ...]:
    built: dict[object, Combined] = {}
    found = []
    for search in searches:
        key = (search.measured, search.options)
        if key not in built:
            given = scorable.with_options(search.options)
            metrics = [build_metric(name, given, blocks, statistics) for name, blocks in search.measured]
            built[key] = Combined(metrics)
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
    """Return the searched numbers: those of the recipe that was fitted if that is found, else `default_numbers`."""
    searched = [step.name for step in recipe.steps if step.similarity is not None]
    steps = searched or [step.name for step in recipe.steps]
    origin = recipe.noted.recipe
    searched_numbers: list[Number] = []
    if origin is not None and (file := named_file(path.parent, origin)) is not None:
        fitted_from = load_recipe(file)
        modes = {step.name: step.mode for step in fitted_from.steps}
        # Steps with another mode than then get the default numbers of their present form.
        alike = [step.name for step in recipe.steps if modes.get(step.name) == step.mode]
        free = parameters_of(fitted_from, alike)
        searched_numbers = [Number(alpha.step, alpha.alpha, alpha.blocks) for alpha in free]
        if searched_numbers:
            steps = [step for step in steps if step not in alike]
    return (*searched_numbers, *default_numbers(recipe, judging, steps))


def _base(recipe: Recipe, base: str | None, path: Path, *, needed: bool) -> str | None:
    """Return the model that differences are taken from: the given one, the noted one, the one called base, or None."""
    if base is not None and base not in recipe.models:
        raise InputError(f"received {base!r}; must be one of {', '.join(recipe.models)}", field="base")
    found = recipe.noted_base if base is None else base
    if found is None and needed:
        raise InputError(
            f"{path}: delta needs a base, the model that differences are taken from; name one of its models (`base`)"
        )
    return found


def _target(
    recipe: Recipe,
    path: Path,
    target: Path | None,
    beside: Path,
    library: Library,
) -> tuple[Path, str]:
    """Return the target's path, and its name for the recipe."""
    if target is not None:
        return target, seen_from(path.parent, target)
    file = None if recipe.noted.target is None else recipe.noted.target.file
    if file is None:
        raise InputError(f"{path}: fitted.target: missing; name the checkpoint to score against (`target`)")
    found = attempt(
        lambda: library.find(file, beside),
        f"{path}: fitted.target.file",
    )
    if found is None:
        missing = library.not_found(file, beside)
        raise InputError(f"{path}: fitted.target.file: {missing}; name it (`target`)")
    return found, file


def _is_noted_target(recipe: Recipe, path: Path, target: Path, digest: str, *, must: bool) -> bool:
    """Return whether the target has the hash noted in the recipe; if it `must`, raise RecipeError for another hash."""
    noted = None if recipe.noted.target is None else recipe.noted.target.sha256
    if must and noted is not None and not fits_hash(digest, noted):
        raise RecipeError(f"{path}: fitted.target.sha256: {other_hash(noted, target, digest)}")
    return digest == noted


def _as_noted(searches: Sequence[NotedSearch], simplified: Simplified, recipe: Recipe) -> tuple[FittedSearch, ...]:
    """Return the searches as the simpler recipe notes them, without those whose step has become a source."""
    earlier = {entry.name: entry for entry in recipe.noted.searches or ()}
    steps = {entry.name: entry.step for entry in simplified.scored}
    return tuple(
        earlier.get(search.name, FittedSearch(name=search.name)).noting(
            metric=search.metric,
            blocks=",".join(search.blocks),
            **_noted_inputs(search),
            step=steps[search.name],
            similarity=round(simplified.totals[search.name][1], 9),
            before=simplified.totals[search.name][0],
        )
        for search in searches
        if search.name in steps
    )


def _noted_inputs(search: NotedSearch) -> dict[str, Any]:
    """Return the random inputs and prompts of the search's metrics for the recipe; None for unused options."""
    inputs: dict[str, Any] = dict.fromkeys(name for kind in OPTIONS for name in kind.model_fields)
    used = {METRICS[name].options for name, _ in search.measured}
    for kind in OPTIONS:
        inputs |= search.options.of(kind).noted() if kind in used else {}
    return inputs


def _same_folder(path: Path, output: Path) -> bool:
    return path.resolve().parent == output.resolve().parent
