"""Make a family of full-size Stable Diffusion 1.5 checkpoints of random numbers, for measuring speed and memory.

    python studies/benchmarks/make_checkpoints.py /tmp/family                        # 15 GB, a few minutes
    python studies/benchmarks/make_checkpoints.py /tmp/family --target-unknown 0.3
    python studies/benchmarks/make_checkpoints.py /tmp/small --small                 # a sixteenth of the width, seconds

Names and shapes of all 1130 floating-point tensors are those of Stable Diffusion 1.5. They follow from its structure,
so nothing is downloaded. The script writes, in float16:

    base.safetensors           random numbers of realistic sizes
    one.safetensors ...        finetunes, 3 % away from the base, in partly shared directions
    target.safetensors         the merge by the recipe `planted.yaml`, plus an unknown part if requested

With --device cuda a GPU draws the numbers, which differ from the CPU's, and several files are written at a time.
"""

from __future__ import annotations

import argparse
import math
import shutil
import sys
import zlib
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import torch
from torch import Tensor

from optimizer.checkpoints import TensorSpec, open_checkpoint, write_safetensors
from optimizer.errors import InputError
from optimizer.families import load_layout
from optimizer.merging import merge
from optimizer.recipes import Alpha, Model, Recipe, Step, load_recipe, save_recipe
from optimizer.similarity import select_device

