"""The notebooks run as they stand, in a real kernel, and what the repository holds is what they show."""

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


def loaded(path: Path) -> dict[str, Any]:
    """A notebook file."""
    notebook: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return notebook


def printed(notebook: dict[str, Any]) -> str:
    """All text that a notebook's cells show."""
    outputs = [output for cell in notebook["cells"] for output in cell.get("outputs", [])]
    texts = [output.get("text", output.get("data", {}).get("text/plain", "")) for output in outputs]
    return "\n".join("".join(text) for text in texts)


# The shortest stands for all; the others need a kernel and twenty seconds each.
QUICK = "02-resume-and-extend"


@pytest.fixture(
    scope="module", params=[pytest.param(name, marks=() if name == QUICK else pytest.mark.slow) for name in NAMES]
)
def run(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, dict[str, Any]]:
    """A notebook by name, and what it is after running now."""
    folder = tmp_path_factory.mktemp("notebook")
    command = [sys.executable, "-W", "error", FOLDER / "execute.py", request.param, "--to", folder]
    done = subprocess.run(command, capture_output=True, encoding="utf-8", check=False)
    assert done.returncode == 0, done.stderr
    return request.param, loaded(folder / f"{request.param}.ipynb")


def test_these_are_all() -> None:
    """Every source is tested, and has its notebook."""
    assert [path.stem for path in sorted(FOLDER.glob("[0-9]*.py"))] == NAMES
    assert [path.stem for path in sorted(FOLDER.glob("*.ipynb"))] == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_the_cells_are_those_of_the_source(name: str) -> None:
    """The .ipynb was made from the .py that lies beside it; after a change: make notebooks."""
    source = jupytext.read(FOLDER / f"{name}.py", fmt="py:percent")
    cells = loaded(FOLDER / f"{name}.ipynb")["cells"]

    assert [(cell["cell_type"], "".join(cell["source"])) for cell in cells] == [
        (cell["cell_type"], cell["source"]) for cell in source.cells
    ]


@pytest.mark.parametrize("name", NAMES)
def test_every_cell_of_code_is_introduced(name: str) -> None:
    """A text stands before every cell of code."""
    kinds = [cell["cell_type"] for cell in loaded(FOLDER / f"{name}.ipynb")["cells"]]
    assert kinds == ["markdown", "code"] * (len(kinds) // 2) + ["markdown"] * (len(kinds) % 2)


@pytest.mark.parametrize("name", NAMES)
def test_what_is_kept_is_small_and_the_same_everywhere(name: str) -> None:
    """At most 400 kB, and no path of a machine, no date, no warning in what cells show."""
    path = FOLDER / f"{name}.ipynb"
    text = path.read_text(encoding="utf-8")

    assert path.stat().st_size <= 400_000
    assert not re.search(r"site-packages|/tmp/|/home/|/root/|[A-Z]:\\\\|Warning", text)
    assert not re.search(r"\b20\d\d-\d\d-\d\d\b", printed(loaded(path)))
    assert "execution" not in json.dumps([cell["metadata"] for cell in loaded(path)["cells"]])


def test_it_runs_and_shows_what_is_kept(run: tuple[str, dict[str, Any]]) -> None:
    """Every cell runs, and shows as many tables, texts and pictures as the kept notebook does, and no error output."""
    name, now = run
    kept = loaded(FOLDER / f"{name}.ipynb")

    def shown(notebook: dict[str, Any]) -> list[list[object]]:
        return [
            [output.get("name") or sorted(output["data"]) for output in cell.get("outputs", [])]
            for cell in notebook["cells"]
        ]

    assert shown(now) == shown(kept)
    assert "stderr" not in json.dumps(shown(now))


def test_the_figures_are_those_of_the_text(run: tuple[str, dict[str, Any]]) -> None:
    """What the texts say of the results is so."""
    name, notebook = run
    text = printed(notebook)

    def numbers(pattern: str) -> list[float]:
        found = re.search(pattern, text)
        assert found, f"{pattern} in {text}"
        return [float(number) for number in found.groups()]

    if name == "01-fit-a-clone":
        assert numbers(r"explained: ([\d.]+)%") == [pytest.approx(96.6, abs=0.1)]
        exact, rounded = numbers(r"(\d+) numbers became (\d+)")
        assert rounded < exact / 2
        # By every metric the clone is nearer to the target than what one would try without a fit.
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
