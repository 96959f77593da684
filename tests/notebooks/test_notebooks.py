"""The notebooks run unchanged in a real kernel, and the stored outputs are those of a run."""

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import jupytext
import pytest

FOLDER = Path(__file__).parents[2] / "notebooks"
NAMES = ["01-fit-a-clone", "02-resume-and-extend", "03-read-the-ceiling"]


def read_notebook(path: Path) -> dict[str, Any]:
    """Return the JSON of a notebook."""
    notebook: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return notebook


def printed(notebook: dict[str, Any]) -> str:
    """Return all text in the outputs of a notebook's cells."""
    outputs = [output for cell in notebook["cells"] for output in cell.get("outputs", [])]
    texts = [output.get("text", output.get("data", {}).get("text/plain", "")) for output in outputs]
    return "\n".join("".join(text) for text in texts)


# Only the shortest runs among the quick tests: each of the others takes twenty seconds.
QUICK = "02-resume-and-extend"


@pytest.fixture(
    scope="module", params=[pytest.param(name, marks=() if name == QUICK else pytest.mark.slow) for name in NAMES]
)
def run(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, dict[str, Any]]:
    """Return the name of a notebook, and the notebook after a run."""
    folder = tmp_path_factory.mktemp("notebook")
    command = [sys.executable, "-W", "error", FOLDER / "execute.py", request.param, "--to", folder]
    done = subprocess.run(command, capture_output=True, encoding="utf-8", check=False)
    assert done.returncode == 0, done.stderr
    return request.param, read_notebook(folder / f"{request.param}.ipynb")


def test_every_source_has_a_notebook_and_is_tested() -> None:
    """NAMES lists every source, and every source has a notebook."""
    assert [path.stem for path in sorted(FOLDER.glob("[0-9]*.py"))] == NAMES
    assert [path.stem for path in sorted(FOLDER.glob("*.ipynb"))] == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_the_cells_are_those_of_the_source(name: str) -> None:
    """The cells of each .ipynb are those of the .py beside it; `make notebooks` updates them."""
    source = jupytext.read(FOLDER / f"{name}.py", fmt="py:percent")
    cells = read_notebook(FOLDER / f"{name}.ipynb")["cells"]

    assert [(cell["cell_type"], "".join(cell["source"])) for cell in cells] == [
        (cell["cell_type"], cell["source"]) for cell in source.cells
    ]


@pytest.mark.parametrize("name", NAMES)
def test_every_code_cell_follows_a_text(name: str) -> None:
    """Every code cell follows a Markdown cell."""
    kinds = [cell["cell_type"] for cell in read_notebook(FOLDER / f"{name}.ipynb")["cells"]]
    assert kinds == ["markdown", "code"] * (len(kinds) // 2) + ["markdown"] * (len(kinds) % 2)


@pytest.mark.parametrize("name", NAMES)
def test_stored_outputs_are_small_and_reproducible(name: str) -> None:
    """A stored notebook has at most 400 kB, and its outputs contain no local path, date or warning."""
    path = FOLDER / f"{name}.ipynb"
    text = path.read_text(encoding="utf-8")

    assert path.stat().st_size <= 400_000
    assert not re.search(r"site-packages|/tmp/|/home/|/root/|[A-Z]:\\\\|Warning", text)
    assert not re.search(r"\b20\d\d-\d\d-\d\d\b", printed(read_notebook(path)))
    assert "execution" not in json.dumps([cell["metadata"] for cell in read_notebook(path)["cells"]])


def test_a_run_gives_the_stored_kinds_of_output(run: tuple[str, dict[str, Any]]) -> None:
    """Every cell runs and gives the kinds of output that are stored, and nothing on stderr."""
    name, notebook = run
    stored = read_notebook(FOLDER / f"{name}.ipynb")

    def kinds(notebook: dict[str, Any]) -> list[list[object]]:
        return [
            [output.get("name") or sorted(output["data"]) for output in cell.get("outputs", [])]
            for cell in notebook["cells"]
        ]

    assert kinds(notebook) == kinds(stored)
    assert "stderr" not in json.dumps(kinds(notebook))


def test_the_results_support_the_text(run: tuple[str, dict[str, Any]]) -> None:
    """The results have the values that the Markdown cells state."""
    name, notebook = run
    text = printed(notebook)

    def numbers(pattern: str) -> list[float]:
        found = re.search(pattern, text)
        assert found, f"{pattern} in {text}"
        return [float(number) for number in found.groups()]

    if name == "01-fit-a-clone":
        assert numbers(r"TEMP2: explained ([\d.]+)%") == [pytest.approx(96.6, abs=0.1)]
        assert numbers(r"best free alphas ([\d.]+)%.* any merge ([\d.]+)%") == [
            *(pytest.approx(96.6, abs=0.1), pytest.approx(96.7, abs=0.1)),
        ]
        assert "inverted (0.0" in text
        assert "is not: leave it out" in text
        exact, rounded = numbers(r"(\d+) numbers became (\d+)")
        assert rounded < exact / 2
        # By every metric the clone is more similar to the target than a merge with alpha 0.5.
        clone, half = (numbers(rf"{which} +(-?[\d.]+) +([\d.]+) +([\d.]+) +([\d.]+)") for which in ("clone", "half"))
        assert all(fitted > tried for fitted, tried in zip(clone, half, strict=True))
    elif name == "02-resume-and-extend":
        assert "3 of 8 trials done" in text
        assert numbers(r"with amber ([\d.]+)%")[0] > 99.99
        without, together = numbers(r"without outline ([\d.]+)%, with it ([\d.]+)%")
        assert 0 <= together - without < 0.1
        exact, best = numbers(r"exact explained: ([\d.]+)%\nbest of all: ([\d.]+)%")
        assert exact < best
    else:
        assert "18 alphas, 9 directions; trading off: 18" in text
        assert numbers(r"length that is in no source: (\d+)%") == [18]
        assert numbers(r"explained ([\d.]+)%, largest")[0] > 99.99
        assert numbers(r"largest error of slanted ([\d.]+)")[0] < 0.001
