"""Reading of checkpoints: every format and spelling, every broken file, and no code that runs."""
# The tests start only programs that they wrote themselves.

import json
import os
import pickle
import re
import runpy
import struct
import sys
import types
import zipfile
from collections import OrderedDict, defaultdict
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from processes import start_code
from safetensors.torch import save_file

from optimizer.checkpoints import open_checkpoint
from optimizer.errors import CheckpointError
from optimizer.families import load_layout

TEXT = "cond_stage_model.transformer.text_model."
OLD_TEXT = "cond_stage_model.transformer."


def problem(path, layout=None):
    """Return the one line that opening `path` fails with."""
    with pytest.raises(CheckpointError) as caught:
        open_checkpoint(path, layout=layout)
    (line,) = caught.value.problems
    assert line.startswith(f"{path}: ")
    assert "\n" not in line
    return line.removeprefix(f"{path}: ")


def assert_same(expected, checkpoint):
    """Assert that every tensor of `expected` is in `checkpoint`: dtype, shape and bits."""
    assert set(expected) == set(checkpoint.tensors)
    for name, tensor in expected.items():
        read = checkpoint.tensor(name)
        info = checkpoint.tensors[name]
        assert (tensor.dtype, tuple(tensor.shape)) == (read.dtype, tuple(read.shape)) == (info.dtype, info.shape)
        assert tensor.contiguous().reshape(-1).view(torch.uint8).tolist() == read.reshape(-1).view(torch.uint8).tolist()


ASSORTED = {
    "double": torch.tensor([[1.5, float("nan")]], dtype=torch.float64),
    "single": torch.tensor([0.1, -0.0, float("inf")]),
    "half": torch.tensor([65504.0, 6e-8], dtype=torch.float16),
    "brain": torch.tensor([3e38, 1e-40], dtype=torch.bfloat16),
    "e4m3": torch.tensor([448.0, 0.015625]).to(torch.float8_e4m3fn),
    "e5m2": torch.tensor([57344.0, 0.25]).to(torch.float8_e5m2),
    "long": torch.tensor([-(2**62), 7]),
    "byte": torch.tensor([255], dtype=torch.uint8),
    "flags": torch.tensor([True, False]),
    "scalar": torch.tensor(2.5),
    "empty": torch.empty(0, 4),
}


