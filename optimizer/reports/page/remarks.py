"""The remarks of a report: caveats that apply to this study, for readers who rely on the results."""

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

# A scale of the merged difference that differs from 1 by more than this gets a remark.
_SCALED = 0.02
# A part of the target outside all sources gets a remark above this share (0 to 1) of the difference's length.
_UNKNOWN = 0.02
# Maximum number of names in a sentence; tables and other commands list the rest.
_LISTED = 12


@dataclass(frozen=True)
class Remark:
    """A heading with a text; `grave` marks missing or wrong results."""

    heading: str
    text: str
    grave: bool = False


def remarks(found: Found, ceilings: Mapping[str, Ceiling], command: str) -> tuple[Remark, ...]:
    """Return the remarks on a fit, missing results first; `command` is the command line that fits the study."""
    return (*_unfinished(found, command), *_methods(found), *_limits(found, ceilings))


def _unfinished(found: Found, command: str) -> Iterator[Remark]:
    """Yield remarks on missing, outdated and failed results."""
    result = found.result
    if found.living:
        workers = "1 worker is" if len(found.living) == 1 else f"{len(found.living)} workers are"
        yield Remark("The fit is under way", f"{workers} searching; this page shows the results so far.", True)
    if not found.written:
        yield Remark(
            "Not finished: best.yaml is missing",
            "The fit was stopped before it wrote its result. The recipe below combines the best trials so far; its "
            f"similarities were not measured. {command} continues the fit.",
            True,
        )
    elif result.interrupted:
        yield Remark(
            "Not finished",
            f"The fit was interrupted; the recipe is the best until then. {command} continues the fit.",
            True,
        )
    if found.moved_on:
        names = ", ".join(found.moved_on[:_LISTED])
        yield Remark(
            "The trials are ahead of the recipe",
            f"Since best.yaml was written, {names} found better alphas, which are not in it. {command} updates it.",
            True,
        )
    if not result.searches:
        yield Remark(
            "No trials",
            "The report's storage contains no trials. If they are in another storage, name that one. The results shown "
            "come from best.yaml.",
            True,
        )
    if found.notes:
        yield Remark(
            "Trials are ignored",
            "Some stored trials cannot have been written by a fit and are ignored; blockfit status lists them.",
            True,
        )
    short = [search for search in result.searches if len(search.completed) < search.budget]
    if short and not found.living:
        counts = ", ".join(_counted(search) for search in short[:_LISTED])
        yield Remark("Trials are left", f"Fewer trials were run than requested: {counts}.", result.interrupted)
    failed = sum(trial.state == TrialState.FAILED for search in result.searches for trial in search.trials)
    if failed:
        many = "1 trial" if failed == 1 else f"{failed} trials"
        yield Remark("Failed trials", f"{many} could not be scored; fit.log contains the reasons.", True)


def _counted(search: SearchResult) -> str:
    return f"{search.name} {len(search.completed)} of {search.budget}"


def _methods(found: Found) -> Iterator[Remark]:
    """Yield remarks on the strategies and metrics of the fit."""
    stages = found.result.study.stages
    greedy = [stage for stage in stages if stage.strategy == "stepwise" and len(stage.searches()) > 1]
    if greedy:
        again = [stage for stage in greedy if stage.passes > 1]
        more = " Further passes improve this start towards the best of all steps together." if again else ""
        yield Remark(
            "Fitted step by step",
            f"In {_names(greedy)}, each step was scored on its own result, without later ones. That is greedy: the "
            "first steps also explain differences that belong to later ones, so the alphas of single steps are biased, "
            f"even if all sources are known. To recover a recipe, fit jointly.{more}",
        )
    bumpy = [stage for stage in stages if stage.draws]
    if bumpy:
        seeds = ", ".join(
            str(seed)
            for seed in dict.fromkeys(seed for stage in bumpy for seed in stage.options.of(AttentionOptions).seeds)
        )
        spread = " ".join(map(_spread_in_words, found.spread))
        yield Remark(
            "The attention metric is bumpy",
            f"In {_names(bumpy)}, similarity was measured on random inputs (seeds {seeds}). This metric has several "
            "maxima, and if part of the target is unknown, the best alpha of a single block can be far from the true "
            f"one. Compare it with explained. {spread}".rstrip(),
        )
    read = [
        block for stage in stages for name, blocks in stage.measured if METRICS[name].needs_prompts for block in blocks
    ]
    if read:
        yield Remark(
            "The encoder metric reads prompts",
            f"{', '.join(dict.fromkeys(read))} was scored by the text encoder's outputs for the prompts of the fit; "
            "other prompts were not tested.",
        )


