"""What finished recipes note is read again, as far as it can be understood."""

import hashlib
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from optimizer.analysis import found_ceilings
from optimizer.errors import StudyError
from optimizer.library import HashCache
from optimizer.recipes import Fitted, load_recipe, save_recipe
from optimizer.search import fit, found_result
from optimizer.similarity import AttentionOptions
from optimizer.studies import load_study, noted_searches

STEPS = """\
  - {name: A, mode: add_difference, a: base, b: x, c: base, alpha: {search: [0, 1], blocks: OUT03}}
  - {name: B, mode: weight_sum, a: A, b: y, alpha: {search: [0, 1], blocks: OUT03}}
"""
STAGE = "  - {name: s, metric: attention, strategy: stepwise, trials: 3, seeds: [0], sampler: random}\n"


@pytest.fixture
def fitted(pool, write_study):
    """A study fitted by attention, with what the fit gave."""
    target = pool.plant("two", pool.two_steps({"OUT03": 0.3}, {"OUT03": 0.2}))[0]
    return fit(load_study(write_study(STEPS, STAGE, target)))


def test_what_a_fit_gave_is_found_again(fitted):
    """Searches, trials, similarities before and after, and the spread over random inputs are those of the fit."""
    found = found_result(load_study(fitted.study.folder, with_files=False))

    assert found.written
    assert not found.moved_on
    assert not found.result.interrupted
    assert found.result.recipe.steps == load_recipe(fitted.study.folder / "best.yaml").steps
    for mine, theirs in zip(found.result.searches, fitted.searches, strict=True):
        assert (mine.name, mine.step, mine.parameters) == (theirs.name, theirs.step, theirs.parameters)
        assert [(trial.params, trial.values) for trial in mine.trials] == [(t.params, t.values) for t in theirs.trials]
    for mine, theirs in zip(found.result.scores, fitted.scores, strict=True):
        assert (mine.stage, mine.step, mine.metric) == (theirs.stage, theirs.step, theirs.metric)
        assert mine.before == pytest.approx(theirs.before, abs=1e-9)
        assert mine.after == pytest.approx(theirs.after, abs=1e-9)
    (spread,), (given,) = found.spread, fitted.spread
    assert spread.seeds == given.seeds
    assert spread.totals == pytest.approx(given.totals, abs=1e-9)
    assert spread.fitted == pytest.approx(given.fitted, abs=1e-9)


def test_seed_0_is_a_whole_number(fitted):
    """Random inputs of seed 0, which YAML's reader has a class of its own for, are read as any others."""
    noted = noted_searches(load_recipe(fitted.study.folder / "best.yaml"))
    assert [search.options.of(AttentionOptions).seeds for search in noted] == [[0], [0]]


def test_nonsense_in_what_is_noted_is_passed_over(fitted):
    """Similarities that are no numbers, or none that can be, count as not noted."""
    path = Path(fitted.study.folder / "best.yaml")
    recipe = load_recipe(path)
    recipe.steps[0].similarity["attention"]["blocks"]["OUT03"] = 7.0
    recipe.steps[0].similarity["delta"] = "none"
    spreads = [3, {"stage": "s", "metric": "attention", "seeds": [1], "totals": ["x"]}]
    fitted = Fitted.from_data({**recipe.fitted.to_data(), "other_random_inputs": spreads})
    save_recipe(replace(recipe, fitted=fitted), path)

    found = found_result(load_study(path.parent, with_files=False))

    assert ("A", "attention") not in {(one.step, one.metric) for one in found.result.scores}
    assert ("A", "weights") in {(one.step, one.metric) for one in found.result.scores}
    assert found.spread == ()


def test_recipe_of_other_steps(fitted):
    """A best.yaml that is not of the study's recipe is refused by name."""
    folder = fitted.study.folder
    shutil.copy(folder / "recipe.yaml", folder / "best.yaml")
    text = (folder / "recipe.yaml").read_text(encoding="utf-8").replace("name: A", "name: C").replace("a: A", "a: C")
    (folder / "recipe.yaml").write_text(text, encoding="utf-8")
    with pytest.raises(StudyError, match="its steps are not those of"):
        found_result(load_study(folder, with_files=False))


def test_sources_named_by_hash_are_hashed_once(fitted, pool, tmp_path):
    """Ceilings of a recipe that names a source by its hash: hashing it is told of, and not done again."""
    recipe = fitted.study.folder / "recipe.yaml"
    text = recipe.read_text(encoding="utf-8")
    digest = hashlib.sha256(pool.paths["x"].read_bytes()).hexdigest()
    recipe.write_text(text.replace(f"'{pool.paths['x']}'", f"'{digest}'"), encoding="utf-8")
    told = []

    for _ in range(2):
        told.append(set())
        ceilings, problems = found_ceilings(
            fitted.study.folder, [pool.folder],
            progress=lambda what, done, total: told[-1].add(what), hashes=HashCache(tmp_path / "hashes.json"),
        )  # fmt: skip
        assert (bool(ceilings), problems) == (True, ())

    hashing = f"hashing to find {digest[:10]}"
    assert hashing in told[0]
    assert hashing not in told[1]
