"""Statistics that are kept: when they serve a later run, when files are measured again, when they change meanwhile."""

import os
import shutil
import sys
from contextlib import nullcontext

import pytest
import torch
from measured_files import load_measured
from safetensors.torch import load_file, save_file

from optimizer.analysis import study_ceilings
from optimizer.checkpoints import STATISTICS
from optimizer.errors import BlockfitWarning, CheckpointError, StudyError
from optimizer.library import HashCache, sha256
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
def own(pool, tmp_path):
    """Copies of base, x and y, and of z as the target, in a folder with a study; `write(steps, metric)` changes it."""
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
    """Counts the passes over checkpoints."""
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


def test_one_pass(own, passes):
    """Fits, ceilings and other stages on the same files share one pass; the whole of every block is in it."""
    study = load_study(own())
    fit(study)
    fit(study.with_trials(4))
    study_ceilings(study)
    fit(load_study(own(STEPS.replace("OUT03,OUT06", "BASE,IN03"), "elements")), fresh=True)

    assert len(passes) == 1
    assert load_measured(study.folder / STATISTICS).blocks == study.recipe.layout.blocks


def test_kept_statistics_are_those_measured(own):
    """What is read back is what a pass over the stage's blocks gives, bit for bit."""
    study = load_study(own())
    study_ceilings(study)
    kept = load_measured(study.folder / STATISTICS).statistics
    with open_comparison(study.recipe.layout, study.sources, study.target, base=study.sources["base"]) as comparison:
        direct = measure_statistics(comparison, ["OUT06", "BASE"], threads=3)

    rows = [kept.names.index(name) for name in direct.names]
    assert torch.equal(kept.gram[rows], direct.gram)
    assert torch.equal(kept.group[rows], direct.group)
    assert torch.equal(kept.referenced[rows], direct.referenced)


@pytest.mark.parametrize("gone", [["target"], ["base", "x", "y", "target"]])
def test_fit_without_checkpoints(own, passes, gone):
    """Without checkpoints a fit by delta continues, and writes the same recipe, hashes and all, as with them."""
    folder = own()
    before = fit(load_study(folder)).recipe
    for name in gone:
        (folder / f"{name}.safetensors").unlink()

    after = fit(load_study(folder)).recipe
    more = fit(load_study(folder).with_trials(5))

    assert after == before
    assert after.fitted.target.sha256
    assert len(more.searches[0].trials) == 5
    assert study_ceilings(load_study(folder))[1].total["recipe"] > 0
    assert len(passes) == 1


def test_a_smaller_recipe_without_checkpoints(own):
    """Another recipe over some of the sources, fitted without checkpoints, has the values that it has with them."""
    folder = own()
    study_ceilings(load_study(folder))
    direct = fit(load_study(own(FIRST)))
    for path in folder.glob("*.safetensors"):
        if path.name != STATISTICS:
            path.unlink()
    kept = fit(load_study(folder), fresh=True)

    assert [trial.values for trial in kept.searches[0].trials] == [trial.values for trial in direct.searches[0].trials]
    assert len(load_measured(folder / STATISTICS).sources) == 3


def test_hashes_that_were_never_taken(own):
    """After a ceiling alone no hash is known: a fit without checkpoints leaves them out of best.yaml."""
    folder = own()
    study_ceilings(load_study(folder))
    (folder / "x.safetensors").unlink()
    fit(load_study(folder))

    best = load_recipe(folder / "best.yaml")
    assert best.models["x"].sha256 is None
    assert best.fitted.target.sha256 is None


@pytest.mark.parametrize("which", ["x", "base", "target"])
def test_changed_files_are_measured_again(own, passes, which):
    """A source, base or target with other tensors is measured anew, and the figures are its own."""
    folder = own()
    first = study_ceilings(load_study(folder), "delta")[0].total["ceiling"]
    change(folder / f"{which}.safetensors")

    second = study_ceilings(load_study(folder), "delta")[0].total["ceiling"]
    (folder / STATISTICS).unlink()

    assert len(passes) == 2
    assert first != second
    assert study_ceilings(load_study(folder), "delta")[0].total["ceiling"] == second


