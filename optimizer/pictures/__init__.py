"""What a checkpoint draws: opening it as a pipeline, sampling from it, labelled sheets, previews of merges.

May import torch, diffusers, transformers (these two lazily), PIL, matplotlib's fonts, optimizer.checkpoints and
optimizer.recipes; never similarity or search.
"""

from optimizer.pictures.drawing import Drawn, draw, generate, latent_distance, pixel_distance
from optimizer.pictures.opening import CONFIGURATION, open_pipeline
from optimizer.pictures.preview import Preview, PreviewColumn, preview
from optimizer.pictures.sheets import contact_sheet

__all__ = [
    "CONFIGURATION",
    "Drawn",
    "Preview",
    "PreviewColumn",
    "contact_sheet",
    "draw",
    "generate",
    "latent_distance",
    "open_pipeline",
    "pixel_distance",
    "preview",
]
