"""An interruption during a trial is acknowledged, and takes effect when the trial is done."""

import signal
import time

import pytest
from waiting import wait_for

from optimizer.search.trials import whole_trial


def interrupt_a_trial(said, until):
    """Interrupt a trial, which goes on until a condition holds."""
    with whole_trial(said.append):
        signal.raise_signal(signal.SIGINT)
        wait_for(until)


def test_an_interruption_of_a_long_trial_is_acknowledged():
    """The user learns what is waited for, once, before the trial ends."""
    said = []
    with pytest.raises(KeyboardInterrupt):
        interrupt_a_trial(said, until=lambda: said)

    assert len(said) == 1
    assert "finishing the running trial" in said[0]


def test_an_interruption_of_a_short_trial_is_not():
    """A trial that is done at once needs no acknowledgement."""
    said = []
    with pytest.raises(KeyboardInterrupt):
        interrupt_a_trial(said, until=lambda: True)
    time.sleep(0.7)

    assert said == []


def test_a_trial_without_an_interruption_is_silent():
    """Nothing is said without an interruption."""
    with whole_trial(pytest.fail):
        pass
