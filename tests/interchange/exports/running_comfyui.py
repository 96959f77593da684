"""ComfyUI's merge nodes: what they take, and what they compute."""

from pathlib import PurePosixPath

__all__ = ["NODES", "carry_out", "validate"]

UNET = "model.diffusion_model."
TEXT = ("cond_stage_model.", "conditioner.")
VAE = "first_stage_model."

# Inputs and outputs of ComfyUI's nodes: a type for a link, (low, high) for a number, str for a text. Compared with the
# INPUT_TYPES, RETURN_TYPES and merge functions of ComfyUI's comfy_extras/nodes_model_merging.py at commit 3d3d14d28470
# and nodes_model_merging_model_specific.py at 0c745430df88; `carry_out` computes the same as those functions.
RATIO = (0.0, 1.0)
MULTIPLIER = (-10.0, 10.0)
BLOCK_INPUTS = (
    "time_embed.",
    "label_emb.",
    *(f"input_blocks.{n}." for n in range(12)),
    *(f"middle_block.{n}." for n in range(3)),
    *(f"output_blocks.{n}." for n in range(12)),
    "out.",
)
# Those of ModelMergeSDXL end without a dot where they have a number.
XL_BLOCK_INPUTS = (
    "time_embed.",
    "label_emb.",
    *(f"input_blocks.{n}" for n in range(9)),
    *(f"middle_block.{n}" for n in range(3)),
    *(f"output_blocks.{n}" for n in range(9)),
    "out.",
)
NODES = {
    "CheckpointLoaderSimple": ({"ckpt_name": str}, ("MODEL", "CLIP", "VAE")),
    "ModelMergeSD1": ({"model1": "MODEL", "model2": "MODEL"} | dict.fromkeys(BLOCK_INPUTS, RATIO), ("MODEL",)),
    "ModelMergeSDXL": ({"model1": "MODEL", "model2": "MODEL"} | dict.fromkeys(XL_BLOCK_INPUTS, RATIO), ("MODEL",)),
    "ModelMergeSubtract": ({"model1": "MODEL", "model2": "MODEL", "multiplier": MULTIPLIER}, ("MODEL",)),
    "ModelMergeAdd": ({"model1": "MODEL", "model2": "MODEL"}, ("MODEL",)),
    "CLIPMergeSimple": ({"clip1": "CLIP", "clip2": "CLIP", "ratio": RATIO}, ("CLIP",)),
    "CLIPMergeSubtract": ({"clip1": "CLIP", "clip2": "CLIP", "multiplier": MULTIPLIER}, ("CLIP",)),
    "CLIPMergeAdd": ({"clip1": "CLIP", "clip2": "CLIP"}, ("CLIP",)),
    "CheckpointSave": ({"model": "MODEL", "clip": "CLIP", "vae": "VAE", "filename_prefix": str}, ()),
}


def validate(workflow):
    """Assert that each node exists and has exactly the inputs of its definition, each of its type and range."""
    for node in workflow.values():
        expected, _ = NODES[node["class_type"]]
        assert set(node["inputs"]) == set(expected)
        for name, value in node["inputs"].items():
            kind = expected[name]
            if kind is str:
                assert isinstance(value, str)
                assert value
            elif isinstance(kind, str):
                origin, slot = value
                assert NODES[workflow[origin]["class_type"]][1][slot] == kind
            else:
                assert isinstance(value, float)
                assert kind[0] <= value <= kind[1]
    assert [node["class_type"] for node in workflow.values()].count("CheckpointSave") == 1


def carry_out(workflow, tensors):
    """Return the tensors that the workflow saves, by name, computed by the rules of ComfyUI's nodes in float64."""

    def part(stem, start):
        return {k: v.double() for k, v in tensors[stem].items() if k.startswith(start) and v.is_floating_point()}

    def combine(first, second, function):
        # The nodes for text encoders leave logit_scale as in the first.
        left = (".logit_scale", ".position_ids")
        return {
            name: first[name] if name.endswith(left) else function(name, first[name], second[name]) for name in first
        }

    def output(link):
        node = workflow[link[0]]
        kind, inputs = node["class_type"], node["inputs"]
        if kind == "CheckpointLoaderSimple":
            return part(PurePosixPath(inputs["ckpt_name"]).stem, (UNET, TEXT, VAE)[link[1]])
        first, second = (output(inputs[name]) for name in inputs if name in ("model1", "model2", "clip1", "clip2"))
        if kind in ("ModelMergeSD1", "ModelMergeSDXL"):
            return combine(first, second, lambda name, a, b: mixed(ratio_of(inputs, name), a, b))
        if kind == "CLIPMergeSimple":
            return combine(first, second, lambda _, a, b: mixed(inputs["ratio"], a, b))
        if kind.endswith("Subtract"):
            factor = inputs["multiplier"]
            return combine(first, second, lambda _, a, b: factor * a - factor * b)
        assert kind.endswith("Add")
        return combine(first, second, lambda _, a, b: a + b)

    (save,) = (node["inputs"] for node in workflow.values() if node["class_type"] == "CheckpointSave")
    return output(save["model"]) | output(save["clip"]) | output(save["vae"])


def mixed(ratio, first, second):
    """Return the mix of two tensors; a ratio of 1 keeps the first."""
    return ratio * first + (1 - ratio) * second


def ratio_of(inputs, name):
    """Return the ratio of the longest input name that the tensor's name starts with."""
    fitting = [key for key in inputs if name.removeprefix(UNET).startswith(key)]
    return inputs[max(fitting, key=len)]
