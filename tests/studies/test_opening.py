"""Saved statistics: when a later run uses them, and when files are measured again or refused."""

import os
import shutil
import sys
from contextlib import nullcontext

import pytest
import torch
from comparing_trials import essence
from measured_files import load_measured
from safetensors.torch import load_file, save_file

from optimizer.analysis import study_ceilings
from optimizer.checkpoints import STATISTICS
from optimizer.errors import BlockfitWarning, CheckpointError, StudyError
from optimizer.library import HashCache, Library, sha256
from optimizer.recipes import load_recipe
from optimizer.search import fit
from optimizer.similarity import build_metric, measure_statistics, open_comparison, save_measured
from optimizer.studies import load_study, open_study

STEPS = """\
  - {name: T1, mode: add_difference, a: base, b: x, c: base, alpha: {search: [0, 1], blocks: "OUT03,OUT06"}}
  - {name: T2, mode: weight_sum, a: T1, b: y, alpha: {search: [0, 1], blocks: "OUT03,OUT06"}}
"""
FIRST = STEPS.splitlines(keepends=True)[0]
QUERY = "model.diffusion_model.output_blocks.6.1.transformer_blocks.0.attn1.to_q.weight"


@pytest.fixture
def write_copies(pool, tmp_path):
    """Return a function that writes a study into a folder with copies of base, x, y and the target."""
    folder = tmp_path / "own"
    folder.mkdir()
    for name, file in (("base", "base"), ("x", "x"), ("y", "y"), ("z", "target")):
        shutil.copyfile(pool.paths[name], folder / f"{file}.safetensors")

    def write(steps=STEPS, metric="delta", trials=3, models=("base", "x", "y")):
        listed = "".join(f"  {name}: {{file: {name}.safetensors}}\n" for name in models)
        (folder / "recipe.yaml").write_text(f"models:\n{listed}steps:\n{steps}", encoding="utf-8")
        stage = f"  - {{name: s, metric: {metric}, trials: {trials}}}\n"
        text = f"recipe: recipe.yaml\ntarget: {{file: target.safetensors}}\nstages:\n{stage}"
        (folder / "study.yaml").write_text(text, encoding="utf-8")
        return folder

    return write


@pytest.fixture
def passes(monkeypatch):
    """A list that grows by one with each pass over the checkpoints."""
    from optimizer.studies import opening

    counted = []
    real = opening.measure_family
    monkeypatch.setattr(opening, "measure_family", lambda *args, **named: counted.append(1) or real(*args, **named))
    return counted


def change(path, value=0.25):
    """Change one tensor of a file."""
    tensors = load_file(path)
    tensors[QUERY] = tensors[QUERY] + value
    save_file(tensors, path)


def test_all_work_shares_one_pass(write_copies, passes):
    """Fits, ceilings and other stages on the same files share one pass, which covers every block."""
    study = load_study(write_copies())
    fit(study)
    fit(study.with_trials(4))
    study_ceilings(study)
    fit(load_study(write_copies(STEPS.replace("OUT03,OUT06", "BASE,IN03"), "elements")), fresh=True)

    assert len(passes) == 1
    assert load_measured(study.folder / STATISTICS).blocks == study.recipe.layout.blocks


def test_kept_statistics_are_those_measured(write_copies):
    """Saved statistics equal those of a pass over the stage's blocks, bitwise."""
    study = load_study(write_copies())
    study_ceilings(study)
    kept = load_measured(study.folder / STATISTICS).statistics
    with open_comparison(study.recipe.layout, study.sources, study.target, base=study.sources["base"]) as comparison:
        direct = measure_statistics(comparison, ["OUT06", "BASE"], threads=3)

    rows = [kept.names.index(name) for name in direct.names]
    assert torch.equal(kept.gram[rows], direct.gram)
    assert torch.equal(kept.group[rows], direct.group)
    assert torch.equal(kept.referenced[rows], direct.referenced)


