"""The verdict on a study in plain words: how much is explained, what is missing, what is in the target.

Every threshold is a rounding floor, a standard error or the answer of tensors that were not fitted on (see `evidence`).
"""

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from markupsafe import Markup

from optimizer.analysis.evidence import NOTHING, SIGMAS, Evidence, SourceEvidence
from optimizer.analysis.linear import largest_share
from optimizer.families import Layout
from optimizer.html import html_paragraphs
from optimizer.printable import printable
from optimizer.recipes import Algebra, Recipe
from optimizer.similarity import Compared, ExplainedMetric, Measured, build_metric, total_similarity
from optimizer.studies import Stage, scoring_steps

__all__ = ["Verdict", "describe_compared", "judge", "percentage"]

# Lengths that differ by more are named: "a few per cent".
_LENGTH = 0.03
# Two sources whose differences from the base have a larger cosine share more than half of them.
_COMMON = 0.5
# Share of what is left that is named by its place.
_NEARLY_ALL = 0.95
# Coefficients of blocks that differ by less are one number.
_ALIKE = 0.05
# Coefficients below are shown with more than two decimals.
_SMALL = 0.095
# Sources that are named in one sentence.
_NAMED = 8


def percentage(share: float) -> str:
    """Return a share in [-1, 1] as per cent, with two digits of whichever of it and its rest is smaller: "98.3 %"."""
    smaller = min(abs(share), abs(1 - share))
    if smaller < 5e-7:
        return f"{100 * round(share):.0f} %"
    digits = max(0, 1 - math.floor(math.log10(100 * smaller) + 1e-9))
    return f"{100 * share:.{digits}f} %"


@dataclass(frozen=True, repr=False)
class Verdict:
    """The verdict on a study; shares are of `explained`, means over the scored blocks, in [-1, 1].

    Attributes:
        target: Name of the target in sentences: its file without folder and extension.
        base: Name of the model that differences are taken from, likewise.
        recipe: Share that the recipe explains; None without a recipe.
        reachable: Share that the best linear merge of the sources explains.
        floor: Share that rounding the target once puts out of reach.
        nearest: Name of the single source that explains most.
        nearest_explained: Share that it explains.
        complete: Whether the sources explain all but the rounding of the recipe's steps.
        length: Length of the recipe's difference from the base in units of its best length; None without a recipe.
        sources: What the target's tensors say about each source, by its name in the recipe.
        names: Name of each source in sentences.
        sentences: The verdict.
        warnings: Sentences that must not be overlooked.
    """

    target: str
    base: str
    recipe: float | None
    reachable: float
    floor: float
    nearest: str
    nearest_explained: float
    complete: bool
    length: float | None
    sources: Mapping[str, SourceEvidence]
    names: Mapping[str, str]
    sentences: tuple[str, ...]
    warnings: tuple[str, ...] = ()

    def __repr__(self) -> str:
        """Return the warnings, then the sentences, a line for each."""
        return "\n".join((*(f"ATTENTION: {warning}" for warning in self.warnings), *self.sentences))

    def _repr_html_(self) -> str:
        """Return the warnings, then the sentences, as paragraphs for notebooks."""
        warnings = (Markup("<strong>Attention:</strong> {}").format(printable(warning)) for warning in self.warnings)
        return html_paragraphs((*warnings, *self.sentences))

    @property
    def text(self) -> str:
        """Sentences and warnings in one paragraph."""
        return " ".join((*self.sentences, *(f"Attention: {warning}" for warning in self.warnings)))

    def as_dict(self) -> dict[str, Any]:
        """Return the fields for JSON, NaN as None, and the whole text as "text"."""

        def number(value: float | None) -> float | None:
            return None if value is None or not math.isfinite(value) else value

        return {
            "text": self.text,
            "recipe": number(self.recipe),
            "reachable": number(self.reachable),
            "floor": self.floor,
            "nearest": self.nearest,
            "nearest_explained": number(self.nearest_explained),
            "complete": self.complete,
            "length": number(self.length),
            "sources": {name: asdict(found) for name, found in self.sources.items()},
            "sentences": list(self.sentences),
            "warnings": list(self.warnings),
        }


