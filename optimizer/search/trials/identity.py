"""The identity of an Optuna study: everything a trial's score depends on. Trials are reused only if it matches."""

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
from optimizer.search.trials.optuna_privates import id_of_study
from optimizer.search.trials.sampler_state import check_sampler_state
from optimizer.search.trials.storage import StorageAddress, earlier_addresses, open_storage
from optimizer.similarity import Options
from optimizer.studies import Stage, Study

__all__ = [
    "ActiveStudy",
    "active_studies",
    "binding_of",
    "check_bindings",
    "check_place",
    "distributions_of",
    "open_search",
    "upstream_alphas",
]

_BINDING = "blockfit:bound_to"
_UPSTREAM = "blockfit:upstream"
_OPENED = "blockfit:opened"


def binding_of(
    study: Study,
    stage: Stage,
    step: str,
    parameters: Sequence[Parameter],
    files: Mapping[str, str],
    options: Options | None = None,
) -> dict[str, Any]:
    """Return everything that a point's score in a search depends on, except the alphas of other steps.

    Args:
        study: The study.
        stage: The stage of the search.
        step: The step that the search scores.
        parameters: The free alphas of the search.
        files: The fingerprints of the sources and of the target by name, from `OpenStudy.fingerprints`.
        options: The options of the stage's metrics with all defaults filled in, from `OpenStudy.options`; by default
            those of study.yaml.

    Returns:
        The binding, which can be stored as JSON.

    """
    recipe, resolved = study.recipe, stage if options is None else replace(stage, options=options)
    leading = {ancestor.name for ancestor in recipe.ancestors(step)}
    searched = {parameter.step for parameter in parameters}
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
            name: [values.low, values.high, values.step, *_moved(parameters, name)]
            for name, values in distributions_of(parameters).items()
        },
        "metric": [[name, list(blocks)] for name, blocks in stage.measured],
        "strategy": stage.strategy,
        **{key: value for group, used in resolved.used_options for key, value in group.bound(used=used).items()},
        "layout": recipe.layout.name,
        "mapping": recipe.mapping,
        "base": study.base,
        "seed": study.seed,
        **{f"file for {name}": mark for name, mark in files.items()},
    }


def _fixed(recipe: Recipe, name: str, blocks: Sequence[str]) -> dict[str, dict[str, float]]:
    """Return the fixed values of a step's alphas on these blocks, {alpha: {block: value}}."""
    found = {}
    for label, alpha in recipe.step(name).alphas.items():
        free = {block for free_alpha in alpha.free for block in free_alpha.blocks}
        found[label] = {block: alpha.at(block) for block in blocks if block not in free}
    return found


def _moved(parameters: Sequence[Parameter], name: str) -> Iterator[str]:
    """Yield the blocks of a tied alpha, comma-separated; the name of any other alpha contains its block."""
    for parameter in parameters:
        if parameter.name == name and parameter.free.tie:
            yield ",".join(parameter.blocks)


def distributions_of(
    parameters: Iterable[Parameter], fixed: Mapping[str, float] | None = None
) -> dict[str, FloatDistribution]:
    """Return Optuna's range of each free alpha by name; alphas in `fixed` have a range of one value."""
    found = {}
    for parameter in parameters:
        free = parameter.free
        # The last point of a grid need not reach the upper bound.
        last = free.high if free.step is None else free.on_grid(free.high)
        found[parameter.name] = FloatDistribution(free.low, last, step=free.step)
    return {**found, **{name: FloatDistribution(value, value) for name, value in (fixed or {}).items()}}


def upstream_alphas(algebra: Algebra, parameters: Sequence[Parameter], blocks: Iterable[str]) -> dict[str, Any]:
    """Return the alphas that a search does not move but its scores depend on, {"step.alpha": {block: value}}."""
    searched = {(parameter.step, parameter.alpha, block) for parameter in parameters for block in parameter.blocks}
    scored = set(blocks)
    return {
        f"{step}.{alpha}": {
            block: getattr(algebra.recipe.step(step), alpha).at(block)
            for block in algebra.blocks
            if block in scored and (step, alpha, block) not in searched
        }
        for step, alpha in algebra.alphas
    }


