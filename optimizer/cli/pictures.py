"""Commands that draw pictures."""

import math
from pathlib import Path
from typing import Annotated

import typer

from optimizer.cli import completing
from optimizer.cli.application import Quiet, app, examples
from optimizer.cli.options import (
    LARGEST_SEED,
    Device,
    Json,
    Models,
    NoVerify,
    Target,
    chosen_device,
    hash_cache,
    model_folders,
)
from optimizer.cli.printing import make_console, print_json, reading, say, say_warning
from optimizer.errors import InputError
from optimizer.extras import require

# torch, optuna and matplotlib are imported by the commands that need them: `blockfit --help` answers at once.
# ruff: noqa: PLC0415


@app.command(
    short_help="Draw target, candidates and sources side by side.",
    epilog=examples(
        'preview best.yaml --target T.ckpt --prompt "a cat" -o sheet.png',
        "preview A.ckpt B.ckpt --target T.ckpt --prompt cat -o sheet.png",
        "preview A.ckpt --target T.ckpt --prompt cat --seed 7 -o sheet.png",
    ),
)
def preview(
    candidates: Annotated[
        list[Path],
        typer.Argument(
            metavar="CANDIDATE",
            help="Recipes (YAML, every alpha a number) and checkpoints.",
            autocompletion=completing.candidates,
        ),
    ],
    target: Target,
    prompts: Annotated[
        list[str],
        typer.Option(
            "--prompt", help="Taken as it is, without (word:1.2) weights; may be empty; may be repeated: a row each."
        ),
    ],
    output: Annotated[Path, typer.Option("-o", "--output", metavar="SHEET.png", help="The contact sheet to write.")],
    seeds: Annotated[
        list[int] | None,
        typer.Option("--seed", min=0, max=LARGEST_SEED, help="Of the noise; may be repeated: a row each; default 0."),
    ] = None,
    steps: Annotated[
        int, typer.Option("--steps", min=1, max=1000, help="Of the sampler, DDIM; not all counts above 100 will do.")
    ] = 20,
    guidance: Annotated[
        float | None,
        typer.Option("--guidance", help="At least 1; default: the pipeline's own, 7 (2.5 for the demo's digits)."),
    ] = None,
    negative: Annotated[str, typer.Option("--negative", help="The negative prompt.")] = "",
    encoder_from: Annotated[
        Path | None,
        typer.Option(
            "--encoder-from",
            metavar="CHECKPOINT",
            help="Use this one's text encoder in all columns: compare UNets.",
            autocompletion=completing.checkpoints,
        ),
    ] = None,
    vae_from: Annotated[
        Path | None,
        typer.Option(
            "--vae-from",
            metavar="FILE",
            help="The VAE of files without one; default: the target's.",
            autocompletion=completing.checkpoints,
        ),
    ] = None,
    no_sources: Annotated[bool, typer.Option("--no-sources", help="Leave out the sources of recipes.")] = False,
    no_verify: NoVerify = False,
    device: Device = "auto",
    models: Models = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Draw target, candidates and the recipes' sources from the same noise: a contact sheet with distances.

    Columns are the target, the candidates, then the recipes' sources; rows are prompts and seeds. The same seed is the
    same noise in every column and on every machine. Under each picture but the target's stand its distances to the
    target's: the root mean square difference of the final latents (before the VAE), and that of the pictures, RGB in
    [0, 1].

    A recipe is merged into a temporary float16 file beside the sheet, which is removed again. On a card, UNets and
    text encoders are float16; one checkpoint is in memory at a time.

    With --json one object: output, target, pipeline, steps, guidance, negative, encoder_from, columns (for each name,
    file, role, latent and pixel distances, their means and of each picture).
    """
    require("pictures", "preview")
    from optimizer.pictures import PreviewRequest, write_preview
    from optimizer.reports import preview_table

    if guidance is not None and not (math.isfinite(guidance) and guidance >= 1):
        raise InputError(f"received {guidance:g}; must be at least 1, which is none, such as 7", field="guidance")
    with reading() as progress:
        request = PreviewRequest(
            target, tuple(candidates), tuple(prompts), tuple(seeds or [0]), steps, guidance, negative, encoder_from,
            vae_from, with_sources=not no_sources, check_hashes=not no_verify,
        )  # fmt: skip
        found = write_preview(
            request, output, folders=model_folders(models), hashes=hash_cache(), device=chosen_device(device),
            progress=progress, warn=say_warning,
        )  # fmt: skip
    if as_json:
        print_json({"output": str(output), **found.as_dict()})
        return
    make_console().print(preview_table(found))
    for note in found.notes:
        say(note)
    say(f"sheet: {output}")
