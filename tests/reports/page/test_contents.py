"""The contents of the report page, compared with the study's files read by other means."""

import json
import re
import shlex
import shutil
import sqlite3
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import optuna
import pytest
from databases import sqlite_url
from pages import Page
from ruamel.yaml import YAML
from safetensors.numpy import load_file

from optimizer.analysis import Identified, found_ceilings
from optimizer.cli import main
from optimizer.errors import InputError
from optimizer.recipes import Model
from optimizer.reports import ceiling_tables
from optimizer.reports.page import write_report
from optimizer.reports.page.contents import Source
from optimizer.reports.page.remarks import remarks
from optimizer.search import FitEvents, FitResult, fit, found_result
from optimizer.studies import load_study


def run(*arguments: object) -> int:
    """Run the command and return its exit code."""
    with pytest.raises(SystemExit) as left:
        main([str(argument) for argument in arguments])
    return int(left.value.code or 0)


def best_in(database: Path) -> dict[str, float]:
    """Return the best value of every Optuna study, read with plain SQL."""
    connection = sqlite3.connect(database)
    rows = connection.execute(
        "SELECT study_name, MAX(value) FROM studies JOIN trials USING (study_id) JOIN trial_values USING (trial_id) "
        "WHERE state = 'COMPLETE' GROUP BY study_name"
    ).fetchall()
    connection.close()
    return dict(rows)


def yaml_in(path: Path) -> dict:
    """Return a YAML file as plain data."""
    return YAML(typ="safe").load(path.read_text(encoding="utf-8"))


def says(text: str, share: float) -> bool:
    """Return whether a text has a share as per cent, right to its last digit."""
    shown = re.findall(r"(-?\d+(?:\.(\d+))?) %", text)
    return any(abs(float(number) - 100 * share) <= 0.5 * 10 ** -len(decimals) + 1e-9 for number, decimals in shown)


def columns_of(table: list[list[str]]) -> dict[str, dict[str, str]]:
    """Return a table as {column: {row: cell}}."""
    (_, *titles), *rows = table
    return {title: {row[0]: row[place] for row in rows} for place, title in enumerate(titles, start=1)}