class TestFormats:
    """Storage formats of checkpoints."""

    def test_safetensors_are_read_as_stored(self, tmp_path):
        """Every dtype, 0-d and empty tensors, and metadata are read from safetensors as stored."""
        save_file(ASSORTED, tmp_path / "a.safetensors", {"title": "Ä"})
        with open_checkpoint(tmp_path / "a.safetensors") as checkpoint:
            assert_same(ASSORTED, checkpoint)
            assert dict(checkpoint.metadata) == {"title": "Ä"}
            assert (checkpoint.format, checkpoint.mapped, checkpoint.layout) == ("safetensors", True, None)

    @pytest.mark.parametrize("wrap", [lambda t: t, lambda t: {"state_dict": t}, lambda t: {"module": {"model": t}}])
    @pytest.mark.parametrize(("new", "kind"), [(True, "torch zip"), (False, "torch legacy")])
    def test_torch_files_are_read_as_stored(self, tmp_path, wrap, new, kind):
        """Every dtype is read from zip and older torch files, however the state dict is wrapped."""
        # torch had no float8 when it wrote the older format.
        tensors = {name: tensor for name, tensor in ASSORTED.items() if new or name not in ("e4m3", "e5m2")}
        torch.save(wrap(OrderedDict(tensors)), tmp_path / "a.ckpt", _use_new_zipfile_serialization=new)
        with open_checkpoint(tmp_path / "a.ckpt") as checkpoint:
            assert_same(tensors, checkpoint)
            assert (kind, True) == (checkpoint.format, checkpoint.mapped)

    @pytest.mark.parametrize("protocol", [2, 3, 4, 5])
    @pytest.mark.parametrize("new", [True, False])
    def test_every_protocol_reads_the_same(self, tmp_path, protocol, new):
        """A file reads the same in every pickle protocol."""
        state = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.BatchNorm1d(3)).state_dict()
        torch.save(
            {"state_dict": state, "epoch": 2, "loss": 0.5, "lr": [0.1], "names": {"a", b"b"}},
            tmp_path / "a.pt",
            pickle_protocol=protocol,
            _use_new_zipfile_serialization=new,
        )

        with open_checkpoint(tmp_path / "a.pt") as checkpoint:
            assert_same(state, checkpoint)

    def test_other_entries_are_left_out(self, tmp_path):
        """Counters, lists and settings beside the tensors are left out; parameters count as tensors."""
        weight = torch.nn.Parameter(torch.ones(2))
        torch.save({"state_dict": {"w": weight, "n": 3, "l": [1]}, "epoch": 2}, tmp_path / "a.pt")

        with open_checkpoint(tmp_path / "a.pt") as checkpoint:
            assert list(checkpoint.tensors) == ["w"]
            assert checkpoint.tensor("w").requires_grad is False

    def test_views_are_contiguous(self, tmp_path):
        """Transposed and shared tensors of a torch file are read as contiguous tensors with their own values."""
        matrix = torch.arange(6.0).reshape(2, 3)
        torch.save({"m": matrix, "t": matrix.T, "row": matrix[1]}, tmp_path / "a.pt")

        with open_checkpoint(tmp_path / "a.pt") as checkpoint:
            assert_same({"m": matrix, "t": matrix.T, "row": matrix[1]}, checkpoint)
            assert checkpoint.tensor("t").is_contiguous()

    @pytest.mark.parametrize(("written", "named"), [("a.safetensors", "b.ckpt"), ("a.ckpt", "b.safetensors")])
    def test_content_decides(self, tmp_path, write_sd1, written, named):
        """A file with the wrong extension is opened by its content."""
        tensors = write_sd1(tmp_path / written)
        (tmp_path / written).rename(tmp_path / named)

        with open_checkpoint(tmp_path / named) as checkpoint:
            assert_same(tensors, checkpoint)

    def test_compressed_zip_is_read(self, tmp_path, write_sd1):
        """A torch file that another program compressed gives the right values."""
        tensors = write_sd1(tmp_path / "a.ckpt")
        with zipfile.ZipFile(tmp_path / "a.ckpt") as old, zipfile.ZipFile(tmp_path / "b.ckpt", "w", 8) as new:
            for entry in old.infolist():
                new.writestr(entry.filename, old.read(entry))

        with open_checkpoint(tmp_path / "b.ckpt") as checkpoint:
            assert_same(tensors, checkpoint)
            assert checkpoint.mapped is False

    def test_unpadded_header_is_read(self, tmp_path):
        """Tensors at unaligned addresses, after an unpadded header of an old writer, are read."""
        header = b'{"w":{"dtype":"F32","shape":[3],"data_offsets":[0,12]}}'
        assert len(header) % 4 != 0
        path = tmp_path / "a.safetensors"
        path.write_bytes(struct.pack("<Q", len(header)) + header + struct.pack("<3f", 1.5, -2, 3))

        with open_checkpoint(path) as checkpoint:
            assert checkpoint.tensor("w").tolist() == [1.5, -2.0, 3.0]
            assert checkpoint.tensor("w").sum().item() == 2.5

    def test_tensors_have_file_order(self, tmp_path):
        """Tensors are listed in the order of their data in the file, so that reading is sequential."""
        header = json.dumps(
            {
                "a": {"dtype": "F32", "shape": [1], "data_offsets": [4, 8]},
                "b": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]},
            }
        ).encode()
        path = tmp_path / "a.safetensors"
        path.write_bytes(struct.pack("<Q", len(header)) + header + struct.pack("<2f", 2, 1))

        with open_checkpoint(path) as checkpoint:
            assert [(name, checkpoint.tensor(name).item()) for name in checkpoint.tensors] == [("b", 2.0), ("a", 1.0)]


