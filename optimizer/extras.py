"""Libraries that only some commands need, by the extra that installs them."""

from importlib.util import find_spec

from optimizer.errors import InputError

__all__ = ["EXTRAS", "has_extra", "missing_extra", "require"]

EXTRAS = {
    "pictures": ("diffusers", "transformers", "PIL"),
    "encoder": ("transformers",),
    "dashboard": ("optuna_dashboard",),
    "postgresql": ("psycopg",),
}
"""Modules imported with each extra; pyproject.toml names their distributions."""

_PACKAGES = {"PIL": "pillow", "optuna_dashboard": "optuna-dashboard"}  # distributions named unlike their modules


def has_extra(extra: str) -> bool:
    """Return whether the libraries of an extra are installed, without importing them."""
    return not _missing(extra)


def require(extra: str, purpose: str, *, field: str | None = None) -> None:
    """Raise InputError unless the libraries of an extra are installed; call this before any work.

    No library is imported.

    Args:
        extra: A key of `EXTRAS`.
        purpose: The feature that needs the extra; the error begins with it: "a PostgreSQL database".
        field: The argument that asks for the feature, if one does.

    Raises:
        InputError: A library of the extra is not installed; one line gives its name and the command that installs it.
    """
    if not has_extra(extra):
        raise InputError(missing_extra(extra, purpose), field=field)


def missing_extra(extra: str, purpose: str) -> str:
    """Return the line that names the missing libraries of an extra and the command that installs them."""
    names = [_PACKAGES.get(name, name) for name in _missing(extra) or EXTRAS[extra]]
    verb = "is" if len(names) == 1 else "are"
    return f'{purpose} needs {_listed(names)}, which {verb} not installed: pip install "blockfit[{extra}]"'


def _missing(extra: str) -> list[str]:
    return [name for name in EXTRAS[extra] if find_spec(name) is None]


def _listed(names: list[str]) -> str:
    *first, last = names
    return f"{', '.join(first)} and {last}" if first else last
