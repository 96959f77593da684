"""How a checkpoint says that it is to be sampled: markers, metadata, and the noise schedule that it holds.

Most checkpoints say nothing, and tools then take them for models that predict noise on the schedule of their family.
Others hold empty tensors at the top level, such as `v_pred` and `ztsnr`, which say that they predict velocity and that
their schedule ends in pure noise; ComfyUI and Forge sample by them. WebUIs sample by the schedule in the file.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from optimizer.checkpoints.reading import Checkpoint
from optimizer.families import Layout

__all__ = ["Prediction", "read_prediction", "usual_schedule"]

# In metadata: the Stability model spec's name, and the one that ComfyUI writes.
_FIELDS = ("modelspec.prediction_type", "modelspec.predict_key")
_KINDS = {"epsilon": "epsilon", "eps": "epsilon", "v": "v", "v_prediction": "v", "velocity": "v"}
# Schedules that differ by less differ by what half precision makes of them.
_ABSOLUTE, _RELATIVE = 1e-3, 1e-2
_MOST_STEPS = 100_000


@dataclass(frozen=True, eq=False)
class Prediction:
    """What one checkpoint says of its sampling.

    `markers` are the marker tensors that it holds, by name, with their number, None for empty ones; `told` is the
    metadata field that says what it predicts, with its text, if that is a known one. `schedule` is the share of the
    image in each step's variance, alphas_cumprod, float64 [steps], and `stored` whether the file holds it.
    """

    markers: Mapping[str, float | None]
    told: tuple[str, str] | None
    schedule: torch.Tensor
    stored: bool

    @property
    def kind(self) -> str:
        """What the model predicts as the model spec has it, `v` or `epsilon`; `epsilon` if nothing says otherwise."""
        marked = "v_pred" in self.markers or "edm_vpred.sigma_max" in self.markers
        return "v" if marked else "epsilon" if self.told is None else _KINDS[self.told[1].lower()]

    @property
    def says_kind(self) -> bool:
        """Whether anything in the file says what it predicts."""
        return self.kind == "v" or self.told is not None

    def describe(self) -> str:
        """What the file says, such as "predicts velocity (v_pred) up to zero terminal SNR (ztsnr)"."""
        by = ["v_pred"] if "v_pred" in self.markers else []
        by += [] if self.told is None else [": ".join(self.told)]
        text = f"predicts {'velocity' if self.kind == 'v' else 'noise'}" + (f" ({', '.join(by)})" if by else "")
        if "ztsnr" in self.markers:
            text += " up to zero terminal SNR (ztsnr)"
        edm = [
            name if number is None else f"{name} {number:g}"
            for name, number in self.markers.items()
            if name.startswith("edm_")
        ]
        return text + (f" as an EDM ({', '.join(edm)})" if edm else "")

    def agrees(self, other: "Prediction") -> bool:
        """Whether both say the same but for the schedule."""
        return (self.kind, *self._others()) == (other.kind, *other._others())

    def schedule_difference(self, other: "Prediction") -> float | None:
        """The largest difference of the schedules, None if they are equal but for rounding; inf for other lengths."""
        if self.schedule.shape != other.schedule.shape:
            return float("inf")
        if torch.allclose(self.schedule, other.schedule, rtol=_RELATIVE, atol=_ABSOLUTE):
            return None
        return float((self.schedule - other.schedule).abs().max())

    def _others(self) -> tuple[tuple[str, float | None], ...]:
        return tuple(sorted((name, number) for name, number in self.markers.items() if name != "v_pred"))


def read_prediction(checkpoint: Checkpoint, layout: Layout) -> Prediction:
    """What `checkpoint` says of its sampling; its schedule is the layout's if the file holds none that can be used."""
    markers = {name: _number(checkpoint, name) for name in layout.markers if name in checkpoint.tensors}
    fields = ((name, checkpoint.metadata.get(name, "")) for name in _FIELDS)
    told = next(((name, text) for name, text in fields if text.lower() in _KINDS), None)
    stored = _stored_schedule(checkpoint)
    return Prediction(markers, told, usual_schedule(layout) if stored is None else stored, stored is not None)


def usual_schedule(layout: Layout) -> torch.Tensor:
    """The schedule of checkpoints that hold none, alphas_cumprod, float64 [steps]: betas' square roots rise evenly."""
    steps, first, last = layout.betas
    betas = torch.linspace(first**0.5, last**0.5, steps, dtype=torch.float64) ** 2
    return (1 - betas).cumprod(0)


def _number(checkpoint: Checkpoint, name: str) -> float | None:
    tensor = checkpoint.tensor(name)
    return float(tensor) if tensor.numel() == 1 and not tensor.is_complex() else None


def _stored_schedule(checkpoint: Checkpoint) -> torch.Tensor | None:
    for name in ("alphas_cumprod", "betas"):
        info = checkpoint.tensors.get(name)
        if info is None or len(info.shape) != 1 or not 0 < info.shape[0] <= _MOST_STEPS:
            continue
        if info.dtype.is_floating_point and bool((found := checkpoint.tensor(name).to(torch.float64)).isfinite().all()):
            return found if name == "alphas_cumprod" else (1 - found).cumprod(0)
    return None
