"""The fit of a study: budgets, resuming, the contents of trials, files written, and bindings."""

import hashlib
import os
import signal

import optuna
import pytest
import torch
from comparing_trials import essence
from databases import sqlite_url
from optuna.trial import TrialState
from processes import start_code
from safetensors.torch import load_file
from step_by_step import block_of, merged_names

from optimizer.errors import StudyError
from optimizer.merging import merge
from optimizer.recipes import Algebra, Space, load_recipe, parameters_of
from optimizer.search import FitEvents, fit, open_storage, storage_address
from optimizer.search.plan import PlannedSearch
from optimizer.search.scoring import StageScoring
from optimizer.search.searching import Search, TrialsFailed
from optimizer.search.trials.claims import SharedStorage
from optimizer.search.trials.workers import workers_at
from optimizer.similarity import build_metric, measure_statistics, open_comparison
from optimizer.studies import load_study

BLOCKS = "OUT03,OUT06,M00"
LISTED = ("M00", "OUT03", "OUT06")
STEPS = f"""\
  - {{name: T1, mode: add_difference, a: base, b: x, c: base, alpha: {{search: [0, 1], blocks: "{BLOCKS}"}}}}
  - {{name: T2, mode: weight_sum, a: T1, b: y, alpha: {{search: [0, 1], blocks: "{BLOCKS}"}}}}
"""
JOINT = "  - {{name: s, metric: {}, trials: {}, sampler: {}, seeds: [1]}}\n"
STEPWISE = "  - {{name: s, metric: {}, trials: {}, sampler: {}, strategy: stepwise}}\n"


@pytest.fixture(scope="session")
def target(pool):
    """A target made of x and y by alphas between 0 and 1, with noise."""
    alphas = dict.fromkeys(LISTED, 0.55)
    steps = pool.two_steps(alphas, dict.fromkeys(LISTED, 0.3))
    return pool.plant("fit_target", steps, noise=0.05)[0]


@pytest.fixture
def study(write_study, target):
    """A function that writes and loads a study in a folder of its own."""

    def make(stages, steps=STEPS, folder="study", **fields):
        return load_study(write_study(steps, stages, target, folder, **fields))

    return make


def stored(folder, name="s"):
    """Return the trials in the database."""
    found = optuna.load_study(
        study_name=name, storage=sqlite_url(folder / "study.db"), sampler=optuna.samplers.RandomSampler()
    )
    trials = found.get_trials()
    found._storage.remove_session()
    found._storage._backend.engine.dispose() if hasattr(found._storage, "_backend") else found._storage.engine.dispose()
    return trials


def names(folder):
    """Return the names of all Optuna studies in the database."""
    storage = optuna.storages.RDBStorage(sqlite_url(folder / "study.db"))
    found = sorted(optuna.get_all_study_names(storage))
    storage.remove_session()
    storage.engine.dispose()
    return found


@pytest.mark.parametrize(
    ("fields", "origins"),
    [
        ("metric: explained", ["exact explained"]),
        ("metric: delta", ["exact explained", "exact delta"]),
        ("metric: weights, strategy: stepwise", ["exact explained", "exact weights"]),
    ],
)
def test_without_a_number_the_exact_optimum_ends_a_search(study, fields, origins):
    """A study without `trials` runs exact optima only, and 20 more trials by another sampler find nothing better."""
    made = study(f"  - {{name: s, {fields}, sampler: random}}\n")
    searches = fit(made).searches

    assert [[trial.origin for trial in search.trials] for search in searches] == [origins] * len(searches)
    more = fit(made.with_trials(20)).searches
    assert [len(search.trials) for search in more] == [20] * len(searches)
    assert [search.best.alphas for search in more] == [search.best.alphas for search in searches]


def test_a_second_run_adds_no_trials(study):
    """A fit completes and stores exactly its budget of trials; a second run adds none and finds the same recipe."""
    made = study(JOINT.format("attention", 7, "random"))

    first = fit(made)
    again = fit(made)

    assert len(stored(made.folder)) == 7
    assert all(trial.state == TrialState.COMPLETE for trial in stored(made.folder))
    assert essence(first.searches[0].trials) == essence(again.searches[0].trials) == essence(stored(made.folder))
    assert first.recipe == again.recipe


