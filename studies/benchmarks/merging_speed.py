"""Measure a merge of eight full-size checkpoints against a plain copy and against sd-mecha.

    python studies/benchmarks/make_checkpoints.py /tmp/family --sources 8
    python studies/benchmarks/merging_speed.py /tmp/family --repeats 3 --json figures.json

The recipe is the article's eight output steps, applied to all tensors. The contenders take turns, and every run is a
separate process:

    copy       read the eight files one after another into one buffer, and write the first to a new file
    merge      `optimizer.merging.merge` in float16, without hashing the sources for the metadata
    sd-mecha   the same steps, merged in float32 and written in float16, with its fastest settings: two threads per
               core, one torch thread in each, and without its checks for NaN and of its merge methods

The clock runs from the call to its return; imports do not count. copy and merge end with fsync, sd-mecha does not. All
sources are read in full before each run so that they are in the page cache; bytes that came from the disk nevertheless
are reported. At the end the two merged files are compared.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from measuring import AnonymousMemory, report, warm_up
from recording import add_json_option

from optimizer.checkpoints import open_checkpoint
from optimizer.errors import InputError
from optimizer.merging import merge
from optimizer.recipes import Recipe, load_recipe

# The article's models: one is OpenBra, two Evt V4, three diamondcoalmix, four epicrealism newAge, five sxd, six
# OpenBra 1.1, seven dreamshaper 6.
RECIPE = """\
models:
  base: {file: base.safetensors}
  one: {file: one.safetensors}
  two: {file: two.safetensors}
  three: {file: three.safetensors}
  four: {file: four.safetensors}
  five: {file: five.safetensors}
  six: {file: six.safetensors}
  seven: {file: seven.safetensors}
steps:
  - {name: TEMP1, mode: add_difference, a: one, b: two, c: base, alpha: 0.08}
  - {name: TEMP2, mode: add_difference, a: TEMP1, b: three, c: base, alpha: 0.1}
  - {name: TEMP3, mode: weight_sum, a: TEMP2, b: three, alpha: 0.05}
  - {name: TEMP4, mode: weight_sum, a: TEMP3, b: four, alpha: 0.1}
  - {name: TEMP5, mode: add_difference, a: TEMP4, b: five, c: base, alpha: 0.18}
  - {name: TEMP6, mode: add_difference, a: TEMP5, b: six, c: base, alpha: 0.06}
  - {name: TEMP7, mode: weight_sum, a: TEMP6, b: seven, alpha: {OUT06-OUT11: 0.15}}
  - {name: FINAL_OUTPUTS, mode: add_difference, a: TEMP7, b: six, c: base, alpha: {"OUT03, OUT04": 0.08}}
"""
CONTENDERS = ("copy", "merge", "sd-mecha")
DIFFERENCE = "largest difference between the merged files, relative to the tensor's largest value"
PEAK = "peak anonymous memory of the merge"
GOAL_COPY, GOAL_MECHA, GOAL_MEMORY = 1.5, 6.0, 1e9


# --- What is timed ----------------------------------------------------------------------------------------------------


def copy(_recipe: Recipe, sources: Mapping[str, Path], output: Path) -> None:
    """Read every source once and write a file as large as one of them."""
    buffer = memoryview(bytearray(1 << 22))
    with output.open("wb", buffering=0) as copied:
        for number, path in enumerate(sources.values()):
            with path.open("rb", buffering=0) as file:
                while count := file.readinto(buffer):
                    if number == 0:
                        copied.write(buffer[:count])
        os.fsync(copied.fileno())


def merge_here(recipe: Recipe, sources: Mapping[str, Path], output: Path) -> None:
    """Merge with blockfit."""
    merge(recipe, sources, output, embed_recipe=False)


def prepare_mecha(recipe: Recipe, sources: Mapping[str, Path], output: Path) -> Callable[[], object]:
    """Build sd-mecha's recipe and return the call that merges it."""
    # Imported here so that the other contenders run without it.
    import sd_mecha  # noqa: PLC0415
    from sd_mecha.extensions.builtin.merge_methods.linear import (  # noqa: PLC0415
        add_difference,
        subtract,
        weighted_sum,
    )

    known = {name: sd_mecha.model(path, config="sd1-ldm") for name, path in sources.items()}
    for step in recipe.steps:
        values = {block: step.alpha.at(block) for block in recipe.layout.blocks}
        alpha = values["BASE"]
        if len(set(values.values())) > 1:
            of_blocks = sd_mecha.literal(values, config="sd1-supermerger_blocks")
            alpha = sd_mecha.convert(of_blocks, known["base"])
        a, b = known[step.a], known[step.b]
        if step.c is None:
            known[step.name] = weighted_sum(a, b, alpha=alpha)
        else:
            # The wrapper `sd_mecha.add_difference` cannot be chained, and would read `a` twice.
            known[step.name] = add_difference(a, subtract(b, known[step.c]), alpha=alpha)
    torch.set_num_threads(1)
    return lambda: sd_mecha.merge(
        known[recipe.output],
        output=output,
        merge_dtype=torch.float32,
        output_dtype=torch.float16,
        threads=2 * (os.cpu_count() or 1),
        omit_non_finite_inputs=False,
        check_finite_output=False,
        validate_mm_contract=False,
    )


