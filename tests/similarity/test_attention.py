"""The article's similarity agrees with a plain computation on merged files by its definition."""

import pytest
import torch
from comparing_attention import open_attention
from safetensors.torch import load_file
from step_by_step import ATTENTION, BLOCKS, attention_by_definition

from optimizer.errors import CheckpointError
from optimizer.families import load_layout
from optimizer.merging import merge
from optimizer.recipes import Algebra, Alpha, Model, Recipe, Step
from optimizer.similarity import attention, build_metric, open_comparison, rows

LAYOUT = load_layout("sd1")


@pytest.fixture(scope="module")
def merged(kin):
    """Return a recipe with different alphas in every block, and its float32 merge."""
    numbers = (torch.rand(2, 26, generator=torch.Generator().manual_seed(4)) * 1.4 - 0.2).tolist()
    steps = (
        Step("T1", "add_difference", "base", "x", "base", Alpha(dict(zip(BLOCKS, numbers[0], strict=True)))),
        Step("T2", "weight_sum", "T1", "y", None, Alpha(dict(zip(BLOCKS, numbers[1], strict=True)))),
    )
    recipe = Recipe("r", LAYOUT, {name: Model(name) for name in ("base", "x", "y")}, steps, "T2")
    merge(recipe, kin.paths, kin.folder / "merged.safetensors", dtype=torch.float32)
    return recipe, load_file(kin.folder / "merged.safetensors")


def scored(kin, recipe, blocks, seeds):
    """Return {block: similarity} from the code under test."""
    with open_attention(kin.paths, seeds) as comparison:
        metric = build_metric("attention", comparison, blocks)
        algebra = Algebra(recipe, comparison.groups, ("base", "x", "y"))
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
    """Scores from projections equal those of the merged file by the definition, to 1e-6, in the order of evaluation."""
    recipe, candidate = merged

    found = scored(kin, recipe, blocks, (seed,))

    expected = attention_by_definition(candidate, kin.tensors["target"], blocks, seed)
    assert list(found) == list(expected)
    assert found == pytest.approx(expected, abs=1e-6)
    assert all(value < 0.9999 for value in expected.values())


def test_earlier_blocks_change_later_inputs(kin, merged):
    """The first scored block has the same input for any later blocks; another block before it changes its input."""
    recipe, _ = merged

    alone = scored(kin, recipe, ("OUT05",), (1,))
    before = scored(kin, recipe, ("OUT05", "OUT06"), (1,))
    after = scored(kin, recipe, ("M00", "OUT05"), (1,))

    assert alone["OUT05"] == before["OUT05"]
    assert abs(alone["OUT05"] - after["OUT05"]) > 1e-5


def test_several_seeds_average(kin, merged):
    """Several seeds give the mean of the scores of each."""
    recipe, candidate = merged
    blocks = ("IN01", "OUT03", "OUT11")

    found = scored(kin, recipe, blocks, (1, 2, 3))

    each = [attention_by_definition(candidate, kin.tensors["target"], blocks, seed) for seed in (1, 2, 3)]
    assert found == pytest.approx(
        {block: sum(scores_of_seed[block] for scores_of_seed in each) / 3 for block in blocks}, abs=1e-6
    )


# --- Many candidates --------------------------------------------------------------------------------------------------

SOURCES = ("base", "x", "y")
# OUT07 has queries and keys of different sources, because y lacks its keys.
SOME_BLOCKS = ("IN01", "M00", "OUT03", "OUT07", "OUT11")


def candidates(groups, count, *, line):
    """Return coefficients [count, groups, sources] with sum 1, on one line in every group or anywhere."""
    generator = torch.Generator().manual_seed(count)
    start, end = torch.rand(2, groups, len(SOURCES), generator=generator, dtype=torch.float64) + 0.1
    positions = torch.rand(count, 1, 1, generator=generator, dtype=torch.float64)
    drawn = torch.rand(count, groups, len(SOURCES), generator=generator, dtype=torch.float64) + 0.1
    start, end, drawn = (each / each.sum(dim=-1, keepdim=True) for each in (start, end, drawn))
    return start + positions * (end - start) if line else drawn


def by_definition(kin, comparison, coefficients, blocks, seeds):
    """Return the scores [n, blocks] of merged tensors, in float64."""
    parts = [part for part in comparison.scored_parts(blocks) if ".attn1." in part.name]
    scores = []
    for rows_of_one in coefficients:
        merged = {}
        for part in parts:
            weights = rows_of_one[comparison.group_of(part)].tolist()
            held = [(weights[place], kin.tensors[SOURCES[place]][part.name].double()) for place in part.holders]
            merged[part.name] = sum(weight * tensor for weight, tensor in held)
        each = [attention_by_definition(merged, kin.tensors["target"], blocks, seed, torch.float64) for seed in seeds]
        scores.append([sum(scores_of_seed[block] for scores_of_seed in each) / len(seeds) for block in each[0]])
    return torch.tensor(scores, dtype=torch.float64)


