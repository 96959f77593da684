"""Studies from `init` find planted merges, coefficient by coefficient; the rounded recipe is the planted one."""

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
# Alphas by part, as chosen by hand: text encoder, inputs, middle, outputs.
PARTS = {block: 0.7 if block == "BASE" else 0.0 if block < "M" else 0.3 if block == "M00" else 0.5 for block in BLOCKS}
MORE = {block: (0.1, 0.25, 0.4, 0.0)[place % 4] for place, block in enumerate(BLOCKS)}


def step(name, a, b, alpha, c=None):
    """Return a step for `merge_by_steps`: add_difference with `c`, else weight_sum."""
    return {"name": name, "mode": "weight_sum" if c is None else "add_difference", "a": a, "b": b, "c": c,
            "alpha": alpha}  # fmt: skip


# Subtraction of a model that is not the base.
SUBTRACTED = [step("T", "A", "B", PARTS, "C")]
DECOYS = ("D", "E", "F", "G")
MODELS = ("base", "A", "B", "C", *DECOYS)

# The steps, and the sources given to `init`: the base first; without a base, the first model.
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
    "taken away": (SUBTRACTED, ("base", "A", "B", "C")),
    "taken away, no base": (SUBTRACTED, ("A", "B", "C")),
    "taken away, sum": ([*SUBTRACTED, step("U", "T", "base", MORE)], ("base", "A", "B", "C")),
    "taken away, decoys": (SUBTRACTED, ("base", "A", "B", "C", *DECOYS)),
    "taken away, decoys, no base": (SUBTRACTED, ("A", "B", "C", *DECOYS)),
    "difference, decoys": ([step("T", "A", "B", PARTS, "base")], ("base", "A", "B", "C", *DECOYS)),
}


@pytest.fixture(scope="module")
def family(tmp_path_factory, write_sd1, sd1_tensors):
    """The folder of a base, three finetunes and four decoys, and their float32 tensors."""
    folder = tmp_path_factory.mktemp("planted")
    around = sd1_tensors(seed=0)
    tensors = {
        name: write_sd1(folder / f"{name}.safetensors", seed=seed, around=around, distance=0.2 if seed else 0.0)
        for seed, name in enumerate(MODELS)
    }
    return folder, tensors


@pytest.fixture(scope="module")
def target(family):
    """A function that writes the target of a planted case in a dtype, once, and returns its path."""
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
    """Return the coefficient of each model in the last step by definition, {block: {model: coefficient}}."""
    found = {block: {name: {name: 1.0} for name in MODELS} for block in BLOCKS}
    for merge, block in itertools.product(steps, BLOCKS):
        alpha, known = merge["alpha"][block], found[block]
        factors = (
            {merge["a"]: 1 - alpha, merge["b"]: alpha}
            if merge["c"] is None
            else {merge["a"]: 1.0, merge["b"]: alpha, merge["c"]: -alpha}
        )
        made: dict[str, float] = {}
        for name, factor in factors.items():
            for model, share in known[name].items():
                made[model] = made.get(model, 0.0) + factor * share
        known[merge["name"]] = made
    return {block: known[steps[-1]["name"]] for block, known in found.items()}


def largest_error(folder, case, path, into, *, trials, seed=0, mode="add_difference"):
    """Fit the study from `init`; return the largest error of any block's coefficients, and the result."""
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
def test_planted_merges_are_found(family, target, tmp_path, case, mode):
    """The study from `init` finds a planted merge within 0.002, and the rounded recipe has the planted alphas."""
    error, result = largest_error(family[0], case, target(case), tmp_path / "s", trials=8, mode=mode)

    assert error < 0.002
    rounded = load_recipe(tmp_path / "s" / "best.simple.yaml")
    if mode == "weight_sum":
        numbers = [[found.alpha.at(block) for block in BLOCKS] for found in rounded.steps]
        assert numbers == [[alphas[block] for block in BLOCKS] for alphas in (PARTS, MORE)[: len(numbers)]]
    assert result.simple.lost < 1e-6
    assert set(rounded.models) - {"base"} <= {
        name for merge in PLANTED[case][0] for name in (merge["a"], merge["b"], merge["c"])
    }
    assert result.narrow == ()


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("trials", [8, 20, 60])
@pytest.mark.parametrize("case", PLANTED)
def test_planted_merges_are_found_with_every_seed(family, target, tmp_path, case, trials, dtype):
    """Every planted merge is found within 0.002 with every number of trials and eight seeds, also from float16."""
    subtracted = case.startswith("taken away")
    modes = ("add_difference",) if subtracted or ("base" in PLANTED[case][1] and case != "sum from the base") else None
    for seed, mode in itertools.product(range(8), modes or ("add_difference", "weight_sum")):
        into = tmp_path / f"{seed}-{mode}"
        error, _ = largest_error(family[0], case, target(case, dtype), into, trials=trials, seed=seed, mode=mode)
        assert error < 0.002, (seed, mode)


def test_the_commands_find_a_weight_sum(family, target, tmp_path, capsys, monkeypatch):
    """`init --mode weight_sum` and `fit` find a weight sum of A and B with planted alphas by part."""
    folder, _ = family
    monkeypatch.setenv("BLOCKFIT_CACHE", str(tmp_path / "cache"))

    def run(*arguments):
        with pytest.raises(SystemExit) as left:
            main([str(argument) for argument in arguments])
        assert not left.value.code
        return capsys.readouterr().out

    sources = [folder / f"{name}.safetensors" for name in ("A", "B")]
    run("init", target("sum"), *sources, "--mode", "weight_sum", "-o", tmp_path / "mine")
    shown = json.loads(run("fit", tmp_path / "mine", "--json"))
    found = load_recipe(tmp_path / "mine" / "best.yaml").steps[0].alpha
    assert [found.at(block) for block in BLOCKS] == pytest.approx([PARTS[block] for block in BLOCKS], abs=0.002)
    assert shown["searches"][0]["metric"] == "explained"
    # Inputs have no score, because the target has those of the first model unchanged.
    assert shown["steps"][0]["after"] == pytest.approx(1, abs=1e-6)
    assert {block for block, share in shown["steps"][0]["blocks"].items() if share is None} == {
        block for block in BLOCKS if PARTS[block] == 0
    }
