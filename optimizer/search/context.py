"""What all steps of a fit share, and the files and the storage that they work on."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace

import torch

from optimizer.errors import StudyError
from optimizer.library import HashCache
from optimizer.search.events import FitEvents, SearchEvents
from optimizer.search.trials import (
    PATIENCE,
    SharedStorage,
    StorageAddress,
    name_prefix,
    open_storage,
    set_aside,
    workers_at,
)
from optimizer.studies import OpenStudy, Study, open_study

__all__ = ["FitContext", "joined_storage", "opened_study"]


@dataclass(frozen=True)
class FitContext:
    """How a study is fitted; read only.

    Attributes:
        study: The study.
        device: Where similarities are computed.
        address: Where the trials are stored.
        shared: Whether other processes may work at the same trials.
        workers: The number of processes that this fit starts, this one included.
        candidates: The number of best recipes that differ to write, the best one included.
        patience: Seconds that the storage may be away.
        events: Receiver of all reports.
        hashes: The cache of checkpoints' hashes.

    """

    study: Study
    device: torch.device
    address: StorageAddress
    shared: bool = False
    workers: int = 1
    candidates: int = 1
    patience: float = PATIENCE
    events: SearchEvents = field(default_factory=FitEvents)
    hashes: HashCache | None = None

    @property
    def prefix(self) -> str:
        """The begin of the names of the study's Optuna studies."""
        return name_prefix(self.study, self.address)

    def for_worker(self) -> "FitContext":
        """Return the context of a further process, which reports nothing: the first process does."""
        return replace(self, shared=True, workers=1, candidates=1, events=FitEvents())


@contextmanager
def opened_study(context: FitContext) -> Iterator[OpenStudy]:
    """Give the study's checkpoints, opened, or what an earlier run measured of them; see `open_study`."""
    study = context.study
    scored = {block for stage in study.stages for block in stage.blocks}
    blocks = tuple(block for block in study.recipe.layout.blocks if block in scored)
    with open_study(
        study, blocks=blocks, device=context.device, progress=context.events.progress, hashes=context.hashes
    ) as opened:
        yield opened


@contextmanager
def joined_storage(context: FitContext, *, fresh: bool = False) -> Iterator[SharedStorage]:
    """Give the storage of trials, with this process as one of its workers; `fresh` sets earlier trials aside.

    Raises StudyError if another fit is at work there that does not share it, StorageLost if it is away.
    """
    address, events = context.address, context.events
    workers = workers_at(address, context.study.name)
    try:
        workers.join(alone=not context.shared)
        with ExitStack() as stack:
            with workers.turn():
                if fresh:
                    if others := [worker for worker in workers.living() if worker != workers.own]:
                        who = ", ".join(map(str, others))
                        raise StudyError(f"{address}: others are at these trials ({who}); stop them", field="fresh")
                    aside = set_aside(address)
                    if aside is not None:
                        events.warn(f"{address}: renamed to {aside.name}")
                storage = stack.enter_context(open_storage(address, patience=context.patience, warn=events.warn))
            yield SharedStorage(storage, address, workers, patience=context.patience, warn=events.warn)
    finally:
        workers.close()