def check_bindings(
    storage: BaseStorage, address: StorageAddress, bindings: Mapping[str, Mapping[str, Any]], prefix: str
) -> None:
    """Check that the stored trials of all searches match the searches of a fit; nothing is written.

    Trials that cannot be read or used are refused too.

    Args:
        storage: The storage of the trials.
        address: Its address.
        bindings: The current bindings, {name of the search: binding}.
        prefix: The prefix of the names of the study's Optuna studies.

    Raises:
        StudyError: Trials are bound to other inputs; one line for each difference.

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
    """Check that an earlier version of blockfit did not store the trials of these searches elsewhere.

    The check is skipped if a storage exists at `address`.

    Args:
        address: The address of the trials.
        bindings: The current bindings, {name of the search: binding}.
        prefix: The prefix of the names of the study's Optuna studies.

    Raises:
        StudyError: A file at an earlier address has trials with the same binding.

    """
    if address.path is None or address.path.exists():
        return
    for earlier in earlier_addresses(address):
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
        f"{address}: does not exist, but {earlier} contains trials of this study: an earlier version of blockfit used "
        f"that path instead; copy the file to {address} to continue, or start anew (`fresh=True`)"
    )


def open_search(
    storage: BaseStorage,
    name: str,
    binding: Mapping[str, Any],
    upstream: Mapping[str, Any],
    address: StorageAddress,
    facts: Mapping[str, str],
    budgets: Budgets | None = None,
) -> optuna.Study:
    """Open the Optuna study of a search with exactly these inputs, or create it.

    If `upstream` differs from that of the existing studies, a new generation is created, named `name@2`, `name@3` and
    so on, so that trials scored under different alphas never mix. Only one process at a time may call this function.

    Args:
        storage: The storage of the trials.
        name: The name of the Optuna study.
        binding: The binding of the search, from `binding_of`.
        upstream: The alphas of other searches, from `upstream_alphas`.
        address: The address of the storage.
        facts: User attributes of a new study, for users of other tools.
        budgets: The budgets of the fit, recorded in the study.

    Returns:
        The Optuna study.

    Raises:
        StudyError: The binding differs, with one line for each difference, or blockfit cannot have made the study.

    """
    existing = set(optuna.get_all_study_names(storage))
    generation, expected = 1, json.dumps(upstream, sort_keys=True)
    while True:
        label = name if generation == 1 else f"{name}@{generation}"
        if label not in existing:
            study = optuna.create_study(study_name=label, storage=storage, direction="maximize")
        else:
            study = optuna.load_study(study_name=label, storage=storage, sampler=optuna.samplers.RandomSampler())
            _check_kind(storage, id_of_study(study), label, address)
        before = study.user_attrs
        if _BINDING not in before:
            _check_unbound(storage, id_of_study(study), label, address)
            # The study is new, or its creator was killed before this point; in both cases it has no trials yet.
            for key, fact in facts.items():
                study.set_user_attr(key, fact)
            study.set_user_attr(_UPSTREAM, expected)
            study.set_user_attr(_BINDING, dict(binding))
        elif changes := _changes(before[_BINDING], binding, label, address):
            raise StudyError(changes)
        elif before.get(_UPSTREAM) != expected:
            if not _is_upstream(before.get(_UPSTREAM)):
                raise StudyError(
                    f"{address}: the trials of {label!r} lack the other alphas under which they were scored; "
                    f"{_ways(address)}"
                )
            generation += 1
            continue
        # Readers of the study's progress use the generation that was opened last.
        study.set_user_attr(_OPENED, datetime.now(UTC).isoformat())
        if budgets is not None:
            budgets.record(study)
        return study


def name_prefix(study: Study, address: StorageAddress) -> str:
    """Return the prefix of the names of a study's Optuna studies: its name in a storage that studies may share."""
    database = study.outputs.database.resolve()
    return "" if address.path is not None and address.path.resolve() == database else f"{study.name}:"


