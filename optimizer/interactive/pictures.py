"""Contact sheets with the defaults of the commands; apart from other functions, since they need further libraries."""

from optimizer import pictures
from optimizer.interactive.functions import as_commands

__all__ = ["preview"]

preview = as_commands(pictures.preview)
