"""Tensors in and out: lazy reading of checkpoints, what kind a file is, streaming atomic writing."""

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
from optimizer.checkpoints.layout import Layout, load_layout
from optimizer.checkpoints.links import check_output, open_in_place, refuse_links, study_folder_of
from optimizer.checkpoints.near_names import (
    CHECKPOINT_SUFFIXES,
    TEXT_SUFFIXES,
    did_you_mean,
    missing_file,
    missing_folder,
)
from optimizer.checkpoints.new_files import undo_unfinished, write_new_files
from optimizer.checkpoints.other_files import kind_of_folder, kind_of_other_file
from optimizer.checkpoints.pipeline import load_tokenizer, pipeline_folder, pipeline_of, stored_part
from optimizer.checkpoints.prediction import Prediction, read_prediction
from optimizer.checkpoints.presence import is_file, is_folder, is_there
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
from optimizer.checkpoints.temporaries import host_name, temporary_folder
from optimizer.checkpoints.writing import (
    SafetensorsWriter,
    TensorSpec,
    atomic_path,
    check_writable,
    replace_text,
    safetensors_writer,
    write_safetensors,
)
from optimizer.checkpoints.zeros import is_zero, zeros_at_end

__all__ = [
    "CHECKPOINT_SUFFIXES",
    "HASHES",
    "NOT_VERIFIED",
    "TEXT_SUFFIXES",
    "Checkpoint",
    "FileState",
    "HashCache",
    "Inspection",
    "Layout",
    "Prediction",
    "Provenance",
    "SafetensorsWriter",
    "TensorSpec",
    "atomic_path",
    "check_output",
    "check_unchanged",
    "check_writable",
    "default_cache_folder",
    "did_you_mean",
    "fingerprint",
    "host_name",
    "inspect_checkpoint",
    "is_file",
    "is_folder",
    "is_there",
    "is_zero",
    "kind_of_folder",
    "kind_of_other_file",
    "known_models",
    "legacy_hash",
    "load_layout",
    "load_tokenizer",
    "missing_file",
    "missing_folder",
    "name_and_hash",
    "open_checkpoint",
    "open_in_place",
    "parsed",
    "pipeline_folder",
    "pipeline_of",
    "read_prediction",
    "read_provenance",
    "refuse_links",
    "replace_text",
    "safetensors_writer",
    "sha256",
    "short_hash",
    "stored_part",
    "study_folder_of",
    "temporary_folder",
    "undo_unfinished",
    "unfit",
    "write_new_files",
    "write_safetensors",
    "zeros_at_end",
]
