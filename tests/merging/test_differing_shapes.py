"""Tensors of different shapes, for example LongCLIP's positions, merge if only one shape has coefficients."""

import pytest
import torch
from building import recipe_of
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from step_by_step import BLOCKS

from optimizer.errors import BlockfitWarning, CheckpointError
from optimizer.merging import merge
from optimizer.recipes import Alpha, Contributors, Free

TEXT = "cond_stage_model.transformer.text_model."
POSITIONS = f"{TEXT}embeddings.position_embedding.weight"
IDS = f"{TEXT}embeddings.position_ids"
NORM = f"{TEXT}final_layer_norm.weight"
FIRST = "model.diffusion_model.input_blocks.0.0.weight"
QUERY = "model.diffusion_model.output_blocks.6.1.transformer_blocks.0.attn1.to_q.weight"
REST = tuple(block for block in BLOCKS if block != "BASE")
LONG = torch.randn(248, 8, generator=torch.Generator().manual_seed(7))


def step(name, mode, a, b, c=None, base=0.0, rest=0.5, **beta):
    """Return a step with one alpha on BASE and another elsewhere, as a plain dict; `beta` likewise."""
    made = {"name": name, "mode": mode, "a": a, "b": b, "c": c}
    made["alpha"] = {"BASE": base, **dict.fromkeys(REST, rest)}
    if beta:
        made["beta"] = {"BASE": beta["beta"], **dict.fromkeys(REST, 0.25)}
    return made


@pytest.fixture
def run(tmp_path, write_sd1):
    """Return a function that merges checkpoints, those in `long` with LongCLIP's positions, and returns the tensors."""

    def make(*steps, long="b", output=None, **options):
        tensors = {}
        for seed, name in enumerate("abc"):
            overrides = {POSITIONS: LONG, IDS: torch.arange(248)[None]} if name in long else {}
            tensors[name] = write_sd1(tmp_path / f"{name}.safetensors", seed=seed, overrides=overrides)
        used = [name for name in "abc" if any(name in (s["a"], s["b"], s["c"]) for s in steps)]
        merge(recipe_of(list(steps), used, output=output), {name: tmp_path / f"{name}.safetensors" for name in used},
              tmp_path / "out.safetensors", dtype=torch.float32, **options)  # fmt: skip
        return tensors, load_file(tmp_path / "out.safetensors")

    return make


@pytest.mark.parametrize("mode", ["weight_sum", "add_difference"])
def test_a_source_without_coefficients_may_differ(run, mode):
    """With alphas only on other blocks a longer text encoder is accepted; the merge has A's positions."""
    c = "c" if mode == "add_difference" else None
    tensors, found = run(step("T", mode, "a", "b", c))
    a, b, c = (tensors[name] for name in "abc")

    assert torch.equal(found[POSITIONS], a[POSITIONS])
    assert torch.equal(found[NORM], a[NORM])
    assert torch.equal(found[IDS], torch.arange(77)[None])
    expected = (a[QUERY] + b[QUERY]) / 2 if mode == "weight_sum" else a[QUERY] + (b[QUERY] - c[QUERY]) / 2
    torch.testing.assert_close(found[QUERY], expected, rtol=0, atol=1e-6)


def test_the_result_has_the_shape_of_the_contributing_source(run):
    """If A's coefficient is 0, the result has B's shape, and as many position ids."""
    tensors, found = run(step("T", "weight_sum", "a", "b", base=1.0))

    assert torch.equal(found[POSITIONS], LONG)
    assert torch.equal(found[IDS], torch.arange(248)[None])
    torch.testing.assert_close(found[QUERY], (tensors["a"][QUERY] + tensors["b"][QUERY]) / 2)


@pytest.mark.parametrize(
    "made",
    [
        step("T", "triple_sum", "a", "b", "c", base=0.5, beta=0.0),
        step("T", "sum_twice", "a", "b", "c", base=0.5, beta=0.0),
    ],
)
def test_a_third_input_with_coefficient_zero_may_differ(run, made):
    """A third input with coefficient 0 is accepted and, unlike one without the tensor, lets A and B merge."""
    tensors, found = run(made, long="c")

    half = (tensors["a"][POSITIONS] + tensors["b"][POSITIONS]) / 2
    torch.testing.assert_close(found[POSITIONS], half, rtol=0, atol=1e-6)


