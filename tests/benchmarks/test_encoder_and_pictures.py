"""The benchmarks of the encoder metric, and of similarities as predictors of pictures, on the demo's family."""

import json
import shutil
from pathlib import Path

import pytest
from scipy.stats import spearmanr

DEMO = Path(__file__).parents[2] / "studies" / "demo"
PLANTED = """\
models:
  base: {{file: {models}/base.safetensors}}
  bold: {{file: {models}/bold.safetensors}}
  slanted: {{file: {models}/slanted.safetensors}}
steps:
  - {{name: T, mode: add_difference, a: bold, b: slanted, c: base, alpha: 0.5}}
"""


@pytest.mark.slow
def test_the_encoder_benchmark_runs_through(run, tmp_path):
    """The metric's score of two files is that of the padded prompts, and the table has a line for each task."""
    (tmp_path / "planted.yaml").write_text(PLANTED.format(models=(DEMO / "models").as_posix()), encoding="utf-8")
    shutil.copy(DEMO / "target.safetensors", tmp_path)

    done = run("encoder_speed.py", tmp_path, "--repeats", 2, "--json", tmp_path / "figures.json")

    assert done.returncode == 0, done.stderr
    figures = json.loads((tmp_path / "figures.json").read_text(encoding="utf-8"))["figures"]
    assert {len(turns) for turns in figures["seconds"].values()} == {2}
    assert figures["largest difference of a score from the padded pass"] < 1e-6
    assert all(f"| {name} |" in done.stdout for name in figures["seconds"])


@pytest.mark.slow
def test_a_family_without_a_known_encoder_is_refused(run, family):
    """The encoder benchmark refuses a small family, because no tokenizer fits its text encoder."""
    done = run("encoder_speed.py", family, "--repeats", 1)

    assert done.returncode == 2
    assert "the text encoder has" in done.stderr


@pytest.mark.slow
def test_pictures_are_compared_with_similarities(run, tmp_path):
    """Rank correlations equal scipy's and lie within their intervals, and the plot is a PNG."""
    done = run(
        "pictures_and_similarity.py", "--merges", 5, "--steps", 2,
        "--json", tmp_path / "figures.json", "--plot", tmp_path / "plot.png",
    )  # fmt: skip

    assert done.returncode == 0, done.stderr
    figures = json.loads((tmp_path / "figures.json").read_text(encoding="utf-8"))["figures"]
    assert set(figures["similarity"]) == {"explained", "weights", "delta", "elements", "attention", "encoder"}
    for kind, by_metric in figures["rank correlation"]["all"].items():
        for metric, found in by_metric.items():
            nearness = [-distance for distance in figures["distance"][kind]]
            assert found["rho"] == pytest.approx(spearmanr(figures["similarity"][metric], nearness).statistic)
            low, high = found["interval"]
            assert -1 <= low <= found["rho"] <= high <= 1
            assert f"| {metric} | " in done.stdout
    assert len(set(figures["distance"]["pixels"])) == 5
    assert figures["merges"]["without inverted"] == sum("inverted" not in names for names in figures["finetunes"])
    assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")
