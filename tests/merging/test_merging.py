"""Merging files: the contents of the written checkpoint, and refusals without output."""

import json

import pytest
import torch
from safetensors.torch import load_file
from step_by_step import BLOCKS, merge_by_steps, merged_names

from optimizer.errors import BlockfitWarning, CheckpointError, RecipeError
from optimizer.merging import merge
from optimizer.recipes import load_recipe

TEXT = "cond_stage_model.transformer.text_model."
IDS = TEXT + "embeddings.position_ids"
FIRST = "model.diffusion_model.input_blocks.0.0.weight"
QUERY = "model.diffusion_model.output_blocks.6.1.transformer_blocks.0.attn1.to_q.weight"
VAE = "first_stage_model.decoder.conv_out.weight"
UNET = "model.diffusion_model."

ALPHAS = {block: round(0.1 + 0.07 * n, 3) for n, block in enumerate(BLOCKS)}
STEPS = [
    {"name": "T1", "mode": "add_difference", "a": "base", "b": "x", "c": "base", "alpha": ALPHAS},
    {
        "name": "T2",
        "mode": "weight_sum",
        "a": "T1",
        "b": "y",
        "c": None,
        "alpha": {"OUT06": 0.3, "BASE": 1.5, "IN01": -0.5},
    },
    {"name": "T3", "mode": "add_difference", "a": "T2", "b": "y", "c": "x", "alpha": {"OUT06": 0.4, "M00": 0.25}},
]


def as_yaml(steps, models=("base", "x", "y"), suffix=".safetensors"):
    """Return the text of a recipe file."""
    files = "".join(f"  {name}: {{file: {name}{suffix}}}\n" for name in models)
    lines = "".join(
        f"  - {{name: {s['name']}, mode: {s['mode']}, a: {s['a']}, b: {s['b']}, "
        + (f"c: {s['c']}, " if s["c"] else "")
        + f"alpha: {json.dumps(s['alpha'])}}}\n"
        for s in steps
    )
    return f"models:\n{files}steps:\n{lines}"


def run(folder, steps, output="out.safetensors", suffix=".safetensors", **options):
    """Merge the files base, x, y in `folder` by `steps`, and return the tensors written."""
    names = list(dict.fromkeys(s[k] for s in steps for k in "abc" if s[k] and not s[k].startswith("T")))
    (folder / "recipe.yaml").write_text(as_yaml(steps, names, suffix), encoding="utf-8")
    recipe = load_recipe(folder / "recipe.yaml")
    merge(recipe, {name: folder / (name + suffix) for name in names}, folder / output, **options)
    return load_file(folder / output)


def one_step(alpha, mode="weight_sum", a="base", b="x", c=None):
    """Return the steps of a recipe with one step and one alpha for all blocks."""
    return [{"name": "T1", "mode": mode, "a": a, "b": b, "c": c, "alpha": dict.fromkeys(BLOCKS, alpha)}]


@pytest.fixture
def family(tmp_path, write_sd1, sd1_tensors):
    """Return a folder with base, x and y, float32 finetunes of one model, and their tensors."""
    base = sd1_tensors(seed=0)
    tensors = {"base": write_sd1(tmp_path / "base.safetensors", around=base, distance=0.0)}
    tensors["x"] = write_sd1(tmp_path / "x.safetensors", seed=1, around=base)
    tensors["y"] = write_sd1(tmp_path / "y.safetensors", seed=2, around=base)
    return tmp_path, tensors


