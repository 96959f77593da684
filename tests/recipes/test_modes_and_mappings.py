"""The four modes under the three mappings, on files."""

import itertools

import pytest
import torch
from building import recipe_of
from safetensors.torch import load_file
from step_by_step import BLOCK_OF, BLOCKS, merge_by_steps

from optimizer.errors import RecipeError
from optimizer.merging import merge
from optimizer.recipes import load_recipe, recipe_as_data, save_recipe

# Every block has different numbers, some outside 0..1, so that a tensor in a wrong block is noticed.
ALPHAS = {block: round(-0.3 + 0.067 * n, 3) for n, block in enumerate(BLOCKS)}
BETAS = {block: round(1.4 - 0.059 * n, 3) for n, block in enumerate(BLOCKS)}
FAMILY = ("base", "x", "y")
MODES = ("weight_sum", "add_difference", "triple_sum", "sum_twice")


def steps_of(mode, then):
    """Return two steps as plain dicts, the second on the result of the first."""
    one = {"name": "T1", "mode": mode, "a": "base", "b": "x", "c": "y", "alpha": ALPHAS, "beta": BETAS}
    two = {"name": "T2", "mode": then, "a": "T1", "b": "y", "c": "x", "alpha": BETAS, "beta": ALPHAS}
    for step in (one, two):
        if step["mode"] == "weight_sum":
            step["c"] = None
        if step["mode"] in ("weight_sum", "add_difference"):
            del step["beta"]
    return [one, two]


@pytest.fixture
def family(tmp_path, write_sd1, sd1_tensors):
    """The files base (with an EMA copy), x (without VAE) and y (without text encoder), and their tensors."""
    base = sd1_tensors(seed=0)
    tensors = {"base": write_sd1(tmp_path / "base.safetensors", around=base, distance=0.0, ema=True)}
    tensors["x"] = write_sd1(tmp_path / "x.safetensors", seed=1, around=base, vae=False)
    tensors["y"] = write_sd1(tmp_path / "y.safetensors", seed=2, around=base, text_encoder=False)
    return tmp_path, tensors


# Merges warn of parts that a source lacks; test_inputs.py tests that.
TELLS = pytest.mark.filterwarnings("ignore::optimizer.errors.BlockfitWarning")


@TELLS
@pytest.mark.parametrize("mapping", BLOCK_OF)
@pytest.mark.parametrize(("mode", "then"), list(itertools.product(MODES, MODES)))
def test_every_mode_merges_by_its_formula_under_every_mapping(family, mode, then, mapping):
    """A float32 merge equals the formulas applied step by step in float32, within 1e-6 of each tensor's size."""
    folder, tensors = family
    steps = steps_of(mode, then)
    recipe = recipe_of(steps, FAMILY, mapping)

    merge(
        recipe,
        {name: folder / f"{name}.safetensors" for name in tensors},
        folder / "out.safetensors",
        dtype=torch.float32,
    )

    found = load_file(folder / "out.safetensors")
    expected = merge_by_steps(steps, tensors, torch.float32, BLOCK_OF[mapping])["T2"]
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=0, atol=1e-6 * float(value.abs().max()))
    assert set(found) - set(expected) == {"cond_stage_model.transformer.text_model.embeddings.position_ids"}


@TELLS
def test_mappings_differ_where_they_should(family):
    """time_embed follows IN00, BASE or OUT11, and the VAE BASE, BASE or no block; all other tensors are equal."""
    folder, tensors = family
    merged = {}
    for mapping in BLOCK_OF:
        recipe = recipe_of(steps_of("weight_sum", "add_difference"), FAMILY, mapping)
        merge(
            recipe,
            {name: folder / f"{name}.safetensors" for name in tensors},
            folder / f"{mapping}.safetensors",
            dtype=torch.float32,
        )
        merged[mapping] = load_file(folder / f"{mapping}.safetensors")

    differing = {
        mapping: {
            name
            for name in merged["supermerger"]
            if not torch.equal(merged[mapping][name], merged["supermerger"][name])
        }
        for mapping in ("mecha", "model-mixer")
    }
    time_embed = {name for name in tensors["base"] if name.startswith("model.diffusion_model.time_embed.")}
    # x has no VAE, so both steps leave the VAE of their first input, and no difference remains.
    assert differing == {"mecha": time_embed, "model-mixer": time_embed}

    steps = [{"name": "T", "mode": "weight_sum", "a": "base", "b": "y", "c": None, "alpha": ALPHAS}]
    merge(
        recipe_of(steps, FAMILY, "model-mixer"),
        {"base": folder / "base.safetensors", "y": folder / "y.safetensors"},
        folder / "vae.safetensors",
        dtype=torch.float32,
    )
    found = load_file(folder / "vae.safetensors")
    for name in (name for name in tensors["base"] if name.startswith("first_stage_model.")):
        assert torch.equal(found[name], tensors["base"][name])


@pytest.mark.parametrize("mapping", BLOCK_OF)
def test_mapping_is_written_and_read(tmp_path, mapping):
    """The mapping, alpha and beta survive a round through the recipe's file."""
    recipe = recipe_of(steps_of("triple_sum", "sum_twice"), FAMILY, mapping)

    save_recipe(recipe, tmp_path / "recipe.yaml")

    assert load_recipe(tmp_path / "recipe.yaml") == recipe
    assert recipe_as_data(recipe)["mapping"] == mapping


