"""Commands on recipes: from and to the formats of other tools, measuring and simplifying them."""

import math
from pathlib import Path
from typing import Annotated

import typer

from optimizer.choices import FormatName, listed
from optimizer.cli import completing
from optimizer.cli.application import Quiet, app, examples
from optimizer.cli.flags import in_options
from optimizer.cli.options import (
    LARGEST_SEED,
    BaseName,
    Device,
    Json,
    Models,
    NoVerify,
    RecipePath,
    checkpoint_finder,
    chosen_device,
    hash_cache,
    model_folders,
)
from optimizer.cli.printing import counted, make_console, print_json, reading, say, say_problem, say_warning
from optimizer.errors import InputError, attempt

# torch, optuna and matplotlib are imported by the commands that need them: `blockfit --help` answers at once.
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
    output: Annotated[Path, typer.Option("-o", "--output", help="The recipe's YAML file to write.")],
    mapping: Annotated[
        str | None,
        typer.Option(
            "--mapping",
            help="supermerger (default), mecha or model-mixer; for a text.",
            autocompletion=completing.mappings,
        ),
    ] = None,
    presets: Annotated[Path | None, typer.Option("--presets", help="A file of presets that the text names.")] = None,
    with_parents: Annotated[
        bool,
        typer.Option(
            "--with-parents", help="Put in the steps of models that were merged themselves, if metadata tells them."
        ),
    ] = False,
    models: Models = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Read a recipe from a text, another tool's file, or a merged file's metadata.

    Texts may hold formulas in SuperMerger's notation and others, prose and all, tables of steps, SuperMerger's console
    and history, and model-mixer's line. Read too: metadata as JSON, sd-mecha's texts, mergekit's YAML and ComfyUI's
    workflows. A line that looks like a step and is not understood gives a warning, and an error where the recipe would
    end a step too early without it.

    With --json one object: steps and models (their names), output (the step), warnings, not_understood (lines).
    """
    from optimizer.files import CHECKPOINT_SUFFIXES, check_output
    from optimizer.interchange import import_merged, import_text
    from optimizer.recipes import save_recipe

    with reading() as progress:
        source = checkpoint_finder(models, progress)(source)
    check_output(output, beside=source)
    if output.resolve() == source.resolve():
        raise InputError(f"{output}: is what the recipe is read from; write to another file")
    if source.suffix.lower() in CHECKPOINT_SUFFIXES:
        for field, value in (("mapping", mapping), ("presets", presets)):
            if value is not None:
                raise InputError(f"received {value}; {source} is a merged file, which tells that itself", field=field)
        imported = import_merged(source, with_parents=with_parents)
    else:
        imported = import_text(source, mapping=mapping, presets=presets, with_parents=with_parents)
    recipe = imported.recipe
    save_recipe(recipe, output)
    notes = list(map(in_options, imported.warnings))
    for text in (*notes, *imported.not_understood):
        say_problem(f"warning: {source}: {text}")
    if as_json:
        named = {"steps": [step.name for step in recipe.steps], "models": list(recipe.models), "output": recipe.output}
        print_json({**named, "warnings": notes, "not_understood": list(imported.not_understood)})
        return
    steps, sources = counted(len(recipe.steps), "step"), counted(len(recipe.models), "model")
    say(f"{steps}, {sources}, output {recipe.output} -> {output}")


@app.command(
    short_help="Write a recipe in another tool's format.",
    epilog=examples(
        "export best.yaml --to supermerger -o recipe.txt",
        "export best.yaml --to comfyui -o workflow.json",
        "export best.yaml --to mergekit -o mergekit.yaml",
    ),
)
def export(
    recipe: Annotated[
        Path,
        typer.Argument(
            metavar="RECIPE",
            help="The recipe's YAML file; every alpha a number.",
            autocompletion=completing.recipes,
        ),
    ],
    to: Annotated[
        str,
        typer.Option("--to", help=f"{listed(FormatName)}.", autocompletion=completing.formats),
    ],
    output: Annotated[Path, typer.Option("-o", "--output", help="The file to write.")],
    models: Models = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Write a recipe in another tool's format; what the format cannot express is refused, with the reason.

    Files that the recipe calls without their extension, or by their hash, get their whole names where they are found.

    With --json one object: output (the file), format, step (the recipe's output).
    """
    from optimizer.files import check_output, replace_text
    from optimizer.interchange import EXPORTS, export_recipe, with_whole_names
    from optimizer.recipes import folders_of, load_recipe

    check_output(output, beside=recipe)
    loaded = load_recipe(recipe)
    if output.resolve() == recipe.resolve():
        raise InputError(f"{output}: is the recipe itself; write to another file")
    with reading() as progress:
        beside, *others = folders_of(loaded, recipe, model_folders(models))
        loaded = with_whole_names(loaded, beside, others, hashes=hash_cache(), progress=progress)
    replace_text(output, attempt(lambda: export_recipe(loaded, to), recipe if to in EXPORTS else ""))
    if as_json:
        print_json({"output": str(output), "format": to, "step": loaded.output})
        return
    say(f"{loaded.output} -> {output}")


