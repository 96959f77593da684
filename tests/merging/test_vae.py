"""Baking a VAE in: accepted files, the tensors of the output, and refusals."""

import hashlib
import json

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from optimizer.errors import CheckpointError
from optimizer.merging import merge
from optimizer.recipes import load_recipe

PREFIX = "first_stage_model."
IN, OUT = "encoder.conv_in.weight", "decoder.conv_out.weight"
RECIPE = """
models: {one: {file: one.safetensors}, two: {file: two.safetensors}}
steps: [{name: T1, mode: weight_sum, a: one, b: two, alpha: 0.5}]
"""


@pytest.fixture
def vae(sd1_tensors):
    """Return the tensors of a VAE that fits the sources, under the names of a VAE alone."""
    tensors = sd1_tensors(seed=9)
    found = {name.removeprefix(PREFIX): value for name, value in tensors.items() if name.startswith(PREFIX)}
    return {**found, "quant_conv.weight": torch.randn(8, 8, 1, 1), "post_quant_conv.bias": torch.randn(4)}


@pytest.fixture
def folder(tmp_path, write_sd1, vae):
    """Return a folder with two sources whose VAEs have the same tensors."""
    extra = {PREFIX + name: torch.zeros_like(vae[name]) for name in ("quant_conv.weight", "post_quant_conv.bias")}
    for seed, name in enumerate(("one", "two")):
        write_sd1(tmp_path / f"{name}.safetensors", seed=seed, overrides=extra)
    return tmp_path


def baked(folder, file, **options):
    """Merge with the VAE in `file`, and return the tensors written."""
    (folder / "recipe.yaml").write_text(RECIPE, encoding="utf-8")
    paths = {name: folder / f"{name}.safetensors" for name in ("one", "two")}
    merge(load_recipe(folder / "recipe.yaml"), paths, folder / "out.safetensors", vae=folder / file, **options)
    return load_file(folder / "out.safetensors")


def refused(folder, file, problems=1):
    """Return the problems for which a VAE is refused, each with its file first; the output must stay."""
    (folder / "out.safetensors").write_bytes(b"before")
    with pytest.raises(CheckpointError) as caught:
        baked(folder, file)
    assert (folder / "out.safetensors").read_bytes() == b"before"
    assert len(caught.value.problems) == problems
    assert all(problem.startswith(f"{folder / file}: ") for problem in caught.value.problems)
    return "\n".join(caught.value.problems)


def write_alone(path, vae):
    """Write a VAE alone."""
    save_file(vae, path)


def write_prefixed(path, vae):
    """Write a VAE alone under a checkpoint's names."""
    save_file({PREFIX + name: value for name, value in vae.items()}, path)


def write_webui(path, vae):
    """Write a VAE as in the files of WebUIs."""
    rest = {"loss.logvar": torch.ones(3), "model_ema.decay": torch.tensor(0.9), "model_ema.encoderx": torch.ones(2)}
    torch.save({"state_dict": {**vae, **rest}, "epoch": 3}, path)


@pytest.mark.parametrize(
    ("file", "write"),
    [("v.safetensors", write_alone), ("v2.safetensors", write_prefixed), ("v.vae.pt", write_webui)],
)
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_all_vae_tensors_come_from_the_file(folder, vae, file, write, dtype):
    """All VAE tensors of the output come from the file, rounded to the output's dtype; the rest is merged."""
    write(folder / file, vae)
    (folder / "recipe.yaml").write_text(RECIPE, encoding="utf-8")
    paths = {name: folder / f"{name}.safetensors" for name in ("one", "two")}
    merge(load_recipe(folder / "recipe.yaml"), paths, folder / "plain.safetensors", dtype=dtype)
    plain = load_file(folder / "plain.safetensors")

    found = baked(folder, file, dtype=dtype)

    assert set(found) == set(plain)
    for name, value in found.items():
        expected = vae[name.removeprefix(PREFIX)].to(dtype) if name.startswith(PREFIX) else plain[name]
        assert value.dtype == expected.dtype
        assert torch.equal(value, expected)


