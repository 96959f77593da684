"""Commands killed between two files that belong together: the next command repairs or completes them."""

import shutil
import sqlite3
from contextlib import closing

import pytest
from kills import Killing

from optimizer.files import clear_abandoned, undo_unfinished, write_new_files
from optimizer.search import storage_address
from optimizer.search.trials.storage import set_aside
from optimizer.studies import load_study

CODE = """
    from pathlib import Path
    from optimizer.files import write_new_files
    from optimizer.demo import running
    from optimizer.recipes import load_recipe
    from optimizer.studies import first_study, new_study
    from optimizer.search import storage_address
    from optimizer.search.trials.storage import set_aside
    POOL = Path({pool!r})

    def init(folder):
        first_study(POOL / "finished.safetensors", [POOL / "base.safetensors", POOL / "x.safetensors"], Path(folder))

    def init_otherwise(folder):
        sources = [POOL / f"{{name}}.safetensors" for name in ("base", "y")]
        first_study(POOL / "finished.safetensors", sources, Path(folder))

    def write(folder):
        write_new_files(Path(folder) / "new", {{"a": "one", "b": "two"}})

    def new(folder):
        recipe = load_recipe(POOL / "recipe.yaml")
        new_study(recipe, POOL / "finished.safetensors", folder, folders=[POOL], metric="delta")

    def fresh(folder):
        set_aside(storage_address(None, Path(folder)))

    def copy_family(folder):
        running.family_folder = lambda: POOL / "family"
        running.copy_family(Path(folder) / "demo")
"""


@pytest.fixture(scope="module")
def killing(finished_study, pool):
    """A process that kills others, with a study and a small family for the demo in its folder."""
    shutil.copy(finished_study / "recipe.yaml", pool.folder / "recipe.yaml")
    family = pool.folder / "family"
    for name in ("answer", "models", "article", "attention", "stepwise"):
        (family / name).mkdir(parents=True)
    for name in ("answer/a.yaml", "models/m.safetensors", "models/n.safetensors", "recipe.yaml", "study.yaml",
                 "target.safetensors", "article/recipe.yaml", "article/study.yaml", "attention/study.yaml",
                 "stepwise/study.yaml"):  # fmt: skip
        (family / name).write_text(name, encoding="utf-8")
    process = Killing(CODE.format(pool=str(pool.folder)))
    yield process
    process.close()


@pytest.fixture
def template(tmp_path):
    """A working folder with a file of the user."""
    folder = tmp_path / "template"
    folder.mkdir()
    (folder / "notes.txt").write_text("mine", encoding="utf-8")
    return folder


def names_in(folder):
    """Return the names in a folder, hidden ones included."""
    return sorted(path.name for path in folder.iterdir())


def test_new_files_are_written_together(killing, template, tmp_path):
    """After a kill at any point either all files of a group exist, or the next command removes the rest."""
    left = set()

    for folder in killing.everywhere("write", template, tmp_path):
        new = folder / "new"
        written = [name for name in names_in(new) if not name.startswith(".")] if new.exists() else []
        left.add(len(written))
        if len(written) == 2:
            # Other cleaning keeps complete files.
            clear_abandoned(new)
            assert written == [name for name in names_in(new) if not name.startswith(".")]
        undo_unfinished(new)
        if new.exists():
            assert names_in(new) == (written if len(written) == 2 else [])
    write_new_files(new, {"a": "another", "b": "two"})
    assert (new / "a").read_text(encoding="utf-8") == "another"
    assert names_in(new) == ["a", "b"]

    assert left == {0, 1, 2}


def test_an_edited_leftover_is_kept(killing, template, tmp_path):
    """A leftover file that the user has edited is kept."""
    new = next(
        folder / "new"
        for folder in killing.everywhere("write", template, tmp_path)
        if (folder / "new" / "a").exists() and not (folder / "new" / "b").exists()
    )
    (new / "a").write_text("mine now", encoding="utf-8")

    undo_unfinished(new)

    assert (new / "a").read_text(encoding="utf-8") == "mine now"


