"""A layout's file is checked: every mistake is a line that names the file and the field."""

from pathlib import Path

import pytest

from optimizer.errors import InputError, RecipeError
from optimizer.families import layout_names, load_layout, register_layout, registered_layouts
from optimizer.families.layout_files import forget_layout, read_layout

TOY = (Path(__file__).parent / "toy.yaml").read_text(encoding="utf-8")
ONE, TWO = (f"prefix: text.{name}.}}" for name in ("one", "two"))
ENCODER = "kind: clip, model: text.one., layers: 2, heads: 2, activation: gelu, tokens: text.one.t"


def encoder(fields, prefix=ONE):
    """Return the end of a part in the toy family's file with the fields of a text encoder."""
    return f"{prefix[:-1]}, encoder: {{{fields}}}}}"


@pytest.fixture
def write(tmp_path):
    """A function that writes the toy family's file with one text replaced by another."""

    def write(old="", new=""):
        assert TOY.count(old) == 1 or not old
        path = tmp_path / "family.yaml"
        path.write_text(TOY.replace(old, new) if old else TOY, encoding="utf-8")
        return path

    return write


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("name: toy", "name: Toy!", "name: received 'Toy!'; must be lower-case letters, digits, '.', '_' and '-'"),
        ("title: Toy Transformer", "", "title: missing"),
        ("blocks: [CLIP", "blocks: [clip", "blocks: received 'clip'; must be upper-case letters, digits and '_'"),
        ("D00-D03, S00-S02, END]", "D03-D00, S00-S02, END]", "blocks: received 'D03-D00'; the range runs backwards"),
        ("IN, D00-D03", "IN, IN, D00-D03", "blocks: received ['CLIP', 'T5', 'IN', 'IN', "),
        ("IN, D00-D03", "IN, D00-D99999", "blocks: more than 1,000"),
        (
            "single: S00-S02",
            "single: S00-S03",
            "groups.single: received 'S03'; must be one of the blocks, CLIP, T5, IN, ",
        ),
        ("single: S00-S02", "all: S00-S02", "groups.all: must be a word in lower-case letters, not 'all'"),
        (
            "groups:",
            "unet: [double, single, out]\ngroups:",
            "unet: received 'out'; must be one of the groups: double, single",
        ),
        ("groups:", "aliases: {X: X00}\ngroups:", "aliases.X: received 'X00'; must be one of the blocks"),
        ("role: network", "role: unet", "parts.0.role: received 'unet'; "),
        (
            "role: network",
            "role: vae",
            "parts: received 0 of role network and 2 of role vae; must be one network and at",
        ),
        ("title: VAE", "title: transformer", "parts: two parts have the title 'transformer'"),
        ("dit.final.: END", "dit.final.: OUT", "places.dit.final.: received 'OUT'; must be one of the blocks"),
        (
            '"D{n:02}"',
            '"D{m:02}"',
            "places.dit.double.{n}.: received 'D{m:02}'; must be the name of a block for every {n}",
        ),
        ("  dit.final.: END\n", "", "blocks: no place assigns tensors to END"),
        ("  text.two.: T5", "  words.: T5", "places.words.: must begin with the prefix of a part"),
        ("  text.one.: CLIP\n", "", "parts.first text encoder: 'text.one.' begins with no place, so it has no block"),
        (r"norm\.scale'", "norm(scale'", "mappings.scaleless.leaves: received "),
        (
            r"'model\.dit\.', to: dit.",
            r"'model\.dit\.', to: '\1dit.'",
            r"renames.0.to: received '\\1dit.'; the pattern has 0",
        ),
        ("base_names:", "base_name:", "base_name: unknown field; must be one of name, title, about, blocks, "),
        (
            ONE,
            encoder("kind: t5, model: text.one., layers: 2, heads: 2, activation: gelu, tokens: t, states: {layer: 1}"),
            "parts.first text encoder.encoder.states: only the kinds clip and openclip can be computed, received t5",
        ),
        (
            ONE,
            encoder("kind: clip, model: text.one., layers: 2, activation: gelu, tokens: t, states: {layer: 1}"),
            "parts.first text encoder.encoder.heads: missing; the states are computed with it",
        ),
        (
            ONE,
            encoder(f"{ENCODER}, states: {{layer: 3}}"),
            "parts.first text encoder.encoder.states.layer: received 3; must be 1, the last layer, to 2",
        ),
        (ONE, encoder(f"{ENCODER}, states: {{layer: 0}}"), "parts.1.encoder.states.layer: received 0; "),
        (ONE, encoder(f"{ENCODER}, states: {{last: true}}"), "encoder.states.last: unknown field"),
        (
            ONE,
            encoder(f"{ENCODER}, pipelines: {{8: {{name: p}}}}"),
            "parts.first text encoder.encoder.pipelines: only encoders with `states` have pipelines; leave it out",
        ),
        (
            f"{ONE}\n  - {{title: second text encoder, role: text_encoder, {TWO}",
            encoder(f"{ENCODER}, states: {{layer: 1}}, pipelines: {{8: {{name: p}}}}")
            + "\n  - {title: second text encoder, role: text_encoder, "
            + encoder(f"{ENCODER}, states: {{layer: 1}}", TWO),
            "parts: the encoders with `states` belong to several blocks, CLIP, T5; must be one",
        ),
        (
            "base_names:",
            "tools: {supermerger: {presets: 3}}\nbase_names:",
            "tools.supermerger.presets: received 3; must be 0",
        ),
        (
            "base_names:",
            "tools: {comfyui: {node: N, inputs: {a.: [b.]}}}\nbase_names:",
            "tools.comfyui.inputs: received 'a.'",
        ),
        (
            "base_names:",
            "tools: {supermerger: {longer: [CLIP, T5, IN]}}\nbase_names:",
            "tools.supermerger.longer: must have all blocks of the layout, in its order",
        ),
        (
            "base_names:",
            "tools: {mecha: {model: m, blocks: b, converter: c, mapping: plain, others: {X: x.}}}\nbase_names:",
            "tools.mecha.others: received 'x.'; must be one of the places",
        ),
        ("base_names:", "inpainting: {tensor: ae.x, channels: 4}\nbase_names:", "inpainting.tensor: received 'ae.x'"),
        (
            "base_names:",
            "attention: {projections: [q, k, v], blocks: {X: x}}\nbase_names:",
            "attention.blocks.X: received",
        ),
    ],
)
def test_mistakes_are_refused(write, old, new, expected):
    """A mistake is refused with the file, the field, the value received and the values allowed."""
    path = write(old, new)

    with pytest.raises(InputError) as error:
        read_layout(path)

    lines = [line for line in error.value.problems if expected in line]
    assert len(lines) == 1, error.value.problems
    assert lines[0].startswith(f"{path}:")


