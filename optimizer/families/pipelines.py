"""How diffusers and transformers run a family's checkpoints: configurations without weights, and the tokenizer."""

import gzip
from collections.abc import Iterator
from importlib import resources
from pathlib import Path
from typing import Any

__all__ = ["load_tokenizer", "pipeline_folder", "stored_part"]

# The pairs that CLIP's tokenizer merges, the first one first, a line each below a title. The file goes on with pairs
# that CLIP does not use: it has 49,408 tokens, of which 512 are bytes and 2 the ends of a text.
_VOCABULARY = "bpe_simple_vocab_16e6.txt.gz"
_PAIRS = 49408 - 512 - 2


def pipeline_folder(name: str) -> Path:
    """Return the folder of a diffusers pipeline configuration without weights, as `TextEncoder.pipelines` names it."""
    return Path(str(resources.files("optimizer.families") / "pipelines" / name))


def load_tokenizer(pipeline: Path) -> Any:
    """Return the transformers tokenizer of a pipeline configuration: its own if it has one, else CLIP's."""
    from transformers import CLIPTokenizer, PreTrainedTokenizerFast  # noqa: PLC0415  takes seconds

    if (pipeline / "tokenizer").is_dir():
        return PreTrainedTokenizerFast.from_pretrained(pipeline / "tokenizer", local_files_only=True)
    packed = (resources.files("optimizer.families") / "vocabularies" / _VOCABULARY).read_bytes()
    lines = gzip.decompress(packed).decode("utf-8").split("\n")
    pairs = [tuple(line.split()) for line in lines[1 : _PAIRS + 1]]
    letters = list(_letters())
    tokens = [*letters, *(f"{letter}</w>" for letter in letters), *map("".join, pairs)]
    tokens += ["<|startoftext|>", "<|endoftext|>"]
    return CLIPTokenizer(
        vocab={token: number for number, token in enumerate(tokens)}, merges=pairs, model_max_length=77
    )


def stored_part(encoder: Any) -> Any:
    """Return the part of a CLIPTextModel that names its parameters as checkpoints do, behind `TextEncoder.model`."""
    return getattr(encoder, "text_model", encoder)  # a part of its own until transformers 5.6


def _letters() -> Iterator[str]:
    """Yield a printable letter for each byte, in the order of CLIP's vocabulary: printable bytes come first."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    yield from map(chr, printable)
    yield from (chr(256 + number) for number in range(256 - len(printable)))
