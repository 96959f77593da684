"""The next best recipes, and how results do on random inputs that were not fitted on."""

import numpy as np
import pytest
import torch
from step_by_step import attention_by_definition

from optimizer.checkpoints import open_checkpoint
from optimizer.cli import main
from optimizer.errors import StudyError
from optimizer.recipes import load_recipe, merge
from optimizer.search import fit, load_study

BLOCKS = ("OUT03", "OUT06")
STEPS = """\
  - {name: T1, mode: add_difference, a: base, b: x, c: base, alpha: {search: [0, 1], blocks: "OUT03,OUT06"}}
  - {name: T2, mode: weight_sum, a: T1, b: y, alpha: {search: [0, 1], blocks: "OUT03,OUT06"}}
"""
STAGE = "  - {name: s, metric: attention, trials: 16, sampler: random, seeds: [1, 2]}\n"


@pytest.fixture(scope="session")
def mixed(pool):
    """A target of x and y with something of its own."""
    steps = [
        {
            "name": "A",
            "mode": "add_difference",
            "a": "base",
            "b": "x",
            "c": "base",
            "alpha": dict.fromkeys(BLOCKS, 0.6),
        },
        {"name": "B", "mode": "weight_sum", "a": "A", "b": "y", "c": None, "alpha": dict.fromkeys(BLOCKS, 0.2)},
    ]
    return pool.plant("mixed_target", steps, noise=0.05)


@pytest.fixture
def folder(write_study, mixed):
    """A study of it."""
    return write_study(STEPS, STAGE, mixed[0])


def coefficients(recipe, block):
    """The shares of x and y in the two steps, by hand."""
    first, second = (recipe.step(name).alpha.at(block) for name in ("T1", "T2"))
    return np.array([first * (1 - second), second])


def test_candidates_differ(folder):
    """They are in order, differ from the best and from each other in what they merge, and are finished recipes."""
    result = fit(load_study(folder), candidates=4)

    paths = [folder / "best.yaml", *(folder / f"candidate-{number}.yaml" for number in (2, 3, 4))]
    recipes = [load_recipe(path) for path in paths]
    assert [one.recipe for one in result.candidates] == recipes[1:]
    losses = [one.loss for one in result.candidates]
    assert losses == sorted(losses)
    assert losses[0] > 0
    (search,) = result.searches
    for one, recipe in zip(result.candidates, recipes[1:], strict=True):
        trial = search.trials[one.trial]
        assert one.similarity == trial.values[0]
        assert recipe.step("T2").similarity["attention"]["total"] == pytest.approx(one.similarity, abs=1e-9)
        assert recipe.step("T1").similarity is None
        assert recipe.fitted["searches"][0]["best_trial"] == one.trial
        assert recipe.step("T1").alpha.at("OUT03") == trial.params["T1.OUT03"]
    for number, recipe in enumerate(recipes):
        for other in recipes[:number]:
            apart = max(np.abs(coefficients(recipe, block) - coefficients(other, block)).max() for block in BLOCKS)
            assert apart >= 0.05
    better = [trial for trial in search.completed if result.candidates[0].similarity < trial.values[0]]
    best = recipes[0]
    for trial in better:
        for block in BLOCKS:
            first, second = (trial.params[f"{name}.{block}"] for name in ("T1", "T2"))
            assert np.abs(np.array([first * (1 - second), second]) - coefficients(best, block)).max() < 0.05


def test_fewer_candidates(folder):
    """An earlier fit's are removed; without the option none are written or touched."""
    fit(load_study(folder), candidates=3)
    fit(load_study(folder))
    assert sorted(path.name for path in folder.glob("candidate-*")) == ["candidate-2.yaml", "candidate-3.yaml"]
    fit(load_study(folder), candidates=2)
    assert [path.name for path in folder.glob("candidate-*")] == ["candidate-2.yaml"]
    with pytest.raises(StudyError, match="--candidates: received 0; must be at least 1"):
        fit(load_study(folder), candidates=0)


def test_command(folder, capsys, monkeypatch, tmp_path):
    """The command prints what it wrote, and says when there are not as many."""
    monkeypatch.setenv("BLOCKFIT_CACHE", str(tmp_path / "cache"))
    with pytest.raises(SystemExit) as left:
        main(["fit", str(folder), "--candidates", "40", "--device", "cpu"])
    out = capsys.readouterr().out
    assert left.value.code == 0
    assert "candidate-2.yaml" in out
    assert "of 40 recipes: no other trial differs enough" in out
    assert "Similarity on random inputs that were not fitted on" in out


def test_other_random_inputs(folder, mixed, pool, tmp_path):
    """The spread is the similarity of the merged file, by its definition, under seeds that were not fitted on."""
    result = fit(load_study(folder))

    (spread,) = result.spread
    assert (spread.stage, spread.step, spread.metric, spread.seeds) == ("s", "T2", "attention", (0, 3, 4, 5))
    merged = tmp_path / "merged.safetensors"
    merge(result.recipe, pool.paths, merged, dtype=torch.float32)
    with open_checkpoint(merged) as opened:
        tensors = {name: opened.tensor(name) for name in opened.tensors}
    for seed, scores in zip(spread.seeds, spread.scores, strict=True):
        wanted = attention_by_definition(tensors, mixed[1], BLOCKS, seed)
        assert scores == pytest.approx(wanted, abs=2e-6)
    assert spread.fitted == pytest.approx(result.searches[0].best.values[0], abs=1e-9)
    noted = load_recipe(folder / "best.yaml").fitted["other_random_inputs"]
    assert noted == [
        {
            "stage": "s",
            "step": "T2",
            "metric": "attention",
            "seeds": [0, 3, 4, 5],
            "totals": [round(total, 9) for total in spread.totals],
        }
    ]


def test_no_random_inputs_no_spread(write_study, mixed):
    """A metric that draws nothing has none."""
    study = load_study(write_study(STEPS, "  - {name: s, metric: delta, trials: 2}\n", mixed[0]))
    result = fit(study)
    assert result.spread == ()
    assert "other_random_inputs" not in result.recipe.fitted


def test_tf32_is_part_of_the_study(folder):
    """Trials in another precision are other trials; on a processor the scores are the same."""
    exact = fit(load_study(folder))
    text = (folder / "study.yaml").read_text(encoding="utf-8")
    (folder / "study.yaml").write_text(text.replace("seeds: [1, 2]", "seeds: [1, 2], tf32: true"), encoding="utf-8")
    with pytest.raises(StudyError, match="tf32"):
        fit(load_study(folder))
    fast = fit(load_study(folder), fresh=True)
    assert [trial.values for trial in fast.searches[0].trials] == [trial.values for trial in exact.searches[0].trials]
