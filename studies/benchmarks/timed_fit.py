"""Fit a study in this process and print the seconds of each phase, as JSON.

    python studies/benchmarks/timed_fit.py STUDY --models FOLDER --device cuda

The script does the same as `blockfit fit`, without its table and plots. The clock starts with the process, before any
import. Hashes of checkpoints are neither read from the user's cache nor stored there. "scoring" is the share of the
trials' time that the stage's metric takes; the rest is Optuna and the storage.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from optimizer.search import FitEvents, SearchProgress

# {text of a fit's progress events: phase}, in order.
PHASES = {
    "reading the checkpoints": "statistics",
    "projecting the attention": "projecting",
    "reading the text encoders": "reading the text encoders",
    "scoring other random inputs": "other random inputs",
    "hashing the checkpoints": "sha256 of all files",
}


class Clock:
    """A record of when each phase of a fit begins and ends and when each trial is done, by `time.perf_counter`."""

    def __init__(self) -> None:
        self.start = time.perf_counter()
        self.began: dict[str, float] = {}
        self.ended: dict[str, float] = {}
        self.opened = 0.0
        self.trials: list[float] = []

    def events(self) -> FitEvents:
        """Return callbacks that record the time."""

        def progress(what: str, done: int, total: int) -> None:
            now = time.perf_counter()
            # The first event of a phase comes when its first piece is done; the time until then counts to the phase
            # before.
            self.began.setdefault(what, now)
            self.ended[what] = now

        def opened(progress: SearchProgress) -> None:
            self.opened = self.opened or time.perf_counter()

        def finished(progress: SearchProgress, trial: object) -> None:
            self.trials.append(time.perf_counter())

        return FitEvents(progress=progress, opened=opened, finished=finished)

    def phases(self) -> dict[str, float]:
        """Return seconds by phase, in order; their sum is the time from the start until now."""
        marks: list[tuple[float, str]] = []
        for what, name in PHASES.items():
            if what in self.began:
                before = "between phases" if marks else "opening, fingerprints"
                marks += [(self.began[what], before), (self.ended[what], name)]
        if self.opened:
            marks.append((self.opened, "exact optima"))
        if self.trials:
            marks.append((self.trials[-1], "trials"))
        marks.append((time.perf_counter(), "writing"))
        seconds: dict[str, float] = {}
        last = self.start
        for mark, name in sorted(marks, key=lambda each: each[0]):
            seconds[name] = seconds.get(name, 0.0) + mark - last
            last = mark
        return seconds


def timed(function: Callable[..., Any], spent: list[float]) -> Callable[..., Any]:
    """Return `function` wrapped so that the seconds of each call are appended to `spent`."""

    def call(*arguments: Any, **named: Any) -> Any:
        start = time.perf_counter()
        try:
            return function(*arguments, **named)
        finally:
            spent.append(time.perf_counter() - start)

    return call


def run(study: Path, models: Path, device: str) -> Mapping[str, Any]:
    """Fit the study and return its figures, with the imports of the command in the measured time."""
    clock = Clock()
    from optimizer import cli  # noqa: F401, PLC0415 - the command's imports
    from optimizer.search import fit  # noqa: PLC0415
    from optimizer.similarity import AttentionMetric  # noqa: PLC0415
    from optimizer.studies import load_study  # noqa: PLC0415

    scored: list[float] = []
    AttentionMetric.score = timed(AttentionMetric.score, scored)  # type: ignore[method-assign]
    result = fit(load_study(study, [models]), device=device, fresh=True, events=clock.events())
    search = result.searches[-1]
    return {
        "seconds by phase": clock.phases(),
        "trials": len(clock.trials),
        "scoring, seconds": sum(scored),
        "scored": len(scored),
        "similarity": result.similarity,
        "best trial": None if search.best is None else search.best.number,
    }


def main() -> int:
    """Read the command line, fit, print the figures, and return the exit code."""
    parser = argparse.ArgumentParser(description="Fit a study and print seconds by phase, as JSON.")
    parser.add_argument("study", type=Path, metavar="STUDY")
    parser.add_argument("--models", type=Path, required=True, metavar="FOLDER")
    parser.add_argument("--device", default="auto", choices=["auto", "cpu", "cuda"])
    parser.add_argument("--started", type=float, help="start of the process, in seconds of time.time")
    given = parser.parse_args()
    imported = time.time()
    figures = dict(run(given.study, given.models, given.device))
    if given.started is not None:
        figures["seconds by phase"] = {"starting Python": imported - given.started, **figures["seconds by phase"]}
        figures["seconds"] = time.time() - given.started
    print(json.dumps(figures))
    return 0


if __name__ == "__main__":
    sys.exit(main())
