"""blockfit: the names of `optimizer` under the name of the distribution.

import blockfit

result = blockfit.fit("my-study")
"""

from typing import Any

import optimizer
from optimizer import __version__  # noqa: F401  as `blockfit.__version__`

__all__ = optimizer.__all__


def __getattr__(name: str) -> Any:
    """Load a public name of `optimizer` when it is first used (PEP 562)."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(optimizer, name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