def judge(measured: Measured, recipe: Recipe, stages: Sequence[Stage], fitted: Recipe | None) -> Verdict:
    """Return the verdict on the stages of a study.

    Args:
        measured: The statistics of the checkpoints.
        recipe: The study's recipe.
        stages: The stages; a block is judged on the last step of the last stage that scores it.
        fitted: The same recipe with plain numbers; None to judge the sources alone.

    Returns:
        The verdict.
    """
    step_of = scoring_steps(stages)
    blocks = tuple(block for block in measured.blocks if block in step_of)
    names = _names(measured)
    target = printable(Path(measured.target.file).stem)
    base = names[measured.reference]
    metric = build_metric("explained", measured, blocks, measured.statistics)
    assert isinstance(metric, ExplainedMetric)
    if not metric.blocks:
        same = f"{target} equals {base} in every scored block: nothing is left to explain."
        return Verdict(target, base, None, math.nan, 1.0, measured.reference, 1.0, True, None, {}, names, (same,))
    evidence = Evidence.of(measured, metric.blocks)
    reachable = total_similarity({block: largest_share(measured, block) for block in metric.blocks})
    explained, length = (None, None) if fitted is None else _of_recipe(metric, measured, fitted, step_of)
    alone = {name: _alone(metric, measured, name) for name in measured.sources if name != measured.reference}
    nearest = max(alone, key=lambda name: alone[name], default=measured.reference)
    sources = evidence.sources()
    # One for the result of each step, and two for the sources, which may be rounded copies of those that were merged.
    roundings = 2 + len(recipe.steps)
    complete = 1 - reachable <= max(roundings * evidence.floor, NOTHING)
    draft = Verdict(
        target=target,
        base=base,
        recipe=explained,
        reachable=reachable,
        floor=evidence.floor,
        nearest=nearest,
        nearest_explained=alone.get(nearest, 0.0),
        complete=complete,
        length=length,
        sources=sources,
        names=names,
        sentences=(),
    )
    cosines = any(name != "explained" for stage in stages for name, _ in stage.measured)
    warnings = tuple(_warnings(draft, evidence, cosines=cosines))
    if evidence.far:
        return replace(draft, warnings=warnings)
    elsewhere = "" if complete else _elsewhere(draft, evidence, metric, measured.layout, roundings)
    return replace(draft, sentences=(*_shares(draft, evidence, elsewhere), *_of_sources(draft)),
                   warnings=warnings)  # fmt: skip


def describe_compared(scores: Compared, candidate: str, target: str, base: str) -> str:
    """Return a sentence on what a checkpoint explains, and one on its length where that is off.

    Args:
        scores: The similarities of the checkpoint by `explained`.
        candidate: Name of the checkpoint.
        target: Name of the target.
        base: Name of the base.

    Returns:
        The sentences.
    """
    if not math.isfinite(scores.total):
        return f"{target} equals {base} in these blocks: nothing is left to explain."
    text = f"{candidate} explains {percentage(scores.total)} of what makes {target} different from {base}."
    # Only where the direction is right is the length the fault: at the best length more than half is explained.
    if scores.length is None or abs(scores.length - 1) <= _LENGTH or scores.at_best_length <= _COMMON:
        return text
    off = _off(scores.length, f"{candidate}'s difference", base, target)
    return f"{text} {off}"


def _off(length: float, what: str, base: str, target: str) -> str:
    """Return the sentence on a difference of another length than the target's."""
    return (
        f"The length is off: {what} from {base} is {length:.2f} times as long as where it would be nearest to "
        f"{target}, too {'long' if length > 1 else 'short'}."
    )