def test_merge_equals_the_formulas_step_by_step(family):
    """A float32 merge equals the steps computed one after another in float32, to 1e-6 of the largest value."""
    folder, tensors = family

    found = run(folder, STEPS, dtype=torch.float32)

    expected = merge_by_steps(STEPS, tensors, torch.float32)["T3"]
    assert set(found) == {*expected, IDS}
    for name, value in expected.items():
        assert found[name].dtype == torch.float32
        torch.testing.assert_close(found[name], value, rtol=0, atol=1e-6 * float(value.abs().max()))
    moved = [name for name, value in expected.items() if not torch.equal(value, tensors["base"][name])]
    assert len(moved) == len(expected)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_the_merge_is_rounded_once(family, dtype):
    """A half-precision output equals the float32 merge, rounded once."""
    folder, _ = family

    whole = run(folder, STEPS, dtype=torch.float32)
    half = run(folder, STEPS, dtype=dtype)

    assert all(torch.equal(half[name], whole[name].to(dtype)) for name in whole if name != IDS)
    assert half[FIRST].dtype == dtype


def test_an_inner_step_can_be_merged(family):
    """`step` writes that step's result, without later steps."""
    folder, tensors = family

    found = run(folder, STEPS, step="T1", dtype=torch.float32)

    expected = merge_by_steps(STEPS, tensors, torch.float32)["T1"]
    torch.testing.assert_close(found[QUERY], expected[QUERY], rtol=0, atol=1e-5)
    assert not torch.allclose(found[QUERY], merge_by_steps(STEPS, tensors)["T3"][QUERY].float(), atol=1e-3)


def test_only_ancestors_are_opened(family):
    """A source that the step does not need may be missing."""
    folder, tensors = family
    (folder / "y.safetensors").unlink()

    found = run(folder, STEPS, step="T1", dtype=torch.float32)

    assert set(found) == set(tensors["base"])


def test_alpha_zero_is_a(family, write_sd1, sd1_tensors):
    """Alpha 0 gives A bit for bit, and alpha 1 of a weight sum gives B, even if the other source has NaN."""
    folder, tensors = family
    broken = torch.full((8, 8), float("nan"))
    write_sd1(folder / "x.safetensors", seed=1, overrides={QUERY: broken})

    at_zero = run(folder, one_step(0.0), dtype=torch.float32)
    at_one = run(folder, one_step(1.0, b="y"), dtype=torch.float32)

    assert all(torch.equal(at_zero[name], tensors["base"][name]) for name in tensors["base"])
    assert all(torch.equal(at_one[name], tensors["y"][name]) for name in tensors["y"])


def test_half_sources_pass_through_unchanged(tmp_path, write_sd1):
    """Alpha 0 on half-precision sources written in half precision changes no bit, odd values included."""
    odd = torch.tensor([0.0, -0.0, 6e-8, 65504.0, -65504.0, 1.0, 1e-4, 3.14], dtype=torch.float16)
    name = "model.diffusion_model.out.0.weight"
    base = write_sd1(tmp_path / "base.safetensors", dtype=torch.float16, overrides={name: odd})
    write_sd1(tmp_path / "x.safetensors", dtype=torch.float16, seed=1)

    found = run(tmp_path, one_step(0.0))

    assert all(torch.equal(found[key].view(torch.int16), base[key].view(torch.int16)) for key in merged_names(base))


@pytest.mark.parametrize("lacks", ["a", "b", "c"])
def test_a_lacking_vae_comes_from_another_source(tmp_path, write_sd1, sd1_tensors, lacks):
    """A's VAE passes through if B or C has none; B's is copied if A has none."""
    base = sd1_tensors()
    place = {"a": "base", "b": "x", "c": "y"}
    tensors = {
        name: write_sd1(tmp_path / f"{name}.safetensors", seed=n, around=base, vae=name != place[lacks])
        for n, name in enumerate(("base", "x", "y"), start=3)
    }

    origin = "x" if lacks == "a" else "base"
    with pytest.warns(BlockfitWarning) as caught:
        found = run(tmp_path, one_step(0.3, "add_difference", c="y"), dtype=torch.float32)

    assert torch.equal(found[VAE], tensors[origin][VAE])
    (line,) = (str(warning.message) for warning in caught)
    assert line == f"{tmp_path / place[lacks]}.safetensors: no VAE; the merge has that of {origin}.safetensors"


