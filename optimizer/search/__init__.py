"""The fit: searching the free alphas of each stage, choosing, writing; and what a fit has found."""

from optimizer.search.fitting import fit
from optimizer.search.outcome import Found, found_result, shown_storage
from optimizer.search.results import FitResult, SearchResult
from optimizer.search.searching import FitEvents, SearchProgress
from optimizer.search.status import StudyStatus, study_status
from optimizer.search.trials import (
    CheckedStorage,
    CheckedTrials,
    OpenTrials,
    StorageAddress,
    best_of,
    completed,
    open_storage,
    open_trials,
    storage_address,
    told_of,
)

__all__ = [
    "CheckedStorage",
    "CheckedTrials",
    "FitEvents",
    "FitResult",
    "Found",
    "OpenTrials",
    "SearchProgress",
    "SearchResult",
    "StorageAddress",
    "StudyStatus",
    "best_of",
    "completed",
    "fit",
    "found_result",
    "open_storage",
    "open_trials",
    "shown_storage",
    "storage_address",
    "study_status",
    "told_of",
]
