"""States of CMA-ES in a database: real ones pass, every other pickle is refused without being run."""

import builtins
import copyreg
import functools
import io
import os
import pickle
import runpy
import struct
import subprocess
import warnings

import cmaes
import numpy as np
import optuna
import pytest
from databases import sqlite_url
from optuna.distributions import FloatDistribution
from optuna.samplers import CmaEsSampler
from optuna.trial import create_trial

from optimizer.errors import StudyError
from optimizer.search.trials.sampler_state import check_sampler_state


def trial_with(attributes):
    """Return a completed trial with these system attributes and number 0."""
    return create_trial(
        value=1.0, params={"x": 0.5}, distributions={"x": FloatDistribution(0, 1)}, system_attrs=attributes
    )


def trial_of(data, prefix="cma:", piece=100):
    """Return a completed trial with the pickle `data` as its state, in pieces as in Optuna."""
    digits = data.hex()
    pieces = [digits[start : start + piece] for start in range(0, len(digits), piece)]
    return trial_with({f"{prefix}optimizer:{number}": text for number, text in enumerate(pieces)})


def refusal(trial):
    """Return the one line that refuses the trial."""
    with pytest.raises(StudyError) as caught:
        check_sampler_state([trial], "study.db")
    (line,) = caught.value.problems
    assert line.startswith("study.db: trial ")
    assert line.isprintable()
    return line


KINDS = [{}, {"with_margin": True}, {"use_separable_cma": True}, {"lr_adapt": True}]


@pytest.mark.parametrize(
    ("dimensions", "kind"),
    [
        *((2, kind) for kind in KINDS),
        (20, KINDS[0]),
        *(pytest.param(20, kind, marks=pytest.mark.slow) for kind in KINDS[1:]),
    ],
    ids=str,
)
def test_real_states_pass(tmp_path, kind, dimensions):
    """A state that CmaEsSampler stores passes with every optimizer, and the study continues."""

    def sampler():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return CmaEsSampler(seed=1, popsize=4, **kind)

    def objective(trial):
        step = 0.125 if "with_margin" in kind else None
        return sum(trial.suggest_float(f"x{n}", 0, 1, step=step if n else None) for n in range(dimensions))

    url = sqlite_url(tmp_path / "study.db")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        optuna.create_study(study_name="s", storage=url, sampler=sampler()).optimize(objective, n_trials=10)
        trials = optuna.load_study(study_name="s", storage=url).trials
        stored = [key for trial in trials for key in trial.system_attrs if ":optimizer:" in key]
        check_sampler_state(trials, "study.db")
        optuna.load_study(study_name="s", storage=url, sampler=sampler()).optimize(objective, n_trials=2)

    assert stored


OPTIMIZERS = [
    cmaes.CMA(np.zeros(3), 0.5),
    cmaes.CMA(np.zeros(3), 0.5, bounds=np.array([[-1.0, 1.0]] * 3), lr_adapt=True),
    cmaes.SepCMA(np.zeros(3), 0.5),
    cmaes.CMAwM(np.zeros(3), 0.5, np.array([[-1.0, 1.0]] * 3), np.array([0.1, 0.0, 0.5])),
]


@pytest.mark.parametrize("protocol", [4, 5])
@pytest.mark.parametrize("optimizer", OPTIMIZERS, ids=lambda optimizer: type(optimizer).__name__)
def test_every_optimizer_and_protocol_passes(optimizer, protocol):
    """New optimizers and those after some generations pass, in pickle protocols 4 and 5."""
    for _ in range(3):
        check_sampler_state([trial_of(pickle.dumps(optimizer, protocol), "sepcma:")], "study.db")
        points = [optimizer.ask() for _ in range(optimizer.population_size)]
        if isinstance(optimizer, cmaes.CMAwM):
            points = [point for _, point in points]
        optimizer.tell([(point, float((point**2).sum())) for point in points])


def test_trials_without_a_state_pass():
    """Trials of other samplers, and other attributes of CMA-ES, pass."""
    check_sampler_state([], "study.db")
    check_sampler_state([trial_with({}), trial_with({"cma:generation": 3, "x_for_tell": [0.1]})], "study.db")


class Calls:
    """Object that pickles into a call of `function` with `arguments`, with an optional state."""

    def __init__(self, function, *arguments, state=None):
        self.reduced = (function, arguments) if state is None else (function, arguments, state)

    def __reduce__(self):
        return self.reduced


def gadgets(marker):
    """Return objects that create the file `marker` when unpickled."""
    code, command = f"open({str(marker)!r}, 'w').close()", f"echo > {marker}"
    return {
        "system": Calls(os.system, command),
        "eval": Calls(eval, code),
        "exec": Calls(exec, code),
        "partial": Calls(functools.partial(os.system, command)),
        "import": Calls(builtins.__import__, "antigravity"),
        "run_path": Calls(runpy.run_path, str(marker)),
        "popen": Calls(subprocess.Popen, ["touch", str(marker)]),
        "open": Calls(io.FileIO, str(marker), "w"),
        "load": Calls(pickle.loads, pickle.dumps(Calls(os.system, command))),
        "numpy": Calls(np.load, str(marker), None, True),
        "map": Calls(list, Calls(map, os.system, [command])),
    }


