"""Optuna is quiet here."""

from planted import quiet_optuna  # noqa: F401
