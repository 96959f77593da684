"""Studies of sources that differ: in the shape of a tensor that no alpha reaches, in parts, in how they are sampled."""

import json
import warnings

import pytest
import torch
from measured_files import load_measured
from safetensors.torch import load_file, save_file
from step_by_step import merge_by_steps

from optimizer.analysis import study_ceilings, verify
from optimizer.checkpoints import STATISTICS
from optimizer.cli import main
from optimizer.errors import BlockfitWarning, CheckpointError, StudyError
from optimizer.merging import merge
from optimizer.recipes import load_recipe
from optimizer.search import fit
from optimizer.similarity import compare
from optimizer.studies import load_study

TEXT = "cond_stage_model.transformer.text_model."
POSITIONS = f"{TEXT}embeddings.position_embedding.weight"
QUERY = "model.diffusion_model.output_blocks.6.1.transformer_blocks.0.attn1.to_q.weight"
OUTPUTS = "OUT03-OUT11"
TRUE = 0.4


@pytest.fixture
def study(tmp_path, pool):
    """Writes a study of base and x, which has a LongCLIP, whose target was made of them on the output blocks alone."""
    alpha = {f"OUT{n:02}": TRUE for n in range(3, 12)}
    made = [{"name": "T1", "mode": "add_difference", "a": "base", "b": "x", "c": "base", "alpha": alpha}]
    target = merge_by_steps(made, pool.tensors, torch.float32)["T1"]
    save_file({name: one.contiguous() for name, one in target.items()}, tmp_path / "target.safetensors")
    save_file(pool.tensors["base"], tmp_path / "base.safetensors")
    long = torch.randn(248, 8, generator=torch.Generator().manual_seed(7))
    save_file({**pool.tensors["x"], POSITIONS: long}, tmp_path / "x.safetensors")

    def write(blocks=OUTPUTS, metric="delta", scored=OUTPUTS):
        (tmp_path / "recipe.yaml").write_text(
            "models: {base: {file: base.safetensors}, x: {file: x.safetensors}}\n"
            "steps:\n  - {name: T1, mode: add_difference, a: base, b: x, c: base, "
            f"alpha: {{search: [0, 1], blocks: '{blocks}'}}}}\n",
            encoding="utf-8",
        )
        (tmp_path / "study.yaml").write_text(
            "recipe: recipe.yaml\ntarget: {file: target.safetensors}\n"
            f"stages:\n  - {{name: s, metric: {metric}, blocks: '{scored}', trials: 2}}\n",
            encoding="utf-8",
        )
        return tmp_path

    return write


