"""Work from Python and notebooks: it shows its progress, and a fit's result merges, exports and reports itself.

This room is a front, like `cli`: it imports any other room, and none imports it. Its names are public in `optimizer`.
"""

from optimizer.interactive.fits import Fit, fit
from optimizer.interactive.functions import (
    compare,
    found_ceilings,
    load_study,
    merge,
    new_study,
    simplify_file,
    study_ceilings,
    verify,
)

__all__ = [
    "Fit",
    "compare",
    "fit",
    "found_ceilings",
    "load_study",
    "merge",
    "new_study",
    "simplify_file",
    "study_ceilings",
    "verify",
]
