"""What a study can reach at most: by its recipe as fitted, by its free alphas, by any linear merge of its sources.

Whatever a recipe does, in each group of tensors (those of one block that the same sources hold) it makes one weighted
sum of the sources. So the best sum of all, its coefficients free in every group, is a certificate: no recipe over these
sources comes closer to the target, and what is missing to 1 is not in the sources.

With coefficients that sum to 1, p the base (where a group lacks it, the first source that holds the group),

    s * merged = s * p + sum_k y_k * (source_k - p),    y_k = s * c_k

runs over a linear space as s and y do, so the cosine's maximum is the length of the target's projection onto it (least
squares), and with 0 <= c_k <= 1 the length of its projection onto the cone 0 <= y_k <= s. `delta` compares differences
from the base: p and s drop out, and as small coefficients are as good as large ones, c_k <= 1 does too. `explained` has
s = 1, since it sees length: plain least squares in each group, within a box where 0 <= c_k <= 1.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import lsq_linear, nnls

from optimizer.analysis.exact import exact_optimum
from optimizer.analysis.linear import (
    RANK,
    Linear,
    Matrix,
    Vector,
    largest_cosine,
    least_squares_with_errors,
    tensor_weights,
)
from optimizer.analysis.ranges import NarrowRange, narrow_ranges_of
from optimizer.analysis.scored_spaces import scored_spaces
from optimizer.errors import InputError, StudyError
from optimizer.library import HashCache
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
from optimizer.studies import OpenStudy, Study, best_recipe, load_study, open_study

__all__ = [
    "CEILING_METRICS",
    "BlockCeiling",
    "Ceiling",
    "Coefficient",
    "Identified",
    "SourceShare",
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
"""The metrics that ceilings are computed for, by what a user calls them."""

# What a bound may be too low by, as sums are rounded.
_ROUNDING = 1e-12


@dataclass(frozen=True)
class BlockCeiling:
    """One block's similarities in [-1, 1]: by the study's best recipe (None if there is none), by the best free alphas,
    by any linear merge, and by any whose coefficients, but the base's, are within 0..1.

    The scales are the factors on the merged difference (for `weights`: the merged weights) that bring it nearest to
    the target's; a cosine does not see them.
    """

    recipe: float | None
    best: float
    ceiling: float
    ceiling_bounded: float
    recipe_scale: float | None
    best_scale: float

    @property
    def not_in_sources(self) -> float:
        """What no linear merge of the sources reaches."""
        return 1.0 - self.ceiling


@dataclass(frozen=True)
class Coefficient:
    """How much of a source is in the target, with the jackknife's error, None where there are fewer than two tensors.

    `coefficient` is that of the smallest |merged - target|. For `weighed` every tensor counts by how well the sources
    explain it: where part of the target is in no source, that is much nearer to what was merged.
    """

    coefficient: float
    error: float | None
    weighed: float
    weighed_error: float | None

    def as_dict(self) -> dict[str, Any]:
        """As JSON takes it."""
        return {
            "coefficient": self.coefficient,
            "error": self.error,
            "weighed": self.weighed,
            "weighed_error": self.weighed_error,
        }


@dataclass(frozen=True)
class SourceShare(Coefficient):
    """The same over all blocks and in each of `blocks`; `loss` is what the total ceiling loses without the source."""

    loss: float
    blocks: Mapping[str, Coefficient]

    def as_dict(self) -> dict[str, Any]:
        """As JSON takes it."""
        blocks = {block: one.as_dict() for block, one in self.blocks.items()}
        return {**super().as_dict(), "loss": self.loss, "blocks": blocks}


@dataclass(frozen=True)
class Identified:
    """In how many directions the free alphas can move the coefficients (`rank`), out of how many `alphas`.

    `trade_off` names those that can move without moving the coefficients, `idle` those that move none.
    """

    rank: int
    alphas: int
    trade_off: tuple[str, ...]
    idle: tuple[str, ...] = ()


@dataclass(frozen=True)
class Ceiling:
    """All of it by one metric; `note` says what the figures do not hold for, empty if there is nothing to say.

    `unchanged` are the blocks that the target has from the base, so that the metric has nothing to score there.
    `narrow` are the ranges of free alphas outside of which the best ones lie, told with `explained` alone.
    """

    metric: str
    blocks: Mapping[str, BlockCeiling]
    sources: Mapping[str, SourceShare]
    identified: Identified
    note: str
    unchanged: tuple[str, ...] = ()
    narrow: tuple[NarrowRange, ...] = ()

    @property
    def total(self) -> dict[str, float | None]:
        """The means over the blocks by name, `recipe`, `best`, `ceiling` and `ceiling_bounded`."""
        totals: dict[str, float | None] = {}
        for name in ("recipe", "best", "ceiling", "ceiling_bounded"):
            values = {block: getattr(found, name) for block, found in self.blocks.items()}
            totals[name] = None if None in values.values() or not values else total_similarity(values)
        return totals

    def as_dict(self) -> dict[str, Any]:
        """As JSON takes it."""
        return {
            "metric": self.metric,
            "blocks": {
                block: {
                    "recipe": found.recipe,
                    "best": found.best,
                    "ceiling": found.ceiling,
                    "ceiling_bounded": found.ceiling_bounded,
                    "not_in_sources": found.not_in_sources,
                    "recipe_scale": found.recipe_scale,
                    "best_scale": found.best_scale,
                }
                for block, found in self.blocks.items()
            }
            | dict.fromkeys(self.unchanged),
            "total": self.total,
            "sources": {name: share.as_dict() for name, share in self.sources.items()},
            "rank": self.identified.rank,
            "alphas": self.identified.alphas,
            "trade_off": list(self.identified.trade_off),
            "idle": list(self.identified.idle),
            "narrow_ranges": [one.as_dict() for one in self.narrow],
            "note": self.note,
        }


def study_ceilings(
    study: Study,
    metric: str = "all",
    *,
    check_hashes: bool = True,
    device: torch.device | str | None = None,
    progress: Callable[[str, int, int], None] = lambda what, done, total: None,
    hashes: HashCache | None = None,
) -> tuple[Ceiling, ...]:
    """What `study` can reach by `metric`: `explained`, `delta`, `weights`, `all` of them, or `both` of the cosines.

        explained, *cosines = study_ceilings(study)
        print(explained.total["ceiling"])      # what no linear merge of the sources exceeds, in [-1, 1]

    `delta` is left out of several if the study has no base.

    The best recipe is that in the study's folder, best.yaml. `device` may be a name: auto, cpu (default) or cuda.
    Raises InputError for another metric, for `delta` without a base, for files that are missing or do not fit, for a
    best.yaml that does not belong to the study's recipe, and with `check_hashes` for files of which `hashes` knows
    another sha256 than the recipe notes.
    """
    if metric not in CEILING_METRICS:
        raise InputError(f"received {metric!r}; must be one of {', '.join(CEILING_METRICS)}", field="metric")
    if metric == "delta" and study.base is None:
        raise InputError(
            "received 'delta'; it needs `base` in the study, which differences are taken from", field="metric"
        )
    if check_hashes:
        check_noted_hashes(study.recipe.models, study.sources, named_in=study.recipe_path, hashes=hashes, known=True)
    metrics = [name for name in CEILING_METRICS[metric] if study.base is not None or not METRICS[name].needs_base]
    fitted = best_recipe(study)
    blocks = {block for stage in study.stages for block in stage.blocks}
    with open_study(
        study, blocks=blocks, device=chosen_device(device), progress=progress, hashes=hashes, tensors=False
    ) as opened:
        return ceilings(opened, fitted, metrics)


def ceilings(opened: OpenStudy, fitted: Recipe | None, metrics: Sequence[str] = EXACT_METRICS) -> tuple[Ceiling, ...]:
    """What the study can reach by each of `metrics`, on all blocks that its stages score.

    A block is scored on the result of the last step of its stage, of the last such stage if there are several.
    `fitted` is the study's best recipe, with the same steps; `metrics` are of `EXACT_METRICS`, delta only with a base.
    """
    study, measured = opened.study, opened.measured
    measures = dict.fromkeys(name for stage in study.stages for name, _ in stage.measured)
    unbounded = [name for name in measures if not METRICS[name].reads_statistics]
    which = "which does not compare weights" if len(unbounded) == 1 else "which do not compare weights"
    note = f"these are no bounds for {' and '.join(unbounded)}, {which}" if unbounded else ""
    spaces = scored_spaces(study.recipe, study.stages, measured)
    identified = identify(list(spaces.values()))
    found = []
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
        found.append(Ceiling(name, ordered, shares, identified, note, kept, tuple(narrow)))
    return tuple(found)


def identify(spaces: Sequence[tuple[Space, Sequence[str]]]) -> Identified:
    """What the parameters of these spaces can move on the blocks beside them, at a generic point of the spaces."""
    names = list(dict.fromkeys(parameter.name for space, _ in spaces for parameter in space.parameters))
    rows = []
    for space, blocks in spaces:
        if not space.parameters:
            continue
        random = np.random.default_rng(0)
        # Neither 0 nor 1, where an alpha may hide what another one does.
        point = [one.free.low + random.uniform(0.3, 0.7) * (one.free.high - one.free.low) for one in space.parameters]
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
    """How much of each source, the base and other references excepted, is in the target: on `blocks`, by least squares.

    The coefficients are those of the smallest |merged - target|, the same for all tensors of a block and, in all, of
    all blocks, and those with tensors weighed (see `Coefficient`): feasible generalised least squares, each tensor by
    the numbers that it has for each unit of what is left unexplained. Of sources that are equal the coefficients are
    those of the smallest norm. Tensors that the reference lacks do not count.
    The errors are the jackknife's, leaving out one tensor at a time (B. Efron, The Jackknife, 1982).
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
        return [Coefficient(*one, *other) for one, other in zip(plain, weighed, strict=True)]

    per_block = {block: solved(of_block == block) for block in blocks}
    overall = solved(np.isin(of_block, list(blocks)))
    whole = _total_ceiling(measured, metric, blocks, without=None)
    return {
        names[row]: SourceShare(
            **overall[position].as_dict(),
            loss=whole - _total_ceiling(measured, metric, blocks, without=row),
            blocks={block: found[position] for block, found in per_block.items()},
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
        # A climb may end on a lower summit than the one that a search has found.
        if metric.score(as_fitted)[0].mean() > scores.mean() and _within(space, fitted):
            scores, scales = metric.score(as_fitted)[0], metric.scale(as_fitted)[0]
    return {
        block: BlockCeiling(
            recipe=of_recipe[row],
            best=float(scores[row]),
            ceiling=_at_least(_block_ceiling(measured, name, block, bounded=False), float(scores[row])),
            ceiling_bounded=_block_ceiling(measured, name, block, bounded=True),
            recipe_scale=recipe_scales[row],
            best_scale=float(scales[row]),
        )
        for row, block in enumerate(metric.blocks)
    }


def _at_least(bound: float, reached: float) -> float:
    """The bound, but for rounding no lower than what is reached."""
    return reached if bound < reached < bound + _ROUNDING else bound


def _within(space: Space, fitted: Recipe) -> bool:
    """Whether the free alphas of `space` can be what `fitted` has, and the fixed ones are."""
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
    return total_similarity(
        {block: _block_ceiling(measured, metric, block, bounded=False, without=without) for block in blocks}
    )


def _block_ceiling(measured: Measured, metric: str, block: str, *, bounded: bool, without: int | None = None) -> float:
    """The largest similarity of any merge; `without` leaves out the source at that position."""
    if metric == "explained":
        return _largest_share(measured, block, bounded=bounded, without=without)
    linear = Linear.of_block(measured.statistics, measured.groups, block, without, whole=metric == "weights")
    corner = partial(linear.corner, with_base=measured.base is not None) if bounded else None
    return largest_cosine(linear.products, linear.with_target, linear.target, corner)


def _largest_share(measured: Measured, block: str, *, bounded: bool, without: int | None) -> float:
    """The largest share that any merge explains of a block's difference from the base, in [-1, 1]."""
    statistics, groups = measured.statistics, measured.groups
    gram, group = statistics.gram.numpy(), statistics.group.numpy()
    in_block = np.array([each == block for each in statistics.blocks])
    left = difference = 0.0
    for row in np.unique(group[in_block]):
        chosen = in_block & (group == row)
        of_group = gram[chosen].sum(axis=0)
        referenced = bool(statistics.referenced.numpy()[chosen].all())
        holders = groups[row].holders
        # The target's and all sources' differences from the base, or from the first source that holds the group.
        unit = np.eye(len(of_group))
        origin = np.zeros(len(of_group)) if referenced else unit[:, 1 + holders[0]]
        aim = unit[:, -1] - origin
        difference += max(float(aim @ of_group @ aim), 0.0)
        moving = [unit[:, 1 + position] - origin for position in holders if position != without]
        moving = [each for each in moving if each @ of_group @ each > 0]
        if not moving:
            left += max(float(aim @ of_group @ aim), 0.0)
            continue
        columns = np.stack(moving, axis=1)
        left += _unexplained(columns.T @ of_group @ columns, columns.T @ of_group @ aim, float(aim @ of_group @ aim),
                             within=(not bounded, referenced))  # fmt: skip
    return float(np.clip(1 - left / difference, -1.0, 1.0)) if difference > 0 else math.nan


def _unexplained(products: Matrix, with_target: Vector, target: float, within: tuple[bool, bool]) -> float:
    """The smallest |X y - t|^2 over y; `within` says whether y is free, and if not, whether each y is in 0..1 alone.

    Else they are in 0..1 together with what they leave of 1, the origin's share. `products` is X'X [n, n],
    `with_target` X't [n], `target` t't.
    """
    free, box = within
    size = np.sqrt(np.diag(products))
    values, axes = np.linalg.eigh(products / np.outer(size, size))
    spanned = values > RANK * values[-1]
    roots, axes = np.sqrt(values[spanned]), axes[:, spanned]
    # In these coordinates the columns are X itself, and the target is its projection onto them.
    columns, projected = roots[:, None] * axes.T * size, axes.T @ (with_target / size) / roots
    beyond = max(target - float(projected @ projected), 0.0)
    if free:
        return beyond
    if box:
        found = lsq_linear(columns, projected, bounds=(0.0, 1.0), method="bvls", tol=1e-15, max_iter=1000).x
        rest = columns @ found - projected
        return beyond + float(rest @ rest)
    # The point of a simplex nearest to zero: u >= 0 that makes |D u|^2 + (sum u - 1)^2 smallest, scaled to the sum 1.
    # In units of the target, so that neither term drowns in the other's rounding.
    length = max(float(np.linalg.norm(projected)), 1e-150)
    corners = np.concatenate([np.zeros((len(projected), 1)), columns], axis=1) - projected[:, None]
    shares, _ = nnls(np.concatenate([corners / length, np.ones((1, corners.shape[1]))]), np.eye(len(projected) + 1)[-1])
    rest = corners @ (shares / shares.sum())
    return beyond + float(rest @ rest)


def found_ceilings(
    path: Path | str,
    folders: Sequence[Path | str] = (),
    *,
    device: torch.device | str | None = None,
    progress: Callable[[str, int, int], None] = lambda what, done, total: None,
    hashes: HashCache | None = None,
) -> tuple[tuple[Ceiling, ...], tuple[str, ...]]:
    """What the study in `path` can reach, and, where that cannot be said, why not, a line for each reason.

        ceilings, problems = found_ceilings("my-study")

    By the statistics that a fit has left in its folder; without them by its checkpoints, looked for in `folders` too.
    """
    try:
        study = load_study(path, with_files=False)
        if study.outputs.statistics.exists():
            with suppress(StudyError):
                return study_ceilings(study.without_files(), device=device, progress=progress), ()
        study = load_study(path, folders, hashes=hashes, progress=progress)
        return study_ceilings(study, device=device, progress=progress, hashes=hashes), ()
    except InputError as error:
        return (), error.problems
