"""The block-wise sampler needs few trials, never repeats one, and keeps no state."""

import sys

import numpy as np
import optuna
import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import TrialState

from optimizer.samplers import BlockwiseSampler

UNIT = FloatDistribution(0, 1)


def search(functions, trials, *, seed=0, attribute="block_scores", direction="maximize", space=None, blocks=None):
    """Run so many trials of a sum of functions, {block: function of the trial's parameters}, and return the study.

    The sampler is made anew for every trial, as in `fit`. `attribute` is the user attribute for the blocks' scores.
    """
    space = space or dict.fromkeys(functions, UNIT)
    study = optuna.create_study(direction=direction)
    while len(study.get_trials(deepcopy=False)) < trials:
        study.sampler = BlockwiseSampler(seed=seed, blocks=blocks)
        trial = study.ask(space)
        scores = {block: float(function(trial.params)) for block, function in functions.items()}
        if attribute:
            trial.set_user_attr(attribute, scores)
        study.tell(trial, sum(scores.values()) / len(scores))
    return study


def values(study, name):
    """Return a parameter's values in the order of the trials."""
    return [trial.params[name] for trial in study.get_trials(deepcopy=False)]


def separable(kind, random, count=26):
    """Return `count` smooth functions of one number each, and the mean of their maxima over 0 .. 1.

    A quarter of the maxima is at or beyond a bound.
    """
    shapes = {
        "parabola": lambda x, c, w: 1 - 2 * w * (x - c) ** 2,
        "cosine": lambda x, c, w: np.cos(2 * w * (x - c)),
        "bell": lambda x, c, w: np.exp(-((x - c) ** 2) / w),
    }
    centres = random.uniform(0, 1, count)
    centres[::8], centres[4::8] = random.uniform(-0.2, 0, len(centres[::8])), 1.0
    widths = random.uniform(0.15, 1, count)
    functions = {
        f"x{n}": lambda params, n=n, c=c, w=w: shapes[kind](params[f"x{n}"], c, w)
        for n, (c, w) in enumerate(zip(centres, widths, strict=True))
    }
    best = np.mean([shapes[kind](c.clip(0, 1), c, w) for c, w in zip(centres, widths, strict=True)])
    return functions, best


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("kind", ["parabola", "cosine", "bell"])
def test_nine_trials_maximise_smooth_functions(kind, seed):
    """For 26 smooth functions one of nine trials reaches the best mean to 1e-6, wherever the maxima are."""
    functions, best = separable(kind, np.random.default_rng(seed))
    study = search(functions, 9, seed=seed)
    assert -1e-12 < best - study.best_value < 1e-6


def bumpy(random):
    """Return a hump with two waves on 0 .. 1 that has two to four local maxima, and its maximum over 1001 points."""
    grid = np.linspace(0, 1, 1001)
    while True:
        centre, first, second = random.uniform(0, 1, 3)
        slow, fast = random.uniform(1, 2), random.uniform(2, 3.8)
        small, large = random.uniform(0.02, 0.1, 2)

        def function(x, c=centre, p=first, q=second, s=slow, f=fast, a=small, b=large):
            waves = a * np.sin(2 * np.pi * (s * x + p)) + b * np.sin(2 * np.pi * (f * x + q))
            return 0.8 - 0.4 * (x - c) ** 2 + waves

        heights = function(grid)
        padded = np.concatenate([[-np.inf], heights, [-np.inf]])
        if 2 <= np.sum((padded[1:-1] > padded[:-2]) & (padded[1:-1] > padded[2:])) <= 4:
            return function, heights.max()


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_global_maxima_are_found_among_local_ones(seed):
    """Nine functions with up to four local maxima, and their mean, come within 1e-4 of their maxima in 40 trials."""
    random = np.random.default_rng(seed)
    found = {f"OUT{n:02}": bumpy(random) for n in range(3, 12)}
    functions = {name: lambda params, n=name, f=f: f(params[n]) for name, (f, _) in found.items()}

    study = search(functions, 40, seed=seed)

    scores = [trial.user_attrs["block_scores"] for trial in study.get_trials(deepcopy=False)]
    for name, (_, best) in found.items():
        assert max(score[name] for score in scores) > best - 1e-4
    assert study.best_value > np.mean([best for _, best in found.values()]) - 1e-4


@pytest.mark.parametrize("direction", ["minimize", "maximize"])
def test_both_directions_are_optimised(direction):
    """Scores are maximised or minimised as the study's direction requires."""
    sign = 1 if direction == "maximize" else -1
    functions = {"x": lambda p: -sign * (p["x"] - 0.3) ** 2, "y": lambda p: sign * np.cos(p["y"] - 0.9)}
    study = search(functions, 9, direction=direction)
    assert study.best_params == pytest.approx({"x": 0.3, "y": 0.9}, abs=1e-3)


