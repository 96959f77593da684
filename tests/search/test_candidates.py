"""The next best recipes, and scores on random inputs that were not fitted on."""

import numpy as np
import pytest
import torch
from step_by_step import attention_by_definition

from optimizer.analysis import simplify_file
from optimizer.checkpoints import open_checkpoint
from optimizer.cli import main
from optimizer.errors import StudyError
from optimizer.library import Library
from optimizer.merging import merge
from optimizer.recipes import Algebra, load_recipe
from optimizer.search import fit
from optimizer.similarity import AttentionOptions, Options, build_metric
from optimizer.studies import load_study, open_study

BLOCKS = ("OUT03", "OUT06")
STEPS = """\
  - {name: T1, mode: add_difference, a: base, b: x, c: base, alpha: {search: [0, 1], blocks: "OUT03,OUT06"}}
  - {name: T2, mode: weight_sum, a: T1, b: y, alpha: {search: [0, 1], blocks: "OUT03,OUT06"}}
"""
STAGE = "  - {name: s, metric: attention, trials: 16, sampler: random, seeds: [1, 2]}\n"


@pytest.fixture(scope="session")
def mixed(pool):
    """A target made of x and y, with noise."""
    steps = pool.two_steps(dict.fromkeys(BLOCKS, 0.6), dict.fromkeys(BLOCKS, 0.2))
    return pool.plant("mixed_target", steps, noise=0.05)


@pytest.fixture
def folder(write_study, mixed):
    """A study of the target."""
    return write_study(STEPS, STAGE, mixed[0])


def coefficients(recipe, block):
    """Return the coefficients of x and y after two steps, computed by hand."""
    first, second = (recipe.step(name).alpha.at(block) for name in ("T1", "T2"))
    return np.array([first * (1 - second), second])


def test_candidates_differ(folder):
    """Candidates are ordered, complete recipes whose coefficients differ from the best recipe's and each other's."""
    result = fit(load_study(folder), candidates=4)

    paths = [folder / "best.yaml", *(folder / f"candidate-{number}.yaml" for number in (2, 3, 4))]
    recipes = [load_recipe(path) for path in paths]
    assert [candidate.recipe for candidate in result.candidates] == recipes[1:]
    losses = [candidate.loss for candidate in result.candidates]
    assert losses == sorted(losses)
    assert losses[0] > 0
    (search,) = result.searches
    for candidate, recipe in zip(result.candidates, recipes[1:], strict=True):
        trial = search.trials[candidate.trial]
        assert candidate.similarity == trial.similarity
        assert recipe.step("T2").similarity["attention"]["total"] == pytest.approx(candidate.similarity, abs=1e-9)
        assert recipe.step("T1").similarity["attention"] != recipes[0].step("T1").similarity["attention"]
        assert recipe.fitted.other_random_inputs is None
        assert recipe.fitted.searches[0].best_trial == candidate.trial
        assert recipe.step("T1").alpha.at("OUT03") == trial.alphas["T1.OUT03"]
    for number, recipe in enumerate(recipes):
        for better in recipes[:number]:
            distance = max(np.abs(coefficients(recipe, block) - coefficients(better, block)).max() for block in BLOCKS)
            assert distance >= 0.05
    skipped = [trial for trial in search.completed if result.candidates[0].similarity < trial.similarity]
    best = recipes[0]
    for trial in skipped:
        for block in BLOCKS:
            first, second = (trial.alphas[f"{name}.{block}"] for name in ("T1", "T2"))
            assert np.abs(np.array([first * (1 - second), second]) - coefficients(best, block)).max() < 0.05


