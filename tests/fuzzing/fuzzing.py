"""Runs a fuzzer: atheris mutates valid inputs, guided by coverage, and writes each input to a file.

All four fuzzers check one property: a reader returns, or raises InputError whose problems are single printable lines,
within two seconds and 3 GB of memory. atheris writes an input that violates it to a file named crash-, timeout- or
oom-; reduce the input and add it to a test.

    pip install atheris            # no dependency of blockfit; `make fuzz` installs it
    python tests/fuzzing/recipe_yaml.py --seconds 600
"""

import argparse
import sys
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path

import atheris

_SECONDS_AN_INPUT = 2
_MEGABYTES = 3000  # torch alone takes about 500


def fuzz(
    read: Callable[[Path], object], seeds: Iterable[bytes], words: Iterable[str], *, suffix: str, longest: int
) -> None:
    """Run `read` on mutations of `seeds` of at most `longest` bytes, into which `words` are inserted."""
    from optimizer.errors import InputError

    parser = argparse.ArgumentParser(description=sys.modules["__main__"].__doc__)
    parser.add_argument("--seconds", type=int, default=600, help="seconds to run; default 600")
    parser.add_argument(
        "--corpus", type=Path, help="start from the inputs in this folder and add those that reach new code"
    )
    parser.add_argument(
        "--seed", type=int, default=0, help="random seed of the mutations; 0 draws a new one for each run"
    )
    parser.add_argument("inputs", nargs="*", help="files to read once each, without mutations, for example crash-...")
    options = parser.parse_args()

    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        file = folder / f"input{suffix}"

        def read_input(data: bytes) -> None:
            file.write_bytes(data)
            try:
                read(file)
            except InputError as error:
                problems = error.problems
            else:
                return
            assert problems
            for problem in problems:
                assert len(problem.splitlines()) == 1, problem
                assert "\x1b" not in problem, problem

        corpus = options.corpus or folder / "corpus"
        corpus.mkdir(exist_ok=True, parents=True)
        for number, seed in enumerate(seeds):
            (corpus / f"seed-{number}").write_bytes(seed)
        dictionary = folder / "words"
        dictionary.write_text("".join(f'"{_escaped(word)}"\n' for word in words), encoding="ascii")
        flags = [
            f"-max_total_time={options.seconds}",
            f"-max_len={longest}",
            "-len_control=0",
            f"-timeout={_SECONDS_AN_INPUT}",
            f"-rss_limit_mb={_MEGABYTES}",
            f"-seed={options.seed}",
            f"-dict={dictionary}",
            "-print_final_stats=1",
        ]
        atheris.Setup([sys.argv[0], *flags, *(options.inputs or [str(corpus)])], read_input)
        atheris.Fuzz()


def _escaped(word: str) -> str:
    return "".join(f"\\x{byte:02x}" for byte in word.encode())
