"""Licences: what is known of a few, and a warning or "check it" for all others."""

import pytest

from optimizer.reports.page.licenses import Standing, license_of


@pytest.mark.parametrize("stated", ["MIT", "mit", "Apache-2.0", "BSD-3-Clause", "CC0-1.0"])
def test_permissive(stated: str) -> None:
    """Licences that allow nearly everything are known by their identifiers."""
    assert license_of(stated).standing == Standing.PERMISSIVE


@pytest.mark.parametrize(
    "stated", ["creativeml-openrail-m", "CreativeML-OpenRAIL-M", "cc-by-4.0", "CC-BY-SA-4.0", "gpl-3.0"]
)
def test_conditions(stated: str) -> None:
    """Licences with conditions are not called permissive."""
    assert license_of(stated).standing == Standing.CONDITIONS


@pytest.mark.parametrize("stated", ["", "unknown", "Unknown", "none", "?", "  ", "-"])
def test_unknown(stated: str) -> None:
    """Where nothing is stated, that is alarming."""
    found = license_of(stated)
    assert found.standing == Standing.UNKNOWN
    assert found.alarming


@pytest.mark.parametrize(
    "stated",
    [
        "cc-by-nc-4.0", "CC BY-NC-SA 4.0", "cc-by-nc-nd-4.0", "MIT, non-commercial", "MIT but noncommercial use only",
        "flux-1-dev-non-commercial-license", "Research only", "for research purposes only", "academic use",
        "sai-nc-community",        "Personal use", "not for commercial use", "no selling of images", "Non Commercial",
    ],
)  # fmt: skip
def test_bans_on_commercial_use(stated: str) -> None:
    """Whatever reads as a ban on commercial use is one, whatever else it names."""
    found = license_of(stated)
    assert found.standing == Standing.NO_COMMERCIAL_USE
    assert found.alarming


@pytest.mark.parametrize(
    "stated", ["faipl-1.0-sd", "other", "MIT-ish", "cc-by-nd-4.0", "my own; ask me", "MIT OR GPL-3.0"]
)
def test_others_are_to_be_checked(stated: str) -> None:
    """Nothing is claimed of what is not known."""
    assert license_of(stated).standing == Standing.CHECK