def test_a_tensor_that_only_c_has_is_left_out(family, write_sd1, sd1_tensors):
    """A tensor of the UNet that only C has is not in the result; one that only B has is copied."""
    folder, tensors = family
    extra = torch.randn(3, 3)
    only = {letter: f"{UNET}output_blocks.0.only_{letter}.weight" for letter in "bc"}
    write_sd1(folder / "y.safetensors", seed=2, overrides={only["c"]: extra})
    write_sd1(folder / "x.safetensors", seed=1, overrides={only["b"]: extra})

    found = run(folder, one_step(0.3, "add_difference", c="y"), dtype=torch.float32)

    assert set(found) == {*tensors["base"], only["b"]}
    assert torch.equal(found[only["b"]], extra)


def test_buffers_are_those_of_the_first_input(family, write_sd1):
    """Buffers of the model's parts are A's, or B's if A lacks them, in their own dtype; never C's."""
    folder, tensors = family
    both, second, third = (f"{UNET}out.{name}" for name in ("both", "second.weight", "third"))
    write_sd1(folder / "base.safetensors", seed=0, overrides={both: torch.arange(3.0, dtype=torch.float64)})
    write_sd1(folder / "x.safetensors", seed=1, overrides={both: torch.zeros(9), second: torch.tensor([7, 8])})
    write_sd1(folder / "y.safetensors", seed=2, overrides={both: torch.ones(9), third: torch.tensor([2.5])})

    found = run(folder, one_step(0.5, "add_difference", c="y"))

    assert set(found) == {*tensors["base"], both, second}
    assert (found[both].dtype, found[both].tolist()) == (torch.float64, [0, 1, 2])
    assert found[second].tolist() == [7, 8]


@pytest.mark.parametrize(
    "held",
    [None, torch.arange(77).float().unsqueeze(0) + 0.4, torch.full((1, 77), 76), torch.arange(77)],
    ids=["none", "float", "wrong", "flat"],
)
def test_position_ids_are_written_correctly(family, write_sd1, held):
    """position_ids are written as int64 [1, 77], 0 to 76, for any position ids in the sources."""
    folder, _ = family
    for n, name in enumerate(("base", "x")):
        options = {"position_ids": False} if held is None else {"overrides": {IDS: held}}
        write_sd1(folder / f"{name}.safetensors", seed=n, **options)

    found = run(folder, one_step(0.5))[IDS]

    assert found.dtype == torch.int64
    assert found.tolist() == [list(range(77))]


def test_an_inpainting_model_as_a_keeps_its_channels(family, write_sd1, sd1_tensors):
    """A 9-channel A merges its first 4 input channels with B, and keeps the other 5."""
    folder, tensors = family
    wide = torch.randn(8, 9, 3, 3, generator=torch.Generator().manual_seed(9))
    write_sd1(folder / "base.safetensors", seed=0, overrides={FIRST: wide})

    found = run(folder, one_step(0.25), dtype=torch.float32)[FIRST]

    assert found.shape == (8, 9, 3, 3)
    torch.testing.assert_close(found[:, :4], wide[:, :4] * 0.75 + tensors["x"][FIRST] * 0.25, rtol=0, atol=1e-6)
    assert torch.equal(found[:, 4:], wide[:, 4:])


@pytest.mark.parametrize("place", ["b", "c"])
def test_an_inpainting_model_as_b_or_c_is_refused(family, write_sd1, place):
    """A 9-channel B or C beside a 4-channel A is refused, naming both files, the tensor and the step."""
    folder, _ = family
    wide = "x" if place == "b" else "y"
    write_sd1(folder / f"{wide}.safetensors", seed=1, overrides={FIRST: torch.zeros(8, 9, 3, 3)})

    with pytest.raises(CheckpointError) as caught:
        run(folder, one_step(0.25, "add_difference", c="y"))

    (problem,) = caught.value.problems
    start = f"{folder / wide}.safetensors: tensor {FIRST!r} has 9 input channels, as inpainting models have, but 4 in"
    assert start in problem
    assert f"{folder / 'base.safetensors'}" in problem
    assert "steps.T1" in problem
    assert not (folder / "out.safetensors").exists()


