"""Compare three ways to fit the article's eight output steps by their speed and by the errors of their coefficients.

    python studies/benchmarks/make_checkpoints.py /tmp/family --sources 8
    python studies/benchmarks/methods.py /tmp/family --json figures.json --plot methods.png

The target is merged with the article's alphas. The recipe is fitted to it on OUT03-OUT11 with the free alphas of
studies/blessingmix: one number for each of six steps, and one number per block for the other two.

    blockfit       run `python -m optimizer fit` as a whole process, with an empty cache of hashes
    TPE            run Optuna's TPE over the same alphas. A trial merges the nine blocks' tensors step by step and
                   computes the attention similarity. After --time-b seconds the same search continues with
                   similarities from coefficients, which are the same numbers, to count the trials that it needs. Each
                   of these trials counts as long as the median of the measured ones
    Nelder-Mead    run scipy's, block by block, over the coefficients of base + sum_i a_i (source_i - base). Blocks that
                   do not fit into --time-c seconds count as long as another block of their width; the report names
                   the measured ones

A method arrives when its similarity, the mean over the nine blocks, reaches blockfit's final one less 1e-6.
Nelder-Mead arrives in each block separately, and could be stopped at once. If a method never arrives, the ratio is a
lower bound: it counts all the time that the method took.

The largest error of a coefficient, over all blocks and all sources including the base, is measured for blockfit by
`delta` and by `attention`, with parts of the target unknown. A level of 0.3:0.2 stands for an unknown part of 30 % of
the target's distance from the base, correlated by 0.2 with the direction of one source. All files are read in full
before each fit is timed.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import matplotlib as mpl
import optuna
from article import Errors, article_recipe, coefficients, differences, largest
from full_size import BLOCKS
from make_checkpoints import FINETUNES, write_target
from measuring import disk_reads_of_children, warm_up
from other_methods import BlockFit, Moment, fit_blocks, improvements, search_by_merging
from recording import add_json_option, record

from optimizer.errors import InputError
from optimizer.recipes import Recipe, filled_alphas, load_recipe, parameters_of, save_recipe
from optimizer.search import storage_address
from optimizer.similarity import total_similarity

mpl.use("Agg")
from matplotlib import pyplot as plt
from matplotlib.axes import Axes

ROOT = Path(__file__).parents[2]
LEVELS = ("0", "0.1", "0.3", "0.1:0.05", "0.1:0.2", "0.3:0.05", "0.3:0.2")
THERE = 1e-6  # a method arrives when it is at most this far below blockfit's final similarity
GAPS = (1e-2, 1e-3, 1e-4, 1e-5, THERE)
GOAL_SECONDS, GOAL_TPE, GOAL_NELDER_MEAD, GOAL_ERROR = 60, 200, 50, 0.002
COLOURS = {"blockfit, attention": "C0", "blockfit, delta": "C2", "TPE": "C1", "Nelder-Mead": "C3"}
STUDY = """\
recipe: recipe.yaml
target: {{file: "{target}"}}
base: base
stages:
  - {{name: outputs, blocks: {blocks}, metric: {metric}, strategy: joint, trials: {trials}}}