def test_a_killed_init_can_be_repeated(killing, template, tmp_path):
    """A killed `init` leaves no file, both files, or files that the next `init` with other sources replaces."""
    killing.run("init", template)
    whole = {name: (template / name).read_bytes() for name in ("recipe.yaml", "study.yaml")}
    for name in whole:
        (template / name).unlink()

    for folder in killing.everywhere("init", template, tmp_path, every=6):
        written = [name for name in whole if (folder / name).exists()]
        assert all((folder / name).read_bytes() == whole[name] for name in written)
        became, given = killing.run("init_otherwise", folder)
        if len(written) == 2:
            assert became == "failed"
            assert "already exists" in given
        else:
            assert (became, given) == ("done", None)
            assert load_study(folder).recipe.steps[0].b == "y"
        assert names_in(folder) == ["notes.txt", "recipe.yaml", "study.yaml"]


def test_a_killed_new_study_can_be_repeated(killing, template, tmp_path):
    """A killed `new_study` leaves files that the same call accepts."""
    for folder in killing.everywhere("new", template, tmp_path, every=5):
        assert killing.run("new", folder) == ("done", None)
        assert names_in(folder) == ["notes.txt", "recipe.yaml", "study.yaml"]


def test_a_killed_fresh_loses_no_trial(killing, finished_study, tmp_path):
    """A killed `--fresh` loses no trial, nor does the next one."""
    template = tmp_path / "template"
    shutil.copytree(finished_study, template)
    # A database with a change in its write-ahead log, beside one that was set aside before.
    shutil.copy(template / "study.db", template / "study.old.db")
    with closing(sqlite3.connect(template / "study.db", isolation_level=None)) as database:
        database.execute("pragma journal_mode = wal")
        database.execute("pragma wal_autocheckpoint = 0")
        database.execute("update trials set state = 'FAIL' where trial_id = 1")
        kept = {name: (template / f"study.db{name}").read_bytes() for name in ("", "-wal")}
    for name, content in kept.items():
        (template / f"study.db{name}").write_bytes(content)

    for folder in killing.everywhere("fresh", template, tmp_path):
        assert killing.run("fresh", folder)[0] == "done"

        assert "study.db" not in names_in(folder)
        assert not [name for name in names_in(folder) if name.startswith("study.db")]
        states = {}
        for path in sorted(folder.glob("study.old*.db")):
            with closing(sqlite3.connect(path)) as database:
                states[path.name] = [
                    state for (state,) in database.execute("select state from trials where trial_id <= 2")
                ]
        assert states == {"study.old.db": ["COMPLETE", "COMPLETE"], "study.old-2.db": ["FAIL", "COMPLETE"]}


def test_a_killed_copy_of_the_demo_is_completed(killing, template, tmp_path, pool):
    """A killed copy of the demo's family contains whole files only, and the next copy completes it."""

    def files(folder):
        found = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if path.is_file()}
        # The next fit removes hidden temporary files when it writes to the folder.
        return {name: path.read_bytes() for name, path in found.items() if ".blockfit-" not in name}

    expected = files(pool.folder / "family")
    for folder in killing.everywhere("copy_family", template, tmp_path, every=7):
        copied = files(folder / "demo") if (folder / "demo").exists() else {}
        assert copied.items() <= expected.items()
        assert killing.run("copy_family", folder) == ("done", None)
        assert files(folder / "demo") == expected
        shutil.rmtree(folder)


def test_a_database_set_aside_is_complete(finished_study, tmp_path):
    """A database that was set aside contains all trials by itself."""
    folder = shutil.copytree(finished_study, tmp_path / "study")

    aside = set_aside(storage_address(None, folder))

    assert aside.name == "study.old.db"
    with closing(sqlite3.connect(aside)) as database:
        assert database.execute("select count(*) from trials").fetchone() == (8,)
