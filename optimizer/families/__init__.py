"""Model families: layouts of tensors, kinds of files, presets, pipeline configurations and tokenizers.

This package opens no checkpoint.
"""

from optimizer.families.built_in_presets import built_in_presets
from optimizer.families.layout import Layout
from optimizer.families.layout_files import (
    DEFAULT_LAYOUT,
    default_layout,
    detect_layout,
    layout_names,
    load_layout,
    register_layout,
    registered_layouts,
)
from optimizer.families.parts import ModelPart, TextEncoder
from optimizer.families.pipelines import load_tokenizer, pipeline_folder, prompts_file, stored_part
from optimizer.families.records import Pipeline, Tools

__all__ = [
    "DEFAULT_LAYOUT",
    "Layout",
    "ModelPart",
    "Pipeline",
    "TextEncoder",
    "Tools",
    "built_in_presets",
    "default_layout",
    "detect_layout",
    "layout_names",
    "load_layout",
    "load_tokenizer",
    "pipeline_folder",
    "prompts_file",
    "register_layout",
    "registered_layouts",
    "stored_part",
]