class TestLayouts:
    """Names and model families."""

    @pytest.mark.parametrize("suffix", [".safetensors", ".ckpt"])
    def test_text_encoder_spellings(self, tmp_path, write_sd1, suffix):
        """Both spellings of the text encoder have one canonical name; the stored spelling is kept."""
        new = write_sd1(tmp_path / f"new{suffix}")
        write_sd1(tmp_path / f"old{suffix}", rename={TEXT: OLD_TEXT})

        with open_checkpoint(tmp_path / f"old{suffix}") as checkpoint:
            assert_same(new, checkpoint)
            assert checkpoint.layout.name == "sd1"
            stored = checkpoint.tensors[TEXT + "final_layer_norm.bias"].stored_name
            assert stored == "cond_stage_model.transformer.final_layer_norm.bias"

    def test_unknown_layout_keeps_names(self, tmp_path):
        """Without a known layout names stay as stored."""
        save_file({OLD_TEXT + "x.weight": torch.ones(1)}, tmp_path / "a.safetensors")

        with open_checkpoint(tmp_path / "a.safetensors") as checkpoint:
            assert checkpoint.layout is None
            assert list(checkpoint.tensors) == [OLD_TEXT + "x.weight"]

    def test_equal_duplicates_count_once(self, tmp_path, write_sd1):
        """A tensor stored under both spellings with equal values (NaN included) counts once, under the first."""
        value = torch.tensor([1.0, float("nan")])
        twice = {TEXT + "encoder.x.bias": value, OLD_TEXT + "encoder.x.bias": value.clone()}
        stored = write_sd1(tmp_path / "a.ckpt", overrides=twice)

        with open_checkpoint(tmp_path / "a.ckpt") as checkpoint:
            assert len(stored) - 1 == len(checkpoint.tensors)
            assert checkpoint.tensors[TEXT + "encoder.x.bias"].stored_name == TEXT + "encoder.x.bias"

    def test_contradicting_duplicates_are_refused(self, tmp_path, write_sd1):
        """A tensor stored under both spellings with different values is an error that names both."""
        twice = {TEXT + "encoder.x.bias": torch.zeros(2), OLD_TEXT + "encoder.x.bias": torch.ones(2)}
        write_sd1(tmp_path / "a.safetensors", overrides=twice)

        line = problem(tmp_path / "a.safetensors")

        assert repr(TEXT + "encoder.x.bias") in line
        assert repr(OLD_TEXT + "encoder.x.bias") in line

    def test_other_layout_is_refused(self, tmp_path):
        """A file without the tensors of the layout is refused, with the first missing one."""
        save_file({"whatever": torch.ones(1)}, tmp_path / "a.safetensors")

        line = problem(tmp_path / "a.safetensors", load_layout("sd1"))

        assert line.endswith("but it lacks 'model.diffusion_model.input_blocks.0.0.weight', which is part of "
                             "Stable Diffusion 1.x")  # fmt: skip

    def test_names_of_another_family_decide(self, tmp_path, write_sd1):
        """Names that only another family has outweigh those that are present."""
        label = "model.diffusion_model.label_emb.0.0.weight"
        write_sd1(tmp_path / "a.safetensors", overrides={label: torch.ones(1, 2816)})

        assert "must be a checkpoint of Stable Diffusion 1.x" in problem(tmp_path / "a.safetensors", load_layout("sd1"))
        with open_checkpoint(tmp_path / "a.safetensors") as checkpoint:
            assert checkpoint.layout is None