@dataclass(frozen=True)
class ActiveStudy:
    """The Optuna study of the latest generation of a search.

    Attributes:
        label: Its name in Optuna.
        opened: The time when a fit last opened it, ISO 8601 in UTC; "" if unknown.
        attributes: Its user attributes.

    """

    label: str
    opened: str
    attributes: Mapping[str, Any]

    @classmethod
    def of(cls, label: str, attributes: Mapping[str, Any]) -> "ActiveStudy":
        """Return the record of a study with these user attributes."""
        return cls(label, str(attributes.get(_OPENED, "")), attributes)


def active_studies(
    storage: BaseStorage, address: StorageAddress, prefix: str, names: Collection[str]
) -> dict[str, ActiveStudy]:
    """Return the Optuna study that was opened last for each search.

    StudyError passes through for a study that blockfit cannot have made.

    Args:
        storage: The storage of the trials.
        address: Its address.
        prefix: The prefix of the names of the study's Optuna studies.
        names: The names of the searches; other Optuna studies are ignored.

    Returns:
        The Optuna studies, {name of the search: study}.

    """
    found: dict[str, ActiveStudy] = {}
    for label in optuna.get_all_study_names(storage):
        name = label.removeprefix(prefix).partition("@")[0]
        if not label.startswith(prefix) or name not in names:
            continue
        study_id = storage.get_study_id_from_name(label)
        study = ActiveStudy.of(label, storage.get_study_user_attrs(study_id))
        if _BINDING not in study.attributes:
            _check_unbound(storage, study_id, label, address)
        else:
            _check_kind(storage, study_id, label, address)
            if name not in found or found[name].opened <= study.opened:
                found[name] = study
    return found


def _check_kind(storage: BaseStorage, study_id: int, label: str, address: StorageAddress) -> None:
    """Raise StudyError unless a study maximizes one number, as all of blockfit's studies do."""
    directions = storage.get_study_directions(study_id)
    if list(directions) != [StudyDirection.MAXIMIZE]:
        shown = ", ".join(direction.name.lower() for direction in directions[:3]) or "none"
        raise StudyError(
            f"{address}: the Optuna study {label!r} has the directions {shown}; blockfit maximizes one similarity; "
            f"another program made it; {_ways(address)}"
        )


def _check_unbound(storage: BaseStorage, study_id: int, label: str, address: StorageAddress) -> None:
    """Raise StudyError if a study without a binding has trials."""
    if storage.get_n_trials(study_id):
        raise StudyError(
            f"{address}: the trials of {label!r} lack the inputs that they were scored with; {_ways(address)}"
        )


def _is_upstream(stored: Any) -> bool:
    try:
        return isinstance(stored, str) and isinstance(json.loads(stored), dict)
    except (ValueError, RecursionError):
        return False


def _as_stored(value: Any) -> Any:
    return json.loads(json.dumps(value))


def _ways(address: StorageAddress) -> str:
    """Return the ways to continue when stored trials cannot be used."""
    if address.path is not None:
        return "`fresh=True` starts anew, another folder keeps both"
    return "another `name` in the study's YAML file, or another folder, keeps both; `optuna delete-study` starts anew"


def _changes(before: Any, binding: Mapping[str, Any], label: str, address: StorageAddress) -> list[str]:
    now = _as_stored(binding)
    if not isinstance(before, dict):
        before = {}
    ways = _ways(address)
    return [
        f"{address}: the trials of {label!r} were scored with another {key}: "
        f"{_short(before.get(key), now.get(key))} then, {_short(now.get(key), before.get(key))} now; {ways}"
        for key in dict.fromkeys([*before, *now])
        if before.get(key) != now.get(key)
    ]


def _short(value: Any, against: Any) -> str:
    """Return at most 60 characters of a value, from just before its first difference from `against`."""
    text, compared = (
        item if isinstance(item, str) else json.dumps(item, ensure_ascii=False) for item in (value, against)
    )
    if len(text) <= 60:
        return text
    same = next((n for n, (left, right) in enumerate(zip(text, compared, strict=False)) if left != right), 0)
    start = max(0, min(same - 20, len(text) - 57))
    return ("..." if start else "") + text[start : start + 57] + ("..." if start + 57 < len(text) else "")
