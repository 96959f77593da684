"""The fit of a study: search the free alphas of each stage, choose the best recipe, write it.

Also the results and the progress of a study, read without its checkpoints.
"""

from optimizer.search.events import FitEvents, SearchEvents, SearchProgress
from optimizer.search.fitting import fit
from optimizer.search.outcome import Found, found_result, shown_storage
from optimizer.search.results import FitResult, SearchResult
from optimizer.search.status import StudyStatus, study_status
from optimizer.search.trials import (
    PATIENCE,
    CheckedStorage,
    CheckedTrials,
    FrozenStudy,
    OpenTrials,
    StorageAddress,
    Trial,
    TrialState,
    describe_left_out,
    id_of_study,
    open_storage,
    open_trials,
    storage_address,
)

__all__ = [
    "PATIENCE",
    "CheckedStorage",
    "CheckedTrials",
    "FitEvents",
    "FitResult",
    "Found",
    "FrozenStudy",
    "OpenTrials",
    "SearchEvents",
    "SearchProgress",
    "SearchResult",
    "StorageAddress",
    "StudyStatus",
    "Trial",
    "TrialState",
    "describe_left_out",
    "fit",
    "found_result",
    "id_of_study",
    "open_storage",
    "open_trials",
    "shown_storage",
    "storage_address",
    "study_status",
]
