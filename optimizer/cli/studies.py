"""Commands on studies: fitting, and what was found."""

import sys
from collections.abc import Sequence
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from optimizer.choices import CeilingMetric, FirstMode, MetricName, listed
from optimizer.cli import completing
from optimizer.cli.application import Quiet, app, examples
from optimizer.cli.fit_events import TerminalEvents
from optimizer.cli.flags import in_options, problems_in_options
from optimizer.cli.options import (
    Device,
    Json,
    Models,
    NoVerify,
    Storage,
    StudyPath,
    chosen_device,
    hash_cache,
    model_folders,
)
from optimizer.cli.printing import (
    counted,
    make_console,
    message,
    print_json,
    reading,
    say,
    say_problem,
    say_warning,
)
from optimizer.errors import InputError
from optimizer.extras import require
from optimizer.printable import quoted

# torch, optuna and matplotlib are imported by the commands that need them: `blockfit --help` answers at once.
# ruff: noqa: PLC0415

if TYPE_CHECKING:
    import torch

    from optimizer.search import FitResult
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
        Path,
        typer.Argument(
            metavar="TARGET",
            help="The checkpoint to come close to: a file, or a name in --models.",
            autocompletion=completing.checkpoints,
        ),
    ],
    sources: Annotated[
        list[Path],
        typer.Argument(
            metavar="SOURCE",
            help="What it may have been made from; a folder is all checkpoints in it but the target.",
            autocompletion=completing.checkpoints,
        ),
    ],
    output: Annotated[
        Path | None,
        typer.Option("-o", "--output", metavar="FOLDER", help="Where to write; default: named after the target."),
    ] = None,
    base: Annotated[
        Path | None,
        typer.Option(
            "--base",
            metavar="SOURCE",
            help="The model that the others were trained from; default: what is called so.",
            autocompletion=completing.checkpoints,
        ),
    ] = None,
    metric: Annotated[
        str,
        typer.Option(
            "--metric",
            help=f"{listed(MetricName)}.",
            autocompletion=completing.metrics,
        ),
    ] = "explained",
    mode: Annotated[
        str,
        typer.Option("--mode", help=f"Of the steps: {listed(FirstMode)}.", autocompletion=completing.modes),
    ] = "add_difference",
    mapping: Annotated[
        str | None,
        typer.Option(
            "--mapping",
            help="Where time_embed and the VAE count: as in supermerger (default), mecha or model-mixer.",
            autocompletion=completing.mappings,
        ),
    ] = None,
    models: Models = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Write recipe.yaml and study.yaml to begin with, from a target and the checkpoints it may have been made from.

    Every source is added to the base by a step of its own, with a free alpha on every block that the target lets
    score; comments in both files tell what to edit next. Paths and names stay as they are given, relative paths as seen
    from the folder. Nothing is overwritten.

    With --json one object: folder, recipe, study, target, layout, base, models (file of each), steps, free_alphas,
    tied, closed (blocks with alpha 0), metric, mode, mapping, needs_folders (whether --models is needed from now on),
    notes.
    """
    from optimizer.studies import first_study

    folders = model_folders(models)
    with reading() as progress:
        found = first_study(
            target, sources, output, base=base, metric=metric, mode=mode, mapping=mapping, folders=folders,
            hashes=hash_cache(), progress=progress,
        )  # fmt: skip
    notes = list(map(in_options, found.notes))
    if as_json:
        print_json({**found.as_dict(), "notes": notes})
        return
    for note in notes:
        say(note)
    steps, free = counted(found.steps, "step"), counted(found.free_alphas, "free alpha")
    say(f"{steps}, {free}, base {found.models[found.base]} -> {found.folder}")
    more = "".join(f" --models {quoted(folder)}" for folder in (models or []) if found.needs_folders)
    say(f"next: edit {found.recipe}, then")
    for command in ("ceiling", "fit"):
        say(f"  blockfit {command} {quoted(found.folder)}{more}")


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
    trials: Annotated[int | None, typer.Option("--trials", help="Completed trials of each Optuna study.")] = None,
    device: Device = "auto",
    fresh: Annotated[
        bool,
        typer.Option("--fresh", help="Set earlier trials aside (study.old.db, study.old-2.db ...) and start anew."),
    ] = False,
    candidates: Annotated[
        int, typer.Option("--candidates", metavar="K", help="Write the K best recipes that differ.")
    ] = 1,
    workers: Annotated[
        int | None, typer.Option("--workers", metavar="N", help="Search with N processes; 1 lets others join in.")
    ] = None,
    storage: Storage = None,
    log_file: Annotated[
        Path | None, typer.Option("--log-file", metavar="FILE", help="Append a line of JSON for every trial.")
    ] = None,
    no_verify: NoVerify = False,
    models: Models = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Search the free alphas of a recipe against a target; continues where it stopped.

    Writes study.db, best.yaml, trials.csv and plots/ beside the study, and with --candidates also candidate-2.yaml and
    so on. Ctrl-C finishes the running trial and exports the best so far, a second one stops at once.

    With --json one object, after Ctrl-C too if anything was found: study, folder, recipe, target, interrupted, searches
    (each with best, trial, completed, trials ...), steps (similarity before and after, by metric), other_random_inputs,
    candidates, narrow_ranges (outside of which the best alphas lie), written (files), unwritten (what could not be).
    """
    from optimizer.studies import load_study

    with reading() as progress:
        loaded = load_study(study, model_folders(models), hashes=hash_cache(), progress=progress)
    budgeted = loaded if trials is None else loaded.with_trials(trials)
    result = fit_and_report(
        budgeted, chosen_device(device), fresh=fresh, candidates=candidates, workers=workers, storage=storage,
        log_file=log_file, check_hashes=not no_verify, as_json=as_json,
    )  # fmt: skip
    if result.interrupted:
        say_problem("interrupted; the best so far is in best.yaml, and the same command continues")
        raise typer.Exit(130)


