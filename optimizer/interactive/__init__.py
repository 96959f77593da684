"""Fits from Python and notebooks: `fit` takes a study or its folder, and its result merges, exports and reports itself.

This room is a front, like `cli`: it imports any other room, and none imports it. Its names are public in `optimizer`.
"""

from optimizer.interactive.fits import Fit, fit

__all__ = ["Fit", "fit"]
