"""Two other ways to fit a recipe by the attention similarity, which methods.py compares with blockfit.

`search_by_merging`    Optuna's TPE over the recipe's free alphas; every trial merges the blocks' tensors step by step
                       and computes the attention similarity of the result
`fit_block`            scipy's Nelder-Mead on one block, over the coefficients a_i of
                       base + sum_i a_i (source_i - base); the article's author fitted later models this way

Both are as fast as they can be made: everything that is the same in all trials (the sources' tensors, the random
inputs, the target's outputs, the differences from the base) is in memory before the clock starts.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import optuna
import torch
from full_size import Weights, attention_output, attention_weights, random_inputs
from optuna.distributions import FloatDistribution
from scipy.optimize import minimize
from torch import Tensor

from optimizer.checkpoints import open_checkpoint
from optimizer.recipes import Algebra, Parameter, Recipe, Space, filled_alphas
from optimizer.samplers import make_sampler
from optimizer.similarity import build_metric, open_comparison

BOUNDS = (-0.5, 1.5)  # of Nelder-Mead's coefficients
AGREEMENT = 1e-5  # largest difference allowed between similarities of merged tensors and from coefficients


@dataclass(frozen=True)
class Moment:
    """The best similarity so far, `seconds` after the start."""

    seconds: float
    similarity: float


def improvements(seconds: Sequence[float], similarities: Sequence[float]) -> list[Moment]:
    """Return the moments at which the best similarity rose."""
    found: list[Moment] = []
    for at, similarity in zip(seconds, similarities, strict=True):
        if not found or similarity > found[-1].similarity:
            found.append(Moment(at, similarity))
    return found


# --- TPE and merging --------------------------------------------------------------------------------------------------


class MergedBlocks:
    """The blocks' tensors of all sources in memory, which can be merged and compared for any alphas.

    Tensors keep the dtype of the files, and are merged in float32 without rounding. Inputs and target are as in
    `naive`.
    """

    def __init__(self, recipe: Recipe, paths: Mapping[str, Path], target: Path, blocks: Sequence[str]) -> None:
        chained = all(step.a == before.name for before, step in pairwise(recipe.steps))
        if not chained or {step.mode for step in recipe.steps} > {"weight_sum", "add_difference"}:
            raise ValueError("the steps must be weight sums and added differences, each of the one before")
        self._blocks = tuple(blocks)
        self._prefixes = [prefix for block in blocks for prefix in recipe.layout.attention[block]]
        self._tensors: dict[str, tuple[str, dict[str, Tensor]]] = {}
        with ExitStack() as stack:
            opened = {name: stack.enter_context(open_checkpoint(path)) for name, path in paths.items()}
            for name in opened["base"].tensors:
                block = recipe.layout.block_of(name, recipe.mapping)
                if block in blocks:
                    held = {source: checkpoint.tensor(name).clone() for source, checkpoint in opened.items()}
                    self._tensors[name] = (block, held)
            weights = attention_weights(stack.enter_context(open_checkpoint(target, layout=recipe.layout)), blocks)
        self._merged = {
            name: torch.zeros_like(held["base"], dtype=torch.float32) for name, (_, held) in self._tensors.items()
        }
        self._scratch = torch.empty(max(tensor.numel() for tensor in self._merged.values()))
        self._inputs = random_inputs(weights)
        self._target = [attention_output(of_block, x) for of_block, x in zip(weights, self._inputs, strict=True)]

    def merge(self, recipe: Recipe) -> dict[str, Tensor]:
        """Apply the recipe's steps to every tensor of the blocks; the result is valid until the next call."""
        for name, (block, held) in self._tensors.items():
            # Each step changes the previous result in place, in one dtype: allocating memory for each operation, or
            # mixing dtypes, takes five times as long.
            result = self._merged[name].copy_(held[recipe.steps[0].a])
            scratch = self._scratch[: result.numel()].view(result.shape)
            for step in recipe.steps:
                alpha = step.alpha.at(block)
                if alpha and step.mode == "weight_sum":
                    result.lerp_(scratch.copy_(held[step.b]), alpha)
                elif alpha:
                    result.add_(scratch.copy_(held[step.b]), alpha=alpha)
                    result.sub_(scratch.copy_(held[step.c]), alpha=alpha)
        return self._merged

    def compare(self, merged: Mapping[str, Tensor]) -> dict[str, float]:
        """Return the attention similarity of each block."""
        scores = {}
        for block, prefix, x, expected in zip(self._blocks, self._prefixes, self._inputs, self._target, strict=True):
            query, key, value = (merged[f"{prefix}.to_{part}.weight"] for part in "qkv")
            found = attention_output((query, key, value), x)
            scores[block] = float(torch.cosine_similarity(found, expected, dim=-1).mean())
        return scores


