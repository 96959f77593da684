"""Rendering of the report page from its templates, with style and script inline, and writing it to disk."""

import base64
import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from optimizer.analysis import Ceiling
from optimizer.errors import InputError
from optimizer.files import replace_text
from optimizer.reports.drawn_pairs import DrawnPairs
from optimizer.reports.page.contents import Page, contents
from optimizer.reports.page.rounding import number_in_short, share_in_short
from optimizer.reports.palette import DARK, LIGHT, number_colour, ramp_share
from optimizer.search import Found

__all__ = ["check_report_name", "report_figures", "report_page", "write_report"]

_SUFFIXES = (".html", ".htm")


def write_report(
    found: Found,
    ceilings: Sequence[Ceiling],
    problems: Sequence[str],
    path: Path | str,
    *,
    named: str,
    storage: str | None = None,
    date: str,
    pairs: DrawnPairs | None = None,
) -> Page:
    """Write the report page of a study to `path`.

        write_report(
            found_result(study), *found_ceilings("my-study"), "report.html", named="my-study", date="2026-11-23"
        )

    Raises InputError if the file cannot be written, or if its name does not end in .html or .htm; an existing file then
    stays intact.

    Args:
        found: The study's results.
        ceilings: The ceilings by metric; empty if they could not be computed.
        problems: The reasons why there are no ceilings.
        path: The file to write.
        named: The study's folder or file as the user typed it, for the commands on the page.
        storage: Address of the trials, without secrets, for the commands; None for the study's folder.
        date: Today's date.
        pairs: Pictures of target and clone, from `load_pairs`.

    Returns:
        The contents of the page.
    """
    check_report_name(path)
    page = contents(found, ceilings, problems, named=named, storage=storage, date=date, pairs=pairs)
    replace_text(Path(path), report_page(page))
    return page


def check_report_name(path: Path | str) -> None:
    """Raise InputError unless a name ends in .html or .htm: a typing error could overwrite a study or checkpoint."""
    if Path(path).suffix.lower() not in _SUFFIXES:
        raise InputError(f"{path}: a report is written as HTML; the file's name must end in {' or '.join(_SUFFIXES)}")


def report_page(page: Page) -> str:
    """Return the page as HTML that loads nothing, with a policy that forbids loading; names from files are escaped."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("optimizer.reports.page"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "percent": share_in_short,
        "few": number_in_short,
        "breakable": _breakable,
    }
    css = environment.get_template("report.css").render(
        negative=page.scale.negative,
        light=LIGHT,
        dark=DARK,
        ramp_share=ramp_share,
        number_colour=number_colour,
    )
    style = Markup(css)  # noqa: S704
    script = Markup(environment.get_template("report.js").render())  # noqa: S704
    # Only this style and this script may run, so a name that escapes the escaping would still be harmless.
    policy = (
        f"default-src 'none'; style-src '{_hash_of(style)}'; script-src '{_hash_of(script)}'; img-src data:; "
        "base-uri 'none'; form-action 'none'"
    )
    trials = sum(len(search.completed) for search in page.found.result.searches)
    return environment.get_template("report.html").render(
        page=page, css=style, script=script, policy=policy, trials=trials
    )


def report_figures(page: Page) -> dict[str, Any]:
    """Return the page's main figures for JSON."""
    return {
        "study": page.title,
        "verdict": None if page.verdict is None else {"text": page.verdict},
        "complete": not page.found.result.interrupted,
        "stages": [
            {
                "stage": reached.stage,
                "step": reached.step,
                "metric": reached.metric,
                "before": reached.before,
                "after": reached.after,
                "ceiling": reached.ceiling,
            }
            for reached in page.reached
        ],
        "ceilings": {metric: ceiling.total for metric, ceiling in page.ceilings.items()},
        "searches": {
            search.name: {
                "trials": len(search.completed),
                "best": None if search.best is None else search.best.similarity,
            }
            for search in page.found.result.searches
        },
        "sources": {
            source.name: {
                "coefficient": source.coefficient,
                "license": source.model.license,
                "standing": source.standing,
            }
            for source in page.sources
        },
        "remarks": [remark.heading for remark in page.remarks],
    }


def _hash_of(text: str) -> str:
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode('utf-8')).digest()).decode('ascii')}"


def _breakable(block: str) -> Markup:
    """Return a block's name with a possible line break before its number."""
    kind = block.rstrip("0123456789")
    return Markup("{}<wbr>{}").format(kind, block[len(kind) :])
