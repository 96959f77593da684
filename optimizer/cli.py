"""The command `blockfit`: reads arguments and the environment, calls, prints. Nothing is computed here.

Exit codes: 0 done; 1 something failed that is not the user's input; 2 bad input, one line a problem on stderr, nothing
written; 130 interrupted, the best so far exported. Tracebacks only with `--debug`.
"""

import json
import math
import os
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Column

from optimizer import __version__
from optimizer.errors import BlockfitWarning, InputError, attempt
from optimizer.printable import printable

if TYPE_CHECKING:
    import torch
    from optuna.trial import FrozenTrial

    from optimizer.checkpoints import HashCache
    from optimizer.search import FitEvents, FitResult, SearchProgress, Study

__all__ = ["app", "main"]

# torch, optuna and matplotlib are imported by the commands that need them: `blockfit --help` answers at once.
# ruff: noqa: PLC0415

app = typer.Typer(
    name="blockfit",
    help="Fit the recipe of a closed model merge, block by block.",
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


# What typer raises for a mistyped command or option; depending on its version click's class, or its own copy of it.
_USAGE_ERROR: Any = typer.BadParameter.__mro__[1]


class _DType(StrEnum):
    fp16 = "fp16"
    bf16 = "bf16"
    fp32 = "fp32"


_LARGEST_SEED = 2**63 - 1
_MOST_PROBLEMS = 100  # lines; more scroll away what they are about

_Models = Annotated[
    list[Path] | None,
    typer.Option(
        "--models",
        metavar="DIR",
        help="Folder with checkpoints, sub-folders too; may be repeated. Also BLOCKFIT_MODELS.",
    ),
]
_Json = Annotated[bool, typer.Option("--json", help="Print one JSON value on stdout, nothing else.")]
_Device = Annotated[str, typer.Option("--device", help="auto, cpu or cuda.")]
_Storage = Annotated[
    str | None,
    typer.Option(
        "--storage",
        metavar="URL",
        help="Where the trials are: postgresql://USER@HOST/DATABASE, journal:FILE or sqlite:///FILE; "
        "default: study.db in the study's folder.",
    ),
]
_STUDY = Annotated[Path, typer.Argument(metavar="STUDY", help="The study's YAML file, or the folder with study.yaml.")]


def _version(value: bool) -> None:
    if value:
        typer.echo(f"blockfit {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks.")] = False,
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Show it.")] = False,
) -> None:
    """Fit the recipe of a closed model merge, block by block."""
    _State.debug = debug


class _State:
    debug = False


@app.command(epilog="Example: blockfit inspect model.safetensors other.ckpt")
def inspect(
    files: Annotated[list[Path], typer.Argument(metavar="FILE...")],
    as_json: _Json = False,
    quick: Annotated[bool, typer.Option("--quick", help="Read no tensor data: no NaN scan, no sha256.")] = False,
) -> None:
    """What checkpoints hold: layout, blocks, dtypes, hashes, metadata, and what is unusual."""
    from optimizer.checkpoints import inspect_checkpoint
    from optimizer.reports import inspection_table

    inspections = [inspect_checkpoint(path, cache=_hashes(), full=not quick) for path in files]
    if as_json:
        _print_json([inspection.as_dict() for inspection in inspections])
        return
    for inspection in inspections:
        _console().print(inspection_table(inspection))


