"""What a model family is: layouts of its tensors, prefixes of their names, pipeline configurations, tokenizers.

Opens no checkpoint.
"""

from optimizer.families.layout import Layout, detect_layout, layout_names, load_layout
from optimizer.families.pipelines import load_tokenizer, pipeline_folder, stored_part
from optimizer.families.prefixes import OUT, PREFIXES, TEXT_ENCODER, TIME_EMBED, UNET, VAE, prefix_of

__all__ = [
    "OUT",
    "PREFIXES",
    "TEXT_ENCODER",
    "TIME_EMBED",
    "UNET",
    "VAE",
    "Layout",
    "detect_layout",
    "layout_names",
    "load_layout",
    "load_tokenizer",
    "pipeline_folder",
    "prefix_of",
    "stored_part",
]