"""


# --- The task ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Level:
    """The size of the target's unknown part, and its correlation with a source.

    Attributes:
        unknown: The size, relative to the target's distance from the base.
        correlation: The cosine with the direction of the source, in [-1, 1].

    """

    unknown: float
    correlation: float = 0.0

    @classmethod
    def parse(cls, text: str) -> Level:
        """Return the level written as UNKNOWN or UNKNOWN:CORRELATION.

        Args:
            text: Such as "0.3:0.2".

        Returns:
            The level.

        Raises:
            ValueError: If the text is not a level.

        """
        level = cls(*map(float, text.split(":")))
        if not (level.unknown >= 0 and -1 <= level.correlation <= 1):
            raise ValueError(text)
        return level

    def __str__(self) -> str:
        share = f"{100 * self.unknown:g} %"
        return f"{share}, correlated {self.correlation:g}" if self.correlation else share


# --- blockfit ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Fit:
    """A fit by blockfit.

    Attributes:
        metric: The metric.
        seconds: Seconds of the whole process.
        disk: Bytes that came from the disk although all files had been read before.
        course: The improvements of the similarity.
        similarity: The final similarity, the mean over the blocks.
        block_scores: The final similarity of each block.
        errors: The errors of the coefficients.

    """

    metric: str
    seconds: float
    disk: float
    course: list[Moment]
    similarity: float
    block_scores: dict[str, float]
    errors: Errors

    @property
    def there(self) -> float:
        """Seconds until the similarity reached its final value less `THERE`."""
        return next(moment.seconds for moment in self.course if moment.similarity >= self.similarity - THERE)


def fit_apart(study: Path, models: Path, recipe: Recipe, target: Path, metric: str, trials: int) -> Fit:
    """Fit the recipe with free alphas in a separate process, and compare the result with `recipe`.

    Args:
        study: The folder of the study, which is made anew.
        models: The folder of the family.
        recipe: The planted recipe.
        target: The target.
        metric: The metric.
        trials: The budget.

    Returns:
        The fit.

    Raises:
        InputError: If the process fails; the message has the end of its stderr.

    """
    shutil.rmtree(study, ignore_errors=True)
    study.mkdir()
    save_recipe(article_recipe(ROOT / "studies" / "blessingmix" / "recipe.yaml"), study / "recipe.yaml")
    text = STUDY.format(target=target.resolve().as_posix(), blocks=BLOCKS, metric=metric, trials=trials)
    (study / "study.yaml").write_text(text, encoding="utf-8")
    warm_up([*(models / model.file for model in recipe.models.values()), target])
    command = [sys.executable, "-m", "optimizer", "fit", str(study), "--models", str(models), "--device", "cpu"]
    # The empty cache makes each fit compute the hashes.
    environment = {**os.environ, "BLOCKFIT_CACHE": str(study / "cache")}
    before, start = disk_reads_of_children(), time.time()
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)  # noqa: S603
    seconds = time.time() - start
    if done.returncode:
        raise InputError(f"the fit by {metric} failed: {done.stderr.strip()[-2000:]}")
    storage = optuna.storages.RDBStorage(storage_address(None, study).url)
    trials_done = optuna.load_study(study_name="outputs", storage=storage).trials
    storage.remove_session()
    storage.engine.dispose()
    ends = [trial.datetime_complete.timestamp() - start for trial in trials_done]
    best = max(trials_done, key=lambda trial: trial.value)
    blocks = recipe.layout.parse_blocks(BLOCKS)
    found = coefficients(load_recipe(study / "best.yaml"), blocks)
    return Fit(
        metric,
        seconds,
        disk_reads_of_children() - before,
        improvements(ends, [trial.value for trial in trials_done]),
        best.value,
        best.user_attrs["block_scores"],
        differences(found, coefficients(recipe, blocks)),
    )


# --- The other methods ------------------------------------------------------------------------------------------------


def figures_of_tpe(
    recipe: Recipe, paths: Mapping[str, Path], target: Path, similarity: float, given: Any
) -> dict[str, Any]:
    """Search by TPE and merging, and return the figures.

    Args:
        recipe: The planted recipe.
        paths: The sources by name.
        target: The target.
        similarity: blockfit's final similarity.
        given: The command line.

    Returns:
        The figures, as the JSON has them.

    """
    unfilled, parameters = free_alphas(recipe)
    blocks = recipe.layout.parse_blocks(BLOCKS)
    search = search_by_merging(
        unfilled,
        parameters,
        paths,
        target,
        blocks,
        seconds=given.time_b,
        trials=given.trials_b,
        seconds_afterwards=given.time_b_afterwards,
        seed=given.seed,
    )
    median = statistics.median(search.whole)
    measured = [sum(search.whole[: number + 1]) for number in range(search.measured)]
    further = range(1, len(search.similarities) - search.measured + 1)
    ends = [*measured, *(measured[-1] + number * median for number in further)]
    course = improvements(ends, search.similarities)
    needed = {
        f"{gap:.0e}": next((n for n, value in enumerate(search.similarities, 1) if value >= similarity - gap), None)
        for gap in GAPS
    }
    found = unfilled.with_alphas(filled_alphas(parameters, search.best))
    return {
        "trials": len(search.similarities),
        "trials measured": search.measured,
        "seconds measured": measured[-1],
        "seconds": ends[-1],
        "median seconds of a trial": median,
        "seconds of loading": search.loading,
        "median seconds of merging": statistics.median(search.merging),
        "median seconds of comparing": statistics.median(search.comparing),
        "largest difference of a similarity from coefficients": search.worst,
        "similarity": max(search.similarities),
        "trials to blockfit's similarity less": needed,
        "there": ends[needed[f"{THERE:.0e}"] - 1] if needed[f"{THERE:.0e}"] else None,
        "course": [asdict(moment) for moment in course],
        "errors": differences(coefficients(found, blocks), coefficients(recipe, blocks)),
    }


def figures_of_nelder_mead(
    recipe: Recipe,
    paths: Mapping[str, Path],
    target: Path,
    block_scores: Mapping[str, float],
    seconds: float,
    given: Any,
) -> dict[str, Any]:
    """Fit the blocks by Nelder-Mead, and return the figures.

    Args:
        recipe: The planted recipe.
        paths: The sources by name.
        target: The target.
        block_scores: blockfit's final similarity of each block; a block arrives when it reaches this less `THERE`.
        seconds: The time for all blocks.
        given: The command line.

    Returns:
        The figures, as the JSON has them.

    """
    blocks = recipe.layout.parse_blocks(BLOCKS)
    fits = fit_blocks(
        recipe, paths, target, blocks, seconds=seconds, evaluations=given.evaluations_c, tolerance=given.tolerance_c
    )
    planted = coefficients(recipe, blocks)
    there = {
        fit.block: next((m.seconds for m in fit.course if m.similarity >= block_scores[fit.block] - THERE), None)
        for fit in fits
        if fit.measured
    }
    # A block that did not run counts like the first measured block of its width.
    by_width = {fit.width: there[fit.block] for fit in reversed(fits) if fit.measured}
    everywhere = [there[fit.block] if fit.measured else by_width[fit.width] for fit in fits]
    measured = [fit for fit in fits if fit.measured]
    return {
        "seconds": sum(fit.seconds for fit in fits),
        "seconds measured": sum(fit.seconds for fit in measured),
        "blocks measured": [fit.block for fit in measured],
        "tolerance": given.tolerance_c or "scipy's default, 1e-4",
        "most evaluations of a block": given.evaluations_c or "scipy's default, 200 for each coefficient",
        "similarity": total_similarity({fit.block: fit.course[-1].similarity for fit in fits}),
        "there": None if None in everywhere else sum(everywhere),
        "blocks there": [block for block, at in there.items() if at is not None],
        "number of blocks": len(blocks),
        "number of blocks there": sum(at is not None for at in there.values()),
        "milliseconds of an evaluation by width": {
            str(width): [
                pick(1000 * fit.seconds / fit.evaluations for fit in measured if fit.width == width)
                for pick in (min, max)
            ]
            for width in dict.fromkeys(fit.width for fit in measured)
        },
        "course": [asdict(moment) for moment in one_after_another(fits)],
        "errors": differences({fit.block: fit.coefficients for fit in measured}, planted),
        "blocks": [asdict(fit) for fit in fits],
    }


def one_after_another(fits: Sequence[BlockFit]) -> list[Moment]:
    """Return the mean similarity over the blocks while they are fitted in turn, the measured blocks first.

    Blocks whose turn has not come count with the similarity of their starting point.

    Args:
        fits: The blocks' fits.

    Returns:
        The moments at which the mean changes, and the end.

    """
    current = {fit.block: fit.course[0].similarity for fit in fits}
    found, before = [], 0.0
    for fit in sorted(fits, key=lambda fit: not fit.measured):
        for moment in fit.course:
            current[fit.block] = moment.similarity
            found.append(Moment(before + moment.seconds, total_similarity(current)))
        before += fit.seconds
    return [*found, Moment(before, found[-1].similarity)]


# --- The comparison ---------------------------------------------------------------------------------------------------


def measure(given: argparse.Namespace, work: Path) -> dict[str, Any]:
    """Compare the methods at every level, and return all figures.

    Args:
        given: The command line.
        work: A folder for studies and for one target at a time.

    Returns:
        The figures, as the JSON has them.

    Raises:
        InputError: If the family is incomplete or the disk is too small.

    """
    recipe = article_recipe(ROOT / "configs" / "blessingmix-v1.yaml")
    paths = {name: given.folder / model.file for name, model in recipe.models.items()}
    if missing := [path for path in paths.values() if not path.is_file()]:
        raise InputError(f"{missing[0]}: no such file; make_checkpoints.py FOLDER --sources 8 makes it")
    size = paths["base"].stat().st_size
    # While a target is written, a float32 file of its known part is on the disk too.
    if (free := shutil.disk_usage(work).free) < (needed := 4 * size):
        raise InputError(f"{work}: the disk is too small: {needed:,} bytes are needed, {free:,} are free")
    known = [level for level in given.levels if not level.correlation]
    most = max(known, key=lambda level: level.unknown, default=None)
    figures: dict[str, Any] = {
        "load before": os.getloadavg()[0],
        "blocks": BLOCKS,
        "sources": len(paths),
        "steps": len(recipe.steps),
        "alphas": len(free_alphas(recipe)[1]),
        "trials": given.trials,
        "goal of an error by delta": GOAL_ERROR,
        "goal, times longer: Nelder-Mead": GOAL_NELDER_MEAD,
        "correlated with": given.like,
        "bytes of the sources": sum(path.stat().st_size for path in paths.values()),
        "levels": [],
    }
    for level in given.levels:
        first = level == given.levels[0]
        target = work / "planted-target.safetensors"
        like = given.like if level.correlation else None
        write_target(
            recipe, paths, target, unknown=level.unknown, like=like, correlation=level.correlation, seed=given.seed
        )
        entry: dict[str, Any] = {"level": str(level), **asdict(level), "fits": {}}
        figures["levels"].append(entry)
        for metric in ("attention", "delta"):
            repeats = given.repeats if first else 1
            fits = [
                fit_apart(work / "study", given.folder, recipe, target, metric, given.trials) for _ in range(repeats)
            ]
            fit = sorted(fits, key=lambda fit: fit.seconds)[repeats // 2]
            entry["fits"][metric] = {
                **asdict(fit),
                "there": fit.there,
                "seconds of all runs": [run.seconds for run in fits],
                "error": largest(fit.errors),
            }
            report_progress(f"{level}: {metric} in {fit.seconds:.1f} s, error {largest(fit.errors):.1e}")
        by_attention = entry["fits"]["attention"]
        if first and given.time_b > 0:
            entry["TPE"] = figures_of_tpe(recipe, paths, target, by_attention["similarity"], given)
            report_progress(f"{level}: TPE, {entry['TPE']['trials']} trials")
        seconds = given.time_c if first else given.time_c_unknown if level == most else 0
        if seconds > 0:
            scores = by_attention["block_scores"]
            entry["Nelder-Mead"] = figures_of_nelder_mead(recipe, paths, target, scores, seconds, given)
            report_progress(f"{level}: Nelder-Mead, {entry['Nelder-Mead']['seconds measured']:.0f} s")
        for name in ("TPE", "Nelder-Mead"):
            if name in entry:
                entry[name]["error"] = largest(entry[name]["errors"])
        target.unlink()
        figures["load after"] = os.getloadavg()[0]
        if given.json:  # Written after each level, because all levels take an hour.
            figures["times longer"] = times_longer(figures)
            record("methods", figures, given.json, peers=("optuna", "scipy"))
    return figures


def free_alphas(recipe: Recipe) -> tuple[Recipe, list[Any]]:
    """Return the article's recipe with free alphas, and the free alphas that move the scored blocks."""
    unfilled = article_recipe(ROOT / "studies" / "blessingmix" / "recipe.yaml")
    blocks = set(recipe.layout.parse_blocks(BLOCKS))
    free = parameters_of(unfilled, [step.name for step in unfilled.steps])
    return unfilled, [each for each in free if set(each.blocks) & blocks]


