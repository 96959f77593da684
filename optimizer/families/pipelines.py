"""How diffusers and transformers run a family's checkpoints: configurations without weights, and the tokenizer."""

import gzip
from collections.abc import Iterator
from importlib import metadata, resources
from pathlib import Path
from typing import Any

from optimizer.errors import InputError

__all__ = ["load_tokenizer", "pipeline_folder", "stored_part"]

# The distribution that CLIP's vocabulary comes with, and the file of it, 49,152 - 256 - 2 pairs a line below a title.
_VOCABULARY = ("openai-clip", "clip/bpe_simple_vocab_16e6.txt.gz")
_PAIRS = 49152 - 256 - 2


def pipeline_folder(name: str) -> Path:
    """The folder of a pipeline configuration of diffusers' without weights, as `TextEncoder.pipelines` names it."""
    return Path(str(resources.files("optimizer.families") / "pipelines" / name))


def load_tokenizer(pipeline: Path) -> Any:
    """The transformers tokenizer of a pipeline configuration: its own if it has one, else CLIP's.

    Raises InputError if the package that CLIP's vocabulary comes with is not installed.
    """
    from transformers import CLIPTokenizer, PreTrainedTokenizerFast  # noqa: PLC0415  takes seconds

    if (pipeline / "tokenizer").is_dir():
        return PreTrainedTokenizerFast.from_pretrained(pipeline / "tokenizer", local_files_only=True)
    name, file = _VOCABULARY
    try:
        path = Path(str(metadata.distribution(name).locate_file(file)))
        lines = gzip.decompress(path.read_bytes()).decode("utf-8").split("\n")
    except (metadata.PackageNotFoundError, OSError) as error:
        raise InputError(
            f"CLIP's vocabulary comes with the package {name}, which is not installed; pip install {name}"
        ) from error
    pairs = [tuple(line.split()) for line in lines[1 : _PAIRS + 1]]
    letters = list(_letters())
    tokens = [*letters, *(f"{letter}</w>" for letter in letters), *map("".join, pairs)]
    tokens += ["<|startoftext|>", "<|endoftext|>"]
    return CLIPTokenizer(
        vocab={token: number for number, token in enumerate(tokens)}, merges=pairs, model_max_length=77
    )


def stored_part(encoder: Any) -> Any:
    """The part of a CLIPTextModel whose parameters are called as in checkpoints, behind `TextEncoder.model`."""
    return getattr(encoder, "text_model", encoder)  # a part of its own until transformers 5.6


def _letters() -> Iterator[str]:
    """A printable letter for each byte, in the order of CLIP's vocabulary: those that are printable come first."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    yield from map(chr, printable)
    yield from (chr(256 + number) for number in range(256 - len(printable)))
