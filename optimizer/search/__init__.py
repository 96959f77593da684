"""The fit: searching the free alphas of each stage, choosing, writing; and what a fit has found."""

from optimizer.search.ceiling import BlockCeiling, Ceiling, Identified, SourceShare, study_ceilings
from optimizer.search.checked_storage import CheckedStorage
from optimizer.search.checked_trials import CheckedTrials, told_of
from optimizer.search.finished import simple_path, simplify_file
from optimizer.search.first_study import FIRST_MODES, first_study
from optimizer.search.fitting import fit
from optimizer.search.found import (
    Found,
    NotedSpread,
    OpenTrials,
    found_ceilings,
    found_result,
    open_trials,
    shown_storage,
)
from optimizer.search.new import new_study
from optimizer.search.results import FitResult, SearchResult, StepScores, best_of, completed
from optimizer.search.searching import FitEvents, SearchProgress
from optimizer.search.simplifying import Simplified
from optimizer.search.status import StudyStatus, study_status
from optimizer.search.storage import DATABASE, StorageAddress, open_storage, storage_address
from optimizer.search.study import Stage, Study, load_study

__all__ = [
    "DATABASE",
    "FIRST_MODES",
    "BlockCeiling",
    "Ceiling",
    "CheckedStorage",
    "CheckedTrials",
    "FitEvents",
    "FitResult",
    "Found",
    "Identified",
    "NotedSpread",
    "OpenTrials",
    "SearchProgress",
    "SearchResult",
    "Simplified",
    "SourceShare",
    "Stage",
    "StepScores",
    "StorageAddress",
    "Study",
    "StudyStatus",
    "best_of",
    "completed",
    "first_study",
    "fit",
    "found_ceilings",
    "found_result",
    "load_study",
    "new_study",
    "open_storage",
    "open_trials",
    "shown_storage",
    "simple_path",
    "simplify_file",
    "storage_address",
    "study_ceilings",
    "study_status",
    "told_of",
]