class TestBrokenFiles:
    """Messages about files that cannot be used."""

    @pytest.mark.skipif(sys.platform != "linux", reason="other systems have no such names")
    @pytest.mark.parametrize("new", [True, False])
    def test_name_that_is_not_utf8_is_refused(self, tmp_path, new):
        """A file whose name is not UTF-8, which libraries cannot open, is refused with the advice to rename it."""
        path = tmp_path / os.fsdecode(b"a\xff.pt")
        torch.save({"a": torch.ones(1)}, tmp_path / "a.pt", _use_new_zipfile_serialization=new)
        (tmp_path / "a.pt").rename(path)

        with pytest.raises(CheckpointError, match="the file's name is not valid UTF-8; rename it"):
            open_checkpoint(path)

    def test_missing_file_is_reported(self, tmp_path):
        """A missing file is reported as missing."""
        assert problem(tmp_path / "a.safetensors") == "no such file"

    @pytest.mark.parametrize("asked", ["open1.1.ckpt", "open1.1", "Open1.1.safetensors"])
    def test_sibling_of_a_missing_file_is_mentioned(self, tmp_path, asked):
        """A file of the same name with another extension or case is mentioned; dots in names do no harm."""
        (tmp_path / "open1.1.safetensors").write_bytes(b"x")

        assert problem(tmp_path / asked) == "no such file, but 'open1.1.safetensors' exists"

    def test_similar_names_are_listed(self, tmp_path):
        """Files with similar names are listed, three at most; a missing folder is reported as missing."""
        for name in ("dreamshaper_8.safetensors", "DreamShaper 7.ckpt", "dreamshaper_6.pt", "dreamy.pt", "other.ckpt"):
            (tmp_path / name).write_bytes(b"x")

        assert problem(tmp_path / "dreamshper_8.safetensors") == (
            "no such file; did you mean 'dreamshaper_8.safetensors', 'DreamShaper 7.ckpt' or 'dreamshaper_6.pt'?"
        )
        assert problem(tmp_path / "x.safetensors") == "no such file"
        assert problem(tmp_path / "gone" / "x.ckpt") == f"no such file: the folder {tmp_path / 'gone'} does not exist"

    def test_empty_file_is_reported(self, tmp_path):
        """An empty file is reported as empty."""
        (tmp_path / "a.ckpt").touch()

        assert problem(tmp_path / "a.ckpt") == "the file is empty (0 bytes)"

    @pytest.mark.parametrize("kept", [9, 100, -1])
    def test_truncated_safetensors_are_reported(self, tmp_path, write_sd1, kept):
        """A safetensors file truncated anywhere is reported as truncated, with its size."""
        write_sd1(tmp_path / "a.safetensors")
        content = (tmp_path / "a.safetensors").read_bytes()[:kept]
        (tmp_path / "a.safetensors").write_bytes(content)

        line = problem(tmp_path / "a.safetensors")

        assert re.search(
            rf"truncated: its header requires [\d,]+ bytes, the file has {len(content):,}; [\d,]+ are missing", line
        )

    @pytest.mark.parametrize("new", [True, False])
    @pytest.mark.parametrize("kept", [0.1, 0.5, 0.99])
    def test_truncated_torch_file_is_reported(self, tmp_path, sd1_tensors, new, kept):
        """A torch file truncated anywhere, in either format, is reported as truncated or broken."""
        torch.save({"state_dict": sd1_tensors()}, tmp_path / "a.ckpt", _use_new_zipfile_serialization=new)
        content = (tmp_path / "a.ckpt").read_bytes()
        (tmp_path / "a.ckpt").write_bytes(content[: int(kept * len(content))])

        assert "truncated or broken" in problem(tmp_path / "a.ckpt")

    @pytest.mark.parametrize(
        "header",
        [
            b"{",
            b"{}",
            b'{"a": 1}',
            b'{"a": []}',
            b'{"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 4]}}',
            b'{"a": {"dtype": "F4", "shape": [8], "data_offsets": [0, 4]}}',
            b'{"a": {"dtype": "F32", "shape": [1], "data_offsets": ["0", 4]}}',
            b'{"a": {"dtype": "F32", "shape": [1], "data_offsets": [-4, 0]}}',
            b'{"__metadata__": [], "a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}',
            b'{"\xff": 1}',
            b'{"a": {"dtype": "F32", "shape": [1], "data_offsets": [4, 8]}}',
            b'{"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 1e999]}}',
            b'{"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, ' + b"9" * 4000 + b"]}}",
            b'{"a": {"dtype": "F32", "shape": [4611686018427387904, 4], "data_offsets": [0, 4]}}',
            b'{"a": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
            b'{"__metadata__": {"a": "\\ud800"}, "a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}',
        ],
        ids=lambda header: header[:60],
    )
    def test_broken_header_is_one_line(self, tmp_path, header):
        """An inconsistent safetensors header gives one clear line, not a traceback."""
        (tmp_path / "a.safetensors").write_bytes(struct.pack("<Q", len(header)) + header + bytes(4))

        assert problem(tmp_path / "a.safetensors")

    @pytest.mark.parametrize(
        ("second", "data"),
        [("[4, 8]", 12), ("[2, 6]", 12), ("[0, 4]", 4), ("[8, 12]", 12), ("[6, 10]", 10)],
        ids=["none", "overlapping", "the same", "a hole", "a small hole"],
    )
    def test_overlaps_and_holes_are_refused(self, tmp_path, second, data):
        """Tensors whose data overlap or leave a hole are refused; only contiguous data are right."""
        entry = '{"dtype": "F32", "shape": [1], "data_offsets": %s}'
        header = f'{{"a": {entry % "[0, 4]"}, "b": {entry % second}}}'.encode()
        path = tmp_path / "a.safetensors"
        path.write_bytes(struct.pack("<Q", len(header)) + header + bytes(8 if second == "[4, 8]" else data))

        if second == "[4, 8]":
            assert list(open_checkpoint(path).tensors) == ["a", "b"]
        else:
            assert "broken safetensors header" in problem(path)

    @pytest.mark.parametrize("length", [100_000_001, 10**11, 2**63, 2**64 - 1])
    def test_endless_header_is_refused(self, tmp_path, length):
        """A header longer than safetensors' limit is refused by its length, unread."""
        (tmp_path / "a.safetensors").write_bytes(struct.pack("<Q", length) + b'{"a": 1}' + bytes(64))

        assert f"received a length of {length:,} bytes; must be at most 100,000,000" in problem(
            tmp_path / "a.safetensors"
        )

    @pytest.mark.parametrize(
        "header",
        [
            '{"a": A, "a": A}',
            '{"a": A, "a": {"dtype": "F32", "shape": [1], "data_offsets": [4, 8]}}',
            '{"a": {"dtype": "I32", "dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}',
            '{"__metadata__": {"a": "1", "a": "2"}, "b": A}',
            '{"\\u0061": A, "a": A}',
        ],
    )
    def test_doubled_names_are_refused(self, tmp_path, header):
        """A name that occurs twice in a header, which two readers may take differently, is refused."""
        text = header.replace("A", '{"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}').encode()
        (tmp_path / "a.safetensors").write_bytes(struct.pack("<Q", len(text)) + text + bytes(4))

        assert problem(tmp_path / "a.safetensors").endswith("is given twice")

    def test_too_many_tensors_are_refused(self, tmp_path):
        """A header of more tensors than any checkpoint has is refused before it fills the memory."""
        entries = ",".join(f'"{n}":{{"dtype":"F32","shape":[0],"data_offsets":[0,0]}}' for n in range(100_001))
        header = f"{{{entries}}}".encode()
        (tmp_path / "a.safetensors").write_bytes(struct.pack("<Q", len(header)) + header)

        assert "more than 100,000 tensors" in problem(tmp_path / "a.safetensors")

    @pytest.mark.parametrize("new", [True, False])
    def test_tensor_larger_than_its_data_is_refused(self, tmp_path, new):
        """A tensor of terabytes that repeats one number is refused; views of stored numbers are read."""
        vast = torch.zeros(1).expand(10**12)
        torch.save({"ok": torch.zeros(2, 4).T, "w": vast}, tmp_path / "a.pt", _use_new_zipfile_serialization=new)

        assert problem(tmp_path / "a.pt").startswith("'w' has shape [1000000000000], but only a few")

    @pytest.mark.parametrize("new", [True, False])
    def test_endless_bytes_are_refused(self, tmp_path, new):
        """A short pickle that asks for ten gigabytes of zeros, as torch's unpickler would allow, is refused."""
        torch.save(
            {"w": torch.ones(1), "x": Gadget(bytearray, 10**10)}, tmp_path / "a.pt", _use_new_zipfile_serialization=new
        )

        assert "would run `bytearray`" in problem(tmp_path / "a.pt")

    def test_zip_bomb_is_refused(self, tmp_path):
        """An archive that unpacks to a hundred times its size is refused without being unpacked."""
        torch.save({"w": torch.zeros(1 << 22)}, tmp_path / "a.pt")
        with zipfile.ZipFile(tmp_path / "a.pt") as old, zipfile.ZipFile(tmp_path / "b.pt", "w", 8) as new:
            for entry in old.infolist():
                new.writestr(entry.filename, old.read(entry))

        assert "that unpacks to 16,7" in problem(tmp_path / "b.pt")

    def test_other_zip_is_described(self, tmp_path):
        """A zip archive of another program is described by its entries."""
        with zipfile.ZipFile(tmp_path / "a.ckpt", "w") as archive:
            archive.writestr("model.safetensors", b"x")

        assert "a zip archive that holds model.safetensors; unpack it first" in problem(tmp_path / "a.ckpt")

    @pytest.mark.parametrize(
        ("content", "message"),
        [([1, 2], "it holds a list"), (torch.ones(1), "it holds a Tensor"), ({"epoch": 1}, "holds no tensors")],
    )
    def test_file_without_tensors_is_refused(self, tmp_path, content, message):
        """A torch file without a mapping of tensors is not a checkpoint."""
        torch.save(content, tmp_path / "a.pt")

        assert message in problem(tmp_path / "a.pt")

    @pytest.mark.parametrize("new", [True, False])
    @pytest.mark.parametrize(
        ("make", "message"),
        [
            (lambda: torch.eye(2).to_sparse(), "'odd' is a sparse tensor; it cannot be read"),
            (lambda: torch.eye(2).to_sparse_csr(), "'odd' is a sparse tensor; it cannot be read"),
            (lambda: torch.quantize_per_tensor(torch.ones(2), 0.1, 0, torch.qint8), "'odd' is a quantized tensor"),
            (lambda: torch.empty(2, device="meta"), "'odd' is a tensor on the meta device, which has no numbers"),
            (lambda: torch.ones(2, dtype=torch.complex64).conj(), "a tensor that would have to be computed on reading"),
        ],
    )
    @pytest.mark.filterwarnings("ignore")
    def test_tensors_without_plain_elements_are_refused(self, tmp_path, make, message, new):
        """A tensor without plain elements is refused by name."""
        odd = {"ok": torch.ones(1), "odd": make()}
        torch.save(odd, tmp_path / "a.pt", _use_new_zipfile_serialization=new)

        assert message in problem(tmp_path / "a.pt")

    @pytest.mark.parametrize("new", [True, False])
    @pytest.mark.parametrize("dtype", ["uint16", "uint32", "uint64", "complex64", "complex128", "int8", "int16"])
    def test_other_types_are_read(self, tmp_path, dtype, new):
        """Types that no weight has are read all the same."""
        values = {"w": torch.tensor([1, 0, 100], dtype=getattr(torch, dtype))}
        torch.save(values, tmp_path / "a.pt", _use_new_zipfile_serialization=new)

        with open_checkpoint(tmp_path / "a.pt") as checkpoint:
            assert_same(values, checkpoint)

    @pytest.mark.parametrize("new", [True, False])
    def test_attributes_are_left_out(self, tmp_path, new):
        """Attributes that training code gave to tensors and parameters are left out."""
        tensor, parameter = torch.ones(2), torch.nn.Parameter(torch.zeros(2))
        tensor.note, parameter.note = "x", {"a": 1}
        torch.save({"t": tensor, "p": parameter}, tmp_path / "a.pt", _use_new_zipfile_serialization=new)

        with open_checkpoint(tmp_path / "a.pt") as checkpoint:
            assert_same({"t": torch.ones(2), "p": torch.zeros(2)}, checkpoint)


