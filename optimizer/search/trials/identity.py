"""What the trials of a search were scored with: an Optuna study is bound to it, and never takes others."""

import json
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any

import optuna
from optuna.distributions import FloatDistribution
from optuna.storages import BaseStorage
from optuna.study import StudyDirection

from optimizer.errors import StudyError
from optimizer.recipes import Algebra, Parameter, Recipe, recipe_as_data
from optimizer.search.trials.budgets import Budgets
from optimizer.search.trials.sampler_state import check_sampler_state
from optimizer.search.trials.storage import StorageAddress, addresses_before, open_storage
from optimizer.similarity import Options
from optimizer.studies import Stage, Study

__all__ = [
    "ActiveStudy",
    "active_studies",
    "bound_to",
    "check_bindings",
    "check_place",
    "distributions_of",
    "found_upstream",
    "open_search",
]

_BINDING = "blockfit:bound_to"
_UPSTREAM = "blockfit:upstream"
_OPENED = "blockfit:opened"


def bound_to(
    study: Study,
    stage: Stage,
    step: str,
    parameters: Sequence[Parameter],
    files: Mapping[str, str],
    options: Options | None = None,
) -> dict[str, Any]:
    """All that decides what a point of this search scores, but for the alphas of other steps.

    `files` are the fingerprints of the sources by name and of the target, as `OpenStudy.fingerprints` has them,
    `options` the stage's with all defaults filled in, as `OpenStudy.options` has them.
    """
    recipe, resolved = study.recipe, stage if options is None else replace(stage, options=options)
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
        **{key: value for one, used in resolved.used_options for key, value in one.bound(used=used).items()},
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

    `bindings` are {name of a search: what it would be bound to now}. Trials that cannot be read or used are refused
    here, too, while nothing is written yet.
    """
    problems: dict[str, None] = {}
    for label in optuna.get_all_study_names(storage):
        name = label.removeprefix(prefix).partition("@")[0]
        if label.startswith(prefix) and name in bindings:
            study_id = storage.get_study_id_from_name(label)
            before = storage.get_study_user_attrs(study_id).get(_BINDING)
            if before is not None:
                problems |= dict.fromkeys(_changes(before, bindings[name], label, address))
                _check_kind(storage, study_id, label, address)
                check_sampler_state(storage.get_all_trials(study_id, deepcopy=False), str(address))
    if problems:
        raise StudyError(problems)


def check_place(address: StorageAddress, bindings: Mapping[str, Mapping[str, Any]], prefix: str) -> None:
    """Raise StudyError if trials that are bound to the same lie where an earlier version of blockfit put them.

    Arguments as for `check_bindings`. Nothing is there to look for once there is a storage at `address`.
    """
    if address.path is None or address.path.exists():
        return
    for earlier in addresses_before(address):
        with suppress(StudyError), open_storage(earlier, read_only=True) as storage:
            for label in optuna.get_all_study_names(storage):
                name = label.removeprefix(prefix).partition("@")[0]
                before = storage.get_study_user_attrs(storage.get_study_id_from_name(label)).get(_BINDING)
                if label.startswith(prefix) and before is not None and before == _as_stored(bindings.get(name)):
                    break
            else:
                continue
            break
    else:
        return
    raise StudyError(
        f"{address}: is not there, but {earlier} holds trials of this study: an earlier version of blockfit took that "
        f"for the same path; copy it to {address} to go on with them, or start anew (`fresh=True`)"
    )


def open_search(
    storage: BaseStorage,
    name: str,
    bound_to: Mapping[str, Any],
    upstream: Mapping[str, Any],
    address: StorageAddress,
    facts: Mapping[str, str],
    budgets: Budgets | None = None,
) -> optuna.Study:
    """The Optuna study `name` that is bound to exactly these inputs, created if there is none.

    `facts` become user attributes of a new one, for people who look at it by other tools; `budgets` is noted in any.

    If the alphas of other searches, `upstream`, differ from those of the studies so far, a new generation is opened,
    named `name@2`, `name@3`, ...: trials scored under different alphas never mix. No two processes may do this at once.
    Raises StudyError, naming what changed, if `bound_to` differs, and for a study that blockfit cannot have made.
    """
    existing = set(optuna.get_all_study_names(storage))
    generation, wanted = 1, json.dumps(upstream, sort_keys=True)
    while True:
        label = name if generation == 1 else f"{name}@{generation}"
        if label not in existing:
            study = optuna.create_study(study_name=label, storage=storage, direction="maximize")
        else:
            study = optuna.load_study(study_name=label, storage=storage, sampler=optuna.samplers.RandomSampler())
            _check_kind(storage, study._study_id, label, address)
        before = study.user_attrs
        if _BINDING not in before:
            _check_unbound(storage, study._study_id, label, address)
            # New, or made by a process that was killed before it came to this; trials come later.
            for key, fact in facts.items():
                study.set_user_attr(key, fact)
            study.set_user_attr(_UPSTREAM, wanted)
            study.set_user_attr(_BINDING, dict(bound_to))
        elif changes := _changes(before[_BINDING], bound_to, label, address):
            raise StudyError(changes)
        elif before.get(_UPSTREAM) != wanted:
            if not _is_upstream(before.get(_UPSTREAM)):
                raise StudyError(
                    f"{address}: the trials of {label!r} do not say under which other alphas they were scored; "
                    f"{_ways(address)}"
                )
            generation += 1
            continue
        # Which generation is searched last, for who asks how a study stands.
        study.set_user_attr(_OPENED, datetime.now(UTC).isoformat())
        if budgets is not None:
            budgets.note(study)
        return study


def name_prefix(study: Study, address: StorageAddress) -> str:
    """What the names of a study's Optuna studies begin with: its own name where those of others may lie too."""
    own = study.outputs.database.resolve()
    return "" if address.path is not None and address.path.resolve() == own else f"{study.name}:"


