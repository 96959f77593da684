"""The article's similarity, against a plain computation on merged files by its definition."""

import pytest
import torch
from safetensors.torch import load_file
from step_by_step import ATTENTION, BLOCKS, attention_by_definition

from optimizer.checkpoints import load_layout
from optimizer.errors import CheckpointError
from optimizer.recipes import Algebra, Alpha, Model, Recipe, Step, merge
from optimizer.similarity import build_metric, open_comparison

LAYOUT = load_layout("sd1")


@pytest.fixture(scope="module")
def merged(kin):
    """A recipe with other alphas in every block, and its float32 merge."""
    numbers = (torch.rand(2, 26, generator=torch.Generator().manual_seed(4)) * 1.4 - 0.2).tolist()
    steps = (
        Step("T1", "add_difference", "base", "x", "base", Alpha(dict(zip(BLOCKS, numbers[0], strict=True)))),
        Step("T2", "weight_sum", "T1", "y", None, Alpha(dict(zip(BLOCKS, numbers[1], strict=True)))),
    )
    recipe = Recipe("r", LAYOUT, {name: Model(name) for name in ("base", "x", "y")}, steps, "T2")
    merge(recipe, kin.paths, kin.folder / "merged.safetensors", dtype=torch.float32)
    return recipe, load_file(kin.folder / "merged.safetensors")


def scored(kin, recipe, blocks, seeds):
    """{block: similarity} as the code under test gives it."""
    sources = {name: kin.paths[name] for name in ("base", "x", "y")}
    with open_comparison(LAYOUT, sources, kin.paths["target"], seeds=seeds) as comparison:
        metric = build_metric("attention", comparison, blocks)
        algebra = Algebra(recipe, comparison.groups, tuple(sources))
        rows = algebra.coefficients(algebra.starting_alphas())
        scores = metric.score(rows.repeat(2, 1, 1))
    assert torch.equal(scores[0], scores[1])
    return dict(zip(metric.blocks, scores[0].tolist(), strict=True))


@pytest.mark.parametrize(
    ("blocks", "seed"),
    [
        (tuple(ATTENTION), 2244096),
        (tuple(b for b in ATTENTION if b.startswith("OUT")), 114514),
        (("OUT05", "M00", "IN04"), 0),
    ],
)
def test_attention_is_its_definition(kin, merged, blocks, seed):
    """Scores from projections are those of the merged file by the definition, to 1e-6, in the order of evaluation."""
    recipe, candidate = merged

    found = scored(kin, recipe, blocks, (seed,))

    wanted = attention_by_definition(candidate, kin.tensors["target"], blocks, seed)
    assert list(found) == list(wanted)
    assert found == pytest.approx(wanted, abs=1e-6)
    assert all(value < 0.9999 for value in wanted.values())


def test_earlier_blocks_change_later_inputs(kin, merged):
    """The first block scored has the same input whatever follows; with another before it, it has another."""
    recipe, _ = merged

    alone = scored(kin, recipe, ("OUT05",), (1,))
    before = scored(kin, recipe, ("OUT05", "OUT06"), (1,))
    after = scored(kin, recipe, ("M00", "OUT05"), (1,))

    assert alone["OUT05"] == before["OUT05"]
    assert abs(alone["OUT05"] - after["OUT05"]) > 1e-5


def test_several_seeds_average(kin, merged):
    """Several seeds give the mean of what each gives."""
    recipe, candidate = merged
    blocks = ("IN01", "OUT03", "OUT11")

    found = scored(kin, recipe, blocks, (1, 2, 3))

    each = [attention_by_definition(candidate, kin.tensors["target"], blocks, seed) for seed in (1, 2, 3)]
    assert found == pytest.approx({block: sum(one[block] for one in each) / 3 for block in blocks}, abs=1e-6)


def test_global_random_state_is_left_alone(kin, merged):
    """Scoring draws from a generator of its own."""
    torch.manual_seed(7)
    wanted = torch.rand(1)
    torch.manual_seed(7)

    scored(kin, merged[0], ("OUT03",), (1,))

    assert torch.equal(torch.rand(1), wanted)


def test_weights_that_cannot_be_used(tmp_path, write_sd1):
    """NaN in an attention weight, and a target without it, are refused by file and tensor."""
    name = "model.diffusion_model.middle_block.1.transformer_blocks.0.attn1.to_v.weight"
    write_sd1(tmp_path / "x.safetensors")
    write_sd1(tmp_path / "nan.safetensors", overrides={name: torch.full((8, 8), float("nan"))})
    write_sd1(tmp_path / "bare.safetensors", drop=[name])
    sources = {"x": tmp_path / "x.safetensors"}
    for target, said in (("nan", "holds NaN or Inf"), ("bare", "is missing here")):
        path = tmp_path / f"{target}.safetensors"
        with open_comparison(LAYOUT, sources, path) as comparison, pytest.raises(CheckpointError) as caught:
            build_metric("attention", comparison, ["M00"])
        assert caught.value.problems[0].startswith(f"{path}: tensor {name!r} {said}")
