"""A metric with options takes one file and one line: all other code carries options as one value."""

import pytest
from pydantic import Field, StrictInt

from optimizer.recipes import FittedSearch
from optimizer.similarity import METRICS, OPTIONS, AttentionOptions, EncoderOptions, MetricOptions, Options
from optimizer.studies.stage import StageEntry

TEXTS = ("seven", "a bold three")
SHA256 = "e9dacfe9f857297baa1c8dcdea27f54775d466002e342e704283fae068a723a9"


class PowerOptions(MetricOptions):
    """Options of an imaginary metric."""

    power: StrictInt = Field(default=2, description="A power.")


def test_options_are_found_by_their_kind():
    """Given options replace the defaults, and later options replace earlier ones of their kind."""
    options = Options((AttentionOptions(seeds=[3]), PowerOptions(power=5)))
    assert options.of(PowerOptions).power == 5
    assert options.of(EncoderOptions) == EncoderOptions()
    changed = options.having(AttentionOptions(seeds=[4]))
    assert (changed.of(AttentionOptions).seeds, changed.of(PowerOptions).power) == ([4], 5)
    assert options.of(AttentionOptions).seeds == [3]


def test_every_option_is_a_field_of_a_stage():
    """A stage of study.yaml has the fields of every metric's options, with the same defaults and descriptions."""
    assert set(OPTIONS) == {kind.options for kind in METRICS.values() if kind.options is not None}
    for kind in OPTIONS:
        for name, field in kind.model_fields.items():
            assert StageEntry.model_fields[name].description == field.description
            assert StageEntry.model_fields[name].get_default(call_default_factory=True) == field.get_default(
                call_default_factory=True
            )


@pytest.mark.parametrize(
    "options",
    [
        AttentionOptions(seeds=[0, 7]),
        EncoderOptions(clip_skip=2),
        EncoderOptions(prompts="mine.txt", clip_skip=1).with_texts(TEXTS),
        EncoderOptions().with_texts(TEXTS),
    ],
)
def test_recorded_options_are_read_again(options):
    """Options that a recipe records are read as the same options; prompts in a file by their hash."""
    search = FittedSearch.from_data(FittedSearch(name="s").noting(**options.noted()).to_data())
    assert not search.problems
    again = type(options).of_noted(search)
    assert again.model_dump() == options.model_dump()
    if isinstance(options, EncoderOptions):
        assert again.sha256 == options.sha256


def test_trials_are_bound_to_options():
    """Trials are bound to the options that their score depends on, in the words of existing studies."""
    read = EncoderOptions(prompts="mine.txt", clip_skip=2).with_texts(TEXTS)
    assert AttentionOptions(seeds=[5]).bound(used=True) == {"seeds": [5]}
    assert AttentionOptions(seeds=[5], tf32=True).bound(used=False) == {"tf32": True}
    assert read.bound(used=False) == {}
    # sha256sum of a file of the two lines
    assert read.bound(used=True) == {"prompts": SHA256, "clip_skip": 2}


def test_equal_options_are_one_key():
    """Searches with equal options share computed values; the texts of the prompts count."""
    both, first = EncoderOptions().with_texts(TEXTS), EncoderOptions().with_texts(TEXTS[:1])
    assert {Options((both,)): 1}[Options((first.with_texts(TEXTS),))] == 1
    assert Options((both,)) != Options((first,))