@pytest.mark.parametrize("alone", [True, False])
def test_attention_under_other_names_is_baked_in(folder, vae, write_sd1, alone):
    """A VAE whose attention has diffusers' names and matrices is baked in under LDM's names and shapes."""
    weight, bias = torch.randn(8, 8, 1, 1), torch.randn(8)
    place = "decoder.mid.attn_1."
    for seed, name in enumerate(("one", "two")):
        extra = {PREFIX + key: torch.ones_like(value) for key, value in vae.items()}
        extra |= {f"{PREFIX}{place}proj_out.weight": weight + 1, f"{PREFIX}{place}proj_out.bias": bias + 1}
        write_sd1(folder / f"{name}.safetensors", seed=seed, overrides=extra)
    renamed = {**vae, f"{place}to_out.0.weight": weight[..., 0, 0], f"{place}to_out.0.bias": bias}
    if alone:
        write_alone(folder / "v.safetensors", renamed)
    else:
        write_sd1(folder / "v.safetensors", overrides={PREFIX + key: value for key, value in renamed.items()})

    found = baked(folder, "v.safetensors", dtype=torch.float32)

    assert torch.equal(found[f"{PREFIX}{place}proj_out.weight"], weight)
    assert torch.equal(found[f"{PREFIX}{place}proj_out.bias"], bias)
    assert not [name for name in found if "attn_1.to_out" in name]


def test_of_two_spellings_that_of_ldm_is_baked_in(folder, vae, write_sd1):
    """Of two spellings in one VAE, LDM's is baked in, as in other tools."""
    for name in ("one", "two"):
        write_sd1(folder / f"{name}.safetensors", vae=False)
    weight = torch.randn(8, 8, 1, 1)
    both = {"encoder.mid.attn_1.to_q.weight": torch.ones(8, 8), "encoder.mid.attn_1.q.weight": weight}
    write_alone(folder / "v.safetensors", {**vae, **both})

    found = baked(folder, "v.safetensors", dtype=torch.float32)

    assert torch.equal(found[f"{PREFIX}encoder.mid.attn_1.q.weight"], weight)
    assert len([name for name in found if "attn_1" in name]) == 1


def test_a_checkpoint_gives_only_its_vae(folder, vae, write_sd1):
    """A whole checkpoint gives only its VAE."""
    extra = {PREFIX + name: value for name, value in vae.items()}
    write_sd1(folder / "other.ckpt", seed=5, overrides=extra)

    found = baked(folder, "other.ckpt", dtype=torch.float32)

    assert all(torch.equal(found[PREFIX + name], value) for name, value in vae.items())
    one, two = (load_file(folder / f"{name}.safetensors") for name in ("one", "two"))
    name = "model.diffusion_model.out.0.weight"
    torch.testing.assert_close(found[name], (one[name] + two[name]) / 2)


def test_sources_without_vae_become_complete(folder, vae, write_sd1):
    """Sources without VAE and a VAE file give a complete checkpoint."""
    for seed, name in enumerate(("one", "two")):
        write_sd1(folder / f"{name}.safetensors", seed=seed, vae=False)
    write_alone(folder / "v.safetensors", vae)

    found = baked(folder, "v.safetensors", dtype=torch.float32)

    held = {name: value for name, value in found.items() if name.startswith(PREFIX)}
    assert {name.removeprefix(PREFIX) for name in held} == set(vae)
    assert all(torch.equal(value, vae[name.removeprefix(PREFIX)]) for name, value in held.items())


@pytest.mark.parametrize("lacks", [IN, OUT, "quant_conv.weight"])
def test_an_incomplete_vae_is_refused_without_a_comparison(folder, vae, write_sd1, lacks):
    """A VAE without its first or last tensors is refused even if no source has a VAE to compare with."""
    for name in ("one", "two"):
        write_sd1(folder / f"{name}.safetensors", vae=False)
    write_alone(folder / "v.safetensors", {name: value for name, value in vae.items() if name != lacks})

    assert f"tensor {lacks!r} is missing" in refused(folder, "v.safetensors")


def test_sources_vae_is_not_read(folder, vae, write_sd1):
    """NaN in the VAE of a source is not refused when another VAE is baked in."""
    write_sd1(folder / "one.safetensors", overrides={PREFIX + IN: torch.full((8, 3, 3, 3), float("nan"))})
    write_alone(folder / "v.safetensors", vae)

    assert torch.equal(baked(folder, "v.safetensors", dtype=torch.float32)[PREFIX + IN], vae[IN])


def test_sources_vaes_may_differ_in_shape(folder, vae, write_sd1):
    """The sources' VAEs may differ in shape when another VAE is baked in."""
    extra = {PREFIX + name: value for name, value in vae.items()} | {PREFIX + IN: torch.ones(2, 3, 3, 3)}
    write_sd1(folder / "two.safetensors", seed=1, overrides=extra)
    write_alone(folder / "v.safetensors", vae)

    assert torch.equal(baked(folder, "v.safetensors", dtype=torch.float32)[PREFIX + IN], vae[IN])


