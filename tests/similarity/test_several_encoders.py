"""The encoder metric on SDXL's two encoders, and on OpenCLIP alone, agrees with the models run as users run them."""

from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_encoders import (
    OTHER_SHAPES,
    G,
    L,
    clip_shapes,
    drawn,
    mean_cosine,
    openclip_shapes,
    openclip_states,
    padded,
    side_by_side,
    write_family,
)
from watching import META, Watching

from optimizer.errors import CheckpointError, InputError
from optimizer.families import load_layout, load_tokenizer, pipeline_folder, prompts_file, register_layout
from optimizer.families.layout_files import forget_layout
from optimizer.recipes import Algebra, Alpha, Model, Recipe, Step
from optimizer.search import fit
from optimizer.similarity import EncoderOptions, Options, build_metric, compare, encoder, open_comparison
from optimizer.similarity.encoder import EncoderMetric
from optimizer.studies import load_study

SOURCES = ("base", "one", "two")
PROMPTS = ("a cat", "", "a portrait of an old fisherman at the harbour, oil on canvas, warm light", "cat, cat " * 60)
SDXL = load_layout("sdxl")


@pytest.fixture(scope="module")
def tokenizer():
    """CLIP's tokenizer."""
    return load_tokenizer(pipeline_folder("sd1"))


@pytest.fixture(scope="module")
def family(tmp_path_factory):
    """The folder and the tensors of a base, two finetunes and a target of SDXL."""
    folder = tmp_path_factory.mktemp("family")
    shapes = OTHER_SHAPES | clip_shapes() | openclip_shapes()
    return folder, write_family(folder, (*SOURCES, "target"), shapes)


@pytest.fixture(scope="module")
def paths(family):
    """The files of the sources, by name."""
    return {name: family[0] / f"{name}.safetensors" for name in SOURCES}


def recipe(paths, alpha=0.35, mapping=None):
    """Return base + (one - base) x 0.6, then two mixed in by alpha."""
    steps = (
        Step("T1", "add_difference", "base", "one", "base", Alpha({"BASE": 0.6})),
        Step("T2", "weight_sum", "T1", "two", None, Alpha({"BASE": alpha})),
    )
    models = {name: Model(str(path)) for name, path in paths.items()}
    return Recipe("r", SDXL, models, steps, "T2", mapping=mapping or SDXL.default_mapping)


def merged(tensors, mapping):
    """Return the encoders of the recipe's result, computed tensor by tensor from its formula."""
    found = {}
    for name, base in tensors["base"].items():
        fixed = mapping == "supermerger" and name == G + "positional_embedding"
        first = base + 0.6 * (tensors["one"][name] - base)
        found[name] = base if fixed else 0.65 * first + 0.35 * tensors["two"][name]
    return found


def scored(paths, target, wanted, prompts=PROMPTS, clip_skip=1, *, along=(), mapping=None):
    """Return the metric's score of a recipe, optionally prepared for the line through others."""
    options = Options((EncoderOptions(clip_skip=clip_skip).with_texts(prompts),))
    with open_comparison(wanted.layout, paths, target, options=options, mapping=mapping) as comparison:
        metric = build_metric("encoder", comparison, ("BASE",))
        rows = []
        for each in (wanted, *along):
            algebra = Algebra(each, comparison.groups, tuple(paths))
            rows.append(algebra.coefficients(algebra.starting_alphas()))
        if along:
            metric.prepare(torch.cat(rows))
        assert metric.blocks == ("BASE",)
        return float(metric.score(rows[0])[0, 0])


@pytest.mark.parametrize("mapping", ["supermerger", "comfyui"])
@pytest.mark.parametrize("clip_skip", [1, 3])
@pytest.mark.parametrize("prompts", [PROMPTS, None])
def test_states_stand_side_by_side(family, paths, tokenizer, mapping, clip_skip, prompts):
    """The score is the cosine of hidden_states[-2] of both encoders side by side, those of clip skip n being [-(n+1)].

    The mapping decides whether the CLIP-G's position embedding merges.
    """
    folder, tensors = family
    shipped = prompts_file(pipeline_folder("sdxl")).read_text(encoding="utf-8").splitlines()

    found = scored(
        paths, folder / "target.safetensors", recipe(paths, mapping=mapping), prompts, clip_skip, mapping=mapping
    )

    tokens, lengths = padded(tokenizer, prompts or shipped)
    states = [side_by_side(each, tokens, clip_skip + 1) for each in (merged(tensors, mapping), tensors["target"])]
    assert states[0].shape[-1] == 24 + 40
    assert found == pytest.approx(mean_cosine(*states, lengths), abs=1e-5)
    assert found < 0.99


