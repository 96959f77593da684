"""The shipped layouts of SD 2.x, the SDXL refiner and the transformers: their names, spellings, blocks and commands.

`topologies.py` has the published models' tensors. They are compared with sd-mecha's configurations and with diffusers'
models, through diffusers' own converters, and their numbers with published counts.
"""

import json
import re
from math import prod
from pathlib import Path

import pytest
import sd_mecha
import torch
from ruamel.yaml import YAML
from safetensors.torch import load_file, save_file
from topologies import (
    MODELS,
    NETWORK,
    REFINER_UNET,
    SD2_UNET,
    anima_network,
    flux_network,
    ldm_unet,
    make_family,
    mmdit,
    network_of,
    tiny,
    wan_network,
    z_image_network,
)

from optimizer.checkpoints import open_checkpoint
from optimizer.checkpoints.recognition import kind_and_layout
from optimizer.families import load_layout
from optimizer.interchange import export_recipe
from optimizer.library import fingerprint
from optimizer.recipes import load_recipe, new_recipe

FAMILIES = sorted(MODELS)
# Families whose names for norms' scales differ between tools.
SCALED = ("flux", "chroma")
# Each like a family before it, and with more tensors.
SLOW = ("sd35-medium", "sd35-large", "chroma", "qwen-image")
FITTED = [pytest.param(name, marks=[pytest.mark.slow] if name in SLOW else []) for name in FAMILIES]

# Tensors and millions of parameters: of each network, and of variants of it.
PUBLISHED = {
    "sd2": (686, 865.9),
    "sdxl-refiner": (1220, 2259.5),
    "sd3-medium": (491, 2084.95),
    "sd35-medium": (665, 2469.7),
    "sd35-large": (923, 8146.3),
    "flux": (780, 11901.4),
    "chroma": (643, 8900.0),
    "qwen-image": (1933, 20430.4),
    "z-image": (453, 6154.9),
    "anima": (685, 2091.1),
    "wan21": (825, 1419.0),
}
WAN_14B = wan_network(5120, 13824, 40)
WAN_I2V = wan_network(5120, 13824, 40, 36, image=True)
WAN_5B = wan_network(3072, 14336, 30, 48, 48)
VARIANTS = [
    ("flux", flux_network(guidance=False), 776, 11891.2),
    ("wan21", WAN_14B, 1095, 14288.5),
    ("wan21", WAN_I2V, 1303, 16395.0),
    ("wan21", WAN_5B, 825, 5000.0),
]


@pytest.fixture(scope="module")
def shapes():
    """The tensors of each family's whole checkpoint, {layout: {name: shape}}."""
    return {name: make() for name, make in MODELS.items()}


def millions(shapes):
    """Return the number of parameters in millions."""
    return sum(prod(shape) for shape in shapes.values()) / 1e6


def block_at(family, name):
    """Return the block of a network's or text encoder's tensor by the family's description, without its file."""
    if not name.startswith(NETWORK):
        encoder = name.removeprefix("text_encoders.").split(".")[0]
        return {
            "flux": {"clip_l": "CLIP", "t5xxl": "T5"},
            "chroma": {"t5xxl": "T5"},
        }.get(family, {}).get(encoder, "BASE" if family.startswith("sd") else "TEXT")
    first, *rest = name.removeprefix(NETWORK).split(".")
    number = int(rest[0]) if rest and rest[0].isdigit() else None
    if family in ("sd2", "sdxl-refiner"):
        numbered = {"input_blocks": "IN", "output_blocks": "OUT"}
        if first in numbered:
            return f"{numbered[first]}{number:02}"
        return {"middle_block": "M00", "out": "OUT11", "time_embed": "IN00"}.get(first, "BASE")
    if family.startswith("sd3"):
        last = "IN37" if family == "sd35-large" else "IN23"
        return f"IN{number:02}" if first == "joint_blocks" else last if first == "final_layer" else "IN00"
    letters = {
        "double_blocks": "D",
        "single_blocks": "S",
        "transformer_blocks": "T",
        "blocks": "B",
        "layers": "L",
    }
    if first in letters:
        return f"{letters[first]}{number:02}"
    if first in ("noise_refiner", "context_refiner"):
        return f"{first[0].upper()}{number}"
    other = {"distilled_guidance_layer": "GUIDANCE", "llm_adapter": "ADAPTER"}
    ends = ("final_layer", "head", "norm_out", "proj_out")
    return other.get(first) or ("OUT" if first in ends else "IN")


