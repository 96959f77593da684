"""Damaged statistics are never used, and the damage is reported."""

import json
import shutil

import pytest
import torch
from measured_files import load_measured
from safetensors import safe_open
from safetensors.torch import save_file

from optimizer.analysis import study_ceilings
from optimizer.checkpoints import STATISTICS
from optimizer.errors import BlockfitWarning, StudyError
from optimizer.search import fit
from optimizer.studies import load_study

KEY = "blockfit.statistics"
HASH = "0" * 64


def parts(change):
    """Return a change of one measured tensor's description: name, block, shape, holders, scored, channels."""
    return lambda data, tensors: change(data["parts"][data["scored"][3]])


def gram(change):
    """Return a change of the Gram matrix of a tensor that all sources contain."""
    return lambda data, tensors: change(tensors["gram"][5])


def put(value, *place):
    """Return a change that puts a value into the data at these keys."""

    def change(data, tensors):
        for key in place[:-1]:
            data = data[key]
        data[place[-1]] = value

    return change


# The rows of a Gram matrix: the base, then the differences of base, x, y and the target from it.
BASE, X, Y, TARGET = 1, 2, 3, 4


def one_sided(matrix):
    matrix[X, Y] += 10.0


def impossible(matrix):
    matrix[X, Y] = matrix[Y, X] = 2 * (matrix[X, X] * matrix[Y, Y]).sqrt()


def not_of_any(matrix):
    """Make three differences, each nearly opposite to the two others."""
    for row, column in ((X, Y), (Y, TARGET), (X, TARGET)):
        product = matrix[row, row] * matrix[column, column]
        matrix[row, column] = matrix[column, row] = -0.9 * product.sqrt()


def fill(row, column, value):
    def change(matrix):
        matrix[row, column] = matrix[column, row] = value

    return change


DAMAGES = {
    "no mapping": lambda data, tensors: [1, 2],
    "nothing noted": lambda data, tensors: {"version": data["version"]},
    "deep": lambda data, tensors: "[" * 100_000 + "]" * 100_000,
    "no JSON": lambda data, tensors: "nonsense",
    "layout unknown": put("sd9", "layout"),
    "layout a list": put(["sd1"], "layout"),
    "layout a path": put("../layouts/sd1", "layout"),
    "mapping unknown": put("another", "mapping"),
    "mapping a list": put([], "mapping"),
    "base unknown": put("z9", "base"),
    "base a number": put(3, "base"),
    "base another": put("x", "base"),
    "sources a list": put(["base", "x", "y"], "sources"),
    "no sources": put({}, "sources"),
    "sources without end": lambda data, tensors: data["sources"].update(
        {f"s{n}": data["sources"]["x"] for n in range(2000)}
    ),
    "one source more": lambda data, tensors: data["sources"].update(more=data["sources"]["x"]),
    "one source less": lambda data, tensors: data["sources"].pop("y"),
    "source a text": put("x.safetensors", "sources", "x"),
    "source without a fingerprint": lambda data, tensors: data["sources"]["x"].pop("fingerprint"),
    "source with more": put("much", "sources", "x", "more"),
    "fingerprint a number": put(7, "sources", "x", "fingerprint"),
    "fingerprint short": put("abc", "sources", "x", "fingerprint"),
    "hash no hash": put("\x1b[2J", "sources", "x", "sha256"),
    "file a list": put(["a"], "sources", "x", "file"),
    "target nothing": put(None, "target"),
    "target's file a number": put(1, "target", "file"),
    "parts a mapping": put({}, "parts"),
    "no parts": put([], "parts"),
    "part a text": lambda data, tensors: data["parts"].__setitem__(0, "x"),
    "part too short": parts(lambda part: part.pop()),
    "part's name a number": parts(lambda part: part.__setitem__(0, 5)),
    "part's name another": parts(lambda part: part.__setitem__(0, "model.diffusion_model.out.0.weight")),
    "part in another block": parts(lambda part: part.__setitem__(1, "OUT11")),
    "part in no block": parts(lambda part: part.__setitem__(1, None)),
    "part in an unknown block": parts(lambda part: part.__setitem__(1, "OUT99")),
    "part's shape of texts": parts(lambda part: part.__setitem__(2, ["8"])),
    "part's shape negative": parts(lambda part: part.__setitem__(2, [-8])),
    "part's shape huge": parts(lambda part: part.__setitem__(2, [1 << 70])),
    "part's holders beyond": parts(lambda part: part.__setitem__(3, [0, 1, 99])),
    "part's holders twice": parts(lambda part: part.__setitem__(3, [0, 0, 1])),
    "part's holders none": parts(lambda part: part.__setitem__(3, [])),
    "part's holders a number": parts(lambda part: part.__setitem__(3, 3)),
    "part's holders fewer": parts(lambda part: part.__setitem__(3, [0, 1])),
    "part not scored": parts(lambda part: part.__setitem__(4, False)),
    "part scored as a number": parts(lambda part: part.__setitem__(4, 1)),
    "part's channels one": parts(lambda part: part.__setitem__(5, [4])),
    "part's channels backwards": parts(lambda part: part.__setitem__(5, [4, 0])),
    "part's other shapes beyond": parts(lambda part: part.__setitem__(6, [99])),
    "part's other shapes of a holder": parts(lambda part: part.__setitem__(6, [part[3][0]])),
    "part's other shapes texts": parts(lambda part: part.__setitem__(6, ["x"])),
    "part's other shapes a number": parts(lambda part: part.__setitem__(6, 2)),
    "part twice": lambda data, tensors: data["parts"].append(data["parts"][0]),
    "scored beyond": put(99_999, "scored", 0),
    "scored negative": put(-1, "scored", 0),
    "scored twice": lambda data, tensors: data["scored"].__setitem__(0, data["scored"][1]),
    "scored a text": put("all", "scored"),
    "scored texts": put("0", "scored", 0),
    "scored huge": put(10**400, "scored", 0),
    "not finite": gram(fill(X, X, float("nan"))),
    "infinite": gram(fill(X, X, float("inf"))),
    "huge": gram(fill(X, X, 1e300)),
    "tiny": gram(fill(X, X, 1e-300)),
    "negative": gram(fill(TARGET, TARGET, -1.0)),
    "not symmetric": gram(one_sided),
    "longer than its factors": gram(impossible),
    "not positive semidefinite": gram(not_of_any),
    "of nothing": gram(fill(X, X, 0.0)),
    "of the base with itself": gram(fill(BASE, BASE, 1.0)),
    "single precision": lambda data, tensors: tensors.update(gram=tensors["gram"].float()),
    "one matrix less": lambda data, tensors: tensors.update(gram=tensors["gram"][1:].clone()),
    "one row less": lambda data, tensors: tensors.update(gram=tensors["gram"][:, 1:, 1:].clone()),
    "no matrices": lambda data, tensors: tensors.update(gram=torch.zeros(0, dtype=torch.float64)),
    "gram missing": lambda data, tensors: tensors.pop("gram"),
    "referenced missing": lambda data, tensors: tensors.pop("referenced"),
    "referenced numbers": lambda data, tensors: tensors.update(referenced=tensors["referenced"].double()),
    "referenced turned": lambda data, tensors: tensors.update(referenced=~tensors["referenced"]),
    "referenced short": lambda data, tensors: tensors.update(referenced=tensors["referenced"][1:].clone()),
}


