"""The protocol of sources: defaults, readers of files, and tensors under other names."""

import pytest
import torch
from safetensors.torch import load_file

from optimizer.checkpoints import BaseSource, TensorInfo, WholeTensorReader, as_source, check_unchanged, open_checkpoint
from optimizer.checkpoints.selection import SelectedTensors
from optimizer.errors import CheckpointError
from optimizer.families import load_layout

LAYOUT = load_layout("sd1")
NAME = "model.diffusion_model.input_blocks.0.0.weight"
PROJECTION = "model.diffusion_model.input_blocks.1.1.proj_in.weight"


class Numbers(BaseSource):
    """Source with 0, 1, 2 ... in every tensor."""

    def __init__(self, label, shapes, dtype=torch.float32):
        self.label = label
        self.tensors = {name: TensorInfo(name, dtype, tuple(shape)) for name, shape in shapes.items()}
        self.asked = []

    def read(self, name, start, stop):
        """Return some of the numbers."""
        self.asked.append((name, start, stop))
        return torch.arange(start, stop).to(self.tensors[name].dtype)


def test_defaults_of_a_source(write_sd1, tmp_path):
    """Kind and layout follow from names and shapes, the size from the tensors; no file, and no change."""
    tensors = write_sd1(tmp_path / "a.safetensors")
    source = Numbers("numbers", {name: tensor.shape for name, tensor in tensors.items()}, torch.float16)
    with open_checkpoint(tmp_path / "a.safetensors") as checkpoint, source as entered:
        assert (source.kind, source.layout) == (checkpoint.kind, checkpoint.layout)

    assert entered is source
    assert source.layout.name == "sd1"
    assert source.size == sum(2 * tensor.numel() for tensor in tensors.values())
    assert (source.name, source.path, source.metadata, source.passed_over) == ("numbers", None, {}, ())
    assert (source.change_since_open(), source.check_intact()) == (None, None)
    assert source.tensors[NAME].stored_name == NAME
    assert torch.equal(source.tensor(NAME), torch.arange(288).half().reshape(8, 4, 3, 3))


def test_unknown_family_has_no_layout():
    """A source of an unknown family has no layout and no kind."""
    source = Numbers("numbers", {"a": (3,), "b": ()})

    assert (source.kind, source.layout) == (None, None)
    assert source.tensor("b").shape == ()
    assert repr(source) == "<Numbers numbers: unknown layout, 2 tensors, computed>"


def test_default_reader_reads_elements():
    """The default reader reads the requested elements, and writes them where requested."""
    source = Numbers("numbers", {"a": (3, 4)})
    reader, out = source.reader(torch.empty(0, dtype=torch.uint8)), torch.empty(5)

    assert reader.read("a", 2, 4).tolist() == [2, 3]
    reader.read_into("a", 7, 12, out)
    reader.close()

    assert out.tolist() == [7, 8, 9, 10, 11]
    assert source.asked == [("a", 2, 4), ("a", 7, 12)]


def test_whole_tensor_reader_keeps_one_tensor():
    """The reader computes each tensor once while it is read from front to back, and keeps none after closing."""
    source = Numbers("numbers", {"a": (3, 4), "b": (5,)})
    reader, out = WholeTensorReader(source.tensor), torch.empty(5)

    assert [reader.read("a", start, start + 4).tolist() for start in (0, 4)] == [[0, 1, 2, 3], [4, 5, 6, 7]]
    reader.read_into("a", 7, 12, out)
    assert out.tolist() == [7, 8, 9, 10, 11]
    assert reader.read("b", 4, 5).tolist() == [4]
    assert source.asked == [("a", 0, 12), ("b", 0, 5)]
    reader.close()
    reader.read("b", 0, 1)
    assert len(source.asked) == 3