def test_every_tensor_of_the_encoders_merges():
    """All tensors of both encoders merge, queries, keys and values of the CLIP-G too, as in ComfyUI: into BASE."""
    names = [name for name in clip_shapes() | openclip_shapes() if not name.endswith("logit_scale")]

    assert len(names) == 196 + 389
    assert all(SDXL.merges(name) and SDXL.block_of(name, "comfyui") == "BASE" for name in names)


def test_line_does_not_change_the_score(family, paths):
    """Preparation for the line of one alpha does not change the score."""
    target, others = family[0] / "target.safetensors", [recipe(paths, alpha) for alpha in (0.0, 1.0)]

    found = scored(paths, target, recipe(paths), along=others)

    assert found == pytest.approx(scored(paths, target, recipe(paths)), abs=1e-6)


def test_gpu_form_scores_the_same(family, paths, monkeypatch):
    """One tensor for all of a source's gives the same score, on a line and off it."""
    target, others = family[0] / "target.safetensors", [recipe(paths, alpha) for alpha in (0.0, 1.0)]
    expected = [scored(paths, target, recipe(paths), along=along) for along in ((), others)]
    monkeypatch.setattr(encoder, "_read", encoder._read_to_gpu)

    found = [scored(paths, target, recipe(paths), along=along) for along in ((), others)]

    assert found == pytest.approx(expected, abs=1e-9)


def test_gpu_gives_scores_in_one_copy(family, paths):
    """On a GPU the scores of several candidates come back in one copy, and nothing is sent to it."""
    with open_comparison(SDXL, paths, family[0] / "target.safetensors") as comparison:
        with Watching() as gpu:
            metric = EncoderMetric(replace(comparison, device=META), ("BASE",))
        assert gpu.to_host == 1
        rows = torch.full((2, len(comparison.groups), len(paths)), 0.25, dtype=torch.float64)
        with Watching() as gpu:
            metric.score(rows)

    assert (gpu.to_gpu, gpu.to_host) == (0, 1)


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="torch can use no NVIDIA GPU here")
def test_gpu_agrees_with_the_cpu(family, paths):
    """A GPU gives the scores of the CPU, on a line and off it."""
    scores = []
    for device in ("cpu", "cuda"):
        with open_comparison(SDXL, paths, family[0] / "target.safetensors", device=torch.device(device)) as comparison:
            metric = build_metric("encoder", comparison, ("BASE",))
            algebras = [Algebra(recipe(paths, a), comparison.groups, SOURCES) for a in (0.2, 0.0, 1.0)]
            rows = torch.cat([algebra.coefficients(algebra.starting_alphas()) for algebra in algebras])
            scores.append(metric.score(rows).flatten().tolist())
            metric.prepare(rows)
            scores.append(metric.score(rows).flatten().tolist())
    for each in scores[1:]:
        assert each == pytest.approx(scores[0], abs=1e-5)


def changed(family, path, *beginnings):
    """Write the target with other values in tensors whose names begin so, and return the file."""
    tensors = dict(family[1]["target"])
    found = [name for name in tensors if name.startswith(beginnings)]
    assert found
    tensors |= drawn({name: tensors[name].shape for name in found}, 9)
    save_file(tensors, path)
    return path


def test_tensors_that_the_states_do_not_reach_do_not_count(family, tmp_path):
    """The last layer of each encoder, and what follows, do not count: a file that differs there alone scores 1."""
    outside = (
        L + "encoder.layers.11.", L + "final_layer_norm.", G + "transformer.resblocks.31.", G + "ln_final.",
        G + "text_projection", G + "logit_scale",
    )  # fmt: skip
    candidate = changed(family, tmp_path / "candidate.safetensors", *outside)

    found = compare(candidate, family[0] / "target.safetensors", metric="encoder", prompts=PROMPTS)

    assert found == {"BASE": pytest.approx(1, abs=1e-7)}


@pytest.mark.parametrize(
    "beginning",
    [
        L + "encoder.layers.10.mlp.fc2.weight",
        L + "embeddings.position_embedding.weight",
        G + "transformer.resblocks.30.mlp.c_proj.bias",
        G + "transformer.resblocks.0.attn.in_proj_bias",
        G + "positional_embedding",
    ],
)
def test_tensors_that_the_states_reach_count(family, tmp_path, beginning):
    """A file that differs in a tensor of an earlier layer, or in an embedding, scores less than 1."""
    candidate = changed(family, tmp_path / "candidate.safetensors", beginning)

    found = compare(candidate, family[0] / "target.safetensors", metric="encoder", prompts=PROMPTS)

    assert found["BASE"] < 0.9999


