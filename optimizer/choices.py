"""Words that a user chooses from: metrics, modes, samplers, devices and formats.

The modules that implement the words use these types for their registries. The types are kept here, without imports,
because tab completion must be immediate, while the implementing modules import torch or Optuna, which takes seconds.
"""

from typing import Any, Literal, get_args

__all__ = [
    "CeilingMetric",
    "DTypeName",
    "DeviceName",
    "FirstMode",
    "FormatName",
    "MetricName",
    "ModeName",
    "PictureRole",
    "SamplerName",
    "ShellName",
    "StorageKind",
    "StrategyName",
    "listed",
    "words_of",
]

MetricName = Literal["explained", "delta", "weights", "elements", "attention", "encoder"]
CeilingMetric = Literal["explained", "delta", "weights", "all"]
ModeName = Literal["weight_sum", "add_difference", "triple_sum", "sum_twice"]
FirstMode = Literal["add_difference", "weight_sum"]
StrategyName = Literal["stepwise", "joint"]
SamplerName = Literal["blockwise", "cmaes", "gp", "random", "tpe"]
DeviceName = Literal["auto", "cpu", "cuda"]
DTypeName = Literal["fp16", "bf16", "fp32"]
FormatName = Literal["supermerger", "model-mixer", "mecha", "comfyui", "mergekit"]
StorageKind = Literal["sqlite", "journal", "postgresql"]
PictureRole = Literal["target", "candidate", "source"]
ShellName = Literal["bash", "zsh", "fish", "powershell", "pwsh"]


def words_of(choice: Any) -> tuple[str, ...]:
    """Return the words of a `Literal`, in order."""
    return get_args(choice)


def listed(choice: Any) -> str:
    """Return the words of a `Literal` as an English list: "auto, cpu or cuda"."""
    *first, last = words_of(choice)
    return f"{', '.join(first)} or {last}"