# --- Names ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
def test_networks_have_the_published_size(shapes, family):
    """The network has as many tensors and parameters as the published model."""
    network = network_of(shapes[family])

    assert (len(network), round(millions(network), 1)) == (
        PUBLISHED[family][0],
        pytest.approx(PUBLISHED[family][1], abs=0.06),
    )


@pytest.mark.parametrize(("family", "network", "count", "size"), VARIANTS)
def test_variants_have_the_published_size(family, network, count, size):
    """A variant of another size has the layout of its family, too, and as many tensors as published."""
    assert (len(network), millions(network)) == (count, pytest.approx(size, abs=0.3))
    assert kind_and_layout(network_of(network), {})[1] is load_layout(family)


@pytest.mark.parametrize(("family", "configuration"), [("flux", "flux-flux"), ("sd3-medium", "sd3-comfyui")])
def test_names_are_those_of_sd_mecha(shapes, family, configuration):
    """Names and shapes are those of sd-mecha's configuration of the family."""
    folder = Path(sd_mecha.__file__).parent / "extensions" / "builtin" / "model_configs"
    parts = YAML(typ="safe").load((folder / f"{configuration}.yaml").read_text(encoding="utf-8"))["components"]
    expected = {name: tuple(key["shape"]) for part in parts.values() for name, key in part.items()}
    expected.pop("model.model_sampling.sigmas", None)

    assert shapes[family] == expected


def diffusers_cases():
    """Return diffusers' converter, the network, and diffusers' class with its arguments, for each family."""
    big = {"attention_head_dim": 64, "joint_attention_dim": 4096, "pooled_projection_dim": 2048, "out_channels": 16}
    cosmos = {name: shape for name, shape in anima_network().items() if not name.startswith(f"{NETWORK}llm_adapter.")}
    unet = {"use_linear_projection": True, "class_embed_type": None}
    return {
        "sd2": (
            "convert_ldm_unet_checkpoint",
            ldm_unet(*SD2_UNET),
            ("UNet2DConditionModel", {"cross_attention_dim": 1024, "attention_head_dim": [5, 10, 20, 20], **unet}),
        ),
        "sdxl-refiner": (
            "convert_ldm_unet_checkpoint",
            ldm_unet(*REFINER_UNET, conditioning=2560),
            (
                "UNet2DConditionModel",
                {
                    "block_out_channels": (384, 768, 1536, 1536),
                    "down_block_types": ("DownBlock2D", *["CrossAttnDownBlock2D"] * 2, "DownBlock2D"),
                    "up_block_types": ("UpBlock2D", *["CrossAttnUpBlock2D"] * 2, "UpBlock2D"),
                    "cross_attention_dim": 1280,
                    "attention_head_dim": [6, 12, 24, 24],
                    "transformer_layers_per_block": 4,
                    "addition_embed_type": "text_time",
                    "addition_time_embed_dim": 256,
                    "projection_class_embeddings_input_dim": 2560,
                    **unet,
                },
            ),
        ),
        "sd35-medium": (
            "convert_sd3_transformer_checkpoint_to_diffusers",
            mmdit(1536, 24, 147456, norms=True, second=13),
            (
                "SD3Transformer2DModel",
                {
                    "num_layers": 24,
                    "num_attention_heads": 24,
                    "caption_projection_dim": 1536,
                    "pos_embed_max_size": 384,
                    "dual_attention_layers": tuple(range(13)),
                    "qk_norm": "rms_norm",
                    **big,
                },
            ),
        ),
        "sd35-large": (
            "convert_sd3_transformer_checkpoint_to_diffusers",
            mmdit(2432, 38, 36864, norms=True),
            (
                "SD3Transformer2DModel",
                {
                    "num_layers": 38,
                    "num_attention_heads": 38,
                    "caption_projection_dim": 2432,
                    "pos_embed_max_size": 192,
                    "qk_norm": "rms_norm",
                    **big,
                },
            ),
        ),
        "flux": (
            "convert_flux_transformer_checkpoint_to_diffusers",
            flux_network(),
            ("FluxTransformer2DModel", {"guidance_embeds": True}),
        ),
        "chroma": (
            "convert_chroma_transformer_checkpoint_to_diffusers",
            flux_network(distilled=True),
            ("ChromaTransformer2DModel", {}),
        ),
        "qwen-image": (None, MODELS["qwen-image"](), ("QwenImageTransformer2DModel", {})),
        "z-image": (
            "convert_z_image_transformer_checkpoint_to_diffusers",
            z_image_network(),
            ("ZImageTransformer2DModel", {}),
        ),
        "anima": (
            "convert_cosmos_transformer_checkpoint_to_diffusers",
            cosmos,
            (
                "CosmosTransformer3DModel",
                {
                    "num_attention_heads": 16,
                    "num_layers": 28,
                    "extra_pos_embed_type": None,
                    "in_channels": 16,
                },
            ),
        ),
        "wan21": (
            "convert_wan_transformer_to_diffusers",
            wan_network(1536, 8960, 30),
            ("WanTransformer3DModel", {"num_attention_heads": 12, "ffn_dim": 8960, "num_layers": 30}),
        ),
        "wan-i2v": (
            "convert_wan_transformer_to_diffusers",
            WAN_I2V,
            ("WanTransformer3DModel", {"in_channels": 36, "image_dim": 1280, "added_kv_proj_dim": 5120}),
        ),
    }


