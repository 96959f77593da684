"""The names of OpenCLIP's text encoder for the parameters of transformers' CLIPTextModel."""

__all__ = ["OPENCLIP_PROJECTION", "openclip_place"]

# The projection of the end token's state, from the right; transformers holds its transpose.
OPENCLIP_PROJECTION = "text_projection"

_WHOLE = {
    "embeddings.token_embedding.weight": "token_embedding.weight",
    "embeddings.position_embedding.weight": "positional_embedding",
}
# Beginnings outside of layers, and words within a layer.
_LAYERS = ("encoder.layers.", "transformer.resblocks.")
_NORM = ("final_layer_norm.", "ln_final.")
_WORDS = {
    "layer_norm1": "ln_1",
    "layer_norm2": "ln_2",
    "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj",
    "self_attn.out_proj": "attn.out_proj",
}
# OpenCLIP holds queries, keys and values in one tensor, in this order.
_PROJECTIONS = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")


def openclip_place(parameter: str) -> tuple[str, int | None]:
    """Return where OpenCLIP holds a parameter of transformers' CLIPTextModel.

    Args:
        parameter: The name of the parameter, without `text_model.`.

    Returns:
        The name of the tensor in OpenCLIP, and which third of its rows is the parameter, 0 to 2; None for all rows.
    """
    if parameter in _WHOLE:
        return _WHOLE[parameter], None
    beginning, beginning_there = _LAYERS
    if not parameter.startswith(beginning):
        return parameter.replace(*_NORM), None
    number, inside = parameter.removeprefix(beginning).split(".", 1)
    word, ending = inside.rsplit(".", 1)
    if word in _PROJECTIONS:
        return f"{beginning_there}{number}.attn.in_proj_{ending}", _PROJECTIONS.index(word)
    return f"{beginning_there}{number}.{_WORDS[word]}.{ending}", None
