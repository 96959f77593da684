"""Terminal tables of the similarity that a study can reach."""

from collections.abc import Iterable, Sequence

from rich import box
from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from optimizer.analysis import Ceiling
from optimizer.families import Layout
from optimizer.printable import printable
from optimizer.recipes import described_alphas
from optimizer.reports.tables import percent

__all__ = ["ceiling_summary", "ceiling_tables"]


def ceiling_tables(found: Ceiling, layout: Layout) -> tuple[RenderableType, ...]:
    """Return the tables of one metric: similarities by block, the sources' shares, and remarks on the figures."""
    return _blocks(found), _sources(found), Text("\n".join(map(printable, _remarks(found, layout))) + "\n")


def ceiling_summary(found: Sequence[Ceiling], layout: Layout) -> tuple[RenderableType, ...]:
    """Return the totals by every metric, the sources' shares, and what must be known about the figures.

    Args:
        found: The ceilings by one or several metrics.
        layout: The layout of the study.

    Returns:
        Tables and texts.
    """
    totals = Table(box=box.ROUNDED)
    totals.add_column("similarity")
    for by_metric in found:
        totals.add_column(by_metric.metric, justify="right")
    rows = {"recipe": "best recipe", "best": "best free alphas", "ceiling": "any merge of these sources"}
    for key, title in rows.items():
        values = [by_metric.total[key] for by_metric in found]
        if key != "recipe" or any(value is not None for value in values):
            totals.add_row(title, *map(_percent, values))
    main = found[0]
    notes = [f"Range too narrow: {narrow.describe(layout)}." for narrow in main.narrow]
    if main.identified.trade_off:
        notes.append(
            f"The {main.identified.alphas} free alphas move the coefficients in {main.identified.rank} directions: "
            "several recipes are equally good."
        )
    if main.note:
        notes.append(f"Note: {main.note}.")
    return totals, _shares(main), *map(Text, map(printable, notes))


def _shares(found: Ceiling) -> Table:
    """Return a table of the sources: their coefficient over all blocks, its range, and what the ceiling loses."""
    table = Table(box=box.ROUNDED)
    for heading in ("source", "coefficient", "error", "least", "most", "loses without"):
        table.add_column(heading, justify="left" if heading == "source" else "right")
    for name, share in found.sources.items():
        blocks = [coefficient.weighed for coefficient in share.blocks.values()]
        error = "-" if share.weighed_error is None else f"{share.weighed_error:.4f}"
        ends = [f"{end:.3f}" for end in (min(blocks), max(blocks))] if blocks else ["-", "-"]
        table.add_row(Text(printable(name)), f"{share.weighed:.4f}", error, *ends, percent(share.loss))
    return table


def _blocks(found: Ceiling) -> Table:
    table = _table(f"{found.metric}: best recipe, best alphas, best merge with coefficients in 0..1, best of all")
    headings = ["block", "recipe", "best", "in 0..1", "ceiling", "left"]
    # The cosine of differences ignores their length, so the scale is shown beside it.
    if found.metric == "delta":
        headings.append("scale")
    for heading in headings:
        table.add_column(heading, justify="left" if heading == "block" else "right")
    last = len(found.blocks) - 1
    for position, (block, ceiling) in enumerate(found.blocks.items()):
        bounds = (ceiling.best, ceiling.ceiling_bounded, ceiling.ceiling, ceiling.not_in_sources)
        cells = [_percent(ceiling.recipe), *map(percent, bounds)]
        scale = ceiling.best_scale if ceiling.recipe_scale is None else ceiling.recipe_scale
        scales = [f"{scale:.4f}"] if found.metric == "delta" else []
        table.add_row(block, *cells, *scales, end_section=position == last)
    total = found.total
    left = None if total["ceiling"] is None else 1 - total["ceiling"]
    values = (total["recipe"], total["best"], total["ceiling_bounded"], total["ceiling"], left)
    table.add_row("total", *map(_percent, values))
    return table


def _sources(found: Ceiling) -> Table:
    table = _table("sources in the target, by least squares on differences")
    for heading in ("source", "coefficient", "error", "weighed", "error", "ceiling loses without"):
        table.add_column(heading, justify="left" if heading == "source" else "right")
    for name, share in found.sources.items():
        errors = ["-" if error is None else f"{error:.4f}" for error in (share.error, share.weighed_error)]
        figures = [f"{share.coefficient:.4f}", errors[0], f"{share.weighed:.4f}", errors[1]]
        table.add_row(Text(printable(name)), *figures, percent(share.loss))
    return table


def _remarks(found: Ceiling, layout: Layout) -> list[str]:
    identified = found.identified
    remarks = ["Left: similarity that no linear merge of these sources can reach."]
    if found.metric == "delta":
        remarks.append("Scale: the factor by which the merged difference would come nearest to the target's.")
    remarks.append(
        "Weighed: tensors count by how well the sources explain them; nearer to the coefficients of the merge."
    )
    remarks.append(f"The {identified.alphas} free alphas move the coefficients in {identified.rank} directions.")
    if identified.trade_off:
        remarks.append(f"These trade off against each other: {_listed(identified.trade_off, layout)}.")
    if identified.idle:
        remarks.append(f"These have no effect on any scored block: {_listed(identified.idle, layout)}.")
    if found.unchanged:
        blocks = layout.describe_blocks(found.unchanged)
        remarks.append(f"Unchanged, with nothing to explain, since the target's blocks equal the base's: {blocks}.")
    remarks += [f"Ranges too narrow: {narrow.describe(layout)}." for narrow in found.narrow]
    if found.note:
        remarks.append(f"Note: {found.note}.")
    return remarks


def _listed(names: Iterable[str], layout: Layout) -> str:
    return ", ".join(described_alphas(names, layout))


def _percent(value: float | None) -> str:
    return "-" if value is None else percent(value)


def _table(title: str) -> Table:
    return Table(title=title, title_justify="left", box=box.ROUNDED)