@pytest.mark.parametrize("family", sorted(diffusers_cases()))
@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_diffusers_turns_names_into_its_own(family):
    """Diffusers' own converter turns names and shapes of the network into exactly those of its model."""
    import diffusers
    from diffusers.loaders import single_file_utils

    converter, network, (model, arguments) = diffusers_cases()[family]
    with torch.device("meta"):
        expected = getattr(diffusers, model)(**arguments).state_dict()
        stored = {name: torch.empty(shape) for name, shape in network.items() if name.startswith(NETWORK)}
        if converter == "convert_ldm_unet_checkpoint":
            config = {"addition_embed_type": None, "layers_per_block": 2, **arguments}
            found = single_file_utils.convert_ldm_unet_checkpoint(stored, config)
        else:
            bare = {name.removeprefix(NETWORK): tensor for name, tensor in stored.items()}
            prefix = "net." if family == "anima" else ""
            given = {prefix + name: tensor for name, tensor in bare.items()}
            found = given if converter is None else getattr(single_file_utils, converter)(given)

    assert {n: tuple(t.shape) for n, t in found.items()} == {n: tuple(t.shape) for n, t in expected.items()}


@pytest.mark.parametrize(
    ("family", "published", "others"),
    [
        ("sd2", ["v2-1_768-ema-pruned", "v2-1_512-nonema-pruned", "512-base-ema"], ["toonv2-pruned", "sd15"]),
        ("sdxl-refiner", ["sd_xl_refiner_1.0", "sd_xl_refiner_1.0_0.9vae"], ["sd_xl_base_1.0"]),
        ("sd3-medium", ["sd3_medium", "sd3_medium_incl_clips_t5xxlfp16"], ["sd3.5_medium"]),
        ("sd35-medium", ["sd3.5_medium"], ["sd3_medium", "sd3.5_large"]),
        ("sd35-large", ["sd3.5_large", "sd3.5_large_turbo"], ["sd3.5_medium"]),
        ("flux", ["flux1-dev", "flux1-schnell", "flux1-dev-fp8", "flux1-kontext-dev"], ["ultraflux", "flux1-devAnime"]),
        ("chroma", ["Chroma1-HD", "chroma-unlocked-v35"], ["mychroma", "chromatic"]),
        ("qwen-image", ["qwen_image_bf16", "qwen_image_edit_2509_bf16"], ["qwen-image-anime"]),
        ("z-image", ["z_image_turbo_bf16", "z_image_bf16"], ["jazz-images", "z_image_anime"]),
        ("anima", ["anima-preview", "anima"], ["animagine", "anime"]),
        ("wan21", ["wan2.1_t2v_1.3B_fp16", "wan2.2_ti2v_5B_fp16"], ["swan", "wan_anime"]),
    ],
)
def test_base_models_are_known_by_their_files(family, published, others):
    """The files of published base models are known as bases by their names, and those of finetunes are not."""
    patterns = load_layout(family).base_names

    found = {name for name in (*published, *others) if any(pattern.search(name) for pattern in patterns)}
    assert found == set(published)


