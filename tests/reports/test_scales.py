"""Axes and colour scales that compare from fit to fit."""

import pytest

from optimizer.reports.alphas import AlphaRow
from optimizer.reports.scales import Scale, Span


@pytest.mark.parametrize(
    ("values", "metric", "labels"),
    [
        ([98.5, 99.2], "delta", ["90", "92", "94", "96", "98", "100"]),
        ([99.05, 99.95], "delta", ["99.0", "99.2", "99.4", "99.6", "99.8", "100.0"]),
        ([61.0, 99.0], "attention", ["50", "60", "70", "80", "90", "100"]),
        ([3.0], "attention", ["0", "20", "40", "60", "80", "100"]),
        ([-3.0], "attention", ["-100", "-50", "0", "50", "100"]),
        ([-3.0, 99.0], "explained", ["0", "20", "40", "60", "80", "100"]),
        ([99.5], "explained", ["0", "20", "40", "60", "80", "100"]),
        ([], "delta", ["0", "20", "40", "60", "80", "100"]),
    ],
)
def test_axes_begin_at_a_few_numbers(values, metric, labels):
    """An axis is the narrowest of a few that contain all values; shares explained always have one from 0 to 100."""
    span = Span.of(values, metric)

    assert list(span.labels) == labels
    assert span.low < float(labels[0])
    assert span.high > 100


@pytest.mark.parametrize(
    ("alphas", "largest", "negative"),
    [
        ((0.05, 0.2), 1.0, False),
        ((0.05, -0.2), 1.0, True),
        ((1.2,), 1.5, False),
        ((-4.0,), 5.0, True),
        ((30.0,), 100.0, False),
    ],
)
def test_colours_of_alphas_compare(alphas, largest, negative):
    """The colour of an alpha depends on the others only if one of them is larger than 1."""
    row = AlphaRow("T", "alpha", alphas, (True,) * len(alphas))

    assert Scale.of([row]) == Scale(largest, negative)
