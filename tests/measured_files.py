"""Statistics as a study's folder keeps them."""

from optimizer.errors import CheckpointError
from optimizer.similarity import read_measured


def load_measured(path):
    """What was measured and kept at `path`; None if it is missing, of another version or cannot be trusted."""
    try:
        return read_measured(path)
    except CheckpointError:
        return None
