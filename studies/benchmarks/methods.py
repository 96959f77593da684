"""Compare three ways to fit the article's eight output steps: how fast, and how near to the planted coefficients.

    python studies/benchmarks/make_checkpoints.py /tmp/family --sources 8
    python studies/benchmarks/methods.py /tmp/family --json figures.json --plot methods.png

The target is merged by the article's alphas, and the recipe is fitted to it on OUT03-OUT11 with these alphas open as
studies/blessingmix has them: one number for each of six steps, one for each block of the other two.

    blockfit       `python -m optimizer fit`, a process of its own from start to end, its cache of hashes empty
    TPE            Optuna's TPE over the same alphas; a trial merges the nine blocks' tensors step by step and computes
                   the attention similarity anew. After --time-b seconds the same search goes on with similarities from
                   coefficients, the same numbers, to learn how many trials it takes: each counts as the median of the
                   measured ones
    Nelder-Mead    scipy's, block by block, over the coefficients of base + sum_i a_i (source_i - base). Blocks that do
                   not fit into --time-c seconds count as long as another block of their width, and the report says so

A method is there when its similarity is blockfit's final one less 1e-6, the mean over the nine blocks; Nelder-Mead is
there in each block by itself, and could be stopped at once. For a method that never gets there the ratio is a lower
bound: all of the time that it took.

The errors of the coefficients (all blocks, all sources, the base included; the largest) are measured for blockfit by
`delta` and by `attention`, with parts of the target unknown: 0.3:0.2 stands for 30 % of its distance from the base,
correlated by 0.2 with the direction of one source. All files are read before each fit is timed.
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
THERE = 1e-6  # how far below blockfit's final similarity counts as there
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
    """How much of the target is unknown, relative to its distance from the base, and its correlation with a source."""

    unknown: float
    correlation: float = 0.0

    @classmethod
    def parse(cls, text: str) -> Level:
        """The level that is written UNKNOWN or UNKNOWN:CORRELATION. Raises ValueError."""
        level = cls(*map(float, text.split(":")))
        if not (level.unknown >= 0 and -1 <= level.correlation <= 1):
            raise ValueError(text)
        return level

    def __str__(self) -> str:
        share = f"{100 * self.unknown:g} %"
        return f"{share}, correlated {self.correlation:g}" if self.correlation else share


# --- This project -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Fit:
    """A fit by this project: seconds of the whole process, the best similarity so far, and what it found.

    `disk` is how many bytes did not come from the page cache, though all files had been read.
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
        """When the similarity was its final one less `THERE`, in seconds."""
        return next(moment.seconds for moment in self.course if moment.similarity >= self.similarity - THERE)


def fit_apart(study: Path, models: Path, recipe: Recipe, target: Path, metric: str, trials: int) -> Fit:
    """Fit the recipe with holes in a process of its own, in the folder `study`, and compare it with `recipe`'s alphas.

    Raises InputError with what the process said if it fails.
    """
    shutil.rmtree(study, ignore_errors=True)
    study.mkdir()
    save_recipe(article_recipe(ROOT / "studies" / "blessingmix" / "recipe.yaml"), study / "recipe.yaml")
    text = STUDY.format(target=target.resolve().as_posix(), blocks=BLOCKS, metric=metric, trials=trials)
    (study / "study.yaml").write_text(text, encoding="utf-8")
    warm_up([*(models / model.file for model in recipe.models.values()), target])
    command = [sys.executable, "-m", "optimizer", "fit", str(study), "--models", str(models), "--device", "cpu"]
    # Hashes are cached by default; here each fit computes them anew.
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


# --- The others -------------------------------------------------------------------------------------------------------


