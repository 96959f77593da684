"""The best similarity that a study can reach: with the fitted recipe, with its free alphas, with any linear merge.

A group is the tensors of one block that the same sources contain. In each group every recipe makes one weighted sum of
the sources. The best sum, with free coefficients in every group, is therefore a certificate: no recipe over these
sources comes closer to the target, and the difference to 1 is not in the sources.

With coefficients that sum to 1, and p the base (in a group that the base lacks, the first source that contains it),

    s * merged = s * p + sum_k y_k * (source_k - p),    y_k = s * c_k

runs over a linear space as s and y do. The maximum of the cosine is thus the length of the target's projection onto it
(least squares); with 0 <= c_k <= 1 it is the length of its projection onto the cone 0 <= y_k <= s. `delta` compares
differences from the base: p and s drop out. So does c_k <= 1, since a cosine ignores the common length of the
coefficients. `explained` has s = 1, since it depends on length: it is plain least squares in each group, within a box
if 0 <= c_k <= 1.
"""

import math
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from optimizer.analysis.ceiling_records import (
    BlockCeiling,
    Ceiling,
    Ceilings,
    Coefficient,
    Identified,
    SourceShare,
)
from optimizer.analysis.exact import exact_optimum
from optimizer.analysis.linear import (
    RANK,
    largest_similarity,
    least_squares_with_errors,
    tensor_weights,
)
from optimizer.analysis.ranges import NarrowRange, narrow_ranges_of
from optimizer.analysis.scored_spaces import scored_spaces
from optimizer.analysis.verdict import judge
from optimizer.errors import InputError, StudyError
from optimizer.events import ProgressOption
from optimizer.library import HashCache, Library
from optimizer.merging import check_noted_hashes
from optimizer.recipes import Algebra, Recipe, Space
from optimizer.similarity import (
    EXACT_METRICS,
    METRICS,
    ExplainedMetric,
    Measured,
    QuadraticMetric,
    build_metric,
    chosen_device,
    total_similarity,
)
from optimizer.studies import OpenStudy, Study, best_recipe, open_study, read_study

__all__ = [
    "CEILING_METRICS",
    "ceilings",
    "found_ceilings",
    "identify",
    "source_shares",
    "study_ceilings",
]


CEILING_METRICS: dict[str, tuple[str, ...]] = {
    "all": EXACT_METRICS,
    **{name: (name,) for name in EXACT_METRICS},
    "both": ("weights", "delta"),
}
"""Metrics that ceilings are computed for, by the word that the user gives."""

# A bound may be too low by this much, since sums are rounded.
_ROUNDING = 1e-12


def study_ceilings(
    study: Study,
    metric: str = "all",
    *,
    check_hashes: bool = True,
    device: torch.device | str = "auto",
    progress: ProgressOption = None,
    hashes: HashCache | None = None,
) -> Ceilings:
    """Compute the best similarity that a study can reach, by one or several metrics.

        explained, *cosines = study_ceilings(study)
        print(explained.total["ceiling"])  # in [-1, 1]; no linear merge of the sources exceeds it

    The best recipe is best.yaml in the study's folder.

    Raises InputError for another metric, `delta` without a base, missing or unsuitable files, a best.yaml that does not
    belong to the study's recipe, or a file with another hash.

    Args:
        study: The study, with its files.
        metric: `explained`, `delta`, `weights`, `all` of them, or `both` of the cosines. `all` and `both` leave out
            `delta` if the study has no base.
        check_hashes: Whether files must not contradict the SHA-256 noted in the recipe; only hashes in `hashes` are
            compared.
        device: A torch device, or auto (a GPU if one is available), cpu or cuda.
        progress: A callback for progress.
        hashes: A cache of hashes.

    Returns:
        One ceiling for each metric.
    """
    return _study_ceilings(study, Library.of((), hashes, progress), metric, check_hashes=check_hashes, device=device)


def _study_ceilings(
    study: Study,
    library: Library,
    metric: str = "all",
    *,
    check_hashes: bool = True,
    device: torch.device | str = "auto",
) -> Ceilings:
    """Compute `study_ceilings` with the hashes of a library, which also receives the progress."""
    if metric not in CEILING_METRICS:
        raise InputError(f"received {metric!r}; must be one of {', '.join(CEILING_METRICS)}", field="metric")
    if metric == "delta" and study.base is None:
        raise InputError(
            "received 'delta'; it needs `base` in the study, which differences are taken from", field="metric"
        )
    if check_hashes:
        check_noted_hashes(study.recipe.models, study.sources, library, named_in=study.recipe_path, known=True)
    metrics = [name for name in CEILING_METRICS[metric] if study.base is not None or not METRICS[name].needs_base]
    fitted = best_recipe(study)
    blocks = {block for stage in study.stages for block in stage.blocks}
    with open_study(study, library, blocks=blocks, device=chosen_device(device), tensors=False) as opened:
        return ceilings(opened, fitted, metrics)