def test_value_without_block_scores_is_enough():
    """Without block scores the value is split into functions of one number: 30 trials suffice for 4 parameters."""
    centres = dict(zip("abcd", np.random.default_rng(0).uniform(0, 1, 4), strict=True))
    functions = {name: lambda p, n=name, c=c: np.cos(p[n] - c) for name, c in centres.items()}
    study = search(functions, 30, attribute=None)
    assert study.best_value > 1 - 1e-5
    assert study.best_params == pytest.approx(centres, abs=0.02)


def cosines(random, blocks, parameters):
    """Return a function of points [blocks, parameters]: cosines [blocks] of linear combinations with targets.

    The targets are such combinations with the same shares, between 0.1 and 0.7, so all cosines can be 1 at once.
    """
    sources = random.normal(size=(blocks, parameters, 40)) + 0.6 * random.normal(size=(blocks, 1, 40))
    start = random.normal(size=(blocks, 40))
    target = start + np.einsum("p,bpd->bd", random.uniform(0.1, 0.7, parameters), sources)

    def score(point):
        merged = start + np.einsum("bp,bpd->bd", point, sources)
        return (merged * target).sum(axis=1) / np.linalg.norm(merged, axis=1) / np.linalg.norm(target, axis=1)

    return score


@pytest.mark.parametrize("tied", [False, True])
def test_shared_parameters_need_fewer_trials_than_tpe(tied):
    """For three blocks of six parameters, tied or not, the regret is below a tenth of TPE's after 40 trials."""
    score = cosines(np.random.default_rng(1), 3, 6)
    blocks = {f"b{b}": [f"x{p}" if tied else f"b{b}.x{p}" for p in range(6)] for b in range(3)}
    space = {name: UNIT for names in blocks.values() for name in names}

    def regret(sampler):
        study = optuna.create_study(direction="maximize", sampler=sampler)
        for _ in range(40):
            trial = study.ask(space)
            scores = score(np.array([[trial.params[name] for name in names] for names in blocks.values()]))
            trial.set_user_attr("block_scores", dict(zip(blocks, scores.tolist(), strict=True)))
            study.tell(trial, float(scores.mean()))
        return 1 - study.best_value

    ours = regret(BlockwiseSampler(seed=1, blocks=blocks))

    assert 0 <= ours < regret(optuna.samplers.TPESampler(seed=1)) / 10


def test_tied_parameter_maximises_the_sum():
    """A parameter that moves several blocks ends at the maximum of their sum, not of one of them."""
    centres = {"b0": 0.2, "b1": 0.3, "b2": 0.85}
    functions = {block: lambda p, c=c: 1 - (p["x"] - c) ** 2 for block, c in centres.items()}
    functions["b3"] = lambda p: 1 - (p["y"] - 0.5) ** 2
    blocks = {"b0": ["x"], "b1": ["x"], "b2": ["x"], "b3": ["y"]}
    study = search(functions, 9, space={"x": UNIT, "y": UNIT}, blocks=blocks)
    assert study.best_params == pytest.approx({"x": np.mean(list(centres.values())), "y": 0.5}, abs=1e-3)


def test_block_scores_count_and_not_the_value():
    """The sampler finds the maxima of two block scores although the trials' value is constant."""
    functions = {"x": lambda p: -((p["x"] - 0.4) ** 2), "y": lambda p: -((p["y"] - 0.6) ** 2)}
    study = optuna.create_study(direction="maximize", sampler=BlockwiseSampler(seed=0))
    for _ in range(9):
        trial = study.ask(dict.fromkeys(functions, UNIT))
        trial.set_user_attr("block_scores", {name: function(trial.params) for name, function in functions.items()})
        study.tell(trial, 0.5)
    assert study.trials[-1].params == pytest.approx({"x": 0.4, "y": 0.6}, abs=1e-3)


def test_sampler_keeps_no_state():
    """A new sampler for each trial, a single one, and one that resumes half-way propose the same points."""
    functions, _ = separable("bell", np.random.default_rng(3), count=4)
    anew = search(functions, 14, seed=5)
    kept = optuna.create_study(direction="maximize", sampler=BlockwiseSampler(seed=5))
    for _ in range(14):
        trial = kept.ask(dict.fromkeys(functions, UNIT))
        scores = {name: float(function(trial.params)) for name, function in functions.items()}
        trial.set_user_attr("block_scores", scores)
        kept.tell(trial, sum(scores.values()) / 4)
    resumed = optuna.create_study(direction="maximize", sampler=BlockwiseSampler(seed=5))
    resumed.add_trials(anew.get_trials()[:9])

    assert [trial.params for trial in kept.trials] == [trial.params for trial in anew.trials]
    assert resumed.ask(dict.fromkeys(functions, UNIT)).params == anew.trials[9].params


