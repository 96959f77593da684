"""Commands on studies: fitting, and what was found."""

from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from optimizer.cli.application import app
from optimizer.cli.options import Device, Json, Models, Storage, StudyPath, chosen_device, hash_cache, model_folders
from optimizer.cli.printing import fitting, make_console, message, print_json, reading, say, say_problem
from optimizer.errors import InputError

# torch, optuna and matplotlib are imported by the commands that need them: `blockfit --help` answers at once.
# ruff: noqa: PLC0415

if TYPE_CHECKING:
    import torch

    from optimizer.search import FitResult, Study


@app.command(epilog="Example: blockfit fit studies/demo --trials 100")
def fit(
    study: StudyPath,
    trials: Annotated[int | None, typer.Option("--trials", help="Completed trials of each Optuna study.")] = None,
    device: Device = "auto",
    fresh: Annotated[bool, typer.Option("--fresh", help="Set earlier trials aside and start anew.")] = False,
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
    models: Models = None,
) -> None:
    """Search the free alphas of a recipe against a target; continues where it stopped.

    Writes study.db, best.yaml, trials.csv and plots/ beside the study, and with --candidates also candidate-2.yaml and
    so on. Ctrl-C finishes the running trial and exports the best so far, a second one stops at once.
    """
    from optimizer.search import load_study

    loaded = load_study(study, model_folders(models))
    budgeted = loaded if trials is None else loaded.with_trials(trials)
    result = fit_and_report(
        budgeted, chosen_device(device), fresh=fresh, candidates=candidates, workers=workers, storage=storage,
        log_file=log_file,
    )  # fmt: skip
    if result.interrupted:
        say_problem("interrupted; the best so far is in best.yaml, and the same command continues")
        raise typer.Exit(130)


@app.command(epilog="Example: blockfit status studies/demo")
def status(study: StudyPath, storage: Storage = None, as_json: Json = False) -> None:
    """What a study has done so far, what is left, and who is at it; needs no checkpoints."""
    from optimizer.reports import status_table
    from optimizer.search import load_study, study_status

    found = study_status(load_study(study, with_files=False), storage)
    if as_json:
        print_json(found.as_dict())
        return
    make_console().print(status_table(found))


@app.command(epilog="Example: blockfit ceiling studies/demo --metric delta")
def ceiling(
    study: StudyPath,
    metric: Annotated[str, typer.Option("--metric", help="weights, delta or both.")] = "both",
    device: Device = "auto",
    models: Models = None,
    as_json: Json = False,
) -> None:
    """What a study can reach: its best recipe, the best of its free alphas, the best merge of its sources at all.

    Also of a study that was never fitted. Needs no checkpoints once their statistics are in the study's folder.
    """
    from optimizer.reports import ceiling_tables
    from optimizer.search import load_study, study_ceilings

    loaded = load_study(study, model_folders(models))
    with reading() as progress:
        found = study_ceilings(loaded, metric, device=chosen_device(device), progress=progress, hashes=hash_cache())
    if as_json:
        *others, main_metric = found
        more = {"other_metrics": [one.as_dict() for one in others]} if metric == "both" else {}
        print_json({**main_metric.as_dict(), **more})
        return
    console = make_console()
    for one in found:
        for table in ceiling_tables(one):
            console.print(table)


@app.command(
    epilog="Examples: blockfit report studies/demo; blockfit report studies/demo -o demo.html; "
    "blockfit report studies/demo --models D:/models"
)
def report(
    study: StudyPath,
    output: Annotated[
        Path | None, typer.Option("-o", "--output", metavar="FILE", help="Default: report.html in the study's folder.")
    ] = None,
    storage: Storage = None,
    models: Models = None,
    as_json: Json = False,
) -> None:
    """Draw up what a study has found as one page, report.html, that holds all it needs and can be given away.

    Also of a study that is not finished. Needs no checkpoints once their statistics are in the study's folder.
    """
    from optimizer.reports import report_figures, write_report
    from optimizer.search import found_ceilings, found_result, load_study, shown_storage

    loaded = load_study(study, with_files=False)
    written = loaded.folder / "report.html" if output is None else output
    found = found_result(loaded, storage)
    with reading() as progress:
        ceilings, problems = found_ceilings(study, model_folders(models), progress=progress, hashes=hash_cache())
    page = write_report(
        found, ceilings, problems, written, named=study.name if study.is_absolute() else study.as_posix(),
        storage=shown_storage(loaded, storage), date=datetime.now().strftime("%Y-%m-%d"),
    )  # fmt: skip
    if as_json:
        print_json({"report": str(written), **report_figures(page)})
        return
    say(f"report: {written}")


@app.command(epilog="Example: blockfit demo my-first-fit")
def demo(
    folder: Annotated[Path, typer.Argument(metavar="[FOLDER]", help="Made if it is not there.")] = Path(
        "blockfit-demo"
    ),
    device: Device = "auto",
) -> None:
    """Fit a small trained family of checkpoints, end to end: recipes, plots, pictures. Takes about a minute."""
    from optimizer.demo import run_demo

    run_demo(folder, fit=lambda study: fit_and_report(study, chosen_device(device)), console=make_console())


def fit_and_report(
    study: "Study",
    device: "torch.device",
    *,
    fresh: bool = False,
    candidates: int = 1,
    workers: int | None = None,
    storage: str | None = None,
    log_file: Path | None = None,
) -> "FitResult":
    """Fit, write trials.csv and the plots, log every trial to fit.log, and print what was found.

    Raises InputError, before anything is read, if the study's folder cannot be written to. What cannot be written of a
    finished fit but best.yaml ends the command with exit code 1, when all the rest is written and printed.
    """
    import optuna

    from optimizer.checkpoints import check_writable
    from optimizer.reports import (
        candidates_table,
        fit_logs,
        log_end,
        spread_table,
        steps_table,
        write_plots,
        write_trials,
    )  # fmt: skip
    from optimizer.search import fit as run

    check_writable(study.folder)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    with fit_logs(study.folder / "fit.log", log_file), fitting() as events:
        result = run(
            study, device=device, fresh=fresh, candidates=candidates, workers=workers, storage=storage, events=events,
            hashes=hash_cache(),
        )  # fmt: skip
        log_end(result)
    # The search is done and best.yaml written: none of the rest may cost the others.
    there, unwritten = ["best.yaml"], list[str]()
    with message("drawing the plots"):
        for write, name in ((write_trials, "trials.csv"), (write_plots, "plots")):
            try:
                write(result, study.folder / name)
                there.append(name)
            except InputError as error:
                unwritten += error.problems
    console = make_console()
    console.print(steps_table(result))
    if result.spread:
        console.print(spread_table(result))
    if result.candidates:
        console.print(candidates_table(result))
    if len(result.candidates) < candidates - 1:
        console.print(f"only {len(result.candidates) + 1} of {candidates} recipes: no other trial differs enough")
    for what, name in (("best recipe", "best.yaml"), ("every trial", "trials.csv"), ("plots", "plots")):
        if name in there:
            say(f"{what}: {study.folder / name}")
    for problem in unwritten:
        say_problem(problem)
    if unwritten and not result.interrupted:
        say_problem(f"the search is done and in {study.folder / 'best.yaml'}; the same command writes what is missing")
        raise typer.Exit(1)
    return result