@dataclass(frozen=True)
class MergingSearch:
    """A search by TPE whose first trials are scored by merging, and the others by blockfit's metric.

    Attributes:
        similarities: The similarities of all trials.
        merging: Seconds of merging, for each measured trial.
        comparing: Seconds of comparing, for each measured trial.
        whole: Seconds of each measured trial, with TPE's own time.
        worst: The largest difference of a block's similarity between the two ways to score.
        best: The alphas of the best trial.
        loading: Seconds before the search, which count nowhere.

    """

    similarities: list[float]
    merging: list[float]
    comparing: list[float]
    whole: list[float]
    worst: float
    best: dict[str, float]
    loading: float

    @property
    def measured(self) -> int:
        """Number of trials that were scored by merging."""
        return len(self.whole)


def search_by_merging(
    recipe: Recipe,
    parameters: Sequence[Parameter],
    paths: Mapping[str, Path],
    target: Path,
    blocks: Sequence[str],
    *,
    seconds: float,
    trials: int,
    seconds_afterwards: float,
    seed: int,
) -> MergingSearch:
    """Search by TPE, scoring first by merging and then from coefficients.

    The second part continues the same study with the same sampler. It shows how many trials TPE needs, without the
    time of as many merges.

    Args:
        recipe: The recipe with free alphas.
        parameters: The free alphas that are searched.
        paths: The sources by name.
        target: The target.
        blocks: The scored blocks.
        seconds: The time for scoring by merging; at least one trial is scored that way.
        trials: The most trials of both parts.
        seconds_afterwards: The time for scoring from coefficients.
        seed: The seed of TPE.

    Returns:
        The search.

    Raises:
        ValueError: If the two ways to score differ by more than `AGREEMENT` on a trial of the first part.

    """
    study = optuna.create_study(direction="maximize", sampler=make_sampler("tpe", seed))
    distributions = {each.name: FloatDistribution(each.free.low, each.free.high) for each in parameters}
    start = time.perf_counter()
    held = MergedBlocks(recipe, paths, target, blocks)
    loading = time.perf_counter() - start
    whole, merging, comparing, scored = [], [], [], []
    start = time.perf_counter()
    while len(whole) < trials and (not whole or time.perf_counter() - start < seconds):
        before = time.perf_counter()
        trial = study.ask(distributions)
        filled = recipe.with_alphas(filled_alphas(parameters, trial.params))
        merge_start = time.perf_counter()
        merged = held.merge(filled)
        merge_end = time.perf_counter()
        scored.append(held.compare(merged))
        compare_end = time.perf_counter()
        study.tell(trial, sum(scored[-1].values()) / len(blocks))
        merging.append(merge_end - merge_start)
        comparing.append(compare_end - merge_end)
        whole.append(time.perf_counter() - before)
    # The metric needs these gigabytes.
    del held, merged

    with open_comparison(recipe.layout, paths, target, base=paths["base"], mapping=recipe.mapping) as comparison:
        metric = build_metric("attention", comparison, blocks)
        space = Space(Algebra(recipe, comparison.groups, tuple(comparison.sources)), parameters)

        def score(params: Mapping[str, float]) -> Tensor:
            point = torch.tensor([[params[each.name] for each in parameters]], dtype=torch.float64)
            return metric.score(space.coefficients(point))[0]

        worst = 0.0
        for trial, by_block in zip(study.get_trials(deepcopy=False), scored, strict=True):
            expected = torch.tensor([by_block[block] for block in metric.blocks], dtype=torch.float64)
            worst = max(worst, float((score(trial.params) - expected).abs().max()))
        if worst > AGREEMENT:
            raise ValueError(f"similarities of merged tensors and from coefficients differ by {worst:.1e}")
        start = time.perf_counter()
        for _ in range(len(whole), trials):
            if time.perf_counter() - start > seconds_afterwards:
                break
            trial = study.ask(distributions)
            study.tell(trial, float(score(trial.params).mean()))
    similarities = [trial.value for trial in study.get_trials(deepcopy=False)]
    return MergingSearch(similarities, merging, comparing, whole, worst, dict(study.best_params), loading)


