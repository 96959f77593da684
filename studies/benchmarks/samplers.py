"""Compare the samplers on the same tasks: their regret against the number of trials.

    python studies/benchmarks/samplers.py --json figures.json --plot regret.png
    python studies/benchmarks/make_checkpoints.py /tmp/family --sources 6
    python studies/benchmarks/samplers.py /tmp/family --json figures.json --plot regret.png

Every task has nine blocks with one alpha each in 0 .. 1, like a step of a stepwise fit:

    smooth      parabolas, cosines and bells, with maxima anywhere in the range or at its bounds
    bumpy       a broad hump and two waves, with up to four local maxima
    attention   only with FOLDER: a step of its planted recipe on OUT03-OUT11, scored by `attention`

The reference is the best of 1001 points of each block. The script reports two regrets, as medians over the seeds: that
of the best trial's mean, and that of the worst block when each block is taken at its best trial. No sampler is given an
exact optimum.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import optuna
import torch
from numpy.typing import NDArray
from optuna.distributions import FloatDistribution
from recording import add_json_option, record

from optimizer.errors import InputError
from optimizer.recipes import Algebra, Alpha, Free, Space, load_recipe, parameters_of
from optimizer.samplers import SAMPLERS, make_sampler
from optimizer.similarity import build_metric, open_comparison

mpl.use("Agg")
from matplotlib import pyplot as plt

Array = NDArray[np.float64]
BLOCKS = tuple(f"OUT{number:02}" for number in range(3, 12))
GRID = 1001
# Smallest regret that is shown: the error of the reference is about the square of the grid's spacing.
FLOOR = 1e-7


@dataclass(frozen=True)
class Task:
    """A function to maximise: scores [n, blocks] of points [n, blocks] in 0 .. 1, with the best score of each block.

    Attributes:
        name: The title in tables and plots.
        score: The function; a score depends on its own block's coordinate alone.
        best: The best score of each block, [blocks], over 1001 points.

    """

    name: str
    score: Callable[[Array], Array]
    best: Array


@dataclass(frozen=True)
class Run:
    """One search: its regrets after every trial, and the seconds spent on all its proposals."""

    task: str
    sampler: str
    seed: int
    regret: list[float]
    worst_block: list[float]
    seconds: float


# --- Tasks ------------------------------------------------------------------------------------------------------------


def task(name: str, score: Callable[[Array], Array]) -> Task:
    """Return a task with its reference."""
    grid = np.linspace(0.0, 1.0, GRID)
    scores = np.concatenate([score(np.full((1, len(BLOCKS)), x)) for x in grid])
    return Task(name, score, scores.max(axis=0))


def smooth() -> Task:
    """Return the task of three parabolas, three cosines and three bells; two maxima are at bounds, one is beyond."""
    random = np.random.default_rng(0)
    centres, widths = random.uniform(0, 1, len(BLOCKS)), random.uniform(0.15, 1, len(BLOCKS))
    centres[[1, 4, 6]] = 0.0, 1.0, -0.1

    def score(points: Array) -> Array:
        away = points - centres
        return np.concatenate(
            [
                1 - 2 * widths[:3] * away[:, :3] ** 2,
                np.cos(2 * widths[3:6] * away[:, 3:6]),
                np.exp(-(away[:, 6:] ** 2) / widths[6:]),
            ],
            axis=1,
        )

    return task("smooth", score)


def bumpy() -> Task:
    """Return the task with a broad hump and two waves in every block."""
    random = np.random.default_rng(1)
    centres, *phases = random.uniform(0, 1, (3, len(BLOCKS)))
    slow, fast = random.uniform(1, 2, len(BLOCKS)), random.uniform(2, 3.8, len(BLOCKS))
    small, large = random.uniform(0.02, 0.1, (2, len(BLOCKS)))

    def score(points: Array) -> Array:
        waves = small * np.sin(2 * np.pi * (slow * points + phases[0]))
        waves += large * np.sin(2 * np.pi * (fast * points + phases[1]))
        return np.asarray(0.8 - 0.4 * (points - centres) ** 2 + waves)

    return task("bumpy", score)


@contextmanager
def attention(folder: Path, step: str) -> Iterator[Task]:
    """Open the task of one planted step with free alphas on nine blocks, scored on the step's own result.

    Args:
        folder: A family written by `make_checkpoints.py`.
        step: The name of a step of its `planted.yaml`.

    Yields:
        The task.

    Raises:
        InputError: If the planted recipe has no such step.

    """
    planted = load_recipe(folder / "planted.yaml")
    names = [planted_step.name for planted_step in planted.steps]
    if step not in names:
        raise InputError(f"--step: received {step!r}; must be one of {', '.join(names)}")
    free_alpha = Alpha({}, (Free(0.0, 1.0, BLOCKS),))
    steps = tuple(replace(each, alpha=free_alpha) if each.name == step else each for each in planted.steps)
    recipe = replace(planted, steps=steps)
    sources = {name: folder / model.file for name, model in recipe.models.items()}
    with open_comparison(recipe.layout, sources, folder / "target.safetensors", base=sources["base"]) as comparison:
        metric = build_metric("attention", comparison, BLOCKS)
        algebra = Algebra(recipe, comparison.groups, tuple(comparison.sources), step)
        space = Space(algebra, parameters_of(recipe, [step]))
        metric.prepare(space.coefficients(space.diagonal))
        order = [metric.blocks.index(block) for block in BLOCKS]

        def score(points: Array) -> Array:
            return metric.score(space.coefficients(torch.from_numpy(points))).numpy()[:, order]

        yield task(f"attention, {step}", score)


# --- Searches ---------------------------------------------------------------------------------------------------------


def search(chosen: Task, sampler: str, seed: int, trials: int) -> Run:
    """Search the task with one sampler."""
    blocks = {block: (f"alpha.{block}",) for block in BLOCKS}
    space = {name: FloatDistribution(0.0, 1.0) for (name,) in blocks.values()}
    study = optuna.create_study(direction="maximize", sampler=make_sampler(sampler, seed, blocks))
    scores, seconds = np.empty((trials, len(BLOCKS))), 0.0
    for number in range(trials):
        start = time.perf_counter()
        trial = study.ask(space)
        seconds += time.perf_counter() - start
        scores[number] = chosen.score(np.array([[trial.params[name] for name in space]]))[0]
        trial.set_user_attr("block_scores", dict(zip(BLOCKS, scores[number].tolist(), strict=True)))
        study.tell(trial, float(scores[number].mean()))
    regret = chosen.best.mean() - np.maximum.accumulate(scores.mean(axis=1))
    worst = (chosen.best - np.maximum.accumulate(scores, axis=0)).max(axis=1)
    return Run(chosen.name, sampler, seed, regret.tolist(), worst.tolist(), seconds)


def compare(tasks: Sequence[Task], samplers: Sequence[str], seeds: int, trials: int) -> list[Run]:
    """Run every sampler on every task with every seed."""
    runs = []
    for chosen in tasks:
        for sampler in samplers:
            runs += [search(chosen, sampler, seed, trials) for seed in range(seeds)]
            print(f"{chosen.name}: {sampler} done", file=sys.stderr, flush=True)
    return runs


# --- Reports ----------------------------------------------------------------------------------------------------------


def median(runs: Sequence[Run], what: str, number: int) -> float:
    """Return the median over the runs of the regret `what` after `number` trials, at least 0."""
    return max(statistics.median(getattr(run, what)[number - 1] for run in runs), 0.0)


def figures_of(runs: Sequence[Run], trials: int, seeds: int) -> dict[str, Any]:
    """Return the runs, and the medians over the seeds that the documentation shows."""
    groups = grouped(runs)
    samplers = list(dict.fromkeys(sampler for _, sampler in groups))
    milliseconds = {
        sampler: [
            statistics.median(run.seconds for run in of_task) / trials * 1e3
            for (_, name), of_task in groups.items()
            if name == sampler
        ]
        for sampler in samplers
    }
    return {
        "threads": torch.get_num_threads(),
        "trials": trials,
        "seeds": seeds,
        "blocks": len(BLOCKS),
        "points of the reference": GRID,
        "floor": FLOOR,
        "median regret": [
            {
                "task": task,
                "trials": mark,
                "regret": {sampler: median(groups[task, sampler], "regret", mark) for sampler in samplers},
            }
            for task in dict.fromkeys(run.task for run in runs)
            for mark in (9, 40)
            if mark <= trials
        ],
        "milliseconds of a proposal": {name: [min(each), max(each)] for name, each in milliseconds.items()},
        "runs": [asdict(run) for run in runs],
    }


def print_table(runs: Sequence[Run], trials: int) -> None:
    """Print two tables of regrets with a line for each task and sampler."""
    marks = [mark for mark in (9, 20, 40, 60, 100, 200) if mark < trials] + [trials]
    header = "".join(f"{f'{mark} trials':>12}" for mark in marks)
    for what, title in (("regret", "best trial's mean"), ("worst_block", "worst block at its best trial")):
        print(f"\nregret, {title}\n{'task':<20}{'sampler':<12}{header}{'ms a proposal':>16}")
        for (name, sampler), group in grouped(runs).items():
            figures = "".join(f"{median(group, what, mark):>12.1e}" for mark in marks)
            milliseconds = statistics.median(run.seconds for run in group) / trials * 1e3
            print(f"{name:<20}{sampler:<12}{figures}{milliseconds:>16.1f}")


def grouped(runs: Sequence[Run]) -> dict[tuple[str, str], list[Run]]:
    """Return the runs by (task, sampler)."""
    found: dict[tuple[str, str], list[Run]] = {}
    for run in runs:
        found.setdefault((run.task, run.sampler), []).append(run)
    return found


def draw(runs: Sequence[Run], trials: int, path: Path) -> None:
    """Draw the regret of the best trial's mean against the trials, one panel per task; bands cover all seeds."""
    tasks = list(dict.fromkeys(run.task for run in runs))
    figure, panels = plt.subplots(1, len(tasks), figsize=(5 * len(tasks), 4), sharey=True, squeeze=False)
    numbers = np.arange(1, trials + 1)
    for panel, name in zip(panels[0], tasks, strict=True):
        for (of_task, sampler), group in grouped(runs).items():
            if of_task == name:
                regrets = np.array([run.regret for run in group]).clip(min=FLOOR)
                (line,) = panel.plot(numbers, np.median(regrets, axis=0), label=sampler)
                panel.fill_between(numbers, regrets.min(axis=0), regrets.max(axis=0), color=line.get_color(), alpha=0.2)
        panel.set(title=name, xlabel="trials", yscale="log")
        panel.grid(alpha=0.3)
    panels[0, 0].set_ylabel("regret of the mean similarity")
    panels[0, -1].legend()
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    plt.close(figure)