def run_one(contender: str, folder: Path, output: Path) -> dict[str, float]:
    """Run one contender in this process and return its figures."""
    recipe = parse_recipe()
    sources = {name: folder / model.file for name, model in recipe.models.items()}
    call: Callable[[], object]
    if contender == "sd-mecha":
        call = prepare_mecha(recipe, sources, output)
    else:
        work = copy if contender == "copy" else merge_here
        call = lambda: work(recipe, sources, output)  # noqa: E731
    with AnonymousMemory() as memory:
        before, start, of_cpu = read_io(), time.perf_counter(), time.process_time()
        call()
        seconds, cpu, after = time.perf_counter() - start, time.process_time() - of_cpu, read_io()
    moved = {name: after[name] - before[name] for name in after}
    return {
        "seconds": seconds,
        "seconds of processor time": cpu,
        "bytes read": moved.get("rchar", float("nan")),
        "bytes read from the disk": moved.get("read_bytes", float("nan")),
        "bytes written": moved.get("wchar", float("nan")),
        "anonymous memory before": memory.before,
        "peak anonymous memory": memory.peak,
    }


def read_io() -> dict[str, float]:
    """Return the bytes that this process has read and written, by counter; empty on systems without /proc."""
    try:
        lines = Path("/proc/self/io").read_text(encoding="ascii").splitlines()
    except OSError:
        return {}
    return {name: float(value) for name, _, value in (line.partition(":") for line in lines)}


