"""The command `init` writes a first recipe and study, which a fit runs unchanged."""

import hashlib
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from headers import write_header
from safetensors.torch import load_file
from scipy.optimize import lsq_linear

from optimizer.cli import main
from optimizer.errors import BlockfitWarning
from optimizer.recipes import load_recipe, parameters_of
from optimizer.search import fit
from optimizer.studies import load_study

FAMILY = Path(__file__).parents[2] / "studies" / "demo"
MIDDLE = "model.diffusion_model.middle_block."


@pytest.fixture
def here(tmp_path, monkeypatch):
    """Return the working directory, with the demo's target and three of its models in a folder `my models`."""
    monkeypatch.setenv("BLOCKFIT_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    models = tmp_path / "my models"
    models.mkdir()
    for name in ("base", "bold", "slanted"):
        shutil.copyfile(FAMILY / "models" / f"{name}.safetensors", models / f"{name}.safetensors")
    shutil.copyfile(FAMILY / "target.safetensors", models / "closed.safetensors")
    return tmp_path


def short(name):
    """Return the first ten digits of the SHA-256 of a model of the demo."""
    return hashlib.sha256((FAMILY / "models" / f"{name}.safetensors").read_bytes()).hexdigest()[:10]


def run(*arguments):
    """Run the command and return its exit code."""
    with pytest.raises(SystemExit) as left:
        main([str(argument) for argument in arguments])
    return int(left.value.code or 0)


def reachable(target, base, sources, part):
    """Return the largest share of the target explained by the sources' differences, each weighted from -1 to 1."""
    names = [name for name in base if name.startswith(part)]

    def difference(tensors):
        return np.concatenate([(tensors[name].double() - base[name].double()).flatten().numpy() for name in names])

    columns, expected = np.stack([difference(source) for source in sources], axis=1), difference(target)
    merged = columns @ lsq_linear(columns, expected, bounds=(-1, 1), method="bvls").x
    return 1 - ((merged - expected) ** 2).sum() / (expected**2).sum()


@pytest.mark.parametrize("metric", ["explained", "delta", "weights"])
def test_the_study_reaches_the_ceiling_of_its_metric(here, capsys, metric):
    """The study runs unchanged, and its first trials, the only ones, reach the best alphas by its metric."""
    assert run("init", "my models/closed.safetensors", "my models", "-o", "mine", "--metric", metric, "--json") == 0
    capsys.readouterr()
    assert run("fit", "mine", "--json") == 0
    (search,) = json.loads(capsys.readouterr().out)["searches"]
    assert run("ceiling", "mine", "--metric", metric, "--json") == 0
    ceiling = json.loads(capsys.readouterr().out)

    assert search["best"] == pytest.approx(ceiling["total"]["best"], abs=1e-7)
    assert search["trials"] <= 2


def test_the_study_reaches_the_ceiling(here, capsys):
    """The study runs unchanged, and two trials reach the ceiling of its sources."""
    assert run("init", "my models/closed.safetensors", "my models", "-o", "mine") == 0
    printed = capsys.readouterr().out.splitlines()
    assert printed[0] == "base: base.safetensors, by its name; --base names another"
    assert printed[1] == "vae: base.safetensors, whose VAE the target has; --vae names another"
    assert printed[2] == "2 steps, 52 free alphas, base ../my models/base.safetensors -> mine"
    assert printed[-2:] == ["  blockfit ceiling mine", "  blockfit fit mine"]

    assert run("fit", "mine", "--trials", "2", "--json") == 0
    (search,) = json.loads(capsys.readouterr().out)["searches"]
    assert run("ceiling", "mine", "--json") == 0
    ceiling = json.loads(capsys.readouterr().out)
    assert search["best"] == pytest.approx(ceiling["total"]["best"], abs=1e-7)
    assert (ceiling["rank"], ceiling["trade_off"]) == (52, [])
    base, bold, slanted, target = (
        load_file(here / "my models" / f"{name}.safetensors") for name in ("base", "bold", "slanted", "closed")
    )
    best = load_recipe(here / "mine" / "best.yaml").step("TEMP2").similarity["explained"]["blocks"]["M00"]
    assert best == pytest.approx(reachable(target, base, [bold, slanted], MIDDLE), abs=1e-6)


def test_the_recipe_has_a_free_step_for_each_source(here, capsys):
    """The recipe has a step with free alphas for each source, files relative to its folder, and comments."""
    assert run("init", "my models/closed.safetensors", "my models", "-o", "mine", "--json") == 0

    found = json.loads(capsys.readouterr().out)
    recipe = load_recipe(here / "mine" / "recipe.yaml")
    assert [(step.mode, step.a, step.b, step.c) for step in recipe.steps] == [
        ("add_difference", "base", "bold", "base"),
        ("add_difference", "TEMP1", "slanted", "base"),
    ]
    assert {name: model.file for name, model in recipe.models.items()} == found["models"]
    assert found["models"]["bold"] == "../my models/bold.safetensors"
    assert {model.license for model in recipe.models.values()} == {"unknown"}
    assert len(parameters_of(recipe, ["TEMP1", "TEMP2"])) == found["free_alphas"] == 52
    study = load_study(here / "mine")
    assert (study.base, study.stages[0].metric, study.stages[0].strategy) == ("base", "explained", "joint")
    for name in ("recipe.yaml", "study.yaml"):
        text = (here / "mine" / name).read_text(encoding="utf-8")
        assert text.count("\n# ") >= 3
        assert max(map(len, text.splitlines())) <= 120
        assert b"\r" not in (here / "mine" / name).read_bytes()


@pytest.mark.parametrize(
    ("options", "mode", "c", "metric"),
    [
        (["--mode", "weight_sum"], "weight_sum", None, "explained"),
        (["--metric", "attention"], "add_difference", "base", "attention+explained"),
        (["--metric", "encoder"], "add_difference", "base", "encoder+explained"),
    ],
)
def test_mode_and_metric_can_be_chosen(here, options, mode, c, metric):
    """--mode sets the steps' mode; `explained` scores the blocks that the metric of --metric cannot."""
    assert run("init", "my models/closed.safetensors", "my models", "-o", "mine", *options) == 0

    study = load_study(here / "mine")
    assert [(step.mode, step.c) for step in study.recipe.steps] == [(mode, c)] * 2
    assert study.stages[0].metric == metric
    assert set(study.stages[0].blocks) == set(study.recipe.layout.blocks)


def test_names_and_hashes_are_kept(here, capsys):
    """Target, sources and base may be names or hashes, and are kept as given; the folder is named after the target."""
    digest = short("slanted")
    names = ("closed", f"bold.safetensors [{short('bold')}]", digest, "--base", "base")
    assert run("init", *names, "--models", "my models") == 0

    printed = capsys.readouterr().out
    study = load_study(here / "closed", [here / "my models"])
    assert study.target_file == "closed"
    assert {name: model.file for name, model in study.recipe.models.items()} == {
        "base": "base",
        "bold": f"bold.safetensors [{short('bold')}]",
        "slanted": digest,
    }
    assert study.sources["slanted"] == here / "my models" / "slanted.safetensors"
    assert "base: " not in printed.splitlines()[0].partition(",")[0]
    assert '  blockfit fit closed --models "my models"' in printed.splitlines()
    assert run("init", *names, "--models", "my models", "-o", "again") == 0  # the folder `closed` is not the target
    assert load_study(here / "again", [here / "my models"]).target_file == "closed"


@pytest.mark.parametrize(
    ("source", "output", "written"),
    [
        ("{here}/my models/bold.safetensors", "mine", "{here}/my models/bold.safetensors"),
        ("my models/bold.safetensors", "mine", "../my models/bold.safetensors"),
        ("my models/bold.safetensors", "deep/er/mine", "../../../my models/bold.safetensors"),
        ("my models/bold.safetensors", ".", "my models/bold.safetensors"),
        ("my models/../my models/bold.safetensors", ".", "my models/../my models/bold.safetensors"),
        ("{here}/my models", "mine", "{here}/my models/bold.safetensors"),
        ("my models", "mine", "../my models/bold.safetensors"),
    ],
)
def test_paths_are_kept_as_given(here, capsys, monkeypatch, source, output, written):
    """A path is kept as given if it leads there from the recipe, too; the study is then found from any directory."""
    source, written = (text.format(here=here.as_posix()) for text in (source, written))
    target = here / "my models" / "closed.safetensors"

    assert run("init", target, "my models/base.safetensors", source, "-o", output, "--json") == 0

    found = json.loads(capsys.readouterr().out)
    assert (found["models"]["bold"], found["needs_folders"]) == (written, False)
    monkeypatch.chdir(here.parent)
    study = load_study(here / output)
    assert study.target_file == target.as_posix()
    assert study.sources["bold"].samefile(here / "my models" / "bold.safetensors")


def test_an_ambiguous_name_is_written_as_a_path(here, capsys):
    """A name that another file in the recipe's folder has, too, is written as a path."""
    (here / "mine").mkdir()
    shutil.copyfile(here / "my models" / "slanted.safetensors", here / "mine" / "bold.safetensors")

    assert run("init", "closed", "base", "bold", "-o", "mine", "--models", "my models", "--json") == 0

    found = json.loads(capsys.readouterr().out)
    assert found["models"] == {"base": "base", "bold": "../my models/bold.safetensors"}


def test_a_target_without_text_encoder_closes_base(here, write_sd1, sd1_tensors, capsys):
    """A target without text encoder closes BASE, which is printed and noted in the recipe; the study can be fitted."""
    around = sd1_tensors(seed=0)
    for seed, name in enumerate(("base", "x", "y")):
        write_sd1(here / f"{name}.safetensors", seed=seed, around=around)
    write_sd1(here / "unet.safetensors", seed=5, around=around, text_encoder=False, vae=False)
    files = ("unet.safetensors", "base.safetensors", "x.safetensors", "y.safetensors")
    why = "BASE is closed (alpha 0): the target has no text encoder, so its alphas cannot be fitted"

    assert run("init", *files, "-o", "mine") == 0

    assert why in capsys.readouterr().out.splitlines()
    text = (here / "mine" / "recipe.yaml").read_text(encoding="utf-8")
    assert f"# {why}.\n# Every other block has an alpha" in text
    recipe = load_recipe(here / "mine" / "recipe.yaml")
    assert {free.blocks for step in recipe.steps for free in step.alpha.free} == {recipe.layout.blocks[1:]}
    with pytest.warns(BlockfitWarning, match="BASE is not compared"), pytest.warns(BlockfitWarning, match="no VAE"):
        assert fit(load_study("mine").with_trials(1)).recipe.step("TEMP2").alpha.at("BASE") == 0
    assert run("init", *files, "-o", "encoder", "--metric", "encoder") == 2
    assert capsys.readouterr().err == f"blockfit: --metric: received 'encoder', which sees BASE alone; {why}\n"
    assert run("init", *files, "-o", "mecha", "--mapping", "mecha", "--json") == 0
    assert json.loads(capsys.readouterr().out)["closed"] == []  # there time_embed belongs to BASE


@pytest.mark.parametrize("without", ["vae", "sources"])
def test_missing_parts_close_their_blocks_only(here, write_sd1, sd1_tensors, capsys, without):
    """A target without VAE closes no block; sources without text encoder close BASE, which cannot be compared."""
    around = sd1_tensors(seed=0)
    for seed, name in enumerate(("base", "x")):
        write_sd1(here / f"{name}.safetensors", seed=seed, around=around, text_encoder=without != "sources")
    write_sd1(here / "target.safetensors", seed=5, around=around, vae=without != "vae")

    assert run("init", "target.safetensors", "base.safetensors", "x.safetensors", "-o", "mine", "--json") == 0

    found = json.loads(capsys.readouterr().out)
    assert found["closed"] == ([] if without == "vae" else ["BASE"])
    assert found["free_alphas"] == (26 if without == "vae" else 25)
    assert ("tensors of it in common" in " ".join(found["notes"])) == (without == "sources")


def test_files_of_one_kind_share_a_note(here, capsys):
    """Many files of one other kind share a note with the first three, the number of others and the kind."""
    for number in range(5):
        write_header(here / "my models" / f"xl{number}.safetensors", {"emb_params": (number + 1, 768)})

    assert run("init", "my models/closed.safetensors", "my models", "-o", "mine", "--json") == 0

    notes = [note for note in json.loads(capsys.readouterr().out)["notes"] if note.startswith("left out: ")]
    files = ", ".join(str(Path("my models", f"xl{number}.safetensors")) for number in range(3))
    (note,) = notes
    assert note.startswith(f"left out: {files}, 2 more: is a textual-inversion embedding for Stable Diffusion 1.x (vec")


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["abc", "v1-5-pruned-emaonly", "base"], "v1-5-pruned-emaonly"),
        (["abc", "sd-v1-4", "database"], "sd-v1-4"),
        (["abc", "SD15_new", "x"], "SD15_new"),
        (["abc", "my-base"], "my-base"),
        (["dream-v1-55", "abc"], "dream-v1-55"),  # the first: no name looks like a base
    ],
)
def test_the_base_is_guessed(tmp_path, write_sd1, monkeypatch, capsys, names, expected):
    """The base is a file named like Stable Diffusion 1.x, else one named base, else the first; it is printed."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("BLOCKFIT_CACHE", str(tmp_path / "cache"))
    for seed, name in enumerate(["target", *names]):
        write_sd1(tmp_path / f"{name}.safetensors", seed=seed)

    assert run("init", "target.safetensors", *(f"{name}.safetensors" for name in names), "-o", "new") == 0

    assert load_recipe(tmp_path / "new" / "recipe.yaml").models["base"].file == f"../{expected}.safetensors"
    assert capsys.readouterr().out.startswith(f"base: {expected}.safetensors, ")


@pytest.mark.parametrize("place", range(4))
def test_a_base_is_found_by_its_numbers(tmp_path, write_sd1, sd1_tensors, monkeypatch, capsys, place):
    """Among finetunes at different distances the base is found wherever it stands, and the mode follows from it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("BLOCKFIT_CACHE", str(tmp_path / "cache"))
    base = sd1_tensors(seed=0)
    distances = [0.05, 0.1, 0.3]
    distances.insert(place, 0.0)
    for seed, distance in enumerate(distances, 1):
        write_sd1(tmp_path / f"m{seed}.safetensors", seed=seed, around=base, distance=distance)
    write_sd1(tmp_path / "target.safetensors", seed=99, around=base)

    assert run("init", "target.safetensors", *(f"m{seed}.safetensors" for seed in range(1, 5)), "-o", "new") == 0

    recipe = load_recipe(tmp_path / "new" / "recipe.yaml")
    assert recipe.models["base"].file == f"../m{place + 1}.safetensors"
    assert {step.mode for step in recipe.steps} == {"add_difference"}
    assert "by its numbers" in capsys.readouterr().out


