"""What stands on the report page: figures, texts and charts, made of what a study has found."""

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PurePath

from optimizer.analysis import BlockCeiling, Ceiling, SourceShare
from optimizer.families import Layout
from optimizer.interchange import formula_of, write_notation
from optimizer.printable import printable, quoted
from optimizer.recipes import Model, Recipe, block_coefficients, preset_line
from optimizer.reports.alphas import AlphaRow, alpha_rows
from optimizer.reports.page.drawings import (
    MOST_POINTS,
    Drawing,
    Scale,
    against_alpha,
    best_so_far,
    block_map,
    dumbbells,
    short_number,
    shown_trials,
)
from optimizer.reports.page.remarks import Remark, remarks
from optimizer.search import Found, SearchResult
from optimizer.similarity import EXACT_METRICS, total_similarity
from optimizer.studies import Stage, StepScores, StudyFolder
from optimizer.version import __version__

__all__ = ["Page", "contents"]

# What people write where they know no licence.
_NOT_STATED = frozenset({"unknown", "none", "n/a", "na", "unlicensed", "no license", "no licence"})
# What a page holds of recipes and studies of any size; what is beyond is counted on the page.
_MOST_STEPS = 40  # of which numbers, maps and similarities are shown
_MOST_ROWS = 200  # of the table of all alphas
_MOST_SEARCHES = 60  # of which the history is drawn
_MOST_PANELS = 312  # similarity against alpha: twelve steps of the family with the fewest blocks
_MOST_NOTATION = 300_000  # characters
_MOST_NAMED = 12  # sources that a sentence lists
_LONGEST_NOTE = 200  # characters of a text that the recipe notes
_MOST_PASSED = 5  # passes of a stage whose history is drawn


@dataclass(frozen=True)
class Reached:
    """A stage's last step by a metric: where its first step began, what was fitted, what any merge could reach.

    `own` is whether the stage was fitted by this metric.
    """

    stage: str
    step: str
    metric: str
    own: bool
    before: float | None
    after: float
    ceiling: float | None

    @property
    def share(self) -> float | None:
        """How much of what could be gained was; None where that is not known or nothing could be."""
        if self.before is None or self.ceiling is None or self.ceiling - self.before < 1e-9:
            return None
        return (self.after - self.before) / (self.ceiling - self.before)


@dataclass(frozen=True)
class Numbers:
    """An alpha of a step in SuperMerger's form: its formula, and the numbers with commas between."""

    step: str
    alpha: str
    formula: str
    numbers: str


@dataclass(frozen=True)
class Compared:
    """A step's similarities by every metric noted, block by block; `chart` is by the stage's own metric."""

    stage: str
    step: str
    metric: str
    chart: Drawing
    metrics: tuple[StepScores, ...]
    blocks: tuple[str, ...]


@dataclass(frozen=True)
class Line:
    """A row of the table of all alphas: (class, number) for each block."""

    title: str
    cells: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Curves:
    """The panels of a search, similarity against alpha: {step: ((parameter within the step, chart), ...)}.

    So many of its parameters are `left_out`.
    """

    search: SearchResult
    steps: Mapping[str, tuple[tuple[str, Drawing], ...]]
    left_out: int


@dataclass(frozen=True)
class Source:
    """A source: its file and licence, how much of it is in the fitted recipe and in the target."""

    name: str
    model: Model
    used: bool
    coefficient: float | None
    share: SourceShare | None
    by_block: Mapping[str, float]

    @property
    def standing(self) -> str:
        """What the recipe says of the licence: "unknown" if it states none, else "check it"."""
        stated = self.model.license.strip().lower()
        return "unknown" if stated in _NOT_STATED or not any(map(str.isalnum, stated)) else "check it"

    @property
    def alarming(self) -> bool:
        """Whether the source is in the result and its licence unknown."""
        return self.used and self.standing == "unknown"


