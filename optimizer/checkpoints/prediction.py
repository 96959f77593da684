"""How a checkpoint says that it is to be sampled: markers, metadata, and the noise schedule that it holds.

Most checkpoints say nothing, and tools then take them for models that predict noise on the schedule of their family.
Others hold empty tensors at the top level, such as `v_pred` and `ztsnr`, which say that they predict velocity and that
their schedule ends in pure noise; ComfyUI and Forge sample by them. WebUIs sample by the schedule in the file. Metadata
say the same in many spellings.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch

from optimizer.checkpoints.source import TensorSource
from optimizer.families import Layout

__all__ = ["Prediction", "read_prediction", "usual_schedule"]

# In metadata: the Stability model spec's name, the one that ComfyUI writes, and diffusers' own.
_FIELDS = ("modelspec.prediction_type", "modelspec.predict_key", "prediction_type")
# What kohya's scripts, and converters after them, note: whether it is velocity, and whether the schedule ends in noise.
_VELOCITY = ("ss_v_parameterization", "ss_v_prediction", "v_parameterization", "v_pred")
_ZERO = ("ss_zero_terminal_snr", "zero_terminal_snr", "ztsnr", "rescale_betas_zero_snr")
_KINDS = {
    **dict.fromkeys(("epsilon", "eps", "epsilon_prediction", "eps_prediction", "eps_pred", "noise"), "epsilon"),
    **dict.fromkeys(("v", "v_prediction", "v_pred", "vprediction", "vpred", "velocity", "velocity_prediction"), "v"),
}
_NOUNS = {"epsilon": "noise", "v": "velocity"}
_YES, _NO = ("true", "1", "yes", "on"), ("false", "0", "no", "off")
_NOTHING = ("", "none", "null")  # as programs write that they have nothing to say
_LONGEST = 60  # characters of a value that are shown
# Schedules that differ by less differ by what half precision makes of them.
_ABSOLUTE, _RELATIVE = 1e-3, 1e-2
_MOST_STEPS = 100_000


@dataclass(frozen=True, eq=False)
class Prediction:
    """What one checkpoint says of its sampling.

    `markers` are the marker tensors that it holds, by name, with their number, None for empty ones; `told` are the
    metadata fields that say what it predicts, (field, text, kind) each, and `zero` the one that says, (field, text),
    that the schedule ends in pure noise. `schedule` is the share of the image in each step's variance, alphas_cumprod,
    float64 [steps], None where neither the file nor its layout has one; `stored` is whether the file holds it.
    """

    markers: Mapping[str, float | None]
    told: tuple[tuple[str, str, str], ...]
    zero: tuple[str, str] | None
    schedule: torch.Tensor | None
    stored: bool

    @property
    def kind(self) -> str:
        """What the model predicts as the model spec has it, `v` or `epsilon`; `epsilon` if nothing says otherwise.

        What the metadata say and is neither is given back as they spell it.
        """
        return "v" if self._marked else self.told[0][2] if self.told else "epsilon"

    @property
    def says_kind(self) -> bool:
        """Whether anything in the file says what it predicts."""
        return self._marked or bool(self.told)

    def describe(self) -> str:
        """What the file says, such as "predicts velocity (v_pred) up to zero terminal SNR (ztsnr)"."""
        by = ["v_pred"] if "v_pred" in self.markers else []
        by += [f"{field}: {_shown(text)}" for field, text, _ in self.told]
        noun = _NOUNS.get(self.kind, f"'{_shown(self.kind)}', which blockfit does not know")
        text = f"predicts {noun}" + (f" ({', '.join(by)})" if by else "")
        zero = ["ztsnr"] if "ztsnr" in self.markers else []
        zero += [] if self.zero is None else [f"{self.zero[0]}: {_shown(self.zero[1])}"]
        if zero:
            text += f" up to zero terminal SNR ({', '.join(zero)})"
        edm = [
            name if number is None else f"{name} {number:g}"
            for name, number in self.markers.items()
            if name.startswith("edm_")
        ]
        return text + (f" as an EDM ({', '.join(edm)})" if edm else "")

    def agrees(self, other: "Prediction") -> bool:
        """Whether both say the same but for the schedule."""
        return (self._kinds, self._others()) == (other._kinds, other._others())

    def schedule_difference(self, other: "Prediction") -> float | None:
        """Return the largest difference of the schedules; inf for other lengths.

        None if they are equal but for rounding, or if one of them is not known.
        """
        if self.schedule is None or other.schedule is None:
            return None
        if self.schedule.shape != other.schedule.shape:
            return float("inf")
        if torch.allclose(self.schedule, other.schedule, rtol=_RELATIVE, atol=_ABSOLUTE):
            return None
        return float((self.schedule - other.schedule).abs().max())

    @property
    def _marked(self) -> bool:
        return "v_pred" in self.markers or "edm_vpred.sigma_max" in self.markers

    @property
    def _kinds(self) -> frozenset[str]:
        """What it predicts; several, where the metadata contradict themselves."""
        return frozenset({self.kind} if self._marked or not self.told else (kind for _, _, kind in self.told))

    def _others(self) -> tuple[object, ...]:
        zero = self.zero is not None or "ztsnr" in self.markers
        return zero, sorted((name, number) for name, number in self.markers.items() if name not in ("v_pred", "ztsnr"))


def read_prediction(checkpoint: TensorSource, layout: Layout) -> Prediction:
    """What `checkpoint` says of its sampling; its schedule is the layout's if the file holds none that can be used."""
    markers = {name: _number(checkpoint, name) for name in layout.markers if name in checkpoint.tensors}
    told = tuple(_told(checkpoint.metadata))
    fields = ((name, checkpoint.metadata.get(name, "")) for name in _ZERO)
    zero = next(((name, text) for name, text in fields if _spelt(text) in _YES), None)
    stored = _stored_schedule(checkpoint)
    return Prediction(markers, told, zero, usual_schedule(layout) if stored is None else stored, stored is not None)