# --- Blocks -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
def test_every_tensor_has_a_part_and_merges(shapes, family):
    """Every tensor belongs to a part and can merge; each block of the layout has tensors."""
    layout = load_layout(family)

    assert [name for name in shapes[family] if layout.part_of(name) is None or not layout.merges(name)] == []
    assert {layout.block_of(name) for name in {**shapes[family], **(WAN_14B if family == "wan21" else {})}} >= {
        *layout.blocks
    }


@pytest.mark.parametrize("family", FAMILIES)
def test_tensors_have_their_blocks(shapes, family):
    """Each tensor that the default mapping merges has the block that its name says."""
    layout = load_layout(family)
    blocks = {name: layout.block_of(name) for name in shapes[family] if not name.startswith(layout.vae.prefix)}

    assert {name: block for name, block in blocks.items() if block not in (None, block_at(family, name))} == {}


@pytest.mark.parametrize(
    ("family", "mapping", "left"),
    [
        ("sd2", "supermerger", {"positional_embedding", "text_projection", "logit_scale"}),
        ("sd2", "model-mixer", {"text_projection", "logit_scale"}),
        ("sd2", "comfyui", {"logit_scale"}),
        ("sdxl-refiner", "supermerger", {"positional_embedding", "text_projection", "logit_scale"}),
        ("sdxl-refiner", "comfyui", {"logit_scale"}),
        ("sd3-medium", "comfyui", {"logit_scale"}),
        ("sd3-medium", "mecha", set()),
        ("flux", "supermerger", {"scale"}),
        ("flux", "comfyui", set()),
        ("flux", "mecha", set()),
        ("chroma", "comfyui", set()),
        ("wan21", "comfyui", set()),
    ],
)
def test_tools_leave_tensors(shapes, family, mapping, left):
    """A tool leaves exactly the tensors of the model that its rules leave, besides the VAE."""
    layout = load_layout(family)
    stay = {
        name
        for name in shapes[family]
        if layout.block_of(name, mapping) is None and not name.startswith(layout.vae.prefix)
    }

    assert {name.rsplit(".", 1)[-1] for name in stay} == left
    assert stay == {name for name in shapes[family] if name.rsplit(".", 1)[-1] in left}


def test_model_mixer_merges_blocks_alone(shapes):
    """Of FLUX.1 and SD 3, model-mixer merges the numbered blocks, and CLIPs; T5 and the rest stay model A's."""
    for family, blocks in (("flux", ("double_blocks", "single_blocks")), ("sd3-medium", ("joint_blocks",))):
        layout = load_layout(family)
        moved = {name for name in shapes[family] if layout.block_of(name, "model-mixer") is not None}
        begun = (*(f"{NETWORK}{block}." for block in blocks), "text_encoders.clip_l.t", "text_encoders.clip_g.t")

        assert moved == {name for name in shapes[family] if name.startswith(begun)}


def test_the_last_layer_of_sd2s_encoder_does_not_score(shapes):
    """The layer that SD 2.x does not use, and that sd-scripts writes as a copy, merges and does not score."""
    layout = load_layout("sd2")
    quiet = {name for name in shapes["sd2"] if layout.merges(name) and not layout.scores(name)}
    encoder = "cond_stage_model.model."

    last = {name for name in quiet if name.startswith(f"{encoder}transformer.resblocks.23.")}
    assert len(last) == 12
    vae = {name for name in quiet if name.startswith("first_stage_model.")}
    assert quiet == {*last, *vae, f"{encoder}text_projection", f"{encoder}logit_scale"}


# --- Spellings --------------------------------------------------------------------------------------------------------


def written(path, tensors, layout=None):
    """Write tensors and return the fingerprint of the file that is read back."""
    save_file(tensors, path)
    with open_checkpoint(path, layout=layout) as opened:
        return fingerprint(opened)