def test_base_is_searched(family, paths, tmp_path):
    """A fit by the encoder metric finds the planted alpha of BASE in both encoders."""
    tensors = family[1]
    target = {name: 0.7 * tensors["one"][name] + 0.3 * tensors["two"][name] for name in tensors["one"]}
    target[G + "positional_embedding"] = tensors["one"][G + "positional_embedding"]  # SuperMerger leaves it
    save_file(target, tmp_path / "target.safetensors")
    models = "".join(f"  {name}: {{file: '{paths[name].as_posix()}'}}\n" for name in SOURCES)
    (tmp_path / "recipe.yaml").write_text(
        f"layout: sdxl\nmodels:\n{models}steps:\n"
        "  - {name: T, mode: weight_sum, a: one, b: two, alpha: {BASE: {search: [0, 1]}}}\n",
        encoding="utf-8",
    )
    (tmp_path / "prompts.txt").write_text("a cat\na dog in the rain\n", encoding="utf-8")
    (tmp_path / "study.yaml").write_text(
        "recipe: recipe.yaml\ntarget: {file: target.safetensors}\nbase: base\nstages:\n"
        "  - {name: s, metric: encoder, prompts: prompts.txt, trials: 10}\n",
        encoding="utf-8",
    )

    result = fit(load_study(tmp_path))

    step = result.recipe.step("T")
    assert step.alpha.at("BASE") == pytest.approx(0.3, abs=1e-3)
    assert step.similarity["encoder"]["blocks"] == {"BASE": pytest.approx(1, abs=1e-6)}


@pytest.mark.parametrize("lacking", ["candidate", "target"])
@pytest.mark.parametrize(("prefix", "title"), [(L, "text encoder CLIP-L"), (G, "text encoder CLIP-G")])
def test_file_without_an_encoder_is_named(family, tmp_path, lacking, prefix, title):
    """The one of two files that lacks one of the encoders is named, with that encoder."""
    tensors = {name: value for name, value in family[1]["one"].items() if not name.startswith(prefix)}
    save_file(tensors, tmp_path / "part.safetensors")
    files = {name: family[0] / f"{name}.safetensors" for name in ("base", "target")}
    files["base" if lacking == "candidate" else "target"] = tmp_path / "part.safetensors"

    with pytest.raises(CheckpointError) as caught:
        compare(files["base"], files["target"], metric="encoder")

    (problem,) = caught.value.problems
    assert problem.startswith(f"{tmp_path / 'part.safetensors'}: has no {title}: tensor ")


@pytest.mark.parametrize(
    ("name", "shape", "reason"),
    [
        (G + "transformer.resblocks.3.attn.in_proj_weight", None, "is missing, or not of floating point"),
        (G + "positional_embedding", None, "is missing, or not of floating point"),
        (G + "transformer.resblocks.3.attn.in_proj_weight", (80, 40), r"has shape \[80, 40\]; must be \[120, 40\]"),
        (G + "token_embedding.weight", (49408, 41), "has 41 columns; must be a multiple of the 20 attention heads"),
        (G + "token_embedding.weight", (49400, 40), r"has shape \[49400, 40\]; must be \[49408, 40\]"),
        (L + "embeddings.position_embedding.weight", (77,), r"has shape \[77\]; must be a matrix"),
        (L + "embeddings.token_embedding.weight", (64, 24), "the text encoder CLIP-L has 64 tokens; sdxl has"),
    ],
)
def test_encoders_of_other_shapes_are_refused(family, tmp_path, name, shape, reason):
    """Files whose encoders lack a tensor, or have one of another shape, are refused with the file and the tensor."""
    tensors = dict(family[1]["one"])
    del tensors[name]
    if shape is not None:
        tensors[name] = torch.ones(shape)
    save_file(tensors, tmp_path / "odd.safetensors")

    with pytest.raises(CheckpointError, match=rf"^[^\n]*odd\.safetensors: [^\n]*{reason}[^\n]*$"):
        compare(tmp_path / "odd.safetensors", tmp_path / "odd.safetensors", metric="encoder", prompts=PROMPTS)


@pytest.mark.parametrize("clip_skip", [0, 12])
def test_missing_layer_is_refused(family, clip_skip):
    """Clip skips beyond the first layer of the encoder with fewer layers are refused."""
    with pytest.raises(InputError, match=r"^clip_skip: received \d+; must be from 1, the last layer but one, to 11$"):
        compare(family[0] / "one.safetensors", family[0] / "target.safetensors", metric="encoder", clip_skip=clip_skip)


