"""Half-downloaded files in comparisons: zeros in one checkpoint are told by every metric that meets them."""

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
    """Writes base, x and target, kin of one another, with zeros for some tensors of some; gives the paths."""
    base = sd1_tensors(seed=0)

    def make(**zeros):
        for seed, name in enumerate(FILES):
            overrides = {tensor: torch.zeros_like(base[tensor]) for tensor in zeros.get(name, ())}
            write_sd1(tmp_path / f"{name}.safetensors", seed=seed, around=base, distance=1e-3, overrides=overrides)
        return {name: tmp_path / f"{name}.safetensors" for name in FILES}

    return make


def told(action):
    """What an action warns of."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", BlockfitWarning)
        action()
    return [str(one.message) for one in caught]


@pytest.mark.parametrize("which", FILES)
@pytest.mark.parametrize("based", [True, False])
def test_statistics(write, which, based):
    """Zeros in a source, the base or the target are told once, with the file and the tensor, however close kin are."""
    paths = write(**{which: [QUERY]})
    sources = {name: paths[name] for name in ("base", "x")}

    def measure():
        with open_comparison(LAYOUT, sources, paths["target"], base=paths["base"] if based else None) as comparison:
            measure_statistics(comparison, ["OUT06"])
            measure_statistics(comparison, ["OUT06", "OUT07"])

    (line,) = told(measure)

    assert line.startswith(
        f"{paths[which]}: a tensor holds nothing but zeros where other inputs hold numbers, {QUERY!r}"
    )


def test_zeros_of_all(write):
    """A tensor that is zero everywhere is no sign of anything."""
    paths = write(**{name: [QUERY] for name in FILES})

    def measure():
        with open_comparison(LAYOUT, {"x": paths["x"]}, paths["target"], base=paths["base"]) as comparison:
            measure_statistics(comparison, ["OUT06"])

    assert told(measure) == []


def test_nearly_zero(write):
    """A tensor that is next to nothing beside the others, but not zero, is worth no word."""
    paths = write()
    tensors = load_file(paths["x"])
    tensors[QUERY] = torch.full_like(tensors[QUERY], 1e-20)
    save_file(tensors, paths["x"])

    def measure():
        with open_comparison(LAYOUT, {"x": paths["x"]}, paths["target"], base=paths["base"]) as comparison:
            measure_statistics(comparison, ["OUT06"])

    assert told(measure) == []


@pytest.mark.parametrize("which", ["x", "target"])
@pytest.mark.parametrize("metric", ["attention", "weights", "delta", "elements"])
def test_compare(write, which, metric):
    """Each metric of a comparison tells zeros of the candidate or the target in what it reads, and nowhere else."""
    paths = write(**{which: [QUERY]})
    base = paths["base"] if metric == "delta" else None

    def run(blocks):
        return told(lambda: compare(paths["x"], paths["target"], metric=metric, base=base, blocks=blocks))

    (line,) = run("output")
    assert line.startswith(f"{paths[which]}: a tensor holds nothing but zeros")
    assert run("OUT07") == []
