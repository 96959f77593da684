"""Where metrics compute: the processor, or an NVIDIA card that this torch can use."""

import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from optimizer.choices import DeviceName, words_of
from optimizer.errors import InputError

__all__ = ["chosen_device", "float32_products", "select_device", "unused_card"]


def select_device(name: str) -> torch.device:
    """The device that `auto`, `cpu` or `cuda` stands for. Raises InputError for another name, or where cuda is not."""
    if name not in words_of(DeviceName):
        raise InputError(f"received {name!r}; must be one of {', '.join(words_of(DeviceName))}", field="device")
    if name == "cuda" and not torch.cuda.is_available():
        raise InputError(
            "received 'cuda'; " + (unused_card() or "this machine has no NVIDIA card that torch can see"),
            field="device",
        )
    return torch.device("cuda" if name != "cpu" and torch.cuda.is_available() else "cpu")


def chosen_device(device: torch.device | str | None) -> torch.device:
    """The device that a function was asked to compute on: a name as `select_device` takes it; None for the cpu."""
    if isinstance(device, str):
        return select_device(device)
    return device or torch.device("cpu")


@contextmanager
def float32_products(*, tf32: bool) -> Iterator[None]:
    """Compute a card's float32 products in float32, or in tf32 if that is wanted, whatever the process has set."""
    matmul = torch.backends.cuda.matmul
    # torch 2.9 renamed the setting: from then on the old name may warn, and cannot be read once the new one was set.
    new = hasattr(matmul, "fp32_precision")
    name = "fp32_precision" if new else "allow_tf32"
    value = ("tf32" if tf32 else "ieee") if new else tf32
    before = getattr(matmul, name)
    setattr(matmul, name, value)
    try:
        yield
    finally:
        setattr(matmul, name, before)


def unused_card() -> str | None:
    """What to tell a user whose NVIDIA card torch cannot use; None if there is no card or it can be used."""
    if torch.cuda.is_available() or not _driver_present():
        return None
    reason = "is a build without cuda" if torch.version.cuda is None else f"wants cuda {torch.version.cuda}"
    return (
        f"an NVIDIA card is present, but torch {torch.__version__} cannot use it (it {reason}); "
        "`pip install torch --index-url https://download.pytorch.org/whl/cu130` installs one that can"
    )


def _driver_present() -> bool:
    """Whether an NVIDIA driver is installed, which is so where there is a card to use."""
    if sys.platform == "win32":
        return shutil.which("nvidia-smi") is not None or Path("C:/Windows/System32/nvcuda.dll").exists()
    return Path("/proc/driver/nvidia/version").exists() or shutil.which("nvidia-smi") is not None