def test_other_vae_tensors_of_the_sources_are_left_out(folder, vae, write_sd1):
    """Other tensors of the sources under the VAE's prefix are not in the output."""
    rest = {PREFIX + "loss.logvar": torch.ones(1), PREFIX + "counter": torch.tensor([3])}
    extra = {PREFIX + name: value for name, value in vae.items()}
    write_sd1(folder / "one.safetensors", overrides={**rest, **extra})
    write_alone(folder / "v.safetensors", vae)

    assert not set(rest) & set(baked(folder, "v.safetensors"))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_nan_is_refused(folder, vae, value):
    """A VAE with NaN or Inf is refused by file and tensor."""
    broken = vae[OUT].clone()
    broken[0, 0] = value
    write_alone(folder / "v.safetensors", {**vae, OUT: broken})

    assert f"tensor '{PREFIX + OUT}' holds NaN or Inf" in refused(folder, "v.safetensors")


def test_every_difference_has_a_line(folder, vae):
    """A missing or surplus tensor, another shape and another dtype have a line each, with the expected value."""
    wrong = {**vae, IN: torch.ones(4, 3, 3, 3), "encoder.more.weight": torch.ones(2), OUT: vae[OUT].int()}
    del wrong["post_quant_conv.bias"]
    write_alone(folder / "v.safetensors", wrong)

    lines = refused(folder, "v.safetensors", problems=4).splitlines()

    for name, words in {
        IN: ("[4, 3, 3, 3]", "[8, 3, 3, 3]", "one.safetensors"),
        "encoder.more.weight": ("leave it out", "one.safetensors"),
        "post_quant_conv.bias": ("missing", "[4]", "one.safetensors"),
        OUT: ("int32", "floating-point"),
    }.items():
        (line,) = (line for line in lines if repr(name) in line)
        assert all(word in line for word in words)


def test_many_differences_are_counted(folder, vae):
    """Of many differences the first are listed and the rest counted."""
    write_alone(folder / "v.safetensors", {**vae, **{f"encoder.{n}.weight": torch.ones(1) for n in range(50)}})

    assert "... and 42 more" in refused(folder, "v.safetensors", problems=9)


@pytest.mark.parametrize("name", ["encoder.down_blocks.0.resnets.0.conv1.weight", "decoder.mid_block.x.weight"])
@pytest.mark.parametrize("prefix", ["", PREFIX])
def test_diffusers_names_are_refused(folder, vae, name, prefix):
    """A VAE with diffusers names is refused with this reason."""
    save_file(
        {**{prefix + n: value for n, value in vae.items()}, prefix + name: torch.ones(1)}, folder / "v.safetensors"
    )

    assert all(word in refused(folder, "v.safetensors") for word in (name, "diffusers names", "encoder.down.0."))


@pytest.mark.parametrize(
    ("tensors", "words"),
    [
        ({"lora_unet_x.lora_up.weight": torch.ones(1, 1)}, ["is a LoRA", "holds no VAE", "encoder.*", PREFIX]),
        ({"x": torch.ones(1)}, ["holds no VAE"]),
        (
            {
                "model.diffusion_model.joint_blocks.0.context_block.x": torch.ones(1),
                "text_encoders.clip_l.x": torch.ones(1),
                PREFIX + IN: torch.ones(1),
            },
            ["is a Stable Diffusion 3 medium checkpoint", "give a VAE of Stable Diffusion 1.x"],
        ),
        ({"model.diffusion_model.x": torch.ones(1), PREFIX + IN: torch.ones(1)}, ["another family"]),
    ],
)
def test_a_file_without_a_vae_is_refused(folder, tensors, words):
    """A file without a VAE, or a checkpoint of another family, is refused with its kind."""
    save_file(tensors, folder / "v.safetensors")

    line = refused(folder, "v.safetensors")
    assert all(word in line for word in words)


def test_a_checkpoint_without_vae_is_refused(folder, write_sd1):
    """A checkpoint without VAE is refused."""
    write_sd1(folder / "v.safetensors", vae=False)

    assert "holds no VAE" in refused(folder, "v.safetensors")


def test_a_missing_file_is_named(folder):
    """A VAE file that does not exist is named."""
    assert "no such file" in refused(folder, "none.safetensors")


def test_an_output_that_is_the_vae_is_refused(folder, vae):
    """An output that is the VAE file is refused."""
    write_alone(folder / "out.safetensors", vae)

    with pytest.raises(CheckpointError, match="is the VAE of this merge"):
        baked(folder, "out.safetensors")


