"""Tensors of a merge that are not merged, and warnings about inputs that do not fit each other well."""

import json
import warnings

import pytest
import torch
from building import recipe_of
from safetensors import safe_open
from safetensors.torch import load_file
from step_by_step import BLOCKS

from optimizer.errors import BlockfitWarning
from optimizer.merging import merge

TEXT = "cond_stage_model.transformer.text_model."
VAE = "first_stage_model."
FIRST = "model.diffusion_model.input_blocks.0.0.weight"
EMPTY = torch.tensor([])
MARKERS = {"v_pred": EMPTY, "ztsnr": EMPTY}
BETAS = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
SCHEDULE = {"betas": BETAS.float(), "alphas_cumprod": (1 - BETAS).cumprod(0).float()}


def step(name, mode, a, b, c=None, alpha=0.5):
    """Return a step with one alpha on all blocks, as a plain dict."""
    return {"name": name, "mode": mode, "a": a, "b": b, "c": c, "alpha": dict.fromkeys(BLOCKS, alpha)}


def run(folder, *steps, models=None, **options):
    """Merge by these steps; return the tensors written and the warnings, with paths without the folder."""
    names = models or list(dict.fromkeys(s[k] for s in steps for k in "abc" if s[k] and not s[k].startswith("T")))
    recipe = recipe_of(list(steps), names)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", BlockfitWarning)
        merge(recipe, {name: folder / f"{name}.safetensors" for name in names}, folder / "out.safetensors", **options)
    lines = [str(warning.message).replace(f"{folder}/", "").replace(f"{folder}\\", "") for warning in caught]
    return load_file(folder / "out.safetensors"), lines


@pytest.fixture
def write(tmp_path, write_sd1, sd1_tensors):
    """Return a function that writes a finetune by its name, with the options of `write_sd1`."""
    base = sd1_tensors(seed=0)
    seeds = {"a": 1, "b": 2, "c": 3}

    def make(name, **options):
        return write_sd1(tmp_path / f"{name}.safetensors", seed=seeds[name], around=base, **options)

    return make


def test_a_difference_adds_no_tensors_of_a_training_checkpoint(tmp_path, write):
    """A + (B - C) x 0.5 has only A's tensors, although C is a training checkpoint with EMA and schedule."""
    a, b = write("a"), write("b", ema=True)
    c = write("c", ema=True, overrides={**SCHEDULE, "lvlb_weights": torch.ones(5), "model.whatever": torch.ones(2)})

    found, messages = run(tmp_path, step("T1", "add_difference", "a", "b", "c"), dtype=torch.float32)

    assert set(found) == set(a)
    torch.testing.assert_close(found[FIRST], a[FIRST] + (b[FIRST] - c[FIRST]) * 0.5, rtol=0, atol=1e-6)
    assert messages == [
        "b.safetensors, c.safetensors: hold EMA copies of the model (model_ema.*); left out",
        "c.safetensors: 1 tensor is no part of Stable Diffusion 1.x and is left out: 'model.whatever'",
    ]


def test_the_ema_of_the_first_input_is_left_out(tmp_path, write):
    """A's EMA copy is left out too, since it belongs to the model before the merge."""
    a = write("a", ema=True)
    write("b")

    found, messages = run(tmp_path, step("T1", "weight_sum", "a", "b"))

    assert set(found) == {name for name in a if not name.startswith("model_ema.")}
    assert messages == ["a.safetensors: holds an EMA copy of the model (model_ema.*); left out"]


def test_markers_come_from_the_first_input_alone(tmp_path, write):
    """A share of 5 per cent of a v-prediction model does not copy its markers, and gives a warning."""
    a = write("a")
    write("b", overrides=MARKERS)

    found, messages = run(tmp_path, step("T1", "weight_sum", "a", "b", alpha=0.05))

    assert set(found) == set(a)
    (line,) = messages
    assert line == (
        "b.safetensors: predicts velocity (v_pred) up to zero terminal SNR (ztsnr), but a.safetensors predicts noise; "
        "the merge is sampled as a.safetensors is"
    )