def parse_recipe() -> Recipe:
    """Return the recipe that all contenders merge."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "recipe.yaml"
        path.write_text(RECIPE, encoding="utf-8")
        return load_recipe(path)


# --- Report -----------------------------------------------------------------------------------------------------------


def measure(folder: Path, repeats: int, contenders: Sequence[str]) -> dict[str, Any]:
    """Return all figures for a family written by `make_checkpoints.py`."""
    sources = [folder / model.file for model in parse_recipe().models.values()]
    outputs = {name: folder / f"{name}-output.safetensors" for name in contenders}
    runs: dict[str, list[dict[str, float]]] = {name: [] for name in outputs}
    try:
        for _ in range(repeats):
            for name, output in outputs.items():
                output.unlink(missing_ok=True)
                warm_up(sources)
                runs[name].append(run_apart(name, folder, output))
            outputs["copy"].unlink()
        difference = compare(outputs["merge"], outputs["sd-mecha"]) if "sd-mecha" in outputs else None
    finally:
        for output in outputs.values():
            output.unlink(missing_ok=True)
    median = {name: statistics.median(run["seconds"] for run in of_name) for name, of_name in runs.items()}
    return {
        "sources": len(sources),
        "steps": len(parse_recipe().steps),
        "bytes of the sources": sum(path.stat().st_size for path in sources),
        "bytes from the disk": max(middle(of_name, "bytes read from the disk") for of_name in runs.values()),
        "summary": {name: summary(of_name) for name, of_name in runs.items()},
        "runs": runs,
        "merge / copy": median["merge"] / median["copy"],
        "sd-mecha / merge": median["sd-mecha"] / median["merge"] if "sd-mecha" in median else None,
        PEAK: max(run["peak anonymous memory"] for run in runs["merge"]),
        DIFFERENCE: difference,
    }


def middle(runs: Sequence[Mapping[str, float]], key: str) -> float:
    """Return the median of a figure over the runs."""
    return statistics.median(run[key] for run in runs)


def summary(runs: Sequence[Mapping[str, float]]) -> dict[str, Any]:
    """Return the summary of one contender's runs that the documentation's table shows."""
    return {
        "median seconds": middle(runs, "seconds"),
        "seconds": [run["seconds"] for run in runs],
        "bytes read": middle(runs, "bytes read"),
        "bytes written": middle(runs, "bytes written"),
        "peak anonymous memory": max(run["peak anonymous memory"] for run in runs),
    }


def run_apart(contender: str, folder: Path, output: Path) -> dict[str, float]:
    """Run one contender in a separate process and return its figures.

    Args:
        contender: One of CONTENDERS.
        folder: The family.
        output: The file that the contender writes.

    Returns:
        Seconds and bytes by name.

    Raises:
        InputError: If the process fails; the message has the end of its stderr.

    """
    command = [sys.executable, __file__, str(folder), "--run", contender, str(output)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603
    if done.returncode:
        raise InputError(f"{contender} failed: {done.stderr.strip()[-2000:]}")
    figures: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    print(f"{contender}: {figures['seconds']:.2f} s", file=sys.stderr, flush=True)
    return figures


def compare(path: Path, other: Path) -> float:
    """Return the largest difference of a value in two files, relative to the largest value of its tensor."""
    worst = 0.0
    with open_checkpoint(path) as first, open_checkpoint(other) as second:
        for name in first.tensors:
            values, others = first.tensor(name).float(), second.tensor(name).float()
            worst = max(worst, float((values - others).abs().max() / values.abs().max()))
    return worst


def as_text(figures: Mapping[str, Any]) -> str:
    """Return the figures as a table, followed by the ratios with their goals and by notes."""
    lines = [
        f"sources: {figures['bytes of the sources']:,} bytes, read in full before each run",
        "",
        "| | median s | all, s | processor s | read | of it from the disk | written | peak anonymous memory (before) |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, of_name in figures["runs"].items():
        every = " ".join(f"{run['seconds']:.2f}" for run in of_name)
        moved = ("bytes read", "bytes read from the disk", "bytes written")
        read, disk, written = (f"{middle(of_name, what) / 1e9:.2f} GB" for what in moved)
        before, peak = middle(of_name, "anonymous memory before"), max(run["peak anonymous memory"] for run in of_name)
        processor = middle(of_name, "seconds of processor time")
        lines.append(
            f"| {name} | {middle(of_name, 'seconds'):.2f} | {every} | {processor:.2f} | {read} | "
            f"{disk} | {written} | {peak / 1e9:.2f} GB ({before / 1e9:.2f}) |"
        )
    lines += [
        "",
        f"merge / copy: {figures['merge / copy']:.2f} (goal: at most {GOAL_COPY})",
        f"{PEAK}: {figures[PEAK] / 1e9:.2f} GB (goal: at most {GOAL_MEMORY / 1e9:.0f})",
        "Hashing the sources, which a merge does for its metadata by default, is not included.",
        "Bytes read are those of read calls; mapped files are not counted.",
    ]
    if figures[DIFFERENCE] is not None:
        lines.append(f"sd-mecha / merge: {figures['sd-mecha / merge']:.1f} (goal: at least {GOAL_MECHA:.0f})")
        lines.append(f"{DIFFERENCE}: {figures[DIFFERENCE]:.1e}")
    return "\n".join(lines)


def main() -> int:
    """Read the command line, measure, print the table, and return the exit code."""
    parser = argparse.ArgumentParser(description="Measure a merge against a plain copy and against sd-mecha.")
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="made by make_checkpoints.py --sources 8")
    parser.add_argument("--repeats", type=int, default=3, help="runs of each contender (default 3)")
    add_json_option(parser, "merging_speed")
    parser.add_argument("--without-sd-mecha", action="store_true", help="run only merge and copy, which takes seconds")
    parser.add_argument("--run", nargs=2, metavar=("NAME", "OUTPUT"), help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.run:
        print(json.dumps(run_one(given.run[0], given.folder, Path(given.run[1]))))
        return 0
    return report(
        "merging_speed",
        lambda: measure(given.folder, given.repeats, CONTENDERS[:2] if given.without_sd_mecha else CONTENDERS),
        as_text,
        given.json,
        peers=() if given.without_sd_mecha else ("sd-mecha",),
    )


if __name__ == "__main__":
    sys.exit(main())