def times_longer(figures: Mapping[str, Any]) -> dict[str, dict[str, float]]:
    """Return how many times longer the other methods took, at least, than blockfit's search and whole process."""
    level = figures["levels"][0]
    fit = level["fits"]["attention"]
    found = {}
    for name in ("TPE", "Nelder-Mead"):
        if name in level:
            seconds = level[name]["there"] or level[name]["seconds"]
            found[name] = {"search": int(seconds / fit["there"]), "whole process": int(seconds / fit["seconds"])}
    return found


def report_progress(text: str) -> None:
    """Print a line to stderr."""
    print(text, file=sys.stderr, flush=True)


def ratio(method: Mapping[str, Any], seconds: float) -> str:
    """Return how many times longer a method took than `seconds`, with "more than" if it never arrived."""
    if method["there"] is None:
        return f"more than {method['seconds'] / seconds:.0f}"
    return f"{method['there'] / seconds:.0f}"


def as_markdown(figures: Mapping[str, Any]) -> str:
    """Return the figures as two Markdown tables, followed by remarks."""
    level = figures["levels"][0]
    fit = level["fits"]["attention"]
    loads = f"load {figures['load before']:.1f} before, {figures['load after']:.1f} after"
    columns = (
        "",
        "similarity reached, 1 less",
        f"seconds to blockfit's similarity less {THERE:.0e}",
        "times longer than blockfit",
        "times longer than blockfit's whole process",
        "largest error of a coefficient",
    )
    whole = f"{fit['there']:.1f} (whole process {fit['seconds']:.1f})"
    lines = [
        f"{loads}. Target with {level['level']} unknown.",
        "",
        f"| {' | '.join(columns)} |",
        "|---|---|---|---|---|---|",
        f"| blockfit | {1 - fit['similarity']:.1e} | {whole} | 1 | | {fit['error']:.1e} |",
    ]
    for name in ("TPE", "Nelder-Mead"):
        if name in level:
            method = level[name]
            within = f"not within {method['seconds']:,.0f}"
            seconds = within if method["there"] is None else f"{method['there']:,.0f}"
            lines.append(
                f"| {name} | {1 - method['similarity']:.1e} | {seconds} | {ratio(method, fit['there'])} | "
                f"{ratio(method, fit['seconds'])} | {method['error']:.1e} |"
            )
    lines += [
        "",
        f"| unknown part (correlated with {figures['correlated with']}) | delta | attention | Nelder-Mead |",
        "|---|---|---|---|",
    ]
    for entry in figures["levels"]:
        errors = [entry["fits"][metric]["error"] for metric in ("delta", "attention")]
        last = f"{entry['Nelder-Mead']['error']:.1e}" if "Nelder-Mead" in entry else ""
        lines.append(f"| {entry['level']} | {errors[0]:.1e} | {errors[1]:.1e} | {last} |")
    return "\n".join([*lines, "", *remarks(figures)])