@dataclass(frozen=True)
class ActiveStudy:
    """The Optuna study of a search: what Optuna calls it, when it was opened (ISO 8601, UTC), its user attributes."""

    label: str
    opened: str
    attributes: Mapping[str, Any]

    @classmethod
    def of(cls, label: str, attributes: Mapping[str, Any]) -> "ActiveStudy":
        """Return the study with these user attributes."""
        return cls(label, str(attributes.get(_OPENED, "")), attributes)


def active_studies(
    storage: BaseStorage, address: StorageAddress, prefix: str, names: Collection[str]
) -> dict[str, ActiveStudy]:
    """Return the study of each of the searches `names` that was opened last, {search: study}; others are passed over.

    Raises StudyError for one that blockfit cannot have made.
    """
    found: dict[str, ActiveStudy] = {}
    for label in optuna.get_all_study_names(storage):
        name = label.removeprefix(prefix).partition("@")[0]
        if not label.startswith(prefix) or name not in names:
            continue
        study_id = storage.get_study_id_from_name(label)
        one = ActiveStudy.of(label, storage.get_study_user_attrs(study_id))
        if _BINDING not in one.attributes:
            _check_unbound(storage, study_id, label, address)
        else:
            _check_kind(storage, study_id, label, address)
            if name not in found or found[name].opened <= one.opened:
                found[name] = one
    return found


def _check_kind(storage: BaseStorage, study_id: int, label: str, address: StorageAddress) -> None:
    """Raise StudyError unless a study searches for the largest of one number, as all of blockfit's do."""
    directions = storage.get_study_directions(study_id)
    if list(directions) != [StudyDirection.MAXIMIZE]:
        shown = ", ".join(one.name.lower() for one in directions[:3]) or "none"
        raise StudyError(
            f"{address}: the Optuna study {label!r} has the directions {shown}, blockfit's maximize one similarity; "
            f"another program made it; {_ways(address)}"
        )


def _check_unbound(storage: BaseStorage, study_id: int, label: str, address: StorageAddress) -> None:
    """Raise StudyError if a study that is bound to nothing has trials."""
    if storage.get_n_trials(study_id):
        raise StudyError(f"{address}: the trials of {label!r} do not say what they were scored with; {_ways(address)}")


def _is_upstream(noted: Any) -> bool:
    try:
        return isinstance(noted, str) and isinstance(json.loads(noted), dict)
    except (ValueError, RecursionError):
        return False


def _as_stored(value: Any) -> Any:
    return json.loads(json.dumps(value))


def _ways(address: StorageAddress) -> str:
    """Return what to do where trials cannot be gone on with."""
    if address.path is not None:
        return "`fresh=True` starts anew, another folder keeps both"
    return "another `name` in the study's YAML file, or another folder, keeps both; `optuna delete-study` starts anew"


def _changes(before: Any, bound_to: Mapping[str, Any], label: str, address: StorageAddress) -> list[str]:
    now = _as_stored(bound_to)
    if not isinstance(before, dict):
        before = {}
    ways = _ways(address)
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