@app.command(epilog="Example: blockfit compare merge.safetensors --target closed.safetensors --blocks output")
def compare(
    candidates: Annotated[list[Path], typer.Argument(metavar="CANDIDATE...")],
    target: Annotated[Path, typer.Option("--target", help="The checkpoint to come close to.")],
    base: Annotated[Path | None, typer.Option("--base", help="What delta takes differences from.")] = None,
    metric: Annotated[
        str, typer.Option("--metric", help="attention, weights, delta, elements or encoder.")
    ] = "attention",
    blocks: Annotated[str, typer.Option("--blocks", help="input, output, middle, all, or as OUT03-OUT11,M00.")] = "all",
    seed: Annotated[
        int, typer.Option("--seed", min=0, max=_LARGEST_SEED, help="Of attention's random inputs.")
    ] = 114514,
    prompts: Annotated[
        Path | None, typer.Option("--prompts", help="A text file of prompts, a line each, for encoder.")
    ] = None,
    clip_skip: Annotated[
        int, typer.Option("--clip-skip", min=1, max=12, help="The layer that encoder reads, from the last.")
    ] = 1,
    device: _Device = "auto",
    as_json: _Json = False,
) -> None:
    """How similar checkpoints are to a target, per block: the article's table.

    `encoder` scores BASE by what the text encoder says to prompts; --prompts names others than those that ship.
    """
    from optimizer.reports import block_table
    from optimizer.similarity import compare as compare_files
    from optimizer.similarity import read_prompts, total_similarity

    texts = None if prompts is None else read_prompts(prompts)
    found = {}
    with _reading() as progress:
        for candidate in candidates:
            found[str(candidate)] = compare_files(
                candidate, target, metric=metric, blocks=blocks, base=base, seed=seed,
                prompts=texts, clip_skip=clip_skip, device=_device(device), progress=progress,
            )  # fmt: skip
    if as_json:
        _print_json(
            [
                {"candidate": name, "metric": metric, "seed": seed, "blocks": scores, "total": total_similarity(scores)}
                for name, scores in found.items()
            ]
        )
        return
    rows = {Path(name).name: scores for name, scores in found.items()}
    console = _console()
    console.print(block_table(f"{metric} similarity to {target.name}", rows, width=console.width))


@app.command(epilog="Example: blockfit fit studies/demo --trials 100")
def fit(
    study: _STUDY,
    trials: Annotated[int | None, typer.Option("--trials", help="Completed trials of each Optuna study.")] = None,
    device: _Device = "auto",
    fresh: Annotated[bool, typer.Option("--fresh", help="Set earlier trials aside and start anew.")] = False,
    candidates: Annotated[
        int, typer.Option("--candidates", metavar="K", help="Write the K best recipes that differ.")
    ] = 1,
    workers: Annotated[
        int | None, typer.Option("--workers", metavar="N", help="Search with N processes; 1 lets others join in.")
    ] = None,
    storage: _Storage = None,
    log_file: Annotated[
        Path | None, typer.Option("--log-file", metavar="FILE", help="Append a line of JSON for every trial.")
    ] = None,
    models: _Models = None,
) -> None:
    """Search the free alphas of a recipe against a target; continues where it stopped.

    Writes study.db, best.yaml, trials.csv and plots/ beside the study, and with --candidates also candidate-2.yaml and
    so on. Ctrl-C finishes the running trial and exports the best so far, a second one stops at once.
    """
    from optimizer.search import load_study

    loaded = load_study(study, _folders(models))
    budgeted = loaded if trials is None else loaded.with_trials(trials)
    result = fit_and_report(
        budgeted, _device(device), fresh=fresh, candidates=candidates, workers=workers, storage=storage,
        log_file=log_file,
    )  # fmt: skip
    if result.interrupted:
        _problem("interrupted; the best so far is in best.yaml, and the same command continues")
        raise typer.Exit(130)


@app.command(epilog="Example: blockfit merge best.yaml -o clone.safetensors --dtype fp16")
def merge(
    recipe: Annotated[Path, typer.Argument(metavar="RECIPE", help="The recipe's YAML file.")],
    output: Annotated[Path, typer.Option("-o", "--output", help="The .safetensors file to write.")],
    step: Annotated[str | None, typer.Option("--step", help="The step to make; default: the recipe's output.")] = None,
    dtype: Annotated[_DType, typer.Option("--dtype", help="What merged tensors are rounded to.")] = _DType.fp16,
    models: _Models = None,
    vae: Annotated[Path | None, typer.Option("--vae", metavar="FILE", help="Take the VAE from this file.")] = None,
    no_recipe: Annotated[
        bool, typer.Option("--no-recipe", help="Tell nothing of the recipe and its sources in the metadata.")
    ] = False,
) -> None:
    """Merge a recipe's checkpoints into one file, in float32, rounded once."""
    import torch

    from optimizer.recipes import folders_of, load_recipe, locate_models
    from optimizer.recipes import merge as merge_files

    loaded = load_recipe(recipe)
    name = attempt(lambda: loaded.step(step or loaded.output), f"{recipe}: --step").name
    if vae is not None and not vae.is_file():
        raise InputError(f"--vae: {vae}: no such file")
    files = {source: loaded.models[source].file for source in loaded.sources(name)}
    beside, *others = folders_of(loaded, recipe, _folders(models))
    paths = locate_models(files, beside, others, named_in=recipe)
    dtypes = {_DType.fp16: torch.float16, _DType.bf16: torch.bfloat16, _DType.fp32: torch.float32}
    with _reading() as progress:
        merge_files(
            loaded, paths, output, step=name, dtype=dtypes[dtype], vae=vae, embed_recipe=not no_recipe,
            date=datetime.now(UTC).isoformat(timespec="seconds"), hashes=_hashes(),
            hashing=lambda file, done, total: progress(f"hashing {file}", done, total),
            progress=lambda done, total: progress("merging", done, total),
        )  # fmt: skip
    _say(f"{name} -> {output}")


