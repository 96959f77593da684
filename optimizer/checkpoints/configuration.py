"""Which pipeline configuration a checkpoint goes with."""

from pathlib import Path

from optimizer.checkpoints.source import TensorSource
from optimizer.errors import CheckpointError
from optimizer.families import Layout, pipeline_folder

__all__ = ["pipeline_of"]


def pipeline_of(source: TensorSource, layout: Layout) -> Path:
    """The folder of the pipeline configuration that a checkpoint of this layout goes with.

    Its text encoder's vocabulary tells. Raises CheckpointError if it has no text encoder, or one of unknown size.
    """
    known = ", ".join(f"{tokens:,} ({name})" for tokens, name in layout.pipelines.items())
    embedding = source.tensors.get(layout.token_embedding)
    if embedding is None:
        raise CheckpointError(f"{source.label}: has no text encoder: tensor {layout.token_embedding!r} is missing")
    if embedding.shape[0] not in layout.pipelines:
        raise CheckpointError(
            f"{source.label}: the text encoder has {embedding.shape[0]:,} tokens; {layout.name} knows "
            f"tokenizers of {known}"
        )
    return pipeline_folder(layout.pipelines[embedding.shape[0]])
