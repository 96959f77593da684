"""Every command that computes with a recipe's files compares them with the hashes noted in the recipe."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from optimizer.analysis import verify
from optimizer.cli import main
from optimizer.errors import CheckpointError
from optimizer.files import CHECKPOINT_SUFFIXES
from optimizer.library import HashCache, Library, read_provenance
from optimizer.merging import check_noted_hashes, merge
from optimizer.recipes import Model, load_recipe
from optimizer.search import fit
from optimizer.studies import load_study

Write = Callable[..., dict[str, torch.Tensor]]
Run = Callable[..., tuple[int, list[str]]]

RECIPE = """models:
  base: {file: base, sha256: "BASE"}
  one: {file: one.safetensors, sha256: "ONE"}
  other: {file: other}
steps: [{name: OUT, mode: add_difference, a: base, b: one, c: base, alpha: ALPHA}]
"""
STUDY = """recipe: recipe.yaml
target: {file: target}
stages: [{name: all, metric: delta, trials: 2, sampler: random}]
"""
NAME = "model.diffusion_model.out.2.weight"
FREE = "{search: [0, 1], tie: true}"


@pytest.fixture
def folder(tmp_path: Path, write_sd1: Write, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A study whose recipe notes the hashes of its files, and a finished recipe of the same files."""
    monkeypatch.setenv("BLOCKFIT_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "study"
    folder.mkdir()
    base = write_sd1(folder / "base.safetensors")
    for seed, name in enumerate(("one", "other", "target"), start=1):
        write_sd1(folder / f"{name}.safetensors", seed=seed, around=base, distance=0.03)
    note(folder)
    (folder / "study.yaml").write_text(STUDY, encoding="utf-8")
    return folder


def note(folder: Path, one: str | None = None, digits: int = 64) -> None:
    """Write both recipes with the hashes of the files, or with another hash for `one`."""
    hashes = {"BASE": digest(folder / "base.safetensors"), "ONE": one or digest(folder / "one.safetensors")}
    for name, alpha in (("recipe", FREE), ("done", "0.5")):
        text = RECIPE.replace("ALPHA", alpha)
        for place, value in hashes.items():
            text = text.replace(f'"{place}"', f'"{value[:digits]}"')
        (folder / f"{name}.yaml").write_text(text, encoding="utf-8")


def digest(path: Path) -> str:
    """Return the sha256 of a file."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def change(folder: Path, write_sd1: Write, seed: int = 9) -> tuple[str, str]:
    """Replace a file by another version and return its hashes before and after."""
    path = folder / "one.safetensors"
    before = digest(path)
    write_sd1(path, seed=seed, around=load_file(folder / "base.safetensors"), distance=0.03)
    return before, digest(path)


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """Run the command and return its exit code and the lines on stderr."""

    def run(*arguments: object) -> tuple[int, list[str]]:
        with pytest.raises(SystemExit) as left:
            main([str(argument) for argument in arguments])
        return int(left.value.code or 0), capsys.readouterr().err.splitlines()

    return run


def metadata(path: Path) -> dict[str, str]:
    """Return the metadata of a merged file."""
    with safe_open(path, "pt") as file:
        return dict(file.metadata())


COMMANDS = {
    "merge": lambda folder: ("merge", folder / "done.yaml", "-o", folder / "out.safetensors"),
    "merge without a recipe": lambda folder: (
        *("merge", folder / "done.yaml", "--no-recipe", "-o"),
        folder / "out.safetensors",
    ),
    "verify": lambda folder: ("verify", folder / "done.yaml", "--target", folder / "target.safetensors"),
    "simplify": lambda folder: (
        *("simplify", folder / "done.yaml", "--target", folder / "target.safetensors", "--metric", "weights"),
        *("-o", folder / "simple.yaml"),
    ),
}


@pytest.mark.parametrize("digits", [64, 10])
@pytest.mark.parametrize("command", COMMANDS)
def test_a_file_with_another_hash_is_refused(
    folder: Path, write_sd1: Write, run: Run, command: str, digits: int
) -> None:
    """A file with another content is refused with both hashes, and nothing is written, for full and short noted hashes.

    The right file is accepted, and --no-verify accepts the other one.
    """
    arguments = COMMANDS[command](folder)
    note(folder, digits=digits)
    assert run(*arguments)[0] == 0
    noted, found = change(folder, write_sd1)
    before = {path: path.read_bytes() for path in folder.iterdir()}

    code, (line,) = run(*arguments)

    assert code == 2
    assert line == (
        f"blockfit: {folder / 'done.yaml'}: models.one.sha256: {noted[:10]} is noted, but {folder / 'one.safetensors'} "
        f"has the hash {found[:10]}: it is not the file that was used; put that file there, correct or "
        "leave out `sha256`, or continue anyway (--no-verify)"
    )
    assert {path: path.read_bytes() for path in folder.iterdir()} == before
    assert run(*arguments, "--no-verify")[0] == 0


class TestMergedFiles:
    """The hashes in a merged file's metadata."""

    def test_a_verified_merge_records_full_hashes(self, folder: Path, run: Run) -> None:
        """A merge of the noted files records their full hashes and no remark."""
        note(folder, digits=10)
        assert run("merge", folder / "done.yaml", "-o", folder / "out.safetensors")[0] == 0

        found = metadata(folder / "out.safetensors")
        assert "blockfit.hashes" not in found
        models = json.loads(found["sd_merge_recipe"])["recipe"]["models"]
        assert models["one"]["sha256"] == digest(folder / "one.safetensors")
        assert "sha256" not in models["other"]

    @pytest.mark.parametrize("options", [(), ("--no-recipe",)])
    def test_an_unverified_merge_records_it(
        self, folder: Path, write_sd1: Write, run: Run, options: tuple[str, ...]
    ) -> None:
        """A merge with --no-verify records "not verified" and the hashes of the merged files."""
        noted, found = change(folder, write_sd1)
        output = folder / "out.safetensors"
        assert run("merge", folder / "done.yaml", "--no-verify", *options, "-o", output)[0] == 0

        fields = metadata(output)
        assert fields["blockfit.hashes"] == "not verified"
        assert not any(noted in text for text in fields.values())
        if not options:
            assert found in json.loads(fields["sd_merge_models"])
            assert json.loads(fields["sd_merge_recipe"])["recipe"]["models"]["one"]["sha256"] == found
            provenance = read_provenance(fields)
            assert provenance is not None
            assert provenance.method[-1] == "hashes that its recipe noted were not verified"

    def test_without_noted_hashes_no_remark_is_written(self, folder: Path, run: Run) -> None:
        """Without noted hashes there is no remark."""
        text = (folder / "done.yaml").read_text(encoding="utf-8")
        for name in ("base", "one"):
            text = text.replace(f', sha256: "{digest(folder / f"{name}.safetensors")}"', "")
        assert "sha256" not in text
        (folder / "plain.yaml").write_text(text, encoding="utf-8")
        assert run("merge", folder / "plain.yaml", "--no-verify", "-o", folder / "out.safetensors")[0] == 0

        assert "blockfit.hashes" not in metadata(folder / "out.safetensors")


class TestFitting:
    """A study whose recipe notes hashes, as a study that starts from a best.yaml does."""

    def test_a_fit_notes_the_same_hashes(self, folder: Path) -> None:
        """A fit of the noted files notes the same hashes."""
        note(folder, digits=10)
        result = fit(load_study(folder), hashes=HashCache(folder / "hashes.json"))

        assert result.recipe.models["one"].sha256 == digest(folder / "one.safetensors")

    def test_cached_hashes_are_checked_first(self, folder: Path, write_sd1: Write, run: Run) -> None:
        """A cached hash that differs is refused before any work, and nothing is written."""
        _, found = change(folder, write_sd1)
        assert run("inspect", folder / "one.safetensors")[0] == 0  # adds the hash to the cache
        before = {path: path.read_bytes() for path in folder.iterdir()}

        for command in ("fit", "ceiling"):
            code, lines = run(command, folder)
            assert (code, len(lines)) == (2, 1)
            assert "recipe.yaml: models.one.sha256: " in lines[0]
            assert f"has the hash {found[:10]}" in lines[0]
            left = {path: path.read_bytes() for path in folder.iterdir() if path.name != "fit.log"}
            assert left == before
        assert run("ceiling", folder, "--no-verify")[0] == 0

    def test_unknown_hashes_are_checked_afterwards(self, folder: Path, write_sd1: Write, run: Run) -> None:
        """Unknown hashes are computed and compared after the search, and best.yaml notes the right ones."""
        _, found = change(folder, write_sd1)

        code, lines = run("fit", folder)

        assert code == 2
        assert "models.one.sha256: " in lines[0]
        assert lines[1].endswith("best.yaml: was made from these files, and records their hashes")
        best = load_recipe(folder / "best.yaml")
        assert best.models["one"].sha256 == found
        assert run("merge", folder / "best.yaml", "-o", folder / "out.safetensors")[0] == 0
        assert run("fit", folder)[0] == 2
        assert fit(load_study(folder), check_hashes=False).recipe.models["one"].sha256 == found

    def test_statistics_replace_the_hashes_of_missing_files(self, folder: Path, write_sd1: Write) -> None:
        """Statistics that replace missing files also replace their hashes."""
        result = fit(load_study(folder))
        assert result.recipe.models["one"].sha256 == digest(folder / "one.safetensors")
        for path in folder.glob("*.safetensors"):
            if path.name != "statistics.safetensors":
                path.unlink()

        fit(load_study(folder).with_trials(3))
        text = (folder / "recipe.yaml").read_text(encoding="utf-8")
        (folder / "recipe.yaml").write_text(text.replace(str(result.recipe.models["one"].sha256), "0" * 64), "utf-8")
        with pytest.raises(
            CheckpointError, match=r"models\.one\.sha256: 0000000000 is noted, but one\.safetensors has"
        ):
            fit(load_study(folder).with_trials(4))


def test_the_noted_target_is_checked(folder: Path, write_sd1: Write, run: Run) -> None:
    """A recipe that notes its target's hash is simplified against that file; another target must be named."""
    fit(load_study(folder))
    before = (folder / "best.simple.yaml").read_bytes()
    write_sd1(folder / "target.safetensors", seed=20)

    code, (line,) = run("simplify", folder / "best.yaml")

    assert code == 2
    assert "best.yaml: fitted.target.sha256: " in line
    assert f"target.safetensors has the hash {digest(folder / 'target.safetensors')[:10]}" in line
    assert (folder / "best.simple.yaml").read_bytes() == before
    assert run("simplify", folder / "best.yaml", "--target", folder / "target.safetensors")[0] == 0
    assert run("simplify", folder / "best.yaml", "--no-verify")[0] == 0


class TestFromPython:
    """The Python functions."""

    def test_merge_checks_hashes(self, folder: Path, write_sd1: Write) -> None:
        """`merge` checks hashes itself, reads each file once, and leaves an existing output intact."""
        recipe = load_recipe(folder / "done.yaml")
        tasks: list[str] = []
        output = folder / "out.safetensors"
        merge(recipe, folder, output, progress=lambda what, done, total: tasks.append(what))
        files = {what.removeprefix("hashing ") for what in tasks if what.startswith("hashing ")}
        assert files == {"base.safetensors", "one.safetensors"}
        content = output.read_bytes()
        change(folder, write_sd1)

        with pytest.raises(CheckpointError, match=r"recipe: models\.one\.sha256: "):
            merge(recipe, folder, output)

        assert output.read_bytes() == content
        merge(recipe, folder, output, check_hashes=False, dtype=torch.float32)
        base, one = (load_file(folder / f"{name}.safetensors")[NAME] for name in ("base", "one"))
        torch.testing.assert_close(load_file(output)[NAME], (base + one) / 2)

    def test_verify_checks_hashes(self, folder: Path, write_sd1: Write) -> None:
        """`verify` checks hashes itself."""
        paths = {name: folder / f"{name}.safetensors" for name in ("base", "one", "other")}
        change(folder, write_sd1)

        with pytest.raises(CheckpointError, match=r"recipe: models\.one\.sha256: "):
            verify(load_recipe(folder / "done.yaml"), paths, folder / "target.safetensors")

    @pytest.mark.parametrize("noted", ["", "abc", "0" * 63, "0" * 65, "g" * 64, "12345678", f"{'0' * 64} ", "sha256:0"])
    def test_malformed_hashes_are_refused(self, tmp_path: Path, noted: str) -> None:
        """A malformed hash is reported as such, not as a difference."""
        save_file({"a": torch.ones(1)}, tmp_path / "a.safetensors")

        with pytest.raises(CheckpointError, match=r"r: models\.a\.sha256: received .*must be the 64 digits"):
            check_noted_hashes(
                {"a": Model("a", sha256=noted)}, {"a": tmp_path / "a.safetensors"}, Library(), named_in="r"
            )

    @pytest.mark.parametrize("suffix", CHECKPOINT_SUFFIXES)
    @pytest.mark.parametrize("spell", [str, str.upper])
    def test_spellings_of_a_hash_are_equal(self, tmp_path: Path, suffix: str, spell: Callable[[str], str]) -> None:
        """Hashes match in upper and lower case, for files of any kind."""
        path = tmp_path / f"a{suffix}"
        path.write_bytes(b"content")
        models = {"a": Model("a", sha256=spell(digest(path)))}

        assert check_noted_hashes(models, {"a": path}, Library()) == {"a": digest(path)}

    def test_every_differing_file_has_a_line(self, tmp_path: Path) -> None:
        """Every differing or unreadable file has a line; hashes with the same start are shown in full."""
        for name in "abc":
            (tmp_path / name).write_bytes(name.encode())
        alike = f"{digest(tmp_path / 'b')[:10]}{'0' * 54}"
        noted = {"a": "0" * 64, "b": alike, "c": digest(tmp_path / "c"), "d": "0" * 64}

        with pytest.raises(CheckpointError) as caught:
            check_noted_hashes(
                {name: Model(name, sha256=text) for name, text in noted.items()},
                {n: tmp_path / n for n in noted},
                Library(),
            )

        first, second, third = caught.value.problems
        assert first.startswith(f"recipe: models.a.sha256: 0000000000 is noted, but {tmp_path / 'a'} has the hash ")
        assert f"{alike} is noted, but {tmp_path / 'b'} has the hash {digest(tmp_path / 'b')}: " in second
        assert third.startswith(f"recipe: models.d.sha256: {tmp_path / 'd'}: cannot be read: ")

    def test_a_cache_is_used(self, tmp_path: Path) -> None:
        """A file with a cached hash is not read."""
        path, cache = tmp_path / "a", HashCache(tmp_path / "cache" / "hashes.json")
        path.write_bytes(b"content")
        models = {"a": Model("a", sha256=digest(path))}
        tasks: list[str] = []
        library = Library.of((), cache, lambda what, done, total: tasks.append(what))
        assert check_noted_hashes(models, {"a": path}, library, known=True) == {}
        for _ in range(2):
            check_noted_hashes(models, {"a": path}, library)

        assert tasks == ["hashing a"]
        assert check_noted_hashes(models, {"a": path}, library, known=True) == {"a": digest(path)}
