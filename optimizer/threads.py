"""How many threads linear algebra takes."""

from contextlib import AbstractContextManager
from functools import cache

from threadpoolctl import ThreadpoolController

__all__ = ["one_thread"]


def one_thread() -> AbstractContextManager[object]:
    """Linear algebra in the calling thread alone, while the context lasts.

    Matrices of a few dozen rows are several times slower where cores share them, and what the result is rounded to does
    not depend on how many there are.
    """
    limited: AbstractContextManager[object] = _libraries().limit(limits=1, user_api="blas")
    return limited


@cache
def _libraries() -> ThreadpoolController:
    # Looking for the libraries takes longer than much of the work.
    return ThreadpoolController()
