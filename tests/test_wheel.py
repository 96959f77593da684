"""The built wheel works without extras in an environment that contains only its declared dependencies."""

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import venv
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from safetensors.torch import load_file

from optimizer.demo import copy_family

pytestmark = pytest.mark.timeout(1200)  # seconds; starting several programs takes long on a busy machine
ROOT = Path(__file__).parents[1]
# Runs commands one after another in one process; prints for each its exit code, output, errors and loaded modules.
DRIVER = """
import contextlib, io, json, sys
from optimizer.cli import main
results = []
for arguments in json.load(sys.stdin):
    streams = [io.TextIOWrapper(io.BytesIO(), encoding="utf-8", write_through=True) for _ in "oe"]
    with contextlib.redirect_stdout(streams[0]), contextlib.redirect_stderr(streams[1]):
        try:
            main(arguments)
        except SystemExit as left:
            code = left.code
    texts = [stream.buffer.getvalue().decode("utf-8") for stream in streams]
    results.append([code, *texts, sorted({name.split(".")[0] for name in sys.modules})])
json.dump(results, sys.stdout)
"""


def closure_of(distribution):
    """Return the direct and indirect dependencies of a distribution, with extras only if they are requested."""
    found, waiting, seen = {}, [(distribution, "")], set()
    while waiting:
        current, extra = waiting.pop()
        for requirement in map(Requirement, current.requires or ()):
            if requirement.marker is not None and not requirement.marker.evaluate({"extra": extra}):
                continue
            needed = metadata.distribution(requirement.name)
            name = canonicalize_name(requirement.name)
            assert requirement.specifier.contains(needed.version, prereleases=True), requirement
            found[name] = needed
            for more in ("", *requirement.extras):
                if (name, more) not in seen:
                    seen.add((name, more))
                    waiting.append((needed, more))
    return found


def link(distributions, site):
    """Link the top-level files and folders of distributions into a folder of packages."""
    others = {
        path.parts[0]
        for found in metadata.distributions()
        if canonicalize_name(found.name) not in distributions
        for path in found.files or ()
    }
    for found in distributions.values():
        for top in {path.parts[0] for path in found.files or ()} - {"..", "__pycache__"}:
            assert top not in others, f"{top} is not {found.name}'s alone: link its files one by one"
            if not (site / top).exists():
                (site / top).symlink_to(Path(str(found.locate_file(top))).resolve())


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """The interpreter of an environment that contains only the wheel and its dependencies without extras."""
    folder = tmp_path_factory.mktemp("wheel")
    subprocess.run([sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)], cwd=ROOT, check=True)
    (wheel,) = folder.glob("*.whl")
    place = folder / "environment"
    venv.create(place, with_pip=False, symlinks=os.name != "nt")
    paths = {name: sysconfig.get_path(name, "venv", vars={"base": str(place)}) for name in ("scripts", "purelib")}
    interpreter = Path(paths["scripts"]) / ("python.exe" if os.name == "nt" else "python")
    pip = [sys.executable, "-m", "pip", "--python", str(interpreter), "install", "--quiet", "--no-deps", "--no-index"]
    subprocess.run([*pip, "--no-compile", str(wheel)], check=True)
    site = Path(paths["purelib"])
    (distribution,) = metadata.distributions(name="blockfit", path=[str(site)])
    link(closure_of(distribution), site)
    return interpreter