@app.command(
    short_help="What a study has done, and what is left.",
    epilog=examples("status mine", "status mine --storage postgresql://USER@HOST/DATABASE", "status mine --json"),
)
def status(study: StudyPath, storage: Storage = None, as_json: Json = False, quiet: Quiet = False) -> None:
    """What a study has done so far, what is left, and who is at it; needs no checkpoints.

    With --json one object: searches (each with search, completed, budget, best ...), workers, seconds_left, ends, notes
    (on trials that do not count).
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
    short_help="What a study can reach at all.",
    epilog=examples("ceiling mine", "ceiling mine --metric delta --models D:/webui/models", "ceiling mine --json"),
)
def ceiling(
    study: StudyPath,
    metric: Annotated[
        str,
        typer.Option("--metric", help=f"{listed(CeilingMetric)}.", autocompletion=completing.ceiling_metrics),
    ] = "all",
    no_verify: NoVerify = False,
    device: Device = "auto",
    models: Models = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """What a study can reach: its best recipe, the best of its free alphas, the best merge of its sources at all.

    Also of a study that was never fitted. Needs no checkpoints once their statistics are in the study's folder.

    With --json one object: metric, blocks (each with recipe, best, ceiling, ceiling_bounded, not_in_sources ...),
    total, sources (coefficient, error, loss ...), rank, alphas, trade_off, idle, narrow_ranges, note; other_metrics, if
    --metric is all. A block that the target has unchanged from the base is null.
    """
    from optimizer.analysis import study_ceilings
    from optimizer.reports import ceiling_tables
    from optimizer.similarity import EXACT_METRICS
    from optimizer.studies import load_study

    with reading() as progress:
        loaded = load_study(study, model_folders(models), hashes=hash_cache(), progress=progress)
        found = study_ceilings(
            loaded, metric, check_hashes=not no_verify, device=chosen_device(device), progress=progress,
            hashes=hash_cache(),
        )  # fmt: skip
    if as_json:
        main_metric, *others = sorted(found, key=lambda one: EXACT_METRICS.index(one.metric))
        more = {"other_metrics": [one.as_dict() for one in others]} if metric in ("all", "both") else {}
        print_json({**main_metric.as_dict(), **more})
        return
    console = make_console()
    for one in found:
        for table in ceiling_tables(one, loaded.recipe.layout):
            console.print(table)


@app.command(
    short_help="Draw up what a study has found as a page.",
    epilog=examples(
        "report studies/demo", "report studies/demo -o demo.html", "report studies/demo --models D:/models --json"
    ),
)
def report(
    study: StudyPath,
    output: Annotated[
        Path | None, typer.Option("-o", "--output", metavar="FILE", help="Default: report.html in the study's folder.")
    ] = None,
    storage: Storage = None,
    models: Models = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Draw up what a study has found as one page, report.html, that holds all it needs and can be given away.

    Also of a study that is not finished. Needs no checkpoints once their statistics are in the study's folder.

    With --json one object: report (the file), study, complete, stages (similarity before and after, ceiling, by stage,
    step and metric), ceilings (total by metric), searches (trials and best of each), sources (coefficient, license and
    standing of each), remarks (headings of what there is to know).
    """
    from optimizer.analysis import found_ceilings
    from optimizer.files import check_output
    from optimizer.reports.page import check_report_name, report_figures, write_report
    from optimizer.search import found_result, shown_storage
    from optimizer.studies import load_study

    loaded = load_study(study, with_files=False)
    written = loaded.outputs.report if output is None else output
    check_report_name(written)
    check_output(written)
    found = found_result(loaded, storage)
    for note in found.notes:
        say_warning(note)
    with reading() as progress:
        ceilings, problems = found_ceilings(study, model_folders(models), progress=progress, hashes=hash_cache())
    page = write_report(
        found, ceilings, tuple(map(in_options, problems)), written, named=_told_name(study),
        storage=shown_storage(loaded, storage), date=datetime.now().strftime("%Y-%m-%d"),
    )  # fmt: skip
    if as_json:
        print_json({"report": str(written), **report_figures(page)})
        return
    say(f"report: {written}")


