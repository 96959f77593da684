"""Writing: files read back the same, and failures leave nothing behind."""
# The tests start only programs that they wrote themselves, and mount.

import json
import os
import struct
import sys
import tempfile
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from processes import start_code
from safetensors import safe_open
from safetensors.torch import load_file, save

from optimizer.checkpoints import TensorSpec, write_safetensors
from optimizer.errors import CheckpointError, InputError
from optimizer.files import atomic_path, check_writable, replace_text

DTYPES = (
    torch.float64,
    torch.float32,
    torch.float16,
    torch.bfloat16,
    torch.float8_e4m3fn,
    torch.float8_e5m2,
    torch.int64,
    torch.int32,
    torch.int16,
    torch.int8,
    torch.uint8,
    torch.bool,
)


def specs_of(tensors):
    """Return the announcement of `tensors`."""
    return [TensorSpec(name, tensor.dtype, tuple(tensor.shape)) for name, tensor in tensors.items()]


def bits(tensor):
    """Return the data of `tensor` as a list of byte values."""
    return tensor.reshape(-1).view(torch.uint8).tolist()


@st.composite
def random_tensors(draw):
    """Draw up to six named tensors of any storable dtype and shape, 0-d and empty ones included, with any bits."""
    names = draw(st.lists(st.text(min_size=1).filter(lambda n: n != "__metadata__"), max_size=6, unique=True))
    tensors = {}
    for name in names:
        dtype = draw(st.sampled_from(DTYPES))
        shape = draw(st.lists(st.integers(0, 4), max_size=3))
        generator = torch.Generator().manual_seed(draw(st.integers(0, 2**32)))
        count = torch.empty(shape).numel() * dtype.itemsize
        data = torch.randint(0, 2 if dtype == torch.bool else 256, (count,), generator=generator, dtype=torch.uint8)
        tensors[name] = data.view(dtype).reshape(shape)
    return tensors


