"""Merge sources by a recipe's coefficients into one checkpoint with metadata."""

from optimizer.merging.combining import CHUNK
from optimizer.merging.merging import MergeOptions, merge, write_merge
from optimizer.merging.noted_hashes import check_noted_hashes, fits_hash, other_hash

__all__ = ["CHUNK", "MergeOptions", "check_noted_hashes", "fits_hash", "merge", "other_hash", "write_merge"]