def test_without_a_base_steps_are_weight_sums(tmp_path, write_sd1, monkeypatch, capsys):
    """Where no model is known to be the base, the user is asked for it, and the steps need none."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("BLOCKFIT_CACHE", str(tmp_path / "cache"))
    for seed, name in enumerate(["target", "a", "b", "c"]):
        write_sd1(tmp_path / f"{name}.safetensors", seed=seed)
    sources = [f"{name}.safetensors" for name in "abc"]

    assert run("init", "target.safetensors", *sources, "-o", "new") == 0

    assert "name it with --base" in capsys.readouterr().out
    assert {step.mode for step in load_recipe(tmp_path / "new" / "recipe.yaml").steps} == {"weight_sum"}
    assert run("init", "target.safetensors", *sources, "-o", "named", "--base", "b.safetensors") == 0
    assert {step.mode for step in load_recipe(tmp_path / "named" / "recipe.yaml").steps} == {"add_difference"}


def test_too_many_alphas_for_one_search_are_tied(tmp_path, write_sd1, monkeypatch, capsys):
    """More free alphas than a joint stage may have are tied, with a note, and the study is valid."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("BLOCKFIT_CACHE", str(tmp_path / "cache"))
    (tmp_path / "models").mkdir()
    for seed in range(25):
        write_sd1(tmp_path / "models" / f"m{seed:02}.safetensors", seed=seed)
    write_sd1(tmp_path / "target.safetensors", seed=99)

    assert run("init", "target.safetensors", "models", "-o", "new", "--json") == 0

    found = json.loads(capsys.readouterr().out)
    assert (found["steps"], found["free_alphas"], found["tied"]) == (24, 96, True)
    assert "tie: true" in " ".join(found["notes"])
    assert len(load_study(tmp_path / "new").stages[0].parameters) == 96


