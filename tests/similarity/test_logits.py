"""Logits along lines of coefficients: lines are recognized when they should be, and logits equal those of products."""

import math

import pytest
import torch

from optimizer.similarity.lines import Line, find_line
from optimizer.similarity.logits import LOG2_E, AlongLine, Dense, Products, Stack, Terms, WeightedSum

WIDTH, HOLDERS = 6, (0, 2, 3)
START = torch.tensor([0.7, 0.4, -0.1], dtype=torch.float64)
DIRECTION = torch.tensor([-1.0, 0.6, 0.4], dtype=torch.float64)


def random(*shape, seed):
    """Return standard normal numbers, float32."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def along(*positions):
    """Return points on the line START + a * DIRECTION, float64 [n, 3]."""
    return START + torch.tensor(positions, dtype=torch.float64)[:, None] * DIRECTION


def coefficients(points):
    """Return coefficients of one group and four sources, the second of which lacks the tensor."""
    rows = torch.full((len(points), 1, 4), 9.0, dtype=torch.float64)
    rows[:, 0, list(HOLDERS)] = points
    return rows


@pytest.fixture(params=[Terms, Products])
def along_line(request):
    """Return logits of a kind of source, and a function that computes them by definition in float64."""
    queries, keys = random(3, WIDTH, WIDTH, seed=1), random(3, WIDTH, WIDTH, seed=2)

    def expected(points):
        query, key = (torch.einsum("nk,kij->nij", points, each.double()) for each in (queries, keys))
        return (query @ key.transpose(1, 2) * LOG2_E).float()

    source = request.param(Stack(0, HOLDERS, queries), Stack(0, HOLDERS, keys))
    return AlongLine(source, torch.full((3, WIDTH * WIDTH), math.nan)), expected


def check(along_line, points):
    """Check the logits at `points` [n, 3]; return for each whether it came from a line's three matrices."""
    logits, expected = along_line
    from_line = [None] * len(points)
    for positions, some in logits.logits(coefficients(points), 2):
        found = some.rows(slice(0, 99), slice(1, 4), torch.empty(99 * 3 * WIDTH))
        torch.testing.assert_close(found, expected(points)[positions, 1:4], rtol=1e-5, atol=2e-5)
        assert isinstance(some, WeightedSum | Dense)
        for position in positions.tolist():
            assert from_line[position] is None
            from_line[position] = isinstance(some, WeightedSum) and len(some.matrices) == 3
    return from_line


def test_nothing_is_on_a_line_that_was_not_prepared(along_line):
    """Without preparation no candidate is on a line, so a score does not depend on earlier candidates."""
    for _ in range(2):
        assert check(along_line, along(0.1, 0.9, -3.0, 4.0)) == [False] * 4


def test_points_on_the_prepared_line(along_line):
    """Points on the prepared line use its matrices, alone and together, until another line is prepared."""
    away = random(2, 3, seed=3).double()
    along_line[0].prepare(coefficients(along(0.0, 0.5, 1.0)))
    assert check(along_line, torch.cat([along(0.1, -3.0), away, along(0.5)])) == [True, True, False, False, True]
    assert check(along_line, along(0.3)) == [True]

    crossing = along(0.25) + torch.tensor([[0.0], [0.3], [0.8], [2.0]], dtype=torch.float64) * torch.eye(3)[1]
    along_line[0].prepare(coefficients(crossing))

    # The lines cross at 0.25.
    assert check(along_line, torch.cat([along(0.5, 0.25), crossing])) == [False, *[True] * 5]


@pytest.mark.parametrize("positions", [(), (0.2,), (0.2, 0.2, 0.2), (0.2, 0.8, 0.8, 0.2)])
def test_fewer_than_three_points_are_no_line(along_line, positions):
    """Fewer than three points, which always lie on a line, prepare none and remove the one before."""
    along_line[0].prepare(coefficients(along(0.0, 0.5, 1.0)))
    along_line[0].prepare(coefficients(along(*positions)))

    assert check(along_line, along(0.2, 0.8)) == [False] * 2


def test_without_matrices_there_are_no_lines():
    """Without matrices every candidate is computed by itself."""
    stack = Stack(0, HOLDERS, random(3, WIDTH, WIDTH, seed=1))
    along_line = AlongLine(Products(stack, stack), None)
    along_line.prepare(coefficients(along(0.1, 0.2, 0.3)))

    found = [some for _, some in along_line.logits(coefficients(along(0.1, 0.2, 0.3)), 2)]

    assert [len(some.logits) for some in found] == [2, 1]


def test_a_line_does_not_depend_on_its_points():
    """A line is the same through any two of its points, and starts at its point nearest to zero."""
    lines = [find_line(along(*positions)) for positions in ((0.0, 1.0, 2.0), (10.0, 11.0, 0.3), (0.5, 0.4999, -7.0))]

    for line in lines:
        torch.testing.assert_close(line.start, lines[0].start, rtol=0, atol=1e-9)
        torch.testing.assert_close(line.direction, lines[0].direction, rtol=0, atol=1e-9)
        assert abs(float(line.start @ line.direction)) < 1e-9
        assert float(line.direction.abs().max()) == 1


def test_points_beside_a_line_are_not_on_it():
    """Points at a distance of a millionth are not on the line."""
    line = Line.through(*along(0.0, 1.0))
    beside = along(0.3) + torch.tensor([0.0, 1e-6, 0.0])

    assert line.holds(torch.cat([along(0.3), beside])).tolist() == [True, False]
    assert find_line(torch.cat([along(0.0, 1.0), beside])) is None


@pytest.mark.parametrize(
    ("width", "sources", "cheaper"), [(320, 25, True), (8, 20, True), (320, 60, False), (8, 500, False)]
)
def test_terms_of_many_sources(width, sources, cheaper):
    """Terms are kept if they take less work than a product: not those of hundreds of sources."""
    stack = Stack(0, tuple(range(sources)), torch.empty(sources, width, width))

    assert Terms.is_cheaper(stack) is cheaper