@dataclass(frozen=True)
class Page:
    """All that the template shows; see the names. Counts `..._left_out` are of what the page has no room for."""

    title: str
    version: str
    date: str
    found: Found
    ceilings: Mapping[str, Ceiling]
    ceiling_problems: tuple[str, ...]
    layout: Layout
    remarks: tuple[Remark, ...]
    reached: tuple[Reached, ...]
    notation: str
    numbers: tuple[Numbers, ...]
    numbers_left_out: int
    compared: tuple[Compared, ...]
    compared_left_out: int
    scale: Scale
    maps: tuple[tuple[str, Drawing], ...]
    maps_left_out: int
    lines: tuple[Line, ...]
    lines_left_out: int
    histories: tuple[tuple[SearchResult, Drawing], ...]
    histories_left_out: int
    curves: tuple[Curves, ...]
    sources: tuple[Source, ...]
    target: str
    target_sha256: str | None
    commands: tuple[tuple[str, str], ...]
    fitted_version: str | None

    @property
    def recipe(self) -> Recipe:
        """The recipe that was found."""
        return self.found.result.recipe

    @property
    def stages(self) -> tuple[Stage, ...]:
        """The study's stages."""
        return self.found.result.study.stages

    @property
    def alarms(self) -> tuple[Source, ...]:
        """The sources in use whose licence is unknown or forbids commercial use."""
        return tuple(source for source in self.sources if source.alarming)

    @cached_property
    def marks(self) -> frozenset[str]:
        """The classes of the shapes that charts show, for their keys."""
        charts = [one.chart for one in self.compared]
        charts += [chart for _, chart in self.histories]
        charts += [chart for one in self.curves for panels in one.steps.values() for _, chart in panels]
        return frozenset(str(shape.attributes["class"]) for chart in charts for shape in chart.shapes)

    @property
    def thinned(self) -> int:
        """Of searches with more trials than this not every one is drawn; 0 if there are none such."""
        return MOST_POINTS if any(len(search.trials) > MOST_POINTS for search, _ in self.histories) else 0

    @property
    def all_searched(self) -> bool:
        """Whether every alpha that is shown was searched for."""
        return not any(style == "unsearched" for line in self.lines for style, _ in line.cells)

    @property
    def main_ceiling(self) -> Ceiling | None:
        """That of the metric that tells most."""
        return next((self.ceilings[name] for name in EXACT_METRICS if name in self.ceilings), None)

    @property
    def ceiling_rows(self) -> Mapping[str, Mapping[str, BlockCeiling]]:
        """By metric, the one that tells more first."""
        return {name: self.ceilings[name].blocks for name in EXACT_METRICS if name in self.ceilings}


def contents(
    found: Found,
    ceilings: Sequence[Ceiling],
    problems: Sequence[str],
    *,
    named: str,
    storage: str | None,
    date: str,
) -> Page:
    """The page of a study that the user named `named`, its folder or file; `problems` tell why there are no ceilings.

    `storage` is what others may be told to give as `storage`, None for the study's folder. `date` is today's.
    """
    result = found.result
    study, recipe, layout = result.study, result.recipe, result.recipe.layout
    by_metric = {one.metric: one for one in ceilings}
    target = recipe.noted.target
    rows = alpha_rows(result)
    searched = [row for row in rows if row.found]
    sources = _sources(found, by_metric)
    scale = Scale.of(rows)
    numbers = _numbers(recipe)
    compared = _compared(result.scores, study.stages, by_metric)
    histories = _histories(result.searches)
    notation = write_notation(recipe.trimmed())
    # A study is named by its folder or by its own file; what it has found lies in its folder.
    by_file = study.path is not None and PurePath(named).name == study.path.name
    folder = PurePath(named).parent if by_file else PurePath(named)
    return Page(
        title=study.name,
        version=__version__,
        date=date,
        found=found,
        ceilings=by_metric,
        # The page may be given away: it does not tell where on somebody's disk the study lies.
        ceiling_problems=tuple(_retold(problem, study.folder, folder) for problem in problems),
        layout=layout,
        remarks=(*remarks(found, by_metric, _on_trials("fit", named, storage)), *_licences(sources)),
        reached=_reached(result.scores, study.stages, by_metric),
        notation=notation if len(notation) <= _MOST_NOTATION else "",
        numbers=tuple(numbers[:_MOST_STEPS]),
        numbers_left_out=max(len(numbers) - _MOST_STEPS, 0),
        compared=tuple(compared[:_MOST_STEPS]),
        compared_left_out=max(len(compared) - _MOST_STEPS, 0),
        scale=scale,
        maps=tuple((_title(row), block_map(row, scale, layout)) for row in searched[:_MOST_STEPS]),
        maps_left_out=max(len(searched) - _MOST_STEPS, 0),
        lines=tuple(_line(row, scale) for row in rows[:_MOST_ROWS]),
        lines_left_out=max(len(rows) - _MOST_ROWS, 0),
        histories=tuple((search, best_so_far(search)) for search in histories[:_MOST_SEARCHES]),
        histories_left_out=max(len(histories) - _MOST_SEARCHES, 0),
        curves=_curves(result.searches),
        sources=sources,
        target=study.target_file,
        target_sha256=_text(None if target is None else target.sha256),
        commands=_commands(named, folder, storage, recipe),
        fitted_version=_text(recipe.noted.version),
    )


