"""The parts of a checkpoint: one UNet or DiT, any number of text encoders, at most one VAE."""

import re
from collections.abc import Mapping
from dataclasses import dataclass

from optimizer.families.openclip import OPENCLIP_PROJECTION, openclip_place
from optimizer.families.records import Activation, EncoderKind, EncoderStates, Pipeline, PositionIds, Role

__all__ = ["ModelPart", "TextEncoder"]


@dataclass(frozen=True)
class ModelPart:
    """One part of a model.

    Attributes:
        title: The title for messages.
        role: "network", "text_encoder" or "vae".
        prefix: The beginning of the names of all its tensors.
        names: The pattern that distinguishes its tensors from others with the prefix.
        sections: The first words of names after the prefix, "encoder." for example, in the order of the layout's file;
            "" stands for any.
        needs: The names, without the prefix, of tensors that the part cannot lack.
        scores: Whether the part counts in similarities.
        unscored: The beginnings of the names of its tensors that count in none, although the part does.
        apart: Whether the family's models usually have it in a file of its own, so that its absence is not unusual.
        float16: Whether the part draws pictures in float16 on a GPU.
    """

    title: str
    role: Role
    prefix: str
    names: re.Pattern[str]
    sections: tuple[str, ...] = ("",)
    needs: tuple[str, ...] = ()
    scores: bool = True
    unscored: tuple[str, ...] = ()
    apart: bool = False
    float16: bool = True

    def holds(self, name: str) -> bool:
        """Return whether the tensor with this canonical name belongs to the part."""
        return self.names.match(name) is not None


@dataclass(frozen=True)
class TextEncoder(ModelPart):
    """A text encoder.

    Attributes:
        block: The block of its tensors.
        kind: The kind of model.
        model: The beginning of the names of its tensors. The rest of a name is that of transformers or, for the kind
            openclip, that of OpenCLIP.
        layers: The number of transformer layers; None if unknown.
        heads: The number of attention heads; None if unknown.
        activation: The activation function; None if unknown.
        states: The states that the network receives, beside those of the other encoders; None if it receives none, or
            if blockfit cannot compute them.
        tokens: The name of the tensor with one row per token of the vocabulary; None if unknown.
        position_ids: The buffer of position ids; None without one.
        pipelines: The pipeline configurations for it, by the number of tokens.
    """

    block: str = ""
    kind: EncoderKind = "other"
    model: str = ""
    layers: int | None = None
    heads: int | None = None
    activation: Activation | None = None
    states: EncoderStates | None = None
    tokens: str | None = None
    position_ids: PositionIds | None = None
    pipelines: Mapping[int, Pipeline] | None = None

    @property
    def most_clip_skip(self) -> int:
        """The largest clip skip, which reads the first layer; 1 reads the layer of `states`."""
        return 1 if self.states is None or self.layers is None else self.layers - self.states.layer + 1

    def tokens_behind(self) -> str:
        """Return the name of `tokens` without `model` before it."""
        assert self.tokens is not None
        return self.tokens.removeprefix(self.model)

    @property
    def projection(self) -> str:
        """The canonical name of OpenCLIP's projection."""
        return self.model + OPENCLIP_PROJECTION

    def place_of(self, parameter: str) -> tuple[str, int | None]:
        """Return where checkpoints hold a parameter of transformers' CLIPTextModel.

        Args:
            parameter: The name of the parameter, without `text_model.`.

        Returns:
            The canonical name of the tensor, and which third of its rows is the parameter, 0 to 2; None for all rows.
        """
        name, third = openclip_place(parameter) if self.kind == "openclip" else (parameter, None)
        return self.model + name, third