def test_another_seed_starts_elsewhere():
    """Another seed leads to other first points."""
    functions, _ = separable("bell", np.random.default_rng(3), count=2)
    assert values(search(functions, 2, seed=0), "x0") != values(search(functions, 2, seed=1), "x0")


@pytest.mark.parametrize("attribute", ["block_scores", None])
def test_no_trial_repeats_another(attribute):
    """All trials differ, even long after the best is found; a component repeats its best point only to gather."""
    functions = {"x": lambda p: -((p["x"] - 0.3) ** 2), "y": lambda p: -((p["y"] - 0.7) ** 4), "z": lambda p: p["z"]}
    study = search(functions, 35, attribute=attribute)

    points = [tuple(trial.params.values()) for trial in study.trials]
    assert len(set(points)) == 35
    for name, function in functions.items():
        seen = set()
        for trial in study.trials:
            value = trial.params[name]
            if value in seen and attribute:
                assert trial.number % 3 == 2
                assert function({name: value}) == max(function({name: past}) for past in seen)
            seen.add(value)


def test_grid_is_tried_completely():
    """On a grid of 11 points every trial is on the grid, and all of its points are tried."""
    space = {"x": FloatDistribution(0, 1, step=0.1), "n": IntDistribution(0, 20, step=2)}
    functions = {"x": lambda p: np.sin(40 * p["x"]), "n": lambda p: -abs(p["n"] - 14)}
    study = search(functions, 16, space=space)
    assert {round(value, 9) for value in values(study, "x")} == {round(0.1 * n, 9) for n in range(11)}
    assert set(values(study, "n")) == set(range(0, 21, 2))
    assert all(type(value) is int for value in values(study, "n"))


def test_small_grids_are_exhausted_and_repeat_the_best_point():
    """A grid with fewer points than models need is searched, and once all its points are tried the best is repeated."""
    space = {"x": IntDistribution(0, 1), "y": FloatDistribution(0, 1, step=0.5)}
    functions = {"x": lambda p: p["x"], "y": lambda p: -abs(p["y"] - 0.5)}
    study = search(functions, 9, space=space)
    assert [trial.params for trial in study.trials[-4:]] == [{"x": 1, "y": 0.5}] * 4


def test_logarithmic_range_is_searched_by_powers():
    """In a range over five powers of ten the maximum is found to 2 per cent."""
    space = {"x": FloatDistribution(1e-5, 1, log=True), "n": IntDistribution(1, 1000, log=True)}
    functions = {"x": lambda p: -((np.log10(p["x"]) + 3) ** 2), "n": lambda p: -((np.log10(p["n"]) - 1) ** 2)}
    study = search(functions, 12, space=space)
    assert study.best_params["x"] == pytest.approx(1e-3, rel=0.02)
    assert study.best_params["n"] == 10


@pytest.mark.parametrize("joint", [False, True])
def test_running_trials_are_avoided(joint):
    """Four trials that run at once have different points, none of which was tried before."""
    functions = {"x": lambda p: -((p["x"] - 0.3) ** 2), "y": lambda p: -((p["y"] - 0.6) ** 2)}
    blocks = {"x": ["x", "y"], "y": ["x", "y"]} if joint else None
    study = search(functions, 8, blocks=blocks)
    study.sampler = BlockwiseSampler(seed=0, blocks=blocks)

    asked = [study.ask(dict.fromkeys(functions, UNIT)) for _ in range(4)]

    points = [(trial.params["x"], trial.params["y"]) for trial in [*study.get_trials()[:8], *asked]]
    assert len(set(points)) == 12
    distances = [max(abs(x - u), abs(y - v)) for n, (x, y) in enumerate(points[8:]) for u, v in points[: 8 + n]]
    assert min(distances) > 1e-6


def test_failed_trials_do_not_count():
    """Failed and pruned trials change no proposal, except through the trial's number."""
    functions, _ = separable("cosine", np.random.default_rng(1), count=3)
    study = search(functions, 7)
    for state in (TrialState.FAIL, TrialState.PRUNED):
        study.add_trial(
            optuna.create_trial(
                state=state, params=dict.fromkeys(functions, 0.123), distributions=dict.fromkeys(functions, UNIT)
            )
        )
    study.sampler = BlockwiseSampler(seed=0)

    assert study.ask(dict.fromkeys(functions, UNIT)).params == pytest.approx(search(functions, 8).trials[7].params)