def _text(noted: str | None) -> str | None:
    """Return a text that a recipe notes, as a page may show it."""
    return None if noted is None else printable(noted)[:_LONGEST_NOTE]


def _reached(
    scores: Sequence[StepScores], stages: Sequence[Stage], ceilings: Mapping[str, Ceiling]
) -> tuple[Reached, ...]:
    found = []
    for stage in stages:
        own = [one for one in scores if one.stage == stage.name]
        for last in own:
            if last.step != stage.steps[-1]:
                continue
            first = next((one for one in own if (one.step, one.metric) == (stage.steps[0], last.metric)), last)
            ceiling = ceilings.get(last.metric)
            values = {} if ceiling is None else {block: one.ceiling for block, one in ceiling.blocks.items()}
            known = bool(values) and set(last.after) <= set(values)
            found.append(
                Reached(
                    stage.name,
                    last.step,
                    last.metric,
                    last.metric == stage.metric,
                    total_similarity(first.before) if first.before else None,
                    total_similarity(last.after),
                    total_similarity({block: values[block] for block in last.after}) if known else None,
                )
            )
    return tuple(found)


def _numbers(recipe: Recipe) -> list[Numbers]:
    blocks = recipe.layout.blocks
    found = []
    for step in recipe.ancestors():
        formula, _ = formula_of(step, blocks)
        for name, alpha in step.alphas.items():
            _, _, numbers = preset_line("", {block: alpha.at(block) for block in blocks}, blocks).partition("\t")
            found.append(Numbers(step.name, name, f"{formula} = {step.name}", numbers))
    return found


def _compared(scores: Sequence[StepScores], stages: Sequence[Stage], ceilings: Mapping[str, Ceiling]) -> list[Compared]:
    found = []
    for stage in stages:
        for step in stage.steps:
            own = tuple(one for one in scores if (one.stage, one.step) == (stage.name, step))
            main = next((one for one in own if one.metric == stage.metric), None)
            if main is None:
                continue
            bounds = {
                block: ceilings[name].blocks[block].ceiling
                for name, blocks in stage.measured
                if name in ceilings
                for block in blocks
                if block in ceilings[name].blocks
            }
            before = total_similarity(main.before)
            start = "" if math.isnan(before) else f"from {100 * before:.4f}% "
            told = f"{main.metric} similarity of {step}: {start}to {100 * total_similarity(main.after):.4f}%"
            chart = dumbbells(f"{told}, block by block", stage.measured, main.before, main.after, bounds)
            found.append(Compared(stage.name, step, main.metric, chart, own, tuple(main.after)))
    return found


def _title(row: AlphaRow) -> str:
    return row.step if row.alpha == "alpha" else f"{row.step}, {row.alpha}"


def _line(row: AlphaRow, scale: Scale) -> Line:
    cells = tuple(
        (scale.style(number, searched), short_number(number))
        for number, searched in zip(row.values, row.searched, strict=True)
    )
    return Line(_title(row), cells)


