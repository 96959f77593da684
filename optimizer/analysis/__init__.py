"""What needs no trial: exact optima, what can be reached at all, simpler recipes, verified similarities."""

from optimizer.analysis.ceiling import BlockCeiling, Ceiling, Identified, SourceShare, found_ceilings, study_ceilings
from optimizer.analysis.exact import ExactOptimum, exact_optimum, keeping_point
from optimizer.analysis.linear import largest_cosine
from optimizer.analysis.simplified_files import simple_path, simplify_file, simplify_fit
from optimizer.analysis.simplifying import GRIDS, Judged, Number, Scored, Simplified, simplify
from optimizer.analysis.verifying import Verified, verify

__all__ = [
    "GRIDS",
    "BlockCeiling",
    "Ceiling",
    "ExactOptimum",
    "Identified",
    "Judged",
    "Number",
    "Scored",
    "Simplified",
    "SourceShare",
    "Verified",
    "exact_optimum",
    "found_ceilings",
    "keeping_point",
    "largest_cosine",
    "simple_path",
    "simplify",
    "simplify_file",
    "simplify_fit",
    "study_ceilings",
    "verify",
]