# --- Nelder-Mead, block by block --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class BlockFit:
    """A fit of one block by Nelder-Mead.

    Attributes:
        block: The block.
        width: The width of its attention.
        seconds: Seconds of the fit.
        evaluations: The number of evaluations.
        course: The improvements of the similarity.
        coefficients: The coefficients of the sources by name, including the base.
        converged: False if the evaluations ran out.
        measured: False if the block did not run; time and course are then those of another block of its width.

    """

    block: str
    width: int
    seconds: float
    evaluations: int
    course: list[Moment]
    coefficients: dict[str, float]
    converged: bool
    measured: bool = True


def fit_block(
    block: str,
    sources: Mapping[str, Weights],
    target: Weights,
    x: Tensor,
    *,
    evaluations: int | None = None,
    tolerance: float | None = None,
) -> BlockFit:
    """Fit the coefficients of one block, starting at 1 / n for each of the n sources besides "base".

    Args:
        block: The block's name.
        sources: The attention weights of the sources by name.
        target: The attention weights of the target.
        x: The block's random inputs [d, d].
        evaluations: The most evaluations. Default: scipy's, 200 per coefficient.
        tolerance: The largest distance between the simplex's coefficients, and between its similarities, at the end.
            Default: scipy's, 1e-4.

    Returns:
        The fit.

    """
    base = sources["base"]
    others = {name: weights for name, weights in sources.items() if name != "base"}
    # [n, d * d] of to_q, to_k and to_v each.
    differences = [
        torch.stack([(weights[which] - base[which]).flatten() for weights in others.values()]) for which in range(3)
    ]
    expected = attention_output(target, x)
    seconds, similarities = [], []
    start = time.perf_counter()

    def loss(coefficients: object) -> float:
        row = torch.as_tensor(coefficients, dtype=torch.float32)
        query, key, value = (
            torch.addmv(start.flatten(), difference.T, row).view_as(start)
            for start, difference in zip(base, differences, strict=True)
        )
        similarity = float(torch.cosine_similarity(attention_output((query, key, value), x), expected, dim=-1).mean())
        seconds.append(time.perf_counter() - start)
        similarities.append(similarity)
        return -similarity

    result = minimize(
        loss,
        [1 / len(others)] * len(others),
        method="Nelder-Mead",
        bounds=[BOUNDS] * len(others),
        tol=tolerance,
        options={} if evaluations is None else {"maxfev": evaluations, "maxiter": evaluations},
    )
    found = dict(zip(others, map(float, result.x), strict=True))
    return BlockFit(
        block,
        x.shape[1],
        time.perf_counter() - start,
        len(seconds),
        improvements(seconds, similarities),
        {"base": 1 - sum(found.values()), **found},
        bool(result.success),
    )


def fit_blocks(
    recipe: Recipe,
    paths: Mapping[str, Path],
    target: Path,
    blocks: Sequence[str],
    *,
    seconds: float,
    evaluations: int | None = None,
    tolerance: float | None = None,
) -> list[BlockFit]:
    """Fit the blocks one after another: one of each width first, then others while they should end in time.

    Args:
        recipe: The recipe, for its layout.
        paths: The sources by name.
        target: The target.
        blocks: The blocks.
        seconds: The time for all blocks; the first block of each width runs even if the time is over.
        evaluations: As in `fit_block`.
        tolerance: As in `fit_block`.

    Returns:
        The fits of all blocks, in order. A block that did not run has the time and course of the first block of its
        width, and no coefficients.

    """
    with ExitStack() as stack:
        opened = {
            name: stack.enter_context(open_checkpoint(path, layout=recipe.layout))
            for name, path in {**paths, "": target}.items()
        }
        held = {name: attention_weights(checkpoint, blocks) for name, checkpoint in opened.items()}
    targets = held.pop("")
    inputs = random_inputs(targets)
    places = list(range(len(blocks)))
    first = {x.shape[1]: place for place, x in reversed(list(zip(places, inputs, strict=True)))}
    spent, done = 0.0, {}
    for place in sorted(places, key=lambda place: place not in first.values()):
        width = inputs[place].shape[1]
        alike = done.get(first[width])
        if alike is not None and spent + alike.seconds > seconds:
            continue
        sources = {name: weights[place] for name, weights in held.items()}
        done[place] = fit_block(
            blocks[place], sources, targets[place], inputs[place], evaluations=evaluations, tolerance=tolerance
        )
        spent += done[place].seconds
    return [
        done[place] if place in done else _alike(done[first[inputs[place].shape[1]]], blocks[place]) for place in places
    ]


def _alike(fitted: BlockFit, block: str) -> BlockFit:
    return BlockFit(
        block, fitted.width, fitted.seconds, fitted.evaluations, fitted.course, {}, fitted.converged, measured=False
    )
