"""Measure the trials per second of 1, 2 and 4 workers on one study, for each kind of storage.

    python studies/benchmarks/workers.py --postgresql postgresql://me@localhost/trials --json figures.json

Each figure comes from the command as a user would start it: the demo's family, fitted by `attention`, two steps of nine
alphas each, jointly. Once every worker has completed a trial, the script counts the trials that all workers complete in
--seconds. `alone` is a fit without --workers, which writes each trial once instead of twice (claimed, then done). The
sampler `random` needs no time to propose a trial, so its figures measure storage and scoring alone. All figures are
measured --repeats times in turn; the table has the medians and the machine's load before.
"""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

from measuring import report
from optuna.trial import FrozenTrial, TrialState
from recording import add_json_option

from optimizer.search import StorageAddress, open_storage, storage_address

ALPHAS = 18  # two steps of nine blocks
DEMO = Path(__file__).parents[1] / "demo"
STUDY = """\
name: {name}
recipe: recipe.yaml
target: {{file: target.safetensors}}
base: base
stages:
  - {{name: s, metric: attention, trials: 1000000, sampler: {sampler}}}
"""


def measure(
    postgresql: str | None, workers: Sequence[int], samplers: Sequence[str], seconds: float, repeats: int
) -> dict[str, Any]:
    """Return the trials per second by sampler, storage and number of workers.

    Args:
        postgresql: The address of an empty database; None leaves PostgreSQL out.
        workers: Numbers of workers.
        samplers: Names of samplers.
        seconds: How long trials are counted for each figure.
        repeats: How often each figure is measured.

    Returns:
        The figures, as the JSON has them.

    """
    rates: dict[tuple[str, str, str], list[float]] = {}
    load = os.getloadavg() if hasattr(os, "getloadavg") else ()
    for turn in range(repeats):
        for sampler in samplers:
            for kind in ("sqlite", "journal", *(("postgresql",) if postgresql else ())):
                for count in (*(() if kind != "sqlite" else (None,)), *workers):
                    with study(sampler) as folder:
                        storage = {
                            "sqlite": None,
                            "journal": f"journal:{folder / 'trials.journal'}",
                            "postgresql": postgresql,
                        }[kind]
                        rate = trials_per_second(folder, storage, count, seconds)
                    label = "alone" if count is None else str(count)
                    print(f"turn {turn}: {sampler} {kind} {label}: {rate:.1f}/s", file=sys.stderr, flush=True)
                    rates.setdefault((sampler, kind, label), []).append(rate)
    return {
        "load before": load,
        "seconds": seconds,
        "alphas": ALPHAS,
        "rates": [
            {"sampler": sampler, "storage": kind, "workers": label, "trials per second": found}
            for (sampler, kind, label), found in rates.items()
        ],
    }


@contextmanager
def study(sampler: str) -> Iterator[Path]:
    """Yield a temporary folder with a study of the demo's family that does not end by itself."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        shutil.copytree(DEMO / "models", folder / "models")
        shutil.copy(DEMO / "target.safetensors", folder)
        recipe = (DEMO / "recipe.yaml").read_text(encoding="utf-8").replace("[0, 1]", "[0, 1], blocks: OUT03-OUT11")
        (folder / "recipe.yaml").write_text(recipe, encoding="utf-8")
        text = STUDY.format(name=folder.name, sampler=sampler)
        (folder / "study.yaml").write_text(text, encoding="utf-8")
        yield folder


def trials_per_second(folder: Path, storage: str | None, workers: int | None, seconds: float) -> float:
    """Return the trials per second of all workers together, counted once each has completed a trial.

    Args:
        folder: The study's folder.
        storage: The storage's address; None is SQLite in the study's folder.
        workers: The number of workers; None runs the fit without --workers.
        seconds: How long trials are counted.

    Returns:
        Completed trials per second.

    Raises:
        RuntimeError: If the fit ends by itself.

    """
    command = [sys.executable, "-m", "optimizer", "fit", str(folder)]
    command += [] if storage is None else ["--storage", storage]
    command += [] if workers is None else ["--workers", str(workers)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)  # noqa: S603
    address = storage_address(storage, folder)
    try:
        while len(done_by(address, folder.name)) < (workers or 1):
            if process.poll() is not None:
                raise RuntimeError(f"{' '.join(command)} ended with exit code {process.returncode}")
            time.sleep(0.5)
        begin = datetime.now()
        time.sleep(seconds)
        end = datetime.now()
        counted = [
            trial
            for trial in completed(address, folder.name)
            if trial.datetime_complete is not None and begin < trial.datetime_complete <= end
        ]
    finally:
        process.send_signal(signal.SIGINT)
        process.wait()
    return len(counted) / (end - begin).total_seconds()


def completed(address: StorageAddress, name: str) -> list[FrozenTrial]:
    """Return the completed trials of a study; empty if its storage does not exist yet."""
    if address.path is not None and not address.path.exists():
        return []
    with open_storage(address) as storage:
        for study in storage.get_all_studies():
            if study.study_name in ("s", f"{name}:s"):
                return storage.get_all_trials(study._study_id, deepcopy=False, states=(TrialState.COMPLETE,))
    return []


def done_by(address: StorageAddress, name: str) -> Counter[str]:
    """Return the number of trials that each worker has completed."""
    return Counter(str(trial.user_attrs.get("worker")) for trial in completed(address, name))


def as_markdown(figures: Mapping[str, Any]) -> str:
    """Return a Markdown table with a row for each sampler and storage."""
    by_row: dict[tuple[str, str], dict[str, str]] = {}
    for entry in figures["rates"]:
        row = by_row.setdefault((entry["sampler"], entry["storage"]), {})
        row[entry["workers"]] = f"{statistics.median(entry['trials per second']):.1f}"
    columns = list(dict.fromkeys(column for row in by_row.values() for column in row))
    lines = [f"trials/s (load before: {figures['load before']})", ""]
    lines.append("| sampler | storage | " + " | ".join(columns) + " |")
    lines.append("|---|---|" + "---|" * len(columns))
    for (sampler, kind), row in by_row.items():
        lines.append(f"| {sampler} | {kind} | " + " | ".join(row.get(column, "") for column in columns) + " |")
    return "\n".join(lines)


def main() -> int:
    """Read the command line, measure, print the table, and return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--postgresql", metavar="URL", help="address of an empty database")
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--samplers", nargs="+", default=["random", "blockwise"])
    parser.add_argument("--seconds", type=float, default=15.0)
    parser.add_argument("--repeats", type=int, default=3)
    add_json_option(parser, "workers")
    given = parser.parse_args()
    return report(
        "workers",
        lambda: measure(given.postgresql, given.workers, given.samplers, given.seconds, given.repeats),
        as_markdown,
        given.json,
        peers=("optuna",),
    )


if __name__ == "__main__":
    sys.exit(main())
