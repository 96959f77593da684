"""Load the configurations and tokenizers by which diffusers and transformers run a family's checkpoints."""

import gzip
from collections.abc import Iterator
from importlib import resources
from pathlib import Path
from typing import Any

__all__ = ["load_tokenizer", "pipeline_folder", "prompts_file", "stored_part"]

# The pairs that CLIP's tokenizer merges, in order of priority, one per line below a title. CLIP uses only the first:
# of its 49,408 tokens 512 are bytes and 2 mark the ends of a text.
_VOCABULARY = "bpe_simple_vocab_16e6.txt.gz"
_PAIRS = 49408 - 512 - 2
_PROMPTS = "clip_prompts.txt"


def pipeline_folder(name: str) -> Path:
    """Return the folder of a pipeline configuration without weights, by a name in `TextEncoder.pipelines`."""
    return Path(str(resources.files("optimizer.families") / "pipelines" / name))


def load_tokenizer(pipeline: Path) -> Any:
    """Return the tokenizer of a pipeline configuration: that in its folder, else CLIP's."""
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


def prompts_file(pipeline: Path) -> Path:
    """Return the file of the prompts of a pipeline configuration: that in its folder, else those for CLIP's tokens."""
    own = pipeline / "prompts.txt"
    return own if own.is_file() else Path(str(resources.files("optimizer.families") / "vocabularies" / _PROMPTS))


def stored_part(encoder: Any) -> Any:
    """Return the module of a CLIPTextModel whose parameters have the names in checkpoints after `TextEncoder.model`."""
    return getattr(encoder, "text_model", encoder)  # a separate module before transformers 5.6


def _letters() -> Iterator[str]:
    """Yield a printable letter for each byte, in the order of CLIP's vocabulary: printable bytes first."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    yield from map(chr, printable)
    yield from (chr(256 + number) for number in range(256 - len(printable)))