@pytest.mark.parametrize("missing", [["target"], ["base", "x", "y", "target"]])
def test_a_fit_continues_without_checkpoints(write_copies, passes, missing):
    """Without checkpoints a fit by delta continues, and writes the same recipe, hashes included."""
    folder = write_copies()
    before = fit(load_study(folder)).recipe
    for name in missing:
        (folder / f"{name}.safetensors").unlink()

    after = fit(load_study(folder)).recipe
    more = fit(load_study(folder).with_trials(5))

    assert after == before
    assert after.fitted.target.sha256
    assert len(more.searches[0].trials) == 5
    assert study_ceilings(load_study(folder))[1].total["recipe"] > 0
    assert len(passes) == 1


def test_a_smaller_recipe_scores_the_same_without_checkpoints(write_copies):
    """Another recipe over some of the sources has equal scores with and without checkpoints."""
    folder = write_copies()
    study_ceilings(load_study(folder))
    direct = fit(load_study(write_copies(FIRST)))
    for path in folder.glob("*.safetensors"):
        if path.name != STATISTICS:
            path.unlink()
    kept = fit(load_study(folder), fresh=True)

    assert essence(kept.searches[0].trials) == essence(direct.searches[0].trials)
    assert len(load_measured(folder / STATISTICS).sources) == 3


def test_unknown_hashes_are_left_out(write_copies):
    """Hashes that no run has taken are left out of best.yaml by a fit without checkpoints."""
    folder = write_copies()
    study_ceilings(load_study(folder))
    (folder / "x.safetensors").unlink()
    fit(load_study(folder))

    best = load_recipe(folder / "best.yaml")
    assert best.models["x"].sha256 is None
    assert best.fitted.target.sha256 is None


@pytest.mark.parametrize("which", ["x", "base", "target"])
def test_changed_files_are_measured_again(write_copies, passes, which):
    """A source, base or target with other tensors is measured anew, with new results."""
    folder = write_copies()
    first = study_ceilings(load_study(folder), "delta")[0].total["ceiling"]
    change(folder / f"{which}.safetensors")

    second = study_ceilings(load_study(folder), "delta")[0].total["ceiling"]
    (folder / STATISTICS).unlink()

    assert len(passes) == 2
    assert first != second
    assert study_ceilings(load_study(folder), "delta")[0].total["ceiling"] == second


def test_a_changed_file_invalidates_the_statistics(write_copies):
    """If one file is missing and another has changed, statistics are not used, and the missing one is named."""
    folder = write_copies()
    study_ceilings(load_study(folder))
    (folder / "target.safetensors").unlink()
    change(folder / "x.safetensors")

    with pytest.raises(StudyError, match=r"target\.file: 'target\.safetensors' not found"):
        study_ceilings(load_study(folder))


def test_statistics_are_not_used_for_renamed_sources(write_copies):
    """A recipe that names another, missing file is not fitted on the statistics of the earlier one."""
    folder = write_copies()
    study_ceilings(load_study(folder))
    recipe = folder / "recipe.yaml"
    recipe.write_text(
        recipe.read_text(encoding="utf-8").replace("x.safetensors", "other.safetensors"), encoding="utf-8"
    )

    with pytest.raises(StudyError, match=r"models\.x\.file: 'other\.safetensors' not found"):
        fit(load_study(folder))


def test_attention_needs_the_files(write_copies):
    """A fit by attention without the checkpoints is refused and names them; a ceiling only notes the limit."""
    folder = write_copies(metric="attention")
    study_ceilings(load_study(folder))
    (folder / "y.safetensors").unlink()

    with pytest.raises(StudyError, match=r"models\.y\.file"):
        fit(load_study(folder))
    assert all("attention" in found.note for found in study_ceilings(load_study(folder)))


def test_mapping_and_base_are_part_of_the_key(write_copies, passes):
    """Under another mapping of tensors to blocks the files are measured anew."""
    folder = write_copies()
    study_ceilings(load_study(folder))
    recipe = folder / "recipe.yaml"
    recipe.write_text("mapping: mecha\n" + recipe.read_text(encoding="utf-8"), encoding="utf-8")
    study_ceilings(load_study(folder))

    assert len(passes) == 2


