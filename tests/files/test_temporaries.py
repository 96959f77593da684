"""Temporary files left by killed commands are removed, and no other file is."""

import pytest
from kills import Killing

from optimizer.files import atomic_path, check_writable, clear_abandoned, host_name, replace_text, temporary_folder
from optimizer.files.temporaries import Temporary

PROCESS = f".blockfit-{host_name()}-4711-0123456789abcdef"


@pytest.fixture(scope="module")
def killing():
    """A process that forks writers and kills them."""
    process = Killing(
        """
        from pathlib import Path
        from optimizer.files import replace_text, temporary_folder
        def write(folder):
            replace_text(Path(folder) / "a.txt", "after")
        def write_another(folder):
            replace_text(Path(folder) / "b.txt", "b")
        def merge(folder):
            with temporary_folder(Path(folder)) as scratch:
                (scratch / "inner").mkdir()
                (scratch / "inner" / "merged.safetensors").write_bytes(b"much")
        """
    )
    yield process
    process.close()


def names_in(folder):
    """Return the names of all entries of a folder, hidden ones included."""
    return sorted(path.name for path in folder.iterdir())


def test_files_of_killed_processes_are_removed(killing, tmp_path):
    """The next write to a folder removes the files of killed processes and keeps those of living ones."""
    template = tmp_path / "empty"
    template.mkdir()
    halves = 0
    for folder in killing.everywhere("merge", template, tmp_path):
        halves += any((path / "inner" / "merged.safetensors").exists() for path in folder.iterdir())
        with atomic_path(folder / "plot.png") as living:
            living.write_bytes(b"half")
            names = [living.name, f"{living.stem}.lock"]

            replace_text(folder / "a.txt", "while it lives")

            assert names_in(folder) == sorted([*names, "a.txt"])
        assert names_in(folder) == ["a.txt", "plot.png"]

    assert halves


@pytest.mark.parametrize(
    "clear",
    [
        check_writable,
        lambda folder: temporary_folder(folder).__enter__(),
        clear_abandoned,
    ],
)
def test_each_entry_point_removes_abandoned_files(tmp_path, clear):
    """Every function that reserves a temporary path removes abandoned files first."""
    for suffix in (".lock", ".png", ""):
        (tmp_path / f"{PROCESS}{suffix}").touch()

    clear(tmp_path)

    assert not list(tmp_path.glob(f"{PROCESS}*"))


def test_files_of_other_owners_are_kept(tmp_path):
    """Files of other machines, files without a lock and files with other names are not removed."""
    kept = [
        ".blockfit-another-host-4711-0123456789abcdef.lock",
        ".blockfit-another-host-4711-0123456789abcdef.png",
        f".blockfit-{host_name()}-4711-fedcba9876543210.png",
        ".blockfit-4711-01234567.tmp",
        f"{PROCESS[1:]}.lock",
        f"{PROCESS}0.lock",
        ".blockfit-notes.txt",
    ]
    for name in kept:
        (tmp_path / name).write_text("kept" if not name.endswith(".lock") else "", encoding="utf-8")

    replace_text(tmp_path / "a.txt", "a")

    assert names_in(tmp_path) == sorted([*kept, "a.txt"])


def test_files_that_only_look_like_locks_are_kept(tmp_path):
    """A link, a file with content and a file with a second name do not count as locks of blockfit."""
    (tmp_path / "precious").write_text("", encoding="utf-8")
    (tmp_path / f"{PROCESS}.lock").symlink_to(tmp_path / "precious")
    second = PROCESS.replace("4711", "4712")
    (tmp_path / f"{second}.lock").write_text("something", encoding="utf-8")
    third = PROCESS.replace("4711", "4713")
    (tmp_path / f"{third}.lock").hardlink_to(tmp_path / "precious")
    before = names_in(tmp_path)

    replace_text(tmp_path / "a.txt", "a")

    assert names_in(tmp_path) == sorted([*before, "a.txt"])


def test_links_are_not_followed(tmp_path):
    """An abandoned link is removed, and its target stays."""
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "precious").touch()
    folder = tmp_path / "study"
    folder.mkdir()
    (folder / f"{PROCESS}.lock").touch()
    (folder / PROCESS).symlink_to(outside)
    (folder / f"{PROCESS}.png").symlink_to(outside / "precious")

    clear_abandoned(folder)

    assert names_in(folder) == []
    assert names_in(outside) == ["precious"]


def test_two_writers_in_one_process_do_not_interfere(tmp_path):
    """Two writers to the same folder, even in one process, have separate temporary files and remove only their own."""
    with atomic_path(tmp_path / "a") as first, atomic_path(tmp_path / "b") as second:
        first.write_text("a", encoding="utf-8")
        second.write_text("b", encoding="utf-8")

    assert {name: (tmp_path / name).read_text(encoding="utf-8") for name in names_in(tmp_path)} == {"a": "a", "b": "b"}


def test_missing_folder_is_not_created(tmp_path):
    """A temporary path in a missing folder can be requested, and the folder is not created."""
    temporary = Temporary(tmp_path / "gone", ".tmp")

    temporary.close()

    assert temporary.path.parent == tmp_path / "gone"
    assert names_in(tmp_path) == []


def test_writer_killed_at_any_point_leaves_a_whole_file(killing, tmp_path):
    """Wherever a writer is killed, the file has its old or new content, and the next writer removes all leftovers."""
    template = tmp_path / "template"
    template.mkdir()
    (template / "a.txt").write_text("before", encoding="utf-8")
    found = set()

    for folder in killing.everywhere("write", template, tmp_path):
        found.add((folder / "a.txt").read_text(encoding="utf-8"))
        assert killing.run("write_another", folder) == ("done", None)
        assert names_in(folder) == ["a.txt", "b.txt"]

    assert found == {"before", "after"}