ENTRY = st.fixed_dictionaries(
    {},
    optional={
        "dtype": st.sampled_from(["F32", "F16", "I64", "F4", "", "f32"]) | st.none(),
        "shape": st.lists(st.sampled_from([0, 1, 2, -1, 2**62, 2**64, 1.5, "1"]), max_size=3) | st.none(),
        "data_offsets": st.lists(st.sampled_from([0, 4, 8, 12, -4, 2**63, 2**70, 4.0, "4", None]), max_size=3),
    },
)
NAME = st.sampled_from(["a", "b", "", "__metadata__", "model.diffusion_model.out.0.weight", "\x1b[2J", "\ud800"])
HEADER = st.dictionaries(NAME, ENTRY | st.dictionaries(NAME, NAME, max_size=2) | st.none(), max_size=4).map(json.dumps)


@settings(max_examples=200, deadline=None)
@given(header=HEADER | st.text(max_size=30), cut=st.integers(-2, 2), data=st.integers(0, 16))
# Drawn headers are hardly ever valid, so some valid ones are always tried.
@example(header='{"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}', cut=0, data=4)
@example(
    header='{"a": {"dtype": "I64", "shape": [], "data_offsets": [0, 8]}, "__metadata__": {"x": "y"}}', cut=0, data=8
)
def test_any_header_is_read_or_refused(tmp_path_factory, header, cut, data):
    """Any header gives tensors as described in it, or is refused in one line."""
    path = tmp_path_factory.getbasetemp() / "any.safetensors"
    content = header.encode("utf-8", "surrogatepass")
    path.write_bytes(struct.pack("<Q", max(0, len(content) + cut)) + content + bytes(data))
    try:
        checkpoint = open_checkpoint(path)
    except CheckpointError as error:
        assert all(line.isprintable() for line in error.problems)  # noqa: PT017
        return
    with checkpoint:
        for name, info in checkpoint.tensors.items():
            assert (checkpoint.tensor(name).dtype, tuple(checkpoint.tensor(name).shape)) == (info.dtype, info.shape)


