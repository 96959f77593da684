"""Modes: the formulas that combine checkpoints in one step, as in SuperMerger.

A new mode is one function and one line in `MODES`. Every mode is linear in its inputs and affine in each of its alphas.
The algebra relies on both: it computes coefficients and their derivatives by the same function (see
`coefficients.Algebra.jacobian`).
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch

from optimizer.choices import ModeName

__all__ = ["MODES", "Mode"]

Combine = Callable[[Mapping[str, torch.Tensor], Mapping[str, torch.Tensor]], torch.Tensor]


@dataclass(frozen=True)
class Mode:
    """One formula. The algebra applies the rules for tensors that an input lacks, the same for all modes.

    Attributes:
        name: The name.
        formula: The formula in SuperMerger's notation.
        inputs: The names of the inputs, "a", "b" and perhaps "c".
        alphas: The names of the alphas, "alpha" and perhaps "beta".
        combine: The function of inputs and alphas by name that returns the result.
    """

    name: ModeName
    formula: str
    inputs: tuple[str, ...]
    alphas: tuple[str, ...]
    combine: Combine


def _weight_sum(inputs: Mapping[str, torch.Tensor], alphas: Mapping[str, torch.Tensor]) -> torch.Tensor:
    return inputs["a"] * (1 - alphas["alpha"]) + inputs["b"] * alphas["alpha"]


def _add_difference(inputs: Mapping[str, torch.Tensor], alphas: Mapping[str, torch.Tensor]) -> torch.Tensor:
    return inputs["a"] + (inputs["b"] - inputs["c"]) * alphas["alpha"]


def _triple_sum(inputs: Mapping[str, torch.Tensor], alphas: Mapping[str, torch.Tensor]) -> torch.Tensor:
    alpha, beta = alphas["alpha"], alphas["beta"]
    return inputs["a"] * (1 - alpha - beta) + inputs["b"] * alpha + inputs["c"] * beta


def _sum_twice(inputs: Mapping[str, torch.Tensor], alphas: Mapping[str, torch.Tensor]) -> torch.Tensor:
    alpha, beta = alphas["alpha"], alphas["beta"]
    return (inputs["a"] * (1 - alpha) + inputs["b"] * alpha) * (1 - beta) + inputs["c"] * beta


MODES: dict[str, Mode] = {
    mode.name: mode
    for mode in (
        Mode("weight_sum", "A x (1-alpha) + B x alpha", ("a", "b"), ("alpha",), _weight_sum),
        Mode("add_difference", "A + (B - C) x alpha", ("a", "b", "c"), ("alpha",), _add_difference),
        Mode(
            "triple_sum",
            "A x (1-alpha-beta) + B x alpha + C x beta",
            ("a", "b", "c"),
            ("alpha", "beta"),
            _triple_sum,
        ),
        Mode(
            "sum_twice",
            "(A x (1-alpha) + B x alpha) x (1-beta) + C x beta",
            ("a", "b", "c"),
            ("alpha", "beta"),
            _sum_twice,
        ),
    )
}
