"""Parts that a checkpoint of a family consists of: one UNet or DiT, any number of text encoders, at most one VAE."""

import re
from collections.abc import Mapping
from dataclasses import dataclass

from optimizer.families.records import EncoderKind, Pipeline, PositionIds, Role

__all__ = ["ModelPart", "TextEncoder"]


@dataclass(frozen=True)
class ModelPart:
    """One part of a model.

    The names of all its tensors begin with `prefix`; of the names that do, those belong to it that `names` matches.
    `sections` are the first words of names behind the prefix, "encoder.", in the file's order; "" stands for any.
    `needs` are tensors, behind the prefix, without which the part is not whole. `scores` is whether it counts in
    similarities, `float16` whether it draws pictures in float16 on a GPU.
    """

    title: str
    role: Role
    prefix: str
    names: re.Pattern[str]
    sections: tuple[str, ...] = ("",)
    needs: tuple[str, ...] = ()
    scores: bool = True
    float16: bool = True

    def holds(self, name: str) -> bool:
        """Whether the tensor with this canonical name belongs to the part."""
        return self.names.match(name) is not None


@dataclass(frozen=True)
class TextEncoder(ModelPart):
    """A text encoder.

    `block` is the block that its tensors merge and score by. `model` is the beginning of the names of its tensors; what
    follows is how transformers calls them in a model of this `kind`. `layers` is the number of its transformer layers,
    `tokens` the tensor with one row for each token of its vocabulary, None where the layout does not say.
    `position_ids` is None if it has no such buffer. `pipelines` are the pipeline configurations that go with it, by the
    number of tokens.
    """

    block: str = ""
    kind: EncoderKind = "other"
    model: str = ""
    layers: int | None = None
    tokens: str | None = None
    position_ids: PositionIds | None = None
    pipelines: Mapping[int, Pipeline] | None = None

    @property
    def readable(self) -> bool:
        """Whether the encoder metric can compute it: transformers runs it, and a pipeline has its tokenizer."""
        return self.kind == "clip" and bool(self.pipelines) and self.tokens is not None

    def tokens_behind(self) -> str:
        """Return the name of `tokens` behind `model`."""
        assert self.tokens is not None
        return self.tokens.removeprefix(self.model)
