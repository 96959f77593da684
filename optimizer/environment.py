"""Settings from environment variables."""

import os
from pathlib import Path

__all__ = ["folders_of_environment"]


def folders_of_environment() -> list[Path]:
    """Return the checkpoint folders of BLOCKFIT_MODELS, separated as in PATH, with or without quotation marks."""
    parts = (part.strip().strip('"') for part in os.environ.get("BLOCKFIT_MODELS", "").split(os.pathsep))
    return [Path(part) for part in parts if part]
