"""Sources without a file can be used like checkpoints, with the same results as their tensors in a file."""

import hashlib
import json
from contextlib import ExitStack
from dataclasses import replace
from math import nan
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from optimizer.checkpoints import BaseSource, TensorInfo, WholeTensorReader, open_checkpoint
from optimizer.errors import CheckpointError
from optimizer.families import load_layout
from optimizer.library import HashCache, fingerprint, inspect_checkpoint
from optimizer.merging import merge
from optimizer.recipes import Algebra, Alpha, Model, Recipe, Step
from optimizer.similarity import (
    METRICS,
    EncoderOptions,
    Options,
    build_metric,
    compare,
    grams_on_gpu,
    measure_grams,
    measure_statistics,
    open_comparison,
)

DEMO = Path(__file__).parents[1] / "studies" / "demo"
LAYOUT = load_layout("sd1")
FIRST = LAYOUT.inpainting.tensor
QUERY = "model.diffusion_model.output_blocks.3.1.transformer_blocks.0.attn1.to_q.weight"
ALPHAS = dict(zip(LAYOUT.blocks, torch.linspace(-0.2, 0.9, len(LAYOUT.blocks)).tolist(), strict=True))


class InMemory(BaseSource):
    """A source of tensors in memory."""

    def __init__(self, label, tensors):
        self.label = label
        self._flat = {name: tensor.reshape(-1) for name, tensor in tensors.items()}
        self.tensors = {name: TensorInfo(name, tensor.dtype, tuple(tensor.shape)) for name, tensor in tensors.items()}

    def read(self, name, start, stop):
        """Return elements of a tensor."""
        return self._flat[name][start:stop]


class WithLora(BaseSource):
    """A source of base + scale * up @ down, computed on reading; `matrices` has (up, down) by tensor name."""

    def __init__(self, base, matrices, scale):
        self.label = f"{base.label} with a LoRA"
        self.tensors, self.layout, self.metadata = base.tensors, base.layout, base.metadata
        self._base, self._matrices, self._scale = base, matrices, scale

    def read(self, name, start, stop):
        """Compute the whole tensor, and return some of its elements."""
        if name not in self._matrices:
            return self._base.read(name, start, stop)
        up, down = self._matrices[name]
        tensor = self._base.tensor(name)
        changed = tensor.float() + self._scale * (up @ down).reshape(tensor.shape)
        return changed.to(tensor.dtype).reshape(-1)[start:stop]

    def reader(self, _buffer):
        """Return a reader that keeps the tensor computed last."""
        return WholeTensorReader(self.tensor)


