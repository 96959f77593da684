"""The best trial: the highest similarity within 1e-9, then the smallest |merged - target|, then the lowest number."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from optimizer.search import Trial, TrialState, fit
from optimizer.search.trials.best import best_of, ranked
from optimizer.studies import load_study

STEPS = "  - {name: T, mode: add_difference, a: base, b: x, c: base, alpha: {search: [0, 1], blocks: 'M00,OUT03'}}\n"


def trials(rows):
    """Return completed trials with these (similarity, distance); the distance is None if not measured."""
    return [
        Trial(number, TrialState.COMPLETE, {}, similarity=value, distance=distance)
        for number, (value, distance) in enumerate(rows)
    ]


@pytest.mark.parametrize(
    ("rows", "best"),
    [
        ([(0.5, 1.0), (0.6, 2.0), (0.4, 0.1)], 1),
        ([(0.5, 0.3), (0.5 + 4e-16, 0.4)], 0),
        ([(0.5, 0.3), (0.5 + 9e-10, 0.2)], 1),
        ([(0.5, 0.3), (0.5 - 9e-10, 0.2)], 1),
        ([(0.5, 0.2), (0.5 + 2e-9, 0.4)], 1),
        ([(0.5, 0.3), (0.5, 0.3 - 1e-12)], 0),
        ([(0.5, 0.3), (0.5, 0.3)], 0),
        ([(0.5, None), (0.5 + 1e-12, 0.1)], 0),
        ([(0.5, None), (0.5 + 1e-12, None), (0.7, None)], 2),
        ([(0.5, float("nan")), (0.5, 0.1)], 0),
        ([], None),
    ],
)
def test_rounding_does_not_choose_the_best(rows, best):
    """Among equal similarities the distance decides, or the number if a distance was not measured."""
    found = best_of(trials(rows))
    assert (None if found is None else found.number) == best


@given(st.lists(st.tuples(st.sampled_from([0.1, 0.5, 0.5 + 1e-12, 0.9]), st.sampled_from([0.1, 0.2])), max_size=8))
def test_each_ranked_trial_is_the_best_of_the_rest(rows):
    """Each trial in the ranking is the best of those that follow."""
    made = trials(rows)
    found = ranked(made)
    assert sorted(trial.number for trial in found) == list(range(len(rows)))
    left = list(made)
    for trial in found:
        assert trial.number == best_of(left).number
        left = [remaining for remaining in left if remaining.number != trial.number]


@pytest.mark.parametrize("metric", ["delta", "explained", "weights", "elements", "attention"])
@pytest.mark.parametrize("sampler", ["random", "blockwise"])
def test_the_exact_optimum_stays_the_best(write_study, pool, metric, sampler):
    """The trial at the exact optimum of a planted step stays the best under every metric."""
    steps = [{"name": "T", "mode": "add_difference", "a": "base", "b": "x", "c": "base",
              "alpha": {"M00": 0.3, "OUT03": 0.7}}]  # fmt: skip
    path, _ = pool.plant("ranked_target", steps)
    stage = f"  - {{name: s, metric: {metric}, trials: 12, sampler: {sampler}, seeds: [1]}}\n"
    (search,) = fit(load_study(write_study(STEPS, stage, path))).searches
    assert search.best.number == 0
    assert search.best.alphas == pytest.approx({"T.M00": 0.3, "T.OUT03": 0.7}, abs=1e-5)
    assert search.best.distance == min(trial.distance for trial in search.completed)
