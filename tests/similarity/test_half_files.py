"""Half-downloaded files in comparisons: every metric that reads zeros in one checkpoint warns of them."""

import warnings

import pytest
import torch
from safetensors.torch import load_file, save_file

from optimizer.errors import BlockfitWarning
from optimizer.families import load_layout
from optimizer.similarity import compare, measure_statistics, open_comparison

LAYOUT = load_layout("sd1")
QUERY = "model.diffusion_model.output_blocks.6.1.transformer_blocks.0.attn1.to_q.weight"
FILES = ("base", "x", "target")


@pytest.fixture
def write(tmp_path, write_sd1, sd1_tensors):
    """Return a function that writes related base, x and target, with zeros for some tensors, and returns the paths."""
    base = sd1_tensors(seed=0)

    def make(**zeros):
        for seed, name in enumerate(FILES):
            overrides = {tensor: torch.zeros_like(base[tensor]) for tensor in zeros.get(name, ())}
            write_sd1(tmp_path / f"{name}.safetensors", seed=seed, around=base, distance=1e-3, overrides=overrides)
        return {name: tmp_path / f"{name}.safetensors" for name in FILES}

    return make


def warnings_of(action):
    """Return the warnings of an action."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", BlockfitWarning)
        action()
    return [str(warning.message) for warning in caught]


@pytest.mark.parametrize("which", FILES)
@pytest.mark.parametrize("based", [True, False])
def test_statistics_report_zeros(write, which, based):
    """Zeros in a source, the base or the target are reported once, with file and tensor.

    Small differences between the files do not matter.
    """
    paths = write(**{which: [QUERY]})
    sources = {name: paths[name] for name in ("base", "x")}

    def measure():
        with open_comparison(LAYOUT, sources, paths["target"], base=paths["base"] if based else None) as comparison:
            measure_statistics(comparison, ["OUT06"])
            measure_statistics(comparison, ["OUT06", "OUT07"])

    (line,) = warnings_of(measure)

    assert line.startswith(
        f"{paths[which]}: a tensor holds nothing but zeros where other inputs hold numbers, {QUERY!r}"
    )


def test_zeros_in_all_files_are_not_reported(write):
    """A tensor that is zero in all files is not reported."""
    paths = write(**{name: [QUERY] for name in FILES})

    def measure():
        with open_comparison(LAYOUT, {"x": paths["x"]}, paths["target"], base=paths["base"]) as comparison:
            measure_statistics(comparison, ["OUT06"])

    assert warnings_of(measure) == []


def test_nearly_zero_tensors_are_not_reported(write):
    """A tensor that is much shorter than in other files, but not zero, is not reported."""
    paths = write()
    tensors = load_file(paths["x"])
    tensors[QUERY] = torch.full_like(tensors[QUERY], 1e-20)
    save_file(tensors, paths["x"])

    def measure():
        with open_comparison(LAYOUT, {"x": paths["x"]}, paths["target"], base=paths["base"]) as comparison:
            measure_statistics(comparison, ["OUT06"])

    assert warnings_of(measure) == []


@pytest.mark.parametrize("which", ["x", "target"])
@pytest.mark.parametrize("metric", ["attention", "weights", "delta", "elements"])
def test_metrics_report_zeros_that_they_read(write, which, metric):
    """Each metric of a comparison reports zeros of the candidate or the target in the tensors that it reads only."""
    paths = write(**{which: [QUERY]})
    base = paths["base"] if metric == "delta" else None

    def run(blocks):
        return warnings_of(lambda: compare(paths["x"], paths["target"], metric=metric, base=base, blocks=blocks))

    (line,) = run("output")
    assert line.startswith(f"{paths[which]}: a tensor holds nothing but zeros")
    assert run("OUT07") == []