@app.command(
    short_help="Look at a study's trials in a browser.",
    epilog=examples("dashboard studies/demo", "dashboard studies/demo --port 8081"),
)
def dashboard(
    study: StudyPath,
    port: Annotated[int, typer.Option("--port", min=0, max=65535, help="0 is any that is free.")] = 8080,
    storage: Storage = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Look at a study's trials in a browser, while it is fitted or afterwards: Optuna's dashboard with our plots.

    For reading only: nothing is changed or deleted by it. Listens on this machine alone. Ctrl-C ends it. Needs no
    checkpoints.

    With --json one object, printed as soon as it listens: address.
    """
    require("dashboard", "dashboard")
    from optimizer.reports.dashboard import serve_dashboard
    from optimizer.studies import load_study

    loaded = load_study(study, with_files=False)

    def ready(address: str) -> None:
        if as_json:
            print_json({"address": address})
            sys.stdout.flush()  # who reads it from a pipe waits for it
            return
        say(f"{address} (Ctrl-C ends it)")

    with suppress(KeyboardInterrupt):
        serve_dashboard(loaded, storage, port=port, ready=ready, warn=say_warning)


@app.command(
    short_help="Fit a small family of checkpoints, end to end.",
    epilog=examples("demo my-first-fit", "demo my-first-fit --json"),
)
def demo(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="Made if it is not there.")] = Path("blockfit-demo"),
    device: Device = "auto",
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Fit a small trained family of checkpoints, end to end: recipes, plots, pictures. Takes about a minute.

    With --json one object: folder, fits (what `fit --json` tells of each, without files), coefficients (of each
    recipe's sources: mean over the blocks, and the mean error against the true recipe), pictures (the file).
    """
    from optimizer.demo import run_demo

    found = run_demo(folder, fit=lambda study: fit_and_report(study, chosen_device(device)), console=make_console())
    if as_json:
        print_json({"folder": str(folder), **found.as_dict()})


def _told_name(study: Path) -> str:
    """How the user named a study, its folder or its file, without where on this machine that is."""
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
    check_hashes: bool = True,
    as_json: bool = False,
) -> "FitResult":
    """Fit, write trials.csv and the plots, log every trial to fit.log, and print what was found, `as_json` if wanted.

    Raises InputError, before anything is read, if the study's folder cannot be written to. Files of a finished fit that
    cannot be written, best.yaml excepted, end the command with exit code 1, when all others are written and the rest
    is printed.
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
    written, unwritten = _write_reports(result)
    _print_result(result, candidates, written)
    if as_json:
        print_json({**result.as_dict(), "written": list(map(str, written)), "unwritten": unwritten})
    for problem in unwritten:
        say_problem(problem)
    if unwritten and not result.interrupted:
        say_problem(f"the search is done and in {outputs.best}; the same command writes what is missing")
        raise typer.Exit(1)
    return result


def _write_reports(result: "FitResult") -> tuple[list[Path], list[str]]:
    """Write trials.csv and the plots; return all files of a fit that are written now, and what could not be."""
    outputs = result.study.outputs
    written = [outputs.best, *(outputs.candidate(one.number) for one in result.candidates)]
    unwritten = list[str]()
    # The search is done and best.yaml written: none of the rest may cost the others.
    with message("drawing the plots"):
        from optimizer.reports.plots import write_plots
        from optimizer.reports.trials import write_trials

        for write, path in ((write_trials, outputs.trials_table), (write_plots, outputs.plots)):
            try:
                write(result, path)
                written.append(path)
            except InputError as error:
                unwritten += problems_in_options(error)
    if result.simple is not None:
        written.append(outputs.simple)
    return written, unwritten


def _print_result(result: "FitResult", candidates: int, written: Sequence[Path]) -> None:
    """Print the tables of a fit and its files; `candidates` is the number of recipes that was asked for."""
    from optimizer.reports import candidates_table, simple_recipe, spread_table, steps_table

    console = make_console()
    console.print(steps_table(result))
    if result.spread:
        console.print(spread_table(result))
    if result.candidates:
        console.print(candidates_table(result))
    if len(result.candidates) < candidates - 1:
        console.print(f"only {len(result.candidates) + 1} of {candidates} recipes: no other trial differs enough")
    if result.simple is not None:
        console.print(simple_recipe(result.simple))
    for one in result.narrow:
        say(f"range too narrow: {one.describe(result.study.recipe.layout)}")
    outputs = result.study.outputs
    for what, path in (
        ("best recipe", outputs.best),
        ("simple recipe", outputs.simple),
        ("every trial", outputs.trials_table),
        ("plots", outputs.plots),
    ):
        if path in written:
            say(f"{what}: {path}")
