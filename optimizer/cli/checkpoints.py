"""Commands on checkpoints: what they hold, how similar they are, and merging them."""

from collections import Counter
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer

from optimizer.choices import DTypeName
from optimizer.cli import completing
from optimizer.cli.application import Quiet, app, examples
from optimizer.cli.options import (
    LARGEST_SEED,
    Device,
    Json,
    Models,
    NoVerify,
    RecipePath,
    Target,
    checkpoint_finder,
    chosen_device,
    hash_cache,
    model_folders,
)
from optimizer.cli.printing import make_console, print_json, reading, say
from optimizer.errors import attempt

# torch, optuna and matplotlib are imported by the commands that need them: `blockfit --help` answers at once.
# ruff: noqa: PLC0415


@app.command(
    short_help="What checkpoints hold, and what is unusual.",
    epilog=examples(
        "inspect model.safetensors other.ckpt",
        'inspect "dreamshaper_8 [879db523c3]" --models D:/webui/models',
        "inspect model.safetensors --quick --json",
    ),
)
def inspect(
    files: Annotated[
        list[Path],
        typer.Argument(
            metavar="FILE", help="Checkpoints: files, or names in --models.", autocompletion=completing.checkpoints
        ),
    ],
    as_json: Json = False,
    quick: Annotated[bool, typer.Option("--quick", help="Read no tensor data: no NaN scan, no sha256.")] = False,
    models: Models = None,
    quiet: Quiet = False,
) -> None:
    """What checkpoints hold: kind, layout, blocks, dtypes, hashes, metadata, and what is unusual.

    Other files of tensors are named, too: LoRAs, parts of a model, other model families and what goes beside them.

    With --json a list, one object a file: file, size, format, kind (name, title, evidence; null if not known), layout,
    dtypes, blocks, tensors, parameters, sha256, short_hash, fingerprint, metadata, merge, unusual.
    """
    from optimizer.library import inspect_checkpoint
    from optimizer.reports import inspection_table

    with reading() as progress:
        find = checkpoint_finder(models, progress)
        paths = [find(file) for file in files]
    inspections = [inspect_checkpoint(path, cache=hash_cache(), full=not quick) for path in paths]
    if as_json:
        print_json([inspection.as_dict() for inspection in inspections])
        return
    for inspection in inspections:
        make_console().print(inspection_table(inspection))