def test_tensors_beside_the_model_are_copied(tmp_path, write):
    """Tensors outside the model's parts are copied from the model that the output begins with, unchanged."""
    first = {**MARKERS, **SCHEDULE, "filler.weight": torch.tensor([3, 4]), "log": torch.tensor(2.5).half()}
    others = {**MARKERS, "betas": BETAS.half(), "filler.weight": torch.ones(2), "more": torch.ones(1)}
    for name, overrides in (("a", others), ("b", first), ("c", others)):
        write(name, overrides=overrides)

    # The recipe lists a first, and c is the first input of a step; but the output begins with b.
    found, messages = run(
        tmp_path,
        step("T1", "weight_sum", "b", "a"),
        step("T2", "weight_sum", "c", "a"),
        step("T3", "add_difference", "T1", "T2", "a"),
        models=("a", "b", "c"),
    )

    held = {name: tensor for name, tensor in found.items() if name in {*first, *others}}
    assert set(held) == set(first)
    assert all((held[name].dtype, held[name].shape) == (tensor.dtype, tensor.shape) for name, tensor in first.items())
    assert all(torch.equal(held[name], tensor) for name, tensor in first.items())
    assert messages == [
        "a.safetensors: 2 tensors are no part of Stable Diffusion 1.x and are left out: 'filler.weight', 'more'",
        "b.safetensors: 2 tensors are no part of Stable Diffusion 1.x and are copied unmerged: 'filler.weight', 'log'",
        "c.safetensors: 2 tensors are no part of Stable Diffusion 1.x and are left out: 'filler.weight', 'more'",
    ]


def test_a_differing_schedule_is_a_warning(tmp_path, write):
    """A schedule that differs from A's gives a warning; Stable Diffusion's schedule, or none, gives none."""
    write("a", overrides=SCHEDULE)
    write("b")
    write("c", overrides={"betas": BETAS.float() / 2})
    sums = torch.stack([(1 - BETAS).cumprod(0), (1 - BETAS / 2).cumprod(0)])

    found, messages = run(tmp_path, step("T1", "add_difference", "a", "b", "c"))

    assert torch.equal(found["betas"], SCHEDULE["betas"])
    (line,) = messages
    assert line == (
        "c.safetensors: its noise schedule (in the file) differs from that of a.safetensors (in the file) by up to "
        f"{float((sums[0] - sums[1]).abs().max()):.2g} in alphas_cumprod; the merge is sampled as a.safetensors is"
    )


@pytest.mark.parametrize(
    ("metadata", "overrides", "expected"),
    [
        ({}, {}, None),
        ({}, MARKERS, "v"),
        ({"modelspec.predict_key": "v"}, {}, "v"),
        ({"modelspec.prediction_type": "epsilon"}, {}, "epsilon"),
        ({"ss_v_parameterization": "True", "ss_zero_terminal_snr": "True"}, {}, "v"),
        ({"modelspec.prediction_type": "flow"}, {}, "flow"),
    ],
)
def test_the_model_spec_has_the_prediction_type_of_a(tmp_path, write, metadata, overrides, expected):
    """The merge's model spec has the prediction type of A's markers or metadata, and none if A has none."""
    write("a", metadata=metadata, overrides=overrides)
    write("b", metadata=metadata, overrides=overrides)

    _, messages = run(tmp_path, step("T1", "weight_sum", "a", "b"), embed_recipe=False)

    with safe_open(tmp_path / "out.safetensors", "pt") as file:
        assert file.metadata().get("modelspec.prediction_type") == expected
        assert file.metadata().get("ss_zero_terminal_snr") == metadata.get("ss_zero_terminal_snr")
    assert messages == []


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        ({"modelspec.prediction_type": "V-prediction"}, "predicts velocity (modelspec.prediction_type: V-prediction)"),
        ({"modelspec.prediction_type": "v_prediction "}, "predicts velocity (modelspec.prediction_type: v_prediction)"),
        ({"prediction_type": "v_prediction"}, "predicts velocity (prediction_type: v_prediction)"),
        ({"ss_v_parameterization": "True"}, "predicts velocity (ss_v_parameterization: True)"),
        ({"ss_zero_terminal_snr": "True"}, "predicts noise up to zero terminal SNR (ss_zero_terminal_snr: True)"),
        (
            {"modelspec.prediction_type": "flow"},
            "predicts 'flow', which blockfit does not know (modelspec.prediction_type: flow)",
        ),
    ],
)
def test_metadata_in_any_spelling_warns(tmp_path, write, metadata, message):
    """A source that is sampled differently by its metadata, in any spelling, gives a warning."""
    write("a")
    write("b", metadata=metadata)

    _, messages = run(tmp_path, step("T1", "weight_sum", "a", "b"))

    assert messages == [
        f"b.safetensors: {message}, but a.safetensors predicts noise; the merge is sampled as a.safetensors is"
    ]