@pytest.mark.parametrize("family", FAMILIES)
def test_spellings_are_one_model(shapes, family, tmp_path):
    """A network under any prefix, bare, and with ComfyUI's names for scales is the same model, to the bit."""
    random = torch.Generator().manual_seed(1)
    bare = {name: torch.randn(shape, generator=random) for name, shape in network_of(tiny(shapes[family])).items()}
    layout = load_layout(family)
    found = set()
    for prefix in (NETWORK, "", "net.", "model.", "model.model.", "diffusion_model."):
        for end in ("scale", "weight") if family in SCALED else ("scale",):
            tensors = {prefix + re.sub(r"\.scale$", f".{end}", name): tensor for name, tensor in bare.items()}
            found.add(written(tmp_path / "a.safetensors", tensors, layout))

    assert len(found) == 1
    save_file({NETWORK + name: tensor for name, tensor in bare.items()}, tmp_path / "a.safetensors")
    with open_checkpoint(tmp_path / "a.safetensors") as opened:
        assert opened.layout is layout
        assert set(opened.tensors) == {NETWORK + name for name in bare}


@pytest.mark.parametrize(
    ("family", "pattern", "other"),
    [
        ("flux", r"\.text_model\.", "."),
        ("sd3-medium", r"\.text_model\.", "."),
        ("sd2", r"^cond_stage_model\.", "conditioner.embedders.0."),
        ("flux", r"(vae\..*attn_1\.)q\.", r"\1to_q."),
        ("sd2", r"(first_stage_model\..*attn_1\.)proj_out\.", r"\1proj_attn."),
        ("sdxl-refiner", r"(first_stage_model\..*attn_1\.)k\.", r"\1key."),
        ("z-image", r"(vae\..*attn_1\.)norm\.", r"\1group_norm."),
    ],
)
def test_other_parts_have_other_spellings(shapes, family, pattern, other, tmp_path):
    """Text encoders and VAEs under the names of other tools are the same model."""
    random = torch.Generator().manual_seed(1)
    tensors = {name: torch.randn(shape, generator=random) for name, shape in tiny(shapes[family]).items()}
    renamed = {re.sub(pattern, other, name): tensor for name, tensor in tensors.items()}

    assert set(renamed) != set(tensors)
    assert written(tmp_path / "a.safetensors", tensors) == written(tmp_path / "b.safetensors", renamed)


# --- Commands ---------------------------------------------------------------------------------------------------------


def planted(layout, seed):
    """Return an alpha for each block, between 0.1 and 0.9."""
    random = torch.Generator().manual_seed(seed)
    return dict(
        zip(layout.blocks, (0.1 + 0.8 * torch.rand(len(layout.blocks), generator=random)).tolist(), strict=True)
    )


def stays(layout, name):
    """Return whether a tensor of the target is the base's: the VAE, and what the default mapping leaves."""
    return name.startswith(layout.vae.prefix) or layout.block_of(name) is None


@pytest.fixture(scope="module")
def families(shapes, tmp_path_factory):
    """A function that returns a family's folder, tensors and alphas, and writes them at the first call."""
    made = {}

    def of(family):
        if family not in made:
            layout, folder = load_layout(family), tmp_path_factory.mktemp(family)
            alphas = [planted(layout, seed) for seed in (1, 2)]
            shares = [
                lambda name, alpha=alpha: 0.0 if stays(layout, name) else alpha[block_at(family, name)]
                for alpha in alphas
            ]
            made[family] = folder, make_family(folder, tiny(shapes[family]), shares), alphas
        return made[family]

    return of


@pytest.fixture(scope="module")
def fitted(families):
    """A function that returns the folder of a family's study after `init` and `fit`, run at the first call."""
    from optimizer.cli import main

    made = {}

    def run(*arguments):
        with pytest.raises(SystemExit) as left:
            main([*map(str, arguments), "--quiet"])
        assert not left.value.code

    def of(family):
        if family not in made:
            folder = families(family)[0]
            target, *sources = (folder / f"{name}.safetensors" for name in ("target", "base", "fine1", "fine2"))
            made[family] = folder / "study"
            run("init", target, *sources, "--base", sources[0], "-o", made[family])
            run("fit", made[family])
        return made[family]

    return of


