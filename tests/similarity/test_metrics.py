"""The metrics in weight space agree with stepwise merges in float64 and comparisons of whole tensors."""

import pytest
import torch
from step_by_step import BLOCKS, block_of, merge_by_steps, merged_names

from optimizer.errors import CheckpointError, StudyError
from optimizer.families import load_layout
from optimizer.recipes import Algebra, Alpha, Model, Recipe, Step
from optimizer.similarity import METRICS, Combined, build_metric, measure_statistics, open_comparison

LAYOUT = load_layout("sd1")


def steps_at(seed):
    """Return two steps over base, x, y with different alphas for every block, some outside 0..1."""
    numbers = (torch.rand(2, 26, generator=torch.Generator().manual_seed(seed)) * 1.6 - 0.3).tolist()
    first, second = (dict(zip(BLOCKS, row, strict=True)) for row in numbers)
    return [
        {"name": "T1", "mode": "add_difference", "a": "base", "b": "x", "c": "base", "alpha": first},
        {"name": "T2", "mode": "weight_sum", "a": "T1", "b": "y", "c": None, "alpha": second},
    ]


def recipe_of(steps):
    """Return the steps as a Recipe."""
    models = {name: Model(name) for name in ("base", "x", "y")}
    made = tuple(Step(s["name"], s["mode"], s["a"], s["b"], s["c"], Alpha(s["alpha"])) for s in steps)
    return Recipe("r", LAYOUT, models, made, steps[-1]["name"])


def vectors(kin, steps, block):
    """Return {tensor: (merged, target, base)} of a block's scored tensors, flat, in float64; base may be None."""
    merged = merge_by_steps(steps, kin.tensors)[steps[-1]["name"]]
    target, base = kin.tensors["target"], kin.tensors["base"]
    return {
        name: (
            value.flatten(),
            target[name].double().flatten(),
            base[name].double().flatten() if name in base else None,
        )
        for name, value in merged.items()
        if block_of(name) == block and not name.startswith("first_stage_model.") and name in merged_names(target)
    }


def cosine(first, second):
    """Return the cosine of two vectors; 0 if one is 0."""
    size = float(first.norm() * second.norm())
    return float(first @ second) / size if size else 0.0


def expected(metric, kin, steps, block):
    """Return a block's similarity by the metric's definition."""
    held = vectors(kin, steps, block)
    assert held
    if metric == "elements":
        return sum(cosine(merged, target) for merged, target, _ in held.values()) / len(held)
    if metric == "delta":
        known = [(merged - base, target - base) for merged, target, base in held.values() if base is not None]
    else:
        known = [(merged, target) for merged, target, _ in held.values()]
    return cosine(torch.cat([first for first, _ in known]), torch.cat([second for _, second in known]))


@pytest.fixture(scope="module")
def scorer(kin):
    """Return score(metric, steps, blocks): similarities of candidates (lists of steps) from the code under test."""
    sources = {name: kin.paths[name] for name in ("base", "x", "y")}
    with open_comparison(LAYOUT, sources, kin.paths["target"], base=kin.paths["base"]) as comparison:
        statistics = measure_statistics(comparison, BLOCKS)

        def score(metric, candidates, blocks=BLOCKS, output=None):
            built = build_metric(metric, comparison, blocks, statistics)
            algebras = [Algebra(recipe_of(steps), comparison.groups, tuple(sources), output) for steps in candidates]
            rows = torch.cat([algebra.coefficients(algebra.starting_alphas()) for algebra in algebras])
            return built.blocks, built.score(rows)

        score.comparison, score.statistics = comparison, statistics
        yield score


@pytest.mark.parametrize("metric", ["weights", "delta", "elements"])
def test_metric_is_its_definition(kin, scorer, metric):
    """Similarities from Gram matrices equal those of tensors merged in float64 to 1e-9, missing tensors included."""
    candidates = [steps_at(seed) for seed in range(3)]

    blocks, scores = scorer(metric, candidates)

    assert blocks == BLOCKS
    assert scores.dtype == torch.float64
    for row, steps in zip(scores.tolist(), candidates, strict=True):
        for block, found in zip(BLOCKS, row, strict=True):
            assert found == pytest.approx(expected(metric, kin, steps, block), abs=1e-9), block


def test_a_score_depends_on_its_candidate_alone(scorer):
    """A candidate's scores depend neither on other candidates nor on the selected blocks."""
    candidates = [steps_at(seed) for seed in range(4)]
    for metric in ("weights", "delta", "elements"):
        _, together = scorer(metric, candidates)
        alone = torch.cat([scorer(metric, [steps])[1] for steps in candidates])
        _, few = scorer(metric, candidates, ("OUT07", "BASE"))
        torch.testing.assert_close(together, alone, rtol=0, atol=1e-14)
        torch.testing.assert_close(few, together[:, [BLOCKS.index("BASE"), BLOCKS.index("OUT07")]], rtol=0, atol=1e-14)


def test_delta_of_the_base_is_0(kin, scorer):
    """The base itself has delta 0 in every block, although its weights are similar."""
    nothing = steps_at(0)
    for step in nothing:
        step["alpha"] = dict.fromkeys(BLOCKS, 0.0)

    _, delta = scorer("delta", [nothing])
    _, weights = scorer("weights", [nothing])

    assert delta.tolist() == [[0.0] * 26]
    assert 0.5 < float(weights.min()) < float(weights.max()) < 1