def test_the_vae_is_noted(folder, vae):
    """The metadata notes the VAE's file and sha256."""
    write_webui(folder / "good.vae.pt", vae)
    baked(folder, "good.vae.pt")
    with safe_open(folder / "out.safetensors", "pt") as file:
        metadata = file.metadata()

    digest = hashlib.sha256((folder / "good.vae.pt").read_bytes()).hexdigest()
    assert json.loads(metadata["sd_merge_recipe"])["vae"] == {"name": "good.vae.pt", "sha256": digest}
    assert digest not in json.loads(metadata["sd_merge_models"])


def copied(folder, vae="two", recipe=RECIPE, **options):
    """Merge by a recipe with `vae`, and return the tensors written."""
    (folder / "recipe.yaml").write_text(f"{recipe}vae: {vae}\n", encoding="utf-8")
    merge(load_recipe(folder / "recipe.yaml"), folder, folder / "out.safetensors", **options)
    return load_file(folder / "out.safetensors")


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
@pytest.mark.parametrize("step", ["T1", None])
def test_the_recipe_copies_a_vae(folder, dtype, step):
    """All VAE tensors are those of the model that the recipe names, rounded alone; the others merge as without it."""
    (folder / "plain.yaml").write_text(RECIPE, encoding="utf-8")
    merge(load_recipe(folder / "plain.yaml"), folder, folder / "merged.safetensors", dtype=dtype)
    merged, source = load_file(folder / "merged.safetensors"), load_file(folder / "two.safetensors")

    found = copied(folder, dtype=dtype, step=step)

    assert set(found) == set(merged)
    for name, value in found.items():
        expected = source[name].to(dtype) if name.startswith(PREFIX) else merged[name]
        assert torch.equal(value, expected), name
    assert not torch.equal(found[PREFIX + IN], merged[PREFIX + IN])


def test_a_copied_vae_needs_no_other(folder, write_sd1):
    """Sources without a VAE, or with one of another shape, do not matter; a model outside the steps may give it."""
    write_sd1(folder / "one.safetensors", seed=0, vae=False)
    write_sd1(folder / "two.safetensors", seed=1, overrides={PREFIX + IN: torch.ones(2, 3, 3, 3)})
    vae = write_sd1(folder / "three.safetensors", seed=3)
    recipe = RECIPE.replace("}}\n", "}, three: {file: three.safetensors}}\n")

    found = copied(folder, "three", recipe, dtype=torch.float32)

    names = {name for name in vae if name.startswith(PREFIX)}
    assert {name for name in found if name.startswith(PREFIX)} == names
    assert all(torch.equal(found[name], vae[name]) for name in names)


def test_a_model_without_the_vae_that_the_recipe_copies(folder, write_sd1):
    """A model without a VAE is refused by file and field; nothing is written."""
    write_sd1(folder / "two.safetensors", seed=1, vae=False)

    with pytest.raises(CheckpointError) as caught:
        copied(folder)

    (problem,) = caught.value.problems
    assert problem.startswith(f"{folder / 'two.safetensors'}: holds no VAE, and the recipe's `vae` names it; ")
    assert not (folder / "out.safetensors").exists()


def test_a_baked_vae_replaces_the_copied(folder, vae):
    """The VAE of a file takes precedence over the recipe's, and the noted recipe does not claim its own."""
    write_alone(folder / "v.safetensors", vae)

    of_recipe = copied(folder, dtype=torch.float32)
    recipe = load_recipe(folder / "recipe.yaml")
    merge(recipe, folder, folder / "out.safetensors", dtype=torch.float32, vae=folder / "v.safetensors")

    written = load_file(folder / "out.safetensors")
    assert torch.equal(written[PREFIX + IN], vae[IN])
    assert not torch.equal(written[PREFIX + IN], of_recipe[PREFIX + IN])
    with safe_open(folder / "out.safetensors", "pt") as file:
        noted = json.loads(file.metadata()["sd_merge_recipe"])
    assert "vae" not in noted["recipe"]
    assert noted["vae"]["name"] == "v.safetensors"


def test_the_copied_vae_is_noted(folder):
    """The metadata's recipe names the model of the VAE, and its source is listed with its hash and licence."""
    copied(folder)

    with safe_open(folder / "out.safetensors", "pt") as file:
        metadata = file.metadata()
    noted = json.loads(metadata["sd_merge_recipe"])
    assert noted["recipe"]["vae"] == "two"
    assert "vae" not in noted
    assert hashlib.sha256((folder / "two.safetensors").read_bytes()).hexdigest() in metadata["sd_merge_models"]