@pytest.fixture
def two_threads():
    """Make torch compute with two threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("kept", ["everything", "lines", "nothing"])
@pytest.mark.parametrize("tile", [50, 1 << 17])
def test_many_candidates_are_their_definition(kin, monkeypatch, two_threads, kept, tile):
    """Each candidate scores as by the definition, on a line, off it and mixed, in tiles of any size.

    The tolerance is 5e-6: in such narrow blocks a few rows determine float32's rounding, and that of the definition is
    up to 1e-6.
    """
    seeds = (1, 2)
    monkeypatch.setattr(rows, "_TILE", tile)
    with open_attention(kin.paths, seeds) as comparison:
        widths = [
            part.shape[1] for part in comparison.scored_parts(SOME_BLOCKS) if part.name.endswith("attn1.to_q.weight")
        ]
        limits = {"everything": 2 << 30, "lines": len(seeds) * 12 * sum(width**2 for width in widths), "nothing": 0}
        monkeypatch.setattr(attention, "_KEPT_LIMIT", limits[kept])
        metric = build_metric("attention", comparison, SOME_BLOCKS)
        groups = len(comparison.groups)
        line, anywhere = candidates(groups, 19, line=True), candidates(groups, 3, line=False)
        mixed = torch.cat([anywhere[:1], line[:4], anywhere[1:], line[4:6]])
        metric.prepare(line[:3])
        for given in (anywhere, line, mixed, line[:1], anywhere[:1]):
            expected = by_definition(kin, comparison, given, SOME_BLOCKS, seeds)
            torch.testing.assert_close(metric.score(given), expected, rtol=0, atol=5e-6)
    assert torch.get_num_threads() == 2


def test_a_score_does_not_depend_on_company(kin):
    """A candidate scores the same to 1e-6 among others and unprepared, and exactly the same after others."""
    with open_attention(kin.paths, (1,)) as comparison:
        metric, fresh = (build_metric("attention", comparison, SOME_BLOCKS) for _ in range(2))
        given = torch.cat([candidates(len(comparison.groups), 33, line=line) for line in (True, False)])
        before = fresh.score(given[:1])
        metric.prepare(given[:3])

        together = metric.score(given)

        assert torch.equal(metric.score(given), together)
        alone = torch.cat([metric.score(candidate[None]) for candidate in given])
        backwards = torch.cat([fresh.score(candidate[None]) for candidate in given.flip(0)]).flip(0)
    torch.testing.assert_close(alone, together, rtol=0, atol=1e-6)
    assert torch.equal(backwards[:1], before)
    torch.testing.assert_close(backwards, together, rtol=0, atol=1e-6)


def test_no_candidates_have_no_scores(kin):
    """No candidates have no scores."""
    with open_attention(kin.paths, (1,)) as comparison:
        metric = build_metric("attention", comparison, SOME_BLOCKS)
        found = metric.score(torch.empty(0, len(comparison.groups), len(SOURCES), dtype=torch.float64))
    assert found.shape == (0, len(SOME_BLOCKS))


def test_far_logits_neither_overflow_nor_vanish(kin):
    """Coefficients a hundred times too large give logits of many thousands, and finite scores in range."""
    with open_attention(kin.paths, (1,)) as comparison:
        metric = build_metric("attention", comparison, SOME_BLOCKS)
        far = torch.linspace(-100, 100, 9, dtype=torch.float64)[:, None, None]
        start, end = candidates(len(comparison.groups), 2, line=False)
        found = metric.score(start + far * (end - start))
    assert found.isfinite().all()
    assert found.abs().max() <= 1


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
@pytest.mark.parametrize("line", [True, False])
def test_cuda_gives_the_same_for_many_candidates(kin, line):
    """A GPU gives the scores of the CPU to 1e-5, on a line and off it."""
    scores = []
    for device in ("cpu", "cuda"):
        with open_attention(kin.paths, (1, 2), device) as comparison:
            given = candidates(len(comparison.groups), 40, line=line)
            metric = build_metric("attention", comparison, SOME_BLOCKS)
            metric.prepare(given[:3])
            scores.append(metric.score(given))
    torch.testing.assert_close(scores[0], scores[1], rtol=0, atol=1e-5)


def test_global_random_state_is_left_alone(kin, merged):
    """Scoring draws from a generator of its own."""
    torch.manual_seed(7)
    expected = torch.rand(1)
    torch.manual_seed(7)

    scored(kin, merged[0], ("OUT03",), (1,))

    assert torch.equal(torch.rand(1), expected)


def test_unusable_weights_are_refused(tmp_path, write_sd1):
    """NaN in an attention weight, and a target without the weight, are refused by file and tensor."""
    name = "model.diffusion_model.middle_block.1.transformer_blocks.0.attn1.to_v.weight"
    write_sd1(tmp_path / "x.safetensors")
    write_sd1(tmp_path / "nan.safetensors", overrides={name: torch.full((8, 8), float("nan"))})
    write_sd1(tmp_path / "bare.safetensors", drop=[name])
    sources = {"x": tmp_path / "x.safetensors"}
    for target, message in (("nan", "holds NaN or Inf"), ("bare", "is missing here")):
        path = tmp_path / f"{target}.safetensors"
        with open_comparison(LAYOUT, sources, path) as comparison, pytest.raises(CheckpointError) as caught:
            build_metric("attention", comparison, ["M00"])
        assert caught.value.problems[0].startswith(f"{path}: tensor {name!r} {message}")
