"""The device that metrics compute on: the CPU, or an NVIDIA GPU that this torch can use."""

import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from optimizer.choices import DeviceName, words_of
from optimizer.errors import InputError

__all__ = ["chosen_device", "float32_products", "select_device", "unused_gpu"]


def select_device(name: str) -> torch.device:
    """Return the device that `auto`, `cpu` or `cuda` stands for.

    Args:
        name: Name of the device; `auto` is cuda if it can be used, else the CPU.

    Returns:
        The device.

    Raises:
        InputError: The name is unknown, or cuda cannot be used.
    """
    if name not in words_of(DeviceName):
        raise InputError(f"received {name!r}; must be one of {', '.join(words_of(DeviceName))}", field="device")
    if name == "cuda" and not torch.cuda.is_available():
        raise InputError(
            "received 'cuda'; " + (unused_gpu() or "this machine has no NVIDIA GPU that torch can see"),
            field="device",
        )
    return torch.device("cuda" if name != "cpu" and torch.cuda.is_available() else "cpu")


def chosen_device(device: torch.device | str | None) -> torch.device:
    """Return `device`, the device of that name (see `select_device`), or the CPU for None."""
    if isinstance(device, str):
        return select_device(device)
    return device or torch.device("cpu")


@contextmanager
def float32_products(*, tf32: bool) -> Iterator[None]:
    """Compute a GPU's float32 products in float32, or in tf32 if `tf32`, regardless of the process's setting."""
    matmul = torch.backends.cuda.matmul
    # torch 2.9 renamed the setting. Since then the old name may warn, and cannot be read once the new one was set.
    new = hasattr(matmul, "fp32_precision")
    name = "fp32_precision" if new else "allow_tf32"
    value = ("tf32" if tf32 else "ieee") if new else tf32
    before = getattr(matmul, name)
    setattr(matmul, name, value)
    try:
        yield
    finally:
        setattr(matmul, name, before)


def unused_gpu() -> str | None:
    """Return advice to a user whose NVIDIA GPU torch cannot use; None if a GPU can be used or is not present."""
    if torch.cuda.is_available() or not _driver_present():
        return None
    reason = "is a build without cuda" if torch.version.cuda is None else f"needs cuda {torch.version.cuda}"
    return (
        f"an NVIDIA GPU is present, but torch {torch.__version__} cannot use it (it {reason}); "
        "`pip install torch --index-url https://download.pytorch.org/whl/cu130` installs one that can"
    )


def _driver_present() -> bool:
    """Return whether an NVIDIA driver is installed, which implies a GPU."""
    if sys.platform == "win32":
        return shutil.which("nvidia-smi") is not None or Path("C:/Windows/System32/nvcuda.dll").exists()
    return Path("/proc/driver/nvidia/version").exists() or shutil.which("nvidia-smi") is not None