def ceilings(opened: OpenStudy, fitted: Recipe | None, metrics: Sequence[str] = EXACT_METRICS) -> Ceilings:
    """Compute the best similarity by each of `metrics`, on all blocks that the study's stages score.

    A block is scored on the result of the last step of its stage; if several stages score it, the last of them counts.

    Args:
        opened: The study with its statistics.
        fitted: The study's best recipe, with the same steps; None without one.
        metrics: Metrics of `EXACT_METRICS`; `delta` needs a base.

    Returns:
        One ceiling for each metric.
    """
    study, measured = opened.study, opened.measured
    measures = dict.fromkeys(name for stage in study.stages for name, _ in stage.measured)
    unbounded = [name for name in measures if not METRICS[name].reads_statistics]
    which = "which does not compare weights" if len(unbounded) == 1 else "which do not compare weights"
    note = f"these figures do not bound {' and '.join(unbounded)}, {which}" if unbounded else ""
    spaces = scored_spaces(study.recipe, study.stages, measured)
    identified = identify(list(spaces.values()))
    verdict = judge(measured, study.recipe, study.stages, fitted)
    results = []
    for name in metrics:
        blocks: dict[str, BlockCeiling] = {}
        unchanged: list[str] = []
        narrow: list[NarrowRange] = []
        for step, (space, scored) in spaces.items():
            metric = build_metric(name, measured, scored, measured.statistics)
            assert isinstance(metric, QuadraticMetric)
            blocks |= _block_ceilings(space, metric, measured, fitted, step, name, study.seed)
            unchanged += metric.unchanged
            if isinstance(metric, ExplainedMetric):
                narrow += narrow_ranges_of(space, metric, seed=study.seed)
        ordered = {block: blocks[block] for block in measured.layout.blocks if block in blocks}
        shares = source_shares(measured, name, tuple(ordered))
        kept = tuple(block for block in measured.layout.blocks if block in unchanged)
        results.append(Ceiling(name, ordered, shares, identified, note, kept, tuple(narrow), verdict))
    return Ceilings(results)


def identify(spaces: Sequence[tuple[Space, Sequence[str]]]) -> Identified:
    """Return which free alphas of these spaces move the coefficients of the blocks beside them, at a generic point."""
    names = list(dict.fromkeys(parameter.name for space, _ in spaces for parameter in space.parameters))
    rows = []
    for space, blocks in spaces:
        if not space.parameters:
            continue
        random = np.random.default_rng(0)
        # At 0 or 1 an alpha may hide the effect of another one.
        ranges = [alpha.free for alpha in space.parameters]
        point = [free.low + random.uniform(0.3, 0.7) * (free.high - free.low) for free in ranges]
        alphas = space.alphas(torch.tensor([point], dtype=torch.float64))[0]
        _, jacobian = space.algebra.jacobian(alphas)
        groups = [row for row, group in enumerate(space.algebra.groups) if group.block in blocks]
        moved = torch.einsum("pag,agk->gkp", space.moves(), jacobian)[groups].flatten(0, 1).numpy()
        placed = np.zeros((len(moved), len(names)))
        placed[:, [names.index(parameter.name) for parameter in space.parameters]] = moved
        rows.append(placed)
    if not rows:
        return Identified(0, 0, ())
    moves = np.concatenate(rows)
    still = [not column.any() for column in moves.T]
    _, sizes, directions = np.linalg.svd(moves)
    rank = int((sizes > RANK * max(float(sizes.max(initial=0.0)), 1e-300)).sum())
    loose = np.abs(directions[rank:]).max(axis=0, initial=0.0) > 1e-9
    return Identified(
        rank,
        len(names),
        trade_off=tuple(name for name, free, idle in zip(names, loose, still, strict=True) if free and not idle),
        idle=tuple(name for name, idle in zip(names, still, strict=True) if idle),
    )


