"""The command that draws pictures: preview."""

import math
from pathlib import Path
from typing import Annotated

import typer

from optimizer.cli import completing
from optimizer.cli.application import Quiet, app, examples
from optimizer.cli.options import (
    Device,
    Json,
    Models,
    NoVerify,
    Target,
    checkpoint_option,
    chosen_device,
    hash_cache,
    model_folders,
    output_option,
    seed_option,
)
from optimizer.cli.printing import make_console, print_json, reading, say, say_warning
from optimizer.errors import InputError
from optimizer.extras import require

# Only the commands that need torch, optuna and matplotlib import them, so that `blockfit --help` is fast.
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
            help="Recipes (YAML, with a number for every alpha) and checkpoints.",
            autocompletion=completing.candidates,
        ),
    ],
    target: Target,
    prompts: Annotated[
        list[str],
        typer.Option(
            "--prompt",
            help="Prompt; may be empty or repeated, one row each. Weights, (word:1.2) for example, have no effect.",
        ),
    ],
    output: Annotated[Path, output_option("The contact sheet to write.", metavar="SHEET.png")],
    seeds: Annotated[
        list[int] | None, seed_option("Seed of the noise; may be repeated, one row each; default: 0.")
    ] = None,
    steps: Annotated[
        int,
        typer.Option("--steps", min=1, max=1000, help="Steps of the sampler, DDIM; it rejects some counts above 100."),
    ] = 20,
    guidance: Annotated[
        float | None,
        typer.Option(
            "--guidance", help="Guidance scale, at least 1; default: the pipeline's, 7 (2.5 for the demo's digits)."
        ),
    ] = None,
    negative: Annotated[str, typer.Option("--negative", help="The negative prompt.")] = "",
    encoder_from: Annotated[
        Path | None,
        checkpoint_option(
            "--encoder-from",
            "Use this checkpoint's text encoder in all columns: compares UNets.",
            metavar="CHECKPOINT",
        ),
    ] = None,
    vae_from: Annotated[
        Path | None,
        checkpoint_option("--vae-from", "VAE for files without one; default: the target's.", metavar="FILE"),
    ] = None,
    no_sources: Annotated[bool, typer.Option("--no-sources", help="Leave out the recipes' sources.")] = False,
    no_verify: NoVerify = False,
    device: Device = "auto",
    models: Models = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Draw target, candidates and the recipes' sources from the same noise, as a contact sheet with distances.

    Columns are the target, the candidates and the recipes' sources; rows are prompts and seeds. A seed gives the same
    noise in every column and on every machine. Below each picture are two distances to the target's picture: the root
    mean square difference of the final latents (before the VAE), and that of the pixels, RGB in [0, 1].

    Each recipe is merged into a temporary float16 file beside the sheet. On a GPU, UNets and text encoders run in
    float16. One checkpoint is in memory at a time.

    If the best recipe of a study is among the candidates, its pictures are kept in the study's folder (pictures.json),
    and the study's report shows them.

    With --json one object: output, target, pipeline, steps, guidance, negative, encoder_from, columns (for each: name,
    file, role, latent and pixel distances: their means, and one value per picture).
    """
    require("pictures", "preview")
    from optimizer.pictures import PreviewRequest, write_preview
    from optimizer.reports import preview_table
    from optimizer.reports.drawn_pairs import keep_pairs

    _check_guidance(guidance)
    with reading() as progress:
        request = PreviewRequest(
            target, tuple(candidates), tuple(prompts), tuple(seeds or PreviewRequest.seeds), steps, guidance,
            negative, encoder_from, vae_from, with_sources=not no_sources, check_hashes=not no_verify,
        )  # fmt: skip
        found = write_preview(
            request, output, folders=model_folders(models), hashes=hash_cache(), device=chosen_device(device),
            progress=progress, warn=say_warning,
        )  # fmt: skip
    kept = keep_pairs(found)
    if as_json:
        print_json({"output": str(output), **found.as_dict()})
        return
    make_console().print(preview_table(found))
    for note in found.notes:
        say(note)
    say(f"sheet: {output}")
    for path in kept:
        say(f"kept for the report: {path}")


def _check_guidance(guidance: float | None) -> None:
    """Raise InputError if the guidance scale is below 1 or not finite."""
    if guidance is not None and not (math.isfinite(guidance) and guidance >= 1):
        raise InputError(f"received {guidance:g}; must be at least 1 (no guidance), 7 for example", field="guidance")