@app.command(epilog="Example: blockfit export best.yaml --to comfyui -o workflow.json")
def export(
    recipe: Annotated[Path, typer.Argument(metavar="RECIPE", help="The recipe's YAML file; every alpha a number.")],
    to: Annotated[str, typer.Option("--to", help="supermerger, model-mixer, mecha, comfyui or mergekit.")],
    output: Annotated[Path, typer.Option("-o", "--output", help="The file to write.")],
) -> None:
    """Write a recipe in another tool's format; what the format cannot express is refused, with the reason."""
    from optimizer.checkpoints import replace_text
    from optimizer.exports import EXPORTS, export_recipe
    from optimizer.recipes import load_recipe

    loaded = load_recipe(recipe)
    if output.resolve() == recipe.resolve():
        raise InputError(f"{output}: is the recipe itself; write to another file")
    replace_text(output, attempt(lambda: export_recipe(loaded, to), "--to" if to not in EXPORTS else recipe))
    _say(f"{loaded.output} -> {output}")


@app.command(
    "import",
    epilog="Examples: blockfit import article.txt -o recipe.yaml; blockfit import merged.safetensors -o recipe.yaml",
)
def import_recipe(
    source: Annotated[
        Path, typer.Argument(metavar="TEXT|MERGED", help="A text with formulas, or a merged checkpoint.")
    ],
    output: Annotated[Path, typer.Option("-o", "--output", help="The recipe's YAML file to write.")],
    mapping: Annotated[
        str | None, typer.Option("--mapping", help="supermerger (default), mecha or model-mixer; for a text.")
    ] = None,
    presets: Annotated[Path | None, typer.Option("--presets", help="A file of presets that the text names.")] = None,
    as_json: _Json = False,
) -> None:
    """Read a recipe from a text in SuperMerger's notation, prose and all, or from a merged file's metadata."""
    from optimizer.checkpoints import CHECKPOINT_SUFFIXES, open_checkpoint
    from optimizer.recipes import import_text, recipe_from_metadata, save_recipe

    not_understood: tuple[str, ...] = ()
    if output.resolve() == source.resolve():
        raise InputError(f"{output}: is what the recipe is read from; write to another file")
    if source.suffix.lower() in CHECKPOINT_SUFFIXES:
        for option, value in (("--mapping", mapping), ("--presets", presets)):
            if value is not None:
                raise InputError(f"{option}: received {value}; {source} is a merged file, which tells that itself")
        with open_checkpoint(source) as checkpoint:
            recipe, warnings = recipe_from_metadata(checkpoint.metadata, source)
    else:
        imported = import_text(source, mapping=mapping, presets=presets)
        recipe, warnings, not_understood = imported.recipe, imported.warnings, imported.not_understood
    save_recipe(recipe, output)
    for text in (*warnings, *not_understood):
        _problem(f"warning: {source}: {text}")
    if as_json:
        named = {"steps": [step.name for step in recipe.steps], "models": list(recipe.models), "output": recipe.output}
        _print_json({**named, "warnings": list(warnings), "not_understood": list(not_understood)})
        return
    counted = f"{len(recipe.steps)} steps, {len(recipe.models)} models, output {recipe.output}"
    _say(f"{counted} -> {output}")