def remarks(figures: Mapping[str, Any]) -> list[str]:
    """Return lines that compare the figures with their goals, and tell measured from extrapolated ones."""
    level = figures["levels"][0]
    uncorrelated = [entry["fits"]["delta"]["error"] for entry in figures["levels"] if not entry["correlation"]]
    lines = []
    for metric, fit in level["fits"].items():
        every = " ".join(f"{seconds:.1f}" for seconds in fit["seconds of all runs"])
        disk = f"{fit['disk'] / 1e9:.2f} GB came from the disk"
        lines.append(f"whole process by {metric}, s: {every} (goal: {GOAL_SECONDS}); {disk}")
    lines.append(f"largest error by delta, uncorrelated: {max(uncorrelated, default=0):.1e} (goal: {GOAL_ERROR})")
    if tpe := level.get("TPE"):
        needed = ", ".join(
            f"{gap}: {count or 'more'}" for gap, count in tpe["trials to blockfit's similarity less"].items()
        )
        parts = f"{tpe['median seconds of merging']:.2f} merging, {tpe['median seconds of comparing']:.2f} comparing"
        measured = f"{tpe['trials measured']} of {tpe['trials']} trials"
        seconds = f"{tpe['seconds measured']:.0f} of {tpe['seconds']:,.0f} s"
        worst = tpe["largest difference of a similarity from coefficients"]
        lines += [
            f"TPE (goal: {GOAL_TPE} times longer): {measured}, {seconds} were measured",
            f"TPE: median {tpe['median seconds of a trial']:.2f} s per trial: {parts}",
            f"TPE: loading, which does not count, {tpe['seconds of loading']:.1f} s",
            f"TPE: trials to blockfit's similarity less {needed}",
            f"TPE: similarities of merged tensors and from coefficients differ by {worst:.1e} at most",
        ]
    for entry in figures["levels"]:
        if simplex := entry.get("Nelder-Mead"):
            done = [fit for fit in simplex["blocks"] if fit["measured"]]
            by_width = {fit["width"]: fit["seconds"] / fit["evaluations"] for fit in done}
            each = ", ".join(f"{1000 * seconds:.0f} ms at width {width}" for width, seconds in by_width.items())
            seconds = f"{simplex['seconds measured']:.0f} of {simplex['seconds']:.0f} s"
            converged = sum(fit["converged"] for fit in done)
            title = f"Nelder-Mead, {entry['level']}"
            lines += [
                f"{title} (goal: {GOAL_NELDER_MEAD} times longer): {', '.join(simplex['blocks measured'])}, {seconds}",
                f"{title}: {converged} of {len(done)} converged, {len(simplex['blocks there'])} reached blockfit's",
                f"{title}: an evaluation takes {each}",
            ]
    return lines


