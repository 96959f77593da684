"""Fixtures for all tests of searches: a quiet Optuna."""

from planted import quiet_optuna  # noqa: F401