def usual_schedule(layout: Layout) -> torch.Tensor | None:
    """Return the schedule of checkpoints that hold none, alphas_cumprod, float64 [steps].

    The square roots of its betas rise evenly. None for a layout that names no schedule.
    """
    if layout.betas is None:
        return None
    first, last = layout.betas.first, layout.betas.last
    betas = torch.linspace(first**0.5, last**0.5, layout.betas.steps, dtype=torch.float64) ** 2
    return (1 - betas).cumprod(0)


def _told(metadata: Mapping[str, str]) -> Iterator[tuple[str, str, str]]:
    """Yield (field, text, kind) of all that says what the model predicts."""
    for field in _FIELDS:
        if (spelt := _spelt(text := metadata.get(field, ""))) not in _NOTHING:
            yield field, text, _KINDS.get(spelt, text.strip())
    for field in _VELOCITY:
        if (spelt := _spelt(text := metadata.get(field, ""))) not in _NOTHING:
            yield field, text, "v" if spelt in _YES else "epsilon" if spelt in _NO else f"{field}: {text.strip()}"


def _spelt(text: str) -> str:
    """The text in lower case, its words joined by one _: "V-Prediction " is v_prediction."""
    return re.sub(r"[\s_-]+", "_", text.strip().strip("\"'").casefold())


def _shown(text: str) -> str:
    """A stranger's text for a message, escaped as Python does it, the rest of an endless one cut off."""
    text = text.strip()
    return repr(text if len(text) <= _LONGEST else f"{text[:_LONGEST]}...")[1:-1]


def _number(checkpoint: TensorSource, name: str) -> float | None:
    tensor = checkpoint.tensor(name)
    return float(tensor) if tensor.numel() == 1 and not tensor.is_complex() else None


def _stored_schedule(checkpoint: TensorSource) -> torch.Tensor | None:
    for name in ("alphas_cumprod", "betas"):
        info = checkpoint.tensors.get(name)
        if info is None or len(info.shape) != 1 or not 0 < info.shape[0] <= _MOST_STEPS:
            continue
        if info.dtype.is_floating_point and bool((found := checkpoint.tensor(name).to(torch.float64)).isfinite().all()):
            return found if name == "alphas_cumprod" else (1 - found).cumprod(0)
    return None
