"""The contents of the report page: figures, texts and charts, prepared from a study's results."""

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PurePath

from optimizer.analysis import BlockCeiling, Ceiling, SourceShare, Verdict
from optimizer.families import Layout
from optimizer.interchange import formula_of, write_notation
from optimizer.printable import printable, quoted
from optimizer.recipes import Model, Recipe, block_coefficients, preset_line
from optimizer.reports.alphas import AlphaRow, alpha_rows, metric_of
from optimizer.reports.landscape import Landscape
from optimizer.reports.page.drawings import (
    MOST_POINTS,
    Drawing,
    against_alpha,
    best_so_far,
    block_map,
    dumbbells,
    shown_trials,
    way_to_target,
)
from optimizer.reports.page.remarks import Remark, remarks
from optimizer.reports.scales import Scale, short_number
from optimizer.search import Found, SearchResult
from optimizer.similarity import EXACT_METRICS, total_similarity
from optimizer.studies import Stage, StepScores, StudyFolder, scoring_steps
from optimizer.version import __version__

__all__ = ["Page", "contents"]

# Texts in a `license` field that state no licence.
_NOT_STATED = frozenset({"unknown", "none", "n/a", "na", "unlicensed", "no license", "no licence"})
# Limits of a page, for recipes and studies of any size; the page counts the items left out.
_MOST_STEPS = 40  # steps with numbers, maps and similarities
_MOST_ROWS = 200  # rows of the table of all alphas
_MOST_SEARCHES = 60  # searches with a history
_MOST_PANELS = 312  # panels of similarity against alpha: twelve steps of the family with the fewest blocks
_MOST_NOTATION = 300_000  # characters
_MOST_NAMED = 12  # sources that a sentence lists
_LONGEST_NOTE = 200  # characters of a text noted in the recipe
_LONGEST_VERDICT = 2000
_MOST_PASSES = 5  # passes of a stage with a history


@dataclass(frozen=True)
class Reached:
    """The result of a stage by one metric: similarities in [-1, 1] of its start, its last step and any merge's ceiling.

    `is_fitted_metric` is true for the metric of the fit. `before` is the similarity of its first step's input A.
    """

    stage: str
    step: str
    metric: str
    is_fitted_metric: bool
    before: float | None
    after: float
    ceiling: float | None

    @property
    def share(self) -> float | None:
        """Share (0 to 1) of the way from `before` to `ceiling`; None if unknown or if there is nothing to gain."""
        if self.before is None or self.ceiling is None or self.ceiling - self.before < 1e-9:
            return None
        return (self.after - self.before) / (self.ceiling - self.before)


@dataclass(frozen=True)
class Numbers:
    """An alpha of a step in SuperMerger's form: the step's formula, and the numbers separated by commas."""

    step: str
    alpha: str
    formula: str
    numbers: str


@dataclass(frozen=True)
class Compared:
    """A step's similarities by block and metric; `chart` shows those by the stage's metric."""

    stage: str
    step: str
    metric: str
    chart: Drawing
    metrics: tuple[StepScores, ...]
    blocks: tuple[str, ...]


@dataclass(frozen=True)
class Line:
    """A row of the table of all alphas: (CSS class, number) for each block."""

    title: str
    cells: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Curves:
    """The panels of similarity against alpha of a search: {step: ((free alpha, chart), ...)}.

    `left_out` counts the free alphas without a panel.
    """

    search: SearchResult
    steps: Mapping[str, tuple[tuple[str, Drawing], ...]]
    left_out: int


@dataclass(frozen=True)
class Source:
    """A source: its file and licence, and its coefficients in the fitted recipe and in the target."""

    name: str
    model: Model
    used: bool
    coefficient: float | None
    share: SourceShare | None
    by_block: Mapping[str, float]

    @property
    def standing(self) -> str:
        """State of the licence: "unknown" if the recipe states none, else "check it"."""
        stated = self.model.license.strip().lower()
        return "unknown" if stated in _NOT_STATED or not any(map(str.isalnum, stated)) else "check it"

    @property
    def alarming(self) -> bool:
        """Whether the source is used in the result and its licence is unknown."""
        return self.used and self.standing == "unknown"


