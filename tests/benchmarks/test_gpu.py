"""The script for machines with a GPU: every part works, and a failing part does not hide the others."""

import json
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

ROOT = Path(__file__).parents[2]
SCRIPTS = ROOT / "studies" / "benchmarks"
PARTS = (
    "limits", "family", "attention", "tests", "agreement", "statistics", "fit", "encoder", "memory", "merge", "preview",
)  # fmt: skip
# Ten times the default, for busy machines.
PATIENCE = ("--time", 4800)
BROKEN = """\
import os, subprocess, sys, time
from gpu import Part

def fails(context):
    print("what it said")
    raise ValueError("on purpose")

def hangs(context):
    # The runner must end the child, too.
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    (context.work / "child").write_text(str(child.pid))
    (context.work.parent.parent / "child").write_text(str(child.pid))
    time.sleep(600)

def ends(context):
    os._exit(3)

def disagrees(context):
    return {"figure": 1.5, "problems": ["they differ"]}

PARTS = [
    Part("fails", "raises", 600, fails),
    Part("hangs", "hangs", 3, hangs),
    Part("ends", "ends its process", 600, ends),
    Part("disagrees", "finds a difference", 600, disagrees),
    Part("late", "needs what failed", 600, disagrees, "fails"),
    Part("works", "works", 600, lambda context: {"device": context.device}),
]
"""


