"""The loss of an approximated export, against the merges computed tensor by tensor from the files."""

import shutil
from dataclasses import replace

import pytest
from safetensors.torch import load_file, save_file
from step_by_step import BLOCK_OF, as_dicts, block_of, merge_by_steps, merged_names

from optimizer.analysis import conversion_loss
from optimizer.errors import InputError
from optimizer.interchange import approximate_recipe
from optimizer.recipes import load_recipe, new_recipe, save_recipe
from optimizer.search import fit
from optimizer.studies import first_study, load_study

VAE = "first_stage_model."
SOURCES = ("base", "x", "y")
STEPS = (
    {"name": "T1", "mode": "add_difference", "a": "base", "b": "x", "c": "base",
     "alpha": {"BASE": 0.3, "IN00": 0.25, "OUT03": 1.25, "OUT11": 0.75, "M00": -0.5}},
    {"name": "T2", "mode": "weight_sum", "a": "T1", "b": "y", "alpha": {"BASE": 0.4, "IN00-IN03": 0.5, "OUT03": 0.5}},
)  # fmt: skip


@pytest.fixture
def folder(tmp_path, write_sd1, sd1_tensors):
    """Return a folder with a base, two finetunes and a recipe over them, with alphas outside 0 to 1 and a mixed VAE."""
    common = sd1_tensors(seed=0)
    for seed, name in enumerate(SOURCES, 1):
        write_sd1(tmp_path / f"{name}.safetensors", seed=seed, around=common)
    save_recipe(new_recipe({name: f"{name}.safetensors" for name in SOURCES}, STEPS), tmp_path / "recipe.yaml")
    return tmp_path


def tensors_of(recipe, folder):
    """Return the tensors of a recipe's merge, float64, computed step by step."""
    sources = {name: load_file(folder / f"{name}.safetensors") for name in SOURCES}
    doubles = {
        name: {tensor: value.double() if value.is_floating_point() else value for tensor, value in held.items()}
        for name, held in sources.items()
    }
    merged = merge_by_steps(as_dicts(recipe.ancestors()), doubles, block=BLOCK_OF[recipe.mapping])[recipe.output]
    if recipe.vae is not None:
        merged |= {name: value for name, value in doubles[recipe.vae].items() if name.startswith(VAE)}
    return merged, doubles["base"]


def expected(exact, converted, folder):
    """Return |converted - exact|^2 / |exact - base|^2: by block, in all blocks together, and of the VAE."""
    merged, base = tensors_of(exact, folder)
    other, _ = tensors_of(converted, folder)
    lost, whole = {}, {}
    for name in merged_names(base):
        place = "VAE" if name.startswith(VAE) else block_of(name)
        lost[place] = lost.get(place, 0) + float(((other[name] - merged[name]) ** 2).sum())
        whole[place] = whole.get(place, 0) + float(((merged[name] - base[name]) ** 2).sum())
    lost_vae, whole_vae = lost.pop("VAE"), whole.pop("VAE")
    vae = lost_vae / whole_vae if whole_vae else None
    shares = {place: 0.0 if lost[place] == 0 else lost[place] / whole[place] for place in lost}
    return shares, sum(lost.values()) / sum(whole.values()), vae


@pytest.mark.parametrize("format_name", ["comfyui", "model-mixer"])
def test_measured_from_the_files(folder, format_name):
    """Without a study the loss is that of the merges: by block, in total, and of the VAE."""
    recipe = load_recipe(folder / "recipe.yaml")
    converted = approximate_recipe(recipe, format_name).recipe

    found = conversion_loss(folder / "recipe.yaml", converted)

    shares, total, vae = expected(recipe, converted, folder)
    assert dict(found.blocks) == pytest.approx(shares, rel=1e-5, abs=1e-9)
    assert found.total == pytest.approx(total, rel=1e-5)
    assert found.vae == pytest.approx(vae, rel=1e-5)
    assert found.worst == max(shares, key=lambda block: shares[block])
    assert (found.measured, found.base, found.explained) == ("checkpoints", "base", None)


