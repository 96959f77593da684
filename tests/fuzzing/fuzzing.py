"""What the four fuzzers share: coverage-guided mutation of good inputs by atheris, one input a file on disk.

The property is the same for all: a reader returns, or raises InputError whose lines are single and printable, within
seconds and a bounded memory. Anything else is a finding: atheris writes the input to a file named crash-, timeout- or
oom-, and the input belongs into a test, as small as it can be made.

    pip install atheris            # not among blockfit's dependencies; `make fuzz` does it
    python tests/fuzzing/recipe_yaml.py --seconds 600
"""

import argparse
import sys
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path

import atheris

_SECONDS_AN_INPUT = 2
_MEGABYTES = 3000  # torch alone takes some 500


def fuzz(
    read: Callable[[Path], object], seeds: Iterable[bytes], words: Iterable[str], *, suffix: str, longest: int
) -> None:
    """Run `read` on files of at most `longest` bytes that begin as `seeds`; `words` are worth being put in anywhere."""
    from optimizer.errors import InputError

    parser = argparse.ArgumentParser(description=sys.modules["__main__"].__doc__)
    parser.add_argument("--seconds", type=int, default=600, help="how long to run; default 600")
    parser.add_argument("--corpus", type=Path, help="keep what was found interesting here, and begin with it")
    parser.add_argument("--seed", type=int, default=0, help="of the mutations; 0 takes another every time")
    parser.add_argument("inputs", nargs="*", help="files to read once each instead, such as crash-...")
    options = parser.parse_args()

    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        file = folder / f"input{suffix}"

        def one(data: bytes) -> None:
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
        atheris.Setup([sys.argv[0], *flags, *(options.inputs or [str(corpus)])], one)
        atheris.Fuzz()


def _escaped(word: str) -> str:
    return "".join(f"\\x{byte:02x}" for byte in word.encode())