class TestWriteSafetensors:
    """Written files."""

    @settings(max_examples=150, deadline=None)
    @given(tensors=random_tensors(), metadata=st.dictionaries(st.text(), st.text(), max_size=3), data=st.data())
    def test_files_read_back_the_same(self, tmp_path_factory, tensors, metadata, data):
        """The safetensors library reads back identical names, dtypes, shapes, bits and metadata, in any order."""
        # One file for all examples: creating folders slows down as they grow in number.
        path = tmp_path_factory.getbasetemp() / "any tensors.safetensors"
        arrival = data.draw(st.permutations(list(tensors.items())))

        write_safetensors(path, specs_of(tensors), arrival, metadata)

        read = load_file(path)
        assert {n: (t.dtype, t.shape, bits(t)) for n, t in tensors.items()} == {
            n: (t.dtype, t.shape, bits(t)) for n, t in read.items()
        }
        with safe_open(path, "pt") as opened:
            assert metadata == (opened.metadata() or {})
        content = path.read_bytes()
        (length,) = struct.unpack("<Q", content[:8])
        header = json.loads(content[8 : 8 + length])
        assert length % 8 == 0
        assert all(header[n]["data_offsets"][0] % t.dtype.itemsize == 0 for n, t in tensors.items())

    def test_same_bytes_as_safetensors(self, tmp_path):
        """The file equals that of safetensors byte for byte if tensors come in its order."""
        tensors = {"a": torch.ones(3), "b": torch.arange(6.0).reshape(2, 3), "c": torch.ones(2, dtype=torch.float16)}

        write_safetensors(tmp_path / "a.safetensors", specs_of(tensors), tensors.items(), {"format": "pt"})

        assert save(tensors, {"format": "pt"}) == (tmp_path / "a.safetensors").read_bytes()

    def test_transposed_tensor_is_written(self, tmp_path):
        """A tensor that is not contiguous is written with its logical values."""
        matrix = torch.arange(6.0).reshape(2, 3).T

        write_safetensors(tmp_path / "a", [TensorSpec("m", matrix.dtype, (3, 2))], [("m", matrix)], {})

        assert load_file(tmp_path / "a")["m"].tolist() == [[0.0, 3.0], [1.0, 4.0], [2.0, 5.0]]

    def test_progress_reports_bytes(self, tmp_path):
        """Progress reports the bytes of each tensor after it was written."""
        tensors = {"a": torch.ones(3), "b": torch.ones(5, dtype=torch.float16)}
        counts = []

        write_safetensors(tmp_path / "a", specs_of(tensors), tensors.items(), {}, progress=counts.append)

        assert counts == [12, 10]

    def test_invalid_names_are_written_readably(self, tmp_path):
        """Metadata with a file name that is not valid text are written readably instead of failing."""
        write_safetensors(
            tmp_path / "a", [TensorSpec("m", torch.uint8, ())], [("m", torch.tensor(1).byte())], {"f": "x\udcff"}
        )

        with safe_open(tmp_path / "a", "pt") as opened:
            assert opened.metadata() == {"f": "x?"}

    def test_one_tensor_at_a_time(self, tmp_path):
        """Each tensor is taken only after the previous one was written, so that one is in memory at a time."""
        events = []

        def produce():
            for name in ("a", "b"):
                events.append(name)
                yield name, torch.ones(2)

        specs = [TensorSpec(name, torch.float32, (2,)) for name in ("a", "b")]
        write_safetensors(tmp_path / "a", specs, produce(), {}, progress=events.append)

        assert events == ["a", 8, "b", 8]

    @pytest.mark.parametrize(
        ("given", "message"),
        [
            ([], "2 announced tensors were not written, 'a' first"),
            ([("a", torch.ones(2))], "1 announced tensors were not written, 'b' first"),
            ([("a", torch.ones(2)), ("a", torch.ones(2))], "'a' was not announced, or is given twice"),
            ([("c", torch.ones(2))], "'c' was not announced"),
            ([("a", torch.ones(2).half())], "announced as torch.float32"),
            ([("a", torch.ones(1))], r"but is torch.float32 \[1\]"),
        ],
    )
    def test_tensors_must_fit_the_announcement(self, tmp_path, given, message):
        """Tensors that differ from the announcement are a ValueError, and leave nothing in the folder."""
        specs = [TensorSpec(name, torch.float32, (2,)) for name in ("a", "b")]

        with pytest.raises(ValueError, match=message):
            write_safetensors(tmp_path / "a", specs, given, {})

        assert list(tmp_path.iterdir()) == []

    @pytest.mark.parametrize(
        ("specs", "metadata"),
        [
            ([TensorSpec("__metadata__", torch.float32, ())], {"a": "b"}),
            ([TensorSpec("a", torch.float32, ()), TensorSpec("a", torch.float16, ())], {}),
            ([TensorSpec("a", torch.complex128, ())], {}),
            ([], {"a": 1}),
        ],
    )
    def test_unstorable_input_is_refused(self, tmp_path, specs, metadata):
        """Reserved and repeated names, unknown dtypes and metadata that are not text are a ValueError beforehand."""
        with pytest.raises(ValueError, match="a: "):
            write_safetensors(tmp_path / "a", specs, iter([]), metadata)

        assert list(tmp_path.iterdir()) == []