@pytest.mark.parametrize("metric", ["delta", "attention"])
def test_candidates_record_their_similarities(folder, metric):
    """Every similarity in a candidate is that of its alphas, and `simplify` warns of nothing."""
    text = (folder / "study.yaml").read_text(encoding="utf-8")
    (folder / "study.yaml").write_text(text.replace("metric: attention", f"metric: {metric}"), encoding="utf-8")
    result = fit(load_study(folder), candidates=2)
    path = folder / "candidate-2.yaml"
    recipe = load_recipe(path)

    warnings = []
    simplify_file(path, folder / "simple.yaml", tolerance=1e-9, warn=warnings.append)

    assert warnings == []
    with open_study(result.study, Library(), blocks=BLOCKS, device=torch.device("cpu")) as opened:
        comparison = opened.scorable.with_options(Options((AttentionOptions(seeds=[1, 2]),)))
        for name in ("T1", "T2"):
            assert set(recipe.step(name).similarity) == {metric, "explained", "delta", "weights"}
            for label, noted in recipe.step(name).similarity.items():
                scorer = build_metric(label, comparison, BLOCKS, opened.measured.statistics)
                algebra = Algebra(recipe, comparison.groups, tuple(comparison.sources), name)
                scores = scorer.score(algebra.coefficients(algebra.starting_alphas()))[0].tolist()
                assert list(noted["blocks"].values()) == pytest.approx(scores, abs=2e-8)


def test_delta_ignores_the_scale(write_study, mixed):
    """Under delta, recipes that differ only in the length of their difference from the base count as equal."""
    first_step = STEPS.splitlines(keepends=True)[0]
    study = load_study(write_study(first_step, "  - {name: s, metric: delta, trials: 9, sampler: random}\n", mixed[0]))
    assert fit(study, candidates=4).candidates == ()


def test_only_independent_stages_give_candidates(write_study, mixed):
    """Stages over different blocks all give candidates; a stage that a later one builds on gives none."""
    stages = "".join(
        f"  - {{name: {block}, metric: attention, blocks: {block}, trials: 12, sampler: random, seeds: [1]}}\n"
        for block in BLOCKS
    )
    result = fit(load_study(write_study(STEPS, stages, mixed[0], "independent")), candidates=6)
    assert {candidate.search for candidate in result.candidates} == set(BLOCKS)
    losses = [candidate.loss for candidate in result.candidates]
    assert losses == sorted(losses)
    for candidate in result.candidates:
        unsearched = next(block for block in BLOCKS if block != candidate.search)
        assert candidate.recipe.step("T2").alpha.at(unsearched) == result.recipe.step("T2").alpha.at(unsearched)

    stages = "".join(
        f"  - {{name: {step}, steps: [{step}], metric: delta, trials: 12, sampler: random}}\n" for step in ("T1", "T2")
    )
    result = fit(load_study(write_study(STEPS, stages, mixed[0], "downstream")), candidates=6)
    assert {candidate.search for candidate in result.candidates} == {"T2"}


def test_candidates_of_an_earlier_fit_are_removed(folder):
    """A fit removes the candidates of an earlier fit, and no file with a similar name."""
    fit(load_study(folder), candidates=3)
    (folder / "candidate-2.simple.yaml").write_text("mine", encoding="utf-8")
    (folder / "candidate-notes.yaml").write_text("mine", encoding="utf-8")
    recipe, study = folder / "recipe.yaml", folder / "study.yaml"
    recipe.rename(folder / "candidate-9.yaml")
    study.write_text(study.read_text(encoding="utf-8").replace("recipe.yaml", "candidate-9.yaml"), encoding="utf-8")
    kept = ["candidate-2.simple.yaml", "candidate-9.yaml", "candidate-notes.yaml"]

    fit(load_study(folder), candidates=2)
    assert sorted(path.name for path in folder.glob("candidate-*")) == sorted([*kept, "candidate-2.yaml"])
    fit(load_study(folder))
    assert sorted(path.name for path in folder.glob("candidate-*")) == kept


@pytest.mark.parametrize("name", ["best.yaml", "candidate-2.yaml"])
def test_the_recipe_is_not_replaced(folder, name):
    """A study whose recipe has the name of a result is refused, and the recipe stays unchanged."""
    recipe, study = folder / "recipe.yaml", folder / "study.yaml"
    text = recipe.read_text(encoding="utf-8")
    recipe.rename(folder / name)
    study.write_text(study.read_text(encoding="utf-8").replace("recipe.yaml", name), encoding="utf-8")

    with pytest.raises(StudyError, match=f"{name}: is the study's recipe"):
        fit(load_study(folder), candidates=2)
    assert (folder / name).read_text(encoding="utf-8") == text
    with pytest.raises(StudyError, match=r"^candidates: received 0; must be at least 1"):
        fit(load_study(folder), candidates=0)


