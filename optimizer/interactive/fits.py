"""A fit of a study or a folder, and its result with the next steps as methods."""

import dataclasses
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

import torch

from optimizer.choices import FormatName
from optimizer.events import ProgressOption
from optimizer.html import html_paragraphs, html_table
from optimizer.interactive.functions import as_commands, found_ceilings, load_study, merge
from optimizer.interactive.progress import shown_progress
from optimizer.interchange import export_recipe
from optimizer.library import HashCache
from optimizer.merging import MergeOptions
from optimizer.recipes import Recipe
from optimizer.reports import percent
from optimizer.reports.drawn_pairs import draw_pairs, load_pairs
from optimizer.reports.page import check_report_name, write_report
from optimizer.search import PATIENCE, FitResult, SearchEvents, found_result
from optimizer.search import fit as search
from optimizer.similarity import total_similarity
from optimizer.studies import Study

__all__ = ["Fit", "fit"]

_draw_pairs = as_commands(draw_pairs)

# Lines of a result that are shown at most, so that a cell stays short.
_MOST_LINES = 20
_MOST_STEPS = 12
_CONTINUES = "interrupted; the same call continues it"


@dataclasses.dataclass(frozen=True, repr=False)
class Fit(FitResult):
    """The result of a fit, which shows its verdict, and merges, exports and reports itself."""

    def merge(
        self,
        output: Path | str,
        *,
        simple: bool = True,
        dtype: torch.dtype = MergeOptions.dtype,
        progress: ProgressOption = None,
    ) -> Path:
        """Write the merge of the recipe.

            result.merge("clone.safetensors")

        Errors of `optimizer.merge` pass through.

        Args:
            output: The .safetensors file to write.
            simple: Whether to merge the rounded recipe, if there is one.
            dtype: The dtype of the file.
            progress: See `optimizer.merge`.

        Returns:
            The file.
        """
        merge(self._recipe(simple=simple), self.study.sources, output, dtype=dtype, progress=progress)
        return Path(output)

    def export(
        self,
        format_name: FormatName,
        output: Path | str | None = None,
        *,
        simple: bool = True,
        approximate: bool = False,
    ) -> str:
        """Return the recipe in another tool's language, and write it.

            print(result.export("supermerger"))

        Errors of `optimizer.export_recipe` pass through.

        Args:
            format_name: The tool: supermerger, model-mixer, mecha, comfyui or mergekit.
            output: The file to write; None to write none.
            simple: Whether to export the rounded recipe, if there is one.
            approximate: Whether to change what the format cannot express; see `optimizer.approximate_recipe`.

        Returns:
            The text.
        """
        text = export_recipe(self._recipe(simple=simple), format_name, approximate=approximate)
        if output is not None:
            Path(output).write_text(text, encoding="utf-8", newline="\n")
        return text

    def report(
        self,
        output: Path | str | None = None,
        *,
        prompts: Sequence[str] = (),
        folders: Sequence[Path | str] = (),
        progress: ProgressOption = None,
    ) -> Path:
        """Write the report page of the study, as the command `report` does.

            result.report()

        Errors of `write_report` and `draw_pairs` pass through.

        Args:
            output: The HTML file to write. Default: report.html in the study's folder.
            prompts: Prompts to draw target and clone with. Default: the pictures of the last preview are shown.
            folders: Further folders to search for checkpoints, if the study's statistics are missing. BLOCKFIT_MODELS
                adds folders.
            progress: Called as progress(activity, done, total). Default: a display in a notebook or on a terminal;
                False shows none.

        Returns:
            The file.
        """
        path = self.study.outputs.report if output is None else Path(output)
        check_report_name(path)
        argument = self.study.argument
        ceilings, problems = found_ceilings(argument, folders, progress=progress)
        if prompts:
            _draw_pairs(self.study, prompts, folders=folders, progress=progress)
        today = datetime.now(UTC).astimezone().strftime("%Y-%m-%d")
        pairs = load_pairs(self.study.outputs)
        write_report(found_result(self.study), ceilings, problems, path, named=argument.name, date=today, pairs=pairs)
        return path

    def __repr__(self) -> str:
        """Return the verdict and the total similarity of every step, in at most 20 lines."""
        lines = [f"fit of {self.study.folder}" + (f", {_CONTINUES}" if self.interrupted else "")]
        if self.verdict is not None:
            lines += repr(self.verdict).splitlines()
        rows = [f"{step}: {metric} {after} (before: {before})" for step, metric, before, after in self._rows()]
        left = _MOST_LINES - len(lines) - 1
        shown = rows if len(rows) <= left else [*rows[: left - 1], f"... and {len(rows) - left + 1} more"]
        return "\n".join([*lines, *shown])

    def _repr_html_(self) -> str:
        """Return the verdict and a table of the steps, for notebooks."""
        shown = "" if self.verdict is None else self.verdict._repr_html_()
        if self.interrupted:
            shown += html_paragraphs([f"The fit is {_CONTINUES}."])
        # A step has one row, and each metric a column.
        metrics = list(dict.fromkeys(scores.metric for scores in self.scores))
        steps: dict[str, dict[str, str]] = {}
        for step, metric, before, after in self._rows():
            steps.setdefault(step, {})[metric] = f"{before} \u2192 {after}"
        rows = [(step, *(cells.get(metric, "") for metric in metrics)) for step, cells in steps.items()]
        more = [f"... and {len(rows) - _MOST_STEPS} more steps"] if len(rows) > _MOST_STEPS else []
        header = ("step", *(f"{metric}, before \u2192 after" for metric in metrics))
        return shown + html_table(header, rows[:_MOST_STEPS]) + html_paragraphs(more)

    def _rows(self) -> list[tuple[str, str, str, str]]:
        return [
            (
                scores.step,
                scores.metric,
                percent(total_similarity(scores.before)),
                percent(total_similarity(scores.after)),
            )
            for scores in self.scores
        ]

    def _recipe(self, *, simple: bool) -> Recipe:
        return self.recipe if self.simple is None or not simple else self.simple.recipe