@pytest.mark.parametrize(
    ("sampler", "early", "budget"),
    [
        ("blockwise", 7, 12),
        ("tpe", 11, 14),
        *(pytest.param(*case, marks=pytest.mark.slow) for case in (("random", 3, 5), ("cmaes", 5, 8), ("gp", 11, 12))),
    ],
)
def test_a_continued_search_equals_an_uninterrupted_one(study, sampler, early, budget):
    """With every sampler a larger budget adds exactly the trials of an uninterrupted run."""
    stopped = study(JOINT.format("attention", early, sampler), folder="stopped")
    whole = study(JOINT.format("attention", budget, sampler), folder="whole")

    fit(stopped)
    resumed = fit(stopped.with_trials(budget)).searches[0].trials
    straight = fit(whole).searches[0].trials

    assert len(straight) == budget
    assert essence(resumed) == essence(straight)
    points = [tuple(trial.alphas.values()) for trial in straight]
    assert len(set(points)) == budget


def test_blockwise_finds_the_best_alphas_of_a_step(study):
    """In one step, blockwise finds every block's best of 201 alphas within 20 trials, without exact optima."""
    made = study(STEPWISE.format("attention", 20, "blockwise"))
    (stage,) = made.stages
    sources = made.sources
    with open_comparison(made.recipe.layout, sources, made.target, base=sources["base"]) as comparison:
        algebra = Algebra(made.recipe, comparison.groups, tuple(sources), "T1")
        metric = build_metric("attention", comparison, LISTED)
        explained = build_metric("explained", comparison, LISTED, measure_statistics(comparison, LISTED))
    space = Space(algebra, parameters_of(made.recipe, ["T1"]))
    planned = PlannedSearch("s", stage, "T1", space.parameters, 1, {})
    scoring = StageScoring(stage, comparison, metric, explained, {})
    trials, _, _ = run_search(made, Search(made, planned, made.recipe, scoring))
    grid = torch.linspace(0, 1, 201, dtype=torch.float64)[:, None].expand(-1, len(space.parameters))

    best = metric.score(space.coefficients(grid)).amax(dim=0)

    assert len(trials) == 20
    assert max(trial.similarity for trial in trials) > float(best.mean()) - 1e-6


def test_another_seed_tries_other_points(study):
    """Another seed changes the points of the sampler, and not the exact optima."""
    runs = [
        fit(study(JOINT.format("attention", 5, "random"), folder=f"f{seed}", seed=seed)).searches[0] for seed in (0, 1)
    ]
    first, second = ([trial.alphas for trial in run.trials] for run in runs)
    assert first[0] == pytest.approx(second[0], abs=1e-6)
    assert first[2:] != second[2:]


@pytest.mark.parametrize("metric", ["explained", "attention", "delta", "weights", "elements"])
def test_trials_have_scores_and_origins(study, metric):
    """The exact optima come first; every trial has its block scores, and their mean as its value."""
    trials = fit(study(JOINT.format(metric, 5, "tpe"))).searches[0].trials

    exact = ["exact explained", *([f"exact {metric}"] if metric in ("delta", "weights") else [])]
    assert [trial.origin for trial in trials] == [*exact, *["tpe"] * (5 - len(exact))]
    for trial in trials:
        scores = trial.block_scores
        assert set(scores) == set(LISTED)
        assert trial.lowest == min(scores.values())
        assert trial.similarity == pytest.approx(sum(scores.values()) / 3, abs=1e-15)
        assert set(trial.alphas) == {f"{step}.{block}" for step in ("T1", "T2") for block in LISTED}
        assert all(0 <= value <= 1 for value in trial.alphas.values())


def test_scores_are_the_metric(study, pool, target, tmp_path):
    """A trial's block scores are the delta cosines of the file merged by its recipe."""
    result = fit(study(JOINT.format("delta", 5, "random")))
    trial = result.searches[0].trials[-1]
    filled = load_recipe(result.study.folder / "recipe.yaml").with_alphas(
        {(step, "alpha"): {block: trial.alphas[f"{step}.{block}"] for block in LISTED} for step in ("T1", "T2")}
    )

    merge(filled, pool.paths, tmp_path / "merged.safetensors", dtype=torch.float32)

    found = deltas(load_file(tmp_path / "merged.safetensors"), load_file(target), pool.tensors["base"])
    assert trial.block_scores == pytest.approx(found, abs=1e-6)


