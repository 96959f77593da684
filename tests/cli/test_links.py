"""Links in an untrusted folder: no command writes, appends to, locks or deletes the files that they lead to."""

import json
import os
import shutil
import sqlite3
import stat
import struct
import sys
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest
import torch

from optimizer import new_study
from optimizer.cli import main
from optimizer.errors import BlockfitWarning, InputError
from optimizer.files import check_output, refuse_links, replace_text
from optimizer.recipes import load_recipe
from optimizer.reports import open_fit_log
from optimizer.reports.trials import write_trials
from optimizer.search import fit
from optimizer.studies import load_study

Write = Callable[..., dict[str, torch.Tensor]]
Run = Callable[..., tuple[int, list[str], list[str]]]

RECIPE = """models:
  base: {file: base.safetensors}
  one: {file: one.safetensors}
steps:
  - {name: OUT, mode: add_difference, a: base, b: one, c: base, alpha: {search: [0, 1], tie: true}}
"""
STUDY = """recipe: recipe.yaml
target: {file: target.safetensors}
stages: [{name: all, metric: delta, trials: 2, sampler: random}]
"""
PRECIOUS = b"# what a shell does first\nexport PATH=/usr/bin\n"
RULE = "a study's files are written into its own folder only: replace it with a file"


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory, write_sd1: Write) -> Path:
    """Return a folder with a base, a finetune and their merge."""
    folder = tmp_path_factory.mktemp("models")
    base = write_sd1(folder / "base.safetensors")
    one = write_sd1(folder / "one.safetensors", seed=1, around=base, distance=0.03)
    halves = {name: base[name] + (one[name] - base[name]) * 0.5 for name in base if base[name].is_floating_point()}
    write_sd1(folder / "target.safetensors", overrides=halves)
    return folder


@pytest.fixture(scope="module")
def fitted(tmp_path_factory: pytest.TempPathFactory, models: Path) -> Path:
    """Return the folder of a fitted study whose models and recipe are links."""
    folder = tmp_path_factory.mktemp("fitted") / "study"
    elsewhere = tmp_path_factory.mktemp("recipes") / "clone.yaml"
    elsewhere.write_text(RECIPE, encoding="utf-8")
    folder.mkdir()
    for path in models.iterdir():
        link(folder / path.name, path)
    link(folder / "recipe.yaml", elsewhere)
    (folder / "study.yaml").write_text(STUDY, encoding="utf-8")
    with open_fit_log(folder / "fit.log"):
        fit(load_study(folder))
    return folder


