"""The level of Optuna's log while a fit creates studies."""

from collections.abc import Iterator
from contextlib import contextmanager

import optuna

__all__ = ["quiet_optuna"]


@contextmanager
def quiet_optuna() -> Iterator[None]:
    """Suppress Optuna's report of each new study; its warnings still appear."""
    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(max(before, optuna.logging.WARNING))
    try:
        yield
    finally:
        optuna.logging.set_verbosity(before)