@pytest.mark.parametrize(("option", "part"), [("text_encoder", "text encoder"), ("vae", "VAE")])
@pytest.mark.parametrize(
    ("lacking", "message"),
    [
        ("a", "a.safetensors: no {}; the merge has one made of b.safetensors, c.safetensors"),
        ("b", "b.safetensors: no {}; the merge has one made of a.safetensors, c.safetensors"),
        ("ac", "a.safetensors, c.safetensors: no {}; the merge has that of b.safetensors"),
        ("abc", "a.safetensors, b.safetensors, c.safetensors: no {}; the merge has none"),
    ],
)
def test_lacking_parts_are_one_warning(tmp_path, write, option, part, lacking, message):
    """One warning names the inputs without a text encoder or VAE, and the origin of the merge's."""
    for name in "abc":
        write(name, **{option: name not in lacking})

    found, messages = run(tmp_path, step("T1", "weight_sum", "a", "b"), step("T2", "weight_sum", "T1", "c"))

    assert messages == [message.format(part)]
    assert any(name.startswith(TEXT if part == "text encoder" else VAE) for name in found) == (lacking != "abc")


def test_a_part_of_a_third_input_is_not_merged(tmp_path, write):
    """A text encoder that only C of a difference has is not in the merge; a warning reports it."""
    for name in "abc":
        write(name, text_encoder=name == "c")

    found, messages = run(tmp_path, step("T1", "add_difference", "a", "b", "c"))

    assert messages == ["a.safetensors, b.safetensors: no text encoder; the merge has none"]
    assert not any(name.startswith(TEXT) for name in found)


def test_a_vae_that_no_alpha_moves_is_that_of_a(tmp_path, write):
    """With the mapping model-mixer the merge has A's VAE even with alphas of 1."""
    write("a")
    write("b", vae=False)
    recipe = recipe_of([step("T1", "weight_sum", "a", "b", alpha=1.0)], ("a", "b"), "model-mixer")

    with pytest.warns(BlockfitWarning, match=r"b\.safetensors: no VAE; the merge has that of a\.safetensors$"):
        merge(recipe, {name: tmp_path / f"{name}.safetensors" for name in "ab"}, tmp_path / "out.safetensors")


def test_a_hidden_text_encoder_is_named(tmp_path, write):
    """A text encoder under an unknown name is copied beside B's without merging; a warning names it."""
    a = write("a", rename={TEXT: "clip.text_model."})
    b = write("b")

    found, messages = run(tmp_path, step("T1", "weight_sum", "a", "b"), dtype=torch.float32)

    ids = TEXT + "embeddings.position_ids"
    for name, tensor in b.items():
        if name.startswith(TEXT) and name != ids:
            assert torch.equal(found[name], tensor)
    hidden = [name for name in a if name.startswith("clip.")]
    assert all(torch.equal(found[name], a[name]) for name in hidden)
    unknown, lacks = messages
    assert unknown.startswith(
        f"a.safetensors: {len(hidden)} tensors are no part of Stable Diffusion 1.x and are copied unmerged: 'clip."
    )
    assert unknown.endswith(f" and {len(hidden) - 3} more")
    embedding = "clip.text_model.embeddings.token_embedding.weight"
    assert lacks == (
        f"a.safetensors: no text encoder under a name that is known ({embedding!r} may be of one); "
        "the merge has that of b.safetensors"
    )


def attention(seed, *, matrices):
    """Return a VAE's attention under LDM's names, or as matrices under those of newer diffusers."""
    random = torch.Generator().manual_seed(seed)
    names = ("to_q", "to_k", "to_v", "to_out.0") if matrices else ("q", "k", "v", "proj_out")
    found = {}
    for name in names:
        weight = torch.randn(8, 8, 1, 1, generator=random)
        found[f"{VAE}decoder.mid.attn_1.{name}.weight"] = weight[..., 0, 0] if matrices else weight
        found[f"{VAE}decoder.mid.attn_1.{name}.bias"] = torch.randn(8, generator=random)
    return found


