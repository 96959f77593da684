"""Make a family of full-size checkpoints of random numbers, for measuring speed and memory.

    python studies/benchmarks/make_checkpoints.py /tmp/family                        # 15 GB, a few minutes
    python studies/benchmarks/make_checkpoints.py /tmp/family --target-unknown 0.3
    python studies/benchmarks/make_checkpoints.py /tmp/sdxl --family sdxl --sources 4   # 35 GB
    python studies/benchmarks/make_checkpoints.py /tmp/small --small                 # a sixteenth of the width, seconds

Names and shapes of all floating-point tensors are those of Stable Diffusion 1.5 (1130 tensors) or SDXL (2514). They
follow from the families' structure, so nothing is downloaded. The script writes, in float16:

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
from full_size_shapes import FAMILIES, Shapes
from torch import Tensor

from optimizer.checkpoints import TensorSpec, open_checkpoint, write_safetensors
from optimizer.errors import InputError
from optimizer.families import Layout, load_layout
from optimizer.merging import merge
from optimizer.recipes import Alpha, Model, Recipe, Step, load_recipe, save_recipe
from optimizer.similarity import select_device

FINETUNES = ("one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
SMALL = 16  # divisor of the widths of a small family
DISTANCE = 0.03  # of a finetune from the base, relative to the base
SHARED = 0.6  # part of that distance that all finetunes share; sqrt(1 - 0.6**2) = 0.8 belongs to each alone
LOGITS = 3.0  # standard deviation of the self-attention's logits on random inputs

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
    if not shape:
        return noise.mul_(0.05).add_(math.log(100))  # the scale of CLIP's logits
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


def _write(path: Path, layout: Layout, shapes: Shapes, make: Callable[[str], Tensor]) -> None:
    """Write a checkpoint in float16, one tensor at a time, with int64 position ids."""
    positions = {ids: shapes[embedding][0] for ids, embedding in layout.position_ids.items()}
    specs = [TensorSpec(name, torch.float16, shape) for name, shape in shapes.items()]
    specs += [TensorSpec(ids, torch.int64, (1, count)) for ids, count in positions.items()]

    def tensors() -> Iterator[tuple[str, Tensor]]:
        for ids, count in positions.items():
            yield ids, torch.arange(count).reshape(1, count)
        for name in shapes:
            yield name, make(name).to(torch.float16).cpu()

    print(f"writing {path}", flush=True)
    write_safetensors(path, specs, tensors(), {"format": "pt"})


def planted_recipe(layout: Layout, sources: int = 6) -> Recipe:
    """Return the target's recipe: three steps over the base and five finetunes, or three, with an alpha per block."""
    names = ("base", *FINETUNES[: 5 if sources > 5 else 3])

    def alpha(low: float, high: float, stride: int) -> Alpha:
        # The values are spread over low .. high. A stride coprime to their number visits each of them once.
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
            Step(
                "THIRD",
                "add_difference",
                "SECOND",
                *(("four", "five") if sources > 5 else ("one", "base")),
                alpha(0.05, 0.4, 17),
            ),
        ),
        output="THIRD",
    )


def make_family(
    folder: Path,
    *,
    family: str = "sd1",
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
        family: The layout of the checkpoints, one of `FAMILIES`.
        sources: The number of sources, including the base.
        unknown: The size of the target's unknown part, relative to the target's distance from the base.
        like: The finetune that the unknown part resembles (`write_target`).
        correlation: The cosine of the unknown part with the direction of `like`.
        seed: The seed of all numbers.
        small: Whether widths are divided by SMALL.
        device: The device that draws the numbers.
        recipe: The target's recipe, over models of the family. Default: `planted_recipe`.

    Raises:
        InputError: If the disk is too small.

    """
    layout = load_layout(family)
    shapes = FAMILIES[family](SMALL if small else 1)
    folder.mkdir(parents=True, exist_ok=True)
    # While a target with an unknown part is written, a float32 file of its known part is on the disk too.
    files = sources + (3 if unknown else 1)
    needed = files * 2 * sum(map(math.prod, shapes.values())) + (files << 20)
    if (free := shutil.disk_usage(folder).free) < needed:
        raise InputError(f"{folder}: the disk is too small: {needed:,} bytes are needed, {free:,} are free")
    base = folder / "base.safetensors"
    _write(base, layout, shapes, lambda name: _first(name, shapes[name], seed, device))
    with open_checkpoint(base) as opened:

        def write_finetune(finetune: str) -> None:
            def tuned(name: str) -> Tensor:
                start = opened.tensor(name).to(device).to(torch.float32)
                away = _noise(shapes[name], seed, "shared", name, device=device).mul_(SHARED)
                away.add_(_noise(shapes[name], seed, finetune, name, device=device), alpha=math.sqrt(1 - SHARED**2))
                return away.mul_(DISTANCE * _size(start)).add_(start)

            _write(folder / f"{finetune}.safetensors", layout, shapes, tuned)

        with ThreadPoolExecutor(1 if device.type == "cpu" else _FILES_AT_ONCE) as pool:
            list(pool.map(write_finetune, FINETUNES[: sources - 1]))
    save_recipe(recipe or planted_recipe(layout, sources), folder / "planted.yaml")
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
            _write(target, recipe.layout, shapes, with_unknown)
    finally:
        known.unlink(missing_ok=True)


def _unit(tensor: Tensor) -> Tensor:
    """Scale a tensor to size 1 in place and return it; a tensor of zeros stays as it is."""
    return tensor.div_(size) if (size := _size(tensor)) else tensor


def main() -> int:
    """Read the command line, make the family, and return the exit code."""
    parser = argparse.ArgumentParser(description="Make full-size random checkpoints for measuring speed and memory.")
    parser.add_argument("folder", type=Path, metavar="FOLDER")
    parser.add_argument("--family", default="sd1", choices=[*FAMILIES], help="layout of the checkpoints (default sd1)")
    parser.add_argument("--sources", type=int, default=6, choices=range(4, 11), help="base and finetunes (default 6)")
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
            family=given.family,
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
