"""The form of scoring that is fast on a GPU gives the CPU's scores, in few operations and one copy each way.

It runs on any device, so its scores are compared on the CPU. Operations and waits of a GPU are counted on torch's meta
device, which computes nothing and mixes with no other device.
"""

from dataclasses import replace

import pytest
import torch
from comparing_attention import open_attention
from watching import META, Watching

from optimizer.errors import CheckpointError
from optimizer.families import load_layout
from optimizer.similarity import AttentionMetric, attention, batched

LAYOUT = load_layout("sd1")
SOURCES = ("base", "x", "y")
# OUT07 has queries and keys of different sources; the other blocks have three widths.
BLOCKS = ("IN01", "M00", "OUT03", "OUT05", "OUT07", "OUT09", "OUT11")
OUTPUTS = LAYOUT.parse_blocks("OUT03-OUT11")
FULL = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")


def of_width(tensors, block, width):
    """Return the tensors of a block's attention, cut to another width."""
    prefix = LAYOUT.attention[block][0]
    names = [f"{prefix}.to_{which}.weight" for which in "qkv"]
    return {name: tensors[name][:width, :width] for name in names if name in tensors}


@pytest.fixture(scope="module")
def paths(tmp_path_factory, write_sd1, sd1_tensors):
    """Return base, x, y (which lacks OUT07's keys) and a target, with attention of width 16, 12 or 6."""
    folder = tmp_path_factory.mktemp("batched")
    base = sd1_tensors(seed=0, width=16)
    lost = f"{LAYOUT.attention['OUT07'][0]}.to_k.weight"
    options = {"base": {"distance": 0.0}, "x": {"seed": 1}, "y": {"seed": 2, "drop": [lost]}, "target": {"seed": 3}}
    for name, option in options.items():
        drop = option.pop("drop", ())
        tensors = sd1_tensors(width=16, around=base, **{"distance": 0.2, **option})
        widths = {"M00": 12, "OUT03": 12, "OUT04": 12, "OUT09": 6, "OUT10": 6}
        changed = {
            key: value for block, width in widths.items() for key, value in of_width(tensors, block, width).items()
        }
        write_sd1(folder / f"{name}.safetensors", width=16, around=tensors, distance=0.0, overrides=changed, drop=drop)
    return {name: folder / f"{name}.safetensors" for name in options}


def candidates(groups, count, *, line):
    """Return coefficients [count, groups, sources] with sum 1, on one line in every group or anywhere."""
    generator = torch.Generator().manual_seed(count)
    start, end = torch.rand(2, groups, len(SOURCES), generator=generator, dtype=torch.float64) + 0.1
    positions = torch.rand(count, 1, 1, generator=generator, dtype=torch.float64)
    drawn = torch.rand(count, groups, len(SOURCES), generator=generator, dtype=torch.float64) + 0.1
    start, end, drawn = (each / each.sum(dim=-1, keepdim=True) for each in (start, end, drawn))
    return start + positions * (end - start) if line else drawn


@pytest.fixture(params=["terms", "products"])
def metrics(request, paths, monkeypatch):
    """Return the CPU's metric, the batched metric, and the number of groups of coefficients."""
    # So that the terms of three sources are few in a block of width 6 too.
    monkeypatch.setattr(batched, "_FEW_TERMS", 1)
    with open_attention(paths, (1, 2)) as comparison:
        plain = AttentionMetric(comparison, BLOCKS)
        fast = AttentionMetric(comparison, BLOCKS, batched=True, keep_terms=request.param == "terms")
        yield plain, fast, len(comparison.groups)


@pytest.fixture
def noted(monkeypatch):
    """Return a function that records each batch (candidates, family, on lines) and raises for more than `limit`."""
    similarities, batches = batched.Family.similarities, []

    def noted(limit=100):
        def of_batch(self, weights, *, on_lines):
            batches.append((weights[0].shape[1], self, on_lines))
            if batches[-1][0] > limit:
                raise FULL
            return similarities(self, weights, on_lines=on_lines)

        monkeypatch.setattr(batched.Family, "similarities", of_batch)
        return batches

    return noted