def fit(
    study: Study | Path | str,
    *,
    device: torch.device | str = "auto",
    trials: int | None = None,
    fresh: bool = False,
    candidates: int = 1,
    storage: str | None = None,
    workers: int | None = None,
    patience: float = PATIENCE,
    check_hashes: bool = True,
    folders: Sequence[Path | str] = (),
    progress: bool = True,
    events: SearchEvents | None = None,
    hashes: HashCache | None = None,
) -> Fit:
    """Run every search of a study up to its budget of completed trials, and write `best.yaml` into its folder.

        result = fit("my-study")
        result.merge("clone.safetensors")

    A second call continues where the first one stopped. Ctrl-C, or the stop button of a notebook, ends the search after
    the running trial; a second one ends it at once. The best recipe so far is then written and returned with
    `interrupted` set. Before the first trial KeyboardInterrupt passes through.

    The search, the files that are read, and warnings are shown in a notebook or, if stderr is one, on a terminal.
    Errors of `optimizer.search.fit` pass through.

    Args:
        study: The study, from `load_study` or `new_study`, or its folder.
        device: The device that computes similarities, or its name: auto (a GPU if one is available), cpu, cuda.
        trials: Number of completed trials to reach in each search. Default: the study's.
        fresh: Whether to set earlier trials aside.
        candidates: The number of different recipes to write.
        storage: The storage of the trials. Default: `study.db` in the study's folder.
        workers: The number of processes that search together, this one included.
        patience: Seconds to wait for an unavailable storage.
        check_hashes: Whether each file must have the SHA-256 in the recipe.
        folders: Further folders to search for checkpoints if `study` is a folder. BLOCKFIT_MODELS adds folders.
        progress: Whether to show the progress.
        events: The receiver of the fit's reports, in place of the display.
        hashes: A cache of the checkpoints' SHA-256. Default: the cache of the commands.

    Returns:
        The result: the best recipe, the searches with their trials, the similarities of every step, and the verdict.
    """
    hashes = hashes or HashCache.of_user()
    with shown_progress(wanted=progress and events is None) as display:
        receiver = events or display
        if isinstance(study, Study):
            loaded = study
        else:
            reading: ProgressOption = False if receiver is None else receiver.progress
            loaded = load_study(study, folders, hashes=hashes, progress=reading)
        if trials is not None:
            loaded = loaded.with_trials(trials)
        found = search(
            loaded, device=device, fresh=fresh, candidates=candidates, storage=storage, workers=workers,
            patience=patience, check_hashes=check_hashes, events=receiver, hashes=hashes,
        )  # fmt: skip
        if found.interrupted and display is not None:
            display.end(f"Interrupted: the best so far is in {found.study.outputs.best}; the same call continues.")
    return Fit(**{field.name: getattr(found, field.name) for field in dataclasses.fields(found)})
