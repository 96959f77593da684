"""Compare the samplers on the same tasks: how far from the best they are after so many trials.

    python studies/benchmarks/samplers.py --json figures.json --plot regret.png
    python studies/benchmarks/make_checkpoints.py /tmp/family --sources 6
    python studies/benchmarks/samplers.py /tmp/family --json figures.json --plot regret.png

Every task has nine blocks with one alpha each in 0 .. 1, as a step of a stepwise fit has them:

    smooth      parabolas, cosines and bells with their maxima anywhere, bounds included
    bumpy       a broad hump and two waves, up to four local maxima
    attention   with FOLDER: a step of its planted recipe on OUT03-OUT11, scored by `attention` against the target

The reference is the best of 1001 points of each block. Reported are two regrets, the median over the seeds: of the best
trial's mean, and of the worst block, each block taken at its best trial. No exact optimum is proposed to any sampler.
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
# Regrets below this are shown as this: the reference is known to about the grid's spacing squared.
FLOOR = 1e-7


@dataclass(frozen=True)
class Task:
    """Scores [n, blocks] of points [n, blocks] in 0 .. 1, and the best [blocks] of 1001 points each."""

    name: str
    score: Callable[[Array], Array]
    best: Array


@dataclass(frozen=True)
class Run:
    """One search: the regrets after every trial, and the seconds that its proposals took."""

    task: str
    sampler: str
    seed: int
    regret: list[float]
    worst_block: list[float]
    seconds: float


# --- Tasks ------------------------------------------------------------------------------------------------------------


def task(name: str, score: Callable[[Array], Array]) -> Task:
    """The task with its reference."""
    grid = np.linspace(0.0, 1.0, GRID)
    scores = np.concatenate([score(np.full((1, len(BLOCKS)), x)) for x in grid])
    return Task(name, score, scores.max(axis=0))


def smooth() -> Task:
    """Three parabolas, three cosines and three bells; two of the maxima are at bounds, one beyond."""
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
    """A broad hump and two waves in every block."""
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
    """The step of the planted recipe with free alphas on nine blocks, scored on its own result."""
    planted = load_recipe(folder / "planted.yaml")
    if step not in {one.name for one in planted.steps}:
        raise InputError(f"--step: received {step!r}; there are {', '.join(one.name for one in planted.steps)}")
    hole = Alpha({}, (Free(0.0, 1.0, BLOCKS),))
    steps = tuple(replace(one, alpha=hole) if one.name == step else one for one in planted.steps)
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
    """Every sampler on every task with every seed."""
    runs = []
    for chosen in tasks:
        for sampler in samplers:
            runs += [search(chosen, sampler, seed, trials) for seed in range(seeds)]
            print(f"{chosen.name}: {sampler} done", file=sys.stderr, flush=True)
    return runs


# --- Reports ----------------------------------------------------------------------------------------------------------


def median(runs: Sequence[Run], what: str, number: int) -> float:
    """The median over the runs of a regret after so many trials; what beats the grid counts as nothing lost."""
    return max(statistics.median(getattr(run, what)[number - 1] for run in runs), 0.0)


def figures_of(runs: Sequence[Run], trials: int, seeds: int) -> dict[str, Any]:
    """Return the runs, and the medians over the seeds that the documentation shows."""
    own = grouped(runs)
    samplers = list(dict.fromkeys(sampler for _, sampler in own))
    milliseconds = {
        sampler: [
            statistics.median(run.seconds for run in of_task) / trials * 1e3
            for (_, name), of_task in own.items()
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
                "regret": {sampler: median(own[task, sampler], "regret", mark) for sampler in samplers},
            }
            for task in dict.fromkeys(run.task for run in runs)
            for mark in (9, 40)
            if mark <= trials
        ],
        "milliseconds of a proposal": {name: [min(each), max(each)] for name, each in milliseconds.items()},
        "runs": [asdict(run) for run in runs],
    }


def print_table(runs: Sequence[Run], trials: int) -> None:
    """A line for each task and sampler."""
    marks = [mark for mark in (9, 20, 40, 60, 100, 200) if mark < trials] + [trials]
    header = "".join(f"{f'{mark} trials':>12}" for mark in marks)
    for what, title in (("regret", "best trial's mean"), ("worst_block", "worst block at its best trial")):
        print(f"\nregret, {title}\n{'task':<20}{'sampler':<12}{header}{'ms a proposal':>16}")
        for (name, sampler), own in grouped(runs).items():
            figures = "".join(f"{median(own, what, mark):>12.1e}" for mark in marks)
            milliseconds = statistics.median(run.seconds for run in own) / trials * 1e3
            print(f"{name:<20}{sampler:<12}{figures}{milliseconds:>16.1f}")


def grouped(runs: Sequence[Run]) -> dict[tuple[str, str], list[Run]]:
    """The runs by task and sampler."""
    found: dict[tuple[str, str], list[Run]] = {}
    for run in runs:
        found.setdefault((run.task, run.sampler), []).append(run)
    return found


def draw(runs: Sequence[Run], trials: int, path: Path) -> None:
    """The regret of the best trial's mean against the trials, a panel for each task; bands hold all seeds."""
    tasks = list(dict.fromkeys(run.task for run in runs))
    figure, panels = plt.subplots(1, len(tasks), figsize=(5 * len(tasks), 4), sharey=True, squeeze=False)
    numbers = np.arange(1, trials + 1)
    for panel, name in zip(panels[0], tasks, strict=True):
        for (of_task, sampler), own in grouped(runs).items():
            if of_task == name:
                regrets = np.array([run.regret for run in own]).clip(min=FLOOR)
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
    """Read the arguments, search, report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, nargs="?", help="what make_checkpoints.py wrote; adds the attention task")
    parser.add_argument("--step", default="FIRST", help="the step of planted.yaml that is searched")
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