def test_scores_equal_those_of_the_cpu(metrics):
    """Candidates on lines, anywhere and mixed, none, one and many, score as on the CPU, to 1e-6."""
    plain, fast, groups = metrics
    line, anywhere = candidates(groups, 19, line=True), candidates(groups, 3, line=False)
    mixed = torch.cat([anywhere[:1], line[:4], anywhere[1:], line[4:6]])
    for prepared in (None, line[:3], anywhere, candidates(groups, 7, line=True)):
        for metric in (plain, fast):
            if prepared is not None:
                metric.prepare(prepared)
        for given in (anywhere, line, mixed, line[:1], anywhere[:1], line[:0]):
            found = fast.score(given)
            assert found.dtype == torch.float64
            torch.testing.assert_close(found, plain.score(given), rtol=0, atol=1e-6)


def test_blocks_that_the_line_does_not_move(metrics, noted):
    """Blocks that stay in one place share the line's matrices: none is computed off the lines."""
    plain, fast, groups = metrics
    line = candidates(groups, 9, line=True)
    line[:, : groups // 2] = line[0, : groups // 2]
    for metric in (plain, fast):
        metric.prepare(line[:3])
    batches = noted()

    found = fast.score(line)

    torch.testing.assert_close(found, plain.score(line), rtol=0, atol=1e-6)
    assert [on_lines for _, _, on_lines in batches] == [True] * len(fast._scorer._families)
    # Points beside the line do not count as on it.
    away = line.clone()
    away[4, 0] += torch.tensor([1e-3, -1e-3, 0.0])
    torch.testing.assert_close(fast.score(away), plain.score(away), rtol=0, atol=1e-6)


@pytest.mark.parametrize("limit", [1, 2, 5])
def test_batches_are_halved_until_they_fit(metrics, noted, limit):
    """All candidates are scored however few fit, in batches that are halved until they fit."""
    _, fast, groups = metrics
    given = torch.cat([candidates(groups, 11, line=True), candidates(groups, 4, line=False)])
    fast.prepare(given[:3])
    expected = fast.score(given)
    batches = noted(limit)

    torch.testing.assert_close(fast.score(given), expected, rtol=0, atol=1e-6)

    assert max(count for count, _, _ in batches) > limit


@pytest.mark.parametrize("free", [0, 1 << 16, 1 << 18])
def test_batches_fit_into_free_memory(metrics, monkeypatch, noted, free):
    """A batch takes half of the free memory, intermediate results included; one candidate is always tried."""
    _, fast, groups = metrics
    given = torch.cat([candidates(groups, 11, line=True), candidates(groups, 4, line=False)])
    fast.prepare(given[:3])
    expected = fast.score(given)
    monkeypatch.setattr(batched, "free_memory", lambda device: free)
    monkeypatch.setattr(batched, "_FEW_LOGITS", 0)
    batches = noted()

    torch.testing.assert_close(fast.score(given), expected, rtol=0, atol=1e-6)

    for count, family, on_lines in batches:
        # Logits and their softmax, or queries, keys and logits.
        matrices = 2 if on_lines or family.terms is not None else 3
        assert count == 1 or 4 * matrices * count * family.units * family.width**2 <= free // 2
    assert len({count for count, _, _ in batches}) > 1 or free == 0


@pytest.mark.parametrize("free", [0, 12 * 16**2 * 14, 1 << 30])
def test_lines_and_terms_fit_into_their_share(paths, monkeypatch, free):
    """Lines and terms take a share of the free memory, and without either the scores are the same."""
    monkeypatch.setattr(batched, "_FEW_TERMS", 1)
    with open_attention(paths, (1, 2)) as comparison:
        plain = AttentionMetric(comparison, BLOCKS)
        monkeypatch.setattr(batched, "free_memory", lambda device: free)
        fast = AttentionMetric(comparison, BLOCKS, batched=True)
        line = candidates(len(comparison.groups), 5, line=True)
        kept = [each for family in fast._scorer._families for each in (family.lines, family.terms) if each is not None]
        assert sum(4 * each.numel() for each in kept) <= batched._KEPT_SHARE * free
        assert bool(kept) == (free > 0)
        for metric in (plain, fast):
            metric.prepare(line)
        torch.testing.assert_close(fast.score(line), plain.score(line), rtol=0, atol=1e-6)


@pytest.mark.parametrize("what", ["terms", "lines and terms"])
def test_lines_and_terms_that_do_not_fit_are_left_out(paths, monkeypatch, what):
    """A GPU with less memory than reported keeps neither lines nor terms, but the inputs of products."""
    monkeypatch.setattr(batched, "_FEW_TERMS", 1)
    with open_attention(paths, (1, 2)) as comparison:
        plain = AttentionMetric(comparison, BLOCKS)
        if what == "terms":
            monkeypatch.setattr(batched.Family, "_computed_terms", lambda self: (_ for _ in ()).throw(FULL))
        else:
            monkeypatch.setattr(batched, "_if_it_fits", lambda make: None)
        fast = AttentionMetric(comparison, BLOCKS, batched=True)
        given = candidates(len(comparison.groups), 4, line=True)
        for metric in (plain, fast):
            metric.prepare(given)

        torch.testing.assert_close(fast.score(given), plain.score(given), rtol=0, atol=1e-6)


def test_nan_is_refused(tmp_path, kin, write_sd1):
    """NaN in a weight is refused by file and tensor, though all are checked at the end."""
    name = f"{LAYOUT.attention['OUT05'][0]}.to_v.weight"
    write_sd1(tmp_path / "nan.safetensors", width=16, overrides={name: torch.full((16, 16), float("nan"))})
    broken = {**kin.paths, "y": tmp_path / "nan.safetensors"}
    with open_attention(broken, (1, 2)) as comparison, pytest.raises(CheckpointError) as caught:
        AttentionMetric(comparison, ("OUT05",), batched=True)
    assert caught.value.problems[0].startswith(f"{tmp_path / 'nan.safetensors'}: tensor {name!r} holds NaN or Inf")


@pytest.mark.parametrize(("line", "keep_terms", "most"), [(True, True, 30), (False, True, 30), (False, False, 36)])
@pytest.mark.parametrize("many", [1, 40])
def test_calls_take_few_operations(monkeypatch, many, line, keep_terms, most):
    """Nine full-size blocks and eight sources take some thirty operations a call, and one copy each way."""
    monkeypatch.setattr(batched, "free_memory", lambda device: 70 << 30)
    everyone = (tuple(range(8)),) * 3
    members = [batched.Member(column, 320 << (2 - column // 3), (column,) * 3, everyone) for column in range(9)]
    drawn = torch.rand(many + 5, 9, 8, dtype=torch.float64)
    given = drawn[:1] + torch.linspace(0, 1, many + 5, dtype=torch.float64)[:, None, None] * drawn[1] if line else drawn
    with Watching():
        families = [batched.Family(members[first : first + 3], 1, META) for first in (0, 3, 6)]
        scorer = batched.BatchedAttention(families, 8, META, keep_terms=keep_terms)
        scorer.prepare(given[:5])
    asked = []
    monkeypatch.setattr(batched, "free_memory", lambda device: asked.append(device) or 70 << 30)
    with Watching() as gpu:
        scores = scorer.score(given[5:])

    assert bool(asked) == (many > 1)
    assert scores.shape == (many, 9)
    assert (gpu.to_gpu, gpu.to_host) == (1, 1)
    assert sum(gpu.operations.values()) <= most, gpu.operations
    assert gpu.operations["_softmax"] == 3


def test_projection_does_not_wait_for_the_gpu(kin):
    """The projections take one copy for queries, keys and values of a block each, and one result comes back."""
    with open_attention(kin.paths, (1, 2)) as comparison:
        blocks = ("IN01", "M00", "OUT05")
        with pytest.MonkeyPatch.context() as patch, Watching() as gpu:
            patch.setattr(batched, "free_memory", lambda device: 1 << 34)
            AttentionMetric(replace(comparison, device=META), blocks)

    # The random inputs; queries, keys and values of the sources and of the target.
    assert gpu.to_gpu == len(blocks) * (1 + 3 + 3)
    assert gpu.to_host == 1


def test_several_seeds_score_as_on_the_cpu(kin, monkeypatch):
    """One candidate under several seeds scores as on the CPU, with one wait for the GPU, and NaN is refused."""
    with open_attention(kin.paths, (1, 2)) as comparison:
        given = candidates(len(comparison.groups), 1, line=False)[0]
        given[:, 1] = 0  # a source that is not read
        expected = attention.attention_by_seed(comparison, BLOCKS, given, (7, 8, 9))
        found = attention._by_seed_on_gpu(comparison, BLOCKS, given, (7, 8, 9))
        with Watching() as gpu:
            attention.attention_by_seed(replace(comparison, device=META), BLOCKS, given, (7, 8, 9))

    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)
    assert gpu.to_host == 2