@pytest.mark.parametrize("foreign", ["a", "b", "ab"])
def test_two_spellings_merge(tmp_path, write, foreign):
    """A VAE's attention merges from either spelling of either input, into LDM's names and shapes."""
    for seed, name in enumerate("ab"):
        write(name, overrides=attention(seed, matrices=name in foreign))
    first, second = (attention(seed, matrices=False) for seed in range(2))

    found, messages = run(tmp_path, step("T1", "weight_sum", "a", "b", alpha=0.25), dtype=torch.float32)

    assert {name for name in found if "attn_1" in name} == set(first)
    for name in first:
        assert found[name].shape == first[name].shape
        torch.testing.assert_close(found[name], first[name] * 0.75 + second[name] * 0.25, rtol=0, atol=1e-6)
    assert messages == []


def test_of_two_spellings_that_of_ldm_is_merged(tmp_path, write):
    """Of two spellings with different values only LDM's is merged and written; a warning names the other."""
    first, second = attention(0, matrices=False), attention(1, matrices=False)
    ignored = attention(2, matrices=True)
    write("a", overrides={**first, **ignored})
    write("b", overrides=second)

    found, messages = run(tmp_path, step("T1", "weight_sum", "a", "b"), dtype=torch.float32)

    assert {name for name in found if "attn_1" in name} == set(first)
    assert all(torch.allclose(found[name], (first[name] + second[name]) / 2, atol=1e-6) for name in first)
    (line,) = messages
    assert line.startswith("a.safetensors: holds tensors under two names with different values; read under those of ")
    assert all(name in line or "and 5 more" in line for name in ignored)


def test_a_projection_beside_the_text_model_merges(tmp_path, write):
    """`text_projection` merges under its name in transformers."""
    name = "cond_stage_model.transformer.text_projection.weight"
    weights = [torch.randn(8, 8) for _ in "ab"]
    for letter, weight in zip("ab", weights, strict=True):
        write(letter, overrides={name: weight})

    found, messages = run(tmp_path, step("T1", "weight_sum", "a", "b"), dtype=torch.float32)

    torch.testing.assert_close(found[name], sum(weights) / 2)
    assert not [key for key in found if "text_projection" in key and key != name]
    assert messages == []


def test_a_file_with_two_names_warns_once(tmp_path, write):
    """A file with two names in a recipe gives each warning once."""
    write("a")
    b = write("b", vae=False, overrides={"stray.weight": torch.ones(1)})
    write("c", vae=False)
    models = {"a": "a", "b": "b", "c": "b"}
    recipe = recipe_of([step("T1", "weight_sum", "a", "b"), step("T2", "weight_sum", "T1", "c")], models)

    with pytest.warns(BlockfitWarning) as caught:
        merge(recipe, {name: tmp_path / f"{file}.safetensors" for name, file in models.items()},
              tmp_path / "out.safetensors")  # fmt: skip

    assert "stray.weight" in b
    path = tmp_path / "b.safetensors"
    assert [str(warning.message) for warning in caught] == [
        f"{path}: 1 tensor is no part of Stable Diffusion 1.x and is left out: 'stray.weight'",
        f"{path}: no VAE; the merge has that of a.safetensors",
    ]


def test_alphas_outside_the_usual_range_are_a_warning(tmp_path, write):
    """An alpha of 30 is merged as it is, with a warning."""
    a, b = write("a"), write("b")

    found, messages = run(tmp_path, step("T1", "weight_sum", "a", "b", alpha=30), dtype=torch.float32)

    torch.testing.assert_close(found[FIRST], a[FIRST] * -29 + b[FIRST] * 30, rtol=1e-5, atol=1e-5)
    assert messages == ["steps.T1.alpha: 30 (BASE) is far outside the usual range, -3 to 3; is it per cent?"]


def test_ordinary_inputs_give_no_warning(tmp_path, write):
    """Complete checkpoints with Stable Diffusion's schedule, in several precisions, give no warning."""
    write("a", dtype=torch.float16, overrides={name: tensor.half() for name, tensor in SCHEDULE.items()})
    write("b", overrides={"cond_stage_model.logit_scale": torch.tensor(4.6)})
    write("c", dtype=torch.bfloat16)

    _, messages = run(tmp_path, step("T1", "add_difference", "a", "b", "c"))

    assert messages == []


def test_left_out_tensors_do_not_change_the_noted_recipe(tmp_path, write):
    """Tensors that are left out do not change the recipe in the metadata."""
    write("a")
    write("b", ema=True)

    run(tmp_path, step("T1", "weight_sum", "a", "b"))

    with safe_open(tmp_path / "out.safetensors", "pt") as file:
        noted = json.loads(file.metadata()["sd_merge_recipe"])
    assert [entry["name"] for entry in noted["recipe"]["steps"]] == ["T1"]
