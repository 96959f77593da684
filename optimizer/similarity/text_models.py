"""Text encoders that compute hidden states from weights under the names of checkpoints."""

from collections.abc import Mapping
from typing import Any

import torch

from optimizer.checkpoints import TensorSource, placed_parameters
from optimizer.errors import CheckpointError
from optimizer.families import TextEncoder, stored_part

__all__ = ["TextModel"]

_POSITIONS, _INNER = "embeddings.position_embedding.weight", "encoder.layers.0.mlp.fc1.weight"


class TextModel:
    """A text encoder without weights, up to the layer that is read.

    Attributes:
        shapes: The shapes of the tensors that the states depend on, by canonical name.
        positions: The most tokens of a prompt.
    """

    def __init__(self, encoder: TextEncoder, checkpoint: TensorSource, clip_skip: int, vocabulary: int) -> None:
        """Read the sizes, but no weights.

        Args:
            encoder: The text encoder, with known states, layers, heads, activation and token table.
            checkpoint: The checkpoint whose sizes the model has.
            clip_skip: The layer, from 1, that of `encoder.states`, to `encoder.most_clip_skip`.
            vocabulary: The number of tokens of the tokenizer.

        Raises:
            CheckpointError: The checkpoint lacks the encoder, or it has a width that its heads do not divide.
        """
        from transformers import CLIPTextConfig, CLIPTextModel  # noqa: PLC0415  takes seconds

        assert encoder.states is not None
        assert encoder.tokens is not None
        assert encoder.heads is not None
        if encoder.tokens not in checkpoint.tensors:
            raise CheckpointError(f"{checkpoint.label}: has no {encoder.title}: tensor {encoder.tokens!r} is missing")
        _, width = _sizes(checkpoint, encoder.tokens)
        self.positions, _ = _sizes(checkpoint, encoder.place_of(_POSITIONS)[0])
        inner, _ = _sizes(checkpoint, encoder.place_of(_INNER)[0])
        if width % encoder.heads:
            raise CheckpointError(
                f"{checkpoint.label}: tensor {encoder.tokens!r} has {width} columns; must be a multiple of the "
                f"{encoder.heads} attention heads"
            )
        config = CLIPTextConfig(
            vocab_size=vocabulary,
            hidden_size=width,
            intermediate_size=inner,
            num_hidden_layers=encoder.most_clip_skip - clip_skip + 1,
            num_attention_heads=encoder.heads,
            max_position_embeddings=self.positions,
            hidden_act=encoder.activation,
            # These mark the token to pool at, which is not used here.
            bos_token_id=0,
            eos_token_id=0,
            pad_token_id=0,
        )
        with torch.device("meta"):
            self._model: Any = stored_part(CLIPTextModel(config)).eval()
            if not encoder.states.normalized:
                self._model.final_layer_norm = torch.nn.Identity()
        self._places = {name: encoder.place_of(name) for name, _ in self._model.named_parameters()}
        self.shapes: dict[str, tuple[int, ...]] = {}
        for name, parameter in self._model.named_parameters():
            stored, third = self._places[name]
            rows, *others = parameter.shape
            self.shapes[stored] = (rows if third is None else 3 * rows, *others)

    def parameters(self, weights: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Return the model's parameters, by transformers' names, as views of weights by canonical name."""
        return placed_parameters(self._places, weights)

    def states(
        self, parameters: Mapping[str, torch.Tensor], tokens: torch.Tensor, positions: torch.Tensor
    ) -> torch.Tensor:
        """Return the hidden states of prompts.

        Args:
            parameters: The result of `parameters`. Tables may have other numbers of rows than the checkpoint's.
            tokens: Rows of the token table, int64 [prompts, tokens].
            positions: 0, 1, ... as int64 [1, n], n at least the number of tokens.

        Returns:
            Float32 [prompts, tokens, width].
        """
        bound = {**parameters, "embeddings.position_ids": positions}
        states: torch.Tensor = torch.func.functional_call(self._model, bound, (tokens,)).last_hidden_state
        return states


def _sizes(checkpoint: TensorSource, name: str) -> tuple[int, int]:
    """Return the numbers of rows and columns of a matrix, or raise CheckpointError."""
    info = checkpoint.tensors.get(name)
    if info is None:
        raise CheckpointError(f"{checkpoint.label}: tensor {name!r} is missing, or not of floating point")
    if len(info.shape) != 2 or not all(info.shape):
        raise CheckpointError(f"{checkpoint.label}: tensor {name!r} has shape {list(info.shape)}; must be a matrix")
    return info.shape
