"""Where trials are kept: one Optuna study for each search, bound to what its trials were scored with."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import optuna
from optuna.storages import BaseStorage, RDBStorage

from optimizer.errors import StudyError

__all__ = ["DATABASE", "close_storage", "open_search", "open_storage"]

DATABASE = "study.db"
_BINDING = "blockfit:bound_to"
_UPSTREAM = "blockfit:upstream"


def open_storage(folder: Path, *, fresh: bool = False) -> BaseStorage:
    """The SQLite storage in a study's folder. `fresh` sets an existing one aside, as study.old.db.

    Raises StudyError if it cannot be opened as a database of trials.
    """
    path = folder / DATABASE
    if fresh and path.exists():
        path.replace(folder / "study.old.db")
    try:
        return RDBStorage(f"sqlite:///{path.as_posix()}")
    except Exception as error:
        reason = str(error).splitlines()[0]
        raise StudyError(
            f"{path}: cannot be opened as a database of trials: {reason}; `--fresh` starts anew"
        ) from error


def close_storage(storage: BaseStorage) -> None:
    """Let go of the database file: Windows cannot replace or delete it while it is open."""
    storage.remove_session()
    engine = getattr(getattr(storage, "_backend", storage), "engine", None)
    if engine is not None:
        engine.dispose()


def open_search(
    storage: BaseStorage, name: str, bound_to: Mapping[str, Any], upstream: Mapping[str, Any], folder: Path
) -> optuna.Study:
    """The Optuna study `name` that is bound to exactly these inputs, created if there is none.

    `upstream` holds the alphas of other steps that its scores depend on. If they differ from those of the studies so
    far, a new generation is opened, named `name@2`, `name@3`, ...: trials scored under different alphas never mix.
    Raises StudyError, naming what changed, if `bound_to` differs.
    """
    existing = optuna.get_all_study_names(storage)
    generation, wanted = 1, json.dumps(upstream, sort_keys=True)
    while True:
        label = name if generation == 1 else f"{name}@{generation}"
        if label not in existing:
            study = optuna.create_study(study_name=label, storage=storage, direction="maximize")
            study.set_user_attr(_UPSTREAM, wanted)
            study.set_user_attr(_BINDING, dict(bound_to))
            return study
        study = optuna.load_study(study_name=label, storage=storage, sampler=optuna.samplers.RandomSampler())
        _refuse_changes(study, bound_to, folder)
        if study.user_attrs.get(_UPSTREAM) == wanted:
            return study
        generation += 1


def _refuse_changes(study: optuna.Study, bound_to: Mapping[str, Any], folder: Path) -> None:
    before = study.user_attrs.get(_BINDING, {})
    now = json.loads(json.dumps(bound_to))
    changes = [
        f"{folder / DATABASE}: the trials of {study.study_name!r} were scored with another {what}: "
        f"{_short(before.get(what))} then, {_short(now.get(what))} now; "
        "`--fresh` starts anew, another folder keeps both"
        for what in dict.fromkeys([*before, *now])
        if before.get(what) != now.get(what)
    ]
    if changes:
        raise StudyError(changes)


def _short(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else text[:57] + "..."