def source_shares(measured: Measured, metric: str, blocks: Sequence[str]) -> dict[str, SourceShare]:
    """Estimate the coefficient of each source in the target by least squares on `blocks`.

    The base and other references are left out. A coefficient is the same for all tensors of a block, and for the total
    the same in all blocks. Each is estimated twice: minimising |merged - target|, and with weighted tensors (see
    `Coefficient`). The latter is feasible generalised least squares with the weight size / unexplained part. For equal
    sources the coefficients of the smallest norm are taken. Tensors that the reference lacks do not count. Errors are
    the jackknife's, leaving out one tensor at a time (B. Efron, The Jackknife, 1982).

    Args:
        measured: The statistics of the checkpoints.
        metric: The metric of the ceilings in `loss`.
        blocks: The blocks to use.

    Returns:
        {source: its share}.
    """
    names = list(measured.sources)
    asked = [row for row, name in enumerate(names) if name != measured.reference]
    counted = measured.referenced.numpy()
    of_block = np.array(measured.statistics.blocks)
    gram = measured.gram.numpy()[:, 1:, 1:]

    sizes = np.array([math.prod(part.shape) for part in measured.scored], dtype=np.float64)

    def solved(rows: NDArray[np.bool_]) -> list[Coefficient]:
        chosen = rows & counted
        plain = least_squares_with_errors(gram[chosen], asked)
        weights = tensor_weights(gram[chosen], sizes[chosen], asked)
        weighed = least_squares_with_errors(gram[chosen] * weights[:, None, None], asked)
        return [Coefficient(*equal, *weighted) for equal, weighted in zip(plain, weighed, strict=True)]

    per_block = {block: solved(of_block == block) for block in blocks}
    overall = solved(np.isin(of_block, list(blocks)))
    whole = _total_ceiling(measured, metric, blocks, without=None)
    return {
        names[row]: SourceShare(
            **overall[position].as_dict(),
            loss=whole - _total_ceiling(measured, metric, blocks, without=row),
            blocks={block: coefficients[position] for block, coefficients in per_block.items()},
        )
        for position, row in enumerate(asked)
    }


def _block_ceilings(
    space: Space,
    metric: QuadraticMetric,
    measured: Measured,
    fitted: Recipe | None,
    step: str,
    name: str,
    seed: int,
) -> dict[str, BlockCeiling]:
    point = exact_optimum(space, metric, seed=seed).point
    best = space.coefficients(torch.tensor([list(point.values())], dtype=torch.float64))
    scores, scales = metric.score(best)[0], metric.scale(best)[0]
    of_recipe: list[float | None] = [None] * len(metric.blocks)
    recipe_scales = of_recipe
    if fitted is not None:
        algebra = Algebra(fitted, measured.groups, tuple(measured.sources), step)
        as_fitted = algebra.coefficients(algebra.starting_alphas())
        of_recipe, recipe_scales = metric.score(as_fitted)[0].tolist(), metric.scale(as_fitted)[0].tolist()
        # A climb may end in a lower maximum than a search has found.
        if metric.score(as_fitted)[0].mean() > scores.mean() and _within(space, fitted):
            scores, scales = metric.score(as_fitted)[0], metric.scale(as_fitted)[0]
    return {
        block: BlockCeiling(
            recipe=of_recipe[row],
            best=float(scores[row]),
            ceiling=_at_least(largest_similarity(measured, name, block), float(scores[row])),
            ceiling_bounded=largest_similarity(measured, name, block, bounded=True),
            recipe_scale=recipe_scales[row],
            best_scale=float(scales[row]),
        )
        for row, block in enumerate(metric.blocks)
    }


def _at_least(bound: float, reached: float) -> float:
    """Return the bound, raised to the reached value if only rounding puts it below."""
    return reached if bound < reached < bound + _ROUNDING else bound


def _within(space: Space, fitted: Recipe) -> bool:
    """Return whether `space` contains the alphas of `fitted`, free and fixed ones."""
    point = []
    for parameter in space.parameters:
        alpha = getattr(fitted.step(parameter.step), parameter.alpha)
        numbers = {alpha.at(block) for block in parameter.blocks}
        if len(numbers) > 1 or parameter.free.on_grid(number := numbers.pop()) != number:
            return False
        point.append(number)
    alphas = space.alphas(torch.tensor([point], dtype=torch.float64))
    same = Algebra(fitted, space.algebra.groups, space.algebra.sources, space.algebra.output).starting_alphas()
    return bool((space.algebra.by_group(alphas) == space.algebra.by_group(same)).all())


def _total_ceiling(measured: Measured, metric: str, blocks: Sequence[str], without: int | None) -> float:
    return total_similarity({block: largest_similarity(measured, metric, block, without=without) for block in blocks})


def found_ceilings(
    path: Path | str,
    folders: Sequence[Path | str] = (),
    *,
    device: torch.device | str = "auto",
    progress: ProgressOption = None,
    hashes: HashCache | None = None,
) -> tuple[Ceilings, tuple[str, ...]]:
    """Compute the ceilings of the study in a folder, or return the reasons why that is impossible.

        ceilings, problems = found_ceilings("my-study")

    The statistics that a fit has saved in the folder are used; without them the checkpoints are read.

    Args:
        path: The folder of the study.
        folders: Further folders to search for checkpoints.
        device: A torch device, or auto (a GPU if one is available), cpu or cuda.
        progress: A callback for progress.
        hashes: A cache of hashes.

    Returns:
        The ceilings, and the reasons, one line each. One of the two is empty.
    """
    library = Library.of(folders, hashes, progress)
    try:
        study = read_study(path, None)
        if study.outputs.statistics.exists():
            with suppress(StudyError):
                return _study_ceilings(study.without_files(), library, device=device), ()
        study = read_study(path, library)
        return _study_ceilings(study, library, device=device), ()
    except InputError as error:
        return Ceilings(), error.problems