@pytest.fixture(scope="module")
def without(installed, tmp_path_factory):
    """A function that runs commands there in one process, and returns the results of `DRIVER`."""
    cache = tmp_path_factory.mktemp("cache")

    def run(*commands, folder):
        environment = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "BLOCKFIT"))}
        texts = json.dumps([[str(argument) for argument in command] for command in commands])
        done = subprocess.run(
            [str(installed), "-s", "-c", DRIVER],
            input=texts, capture_output=True, encoding="utf-8", check=False, cwd=folder,
            env={**environment, "BLOCKFIT_CACHE": str(cache)},
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        return [tuple(result) for result in json.loads(done.stdout)]

    return run


@pytest.fixture
def family(tmp_path):
    """A copy of the demo's family."""
    copy_family(tmp_path / "family")
    return tmp_path / "family"


def listed(folder):
    """Return all files below a folder."""
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def test_a_missing_extra_ends_each_command_at_once(without, family):
    """Every command that needs an extra ends with one line that names it, before reading or writing any file."""
    before = listed(family)
    none = family / "none.safetensors"
    fitted = family / "fitted.yaml"
    text = (family / "answer" / "half.yaml").read_text(encoding="utf-8")
    database = ["--storage", "postgresql://me@nowhere.invalid/trials"]
    commands = {
        "pictures": [["preview", none, "--target", none, "--prompt", "a", "-o", family / "sheet.png"]],
        "encoder": [
            ["compare", none, "--target", none, "--metric", "encoder"],
            ["fit", family / "article"],
            ["simplify", fitted, "--metric", "encoder", "--target", none],
            ["verify", fitted, "--target", family / "target.safetensors"],
        ],
        "dashboard": [["dashboard", family / "nowhere"]],
        "postgresql": [[command, family / "nowhere", *database] for command in ("fit", "status", "report")],
    }
    expecting = text.replace("../models", "models").replace(
        "alpha: 0.5", "alpha: 0.5, expect: {metric: encoder, blocks: BASE}"
    )
    fitted.write_text(expecting, "utf-8")
    before |= {"fitted.yaml"}

    results = without(*(command for of_extra in commands.values() for command in of_extra), folder=family)

    named = [extra for extra, of_extra in commands.items() for _ in of_extra]
    for extra, (code, out, err, _) in zip(named, results, strict=True):
        (line,) = err.splitlines()
        assert (code, out) == (2, "")
        assert line.startswith("blockfit: ")
        assert line.endswith(f' not installed: pip install "blockfit[{extra}]"')
    assert listed(family) == before


def test_fit_merge_and_report_without_extras(without, family):
    """A study is inspected, fitted, merged, exported and reported; pandas and matplotlib are loaded only to draw."""
    study = family / "small"
    study.mkdir()
    (study / "recipe.yaml").write_text(
        "models: {base: {file: ../models/base.safetensors}, bold: {file: ../models/bold.safetensors}}\n"
        "steps:\n  - {name: ONE, mode: weight_sum, a: base, b: bold, alpha: {search: [0, 1], blocks: OUT03}}\n",
        encoding="utf-8",
    )
    (study / "study.yaml").write_text(
        "recipe: recipe.yaml\ntarget: {file: ../target.safetensors}\nstages: [{name: only, steps: [ONE], trials: 2}]\n",
        encoding="utf-8",
    )
    target, half = family / "target.safetensors", family / "answer" / "half.yaml"
    quick = [
        ["inspect", target],
        ["compare", target, "--target", target],
        ["merge", half, "-o", family / "half.safetensors"],
        ["export", half, "--to", "mergekit", "-o", family / "out.yaml"],
        ["import", family / "half.safetensors", "-o", family / "again.yaml"],
        ["ceiling", study],
    ]
    drawing = [
        ["fit", study],
        ["status", study],
        ["merge", study / "best.yaml", "-o", family / "merged.safetensors"],
        ["report", study],
        ["plots", study],
    ]

    results = without(*quick, *drawing, folder=family)

    for command, (code, _, err, loaded) in zip([*quick, *drawing], results, strict=True):
        assert (code, err) == (0, ""), command
        assert not set(loaded) & {"diffusers", "transformers", "optuna_dashboard", "psycopg"}
    for command, (*_, loaded) in zip(quick, results, strict=False):
        assert not set(loaded) & {"pandas", "matplotlib", "PIL"}, command
    assert {"best.yaml", "trials.csv", "report.html", "study.db"} <= listed(study)
    assert {"plots/best-so-far.png", "plots/alphas.png"} <= listed(study)
    assert load_file(family / "merged.safetensors").keys() == load_file(family / "half.safetensors").keys()


def test_the_command_and_the_licences_are_installed(installed):
    """`blockfit` is in the environment's scripts, and the wheel contains the licences of all its parts."""
    script = installed.with_name("blockfit" + installed.suffix)
    site = next(installed.parents[1].rglob("site-packages"))
    (licences,) = site.glob("blockfit-*.dist-info/licenses")

    shown = subprocess.run([str(script), "--version"], capture_output=True, encoding="utf-8", check=True)

    assert shown.stdout.startswith("blockfit ")
    assert "blockfit authors" in (licences / "LICENSE").read_text(encoding="utf-8")
    (notice,) = licences.rglob("LICENSE-CLIP.txt")
    assert "OpenAI" in notice.read_text(encoding="utf-8")
    beside = {path.name for path in (site / "optimizer" / "families" / "vocabularies").iterdir()}
    assert beside == {"LICENSE-CLIP.txt", "bpe_simple_vocab_16e6.txt.gz", "clip_prompts.txt"}


@pytest.mark.slow
def test_the_demo_without_extras(without, tmp_path):
    """The demo fits three studies, merges, and reports in one line that it leaves out pictures and one study."""
    ((code, out, err, _),) = without(["demo", tmp_path / "demo"], folder=tmp_path)

    (line,) = err.splitlines()
    assert code == 0
    assert 'pip install "blockfit[pictures]"; the rest is fitted' in line
    assert "stepwise" in out
    assert "article:" not in out
    files = listed(tmp_path / "demo")
    assert {"best.yaml", "attention/best.yaml", "stepwise/best.yaml", "fit.safetensors", "half.safetensors"} <= files
    assert not {"digits.png", "article/best.yaml", "assembled.safetensors"} & files
    shutil.rmtree(tmp_path / "demo")