class TestFailures:
    """Traces of failed writing."""

    @pytest.mark.parametrize("failure", [RuntimeError("x"), KeyboardInterrupt(), CheckpointError("x"), OSError("x")])
    def test_error_of_the_producer_passes(self, tmp_path, failure):
        """An error of the producer passes through; the old file is intact, and no temporary file is left."""
        (tmp_path / "a").write_bytes(b"old")

        def produce():
            yield "m", torch.ones(2)
            # The temporary file and its lock are in the same folder.
            assert sorted(path.suffix for path in tmp_path.iterdir()) == ["", ".lock", ".tmp"]
            raise failure

        with pytest.raises(type(failure)) as caught:
            write_safetensors(tmp_path / "a", [TensorSpec("m", torch.float32, (2,))], produce(), {})

        assert failure is caught.value
        assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {"a": b"old"}

    def test_missing_folder_is_reported(self, tmp_path):
        """A missing folder is reported before any tensor is produced."""

        def produce():
            pytest.fail("asked for a tensor")
            yield

        with pytest.raises(CheckpointError, match="does not exist"):
            write_safetensors(tmp_path / "no" / "a", [TensorSpec("m", torch.uint8, ())], produce(), {})

    def test_folder_in_the_way_is_reported(self, tmp_path):
        """A folder with the file's name is reported before any work."""
        with pytest.raises(CheckpointError, match="a folder of this name exists"):
            write_safetensors(tmp_path, [], [], {})

    @pytest.mark.skipif(sys.platform == "win32", reason="needs POSIX permissions")
    def test_folder_without_permission_is_named(self):
        """A folder that is not writable is named; root, whom permissions do not stop, drops its rights."""
        program = """
import os, sys
from pathlib import Path
from optimizer.files import replace_text
from optimizer.errors import InputError
folder = Path(sys.argv[1])
folder.chmod(0o555)
if os.getuid() == 0:
    os.setuid(65534)
try:
    replace_text(folder / "a", "x")
except InputError as error:
    print(error)
"""
        with tempfile.TemporaryDirectory() as name:  # other users cannot enter pytest's folders
            folder = Path(name).resolve()
            out, err = start_code(program, folder).communicate()

        assert (out, err) == (f"{folder / 'a'}: the folder {folder} cannot be written to (Permission denied)\n", "")

    @pytest.mark.skipif(sys.platform == "win32", reason="needs RLIMIT_FSIZE")
    def test_too_large_file_is_an_error(self, tmp_path):
        """A file too large for its disk is a CheckpointError; the old file is intact, and nothing else is left."""
        (tmp_path / "a").write_bytes(b"old")
        program = """
import resource, sys, torch
from pathlib import Path
from optimizer.checkpoints import TensorSpec, write_safetensors
from optimizer.errors import CheckpointError
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))  # Python ignores SIGXFSZ
try:
    specs = [TensorSpec("m", torch.float32, (100, 1000))]
    write_safetensors(Path(sys.argv[1]), specs, [("m", torch.ones(100, 1000))], {})
except CheckpointError as error:
    print(error)
"""
        out, err = start_code(program, tmp_path / "a").communicate()

        assert "the disk is full or the file too large for it: 400,080 bytes are needed" in out, err
        assert "the old file is intact" in out
        assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {"a": b"old"}


class TestFullDisk:
    """A really full disk."""

    def test_full_disk_is_reported_beforehand(self, small_disk):
        """Too little space is reported before any tensor is produced, with both numbers."""
        (small_disk / "a").write_bytes(b"old")

        def produce():
            pytest.fail("asked for a tensor")
            yield

        with pytest.raises(
            CheckpointError, match=r"2,000,080 bytes are needed, 1,04\d,\d{3} are free; the old"
        ) as caught:
            write_safetensors(small_disk / "a", [TensorSpec("m", torch.uint8, (2_000_000,))], produce(), {})

        assert len(caught.value.problems) == 1
        assert {path.name: path.read_bytes() for path in small_disk.iterdir()} == {"a": b"old"}

    def test_disk_that_fills_up_is_an_error(self, small_disk):
        """A disk that another program fills meanwhile is a CheckpointError; the old file is intact."""
        (small_disk / "a").write_bytes(b"old")

        def produce():
            yield "m", torch.zeros(300_000, dtype=torch.uint8)
            (small_disk / "other").write_bytes(bytes(600_000))
            yield "n", torch.zeros(300_000, dtype=torch.uint8)

        specs = [TensorSpec(name, torch.uint8, (300_000,)) for name in ("m", "n")]
        with pytest.raises(CheckpointError, match=r"600,1.. bytes are needed, .* are free; the old file is intact"):
            write_safetensors(small_disk / "a", specs, produce(), {})

        assert (small_disk / "a").read_bytes() == b"old"
        assert {"a", "other"} == {path.name for path in small_disk.iterdir()}

    def test_text_on_a_full_disk_is_an_error(self, small_disk):
        """Text on a full disk is an InputError; the old file is intact."""
        (small_disk / "a").write_bytes(b"old")

        with pytest.raises(InputError, match="the disk is full"):
            replace_text(small_disk / "a", "x" * 2_000_000)

        assert {path.name: path.read_bytes() for path in small_disk.iterdir()} == {"a": b"old"}


