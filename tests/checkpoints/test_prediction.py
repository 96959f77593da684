"""The sampling that checkpoints state."""

import math

import pytest
import torch

from optimizer.checkpoints import open_checkpoint, read_prediction
from optimizer.families import load_layout
from optimizer.library import inspect_checkpoint

LAYOUT = load_layout("sd1")
EMPTY = torch.tensor([])


def usual():
    """Return Stable Diffusion's alphas_cumprod by definition: 1000 betas with evenly rising square roots."""
    share, found = 1.0, []
    for step in range(1000):
        root = math.sqrt(0.00085) + step / 999 * (math.sqrt(0.012) - math.sqrt(0.00085))
        share *= 1 - root * root
        found.append(share)
    return torch.tensor(found, dtype=torch.float64)


@pytest.fixture
def read(tmp_path, write_sd1):
    """Return a function that reads the prediction of a checkpoint with these tensors and metadata."""

    def make(metadata=None, **tensors):
        named = {name.replace("__", "."): tensor for name, tensor in tensors.items()}
        write_sd1(tmp_path / "a.safetensors", overrides=named, metadata=metadata)
        with open_checkpoint(tmp_path / "a.safetensors") as checkpoint:
            return read_prediction(checkpoint, LAYOUT)

    return make


@pytest.mark.parametrize(
    ("metadata", "tensors", "kind", "description"),
    [
        (None, {}, "epsilon", "predicts noise"),
        (None, {"v_pred": EMPTY}, "v", "predicts velocity (v_pred)"),
        (None, {"v_pred": EMPTY, "ztsnr": EMPTY}, "v", "predicts velocity (v_pred) up to zero terminal SNR (ztsnr)"),
        (None, {"ztsnr": EMPTY}, "epsilon", "predicts noise up to zero terminal SNR (ztsnr)"),
        (
            None,
            {"edm_vpred__sigma_max": torch.tensor(120.0), "edm_vpred__sigma_min": torch.tensor(0.002)},
            "v",
            "predicts velocity as an EDM (edm_vpred.sigma_max 120, edm_vpred.sigma_min 0.002)",
        ),
        ({"modelspec.prediction_type": "v"}, {}, "v", "predicts velocity (modelspec.prediction_type: v)"),
        ({"modelspec.predict_key": "epsilon"}, {}, "epsilon", "predicts noise (modelspec.predict_key: epsilon)"),
        (
            {"modelspec.prediction_type": "V-prediction"},
            {},
            "v",
            "predicts velocity (modelspec.prediction_type: V-prediction)",
        ),
        (
            {"modelspec.prediction_type": "v_prediction "},
            {},
            "v",
            "predicts velocity (modelspec.prediction_type: v_prediction)",
        ),
        ({"prediction_type": "v prediction"}, {}, "v", "predicts velocity (prediction_type: v prediction)"),
        ({"ss_v_parameterization": "True"}, {}, "v", "predicts velocity (ss_v_parameterization: True)"),
        ({"ss_v_parameterization": "False"}, {}, "epsilon", "predicts noise (ss_v_parameterization: False)"),
        (
            {"ss_v_parameterization": "true", "ss_zero_terminal_snr": "True"},
            {},
            "v",
            "predicts velocity (ss_v_parameterization: true) up to zero terminal SNR (ss_zero_terminal_snr: True)",
        ),
        (
            {"modelspec.prediction_type": "Flow"},
            {},
            "Flow",
            "predicts 'Flow', which blockfit does not know (modelspec.prediction_type: Flow)",
        ),
        (
            {"prediction_type": "epsilon", "ss_v_parameterization": "maybe"},
            {},
            "epsilon",
            "predicts noise (prediction_type: epsilon, ss_v_parameterization: maybe)",
        ),
    ],
)
def test_spellings_of_the_prediction(read, metadata, tensors, kind, description):
    """Markers and metadata in every spelling state the predicted quantity; an unknown one is shown as spelled."""
    found = read(metadata, **tensors)

    assert (found.kind, found.describe()) == (kind, description)
    assert found.states_kind == (bool(metadata) or kind == "v")


