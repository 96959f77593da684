"""Draw pictures with checkpoints: pipelines, sampling, labelled sheets and previews of merges.

diffusers and transformers are imported only when a picture is drawn.
"""

from optimizer.pictures.drawing import draw, generate, latent_distance, pixel_distance
from optimizer.pictures.opening import open_pipeline
from optimizer.pictures.preview import Preview, PreviewRequest, draw_preview, preview, write_preview
from optimizer.pictures.sheets import contact_sheet

__all__ = [
    "Preview",
    "PreviewRequest",
    "contact_sheet",
    "draw",
    "draw_preview",
    "generate",
    "latent_distance",
    "open_pipeline",
    "pixel_distance",
    "preview",
    "write_preview",
]