def test_a_layout_can_be_registered(write):
    """A layout is available while it is registered, read anew if it is registered again, and unknown once forgotten."""
    path = write()
    try:
        register_layout(path)
        path.write_text(TOY.replace("Toy Transformer", "Another Toy"), encoding="utf-8")
        register_layout(path)

        assert load_layout("toy").title == "Another Toy"
        assert (layout_names()[-1], registered_layouts()) == ("toy", (path,))
    finally:
        forget_layout("toy")
    with pytest.raises(RecipeError, match=f"unknown layout 'toy'; must be one of {', '.join(layout_names())}"):
        load_layout("toy")


def test_a_name_in_use_is_refused(write):
    """A file is refused if blockfit's own layout, or that of another file, has its name."""
    path = write("name: toy", "name: sd1")
    with pytest.raises(InputError, match="name: received 'sd1'; another layout has this name, blockfit's own"):
        register_layout(path)

    path = write()
    try:
        register_layout(path)
        copy = path.with_name("copy.yaml")
        copy.write_bytes(path.read_bytes())
        with pytest.raises(InputError, match=r"name: received 'toy'; another layout has this name, that of .*family"):
            register_layout(copy)
    finally:
        forget_layout("toy")


def test_places_of_stable_diffusion_have_their_blocks():
    """Each block of Stable Diffusion 1.x has the place in its name; the network has two further places."""
    layout = load_layout("sd1")
    unet = "model.diffusion_model."
    homes = {"BASE": "cond_stage_model.", "M00": f"{unet}middle_block."}
    homes |= {f"IN{n:02}": f"{unet}input_blocks.{n}." for n in range(12)}
    homes |= {f"OUT{n:02}": f"{unet}output_blocks.{n}." for n in range(12)}

    assert {block: layout.place_of(block) for block in layout.blocks} == homes
    assert layout.places_beside_blocks() == (f"{unet}time_embed.", f"{unet}out.")
