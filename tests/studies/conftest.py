"""Optuna logs nothing in these tests."""

from planted import quiet_optuna  # noqa: F401
