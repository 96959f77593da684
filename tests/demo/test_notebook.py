"""The notebook in notebooks/ runs as it stands."""

import subprocess
import sys
from pathlib import Path

NOTEBOOK = Path(__file__).parents[2] / "notebooks" / "fit_a_clone.py"


def test_fit_a_clone_runs(tmp_path: Path) -> None:
    """It fits, merges, and its clone is closer to the target than 90 % in every output block."""
    done = subprocess.run([sys.executable, NOTEBOOK, tmp_path], capture_output=True, encoding="utf-8", check=True)

    scores = [float(line.split()[1].rstrip("%")) for line in done.stdout.splitlines() if line.startswith("OUT")]
    assert len(scores) == 9
    assert min(scores) > 90
