"""The records in fitted recipes are read again; invalid parts count as missing."""

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
    """The result of a study fitted by attention."""
    target = pool.plant("two", pool.two_steps({"OUT03": 0.3}, {"OUT03": 0.2}))[0]
    return fit(load_study(write_study(STEPS, STAGE, target)))


def test_the_result_of_a_fit_is_read_again(fitted):
    """Searches, trials, similarities and the spread over random inputs are those of the fit."""
    found = found_result(load_study(fitted.study.folder, with_files=False))

    assert found.written
    assert not found.moved_on
    assert not found.result.interrupted
    assert found.result.recipe.steps == load_recipe(fitted.study.folder / "best.yaml").steps
    for read, given in zip(found.result.searches, fitted.searches, strict=True):
        assert (read.name, read.step, read.parameters) == (given.name, given.step, given.parameters)
        assert read.trials == given.trials
    for read, given in zip(found.result.scores, fitted.scores, strict=True):
        assert (read.stage, read.step, read.metric) == (given.stage, given.step, given.metric)
        assert read.before == pytest.approx(given.before, abs=1e-9)
        assert read.after == pytest.approx(given.after, abs=1e-9)
    (spread,), (given,) = found.spread, fitted.spread
    assert spread.seeds == given.seeds
    assert spread.totals == pytest.approx(given.totals, abs=1e-9)
    assert spread.fitted == pytest.approx(given.fitted, abs=1e-9)


def test_seed_0_is_a_whole_number(fitted):
    """Seed 0, for which the YAML reader has a class of its own, is read as an integer."""
    noted = noted_searches(load_recipe(fitted.study.folder / "best.yaml"))
    assert [search.options.of(AttentionOptions).seeds for search in noted] == [[0], [0]]


def test_invalid_records_are_ignored(fitted):
    """Similarities that are not numbers, or out of range, count as missing."""
    path = Path(fitted.study.folder / "best.yaml")
    recipe = load_recipe(path)
    recipe.steps[0].similarity["attention"]["blocks"]["OUT03"] = 7.0
    recipe.steps[0].similarity["delta"] = "none"
    spreads = [3, {"stage": "s", "metric": "attention", "seeds": [1], "totals": ["x"]}]
    fitted = Fitted.from_data({**recipe.fitted.to_data(), "other_random_inputs": spreads})
    save_recipe(replace(recipe, fitted=fitted), path)

    found = found_result(load_study(path.parent, with_files=False))

    assert ("A", "attention") not in {(scored.step, scored.metric) for scored in found.result.scores}
    assert ("A", "weights") in {(scored.step, scored.metric) for scored in found.result.scores}
    assert found.spread == ()


def test_a_best_yaml_of_other_steps_is_refused(fitted):
    """A best.yaml whose steps are not those of the study's recipe is refused by name."""
    folder = fitted.study.folder
    shutil.copy(folder / "recipe.yaml", folder / "best.yaml")
    text = (folder / "recipe.yaml").read_text(encoding="utf-8").replace("name: A", "name: C").replace("a: A", "a: C")
    (folder / "recipe.yaml").write_text(text, encoding="utf-8")
    with pytest.raises(StudyError, match="its steps are not those of"):
        found_result(load_study(folder, with_files=False))


def test_sources_named_by_hash_are_hashed_once(fitted, pool, tmp_path):
    """The search for a source by its hash is reported, and not repeated for the next ceilings."""
    recipe = fitted.study.folder / "recipe.yaml"
    text = recipe.read_text(encoding="utf-8")
    digest = hashlib.sha256(pool.paths["x"].read_bytes()).hexdigest()
    recipe.write_text(text.replace(f"'{pool.paths['x']}'", f"'{digest}'"), encoding="utf-8")
    reported = []

    for _ in range(2):
        reported.append(set())
        ceilings, problems = found_ceilings(
            fitted.study.folder, [pool.folder],
            progress=lambda activity, done, total: reported[-1].add(activity),
            hashes=HashCache(tmp_path / "hashes.json"),
        )  # fmt: skip
        assert (bool(ceilings), problems) == (True, ())

    hashing = f"hashing to find {digest[:10]}"
    assert hashing in reported[0]
    assert hashing not in reported[1]
