"""Commands on studies: init, fit, status, ceiling, report, plots, dashboard and demo."""

import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from optimizer.choices import CeilingMetric, FirstMode, listed
from optimizer.cli import completing
from optimizer.cli.application import Quiet, app, examples
from optimizer.cli.fit_events import TerminalEvents
from optimizer.cli.flags import in_options, problems_in_options
from optimizer.cli.options import (
    Device,
    Json,
    Mapping,
    Models,
    NoVerify,
    Storage,
    StudyPath,
    checkpoint_argument,
    checkpoint_library,
    checkpoint_option,
    chosen_device,
    hash_cache,
    metric_option,
    model_folders,
    output_option,
    seed_option,
)
from optimizer.cli.printing import (
    counted,
    make_console,
    message,
    print_json,
    reading,
    say,
    say_problem,
    say_verdict,
    say_warning,
)
from optimizer.errors import InputError
from optimizer.extras import require
from optimizer.printable import quoted

# Only the commands that need torch, optuna and matplotlib import them, so that `blockfit --help` is fast.
# ruff: noqa: PLC0415

if TYPE_CHECKING:
    import torch

    from optimizer.reports.page import Page
    from optimizer.search import FitResult, Found
    from optimizer.studies import Study


@app.command(
    short_help="Write a first recipe and study from checkpoints.",
    epilog=examples(
        "init closed.safetensors D:/webui/models/Stable-diffusion -o mine",
        "init closed.safetensors A.ckpt B.ckpt --base v1-5-pruned.ckpt",
        "init closed dreamshaper_8 a60cfaa90d --models D:/webui/models",
    ),
)
def init(
    target: Annotated[
        Path, checkpoint_argument("TARGET", "The checkpoint to reproduce: a file, or a name in --models.")
    ],
    sources: Annotated[
        list[Path],
        checkpoint_argument(
            "SOURCE",
            "Checkpoints that the target may be made from; a folder stands for all checkpoints in and below it.",
        ),
    ],
    output: Annotated[
        Path | None, output_option("Folder to write to; default: named after the target.", metavar="FOLDER")
    ] = None,
    base: Annotated[
        Path | None,
        checkpoint_option(
            "--base",
            "Base model that the other sources were trained from; default: recognised by name or contents.",
            metavar="SOURCE",
        ),
    ] = None,
    metric: Annotated[str, metric_option()] = "explained",
    mode: Annotated[
        str | None,
        typer.Option(
            "--mode",
            help=f"Mode of the steps: {listed(FirstMode)}; default: add_difference if the base is known.",
            autocompletion=completing.modes,
        ),
    ] = None,
    mapping: Mapping = None,
    vae: Annotated[
        str | None,
        typer.Option(
            "--vae",
            metavar="SOURCE",
            help="Source whose VAE the recipe copies; merge: merge VAEs with BASE; default: the one with the target's.",
            autocompletion=completing.checkpoints,
        ),
    ] = None,
    models: Models = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Write a first recipe.yaml and study.yaml for a target and the checkpoints that it may be made from.

    One step per source adds it to the base, with a free alpha for every block that can be scored. Comments in both
    files explain the next edits. Paths and names are kept as typed; relative paths are rewritten relative to the
    folder. Nothing is overwritten.

    With --json one object: folder, recipe, study, target, layout, base, models (file of each), steps, free_alphas,
    tied, closed (blocks with alpha 0), metric, mode, mapping, vae (the model whose VAE the recipe copies; null if VAEs
    merge), needs_folders (whether later commands need --models), notes.
    """
    from optimizer.studies import first_study

    with reading() as progress:
        library = checkpoint_library(models, progress)
        found = first_study(
            target, sources, output, base=base, metric=metric, mode=mode, mapping=mapping, vae=vae, library=library
        )
    notes = list(map(in_options, found.notes))
    if as_json:
        print_json({**found.as_dict(), "notes": notes})
        return
    for note in notes:
        say(note)
    steps, free = counted(found.steps, "step"), counted(found.free_alphas, "free alpha")
    say(f"{steps}, {free}, base {found.models[found.base]} -> {found.folder}")
    options = "".join(f" --models {quoted(folder)}" for folder in (models or []) if found.needs_folders)
    say(f"next: edit {found.recipe}, then")
    for command in ("ceiling", "fit"):
        say(f"  blockfit {command} {quoted(found.folder)}{options}")


@app.command(
    short_help="Search the free alphas of a study's recipe.",
    epilog=examples(
        "fit mine",
        "fit mine --trials 100 --candidates 3",
        "fit mine --models D:/webui/models/Stable-diffusion --workers 4",
        "fit mine --storage postgresql://USER@HOST/DATABASE",
    ),
)
def fit(
    study: StudyPath,
    trials: Annotated[
        int | None,
        typer.Option(
            "--trials",
            help="Number of completed trials to reach in each search; default: that of the study, which is the exact "
            "optimum alone where no other alphas are better, else 60.",
        ),
    ] = None,
    device: Device = "auto",
    fresh: Annotated[
        bool,
        typer.Option("--fresh", help="Move earlier trials aside (study.old.db, study.old-2.db ...) and start anew."),
    ] = False,
    candidates: Annotated[
        int, typer.Option("--candidates", metavar="K", help="Write the K best recipes that differ from each other.")
    ] = 1,
    workers: Annotated[
        int | None, typer.Option("--workers", metavar="N", help="Search with N processes; with 1, more can join later.")
    ] = None,
    storage: Storage = None,
    log_file: Annotated[
        Path | None, typer.Option("--log-file", metavar="FILE", help="Append one line of JSON per trial to this file.")
    ] = None,
    plots: Annotated[
        bool, typer.Option("--plots", help="Draw the plots at the end, as the command `plots` does.")
    ] = False,
    no_verify: NoVerify = False,
    models: Models = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Search the free alphas of a recipe for the best similarity to a target; resume an earlier fit.

    Writes study.db, best.yaml and trials.csv beside the study; with --candidates also candidate-2.yaml and so on, with
    --plots also plots/. Ctrl-C finishes the running trial, exports the best recipe so far and draws nothing; a second
    Ctrl-C stops at once.

    With --json one object, also after Ctrl-C if there is a result: study, folder, recipe, target, interrupted, verdict
    (text, recipe, reachable, sources ...), searches (each with best, trial, completed, trials ...), steps (similarity
    before and after, by metric), other_random_inputs, candidates, narrow_ranges (ranges that exclude the best alphas),
    written (files), unwritten (one problem per file).
    """
    from optimizer.studies import load_study

    with reading() as progress:
        loaded = load_study(study, model_folders(models), hashes=hash_cache(), progress=progress)
    budgeted = loaded if trials is None else loaded.with_trials(trials)
    result = fit_and_report(
        budgeted, chosen_device(device), fresh=fresh, candidates=candidates, workers=workers, storage=storage,
        log_file=log_file, plots=plots, check_hashes=not no_verify, as_json=as_json,
    )  # fmt: skip
    _leave_if_interrupted(result)


@app.command(
    short_help="Show the progress of a study.",
    epilog=examples("status mine", "status mine --storage postgresql://USER@HOST/DATABASE", "status mine --json"),
)
def status(study: StudyPath, storage: Storage = None, as_json: Json = False, quiet: Quiet = False) -> None:
    """Show the progress of a study: trials done and left, best similarities, and live workers. Needs no checkpoints.

    Below is the verdict of the last fit.

    With --json one object: verdict (text; null before the first fit), searches (each with search, completed, budget,
    best ...), workers, seconds_left, ends, notes (on trials that are ignored).
    """
    from optimizer.reports import status_table
    from optimizer.search import study_status
    from optimizer.studies import load_study

    found = study_status(load_study(study, with_files=False), storage)
    notes = list(map(in_options, found.notes))
    for note in notes:
        say_problem(f"warning: {note}")
    if as_json:
        print_json({**found.as_dict(), "notes": notes})
        return
    make_console().print(status_table(found))


@app.command(
    short_help="Compute the best similarity that a study can reach.",
    epilog=examples("ceiling mine", "ceiling mine --metric delta --models D:/webui/models", "ceiling mine --json"),
)
def ceiling(
    study: StudyPath,
    metric: Annotated[
        str,
        typer.Option("--metric", help=f"Metric: {listed(CeilingMetric)}.", autocompletion=completing.ceiling_metrics),
    ] = "all",
    blocks: Annotated[bool, typer.Option("--blocks", help="Show the figures of each block too.")] = False,
    no_verify: NoVerify = False,
    device: Device = "auto",
    models: Models = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Say how much of the target a study's sources explain, which of them are in it, and what is missing.

    Below the verdict are the similarities that the study can reach: by its recipe, by its free alphas, by any merge of
    its sources; with --blocks those of each block. The study need not be fitted. Checkpoints are not needed once their
    statistics are in the study's folder.

    With --json one object: verdict (text, reachable, sources ...), metric, blocks (each with recipe, best, ceiling,
    ceiling_bounded, not_in_sources ...), total, sources (coefficient, error, loss ...), rank, alphas, trade_off, idle,
    narrow_ranges, note; with --metric all also other_metrics. A block is null if the target's equals the base's.
    """
    from optimizer.analysis import study_ceilings
    from optimizer.reports import ceiling_summary, ceiling_tables
    from optimizer.similarity import EXACT_METRICS
    from optimizer.studies import load_study

    with reading() as progress:
        loaded = load_study(study, model_folders(models), hashes=hash_cache(), progress=progress)
        found = study_ceilings(
            loaded, metric, check_hashes=not no_verify, device=chosen_device(device), progress=progress,
            hashes=hash_cache(),
        )  # fmt: skip
    if as_json:
        main_metric, *others = sorted(found, key=lambda ceiling: EXACT_METRICS.index(ceiling.metric))
        more = {"other_metrics": [ceiling.as_dict() for ceiling in others]} if metric in ("all", "both") else {}
        print_json({**main_metric.as_dict(), **more})
        return
    console = make_console()
    if (verdict := found[0].verdict) is not None:
        say_verdict(verdict)
    for part in ceiling_summary(found, loaded.recipe.layout):
        console.print(part)
    for by_metric in found if blocks else ():
        for table in ceiling_tables(by_metric, loaded.recipe.layout):
            console.print(table)


@app.command(
    short_help="Write a study's results as an HTML page.",
    epilog=examples(
        "report studies/demo",
        'report studies/demo --prompt "a digit three"',
        "report studies/demo -o demo.html",
        "report studies/demo --models D:/models --json",
    ),
)
def report(
    study: StudyPath,
    output: Annotated[
        Path | None,
        output_option("The HTML file to write; default: report.html in the study's folder.", metavar="FILE"),
    ] = None,
    prompts: Annotated[
        list[str] | None,
        typer.Option("--prompt", help="Draw target and clone with this prompt first; may be repeated."),
    ] = None,
    seeds: Annotated[list[int] | None, seed_option("Seed of the pictures' noise; may be repeated; default: 0.")] = None,
    storage: Storage = None,
    device: Device = "auto",
    models: Models = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Write a study's results as a single HTML page, report.html, that loads nothing else and can be shared.

    The study need not be finished. Checkpoints are not needed once their statistics are in the study's folder.

    The page shows target and clone side by side: with the pictures of the last `blockfit preview` of the study's best
    recipe, or with those that --prompt draws, which takes the checkpoints and minutes at full size.

    With --json one object: report (the file), study, verdict (text), complete, stages (similarity before and after,
    ceiling, by stage, step and metric), ceilings (total by metric), searches (trials and best of each), sources
    (coefficient, license and standing of each), remarks (headings of the remarks on the page).
    """
    from optimizer.reports.page import report_figures

    _check_seeds(prompts, seeds)
    written, page = _write_page(study, output, storage, models, prompts or (), seeds or (0,), device)
    if as_json:
        print_json({"report": str(written), **report_figures(page)})
        return
    say(f"report: {written}")


@app.command(
    short_help="Draw a study's trials and alphas as pictures.",
    epilog=examples("plots studies/demo", "plots studies/demo -o drawn", "plots studies/demo --json"),
)
def plots(
    study: StudyPath,
    output: Annotated[
        Path | None, output_option("Folder to write to; default: plots/ in the study's folder.", metavar="FOLDER")
    ] = None,
    storage: Storage = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Draw a study's results as PNG files: similarity by trial, by block and by alpha, and the alphas of all blocks.

    The study need not be finished. Needs no checkpoints.

    With --json one object: plots (the folder), written (files).
    """
    from optimizer.studies import load_study

    loaded = load_study(study, with_files=False)
    found = _found(loaded, storage)
    folder = loaded.outputs.plots if output is None else output
    with message("drawing the plots"):
        from optimizer.reports.plots import write_plots

        written = write_plots(found.result, folder)
    if as_json:
        print_json({"plots": str(folder), "written": list(map(str, written))})
        return
    say(f"plots: {folder}")


@app.command(
    short_help="Show a study's trials in a browser.",
    epilog=examples("dashboard studies/demo", "dashboard studies/demo --port 8081"),
)
def dashboard(
    study: StudyPath,
    port: Annotated[
        int, typer.Option("--port", min=0, max=65535, help="Port to listen on; 0 for any free port.")
    ] = 8080,
    storage: Storage = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Show a study's trials in a browser, during or after a fit: Optuna's dashboard with blockfit's plots.

    The dashboard is read-only and accepts connections from this machine only. Ctrl-C ends it. Needs no checkpoints.

    With --json one object, printed as soon as the server listens: address.
    """
    require("dashboard", "dashboard")
    from optimizer.reports.dashboard import serve_dashboard
    from optimizer.studies import load_study

    loaded = load_study(study, with_files=False)

    def ready(address: str) -> None:
        if as_json:
            print_json({"address": address})
            sys.stdout.flush()  # the reader of a pipe waits for the address
            return
        say(f"{address} (Ctrl-C ends it)")

    with suppress(KeyboardInterrupt):
        serve_dashboard(loaded, storage, port=port, ready=ready, warn=say_warning)


@app.command(
    short_help="Fit a small family of checkpoints, end to end.",
    epilog=examples("demo my-first-fit", "demo my-first-fit --json"),
)
def demo(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="Folder to write to; created if missing.")] = Path(
        "blockfit-demo"
    ),
    device: Device = "auto",
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Fit a small trained family of checkpoints, end to end: recipes, pictures and a report. Takes about a minute.

    With --json one object: folder, fits (for each the output of `fit --json`, without files), coefficients (of each
    recipe's sources: mean over the blocks, and mean error against the true recipe), pictures and report (the files).
    """
    from optimizer.demo import run_demo

    found = run_demo(
        folder,
        fit=lambda study: fit_and_report(study, chosen_device(device)),
        fit_briefly=lambda study: fit_and_report(study, chosen_device(device), brief=True),
        report=lambda study, prompts: _write_page(study, prompts=prompts)[0],
        console=make_console(),
    )
    if as_json:
        print_json({"folder": str(folder), **found.as_dict()})


def _check_seeds(prompts: list[str] | None, seeds: list[int] | None) -> None:
    """Raise InputError for seeds without prompts."""
    if seeds and not prompts:
        raise InputError("received a seed, and no `prompts` to draw with it", field="seeds")


def _write_page(
    study: Path,
    output: Path | None = None,
    storage: str | None = None,
    models: list[Path] | None = None,
    prompts: Sequence[str] = (),
    seeds: Sequence[int] = (0,),
    device: str = "auto",
) -> "tuple[Path, Page]":
    """Write the report of a study and return its file and its contents.

    Args:
        study: The study's folder or file as the user typed it.
        output: The file to write; None for the study's own.
        storage: The storage of the trials as given.
        models: Further folders of checkpoints.
        prompts: Prompts to draw target and clone with.
        seeds: Seeds of the pictures.
        device: The device that draws.

    Returns:
        The file and the page.
    """
    from optimizer.analysis import found_ceilings
    from optimizer.files import check_output
    from optimizer.reports.drawn_pairs import draw_pairs, load_pairs
    from optimizer.reports.page import check_report_name, write_report
    from optimizer.search import shown_storage
    from optimizer.studies import load_study

    loaded = load_study(study, with_files=False)
    written = loaded.outputs.report if output is None else output
    check_report_name(written)
    check_output(written)
    found = _found(loaded, storage)
    folders, hashes = model_folders(models), hash_cache()
    with reading() as progress:
        ceilings, problems = found_ceilings(study, folders, progress=progress, hashes=hashes)
        if prompts:
            require("pictures", "drawing")
            draw_pairs(
                loaded, prompts, seeds, folders=folders, hashes=hashes, device=chosen_device(device),
                progress=progress, warn=say_warning,
            )  # fmt: skip
    page = write_report(
        found, ceilings, tuple(map(in_options, problems)), written, named=_shareable_name(study),
        storage=shown_storage(loaded, storage), date=datetime.now().strftime("%Y-%m-%d"),
        pairs=load_pairs(loaded.outputs),
    )  # fmt: skip
    return written, page


def _found(study: "Study", storage: str | None) -> "Found":
    """Return what the fits of a study found so far, with a warning for each trial that is ignored."""
    from optimizer.search import found_result

    found = found_result(study, storage)
    for note in found.notes:
        say_warning(note)
    return found


def _leave_if_interrupted(result: "FitResult") -> None:
    """Raise typer.Exit with code 130 if the fit was interrupted."""
    if result.interrupted:
        say_problem("interrupted; the best so far is in best.yaml, and the same command continues")
        raise typer.Exit(130)


def _shareable_name(study: Path) -> str:
    """Return the path of a study as typed; of an absolute path only the end, since a report may be shared."""
    if not study.is_absolute():
        return study.as_posix()
    return study.name if study.is_dir() else f"{study.parent.name}/{study.name}"


def fit_and_report(
    study: "Study",
    device: "torch.device",
    *,
    fresh: bool = False,
    candidates: int = 1,
    workers: int | None = None,
    storage: str | None = None,
    log_file: Path | None = None,
    plots: bool = False,
    check_hashes: bool = True,
    as_json: bool = False,
    brief: bool = False,
) -> "FitResult":
    """Fit a study, write trials.csv, log every trial to fit.log, and print the result.

    If the study's folder is not writable, InputError is raised before any file is read.

    Args:
        study: The study.
        device: The device to compute on.
        fresh: Whether to move earlier trials aside.
        candidates: Number of recipes to write, the best included.
        workers: Number of processes; None for one that no other joins.
        storage: Address of the trials; None for the study's folder.
        log_file: File to append one line of JSON per trial to.
        plots: Whether to draw the plots, unless the fit is interrupted.
        check_hashes: Whether files must have the hashes that the recipe notes.
        as_json: Whether to print the result as JSON.
        brief: Whether to print problems only.

    Returns:
        The result of the fit.

    Raises:
        typer.Exit: With code 1, after everything else is written and printed, if a file other than best.yaml could not
            be written.
    """
    from optimizer.files import check_writable
    from optimizer.reports import open_fit_log
    from optimizer.search import fit as run

    outputs = study.outputs
    check_writable(outputs.path)
    with open_fit_log(outputs.log, log_file) as log:
        events = TerminalEvents(log)
        with events.shown():
            result = run(
                study, device=device, fresh=fresh, candidates=candidates, workers=workers, storage=storage,
                check_hashes=check_hashes, events=events, hashes=hash_cache(),
            )  # fmt: skip
        log.ended(result)
    if not events.new_trials and not result.interrupted and not brief:
        say("nothing was left to do: every search has all its trials; --trials asks for more")
    # After Ctrl-C the user waits for the prompt; `plots` draws them later.
    written, unwritten = _write_reports(result, plots=plots and not result.interrupted)
    if not brief:
        _print_result(result, candidates, storage, written)
    if as_json:
        print_json({**result.as_dict(), "written": list(map(str, written)), "unwritten": unwritten})
    for problem in unwritten:
        say_problem(problem)
    if unwritten and not result.interrupted:
        say_problem(f"the search is done, its result is in {outputs.best}; the same command writes the missing files")
        raise typer.Exit(1)
    return result


def _write_reports(result: "FitResult", *, plots: bool) -> tuple[list[Path], list[str]]:
    """Write trials.csv and maybe the plots; return the paths of the fit's files, and the problems with the others."""
    outputs = result.study.outputs
    written = [outputs.best, *(outputs.candidate(candidate.number) for candidate in result.candidates)]
    unwritten = list[str]()
    # best.yaml is written already: a failure of one file must not prevent the others.
    with message("drawing the plots" if plots else "writing the trials"):
        from optimizer.reports.trials import write_trials

        writers: list[tuple[Callable[[FitResult, Path], object], Path]] = [(write_trials, outputs.trials_table)]
        if plots:
            from optimizer.reports.plots import write_plots

            writers.append((write_plots, outputs.plots))
        for write, path in writers:
            try:
                write(result, path)
                written.append(path)
            except InputError as error:
                unwritten += problems_in_options(error)
    if result.simple is not None:
        written.append(outputs.simple)
    return written, unwritten


def _print_result(result: "FitResult", candidates: int, storage: str | None, written: Sequence[Path]) -> None:
    """Print the verdict, the recipes and files of a fit, and the next commands.

    Args:
        result: The fit.
        candidates: The requested number of recipes.
        storage: The storage of the trials as given.
        written: The files that were written.
    """
    from optimizer.reports import candidates_table, simple_recipe, spread_table, steps_table
    from optimizer.search import shown_storage

    console = make_console()
    console.print(steps_table(result))
    if result.spread:
        console.print(spread_table(result))
    if result.candidates:
        console.print(candidates_table(result))
    if len(result.candidates) < candidates - 1:
        console.print(f"only {len(result.candidates) + 1} of {candidates} recipes: no other trial differs enough")
    for narrow in result.narrow:
        say(f"range too narrow: {narrow.describe(result.study.recipe.layout)}")
    if result.verdict is not None:
        say_verdict(result.verdict)
    if result.simple is not None:
        console.print(simple_recipe(result.simple))
    outputs = result.study.outputs
    for name, path in (
        ("best recipe", outputs.best),
        ("simple recipe", outputs.simple),
        ("every trial", outputs.trials_table),
        ("plots", outputs.plots),
    ):
        if path in written:
            say(f"{name}: {path}")
    shown = shown_storage(result.study, storage)
    arguments = quoted(result.study.argument) + ("" if shown is None else f" --storage {quoted(shown)}")
    say(f"look at it: blockfit report {arguments}, blockfit plots {arguments}")
    recipe = outputs.best if result.simple is None else outputs.simple
    say(f"use it: blockfit merge {quoted(recipe)} -o clone.safetensors")