def test_a_source_that_cancels_out_may_differ(run):
    """A source that is added and subtracted again has coefficient 0."""
    steps = (
        step("T1", "add_difference", "a", "b", "c", base=0.5),
        step("T2", "add_difference", "T1", "c", "b", base=0.5),
    )
    tensors, found = run(*steps, long="bc")

    assert torch.equal(found[POSITIONS], tensors["a"][POSITIONS])
    torch.testing.assert_close(found[QUERY], tensors["a"][QUERY], rtol=0, atol=1e-6)


def test_a_tensor_that_the_merge_lacks_may_differ(tmp_path, write_sd1):
    """A tensor that only third inputs have, and so the merge lacks, may have different shapes."""
    for seed, name in enumerate("abcd"):
        kept = {"c": {POSITIONS: LONG}, "d": {}}
        write_sd1(tmp_path / f"{name}.safetensors", seed=seed, text_encoder=name in kept, overrides=kept.get(name))
    steps = [step("T1", "add_difference", "a", "b", "c"), step("T2", "add_difference", "T1", "b", "d", base=0.5)]

    with pytest.warns(BlockfitWarning, match="no text encoder; the merge has none"):
        merge(recipe_of(steps, "abcd"), {name: tmp_path / f"{name}.safetensors" for name in "abcd"},
              tmp_path / "out.safetensors")  # fmt: skip

    assert not [name for name in load_file(tmp_path / "out.safetensors") if name.startswith(TEXT)]


def test_shapes_must_fit_for_the_merged_step_only(run, tmp_path):
    """Shapes must fit for the merged step, not for later steps."""
    steps = (step("T1", "weight_sum", "a", "c", base=0.5), step("T2", "weight_sum", "T1", "b", base=0.5))

    tensors, found = run(*steps, output="T2", step="T1")
    torch.testing.assert_close(found[POSITIONS], (tensors["a"][POSITIONS] + tensors["c"][POSITIONS]) / 2)
    (tmp_path / "out.safetensors").write_bytes(b"before")
    with pytest.raises(CheckpointError) as caught:
        run(*steps, output="T2")

    (problem,) = caught.value.problems
    assert problem == (
        f"{tmp_path / 'b.safetensors'}: tensor {POSITIONS!r} of BASE has shape [248, 8], but [77, 8] in "
        f"{tmp_path / 'a.safetensors'}; only equal shapes merge, and with alphas of 0 on BASE it would take no part"
    )
    assert (tmp_path / "out.safetensors").read_bytes() == b"before"


def test_two_long_text_encoders_merge(run):
    """Two long text encoders merge if the short one has coefficient 0."""
    steps = (step("T1", "weight_sum", "a", "b", base=1.0), step("T2", "weight_sum", "T1", "c", base=0.25))
    _, found = run(*steps, long="bc")

    torch.testing.assert_close(found[POSITIONS], LONG)


def wide(seed):
    """Return an input convolution of an inpainting model."""
    return torch.randn(8, 9, 3, 3, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("place", ["b", "c"])
def test_an_inpainting_model_without_coefficients_is_accepted(tmp_path, write_sd1, place):
    """An inpainting model as B or C is accepted if IN00's alpha is 0; the result has A's 4 channels."""
    tensors = {
        name: write_sd1(tmp_path / f"{name}.safetensors", seed=n, overrides={FIRST: wide(n)} if name == place else {})
        for n, name in enumerate("abc")
    }
    made = {"name": "T", "mode": "add_difference", "a": "a", "b": "b", "c": "c", "alpha": {"OUT06": 0.5}}

    merge(recipe_of([made], "abc"), {name: tmp_path / f"{name}.safetensors" for name in "abc"},
          tmp_path / "out.safetensors", dtype=torch.float32)  # fmt: skip

    found = load_file(tmp_path / "out.safetensors")
    assert torch.equal(found[FIRST], tensors["a"][FIRST])
    difference = (tensors["b"][QUERY] - tensors["c"][QUERY]) / 2
    torch.testing.assert_close(found[QUERY], tensors["a"][QUERY] + difference, rtol=0, atol=1e-6)


@pytest.mark.parametrize("alpha", [0.0, 0.25, 1.0])
def test_an_inpainting_model_as_a_keeps_its_channels(tmp_path, write_sd1, alpha):
    """An inpainting model as A keeps its other 5 channels with any alpha of IN00, 1 included."""
    a = write_sd1(tmp_path / "a.safetensors", seed=0, overrides={FIRST: wide(0)})
    b = write_sd1(tmp_path / "b.safetensors", seed=1)
    made = {"name": "T", "mode": "weight_sum", "a": "a", "b": "b", "c": None, "alpha": {"IN00": alpha}}

    merge(recipe_of([made], "ab"), {name: tmp_path / f"{name}.safetensors" for name in "ab"},
          tmp_path / "out.safetensors", dtype=torch.float32)  # fmt: skip

    found = load_file(tmp_path / "out.safetensors")[FIRST]
    expected = a[FIRST].clone()
    expected[:, :4] = a[FIRST][:, :4] * (1 - alpha) + b[FIRST] * alpha
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)


