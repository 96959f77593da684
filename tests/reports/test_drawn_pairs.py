"""Pictures of target and clone in a study's folder and on its report."""

import base64
import io
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from pages import Page
from PIL import Image
from ruamel.yaml import YAML

from optimizer.cli import main
from optimizer.demo.running import copy_family
from optimizer.errors import InputError
from optimizer.reports.drawn_pairs import load_pairs
from optimizer.search import fit
from optimizer.studies import StudyFolder, load_study

pytest.importorskip("diffusers")


def run(*arguments: object) -> int:
    """Run the command and return its exit code."""
    with pytest.raises(SystemExit) as left:
        main([str(argument) for argument in arguments])
    return int(left.value.code or 0)


def decoded(text: str) -> np.ndarray:
    """Return a picture in base64 as pixels in [0, 1]."""
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(text))).convert("RGB"), dtype=np.float64) / 255


@pytest.fixture(scope="module")
def fitted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo's first study, fitted with a single trial."""
    folder = tmp_path_factory.mktemp("pairs") / "demo"
    copy_family(folder)
    fit(load_study(folder).with_trials(1))
    return folder


@pytest.fixture(scope="module")
def drawn(fitted: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same study with a preview of its best recipe."""
    folder = tmp_path_factory.mktemp("drawn") / "demo"
    shutil.copytree(fitted, folder)
    sheet = folder / "sheet.png"
    prompts = ["--prompt", "a digit three", "--prompt", "a digit <five>", "--seed", 7]
    target = ["--target", folder / "target.safetensors"]
    assert run("preview", folder / "best.yaml", *target, *prompts, "--steps", 4, "--no-sources", "-o", sheet) == 0
    return folder


def test_a_preview_of_the_best_recipe_is_shown_in_the_report(drawn: Path) -> None:
    """The report shows the pictures of the last preview, which are those that target and clone draw."""
    found = json.loads((drawn / "pictures.json").read_text(encoding="utf-8"))
    assert [pair["prompt"] for pair in found["pairs"]] == ["a digit three", "a digit <five>"]
    for pair in found["pairs"]:
        target, clone = decoded(pair["target"]), decoded(pair["clone"])
        assert target.shape == (32, 32, 3)
        # The digits are stored without loss, so the distance can be computed from them.
        assert np.sqrt(((target - clone) ** 2).mean()) == pytest.approx(pair["distance"], abs=1e-6)
    assert run("report", drawn) == 0
    page = Page.of(drawn / "report.html")
    shown = [attributes["src"] for tag, attributes in page.tags if tag == "img"]
    expected = [pair[who] for pair in found["pairs"] for who in ("target", "clone")]
    assert shown == [f"data:image/webp;base64,{text}" for text in expected]
    assert "“a digit <five>”, seed 7" in page.text
    assert "earlier recipe" not in page.text


def test_pictures_of_an_earlier_recipe_are_marked(drawn: Path, tmp_path: Path) -> None:
    """If the best recipe has changed since the pictures were drawn, the report says so."""
    folder = Path(shutil.copytree(drawn, tmp_path / "demo"))
    yaml = YAML()
    best = yaml.load(folder / "best.yaml")
    best["steps"][0]["alpha"][0] += 0.1
    yaml.dump(best, folder / "best.yaml")
    (folder / "best.simple.yaml").unlink()
    assert run("report", folder) == 0
    assert "Drawn with an earlier recipe" in Page.of(folder / "report.html").text


def test_the_report_draws_with_prompts(fitted: Path, tmp_path: Path) -> None:
    """`report --prompt` draws target and clone itself, leaves no merged file behind, and keeps the pictures."""
    folder = Path(shutil.copytree(fitted, tmp_path / "demo"))
    before = {path.name for path in folder.iterdir()}
    assert run("report", folder, "--prompt", "a digit two", "--seed", 1, "--seed", 2) == 0
    assert {path.name for path in folder.iterdir()} - before == {"pictures.json", "report.html"}
    pairs = load_pairs(StudyFolder(folder))
    assert [(pair.prompt, pair.seed) for pair in pairs.pairs] == [("a digit two", 1), ("a digit two", 2)]
    assert run("report", folder) == 0
    assert sum(tag == "img" for tag, _ in Page.of(folder / "report.html").tags) == 4


def test_a_preview_of_other_recipes_is_not_kept(drawn: Path, tmp_path: Path) -> None:
    """A preview of a recipe that is no study's best, or against another target, leaves the study's pictures alone."""
    folder = Path(shutil.copytree(drawn, tmp_path / "demo"))
    kept = (folder / "pictures.json").read_bytes()
    shutil.copy(folder / "best.yaml", folder / "other.yaml")
    options = ["--prompt", "a digit one", "--steps", 2, "--no-sources", "-o", folder / "sheet.png"]
    assert run("preview", folder / "other.yaml", "--target", folder / "target.safetensors", *options) == 0
    assert run("preview", folder / "best.yaml", "--target", folder / "models" / "bold.safetensors", *options) == 0
    assert (folder / "pictures.json").read_bytes() == kept


def test_a_seed_needs_a_prompt(fitted: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A seed without a prompt is refused in one line."""
    assert run("report", fitted, "--seed", 1) == 2
    assert capsys.readouterr().err == "blockfit: --seed: received a seed, and no --prompt to draw with it\n"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda text: text[: len(text) // 2], "Invalid JSON"),
        (lambda text: text.replace('"version":1', '"version":2').replace('"version": 1', '"version": 2'), "version"),
        (lambda text: json.dumps({**json.loads(text), "pairs": []}), "pairs"),
        (lambda text: json.dumps({**json.loads(text), "more": 1}), "more"),
        (lambda text: text.replace('"target": "', '"target": "\\"><script>'), "pairs.0.target"),
    ],
)
def test_other_files_are_refused(drawn: Path, tmp_path: Path, change, message: str) -> None:
    """A pictures.json that no preview wrote is refused with the place of the fault and the way on."""
    (tmp_path / "pictures.json").write_text(
        change((drawn / "pictures.json").read_text(encoding="utf-8")), encoding="utf-8"
    )
    with pytest.raises(InputError, match="delete it and draw again") as caught:
        load_pairs(StudyFolder(tmp_path))
    assert len(caught.value.problems) == 1
    assert message in caught.value.problems[0]
