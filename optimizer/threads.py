"""Limits on the threads of linear algebra."""

from contextlib import AbstractContextManager
from functools import cache

from threadpoolctl import ThreadpoolController

__all__ = ["one_thread"]


def one_thread() -> AbstractContextManager[object]:
    """Return a context in which linear algebra runs in the calling thread alone.

    One core processes matrices of a few dozen rows several times faster than several cores do. With one thread,
    rounding does not depend on the number of cores.

    Returns:
        A context manager; the limit ends with it.
    """
    limited: AbstractContextManager[object] = _libraries().limit(limits=1, user_api="blas")
    return limited


@cache
def _libraries() -> ThreadpoolController:
    # scipy brings a BLAS of its own, and only libraries that are loaded are detected.
    import scipy.linalg  # noqa: F401, PLC0415  0.1 s that only the first computation needs

    # Detecting the libraries can take longer than the work itself.
    return ThreadpoolController()