def test_copies_and_other_families_are_left_out(here, write_sdxl, capsys):
    """Copies of a source, copies of the target and other families in a folder are left out, each with a note."""
    models = here / "my models"
    shutil.copyfile(models / "bold.safetensors", models / "copy.safetensors")
    shutil.copyfile(models / "closed.safetensors", models / "zzz.safetensors")
    write_sdxl(models / "xl.safetensors")
    (models / "broken.ckpt").write_bytes(b"")

    assert run("init", "my models/closed.safetensors", "my models", "-o", "mine", "--json") == 0

    found = json.loads(capsys.readouterr().out)
    assert list(found["models"]) == ["base", "bold", "slanted"]
    left_out = [note for note in found["notes"] if note.startswith("left out: ")]
    assert sorted(Path(note.split(": ")[1]).name for note in left_out) == [
        "broken.ckpt",
        "copy.safetensors",
        "xl.safetensors",
        "zzz.safetensors",
    ]


def test_subfolders_are_searched(here, capsys):
    """Checkpoints in subfolders count like those in the folder, as for names; one that is given twice counts once."""
    for folder in ("in", "empty"):
        (here / "my models" / folder).mkdir()
    (here / "my models" / "slanted.safetensors").rename(here / "my models" / "in" / "slanted.safetensors")

    for folders, output in ((["my models"], "mine"), (["my models", "my models/in"], "all")):
        assert run("init", "my models/closed.safetensors", *folders, "-o", output, "--json") == 0
        found = json.loads(capsys.readouterr().out)
        assert sorted(found["models"]) == ["base", "bold", "slanted"]
        assert Path(found["models"]["slanted"]).parts[-2:] == ("in", "slanted.safetensors")