@pytest.fixture
def study(tmp_path: Path, fitted: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a copy of the fitted study."""
    monkeypatch.setenv("BLOCKFIT_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    return Path(shutil.copytree(fitted, tmp_path / "study", symlinks=True))


@pytest.fixture
def victim(tmp_path: Path) -> Iterator[Path]:
    """Yield a file elsewhere; afterwards its bytes, its time in nanoseconds and its folder must be unchanged."""
    folder = tmp_path / "home"
    folder.mkdir()
    path = folder / ".profile"
    path.write_bytes(PRECIOUS)
    os.utime(path, ns=(10**18, 10**18))
    yield path
    assert path.read_bytes() == PRECIOUS
    assert path.stat().st_mtime_ns == 10**18
    assert list(folder.iterdir()) == [path]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """Return a function that runs the command and returns its exit code and its lines on stdout and stderr."""

    def run(*arguments: object) -> tuple[int, list[str], list[str]]:
        with pytest.raises(SystemExit) as left:
            main([str(argument) for argument in arguments])
        written = capsys.readouterr()
        return int(left.value.code or 0), written.out.splitlines(), written.err.splitlines()

    return run


def link(path: Path, target: Path) -> Path:
    """Make a symbolic link, or skip the test if users may not."""
    try:
        path.symlink_to(target, target_is_directory=target.is_dir())
    except (OSError, NotImplementedError):
        pytest.skip("symbolic links cannot be made here")
    return path


def state_of(folder: Path) -> dict[Path, object]:
    """Return the target of every link and the modification time of every file below a folder."""
    return {
        path: os.readlink(path) if path.is_symlink() else path.stat().st_mtime_ns  # noqa: PTH115
        for path in folder.rglob("*")
        if path.is_symlink() or path.is_file()
    }


def refused(run: Run, folder: Path, *arguments: object) -> list[str]:
    """Return the lines with which the command refuses, and check that the folder is unchanged."""
    before = state_of(folder)
    code, out, err = run(*arguments)
    assert (code, out) == (2, [])
    assert state_of(folder) == before
    assert err
    return err


# All files and folders that blockfit writes into a study's folder under names that it chooses.
REPLACED = (
    *("best.yaml", "best.simple.yaml", "candidate-2.yaml", "candidate-17.yaml", "trials.csv", "report.html"),
    *("statistics.safetensors", "plots/alphas.png", "plots/mine.png", "study.old.db", "study.old-2.db"),
)
OPENED = (
    *("study.db", "study.db-journal", "study.db-wal", "study.db-shm", "fit.log"),
    *("study.db.workers/turn.lock", "study.db.workers/worker.host.1.0a1b2c3d.lock"),
)
FOLDERS = ("plots", "artifacts", "study.db.workers")
COMMANDS = {
    "fit": lambda study: ("fit", study),
    "fit by its file": lambda study: ("fit", study / "study.yaml", "--fresh", "--candidates", 3),
    "two workers": lambda study: ("fit", study, "--workers", 2),
    "status": lambda study: ("status", study),
    "ceiling": lambda study: ("ceiling", study),
    "report": lambda study: ("report", study),
    "report elsewhere": lambda study: ("report", study, "-o", study.parent / "page.html"),
    "plots": lambda study: ("plots", study),
    "plots elsewhere": lambda study: ("plots", study, "-o", study.parent / "drawn"),
    "dashboard": lambda study: ("dashboard", study, "--port", 0),
}


def put(study: Path, name: str, victim: Path, make: Callable[[Path, Path], object] = link) -> Path:
    """Replace the file or folder `name` of a study with a link to the victim or its folder; return its path."""
    path = study / name
    if path.is_dir():
        shutil.rmtree(path)
    path.unlink(missing_ok=True)
    path.parent.mkdir(exist_ok=True)
    make(path, victim.parent if name in FOLDERS else victim)
    return path


@pytest.mark.parametrize("name", [*REPLACED, *OPENED, *FOLDERS])
def test_links_in_a_study_are_refused(study: Path, victim: Path, run: Run, name: str) -> None:
    """A link in place of a file that any command writes is refused with both paths and a remedy."""
    path = put(study, name, victim)

    (line,) = refused(run, study, "fit", study)

    target = victim.parent if name in FOLDERS else victim
    rule = RULE.replace("a file", "a folder") if name in FOLDERS else RULE
    assert line == f"blockfit: {path}: is a symbolic link to {target}; {rule}"


@pytest.mark.parametrize("names", [(*REPLACED, *OPENED), FOLDERS], ids=["files", "folders"])
@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_refuses_all_links(
    study: Path, victim: Path, run: Run, command: str, names: tuple[str, ...]
) -> None:
    """Every command on a study refuses all such links at once, with a line for each."""
    paths = [put(study, name, victim) for name in names]

    lines = refused(run, study, *COMMANDS[command](study))

    assert sorted(line.split(": ")[1] for line in lines) == sorted(map(str, paths))


@pytest.mark.parametrize("name", [*REPLACED, *OPENED, *FOLDERS])
def test_dangling_links_are_refused(study: Path, tmp_path: Path, run: Run, name: str) -> None:
    """A link to a missing file is refused, because writing would create that file."""
    path = put(study, name, tmp_path / "home" / "new", link)

    (line,) = refused(run, study, "fit", study)

    assert line.startswith(f"blockfit: {path}: is a symbolic link to {tmp_path / 'home'}")
    assert not (tmp_path / "home").exists()


def test_a_link_within_the_folder_is_refused(study: Path, run: Run) -> None:
    """A link to another file of the same folder is refused, because writing would replace that file."""
    (study / "best.yaml").unlink()
    link(study / "best.yaml", Path("study.yaml"))

    (line,) = refused(run, study, "fit", study)

    assert "best.yaml: is a symbolic link to study.yaml; " in line


def test_a_folder_may_be_a_link(study: Path, tmp_path: Path, run: Run) -> None:
    """A study's folder and the files that are only read may be links: all commands run."""
    mine = link(tmp_path / "mine", study)
    assert (study / "recipe.yaml").is_symlink()
    assert (study / "base.safetensors").is_symlink()

    assert run("fit", mine, "--trials", 3)[0] == 0
    assert run("status", mine)[0] == 0
    assert run("simplify", mine / "best.yaml", "--tolerance", "0.1")[0] == 0
    assert run("report", mine)[0] == 0
    assert run("plots", mine)[0] == 0
    assert run("merge", mine / "best.yaml", "-o", mine / "clone.safetensors")[0] == 0

    written = {path.name for path in study.iterdir() if not path.is_symlink()}
    assert {"best.yaml", "best.simple.yaml", "clone.safetensors", "report.html", "trials.csv", "plots"} <= written


class TestHardLinks:
    """Hard links: files with a second name elsewhere."""

    @staticmethod
    def make(path: Path, target: Path) -> None:
        """Make a hard link, or skip the test if users may not."""
        try:
            os.link(target, path)
        except OSError:
            pytest.skip("hard links cannot be made here")

    @pytest.mark.parametrize("name", OPENED)
    @pytest.mark.parametrize("command", ["fit", "status", "report"])
    def test_hard_links_to_opened_files_are_refused(
        self, study: Path, victim: Path, run: Run, command: str, name: str
    ) -> None:
        """A hard link to a file that is written in place is refused, because its other name would change."""
        path = put(study, name, victim, self.make)

        (line,) = refused(run, study, *COMMANDS[command](study))

        assert line == f"blockfit: {path}: is a hard link, one of 2 names of one file; {RULE[:-6]}a copy"

    def test_hard_links_to_replaced_files_are_allowed(self, study: Path, victim: Path, run: Run) -> None:
        """A hard link to a file that is replaced as a whole is allowed: its other name stays unchanged."""
        for name in ("best.yaml", "trials.csv", "statistics.safetensors", "report.html"):
            put(study, name, victim, self.make)
        with pytest.warns(BlockfitWarning, match=r"statistics\.safetensors: cannot be used: not a checkpoint"):
            write_trials(fit(load_study(study), fresh=True), study / "trials.csv")
        assert run("report", study)[0] == 0

        assert load_recipe(study / "best.yaml").fitted
        assert victim.stat().st_nlink == 1


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs pipes")
@pytest.mark.parametrize("name", ["fit.log", "study.db", "study.db-journal", "study.db.workers/turn.lock"])
def test_pipes_are_refused(study: Path, run: Run, name: str) -> None:
    """A pipe in place of a file is refused; opening it would wait forever."""
    path = study / name
    path.unlink(missing_ok=True)
    path.parent.mkdir(exist_ok=True)
    os.mkfifo(path)

    assert refused(run, study, "fit", study)[0].startswith(f"blockfit: {path}: is a pipe or a device; ")


OUTPUTS = {
    "merge": lambda study, output: ("merge", study / "best.yaml", "-o", f"{output}.safetensors"),
    "export": lambda study, output: ("export", study / "best.yaml", "--to", "supermerger", "-o", f"{output}.txt"),
    "import": lambda study, output: ("import", study / "article.txt", "-o", f"{output}.yaml"),
    "simplify": lambda study, output: ("simplify", study / "best.yaml", "-o", f"{output}.yaml"),
    "preview": lambda study, output: (
        *("preview", study / "best.yaml", "--target", study / "target.safetensors", "--prompt", "x"),
        *("-o", f"{output}.png"),
    ),
    "report": lambda study, output: ("report", study, "-o", f"{output}.html"),
    "log": lambda study, output: ("fit", study, "--log-file", f"{output}.jsonl"),
    "sqlite": lambda study, output: ("fit", study, "--storage", f"sqlite:///{output}.db"),
    "journal": lambda study, output: ("fit", study, "--storage", f"journal:{output}.journal"),
    "status": lambda study, output: ("status", study, "--storage", f"journal:{output}.journal"),
}


@pytest.mark.parametrize("place", ["", "mine/"])
@pytest.mark.parametrize("command", OUTPUTS)
def test_outputs_in_a_study_follow_no_link(study: Path, victim: Path, run: Run, command: str, place: str) -> None:
    """An output inside a study's folder is refused if it, or a folder on its path, is a link."""
    (study / "article.txt").write_text("A x 0.5 + B x 0.5 = C", encoding="utf-8")
    arguments = OUTPUTS[command](study, study / f"{place}out")
    path = study / f"{place}out{Path(str(arguments[-1])).suffix}"
    if place:
        link(study / "mine", victim.parent)
        path = study / "mine"
    else:
        link(path, victim)

    lines = refused(run, study, *arguments)

    assert len(lines) == 1
    assert f"{path}: is a symbolic link to " in lines[0]


@pytest.mark.parametrize("command", ["merge", "export", "import", "simplify", "preview"])
def test_outputs_beside_a_recipe_follow_no_link(
    study: Path, victim: Path, tmp_path: Path, run: Run, command: str
) -> None:
    """An output beside a recipe is refused if it is a link, also in a folder without a study."""
    (study / "article.txt").write_text("A x 0.5 + B x 0.5 = C", encoding="utf-8")
    given = tmp_path / "given"
    given.mkdir()
    for name in ("best.yaml", "article.txt"):
        shutil.copy(study / name, given / name)
    for path in study.glob("*.safetensors"):
        if path.name != "statistics.safetensors":
            shutil.copy(path, given / path.name)
    arguments = OUTPUTS[command](given, given / "out")
    path = link(Path(str(arguments[-1])), victim)

    assert f"{path}: is a symbolic link to {victim}; " in refused(run, given, *arguments)[0]
    if command == "simplify":
        link(given / "best.simple.yaml", victim)
        assert "best.simple.yaml: is a symbolic link" in refused(run, given, "simplify", given / "best.yaml")[0]


@pytest.mark.parametrize("command", ["merge", "export", "report"])
def test_outputs_elsewhere_follow_links(study: Path, tmp_path: Path, run: Run, command: str) -> None:
    """Outside of studies a link is kept, and the file that it leads to is replaced."""
    suffix = Path(str(OUTPUTS[command](study, "out")[-1])).suffix
    real = tmp_path / f"real{suffix}"
    real.write_bytes(b"old")
    mine = link(tmp_path / f"out{suffix}", real)

    assert run(*OUTPUTS[command](study, tmp_path / "out"))[0] == 0

    assert mine.is_symlink()
    assert len(real.read_bytes()) > 10


def test_a_log_elsewhere_may_be_a_link(study: Path, tmp_path: Path) -> None:
    """Outside of studies a log may be a link: its target gets the lines."""
    real = tmp_path / "real.jsonl"
    with open_fit_log(study / "fit.log", link(tmp_path / "log.jsonl", real)) as log:
        log.warn("x")

    assert json.loads(real.read_text(encoding="utf-8"))["text"] == "x"


SECRETS = {
    "passwords": "root:$6$SALT$SECRET:19000:0:99999:7:::\n" + "daemon:*:SECRET:::\n",
    "key": "-----BEGIN OPENSSH PRIVATE KEY-----\nSECRETSECRETSECRET\n-----END OPENSSH PRIVATE KEY-----\n",
    "credentials": "[default]\naws_secret_access_key = SECRET\n",
    "yaml": "github.com:\n    oauth_token: SECRET\n    user: me\n",
    "json": '{"auths": {"https://index.docker.io/v1/": {"auth": "SECRET"}}}',
    "netrc": "machine example.com login me password SECRET\n",
    "environment": "export TOKEN='SECRET'\n",
}


@pytest.mark.parametrize("name", SECRETS)
@pytest.mark.parametrize("place", ["recipe.yaml", "study.yaml", "presets.txt", "prompts.txt", "base.safetensors"])
def test_messages_contain_nothing_of_private_files(
    tmp_path: Path, models: Path, run: Run, place: str, name: str
) -> None:
    """If a link leads to a private file, the error contains nothing of the file."""
    (tmp_path / "private").write_text(SECRETS[name], encoding="utf-8")
    folder = tmp_path / "given"
    shutil.copytree(models, folder)
    alpha = "X" if place == "presets.txt" else "{search: [0, 1], tie: true}"
    recipe = ("presets: presets.txt\n" if place == "presets.txt" else "") + RECIPE
    (folder / "recipe.yaml").write_text(recipe.replace("{search: [0, 1], tie: true}", alpha), encoding="utf-8")
    stage = "metric: encoder, blocks: BASE, prompts: prompts.txt" if place == "prompts.txt" else "metric: delta"
    (folder / "study.yaml").write_text(STUDY.replace("metric: delta", stage), encoding="utf-8")
    (folder / place).unlink(missing_ok=True)
    link(folder / place, tmp_path / "private")

    code, out, err = run("fit", folder)

    assert (code, out) == (2, [])
    assert err
    assert all("SECRET" not in line and "SALT" not in line for line in err)


class TestFirstStudies:
    """Commands and functions that write a first study."""

    @pytest.mark.parametrize("name", ["recipe.yaml", "study.yaml"])
    @pytest.mark.parametrize("dangling", [True, False])
    def test_init_follows_no_link(
        self, models: Path, victim: Path, tmp_path: Path, run: Run, name: str, dangling: bool
    ) -> None:
        """`init` refuses a link in place of its files, whether the link dangles or not."""
        folder = tmp_path / "mine"
        folder.mkdir()
        link(folder / name, victim.parent / "new" if dangling else victim)

        lines = refused(run, folder, "init", models / "target.safetensors", models, "-o", folder)

        assert f"{folder / name}: is a symbolic link to " in lines[0]

    @pytest.mark.parametrize("name", ["recipe.yaml", "study.yaml"])
    def test_new_study_follows_no_link(self, models: Path, victim: Path, tmp_path: Path, name: str) -> None:
        """`new_study` refuses a link in place of its files."""
        folder = tmp_path / "mine"
        folder.mkdir()
        link(folder / name, victim.parent / "new")
        (tmp_path / "recipe.yaml").write_text(RECIPE, encoding="utf-8")

        with pytest.raises(InputError, match=r"new_study: folder: .*: is a symbolic link to "):
            new_study(load_recipe(tmp_path / "recipe.yaml"), models / "target.safetensors", folder, folders=[models])

        assert [path.name for path in folder.iterdir()] == [name]

    @pytest.mark.parametrize("name", ["target.safetensors", "models", "attention/study.yaml", "digits.png", "answer"])
    def test_demo_follows_no_link(self, victim: Path, tmp_path: Path, run: Run, name: str) -> None:
        """The demo does not copy its family through a link."""
        folder = tmp_path / "demo"
        (folder / "attention").mkdir(parents=True)
        link(folder / name, victim.parent / "new")

        assert f"{folder / name}: is a symbolic link to " in refused(run, folder, "demo", folder)[0]


class TestWhileAFitRuns:
    """Links that appear after the folder was checked."""

    def test_a_log_that_became_a_link_is_left_alone(self, study: Path, victim: Path) -> None:
        """A line is not appended to a log that became a link; a warning is given and the work goes on."""
        with open_fit_log(study / "fit.log") as log:
            log.warn("before")
            put(study, "fit.log", victim)
            with pytest.warns(BlockfitWarning, match=r"fit\.log: cannot be written"):
                log.warn("after")

    @pytest.mark.parametrize("name", ["best.yaml", "plots/alphas.png"])
    def test_results_follow_no_link(self, study: Path, victim: Path, name: str) -> None:
        """`replace_text` refuses to replace a file through a link."""
        path = put(study, name, victim)

        with pytest.raises(InputError, match="is a symbolic link to"):
            replace_text(path, "x")

        assert path.is_symlink()


def make_hot_journal(database: Path, super_journal: Path) -> Path:
    """Write a journal that SQLite rolls back when it opens the database, and that names a super-journal.

    The format is that of https://sqlite.org/fileformat2.html#the_rollback_journal; the name follows the pages, as
    os_unix.c and pager.c write it. SQLite deletes the super-journal when no database needs it any more.
    """
    magic = bytes.fromhex("d9d505f920a163d7")
    content = database.read_bytes()
    (size,) = struct.unpack(">H", content[16:18])
    page, nonce = content[:size], 7
    header = (magic + struct.pack(">5I", 1, nonce, len(content) // size, 512, size)).ljust(512, b"\0")
    checksum = (nonce + sum(page[place] for place in range(size - 200, 0, -200))) & 0xFFFFFFFF
    record = struct.pack(">I", 1) + page + struct.pack(">I", checksum)
    name = os.fsencode(super_journal)
    body = header + record
    body = body.ljust(-(-len(body) // 512) * 512, b"\0")
    end = struct.pack(">I", 0x40000000 // size + 1) + name + struct.pack(">2I", len(name), sum(name)) + magic
    journal = database.with_name(f"{database.name}-journal")
    journal.write_bytes(body + end)
    return journal


@pytest.mark.parametrize("command", ["fit", "two workers", "status", "report", "plots", "dashboard"])
def test_a_journal_that_deletes_another_file_is_refused(study: Path, victim: Path, run: Run, command: str) -> None:
    """A journal that makes SQLite delete another file when it opens the database is refused."""
    make_hot_journal(study / "study.db", victim)

    (line,) = refused(run, study, *COMMANDS[command](study))

    assert "study.db-journal: names another file, which opening the database would delete" in line


def test_sqlite_deletes_the_file_that_a_journal_names(study: Path, tmp_path: Path) -> None:
    """Without the refusal the test above would fail: SQLite itself deletes the file that the journal names."""
    named = tmp_path / "named"
    named.write_bytes(PRECIOUS)
    journal = make_hot_journal(study / "study.db", named)
    with closing(sqlite3.connect(study / "study.db")) as database:
        database.execute("select count(*) from trials").fetchall()

    assert not named.exists()
    assert not journal.exists()


def test_a_journal_of_a_crash_is_rolled_back(study: Path, run: Run) -> None:
    """A journal of a killed process, which names no super-journal, is rolled back as usual."""
    journal = make_hot_journal(study / "study.db", study)
    content = journal.read_bytes()
    journal.write_bytes(content[: content.rindex(os.fsencode(study)) - 4])

    assert run("status", study)[0] == 0
    assert not journal.exists()


class TestPieces:
    """The functions that check links."""

    def test_missing_files_may_be_written(self, tmp_path: Path) -> None:
        """Files and folders that do not exist yet may be written."""
        refuse_links(tmp_path, replaced=[tmp_path / "a" / "b"], opened=[tmp_path / "c"], folders=[tmp_path / "d"])

    def test_the_nearest_study_counts(self, tmp_path: Path) -> None:
        """A study may contain a link to another study's folder, whose outputs belong to that study."""
        for name in ("work", "disk"):
            (tmp_path / name).mkdir()
            (tmp_path / name / "study.yaml").touch()
        link(tmp_path / "work" / "mine", tmp_path / "disk")
        (tmp_path / "pictures").mkdir()
        link(tmp_path / "work" / "drawn", tmp_path / "pictures")

        check_output(tmp_path / "work" / "mine" / "clone.safetensors")
        with pytest.raises(InputError, match=r"drawn: is a symbolic link to .*: replace it with a folder"):
            check_output(tmp_path / "work" / "drawn" / "sheet.png")

    @pytest.mark.skipif(sys.platform != "win32", reason="junctions are Windows'")
    def test_junctions_are_links(self, tmp_path: Path) -> None:
        """A junction, which any user may make, is refused like a symbolic link."""
        import _winapi

        (tmp_path / "elsewhere").mkdir()
        _winapi.CreateJunction(str(tmp_path / "elsewhere"), str(tmp_path / "plots"))

        with pytest.raises(InputError, match="plots: is a symbolic link to"):
            refuse_links(tmp_path, folders=[tmp_path / "plots"])

    def test_a_new_log_has_the_usual_mode(self, study: Path) -> None:
        """A new log has the permissions of any new file."""
        with open_fit_log(study / "fit.log") as log:
            log.warn("x")
        (study / "plain").touch()

        assert stat.S_IMODE((study / "fit.log").stat().st_mode) == stat.S_IMODE((study / "plain").stat().st_mode)