FINETUNES = ("one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
SMALL = 16  # divisor of the widths of a small family
DISTANCE = 0.03  # of a finetune from the base, relative to the base
SHARED = 0.6  # part of that distance that all finetunes share; sqrt(1 - 0.6**2) = 0.8 belongs to each alone
LOGITS = 3.0  # standard deviation of the self-attention's logits on random inputs

UNET = "model.diffusion_model."
TEXT = "cond_stage_model.transformer.text_model."
VAE = "first_stage_model."
POSITION_IDS = TEXT + "embeddings.position_ids"

Shapes = dict[str, tuple[int, ...]]


# --- Names and shapes -------------------------------------------------------------------------------------------------


def stable_diffusion_shapes(divisor: int = 1) -> Shapes:
    """Return {name: shape} of the floating-point tensors of Stable Diffusion 1.5, with widths divided by `divisor`."""
    return {**_unet(divisor), **_text_encoder(divisor), **_autoencoder(divisor)}


def _layer(shapes: Shapes, name: str, *shape: int, bias: bool = True) -> None:
    shapes[f"{name}.weight"] = shape
    if bias:
        shapes[f"{name}.bias"] = shape[:1]


def _unet(divisor: int) -> Shapes:
    shapes: Shapes = {}
    width, context = 320 // divisor, 768 // divisor
    levels = (width, 2 * width, 4 * width, 4 * width)
    embedding = 4 * width

    _layer(shapes, UNET + "time_embed.0", embedding, width)
    _layer(shapes, UNET + "time_embed.2", embedding, embedding)
    _layer(shapes, UNET + "input_blocks.0.0", width, 4, 3, 3)
    skipped, size, block = [width], width, 0
    for level, wide in enumerate(levels):
        for _ in range(2):
            block += 1
            _residual(shapes, f"{UNET}input_blocks.{block}.0", size, wide, embedding)
            if level < 3:
                _transformer(shapes, f"{UNET}input_blocks.{block}.1", wide, context)
            size = wide
            skipped.append(size)
        if level < 3:
            block += 1
            _layer(shapes, f"{UNET}input_blocks.{block}.0.op", size, size, 3, 3)
            skipped.append(size)
    _residual(shapes, UNET + "middle_block.0", size, size, embedding)
    _transformer(shapes, UNET + "middle_block.1", size, context)
    _residual(shapes, UNET + "middle_block.2", size, size, embedding)
    block = 0
    for level, wide in reversed(list(enumerate(levels))):
        for position in range(3):
            _residual(shapes, f"{UNET}output_blocks.{block}.0", size + skipped.pop(), wide, embedding)
            size = wide
            if level < 3:
                _transformer(shapes, f"{UNET}output_blocks.{block}.1", size, context)
            if level > 0 and position == 2:
                _layer(shapes, f"{UNET}output_blocks.{block}.{2 if level < 3 else 1}.conv", size, size, 3, 3)
            block += 1
    _layer(shapes, UNET + "out.0", size)
    _layer(shapes, UNET + "out.2", 4, size, 3, 3)
    return shapes


def _residual(shapes: Shapes, name: str, before: int, after: int, embedding: int) -> None:
    _layer(shapes, f"{name}.in_layers.0", before)
    _layer(shapes, f"{name}.in_layers.2", after, before, 3, 3)
    _layer(shapes, f"{name}.emb_layers.1", after, embedding)
    _layer(shapes, f"{name}.out_layers.0", after)
    _layer(shapes, f"{name}.out_layers.3", after, after, 3, 3)
    if before != after:
        _layer(shapes, f"{name}.skip_connection", after, before, 1, 1)


def _transformer(shapes: Shapes, name: str, size: int, context: int) -> None:
    _layer(shapes, f"{name}.norm", size)
    _layer(shapes, f"{name}.proj_in", size, size, 1, 1)
    inner = f"{name}.transformer_blocks.0"
    for attention, seen in (("attn1", size), ("attn2", context)):
        _layer(shapes, f"{inner}.{attention}.to_q", size, size, bias=False)
        _layer(shapes, f"{inner}.{attention}.to_k", size, seen, bias=False)
        _layer(shapes, f"{inner}.{attention}.to_v", size, seen, bias=False)
        _layer(shapes, f"{inner}.{attention}.to_out.0", size, size)
    _layer(shapes, f"{inner}.ff.net.0.proj", 8 * size, size)
    _layer(shapes, f"{inner}.ff.net.2", size, 4 * size)
    for number in (1, 2, 3):
        _layer(shapes, f"{inner}.norm{number}", size)
    _layer(shapes, f"{name}.proj_out", size, size, 1, 1)


def _text_encoder(divisor: int) -> Shapes:
    shapes: Shapes = {}
    width = 768 // divisor
    _layer(shapes, TEXT + "embeddings.token_embedding", 49408 // divisor, width, bias=False)
    _layer(shapes, TEXT + "embeddings.position_embedding", 77, width, bias=False)
    for number in range(12):
        name = f"{TEXT}encoder.layers.{number}"
        for projection in ("k_proj", "v_proj", "q_proj", "out_proj"):
            _layer(shapes, f"{name}.self_attn.{projection}", width, width)
        _layer(shapes, f"{name}.layer_norm1", width)
        _layer(shapes, f"{name}.mlp.fc1", 4 * width, width)
        _layer(shapes, f"{name}.mlp.fc2", width, 4 * width)
        _layer(shapes, f"{name}.layer_norm2", width)
    _layer(shapes, TEXT + "final_layer_norm", width)
    return shapes


def _autoencoder(divisor: int) -> Shapes:
    shapes: Shapes = {}
    width = 128 // divisor
    levels = (width, 2 * width, 4 * width, 4 * width)

    def residual(name: str, before: int, after: int) -> None:
        _layer(shapes, f"{name}.norm1", before)
        _layer(shapes, f"{name}.conv1", after, before, 3, 3)
        _layer(shapes, f"{name}.norm2", after)
        _layer(shapes, f"{name}.conv2", after, after, 3, 3)
        if before != after:
            _layer(shapes, f"{name}.nin_shortcut", after, before, 1, 1)

    def middle(name: str, size: int) -> None:
        residual(f"{name}.block_1", size, size)
        _layer(shapes, f"{name}.attn_1.norm", size)
        for part in ("q", "k", "v", "proj_out"):
            _layer(shapes, f"{name}.attn_1.{part}", size, size, 1, 1)
        residual(f"{name}.block_2", size, size)

    size = width
    _layer(shapes, VAE + "encoder.conv_in", width, 3, 3, 3)
    for level, wide in enumerate(levels):
        for number in range(2):
            residual(f"{VAE}encoder.down.{level}.block.{number}", size, wide)
            size = wide
        if level < 3:
            _layer(shapes, f"{VAE}encoder.down.{level}.downsample.conv", size, size, 3, 3)
    middle(VAE + "encoder.mid", size)
    _layer(shapes, VAE + "encoder.norm_out", size)
    _layer(shapes, VAE + "encoder.conv_out", 8, size, 3, 3)
    _layer(shapes, VAE + "decoder.conv_in", size, 4, 3, 3)
    middle(VAE + "decoder.mid", size)
    for level, wide in reversed(list(enumerate(levels))):
        for number in range(3):
            residual(f"{VAE}decoder.up.{level}.block.{number}", size, wide)
            size = wide
        if level > 0:
            _layer(shapes, f"{VAE}decoder.up.{level}.upsample.conv", size, size, 3, 3)
    _layer(shapes, VAE + "decoder.norm_out", size)
    _layer(shapes, VAE + "decoder.conv_out", 3, size, 3, 3)
    _layer(shapes, VAE + "quant_conv", 8, 8, 1, 1)
    _layer(shapes, VAE + "post_quant_conv", 4, 4, 1, 1)
    return shapes


# --- Numbers ----------------------------------------------------------------------------------------------------------


_PROCESSOR = torch.device("cpu")
_FILES_AT_ONCE = 4  # with a GPU; more are not written faster


def _noise(shape: tuple[int, ...], *key: object, device: torch.device = _PROCESSOR) -> Tensor:
    """Return standard normal numbers that depend only on `key` and the kind of device."""
    generator = torch.Generator(device).manual_seed(zlib.crc32(repr(key).encode()))
    return torch.randn(shape, generator=generator, device=device)


def _first(name: str, shape: tuple[int, ...], seed: int, device: torch.device = _PROCESSOR) -> Tensor:
    """Return a tensor of the base: matrices of about 1 / sqrt(inputs), norms around 1, small biases."""
    noise = _noise(shape, seed, "base", name, device=device)
    if len(shape) == 1:
        return noise.mul_(0.1).add_(1) if name.endswith(".weight") else noise.mul_(0.05)
    if "embedding" in name:
        return noise.mul_(0.02)
    inputs = math.prod(shape[1:])
    if name.endswith(("attn1.to_q.weight", "attn1.to_k.weight")):
        # With inputs of variance 1, the products of queries and keys then have the standard deviation LOGITS.
        return noise.mul_(math.sqrt(LOGITS) * inputs**-0.75)
    return noise.mul_(inputs**-0.5)


def _size(tensor: Tensor) -> float:
    return float(torch.linalg.vector_norm(tensor)) / math.sqrt(tensor.numel())


def _write(path: Path, shapes: Shapes, make: Callable[[str], Tensor]) -> None:
    """Write a checkpoint in float16, one tensor at a time, with int64 position ids."""
    specs = [TensorSpec(name, torch.float16, shape) for name, shape in shapes.items()]
    specs.append(TensorSpec(POSITION_IDS, torch.int64, (1, 77)))

    def tensors() -> Iterator[tuple[str, Tensor]]:
        yield POSITION_IDS, torch.arange(77).reshape(1, 77)
        for name in shapes:
            yield name, make(name).to(torch.float16).cpu()

    print(f"writing {path}", flush=True)
    write_safetensors(path, specs, tensors(), {"format": "pt"})


def planted_recipe() -> Recipe:
    """Return the target's recipe: three steps over the base and five finetunes, with an alpha per block."""
    layout = load_layout("sd1")
    names = ("base", *FINETUNES[:5])

    def alpha(low: float, high: float, stride: int) -> Alpha:
        # The values are spread over low .. high. A stride coprime to 26 visits each of them once.
        count = len(layout.blocks)
        values = (round(low + (high - low) * ((stride * row) % count) / (count - 1), 3) for row in range(count))
        return Alpha(dict(zip(layout.blocks, values, strict=True)))

    return Recipe(
        name="planted",
        layout=layout,
        models={name: Model(f"{name}.safetensors") for name in names},
        steps=(
            Step("FIRST", "add_difference", "one", "two", "base", alpha(0.1, 0.6, 7)),
            Step("SECOND", "weight_sum", "FIRST", "three", None, alpha(0.15, 0.5, 11)),
            Step("THIRD", "add_difference", "SECOND", "four", "five", alpha(0.05, 0.4, 17)),
        ),
        output="THIRD",
    )


def make_family(
    folder: Path,
    *,
    sources: int = 6,
    unknown: float = 0.0,
    like: str | None = None,
    correlation: float = 0.0,
    seed: int = 0,
    small: bool = False,
    device: torch.device = _PROCESSOR,
    recipe: Recipe | None = None,
) -> None:
    """Write the family into `folder`: the base, `sources` - 1 finetunes, the target and `planted.yaml`.

    Args:
        folder: The folder; it is made if necessary.
        sources: The number of sources, including the base.
        unknown: The size of the target's unknown part, relative to the target's distance from the base.
        like: The finetune that the unknown part resembles (`write_target`).
        correlation: The cosine of the unknown part with the direction of `like`.
        seed: The seed of all numbers.
        small: Whether widths are divided by SMALL.
        device: The device that draws the numbers.
        recipe: The target's recipe, over models of the family. Default: `planted_recipe()`.

    Raises:
        InputError: If the disk is too small.

    """
    shapes = stable_diffusion_shapes(SMALL if small else 1)
    folder.mkdir(parents=True, exist_ok=True)
    # While a target with an unknown part is written, a float32 file of its known part is on the disk too.
    files = sources + (3 if unknown else 1)
    needed = files * 2 * sum(map(math.prod, shapes.values())) + (files << 20)
    if (free := shutil.disk_usage(folder).free) < needed:
        raise InputError(f"{folder}: the disk is too small: {needed:,} bytes are needed, {free:,} are free")
    base = folder / "base.safetensors"
    _write(base, shapes, lambda name: _first(name, shapes[name], seed, device))
    with open_checkpoint(base) as opened:

        def write_finetune(finetune: str) -> None:
            def tuned(name: str) -> Tensor:
                start = opened.tensor(name).to(device).to(torch.float32)
                away = _noise(shapes[name], seed, "shared", name, device=device).mul_(SHARED)
                away.add_(_noise(shapes[name], seed, finetune, name, device=device), alpha=math.sqrt(1 - SHARED**2))
                return away.mul_(DISTANCE * _size(start)).add_(start)

            _write(folder / f"{finetune}.safetensors", shapes, tuned)

        with ThreadPoolExecutor(1 if device.type == "cpu" else _FILES_AT_ONCE) as pool:
            list(pool.map(write_finetune, FINETUNES[: sources - 1]))
    save_recipe(recipe or planted_recipe(), folder / "planted.yaml")
    recipe = load_recipe(folder / "planted.yaml")
    names = dict.fromkeys([*recipe.models, *([] if like is None else [like])])
    paths = {name: folder / f"{name}.safetensors" for name in names}
    target = folder / "target.safetensors"
    write_target(recipe, paths, target, unknown=unknown, like=like, correlation=correlation, seed=seed)


def write_target(
    recipe: Recipe,
    paths: Mapping[str, Path],
    target: Path,
    *,
    unknown: float = 0.0,
    like: str | None = None,
    correlation: float = 0.0,
    seed: int = 0,
) -> None:
    """Write the merge of `recipe` plus an unknown part that is in no source.

    In every tensor the size of the unknown part is `unknown` times the known part's distance from the model "base". Its
    direction is random, apart from a share in the direction from the base to the model `like`:

        unknown * |known - base| * (correlation * unit(like - base) + sqrt(1 - correlation^2) * unit(noise))

    While the target is written, a float32 file of the known part lies beside it.

    Args:
        recipe: The recipe of the known part.
        paths: The recipe's models by name, and `like`.
        target: The file to write.
        unknown: The relative size of the unknown part; 0 leaves it out.
        like: The model that the unknown part resembles; None for none.
        correlation: The cosine of the unknown part with the direction of `like`.
        seed: The seed of the unknown part.

    """
    if not unknown:
        print(f"writing {target}", flush=True)
        merge(recipe, paths, target, embed_recipe=False)
        return
    known = target.with_name("known.safetensors")
    try:
        merge(recipe, paths, known, dtype=torch.float32, embed_recipe=False)
        with open_checkpoint(known) as merged, open_checkpoint(paths["base"]) as base, ExitStack() as stack:
            towards = None if like is None else stack.enter_context(open_checkpoint(paths[like]))

            def with_unknown(name: str) -> Tensor:
                tensor, start = merged.tensor(name), base.tensor(name).to(torch.float32)
                added = _unit(_noise(tensor.shape, seed, "unknown", name))
                if towards is not None:
                    direction = _unit(towards.tensor(name).to(torch.float32) - start)
                    added = added.mul_(math.sqrt(1 - correlation**2)).add_(direction, alpha=correlation)
                return tensor + added.mul_(unknown * _size(tensor - start))

            shapes = {name: info.shape for name, info in merged.tensors.items() if info.dtype.is_floating_point}
            _write(target, shapes, with_unknown)
    finally:
        known.unlink(missing_ok=True)


def _unit(tensor: Tensor) -> Tensor:
    """Scale a tensor to size 1 in place and return it; a tensor of zeros stays as it is."""
    return tensor.div_(size) if (size := _size(tensor)) else tensor


def main() -> int:
    """Read the command line, make the family, and return the exit code."""
    parser = argparse.ArgumentParser(description="Make full-size random checkpoints for measuring speed and memory.")
    parser.add_argument("folder", type=Path, metavar="FOLDER")
    parser.add_argument("--sources", type=int, default=6, choices=range(6, 11), help="base and finetunes (default 6)")
    parser.add_argument("--target-unknown", type=float, default=0.0, help="size of the target's unknown part")
    parser.add_argument(
        "--target-correlated", choices=FINETUNES, metavar="NAME", help="finetune that the unknown part resembles"
    )
    parser.add_argument("--correlation", type=float, default=0.2, help="cosine of the two (default 0.2)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--small", action="store_true", help=f"divide the widths by {SMALL}")
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"], help="device that draws the numbers")
    given = parser.parse_args()
    if given.target_correlated not in {None, *FINETUNES[: given.sources - 1]}:
        parser.error(f"--target-correlated: {given.target_correlated} is not among {given.sources} sources")
    if not -1 <= given.correlation <= 1:
        parser.error(f"--correlation: received {given.correlation:g}; must lie within -1..1")
    try:
        make_family(
            given.folder,
            sources=given.sources,
            unknown=given.target_unknown,
            like=given.target_correlated,
            correlation=given.correlation,
            seed=given.seed,
            small=given.small,
            device=select_device(given.device),
        )
    except InputError as error:
        print(*error.problems, sep="\n", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
