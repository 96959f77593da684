"""Comparisons of a small family of checkpoints by attention."""

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path

import torch

from optimizer.families import load_layout
from optimizer.similarity import AttentionOptions, Comparison, Options, open_comparison

__all__ = ["open_attention"]


def open_attention(
    paths: Mapping[str, Path], seeds: Sequence[int], device: str = "cpu", layout: str = "sd1"
) -> AbstractContextManager[Comparison]:
    """Open the sources base, x and y with the target, to be compared by attention with these seeds."""
    return open_comparison(
        load_layout(layout),
        {name: paths[name] for name in ("base", "x", "y")},
        paths["target"],
        options=Options((AttentionOptions(seeds=list(seeds)),)),
        device=torch.device(device),
    )