def main() -> None:
    """Read the command line, run the searches, print the table, and write figures and plot."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, nargs="?", help="written by make_checkpoints.py; adds the attention task")
    parser.add_argument("--step", default="FIRST", help="step of planted.yaml to search (default FIRST)")
    parser.add_argument("--trials", type=int, default=60)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--samplers", nargs="+", choices=sorted(SAMPLERS), default=sorted(SAMPLERS))
    add_json_option(parser, "samplers")
    parser.add_argument("--plot", type=Path, default=Path("samplers.png"), help="write the plot here")
    arguments = parser.parse_args()
    if min(arguments.trials, arguments.seeds) < 1:
        parser.error("--trials and --seeds must be at least 1")
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
    runs = compare([smooth(), bumpy()], arguments.samplers, arguments.seeds, arguments.trials)
    if arguments.folder is not None:
        try:
            with attention(arguments.folder, arguments.step) as real:
                runs += compare([real], arguments.samplers, arguments.seeds, arguments.trials)
        except InputError as error:
            sys.exit(str(error))
    print_table(runs, arguments.trials)
    draw(runs, arguments.trials, arguments.plot)
    if arguments.json is not None:
        record(
            "samplers", figures_of(runs, arguments.trials, arguments.seeds), arguments.json, peers=("optuna", "cmaes")
        )


if __name__ == "__main__":
    main()