OPENCLIP = """\
name: one-openclip
title: One OpenCLIP
blocks: [TEXT, NET]
requires: [net.weight, words.model.ln_final.weight]
parts:
  - {{title: network, role: network, prefix: net.}}
  - title: text encoder
    role: text_encoder
    prefix: words.
    encoder:
      kind: openclip
      model: words.model.
      layers: 4
      heads: 2
      activation: gelu
      states: {{layer: {layer}, normalized: {normalized}}}
      tokens: words.model.token_embedding.weight
      pipelines:
        49408: {{name: one-openclip}}
merges: [weight, bias, in_proj_weight, in_proj_bias, positional_embedding, text_projection, logit_scale]
places: {{net.: NET, words.: TEXT}}
mappings: {{plain: {{}}}}
"""


@pytest.mark.parametrize(
    ("layer", "normalized", "clip_skip"),
    [(2, True, 1), (2, False, 1), (1, True, 1), (2, True, 2)],
    ids=["as SD 2.x", "as SDXL's refiner", "last layer", "clip skip"],
)
def test_openclip_alone(tmp_path, tokenizer, layer, normalized, clip_skip):
    """A layout says which states its network receives: of which layer, and whether after the final normalization."""
    prefix = "words.model."
    shapes = {"net.weight": (4, 4)} | openclip_shapes(prefix, layers=4, width=16, inner=40)
    tensors = write_family(tmp_path, ("candidate", "target"), shapes)
    file = tmp_path / "one-openclip.yaml"
    file.write_text(OPENCLIP.format(layer=layer, normalized=str(normalized).lower()), encoding="utf-8")
    layout = register_layout(file)
    files = (tmp_path / f"{name}.safetensors" for name in tensors)
    try:
        found = compare(*files, metric="encoder", prompts=PROMPTS, clip_skip=clip_skip)
    finally:
        forget_layout(layout.name)

    tokens, lengths = padded(tokenizer, PROMPTS)
    layers = 4 - (layer - 1) - (clip_skip - 1)
    states = [
        openclip_states(each, tokens, prefix=prefix, layers=layers, heads=2, normalized=normalized)
        for each in tensors.values()
    ]
    assert found == {"TEXT": pytest.approx(mean_cosine(*states, lengths), abs=1e-5)}
    assert found["TEXT"] < 0.99


@pytest.mark.parametrize(
    ("name", "prefix", "layers", "heads", "normalized"),
    [
        ("sd2", "cond_stage_model.model.", 24, 16, True),
        ("sdxl-refiner", "conditioner.embedders.0.model.", 32, 20, False),
    ],
)
def test_families_with_one_openclip(tmp_path, tokenizer, name, prefix, layers, heads, normalized):
    """SD 2.x and SDXL's refiner are scored by the state before the last layer, that of SD 2.x normalized."""
    unet = {
        "sd2": {"input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight": (8, 1024)},
        "sdxl-refiner": {
            "input_blocks.4.1.transformer_blocks.0.attn2.to_k.weight": (8, 1280),
            "label_emb.0.0.weight": (8, 2560),
        },
    }[name] | {"input_blocks.0.0.weight": (8, 4, 3, 3)}
    shapes = dict.fromkeys(load_layout(name).requires, (8, 8))
    shapes |= {f"model.diffusion_model.{tensor}": shape for tensor, shape in unet.items()}
    shapes |= {tensor: shape for tensor, shape in OTHER_SHAPES.items() if tensor.startswith("first_stage_model.")}
    shapes |= openclip_shapes(prefix, layers=layers, width=2 * heads, inner=40)
    tensors = write_family(tmp_path, ("candidate", "target"), shapes)

    found = compare(*(tmp_path / f"{each}.safetensors" for each in tensors), metric="encoder", prompts=PROMPTS)

    tokens, lengths = padded(tokenizer, PROMPTS)
    states = [
        openclip_states(each, tokens, prefix=prefix, layers=layers - 1, heads=heads, normalized=normalized)
        for each in tensors.values()
    ]
    assert found == {"BASE": pytest.approx(mean_cosine(*states, lengths), abs=1e-5)}
    assert found["BASE"] < 0.99


def test_half_precision_files_are_read(family, paths, tmp_path):
    """Files in float16 score as their values in float32."""
    halves, floats = {}, {}
    for name in ("one", "target"):
        half = {key: value.half() for key, value in load_file(family[0] / f"{name}.safetensors").items()}
        halves[name], floats[name] = tmp_path / f"{name}-16.safetensors", tmp_path / f"{name}-32.safetensors"
        save_file(half, halves[name])
        save_file({key: value.float() for key, value in half.items()}, floats[name])

    found = [compare(each["one"], each["target"], metric="encoder", prompts=PROMPTS) for each in (halves, floats)]

    assert found[0] == {"BASE": pytest.approx(found[1]["BASE"], abs=1e-7)}