@settings(max_examples=40, deadline=None)
@given(
    alphas=st.lists(st.sampled_from([0.0, 0.3, 1.0, None]), min_size=3, max_size=3),
    modes=st.lists(st.sampled_from(["weight_sum", "add_difference"]), min_size=3, max_size=3),
)
def test_contributors_have_nonzero_coefficients(alphas, modes):
    """Contributors are exactly the sources with a non-zero coefficient for some value of the free alphas (None)."""
    steps, before = [], "m0"
    for number, (mode, alpha) in enumerate(zip(modes, alphas, strict=True)):
        third = "m1" if mode == "add_difference" else None
        steps.append({"name": f"s{number}", "mode": mode, "a": before, "b": f"m{number + 1}", "c": third,
                      "alpha": {"BASE": alpha or 0.0}})  # fmt: skip
        before = f"s{number}"
    models = tuple(f"m{n}" for n in range(4))
    recipe = recipe_of(steps, models)
    free = {
        s.name: Alpha(free=(Free(0, 1, ("BASE",)),))
        for s, alpha in zip(recipe.steps, alphas, strict=True)
        if alpha is None
    }
    recipe = with_alphas(recipe, free)

    expected = set()
    for value in (0.0, 0.37, 0.81, 1.0):
        shares = {"m0": 1.0}
        for number, (mode, alpha) in enumerate(zip(modes, alphas, strict=True)):
            # Give free alphas different values, so that no coefficients cancel by accident.
            a = (value + 0.1 * number if value not in (0.0, 1.0) else value) if alpha is None else alpha
            if mode == "weight_sum":
                shares = {name: share * (1 - a) for name, share in shares.items()}
            shares[f"m{number + 1}"] = shares.get(f"m{number + 1}", 0.0) + a
            if mode == "add_difference":
                shares["m1"] = shares.get("m1", 0.0) - a
        expected |= {models.index(name) for name, share in shares.items() if abs(share) > 1e-12}
    contributors = Contributors(recipe, models, ["s2"])

    assert contributors.of("BASE", (0, 1, 2, 3)) == expected
    assert contributors.of("M00", (0, 1, 2, 3)) == {0}
    assert contributors.first == {0}


def with_alphas(recipe, alphas):
    """Return the recipe with other alphas for some steps."""
    from dataclasses import replace

    return replace(recipe, steps=tuple(replace(step, alpha=alphas.get(step.name, step.alpha)) for step in recipe.steps))


@pytest.mark.parametrize(("channels", "kind"), [(9, "inpainting"), (8, "instruct-pix2pix"), (5, "depth"), (7, None)])
def test_models_with_more_channels_are_refused_as_b(tmp_path, write_sd1, channels, kind):
    """A model with more input channels is refused as B, with its kind, if IN00's alpha is not 0."""
    write_sd1(tmp_path / "a.safetensors", seed=0)
    write_sd1(tmp_path / "b.safetensors", seed=1, overrides={FIRST: torch.zeros(8, channels, 3, 3)})
    made = {"name": "T", "mode": "weight_sum", "a": "a", "b": "b", "c": None, "alpha": {"IN00": 0.5}}

    with pytest.raises(CheckpointError) as caught:
        merge(recipe_of([made], "ab"), {name: tmp_path / f"{name}.safetensors" for name in "ab"},
              tmp_path / "out.safetensors")  # fmt: skip

    (problem,) = caught.value.problems
    as_what = f", as {kind} models have" if kind else ""
    assert problem == (
        f"{tmp_path / 'b.safetensors'}: tensor {FIRST!r} has {channels} input channels{as_what}, but 4 in "
        f"{tmp_path / 'a.safetensors'}; steps.T takes a model with more channels only as a"
    )
