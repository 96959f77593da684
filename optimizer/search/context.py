"""Settings that all steps of a fit share, and access to its checkpoints and its storage."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace

import torch

from optimizer.errors import StudyError
from optimizer.library import HashCache, Library
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
    """The settings of a fit; read only.

    Attributes:
        study: The study.
        device: The device that computes similarities.
        address: The storage of the trials.
        shared: Whether other processes may join the search.
        workers: The number of processes of this fit, this one included.
        candidates: The number of different recipes to write, the best one included.
        patience: Seconds to wait for an unavailable storage.
        events: The receiver of all reports.
        hash_cache: The cache of the checkpoints' SHA-256; None for no cache.

    """

    study: Study
    device: torch.device
    address: StorageAddress
    shared: bool = False
    workers: int = 1
    candidates: int = 1
    patience: float = PATIENCE
    events: SearchEvents = field(default_factory=FitEvents)
    hash_cache: HashCache | None = None

    @property
    def prefix(self) -> str:
        """Prefix of the names of the study's Optuna studies."""
        return name_prefix(self.study, self.address)

    @property
    def library(self) -> Library:
        """The checkpoints' hashes and the receiver of progress."""
        return Library(hash_cache=self.hash_cache, events=self.events)

    def for_worker(self) -> "FitContext":
        """Return the context of a further process, which reports nothing; only the first process reports."""
        return replace(self, shared=True, workers=1, candidates=1, events=FitEvents())


@contextmanager
def opened_study(context: FitContext) -> Iterator[OpenStudy]:
    """Open the study's checkpoints, or the statistics that an earlier run measured of them; see `open_study`."""
    study = context.study
    scored = {block for stage in study.stages for block in stage.blocks}
    blocks = tuple(block for block in study.recipe.layout.blocks if block in scored)
    with open_study(study, context.library, blocks=blocks, device=context.device) as opened:
        yield opened


@contextmanager
def joined_storage(context: FitContext, *, fresh: bool = False) -> Iterator[SharedStorage]:
    """Open the storage of trials and join its workers; leave both on exit.

    StorageLost passes through if the storage stays unavailable.

    Args:
        context: The settings of the fit.
        fresh: Whether to set earlier trials aside first.

    Yields:
        The storage, shared with the other workers.

    Raises:
        StudyError: Another fit uses the storage and does not share it, or `fresh` is asked for while others do.

    """
    address, events = context.address, context.events
    workers = workers_at(address, context.study.name)
    try:
        workers.join(alone=not context.shared)
        with ExitStack() as stack:
            with workers.turn():
                if fresh:
                    if others := [worker for worker in workers.living() if worker != workers.mine]:
                        listed = ", ".join(map(str, others))
                        raise StudyError(f"{address}: in use by other workers ({listed}); stop them", field="fresh")
                    aside = set_aside(address)
                    if aside is not None:
                        events.warn(f"{address}: renamed to {aside.name}")
                storage = stack.enter_context(open_storage(address, patience=context.patience, warn=events.warn))
            yield SharedStorage(storage, address, workers, patience=context.patience, warn=events.warn)
    finally:
        workers.close()