@pytest.fixture(scope="module")
def folder(finished_fit: FitResult, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of a finished study with its report: two stages, one of them stepwise by attention."""
    copy = tmp_path_factory.mktemp("report") / "study"
    shutil.copytree(finished_fit.study.folder, copy)
    assert run("report", copy) == 0
    return copy


@pytest.fixture(scope="module")
def page(folder: Path) -> Page:
    """The report of that study."""
    return Page.of(folder / "report.html")


def test_history_shows_the_best_trials(folder: Path, page: Page) -> None:
    """Every search has a chart whose caption contains the best value in the database."""
    best = best_in(folder / "study.db")
    assert len(best) == 3
    for name, value in best.items():
        (caption,) = [text for text in page.captions if text.startswith(f"{name}, by ")]
        assert " in trial " in caption
        assert says(caption, value)


def test_panels_have_curves_or_envelopes_and_ceilings(finished_fit: FitResult, tmp_path: Path) -> None:
    """A panel by `delta` has a curve and its ceiling; one by `attention`, or without statistics, has an envelope."""
    copy = tmp_path / "study"
    shutil.copytree(finished_fit.study.folder, copy)
    found = found_result(load_study(copy, with_files=False))
    drawn = {}
    for known in (True, False):
        if not known:
            (copy / "statistics.safetensors").unlink()
        page = write_report(found, (), (), copy / "report.html", named="copy", date="2026-11-23")
        drawn[known] = {
            curves.search.name: {str(shape.attributes["class"]) for _, chart in panels for shape in chart.shapes}
            for curves in page.curves
            for _, panels in curves.steps
        }

    lines = {"curve", "envelope", "ceiling"}
    assert {name: styles & lines for name, styles in drawn[True].items()} == {
        "one $ each/first": {"envelope"},
        "one $ each/out $x_1$/<é漢>%": {"envelope"},
        "together": {"curve", "ceiling"},
    }
    assert all(styles & lines == {"envelope"} for styles in drawn[False].values())


def test_numbers_are_those_of_the_recipe(folder: Path, page: Page) -> None:
    """Each step's 26 numbers equal those of best.yaml, BASE first, and importing the notation gives the same recipe.

    The text for SuperMerger begins with a preset line for each step.
    """
    steps = yaml_in(folder / "best.yaml")["steps"]
    assert len(steps) == 2
    for line, number in zip(page.texts["supermerger"].splitlines(), (1, 2), strict=False):
        assert line.split("\t")[1] == page.texts[f"numbers-{number}"]
    assert page.texts["supermerger"].split("\n\n", 1)[1] == page.texts["notation"]
    for number, step in enumerate(steps, start=1):
        shown = [float(text) for text in page.texts[f"numbers-{number}"].split(",")]
        expected = step["alpha"] if isinstance(step["alpha"], list) else [step["alpha"]] * 26
        assert shown == pytest.approx(expected, abs=1e-11)

    (folder / "pasted.txt").write_text(page.texts["notation"], encoding="utf-8")
    assert run("import", folder / "pasted.txt", "-o", folder / "pasted.yaml") == 0
    again = yaml_in(folder / "pasted.yaml")["steps"]
    assert [step["alpha"] for step in again] == [step["alpha"] for step in steps]


def test_alphas_by_step_and_block(folder: Path, page: Page) -> None:
    """The table of all alphas shows those of best.yaml with two decimals, and has all digits to copy."""
    header, *rows = page.tables["Alphas by step and block"]
    steps = yaml_in(folder / "best.yaml")["steps"]
    steps = [step for step in steps if len({round(number, 3) for number in step["alpha"]}) > 1]
    assert [row[0] for row in rows] == [f"{step['b']} ({step['name']})" for step in steps]
    assert header[1:4] == ["BASE", "IN00", "IN01"]
    for row, step in zip(rows, steps, strict=True):
        assert [float(cell) for cell in row[1:]] == pytest.approx(step["alpha"], abs=0.005 + 1e-9)
    for row, step in zip(page.figures["Alphas by step and block"][1:], steps, strict=True):
        assert [float(cell) for cell in row[1:]] == pytest.approx(step["alpha"], abs=1e-11)


def test_similarities_match_the_files(folder: Path, page: Page) -> None:
    """Similarities of the first step's input, a source, match its file; the others match best.yaml."""
    name = "model.diffusion_model.output_blocks.3."
    base, target = (
        np.concatenate(
            [value.ravel().astype(np.float64) for key, value in sorted(load_file(path).items()) if key.startswith(name)]
        )
        for path in (folder / "base.safetensors", folder / "target.safetensors")
    )
    cosine = base @ target / np.sqrt((base @ base) * (target @ target))
    noted = yaml_in(folder / "best.yaml")["steps"][0]["similarity"]

    shown = columns_of(page.tables["first in one $ each, block by block"])
    full = columns_of(page.figures["first in one $ each, block by block"])

    assert float(full["weights before"]["OUT03"]) == pytest.approx(cosine, abs=1e-9)
    assert says(shown["weights before"]["OUT03"], cosine)
    for metric in ("attention", "explained", "delta", "weights"):
        value = noted[metric]["blocks"]["OUT03"]
        assert float(full[metric]["OUT03"]) == pytest.approx(value, abs=1e-9)
        assert says(shown[metric]["OUT03"], value)
    # Before the first step everything is the base's: one sentence instead of two columns of zeros.
    assert not {"explained before", "delta before"} & set(shown)
    assert page.text.count("explained before: 0.0 % in every block.") >= 1


def test_totals_are_means_of_the_blocks(folder: Path, page: Page) -> None:
    """The totals of every step by every metric are the means of the similarities by block in best.yaml."""
    steps = yaml_in(folder / "best.yaml")["steps"]
    columns = columns_of(page.figures["Totals by every metric"])
    for metric in ("attention", "explained", "delta", "weights"):
        for step in steps:
            mean = np.mean(list(step["similarity"][metric]["blocks"].values()))
            if (column := columns.get(f"{metric} after")) is not None:
                found = column[f"{step['b']} ({step['name']}) in one $ each"]
                assert float(found) == pytest.approx(mean, abs=1e-9)
            else:  # equal in every step: a sentence instead of a column
                assert says(re.search(rf"{metric} after: .* in every step\.", page.text)[0], mean)
    assert "delta after" in columns


def test_ceiling_is_least_squares(folder: Path, page: Page) -> None:
    """The ceiling by delta of a block is the length of the target's projection onto the sources' differences."""
    tensors = {name: load_file(folder / f"{name}.safetensors") for name in ("base", "x", "y", "target")}
    prefix = "model.diffusion_model.output_blocks.4."
    flat = {
        name: np.concatenate([file[key].ravel().astype(np.float64) for key in sorted(file) if key.startswith(prefix)])
        for name, file in tensors.items()
    }
    differences = np.stack([flat["x"] - flat["base"], flat["y"] - flat["base"]], axis=1)
    target = flat["target"] - flat["base"]
    solution = np.linalg.lstsq(differences, target, rcond=None)[0]
    best = np.linalg.norm(differences @ solution) / np.linalg.norm(target)
    columns = columns_of(page.figures["Ceiling by delta"])
    # A column that repeats another as shown is left out.
    found = columns.get("best merge") or columns["best alphas"]
    assert float(found["OUT04"]) == pytest.approx(best, abs=5e-5)


def test_only_applicable_remarks_are_shown(page: Page) -> None:
    """The page contains the remarks that apply, greedy and bumpy here, and no others."""
    for heading in ("Fitted step by step", "The attention metric is bumpy", "Part of the target is in no source"):
        assert heading in page.texts["know"]
    assert "Not every alpha is determined" not in page.texts["know"]
    assert "Not finished" not in page.text
    assert "prompts" not in page.texts["know"]


def test_alphas_that_trade_off_are_reported(folder: Path) -> None:
    """If the coefficients do not determine every alpha, a remark contains the rank and the alphas that trade off."""
    found = found_result(load_study(folder, with_files=False))
    ceiling = found_ceilings(folder)[0][-1]
    loose = replace(ceiling, identified=Identified(3, 5, ("A.OUT03", "B.OUT03", "A.OUT04"), ("C.IN00",)))

    texts = {remark.heading: remark.text for remark in remarks(found, {"delta": loose}, "blockfit fit study")}

    text = texts["Not every alpha is determined"]
    assert "The 5 free alphas move the sources' coefficients in only 3 directions" in text
    assert "These trade off against each other: A.OUT03-OUT04, B.OUT03." in text
    assert "no effect on any scored block: C.IN00." in text
    printed = "".join(str(part) for part in ceiling_tables(loose, found.result.study.recipe.layout))
    assert "These trade off against each other: A.OUT03-OUT04, B.OUT03." in printed


def test_the_study_can_be_reproduced(folder: Path, page: Page) -> None:
    """Commands contain the study's name, hashes match the files, and the study's absolute path is nowhere."""
    assert page.texts["command-1"] == "blockfit fit study"
    hashes = [row[2] for row in page.tables["Files, hashes and licences"][1:]]
    noted = yaml_in(folder / "best.yaml")
    assert hashes == [*(model["sha256"] for model in noted["models"].values()), noted["fitted"]["target"]["sha256"]]
    assert str(folder) not in (folder / "report.html").read_text(encoding="utf-8")


def test_unknown_licences_are_reported(page: Page) -> None:
    """If the recipe states no licences, a remark, the section on files and each source's row report it."""
    assert "The recipe states no licence for base, x, y." in page.texts["know"]
    assert "Before you share or sell" in page.texts["files"]
    rows = page.tables["Files, hashes and licences"][1:-1]
    assert [row[3] for row in rows] == ["unknown"] * 3
    assert all(row[4].startswith("unknown: the recipe states none") for row in rows)


def test_the_page_loads_nothing(page: Page) -> None:
    """No element refers to anything outside the page, and the policy forbids it."""
    names = {name for _, attributes in page.tags for name in attributes}
    assert not names & {"srcset", "style", "onclick", "onload", "background", "data"}
    assert all((attributes.get("href") or "#").startswith("#") for _, attributes in page.tags)
    assert all((attributes.get("src") or "data:image/").startswith("data:image/") for _, attributes in page.tags)
    (policy,) = [a["content"] for tag, a in page.tags if a.get("http-equiv") == "Content-Security-Policy"]
    assert policy.startswith("default-src 'none'; style-src 'sha256-")
    assert "unsafe" not in policy


def test_json_has_the_figures_of_the_page(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """--json prints the page's path and figures; -o sets another path."""
    written = tmp_path / "page.html"
    assert run("report", folder, "-o", written, "--json") == 0
    figures = json.loads(capsys.readouterr().out)
    assert figures["report"] == str(written)
    assert figures["complete"] is True
    assert {name: search["best"] for name, search in figures["searches"].items()} == best_in(folder / "study.db")
    assert written.read_bytes() == (folder / "report.html").read_bytes()


@pytest.fixture
def copy(folder: Path, tmp_path: Path) -> Path:
    """A copy of the study for tests that change it."""
    return Path(shutil.copytree(folder, tmp_path / "copy"))


def test_statistics_replace_the_checkpoints(copy: Path) -> None:
    """The statistics replace the checkpoints; without both, the page lists the missing files."""
    before = Page.of(copy / "report.html")
    for path in copy.glob("*.safetensors"):
        if path.name != "statistics.safetensors":
            path.unlink()
    assert run("report", copy) == 0
    assert Page.of(copy / "report.html").tables == before.tables

    (copy / "statistics.safetensors").unlink()
    assert run("report", copy) == 0
    page = Page.of(copy / "report.html")
    assert "could not be computed" in page.texts["sources"]
    assert "models.x.file: 'x' not found" in page.texts["sources"]
    assert page.tables["Totals by every metric"] == before.tables["Totals by every metric"]


def test_checkpoints_replace_the_statistics(copy: Path, tmp_path: Path) -> None:
    """Checkpoints found by --models replace the statistics."""
    models = tmp_path / "models"
    models.mkdir()
    for path in copy.glob("*.safetensors"):
        path.rename(models / path.name)
    (models / "statistics.safetensors").unlink()
    assert run("report", copy, "--models", models) == 0
    assert "Ceiling by delta" in Page.of(copy / "report.html").tables


def test_an_unfitted_study_is_refused(copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A study that was never fitted is refused in one line with the fit command, and nothing is written."""
    for name in ("study.db", "best.yaml", "report.html"):
        (copy / name).unlink()
    assert run("report", copy) == 2
    assert capsys.readouterr().err == f"blockfit: {copy}: not fitted yet; fit it first: blockfit fit {copy}\n"
    assert not (copy / "report.html").exists()


def test_a_killed_fit_is_marked_as_not_finished(copy: Path) -> None:
    """Without best.yaml the recipe combines the best trials, and the page is marked as not finished."""
    alphas = Page.of(copy / "report.html").tables["Alphas by step and block"]
    (copy / "best.yaml").unlink()
    assert run("report", copy) == 0
    page = Page.of(copy / "report.html")
    assert "best.yaml is missing" in page.texts["know"]
    assert page.tables["Alphas by step and block"] == alphas
    assert "Totals by every metric" not in page.tables


def test_an_interrupted_fit_is_marked_as_not_finished(copy: Path) -> None:
    """After Ctrl-C during the first search the page is marked as not finished and shows the results so far."""
    for name in ("study.db", "best.yaml"):
        (copy / name).unlink()
    seen = []

    def interrupt(progress: object, trial: object) -> None:
        seen.append(trial)
        if len(seen) == 2:
            raise KeyboardInterrupt

    fit(load_study(copy), events=FitEvents(finished=interrupt))
    assert run("report", copy) == 0
    page = Page.of(copy / "report.html")
    assert "Not finished." in page.text
    assert "one $ each/first 2 of 5" in page.texts["know"]
    assert [row[0] for row in page.tables["Alphas by step and block"]][1:] != []


def test_better_trials_are_reported(copy: Path) -> None:
    """Trials better than those of best.yaml are reported, and the recipe is still that of best.yaml."""
    alphas = Page.of(copy / "report.html").tables["Alphas by step and block"]
    study = optuna.load_study(study_name="together", storage=sqlite_url(copy / "study.db"))
    better = study.trials[0]
    params = dict.fromkeys(better.params, 0.123)
    study.add_trial(
        optuna.trial.create_trial(
            params=params, distributions=better.distributions, value=0.9999,
            user_attrs={"block_scores": dict.fromkeys(("OUT03", "OUT04", "OUT05"), 0.9999)},
        )
    )  # fmt: skip
    assert run("report", copy) == 0
    page = Page.of(copy / "report.html")
    assert "The trials are ahead of the recipe" in page.texts["know"]
    assert "together found better alphas" in page.texts["know"]
    assert page.tables["Alphas by step and block"] == alphas


def test_trials_in_another_storage_are_found(copy: Path) -> None:
    """--storage finds trials in another storage; without it the page reports no trials."""
    journal = f"journal:{copy / 'trials.journal'}"
    (copy / "study.db").unlink()
    fit(load_study(copy), storage=journal)
    assert run("report", copy) == 0
    assert "No trials" in Page.of(copy / "report.html").texts["know"]
    assert run("report", copy, "--storage", journal) == 0
    page = Page.of(copy / "report.html")
    assert len([text for text in page.captions if " in trial " in text]) == 3
    assert "--storage" in page.texts["command-1"]


def test_commands_name_the_study_as_given(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Commands name the study as the user did, by file or folder, and best.yaml in its folder."""
    for within, named, study, best in (
        (copy.parent, "copy/study.yaml", "copy/study.yaml", "copy/best.yaml"),
        (copy, "study.yaml", "study.yaml", "best.yaml"),
        (copy, ".", ".", "best.yaml"),
        (copy, str(copy / "study.yaml"), "copy/study.yaml", "copy/best.yaml"),
    ):
        monkeypatch.chdir(within)
        assert run("report", named) == 0
        texts = Page.of(copy / "report.html").texts
        assert texts["command-1"] == f"blockfit fit {study}"
        assert texts["command-2"].startswith(f"blockfit merge {best} -o ")
        assert f" {best} " in texts["command-3"]
        assert f" {best} " in texts["command-4"]
        assert [texts[f"command-{number}"] for number in (5, 6)] == [
            f"blockfit ceiling {study}", f"blockfit report {study}"
        ]  # fmt: skip


def test_texts_keep_their_dots(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Problems have the same text wherever the command is run; only the folder's name differs."""
    for path in copy.glob("*.safetensors"):
        path.unlink()
    texts = []
    for within, named in ((copy, "."), (copy, "study.yaml"), (copy.parent, copy.name), (copy.parent, str(copy))):
        monkeypatch.chdir(within)
        assert run("report", named) == 0
        texts.append(Page.of(copy / "report.html").texts["ceiling"])
    assert "recipe.yaml: models.x.file: 'x' not found" in texts[0]
    assert texts[0] == texts[1]
    assert f"{Path('copy/recipe.yaml')}: models.x.file: 'x' not found" in texts[2]
    assert texts[2] == texts[3]


def test_names_are_quoted_for_the_shell(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder's name with special characters of the shell is quoted in every command."""
    copy.rename(copy.parent / "x(1)")
    monkeypatch.chdir(copy.parent)
    assert run("report", "x(1)") == 0
    texts = Page.of(copy.parent / "x(1)" / "report.html").texts
    assert [shlex.split(texts[f"command-{number}"])[2] for number in range(1, 7)] == [
        "x(1)", "x(1)/best.yaml", "x(1)/best.yaml", "x(1)/best.yaml", "x(1)", "x(1)"
    ]  # fmt: skip
    assert all('"x(1)' in texts[f"command-{number}"] for number in range(1, 7))


def test_storage_can_be_given_again(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Commands and remarks contain the storage in the form of --storage, and the report command finds the same trials.

    An absolute path is reduced to the file's name.
    """
    monkeypatch.chdir(copy.parent)
    (copy / "study.db").rename("mine.db")
    for given, shown in (
        ("journal:t.log", "journal:t.log"),
        ("sqlite:///mine.db", "sqlite:///mine.db"),
        (f"sqlite:///{copy.parent.as_posix()}/mine.db", "sqlite:///mine.db"),
    ):
        (copy / "best.yaml").unlink(missing_ok=True)
        fit(load_study(copy).with_trials(1), storage=given)
        (copy / "best.yaml").unlink()
        assert run("report", "copy", "--storage", given) == 0
        texts = Page.of(copy / "report.html").texts
        assert texts["command-1"] == f"blockfit fit copy --storage {shown}"
        assert f"blockfit fit copy --storage {shown} continues the fit" in texts["know"]
        assert str(copy.parent) not in (copy / "report.html").read_text(encoding="utf-8")
        before = (copy / "report.html").read_bytes()
        assert run(*shlex.split(texts["command-5"])[1:]) == 0
        assert (copy / "report.html").read_bytes() == before


def test_only_pages_are_replaced(copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """An output without the extension .html or .htm is refused in one line, and files stay intact, as in Python."""
    before = {path: path.read_bytes() for path in copy.iterdir() if path.is_file()}
    for name in ("study.yaml", "study.db", "x.safetensors", "new"):
        assert run("report", copy, "-o", copy / name) == 2
        printed = capsys.readouterr()
        assert (printed.out, len(printed.err.splitlines())) == ("", 1)
        assert printed.err.startswith(f"blockfit: {copy / name}: ")
        assert ".html or .htm" in printed.err
    found = found_result(load_study(copy, with_files=False))
    with pytest.raises(InputError, match=r"\.html or \.htm"):
        write_report(found, (), (), copy / "study.yaml", named="copy", date="2026-11-23")
    assert {path: path.read_bytes() for path in copy.iterdir() if path.is_file()} == before
    assert run("report", copy, "-o", copy / "Page.HTM") == 0


def test_only_the_latest_generation_is_shown(write_sd1: Callable[..., dict], tmp_path: Path) -> None:
    """The page shows the latest generation and the last pass of each search."""
    base = write_sd1(tmp_path / "base.safetensors", seed=0)
    for seed, name in enumerate(("x", "y", "target"), start=1):
        write_sd1(tmp_path / f"{name}.safetensors", seed=seed, around=base)
    (tmp_path / "recipe.yaml").write_text(
        "models: {base: {file: base}, x: {file: x}, y: {file: y}}\nsteps:\n"
        "  - {name: A, mode: add_difference, a: base, b: x, c: base, alpha: {search: [0, 1], blocks: 'OUT03,OUT06'}}\n"
        "  - {name: B, mode: add_difference, a: A, b: y, c: base, alpha: {search: [0, 1], blocks: 'OUT03,OUT06'}}\n",
        encoding="utf-8",
    )
    text = (
        "recipe: recipe.yaml\ntarget: {file: target}\nstages:\n"
        "  - {name: s, strategy: stepwise, passes: 3, tolerance: 0, sampler: random, trials: TRIALS}\n"
    )
    for trials in (2, 6):
        (tmp_path / "study.yaml").write_text(text.replace("TRIALS", str(trials)), encoding="utf-8")
        result = fit(load_study(tmp_path))
    assert run("report", tmp_path) == 0
    page = Page.of(tmp_path / "report.html")
    for search in result.searches:
        (caption,) = [found for found in page.captions if found.startswith(f"{search.name}, by ")]
        assert caption.endswith(f"{len(search.completed)} of 6 trials")
        assert says(caption, max(trial.similarity for trial in search.completed))
    assert "Further passes improve" in page.texts["know"]


@pytest.mark.parametrize(
    ("stated", "standing"),
    [
        *((text, "unknown") for text in ("", "unknown", "Unknown", "none", "?", "  ", "-", "N/A", "unlicensed")),
        *((text, "check it") for text in ("MIT", "cc-by-nc-4.0", "creativeml-openrail-m", "my own; ask me")),
    ],
)
def test_licences_are_shown_as_they_are(stated: str, standing: str) -> None:
    """A licence is unknown if the field states none; a stated licence is shown without interpretation."""
    source = Source("x", Model("x", license=stated), True, None, None, {})
    unused = Source("x", Model("x", license=stated), False, None, None, {})

    assert source.standing == standing
    assert source.alarming == (standing == "unknown")
    assert not unused.alarming


def test_no_local_path_is_on_the_page(write_sd1: Callable[..., dict], tmp_path: Path) -> None:
    """A page to give away shows files by their names, even if recipe and study name them by absolute paths."""
    models, folder = tmp_path / "my models", tmp_path / "study"
    models.mkdir()
    folder.mkdir()
    base = write_sd1(models / "base.safetensors", seed=0)
    for seed, name in enumerate(("x", "target"), start=1):
        write_sd1(models / f"{name}.safetensors", seed=seed, around=base)
    (folder / "recipe.yaml").write_text(
        f"models: {{base: {{file: '{models / 'base.safetensors'}'}}, x: {{file: '{models / 'x.safetensors'}'}}}}\n"
        "steps: [{name: A, mode: add_difference, a: base, b: x, c: base, alpha: {search: [0, 1]}}]\n",
        encoding="utf-8",
    )
    (folder / "study.yaml").write_text(
        f"recipe: recipe.yaml\ntarget: {{file: '{models / 'target.safetensors'}'}}\nstages: [{{name: s, trials: 1}}]\n",
        encoding="utf-8",
    )
    fit(load_study(folder))
    for missing in (False, True):
        if missing:  # the reasons why there are no ceilings name files
            (folder / "statistics.safetensors").unlink()
            (models / "x.safetensors").unlink()
        assert run("report", folder, "--storage", f"sqlite:///{(folder / 'study.db').as_posix()}") == 0
        html = (folder / "report.html").read_text(encoding="utf-8")
        assert str(tmp_path) not in html
        assert "my models" not in html
        assert "x.safetensors" in html