def _names(measured: Measured) -> dict[str, str]:
    """Return the names of the sources in sentences: their files' without extension, where these differ."""
    stems = {name: Path(mark.file).stem for name, mark in measured.sources.items()}
    uses = Counter(stems.values())
    return {name: printable(stem if uses[stem] == 1 else name) for name, stem in stems.items()}


def _of_recipe(
    metric: ExplainedMetric, measured: Measured, fitted: Recipe, step_of: Mapping[str, str]
) -> tuple[float, float | None]:
    """Return the share that a recipe explains, and the length of its difference in units of the best length."""
    scores: dict[str, float] = {}
    linear = quadratic = 0.0
    for step in dict.fromkeys(step_of[block] for block in metric.blocks):
        of_step = metric.of_blocks([block for block in metric.blocks if step_of[block] == step])
        algebra = Algebra(fitted, measured.groups, tuple(measured.sources), step)
        coefficients = algebra.coefficients(algebra.starting_alphas())
        scores |= dict(zip(of_step.blocks, of_step.score(coefficients)[0].tolist(), strict=True))
        with_target, with_itself = of_step.moments(coefficients)
        linear, quadratic = linear + float(with_target.sum()), quadratic + float(with_itself.sum())
    return total_similarity(scores), quadratic / linear if linear > 0 else None


def _alone(metric: ExplainedMetric, measured: Measured, name: str) -> float:
    """Return the share that one source explains by itself."""
    position = list(measured.sources).index(name)
    coefficients = torch.zeros(1, len(measured.groups), len(measured.sources), dtype=torch.float64)
    for row, group in enumerate(measured.groups):
        # A tensor that the source lacks stays the first other one's.
        coefficients[0, row, position if position in group.holders else group.holders[0]] = 1.0
    return total_similarity(dict(zip(metric.blocks, metric.score(coefficients)[0].tolist(), strict=True)))


def _shares(verdict: Verdict, evidence: Evidence, elsewhere: str) -> Iterator[str]:
    """Yield the sentences on how much is explained, and what is not."""
    different = f"what makes {verdict.target} different from {verdict.base}"
    own_rest = 1 - verdict.nearest_explained
    if own_rest <= max(evidence.floor, NOTHING):
        yield f"{verdict.target} is {verdict.names[verdict.nearest]} itself, up to rounding."
    reachable = percentage(verdict.reachable)
    if verdict.recipe is None:
        subject, share, beyond = "The sources explain", reachable, ""
    else:
        subject, share = "The recipe explains", percentage(verdict.recipe)
        short = verdict.reachable - verdict.recipe > max(evidence.floor, NOTHING) and share != reachable
        beyond = f"; its sources could explain {reachable}" if short else ""
        if not short and not verdict.complete:
            beyond = ", all that its sources can"
    if verdict.complete:
        rest = f"what is left ({percentage(1 - verdict.reachable)}) is no more than rounding"
        yield f"{subject} {share} of {different}{beyond}" + ("." if beyond else f": {rest}.")
        return
    stop = ". " if beyond.startswith(";") else "; "
    left = percentage(1 - verdict.reachable)
    yield f"{subject} {share} of {different}{beyond}{stop}{left} is from elsewhere{elsewhere}."


def _elsewhere(verdict: Verdict, evidence: Evidence, metric: ExplainedMetric, layout: Layout, roundings: int) -> str:
    """Return where the unexplained part lies and what it may be, to follow "is from elsewhere"."""
    rest = 1 - verdict.reachable
    for dtype in (torch.float16, torch.bfloat16):
        floor = evidence.floor_of(dtype)
        if floor / 2 <= rest <= roundings * floor:
            return f", about as much as rounding to {str(dtype).removeprefix('torch.')} on the way leaves"
    inside = [position for position, name in enumerate(evidence.names) if verdict.sources[name].inside]
    left = evidence.left(inside)
    place = ""
    by_block = np.bincount(evidence.block, weights=evidence.shares(left), minlength=len(metric.blocks))
    ordered = np.argsort(-by_block, kind="stable")
    needed = 1 + int(np.searchsorted(np.cumsum(by_block[ordered]), _NEARLY_ALL * by_block.sum()))
    if needed <= len(metric.blocks) // 2:
        place = f", nearly all of it in {layout.describe_blocks(metric.blocks[row] for row in ordered[:needed])}"
    others = ~evidence.matrices
    floors = roundings * evidence.floors[others].sum() + NOTHING * evidence.gram[others, -1, -1].sum()
    if others.any() and left[others].sum() <= floors:
        return f"{place}, only in matrices: a LoRA is probably missing"
    return f"{place}: a model or a LoRA is probably missing, or it was trained further"


