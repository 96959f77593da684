"""Statistics in the folder of a study."""

from optimizer.errors import CheckpointError
from optimizer.similarity import read_measured


def load_measured(path):
    """Return the statistics saved at `path`; None if they are missing, of another version or invalid."""
    try:
        return read_measured(path)
    except CheckpointError:
        return None