def write(folder, text):
    """Write a recipe file of two models with one step."""
    path = folder / "recipe.yaml"
    path.write_text(
        f"models: {{a: {{file: a}}, b: {{file: b}}}}\nsteps:\n  - {{name: T, a: a, b: b, {text}}}\n", "utf-8"
    )
    return path


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("mode: triple_sum, c: a, alpha: 0.1", "steps.T.beta: missing; triple_sum is A x (1-alpha-beta)"),
        ("mode: weight_sum, alpha: 0.1, beta: 0.1", "steps.T.beta: received one; weight_sum is A x (1-alpha)"),
        ("mode: sum_twice, alpha: 0.1, beta: 0.1", "steps.T.c: missing; sum_twice is (A x (1-alpha) + B x alpha)"),
        (
            "mode: sum_thrice, alpha: 0.1",
            "received 'sum_thrice'; must be one of weight_sum, add_difference, triple_sum, sum_twice",
        ),
        ("mode: weight_sum, alpha: [0.1, 0.2]", "received 2 numbers; sd1 has 26 blocks"),
        (
            f"mode: weight_sum, alpha: {[0.5] * 25}",
            "received 25 numbers; must be 26, BASE first, or base_alpha beside them",
        ),
        (
            f"mode: weight_sum, alpha: {[0.5] * 26}, base_alpha: 0.5",
            "26 numbers, BASE among them, and base_alpha 0.5; give one",
        ),
        ("mode: weight_sum, alpha: 0.5, base_alpha: 0.5", "base_alpha goes with 25 numbers only"),
        ("mode: weight_sum, alpha: GRAD", "the name of a preset (with `presets: FILE` in the recipe)"),
        (
            "mode: weight_sum, alpha: 0.1, expect: {blocks: OUT03, total: 97.5}",
            "similarities are at most 1: write 97.5 % as 0.975",
        ),
        (
            "mode: weight_sum, alpha: 0.1, expect: {blocks: {OUT03-OUT04: 0.9}}",
            "received a range; a similarity belongs to one block",
        ),
        ("mode: weight_sum, alpha: 0.1, expect: {blocks: OUT99}", "unknown block 'OUT99'"),
        ("mode: weight_sum, alpha: 0.1, expect: {total: 0.9}", "expect.blocks: missing"),
    ],
)
def test_mistakes_in_a_step_are_refused(tmp_path, text, part):
    """A step that does not fit its mode, numbers or expectation is refused in one line with the values allowed."""
    path = write(tmp_path, text)

    with pytest.raises(RecipeError) as caught:
        load_recipe(path)

    (problem,) = caught.value.problems
    assert problem.startswith(f"{path}: ")
    assert part in problem


def test_numbers_with_and_without_base_are_equal(tmp_path):
    """26 numbers with BASE first equal 25 with a base alpha; likewise for beta."""
    numbers = list(ALPHAS.values())
    whole = load_recipe(write(tmp_path, f"mode: triple_sum, c: a, alpha: {numbers}, beta: {numbers}")).steps[0]
    separate = f"alpha: {numbers[1:]}, base_alpha: {numbers[0]}, beta: {numbers[1:]}, base_beta: {numbers[0]}"

    assert load_recipe(write(tmp_path, f"mode: triple_sum, c: a, {separate}")).steps[0] == whole
    assert dict(whole.alpha.values) == ALPHAS


def test_presets_are_found_by_name(tmp_path):
    """An alpha may name a preset of the recipe's presets file, with 26 numbers, or with 25 and a base alpha."""
    numbers = ",".join(map(str, ALPHAS.values()))
    lines = (
        "preset_name\tpreset_weights",
        f"WHOLE\t{numbers}",
        f"REST:{numbers.split(',', 1)[1]}",
        "R\t" + "R," * 25 + "R",
    )
    (tmp_path / "mbwpresets.txt").write_text("\n".join(lines), "utf-8")

    def recipe(alpha):
        path = write(tmp_path, f"mode: weight_sum, {alpha}")
        path.write_text("presets: mbwpresets.txt\n" + path.read_text("utf-8"), "utf-8")
        return load_recipe(path)

    assert dict(recipe("alpha: WHOLE").steps[0].alpha.values) == ALPHAS
    assert dict(recipe("alpha: REST, base_alpha: -0.3").steps[0].alpha.values) == ALPHAS
    for alpha, part in (
        ("alpha: NONE", "received 'NONE'; no preset has this name; must be one of WHOLE, REST, R"),
        ("alpha: R", "preset 'R', line 4: value 1 is 'R'; must be a number"),
        ("alpha: REST", "preset 'REST', line 3: received 25 numbers; must be 26, BASE first"),
    ):
        with pytest.raises(RecipeError, match=r"steps\.T\.alpha") as caught:
            recipe(alpha)
        assert part in caught.value.problems[0]
    (tmp_path / "mbwpresets.txt").unlink()
    with pytest.raises(RecipeError, match=r"presets: .*mbwpresets\.txt cannot be read: no such file"):
        recipe("alpha: WHOLE")