def figures_of_tpe(recipe: Recipe, paths: Mapping[str, Path], target: Path, goal: float, given: Any) -> dict[str, Any]:
    """The search by TPE and merging, until `goal` or as far as it gets."""
    holes, parameters = free_alphas(recipe)
    blocks = recipe.layout.parse_blocks(BLOCKS)
    search = search_by_merging(
        holes,
        parameters,
        paths,
        target,
        blocks,
        seconds=given.time_b,
        trials=given.trials_b,
        seconds_afterwards=given.time_b_afterwards,
        seed=given.seed,
    )
    each = statistics.median(search.whole)
    measured = [sum(search.whole[: number + 1]) for number in range(search.measured)]
    further = range(1, len(search.similarities) - search.measured + 1)
    ends = [*measured, *(measured[-1] + number * each for number in further)]
    course = improvements(ends, search.similarities)
    needed = {
        f"{gap:.0e}": next((n for n, value in enumerate(search.similarities, 1) if value >= goal - gap), None)
        for gap in GAPS
    }
    found = holes.with_alphas(filled_alphas(parameters, search.best))
    return {
        "trials": len(search.similarities),
        "trials measured": search.measured,
        "seconds measured": measured[-1],
        "seconds": ends[-1],
        "median seconds of a trial": each,
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
    recipe: Recipe, paths: Mapping[str, Path], target: Path, goals: Mapping[str, float], seconds: float, given: Any
) -> dict[str, Any]:
    """The blocks' fits by Nelder-Mead; each block is there when its similarity is its own of `goals` less `THERE`."""
    blocks = recipe.layout.parse_blocks(BLOCKS)
    fits = fit_blocks(
        recipe, paths, target, blocks, seconds=seconds, evaluations=given.evaluations_c, tolerance=given.tolerance_c
    )
    planted = coefficients(recipe, blocks)
    there = {
        fit.block: next((m.seconds for m in fit.course if m.similarity >= goals[fit.block] - THERE), None)
        for fit in fits
        if fit.measured
    }
    # A block that did not run is there when the one that stands for it is.
    stand = {fit.width: there[fit.block] for fit in reversed(fits) if fit.measured}
    everywhere = [there[fit.block] if fit.measured else stand[fit.width] for fit in fits]
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
    """The mean similarity over the blocks while they are fitted in turn, those measured first; later ones at start."""
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
    """All figures; targets and studies are written into the folder `work`, one target at a time."""
    recipe = article_recipe(ROOT / "configs" / "blessingmix-v1.yaml")
    paths = {name: given.folder / model.file for name, model in recipe.models.items()}
    if missing := [path for path in paths.values() if not path.is_file()]:
        raise InputError(f"{missing[0]}: no such file; make_checkpoints.py FOLDER --sources 8 makes it")
    size = paths["base"].stat().st_size
    # Beside a target stands a float32 file of its known part for a while.
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
                "seconds of all runs": [one.seconds for one in fits],
                "error": largest(fit.errors),
            }
            tell(f"{level}: {metric} in {fit.seconds:.1f} s, error {largest(fit.errors):.1e}")
        goal = entry["fits"]["attention"]
        if first and given.time_b > 0:
            entry["TPE"] = figures_of_tpe(recipe, paths, target, goal["similarity"], given)
            tell(f"{level}: TPE, {entry['TPE']['trials']} trials")
        seconds = given.time_c if first else given.time_c_unknown if level == most else 0
        if seconds > 0:
            entry["Nelder-Mead"] = figures_of_nelder_mead(recipe, paths, target, goal["block_scores"], seconds, given)
            tell(f"{level}: Nelder-Mead, {entry['Nelder-Mead']['seconds measured']:.0f} s")
        for name in ("TPE", "Nelder-Mead"):
            if name in entry:
                entry[name]["error"] = largest(entry[name]["errors"])
        target.unlink()
        figures["load after"] = os.getloadavg()[0]
        if given.json:  # An hour's work should not be lost with its last level.
            figures["times longer"] = times_longer(figures)
            record("methods", figures, given.json, peers=("optuna", "scipy"))
    return figures


def free_alphas(recipe: Recipe) -> tuple[Recipe, list[Any]]:
    """Return the article's recipe with its alphas free, and those of them that move the scored blocks."""
    holes = article_recipe(ROOT / "studies" / "blessingmix" / "recipe.yaml")
    blocks = set(recipe.layout.parse_blocks(BLOCKS))
    free = parameters_of(holes, [step.name for step in holes.steps])
    return holes, [each for each in free if set(each.blocks) & blocks]


def times_longer(figures: Mapping[str, Any]) -> dict[str, dict[str, float]]:
    """Return how many times longer the other methods took, or at least took, than blockfit's search and process."""
    level = figures["levels"][0]
    fit = level["fits"]["attention"]
    found = {}
    for name in ("TPE", "Nelder-Mead"):
        if name in level:
            seconds = level[name]["there"] or level[name]["seconds"]
            found[name] = {"search": int(seconds / fit["there"]), "whole process": int(seconds / fit["seconds"])}
    return found


def tell(text: str) -> None:
    """A line for who waits."""
    print(text, file=sys.stderr, flush=True)


def ratio(method: Mapping[str, Any], seconds: float) -> str:
    """How many times longer a method took than `seconds`, "more than" if it never got there."""
    if method["there"] is None:
        return f"more than {method['seconds'] / seconds:.0f}"
    return f"{method['there'] / seconds:.0f}"