def test_differing_shapes_are_refused(family, write_sd1):
    """Sources whose tensors differ in shape are refused, a line for each tensor with both files and both shapes."""
    folder, _ = family
    write_sd1(folder / "x.safetensors", overrides={QUERY: torch.zeros(4, 4), FIRST: torch.zeros(8)})

    with pytest.raises(CheckpointError) as caught:
        run(folder, one_step(0.25))

    found = {name: next(p for p in caught.value.problems if name in p) for name in (QUERY, FIRST)}
    assert len(caught.value.problems) == 2
    for name, shapes in ((QUERY, ("[4, 4]", "[8, 8]")), (FIRST, ("[8]", "[8, 4, 3, 3]"))):
        assert all(shape in found[name] for shape in shapes)
        assert str(folder / "x.safetensors") in found[name]
        assert str(folder / "base.safetensors") in found[name]
    assert not (folder / "out.safetensors").exists()


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_nan_that_takes_part_is_refused(family, write_sd1, value):
    """NaN or Inf in a tensor with a coefficient other than 0 is refused by file and tensor; the old output stays."""
    folder, _ = family
    broken = torch.zeros(8, 8)
    broken[3, 3] = value
    write_sd1(folder / "x.safetensors", seed=1, overrides={QUERY: broken})
    (folder / "out.safetensors").write_bytes(b"before")

    with pytest.raises(CheckpointError) as caught:
        run(folder, one_step(0.25))

    (problem,) = caught.value.problems
    assert problem.startswith(f"{folder / 'x.safetensors'}: tensor {QUERY!r} holds NaN or Inf")
    assert (folder / "out.safetensors").read_bytes() == b"before"
    assert not list(folder.glob(".blockfit*"))


def test_nan_that_takes_no_part_is_ignored(family, write_sd1):
    """NaN in a block whose coefficient is 0 is not refused and does not reach the output."""
    folder, tensors = family
    write_sd1(folder / "x.safetensors", seed=1, overrides={QUERY: torch.full((8, 8), float("nan"))})
    alphas = {block: 0.0 if block == "OUT06" else 0.5 for block in BLOCKS}

    found = run(folder, [{**one_step(0.0)[0], "alpha": alphas}], dtype=torch.float32)

    assert torch.equal(found[QUERY], tensors["base"][QUERY])


def test_overflow_is_refused(family, write_sd1):
    """A value beyond float16 is refused with tensor, value and advice; bf16 can hold it."""
    folder, _ = family
    for name in ("base", "x"):
        write_sd1(folder / f"{name}.safetensors", overrides={QUERY: torch.full((8, 8), 70000.0)})
    (folder / "out.safetensors").write_bytes(b"before")

    with pytest.raises(CheckpointError) as caught:
        run(folder, one_step(0.25))

    (problem,) = caught.value.problems
    assert all(
        text in problem
        for text in (repr(QUERY), "70000", "must be at most 65504, the largest float16 number", "`dtype` bf16 or fp32")
    )
    assert (folder / "out.safetensors").read_bytes() == b"before"
    assert float(run(folder, one_step(0.25), dtype=torch.bfloat16)[QUERY][0, 0]) == pytest.approx(70000, rel=0.01)


def test_torch_files_are_merged(tmp_path, write_sd1, sd1_tensors):
    """A .ckpt with the text encoder's other name merges like a .safetensors file, into one text encoder."""
    base = sd1_tensors()
    short = {TEXT: "cond_stage_model.transformer."}
    first = write_sd1(tmp_path / "base.ckpt", around=base, seed=1)
    write_sd1(tmp_path / "x.ckpt", around=base, seed=2, rename=short)
    second = sd1_tensors(around=base, seed=2)

    found = run(tmp_path, one_step(0.5), suffix=".ckpt", dtype=torch.float32)

    assert set(found) == set(first)
    for name in merged_names(first):
        torch.testing.assert_close(found[name], (first[name] + second[name]) / 2, rtol=0, atol=1e-6)


