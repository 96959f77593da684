"""Trials per second of 1, 2 and 4 workers at one study, by the storage that its trials are kept in.

    python studies/benchmarks/workers.py --postgresql postgresql://me@localhost/trials --json figures.json

Every figure is taken while the command runs as a user would start it, on the demo's family, by `attention`, two steps
of nine alphas each at once: after every worker has completed its first trial, the trials that all of them complete in
so many seconds are counted. `alone` is without --workers, where a trial is written once instead of when it is claimed
and when it is done. With `random` nothing is computed to propose a trial: what is measured is the storage and the
scoring. `--repeats` turns of all are run one after another; the medians are shown, with the load of the machine before.
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
    """Trials per second by sampler, storage and number of workers."""
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
    """A folder with an endless study of the demo's family."""
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
    """What all workers complete, once every one of them has completed a trial."""
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
        begun = datetime.now()
        time.sleep(seconds)
        ended = datetime.now()
        counted = [
            trial
            for trial in completed(address, folder.name)
            if trial.datetime_complete is not None and begun < trial.datetime_complete <= ended
        ]
    finally:
        process.send_signal(signal.SIGINT)
        process.wait()
    return len(counted) / (ended - begun).total_seconds()


def completed(address: StorageAddress, name: str) -> list[FrozenTrial]:
    """The completed trials of a study, none before it has any."""
    if address.path is not None and not address.path.exists():
        return []
    with open_storage(address) as storage:
        for study in storage.get_all_studies():
            if study.study_name in ("s", f"{name}:s"):
                return storage.get_all_trials(study._study_id, deepcopy=False, states=(TrialState.COMPLETE,))
    return []


def done_by(address: StorageAddress, name: str) -> Counter[str]:
    """How many trials each worker has completed."""
    return Counter(str(trial.user_attrs.get("worker")) for trial in completed(address, name))


def as_markdown(figures: Mapping[str, Any]) -> str:
    """A table with a row for each sampler and storage."""
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
    """Read the arguments, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--postgresql", metavar="URL", help="an empty database")
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