def test_a_folder_without_usable_files_is_refused(here, capsys):
    """A folder without usable files is refused; files with the same problem share a line."""
    (here / "bad").mkdir()
    for name in ("a", "b"):
        (here / "bad" / f"{name}.safetensors").write_bytes(b"")

    assert run("init", "my models/closed.safetensors", "bad") == 2

    first, second = capsys.readouterr().err.splitlines()
    assert "none of the named checkpoints can be used" in first
    files = ", ".join(str(Path("bad", f"{name}.safetensors")) for name in "ab")
    assert second == f"blockfit: left out: {files}: the file is empty (0 bytes)"


@pytest.mark.parametrize("tool", ["model-mixer", pytest.param("comfyui", marks=pytest.mark.slow)])
def test_a_mapping_makes_the_recipe_exportable(here, tool):
    """With a tool's mapping the fitted recipe can be exported to that tool, with the file names that it needs."""
    names = ("closed", "base", "bold", "--models", "my models")
    assert run("init", *names, "-o", "mine", "--mapping", "model-mixer" if tool == "model-mixer" else "mecha") == 0
    assert run("fit", "mine", "--trials", "1", "--models", "my models") == 0

    assert run("export", "mine/best.yaml", "--to", tool, "-o", "exported.txt", "--models", "my models") == 0
    assert ("bold.safetensors" if tool == "comfyui" else "bold") in (here / "exported.txt").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["closed", "closed"], ["SOURCE: ", "is the target itself"]),
        (["closed", "base"], ["only the base"]),
        (["closed", "gone", "bold"], ["SOURCE: gone: no such file", "looked in"]),
        (["gone", "base", "bold"], ["TARGET: gone"]),
        (["closed", "bold", "slanted", "--base", "gone"], ["--base: gone"]),
        (
            ["closed", "bold", "xl"],
            ["xl.safetensors: is Stable Diffusion XL, but the target", "is Stable Diffusion 1.x"],
        ),
        (["closed", "empty"], ["empty: no checkpoint in this folder"]),
        (["closed", "base", "bold", "-o", "taken"], ["taken", "already exists", "-o"]),
        (["closed", "base", "bold", "-o", "file"], ["file: cannot be made"]),
        (["closed", "base", "bold", "--metric", "x"], ["--metric: received 'x'; must be one of explained"]),
        (["closed", "base", "bold", "--mapping", "x"], ["--mapping: received 'x'; must be one of supermerger"]),
        (["closed", "x" * 300], ["SOURCE: ", "no such file"]),
        (["x" * 300, "base", "bold"], ["TARGET: ", "no such file"]),
        (["closed", "above"], ["above: no checkpoint in this folder, nor in folders below it"]),
        (["closed", "base", "bold", "--mode", "x"], ["--mode: received 'x'; must be one of add_difference"]),
    ],
)
def test_bad_arguments_are_refused(here, write_sdxl, capsys, arguments, words):
    """Arguments that give no study are refused in one line with exit code 2, and no file is written."""
    write_sdxl(here / "xl.safetensors")
    (here / "empty").mkdir()
    (here / "above" / "in").mkdir(parents=True)
    (here / "taken").mkdir()
    (here / "taken" / "study.yaml").write_text("mine", encoding="utf-8")
    (here / "file").write_text("", encoding="utf-8")
    before = sorted(here.rglob("*.yaml"))

    assert run("init", *arguments, "--models", "my models") == 2

    (line,) = capsys.readouterr().err.splitlines()
    assert all(word in line for word in words)
    assert sorted(here.rglob("*.yaml")) == before


