"""Where the tensors of Stable Diffusion 1.x stand by the start of their names, as other tools tell them apart.

Tools agree about the 25 blocks of the UNet; they differ in time_embed and in the VAE (the layout's mappings).
"""

from optimizer.families.layout import Layout

__all__ = ["OUT", "PREFIXES", "TEXT_ENCODER", "TIME_EMBED", "UNET", "VAE", "prefix_of"]

UNET = "model.diffusion_model."
TIME_EMBED = UNET + "time_embed."
OUT = UNET + "out."
TEXT_ENCODER = "cond_stage_model."
VAE = "first_stage_model."

# Every tensor that merges starts with exactly one of these.
PREFIXES = (
    TIME_EMBED,
    *(f"{UNET}input_blocks.{n}." for n in range(12)),
    UNET + "middle_block.",
    *(f"{UNET}output_blocks.{n}." for n in range(12)),
    OUT,
    TEXT_ENCODER,
    VAE,
)


def prefix_of(block: str, layout: Layout) -> str:
    """Return the prefix of the tensors that belong to a block whatever the mapping."""
    apart = (TIME_EMBED, OUT, VAE)
    return next(prefix for prefix in PREFIXES if prefix not in apart and layout.block_of(prefix) == block)