def optimizer_with(value):
    """Return an optimizer with this value as its mean."""
    optimizer = cmaes.CMA(np.zeros(2), 0.5)
    optimizer._mean = value
    return optimizer


@pytest.mark.parametrize("name", list(gadgets("")))
@pytest.mark.parametrize(
    "place",
    [
        lambda gadget: gadget,
        lambda gadget: {"_mean": gadget},
        lambda gadget: optimizer_with(({1: [gadget]},)),
        lambda gadget: optimizer_with(np.array([gadget, None], dtype=object)),
    ],
    ids=["alone", "in a mapping", "in an optimizer", "in an array"],
)
def test_gadgets_are_refused_and_not_run(tmp_path, name, place):
    """A call of any other function, anywhere in the pickle and in any protocol, is refused and not run."""
    marker = tmp_path / "marker"
    for protocol in range(6):
        data = pickle.dumps(place(gadgets(marker)[name]), protocol)

        assert "none of it was run" in refusal(trial_of(data))
        assert not marker.exists()


def test_the_gadgets_are_dangerous(tmp_path):
    """The gadgets run when unpickled, so that the test above can fail."""
    for name in ("system", "eval", "exec", "partial", "popen", "open", "load", "map"):
        marker = tmp_path / name
        process = pickle.loads(pickle.dumps(gadgets(marker)[name]))
        if isinstance(process, subprocess.Popen):
            process.wait()
        elif isinstance(process, io.FileIO):
            process.close()
        assert marker.exists(), name


def text(value):
    """Return a short string in pickle protocol 4."""
    data = value.encode()
    return b"\x8c" + bytes([len(data)]) + data


HEAD = b"\x80\x04"
CMA = text("cmaes._cma") + text("CMA") + b"\x93)\x81"
DTYPE = text("numpy") + text("dtype") + b"\x93"
F8 = DTYPE + text("f8") + b"\x89\x88\x87R"
RECONSTRUCT = text("numpy._core.multiarray") + text("_reconstruct") + b"\x93"
NDARRAY = text("numpy") + text("ndarray") + b"\x93"


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"\x80\x04", "cannot be read"),
        (b"\x80\x04.", "cannot be read"),
        (b"\x80\x04N.", "contains no optimizer"),
        (b"\x80\x09N.", "protocol 9"),
        (b"cos\nsystem\n(S'true'\ntR.", "instruction GLOBAL"),
        (b"(S'true'\nios\nsystem\n.", "instruction STRING"),
        (HEAD + text("os") + text("system") + b"\x93" + text("true") + b"\x85R.", "`os.system`"),
        (HEAD + text("cmaes._cma") + text("CMA.tell.__globals__") + b"\x93.", "CMA.tell.__globals__"),
        (HEAD + text("numpy") + text("os") + b"\x93.", "`numpy.os`"),
        (HEAD + text("numpy\x1b[31m") + text("os") + b"\x93.", "`numpy\\x1b[31m.os`"),
        (HEAD + b"\x82\x01.", "instruction EXT1"),
        (HEAD + b"\x83\x01\x00.", "instruction EXT2"),
        (HEAD + b"\x84\x01\x00\x00\x00.", "instruction EXT4"),
        (HEAD + text("x") + b"Q.", "instruction BINPERSID"),
        (b"Px\n.", "instruction PERSID"),
        (HEAD + b"\x97.", "instruction NEXT_BUFFER"),
        (HEAD + b"\x8f.", "instruction EMPTY_SET"),
        (HEAD + b"Nr\xff\xff\xff\xff.", "instruction LONG_BINPUT"),
        (HEAD + b"\x8d" + struct.pack("<Q", 1 << 62) + b".", "cannot be read"),
        (HEAD + b"\x8d" + struct.pack("<Q", 1) + b"x.", "instruction BINUNICODE8"),
        (HEAD + b"\x8e" + struct.pack("<Q", 1 << 62) + b".", "cannot be read"),
        (HEAD + b"\x95" + struct.pack("<Q", 1 << 62) + b"N.", ""),
        (HEAD + b"(" * 200_000 + b".", "instructions"),
        (HEAD + CMA + b"N\x86.", "contains no optimizer"),
        (HEAD + text("cmaes._cma") + text("CMA") + b"\x93N\x85\x81.", "unlike those of cmaes"),
        (HEAD + CMA + b"Nb.", "values other than numbers"),
        (HEAD + CMA + b"}" + text("_g") + b"K\x01sN\x86b.", "values other than numbers"),
        (HEAD + CMA + b"}" + text("__class__") + text("os") + b"sN}" + b"b.", ""),
        (HEAD + CMA + b"}K\x01K\x01sb.", "values other than numbers"),
        (HEAD + CMA + b"}" + text("_f") + DTYPE + b"sb.", "values other than numbers"),
        (HEAD + CMA + b"}" + text("_f") + b"]" + b"\x94h\x00\x61" + b"sb.", "nested too deeply"),
        (HEAD + DTYPE + text("O") + b"\x89\x88\x87R.", "not numbers"),
        (HEAD + DTYPE + text("V9999999999") + b"\x89\x88\x87R.", "not numbers"),
        (HEAD + F8 + b"}b.", "unlike numpy's"),
        (HEAD + RECONSTRUCT + NDARRAY + b"J\xff\xff\xff\x7f\x85C\x01b\x87R.", "unlike numpy's"),
        (HEAD + RECONSTRUCT + DTYPE + b"K\x00\x85C\x01b\x87R.", "unlike numpy's"),
        (
            HEAD + RECONSTRUCT + NDARRAY + b"K\x00\x85C\x01b\x87R(K\x01J\xff\xff\xff\x7f\x85" + F8 + b"\x89C\x08"
            + bytes(8) + b"tb.",
            "without all its elements",
        ),
        (HEAD + NDARRAY + b"J\xff\xff\xff\x7f\x85R.", "cannot be read"),
    ],
)  # fmt: skip
def test_handmade_pickles_are_refused(data, words):
    """Every bypass of the allowed names, and every call with unusual arguments, is refused."""
    assert words in refusal(trial_of(data))


