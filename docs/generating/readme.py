"""Put the table of results into README.md, between its markers: `python docs/generating/readme.py`."""

from __future__ import annotations

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "docs"))

import jinja2  # noqa: E402
from generating.figures import FILTERS, load_results  # noqa: E402

README = ROOT / "README.md"
BEGIN, END = "<!-- results: begin (made by docs/generating/readme.py) -->", "<!-- results: end -->"
TABLE = """\
{% set full, methods, merging = results.full_size.figures, results.methods.figures, results.merging_speed.figures -%}
{% set machine = results.full_size.machine -%}
Full-size Stable Diffusion 1.5 checkpoints of {{ full["bytes of a file"] | gigabytes }} each, {{ machine.cores | word }} cores\
{{ " (" ~ machine.processor ~ ")" if machine.processor else "" }}, no GPU, {{ results.full_size.date }}:

| | |
|---|---|
| scoring a trial by `attention`, against comparing two models naively | {{ full["scoring a trial: median seconds"] | fixed(3) }} s: \
**{{ full["naive / trial"] | fixed }} times faster** |
| a fit of {{ full.steps | word }} steps with {{ full["free alphas of a step"] | word }} free alphas each, {{ full.trials }} trials, \
hashes of {{ full["bytes hashed"] | gigabytes(0) }} included | {{ full["fit: seconds"] | fixed }} s, \
{{ full["fit: peak of anonymous memory, bytes"] | gigabytes }} of memory |
| its error of the planted coefficients, worst block | \
{{ full["worst difference from the planted coefficients"]["best trial"] | scientific }} |
| Optuna's TPE over merged tensors, to the same similarity | **more than {{ methods["times longer"].TPE.search | plain }} times \
longer** |
| merging {{ merging.sources | word }} checkpoints, against sd-mecha {{ results.merging_speed.versions["sd-mecha"] }} | \
{{ merging.summary.merge["median seconds"] | fixed }} s: **{{ merging["sd-mecha / merge"] | fixed }} times faster** |
| largest difference from sd-mecha's float32 merges, relative | \
{{ results.agreement.figures["largest difference"].all.mecha | scientific }} |
"""


def table() -> str:
    """Return the table of the figures that the benchmarks wrote."""
    environment = jinja2.Environment(undefined=jinja2.StrictUndefined, autoescape=False)  # noqa: S701  Markdown
    environment.filters.update(FILTERS)
    return environment.from_string(TABLE).render(results=load_results()).strip()


def with_table(text: str) -> str:
    """Return README.md's text with the table between its markers. Raises ValueError if it has no markers."""
    before, after = text.index(BEGIN) + len(BEGIN), text.index(END)
    return f"{text[:before]}\n{table()}\n{text[after:]}"


def main() -> None:
    """Write README.md anew."""
    README.write_text(with_table(README.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main()