@app.command(
    short_help="How similar checkpoints are to a target.",
    epilog=examples(
        "compare merge.safetensors --target closed.safetensors",
        "compare A.ckpt B.ckpt --target T.ckpt --blocks output",
        "compare A.ckpt --target T.ckpt --base v1-5-pruned-emaonly.ckpt",
        "compare dreamshaper_8 --target a60cfaa90d --models D:/webui/models",
    ),
)
def compare(
    candidates: Annotated[
        list[Path],
        typer.Argument(
            metavar="CANDIDATE", help="Checkpoints: files, or names in --models.", autocompletion=completing.checkpoints
        ),
    ],
    target: Target,
    base: Annotated[
        Path | None,
        typer.Option(
            "--base", help="What explained and delta take differences from.", autocompletion=completing.checkpoints
        ),
    ] = None,
    metric: Annotated[
        str | None,
        typer.Option(
            "--metric",
            help="explained (default with --base), attention (default without), delta, weights, elements or encoder.",
            autocompletion=completing.metrics,
        ),
    ] = None,
    blocks: Annotated[
        str,
        typer.Option(
            "--blocks",
            help="input, output, middle, all, or as OUT03-OUT11,M00.",
            autocompletion=completing.block_lists,
        ),
    ] = "all",
    seed: Annotated[
        int, typer.Option("--seed", min=0, max=LARGEST_SEED, help="Of attention's random inputs.")
    ] = 114514,
    prompts: Annotated[
        Path | None, typer.Option("--prompts", help="A text file of prompts, a line each, for encoder.")
    ] = None,
    clip_skip: Annotated[
        int | None,
        typer.Option("--clip-skip", min=1, help="The layer that encoder reads, from the last; default 1."),
    ] = None,
    device: Device = "auto",
    models: Models = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """How similar checkpoints are to a target, per block.

    With --base the share of what makes the target different from the base that each explains: 100% is the target, 0%
    the base. Without it the article's table, cosines of attention outputs.

    `encoder` scores BASE by what the text encoder says to prompts; --prompts names others than those that ship.

    With --json a list, one object a candidate: candidate (as it was named), file, metric, seed, blocks (similarity of
    each, null if the target has it unchanged from the base), total (their mean), pooled (of explained: all blocks'
    squares summed first).
    """
    from optimizer.reports import block_table
    from optimizer.similarity import METRICS, check_installed, read_prompts
    from optimizer.similarity import compare as compare_files

    check_installed([] if metric is None else [metric])
    texts = None if prompts is None else attempt(lambda: read_prompts(prompts), field="prompts")
    found = {}
    with reading() as progress:
        find = checkpoint_finder(models, progress)
        goal = find(target, "target")
        origin = None if base is None else find(base, "base")
        paths = {str(candidate): find(candidate) for candidate in candidates}
        for name, path in paths.items():
            found[name] = compare_files(
                path, goal, metric=metric, blocks=blocks, base=origin, seed=seed,
                prompts=texts, clip_skip=clip_skip, device=chosen_device(device), progress=progress,
            )  # fmt: skip
    used = next(iter(found.values())).metric
    if as_json:
        told: dict[str, object] = {"metric": used, "seed": seed}
        if METRICS[used].needs_prompts:
            told |= {
                "prompts": None if prompts is None else str(prompts),
                "clip_skip": 1 if clip_skip is None else clip_skip,
            }
        print_json(
            [
                {
                    "candidate": name,
                    "file": str(paths[name]),
                    **told,
                    "blocks": scores,
                    "total": scores.total if len(scores) > len(scores.unchanged) else None,
                    **({} if scores.pooled is None else {"pooled": scores.pooled}),
                }
                for name, scores in found.items()
            ]
        )
        return
    called = Counter(Path(name).name for name in found)
    rows = {Path(name).name if called[Path(name).name] == 1 else name: scores for name, scores in found.items()}
    console = make_console()
    console.print(block_table(f"{used} similarity to {target.name}", rows, width=console.width))


@app.command(
    short_help="Merge a recipe's checkpoints into one file.",
    epilog=examples(
        "merge best.yaml -o clone.safetensors",
        "merge best.yaml -o clone.safetensors --dtype fp32 --step TEMP1",
        "merge best.yaml -o clone.safetensors --models D:/webui/models",
    ),
)
def merge(
    recipe: RecipePath,
    output: Annotated[Path, typer.Option("-o", "--output", help="The .safetensors file to write.")],
    step: Annotated[str | None, typer.Option("--step", help="The step to make; default: the recipe's output.")] = None,
    dtype: Annotated[DTypeName, typer.Option("--dtype", help="What merged tensors are rounded to.")] = "fp16",
    models: Models = None,
    vae: Annotated[
        Path | None,
        typer.Option(
            "--vae", metavar="FILE", help="Take the VAE from this file.", autocompletion=completing.checkpoints
        ),
    ] = None,
    no_recipe: Annotated[
        bool, typer.Option("--no-recipe", help="Tell nothing of the recipe and its sources in the metadata.")
    ] = False,
    no_verify: NoVerify = False,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Merge a recipe's checkpoints into one file, in float32, rounded once.

    A file that has another sha256 than the recipe notes of it is refused; with --no-verify it is taken, and the merged
    file's metadata says that hashes were not verified.

    With --json one object: output, step, dtype, tensors, bytes (of the file), sources (the file of each model), vae.
    """
    import torch

    from optimizer.checkpoints import open_checkpoint
    from optimizer.files import check_output
    from optimizer.library import locate_models
    from optimizer.merging import MergeOptions, write_merge
    from optimizer.recipes import folders_of, load_recipe

    check_output(output, beside=recipe)
    loaded = load_recipe(recipe)
    name = attempt(lambda: loaded.step(step or loaded.output), f"{recipe}: `step`").name
    attempt(lambda: loaded.check_finished("merged", name), recipe)
    files = {source: loaded.models[source].file for source in loaded.sources(name)}
    dtypes: dict[DTypeName, torch.dtype] = {"fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32}
    with reading() as progress:
        vae_file = None if vae is None else checkpoint_finder(models, progress)(vae, "vae")
        beside, *others = folders_of(loaded, recipe, model_folders(models))
        paths = locate_models(files, beside, others, named_in=recipe, hashes=hash_cache(), progress=progress)
        options = MergeOptions(
            dtypes[dtype], vae_file, embed_recipe=not no_recipe, check_hashes=not no_verify, named_in=recipe,
            date=datetime.now(UTC).isoformat(timespec="seconds"),
        )  # fmt: skip
        write_merge(
            loaded, paths, output, options, step=name, hashes=hash_cache(),
            hashing=lambda file, done, total: progress(f"hashing {file}", done, total),
            progress=lambda done, total: progress("merging", done, total),
        )  # fmt: skip
    if as_json:
        with open_checkpoint(output) as written:
            print_json(
                {
                    "output": str(output),
                    "step": name,
                    "dtype": dtype,
                    "tensors": len(written.tensors),
                    "bytes": written.size,
                    "sources": {source: str(path) for source, path in paths.items()},
                    "vae": None if vae_file is None else str(vae_file),
                }
            )
        return
    say(f"{name} -> {output}")