@app.command(epilog="Example: blockfit verify configs/blessingmix-v1.yaml --target BracingEvoMix_v1.safetensors")
def verify(
    recipe: Annotated[Path, typer.Argument(metavar="RECIPE", help="The recipe's YAML file.")],
    target: Annotated[Path, typer.Option("--target", help="The checkpoint that the similarities are to.")],
    base: Annotated[str | None, typer.Option("--base", help="The model that delta takes differences from.")] = None,
    device: _Device = "auto",
    models: _Models = None,
    as_json: _Json = False,
) -> None:
    """Measure every step of a recipe against a target, beside the similarities that its `expect` fields report."""
    from optimizer.recipes import folders_of, load_recipe, locate, locate_models
    from optimizer.reports import verified_table
    from optimizer.similarity import verify as verify_recipe

    loaded = load_recipe(recipe)
    if base is not None and base not in loaded.models:
        raise InputError(f"--base: received {base!r}; the recipe's models are {', '.join(loaded.models)}")
    beside, *others = folders_of(loaded, recipe, _folders(models))
    # A recipe may hold the target itself, as the article's last step does; it need not lie there a second time.
    same = {
        name
        for name, model in loaded.models.items()
        if locate(model.file, beside, others) is None and locate(model.file, target.parent) == target
    }
    for name in same:
        _problem(f"warning: models.{name}.file: {loaded.models[name].file!r} is taken to be the target, {target}")
    files = {name: model.file for name, model in loaded.models.items() if name not in same}
    paths = locate_models(files, beside, others, named_in=recipe) | dict.fromkeys(same, target)
    with _reading() as progress:
        steps = verify_recipe(loaded, paths, target, base=base, device=_device(device), progress=progress)
    if as_json:
        _print_json([step.as_dict() for step in steps])
        return
    _console().print(verified_table(steps))


@app.command(
    epilog="Examples: blockfit preview best.yaml --target closed.safetensors --prompt 'a cat, oil painting' --seed 1 "
    "--seed 2 -o sheet.png; blockfit preview one.safetensors two.safetensors --target closed.safetensors "
    "--prompt 'a cat' --encoder-from closed.safetensors -o unets.png"
)
def preview(
    candidates: Annotated[
        list[Path],
        typer.Argument(metavar="RECIPE|CHECKPOINT...", help="Recipes (YAML, every alpha a number) and checkpoints."),
    ],
    target: Annotated[Path, typer.Option("--target", help="The checkpoint to come close to.")],
    prompts: Annotated[
        list[str],
        typer.Option(
            "--prompt", help="Taken as it is, without (word:1.2) weights; may be empty; may be repeated: a row each."
        ),
    ],
    output: Annotated[Path, typer.Option("-o", "--output", metavar="SHEET.png", help="The contact sheet to write.")],
    seeds: Annotated[
        list[int] | None,
        typer.Option("--seed", min=0, max=_LARGEST_SEED, help="Of the noise; may be repeated: a row each; default 0."),
    ] = None,
    steps: Annotated[int, typer.Option("--steps", min=1, max=1000, help="Of the sampler, DDIM.")] = 20,
    guidance: Annotated[
        float | None,
        typer.Option("--guidance", help="At least 1; default: the pipeline's own, 7 (2.5 for the demo's digits)."),
    ] = None,
    negative: Annotated[str, typer.Option("--negative", help="The negative prompt.")] = "",
    encoder_from: Annotated[
        Path | None,
        typer.Option(
            "--encoder-from", metavar="CHECKPOINT", help="Use this one's text encoder in all columns: compare UNets."
        ),
    ] = None,
    vae_from: Annotated[
        Path | None,
        typer.Option("--vae-from", metavar="FILE", help="The VAE of files without one; default: the target's."),
    ] = None,
    no_sources: Annotated[bool, typer.Option("--no-sources", help="Leave out the sources of recipes.")] = False,
    device: _Device = "auto",
    models: _Models = None,
    as_json: _Json = False,
) -> None:
    """Draw target, candidates and the recipes' sources from the same noise: a contact sheet with distances.

    Columns are the target, the candidates, then the recipes' sources; rows are prompts and seeds. The same seed is the
    same noise in every column and on every machine. Under each picture but the target's stand its distances to the
    target's: the root mean square difference of the final latents (before the VAE), and that of the pictures, RGB in
    [0, 1].

    A recipe is merged into a temporary float16 file beside the sheet, which is removed again. On a card, UNets and
    text encoders are float16; one checkpoint is in memory at a time.
    """
    from optimizer.pictures import preview as draw_preview
    from optimizer.reports import preview_table

    if guidance is not None and not (math.isfinite(guidance) and guidance >= 1):
        raise InputError(f"--guidance: received {guidance:g}; must be at least 1, which is none, such as 7")
    with _reading() as progress:
        found = draw_preview(
            target, candidates, output, prompts=prompts, seeds=seeds or [0], steps=steps, guidance=guidance,
            negative=negative, encoder_from=encoder_from, vae_from=vae_from, with_sources=not no_sources,
            folders=_folders(models), device=_device(device), progress=progress,
            warn=lambda text: _problem(f"warning: {text}"),
        )  # fmt: skip
    if as_json:
        _print_json({"output": str(output), **found.as_dict()})
        return
    _console().print(preview_table(found))
    for note in found.notes:
        _say(note)
    _say(f"sheet: {output}")


