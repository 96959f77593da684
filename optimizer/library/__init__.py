"""Collections of checkpoints: search by name and hash, inspection, provenance.

This package does not depend on recipes.
"""

from optimizer.library.fingerprints import (
    HashCache,
    default_cache_folder,
    fingerprint,
    legacy_hash,
    sha256,
    short_hash,
)
from optimizer.library.inspection import Inspection, inspect_checkpoint
from optimizer.library.library import Library
from optimizer.library.locations import (
    check_folders,
    checkpoints_below,
    checkpoints_in,
    name_without_hash,
    named_at,
    seen_from,
    slashed,
)
from optimizer.library.provenance import (
    HASHES,
    NOT_VERIFIED,
    Provenance,
    known_models,
    name_and_hash,
    parsed,
    read_provenance,
)

__all__ = [
    "HASHES",
    "NOT_VERIFIED",
    "HashCache",
    "Inspection",
    "Library",
    "Provenance",
    "check_folders",
    "checkpoints_below",
    "checkpoints_in",
    "default_cache_folder",
    "fingerprint",
    "inspect_checkpoint",
    "known_models",
    "legacy_hash",
    "name_and_hash",
    "name_without_hash",
    "named_at",
    "parsed",
    "read_provenance",
    "seen_from",
    "sha256",
    "short_hash",
    "slashed",
]
