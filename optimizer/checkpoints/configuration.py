"""The pipeline configuration and the text encoders that a checkpoint goes with."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import torch

from optimizer.checkpoints.source import TensorSource
from optimizer.errors import CheckpointError
from optimizer.families import Layout, Pipeline, TextEncoder, pipeline_folder

__all__ = ["encoders_of", "pipeline_of", "placed_parameters", "readable_encoder_of"]


def readable_encoder_of(layout: Layout) -> TextEncoder:
    """Return the text encoder that blockfit can compute, or raise CheckpointError if the layout has none."""
    if layout.readable_encoder is None:
        raise CheckpointError(f"{layout.title}: blockfit has no pipeline configuration for it (layout {layout.name})")
    return layout.readable_encoder


def pipeline_of(source: TensorSource, layout: Layout) -> Path:
    """Return the folder of the pipeline configuration that a checkpoint goes with.

    The size of its text encoder's vocabulary decides. Raises CheckpointError if the checkpoint has no text encoder, or
    one with an unknown number of tokens, or if the layout has no pipeline configurations.

    Args:
        source: The checkpoint.
        layout: Its layout.

    Returns:
        The folder.
    """
    return pipeline_folder(_selected(source, layout).name)


def encoders_of(source: TensorSource, layout: Layout) -> tuple[TextEncoder, ...]:
    """Return the text encoders whose states the network receives, with the layers and heads of a checkpoint's.

    Raises the errors of `pipeline_of`.

    Args:
        source: The checkpoint.
        layout: Its layout.

    Returns:
        The encoders, in the order in which their states stand side by side.
    """
    pipeline, selecting = _selected(source, layout), layout.readable_encoder
    return tuple(
        replace(encoder, layers=pipeline.layers or encoder.layers, heads=pipeline.heads or encoder.heads)
        if encoder is selecting
        else encoder
        for encoder in layout.readable_encoders
    )


def _selected(source: TensorSource, layout: Layout) -> Pipeline:
    """Return the pipeline configuration that the size of the vocabulary selects, or raise CheckpointError."""
    encoder = readable_encoder_of(layout)
    pipelines, tokens = encoder.pipelines or {}, encoder.tokens or ""
    known = ", ".join(f"{count:,} ({pipeline.name})" for count, pipeline in pipelines.items())
    embedding = source.tensors.get(tokens)
    if embedding is None:
        raise CheckpointError(f"{source.label}: has no {encoder.title}: tensor {tokens!r} is missing")
    if embedding.shape[0] not in pipelines:
        raise CheckpointError(
            f"{source.label}: the {encoder.title} has {embedding.shape[0]:,} tokens; {layout.name} has "
            f"tokenizers of {known}"
        )
    return pipelines[embedding.shape[0]]


def placed_parameters(
    places: Mapping[str, tuple[str, int | None]], tensors: Mapping[str, torch.Tensor]
) -> dict[str, torch.Tensor]:
    """Return the parameters of a text encoder as views of a checkpoint's tensors.

    Args:
        places: Where the checkpoint holds each parameter, as `TextEncoder.place_of` returns it.
        tensors: The tensors by canonical name.

    Returns:
        The parameters by transformers' names.
    """
    return {
        name: tensors[stored] if third is None else tensors[stored].chunk(3)[third]
        for name, (stored, third) in places.items()
    }