def _of_sources(verdict: Verdict) -> Iterator[str]:
    """Yield the sentences on which sources are in the target."""
    ordered = sorted(verdict.sources, key=lambda name: -verdict.sources[name].gain)
    inside = [name for name in ordered if verdict.sources[name].inside]
    outside = [name for name in verdict.sources if not verdict.sources[name].inside]
    if inside:
        listed = _listed([f"{verdict.names[name]} ({_coefficient(verdict.sources[name])})" for name in inside])
        yield f"{listed} {'is' if len(inside) == 1 else 'are'} in it."
    if outside:
        listed = _listed(
            [f"{verdict.names[name]} ({_why_not(verdict.sources[name], verdict.floor)})" for name in outside]
        )
        is_or_are, it = ("is", "it") if len(outside) == 1 else ("are", "them")
        yield f"{listed} {is_or_are} not: leave {it} out."


def _coefficient(found: SourceEvidence) -> str:
    if found.most - found.least < _ALIKE:
        return _number(found.coefficient)
    return f"{_number(found.coefficient)}, by block {_number(found.least)} to {_number(found.most)}"


def _number(value: float) -> str:
    """Return a coefficient with two decimals, or with one digit if it is smaller."""
    return f"{value:.2f}" if abs(value) >= _SMALL or not value else f"{value:.{-math.floor(math.log10(abs(value)))}f}"


def _why_not(found: SourceEvidence, floor: float) -> str:
    """Return the coefficient of a source that is not in the target, and why it does not count."""
    if not found.error:
        return _number(found.coefficient) if abs(found.coefficient) > NOTHING else "0"
    digits = max(2, -math.floor(math.log10(found.error)))
    shown = f"{found.coefficient:.{digits}f} +- {found.error:.{digits}f}"
    if abs(found.coefficient) <= SIGMAS * found.error:
        return shown
    if found.gain <= floor:
        return f"{shown}, below the rounding of the target"
    return f"{shown}, of no use to tensors that were not fitted on"


def _warnings(verdict: Verdict, evidence: Evidence, *, cosines: bool) -> Iterator[str]:
    """Yield the sentences that must not be overlooked; `cosines` tells whether a stage is scored by one."""
    if evidence.far:
        yield (
            f"{verdict.target} is of another family than {verdict.base}: the difference between them is longer than "
            f"{verdict.base} itself, so no merge of these sources comes near it."
        )
        return
    for position, name in enumerate(evidence.names):
        if evidence.is_far(position):
            yield (
                f"{verdict.names[name]} is of another family than {verdict.base}: the difference between them is "
                f"longer than {verdict.base} itself."
            )
    if evidence.common > _COMMON:
        yield (
            f"All sources differ from {verdict.base} in the same direction (cosines of at least {evidence.common:.2f}):"
            " they were probably trained from another model. Name that one as base."
        )
    # A fit by `explained` sees the length: it is the best that the free alphas allow.
    if cosines and verdict.length is not None and abs(verdict.length - 1) > _LENGTH:
        off = _off(verdict.length, "the recipe's difference", verdict.base, verdict.target)
        yield f"{off} Cosines do not see that; fit by explained."


def _listed(words: Sequence[str]) -> str:
    """Return words as an English list, of which the first eight are named."""
    words = [*words[:_NAMED], f"{len(words) - _NAMED} more"] if len(words) > _NAMED + 1 else list(words)
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"