# --- Plot -------------------------------------------------------------------------------------------------------------


def draw(figures: Mapping[str, Any], path: Path) -> None:
    """Draw 1 - similarity against time on the left, and the errors of the coefficients by level on the right."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(12, 4.6), layout="constrained")
    draw_courses(left, figures["levels"][0])
    draw_errors(right, figures)
    figure.savefig(path, dpi=120)
    plt.close(figure)


def draw_courses(axes: Axes, level: Mapping[str, Any]) -> None:
    """Draw the best similarity so far of each method, dashed where it is extrapolated."""
    fit = level["fits"]["attention"]
    courses = {
        "blockfit, attention": (fit["course"], fit["seconds"], fit["seconds"]),
        **{
            name: (level[name]["course"], level[name]["seconds measured"], level[name]["seconds"])
            for name in ("TPE", "Nelder-Mead")
            if name in level
        },
    }
    for name, (course, measured, end) in courses.items():
        times = [moment["seconds"] for moment in course] + [end]
        gaps = [1 - moment["similarity"] for moment in course]
        gaps.append(gaps[-1])
        colour = COLOURS[name]
        before = [(at, gap) for at, gap in zip(times, gaps, strict=True) if at <= measured]
        if before[-1][0] < measured:
            before.append((measured, before[-1][1]))
        axes.step(*zip(*before, strict=True), where="post", color=colour, label=name)
        if end > measured:
            after = [before[-1], *((at, gap) for at, gap in zip(times, gaps, strict=True) if at > measured)]
            axes.step(*zip(*after, strict=True), where="post", color=colour, ls="--", label=f"{name}, extrapolated")
        axes.plot(times[0], gaps[0], "o", color=colour, ms=5)
        axes.plot(end, gaps[-1], "|", color=colour, ms=12, mew=2)
    axes.set(xscale="log", yscale="log", xlabel="seconds since the start", ylabel="1 - similarity, best so far")
    axes.set_title("Attention similarity against time", fontsize=11)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=9)


def draw_errors(axes: Axes, figures: Mapping[str, Any]) -> None:
    """Draw the largest error of a coefficient by level and method."""
    levels = figures["levels"]
    places = range(len(levels))
    series = {
        "blockfit, delta": [entry["fits"]["delta"]["error"] for entry in levels],
        "blockfit, attention": [entry["fits"]["attention"]["error"] for entry in levels],
        **{name: [entry.get(name, {}).get("error") for entry in levels] for name in ("TPE", "Nelder-Mead")},
    }
    for (name, values), marker, aside in zip(series.items(), "osv^", (-0.12, 0.12, -0.04, 0.04), strict=True):
        points = [(place + aside, value) for place, value in zip(places, values, strict=True) if value is not None]
        if points:
            axes.plot(*zip(*points, strict=True), marker, color=COLOURS[name], label=name, ms=7)
    axes.axhline(GOAL_ERROR, color="0.5", lw=1, ls=":")
    axes.annotate(f"{GOAL_ERROR}", (1, GOAL_ERROR), (3, 0), xycoords=("axes fraction", "data"),
                  textcoords="offset points", va="center", fontsize=8, color="0.4")  # fmt: skip
    labels = [
        f"{100 * entry['unknown']:g} %" + (f"\ncorrelated\n{entry['correlation']:g}" if entry["correlation"] else "")
        for entry in levels
    ]
    axes.set(yscale="log", xlabel="unknown part of the target", ylabel="largest error of a coefficient")
    axes.set_xticks(list(places), labels, fontsize=8)
    axes.set_xlim(-0.5, len(levels) - 0.5)
    axes.set_title("Recovered coefficients", fontsize=11)
    axes.grid(alpha=0.3, axis="y")
    axes.legend(fontsize=9)


def main() -> int:
    """Read the command line, compare the methods, print the tables, draw the plot, and return the exit code."""
    parser = argparse.ArgumentParser(description="Compare three ways to fit the article's eight output steps.")
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="made by make_checkpoints.py --sources 8")
    parser.add_argument("--trials", type=int, default=40, help="trials of blockfit (default 40)")
    parser.add_argument("--repeats", type=int, default=1, help="blockfit's timed fits; the middle one counts")
    parser.add_argument("--time-b", type=float, default=300, metavar="SECONDS", help="time for TPE by merging; 0: none")
    parser.add_argument("--trials-b", type=int, default=3000, help="most trials of TPE (default 3000)")
    parser.add_argument(
        "--time-b-afterwards", type=float, default=600, metavar="SECONDS",
        help="time for TPE from coefficients (default 600)",
    )  # fmt: skip
    parser.add_argument("--time-c", type=float, default=900, metavar="SECONDS", help="time for Nelder-Mead; 0: none")
    parser.add_argument(
        "--time-c-unknown", type=float, default=0, metavar="SECONDS",
        help="time for Nelder-Mead at the largest uncorrelated level (default 0: none)",
    )  # fmt: skip
    parser.add_argument(
        "--evaluations-c", type=int, help="most evaluations of Nelder-Mead per block (default: scipy's)"
    )
    parser.add_argument(
        "--tolerance-c", type=float, help="tolerance of Nelder-Mead's coefficients and similarities (scipy's: 1e-4)"
    )
    parser.add_argument(
        "--levels", nargs="+", type=Level.parse, metavar="UNKNOWN[:CORRELATION]", default=[*map(Level.parse, LEVELS)],
        help=f"unknown parts of the target; the other methods run at the first (default {' '.join(LEVELS)})",
    )  # fmt: skip
    parser.add_argument("--like", default="four", choices=FINETUNES[:7], help="source that unknown parts resemble")
    parser.add_argument("--seed", type=int, default=0, help="seed of TPE and of the unknown parts")
    parser.add_argument("--work", type=Path, metavar="DIR", help="for targets and studies (default: inside FOLDER)")
    parser.add_argument("--keep", action="store_true", help="keep the last study")
    add_json_option(parser, "methods")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="write the plot there")
    given = parser.parse_args()
    if min(given.trials, given.repeats, given.trials_b) < 1:
        parser.error("--trials, --repeats and --trials-b must be at least 1")
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        if given.work:
            given.work.mkdir(parents=True, exist_ok=True)
        work = Path(tempfile.mkdtemp(prefix="methods-", dir=given.work or given.folder))
        try:
            figures = measure(given, work)
        finally:
            if not given.keep:
                shutil.rmtree(work, ignore_errors=True)
    except (InputError, OSError) as error:
        print(error, file=sys.stderr)
        return 2
    print(as_markdown(figures))
    if given.plot:
        draw(figures, given.plot)
    return 0


if __name__ == "__main__":
    sys.exit(main())