@pytest.mark.parametrize("broken", ["empty", "text", "cut", "foreign", "nan", "shape", "version"])
def test_broken_statistics_are_replaced(write_copies, passes, broken):
    """A foreign or broken file of statistics is ignored with a warning, and replaced."""
    folder = write_copies()
    path = folder / STATISTICS
    before = study_ceilings(load_study(folder))
    content, measured = path.read_bytes(), load_measured(path)
    if broken in ("nan", "shape"):
        from dataclasses import replace

        gram = measured.gram * float("nan") if broken == "nan" else measured.gram[:, :-1]
        save_measured(replace(measured, gram=gram), path)
    else:
        texts = {"empty": b"", "text": b"no", "cut": content[: len(content) // 2]}
        texts |= {"foreign": (folder / "x.safetensors").read_bytes()}
        texts |= {"version": content.replace(b'\\"version\\": 2', b'\\"version\\": 1')}
        path.write_bytes(texts[broken])
        assert path.read_bytes() != content
    assert load_measured(path) is None

    # A file of another version is replaced without a warning.
    expected = nullcontext() if broken == "version" else pytest.warns(BlockfitWarning, match="cannot be used: .* anew$")
    with expected:
        assert study_ceilings(load_study(folder)) == before
    assert len(passes) == 2
    assert load_measured(path) is not None


def test_an_unscored_block_may_have_nan(write_copies):
    """A block with NaN is left out if no stage scores it; otherwise it is refused by file and tensor."""
    folder = write_copies()
    tensors = load_file(folder / "x.safetensors")
    unscored = QUERY.replace("output_blocks.6", "output_blocks.8")
    tensors[unscored] = torch.full_like(tensors[unscored], float("nan"))
    save_file(tensors, folder / "x.safetensors")

    study_ceilings(load_study(folder))
    kept = load_measured(folder / STATISTICS)
    assert "OUT08" not in kept.blocks
    assert "OUT07" in kept.blocks
    with pytest.raises(CheckpointError, match="holds NaN or Inf"):
        fit(load_study(write_copies(STEPS.replace("OUT03,OUT06", "OUT08"))))


def test_an_unwritable_folder_fails_no_run(write_copies, monkeypatch):
    """A run does not fail if statistics cannot be saved."""
    from optimizer.studies import opening

    def refuse(measured, path):
        raise CheckpointError(f"{path}: the folder cannot be written to")

    monkeypatch.setattr(opening, "save_measured", refuse)
    study = load_study(write_copies())
    with open_study(study, Library(), blocks=["OUT03"], device=torch.device("cpu")) as opened:
        assert opened.files is not None
        assert "OUT03" in opened.measured.blocks


def test_statistics_alone_refuse_a_metric_that_reads_tensors(write_copies):
    """Metrics of statistics are built without the files; a metric of tensors names the files that it needs."""
    with open_study(load_study(write_copies()), Library(), blocks=["OUT03"], device=torch.device("cpu")) as opened:
        measured = opened.measured

    assert build_metric("weights", measured, ["OUT03"], measured.statistics).blocks == ("OUT03",)
    with pytest.raises(CheckpointError) as caught:
        build_metric("attention", measured, ["OUT03"])
    files = "base.safetensors, x.safetensors, y.safetensors, target.safetensors"
    problem = f"the attention metric is computed from the tensors themselves; it needs the files {files}"
    assert caught.value.problems == (problem,)


# --- Files that change while they are in use --------------------------------------------------------------------------

CPU = torch.device("cpu")
IN_USE = pytest.mark.skipif(sys.platform == "win32", reason="Windows protects files that are in use")


def replace(path):
    """Replace a file by another."""
    replacement = path.with_suffix(".other")
    shutil.copyfile(path, replacement)
    change(replacement)
    replacement.replace(path)


def overwrite(path):
    """Write zeros into the second half of a file."""
    middle = path.stat().st_size // 2
    with path.open("r+b") as file:
        file.seek(middle)
        file.write(bytes(middle // 2))


def delete(path):
    """Delete a file."""
    path.unlink()


def cut(path):
    """Leave half of a file."""
    os.truncate(path, path.stat().st_size // 2)


FATES = {
    replace: "was replaced by another file",
    overwrite: "was changed",
    cut: "was changed",
    delete: "was deleted or moved",
}


def aged(folder):
    """Make the checkpoints older than any change: file systems resolve times to milliseconds only."""
    for path in folder.glob("*.safetensors"):
        os.utime(path, (1, 1))


def once(action, when):
    """Return a progress callback that runs `action` once, at the first or the last call."""
    done = []

    def progress(what, at, total):
        if what == "reading the checkpoints" and not done and (when == "first" or at == total):
            done.append(action())

    return progress


@IN_USE
@pytest.mark.parametrize("which", ["x", "base", "target"])
@pytest.mark.parametrize("when", ["first", "last"])
@pytest.mark.parametrize("how", FATES)
@pytest.mark.filterwarnings("ignore:.* nothing but zeros")  # another run then warns of zeros
def test_a_file_that_changes_during_the_pass_is_named(write_copies, which, when, how):
    """The file is named with advice; no statistics are saved, and another run measures the new file."""
    folder = write_copies()
    aged(folder)
    study, path = load_study(folder), folder / f"{which}.safetensors"
    hashes = HashCache(folder / "hashes.json")

    def measure():
        library = Library.of((), hashes, once(lambda: how(path), when))
        with open_study(study, library, blocks=["OUT03"], device=CPU):
            pytest.fail("measured")

    with pytest.raises(CheckpointError) as caught:
        measure()

    (problem,) = caught.value.problems
    assert problem.startswith(f"{path}: ")
    if when == "last":
        assert problem == f"{path}: {FATES[how]} while it was being read; run again"
    assert not (folder / STATISTICS).exists()
    if how in (replace, overwrite):
        with open_study(study, Library.of((), hashes), blocks=["OUT03"], device=CPU) as opened:
            again = opened.measured
        with open_study(load_study(write_copies()), Library(), blocks=["OUT03"], device=CPU) as opened:
            assert opened.measured.sources == again.sources
            assert opened.measured.target == again.target


@IN_USE
@pytest.mark.parametrize("known", [True, False])
@pytest.mark.parametrize("how", FATES)
def test_a_file_that_changed_after_the_fit_has_no_hash(write_copies, how, known):
    """A file that changed after it was fitted is reported, and its hash is noted nowhere."""
    folder = write_copies()
    aged(folder)
    study, hashes = load_study(folder), HashCache(folder / "hashes.json")
    digests = {name: sha256(folder / f"{name}.safetensors", hashes) for name in ("base", "x", "y", "target")}
    changed, expected = folder / "x.safetensors", {"base": digests["base"], "y": digests["y"], "": digests["target"]}
    library = Library.of((), hashes)
    with open_study(study, library, blocks=["OUT03"], device=CPU) as opened:
        how(changed)
        if changed.exists():
            sha256(changed, hashes)
        with pytest.warns(BlockfitWarning) as caught:
            found = opened.sha256(library, known=known)

    assert found == expected
    (line,) = [str(warning.message) for warning in caught]
    assert line.startswith(f"{changed}: {FATES[how]} during the fit: ")
    assert "best.yaml notes no hash of it" in line
    kept = load_measured(folder / STATISTICS)
    noted = {name: mark.sha256 for name, mark in kept.sources.items()}
    assert noted == {"base": digests["base"], "x": None, "y": digests["y"]}
    assert kept.target.sha256 == digests["target"]


@IN_USE
@pytest.mark.parametrize("how", FATES)
def test_attention_on_a_changed_file_is_refused(write_copies, how):
    """Attention on a file that was written to is refused; on a replaced or deleted one it is unchanged."""
    folder = write_copies(metric="attention")
    aged(folder)
    study, path = load_study(folder), folder / "x.safetensors"
    with open_study(study, Library(), blocks=["OUT03"], device=CPU) as opened:
        assert opened.files is not None
        coefficients = torch.full((1, len(opened.files.groups), 3), 1 / 3, dtype=torch.float64)
        before = build_metric("attention", opened.files, ["OUT03"]).score(coefficients)
        how(path)
        if FATES[how] == "was changed":
            with pytest.raises(
                CheckpointError, match=r"x\.safetensors: was changed while it was being read; run again"
            ):
                build_metric("attention", opened.files, ["OUT03"])
        else:
            assert torch.equal(build_metric("attention", opened.files, ["OUT03"]).score(coefficients), before)