def test_the_command_lists_its_candidates(folder, capsys, monkeypatch, tmp_path):
    """The command prints the files that it wrote, and reports when fewer recipes differ than requested."""
    monkeypatch.setenv("BLOCKFIT_CACHE", str(tmp_path / "cache"))
    with pytest.raises(SystemExit) as left:
        main(["fit", str(folder), "--candidates", "40", "--device", "cpu"])
    out = capsys.readouterr().out
    assert left.value.code == 0
    assert "candidate-2.yaml" in out
    assert "of 40 recipes: no other trial differs enough" in out
    assert "Similarity on random inputs that were not fitted on" in out


def test_the_spread_is_that_of_the_merged_file(folder, mixed, pool, tmp_path):
    """The spread is the similarity of the merged file, by definition, under seeds that were not fitted on."""
    result = fit(load_study(folder))

    (spread,) = result.spread
    assert (spread.stage, spread.step, spread.metric, spread.seeds) == ("s", "T2", "attention", (0, 3, 4, 5))
    merged = tmp_path / "merged.safetensors"
    merge(result.recipe, pool.paths, merged, dtype=torch.float32)
    with open_checkpoint(merged) as opened:
        tensors = {name: opened.tensor(name) for name in opened.tensors}
    for seed, scores in zip(spread.seeds, spread.scores, strict=True):
        expected = attention_by_definition(tensors, mixed[1], BLOCKS, seed)
        assert scores == pytest.approx(expected, abs=2e-6)
    assert spread.fitted == pytest.approx(result.searches[0].best.similarity, abs=1e-9)
    noted = load_recipe(folder / "best.yaml").fitted.to_data()["other_random_inputs"]
    assert noted == [
        {
            "stage": "s",
            "step": "T2",
            "metric": "attention",
            "seeds": [0, 3, 4, 5],
            "totals": [round(total, 9) for total in spread.totals],
        }
    ]


def test_a_metric_without_random_inputs_has_no_spread(write_study, mixed):
    """A metric without random inputs has no spread."""
    study = load_study(write_study(STEPS, "  - {name: s, metric: delta, trials: 2}\n", mixed[0]))
    result = fit(study)
    assert result.spread == ()
    assert result.recipe.fitted.other_random_inputs is None


def test_tf32_is_part_of_the_study(folder):
    """Trials with and without tf32 are not mixed; on a CPU their scores are equal."""
    exact = fit(load_study(folder))
    text = (folder / "study.yaml").read_text(encoding="utf-8")
    (folder / "study.yaml").write_text(text.replace("seeds: [1, 2]", "seeds: [1, 2], tf32: true"), encoding="utf-8")
    with pytest.raises(StudyError, match="tf32"):
        fit(load_study(folder))
    fast = fit(load_study(folder), fresh=True)
    assert [trial.similarity for trial in fast.searches[0].trials] == [
        trial.similarity for trial in exact.searches[0].trials
    ]


def test_a_tied_alpha_in_two_stages(write_study, mixed):
    """If a later stage changes an earlier one's scores, all recorded scores are those of the final alphas."""
    tied = STEPS.replace('blocks: "OUT03,OUT06"', 'blocks: "OUT03,OUT06", tie: true')
    stages = "".join(
        f"  - {{name: {block}, metric: attention, blocks: {block}, trials: 8, sampler: random, seeds: [1]}}\n"
        for block in BLOCKS
    )
    result = fit(load_study(write_study(tied, stages, mixed[0])), candidates=4)

    assert result.candidates == ()
    with open_study(result.study, Library(), blocks=BLOCKS, device=torch.device("cpu")) as opened:
        comparison = opened.scorable.with_options(Options((AttentionOptions(seeds=[1]),)))
        for block in BLOCKS:
            metric = build_metric("attention", comparison, (block,))
            algebra = Algebra(result.recipe, comparison.groups, tuple(comparison.sources), "T2")
            score = float(metric.score(algebra.coefficients(algebra.starting_alphas())))
            noted = result.recipe.step("T2").similarity["attention"]["blocks"][block]
            assert noted == pytest.approx(score, abs=1e-8)
            (spread,) = [scored for scored in result.spread if scored.stage == block]
            assert spread.fitted == pytest.approx(score, abs=1e-8)
    stages = [scored.stage for scored in result.scores]
    assert stages == sorted(stages)
