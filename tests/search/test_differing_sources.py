"""Studies of sources that differ in the shape of an unused tensor, in their parts, or in their prediction type."""

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
    """A function that writes a study of base and x, which has a LongCLIP; the target mixes only the output blocks."""
    alpha = {f"OUT{n:02}": TRUE for n in range(3, 12)}
    made = [{"name": "T1", "mode": "add_difference", "a": "base", "b": "x", "c": "base", "alpha": alpha}]
    target = merge_by_steps(made, pool.tensors, torch.float32)["T1"]
    save_file({name: tensor.contiguous() for name, tensor in target.items()}, tmp_path / "target.safetensors")
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


def warnings_of(action):
    """Return the warnings of an action."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", BlockfitWarning)
        action()
    return [str(warning.message) for warning in caught]


def test_an_unused_tensor_may_have_another_shape(study):
    """Alphas on the output blocks are found, bounded and merged although the text encoders differ in length."""
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
    assert all(torch.allclose(found[name], tensor, atol=1e-4) for name, tensor in target.items())


def test_metrics_leave_out_the_unused_tensor(study, pool):
    """Metrics that read tensors, and `verify`, leave out the tensor that no step needs."""
    folder = study("OUT06", metric="attention", scored="OUT06")
    assert fit(load_study(folder)).similarity > 0.999
    recipe = load_recipe(folder / "best.yaml")
    paths = {name: folder / f"{name}.safetensors" for name in ("base", "x")}

    (verified,) = verify(recipe, paths, folder / "target.safetensors")

    assert verified.measured["OUT06"] > 0.999


def test_a_free_alpha_on_differing_shapes_is_refused(study):
    """A free alpha on a block with differing shapes is refused, with file, tensor, block and a remedy."""
    folder = study(blocks=f"BASE,{OUTPUTS}", scored=f"BASE,{OUTPUTS}")

    with pytest.raises(CheckpointError) as caught:
        fit(load_study(folder))

    (problem,) = caught.value.problems
    assert problem == (
        f"{folder / 'x.safetensors'}: tensor {POSITIONS!r} of BASE has shape [248, 8], but [77, 8] in "
        f"{folder / 'base.safetensors'}; only equal shapes merge, and with alphas of 0 on BASE it would take no part"
    )


def test_statistics_record_the_left_out_tensor(study):
    """Statistics record a tensor left out for its shape, and are refused for alphas that need it."""
    folder = study()
    study_ceilings(load_study(folder))
    (part,) = (part for part in load_measured(folder / STATISTICS).parts if part.name == POSITIONS)
    assert (part.shape, part.holders, part.other_shapes) == ((77, 8), (0,), (1,))
    for name in ("base", "x", "target"):
        (folder / f"{name}.safetensors").unlink()

    assert study_ceilings(load_study(folder))[1].total["ceiling"] == pytest.approx(1, abs=1e-9)
    with pytest.raises(StudyError, match=r"models\.base\.file: 'base\.safetensors' not found"):
        study_ceilings(load_study(study_with_free_base(study, folder)))


def study_with_free_base(study, folder):
    """Write the same study with BASE free, without its checkpoints."""
    study(blocks=f"BASE,{OUTPUTS}", scored=f"BASE,{OUTPUTS}")
    for name in ("base", "x", "target"):
        (folder / f"{name}.safetensors").unlink(missing_ok=True)
    return folder


@pytest.mark.parametrize("which", ["target", "base"])
def test_compare_refuses_a_block_of_differing_shapes(study, which):
    """A block with differing shapes is refused by name; other blocks can be chosen and scored."""
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
    """Run the command and return its exit code."""
    with pytest.raises(SystemExit) as left:
        main([str(argument) for argument in arguments])
    return int(left.value.code or 0)


def test_init_leaves_out_a_block_of_differing_shapes(study, capsys):
    """`init` gives no free alpha to a block with differing shapes, reports it, and writes a valid study."""
    folder = study()
    files = [folder / f"{name}.safetensors" for name in ("target", "base", "x")]

    assert run("init", *files, "-o", folder / "first", "--json") == 0

    made = json.loads(capsys.readouterr().out)
    assert made["free_alphas"] == 25
    (note,) = (note for note in made["notes"] if note.startswith("x.safetensors"))
    shapes = f"tensor {POSITIONS!r} of x.safetensors has shape [248, 8], but [77, 8] in the base"
    assert note == f"x.safetensors: no alpha on BASE: {shapes}"
    (free,) = load_recipe(folder / "first" / "recipe.yaml").step("TEMP1").alpha.free
    assert len(free.blocks) == 25
    assert "BASE" not in free.blocks
    assert study_ceilings(load_study(folder / "first"), "delta")[0].total["ceiling"] > 0


def test_init_leaves_out_a_source_without_a_fitting_block(study, capsys, write_sd1):
    """A source without a block that fits the base is left out, with the first tensor that differs."""
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


# --- Warnings about files that do not match ---------------------------------------------------------------------------


def spoil(folder, name):
    """Add an unknown tensor and a v-prediction marker to a checkpoint, and remove its VAE."""
    tensors = load_file(folder / f"{name}.safetensors")
    kept = {key: tensor for key, tensor in tensors.items() if not key.startswith("first_stage_model.")}
    save_file({**kept, "lora_x.weight": torch.ones(2), "v_pred": torch.tensor([])}, folder / f"{name}.safetensors")


def test_fits_and_ceilings_warn_of_a_mismatched_source(study):
    """New and resumed fits, and ceilings, warn of a missing part, unknown tensors and another prediction type."""
    folder = study()
    spoil(folder, "x")
    x, target = (folder / f"{name}.safetensors" for name in ("x", "target"))
    expected = [
        f"{x}: 1 tensor is no part of Stable Diffusion 1.x and is left out: 'lora_x.weight'",
        f"{x}: no VAE; the recipe's merge has that of base.safetensors",
        f"{x}: predicts velocity (v_pred), but {target} predicts noise; no merge turns the one into the other",
    ]

    for action in (fit, fit, study_ceilings):
        assert warnings_of(lambda action=action: action(load_study(folder))) == expected


def test_a_fit_warns_of_an_incomplete_target(study):
    """A fit warns of unknown tensors and missing parts of the target."""
    folder = study()
    tensors = load_file(folder / "target.safetensors")
    bare = {name: tensor for name, tensor in tensors.items() if not name.startswith((TEXT, "first_stage_model."))}
    save_file({**bare, f"other.{POSITIONS}": torch.ones(2)}, folder / "target.safetensors")

    lines = warnings_of(lambda: fit(load_study(folder)))

    start = f"{folder / 'target.safetensors'}: "
    assert lines == [
        f"{start}1 tensor is no part of Stable Diffusion 1.x and is left out: {f'other.{POSITIONS}'!r}",
        f"{start}no text encoder, so BASE is not compared",
        f"{start}no VAE, which similarities leave out anyway",
    ]


def test_compare_warns_once_of_each_file(study):
    """A comparison warns of candidate, target and base, once each."""
    folder = study()
    for name in ("x", "target"):
        spoil(folder, name)
    paths = [folder / f"{name}.safetensors" for name in ("x", "target", "base")]

    lines = warnings_of(lambda: compare(*paths[:2], metric="delta", base=paths[2], blocks="output"))

    unknown = "1 tensor is no part of Stable Diffusion 1.x and is left out: 'lora_x.weight'"
    velocity = f"but {paths[1]} predicts velocity (v_pred); similarities do not show this"
    assert sorted(lines) == sorted(
        [
            f"{paths[0]}: {unknown}",
            f"{paths[1]}: {unknown}",
            *(f"{path}: no VAE, which similarities leave out anyway" for path in paths[:2]),
            f"{paths[2]}: predicts noise, {velocity}",
        ]
    )


def test_zeros_are_reported_from_saved_statistics(study):
    """A fit warns of a half-downloaded source, and so does the next one, which only reads the statistics."""
    folder = study()
    tensors = load_file(folder / "x.safetensors")
    save_file({**tensors, QUERY: torch.zeros_like(tensors[QUERY])}, folder / "x.safetensors")

    for _ in range(2):
        (line,) = warnings_of(lambda: fit(load_study(folder)))
        assert line.startswith(f"{folder / 'x.safetensors'}: a tensor holds nothing but zeros where other inputs hold")


def test_commands_warn_on_stderr(study, capsys):
    """Each warning of a command is one line on stderr; with --json stdout contains only the value."""
    folder = study()
    spoil(folder, "x")

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
    first, *rest = (line.split(": ", 3)[3] for line in shown.err.splitlines())
    assert first == "1 tensor is no part of Stable Diffusion 1.x and is left out: 'lora_x.weight'"
    base = folder / "base.safetensors"
    assert rest == [
        "no VAE; the merge has that of base.safetensors",
        f"predicts velocity (v_pred), but {base} predicts noise; the merge is sampled as base.safetensors is",
    ]