def test_a_vae_that_all_sources_share(folder):
    """A mixed VAE costs nothing if all sources have the same; the loss is measured, not assumed."""
    vae = {name: value for name, value in load_file(folder / "base.safetensors").items() if name.startswith(VAE)}
    for name in ("x", "y"):
        save_file(load_file(folder / f"{name}.safetensors") | vae, folder / f"{name}.safetensors")
    recipe = load_recipe(folder / "recipe.yaml")

    found = conversion_loss(folder / "recipe.yaml", replace(recipe, vae="y"))

    assert (found.total, found.vae, found.worst) == (0.0, 0.0, None)
    assert str(found) == "loss: 0 of |merge - base|^2 (VAE: 0)"


@pytest.fixture
def study(folder, write_sd1):
    """Return the folder of a fitted study over the same sources, with a target near them and the sources elsewhere."""
    tensors, _ = tensors_of(load_recipe(folder / "recipe.yaml"), folder)
    noise = write_sd1(folder / "target.safetensors", seed=9)
    target = {
        name: (value + 0.01 * noise[name]).float() if value.is_floating_point() else value
        for name, value in tensors.items()
    }

    save_file({name: value.contiguous() for name, value in target.items()}, folder / "target.safetensors")
    files = [folder / f"{name}.safetensors" for name in SOURCES]
    first_study(folder / "target.safetensors", files, folder / "mine", base=files[0])
    fit(load_study(folder / "mine"))
    return folder / "mine"


def test_measured_from_a_studys_statistics(study, folder):
    """Beside a study no checkpoint is needed, and the explained share is given before and after the conversion."""
    recipe = load_recipe(study / "best.yaml")
    converted = approximate_recipe(recipe, "comfyui").recipe
    shares, total, _ = expected(recipe, converted, folder)
    explained = []
    target = load_file(folder / "target.safetensors")
    for each in (recipe, converted):
        merged, base = tensors_of(each, folder)
        off, whole = {}, {}
        for name in merged_names(base):
            if not name.startswith(VAE):
                block = block_of(name)
                off[block] = off.get(block, 0) + float(((merged[name] - target[name]) ** 2).sum())
                whole[block] = whole.get(block, 0) + float(((base[name] - target[name].double()) ** 2).sum())
        explained.append(sum(1 - off[block] / whole[block] for block in off) / len(off))
    (folder / "elsewhere").mkdir()
    for name in SOURCES:
        shutil.move(folder / f"{name}.safetensors", folder / "elsewhere")

    found = conversion_loss(study / "best.yaml", converted)

    assert total > 1e-4
    assert found.total == pytest.approx(total, rel=1e-5)
    assert dict(found.blocks) == pytest.approx(shares, rel=1e-4, abs=1e-9)
    assert found.explained == pytest.approx(explained, abs=1e-6)
    assert found.explained[0] > found.explained[1]
    assert found.measured == "statistics"


def test_a_vae_beside_statistics(study, folder):
    """Statistics hold no VAE: its loss is measured from the files, and refused without them."""
    recipe = load_recipe(study / "best.yaml")
    converted = replace(recipe, vae="x")

    found = conversion_loss(study / "best.yaml", converted)

    # The exact merge has the base's VAE, so that the loss has nothing to be a share of.
    assert (found.measured, found.total, found.vae) == ("statistics", 0.0, None)
    assert "VAE: not measurable" in str(found)
    (folder / "x.safetensors").unlink()
    with pytest.raises(InputError) as caught:
        conversion_loss(study / "best.yaml", converted)
    assert caught.value.field == "approximate"


def test_neither_statistics_nor_files(folder):
    """Without either the loss is refused in one line that names the first missing file."""
    recipe = load_recipe(folder / "recipe.yaml")
    for name in ("x", "y"):
        (folder / f"{name}.safetensors").unlink()

    with pytest.raises(InputError) as caught:
        conversion_loss(folder / "recipe.yaml", approximate_recipe(recipe, "comfyui").recipe)

    (problem,) = caught.value.problems
    assert problem.startswith("the loss cannot be measured, neither from a study's statistics nor from the files: ")
    assert "models.x" in problem
    assert problem.endswith("(and 1 more)")
    assert caught.value.field == "approximate"