def test_conditional_parameters_are_sampled():
    """Parameters that only some trials have, and parameters with changing ranges, are sampled without an error."""

    def objective(trial):
        value = trial.suggest_float("x", 0, 1)
        kind = trial.suggest_categorical("kind", ["a", "b"])
        if kind == "a":
            value += trial.suggest_float("only a", 0, 1)
        high = 1 + trial.number % 2
        trial.set_user_attr("block_scores", {"x": value})
        return value + trial.suggest_float("changing", 0, high)

    study = optuna.create_study(direction="maximize", sampler=BlockwiseSampler(seed=0))
    study.optimize(objective, n_trials=15)
    assert {trial.state for trial in study.trials} == {TrialState.COMPLETE}
    assert {trial.params["kind"] for trial in study.trials} == {"a", "b"}


def test_enqueued_points_are_learned_from_and_fixed_ones_kept():
    """Enqueued points are tried first and used by the models; a fixed parameter stays while the others are searched."""
    study = optuna.create_study(direction="maximize", sampler=BlockwiseSampler(seed=0))
    study.enqueue_trial({"x": 0.25, "y": 0.75})

    def objective(trial):
        x, y = trial.suggest_float("x", 0, 1), trial.suggest_float("y", 0, 1)
        scores = {"x": -((x - 0.2) ** 2), "y": -((y - 0.9) ** 2)}
        trial.set_user_attr("block_scores", scores)
        return sum(scores.values())

    study.optimize(objective, n_trials=6)
    with pytest.warns(optuna.exceptions.ExperimentalWarning):
        study.sampler = optuna.samplers.PartialFixedSampler({"y": 0.5}, study.sampler)
    study.optimize(objective, n_trials=6)

    assert study.trials[0].params == {"x": 0.25, "y": 0.75}
    assert values(study, "y")[6:] == [0.5] * 6
    assert min(abs(x - 0.2) for x in values(study, "x")[6:]) < 1e-3


def test_parameters_without_a_block_cover_their_range():
    """A parameter without a block and a categorical one are sampled over their whole range."""
    space = {"x": UNIT, "free": UNIT, "kind": CategoricalDistribution(["a", "b", "c"])}
    study = search({"b": lambda p: -((p["x"] - 0.3) ** 2)}, 20, space=space, blocks={"b": ["x"]})
    assert study.best_params["x"] == pytest.approx(0.3, abs=1e-3)
    assert max(np.diff(sorted([0, *values(study, "free"), 1]))) < 0.15
    assert set(values(study, "kind")) == {"a", "b", "c"}


def test_several_objectives_are_refused():
    """A study with several objectives raises ValueError."""
    study = optuna.create_study(directions=["maximize", "minimize"], sampler=BlockwiseSampler())
    with pytest.raises(ValueError, match="multi-objective"):
        study.ask({"x": UNIT})


def calls_during(action):
    """Return the number of function calls during an action."""
    calls = []

    def count(frame, event, function):
        if event in ("call", "c_call"):
            calls.append(event)

    before = sys.getprofile()
    sys.setprofile(count)
    try:
        action()
    finally:
        sys.setprofile(before)
    return len(calls)


def test_blocks_share_the_operations_of_a_proposal():
    """With 100 trials of 26 blocks a proposal takes fewer function calls than half of Optuna's TPE's.

    Each block alone would take thousands of calls. Times depend on the load of a machine, calls do not.
    """
    functions = {f"x{n}": lambda p: 0.0 for n in range(26)}
    random = np.random.default_rng(0)
    study = optuna.create_study(direction="maximize", sampler=BlockwiseSampler(seed=0))
    for _ in range(100):
        point = dict(zip(functions, random.uniform(0, 1, 26).tolist(), strict=True))
        scores = {name: float(np.sin(9 * x)) for name, x in point.items()}
        study.add_trial(
            optuna.create_trial(
                params=point,
                distributions=dict.fromkeys(functions, UNIT),
                value=1.0,
                user_attrs={"block_scores": scores},
            )
        )
    running = study.ask()  # also loads what proposals need
    frozen = study.get_trials(deepcopy=False)[running.number]
    space, tpe = dict.fromkeys(functions, UNIT), optuna.samplers.TPESampler(seed=0)

    blockwise = calls_during(lambda: study.sampler.sample_relative(study, frozen, space))
    of_tpe = calls_during(lambda: [tpe.sample_independent(study, frozen, name, UNIT) for name in space])

    assert blockwise < of_tpe / 2