class TestCheckWritable:
    """Checks of folders before work."""

    def test_nothing_is_left(self, tmp_path):
        """A writable folder is left unchanged."""
        check_writable(tmp_path)

        assert list(tmp_path.iterdir()) == []

    def test_read_only_folder_is_named(self, read_only):
        """A folder on a read-only disk is named, with reason and advice."""
        folder = read_only({"a": "x"})

        with pytest.raises(InputError) as caught:
            check_writable(folder)

        (problem,) = caught.value.problems
        assert problem.startswith(f"{folder}: the folder cannot be written to (Read-only file system)")
        assert "copy" in problem

    def test_missing_folder_is_named(self, tmp_path):
        """A missing folder is named."""
        with pytest.raises(InputError, match="No such file or directory"):
            check_writable(tmp_path / "none")


class TestAtomicPath:
    """Small files."""

    def test_text_replaces_the_file(self, tmp_path):
        """Text replaces the old file as UTF-8 with unchanged line ends, on every system."""
        (tmp_path / "a.yaml").write_bytes(b"old")

        replace_text(tmp_path / "a.yaml", "ä: 猫\n")

        assert {"a.yaml": "ä: 猫\n".encode()} == {path.name: path.read_bytes() for path in tmp_path.iterdir()}

    def test_temporary_name(self, tmp_path):
        """The temporary path is hidden, new, in the same folder, and has the suffix that plotting programs need."""
        with atomic_path(tmp_path / "plot.png") as temporary:
            assert tmp_path == temporary.parent
            assert temporary.name.startswith(".")
            assert str(os.getpid()) in temporary.name
            assert temporary.suffix == ".png"
            assert not temporary.exists()
            temporary.write_bytes(b"new")
            assert not (tmp_path / "plot.png").exists()

        assert (tmp_path / "plot.png").read_bytes() == b"new"

    def test_failure_keeps_the_old_file(self, tmp_path):
        """If the block fails, the old file stays and the temporary one is removed."""
        (tmp_path / "a").write_bytes(b"old")

        def write():
            with atomic_path(tmp_path / "a") as temporary:
                temporary.write_bytes(b"new")
                raise KeyError("x")

        with pytest.raises(KeyError):
            write()

        assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {"a": b"old"}

    @pytest.mark.skipif(sys.platform == "win32", reason="needs symbolic links and POSIX modes")
    def test_links_and_modes_are_kept(self, tmp_path):
        """A symbolic link stays one, its target is replaced, and permissions are kept."""
        (tmp_path / "real").write_text("old")
        (tmp_path / "real").chmod(0o640)
        (tmp_path / "link").symlink_to(tmp_path / "real")

        replace_text(tmp_path / "link", "new")

        assert (tmp_path / "link").is_symlink()
        assert (tmp_path / "real").read_text() == "new"
        assert (tmp_path / "real").stat().st_mode & 0o777 == 0o640

    @pytest.mark.skipif(sys.platform != "win32", reason="only Windows protects open files")
    def test_file_held_open_is_named(self, tmp_path):
        """A file that another program holds open is named."""
        path = Path(tmp_path / "a")
        path.write_text("old")

        with path.open(), pytest.raises(InputError, match="another program"):
            replace_text(path, "new")