@app.command(epilog="Example: blockfit simplify studies/demo/best.yaml --tolerance 1e-4")
def simplify(
    recipe: Annotated[Path, typer.Argument(metavar="RECIPE", help="A finished recipe, such as a fit's best.yaml.")],
    tolerance: Annotated[float, typer.Option("--tolerance", help="The similarity that may be lost in all.")] = 1e-4,
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="The recipe to write; default: NAME.simple.yaml beside it.")
    ] = None,
    target: Annotated[Path | None, typer.Option("--target", help="Default: the target that the recipe notes.")] = None,
    metric: Annotated[str | None, typer.Option("--metric", help="Default: what the recipe was fitted by.")] = None,
    base: Annotated[str | None, typer.Option("--base", help="The model that delta takes differences from.")] = None,
    seeds: Annotated[
        list[int] | None,
        typer.Option("--seed", min=0, max=_LARGEST_SEED, help="Of attention's random inputs; may be repeated."),
    ] = None,
    device: _Device = "auto",
    models: _Models = None,
    as_json: _Json = False,
) -> None:
    """Make a finished recipe simpler: coarser alphas, fewer steps and sources, for nearly the same similarity."""
    from optimizer.reports import simplified_table
    from optimizer.search import simple_path, simplify_file

    if not (math.isfinite(tolerance) and tolerance > 0):
        raise InputError(f"--tolerance: received {tolerance:g}; must be a number above 0, such as 1e-4")
    written = output if output is not None else simple_path(recipe)
    with _reading() as progress:
        found = simplify_file(
            recipe, written, tolerance=tolerance, target=target, metric=metric, base=base, seeds=seeds,
            folders=_folders(models), device=_device(device), hashes=_hashes(), progress=progress,
            warn=lambda text: _problem(f"warning: {text}"),
        )  # fmt: skip
    if as_json:
        _print_json({"recipe": str(recipe), "output": str(written), "tolerance": tolerance, **found.as_dict()})
        return
    console = _console()
    console.print(simplified_table(found))
    _say(f"{found.recipe.output} -> {written}")


@app.command(epilog="Example: blockfit status studies/demo")
def status(study: _STUDY, storage: _Storage = None, as_json: _Json = False) -> None:
    """What a study has done so far, what is left, and who is at it; needs no checkpoints."""
    from optimizer.reports import status_table
    from optimizer.search import load_study, study_status

    found = study_status(load_study(study, with_files=False), storage)
    if as_json:
        _print_json(found.as_dict())
        return
    _console().print(status_table(found))


@app.command(epilog="Example: blockfit ceiling studies/demo --metric delta")
def ceiling(
    study: _STUDY,
    metric: Annotated[str, typer.Option("--metric", help="weights, delta or both.")] = "both",
    device: _Device = "auto",
    models: _Models = None,
    as_json: _Json = False,
) -> None:
    """What a study can reach: its best recipe, the best of its free alphas, the best merge of its sources at all.

    Also of a study that was never fitted. Needs no checkpoints once their statistics are in the study's folder.
    """
    from optimizer.reports import ceiling_tables
    from optimizer.search import load_study, study_ceilings

    loaded = load_study(study, _folders(models))
    with _reading() as progress:
        found = study_ceilings(loaded, metric, device=_device(device), progress=progress, hashes=_hashes())
    if as_json:
        *others, main_metric = found
        more = {"other_metrics": [one.as_dict() for one in others]} if metric == "both" else {}
        _print_json({**main_metric.as_dict(), **more})
        return
    console = _console()
    for one in found:
        for table in ceiling_tables(one):
            console.print(table)


