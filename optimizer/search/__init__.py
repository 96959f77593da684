"""Optuna: the space that a recipe's free alphas span, exact optima, samplers, running and resuming studies.

May import `optimizer.recipes` and `optimizer.similarity`; never opens a checkpoint's tensors itself.
"""

from optimizer.search.blockwise import BlockwiseSampler
from optimizer.search.exact import ExactOptimum, exact_optimum
from optimizer.search.fitting import FitEvents, FitResult, SearchResult, StepScores, TrialsFailed, fit
from optimizer.search.samplers import SAMPLERS, make_sampler
from optimizer.search.space import Parameter, Space, parameters_of
from optimizer.search.status import SearchStatus, study_status
from optimizer.search.storage import DATABASE
from optimizer.search.study import Stage, Study, load_study, study_file

__all__ = [
    "DATABASE",
    "SAMPLERS",
    "BlockwiseSampler",
    "ExactOptimum",
    "FitEvents",
    "FitResult",
    "Parameter",
    "SearchResult",
    "SearchStatus",
    "Space",
    "Stage",
    "StepScores",
    "Study",
    "TrialsFailed",
    "exact_optimum",
    "fit",
    "load_study",
    "make_sampler",
    "parameters_of",
    "study_file",
    "study_status",
]
