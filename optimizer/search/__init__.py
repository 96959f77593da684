"""Optuna: the space that a recipe's free alphas span, exact optima, samplers, running and resuming studies.

May import `optimizer.recipes` and `optimizer.similarity`; never opens a checkpoint's tensors itself.
"""

from optimizer.search.blockwise import BlockwiseSampler
from optimizer.search.ceiling import (
    BlockCeiling,
    Ceiling,
    Coefficient,
    Identified,
    SourceShare,
    ceilings,
    identify,
    largest_cosine,
    source_shares,
    study_ceilings,
)
from optimizer.search.exact import ExactOptimum, exact_optimum
from optimizer.search.finished import NotedSearch, noted_searches, simple_path, simplify_file
from optimizer.search.first_study import FIRST_MODES, FirstStudy, first_study
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
from optimizer.search.measuring import OpenStudy, open_study
from optimizer.search.new import StageFields, StageOptions, new_study
from optimizer.search.ranges import NarrowRange
from optimizer.search.results import Candidate, FitResult, SearchResult, SeedSpread, StepScores
from optimizer.search.samplers import SAMPLERS, make_sampler
from optimizer.search.searching import FitEvents, SearchProgress, TrialsFailed
from optimizer.search.simplifying import (
    SHARE,
    TOLERANCE,
    Changes,
    Judged,
    Number,
    Scored,
    SettledNumber,
    Simplified,
    default_numbers,
    simplify,
)
from optimizer.search.space import Parameter, Space, parameters_of
from optimizer.search.status import SearchStatus, StudyStatus, study_status
from optimizer.search.storage import DATABASE, StorageLost
from optimizer.search.study import Stage, Study, load_study, study_file

__all__ = [
    "DATABASE",
    "FIRST_MODES",
    "SAMPLERS",
    "SHARE",
    "TOLERANCE",
    "BlockCeiling",
    "BlockwiseSampler",
    "Candidate",
    "Ceiling",
    "Changes",
    "Coefficient",
    "ExactOptimum",
    "FirstStudy",
    "FitEvents",
    "FitResult",
    "Found",
    "Identified",
    "Judged",
    "NarrowRange",
    "NotedSearch",
    "NotedSpread",
    "Number",
    "OpenStudy",
    "OpenTrials",
    "Parameter",
    "Scored",
    "SearchProgress",
    "SearchResult",
    "SearchStatus",
    "SeedSpread",
    "SettledNumber",
    "Simplified",
    "SourceShare",
    "Space",
    "Stage",
    "StageFields",
    "StageOptions",
    "StepScores",
    "StorageLost",
    "Study",
    "StudyStatus",
    "TrialsFailed",
    "ceilings",
    "default_numbers",
    "exact_optimum",
    "first_study",
    "fit",
    "found_ceilings",
    "found_result",
    "identify",
    "largest_cosine",
    "load_study",
    "make_sampler",
    "new_study",
    "noted_searches",
    "open_study",
    "open_trials",
    "parameters_of",
    "shown_storage",
    "simple_path",
    "simplify",
    "simplify_file",
    "source_shares",
    "study_ceilings",
    "study_file",
    "study_status",
]