@app.command(epilog="Example: blockfit demo my-first-fit")
def demo(
    folder: Annotated[Path, typer.Argument(metavar="[FOLDER]", help="Made if it is not there.")] = Path(
        "blockfit-demo"
    ),
    device: _Device = "auto",
) -> None:
    """Fit a small trained family of checkpoints, end to end: recipes, plots, pictures. Takes about a minute."""
    from optimizer.demo import run_demo

    run_demo(folder, fit=lambda study: fit_and_report(study, _device(device)), console=_console())


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
    with fit_logs(study.folder / "fit.log", log_file), _fitting() as events:
        result = run(
            study, device=device, fresh=fresh, candidates=candidates, workers=workers, storage=storage, events=events,
            hashes=_hashes(),
        )  # fmt: skip
        log_end(result)
    # The search is done and best.yaml written: none of the rest may cost the others.
    there, unwritten = ["best.yaml"], list[str]()
    with _message("drawing the plots"):
        for write, name in ((write_trials, "trials.csv"), (write_plots, "plots")):
            try:
                write(result, study.folder / name)
                there.append(name)
            except InputError as error:
                unwritten += error.problems
    console = _console()
    console.print(steps_table(result))
    if result.spread:
        console.print(spread_table(result))
    if result.candidates:
        console.print(candidates_table(result))
    if len(result.candidates) < candidates - 1:
        console.print(f"only {len(result.candidates) + 1} of {candidates} recipes: no other trial differs enough")
    for what, name in (("best recipe", "best.yaml"), ("every trial", "trials.csv"), ("plots", "plots")):
        if name in there:
            _say(f"{what}: {study.folder / name}")
    for problem in unwritten:
        _problem(problem)
    if unwritten and not result.interrupted:
        _problem(f"the search is done and in {study.folder / 'best.yaml'}; the same command writes what is missing")
        raise typer.Exit(1)
    return result


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run the command and leave with its exit code."""
    _use_utf8()
    given = list(arguments) if arguments is not None else None
    try:
        with _warnings_as_lines():
            code = app(args=given, prog_name="blockfit", standalone_mode=False)
    except InputError as error:
        _leave(2, error.problems)
    except (KeyboardInterrupt, typer.Abort):
        _leave(130, ["interrupted"])
    except BrokenPipeError:
        _leave(1, [])
    except _USAGE_ERROR as error:
        _leave(2, [error.format_message()])
    except Exception as error:
        if _State.debug:
            raise
        _leave(1, [f"{type(error).__name__}: {error}".splitlines()[0] + " (--debug shows where)"])
    sys.exit(code if isinstance(code, int) else 0)


def _leave(code: int, problems: Sequence[str]) -> NoReturn:
    if _State.debug and sys.exc_info()[0] is not None and code != 130:
        raise  # noqa: PLE0704
    for problem in problems[:_MOST_PROBLEMS]:
        _problem(problem)
    if len(problems) > _MOST_PROBLEMS:
        _problem(f"{len(problems) - _MOST_PROBLEMS:,} more problems")
    sys.exit(code)


def _problem(text: str) -> None:
    sys.stderr.write(f"blockfit: {printable(text)}\n")


@contextmanager
def _warnings_as_lines() -> Iterator[None]:
    """Show blockfit's own warnings as the command's lines on stderr, the same one once; others as Python does."""
    with warnings.catch_warnings():
        warnings.simplefilter("default", BlockfitWarning)
        otherwise = warnings.showwarning

        def show(message: Warning | str, category: type[Warning], *where: Any, **named: Any) -> None:
            if issubclass(category, BlockfitWarning):
                _problem(f"warning: {message}")
            else:
                otherwise(message, category, *where, **named)

        warnings.showwarning = show
        yield


def _use_utf8() -> None:
    """UTF-8 for files and pipes; a console keeps what it can show, and rich draws in ASCII where that is too little."""
    for stream in (sys.stdout, sys.stderr):
        if "PYTHONIOENCODING" not in os.environ and not stream.isatty():
            stream.reconfigure(encoding="utf-8", errors="replace")  # type: ignore[union-attr]
        else:
            stream.reconfigure(errors="replace")  # type: ignore[union-attr]


def _console(*, stderr: bool = False) -> Console:
    return Console(stderr=stderr, highlight=False)


def _print_json(value: Any) -> None:
    text = json.dumps(value, ensure_ascii=False, indent=1, allow_nan=False)
    # JSON escapes only half of what a terminal may act upon. The rest is inside texts, where escapes mean the same.
    lines = (
        line if line.isprintable() else "".join(c if printable(c) == c else json.dumps(c)[1:-1] for c in line)
        for line in text.split("\n")
    )
    sys.stdout.write("\n".join(lines) + "\n")


def _say(text: str) -> None:
    """One line on stdout, as it is: however long, and whatever it holds."""
    _console().print(printable(text), markup=False, highlight=False, soft_wrap=True)


def _folders(models: list[Path] | None) -> list[Path]:
    """The checkpoint folders of --models, then of BLOCKFIT_MODELS, which may list several."""
    found = list(models or [])
    if missing := [folder for folder in found if not folder.is_dir()]:
        raise InputError(f"--models: {folder} is not a folder" for folder in missing)
    return found + [Path(part) for part in os.environ.get("BLOCKFIT_MODELS", "").split(os.pathsep) if part]


def _hashes() -> "HashCache":
    from optimizer.checkpoints import HashCache, default_cache_folder

    return HashCache(default_cache_folder() / "hashes.json")


def _device(name: str) -> "torch.device":
    from optimizer.similarity import select_device, unused_card

    device = select_device(name)
    if name == "auto" and (advice := unused_card()):
        _problem(f"warning: {advice}")
    return device


@contextmanager
def _reading() -> Iterator[Callable[[str, int, int], None]]:
    """A progress bar on stderr for work that reads or writes files; nothing where stderr is no terminal."""
    with _bars() as bars:
        task = _tasks(bars)
        yield lambda what, done, total: bars.update(task(what), completed=done, total=total)


@contextmanager
def _fitting() -> Iterator["FitEvents"]:
    """Progress bars for a fit, and a log line for every trial."""
    from optimizer.reports import log_opened, log_trial, log_warning, progress_line
    from optimizer.search import FitEvents

    with _bars() as bars:
        task = _tasks(bars)

        def show(progress: "SearchProgress") -> None:
            bars.update(
                task(progress.search),
                completed=progress.done,
                total=progress.budget,
                figures=printable(progress_line(progress)),
            )

        def opened(progress: "SearchProgress") -> None:
            log_opened(progress)
            show(progress)

        def finished(progress: "SearchProgress", trial: "FrozenTrial") -> None:
            log_trial(progress, trial)
            show(progress)

        def reading(what: str, done: int, total: int) -> None:
            bars.update(task(what), completed=done, total=total, description=printable(what))

        def warned(text: str) -> None:
            log_warning(text)
            bars.console.print(f"blockfit: warning: {printable(text)}", markup=False, highlight=False, soft_wrap=True)

        yield FitEvents(reading, opened, finished, warned)


def _tasks(bars: Progress) -> Callable[[str], TaskID]:
    """A bar for each name, made when first asked for."""
    tasks: dict[str, TaskID] = {}

    def task(name: str) -> TaskID:
        if name not in tasks:
            tasks[name] = bars.add_task(printable(name), total=None, figures="")
        return tasks[name]

    return task


@contextmanager
def _bars() -> Iterator[Progress]:
    console = _console(stderr=True)
    columns = (
        # Where a window is narrow, these give way.
        TextColumn("{task.description}", markup=False, table_column=Column(no_wrap=True, overflow="ellipsis")),
        BarColumn(bar_width=12),
        TextColumn("{task.percentage:>3.0f}%"),
        TimeElapsedColumn(table_column=Column(min_width=7)),
        TimeRemainingColumn(table_column=Column(min_width=7)),
        TextColumn("{task.fields[figures]}", markup=False, table_column=Column(no_wrap=True, overflow="ellipsis")),
    )
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bars:
        yield bars


@contextmanager
def _message(text: str) -> Iterator[None]:
    console = _console(stderr=True)
    if not console.is_terminal:
        yield
        return
    with console.status(text, spinner="line"):
        yield