@pytest.fixture
def report(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The module that makes the tables."""
    monkeypatch.syspath_prepend(SCRIPTS)
    import gpu_report

    return gpu_report


def test_a_part_works_on_a_processor(run, tmp_path):
    """With small sizes a chosen part succeeds; the file has its figures, stdout its table, and nothing is left."""
    done = run(
        "gpu.py", "--device", "cpu", "--small", "--part", "family", "--part", "agreement", "--folder", tmp_path / "f",
        "--json", tmp_path / "g.json", *PATIENCE,
    )  # fmt: skip

    assert done.returncode == 0, done.stderr + done.stdout
    figures = json.loads((tmp_path / "g.json").read_text(encoding="utf-8"))
    of = {part["name"]: part for part in figures["parts"]}
    assert {name: part["status"] for name, part in of.items()} == {"family": "done", "agreement": "done"}
    assert 0 < of["agreement"]["figures"]["largest difference of a metric"]["attention"] < 1e-6
    assert "| agreement | " in done.stdout
    assert list((tmp_path / "f").iterdir()) == []


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_every_part_works_on_a_processor(run, tmp_path):
    """With small sizes all parts succeed; the file has the figures, stdout the tables, and nothing is left behind."""
    done = run(
        "gpu.py", "--device", "cpu", "--small", "--folder", tmp_path / "f", "--json", tmp_path / "g.json", *PATIENCE
    )

    assert done.returncode == 0, done.stderr + done.stdout
    figures = json.loads((tmp_path / "g.json").read_text(encoding="utf-8"))
    of = {part["name"]: part for part in figures["parts"]}
    assert {name: part["status"] for name, part in of.items()} == dict.fromkeys(PARTS, "done")
    assert (figures["device"], figures["small"], figures["machine"]["card"]) == ("cpu", True, None)
    # Goals do not apply to a processor.
    assert {goal["reached"] for goal in figures["goals"]} == {None}
    assert all(goal["value"] is not None for goal in figures["goals"])
    assert set(of["agreement"]["figures"]["largest difference of a metric"]) >= {
        "weights",
        "delta",
        "elements",
        "attention",
    }
    assert 0 < of["agreement"]["figures"]["largest difference of a metric"]["attention"] < 1e-6
    assert of["tests"]["figures"]["skipped"] > 0
    assert of["fit"]["figures"]["largest error of a coefficient"] < 0.01
    assert sum(of["fit"]["figures"]["seconds by phase"].values()) == pytest.approx(
        of["fit"]["figures"]["seconds"], rel=0.2
    )
    for name in PARTS:
        assert f"| {name} | " in done.stdout
    assert list((tmp_path / "f").iterdir()) == []


@pytest.mark.timeout(300)
def test_a_part_that_fails_does_not_hide_the_others(run, tmp_path):
    """A part that raises, hangs, ends its process or finds a problem is reported; the exit code is 1."""
    (tmp_path / "broken.py").write_text(BROKEN, encoding="utf-8")
    names = ("fails", "hangs", "ends", "disagrees", "late", "works")
    chosen = [argument for name in names for argument in ("--part", name)]

    done = run(
        "gpu.py", "--device", "cpu", "--small", "--extra", tmp_path / "broken.py", *chosen, "--folder", tmp_path / "f",
        "--json", tmp_path / "g.json",
    )  # fmt: skip

    assert done.returncode == 1, done.stderr
    of = {part["name"]: part for part in json.loads((tmp_path / "g.json").read_text(encoding="utf-8"))["parts"]}
    assert {name: (part["status"], part["error"]) for name, part in of.items()} == {
        "fails": ("failed", "ValueError: on purpose"),
        "hangs": ("timed out", "took longer than 3 s"),
        "ends": ("failed", "its process ended with exit code 3"),
        "disagrees": ("failed", "they differ"),
        "late": ("skipped", "needs fails"),
        "works": ("done", None),
    }
    assert "what it said" in of["fails"]["output"]
    assert "Traceback" in of["fails"]["output"]
    assert of["disagrees"]["figures"] == {"figure": 1.5}
    assert "| hangs | hangs | " in done.stdout
    assert "**timed out**: took longer than 3 s" in done.stdout
    child = (tmp_path / "f" / "child").read_text(encoding="utf-8")
    assert not _runs(int(child))


def _runs(pid: int) -> bool:
    """Return whether a process runs; a zombie does not."""
    state = subprocess.run(["ps", "-o", "stat=", "-p", str(pid)], capture_output=True, text=True, check=False).stdout
    return bool(state.strip()) and not state.startswith("Z")


def test_too_little_time_is_refused(run, tmp_path):
    """If the time is too short for the first part, the script ends with exit code 2 and one line."""
    (tmp_path / "broken.py").write_text(BROKEN, encoding="utf-8")

    done = run(
        "gpu.py", "--device", "cpu", "--small", "--extra", tmp_path / "broken.py", "--part", "works", "--time", 0.5,
        "--folder", tmp_path,
    )  # fmt: skip

    assert done.returncode == 2
    assert done.stderr.startswith("--time: received 0.5; ")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--part", "all"), "--part: received 'all'; must be one of "),
        (("--table", "none.json"), "--table: none.json: cannot be read as figures of this script"),
        (("--device", "tpu"), "invalid choice: 'tpu'"),
    ],
)
def test_bad_arguments_are_refused(run, arguments, message):
    """A bad argument gives exit code 2 and a line that names it, without a traceback."""
    done = run("gpu.py", *arguments)

    assert done.returncode == 2
    assert message in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.skipif(torch.cuda.is_available(), reason="torch can use a GPU")
def test_a_machine_without_a_gpu_is_refused(run, tmp_path):
    """If torch can use no GPU, nothing is measured at full size, and one line explains how to try the script."""
    done = run("gpu.py", "--part", "limits", "--folder", tmp_path)

    assert done.returncode == 2
    assert re.fullmatch(r"--device: .*; --device cpu --small tries the script without one\n", done.stderr)
    assert "Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_parts_are_listed(run):
    """`--list` shows all parts with their time limits, whose sum is less than 480 s."""
    done = run("gpu.py", "--list")

    assert done.returncode == 0
    listed = dict(re.findall(r"^(\w+) +(\d+) s  \S", done.stdout, re.MULTILINE))
    assert tuple(listed) == PARTS
    assert sum(map(int, listed.values())) < 480


def test_the_page_without_figures_names_the_command(report, tmp_path):
    """Without stored figures the page on GPUs names the command that measures them."""
    assert report.section(tmp_path / "none.json") == report.NOT_RUN
    assert "make gpu" in report.NOT_RUN


def test_goals_of_a_gpu(report):
    """A measured goal is reached or missed; a goal without a measurement is neither."""

    def part(name, figures):
        return {"name": name, "title": name, "status": "done", "seconds": 1.0, "error": None, "figures": figures}

    attention = {
        "candidates a second": {"along a line": {"1": 2000.0}, "anywhere": {"1": 400.0}},
        "most candidates a second": {"along a line": 9000.0, "anywhere": 1500.0},
    }
    agreement = {"largest difference of a metric": {"delta": 1e-12, "attention": 2e-6}}
    figures = {
        "machine": {
            "card": "NVIDIA H100 80GB HBM3", "memory, bytes": 85_000_000_000, "driver": "580.1", "cuda": "13.0",
            "torch": "2.11.0+cu130", "python": "3.12.3", "processors": 16, "system": "Linux x86_64",
        },
        "device": "cuda", "small": False, "date": "2026-12-01 10:00", "seconds": 300.0, "goals": [],
        "parts": [part("attention", attention), part("agreement", agreement)],
    }  # fmt: skip
    figures["goals"] = report.goals(figures)

    reached = {goal["goal"].split(",")[0]: goal["reached"] for goal in figures["goals"]}
    assert reached == {
        "`attention` along one alpha": True,
        "`attention` anywhere": False,
        "the same by products": None,
        "`attention` one at a time": False,
        "cpu and cuda": True,
        "float32 products": None,
        "fit: seconds of scoring against those of reading": None,
        "all parts": True,
    }
    table = report.as_markdown(figures)
    assert table.startswith("NVIDIA H100 80GB HBM3 (85 GB), driver 580.1, cuda 13.0; torch 2.11.0+cu130, Python 3.12.3")
    assert "| `attention` anywhere, candidates a second | >= 2,000 | 1,500 | **no** |" in table


def test_missing_wheels_are_listed():
    """The list has the requirements of blockfit and of its GPU tests, without torch and the machine's distributions."""
    command = [sys.executable, str(SCRIPTS / "gpu_wheels.py"), "none", "--list", "--python-version", "3.12"]
    listed = subprocess.run(
        [*command, "--present", "numpy", "scipy==1.0", "pandas==99"], capture_output=True, text=True, check=True
    )
    names = {line.split("==")[0] for line in listed.stdout.split()}

    assert names >= {"optuna", "cmaes", "sqlalchemy", "pydantic-core", "psycopg-binary", "pytest-timeout", "filelock"}
    # A version that is too old does not count.
    assert "scipy" in names
    assert not names & {"torch", "numpy", "pandas", "blockfit", "sympy", "sd-mecha"}