@app.command(
    short_help="Measure a recipe's steps against a target.",
    epilog=examples(
        "verify best.yaml --target closed.safetensors",
        "verify recipe.yaml --target BracingEvoMix_v1 --models D:/webui",
    ),
)
def verify(
    recipe: RecipePath,
    target: Annotated[
        Path,
        typer.Option(
            "--target", help="The checkpoint that the similarities are to.", autocompletion=completing.checkpoints
        ),
    ],
    base: BaseName = None,
    no_verify: NoVerify = False,
    device: Device = "auto",
    models: Models = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Measure every step of a recipe against a target, beside the similarities that its `expect` fields report.

    With --json a list, one object a step: step, metric, seed, blocks ({"OUT03": {"measured", "expected"}}), total
    (measured, expected), not_measurable.
    """
    from optimizer.analysis import verify as verify_recipe
    from optimizer.library import find_models, locate, locate_models
    from optimizer.merging import check_noted_hashes
    from optimizer.recipes import folders_of, load_recipe
    from optimizer.reports import verified_table

    loaded = load_recipe(recipe)
    attempt(lambda: loaded.check_finished("measured", *(step.name for step in loaded.steps)), recipe)
    if base is not None and base not in loaded.models:
        raise InputError(f"received {base!r}; the recipe's models are {', '.join(loaded.models)}", field="base")
    with reading() as progress:
        hashes = hash_cache()
        target = checkpoint_finder(models, progress)(target, "target")
        beside, *others = folders_of(loaded, recipe, model_folders(models))
        files = {name: model.file for name, model in loaded.models.items()}
        paths, _ = find_models(files, beside, others, hashes=hashes, progress=progress)
        # A recipe may hold the target itself, as the article's last step does; it need not lie there a second time.
        same = {
            name
            for name in files
            if name not in paths and locate(files[name], target.parent, hashes=hashes, progress=progress) == target
        }
        for name in same:
            say_warning(f"models.{name}.file: {files[name]!r} is taken to be the target, {target}")
        paths |= dict.fromkeys(same, target)
        missing = {name: file for name, file in files.items() if name not in paths}
        locate_models(missing, beside, others, named_in=recipe, hashes=hashes, progress=progress)
        if not no_verify:
            check_noted_hashes(loaded.models, paths, named_in=recipe, hashes=hashes, progress=progress)
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
    recipe: Annotated[
        Path,
        typer.Argument(
            metavar="RECIPE",
            help="A finished recipe, such as a fit's best.yaml.",
            autocompletion=completing.recipes,
        ),
    ],
    share: Annotated[
        float,
        typer.Option("--share", help="What a block may lose: this share of what the recipe leaves unexplained of it."),
    ] = 0.05,
    tolerance: Annotated[
        float, typer.Option("--tolerance", help="What a block may lose besides, of its explained share.")
    ] = 1e-9,
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="The recipe to write; default: NAME.simple.yaml beside it.")
    ] = None,
    target: Annotated[
        Path | None,
        typer.Option(
            "--target", help="Default: the target that the recipe notes.", autocompletion=completing.checkpoints
        ),
    ] = None,
    metric: Annotated[
        str | None,
        typer.Option("--metric", help="Default: what the recipe was fitted by.", autocompletion=completing.metrics),
    ] = None,
    base: BaseName = None,
    seeds: Annotated[
        list[int] | None,
        typer.Option("--seed", min=0, max=LARGEST_SEED, help="Of attention's random inputs; may be repeated."),
    ] = None,
    prompts: Annotated[
        Path | None, typer.Option("--prompts", help="Of encoder, a line each; default: the file that the recipe notes.")
    ] = None,
    no_verify: NoVerify = False,
    device: Device = "auto",
    models: Models = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Make a finished recipe simpler: coarser alphas, fewer steps and sources, and as good in every block.

    With --json one object: recipe, output, share, tolerance, explained (before and after, of each block), searches
    (similarity before and after of each), distinct_numbers, grids, dropped (sources, steps), changed (each number,
    before and after).
    """
    from optimizer.analysis import simple_path, simplify_file
    from optimizer.reports import simplified_table
    from optimizer.similarity import check_installed

    check_installed([] if metric is None else [metric])
    for field, number in (("share", share), ("tolerance", tolerance)):
        if not (math.isfinite(number) and number >= 0):
            raise InputError(f"received {number:g}; must be a number from 0 up", field=field)
    written = output if output is not None else simple_path(recipe)
    with reading() as progress:
        goal = None if target is None else checkpoint_finder(models, progress)(target, "target")
        found = simplify_file(
            recipe, written, share=share, tolerance=tolerance, target=goal, metric=metric, base=base, seeds=seeds,
            prompts=prompts, folders=model_folders(models), check_hashes=not no_verify,
            device=chosen_device(device), hashes=hash_cache(),
            progress=progress, warn=say_warning,
        )  # fmt: skip
    if as_json:
        told = {"recipe": str(recipe), "output": str(written), "share": share, "tolerance": tolerance}
        print_json({**told, **found.as_dict()})
        return
    console = make_console()
    console.print(simplified_table(found))
    say(f"{found.recipe.output} -> {written}")
