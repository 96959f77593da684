"""Every command in README.md and docs/ works as it is written."""

import os
import re
import shutil
from pathlib import Path

import pytest
from documented_pages import DOCS, ROOT, arguments_of, blocks, documented_commands, read
from typer.main import get_command

from optimizer.cli import app, main

COMMAND = get_command(app)
COMMANDS = documented_commands()
# Commands that are only parsed here, with the tests that run them.
NOT_RUN = {
    "blockfit init target.safetensors sd_xl_base": "needs SDXL files: tests/cli/test_sdxl_study.py runs it",
    "blockfit demo": "takes a minute: tests/demo runs it",
    "blockfit preview": "draws with a trained model: tests/pictures runs it",
    "blockfit report mine --prompt": "draws with a trained model: tests/reports runs it",
    "blockfit dashboard": "serves until it is interrupted: tests/reports runs it",
    "blockfit fit mine --workers 4": "starts processes: tests/search runs several",
    "blockfit fit mine --storage postgresql": "needs a server: tests/search starts one",
}
MODELS = {
    "base": "v1-5-pruned-emaonly",
    "x": "dreamshaper_8",
    "y": "epicrealism_newEra",
    "z": "some-download",
}
TARGETS = "BracingEvoMix_v1", "closed", "closed-model"
RECIPE = """\
models:
  base: {file: v1-5-pruned-emaonly}
  x: {file: dreamshaper_8}
steps:
  - {name: A, mode: weight_sum, a: base, b: x, alpha: {OUT03-OUT11: 0.3}}
"""


def reason_not_to_run(line: str) -> str | None:
    """Return why a command is only parsed, or None."""
    return next((reason for start, reason in NOT_RUN.items() if line.startswith(start)), None)


@pytest.fixture(scope="session")
def scene(tmp_path_factory, pool, vae_tensors):
    """A folder with the files of all commands: checkpoints in models/, a fitted study `mine`, recipes, texts."""
    from safetensors.torch import save_file

    folder = tmp_path_factory.mktemp("scene")
    models = folder / "models"
    models.mkdir()
    for name, shown in MODELS.items():
        shutil.copy(pool.paths[name], models / f"{shown}.safetensors")
    flat = dict.fromkeys(("BASE", *(f"IN{n:02}" for n in range(12)), "M00", *(f"OUT{n:02}" for n in range(12))), 0.3)
    target, _ = pool.plant("documented", pool.two_steps(flat, flat))
    for shown in TARGETS:
        shutil.copy(target, models / f"{shown}.safetensors")
    shutil.copy(target, folder / "closed.safetensors")
    shutil.copy(target, folder / "closed-model.safetensors")
    shutil.copy(models / "some-download.safetensors", folder)
    save_file(vae_tensors, models / "vae-ft-mse-840000.safetensors")
    (folder / "shared").mkdir()
    (folder / "recipe.yaml").write_text(RECIPE, encoding="utf-8")
    (folder / "mapped.yaml").write_text(f"mapping: mecha\n{RECIPE}", encoding="utf-8")
    # The first command on the page on other tools imports the text of this page.
    (article,) = (text for text in blocks(DOCS / "how-to" / "other-tools.md", "") if "TEMP1" in text)
    (folder / "article.txt").write_text(article, encoding="utf-8")
    before = Path.cwd()
    os.chdir(folder)
    try:
        sources = ("dreamshaper_8", "epicrealism_newEra", "v1-5-pruned-emaonly")
        run("init", "BracingEvoMix_v1", *sources, "-o", "mine", "--models", "models")
        # Two blocks and four trials are enough to run every command.
        for file, long, short in (
            ("study.yaml", r"(?m)^( +)strategy: joint$", r"\1strategy: joint\n\1trials: 4\n\1sampler: random"),
            ("recipe.yaml", r"search: (\[[^\]]*\])", r"search: \1, blocks: OUT03-OUT04"),
        ):
            text, count = re.subn(long, short, (folder / "mine" / file).read_text(encoding="utf-8"))
            assert count
            (folder / "mine" / file).write_text(text, encoding="utf-8")
        run("fit", "mine", "--models", "models")
        run("merge", "recipe.yaml", "-o", "merged.safetensors", "--models", "models")
        run("export", "mapped.yaml", "--to", "comfyui", "-o", "workflow.json", "--models", "models")
    finally:
        os.chdir(before)
    shutil.copy(folder / "mine" / "best.yaml", folder)
    return folder


@pytest.fixture(scope="session")
def vae_tensors(sd1_tensors):
    """The tensors of a separate VAE file, as small as the checkpoints' VAEs."""
    import torch

    prefix = "first_stage_model."
    found = {name.removeprefix(prefix): value for name, value in sd1_tensors(seed=7).items() if name.startswith(prefix)}
    return found or {"decoder.conv_in.weight": torch.zeros(4, 4, 3, 3)}


def run(*arguments: str) -> None:
    """Run a command in this process; it must succeed."""
    with pytest.raises(SystemExit) as ended:
        main(list(arguments))
    assert ended.value.code in (None, 0), f"blockfit {' '.join(arguments)}: exit code {ended.value.code}"


def test_commands_are_found():
    """The pages have commands to test, and every exception matches one of them."""
    assert len(COMMANDS) > 20
    for start in NOT_RUN:
        assert any(line.startswith(start) for line in COMMANDS), f"{start}: no page shows it"


@pytest.mark.parametrize("line", COMMANDS)
def test_the_command_is_parsed(line):
    """The command and its options exist."""
    name, *arguments = arguments_of(line)
    with COMMAND.make_context("blockfit", [name], resilient_parsing=True) as context:
        command = COMMAND.get_command(context, name)

    assert command is not None
    with command.make_context(name, arguments):
        pass


def run_lines():
    """Yield the commands that are run; `fit` with options has quick tests elsewhere and is slow here."""
    for line in COMMANDS:
        if reason_not_to_run(line) is None:
            slow = line.startswith("blockfit fit mine -")
            yield pytest.param(line, marks=[pytest.mark.slow] if slow else [])


@pytest.mark.parametrize("line", list(run_lines()))
def test_the_command_runs(line, scene, tmp_path, monkeypatch):
    """The command succeeds in a folder with checkpoints of the page's names."""
    folder = tmp_path / "scene"
    shutil.copytree(scene, folder)
    arguments = arguments_of(line)
    if arguments[0] == "init":
        shutil.rmtree(folder / "mine")
    monkeypatch.chdir(folder)
    monkeypatch.setenv("BLOCKFIT_MODELS", str(folder / "models"))

    run(*arguments)

    if "-o" in arguments:
        assert (folder / arguments[arguments.index("-o") + 1]).exists()


def test_every_command_is_in_the_table():
    """README.md's table of commands names exactly the commands that exist."""
    text = read(ROOT / "README.md")
    table = text[text.index("## Commands") : text.index("`blockfit COMMAND --help`")]
    named = set(re.findall(r"[`(, ]([a-z]+)(?= [A-Z\[]|`,)", " ".join(re.findall(r"`[^`]+`,?", table))))

    assert named == set(COMMAND.commands)


def test_make_targets_exist():
    """The Makefile has every make target that a page names."""
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    pages = [ROOT / "README.md", ROOT / "SECURITY.md", *DOCS.rglob("*.md")]
    named = {name for page in pages for name in re.findall(r"(?:`|^    )make ([\w-]+)", read(page), re.MULTILINE)}

    assert {"demo", "test", "docs"} <= named <= targets