@pytest.mark.parametrize(
    "metadata",
    [
        {"modelspec.prediction_type": " "},
        {"prediction_type": "None"},
        {"ss_zero_terminal_snr": "False"},
        {"v_predictor": "1"},
    ],
)
def test_other_fields_state_nothing(read, metadata):
    """An empty field, None, and a field about another matter state nothing."""
    found = read(metadata)

    assert not found.states_kind
    assert found.describe() == "predicts noise"
    assert found.agrees(read())


def test_an_endless_value_is_cut_and_escaped(read):
    """A stranger's value is shown on one line, cut, and without control characters."""
    description = read({"modelspec.predict_key": "\x1b[31mv" + "x" * 5000}).describe()

    assert description.isprintable()
    assert "\\x1b[31mv" in description
    assert len(description) < 300


def test_agreement_ignores_spelling(read):
    """Two files agree if they state the same in any spelling, or if one states nothing and the other noise."""
    nothing, noise = read(), read({"modelspec.prediction_type": "epsilon"})
    velocity, stated = read(v_pred=EMPTY), read({"modelspec.prediction_type": "v"})
    zero, edm, other = (
        read(v_pred=EMPTY, ztsnr=EMPTY),
        *(read(edm_vpred__sigma_max=torch.tensor(n)) for n in (80.0, 120)),
    )

    assert nothing.agrees(noise)
    assert velocity.agrees(stated)
    assert not any(prediction.agrees(nothing) for prediction in (velocity, stated, zero, edm))
    assert not velocity.agrees(zero)
    assert not edm.agrees(other)
    # In any spelling: kohya's fields as the markers, and a file that contradicts itself as neither.
    by_kohya = read({"ss_v_parameterization": "True", "ss_zero_terminal_snr": "True"})
    torn = read({"modelspec.prediction_type": "epsilon", "ss_v_parameterization": "True"})
    assert by_kohya.agrees(zero)
    assert not by_kohya.agrees(velocity)
    assert not any(torn.agrees(prediction) for prediction in (nothing, noise, velocity))
    assert not read({"modelspec.prediction_type": "flow"}).agrees(nothing)


def test_schedules_differ_by_more_than_rounding(read):
    """A file without a schedule has Stable Diffusion's; half precision is not a difference, another schedule is."""
    none = read()
    torch.testing.assert_close(none.schedule, usual(), rtol=1e-12, atol=1e-12)
    assert not none.stored

    betas = 1 - usual() / torch.cat([torch.ones(1), usual()[:-1]])
    for same in (read(betas=betas.half()), read(alphas_cumprod=usual().bfloat16()), read(betas=betas.bfloat16())):
        assert same.stored
        assert same.schedule_difference(none) is None
    # Zero terminal SNR (S. Lin et al., Common diffusion noise schedules and sample steps are flawed, 2023).
    roots = usual().sqrt()
    flawless = ((roots - roots[-1]) * roots[0] / (roots[0] - roots[-1])) ** 2
    zero = read(betas=betas, alphas_cumprod=flawless)
    assert zero.schedule_difference(none) == pytest.approx(float((flawless - usual()).abs().max()))
    assert read(betas=betas[:10]).schedule_difference(none) == math.inf


@pytest.mark.parametrize(
    "broken", [torch.ones(3, 3), torch.arange(5), torch.full((1000,), math.nan), torch.ones(0), torch.tensor(1.0)]
)
def test_unusable_schedules_are_ignored(read, broken):
    """A tensor that is not a list of finite numbers is not a schedule."""
    found = read(alphas_cumprod=broken)

    assert not found.stored
    assert found.schedule_difference(read()) is None


def test_inspection_shows_the_prediction(tmp_path, write_sd1):
    """An inspection shows the predicted quantity unless it is noise, and so does one of a merge."""
    write_sd1(tmp_path / "a.safetensors", overrides={"v_pred": EMPTY, "ztsnr": EMPTY})

    (description,) = inspect_checkpoint(tmp_path / "a.safetensors").unusual

    assert description == (
        "predicts velocity (v_pred) up to zero terminal SNR (ztsnr): a merge is sampled as its first input is"
    )
