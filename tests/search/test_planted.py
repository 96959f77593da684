"""What `init` writes finds planted merges again, coefficient by coefficient; rounded, the recipe is the planted one."""

import itertools
import json

import pytest
import torch
from safetensors.torch import save_file
from step_by_step import merge_by_steps

from optimizer.cli import main
from optimizer.families import load_layout
from optimizer.recipes import block_coefficients, load_recipe
from optimizer.search import fit
from optimizer.studies import first_study, load_study

BLOCKS = load_layout("sd1").blocks
# By part, as people choose alphas: the text encoder, inputs, the middle, outputs.
PARTS = {block: 0.7 if block == "BASE" else 0.0 if block < "M" else 0.3 if block == "M00" else 0.5 for block in BLOCKS}
MORE = {block: (0.1, 0.25, 0.4, 0.0)[place % 4] for place, block in enumerate(BLOCKS)}


def step(name, a, b, alpha, c=None):
    """A step as `merge_by_steps` takes it: an add difference with `c`, else a weight sum."""
    return {"name": name, "mode": "weight_sum" if c is None else "add_difference", "a": a, "b": b, "c": c,
            "alpha": alpha}  # fmt: skip


# A model that is taken away and is not the base, by itself and with a sum on top.
AWAY = [step("T", "A", "B", PARTS, "C")]
DECOYS = ("D", "E", "F", "G")
MODELS = ("base", "A", "B", "C", *DECOYS)

# The steps, and the sources as `init` is given them: the base first, or the first model where there is none.
PLANTED = {
    "sum": ([step("T", "A", "B", PARTS)], ("A", "B")),
    "sum from the base": ([step("T", "base", "A", PARTS)], ("base", "A")),
    "difference": ([step("T", "A", "B", PARTS, "base")], ("base", "A", "B")),
    "two sums": ([step("T", "A", "B", PARTS), step("U", "T", "C", MORE)], ("A", "B", "C")),
    "sum, difference": ([step("T", "A", "B", PARTS), step("U", "T", "C", MORE, "base")], ("base", "A", "B", "C")),
    "difference, sum": ([step("T", "A", "B", PARTS, "base"), step("U", "T", "C", MORE)], ("base", "A", "B", "C")),
    "two differences": (
        [step("T", "A", "B", PARTS, "base"), step("U", "T", "C", MORE, "base")],
        ("base", "A", "B", "C"),
    ),
    "taken away": (AWAY, ("base", "A", "B", "C")),
    "taken away, no base": (AWAY, ("A", "B", "C")),
    "taken away, sum": ([*AWAY, step("U", "T", "base", MORE)], ("base", "A", "B", "C")),
    "taken away, decoys": (AWAY, ("base", "A", "B", "C", *DECOYS)),
    "taken away, decoys, no base": (AWAY, ("A", "B", "C", *DECOYS)),
    "difference, decoys": ([step("T", "A", "B", PARTS, "base")], ("base", "A", "B", "C", *DECOYS)),
}


@pytest.fixture(scope="module")
def family(tmp_path_factory, write_sd1, sd1_tensors):
    """The folder of a base, three finetunes and four that no target is made from, and their tensors, all float32."""
    folder = tmp_path_factory.mktemp("planted")
    around = sd1_tensors(seed=0)
    tensors = {
        name: write_sd1(folder / f"{name}.safetensors", seed=seed, around=around, distance=0.2 if seed else 0.0)
        for seed, name in enumerate(MODELS)
    }
    return folder, tensors


@pytest.fixture(scope="module")
def target(family):
    """Writes the target of a planted case in a dtype, once, and gives its path."""
    folder, tensors = family

    def write(case, dtype=torch.float32):
        path = folder / f"target-{case}-{dtype}.safetensors".replace(" ", "-")
        if not path.exists():
            steps, _ = PLANTED[case]
            merged = merge_by_steps(steps, tensors)[steps[-1]["name"]]
            save_file({n: (v.to(dtype) if v.is_floating_point() else v).contiguous() for n, v in merged.items()}, path)
        return path

    return write


def shares(steps):
    """What each model contributes to the last step, {block: {model: coefficient}}, by the formulas themselves."""
    found = {block: {name: {name: 1.0} for name in MODELS} for block in BLOCKS}
    for one, block in itertools.product(steps, BLOCKS):
        alpha, known = one["alpha"][block], found[block]
        factors = (
            {one["a"]: 1 - alpha, one["b"]: alpha}
            if one["c"] is None
            else {one["a"]: 1.0, one["b"]: alpha, one["c"]: -alpha}
        )
        made: dict[str, float] = {}
        for name, factor in factors.items():
            for model, share in known[name].items():
                made[model] = made.get(model, 0.0) + factor * share
        known[one["name"]] = made
    return {block: known[steps[-1]["name"]] for block, known in found.items()}