VAE = "first_stage_model."


def vae_of(tensors):
    """Return the VAE's tensors."""
    return {name: value for name, value in tensors.items() if name.startswith(VAE)}


@pytest.fixture
def vaes(here, write_sd1, sd1_tensors):
    """Return a function that writes base, x and y, and a target that has the VAE of one of them, in float16."""
    around = sd1_tensors(seed=0)

    def write(of, dtype=torch.float16, without=()):
        models = {
            name: write_sd1(here / f"{name}.safetensors", seed=seed, around=around, vae=name not in without)
            for seed, name in enumerate(("base", "x", "y"), 1)
        }
        vae = {name: value.to(dtype) for name, value in vae_of(models.get(of, {})).items()}
        write_sd1(here / "target.safetensors", seed=7, around=around, dtype=dtype, overrides=vae)
        return "init", "target.safetensors", "base.safetensors", "x.safetensors", "y.safetensors", "-o", "mine"

    return write


@pytest.mark.parametrize("of", ["base", "y"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_the_vae_is_that_of_the_target(here, vaes, capsys, of, dtype):
    """The recipe copies the VAE of the source that has the target's, in the target's precision; a line says which."""
    assert run(*vaes(of, dtype)) == 0

    assert f"vae: {of}.safetensors, whose VAE the target has; --vae names another" in capsys.readouterr().out
    assert load_recipe(here / "mine" / "recipe.yaml").vae == of
    text = (here / "mine" / "recipe.yaml").read_text(encoding="utf-8")
    assert f"# The VAE is that of {of}, as in the target. Without this line VAEs merge.\nvae: {of}\n" in text


def test_of_equal_vaes_the_first(here, vaes, write_sd1, sd1_tensors, capsys):
    """If several sources have the target's VAE, the recipe copies that of the first step's a."""
    arguments = vaes("base")
    same = vae_of(load_file(here / "base.safetensors"))
    for seed, name in ((2, "x"), (3, "y")):
        write_sd1(here / f"{name}.safetensors", seed=seed, around=sd1_tensors(seed=0), overrides=same)

    assert run(*arguments, "--json") == 0

    assert json.loads(capsys.readouterr().out)["vae"] == "base"


def test_a_vae_of_no_source(here, vaes, capsys):
    """If no source has the target's VAE, the recipe copies the base's; output and recipe call it a guess."""
    assert run(*vaes("none")) == 0

    guess = "a guess: no source has the target's VAE; --vae names another, and --vae merge merges the VAEs"
    assert f"vae: base.safetensors, {guess}" in capsys.readouterr().out
    text = (here / "mine" / "recipe.yaml").read_text(encoding="utf-8")
    assert "# The VAE is that of base, a guess: no model here has the target's. Without this line VAEs merge." in text


def test_the_last_bit_of_a_vae_counts(here, vaes, write_sd1, sd1_tensors, capsys):
    """A source whose VAE differs from the target's in one bit is not the source of it."""
    arguments = vaes("x", torch.float32)
    tensors = vae_of(load_file(here / "x.safetensors"))
    last = max(tensors)
    changed = tensors[last].clone()
    changed.view(torch.int32).view(-1)[-1] ^= 1
    write_sd1(here / "x.safetensors", seed=2, around=sd1_tensors(seed=0), overrides={last: changed})

    assert run(*arguments) == 0

    assert "a guess" in capsys.readouterr().out


@pytest.mark.parametrize(("given", "vae"), [("x", "x"), ("y.safetensors", "y"), ("base", "base"), ("merge", None)])
def test_a_vae_by_name(here, vaes, capsys, given, vae):
    """--vae takes the name of a model or its file, and merge leaves the field out."""
    assert run(*vaes("base"), "--vae", given, "--json") == 0

    assert json.loads(capsys.readouterr().out)["vae"] == vae
    assert load_recipe(here / "mine" / "recipe.yaml").vae == vae


@pytest.mark.parametrize("without", [("base", "x", "y"), ("base",)])
def test_sources_without_a_vae(here, vaes, capsys, without):
    """Sources without a VAE give none: the field is left out if no source has one, else it is the next one's."""
    assert run(*vaes("none", without=without), "--json") == 0

    assert json.loads(capsys.readouterr().out)["vae"] == (None if len(without) == 3 else "x")


def test_vaes_that_cannot_be_copied(here, vaes, capsys):
    """--vae refuses a file that is no source, a missing one, and a source without a VAE; nothing is written."""
    arguments = vaes("base", without=("y",))
    shutil.copyfile(here / "my models" / "bold.safetensors", here / "other.safetensors")
    reasons = {
        "other.safetensors": "received other.safetensors; must be one of the sources: base, x, y, or merge",
        "y": "received 'y'; y.safetensors has no VAE",
        "z": "z: no such file",
    }

    for given, reason in reasons.items():
        assert run(*arguments, "--vae", given) == 2
        assert capsys.readouterr().err.startswith(f"blockfit: --vae: {reason}")
    assert not (here / "mine").exists()


@pytest.mark.filterwarnings("ignore::optimizer.errors.BlockfitWarning")
def test_every_export_takes_a_first_study(here, vaes, capsys):
    """A fitted first study with alphas from 0 to 1 is exported to every format, to model-mixer as an approximation."""
    assert run(*vaes("base")) == 0
    path = here / "mine" / "recipe.yaml"
    path.write_text(path.read_text(encoding="utf-8").replace("[-1, 1]", "[0, 1]"), encoding="utf-8")
    assert run("fit", "mine", "--quiet") == 0

    for name in ("comfyui", "supermerger", "mecha", "mergekit"):
        assert run("export", "mine/best.yaml", "--to", name, "-o", f"{name}.out") == 0, capsys.readouterr().err
    capsys.readouterr()
    assert run("export", "mine/best.yaml", "--to", "model-mixer", "-o", "mixer.json") == 2
    assert capsys.readouterr().err.endswith("or fit with mapping: model-mixer; --approximate converts it\n")
    assert run("export", "mine/best.yaml", "--to", "model-mixer", "-o", "mixer.json", "--approximate") == 0
    assert "time_embed.*: IN00 -> OUT11" in capsys.readouterr().err
