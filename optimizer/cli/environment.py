"""What the command takes from the environment."""

import os
from pathlib import Path

__all__ = ["folders_of_environment"]


def folders_of_environment() -> list[Path]:
    """The checkpoint folders of BLOCKFIT_MODELS, which may list several as PATH does, in quotation marks or not."""
    parts = (part.strip().strip('"') for part in os.environ.get("BLOCKFIT_MODELS", "").split(os.pathsep))
    return [Path(part) for part in parts if part]
