"""Tensors in and out: lazy reading of checkpoints, what kind a file is, streaming atomic writing."""

from optimizer.checkpoints.configuration import pipeline_of
from optimizer.checkpoints.fingerprints import (
    HashCache,
    default_cache_folder,
    fingerprint,
    legacy_hash,
    sha256,
    short_hash,
)
from optimizer.checkpoints.held import FileState
from optimizer.checkpoints.inspection import Inspection, inspect_checkpoint
from optimizer.checkpoints.other_files import kind_of_folder, kind_of_other_file
from optimizer.checkpoints.prediction import Prediction, read_prediction
from optimizer.checkpoints.provenance import (
    HASHES,
    NOT_VERIFIED,
    Provenance,
    known_models,
    name_and_hash,
    parsed,
    read_provenance,
)
from optimizer.checkpoints.reading import Checkpoint, check_unchanged, open_checkpoint, unfit
from optimizer.checkpoints.writing import SafetensorsWriter, TensorSpec, safetensors_writer, write_safetensors
from optimizer.checkpoints.zeros import is_zero, zeros_at_end

__all__ = [
    "HASHES",
    "NOT_VERIFIED",
    "Checkpoint",
    "FileState",
    "HashCache",
    "Inspection",
    "Prediction",
    "Provenance",
    "SafetensorsWriter",
    "TensorSpec",
    "check_unchanged",
    "default_cache_folder",
    "fingerprint",
    "inspect_checkpoint",
    "is_zero",
    "kind_of_folder",
    "kind_of_other_file",
    "known_models",
    "legacy_hash",
    "name_and_hash",
    "open_checkpoint",
    "parsed",
    "pipeline_of",
    "read_prediction",
    "read_provenance",
    "safetensors_writer",
    "sha256",
    "short_hash",
    "unfit",
    "write_safetensors",
    "zeros_at_end",
]
