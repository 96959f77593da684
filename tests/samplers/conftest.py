"""Silences Optuna in the tests of this folder."""

from planted import quiet_optuna  # noqa: F401