def test_free_alphas_are_refused(family):
    """A free alpha is refused and the output stays; `with_start_values()` merges with its start value."""
    folder, tensors = family
    text = as_yaml(one_step(0.5), ("base", "x"))
    text = text[: text.index("alpha:")] + "alpha: {search: [0, 1], blocks: OUT06, start: 0.25}}\n"
    (folder / "recipe.yaml").write_text(text, encoding="utf-8")
    paths = {name: folder / f"{name}.safetensors" for name in ("base", "x")}

    recipe = load_recipe(folder / "recipe.yaml")
    (folder / "out.safetensors").write_bytes(b"old")
    with pytest.raises(RecipeError) as caught:
        merge(recipe, paths, folder / "out.safetensors", dtype=torch.float32)
    (line,) = caught.value.problems
    assert line.startswith("steps.T1.alpha: free on OUT06, and only numbers can be merged; fit the recipe first")
    assert (folder / "out.safetensors").read_bytes() == b"old"

    merge(recipe.with_start_values(), paths, folder / "out.safetensors", dtype=torch.float32)

    found = load_file(folder / "out.safetensors")
    torch.testing.assert_close(found[QUERY], tensors["base"][QUERY] * 0.75 + tensors["x"][QUERY] * 0.25)
    assert torch.equal(found[FIRST], tensors["base"][FIRST])


def test_progress_counts_the_bytes(family):
    """Progress rises to the number of bytes of tensor data in the file."""
    folder, _ = family
    calls = []

    def count(what, done, total):
        if what == "merging out.safetensors":
            calls.append((done, total))

    found = run(folder, STEPS, progress=count)

    size = sum(value.numel() * value.element_size() for value in found.values())
    assert calls[-1] == (size, size)
    assert [done for done, _ in calls] == sorted(done for done, _ in calls)
    assert len(calls) == len(found)


def test_an_unknown_step_is_refused(family):
    """A step that the recipe lacks is refused by name; no file is written."""
    folder, _ = family
    with pytest.raises(RecipeError, match="'T9' is not in the recipe"):
        run(folder, STEPS, step="T9")
    assert not (folder / "out.safetensors").exists()


def test_files_may_be_given_by_folder_or_as_text(tmp_path, write_sd1):
    """The sources may be given as the folder that the recipe names them from, and all paths as text."""
    for seed, name in enumerate(("base", "x")):
        write_sd1(tmp_path / f"{name}.safetensors", seed=seed)
    expected = run(tmp_path, one_step(0.25))
    recipe = load_recipe(tmp_path / "recipe.yaml")

    merge(recipe, str(tmp_path), str(tmp_path / "folder.safetensors"))
    merge(
        recipe, {name: str(tmp_path / f"{name}.safetensors") for name in ("base", "x")}, tmp_path / "text.safetensors"
    )

    for file in ("folder", "text"):
        found = load_file(tmp_path / f"{file}.safetensors")
        assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())


def test_a_source_without_a_file_is_named(tmp_path, write_sd1):
    """A source without a path is named; a missing file is named with the folder that was searched."""
    write_sd1(tmp_path / "base.safetensors")
    (tmp_path / "recipe.yaml").write_text(as_yaml(one_step(0.5), ("base", "x")), encoding="utf-8")
    recipe = load_recipe(tmp_path / "recipe.yaml")

    with pytest.raises(CheckpointError, match=r"^paths: x: missing; step 'T1' is merged from it$"):
        merge(recipe, {"base": tmp_path / "base.safetensors"}, tmp_path / "out.safetensors")
    with pytest.raises(CheckpointError, match=r"models\.x\.file: 'x\.safetensors' not found; looked in"):
        merge(recipe, tmp_path, tmp_path / "out.safetensors")
    assert not (tmp_path / "out.safetensors").exists()