@dataclass(frozen=True)
class Page:
    """The data of the template. Fields named `..._left_out` count the items beyond the page's limits."""

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
        """The fitted recipe."""
        return self.found.result.recipe

    @property
    def stages(self) -> tuple[Stage, ...]:
        """The study's stages."""
        return self.found.result.study.stages

    @property
    def headline(self) -> str:
        """The target's name: its file without folder and extension."""
        return printable(PurePath(self.target.replace("\\", "/")).stem) or self.title

    @property
    def judged(self) -> Verdict | None:
        """The verdict with its figures; None without the sources' statistics."""
        return None if self.main_ceiling is None else self.main_ceiling.verdict

    @property
    def verdict(self) -> str | None:
        """The verdict in words; that of the last fit if the sources' statistics are missing."""
        if self.judged is None:
            return _text(self.recipe.noted.verdict, _LONGEST_VERDICT)
        return self.judged.text

    @property
    def way(self) -> Drawing | None:
        """A bar from the nearest source to the target; None without the sources' statistics."""
        verdict = self.judged
        if verdict is None or not math.isfinite(verdict.reachable):
            return None
        nearest = verdict.names[verdict.nearest], verdict.nearest_explained
        return way_to_target(nearest, verdict.recipe, verdict.reachable)

    @property
    def alarms(self) -> tuple[Source, ...]:
        """The used sources whose licence is unknown."""
        return tuple(source for source in self.sources if source.alarming)

    @cached_property
    def marks(self) -> frozenset[str]:
        """CSS classes of the shapes in the charts; legends list only these."""
        charts = [compared.chart for compared in self.compared]
        charts += [chart for _, chart in self.histories]
        charts += [chart for curves in self.curves for panels in curves.steps.values() for _, chart in panels]
        return frozenset(str(shape.attributes["class"]) for chart in charts for shape in chart.shapes)

    @property
    def thinned(self) -> int:
        """Number of trials above which charts leave some out; 0 if no search has more."""
        return MOST_POINTS if any(len(search.trials) > MOST_POINTS for search, _ in self.histories) else 0

    @property
    def all_searched(self) -> bool:
        """Whether every alpha in the table was searched."""
        return not any(style == "unsearched" for line in self.lines for style, _ in line.cells)

    @property
    def main_ceiling(self) -> Ceiling | None:
        """The ceiling by the most informative metric."""
        return next((self.ceilings[name] for name in EXACT_METRICS if name in self.ceilings), None)

    @property
    def ceiling_rows(self) -> Mapping[str, Mapping[str, BlockCeiling]]:
        """Ceilings by metric and block, the most informative metric first."""
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
    """Return the contents of a study's report page.

    Args:
        found: The study's results.
        ceilings: The ceilings by metric; empty if they could not be computed.
        problems: The reasons why there are no ceilings.
        named: The study's folder or file as the user typed it, for the commands on the page.
        storage: Address of the trials, without secrets, for the commands; None for the study's folder.
        date: Today's date.

    Returns:
        The contents.
    """
    result = found.result
    study, recipe, layout = result.study, result.recipe, result.recipe.layout
    by_metric = {ceiling.metric: ceiling for ceiling in ceilings}
    target = recipe.noted.target
    rows = alpha_rows(result)
    searched = [row for row in rows if row.found]
    sources = _sources(found, by_metric)
    scale = Scale.of(rows)
    numbers = _numbers(recipe)
    compared = _compared(result.scores, study.stages, by_metric)
    histories = _histories(result.searches)
    landscape = Landscape.of(result)
    spans = landscape.history_spans(histories)
    notation = write_notation(recipe.trimmed())
    # `named` is the study's folder or its file; the results are in the folder.
    by_file = study.path is not None and PurePath(named).name == study.path.name
    folder = PurePath(named).parent if by_file else PurePath(named)
    return Page(
        title=study.name,
        version=__version__,
        date=date,
        found=found,
        ceilings=by_metric,
        # The page may be shared, so it must not contain the study's absolute path.
        ceiling_problems=tuple(_with_path_replaced(problem, study.folder, folder) for problem in problems),
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
        histories=tuple(
            (search, best_so_far(search, spans[search.stage.metric], landscape.total_ceiling(search.stage)))
            for search in histories[:_MOST_SEARCHES]
        ),
        histories_left_out=max(len(histories) - _MOST_SEARCHES, 0),
        curves=_curves(result.searches, landscape),
        sources=sources,
        target=study.target_file,
        target_sha256=_text(None if target is None else target.sha256),
        commands=_commands(named, folder, storage, recipe),
        fitted_version=_text(recipe.noted.version),
    )


def _text(noted: str | None, longest: int = _LONGEST_NOTE) -> str | None:
    """Return a text noted in a recipe in printable characters, shortened; None stays None."""
    return None if noted is None else printable(noted)[:longest]


def _reached(
    scores: Sequence[StepScores], stages: Sequence[Stage], ceilings: Mapping[str, Ceiling]
) -> tuple[Reached, ...]:
    """Return the results of the stages by metric."""
    found = []
    for stage in stages:
        of_stage = [entry for entry in scores if entry.stage == stage.name]
        for last in of_stage:
            if last.step != stage.steps[-1]:
                continue
            start = (stage.steps[0], last.metric)
            first = next((entry for entry in of_stage if (entry.step, entry.metric) == start), last)
            ceiling = ceilings.get(last.metric)
            values = {} if ceiling is None else {block: entry.ceiling for block, entry in ceiling.blocks.items()}
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
            of_step = tuple(entry for entry in scores if (entry.stage, entry.step) == (stage.name, step))
            main = next((entry for entry in of_step if entry.metric == stage.metric), None)
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
            title = f"{main.metric} similarity of {step}: {start}to {100 * total_similarity(main.after):.4f}%"
            chart = dumbbells(f"{title}, block by block", stage.measured, main.before, main.after, bounds)
            found.append(Compared(stage.name, step, main.metric, chart, of_step, tuple(main.after)))
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
    """Return the searches with trials; of many passes only the first ones and the last."""
    last = max((search.number for search in searches), default=1)
    shown = {*range(1, _MOST_PASSES), last}
    return [search for search in searches if search.trials and search.number in shown]


