"""A GPU whose memory does not suffice: fewer candidates at a time, then the CPU, with the same scores.

The decisions are tested on the CPU, with functions that raise a GPU's errors (test_batched tests its form of scoring
with little memory). Tests that need a GPU fill nearly all of its memory.
"""

import warnings
from types import SimpleNamespace

import pytest
import torch
from comparing_attention import open_attention

from optimizer.errors import BlockfitWarning
from optimizer.families import load_layout
from optimizer.similarity import (
    MovableMetric,
    attention,
    build_metric,
    measure_statistics,
)
from optimizer.similarity.memory import in_batches, on_first_device_that_fits

LAYOUT = load_layout("sd1")
SOURCES = "base", "x", "y"
BLOCKS = "IN04", "M00", "OUT05"
GPU = torch.device("cuda")
FULL = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
LIKE_FULL = [
    FULL,
    RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    RuntimeError("CUDA error: out of memory"),
]


def limited(limit, sizes, failure=FULL):
    """Return a function that squares at most `limit` numbers at a time, and records how many it was given."""

    def compute(numbers):
        sizes.append(len(numbers))
        if len(numbers) > limit:
            raise failure
        return numbers**2

    return compute


class TestInBatches:
    """Fewer candidates at a time."""

    @pytest.mark.parametrize("failure", LIKE_FULL)
    @pytest.mark.parametrize("limit", [1, 2, 3, 5, 19, 100])
    @pytest.mark.parametrize("size", [1, 4, 16, 50])
    def test_batches_give_the_same_results(self, size, limit, failure):
        """The results are those of all candidates at once, in order, for any memory."""
        numbers = torch.arange(19, dtype=torch.float64)

        assert torch.equal(in_batches(limited(limit, [], failure), numbers, size), numbers**2)

    def test_batches_are_halved_until_they_fit(self):
        """The size is halved until a batch fits, then kept, and nothing is computed twice."""
        sizes = []

        in_batches(limited(3, sizes), torch.arange(10), 8)

        assert sizes == [8, 4, 2, 2, 2, 2, 2]

    def test_a_single_candidate_that_does_not_fit_is_an_error(self):
        """A single candidate that does not fit raises the GPU's error, after every smaller size was tried."""
        sizes = []

        with pytest.raises(torch.OutOfMemoryError):
            in_batches(limited(0, sizes), torch.arange(4), 4)

        assert sizes == [4, 2, 1]

    def test_other_errors_pass(self):
        """Errors other than memory pass at once."""
        sizes = []

        with pytest.raises(RuntimeError, match="shapes"):
            in_batches(limited(1, sizes, RuntimeError("shapes cannot be multiplied")), torch.arange(4), 4)

        assert sizes == [4]


class TestOnFirstDeviceThatFits:
    """The GPU, then the CPU."""

    @pytest.mark.parametrize("failure", LIKE_FULL)
    def test_computation_moves_to_the_cpu(self, failure):
        """A GPU that is too small gives a warning of one line with consequence and advice; then the CPU computes."""

        def compute(device):
            if device.type == "cuda":
                raise failure
            return device.type

        with pytest.warns(BlockfitWarning) as caught:
            assert on_first_device_that_fits(compute, GPU, "the attention metric") == "cpu"

        (line,) = {str(warning.message) for warning in caught}
        assert "\n" not in line
        for words in ("the attention metric", "the CPU computes it", "end other programs", "`device='cpu'`"):
            assert words in line

    def test_computation_stays_on_first_device_that_fits(self):
        """A computation that fits runs on the requested device, without a warning."""
        assert on_first_device_that_fits(lambda device: device.type, GPU, "it") == "cuda"

    def test_other_errors_pass(self):
        """Other errors of a GPU pass, and so does a CPU's lack of memory."""
        for device, failure in ((GPU, RuntimeError("device-side assert")), (torch.device("cpu"), FULL)):
            with pytest.raises(type(failure)):
                on_first_device_that_fits(lambda _, failure=failure: (_ for _ in ()).throw(failure), device, "it")


class Failing:
    """Stand-in for a metric on a GPU that is full after a number of scores."""

    def __init__(self, metric, scores, lines=9):
        self.metric, self.scores, self.lines = metric, scores, lines

    @property
    def blocks(self):
        """Blocks of the metric."""
        return self.metric.blocks

    def prepare(self, coefficients):
        """Prepare the metric a limited number of times."""
        self.lines -= 1
        if self.lines < 0:
            raise FULL
        self.metric.prepare(coefficients)

    def score(self, coefficients):
        """Score by the metric a limited number of times."""
        self.scores -= 1
        if self.scores < 0:
            raise FULL
        return self.metric.score(coefficients)


def candidates(groups, count, *, line):
    """Return coefficients float64 [count, groups, sources] with sum 1, on one line in each group or anywhere."""
    generator = torch.Generator().manual_seed(11)
    ends = torch.rand(2 if line else count, groups, len(SOURCES), generator=generator, dtype=torch.float64)
    ends[..., 0] = 1 - ends[..., 1:].sum(dim=-1)
    along = torch.linspace(0, 1, count, dtype=torch.float64)[:, None, None]
    return ends[0] + along * (ends[1] - ends[0]) if line else ends


