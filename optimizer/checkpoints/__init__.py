"""Reading and writing of tensors behind one protocol, `TensorSource`: lazily read, recognized by kind, streamed."""

from optimizer.checkpoints.configuration import encoders_of, pipeline_of, placed_parameters, readable_encoder_of
from optimizer.checkpoints.kinds import FileKind
from optimizer.checkpoints.open_file import FileState
from optimizer.checkpoints.other_files import STATISTICS, kind_of_folder, kind_of_other_file
from optimizer.checkpoints.prediction import Prediction, read_prediction, usual_schedule
from optimizer.checkpoints.reading import as_source, open_checkpoint, raw_bytes, unfit
from optimizer.checkpoints.source import (
    BaseSource,
    ElementReader,
    TensorInfo,
    TensorSource,
    WholeTensorReader,
    check_unchanged,
)
from optimizer.checkpoints.vae import only_vae, open_vae, without_vae
from optimizer.checkpoints.writing import SafetensorsWriter, TensorSpec, safetensors_writer, write_safetensors
from optimizer.checkpoints.zero_tensors import ZeroTensors
from optimizer.checkpoints.zeros import is_zero, zeros_at_end

__all__ = [
    "STATISTICS",
    "BaseSource",
    "ElementReader",
    "FileKind",
    "FileState",
    "Prediction",
    "SafetensorsWriter",
    "TensorInfo",
    "TensorSource",
    "TensorSpec",
    "WholeTensorReader",
    "ZeroTensors",
    "as_source",
    "check_unchanged",
    "encoders_of",
    "is_zero",
    "kind_of_folder",
    "kind_of_other_file",
    "only_vae",
    "open_checkpoint",
    "open_vae",
    "pipeline_of",
    "placed_parameters",
    "raw_bytes",
    "read_prediction",
    "readable_encoder_of",
    "safetensors_writer",
    "unfit",
    "usual_schedule",
    "without_vae",
    "write_safetensors",
    "zeros_at_end",
]