def largest_error(folder, case, path, into, *, trials, seed=0, mode="add_difference"):
    """The largest error of a coefficient that `init`'s study finds, over all blocks and sources; and the result."""
    steps, sources = PLANTED[case]
    first_study(path, [folder / f"{name}.safetensors" for name in sources], into, mode=mode)
    with (into / "study.yaml").open("a", encoding="utf-8") as file:
        file.write(f"seed: {seed}\n")
    result = fit(load_study(into).with_trials(trials))
    found, planted = block_coefficients(result.recipe), shares(steps)
    named = {"base": sources[0]}
    errors = [
        abs(numbers[block] - planted[block].get(named.get(name, name), 0.0))
        for name, numbers in found.items()
        for block in BLOCKS
    ]
    return max(errors), result


@pytest.mark.parametrize(("case", "mode"), [
    ("sum", "weight_sum"),
    pytest.param("sum from the base", "add_difference", marks=pytest.mark.slow),
    pytest.param("two sums", "weight_sum", marks=pytest.mark.slow),
    ("difference, sum", "add_difference"),
    pytest.param("taken away", "add_difference", marks=pytest.mark.slow),
    pytest.param("taken away, no base", "add_difference", marks=pytest.mark.slow),
    ("taken away, decoys", "add_difference"),
])  # fmt: skip
def test_found_again(family, target, tmp_path, case, mode):
    """A planted merge is found to 0.002 by what `init` writes, and the rounded recipe has the planted numbers."""
    error, result = largest_error(family[0], case, target(case), tmp_path / "s", trials=8, mode=mode)

    assert error < 0.002
    rounded = load_recipe(tmp_path / "s" / "best.simple.yaml")
    if mode == "weight_sum":
        numbers = [[one.alpha.at(block) for block in BLOCKS] for one in rounded.steps]
        assert numbers == [[alphas[block] for block in BLOCKS] for alphas in (PARTS, MORE)[: len(numbers)]]
    assert result.simple.lost < 1e-6
    assert set(rounded.models) - {"base"} <= {
        name for one in PLANTED[case][0] for name in (one["a"], one["b"], one["c"])
    }
    assert result.narrow == ()


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("trials", [8, 20, 60])
@pytest.mark.parametrize("case", PLANTED)
def test_found_again_whatever_the_seed(family, target, tmp_path, case, trials, dtype):
    """Every planted step and chain is found to 0.002 at every number of trials and in eight seeds, from fp16 too."""
    away = case.startswith("taken away")
    modes = ("add_difference",) if away or ("base" in PLANTED[case][1] and case != "sum from the base") else None
    for seed, mode in itertools.product(range(8), modes or ("add_difference", "weight_sum")):
        into = tmp_path / f"{seed}-{mode}"
        error, _ = largest_error(family[0], case, target(case, dtype), into, trials=trials, seed=seed, mode=mode)
        assert error < 0.002, (seed, mode)


def test_half_of_each(family, target, tmp_path, capsys, monkeypatch):
    """A x 0.5 + B x 0.5 by part, given to `init --mode weight_sum` and `fit`, comes out as it went in."""
    folder, _ = family
    monkeypatch.setenv("BLOCKFIT_CACHE", str(tmp_path / "cache"))

    def run(*arguments):
        with pytest.raises(SystemExit) as left:
            main([str(argument) for argument in arguments])
        assert not left.value.code
        return capsys.readouterr().out

    sources = [folder / f"{name}.safetensors" for name in ("A", "B")]
    run("init", target("sum"), *sources, "--mode", "weight_sum", "-o", tmp_path / "mine")
    told = json.loads(run("fit", tmp_path / "mine", "--json"))
    found = load_recipe(tmp_path / "mine" / "best.yaml").steps[0].alpha
    assert [found.at(block) for block in BLOCKS] == pytest.approx([PARTS[block] for block in BLOCKS], abs=0.002)
    assert told["searches"][0]["metric"] == "explained"
    # Of the text encoder, the middle and the outputs: the inputs are the first model's, unchanged.
    assert told["steps"][0]["after"] == pytest.approx(1, abs=1e-6)
    assert {block for block, share in told["steps"][0]["blocks"].items() if share is None} == {
        block for block in BLOCKS if PARTS[block] == 0
    }
