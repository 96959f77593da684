"""Tab completion, requested as shells request it."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from optimizer import choices
from optimizer.analysis import ceiling
from optimizer.choices import words_of
from optimizer.cli import completing, main
from optimizer.interchange import EXPORTS
from optimizer.recipes import MODES
from optimizer.samplers import SAMPLERS
from optimizer.similarity import METRICS

ROOT = Path(__file__).parents[2]
BASH = shutil.which("bash")


@pytest.fixture
def ask(tmp_path, monkeypatch, capsys):
    """Return the completions for a line whose last word is unfinished; stderr must be empty."""
    monkeypatch.chdir(tmp_path)

    def ask(*words, by="bash"):
        monkeypatch.setenv("_BLOCKFIT_COMPLETE", f"complete_{by}")
        monkeypatch.setenv("COMP_WORDS", "\n".join(("blockfit", *words)))
        monkeypatch.setenv("COMP_CWORD", str(len(words)))
        monkeypatch.setenv("_TYPER_COMPLETE_ARGS", " ".join(("blockfit", *words)))
        monkeypatch.setenv("_TYPER_COMPLETE_WORD_TO_COMPLETE", words[-1])
        monkeypatch.setenv("_TYPER_COMPLETE_FISH_ACTION", "get-args")
        with pytest.raises(SystemExit):
            main([])
        printed = capsys.readouterr()
        assert printed.err == ""
        return printed.out.split("\n")[:-1]

    return ask


@pytest.fixture
def files(tmp_path):
    """A study in a folder, another below it, a recipe, and checkpoints here and in a folder of models."""
    for name in (
        "mine/study.yaml",
        "mine/best.yaml",
        "mine/plots/a.png",
        "mine/second/study.yaml",
        "other/deep/recipe.yml",
        "local.ckpt",
        "notes.txt",
        ".hidden.ckpt",
        "models/dream.safetensors",
        "models/sub/Other name.ckpt",
        "models/sub/same.safetensors",
        "models/more/same.safetensors",
        "models/readme.md",
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    return tmp_path


def test_choices_match_implementations():
    """The words that users choose from and the implementations have the same names in the same order."""
    assert words_of(choices.MetricName) == tuple(METRICS)
    assert words_of(choices.FormatName) == tuple(EXPORTS)
    assert words_of(choices.ModeName) == tuple(MODES)
    assert words_of(choices.SamplerName) == tuple(SAMPLERS)
    # "both" is the former name of "all", from when two metrics had ceilings.
    assert {*words_of(choices.CeilingMetric), "both"} == set(ceiling.CEILING_METRICS)


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["in"], ["inspect", "init"]),
        (["fit", "--de"], ["--device"]),
        (["fit", "x", "--device", "c"], ["cpu", "cuda"]),
        (["compare", "--metric", ""], list(METRICS)),
        (["ceiling", "x", "--metric", ""], ["explained", "delta", "weights", "all"]),
        (["simplify", "x", "--metric", "at"], ["attention"]),
        (["init", "x", "--mode", "w"], ["weight_sum"]),
        (["merge", "x", "--dtype", "b"], ["bf16"]),
        (["export", "x", "--to", "m"], ["model-mixer", "mecha", "mergekit"]),
        (["import", "x", "--mapping", "me"], ["mecha"]),
        (["init", "x", "--mapping", "mo"], ["model-mixer"]),
        (["compare", "x", "--blocks", "o"], ["output", *(f"OUT{n:02}" for n in range(12)), "OUT"]),
        (["compare", "x", "--blocks", "OUT09-"], ["OUT09-OUT10", "OUT09-OUT11"]),
        (["compare", "x", "--blocks", "M00,OUT10-o"], ["M00,OUT10-OUT11"]),
        (["compare", "x", "--blocks", "M00,M"], []),
        (["compare", "x", "--blocks", "IN11,m"], ["IN11,M00"]),
        (["fit", "x", "--storage", "j"], ["journal:", "journal:trials.log"]),
        (["--show-completion", "po"], ["powershell"]),
        (["--show-completion", "pw"], ["pwsh"]),
        (["no such command", "x"], []),
        (["fit", "--no-such-option", "x"], []),
        (["compare", "--metric", "nothing like it"], []),
    ],
)
def test_values_are_completed(ask, words, expected):
    """Commands, options and values are completed; a meaningless line has no completions."""
    assert [word for word in ask(*words) if word] == expected


def test_studies_and_recipes_are_completed(files, ask):
    """Studies are completed to folders with study.yaml and YAML files; a folder that is the only choice is opened."""
    assert ask("fit", "") == ["mine", "mine/", "models/", "other/"]
    assert ask("fit", "mine/") == ["mine/best.yaml", "mine/plots/", "mine/second", "mine/study.yaml"]
    assert ask("merge", "ot") == ["other/deep/recipe.yml"]
    assert ask("import", "n") == ["notes.txt"]


def test_checkpoints_are_completed(files, ask, monkeypatch):
    """Checkpoints are completed to local files and names in the folders, without extension if the name is unique."""
    assert ask("inspect", "lo") == ["local.ckpt"]
    assert ask("inspect", ".h") == [".hidden.ckpt"]
    assert "dream" not in ask("inspect", "")
    expected = ["more/same.safetensors", "sub/same.safetensors"]
    assert ask("compare", "--models", "models", "--target", "su", by="fish") == expected[1:]
    assert ask("compare", "x", "--models", "models", "m") == ["mine/", "models/", "more/same.safetensors"]
    assert ask("merge", "x", "--models", "models", "--vae", "dr") == ["dream"]
    monkeypatch.setenv("BLOCKFIT_MODELS", os.pathsep.join(["nowhere", str(files / "models")]))
    assert ask("inspect", "DR") == ["dream"]
    assert ask("preview", "x", "--target", "dr") == ["dream"]


def test_names_with_spaces_are_quoted(files, ask, monkeypatch):
    """A name with a space is quoted for the shell, also if a part of it is typed."""
    monkeypatch.setenv("BLOCKFIT_MODELS", str(files / "models"))
    assert ask("inspect", "Oth") == ["Other\\ name"]
    assert ask("inspect", "Other\\ n") == ["Other\\ name"]
    assert ask("inspect", '"Other n') == ["Other name"]
    assert ask("inspect", "Oth", by="powershell") == ["'Other name'::: "]
    assert ask("inspect", "Oth", by="fish") == ["Other name"]
    assert ask("inspect", "Oth", by="zsh") == ["_arguments '*: :((\"Other name\"))'"]


def test_nothing_slow_is_imported():
    """Completion imports neither torch nor numpy nor Optuna, whose import takes seconds."""
    line = {"_BLOCKFIT_COMPLETE": "complete_bash", "COMP_WORDS": "blockfit\ncompare\n--metric\n", "COMP_CWORD": "3"}
    code = (
        "import sys, atexit\n"
        "atexit.register(lambda: print(*{name.split('.')[0] for name in sys.modules}, file=sys.stderr))\n"
        "from optimizer.cli import main\nmain([])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, **line}, cwd=ROOT, capture_output=True, encoding="utf-8", check=True,
    )  # fmt: skip

    assert done.stdout.split() == list(METRICS)
    assert not {"torch", "numpy", "optuna", "ruamel", "matplotlib", "pandas"} & set(done.stderr.split())


@pytest.mark.parametrize("shell", completing.SHELLS)
def test_every_shell_has_a_script(capsys, shell):
    """For each shell a script is printed that calls this command."""
    with pytest.raises(SystemExit) as left:
        main(["--show-completion", shell])

    assert left.value.code == 0
    script = capsys.readouterr().out
    kind = "powershell" if shell == "pwsh" else shell
    assert "_BLOCKFIT_COMPLETE" in script
    assert f"complete_{kind}" in script
    assert "blockfit" in script.split("_BLOCKFIT_COMPLETE")[1]


def test_unknown_shells_are_refused(capsys):
    """An unsupported shell is reported with the supported ones, and nothing is installed."""
    for option in ("--show-completion", "--install-completion"):
        with pytest.raises(SystemExit) as left:
            main([option, "tcsh"])
        assert left.value.code == 2
        assert "received 'tcsh'; must be one of bash, zsh, fish" in capsys.readouterr().err


@pytest.fixture
def command(tmp_path):
    """A folder with `blockfit` as an installation creates it."""
    folder = tmp_path / "bin"
    folder.mkdir()
    script = folder / "blockfit"
    script.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m optimizer "$@"\n', encoding="utf-8")
    script.chmod(0o755)
    return folder


@pytest.mark.parametrize("arguments", [("--install-completion", "bash", "-q"), ("-q", "--install-completion", "bash")])
def test_quiet_silences_the_installation(tmp_path, arguments):
    """With --quiet before or after it, --install-completion prints nothing."""
    done = subprocess.run(
        [sys.executable, "-m", "optimizer", *arguments],
        env={**os.environ, "HOME": str(tmp_path), "USERPROFILE": str(tmp_path)}, cwd=ROOT, capture_output=True,
        encoding="utf-8", check=True,
    )  # fmt: skip

    assert done.stdout == done.stderr == ""
    assert any(tmp_path.iterdir())


@pytest.mark.skipif(BASH is None or sys.platform == "win32", reason="needs bash")
def test_bash_completes_after_the_installation(files, command):
    """After --install-completion bash completes words, folders and names with spaces."""
    home = files / "home"
    home.mkdir()
    environment = {
        **os.environ,
        "HOME": str(home),
        "PATH": f"{command}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
        "BLOCKFIT_MODELS": str(files / "models"),
    }
    subprocess.run(
        ["blockfit", "--install-completion", "bash"], env=environment, check=True, capture_output=True, cwd=files
    )
    asked = """
    source ~/.bashrc
    complete -p blockfit
    ask() {
        COMP_WORDS=("$@") COMP_CWORD=$(($# - 1)) COMP_LINE="$*"
        _blockfit_completion blockfit "${@: -1}" "${@: -2:1}"
        printf '%s|' "${COMPREPLY[@]}"; echo
    }
    ask blockfit exp
    ask blockfit fit mine/s
    ask blockfit inspect Oth
    """
    done = subprocess.run(
        [BASH, "-c", asked], env=environment, cwd=files, capture_output=True, encoding="utf-8", check=False
    )

    assert done.stderr == ""
    assert done.stdout.splitlines() == [
        "complete -o default -F _blockfit_completion blockfit",
        "export|",
        "mine/second|mine/study.yaml|",
        "Other\\ name|",
    ]