@pytest.mark.parametrize("suffix", [".safetensors", ".ckpt"])
def test_file_readers_share_a_buffer(tmp_path, write_sd1, suffix):
    """Readers with a shared buffer read the file's elements in any order, also of transposed torch tensors."""
    turned = torch.randn(6, 5).T if suffix == ".ckpt" else torch.randn(5, 6)
    tensors = write_sd1(tmp_path / f"a{suffix}", dtype=torch.float16, overrides={"turned": turned})
    buffer = torch.empty(8 * 300, dtype=torch.uint8)
    with open_checkpoint(tmp_path / f"a{suffix}") as checkpoint:
        readers = [checkpoint.reader(buffer) for _ in range(2)]
        for name in (NAME, "turned", PROJECTION.replace("proj_in", "transformer_blocks.0.attn1.to_q"), "turned"):
            flat = tensors[name].reshape(-1)
            for reader, (start, stop) in zip(readers, ((0, 7), (11, flat.numel())), strict=True):
                assert torch.equal(reader.read(name, start, stop), flat[start:stop])
                assert torch.equal(checkpoint.read(name, start, stop), flat[start:stop])
                out = torch.empty(stop - start, dtype=flat.dtype)
                reader.read_into(name, start, stop, out)
                assert torch.equal(out, flat[start:stop])
        for reader in readers:
            reader.close()

    with pytest.raises(KeyError, match="nothing"):
        readers[0].read("nothing", 0, 1)
    with pytest.raises(ValueError, match="closed"):
        checkpoint.reader(buffer)


def test_selection_has_new_names(tmp_path, write_sd1):
    """Selected tensors have new names and the layout's shapes; everything else is the file's."""
    write_sd1(tmp_path / "a.safetensors", overrides={PROJECTION: torch.randn(8, 6)}, metadata={"a": "b"})
    tensors = load_file(tmp_path / "a.safetensors")
    with open_checkpoint(tmp_path / "a.safetensors") as checkpoint:
        some = SelectedTensors(checkpoint, {"one": NAME, PROJECTION: PROJECTION})
        reader = some.reader(torch.empty(1000, dtype=torch.uint8))

        assert list(some.tensors) == ["one", PROJECTION]
        assert torch.equal(some.tensor("one"), tensors[NAME])
        assert torch.equal(some.read("one", 5, 9), tensors[NAME].flatten()[5:9])
        assert torch.equal(some.tensor(PROJECTION), tensors[PROJECTION].reshape(8, 6, 1, 1))
        assert torch.equal(reader.read(PROJECTION, 40, 48), tensors[PROJECTION].flatten()[40:48])
        assert (some.label, some.path, some.state) == (checkpoint.label, checkpoint.path, checkpoint.state)
        assert (some.layout, some.kind, some.metadata) == (checkpoint.layout, checkpoint.kind, {"a": "b"})
        with pytest.raises(KeyError, match="nothing"):
            SelectedTensors(checkpoint, {"one": "nothing"})
        reader.close()


@pytest.mark.parametrize("owning", [False, True])
def test_selection_closes_an_owned_file(tmp_path, write_sd1, owning):
    """Closing the selection closes the file only if the selection owns it."""
    write_sd1(tmp_path / "a.safetensors")
    with open_checkpoint(tmp_path / "a.safetensors") as checkpoint:
        SelectedTensors(checkpoint, {"one": NAME}, owning=owning).close()

        if owning:
            with pytest.raises(ValueError, match="closed"):
                checkpoint.tensor(NAME)
        else:
            assert checkpoint.tensor(NAME).shape == (8, 4, 3, 3)


def test_selection_reports_changes(tmp_path, write_sd1):
    """A change of the file is a change of the selection."""
    write_sd1(tmp_path / "a.safetensors")
    with open_checkpoint(tmp_path / "a.safetensors") as checkpoint:
        some = SelectedTensors(checkpoint, {"one": NAME})
        check_unchanged([some])
        (tmp_path / "a.safetensors").rename(tmp_path / "b.safetensors")

        with pytest.raises(CheckpointError, match=r"a\.safetensors: was deleted or moved while it was being read"):
            check_unchanged([checkpoint, some])


def test_path_or_source_is_opened(tmp_path, write_sd1):
    """A file is opened and closed again, a source stays open; both must have the requested layout."""
    write_sd1(tmp_path / "a.safetensors")
    with as_source(str(tmp_path / "a.safetensors"), layout=LAYOUT) as opened:
        with as_source(opened, layout=LAYOUT) as same:
            assert same is opened
        assert opened.tensor(NAME).shape == (8, 4, 3, 3)
    with pytest.raises(ValueError, match="closed"):
        opened.tensor(NAME)

    with pytest.raises(CheckpointError, match=r"^numbers: is none of the kinds of file .* \(layout sd1\)"):
        as_source(Numbers("numbers", {"a": (1,)}), layout=LAYOUT).__enter__()