def _histories(searches: Sequence[SearchResult]) -> list[SearchResult]:
    """Of many passes the first ones and the last."""
    last = max((search.number for search in searches), default=1)
    shown = {*range(1, _MOST_PASSED), last}
    return [search for search in searches if search.trials and search.number in shown]


def _curves(searches: Sequence[SearchResult]) -> tuple[Curves, ...]:
    # Of several passes over a step only the last: the earlier ones scored it under other alphas of the rest.
    latest = {search.searched: search for search in searches if search.completed}
    left = _MOST_PANELS
    found = []
    for search in latest.values():
        drawn, trials, best = search.open[:left], shown_trials(search), search.best
        assert best is not None  # there are completed trials
        steps = {
            step: tuple(
                (one.name.removeprefix(step).removeprefix("."), against_alpha(search, one, trials, best.number))
                for one in drawn
                if one.step == step
            )
            for step in dict.fromkeys(one.step for one in drawn)
        }
        found.append(Curves(search, steps, len(search.open) - len(drawn)))
        left -= len(drawn)
    return tuple(found)


def _sources(found: Found, ceilings: Mapping[str, Ceiling]) -> tuple[Source, ...]:
    study, recipe = found.result.study, found.result.recipe
    shares = next((ceilings[name] for name in EXACT_METRICS if name in ceilings), None)
    # As ceilings are: a block is scored on the last step of its stage, of the last such stage if there are several.
    step_of = {block: stage.steps[-1] for stage in study.stages for block in stage.blocks}
    by_step = {step: block_coefficients(recipe, step) for step in dict.fromkeys(step_of.values())}
    used = set(recipe.sources())
    sources = []
    for name, model in recipe.models.items():
        if name not in used and name != study.base and not any(name in found for found in by_step.values()):
            continue
        by_block = {
            block: by_step[step_of[block]].get(name, {}).get(block, 0.0)
            for block in recipe.layout.blocks
            if block in step_of
        }
        mean = math.fsum(by_block.values()) / len(by_block)
        share = None if shares is None else shares.sources.get(name)
        sources.append(Source(name, model, name in used, mean, share, by_block))
    return tuple(sources)


def _licences(sources: Sequence[Source]) -> Iterator[Remark]:
    if names := [source.name for source in sources if source.alarming]:
        shown = ", ".join(names[:_MOST_NAMED]) + (
            f" and {len(names) - _MOST_NAMED} more" if names[_MOST_NAMED:] else ""
        )
        yield Remark(
            "Licences are unknown",
            f"Those of {shown}. Look before you share or sell anything made with this recipe; what the recipe states "
            "of the others stands below, in Files and licences.",
            True,
        )


def _retold(text: str, folder: PurePath, told: PurePath) -> str:
    """`text` with `told` in place of each path that is `folder` or lies in it."""
    if not folder.name:  # the study's folder is the current one, as ".", or a whole disk
        return text
    start = rf"(?<![\w./\\-]){re.escape(str(folder))}"
    return re.sub(start + r"(?=[/\\:;,\s]|$)", lambda _: str(told), text)


def _on_trials(command: str, named: str, storage: str | None) -> str:
    """The whole command, for one that needs to know where the trials are."""
    return f"blockfit {command} {quoted(named)}" + ("" if storage is None else f" --storage {quoted(storage)}")


def _commands(named: str, folder: PurePath, storage: str | None, recipe: Recipe) -> tuple[tuple[str, str], ...]:
    best = quoted(StudyFolder(Path(folder)).best.as_posix())
    commands = [
        ("fit, or go on where it stopped", _on_trials("fit", named, storage)),
        ("merge the recipe into a checkpoint", f"blockfit merge {best} -o {_file_name(recipe.name)}.safetensors"),
        ("the recipe for SuperMerger, presets included", f"blockfit export {best} --to supermerger -o recipe.txt"),
        ("what these sources can reach", f"blockfit ceiling {quoted(named)}"),
        ("this page", _on_trials("report", named, storage)),
    ]
    return tuple(commands)


def _file_name(name: str) -> str:
    return "".join(letter if letter.isalnum() or letter in "._-" else "-" for letter in name)[:60] or "clone"
