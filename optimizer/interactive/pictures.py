"""Contact sheets that show their progress; apart from the other functions, since they need further libraries."""

from optimizer import pictures
from optimizer.interactive.progress import showing_progress

__all__ = ["preview"]

preview = showing_progress(pictures.preview)
