"""What the trials of a search were scored with: an Optuna study is bound to it, and never takes others."""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import optuna
from optuna.distributions import FloatDistribution
from optuna.storages import BaseStorage

from optimizer.errors import StudyError
from optimizer.recipes import Algebra, Recipe, recipe_as_data
from optimizer.search.space import Parameter
from optimizer.search.storage import StorageAddress
from optimizer.search.study import Stage, Study
from optimizer.similarity import prompts_sha256

__all__ = ["active_studies", "bound_to", "check_bindings", "distributions_of", "found_upstream", "open_search"]

_BINDING = "blockfit:bound_to"
_UPSTREAM = "blockfit:upstream"
_OPENED = "blockfit:opened"


def bound_to(
    study: Study,
    stage: Stage,
    step: str,
    parameters: Sequence[Parameter],
    files: Mapping[str, str],
    prompts: Sequence[str] = (),
) -> dict[str, Any]:
    """All that decides what a point of this search scores, but for the alphas of other steps.

    `files` are the fingerprints of the sources by name and of the target, as `OpenStudy.fingerprints` has them,
    `prompts` those that the stage reads, its own or those that ship.
    """
    recipe = study.recipe
    leading = {one.name for one in recipe.ancestors(step)}
    searched = {one.step for one in parameters}
    scored = [block for block in recipe.layout.blocks if block in stage.blocks]
    shape = [
        {
            **{key: value for key, value in entry.items() if key in ("name", "mode", "a", "b", "c")},
            **(_fixed(recipe, entry["name"], scored) if entry["name"] in searched else {}),
        }
        for entry in recipe_as_data(recipe)["steps"]
        if entry["name"] in leading
    ]
    return {
        "recipe": shape,
        "search space": {
            name: [one.low, one.high, one.step, *_moved(parameters, name)]
            for name, one in distributions_of(parameters).items()
        },
        "metric": [[name, list(blocks)] for name, blocks in stage.measured],
        "strategy": stage.strategy,
        **({"seeds": list(stage.seeds)} if stage.draws else {}),
        **({"tf32": True} if stage.tf32 else {}),
        **({"prompts": prompts_sha256(prompts), "clip_skip": stage.clip_skip} if stage.reads else {}),
        "layout": recipe.layout.name,
        "mapping": recipe.mapping,
        "base": study.base,
        "seed": study.seed,
        **{f"file for {name}": mark for name, mark in files.items()},
    }


def _fixed(recipe: Recipe, name: str, blocks: Sequence[str]) -> dict[str, dict[str, float]]:
    """The numbers that the recipe gives to a step's alphas on these blocks."""
    found = {}
    for label, alpha in recipe.step(name).alphas.items():
        free = {block for hole in alpha.free for block in hole.blocks}
        found[label] = {block: alpha.at(block) for block in blocks if block not in free}
    return found


def _moved(parameters: Sequence[Parameter], name: str) -> Iterator[str]:
    """The blocks of a tied alpha; another's are in its name."""
    for parameter in parameters:
        if parameter.name == name and parameter.free.tie:
            yield ",".join(parameter.blocks)


def distributions_of(parameters: Iterable[Parameter]) -> dict[str, FloatDistribution]:
    """The range of each parameter by name, as Optuna has it."""
    found = {}
    for parameter in parameters:
        free = parameter.free
        # The last point of a grid need not reach the upper bound.
        last = free.high if free.step is None else free.on_grid(free.high)
        found[parameter.name] = FloatDistribution(free.low, last, step=free.step)
    return found


def found_upstream(algebra: Algebra, parameters: Sequence[Parameter], blocks: Iterable[str]) -> dict[str, Any]:
    """The alphas that are not searched here but decide what a trial scores: {"step.alpha": {block: value}}."""
    own = {(one.step, one.alpha, block) for one in parameters for block in one.blocks}
    scored = set(blocks)
    return {
        f"{step}.{alpha}": {
            block: getattr(algebra.recipe.step(step), alpha).at(block)
            for block in algebra.blocks
            if block in scored and (step, alpha, block) not in own
        }
        for step, alpha in algebra.alphas
    }