class TestMovableMetric:
    """A metric that leaves the GPU while it is in use."""

    @pytest.mark.parametrize("line", [True, False])
    def test_the_cpu_continues_in_the_middle_of_a_search(self, kin, line):
        """When the GPU fills up, scores equal those of the CPU bit for bit, on the prepared line."""
        with open_attention(kin.paths, (114514, 5)) as comparison:
            given = candidates(len(comparison.groups), 12, line=line)
            undisturbed = build_metric("attention", comparison, BLOCKS)
            undisturbed.prepare(given[:3])
            expected = [undisturbed.score(some) for some in given.split(4)]

            def build(device):
                metric = build_metric("attention", comparison, BLOCKS)
                return Failing(metric, 1) if device.type == "cuda" else metric

            metric = MovableMetric(build, GPU, "the attention metric")
            metric.prepare(given[:3])
            first, second, third = given.split(4)
            found = [metric.score(first)]
            with pytest.warns(BlockfitWarning, match="the CPU computes it"):
                found.append(metric.score(second))
            found.append(metric.score(third))

        assert metric.blocks == BLOCKS
        assert all(torch.equal(first, second) for first, second in zip(expected, found, strict=True))

    @pytest.mark.parametrize("where", ["building", "preparing"])
    def test_the_cpu_replaces_a_gpu_before_the_first_score(self, kin, where):
        """A GPU that cannot hold the projections, or the line, is left as well."""
        with open_attention(kin.paths, (114514, 5)) as comparison:
            given = candidates(len(comparison.groups), 5, line=True)
            undisturbed = build_metric("attention", comparison, BLOCKS)
            undisturbed.prepare(given)

            def build(device):
                if device.type == "cuda" and where == "building":
                    raise FULL
                metric = build_metric("attention", comparison, BLOCKS)
                return Failing(metric, 0, lines=0) if device.type == "cuda" else metric

            def prepared():
                metric = MovableMetric(build, GPU, "the attention metric")
                metric.prepare(given)
                return metric

            with pytest.warns(BlockfitWarning, match="the CPU computes it"):
                metric = prepared()

            assert torch.equal(metric.score(given), undisturbed.score(given))


# --- On a GPU ---------------------------------------------------------------------------------------------------------

on_a_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")


@pytest.fixture(scope="module")
def wide(tmp_path_factory, write_sd1, sd1_tensors):
    """Return a family of width 320, whose candidates take some megabytes each on a GPU."""
    folder = tmp_path_factory.mktemp("wide")
    shape = {"width": 320, "text_layers": 1, "vae": False}
    # Weights of realistic size: logits of thousands would amplify the last digits.
    base = {name: value * 0.05 for name, value in sd1_tensors(**shape).items() if value.is_floating_point()}
    for seed, name in enumerate((*SOURCES, "target")):
        write_sd1(folder / f"{name}.safetensors", **shape, seed=seed, around=base, distance=0.02 if seed else 0.0)
    return SimpleNamespace(paths={name: folder / f"{name}.safetensors" for name in (*SOURCES, "target")})


@pytest.fixture
def leave():
    """Return a function that leaves torch a number of free bytes on the GPU; 0 leaves nothing."""
    taken = []

    def leave(count):
        torch.cuda.synchronize()
        torch.cuda.empty_cache()
        total = torch.cuda.get_device_properties(0).total_memory
        torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_reserved() + count) / total)
        if count == 0:
            # Reserved memory has room in it.
            for power in range(26, 8, -1):
                try:
                    while True:
                        taken.append(torch.empty(1 << power, dtype=torch.uint8, device=GPU))
                except torch.OutOfMemoryError:
                    continue

    yield leave
    taken.clear()
    torch.cuda.set_per_process_memory_fraction(1.0)
    torch.cuda.empty_cache()


def failures():
    """Return how often the GPU's memory has not sufficed so far."""
    return torch.cuda.memory_stats()["num_ooms"]


@pytest.mark.cuda
@on_a_gpu
def test_gpu_with_little_memory_scores_all(wide, leave):
    """With room for some candidates, the GPU scores all of them, to 1e-5, without a warning."""
    with open_attention(wide.paths, (1,), "cuda") as comparison:
        given = candidates(len(comparison.groups), 64, line=False)
        metric = build_metric("attention", comparison, BLOCKS)
        expected = metric.score(given)
        leave(48 << 20)
        before = failures()
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            found = metric.score(given)
        assert failures() > before
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


@pytest.mark.cuda
@on_a_gpu
@pytest.mark.parametrize("line", [True, False])
def test_cpu_continues_when_the_gpu_is_full(wide, leave, line):
    """With no room for one candidate, the CPU continues with exactly its own scores."""
    with open_attention(wide.paths, (1,)) as comparison:
        given = candidates(len(comparison.groups), 5, line=line)
        metric = build_metric("attention", comparison, BLOCKS)
        metric.prepare(given)
        expected = metric.score(given)
    with open_attention(wide.paths, (1,), "cuda") as comparison:
        metric = build_metric("attention", comparison, BLOCKS)
        metric.prepare(given)
        on_gpu = metric.score(given)
        leave(0)
        with pytest.warns(BlockfitWarning, match="the CPU computes it"):
            found = metric.score(given)
    assert torch.equal(found, expected)
    torch.testing.assert_close(on_gpu, expected, rtol=0, atol=1e-5)


@pytest.mark.cuda
@on_a_gpu
def test_cpu_replaces_a_gpu_without_room(wide, leave):
    """Metric, statistics and other random inputs are all computed on the CPU, with its results."""
    results = []
    for device in ("cpu", "cuda"):
        with open_attention(wide.paths, (1,), device) as comparison:
            given = candidates(len(comparison.groups), 3, line=False)
            if device == "cuda":
                torch.zeros(1, device=GPU) @ torch.zeros(1, device=GPU)
                leave(0)
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                metric = build_metric("attention", comparison, BLOCKS)
                one = metric.score(given)
                two = attention.attention_by_seed(comparison, BLOCKS, given[0], (7, 8))
                three = measure_statistics(comparison, BLOCKS, threads=2).gram
            results.append((one, two, three))
            assert {warning.category for warning in caught} == ({BlockfitWarning} if device == "cuda" else set())
    assert all(torch.equal(first, second) for first, second in zip(*results, strict=True))
