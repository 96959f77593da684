"""Records of a layout's file that layouts keep unchanged: pipelines, inputs, metadata, conventions of other tools.

These models, with those in `layout_files`, read the file, so their fields have the names in the file.
"""

from typing import Annotated, Literal

from pydantic import Field, StrictBool, StrictInt, StrictStr

from optimizer.files import UserFile

__all__ = [
    "Activation",
    "Betas",
    "ComfyUINodes",
    "EncoderKind",
    "EncoderStates",
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
Activation = Literal["quick_gelu", "gelu"]
Count = Annotated[StrictInt, Field(ge=1)]


class Betas(UserFile):
    """A noise schedule of `steps` levels; the square roots of its betas rise linearly from `first` to `last`."""

    steps: Count
    first: Annotated[float, Field(gt=0, lt=1)] = Field(alias="from")
    last: Annotated[float, Field(gt=0, lt=1)] = Field(alias="to")


class Pipeline(UserFile):
    """A pipeline configuration: its tokenizer and prompts and, if it draws pictures, the configuration of each part.

    Attributes:
        name: The name, that of a folder in families/pipelines. Without the folder, tokenizer and prompts are CLIP's.
        guidance: The guidance scale of its pictures; None if it draws none.
        layers: The number of the text encoder's layers, if it differs from that of the layout.
        heads: The number of the text encoder's attention heads, if it differs from that of the layout.
    """

    name: StrictStr
    guidance: Annotated[float, Field(ge=1)] | None = None
    layers: Count | None = None
    heads: Count | None = None


class EncoderStates(UserFile):
    """The hidden states of a text encoder that the network receives.

    Attributes:
        layer: The layer, counted from the last, which is 1.
        normalized: Whether the final normalization is applied to its states.
    """

    layer: Count = 1
    normalized: StrictBool = True


class PositionIds(UserFile):
    """A buffer that merges write as int64 0 .. n-1, shape [1, n]; n is the number of rows of `embedding`."""

    tensor: StrictStr
    embedding: StrictStr


class Inpainting(UserFile):
    """The input convolution, whose number of input channels differs between models of the family.

    Attributes:
        tensor: The name of its weight.
        channels: The number of channels that every model has and that merge.
        variants: The names of models with more channels, by the number of channels.
    """

    tensor: StrictStr
    channels: Count
    variants: dict[Count, StrictStr] = Field(default_factory=dict)


class ModelSpec(UserFile):
    """The family in the Stability model spec, https://github.com/Stability-AI/ModelSpec.

    Attributes:
        architecture: The architecture.
        resolution: The resolution, WIDTHxHEIGHT in pixels.
        implementation: The address of the reference implementation.
        variants: The variants of `Inpainting` with a separate architecture, `architecture`-`variant`.
    """

    architecture: StrictStr
    resolution: StrictStr
    implementation: StrictStr
    variants: list[StrictStr] = Field(default_factory=list)


class SuperMergerConvention(UserFile):
    """SuperMerger's numbers for the family: one for each of the layout's blocks, in their order.

    Attributes:
        presets: The number of blocks in SuperMerger's own presets, all but the first; 0 without presets.
        adjusted: The blocks of the tensors that its "Adjust" changes.
        longer: The blocks of a longer list of numbers that SuperMerger takes, too, the first block first. It drops the
            numbers of blocks that the layout lacks. Lines in its file of presets have this length.
        vae_last: Whether its metadata list a number for the VAE, always 0, after those of the blocks.
    """

    presets: Annotated[StrictInt, Field(ge=0)] = 0
    adjusted: tuple[StrictStr, ...] = ()
    longer: tuple[StrictStr, ...] = ()
    vae_last: StrictBool = False


class ModelMixerConvention(UserFile):
    """model-mixer's numbers for the family: one for each of the layout's blocks, in their order."""


class MechaNames(UserFile):
    """sd-mecha's names for the family.

    Attributes:
        model: Its configuration of tensors.
        blocks: Its configuration of blocks.
        converter: Its method that converts blocks to tensors.
        mapping: The layout's mapping that the method follows.
        others: Its blocks that the layout lacks, with the place of their tensors.
        components: Its names of parts with their place in the layout; null for parts that no recipe merges.
        tensors: All tensors of the places that can have separate numbers, by place.
    """

    model: StrictStr
    blocks: StrictStr
    converter: StrictStr
    mapping: StrictStr
    others: dict[StrictStr, StrictStr] = Field(default_factory=dict)
    components: dict[StrictStr, StrictStr | None] = Field(default_factory=dict)
    tensors: dict[StrictStr, tuple[StrictStr, ...]] = Field(default_factory=dict)


class ComfyUINodes(UserFile):
    """The nodes of ComfyUI that merge the family's networks.

    An input has the name of its place without the network's prefix.

    Attributes:
        node: The node.
        alike: Other nodes with the same inputs.
        inputs: The inputs of places with other names.
        halves: The input of ModelMergeBlocks for each first word of names after the network's prefix. Other names take
            the first input listed.
    """

    node: StrictStr
    alike: tuple[StrictStr, ...] = ()
    inputs: dict[StrictStr, tuple[StrictStr, ...]] = Field(default_factory=dict)
    halves: dict[StrictStr, StrictStr] = Field(default_factory=dict)


class MergekitNames(UserFile):
    """Sample names of tensors by which filters for parts of blocks are detected and refused.

    Attributes:
        block: Sample names, without the place, of tensors in places that `inside` does not list.
        inside: Sample names of tensors in other places, by place.
    """

    block: tuple[StrictStr, ...]
    inside: dict[StrictStr, tuple[StrictStr, ...]] = Field(default_factory=dict)


class Tools(UserFile):
    """The conventions of other tools for the family; None for a tool without one."""

    supermerger: SuperMergerConvention | None = None
    model_mixer: ModelMixerConvention | None = Field(default=None, alias="model-mixer")
    mecha: MechaNames | None = None
    comfyui: ComfyUINodes | None = None
    mergekit: MergekitNames | None = None

    def knows(self, tool: str) -> bool:
        """Return whether the tool of this name has a convention for the family."""
        return getattr(self, tool.replace("-", "_"), None) is not None