def test_changed_file_while_others_are_missing(own):
    """With a file missing, another that changed makes the statistics useless: what is missing is named."""
    folder = own()
    study_ceilings(load_study(folder))
    (folder / "target.safetensors").unlink()
    change(folder / "x.safetensors")

    with pytest.raises(StudyError, match=r"target\.file: 'target\.safetensors' not found"):
        study_ceilings(load_study(folder))


def test_renamed_sources_while_missing(own):
    """A recipe that names another file, which is not there, is not fitted on the statistics of the former."""
    folder = own()
    study_ceilings(load_study(folder))
    recipe = folder / "recipe.yaml"
    recipe.write_text(
        recipe.read_text(encoding="utf-8").replace("x.safetensors", "other.safetensors"), encoding="utf-8"
    )

    with pytest.raises(StudyError, match=r"models\.x\.file: 'other\.safetensors' not found"):
        fit(load_study(folder))


def test_attention_needs_the_files(own):
    """A fit by attention without the checkpoints is refused, naming them; a ceiling is not, and says what it is not."""
    folder = own(metric="attention")
    study_ceilings(load_study(folder))
    (folder / "y.safetensors").unlink()

    with pytest.raises(StudyError, match=r"models\.y\.file"):
        fit(load_study(folder))
    assert all("attention" in found.note for found in study_ceilings(load_study(folder)))


def test_mapping_and_base_are_part_of_the_key(own, passes):
    """Another mapping puts tensors into other blocks: they are measured anew."""
    folder = own()
    study_ceilings(load_study(folder))
    recipe = folder / "recipe.yaml"
    recipe.write_text("mapping: mecha\n" + recipe.read_text(encoding="utf-8"), encoding="utf-8")
    study_ceilings(load_study(folder))

    assert len(passes) == 2


@pytest.mark.parametrize("broken", ["empty", "text", "cut", "foreign", "nan", "shape", "version"])
def test_broken_statistics(own, passes, broken):
    """A file that is no such file, or not whole, is passed over, which is said, and written anew."""
    folder = own()
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

    # One of another version is nobody's fault.
    told = nullcontext() if broken == "version" else pytest.warns(BlockfitWarning, match="cannot be used: .* anew$")
    with told:
        assert study_ceilings(load_study(folder)) == before
    assert len(passes) == 2
    assert load_measured(path) is not None


def test_values_that_are_not_finite_elsewhere(own):
    """NaN in a block that no stage scores leaves that block out; scored, it is refused by file and tensor."""
    folder = own()
    tensors = load_file(folder / "x.safetensors")
    other = QUERY.replace("output_blocks.6", "output_blocks.8")
    tensors[other] = torch.full_like(tensors[other], float("nan"))
    save_file(tensors, folder / "x.safetensors")

    study_ceilings(load_study(folder))
    kept = load_measured(folder / STATISTICS)
    assert "OUT08" not in kept.blocks
    assert "OUT07" in kept.blocks
    with pytest.raises(CheckpointError, match="holds NaN or Inf"):
        fit(load_study(own(STEPS.replace("OUT03,OUT06", "OUT08"))))


def test_a_folder_that_cannot_be_written(own, monkeypatch):
    """Statistics that cannot be kept are no reason to fail."""
    from optimizer.studies import opening

    def refuse(measured, path):
        raise CheckpointError(f"{path}: the folder cannot be written to")

    monkeypatch.setattr(opening, "save_measured", refuse)
    study = load_study(own())
    with open_study(study, blocks=["OUT03"], device=torch.device("cpu"), progress=lambda *_: None) as opened:
        assert opened.files is not None
        assert "OUT03" in opened.measured.blocks


# --- Files that change while they are in use --------------------------------------------------------------------------

