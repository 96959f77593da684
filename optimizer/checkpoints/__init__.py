"""Files in, files out: lazy reading of checkpoints, their fingerprints, streaming atomic writing, layouts.

Pipeline configurations and tokenizers, too. May import torch, safetensors, transformers (lazily) and
`optimizer.errors`; nothing else of blockfit.
"""

from optimizer.checkpoints.fingerprints import (
    HashCache,
    default_cache_folder,
    fingerprint,
    legacy_hash,
    sha256,
    short_hash,
)
from optimizer.checkpoints.held import FileState
from optimizer.checkpoints.inspection import Inspection, find_not_finite, inspect_checkpoint
from optimizer.checkpoints.kinds import FileKind, kind_of
from optimizer.checkpoints.layout import Layout, detect_layout, layout_names, load_layout
from optimizer.checkpoints.links import check_output, open_in_place, refuse_links, study_folder_of
from optimizer.checkpoints.new_files import undo_unfinished, write_new_files
from optimizer.checkpoints.pipeline import load_tokenizer, pipeline_folder, pipeline_of, stored_part
from optimizer.checkpoints.prediction import Prediction, read_prediction
from optimizer.checkpoints.provenance import Parent, Provenance, known_models, name_and_hash, parsed, read_provenance
from optimizer.checkpoints.reading import (
    CHECKPOINT_SUFFIXES,
    Checkpoint,
    TensorInfo,
    check_unchanged,
    open_checkpoint,
)
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
    "Checkpoint",
    "FileKind",
    "FileState",
    "HashCache",
    "Inspection",
    "Layout",
    "Parent",
    "Prediction",
    "Provenance",
    "SafetensorsWriter",
    "TensorInfo",
    "TensorSpec",
    "atomic_path",
    "check_output",
    "check_unchanged",
    "check_writable",
    "default_cache_folder",
    "detect_layout",
    "find_not_finite",
    "fingerprint",
    "host_name",
    "inspect_checkpoint",
    "is_zero",
    "kind_of",
    "known_models",
    "layout_names",
    "legacy_hash",
    "load_layout",
    "load_tokenizer",
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
    "write_new_files",
    "write_safetensors",
    "zeros_at_end",
]
