"""The ways to combine checkpoints in one step; a new mode is one function and one line in `MODES`.

Every mode is linear in its inputs and affine in each of its alphas. The algebra relies on both: it pushes coefficients
and their derivatives through the same function (see `coefficients.Algebra.jacobian`).
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch

__all__ = ["MODES", "Mode"]

Combine = Callable[[Mapping[str, torch.Tensor], Mapping[str, torch.Tensor]], torch.Tensor]


@dataclass(frozen=True)
class Mode:
    """One way to combine: `combine(inputs, alphas)`, both by name ("a", "b", "c"; "alpha", "beta").

    `formula` is what the notation prints. The rules for tensors that an input lacks are the algebra's, for all modes.
    """

    name: str
    formula: str
    inputs: tuple[str, ...]
    alphas: tuple[str, ...]
    combine: Combine


def _weight_sum(inputs: Mapping[str, torch.Tensor], alphas: Mapping[str, torch.Tensor]) -> torch.Tensor:
    return inputs["a"] * (1 - alphas["alpha"]) + inputs["b"] * alphas["alpha"]


def _add_difference(inputs: Mapping[str, torch.Tensor], alphas: Mapping[str, torch.Tensor]) -> torch.Tensor:
    return inputs["a"] + (inputs["b"] - inputs["c"]) * alphas["alpha"]


MODES: dict[str, Mode] = {
    mode.name: mode
    for mode in (
        Mode("weight_sum", "A x (1-alpha) + B x alpha", ("a", "b"), ("alpha",), _weight_sum),
        Mode("add_difference", "A + (B - C) x alpha", ("a", "b", "c"), ("alpha",), _add_difference),
    )
}