def lora(tensors):
    """Return matrices of rank 2 for each tensor of at least two dimensions in the UNet and the text encoder."""
    generator = torch.Generator().manual_seed(7)
    found = {}
    for name, tensor in tensors.items():
        if tensor.dim() > 1 and tensor.is_floating_point() and not name.startswith("first_stage_model."):
            rows = tensor.shape[0]
            up = torch.randn(rows, 2, generator=generator)
            found[name] = up, torch.randn(2, tensor.numel() // rows, generator=generator)
    return found


@pytest.fixture(scope="module")
def family(tmp_path_factory):
    """Four models as files and as sources: base (a file in both), bold, style (a LoRA) and the target."""
    folder = tmp_path_factory.mktemp("family")
    paths = {"base": DEMO / "models" / "base.safetensors", "bold": DEMO / "models" / "bold.safetensors"}
    base = load_file(paths["base"])
    matrices = lora(base)
    paths |= {"style": folder / "style.safetensors", "target": DEMO / "target.safetensors"}
    style = {
        name: (tensor.float() + 0.02 * (up @ down).reshape(tensor.shape)).to(tensor.dtype)
        for name, tensor in base.items()
        for up, down in [matrices.get(name, (None, None))]
        if up is not None
    }
    save_file({**base, **style}, paths["style"], metadata_of(paths["base"]))
    with open_checkpoint(paths["base"]) as opened:
        given = {
            "base": opened,
            "bold": InMemory("bold in memory", load_file(paths["bold"])),
            "style": WithLora(opened, matrices, 0.02),
            "target": InMemory("target in memory", load_file(paths["target"])),
        }
        yield SimpleNamespace(paths=paths, given=given)


def metadata_of(path):
    """Return the metadata of a safetensors file."""
    with safe_open(path, "pt") as file:
        return file.metadata()


def opened(models, **options):
    """Return the comparison of base, bold and style with the target."""
    sources = {name: models[name] for name in ("base", "bold", "style")}
    return open_comparison(LAYOUT, sources, models["target"], base=models["base"], **options)


def recipe():
    """Return a recipe that adds bold and style to the base, with other shares in every block."""
    first = Step("T1", "add_difference", "base", "bold", "base", Alpha(ALPHAS))
    others = {block: 0.4 - alpha for block, alpha in ALPHAS.items()}
    second = Step("T2", "weight_sum", "T1", "style", None, Alpha(others))
    models = {name: Model(f"{name}.safetensors") for name in ("base", "bold", "style")}
    return Recipe("r", LAYOUT, models, (first, second), "T2")


@pytest.mark.parametrize("threads", [1, 3])
def test_statistics_are_equal(family, threads):
    """Gram matrices are equal bit by bit, both by the CPU's and by the GPU's algorithm."""
    found = []
    for models in (family.paths, family.given):
        with opened(models) as comparison:
            parts = comparison.scored_parts(LAYOUT.blocks)
            found.append(measure_statistics(comparison, LAYOUT.blocks, threads=threads))
            found[-1] = found[-1].names, found[-1].gram, grams_on_gpu(comparison, parts, torch.device("cpu"))

    (names, gram, on_gpu), (names_given, gram_given, on_gpu_given) = found
    assert names == names_given
    assert torch.equal(gram, gram_given)
    assert torch.equal(on_gpu, on_gpu_given)
    assert float(gram[:, 1:, 1:].diagonal(dim1=1, dim2=2).sum()) > 0


@pytest.mark.parametrize("name", METRICS)
def test_similarities_are_equal(family, name):
    """Every metric gives the same similarities."""
    scores = []
    for models in (family.paths, family.given):
        with opened(models) as plain:
            comparison = replace(plain, options=Options((EncoderOptions().with_texts(("seven", "a bold three")),)))
            blocks = METRICS[name].sees(LAYOUT)
            statistics = measure_statistics(comparison, blocks) if METRICS[name].reads_statistics else None
            algebra = Algebra(recipe(), comparison.groups, ("base", "bold", "style"))
            scorer = build_metric(name, comparison, blocks, statistics)
            scores.append(scorer.score(algebra.coefficients(algebra.starting_alphas())))

    assert scores[0].numel() == len(blocks)
    assert torch.equal(*scores)


def test_every_metric_is_covered():
    """The tests cover metrics that read statistics and metrics that read tensors."""
    assert set(METRICS) == {"explained", "delta", "weights", "elements", "attention", "encoder"}
    assert {name for name, kind in METRICS.items() if not kind.reads_statistics} == {"attention", "encoder"}


@pytest.mark.parametrize("metric", ["explained", "attention"])
def test_compare_takes_sources(family, metric):
    """`compare` takes sources in place of some or all paths, and leaves them open."""
    paths, given = family.paths, family.given
    expected = compare(paths["style"], paths["target"], base=paths["base"], metric=metric)

    assert compare(given["style"], given["target"], base=given["base"], metric=metric) == expected
    assert compare(given["style"], paths["target"], base=str(paths["base"]), metric=metric) == expected
    assert given["base"].tensor(FIRST).shape == (16, 4, 3, 3)


@pytest.mark.parametrize("vae", [None, DEMO / "models" / "inverted.safetensors"], ids=["", "with a VAE"])
def test_merged_files_are_equal(family, tmp_path, vae):
    """The merged files are equal byte by byte, and given sources stay open."""
    for name, models in (("files", family.paths), ("given", family.given)):
        merge(recipe(), models, tmp_path / f"{name}.safetensors", vae=vae, embed_recipe=False, threads=3)

    assert (tmp_path / "files.safetensors").read_bytes() == (tmp_path / "given.safetensors").read_bytes()
    assert all(source.tensor(QUERY).shape == (40, 40) for source in family.given.values())


def test_merge_notes_a_source_by_its_label(family, tmp_path):
    """A source without a file is noted by its label, without a hash, and without an entry among the models by hash."""
    noting = replace(recipe(), models={**recipe().models, "bold": Model("bold.safetensors", sha256="ab" * 32)})
    merge(noting, family.given, tmp_path / "out.safetensors")

    noted = metadata_of(tmp_path / "out.safetensors")
    assert noted["modelspec.merged_from"] == f"base, bold in memory, {family.paths['base']} with a LoRA"
    digest = hashlib.sha256(family.paths["base"].read_bytes()).hexdigest()
    assert list(json.loads(noted["sd_merge_models"])) == [digest]
    assert "sha256" not in json.loads(noted["sd_merge_recipe"])["recipe"]["models"]["bold"]
    assert noted["blockfit.hashes"] == "not verified"


@pytest.mark.parametrize("name", ["base", "bold", "style", "target"])
def test_inspections_are_equal(family, tmp_path, name):
    """Inspections are equal, except for the name, size, format, hash and header of a file."""
    of_file, of_source = (inspect_checkpoint(models[name]).as_dict() for models in (family.paths, family.given))

    if name != "base":
        assert of_source["file"] == family.given[name].label
        assert (of_source["sha256"], of_source["short_hash"], of_source["format"]) == (None, None, "computed")
        assert of_source["size"] == sum(tensor.nbytes for tensor in load_file(family.paths[name]).values())
        for field in ("file", "size", "format", "sha256", "short_hash", "metadata", "merge"):
            of_file.pop(field), of_source.pop(field)
    assert of_source == of_file
    assert of_source["blocks"]["OUT03"]["tensors"] > 0


def test_fingerprints_are_equal(family, tmp_path):
    """A source has the fingerprint of the file with its tensors, and only real files are added to the cache."""
    cache = HashCache(tmp_path / "cache.json")
    for name, source in family.given.items():
        assert fingerprint(source, cache) == fingerprint(source) == fingerprint_of(family.paths[name])

    assert set(json.loads(cache.file.read_text(encoding="utf-8"))["files"]) == {str(family.paths["base"].resolve())}


def fingerprint_of(path):
    """Return the fingerprint of a file."""
    with open_checkpoint(path) as checkpoint:
        return fingerprint(checkpoint)


def test_more_input_channels_are_compared_and_merged(tmp_path, write_sd1, sd1_tensors):
    """A model in memory with more input channels is compared and merged like its file."""
    base = sd1_tensors(seed=0)
    for number, channels in enumerate((4, 9)):
        more = {FIRST: torch.randn(8, channels, 3, 3, generator=torch.Generator().manual_seed(number))}
        write_sd1(tmp_path / f"{channels}.safetensors", around=base, seed=number, overrides=more)
    paths = {name: tmp_path / f"{channels}.safetensors" for name, channels in (("wide", 9), ("narrow", 4))}
    given = {name: InMemory(name, load_file(path)) for name, path in paths.items()}
    models = {name: Model(name) for name in paths}
    steps = (Step("T1", "weight_sum", "wide", "narrow", None, Alpha(dict.fromkeys(LAYOUT.blocks, 0.25))),)
    grams = []
    for name, sources in (("files", paths), ("given", given)):
        target = InMemory("target", load_file(paths["wide"]))
        with open_comparison(LAYOUT, sources, target) as comparison:
            parts = [part for part in comparison.parts if part.name == FIRST]
            grams += [measure_grams(comparison, parts), grams_on_gpu(comparison, parts, torch.device("cpu"))]
        merge(Recipe("r", LAYOUT, models, steps, "T1"), sources, tmp_path / f"{name}.safetensors", embed_recipe=False)

    assert [part.channels for part in parts] == [(0, 4), (4, 9)]
    assert torch.equal(grams[0], grams[2])
    assert torch.equal(grams[1], grams[3])
    assert (tmp_path / "files.safetensors").read_bytes() == (tmp_path / "given.safetensors").read_bytes()


class Changing(InMemory):
    """A source whose tensors may change while they are read."""

    became = None

    def change_since_open(self):
        """Return the change, or None."""
        return self.became


def test_changed_source_is_refused(family, tmp_path):
    """A source that changed during reading is neither measured nor merged, and messages contain its label."""
    models = {**family.given, "bold": Changing("https://host/bold", load_file(family.paths["bold"]))}
    models["bold"].became = "was replaced"
    (tmp_path / "out.safetensors").write_bytes(b"before")

    with opened(models) as comparison, pytest.raises(CheckpointError) as measured:
        measure_statistics(comparison, ["OUT03"])
    with pytest.raises(CheckpointError) as merged:
        merge(recipe(), models, tmp_path / "out.safetensors")

    expected = "https://host/bold: was replaced while it was being read; run again"
    assert measured.value.problems == merged.value.problems == (expected,)
    assert (tmp_path / "out.safetensors").read_bytes() == b"before"


def test_unsuitable_sources_are_refused_by_label(family, tmp_path):
    """NaN, tensors of another shape and another family are refused with the source's label and the tensor's name."""
    tensors = load_file(family.paths["bold"])

    def refused(overrides):
        models = {**family.given, "bold": InMemory("odd", {**tensors, **overrides})}
        with pytest.raises(CheckpointError) as caught:
            merge(recipe(), models, tmp_path / "out.safetensors")
        assert list(tmp_path.iterdir()) == []
        return caught.value.problems[0]

    assert refused({QUERY: torch.full((40, 40), nan)}).startswith(f"odd: tensor {QUERY!r} holds NaN or Inf")
    assert refused({QUERY: torch.zeros(4, 4)}).startswith(f"odd: tensor {QUERY!r} of OUT03 has shape [4, 4]")
    with ExitStack() as stack, pytest.raises(CheckpointError, match=r"^other: is none of the kinds of file"):
        stack.enter_context(opened({**family.given, "bold": InMemory("other", {"a": torch.zeros(3)})}))
