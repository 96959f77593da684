"""What a reader of a report has to know before trusting it: only what applies to this study."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from optimizer.analysis import Ceiling
from optimizer.recipes import described_alphas
from optimizer.reports.tables import percent
from optimizer.search import Found, SearchResult, TrialState
from optimizer.similarity import METRICS, AttentionOptions
from optimizer.studies import NotedSpread, Stage

__all__ = ["Remark", "remarks"]

# Scales of the merged difference farther from 1 than this are worth a word.
_SCALED = 0.02
# What no merge of the sources reaches, as a share of the difference's length, from which on it is worth a word.
_UNKNOWN = 0.02
# Names of alphas that a sentence lists; tables and other commands have the rest.
_LISTED = 12


@dataclass(frozen=True)
class Remark:
    """A heading and what there is to say; `grave` if it is about what is missing or wrong."""

    heading: str
    text: str
    grave: bool = False


def remarks(found: Found, ceilings: Mapping[str, Ceiling], command: str) -> tuple[Remark, ...]:
    """What to know about this fit, what is missing first; `command` fits the study."""
    return (*_unfinished(found, command), *_methods(found), *_limits(found, ceilings))


def _unfinished(found: Found, command: str) -> Iterator[Remark]:
    result = found.result
    if found.living:
        workers = "1 worker is" if len(found.living) == 1 else f"{len(found.living)} workers are"
        yield Remark("The fit is under way", f"{workers} searching; this page shows what was found until now.", True)
    if not found.written:
        yield Remark(
            "Not finished: best.yaml is missing",
            "The fit was stopped before it wrote its result. The recipe below is what the best trials so far amount "
            f"to; its similarities were not measured. {command} goes on from here.",
            True,
        )
    elif result.interrupted:
        yield Remark(
            "Not finished",
            f"The fit was interrupted; the recipe is the best until then. {command} goes on from here.",
            True,
        )
    if found.moved_on:
        names = ", ".join(found.moved_on[:_LISTED])
        yield Remark(
            "The trials are ahead of the recipe",
            f"Since best.yaml was written, {names} found better alphas, which are not in it. {command} brings it up to "
            "date.",
            True,
        )
    if not result.searches:
        yield Remark(
            "No trials",
            "There are none where this report looked for them; if they are in another storage, name that one. "
            "What is shown comes from best.yaml.",
            True,
        )
    if found.notes:
        yield Remark(
            "Trials are left out",
            "Some stored trials cannot be what a fit wrote, and do not count; blockfit status names them.",
            True,
        )
    short = [search for search in result.searches if len(search.completed) < search.budget]
    if short and not found.living:
        told = ", ".join(_counted(search) for search in short[:_LISTED])
        yield Remark("Trials are left", f"More were asked for than were run: {told}.", result.interrupted)
    failed = sum(trial.state == TrialState.FAILED for search in result.searches for trial in search.trials)
    if failed:
        many = "1 trial" if failed == 1 else f"{failed} trials"
        yield Remark("Failed trials", f"{many} could not be scored; fit.log tells why.", True)


def _counted(search: SearchResult) -> str:
    return f"{search.name} {len(search.completed)} of {search.budget}"


def _methods(found: Found) -> Iterator[Remark]:
    stages = found.result.study.stages
    greedy = [stage for stage in stages if stage.strategy == "stepwise" and len(stage.searches()) > 1]
    if greedy:
        again = [stage for stage in greedy if stage.passes > 1]
        more = (
            " Further passes climb from this start to the best of all steps together, as far as they were run."
            if again
            else ""
        )
        yield Remark(
            "Fitted step by step",
            f"In {_names(greedy)}, each step was scored on its own result, without the later ones. That is greedy: the "
            "first steps soak up what later ones should explain, even where nothing is unknown, so the alphas of "
            f"single steps are biased. A joint fit is what recovers recipes.{more}",
        )
    bumpy = [stage for stage in stages if stage.uses_seeds]
    if bumpy:
        seeds = ", ".join(
            str(seed)
            for seed in dict.fromkeys(seed for stage in bumpy for seed in stage.options.of(AttentionOptions).seeds)
        )
        spread = " ".join(map(_spread_in_words, found.spread))
        yield Remark(
            "The attention metric is bumpy",
            f"In {_names(bumpy)}, similarity was measured on random inputs (seeds {seeds}). Where part of the target "
            "is unknown, the best alpha of a single block by this metric can be far from the true one, and it "
            f"has several maxima. Look at explained beside it. {spread}".rstrip(),
        )
    read = [block for stage in stages for name, own in stage.measured if METRICS[name].needs_prompts for block in own]
    if read:
        yield Remark(
            "The encoder metric reads prompts",
            f"{', '.join(dict.fromkeys(read))} was scored by what the text encoder says to the prompts that were "
            "read, and to no others.",
        )


def _spread_in_words(spread: NotedSpread) -> str:
    low, high = min(spread.totals), max(spread.totals)
    own = "" if spread.fitted is None else f"; on those that it was fitted on {percent(spread.fitted)}"
    return (
        f"On {len(spread.totals)} other random inputs {spread.step} reaches {percent(low)} to {percent(high)} by "
        f"{spread.metric}{own}."
    )


def _limits(found: Found, ceilings: Mapping[str, Ceiling]) -> Iterator[Remark]:
    if not ceilings:
        return
    any_ceiling = next(iter(ceilings.values()))
    identified = any_ceiling.identified
    if identified.rank < identified.alphas:
        text = (
            f"The {identified.alphas} free alphas move the sources' coefficients in {identified.rank} directions only: "
            "many sets of alphas make the same merge. Compare coefficients, not alphas."
        )
        layout = found.result.study.recipe.layout
        if identified.trade_off:
            text += f" These trade off against each other: {_some(described_alphas(identified.trade_off, layout))}."
        if identified.idle:
            idle = _some(described_alphas(identified.idle, layout))
            text += f" These have no effect on any block that is scored: {idle}."
        yield Remark("Not every alpha is determined", text)
    if "delta" in ceilings:
        yield from _scale(found, ceilings["delta"])
    if "explained" in ceilings:
        yield from _narrow(found, ceilings["explained"])
        yield from _unknown(ceilings["explained"])
    if any_ceiling.note:
        yield Remark(
            "Ceilings are of weights",
            f"The ceilings are what linear merges reach by {', '.join(ceilings)}: {any_ceiling.note}.",
        )


def _scale(found: Found, delta: Ceiling) -> Iterator[Remark]:
    blind = {
        block
        for stage in found.result.study.stages
        for name, blocks in stage.measured
        if METRICS[name].scale_free
        for block in blocks
    }
    scales = {
        block: one.best_scale if one.recipe_scale is None else one.recipe_scale
        for block, one in delta.blocks.items()
        if block in blind
    }
    off = [scale for scale in scales.values() if abs(scale - 1) > _SCALED]
    if off:
        yield Remark(
            "A cosine does not see scale",
            "By delta only the direction of the merged difference from the base counts, not its length. To come "
            f"nearest to the target it would have to be {min(scales.values()):.3f} to {max(scales.values()):.3f} "
            "times as long, depending on the block (column scale under Ceiling).",
        )


def _narrow(found: Found, explained: Ceiling) -> Iterator[Remark]:
    if explained.narrow:
        layout = found.result.study.recipe.layout
        told = "; ".join(one.describe(layout) for one in explained.narrow[:_LISTED])
        rest = len(explained.narrow) - _LISTED
        yield Remark(
            "Ranges are too narrow",
            f"The best alphas by explained lie outside the ranges that were searched. {told}"
            f"{f'; and {rest} more' if rest > 0 else ''}. A model below 0 is taken away, as C is in "
            "A + (B - C) x alpha. To let the search go there, edit the recipe and fit again.",
            True,
        )


def _unknown(explained: Ceiling) -> Iterator[Remark]:
    # What is perpendicular to all sources, as a share of the difference's length.
    left = [math.sqrt(max(1 - one.ceiling, 0.0)) for one in explained.blocks.values()]
    if left and max(left) > _UNKNOWN:
        yield Remark(
            "Part of the target is in no source",
            f"{_percents(min(left), max(left))} of the length of the target's difference from the base, depending on "
            "the block, is in none of these sources, and no recipe over them can reach it. If that part resembles a "
            "source, it shifts that source's coefficient; no method can tell the two apart.",
        )


def _percents(low: float, high: float) -> str:
    shown = f"{100 * low:.1f}", f"{100 * high:.1f}"
    return f"{shown[0]}%" if shown[0] == shown[1] else f"{shown[0]}% to {shown[1]}%"


def _names(stages: Sequence[Stage]) -> str:
    names = [stage.name for stage in stages]
    return f"stage {names[0]}" if len(names) == 1 else f"stages {', '.join(names[:-1])} and {names[-1]}"


def _some(names: Sequence[str]) -> str:
    rest = len(names) - _LISTED
    return ", ".join(names[:_LISTED]) + (f" and {rest} more" if rest > 0 else "")