@pytest.mark.parametrize("family", FITTED)
def test_the_planted_recipe_is_found(families, fitted, family, blockfit):
    """A family goes from `init` through `fit` to `merge`: alphas are found, and the merge is the target."""
    folder, tensors, alphas = families(family)
    study, output = fitted(family), folder / "clone.safetensors"
    best = load_recipe(study / "best.yaml")

    assert best.layout is load_layout(family)
    held = {block_at(family, name) for name in tensors["base"] if not stays(best.layout, name)}
    for step, alpha in zip(best.steps, alphas, strict=True):
        found = {block: step.alpha.at(block) for block in held}
        assert found == pytest.approx({block: alpha[block] for block in held}, abs=1e-4)
    assert blockfit("merge", study / "best.yaml", "-o", output, "--dtype", "fp32", "--quiet").returncode == 0
    merged = load_file(output)
    assert merged.keys() == tensors["target"].keys()
    for name, tensor in tensors["target"].items():
        torch.testing.assert_close(merged[name], tensor, atol=1e-5, rtol=0)


def expected_similarities(family, tensors, metric):
    """Return the similarity of fine1 with the target in each block by the metric's definition, in float64."""
    layout, blocks = load_layout(family), {}
    for name in tensors["base"]:
        if not stays(layout, name) and layout.scores(name):
            blocks.setdefault(block_at(family, name), []).append(name)

    def joined(names, model, less=None):
        parts = [tensors[model][n].double() - (tensors[less][n].double() if less else 0.0) for n in names]
        return torch.cat([part.flatten() for part in parts])

    def cosine(names, less=None):
        return float(torch.cosine_similarity(joined(names, "fine1", less), joined(names, "target", less), 0))

    found = {}
    for block, names in blocks.items():
        if metric == "elements":
            found[block] = sum(cosine([name]) for name in names) / len(names)
        elif metric == "explained":
            away = joined(names, "fine1") - joined(names, "target")
            found[block] = max(-1.0, float(1 - away.square().sum() / joined(names, "base", "target").square().sum()))
        else:
            found[block] = cosine(names, "base" if metric == "delta" else None)
    return found