def check_bindings(
    storage: BaseStorage, address: StorageAddress, bindings: Mapping[str, Mapping[str, Any]], prefix: str
) -> None:
    """Raise StudyError, a line for each difference, if trials of a search are bound to anything else.

    `bindings` are {name of a search: what it would be bound to now}.
    """
    problems: dict[str, None] = {}
    for label in optuna.get_all_study_names(storage):
        name = label.removeprefix(prefix).partition("@")[0]
        if label.startswith(prefix) and name in bindings:
            before = storage.get_study_user_attrs(storage.get_study_id_from_name(label)).get(_BINDING)
            if before is not None:
                problems |= dict.fromkeys(_changes(before, bindings[name], label, address))
    if problems:
        raise StudyError(problems)


def open_search(
    storage: BaseStorage,
    name: str,
    bound_to: Mapping[str, Any],
    upstream: Mapping[str, Any],
    address: StorageAddress,
    facts: Mapping[str, str],
) -> optuna.Study:
    """The Optuna study `name` that is bound to exactly these inputs, created if there is none.

    `facts` become user attributes of a new one, for people who look at it by other tools.

    If the alphas of other searches, `upstream`, differ from those of the studies so far, a new generation is opened,
    named `name@2`, `name@3`, ...: trials scored under different alphas never mix. No two processes may do this at once.
    Raises StudyError, naming what changed, if `bound_to` differs.
    """
    existing = set(optuna.get_all_study_names(storage))
    generation, wanted = 1, json.dumps(upstream, sort_keys=True)
    while True:
        label = name if generation == 1 else f"{name}@{generation}"
        if label not in existing:
            study = optuna.create_study(study_name=label, storage=storage, direction="maximize")
        else:
            study = optuna.load_study(study_name=label, storage=storage, sampler=optuna.samplers.RandomSampler())
        before = study.user_attrs
        if _BINDING not in before:
            # New, or made by a process that was killed before it came to this; trials come later.
            for key, fact in facts.items():
                study.set_user_attr(key, fact)
            study.set_user_attr(_UPSTREAM, wanted)
            study.set_user_attr(_BINDING, dict(bound_to))
        elif changes := _changes(before[_BINDING], bound_to, label, address):
            raise StudyError(changes)
        elif before.get(_UPSTREAM) != wanted:
            generation += 1
            continue
        # Which generation is searched last, for who asks how a study stands.
        study.set_user_attr(_OPENED, datetime.now(UTC).isoformat())
        return study


def active_studies(storage: BaseStorage, prefix: str) -> dict[str, tuple[str, str]]:
    """The study of each search that was opened last: {search: (Optuna's name for it, when: ISO 8601, UTC)}."""
    found: dict[str, tuple[str, str]] = {}
    for label in optuna.get_all_study_names(storage):
        if not label.startswith(prefix):
            continue
        attributes = storage.get_study_user_attrs(storage.get_study_id_from_name(label))
        name, opened = label.removeprefix(prefix).partition("@")[0], str(attributes.get(_OPENED, ""))
        if _BINDING in attributes and (name not in found or found[name][1] <= opened):
            found[name] = (label, opened)
    return found


def _changes(before: Any, bound_to: Mapping[str, Any], label: str, address: StorageAddress) -> list[str]:
    now = json.loads(json.dumps(bound_to))
    if not isinstance(before, dict):
        before = {}
    ways = (
        "`--fresh` starts anew, another folder keeps both"
        if address.path is not None
        else "another `name` in the study's YAML file, or another folder, keeps both; `optuna delete-study` starts anew"
    )
    return [
        f"{address}: the trials of {label!r} were scored with another {what}: "
        f"{_short(before.get(what), now.get(what))} then, {_short(now.get(what), before.get(what))} now; {ways}"
        for what in dict.fromkeys([*before, *now])
        if before.get(what) != now.get(what)
    ]


def _short(value: Any, other: Any) -> str:
    """At most 60 characters of a value, from just before the place where it differs from the other."""
    text, against = (one if isinstance(one, str) else json.dumps(one, ensure_ascii=False) for one in (value, other))
    if len(text) <= 60:
        return text
    same = next((n for n, (one, two) in enumerate(zip(text, against, strict=False)) if one != two), 0)
    start = max(0, min(same - 20, len(text) - 57))
    return ("..." if start else "") + text[start : start + 57] + ("..." if start + 57 < len(text) else "")
