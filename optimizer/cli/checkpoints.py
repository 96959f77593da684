"""Commands on checkpoints: inspect, compare and merge."""

from collections import Counter
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer

from optimizer.choices import DTypeName
from optimizer.cli import completing
from optimizer.cli.application import Quiet, app, examples
from optimizer.cli.options import (
    Device,
    Json,
    Models,
    NoVerify,
    Prompts,
    RecipePath,
    Target,
    checkpoint_argument,
    checkpoint_finder,
    checkpoint_library,
    checkpoint_option,
    chosen_device,
    hash_cache,
    metric_option,
    output_option,
    seed_option,
)
from optimizer.cli.printing import make_console, print_json, reading, say
from optimizer.errors import attempt

# Only the commands that need torch, optuna and matplotlib import them, so that `blockfit --help` is fast.
# ruff: noqa: PLC0415


@app.command(
    short_help="Show the contents of checkpoints and anything unusual.",
    epilog=examples(
        "inspect model.safetensors other.ckpt",
        'inspect "dreamshaper_8 [879db523c3]" --models D:/webui/models',
        "inspect model.safetensors --quick --json",
    ),
)
def inspect(
    files: Annotated[list[Path], checkpoint_argument("FILE")],
    as_json: Json = False,
    quick: Annotated[
        bool, typer.Option("--quick", help="Read no tensor data: skip the NaN scan and the sha256.")
    ] = False,
    models: Models = None,
    quiet: Quiet = False,
) -> None:
    """Show the contents of checkpoints: kind, layout, blocks, dtypes, hashes, metadata, and anything unusual.

    Also identifies other tensor files: LoRAs, parts of models, other model families and their add-ons.

    With --json a list with one object per file: file, size, format, kind (name, title, evidence; null if unknown),
    layout, dtypes, blocks, tensors, parameters, sha256, short_hash, fingerprint, metadata, merge, unusual.
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
    short_help="Measure the similarity of checkpoints to a target.",
    epilog=examples(
        "compare merge.safetensors --target closed.safetensors",
        "compare A.ckpt B.ckpt --target T.ckpt --blocks output",
        "compare A.ckpt --target T.ckpt --base v1-5-pruned-emaonly.ckpt",
        "compare dreamshaper_8 --target a60cfaa90d --models D:/webui/models",
    ),
)
def compare(
    candidates: Annotated[list[Path], checkpoint_argument("CANDIDATE")],
    target: Target,
    base: Annotated[
        Path | None,
        checkpoint_option("--base", "Base model, for explained and delta, which compare differences from it."),
    ] = None,
    metric: Annotated[str | None, metric_option("explained with --base, otherwise attention")] = None,
    blocks: Annotated[
        str,
        typer.Option(
            "--blocks",
            help="Blocks to compare: input, output, middle, all, or a list, OUT03-OUT11,M00 for example.",
            autocompletion=completing.block_lists,
        ),
    ] = "all",
    seed: Annotated[int, seed_option("Seed of the random inputs of attention.")] = 114514,
    prompts: Prompts = None,
    clip_skip: Annotated[
        int | None,
        typer.Option(
            "--clip-skip",
            min=1,
            help="Layer whose states encoder compares: 1 (default), the UNet's, or 2, the one before.",
        ),
    ] = None,
    device: Device = "auto",
    models: Models = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Measure the similarity of checkpoints to a target, block by block.

    With --base the default metric is explained: the share of the target's difference from the base that a candidate
    reproduces. The target scores 100%, the base 0%. Without --base it is attention: cosines of attention outputs, as in
    the article's table.

    The metric encoder scores the block BASE by the text encoder's outputs for prompts; --prompts replaces the built-in
    ones.

    With --json a list with one object per candidate: candidate (as typed), file, metric, seed, blocks (similarity of
    each; null if the target's block equals the base's), total (their mean), pooled (explained only: all blocks' squares
    summed first), verdict (explained only: text).
    """
    from optimizer.analysis import describe_compared
    from optimizer.reports import block_table
    from optimizer.similarity import METRICS, check_installed, read_prompts
    from optimizer.similarity import compare as compare_files

    check_installed([] if metric is None else [metric])
    texts = None if prompts is None else attempt(lambda: read_prompts(prompts), field="prompts")
    found = {}
    with reading() as progress:
        find = checkpoint_finder(models, progress)
        target_file = find(target, "target")
        base_file = None if base is None else find(base, "base")
        paths = {str(candidate): find(candidate) for candidate in candidates}
        for name, path in paths.items():
            found[name] = compare_files(
                path, target_file, metric=metric, blocks=blocks, base=base_file, seed=seed,
                prompts=texts, clip_skip=clip_skip, device=chosen_device(device), progress=progress,
            )  # fmt: skip
    used = next(iter(found.values())).metric
    verdicts = {
        name: describe_compared(scores, paths[name].stem, target_file.stem, base_file.stem)
        for name, scores in found.items()
        if used == "explained" and base_file is not None
    }
    if as_json:
        options: dict[str, object] = {"metric": used, "seed": seed}
        if METRICS[used].needs_prompts:
            options |= {
                "prompts": None if prompts is None else str(prompts),
                "clip_skip": 1 if clip_skip is None else clip_skip,
            }
        print_json(
            [
                {
                    "candidate": name,
                    "file": str(paths[name]),
                    **options,
                    "blocks": scores,
                    "total": scores.total if len(scores) > len(scores.unchanged) else None,
                    **({} if scores.pooled is None else {"pooled": scores.pooled}),
                    **({} if name not in verdicts else {"verdict": {"text": verdicts[name]}}),
                }
                for name, scores in found.items()
            ]
        )
        return
    uses = Counter(Path(name).name for name in found)
    rows = {Path(name).name if uses[Path(name).name] == 1 else name: scores for name, scores in found.items()}
    console = make_console()
    for verdict in verdicts.values():
        say(verdict)
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
    output: Annotated[Path, output_option("The .safetensors file to write.")],
    step: Annotated[str | None, typer.Option("--step", help="The step to merge; default: the recipe's output.")] = None,
    dtype: Annotated[DTypeName, typer.Option("--dtype", help="Number format of the merged tensors.")] = "fp16",
    models: Models = None,
    vae: Annotated[
        Path | None, checkpoint_option("--vae", "File to take the VAE from, instead of merging it.", metavar="FILE")
    ] = None,
    no_recipe: Annotated[
        bool, typer.Option("--no-recipe", help="Leave the recipe and its sources out of the file's metadata.")
    ] = False,
    no_verify: NoVerify = False,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Merge a recipe's checkpoints into one file, in float32, rounded once.

    A file whose sha256 differs from the one noted in the recipe is refused. With --no-verify it is accepted, and the
    merged file's metadata records that hashes were not verified.

    With --json one object: output, step, dtype, tensors, bytes (of the file), sources (the file of each model), vae.
    """
    import torch

    from optimizer.checkpoints import open_checkpoint
    from optimizer.files import check_output
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
        library = checkpoint_library(models, progress)
        beside, *others = folders_of(loaded, recipe, library.folders)
        paths = library.within(others).all_models(files, beside, named_in=recipe)
        options = MergeOptions(
            dtypes[dtype], vae_file, embed_recipe=not no_recipe, check_hashes=not no_verify, named_in=recipe,
            date=datetime.now(UTC).isoformat(timespec="seconds"),
        )  # fmt: skip
        write_merge(loaded, paths, output, options, step=name, hashes=hash_cache(), progress=progress)
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
