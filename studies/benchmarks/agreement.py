"""Compare full-size merges with sd-mecha and with step-by-step formulas, and open one in diffusers.

    python studies/benchmarks/make_checkpoints.py /tmp/family --sources 6
    python studies/benchmarks/agreement.py /tmp/family --json figures.json

The script merges with each of the four modes and with all of them in one recipe. Every block has different alphas.

    mapping mecha          float32 merges by blockfit and by sd-mecha, which reads the exported recipe
    mapping supermerger    float32 merges by blockfit and by SuperMerger's formulas, step by step in float32

The figure for a tensor is the largest difference, relative to the tensor's largest value. The figure for a block is
that of its worst tensor. Afterwards diffusers' single-file loader opens a float16 merge with a local configuration, and
its UNet takes one step. At most two merged files of 4.3 GB are on the disk at a time.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from recording import add_json_option, record

from optimizer.checkpoints import TensorSource, open_checkpoint
from optimizer.errors import InputError
from optimizer.families import Layout, load_layout
from optimizer.interchange import export_recipe
from optimizer.merging import merge
from optimizer.recipes import Alpha, Model, Recipe, Step

sys.path.append(str(Path(__file__).parents[2] / "tests"))
from step_by_step import as_dicts, merge_by_steps  # the tests compare merges with the same formulas

TOLERANCE = 1e-6
MODELS = ("base", "one", "two")
LAYOUT: Layout = load_layout("sd1")


def spread(low: float, high: float, stride: int) -> Alpha:
    """Return an alpha whose values are spread over low .. high, a different one in every block."""
    count = len(LAYOUT.blocks)
    return Alpha(
        {b: round(low + (high - low) * ((stride * n) % count) / (count - 1), 3) for n, b in enumerate(LAYOUT.blocks)}
    )


def recipes() -> Iterator[tuple[str, Recipe]]:
    """Yield (name, recipe) for each mode, and for all modes in one recipe."""
    first, second = spread(-0.1, 1.1, 7), spread(0.05, 0.6, 11)
    steps = (
        Step("T1", "weight_sum", "base", "one", None, first),
        Step("T2", "add_difference", "base", "one", "two", first),
        Step("T3", "triple_sum", "base", "one", "two", second, first),
        Step("T4", "sum_twice", "base", "one", "two", first, second),
    )
    models = {name: Model(f"{name}.safetensors") for name in MODELS}
    for step in steps:
        yield step.mode, Recipe(step.mode, LAYOUT, models, (step,), step.name)
    chain = tuple(replace(step, a=before.name) for before, step in pairwise(steps))
    yield "all", Recipe("all", LAYOUT, models, (steps[0], *chain), "T4")


def worst_by_block(found: TensorSource, expected: Iterator[tuple[str, torch.Tensor]], mapping: str) -> dict[str, float]:
    """Return the largest relative difference in each block.

    Args:
        found: The merge by blockfit.
        expected: The expected tensors by name, one at a time.
        mapping: The mapping that assigns tensors to blocks.

    Returns:
        {block: largest difference, relative to the tensor's largest value}.

    Raises:
        ValueError: If the merge holds a tensor that is not expected.

    """
    worst = dict.fromkeys(LAYOUT.blocks, 0.0)
    missing = {name for name in found.tensors if name not in LAYOUT.position_ids}
    for name, value in expected:
        missing.discard(name)
        difference = float((found.tensor(name).float() - value.float()).abs().max()) / float(value.abs().max())
        block = LAYOUT.block_of(name, mapping) or LAYOUT.blocks[0]
        worst[block] = max(worst[block], difference)
    if missing:
        raise ValueError(f"{len(missing)} tensors are in blockfit's merge only, {sorted(missing)[0]!r} first")
    return worst


def by_mecha(recipe: Recipe, folder: Path, output: Path) -> None:
    """Export the recipe and let sd-mecha merge it to `output`, in float32."""
    import sd_mecha  # noqa: PLC0415 - needed by this comparison only
    import tqdm  # noqa: PLC0415

    with contextlib.chdir(folder):
        exported = sd_mecha.deserialize(export_recipe(recipe, "mecha"))
        silent = partial(tqdm.tqdm, disable=True)
        sd_mecha.merge(exported, output=output, output_dtype=torch.float32, merge_dtype=torch.float32, tqdm=silent)


def by_steps(recipe: Recipe, folder: Path) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield each tensor's name and its merge by the formulas, step by step in float32."""
    steps = as_dicts(recipe.steps)
    with contextlib.ExitStack() as stack:
        opened = {name: stack.enter_context(open_checkpoint(folder / f"{name}.safetensors")) for name in MODELS}
        for name in opened["base"].tensors:
            if name not in LAYOUT.position_ids:
                models = {model: {name: checkpoint.tensor(name)} for model, checkpoint in opened.items()}
                yield name, merge_by_steps(steps, models, torch.float32)[recipe.output][name]


def compare(recipe: Recipe, folder: Path, work: Path) -> dict[str, dict[str, float]]:
    """Return {mapping: {block: largest relative difference}}."""
    paths = {name: folder / f"{name}.safetensors" for name in MODELS}
    ours, theirs = work / "blockfit.safetensors", work / "mecha.safetensors"
    found = {}
    for mapping in ("mecha", "supermerger"):
        mapped = replace(recipe, mapping=mapping)
        merge(mapped, paths, ours, dtype=torch.float32, embed_recipe=False)
        with open_checkpoint(ours) as merged:
            if mapping == "supermerger":
                found[mapping] = worst_by_block(merged, by_steps(mapped, folder), mapping)
                continue
            by_mecha(mapped, folder, theirs)
            with open_checkpoint(theirs) as by_other:
                tensors = ((name, by_other.tensor(name)) for name in by_other.tensors if name in merged.tensors)
                expected = ((name, value) for name, value in tensors if name not in LAYOUT.position_ids)
                found[mapping] = worst_by_block(merged, expected, mapping)
            theirs.unlink()
    ours.unlink()
    return found


def unet_configuration(checkpoint: Path) -> dict[str, Any]:
    """Return diffusers' configuration of Stable Diffusion 1.5's UNet, with the widths of the file."""
    unet = "model.diffusion_model."
    with open_checkpoint(checkpoint) as opened:
        width = opened.tensors[f"{unet}input_blocks.0.0.weight"].shape[0]
        context = opened.tensors[f"{unet}middle_block.1.transformer_blocks.0.attn2.to_k.weight"].shape[1]
    return {
        "_class_name": "UNet2DConditionModel",
        "sample_size": 64,
        "in_channels": 4,
        "out_channels": 4,
        "block_out_channels": [width, 2 * width, 4 * width, 4 * width],
        "layers_per_block": 2,
        "cross_attention_dim": context,
        "attention_head_dim": math.gcd(8, width),
        "norm_num_groups": math.gcd(32, width),
        "down_block_types": ["CrossAttnDownBlock2D"] * 3 + ["DownBlock2D"],
        "up_block_types": ["UpBlock2D"] + ["CrossAttnUpBlock2D"] * 3,
    }


def one_step_in_diffusers(recipe: Recipe, folder: Path, work: Path) -> float:
    """Return the standard deviation of the noise that a UNet merged in float16 predicts at 64 x 64 latents.

    Raises:
        ValueError: If the prediction has the wrong shape or is not finite.

    """
    import diffusers  # noqa: PLC0415 - takes seconds

    merged, configuration = work / "merged.safetensors", work / "configuration"
    merge(recipe, {name: folder / f"{name}.safetensors" for name in MODELS}, merged)
    (configuration / "unet").mkdir(parents=True)
    (configuration / "unet" / "config.json").write_text(json.dumps(unet_configuration(merged)), encoding="utf-8")
    unet = diffusers.UNet2DConditionModel.from_single_file(
        str(merged), config=str(configuration), subfolder="unet", local_files_only=True, torch_dtype=torch.float32
    )
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(1, 4, 64, 64, generator=generator)
    context = torch.randn(1, 77, unet.config.cross_attention_dim, generator=generator)
    with torch.no_grad():
        predicted = unet(noise, 500, encoder_hidden_states=context).sample
    merged.unlink()
    if predicted.shape != noise.shape or not bool(torch.isfinite(predicted).all()):
        raise ValueError(f"the UNet predicts {list(predicted.shape)}, finite: {bool(torch.isfinite(predicted).all())}")
    return float(predicted.std())


def main(arguments: list[str] | None = None) -> int:
    """Compare, print a table, and return 1 if anything differs by more than the tolerance."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="made by make_checkpoints.py, with at least two finetunes")
    parser.add_argument("--modes", nargs="+", help="recipes to merge (default: each mode, and all in one)")
    add_json_option(parser, "agreement")
    options = parser.parse_args(arguments)
    figures: dict[str, Any] = {"tolerance": TOLERANCE}
    with tempfile.TemporaryDirectory(dir=options.folder, prefix="agreement-") as work:
        print(f"{'':14}{'sd-mecha':>22}{'formulas, by steps':>22}", flush=True)
        for name, recipe in recipes():
            if options.modes and name not in options.modes:
                continue
            figures[name] = compare(recipe, options.folder, Path(work))
            shown = [max(blocks.items(), key=lambda item: item[1]) for blocks in figures[name].values()]
            print(f"{name:14}" + "".join(f"{value:>14.1e} in {block:<5}" for block, value in shown), flush=True)
        spread_of_noise = one_step_in_diffusers(recipe, options.folder, Path(work))
        figures["unet"] = spread_of_noise
        print(f"diffusers opens the merge; its UNet predicts noise of standard deviation {spread_of_noise:.3f}")
    largest = {
        name: {mapping: max(blocks.values()) for mapping, blocks in found.items()}
        for name, found in figures.items()
        if isinstance(found, dict)
    }
    record("agreement", {**figures, "largest difference": largest}, options.json, peers=("sd-mecha", "diffusers"))
    return int(max(value for found in largest.values() for value in found.values()) > TOLERANCE)


if __name__ == "__main__":
    try:
        sys.exit(main())
    except InputError as error:
        sys.exit("\n".join(error.problems))