def deltas(merged, target, base):
    """Return the delta cosines per block by definition."""
    found = {}
    for block in LISTED:
        held = [name for name in merged_names(base) if block_of(name) == block]
        a, b = (torch.cat([(t[n].double() - base[n].double()).flatten() for n in held]) for t in (merged, target))
        found[block] = float(a @ b / a.norm() / b.norm())
    return found


def test_best_yaml_describes_the_merged_file(study, pool, target, tmp_path):
    """best.yaml has no free alphas; its similarities are those of the merged file, its hashes those of the files."""
    result = fit(study(JOINT.format("attention", 6, "tpe")))
    recipe = load_recipe(result.study.folder / "best.yaml")

    assert recipe == result.recipe
    assert not any(step.alpha.free for step in recipe.steps)
    best = max(result.searches[0].trials, key=lambda trial: trial.similarity)
    assert {f"{s}.{b}": recipe.step(s).alpha.at(b) for s in ("T1", "T2") for b in LISTED} == best.alphas
    assert recipe.step("T1").alpha.at("OUT07") == 0
    merge(recipe, pool.paths, tmp_path / "merged.safetensors", dtype=torch.float32)
    noted = recipe.step("T2").similarity["delta"]
    found = deltas(load_file(tmp_path / "merged.safetensors"), load_file(target), pool.tensors["base"])
    assert dict(noted["blocks"]) == pytest.approx(found, abs=1e-6)
    assert noted["total"] == pytest.approx(sum(found.values()) / 3, abs=1e-6)
    assert dict(recipe.step("T2").similarity["attention"]["blocks"]) == pytest.approx(best.block_scores, abs=1e-8)
    for name in ("base", "x", "y"):
        assert recipe.models[name].sha256 == hashlib.sha256(pool.paths[name].read_bytes()).hexdigest()
    assert recipe.models["z"].sha256 is None
    assert recipe.fitted.target.sha256 == hashlib.sha256(target.read_bytes()).hexdigest()
    assert recipe.fitted.complete is True
    assert recipe.fitted.searches[0].trials == 6


def test_a_stepwise_stage_searches_each_step(study):
    """Every step is one search, scored on its own result under the best alphas of earlier steps."""
    made = study(STEPWISE.format("delta", 4, "random"))

    first, second = fit(made).searches

    assert (first.name, first.step, second.name, second.step) == ("s/T1", "T1", "s/T2", "T2")
    assert set(first.trials[0].alphas) == {f"T1.{block}" for block in LISTED}
    assert set(second.trials[0].alphas) == {f"T2.{block}" for block in LISTED}
    upstream = next(s for s in optuna_attrs(made.folder, "s/T2"))
    for block in LISTED:
        assert f'"{block}": {first.best.alphas[f"T1.{block}"]!r}' in upstream


def optuna_attrs(folder, name):
    """Return the user attributes of an Optuna study that contain JSON."""
    storage = optuna.storages.RDBStorage(sqlite_url(folder / "study.db"))
    found = optuna.load_study(study_name=name, storage=storage, sampler=optuna.samplers.RandomSampler()).user_attrs
    storage.remove_session()
    storage.engine.dispose()
    return [value for value in found.values() if isinstance(value, str) and value.startswith("{")]


def test_upstream_alphas_open_a_generation(study):
    """Trials under different alphas of other steps do not mix, and are found again when those alphas return."""
    searched = "  - {name: T2, mode: weight_sum, a: T1, b: y, alpha: {search: [0, 1], blocks: OUT03}}\n"
    fixed = "  - {name: T1, mode: add_difference, a: base, b: x, c: base, alpha: ALPHA}\n" + searched
    stages = JOINT.format("delta", 4, "random")
    runs = {alpha: fit(study(stages, fixed.replace("ALPHA", str(alpha)))) for alpha in (0.25, 0.5)}

    back = fit(study(stages, fixed.replace("ALPHA", "0.25")))

    folder = back.study.folder
    assert names(folder) == ["s", "s@2"]
    assert essence(back.searches[0].trials) == essence(runs[0.25].searches[0].trials)
    assert essence(stored(folder, "s@2")) == essence(runs[0.5].searches[0].trials)
    assert essence(runs[0.5].searches[0].trials) != essence(runs[0.25].searches[0].trials)