CPU = torch.device("cpu")
IN_USE = pytest.mark.skipif(sys.platform == "win32", reason="Windows protects files that are in use")


def replace(path):
    """Put another file in a file's place."""
    other = path.with_suffix(".other")
    shutil.copyfile(path, other)
    change(other)
    other.replace(path)


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
    """Let the checkpoints be older than what is done to them: file systems tell times to some milliseconds only."""
    for path in folder.glob("*.safetensors"):
        os.utime(path, (1, 1))


def once(action, when):
    """A callback for progress that does something once, at the first or the last call."""
    done = []

    def progress(what, at, total):
        if what == "reading the checkpoints" and not done and (when == "first" or at == total):
            done.append(action())

    return progress


@IN_USE
@pytest.mark.parametrize("which", ["x", "base", "target"])
@pytest.mark.parametrize("when", ["first", "last"])
@pytest.mark.parametrize("how", FATES)
@pytest.mark.filterwarnings("ignore:.* nothing but zeros")  # of what another run finds then
def test_a_file_that_changes_while_it_is_measured(own, which, when, how):
    """It is named, with what to do; nothing measured is kept, and another run measures what is there then."""
    folder = own()
    aged(folder)
    study, path = load_study(folder), folder / f"{which}.safetensors"
    named = {"device": CPU, "blocks": ["OUT03"], "hashes": HashCache(folder / "hashes.json")}

    def measure():
        with open_study(study, progress=once(lambda: how(path), when), **named):
            pytest.fail("measured")

    with pytest.raises(CheckpointError) as caught:
        measure()

    (problem,) = caught.value.problems
    assert problem.startswith(f"{path}: ")
    if when == "last":
        assert problem == f"{path}: {FATES[how]} while it was being read; run again"
    assert not (folder / STATISTICS).exists()
    if how in (replace, overwrite):
        with open_study(study, progress=lambda *_: None, **named) as opened:
            again = opened.measured
        with open_study(load_study(own()), device=CPU, blocks=["OUT03"], progress=lambda *_: None) as opened:
            assert opened.measured.sources == again.sources
            assert opened.measured.target == again.target


@IN_USE
@pytest.mark.parametrize("known", [True, False])
@pytest.mark.parametrize("how", FATES)
def test_no_hash_of_a_file_that_was_not_fitted(own, how, known):
    """What lies at a path after the search, and is not what was fitted, is told, and its hash is noted nowhere."""
    folder = own()
    aged(folder)
    study, hashes = load_study(folder), HashCache(folder / "hashes.json")
    digests = {name: sha256(folder / f"{name}.safetensors", hashes) for name in ("base", "x", "y", "target")}
    changed, wanted = folder / "x.safetensors", {"base": digests["base"], "y": digests["y"], "": digests["target"]}
    with open_study(study, blocks=["OUT03"], device=CPU, progress=lambda *_: None, hashes=hashes) as opened:
        how(changed)
        if changed.exists():
            sha256(changed, hashes)
        with pytest.warns(BlockfitWarning) as told:
            found = opened.sha256(hashes, lambda *_: None, known=known)

    assert found == wanted
    (line,) = [str(one.message) for one in told]
    assert line.startswith(f"{changed}: {FATES[how]} during the fit: ")
    assert "best.yaml notes no hash of it" in line
    kept = load_measured(folder / STATISTICS)
    noted = {name: mark.sha256 for name, mark in kept.sources.items()}
    assert noted == {"base": digests["base"], "x": None, "y": digests["y"]}
    assert kept.target.sha256 == digests["target"]


@IN_USE
@pytest.mark.parametrize("how", FATES)
def test_a_metric_of_a_file_that_changes(own, how):
    """Attention of a file that was written to is refused; of one that was replaced or deleted it is what it was."""
    folder = own(metric="attention")
    aged(folder)
    study, path = load_study(folder), folder / "x.safetensors"
    with open_study(study, blocks=["OUT03"], device=CPU, progress=lambda *_: None) as opened:
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