def test_registered_extensions_are_not_used():
    """The extension registry, which bypasses the check of names, is not used."""
    copyreg.add_extension("os", "system", 200)
    try:
        # The unpickler caches an extension that was used once.
        assert pickle.loads(b"\x80\x02\x82\xc8.") is os.system
        assert "EXT1" in refusal(trial_of(b"\x80\x04\x82\xc8" + text("true") + b"\x85R."))
    finally:
        copyreg.remove_extension("os", "system", 200)


@pytest.mark.parametrize(
    ("attributes", "words"),
    [
        ({"cma:optimizer:0": "zz"}, "hexadecimal"),
        ({"cma:optimizer:0": 5}, "lacks one of its pieces"),
        ({"cma:optimizer:0": None}, "lacks one of its pieces"),
        ({"cma:optimizer:1": "80"}, "lacks one of its pieces"),
        ({"cma:optimizer": "80"}, "lacks one of its pieces"),
        ({"cma:optimizer:0": "80", "cma:optimizer:x": "04"}, "lacks one of its pieces"),
        ({"cmawm:optimizer:0": "8004", "cmawm:optimizer:1": "4e2e"}, "contains no optimizer"),
        ({"any\nthing:optimizer:0": "8004", "any\nthing:optimizer:1": "4e2e"}, "contains no optimizer"),
        ({"cma:optimizer:0": "", "sepcma:optimizer:0": "80044e2e"}, "cannot be read"),
    ],
)
def test_damaged_pieces_are_refused(attributes, words):
    """Missing, superfluous and non-hexadecimal pieces are refused under every name that Optuna reads."""
    assert words in refusal(trial_with(attributes))


def test_a_split_gadget_is_found(tmp_path):
    """A gadget in many pieces is found in any order of the attributes."""
    marker = tmp_path / "marker"
    data = pickle.dumps(Calls(os.system, f"echo > {marker}"), 4)
    trial = trial_of(data, piece=1)
    backwards = trial_with(dict(reversed(trial.system_attrs.items())))

    assert ".system`" in refusal(trial)
    assert ".system`" in refusal(backwards)
    assert not marker.exists()


def test_every_refused_trial_is_named():
    """Each refused trial has one line with its number."""
    first = trial_of(b"\x80\x04N.")
    first.number = 7
    second = trial_of(b"\x80\x04N.")
    second.number = 9
    with pytest.raises(StudyError) as caught:
        check_sampler_state([first, trial_of(pickle.dumps(OPTIMIZERS[0])), second], "study.db")

    assert [line.split(":")[1] for line in caught.value.problems] == [" trial 7", " trial 9"]


def test_a_large_state_is_refused(monkeypatch):
    """A state above the size limit is refused before its pieces are joined."""
    monkeypatch.setattr("optimizer.search.trials.sampler_state._MOST_BYTES", 1000)

    assert "more than 1,000 bytes" in refusal(trial_of(pickle.dumps(cmaes.CMA(np.zeros(30), 0.5))))


def test_multiplied_lists_are_refused():
    """A short pickle of lists that contain each other many thousand times is refused before it fills memory."""
    data = HEAD + CMA + b"}" + text("_f")
    inner, outer = b"]\x94" + b"(" + b"N" * 40_000 + b"e", b"](" + b"h\x00" * 10_000 + b"e"

    assert "nested too deeply" in refusal(trial_of(data + b"(" + inner + outer + b"tsb.", piece=2045))


def test_endless_draws_are_refused():
    """A state that would let an optimizer draw points for years is refused."""
    optimizer = cmaes.CMA(np.zeros(3), 0.5, bounds=np.array([[-1.0, 1.0]] * 3))
    optimizer._n_max_resampling = 10**15

    assert "draw too many points" in refusal(trial_of(pickle.dumps(optimizer)))
