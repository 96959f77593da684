"""Records of a layout's file that are kept as they were read: pipelines, inputs, metadata, and what other tools know.

A layout's file is read by these models (and those in `layout_files`), so every one names its fields as the file does.
"""

from typing import Annotated, Literal

from pydantic import Field, StrictInt, StrictStr

from optimizer.files import UserFile

__all__ = [
    "Betas",
    "ComfyUINodes",
    "EncoderKind",
    "Inpainting",
    "MechaNames",
    "MergekitNames",
    "ModelMixerConvention",
    "ModelSpec",
    "Pipeline",
    "PositionIds",
    "Role",
    "SuperMergerConvention",
    "Tools",
]

Role = Literal["network", "text_encoder", "vae"]
EncoderKind = Literal["clip", "openclip", "t5", "other"]
Count = Annotated[StrictInt, Field(ge=1)]


class Betas(UserFile):
    """A noise schedule of `steps` levels: the square roots of its betas rise evenly from the first to the last."""

    steps: Count
    first: Annotated[float, Field(gt=0, lt=1)] = Field(alias="from")
    last: Annotated[float, Field(gt=0, lt=1)] = Field(alias="to")


class Pipeline(UserFile):
    """A pipeline configuration in families/pipelines, by its folder's name, and the guidance that it draws with."""

    name: StrictStr
    guidance: Annotated[float, Field(ge=1)]


class PositionIds(UserFile):
    """A buffer that is written as int64 0 .. n-1, shape [1, n]; n is the number of rows of `embedding`."""

    tensor: StrictStr
    embedding: StrictStr


class Inpainting(UserFile):
    """The input convolution, whose number of input channels differs between models of the family.

    `channels` are those that every model has and that merge; `variants` names the models that have more, by their
    number of channels.
    """

    tensor: StrictStr
    channels: Count
    variants: dict[Count, StrictStr] = Field(default_factory=dict)


class ModelSpec(UserFile):
    """What the Stability model spec, https://github.com/Stability-AI/ModelSpec, has for the family.

    `variants` are those of `Inpainting` that have an architecture of their own, called `architecture`-`variant`.
    """

    architecture: StrictStr
    resolution: StrictStr
    implementation: StrictStr
    variants: list[StrictStr] = Field(default_factory=list)


class SuperMergerConvention(UserFile):
    """SuperMerger's numbers for the family: those of the layout's blocks, in their order.

    `presets` is the number of blocks that the presets that come with it hold, all but the first; 0 if it has none.
    `adjusted` are the blocks of the tensors that its "Adjust" changes.
    """

    presets: Annotated[StrictInt, Field(ge=0)] = 0
    adjusted: tuple[StrictStr, ...] = ()


class ModelMixerConvention(UserFile):
    """model-mixer merges the family by the layout's blocks, in their order."""


class MechaNames(UserFile):
    """What sd-mecha calls the family.

    `model` and `blocks` are its configurations of tensors and of blocks, `converter` its method from the second to the
    first, `mapping` the layout's mapping that this method follows. `components` are its names of parts, with the place
    that each is in the layout; null for what no recipe merges. `tensors` are all tensors of the places that can have
    numbers of their own.
    """

    model: StrictStr
    blocks: StrictStr
    converter: StrictStr
    mapping: StrictStr
    components: dict[StrictStr, StrictStr | None] = Field(default_factory=dict)
    tensors: dict[StrictStr, tuple[StrictStr, ...]] = Field(default_factory=dict)


class ComfyUINodes(UserFile):
    """ComfyUI's node that merges the family's networks, and `alike`, those with the same inputs.

    An input is called as its place behind the network's prefix; `inputs` has the inputs of the places for which this
    is not so. `halves` has the input of ModelMergeBlocks for each first word of names behind that prefix; what begins
    otherwise takes the input that is named first.
    """

    node: StrictStr
    alike: tuple[StrictStr, ...] = ()
    inputs: dict[StrictStr, tuple[StrictStr, ...]] = Field(default_factory=dict)
    halves: dict[StrictStr, StrictStr] = Field(default_factory=dict)


class MergekitNames(UserFile):
    """Names behind each place that stand for all tensors there, by which filters for parts of blocks are refused.

    `block` has those of the places that `inside` leaves out.
    """

    block: tuple[StrictStr, ...]
    inside: dict[StrictStr, tuple[StrictStr, ...]] = Field(default_factory=dict)


class Tools(UserFile):
    """What other tools know of the family; a tool that is missing has no convention for it."""

    supermerger: SuperMergerConvention | None = None
    model_mixer: ModelMixerConvention | None = Field(default=None, alias="model-mixer")
    mecha: MechaNames | None = None
    comfyui: ComfyUINodes | None = None
    mergekit: MergekitNames | None = None

    def knows(self, tool: str) -> bool:
        """Whether the tool of this name has a convention for the family."""
        return getattr(self, tool.replace("-", "_"), None) is not None
