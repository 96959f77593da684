"""The report page as text: the template filled in, with style and script inside, and written to disk."""

import base64
import hashlib
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from optimizer.analysis import Ceiling
from optimizer.errors import InputError
from optimizer.files import replace_text
from optimizer.reports.page.contents import Page, contents
from optimizer.reports.tables import percent
from optimizer.search import Found
from optimizer.similarity import total_similarity

__all__ = ["check_report_name", "report_figures", "report_page", "write_report"]

_SUFFIXES = (".html", ".htm")
_MISSING = "\N{EN DASH}"


def write_report(
    found: Found,
    ceilings: Sequence[Ceiling],
    problems: Sequence[str],
    path: Path | str,
    *,
    named: str,
    storage: str | None = None,
    date: str,
) -> Page:
    """Write the page of what a study has found to `path`, or leave what is there; gives what stands on it.

        write_report(
            found_result(study), *found_ceilings("my-study"), "report.html", named="my-study", date="2026-11-23"
        )

    `problems` tell why there are no `ceilings`; `named` is what the user calls the study, `storage` where its trials
    are, as it may be shown, if that is not its folder; `date` today's. Raises InputError if it cannot be written, or
    `path` does not end in .html or .htm.
    """
    check_report_name(path)
    page = contents(found, ceilings, problems, named=named, storage=storage, date=date)
    replace_text(Path(path), report_page(page))
    return page


def check_report_name(path: Path | str) -> None:
    """Raise InputError if a file of this name is no page: a slip would replace a study, its trials or a checkpoint."""
    if Path(path).suffix.lower() not in _SUFFIXES:
        raise InputError(f"{path}: a report is written as HTML; the file's name must end in {' or '.join(_SUFFIXES)}")


def report_page(page: Page) -> str:
    """The page as HTML. It loads nothing, and its policy forbids that; names from files can be nothing but text."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("optimizer.reports.page"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "percent": _percent,
        "total": total_similarity,
        "change": _change,
        "measured": _measured,
        "parted": _parted,
    }
    style = Markup(environment.get_template("report.css").render(negative=page.scale.negative))  # noqa: S704
    script = Markup(environment.get_template("report.js").render())  # noqa: S704
    # Only this style and this script: should a name ever get past the escaping, it does nothing.
    policy = (
        f"default-src 'none'; style-src '{_hash_of(style)}'; script-src '{_hash_of(script)}'; base-uri 'none'; "
        "form-action 'none'"
    )
    trials = sum(len(search.completed) for search in page.found.result.searches)
    return environment.get_template("report.html").render(
        page=page, css=style, script=script, policy=policy, trials=trials
    )


def report_figures(page: Page) -> dict[str, Any]:
    """The page's main figures, as JSON takes them."""
    return {
        "study": page.title,
        "complete": not page.found.result.interrupted,
        "stages": [
            {
                "stage": one.stage,
                "step": one.step,
                "metric": one.metric,
                "before": one.before,
                "after": one.after,
                "ceiling": one.ceiling,
            }
            for one in page.reached
        ],
        "ceilings": {metric: one.total for metric, one in page.ceilings.items()},
        "searches": {
            search.name: {
                "trials": len(search.completed),
                "best": None if search.best is None else search.best.values[0],
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


def _percent(similarity: float | None) -> str:
    return _MISSING if similarity is None or not math.isfinite(similarity) else percent(similarity)


def _change(pair: tuple[float, float]) -> str:
    before, after = pair
    return f"{100 * (after - before):+.4f}" if math.isfinite(before) and math.isfinite(after) else _MISSING


def _parted(block: str) -> Markup:
    """A block's name that may break before its number."""
    kind = block.rstrip("0123456789")
    return Markup("{}<wbr>{}").format(kind, block[len(kind) :])


def _measured(pair: tuple[float, float | None]) -> str:
    value, error = pair
    return f"{value:.4f}" if error is None else f"{value:.4f} \N{PLUS-MINUS SIGN} {error:.4f}"
