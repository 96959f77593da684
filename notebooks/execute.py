"""Run the notebooks and store their outputs: NN-name.py, the source, becomes NN-name.ipynb.

    python notebooks/execute.py                            # all, written beside their sources (`make notebooks`)
    python notebooks/execute.py 01-fit-a-clone --to /tmp   # one, written elsewhere

Each notebook runs in an empty folder and in a kernel of this Python; registered kernels are not used. The .ipynb leaves
out what would differ in the next run: ids of cells, times, versions, displays of progress.
"""

import argparse
import os
import tempfile
from pathlib import Path

import jupytext
import nbformat
from jupyter_client.kernelspec import KernelSpecManager
from jupyter_client.manager import AsyncKernelManager
from nbclient import NotebookClient

from optimizer.interactive.progress import PROGRESS_OUTPUT

HERE = Path(__file__).resolve().parent
SOURCES = sorted(HERE.glob("[0-9][0-9]-*.py"))
_SECONDS = 300  # time limit of a cell; the slowest takes some seconds on two cores
_METADATA = {
    "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
    "language_info": {"name": "python"},
}


def read(source: Path) -> nbformat.NotebookNode:
    """Return the notebook in a py:percent file, without outputs and with numbered cells instead of random ids."""
    notebook = jupytext.read(source, fmt="py:percent")
    notebook.metadata = nbformat.from_dict(_METADATA)
    for number, cell in enumerate(notebook.cells, start=1):
        cell.id = f"cell-{number}"
        cell.metadata.clear()
    return notebook


def executed(source: Path) -> nbformat.NotebookNode:
    """Return the notebook with its outputs; a cell that fails raises CellExecutionError."""
    notebook = read(source)
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder, tempfile.TemporaryDirectory() as settings:
        # The user's settings of IPython are neither used nor changed.
        environment = {**os.environ, "IPYTHONDIR": settings, "PYTHONHASHSEED": "0"}
        # Without folders of registered kernels, the kernel of this Python is the only one.
        kernel = AsyncKernelManager(kernel_name="python3", kernel_spec_manager=KernelSpecManager(kernel_dirs=[]))
        client = NotebookClient(
            notebook,
            km=kernel,
            timeout=_SECONDS,
            record_timing=False,
            # The kernel warns of unencrypted connections, which do not leave this machine.
            extra_arguments=["--log-level=ERROR"],
            resources={"metadata": {"path": folder}},
        )
        client.execute(env=environment, cleanup_kc=True)
    for cell in notebook.cells:
        if "outputs" in cell:
            # Progress is of one run: its times would differ in the next.
            cell.outputs = [output for output in cell.outputs if PROGRESS_OUTPUT not in output.get("metadata", {})]
        for output in cell.get("outputs", ()):
            data = output.get("data", {})
            if "image/png" in data:
                # The JPEG is the same picture.
                data.pop("image/jpeg", None)
    return notebook


def main() -> None:
    """Read the command line, run the notebooks, and write them."""
    parser = argparse.ArgumentParser(description="Run the notebooks and store their outputs.")
    parser.add_argument("names", nargs="*", metavar="NAME", help="notebooks without extension (default: all)")
    parser.add_argument("--to", type=Path, default=HERE, metavar="FOLDER", help="default: beside their sources")
    options = parser.parse_args()
    known = {source.stem: source for source in SOURCES}
    if unknown := [name for name in options.names if name not in known]:
        parser.error(f"NAME: received {unknown[0]!r}; must be one of {', '.join(known)}")
    for name in options.names or known:
        path = options.to / f"{name}.ipynb"
        path.write_text(nbformat.writes(executed(known[name])) + "\n", encoding="utf-8", newline="\n")
        print(f"{path.name}: {path.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main()