def as_markdown(figures: Mapping[str, Any]) -> str:
    """The figures as two tables and what to know about them."""
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
            other = level[name]
            seconds = f"{other['there']:,.0f}" if other["there"] is not None else f"not within {other['seconds']:,.0f}"
            lines.append(
                f"| {name} | {1 - other['similarity']:.1e} | {seconds} | {ratio(other, fit['there'])} | "
                f"{ratio(other, fit['seconds'])} | {other['error']:.1e} |"
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
    """What was measured, what was not, and the goals."""
    level = figures["levels"][0]
    uncorrelated = [entry["fits"]["delta"]["error"] for entry in figures["levels"] if not entry["correlation"]]
    lines = []
    for metric, fit in level["fits"].items():
        every = " ".join(f"{seconds:.1f}" for seconds in fit["seconds of all runs"])
        disk = f"{fit['disk'] / 1e9:.2f} GB came from the disk"
        lines.append(f"whole process by {metric}, s: {every} (goal: {GOAL_SECONDS}); {disk}")
    lines.append(f"largest error by delta, uncorrelated: {max(uncorrelated, default=0):.1e} (goal: {GOAL_ERROR})")
    if other := level.get("TPE"):
        needed = ", ".join(
            f"{gap}: {count or 'more'}" for gap, count in other["trials to blockfit's similarity less"].items()
        )
        parts = (
            f"{other['median seconds of merging']:.2f} merging, {other['median seconds of comparing']:.2f} comparing"
        )
        measured = f"{other['trials measured']} of {other['trials']} trials"
        seconds = f"{other['seconds measured']:.0f} of {other['seconds']:,.0f} s"
        worst = other["largest difference of a similarity from coefficients"]
        lines += [
            f"TPE (goal: {GOAL_TPE} times longer): {measured}, {seconds} were measured",
            f"TPE: median {other['median seconds of a trial']:.2f} s a trial: {parts}",
            f"TPE: loading, which does not count, {other['seconds of loading']:.1f} s",
            f"TPE: trials to blockfit's similarity less {needed}",
            f"TPE: similarities of merged tensors and from coefficients differ by {worst:.1e} at most",
        ]
    for entry in figures["levels"]:
        if other := entry.get("Nelder-Mead"):
            done = [fit for fit in other["blocks"] if fit["measured"]]
            by_width = {fit["width"]: fit["seconds"] / fit["evaluations"] for fit in done}
            each = ", ".join(f"{1000 * seconds:.0f} ms at width {width}" for width, seconds in by_width.items())
            seconds = f"{other['seconds measured']:.0f} of {other['seconds']:.0f} s"
            converged = sum(fit["converged"] for fit in done)
            title = f"Nelder-Mead, {entry['level']}"
            lines += [
                f"{title} (goal: {GOAL_NELDER_MEAD} times longer): {', '.join(other['blocks measured'])}, {seconds}",
                f"{title}: {converged} of these {len(done)} converged, {len(other['blocks there'])} got to blockfit's",
                f"{title}: an evaluation takes {each}",
            ]
    return lines


# --- Plot -------------------------------------------------------------------------------------------------------------


def draw(figures: Mapping[str, Any], path: Path) -> None:
    """Left, how far from 1 the similarity is against time; right, the errors of the coefficients by level."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(12, 4.6), layout="constrained")
    draw_courses(left, figures["levels"][0])
    draw_errors(right, figures)
    figure.savefig(path, dpi=120)
    plt.close(figure)


def draw_courses(axes: Axes, level: Mapping[str, Any]) -> None:
    """The best similarity so far of each method; dashed where it was not measured."""
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
    """The largest error of a coefficient by level and method."""
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
    """Read the command line, measure, report."""
    parser = argparse.ArgumentParser(description="Compare three ways to fit the article's eight output steps.")
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="made by make_checkpoints.py --sources 8")
    parser.add_argument("--trials", type=int, default=40, help="of blockfit (default 40)")
    parser.add_argument("--repeats", type=int, default=1, help="of blockfit's timed fits; the middle one counts")
    parser.add_argument("--time-b", type=float, default=300, metavar="SECONDS", help="TPE by merging; 0: not at all")
    parser.add_argument("--trials-b", type=int, default=3000, help="the most trials of TPE (default 3000)")
    parser.add_argument(
        "--time-b-afterwards", type=float, default=600, metavar="SECONDS", help="TPE from coefficients (default 600)"
    )
    parser.add_argument("--time-c", type=float, default=900, metavar="SECONDS", help="Nelder-Mead; 0: not at all")
    parser.add_argument(
        "--time-c-unknown", type=float, default=0, metavar="SECONDS",
        help="Nelder-Mead again at the largest uncorrelated level (default 0: not at all)",
    )  # fmt: skip
    parser.add_argument("--evaluations-c", type=int, help="the most of Nelder-Mead for a block (default: scipy's)")
    parser.add_argument(
        "--tolerance-c", type=float, help="of Nelder-Mead's coefficients and similarities (scipy's: 1e-4)"
    )
    parser.add_argument(
        "--levels", nargs="+", type=Level.parse, metavar="UNKNOWN[:CORRELATION]", default=[*map(Level.parse, LEVELS)],
        help=f"of the target; the others compete at the first (default {' '.join(LEVELS)})",
    )  # fmt: skip
    parser.add_argument("--like", default="four", choices=FINETUNES[:7], help="the source of correlated unknown parts")
    parser.add_argument("--seed", type=int, default=0, help="of TPE and the unknown parts")
    parser.add_argument("--work", type=Path, metavar="DIR", help="for targets and studies (default: inside FOLDER)")
    parser.add_argument("--keep", action="store_true", help="leave the last study there")
    add_json_option(parser, "methods")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="draw them there")
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
