"""The benchmark of three ways to fit a recipe, on a small family."""

import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from optimizer.checkpoints import open_checkpoint
from optimizer.recipes import Recipe

ROOT = Path(__file__).parents[2]
Run = Callable[..., Any]
SCRIPTS = ROOT / "studies" / "benchmarks"


@pytest.fixture(scope="module")
def scripts() -> Iterator[None]:
    """Make the benchmarks importable."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(SCRIPTS)
        yield


@pytest.fixture(scope="module")
def methods(scripts: None) -> ModuleType:
    """The script `methods.py` as a module."""
    import methods

    return methods


@pytest.fixture(scope="module")
def recipe(methods: ModuleType) -> Recipe:
    """The article's output steps."""
    return methods.article_recipe(ROOT / "configs" / "blessingmix-v1.yaml")


def test_the_recipe_equals_that_of_the_merging_benchmark(methods: ModuleType, recipe: Recipe) -> None:
    """The article's file, with renamed models, and the text in merging_speed.py give the same coefficients."""
    import merging_speed

    blocks = recipe.layout.blocks
    expected = methods.coefficients(merging_speed.parse_recipe(), blocks)

    assert methods.coefficients(recipe, blocks) == expected
    assert expected["OUT03"]["one"] == pytest.approx(0.95 * 0.9)
    assert expected["OUT11"]["seven"] == pytest.approx(0.15)


@pytest.mark.parametrize(("unknown", "correlation"), [(0.3, 0.2), (0.1, 0.05), (0.3, 0.0)])
def test_the_unknown_part_has_the_requested_size_and_correlation(
    scripts: None, methods: ModuleType, recipe: Recipe, family: Path, tmp_path: Path, unknown: float, correlation: float
) -> None:
    """The target minus the planted sum has the size and the correlation of its level."""
    from make_checkpoints import write_target

    target, paths = tmp_path / "target.safetensors", {name: family / f"{name}.safetensors" for name in recipe.models}
    like = "four" if correlation else None
    write_target(recipe, paths, target, unknown=unknown, like=like, correlation=correlation)
    name = "model.diffusion_model.output_blocks.3.0.in_layers.2.weight"
    values = {}
    for model, path in {**paths, "target": target}.items():
        with open_checkpoint(path) as opened:
            values[model] = opened.tensor(name).double().flatten()
    planted = methods.coefficients(recipe, ["OUT03"])["OUT03"]
    known = sum(value * values[model] for model, value in planted.items())
    rest, direction = values["target"] - known, values["four"] - values["base"]

    assert float(rest.norm() / (known - values["base"]).norm()) == pytest.approx(unknown, rel=0.02)
    cosine = float(torch.nn.functional.cosine_similarity(rest, direction, dim=0))
    assert cosine == pytest.approx(correlation, abs=0.015)
    assert [path.name for path in tmp_path.iterdir()] == ["target.safetensors"]


def test_a_resemblance_to_a_missing_finetune_is_refused(
    scripts: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """If the unknown part should resemble a finetune outside the family, one line names it, and nothing is written."""
    import make_checkpoints

    monkeypatch.setattr(sys, "argv", ["make_checkpoints.py", str(tmp_path / "family"), "--target-correlated", "six"])
    with pytest.raises(SystemExit, match="2"):
        make_checkpoints.main()

    assert "six is not among 6 sources" in capsys.readouterr().err
    assert not (tmp_path / "family").exists()


@pytest.mark.slow
def test_methods_are_compared(run: Run, methods: ModuleType, family: Path, tmp_path: Path) -> None:
    """With nothing unknown, blockfit finds the coefficients; extrapolated ratios are marked as lower bounds."""
    before = sorted(family.iterdir())
    report, plot = tmp_path / "figures.json", tmp_path / "methods.png"
    done = run(
        "methods.py", family, "--levels", "0", "--trials", 3, "--time-b", 0.5, "--trials-b", 40,
        "--time-c", 0.001, "--evaluations-c", 60, "--json", report, "--plot", plot,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    figures = json.loads(report.read_text(encoding="utf-8"))["figures"]
    (exact,) = figures["levels"]

    assert exact["fits"]["delta"]["error"] <= 0.002
    assert exact["fits"]["attention"]["error"] <= 0.02
    assert 1 - exact["fits"]["attention"]["similarity"] < 1e-5
    assert 0 < exact["fits"]["attention"]["there"] < exact["fits"]["attention"]["seconds"]

    tpe, simplex = exact["TPE"], exact["Nelder-Mead"]
    assert 1 <= tpe["trials measured"] <= tpe["trials"] == 40
    assert tpe["largest difference of a similarity from coefficients"] <= 1e-5
    assert tpe["there"] is None
    assert simplex["blocks measured"] == ["OUT03", "OUT06", "OUT09"]
    assert simplex["seconds"] == pytest.approx(3 * simplex["seconds measured"])
    assert {fit["evaluations"] for fit in simplex["blocks"]} <= set(range(8, 62))
    assert set(simplex["errors"]) == {"OUT03", "OUT06", "OUT09"}
    assert "more than" in done.stdout
    assert "OUT03, OUT06, OUT09" in done.stdout
    assert plot.read_bytes().startswith(b"\x89PNG")
    assert sorted(family.iterdir()) == before


def test_nelder_mead_finds_the_coefficients_of_a_block(scripts: None, recipe: Recipe) -> None:
    """With nothing unknown and a tight tolerance, Nelder-Mead ends at the planted coefficients."""
    from other_methods import fit_block

    generator = torch.Generator().manual_seed(3)
    base, one, two = ([torch.randn(24, 24, generator=generator) * 0.2 for _ in "qkv"] for _ in range(3))
    target = [b + 0.6 * (x - b) + 0.3 * (y - b) for b, x, y in zip(base, one, two, strict=True)]
    x = torch.randn(24, 24, generator=generator)

    found = fit_block("OUT03", {"base": base, "one": one, "two": two}, target, x, tolerance=1e-6)

    assert found.converged
    assert found.coefficients == pytest.approx({"base": 0.1, "one": 0.6, "two": 0.3}, abs=0.005)
    assert found.course[-1].similarity > 1 - 1e-5
    assert sorted(moment.similarity for moment in found.course) == [moment.similarity for moment in found.course]


def test_a_folder_without_the_family_is_refused(
    methods: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """One line names the missing file and the script that makes it, and nothing is left behind."""
    monkeypatch.setattr(sys, "argv", ["methods.py", str(tmp_path)])

    assert methods.main() == 2
    problem = "base.safetensors: no such file; make_checkpoints.py FOLDER --sources 8 makes it"
    assert problem in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("text", "unknown", "correlation", "printed"),
    [("0", 0, 0, "0 %"), ("0.3", 0.3, 0, "30 %"), ("0.1:0.05", 0.1, 0.05, "10 %, correlated 0.05")],
)
def test_levels_are_parsed(methods: ModuleType, text: str, unknown: float, correlation: float, printed: str) -> None:
    """A level is read from its text, and printed for people."""
    level = methods.Level.parse(text)

    assert (level.unknown, level.correlation) == (unknown, correlation)
    assert str(level) == printed