class Gadget:
    """Pickles into a call of `function` with `arguments` at load time."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


GADGETS = {
    "os.system": (lambda command, code: Gadget(os.system, command), f"{os.system.__module__}.system"),
    "eval": (lambda command, code: Gadget(eval, code), "eval"),
    "exec": (lambda command, code: Gadget(exec, code), "exec"),
    "getattr": (lambda command, code: Gadget(getattr, Gadget(__import__, "os"), "system"), "getattr"),
    "runpy": (lambda command, code: Gadget(runpy.run_path, "program.py"), "runpy.run_path"),
    "torch": (lambda command, code: Gadget(torch.hub.load, "owner/name", "model"), "torch.hub.load"),
}


class TestHostileFiles:
    """Files whose pickles would run code are refused by name, and never run."""

    @pytest.mark.parametrize("new", [True, False])
    @pytest.mark.parametrize(
        "place",
        [
            lambda gadget: gadget,
            lambda gadget: {"state_dict": {"w": torch.ones(2), "x": gadget}},
            lambda gadget: {"state_dict": {"w": torch.ones(2)}, "callbacks": [{"deep": (gadget,)}]},
        ],
    )
    @pytest.mark.parametrize("name", GADGETS)
    def test_gadgets_do_not_run(self, tmp_path, name, place, new):
        """Each way of calling a function, anywhere in the pickle and in either format, is refused and does not run."""
        marker = tmp_path / "marker"
        make, global_name = GADGETS[name]
        gadget = make(f"echo > {marker}", f"open({str(marker)!r}, 'w')")
        torch.save(place(gadget), tmp_path / "a.ckpt", _use_new_zipfile_serialization=new)

        line = problem(tmp_path / "a.ckpt")

        assert f"refused: its pickle would run `{global_name}`" in line
        assert line.endswith("ask for a .safetensors file")
        assert not marker.exists()

    @pytest.mark.parametrize("protocol", [2, 3, 4, 5])
    def test_plain_pickles_are_refused(self, tmp_path, protocol):
        """A pickle of another program is refused in any protocol, and does not run."""
        marker = tmp_path / "marker"
        (tmp_path / "a.pt").write_bytes(pickle.dumps(Gadget(os.system, f"echo > {marker}"), protocol))

        assert problem(tmp_path / "a.pt").startswith("refused: ")
        assert not marker.exists()

    @pytest.mark.parametrize(
        "content",
        [
            b"cos\nsystem\n(S'COMMAND'\ntR.",
            b"(S'COMMAND'\nios\nsystem\n.",
            b"\x80\x02(cos\nsystem\nU\x00o.",
            b"\x80\x04\x8c\x02os\x8c\x06system\x93\x8c\x04true\x85R.",
            b"\x80\x04cos\nsystem\n)}\x92.",
            b"\x80\x02cos\nsystem\n)\x81}b.",
            b"\x80\x02\x82\x01.",
            b"\x80\x02X\x01\x00\x00\x00aQ.",
            b"\x80\x02c__builtin__\neval\nX\x01\x00\x00\x001\x85R.",
            b"\x80\x02ctorch.hub\nload\n)R.",
            b"\x80\x02cposix\nsystem\nX\x04\x00\x00\x00true\x85R.",
            b"\x80\x02" + b"(" * 100_000 + b".",
            b"\x80\x02" + b"]" * 100_000 + b"a" * 99_999 + b".",
            b"\x80\x04\x8d" + struct.pack("<Q", 1 << 62) + b".",
        ],
        ids=lambda content: ascii(content[:24]),
    )
    @pytest.mark.parametrize("zipped", [True, False])
    def test_no_instruction_calls(self, tmp_path, content, zipped):
        """Every instruction that calls, makes or finds objects, in a plain file and in an archive, calls nothing."""
        marker = tmp_path / "marker"
        content = content.replace(b"COMMAND", f"echo > {marker}".encode())
        if zipped:
            with zipfile.ZipFile(tmp_path / "a.pt", "w") as archive:
                archive.writestr("a/data.pkl", content)
                archive.writestr("a/version", "3\n")
        else:
            (tmp_path / "a.pt").write_bytes(content)

        assert problem(tmp_path / "a.pt")
        assert not marker.exists()

    def test_gadget_inside_an_allowed_class_does_not_run(self, tmp_path, lightning):
        """Arguments and state of an allowed class cannot run code."""
        marker = tmp_path / "marker"
        callback = lightning["pytorch_lightning.callbacks.model_checkpoint.ModelCheckpoint"]()
        callback.best = Gadget(os.system, f"echo > {marker}")
        torch.save({"state_dict": {"w": torch.ones(2)}, "callbacks": callback}, tmp_path / "a.ckpt")

        assert "system`" in problem(tmp_path / "a.ckpt")
        assert not marker.exists()

    def test_whole_module_is_refused(self, tmp_path):
        """A pickled network is refused, not imported."""
        torch.save(torch.nn.Linear(2, 2), tmp_path / "a.pt")

        assert "`torch.nn.modules.linear.Linear`" in problem(tmp_path / "a.pt")

    def test_torchscript_is_refused(self, tmp_path):
        """A TorchScript archive is refused as a program."""
        with zipfile.ZipFile(tmp_path / "a.pt", "w") as archive:
            archive.writestr("a/data.pkl", pickle.dumps({}, 2))
            archive.writestr("a/constants.pkl", pickle.dumps((), 2))
            archive.writestr("a/version", "3")

        assert "a TorchScript program" in problem(tmp_path / "a.pt")


@pytest.fixture
def lightning(monkeypatch):
    """Make importable classes under the names that training code pickles; any use of one fails the test."""

    def refuse(*_arguments):
        pytest.fail("a class named in a pickle was used")

    names = (
        "pytorch_lightning.callbacks.model_checkpoint.ModelCheckpoint",
        "lightning.pytorch.callbacks.early_stopping.EarlyStopping",
        "omegaconf.dictconfig.DictConfig",
        "omegaconf.base.ContainerMetadata",
    )
    classes = {}
    for full_name in names:
        module_name, _, name = full_name.rpartition(".")
        module = types.ModuleType(module_name)
        members = {"__module__": module_name, "__setstate__": refuse}
        classes[full_name] = type(name, (), members)
        setattr(module, name, classes[full_name])
        parent = ""
        for part in module_name.split("."):
            parent = f"{parent}.{part}" if parent else part
            monkeypatch.setitem(sys.modules, parent, types.ModuleType(parent))
        monkeypatch.setitem(sys.modules, module_name, module)
    return classes


@pytest.mark.parametrize("new", [True, False])
def test_training_leftovers_are_skipped(tmp_path, lightning, new):
    """Callbacks, settings and numpy values beside the weights are skipped without use."""
    numpy = pytest.importorskip("numpy")
    callback, stopping, settings, details = (kind() for kind in lightning.values())
    callback.best_model_score, callback.dirpath = numpy.float64(0.5), Path("runs")
    settings._content, settings._metadata = {"lr": 1}, details
    details.object_type, details.resolver_cache = dict, defaultdict(dict, {"env": {}})
    torch.save(
        {
            "state_dict": {"w": torch.ones(2)},
            "callbacks": {type(callback): {"best": numpy.float32(0.1), "all": numpy.arange(3)}, "1": callback},
            "hyper_parameters": settings,
            "loops": [stopping],
        },
        tmp_path / "a.ckpt",
        _use_new_zipfile_serialization=new,
    )

    with open_checkpoint(tmp_path / "a.ckpt") as checkpoint:
        assert_same({"w": torch.ones(2)}, checkpoint)


class TestCheckpoint:
    """The open checkpoint."""

    def test_closed_checkpoint_refuses_reads(self, tmp_path, write_sd1):
        """After the with block tensors already read stay valid, and further reads are refused clearly."""
        tensors = write_sd1(tmp_path / "a.safetensors")
        name = next(iter(tensors))
        with open_checkpoint(tmp_path / "a.safetensors") as checkpoint:
            kept = checkpoint.tensor(name)

        assert torch.equal(tensors[name], kept)
        with pytest.raises(ValueError, match="closed"):
            checkpoint.tensor(name)

    def test_unknown_name_is_a_key_error(self, tmp_path, write_sd1):
        """Reading an unknown tensor raises KeyError."""
        write_sd1(tmp_path / "a.safetensors")

        with open_checkpoint(tmp_path / "a.safetensors") as checkpoint, pytest.raises(KeyError, match="nothing"):
            checkpoint.tensor("nothing")

    @pytest.mark.parametrize("suffix", [".safetensors", ".ckpt"])
    def test_threads_read_at_once(self, tmp_path, write_sd1, suffix):
        """Threads that open, read and close at once get the right tensors."""
        tensors = write_sd1(tmp_path / f"a{suffix}", width=32)
        shared = open_checkpoint(tmp_path / f"a{suffix}")

        def read(turn):
            names = list(tensors)[turn::2] + list(tensors)[::-1]
            with open_checkpoint(shared.path) as separate:
                return all(
                    torch.equal(tensors[name], checkpoint.tensor(name))
                    for name in names
                    for checkpoint in (shared, separate)
                )

        with ThreadPoolExecutor(8) as pool:
            assert all(pool.map(read, range(16)))

    def test_replaced_file_is_still_read(self, tmp_path, write_sd1):
        """An open checkpoint keeps returning its own tensors when another file takes its name."""
        if sys.platform == "win32":
            pytest.skip("Windows does not replace open files")
        tensors = write_sd1(tmp_path / "a.safetensors", seed=1)
        write_sd1(tmp_path / "b.safetensors", seed=2)
        with open_checkpoint(tmp_path / "a.safetensors") as checkpoint:
            (tmp_path / "b.safetensors").replace(tmp_path / "a.safetensors")

            assert_same(tensors, checkpoint)


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs /proc")
def test_open_checkpoints_take_no_memory(tmp_path):
    """Open checkpoints that were read in full grow the process by less than one tensor each."""
    for number in range(3):
        tensors = {f"t{n}": torch.full((1024, 1024), float(n)) for n in range(8)}  # 32 MiB
        save_file(tensors, tmp_path / f"{number}.safetensors")
        torch.save(tensors, tmp_path / f"{number}.ckpt")
    program = """
import re, sys, torch
from pathlib import Path
from optimizer.checkpoints import open_checkpoint
torch.set_num_threads(1)
def anonymous():
    return int(re.search(r"RssAnon:\\s+(\\d+)", Path("/proc/self/status").read_text())[1])
def read(checkpoint):
    return sum(checkpoint.tensor(name).sum().item() for name in checkpoint.tensors)
files = sorted(Path(sys.argv[1]).iterdir())
for file in files[:2]:  # warms up what is made once
    with open_checkpoint(file) as checkpoint:
        read(checkpoint)
before = anonymous()
checkpoints = [open_checkpoint(file) for file in files]
opened = anonymous()
total = sum(map(read, checkpoints))
print(opened - before, anonymous() - before, total)
"""
    output, _ = start_code(program, tmp_path).communicate()

    opened, read, total = map(float, output.split())
    assert total == 6 * 28 * 2**20
    assert opened < 2 * 1024  # KiB
    assert read < 6 * 1024