def _curves(searches: Sequence[SearchResult], landscape: Landscape) -> tuple[Curves, ...]:
    """Return the panels of similarity against alpha, at most `_MOST_PANELS` in total."""
    # Only the last of several passes over a step: earlier ones scored it with different alphas of the other steps.
    latest = {search.searched: search for search in searches if search.completed}
    left = _MOST_PANELS
    found = []
    for search in latest.values():
        drawn, trials, best = search.open[:left], shown_trials(search), search.best
        assert best is not None  # `latest` contains only searches with completed trials
        steps: dict[str, list[tuple[str, Drawing]]] = {}
        by_metric = {free.name: metric_of(search.stage, free) for free in drawn}
        spans = {
            metric: landscape.span_along(search, metric, [free for free in drawn if by_metric[free.name] == metric])
            for metric in set(by_metric.values())
        }
        for free in drawn:
            metric = by_metric[free.name]
            ceiling = landscape.ceiling_of(metric, [block for block in free.blocks if block in search.stage.blocks])
            curve = landscape.curves.get(search.name, {}).get(free.name)
            chart = against_alpha(search, free, trials, best.number, spans[metric], curve, ceiling)
            steps.setdefault(free.step, []).append((free.name.removeprefix(free.step).removeprefix("."), chart))
        shown = {step: tuple(panels) for step, panels in steps.items()}
        found.append(Curves(search, shown, len(search.open) - len(drawn)))
        left -= len(drawn)
    return tuple(found)


def _sources(found: Found, ceilings: Mapping[str, Ceiling]) -> tuple[Source, ...]:
    """Return the sources of the recipe and of the study's scored steps."""
    study, recipe = found.result.study, found.result.recipe
    shares = next((ceilings[name] for name in EXACT_METRICS if name in ceilings), None)
    step_of = scoring_steps(study.stages)
    by_step = {step: block_coefficients(recipe, step) for step in dict.fromkeys(step_of.values())}
    used = set(recipe.sources())
    sources = []
    for name, model in recipe.models.items():
        if (
            name not in used
            and name != study.base
            and not any(name in coefficients for coefficients in by_step.values())
        ):
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
    """Yield a remark on used sources without a stated licence."""
    if names := [source.name for source in sources if source.alarming]:
        shown = ", ".join(names[:_MOST_NAMED]) + (
            f" and {len(names) - _MOST_NAMED} more" if names[_MOST_NAMED:] else ""
        )
        yield Remark(
            "Licences are unknown",
            f"The recipe states no licence for {shown}. Look them up before you share or sell anything made with this "
            "recipe. The licences of the other sources are listed below, under Files and licences.",
            True,
        )


def _with_path_replaced(text: str, folder: PurePath, shown: PurePath) -> str:
    """Return `text` with the path `folder` replaced by `shown`, also where it starts a longer path."""
    if not folder.name:  # the study's folder is the current one, ".", or a whole disk
        return text
    start = rf"(?<![\w./\\-]){re.escape(str(folder))}"
    return re.sub(start + r"(?=[/\\:;,\s]|$)", lambda _: str(shown), text)


def _on_trials(command: str, named: str, storage: str | None) -> str:
    """Return the command line of a command on the study's trials, with --storage if needed."""
    return f"blockfit {command} {quoted(named)}" + ("" if storage is None else f" --storage {quoted(storage)}")


def _commands(named: str, folder: PurePath, storage: str | None, recipe: Recipe) -> tuple[tuple[str, str], ...]:
    best = quoted(StudyFolder(Path(folder)).best.as_posix())
    commands = [
        ("fit, or resume the fit", _on_trials("fit", named, storage)),
        ("merge the recipe into a checkpoint", f"blockfit merge {best} -o {_file_name(recipe.name)}.safetensors"),
        (
            "export the recipe for SuperMerger, presets included",
            f"blockfit export {best} --to supermerger -o recipe.txt",
        ),
        ("compute what these sources can reach", f"blockfit ceiling {quoted(named)}"),
        ("write this page", _on_trials("report", named, storage)),
    ]
    return tuple(commands)


def _file_name(name: str) -> str:
    return "".join(letter if letter.isalnum() or letter in "._-" else "-" for letter in name)[:60] or "clone"