@pytest.mark.parametrize(
    ("change", "key"),
    [
        ("space", "search space"),
        ("metric", "metric"),
        ("blocks", "metric"),
        ("seeds", "seeds"),
        ("seed", "seed"),
        ("recipe", "recipe"),
        ("target", "file for the target"),
        ("base", "base"),
    ],
)
def test_changed_inputs_are_refused(study, pool, write_study, change, key):
    """A study continued with other inputs is refused with the name of the change; `fresh` starts anew."""
    stages, fields = JOINT.format("attention", 2, "random"), {}
    steps = "  - {name: T1, mode: weight_sum, a: x, b: y, alpha: {search: [0, 1], blocks: 'OUT03,OUT06', tie: true}}\n"
    made = study(stages, steps)
    fit(made)
    before = essence(stored(made.folder))
    if change == "space":
        steps = steps.replace("[0, 1]", "[0, 0.9]")
    elif change == "metric":
        stages = JOINT.format("delta", 2, "random")
    elif change == "blocks":
        stages = stages.replace("seeds", "blocks: OUT03, seeds")
    elif change == "seeds":
        stages = stages.replace("[1]", "[2]")
    elif change == "seed":
        fields = {"seed": 5}
    elif change == "recipe":
        steps = steps.replace("a: x", "a: base")
    elif change == "base":
        fields = {"base": "x"}
    changed = study(stages, steps, **fields)
    if change == "target":
        planted = {"name": "A", "mode": "weight_sum", "a": "base", "b": "z", "c": None, "alpha": {"OUT03": 0.5}}
        changed = load_study(write_study(steps, stages, pool.plant("other_target", [planted])[0]))

    with pytest.raises(StudyError) as caught:
        fit(changed)

    assert any(f"scored with another {key}:" in problem for problem in caught.value.problems)
    assert all("`fresh=True`" in problem for problem in caught.value.problems)
    assert essence(stored(made.folder)) == before
    if change in ("space", "target"):
        assert len(fit(changed, fresh=True).searches[0].trials) == 2
        assert (made.folder / "study.old.db").exists()


def test_trials_lie_on_the_grid(study):
    """With a step, every trial lies on the grid, exact optima included, even if the range is not a multiple of it."""
    steps = STEPS.replace("search: [0, 1]", "search: [0, 1], step: 0.3")
    trials = fit(study(JOINT.format("delta", 5, "random"), steps)).searches[0].trials
    values = {round(value, 9) for trial in trials for value in trial.alphas.values()}
    assert len(trials) == 5
    assert values <= {0.0, 0.3, 0.6, 0.9}


class _Broken:
    """A metric that fails on every trial except those in `works`, counted from 1."""

    blocks = LISTED
    unchanged = ()

    def __init__(self, works=(), result=None):
        self.calls = 0
        self.works = works
        self.result = result

    def score(self, coefficients):
        """Return fixed scores, or raise an error."""
        self.calls += 1
        if self.calls in self.works:
            return torch.full((len(coefficients), 3), 0.5, dtype=torch.float64)
        if self.result is not None:
            return torch.full((len(coefficients), 3), self.result, dtype=torch.float64)
        raise RuntimeError("out of memory")


def search_with(made, metric):
    """Return a search of this study's only stage with another metric."""
    (stage,) = made.stages
    sources = made.sources
    with open_comparison(made.recipe.layout, sources, made.target, base=sources["base"]) as comparison:
        explained = build_metric("explained", comparison, LISTED, measure_statistics(comparison, LISTED))
    planned = PlannedSearch("s", stage, "T2", tuple(parameters_of(made.recipe, ["T1", "T2"])), 1, {})
    return Search(made, planned, made.recipe, StageScoring(stage, comparison, metric, explained, {}))