@pytest.mark.parametrize("metric", ["weights", "delta", "elements"])
def test_target_itself_scores_1(kin, metric):
    """A candidate equal to the target scores 1 everywhere."""
    sources = {"base": kin.paths["base"], "x": kin.paths["x"]}
    with open_comparison(LAYOUT, sources, kin.paths["x"], base=kin.paths["base"]) as comparison:
        built = build_metric(metric, comparison, BLOCKS, measure_statistics(comparison, BLOCKS))
        rows = torch.tensor([0.0, 1.0], dtype=torch.float64).expand(1, len(comparison.groups), 2)
        torch.testing.assert_close(built.score(rows), torch.ones(1, 26, dtype=torch.float64), rtol=0, atol=1e-9)


def test_scale_is_the_best_factor(kin, scorer):
    """The best factor on the merged difference is its product with the target's over its own square."""
    steps = steps_at(3)
    comparison = scorer.comparison
    built = build_metric("delta", comparison, ["OUT06"], scorer.statistics)
    algebra = Algebra(recipe_of(steps), comparison.groups, ("base", "x", "y"))

    found = float(built.scale(algebra.coefficients(algebra.starting_alphas()))[0, 0])

    held = vectors(kin, steps, "OUT06").values()
    merged = torch.cat([merged_values - base for merged_values, _, base in held])
    target = torch.cat([target_values - base for _, target_values, base in held])
    assert found == pytest.approx(float(merged @ target / (merged @ merged)), rel=1e-9)


def test_the_vae_never_scores(kin, tmp_path, write_sd1, sd1_tensors):
    """The VAE's tensors do not change a similarity: BASE is the text encoder."""
    base = sd1_tensors(seed=0, width=16)
    other = write_sd1(
        tmp_path / "target.safetensors",
        width=16,
        around=base,
        seed=3,
        overrides={name: value * -5 for name, value in base.items() if name.startswith("first_stage_model.")},
    )
    assert not torch.equal(
        other["first_stage_model.decoder.conv_out.weight"],
        kin.tensors["target"]["first_stage_model.decoder.conv_out.weight"],
    )
    sources = {name: kin.paths[name] for name in ("base", "x")}
    rows = []
    for target in (kin.paths["target"], tmp_path / "target.safetensors"):
        with open_comparison(LAYOUT, sources, target, base=kin.paths["base"]) as comparison:
            statistics = measure_statistics(comparison, ["BASE"])
            half = torch.full((1, len(comparison.groups), 2), 0.5, dtype=torch.float64)
            rows.append(
                [
                    float(build_metric(name, comparison, ["BASE"], statistics).score(half))
                    for name in ("weights", "delta", "elements")
                ]
            )
    assert rows[0] == rows[1]


def test_metrics_can_be_combined(scorer):
    """Two metrics on distinct blocks score side by side."""
    comparison, statistics = scorer.comparison, scorer.statistics
    weights = build_metric("weights", comparison, ["OUT03"], statistics)
    delta = build_metric("delta", comparison, ["IN01", "OUT00"], statistics)
    algebra = Algebra(recipe_of(steps_at(1)), comparison.groups, ("base", "x", "y"))
    rows = algebra.coefficients(algebra.starting_alphas())

    both = Combined([weights, delta])

    assert both.blocks == ("OUT03", "IN01", "OUT00")
    assert both.score(rows).tolist() == [[*weights.score(rows)[0].tolist(), *delta.score(rows)[0].tolist()]]


def test_unknown_metrics_and_blocks_are_refused(kin, scorer):
    """An unknown metric, a block that a metric cannot see, and a missing base are refused by name."""
    with pytest.raises(
        StudyError, match="metric: received 'cosine'; must be one of explained, delta, weights, elements"
    ):
        build_metric("cosine", scorer.comparison, ["OUT03"], scorer.statistics)
    for block in ("IN09", "OUT00", "BASE"):
        with pytest.raises(StudyError, match=f"{block} cannot be measured by 'attention'; it sees IN01-IN02"):
            build_metric("attention", scorer.comparison, ["OUT03", block])
    with open_comparison(LAYOUT, {"x": kin.paths["x"]}, kin.paths["target"]) as comparison:
        statistics = measure_statistics(comparison, ["OUT03"])
        with pytest.raises(StudyError, match="'delta' needs a base"):
            build_metric("delta", comparison, ["OUT03"], statistics)
        assert (
            0.9
            < float(
                build_metric("weights", comparison, ["OUT03"], statistics).score(
                    torch.ones(1, len(comparison.groups), 1, dtype=torch.float64)
                )
            )
            < 1
        )


def test_missing_file_is_refused(kin):
    """A missing source is refused by name."""
    with (
        pytest.raises(CheckpointError, match="gone"),
        open_comparison(LAYOUT, {"x": kin.folder / "gone.safetensors"}, kin.paths["target"]),
    ):
        pass


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
@pytest.mark.parametrize("name", list(METRICS))
def test_gpu_agrees_with_the_cpu(kin, name):
    """Every metric gives the CPU's scores on a GPU, to 1e-5."""
    sources = {key: kin.paths[key] for key in ("base", "x", "y")}
    blocks = [block for block in METRICS[name].sees(LAYOUT) if block != "OUT07"]
    scores = []
    for device in ("cpu", "cuda"):
        with open_comparison(
            LAYOUT, sources, kin.paths["target"], base=kin.paths["base"], device=torch.device(device)
        ) as comparison:
            statistics = measure_statistics(comparison, blocks) if METRICS[name].reads_statistics else None
            algebra = Algebra(recipe_of(steps_at(1)), comparison.groups, tuple(sources))
            rows = algebra.coefficients(algebra.starting_alphas()).repeat(3, 1, 1)
            scores.append(build_metric(name, comparison, blocks, statistics).score(rows))
    assert scores[1].device.type == "cpu"
    torch.testing.assert_close(scores[0], scores[1], rtol=0, atol=1e-5)
