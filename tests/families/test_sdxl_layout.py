"""SDXL's layout agrees with sd-mecha's list of its tensors and with what each tool merges."""

import importlib.resources

import pytest
from ruamel.yaml import YAML
from step_by_step import SDXL_ATTENTION, SDXL_BLOCKS, block_of_sdxl

from optimizer.families import detect_layout, load_layout

LAYOUT = load_layout("sdxl")


@pytest.fixture(scope="module")
def tensors():
    """The tensors of SDXL by sd-mecha's list, {name: (shape, dtype)}, without schedule and markers."""
    package = "sd_mecha.extensions.builtin.model_configs"
    text = (importlib.resources.files(package) / "sdxl-sgm.yaml").read_text(encoding="utf-8")
    components = YAML(typ="safe").load(text)["components"]
    return {
        name: (tuple(entry["shape"]), entry["dtype"])
        for component, listed in components.items()
        if component != "scheduler"
        for name, entry in listed.items()
        if name not in LAYOUT.markers
    }


def test_every_tensor_has_its_part_and_merges(tensors):
    """Each of the 2,514 floating-point tensors merges and belongs to a part; the position ids do not merge."""
    merged = {name for name in tensors if LAYOUT.merges(name)}

    assert {name for name, (_, dtype) in tensors.items() if dtype != "int64"} == merged
    assert len(merged) == 2514
    assert {name for name in tensors if name not in merged} == set(LAYOUT.position_ids)
    assert all(LAYOUT.expects(name) for name in tensors)
    assert detect_layout(tensors) is LAYOUT


@pytest.mark.parametrize("mapping", ["supermerger", "model-mixer", "mecha", "comfyui"])
def test_every_tensor_merges_by_the_block_of_the_tool(tensors, mapping):
    """Each tensor merges by the block that the tool assigns it to, or stays as in A as in the tool."""
    expected = {name: block_of_sdxl(name, mapping) for name in tensors}

    assert {name: LAYOUT.block_of(name, mapping) for name in tensors} == expected
    assert set(SDXL_BLOCKS) == set(expected.values()) - {None}
    assert LAYOUT.blocks == SDXL_BLOCKS


def test_supermerger_merges_what_it_finds_by_name(tensors):
    """Under SuperMerger's mapping a tensor moves if its name contains "weight" or "bias", the rule of its code."""
    moved = {name for name in tensors if LAYOUT.merges(name) and LAYOUT.block_of(name, "supermerger") is not None}

    assert moved == {name for name in tensors if "weight" in name or "bias" in name}


def test_self_attention_is_in_the_list(tensors):
    """All 70 self-attentions are listed by block, with square matrices of one width in each block."""
    listed = {
        f"model.diffusion_model.{place}.attn1": block for block, inner in SDXL_ATTENTION.items() for place in inner
    }

    assert {prefix: block for block, prefixes in LAYOUT.attention.items() for prefix in prefixes} == listed
    assert list(LAYOUT.attention) == list(SDXL_ATTENTION)
    assert {name.rsplit(".", 2)[0] for name in tensors if ".attn1.to_q." in name} == set(listed)
    for block, prefixes in LAYOUT.attention.items():
        width = 640 if len(prefixes) == 2 else 1280
        names = [f"{prefix}.{projection}" for prefix in prefixes for projection in LAYOUT.projections]
        assert {tensors[name][0] for name in names} == {(width, width)}, block
