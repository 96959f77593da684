"""The sampling that a checkpoint states: markers, metadata, and the noise schedule in the file.

Most checkpoints state nothing, and tools assume noise prediction on the schedule of their family. Others have empty
tensors at the top level, for example `v_pred` and `ztsnr`: the model predicts velocity, and its schedule ends in pure
noise. ComfyUI and Forge sample by these markers, WebUIs by the schedule in the file. Metadata state the same in many
spellings.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch

from optimizer.checkpoints.source import TensorSource
from optimizer.families import Layout

__all__ = ["Prediction", "read_prediction", "usual_schedule"]

# Metadata fields: the Stability model spec's, ComfyUI's, and diffusers'.
_FIELDS = ("modelspec.prediction_type", "modelspec.predict_key", "prediction_type")
# Metadata fields of kohya's scripts and later converters: whether the model predicts velocity, and whether the schedule
# ends in pure noise.
_VELOCITY = ("ss_v_parameterization", "ss_v_prediction", "v_parameterization", "v_pred")
_ZERO = ("ss_zero_terminal_snr", "zero_terminal_snr", "ztsnr", "rescale_betas_zero_snr")
_KINDS = {
    **dict.fromkeys(("epsilon", "eps", "epsilon_prediction", "eps_prediction", "eps_pred", "noise"), "epsilon"),
    **dict.fromkeys(("v", "v_prediction", "v_pred", "vprediction", "vpred", "velocity", "velocity_prediction"), "v"),
}
_NOUNS = {"epsilon": "noise", "v": "velocity"}
_YES, _NO = ("true", "1", "yes", "on"), ("false", "0", "no", "off")
_NOTHING = ("", "none", "null")  # spellings of an empty value
_LONGEST = 60  # characters of a value in messages
# Tolerances of equal schedules, which half precision rounds.
_ABSOLUTE, _RELATIVE = 1e-3, 1e-2
_MOST_STEPS = 100_000


@dataclass(frozen=True, eq=False)
class Prediction:
    """The sampling that one checkpoint states.

    Attributes:
        markers: Marker tensors of the file by name, with their number; None for empty ones.
        stated: Metadata fields about the predicted quantity, (field, text, kind) each.
        zero: Metadata field (field, text) that the schedule ends in pure noise; None without one.
        schedule: Share of the image in each step's variance, alphas_cumprod, float64 [steps]; None if neither the file
            nor its layout has one.
        stored: Whether the file holds the schedule.
    """

    markers: Mapping[str, float | None]
    stated: tuple[tuple[str, str, str], ...]
    zero: tuple[str, str] | None
    schedule: torch.Tensor | None
    stored: bool

    @property
    def kind(self) -> str:
        """Predicted quantity in the model spec's terms, `v` or `epsilon`; `epsilon` by default.

        Other texts in the metadata are returned as spelled.
        """
        return "v" if self._marked else self.stated[0][2] if self.stated else "epsilon"

    @property
    def ends_in_noise(self) -> bool:
        """Whether the file states that its schedule ends in pure noise, at zero terminal SNR."""
        return self.zero is not None or "ztsnr" in self.markers

    @property
    def states_kind(self) -> bool:
        """Whether the file states the predicted quantity."""
        return self._marked or bool(self.stated)

    def describe(self) -> str:
        """Return a phrase, for example "predicts velocity (v_pred) up to zero terminal SNR (ztsnr)"."""
        by = ["v_pred"] if "v_pred" in self.markers else []
        by += [f"{field}: {_shown(text)}" for field, text, _ in self.stated]
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
        """Return whether both checkpoints state the same, apart from the schedule."""
        return (self._kinds, self._others()) == (other._kinds, other._others())

    def schedule_difference(self, other: "Prediction") -> float | None:
        """Return the largest difference of the schedules.

        Args:
            other: Another checkpoint's prediction.

        Returns:
            The difference (0 to 1), inf for different lengths; None if the schedules are equal up to rounding, or one
            is unknown.
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
        """Predicted quantities; several if the metadata contradict themselves."""
        return frozenset({self.kind} if self._marked or not self.stated else (kind for _, _, kind in self.stated))

    def _others(self) -> tuple[object, ...]:
        return self.ends_in_noise, sorted(
            (name, number) for name, number in self.markers.items() if name not in ("v_pred", "ztsnr")
        )


def read_prediction(checkpoint: TensorSource, layout: Layout) -> Prediction:
    """Return the sampling that `checkpoint` states, with the layout's schedule if the file has no usable one."""
    markers = {name: _number(checkpoint, name) for name in layout.markers if name in checkpoint.tensors}
    stated = tuple(_stated(checkpoint.metadata))
    fields = ((name, checkpoint.metadata.get(name, "")) for name in _ZERO)
    zero = next(((name, text) for name, text in fields if _spelt(text) in _YES), None)
    stored = _stored_schedule(checkpoint)
    return Prediction(markers, stated, zero, usual_schedule(layout) if stored is None else stored, stored is not None)


def usual_schedule(layout: Layout) -> torch.Tensor | None:
    """Return the schedule of checkpoints without one.

    The square roots of its betas rise evenly.

    Args:
        layout: Layout of the checkpoints.

    Returns:
        alphas_cumprod, float64 [steps]; None for a layout without a schedule.
    """
    if layout.betas is None:
        return None
    first, last = layout.betas.first, layout.betas.last
    betas = torch.linspace(first**0.5, last**0.5, layout.betas.steps, dtype=torch.float64) ** 2
    return (1 - betas).cumprod(0)


def _stated(metadata: Mapping[str, str]) -> Iterator[tuple[str, str, str]]:
    """Yield (field, text, kind) of all metadata about the predicted quantity."""
    for field in _FIELDS:
        if (spelt := _spelt(text := metadata.get(field, ""))) not in _NOTHING:
            yield field, text, _KINDS.get(spelt, text.strip())
    for field in _VELOCITY:
        if (spelt := _spelt(text := metadata.get(field, ""))) not in _NOTHING:
            yield field, text, "v" if spelt in _YES else "epsilon" if spelt in _NO else f"{field}: {text.strip()}"


def _spelt(text: str) -> str:
    """Return the text in lower case, with words joined by one _: "V-Prediction " is v_prediction."""
    return re.sub(r"[\s_-]+", "_", text.strip().strip("\"'").casefold())


def _shown(text: str) -> str:
    """Return a stranger's text for a message, escaped as by Python, and cut off if it is very long."""
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