def told(action):
    """What an action warns of."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", BlockfitWarning)
        action()
    return [str(one.message) for one in caught]


def test_fit_and_merge(study):
    """Alphas on the outputs alone are found, bounded and merged, though the text encoders differ in length."""
    folder = study()
    result = fit(load_study(folder))

    assert all(result.recipe.step("T1").alpha.at(f"OUT{n:02}") == pytest.approx(TRUE, abs=1e-4) for n in range(3, 12))
    explained, delta, weights = study_ceilings(load_study(folder))
    for found in (explained, delta, weights):
        assert found.total["ceiling"] == pytest.approx(1, abs=1e-9)
    assert explained.sources["x"].coefficient == pytest.approx(TRUE, abs=1e-4)
    assert delta.sources["x"].coefficient == pytest.approx(TRUE, abs=1e-4)
    merge(result.recipe, folder, folder / "out.safetensors", dtype=torch.float32)
    found, target = load_file(folder / "out.safetensors"), load_file(folder / "target.safetensors")
    assert all(torch.allclose(found[name], one, atol=1e-4) for name, one in target.items())


def test_verify_and_attention(study, pool):
    """Metrics that read tensors, and `verify`, leave the tensor out that no step needs."""
    folder = study("OUT06", metric="attention", scored="OUT06")
    assert fit(load_study(folder)).similarity > 0.999
    recipe = load_recipe(folder / "best.yaml")
    paths = {name: folder / f"{name}.safetensors" for name in ("base", "x")}

    (one,) = verify(recipe, paths, folder / "target.safetensors")

    assert one.measured["OUT06"] > 0.999


def test_a_free_alpha_counts(study):
    """A free alpha on the block where shapes differ is refused, with file, tensor, block and what would be right."""
    folder = study(blocks=f"BASE,{OUTPUTS}", scored=f"BASE,{OUTPUTS}")

    with pytest.raises(CheckpointError) as caught:
        fit(load_study(folder))

    (problem,) = caught.value.problems
    assert problem == (
        f"{folder / 'x.safetensors'}: tensor {POSITIONS!r} of BASE has shape [248, 8], but [77, 8] in "
        f"{folder / 'base.safetensors'}; only equal shapes merge, and with alphas of 0 on BASE it would take no part"
    )


def test_kept_statistics(study):
    """What was left out of the statistics for its shape is noted; they do not serve alphas that need it."""
    folder = study()
    study_ceilings(load_study(folder))
    (part,) = (one for one in load_measured(folder / STATISTICS).parts if one.name == POSITIONS)
    assert (part.shape, part.holders, part.other_shapes) == ((77, 8), (0,), (1,))
    for name in ("base", "x", "target"):
        (folder / f"{name}.safetensors").unlink()

    assert study_ceilings(load_study(folder))[1].total["ceiling"] == pytest.approx(1, abs=1e-9)
    with pytest.raises(StudyError, match=r"models\.base\.file: 'base\.safetensors' not found"):
        study_ceilings(load_study(study_again(study, folder)))


def study_again(study, folder):
    """The same study with BASE free, its checkpoints gone again."""
    study(blocks=f"BASE,{OUTPUTS}", scored=f"BASE,{OUTPUTS}")
    for name in ("base", "x", "target"):
        (folder / f"{name}.safetensors").unlink(missing_ok=True)
    return folder


@pytest.mark.parametrize("which", ["target", "base"])
def test_compare(study, which):
    """A block of which target or base has a tensor in another shape is named; others can be chosen and are scored."""
    folder = study()
    paths = {"candidate": folder / "target.safetensors", "target": folder / "base.safetensors", "base": None}
    paths[which] = folder / "x.safetensors"
    kind = {"metric": "delta", "base": paths["base"] or folder / "base.safetensors"}

    with pytest.raises(CheckpointError) as caught:
        compare(paths["candidate"], paths["target"], **kind)
    (problem,) = caught.value.problems
    assert problem == (
        f"{folder / 'x.safetensors'}: tensor {POSITIONS!r} has shape [248, 8], but [77, 8] in "
        f"{paths['candidate']}, so BASE cannot be scored; choose blocks without it"
    )
    assert set(compare(paths["candidate"], paths["target"], blocks="IN00-OUT11", **kind)) == {
        *(f"IN{n:02}" for n in range(12)), "M00", *(f"OUT{n:02}" for n in range(12)),
    }  # fmt: skip


def run(*arguments):
    """The exit code of the command."""
    with pytest.raises(SystemExit) as left:
        main([str(argument) for argument in arguments])
    return int(left.value.code or 0)


def test_init(study, capsys):
    """A first recipe leaves a block closed where a source has another shape, says so, and its files fit each other."""
    folder = study()
    files = [folder / f"{name}.safetensors" for name in ("target", "base", "x")]

    assert run("init", *files, "-o", folder / "first", "--json") == 0

    made = json.loads(capsys.readouterr().out)
    assert made["free_alphas"] == 25
    (note,) = (note for note in made["notes"] if note.startswith("x.safetensors"))
    shapes = f"tensor {POSITIONS!r} of x.safetensors has shape [248, 8], but [77, 8] in the base"
    assert note == f"x.safetensors: no alpha on BASE: {shapes}"
    (hole,) = load_recipe(folder / "first" / "recipe.yaml").step("TEMP1").alpha.free
    assert len(hole.blocks) == 25
    assert "BASE" not in hole.blocks
    assert study_ceilings(load_study(folder / "first"), "delta")[0].total["ceiling"] > 0


def test_init_without_a_block_that_fits(study, capsys, write_sd1):
    """A source of which no block fits the base is left out, with the first tensor that differs."""
    folder = study()
    write_sd1(folder / "narrow.safetensors", width=4)
    files = [folder / f"{name}.safetensors" for name in ("target", "base", "narrow")]
    narrow = f"left out: {files[2]}: no block of it can be merged: tensor "

    assert run("init", *files, "-o", folder / "first") == 2
    assert f"\nblockfit: {narrow}" in capsys.readouterr().err
    assert not (folder / "first").exists()
    assert run("init", *files, folder / "x.safetensors", "-o", folder / "first", "--json") == 0
    made = json.loads(capsys.readouterr().out)
    assert list(made["models"]) == ["base", "x"]
    assert any(note.startswith(narrow) for note in made["notes"])


# --- What is told of files that go together badly ---------------------------------------------------------------------


def spoiled(folder, name):
    """Give a checkpoint a stranger, a marker and no VAE."""
    tensors = load_file(folder / f"{name}.safetensors")
    kept = {key: one for key, one in tensors.items() if not key.startswith("first_stage_model.")}
    save_file({**kept, "lora_x.weight": torch.ones(2), "v_pred": torch.tensor([])}, folder / f"{name}.safetensors")


def test_fit_tells(study):
    """A fit, resumed or not, and a ceiling tell of a source that lacks a part, holds strangers, predicts otherwise."""
    folder = study()
    spoiled(folder, "x")
    x, target = (folder / f"{name}.safetensors" for name in ("x", "target"))
    expected = [
        f"{x}: 1 tensor is no part of Stable Diffusion 1.x and is left out: 'lora_x.weight'",
        f"{x}: no VAE; what the recipe makes has that of base.safetensors",
        f"{x}: predicts velocity (v_pred), but {target} predicts noise; no merge turns the one into the other",
    ]

    for action in (fit, fit, study_ceilings):
        assert told(lambda action=action: action(load_study(folder))) == expected


def test_fit_tells_of_the_target(study):
    """Of a target it tells what a fit cannot see."""
    folder = study()
    tensors = load_file(folder / "target.safetensors")
    bare = {name: one for name, one in tensors.items() if not name.startswith((TEXT, "first_stage_model."))}
    save_file({**bare, f"other.{POSITIONS}": torch.ones(2)}, folder / "target.safetensors")

    lines = told(lambda: fit(load_study(folder)))

    start = f"{folder / 'target.safetensors'}: "
    assert lines == [
        f"{start}1 tensor is no part of Stable Diffusion 1.x and is left out: {f'other.{POSITIONS}'!r}",
        f"{start}no text encoder, so BASE is not compared",
        f"{start}no VAE, which similarities leave out anyway",
    ]


def test_compare_tells(study):
    """A comparison tells of candidate, target and base alike, each once."""
    folder = study()
    for name in ("x", "target"):
        spoiled(folder, name)
    paths = [folder / f"{name}.safetensors" for name in ("x", "target", "base")]

    lines = told(lambda: compare(*paths[:2], metric="delta", base=paths[2], blocks="output"))

    stranger = "1 tensor is no part of Stable Diffusion 1.x and is left out: 'lora_x.weight'"
    velocity = f"but {paths[1]} predicts velocity (v_pred); similarities do not show that"
    assert sorted(lines) == sorted(
        [
            f"{paths[0]}: {stranger}",
            f"{paths[1]}: {stranger}",
            *(f"{path}: no VAE, which similarities leave out anyway" for path in paths[:2]),
            f"{paths[2]}: predicts noise, {velocity}",
        ]
    )


def test_zeros_are_told_of_kept_statistics(study):
    """A half-downloaded source is told of by the fit that measures it, and by the next, which does not."""
    folder = study()
    tensors = load_file(folder / "x.safetensors")
    save_file({**tensors, QUERY: torch.zeros_like(tensors[QUERY])}, folder / "x.safetensors")

    for _ in range(2):
        (line,) = told(lambda: fit(load_study(folder)))
        assert line.startswith(f"{folder / 'x.safetensors'}: a tensor holds nothing but zeros where other inputs hold")


def test_commands_tell_on_stderr(study, capsys):
    """On the command line each is one line on stderr; --json keeps stdout to its one value."""
    folder = study()
    spoiled(folder, "x")

    assert run("compare", folder / "x.safetensors", "--target", folder / "target.safetensors", "--json") == 0
    shown = capsys.readouterr()
    assert isinstance(json.loads(shown.out), list)
    assert all(line.startswith(f"blockfit: warning: {folder}") for line in shown.err.splitlines())
    assert len(shown.err.splitlines()) == 3

    assert run("fit", folder, "--json") == 0
    shown = capsys.readouterr()
    json.loads(shown.out)
    assert len([line for line in shown.err.splitlines() if "warning" in line]) == 3
    assert run("merge", folder / "best.yaml", "-o", folder / "out.safetensors", "--json") == 0
    shown = capsys.readouterr()
    json.loads(shown.out)
    first, *others = (line.split(": ", 3)[3] for line in shown.err.splitlines())
    assert first == "1 tensor is no part of Stable Diffusion 1.x and is left out: 'lora_x.weight'"
    base = folder / "base.safetensors"
    assert others == [
        "no VAE; the merge has that of base.safetensors",
        f"predicts velocity (v_pred), but {base} predicts noise; the merge is sampled as base.safetensors is",
    ]
