"""What a checkpoint draws: opening it as a pipeline, sampling from it, labelled sheets; the pipelines' configurations.

May import torch, diffusers, transformers (these two lazily), PIL and optimizer.checkpoints; never similarity or search.
"""

from optimizer.pictures.generation import CONFIGURATION, contact_sheet, generate, open_pipeline

__all__ = ["CONFIGURATION", "contact_sheet", "generate", "open_pipeline"]