@pytest.fixture
def damaged(finished_study, tmp_path):
    """A function that copies a fitted study's folder and changes its statistics."""

    def make(change):
        folder = shutil.copytree(finished_study, tmp_path / "study")
        path = folder / STATISTICS
        with safe_open(path, "pt") as file:
            data = json.loads(file.metadata()[KEY])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  not a mapping
        found = change(data, tensors)
        text = found if isinstance(found, str) else json.dumps(found if isinstance(found, list) else data)
        if isinstance(found, dict) and "version" in found:
            text = json.dumps(found)
        save_file(tensors, path, {KEY: text})
        return folder

    return make


def test_undamaged_statistics_are_read(damaged):
    """Unchanged statistics are read from a copy."""
    folder = damaged(lambda data, tensors: None)

    assert load_measured(folder / STATISTICS) is not None
    assert study_ceilings(load_study(folder, with_files=False).without_files())


@pytest.mark.parametrize("name", DAMAGES)
def test_damage_is_reported_without_the_checkpoints(damaged, name):
    """If damaged statistics would have to replace the checkpoints, one line gives the reason why they cannot."""
    folder = damaged(DAMAGES[name])

    with pytest.raises(StudyError) as caught:
        study_ceilings(load_study(folder, with_files=False).without_files())

    assert load_measured(folder / STATISTICS) is None
    (problem,) = [line for line in caught.value.problems if ": cannot be used: " in line]
    assert problem.startswith(f"{folder / STATISTICS}: cannot be used: ")
    assert problem.isprintable()


def test_damaged_statistics_are_measured_anew(damaged, finished_study):
    """If the checkpoints exist, statistics are measured anew, with a warning, and the trials still count."""
    folder = damaged(DAMAGES["not positive semidefinite"])

    with pytest.warns(BlockfitWarning, match="its inner products contradict each other: .* are measured anew$"):
        result = fit(load_study(folder))

    assert (folder / STATISTICS).read_bytes() == (finished_study / STATISTICS).read_bytes()
    assert [len(search.completed) for search in result.searches] == [4, 4]


@pytest.mark.parametrize("size", [0, 7, 8, 100, 40_000])
def test_truncated_statistics_are_refused(finished_study, tmp_path, size):
    """A truncated file is reported like other unusable ones."""
    folder = shutil.copytree(finished_study, tmp_path / "study")
    path = folder / STATISTICS
    path.write_bytes(path.read_bytes()[:size])

    with pytest.raises(StudyError, match="cannot be used"):
        study_ceilings(load_study(folder, with_files=False).without_files())
