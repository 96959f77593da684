"""What a checkpoint draws: opening it as a pipeline, sampling from it, labelled sheets, previews of merges.

diffusers and transformers are loaded when they are needed."""

from optimizer.pictures.drawing import draw, generate, latent_distance, pixel_distance
from optimizer.pictures.opening import open_pipeline
from optimizer.pictures.preview import Preview, PreviewRequest, preview, write_preview
from optimizer.pictures.sheets import contact_sheet

__all__ = [
    "Preview",
    "PreviewRequest",
    "contact_sheet",
    "draw",
    "generate",
    "latent_distance",
    "open_pipeline",
    "pixel_distance",
    "preview",
    "write_preview",
]
