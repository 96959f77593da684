"""The libraries that only some commands need, by the extra of the installation that brings them."""

from importlib.util import find_spec

from optimizer.errors import InputError

__all__ = ["EXTRAS", "has_extra", "missing_extra", "require"]

EXTRAS = {
    "pictures": ("diffusers", "transformers", "PIL"),
    "encoder": ("transformers",),
    "dashboard": ("optuna_dashboard",),
    "postgresql": ("psycopg",),
}
"""The modules that are imported with each extra; pyproject.toml names their distributions."""

_PACKAGES = {"PIL": "pillow", "optuna_dashboard": "optuna-dashboard"}  # that are not called as their modules


def has_extra(extra: str) -> bool:
    """Return whether the libraries of an extra are installed; imports none of them."""
    return not _missing(extra)


def require(extra: str, purpose: str, *, field: str | None = None) -> None:
    """Raise InputError unless the libraries of an extra are installed; imports none of them.

    `purpose` begins the error's only line: "a PostgreSQL database"; `field` is the argument that asks for it. Call this
    before any work.
    """
    if not has_extra(extra):
        raise InputError(missing_extra(extra, purpose), field=field)


def missing_extra(extra: str, purpose: str) -> str:
    """Return the line that says what is not installed and how to install it."""
    names = [_PACKAGES.get(name, name) for name in _missing(extra) or EXTRAS[extra]]
    verb = "is" if len(names) == 1 else "are"
    return f'{purpose} needs {_listed(names)}, which {verb} not installed: pip install "blockfit[{extra}]"'


def _missing(extra: str) -> list[str]:
    return [name for name in EXTRAS[extra] if find_spec(name) is None]


def _listed(names: list[str]) -> str:
    *others, last = names
    return f"{', '.join(others)} and {last}" if others else last