def _spread_in_words(spread: NotedSpread) -> str:
    low, high = min(spread.totals), max(spread.totals)
    fitted = "" if spread.fitted is None else f", and {percent(spread.fitted)} on those of the fit"
    return (
        f"On {len(spread.totals)} other random inputs {spread.step} reaches {percent(low)} to {percent(high)} by "
        f"{spread.metric}{fitted}."
    )


def _limits(found: Found, ceilings: Mapping[str, Ceiling]) -> Iterator[Remark]:
    """Yield remarks on what the sources and the metrics can determine."""
    if not ceilings:
        return
    any_ceiling = next(iter(ceilings.values()))
    identified = any_ceiling.identified
    if identified.rank < identified.alphas:
        text = (
            f"The {identified.alphas} free alphas move the sources' coefficients in only {identified.rank} directions: "
            "many sets of alphas make the same merge. Compare coefficients, not alphas."
        )
        layout = found.result.study.recipe.layout
        if identified.trade_off:
            text += f" These trade off against each other: {_some(described_alphas(identified.trade_off, layout))}."
        if identified.idle:
            idle = _some(described_alphas(identified.idle, layout))
            text += f" These have no effect on any scored block: {idle}."
        yield Remark("Not every alpha is determined", text)
    if "delta" in ceilings:
        yield from _scale(found, ceilings["delta"])
    if "explained" in ceilings:
        yield from _narrow(found, ceilings["explained"])
        yield from _unknown(ceilings["explained"])
    if any_ceiling.note:
        yield Remark(
            "Ceilings are of weights",
            f"The ceilings are the best that linear merges reach by {', '.join(ceilings)}: {any_ceiling.note}.",
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
        block: ceiling.best_scale if ceiling.recipe_scale is None else ceiling.recipe_scale
        for block, ceiling in delta.blocks.items()
        if block in blind
    }
    off = [scale for scale in scales.values() if abs(scale - 1) > _SCALED]
    if off:
        yield Remark(
            "A cosine ignores scale",
            "The metric delta compares only the direction of the merged difference from the base, not its length. To "
            f"come nearest to the target it would have to be {min(scales.values()):.3f} to {max(scales.values()):.3f} "
            "times as long, depending on the block (column scale under Ceiling).",
        )


def _narrow(found: Found, explained: Ceiling) -> Iterator[Remark]:
    if explained.narrow:
        layout = found.result.study.recipe.layout
        ranges = "; ".join(narrow.describe(layout) for narrow in explained.narrow[:_LISTED])
        rest = len(explained.narrow) - _LISTED
        yield Remark(
            "Ranges are too narrow",
            f"The best alphas by explained are outside the searched ranges. {ranges}"
            f"{f'; and {rest} more' if rest > 0 else ''}. A model with a coefficient below 0 is subtracted, as C is in "
            "A + (B - C) x alpha. To search there, edit the recipe and fit again.",
            True,
        )


def _unknown(explained: Ceiling) -> Iterator[Remark]:
    # The part perpendicular to all sources, as a share of the difference's length.
    left = [math.sqrt(max(1 - ceiling.ceiling, 0.0)) for ceiling in explained.blocks.values()]
    if left and max(left) > _UNKNOWN:
        yield Remark(
            "Part of the target is in no source",
            f"{_percents(min(left), max(left))} of the length of the target's difference from the base, depending on "
            "the block, is in none of these sources, and no recipe over them can reach it. If that part resembles a "
            "source, it shifts that source's coefficient; no method can distinguish the two.",
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