@pytest.mark.parametrize("metric", ["explained", "weights", "delta", "elements"])
@pytest.mark.parametrize("family", FAMILIES)
def test_similarities_equal_their_definition(families, family, metric, blockfit):
    """Each metric equals its definition in every block."""
    folder, tensors, _ = families(family)
    files = [folder / f"{name}.safetensors" for name in ("fine1", "target", "base")]

    ran = blockfit("compare", files[0], "--target", files[1], "--base", files[2], "--metric", metric, "--json")

    (found,) = json.loads(ran.stdout)
    assert found["blocks"] == pytest.approx(expected_similarities(family, tensors, metric), abs=2e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_inspect_names_the_family(families, family, blockfit):
    """`inspect` names the layout, and finds a whole checkpoint usual."""
    ran = blockfit("inspect", families(family)[0] / "target.safetensors", "--json")

    (found,) = json.loads(ran.stdout)
    assert (found["layout"], found["unusual"]) == (family, [])


@pytest.mark.parametrize("family", FAMILIES)
def test_a_network_alone_is_compared(families, family, blockfit, tmp_path):
    """A network alone is compared with a whole checkpoint; only families that never come so draw a warning."""
    folder, tensors, _ = families(family)
    bare = {name.removeprefix(NETWORK): one for name, one in tensors["fine1"].items() if name.startswith(NETWORK)}
    save_file(bare, tmp_path / "bare.safetensors")
    files = [folder / f"{name}.safetensors" for name in ("target", "base")]

    ran = blockfit("compare", tmp_path / "bare.safetensors", "--target", files[0], "--base", files[1], "--json")

    (found,) = json.loads(ran.stdout)
    everywhere = expected_similarities(family, tensors, "explained")
    kept = {block_at(family, name) for name in tensors["base"] if name.startswith(NETWORK)}
    network = {name: {k: v for k, v in one.items() if k.startswith(NETWORK)} for name, one in tensors.items()}
    expected = expected_similarities(family, network, "explained")
    assert {b: s for b, s in found["blocks"].items() if b in kept - {"BASE"}} == pytest.approx(
        {b: s for b, s in expected.items() if b != "BASE"}, abs=2e-5
    )
    assert kept <= set(everywhere)
    assert ("no VAE" in ran.stderr) is (load_layout(family).unet is not None)


@pytest.mark.parametrize("family", [name for name in FAMILIES if load_layout(name).unet is None])
def test_attention_is_refused_for_transformers(families, family, blockfit):
    """`attention` is refused in one line with the reason where it is not defined."""
    fine, target = (families(family)[0] / f"{name}.safetensors" for name in ("fine1", "target"))

    ran = blockfit("compare", fine, "--target", target, "--metric", "attention")

    reason = "it is defined for UNets whose layout lists their self-attention"
    line = f"blockfit: --metric: 'attention' is not offered for {load_layout(family).title}: {reason}"
    assert (ran.returncode, ran.stderr.splitlines()) == (2, [line])


@pytest.mark.parametrize(("family", "depth", "blocks"), [("sd2", 1, 16), ("sdxl-refiner", 4, 11)])
def test_attention_reads_every_transformer_block(shapes, family, depth, blocks):
    """`attention` sees each UNet block with self-attention, and each of its transformer blocks, in the UNet's order."""
    layout = load_layout(family)
    projections = [name for name in shapes[family] if name.endswith(".attn1.to_q.weight")]

    listed = [prefix for prefixes in layout.attention.values() for prefix in prefixes]
    assert listed == [name.removesuffix(".to_q.weight") for name in projections]
    assert {len(prefixes) for prefixes in layout.attention.values()} == {depth}
    assert len(layout.attention) == blocks


@pytest.mark.parametrize("family", ["sd2", "sdxl-refiner"])
def test_attention_is_measured(families, family, blockfit):
    """`attention` equals the article's definition, as the mean over a block's transformer blocks."""
    folder, tensors, _ = families(family)
    files = [folder / f"{name}.safetensors" for name in ("fine1", "target")]

    ran = blockfit("compare", files[0], "--target", files[1], "--metric", "attention", "--seed", "7", "--json")

    random, expected = torch.Generator().manual_seed(7), {}
    for block, prefixes in load_layout(family).attention.items():
        cosines = []
        for prefix in prefixes:
            x, outputs = torch.randn(3, 3, generator=random, dtype=torch.float32).double(), []
            for model in ("fine1", "target"):
                q, k, v = (x @ tensors[model][f"{prefix}.to_{one}.weight"].double().T for one in "qkv")
                outputs.append(torch.softmax(q @ k.T, 1) * v.sum(0))
            cosines.append(torch.cosine_similarity(*outputs, 1).mean())
        expected[block] = float(torch.stack(cosines).mean())
    (found,) = json.loads(ran.stdout)
    assert found["blocks"] == pytest.approx(expected, abs=1e-4)


# --- Reports and exports ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["sdxl-refiner", "flux", "z-image"])
def test_the_report_draws_the_blocks(fitted, family, blockfit, tmp_path):
    """The report's map has every block once, in columns for what is no UNet; it offers only exports that exist."""
    layout, output = load_layout(family), tmp_path / "report.html"

    assert blockfit("report", fitted(family), "-o", output, "--quiet").returncode == 0

    page = output.read_text(encoding="utf-8")
    drawn = re.findall(r'<text class="on [\w ]*block"[^>]*>([^<]+)</text>', page)[: len(layout.blocks)]
    assert sorted(drawn) == sorted(layout.blocks)
    assert (drawn == list(layout.blocks)) is (layout.unet is None)
    for tool in ("comfyui", "supermerger"):
        assert (f"--to {tool}" in page) is layout.tools.knows(tool)
    assert "Copy for SuperMerger" in page or not layout.tools.knows("supermerger")
    assert "a photo of a cat" not in page


# The inputs of ComfyUI's nodes of block merges (comfy_extras/nodes_model_merging_model_specific.py).
NODES = {
    "sd2": (
        "ModelMergeSD2",
        ["time_embed.", "label_emb.", *(f"input_blocks.{n}." for n in range(12))]
        + [f"middle_block.{n}." for n in range(3)]
        + [f"output_blocks.{n}." for n in range(12)]
        + ["out."],
    ),
    "sd3-medium": (
        "ModelMergeSD3_2B",
        ["pos_embed.", "x_embedder.", "context_embedder.", "y_embedder.", "t_embedder."]
        + [f"joint_blocks.{n}." for n in range(24)]
        + ["final_layer."],
    ),
    "sd35-large": (
        "ModelMergeSD35_Large",
        ["pos_embed.", "x_embedder.", "context_embedder.", "y_embedder.", "t_embedder."]
        + [f"joint_blocks.{n}." for n in range(38)]
        + ["final_layer."],
    ),
    "flux": (
        "ModelMergeFlux1",
        ["img_in.", "time_in.", "guidance_in", "vector_in.", "txt_in."]
        + [f"double_blocks.{n}." for n in range(19)]
        + [f"single_blocks.{n}." for n in range(38)]
        + ["final_layer."],
    ),
    "qwen-image": (
        "ModelMergeQwenImage",
        ["pos_embeds.", "img_in.", "txt_norm.", "txt_in.", "time_text_embed."]
        + [f"transformer_blocks.{n}." for n in range(60)]
        + ["proj_out."],
    ),
    "anima": (
        "ModelMergeCosmosPredict2_2B",
        ["pos_embedder.", "x_embedder.", "t_embedder.", "t_embedding_norm."]
        + [f"blocks.{n}." for n in range(28)]
        + ["final_layer."],
    ),
    "wan21": (
        "ModelMergeWAN2_1",
        ["patch_embedding.", "time_embedding.", "time_projection.", "text_embedding.", "img_emb."]
        + [f"blocks.{n}." for n in range(40)]
        + ["head."],
    ),
}
NODES["sd35-medium"] = NODES["sd3-medium"]


def recipe_of(family, mapping, **fixed):
    """Return a weight sum of two models with another alpha in every block, except those of `fixed`, and the alphas."""
    layout = load_layout(family)
    alpha = {block: round(0.01 * n, 2) for n, block in enumerate(layout.blocks, start=1)}
    alpha |= {block: number for block, number in fixed.items() if block in layout.blocks}
    steps = [{"name": "MIX", "mode": "weight_sum", "a": "A", "b": "B", "alpha": list(alpha.values())}]
    models = {"A": "A.safetensors", "B": "B.safetensors"}
    return new_recipe(models, steps, layout=family, mapping=mapping), alpha


@pytest.mark.parametrize("family", sorted(NODES))
def test_comfyuis_nodes_have_their_inputs(family):
    """The export to ComfyUI has the family's node with exactly its inputs, each 1 - alpha of its tensors' block."""
    # ComfyUI merges all text encoders with one ratio.
    recipe, alpha = recipe_of(family, "comfyui", CLIP=0.0, T5=0.0, BASE=0.0)
    node, inputs = NODES[family]

    nodes = json.loads(export_recipe(recipe, "comfyui")).values()

    (merge,) = (one["inputs"] for one in nodes if one["class_type"] == node)
    numbers = {name: value for name, value in merge.items() if not name.startswith("model")}
    assert sorted(numbers) == sorted(inputs)
    layout = load_layout(family)
    for name in MODELS[family]():
        if name.startswith(NETWORK):
            bare = name.removeprefix(NETWORK)
            # ComfyUI takes the longest input that a name begins with, else the node's first.
            fitting = max((one for one in inputs if bare.startswith(one)), key=len, default=inputs[0])
            assert numbers[fitting] == pytest.approx(1 - alpha[layout.block_of(name, "comfyui")]), name


def test_supermergers_61_numbers():
    """SuperMerger's preset of FLUX.1 has 61 numbers: CLIP, T5, IN, D00-D18, S00-S37, OUT."""
    recipe, alpha = recipe_of("flux", "supermerger")

    line = export_recipe(recipe, "supermerger").splitlines()[-1]

    name, numbers = line.split("\t")
    assert (name, [float(one) for one in numbers.split(",")]) == ("MIX", list(alpha.values()))
    assert [*alpha] == ["CLIP", "T5", "IN", *(f"D{n:02}" for n in range(19)), *(f"S{n:02}" for n in range(38)), "OUT"]
