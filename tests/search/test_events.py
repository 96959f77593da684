"""Reports of a fit go to callbacks, or to Python's log by default."""

import logging

import pytest

from optimizer.events import Events
from optimizer.search import FitEvents, SearchProgress, Trial, TrialState
from optimizer.search.events import SearchEvents

PROGRESS = SearchProgress("s/T1", "T1", "delta", 2, 5, 0.5, {"OUT03": 0.5}, 0.1, 0.3, 1)
TRIAL = Trial(1, TrialState.COMPLETE, {"T1.OUT03": 0.2}, similarity=0.5, origin="tpe")


def report(events: SearchEvents) -> None:
    """Send one report of each kind."""
    events.progress("reading x", 1, 2)
    events.warn("x: odd")
    events.opened(PROGRESS)
    events.finished(PROGRESS, TRIAL)


def test_each_callback_gets_its_reports() -> None:
    """Each callback gets its own reports."""
    seen: list[object] = []
    callbacks = {
        name: lambda *given, name=name: seen.append((name, given))
        for name in ("progress", "warn", "opened", "finished")
    }
    report(FitEvents(**callbacks))

    assert seen == [
        ("progress", ("reading x", 1, 2)),
        ("warn", ("x: odd",)),
        ("opened", (PROGRESS,)),
        ("finished", (PROGRESS, TRIAL)),
    ]


def test_reports_without_a_callback_are_logged(caplog: pytest.LogCaptureFixture) -> None:
    """The log `blockfit` gets progress at level DEBUG, trials at INFO and warnings at WARNING."""
    events: Events = FitEvents(finished=lambda progress, trial: None)
    with caplog.at_level(logging.DEBUG, "blockfit"):
        report(FitEvents())
        events.warn("again")

    assert [(record.name.partition(".")[0], record.levelname, record.getMessage()) for record in caplog.records] == [
        ("blockfit", "DEBUG", "reading x: 1 of 2"),
        ("blockfit", "WARNING", "x: odd"),
        ("blockfit", "INFO", "s/T1: 2 of 5 trials done"),
        ("blockfit", "INFO", "s/T1: trial 1 (tpe) COMPLETE 0.50000000"),
        ("blockfit", "WARNING", "again"),
    ]
