"""The public names of `optimizer`, for editors and type checkers."""

from optimizer import *  # noqa: F403  the stub lists them
from optimizer import __version__ as __version__
