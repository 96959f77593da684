"""The pipeline configuration that a checkpoint goes with."""

from pathlib import Path

from optimizer.checkpoints.source import TensorSource
from optimizer.errors import CheckpointError
from optimizer.families import Layout, TextEncoder, pipeline_folder

__all__ = ["pipeline_of", "readable_encoder_of"]


def readable_encoder_of(layout: Layout) -> TextEncoder:
    """Return the text encoder that blockfit can compute, or raise CheckpointError if the layout has none."""
    if layout.readable_encoder is None:
        raise CheckpointError(f"{layout.title}: blockfit has no pipeline configuration for it (layout {layout.name})")
    return layout.readable_encoder


def pipeline_of(source: TensorSource, layout: Layout) -> Path:
    """Return the folder of the pipeline configuration that a checkpoint goes with.

    The size of its text encoder's vocabulary decides.

    Args:
        source: The checkpoint.
        layout: Its layout.

    Returns:
        The folder.

    Raises:
        CheckpointError: The checkpoint has no text encoder, or one with an unknown number of tokens, or the layout has
            no pipeline configurations.
    """
    encoder = readable_encoder_of(layout)
    pipelines, tokens = encoder.pipelines or {}, encoder.tokens or ""
    known = ", ".join(f"{count:,} ({pipeline.name})" for count, pipeline in pipelines.items())
    embedding = source.tensors.get(tokens)
    if embedding is None:
        raise CheckpointError(f"{source.label}: has no {encoder.title}: tensor {tokens!r} is missing")
    if embedding.shape[0] not in pipelines:
        raise CheckpointError(
            f"{source.label}: the text encoder has {embedding.shape[0]:,} tokens; {layout.name} has "
            f"tokenizers of {known}"
        )
    return pipeline_folder(pipelines[embedding.shape[0]].name)
