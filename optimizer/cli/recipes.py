"""Commands on recipes: import, export, verify and simplify."""

import math
from collections.abc import Collection
from pathlib import Path
from typing import Annotated

import typer

from optimizer.choices import FormatName, listed
from optimizer.cli import completing
from optimizer.cli.application import Quiet, app, examples
from optimizer.cli.flags import in_options
from optimizer.cli.options import (
    BaseName,
    Device,
    FinishedRecipePath,
    Json,
    Mapping,
    Models,
    NoVerify,
    Prompts,
    RecipePath,
    Target,
    checkpoint_finder,
    checkpoint_library,
    checkpoint_option,
    chosen_device,
    hash_cache,
    metric_option,
    model_folders,
    output_option,
    seed_option,
)
from optimizer.cli.printing import counted, make_console, print_json, reading, say, say_problem, say_warning
from optimizer.errors import InputError, attempt

# Only the commands that need torch, optuna and matplotlib import them, so that `blockfit --help` is fast.
# ruff: noqa: PLC0415


@app.command(
    "import",
    short_help="Read a recipe from a text, another tool's file or a merged file.",
    epilog=examples(
        "import article.txt -o recipe.yaml",
        "import formulas.txt -o recipe.yaml --presets mbwpresets.txt",
        "import workflow.json -o recipe.yaml",
        "import merged.safetensors -o recipe.yaml --with-parents",
    ),
)
def import_recipe(
    source: Annotated[
        Path,
        typer.Argument(
            metavar="TEXT|MERGED",
            help="A text with formulas or tables, another tool's file, or a merged checkpoint.",
            autocompletion=completing.texts_and_checkpoints,
        ),
    ],
    output: Annotated[Path, output_option("The recipe's YAML file to write.")],
    layout: Annotated[
        str | None,
        typer.Option(
            "--layout",
            help="Model family of a text that names none, by its layout; default: by the count of its numbers.",
            autocompletion=completing.layouts,
        ),
    ] = None,
    mapping: Mapping = None,
    presets: Annotated[
        Path | None, typer.Option("--presets", help="File with the presets that the text refers to by name.")
    ] = None,
    with_parents: Annotated[
        bool,
        typer.Option(
            "--with-parents", help="Add the steps of sources that are merges themselves, if the metadata contains them."
        ),
    ] = False,
    models: Models = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Read a recipe from a text, another tool's file, or a merged file's metadata.

    Texts may contain formulas in SuperMerger's and other notations, also within prose; tables of steps; SuperMerger's
    console output and history; and model-mixer's line. Other formats: metadata as JSON, sd-mecha's texts, mergekit's
    YAML and ComfyUI's workflows. --layout, --mapping and --presets apply to texts only.

    A line that looks like a step and cannot be parsed is a warning; it is an error if the recipe would end a step too
    early without it.

    With --json one object: steps and models (their names), output (the step), warnings, not_understood (lines).
    """
    from optimizer.files import CHECKPOINT_SUFFIXES, check_output
    from optimizer.interchange import import_merged, import_text
    from optimizer.recipes import save_recipe

    with reading() as progress:
        source = checkpoint_finder(models, progress)(source)
    check_output(output, beside=source)
    _check_not_input(output, source, "the imported file itself")
    if source.suffix.lower() in CHECKPOINT_SUFFIXES:
        _check_for_text(source, layout=layout, mapping=mapping, presets=presets)
        imported = import_merged(source, with_parents=with_parents)
    else:
        imported = import_text(source, layout=layout, mapping=mapping, presets=presets, with_parents=with_parents)
    recipe = imported.recipe
    save_recipe(recipe, output)
    notes = list(map(in_options, imported.warnings))
    for text in (*notes, *imported.not_understood):
        say_problem(f"warning: {source}: {text}")
    if as_json:
        names = {"steps": [step.name for step in recipe.steps], "models": list(recipe.models), "output": recipe.output}
        print_json({**names, "warnings": notes, "not_understood": list(imported.not_understood)})
        return
    steps, sources = counted(len(recipe.steps), "step"), counted(len(recipe.models), "model")
    say(f"{steps}, {sources}, output {recipe.output} -> {output}")


@app.command(
    short_help="Write a recipe in another tool's format.",
    epilog=examples(
        "export best.yaml --to supermerger -o recipe.txt",
        "export best.yaml --to comfyui -o workflow.json",
        "export best.yaml --to mergekit -o mergekit.yaml",
        "export best.yaml --to model-mixer -o mixer.json --approximate",
    ),
)
def export(
    recipe: FinishedRecipePath,
    to: Annotated[
        str,
        typer.Option("--to", help=f"Format to write: {listed(FormatName)}.", autocompletion=completing.formats),
    ],
    output: Annotated[Path, output_option("The file to write.")],
    approximate: Annotated[
        bool,
        typer.Option("--approximate", help="Change what the format cannot express, and measure what that costs."),
    ] = False,
    device: Device = "auto",
    models: Models = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Write a recipe in another tool's format.

    A recipe that the format cannot express is refused, with the reason. Models that the recipe names without extension
    or by hash get their full file names if the files are found.

    With --approximate, comfyui and model-mixer get the nearest recipe that they can express. Each change is a line on
    stderr, and the last line is the loss: the squared distance between the two merges, as a share of that between the
    recipe's merge and the base. It is measured from the study's statistics beside the recipe, or from the checkpoints.

    With --json one object: output (the file), format, step (the recipe's output), notes, approximated (field, blocks,
    before, after and reason of each change), loss (total, worst, blocks, vae, explained ...; null without changes).
    """
    from optimizer.analysis import conversion_loss
    from optimizer.files import check_output, replace_text
    from optimizer.interchange import (
        EXPORTS,
        Approximation,
        approximate_recipe,
        export_notes,
        export_recipe,
        with_whole_names,
    )
    from optimizer.recipes import folders_of, load_recipe

    check_output(output, beside=recipe)
    loaded = load_recipe(recipe)
    _check_not_input(output, recipe, "the recipe itself")
    with reading() as progress:
        library = checkpoint_library(models, progress)
        beside, *others = folders_of(loaded, recipe, library.folders)
        exported = with_whole_names(loaded, beside, library.within(others))
        where = recipe if to in EXPORTS else ""
        made = Approximation(exported)
        if approximate:
            made = attempt(lambda: approximate_recipe(exported, to), where)
        text = attempt(lambda: export_recipe(made.recipe, to), where)
        notes = [in_options(note) for note in (*made.notes, *export_notes(made.recipe, to))]
        loss = None
        if made.changes:
            loss = conversion_loss(
                recipe, made.recipe, folders=model_folders(models), device=chosen_device(device), hashes=hash_cache(),
                progress=progress,
            )  # fmt: skip
    replace_text(output, text)
    for note in (*notes, *map(str, made.changes), *([] if loss is None else [str(loss)])):
        say_problem(f"warning: {recipe}: {note}")
    if as_json:
        print_json(
            {
                "output": str(output),
                "format": to,
                "step": loaded.output,
                "notes": notes,
                "approximated": [change.as_dict() for change in made.changes],
                "loss": None if loss is None else loss.as_dict(),
            }
        )
        return
    exact = ", exact: nothing was approximated" if approximate and not made.changes else ""
    say(f"{loaded.output} -> {output}{exact}")


@app.command(
    short_help="Measure a recipe's steps against a target.",
    epilog=examples(
        "verify best.yaml --target closed.safetensors",
        "verify recipe.yaml --target BracingEvoMix_v1 --models D:/webui",
    ),
)
def verify(
    recipe: RecipePath,
    target: Target,
    base: BaseName = None,
    no_verify: NoVerify = False,
    device: Device = "auto",
    models: Models = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Measure every step of a recipe against a target, and list the similarities of its `expect` fields beside them.

    With --json a list with one object per step: step, metric, seed, blocks ({"OUT03": {"measured", "expected"}}), total
    (measured, expected), not_measurable.
    """
    from optimizer.analysis import verify as verify_recipe
    from optimizer.merging import check_noted_hashes
    from optimizer.recipes import folders_of, load_recipe
    from optimizer.reports import verified_table

    loaded = load_recipe(recipe)
    attempt(lambda: loaded.check_finished("measured", *(step.name for step in loaded.steps)), recipe)
    _check_base(base, loaded.models)
    with reading() as progress:
        library = checkpoint_library(models, progress)
        target = attempt(lambda: library.find_given(target), field="target")
        beside, *others = folders_of(loaded, recipe, library.folders)
        files = {name: model.file for name, model in loaded.models.items()}
        paths, _ = library.within(others).find_models(files, beside)
        # A recipe may use the target itself as a model, as the article's last step does; a second copy is not required.
        same = {
            name
            for name in files
            if name not in paths and library.within(()).find(files[name], target.parent) == target
        }
        for name in same:
            say_warning(f"models.{name}.file: {files[name]!r} is taken to be the target, {target}")
        paths |= dict.fromkeys(same, target)
        missing = {name: file for name, file in files.items() if name not in paths}
        library.within(others).all_models(missing, beside, named_in=recipe)
        if not no_verify:
            check_noted_hashes(loaded.models, paths, library, named_in=recipe)
        steps = verify_recipe(
            loaded, paths, target, base=base, check_hashes=False, device=chosen_device(device), progress=progress
        )
    if as_json:
        print_json([step.as_dict() for step in steps])
        return
    make_console().print(verified_table(steps))


@app.command(
    short_help="Make a finished recipe simpler.",
    epilog=examples(
        "simplify mine/best.yaml",
        "simplify mine/best.yaml --share 0.1 -o simple.yaml",
        "simplify recipe.yaml --target T.ckpt --base base",
    ),
)
def simplify(
    recipe: FinishedRecipePath,
    share: Annotated[
        float,
        typer.Option("--share", help="Loss allowed per block, as a share of the block's unexplained part."),
    ] = 0.05,
    tolerance: Annotated[
        float, typer.Option("--tolerance", help="Additional loss allowed per block, of its explained share.")
    ] = 1e-9,
    output: Annotated[
        Path | None, output_option("The recipe to write; default: NAME.simple.yaml beside the recipe.")
    ] = None,
    target: Annotated[
        Path | None, checkpoint_option("--target", "The checkpoint to compare with; default: the recipe's target.")
    ] = None,
    metric: Annotated[str | None, metric_option("the metric of the fit")] = None,
    base: BaseName = None,
    seeds: Annotated[list[int] | None, seed_option("Seed of the random inputs of attention; may be repeated.")] = None,
    prompts: Prompts = None,
    no_verify: NoVerify = False,
    device: Device = "auto",
    models: Models = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Make a finished recipe simpler: coarser alphas, fewer steps and sources, nearly equal similarity.

    --target, --metric, --seed and --prompts default to the values that the fit noted in the recipe.

    With --json one object: recipe, output, share, tolerance, explained (before and after, of each block), searches
    (similarity before and after of each), distinct_numbers, grids, dropped (sources, steps), changed (each number,
    before and after).
    """
    from optimizer.analysis import simple_path, simplify_file
    from optimizer.reports import simplified_table
    from optimizer.similarity import check_installed

    check_installed([] if metric is None else [metric])
    _check_not_negative(share=share, tolerance=tolerance)
    written = output if output is not None else simple_path(recipe)
    with reading() as progress:
        target_file = None if target is None else checkpoint_finder(models, progress)(target, "target")
        found = simplify_file(
            recipe, written, share=share, tolerance=tolerance, target=target_file, metric=metric, base=base,
            seeds=seeds, prompts=prompts, folders=model_folders(models), check_hashes=not no_verify,
            device=chosen_device(device), hashes=hash_cache(),
            progress=progress, warn=say_warning,
        )  # fmt: skip
    if as_json:
        options = {"recipe": str(recipe), "output": str(written), "share": share, "tolerance": tolerance}
        print_json({**options, **found.as_dict()})
        return
    console = make_console()
    console.print(simplified_table(found))
    say(f"{found.recipe.output} -> {written}")


def _check_not_input(output: Path, source: Path, noun: str) -> None:
    """Raise InputError if a command would overwrite the file that it reads."""
    if output.resolve() == source.resolve():
        raise InputError(f"{output}: is {noun}; write to another file")


def _check_for_text(source: Path, **values: object) -> None:
    """Raise InputError if an option for texts is given with a merged file."""
    for field, value in values.items():
        if value is not None:
            raise InputError(f"received {value}; {source} is a merged file, whose metadata contains this", field=field)


def _check_base(base: str | None, models: Collection[str]) -> None:
    """Raise InputError if the base is not one of the recipe's models."""
    if base is not None and base not in models:
        raise InputError(f"received {base!r}; must be one of the recipe's models: {', '.join(models)}", field="base")


def _check_not_negative(**numbers: float) -> None:
    """Raise InputError if one of the numbers is negative or not finite."""
    for field, number in numbers.items():
        if not (math.isfinite(number) and number >= 0):
            raise InputError(f"received {number:g}; must be a finite number, at least 0", field=field)