def run_search(made, search):
    """Run a search; return its trials, those in the database, and the error that ended it."""
    address = storage_address(None, made.folder)
    failure = None
    with open_storage(address) as storage:
        try:
            for result in search.run(SharedStorage(storage, address, workers_at(address, "s")), FitEvents()):
                last = result.trials
        except TrialsFailed as error:
            failure = error
    return last, stored(made.folder), failure


@pytest.mark.parametrize("result", [None, float("nan"), float("inf")])
def test_failing_trials_are_capped(study, result):
    """Trials with an error or an invalid score are stored as failed, and ten in a row end the search."""
    made = study(JOINT.format("delta", 30, "tpe"))
    trials, kept, failure = run_search(made, search_with(made, _Broken(result=result)))

    assert failure is not None
    assert ("out of memory" if result is None else "not a finite number") in str(failure)
    assert len(trials) == len(kept) == 10
    assert {trial.state for trial in kept} == {TrialState.FAIL}
    assert all(trial.values is None and "error" in trial.user_attrs for trial in kept)


def test_failed_trials_do_not_count(study):
    """The budget counts completed trials; failed trials between them are stored and do not end the search."""
    made = study(JOINT.format("delta", 4, "random"))
    works = (3, 12, 20, 21)
    trials, kept, failure = run_search(made, search_with(made, _Broken(works=works)))

    assert failure is None
    assert [trial.number + 1 for trial in kept if trial.state == TrialState.COMPLETE] == list(works)
    assert len(kept) == len(trials) == 21


def test_an_interrupt_writes_the_best_recipe_so_far(study):
    """An interrupt ends the search at once and writes the best recipe so far; the next run finishes the search."""
    made = study(JOINT.format("attention", 12, "random"))
    whole = fit(study(JOINT.format("attention", 12, "random"), folder="whole"))

    def interrupt(progress, trial):
        if progress.done == 5:
            raise KeyboardInterrupt

    result = fit(made, events=FitEvents(finished=interrupt))

    assert result.interrupted
    recipe = load_recipe(made.folder / "best.yaml")
    assert recipe.fitted.complete is False
    assert not any(step.alpha.free for step in recipe.steps)
    assert 4 <= len(stored(made.folder)) <= 5
    finished = fit(made)
    assert not finished.interrupted
    assert essence(finished.searches[0].trials) == essence(whole.searches[0].trials)


@pytest.mark.skipif(os.name == "nt", reason="sends a POSIX signal")
def test_sigint_leaves_a_study_that_continues(study):
    """SIGINT during a run leaves best.yaml, a sound database, and no temporary file."""
    made = study(JOINT.format("attention", 100000, "random"))
    code = f"""
        from optimizer.search import FitEvents, fit
        from optimizer.studies import load_study
        from pathlib import Path
        def finished(progress, trial):
            if progress.done == 8:
                print("running", flush=True)
        result = fit(load_study(Path({str(made.folder)!r})), events=FitEvents(finished=finished))
        print("interrupted", result.interrupted)
    """
    process = start_code(code)
    process.wait_for("running\n")
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate()

    assert process.returncode == 0
    assert "interrupted True" in output
    recipe = load_recipe(made.folder / "best.yaml")
    trials = stored(made.folder)
    assert 8 <= len(trials) < 100000
    assert recipe.fitted.complete is False
    assert not list(made.folder.glob(".blockfit*"))
    best = max(trials, key=lambda trial: trial.value)
    assert recipe.fitted.searches[0].best_trial == best.number


def test_stages_run_one_after_another(study):
    """Each stage is one Optuna study after another, and the result has the alphas of both."""
    stages = (
        "  - {name: one, steps: [T2], blocks: 'OUT03,OUT06', metric: attention, trials: 3, sampler: random}\n"
        "  - {name: two, metric: delta, trials: 3, sampler: random}\n"
    )
    result = fit(study(stages))

    assert names(result.study.folder) == ["one", "two"]
    first, second = result.searches
    assert set(first.trials[0].alphas) == {"T2.OUT03", "T2.OUT06"}
    assert len(second.trials[0].alphas) == 6
    for block in LISTED:
        assert result.recipe.step("T2").alpha.at(block) == second.best.alphas[f"T2.{block}"]
