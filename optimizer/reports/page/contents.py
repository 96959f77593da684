"""The contents of the report page: figures, texts and charts, prepared from a study's results."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import PurePath

from optimizer.analysis import Ceiling, SourceShare, Verdict
from optimizer.families import Layout
from optimizer.interchange import write_notation
from optimizer.printable import printable, quoted
from optimizer.recipes import Model, Recipe, block_coefficients
from optimizer.reports.alphas import AlphaRow, alpha_rows, metric_of
from optimizer.reports.drawn_pairs import DrawnPairs
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
from optimizer.reports.page.figure_tables import Column, FigureTable, figure_table
from optimizer.reports.page.first_screen import (
    Command,
    Numbers,
    SourceLine,
    commands,
    for_supermerger,
    numbers_of,
    source_lines,
    step_title,
)
from optimizer.reports.page.local_paths import address_without_folders, file_name, without_folders
from optimizer.reports.page.remarks import Remark, remarks
from optimizer.reports.page.rounding import few_digits, share_in_short
from optimizer.reports.scales import Scale, short_number
from optimizer.search import Found, SearchResult
from optimizer.similarity import EXACT_METRICS, total_similarity
from optimizer.studies import Stage, StepScores, scoring_steps
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
class Map:
    """An alpha on the blocks: what its step adds, and the drawing, or `single` if all numbers are equal."""

    title: str
    step: str
    drawing: Drawing | None
    single: str


@dataclass(frozen=True)
class Compared:
    """A step's similarities; `chart` shows those by the stage's metric, `blocks` those by every metric."""

    stage: str
    title: str
    step: str
    metric: str
    chart: Drawing
    blocks: FigureTable


@dataclass(frozen=True)
class Line:
    """A row of the table of all alphas: (CSS class, number, number with all digits) for each block."""

    title: str
    cells: tuple[tuple[str, str, str], ...]


@dataclass(frozen=True)
class Curves:
    """The panels of similarity against alpha of a search: ((title of the step, ((free alpha, chart), ...)), ...).

    `left_out` counts the free alphas without a panel.
    """

    search: SearchResult
    steps: tuple[tuple[str, tuple[tuple[str, Drawing], ...]], ...]
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
    def file(self) -> str:
        """The file as the recipe names it, without folders of this machine."""
        return file_name(self.model.file)

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
    in_short: tuple[SourceLine, ...]
    pairs: DrawnPairs | None
    pairs_are_old: bool
    notation: str
    notation_shown: str
    supermerger: str
    numbers: tuple[Numbers, ...]
    numbers_left_out: int
    compared: tuple[Compared, ...]
    compared_left_out: int
    totals: FigureTable
    reachable: tuple[tuple[str, FigureTable], ...]
    coefficients: FigureTable
    scale: Scale
    maps: tuple[Map, ...]
    maps_left_out: int
    lines: tuple[Line, ...]
    lines_left_out: int
    histories: tuple[tuple[SearchResult, Drawing], ...]
    histories_left_out: int
    curves: tuple[Curves, ...]
    sources: tuple[Source, ...]
    target: str
    target_sha256: str | None
    commands: tuple[Command, ...]
    named: str
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
        charts += [chart for curves in self.curves for _, panels in curves.steps for _, chart in panels]
        return frozenset(str(shape.attributes["class"]) for chart in charts for shape in chart.shapes)

    @property
    def thinned(self) -> int:
        """Number of trials above which charts leave some out; 0 if no search has more."""
        return MOST_POINTS if any(len(search.trials) > MOST_POINTS for search, _ in self.histories) else 0

    @property
    def all_searched(self) -> bool:
        """Whether every alpha in the table was searched."""
        return not any(style == "unsearched" for line in self.lines for style, _, _ in line.cells)

    @property
    def main_ceiling(self) -> Ceiling | None:
        """The ceiling by the most informative metric."""
        return next((self.ceilings[name] for name in EXACT_METRICS if name in self.ceilings), None)

    @property
    def grave(self) -> tuple[Remark, ...]:
        """The remarks that must not be overlooked."""
        return tuple(remark for remark in self.remarks if remark.grave)


def contents(
    found: Found,
    ceilings: Sequence[Ceiling],
    problems: Sequence[str],
    *,
    named: str,
    storage: str | None,
    date: str,
    pairs: DrawnPairs | None = None,
) -> Page:
    """Return the contents of a study's report page.

    Args:
        found: The study's results.
        ceilings: The ceilings by metric; empty if they could not be computed.
        problems: The reasons why there are no ceilings.
        named: The study's folder or file as the user typed it, for the commands on the page.
        storage: Address of the trials, without secrets, for the commands; None for the study's folder.
        date: Today's date.
        pairs: Pictures of target and clone.

    Returns:
        The contents.
    """
    result = found.result
    study, recipe, layout = result.study, result.recipe, result.recipe.layout
    by_metric = {ceiling.metric: ceiling for ceiling in ceilings}
    main = next((by_metric[name] for name in EXACT_METRICS if name in by_metric), None)
    target = recipe.noted.target
    rows = alpha_rows(result)
    searched = [row for row in rows if row.found]
    varied = [row for row in rows if len({few_digits(number) for number in row.values}) > 1]
    sources = _sources(found, by_metric)
    means = {source.name: source.coefficient for source in sources if source.coefficient is not None}
    scale = Scale.of(rows)
    numbers = numbers_of(recipe)
    compared = _compared(recipe, result.scores, study.stages, by_metric)
    histories = _histories(result.searches)
    shared = replace(
        recipe, models={name: replace(model, file=file_name(model.file)) for name, model in recipe.models.items()}
    )
    copied = for_supermerger(shared)
    fits = len(copied) <= _MOST_NOTATION
    landscape = Landscape.of(result)
    spans = landscape.history_spans(histories)
    # `named` is the study's folder or its file; the results are in the folder.
    by_file = study.path is not None and PurePath(named).name == study.path.name
    folder = PurePath(named).parent if by_file else PurePath(named)
    storage = None if storage is None else address_without_folders(storage)
    further = tuple(commands(named, folder, storage, recipe))
    drawn_with = [recipe, *([] if result.simple is None else [result.simple.recipe])]
    return Page(
        title=study.name,
        version=__version__,
        date=date,
        found=found,
        ceilings=by_metric,
        ceiling_problems=tuple(without_folders(problem, study.folder, folder) for problem in problems),
        layout=layout,
        remarks=(*remarks(found, by_metric, further[0].line), *_licences(sources)),
        reached=_reached(result.scores, study.stages, by_metric),
        in_short=source_lines(means, None if main is None else main.verdict, study.base or recipe.first_model()),
        pairs=pairs,
        pairs_are_old=pairs is not None and not pairs.are_of(*drawn_with),
        notation=write_notation(shared.trimmed()) if fits else "",
        notation_shown=write_notation(_in_few_digits(shared.trimmed())) if fits else "",
        supermerger=copied if fits and layout.tools.knows("supermerger") else "",
        numbers=tuple(numbers[:_MOST_STEPS]),
        numbers_left_out=max(len(numbers) - _MOST_STEPS, 0),
        compared=tuple(compared[:_MOST_STEPS]),
        compared_left_out=max(len(compared) - _MOST_STEPS, 0),
        totals=_totals(recipe, result.scores),
        reachable=tuple(_reachable(by_metric[name]) for name in EXACT_METRICS if name in by_metric),
        coefficients=_coefficients(sources, layout),
        scale=scale,
        maps=tuple(_map(recipe, row, scale) for row in searched[:_MOST_STEPS]),
        maps_left_out=max(len(searched) - _MOST_STEPS, 0),
        lines=tuple(_line(recipe, row, scale) for row in varied[:_MOST_ROWS]),
        lines_left_out=max(len(varied) - _MOST_ROWS, 0),
        histories=tuple(
            (search, best_so_far(search, spans[search.stage.metric], landscape.total_ceiling(search.stage)))
            for search in histories[:_MOST_SEARCHES]
        ),
        histories_left_out=max(len(histories) - _MOST_SEARCHES, 0),
        curves=_curves(recipe, result.searches, landscape),
        sources=sources,
        target=file_name(study.target_file),
        target_sha256=_text(None if target is None else target.sha256),
        commands=further,
        named=quoted(named),
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


def _in_few_digits(recipe: Recipe) -> Recipe:
    """Return a recipe with its numbers in few digits."""
    blocks = recipe.layout.blocks
    return recipe.with_alphas(
        {
            (step.name, name): {block: float(few_digits(alpha.at(block))) for block in blocks}
            for step in recipe.steps
            for name, alpha in step.alphas.items()
            if not alpha.free
        }
    )


def _compared(
    recipe: Recipe, scores: Sequence[StepScores], stages: Sequence[Stage], ceilings: Mapping[str, Ceiling]
) -> list[Compared]:
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
            start = "" if math.isnan(before) else f"from {share_in_short(before)} "
            title = f"{main.metric} similarity of {step}: {start}to {share_in_short(total_similarity(main.after))}"
            chart = dumbbells(f"{title}, block by block", stage.measured, main.before, main.after, bounds)
            table = figure_table(
                f"{step} in {stage.name}, block by block",
                "block",
                tuple(main.after),
                [
                    Column(f"{entry.metric}{when}", values)
                    for entry in of_step
                    for when, values in ((" before", entry.before), ("", entry.after))
                ],
            )
            title = step_title(recipe, recipe.step(step))
            found.append(Compared(stage.name, title, step, main.metric, chart, table))
    return found


def _totals(recipe: Recipe, scores: Sequence[StepScores]) -> FigureTable:
    """Return the totals of every step by every metric, before and after."""
    steps = dict.fromkeys((entry.stage, entry.step) for entry in scores)
    stages = {stage for stage, _ in steps}

    def row(stage: str, step: str) -> str:
        name = f"{step_title(recipe, recipe.step(step))} ({step})"
        return name if len(stages) == 1 else f"{name} in {stage}"

    columns = []
    for metric in dict.fromkeys(entry.metric for entry in scores):
        of_metric = {row(entry.stage, entry.step): entry for entry in scores if entry.metric == metric}
        columns += [
            Column(f"{metric} before", {name: total_similarity(entry.before) for name, entry in of_metric.items()}),
            Column(f"{metric} after", {name: total_similarity(entry.after) for name, entry in of_metric.items()}),
        ]
    return figure_table("Totals by every metric", "step", [row(*step) for step in steps], columns)


def _reachable(ceiling: Ceiling) -> tuple[str, FigureTable]:
    """Return what the sources reach by a metric: a sentence, and a table by block with the total."""
    whole = ceiling.total
    named = {
        "recipe": "recipe",
        "best": "best alphas",
        "ceiling_bounded": "within 0 to 1",
        "ceiling": "best merge",
    }
    columns = [
        Column(title, {**{block: getattr(at, name) for block, at in ceiling.blocks.items()}, "total": whole[name]})
        for name, title in named.items()
    ]
    if ceiling.metric == "delta":
        scales = {
            block: entry.best_scale if entry.recipe_scale is None else entry.recipe_scale
            for block, entry in ceiling.blocks.items()
        }
        columns.append(Column("scale", scales, is_share=False))
    shares = f"this recipe {share_in_short(whole['recipe'])}, the best merge {share_in_short(whole['ceiling'])}"
    rows = [*ceiling.blocks, "total"]
    return f"By {ceiling.metric}: {shares}", figure_table(f"Ceiling by {ceiling.metric}", "block", rows, columns)


def _coefficients(sources: Sequence[Source], layout: Layout) -> FigureTable:
    """Return the coefficients of the sources by block, in the recipe and in the target."""
    blocks = [block for block in layout.blocks if sources and block in sources[0].by_block]
    columns = []
    for source in sources:
        columns.append(Column(f"{source.name} in the recipe", source.by_block, is_share=False))
        if source.share is not None:
            found = {block: entry.coefficient for block, entry in source.share.blocks.items()}
            columns.append(Column(f"{source.name} in the target", found, is_share=False))
    return figure_table("Coefficients by block", "block", blocks, columns)


def _title(recipe: Recipe, row: AlphaRow) -> str:
    title = step_title(recipe, recipe.step(row.step))
    return title if row.alpha == "alpha" else f"{title}, {row.alpha}"


def _map(recipe: Recipe, row: AlphaRow, scale: Scale) -> Map:
    shown = {few_digits(number) for number in row.found}
    alike = len(shown) == 1
    name = row.step if row.alpha == "alpha" else f"{row.step}, {row.alpha}"
    drawing = None if alike else block_map(row, scale, recipe.layout)
    where = "in every block" if all(row.searched) else "in every block that was searched"
    return Map(_title(recipe, row), name, drawing, f"{shown.pop()} {where}" if alike else "")


def _line(recipe: Recipe, row: AlphaRow, scale: Scale) -> Line:
    cells = tuple(
        (scale.style(number, searched), short_number(number), f"{number:.12g}")
        for number, searched in zip(row.values, row.searched, strict=True)
    )
    return Line(f"{_title(recipe, row)} ({row.step})", cells)


def _histories(searches: Sequence[SearchResult]) -> list[SearchResult]:
    """Return the searches with trials; of many passes only the first ones and the last."""
    last = max((search.number for search in searches), default=1)
    shown = {*range(1, _MOST_PASSES), last}
    return [search for search in searches if search.trials and search.number in shown]


def _curves(recipe: Recipe, searches: Sequence[SearchResult], landscape: Landscape) -> tuple[Curves, ...]:
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
        shown = tuple(
            (f"{step_title(recipe, recipe.step(step))} ({step})", tuple(panels)) for step, panels in steps.items()
        )
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
