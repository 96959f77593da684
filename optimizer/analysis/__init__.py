"""Analyses that need no trial: exact optima, ceilings, simpler recipes and verified similarities."""

from optimizer.analysis.ceiling import found_ceilings, study_ceilings
from optimizer.analysis.ceiling_records import Ceiling, Ceilings, Identified, SourceShare
from optimizer.analysis.conversion import ConversionLoss, conversion_loss
from optimizer.analysis.curves import Curve, curves_along
from optimizer.analysis.exact import ExactOptimum, exact_optimum, keeping_point
from optimizer.analysis.linear import largest_similarity
from optimizer.analysis.ranges import NarrowRange, narrow_ranges
from optimizer.analysis.simplified_files import simple_path, simplify_file, simplify_fit
from optimizer.analysis.simplifying import Simplified
from optimizer.analysis.verdict import Verdict, describe_compared, judge
from optimizer.analysis.verifying import Verified, verify

__all__ = [
    "Ceiling",
    "Ceilings",
    "ConversionLoss",
    "Curve",
    "ExactOptimum",
    "Identified",
    "NarrowRange",
    "Simplified",
    "SourceShare",
    "Verdict",
    "Verified",
    "conversion_loss",
    "curves_along",
    "describe_compared",
    "exact_optimum",
    "found_ceilings",
    "judge",
    "keeping_point",
    "largest_similarity",
    "narrow_ranges",
    "simple_path",
    "simplify_file",
    "simplify_fit",
    "study_ceilings",
    "verify",
]
