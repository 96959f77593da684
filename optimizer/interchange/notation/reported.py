"""Reads the similarities to a target that a text reports for its steps, in a line or in a table of blocks."""

import re
from collections.abc import Iterable, Sequence
from dataclasses import replace

from optimizer.errors import RecipeError
from optimizer.families import Layout
from optimizer.interchange.notation.statements import Refuse, Statement
from optimizer.interchange.notation.tokens import parse_name
from optimizer.recipes import NUMBER, Expected, percentage

__all__ = ["ReportedSimilarities"]

_SIGNED = rf"-?{NUMBER}"
_SIMILARITY = re.compile(
    r"(?:cosine )?similarity of (?P<blocks>[\w, -]+?)(?: between .+?)?"
    r"(?: \((?P<metric>\w+), seed (?P<seed>\d{1,18})\))?"
    rf"\s*:\s*(?P<total>{_SIGNED})?\s*%?",
    re.IGNORECASE,
)
_OF_STEP = re.compile(r"block.level .*?similarity of (?:the )?(?P<step>.+?)\s*:?", re.IGNORECASE)
_TOTAL = re.compile(rf"total(?: [\w ]+)?\s*:\s*(?P<total>{_SIGNED})\s*%", re.IGNORECASE)
_PERCENT = re.compile(rf"({_SIGNED})\s*(%?)")
_LONGEST_PROSE = 300  # characters in a line that can report a similarity


class ReportedSimilarities:
    """A reader for lines that report similarities. Each similarity belongs to a statement above its line.

    Attributes:
        layout: Layout that defines the blocks.
        labels: Blocks by label, for labels like output_blocks.
    """

    def __init__(self, layout: Layout, statements: Sequence[Statement], refuse: Refuse) -> None:
        """Read similarities for `statements`, which grows as lines are read; `refuse` records refused lines."""
        self.layout = layout
        self._statements = statements
        self._refuse = refuse
        self._of_step: str | None = None
        self._header: tuple[str, ...] = ()
        self.labels: dict[str, tuple[str, ...]] = {}

    def read(self, number: int, line: str, indent: int) -> bool:
        """Record the similarity in a line; return whether it reports one.

        Args:
            number: Line number, from 1.
            line: Normalized line without bullet and indentation.
            indent: Number of spaces before the line.

        Returns:
            True if the line belongs to a report, valid or refused.
        """
        if not line:  # an empty line can separate a table from its total
            return False
        if line.startswith("|") or self._header:
            return self._table(number, line, indent)
        if len(line) > _LONGEST_PROSE:
            return False
        if found := _OF_STEP.fullmatch(line):
            self._of_step = parse_name(found["step"])
            return True
        step = self._described(indent)
        found = _SIMILARITY.fullmatch(line)
        if found is None or step is None:
            return False
        label = found["blocks"].strip()
        try:
            blocks = self._blocks(label)
        except RecipeError:
            return False
        total = percentage(found["total"]) if found["total"] else None
        if (beyond := _beyond_limits([found["total"] or "0"])) is not None:
            self._refuse(number, line, beyond)
            return True
        step.reported = label
        step.expect = Expected(
            blocks,
            total=total,
            metric=found["metric"] or Expected.metric,
            seed=int(found["seed"]) if found["seed"] else Expected.seed,
        )
        return True

    def _blocks(self, label: str) -> tuple[str, ...]:
        """Return the blocks of a label. Labels like `output_blocks` mean only blocks with attention."""
        kind = label.lower().removesuffix("_blocks")
        if self.layout.unet is not None and kind in (self.layout.unet[0], self.layout.unet[2]):
            # The input blocks of such a label include the middle block.
            kinds = ",".join(self.layout.unet[:2]) if kind == self.layout.unet[0] else kind
            return tuple(block for block in self.layout.parse_blocks(kinds) if block in self.layout.attention)
        return self.layout.parse_blocks(label)

    def _table(self, number: int, line: str, indent: int) -> bool:
        """Record a row of blocks, a row of percentages, or their total; return whether the line is one of these."""
        cells = [cell.strip() for cell in line.strip("|").split("|")] if line.startswith("|") else []
        step = self._table_step(indent)
        if (total := _TOTAL.fullmatch(line)) and step is not None and step.expect is not None:
            self._header, self._of_step = (), None
            if (beyond := _beyond_limits([total["total"]])) is not None:
                self._refuse(number, line, beyond)
            else:
                step.expect = replace(step.expect, total=percentage(total["total"]))
            return True
        percents = [_PERCENT.fullmatch(cell) for cell in cells]
        values_found = [found for found in percents if found and (found[2] or float(found[1]) > 1)]
        if cells and self._header and len(cells) == len(self._header) == len(values_found) and step is not None:
            values = dict(zip(self._header, (percentage(found[1]) for found in values_found), strict=True))
            if (beyond := _beyond_limits(found[1] for found in values_found)) is not None:
                self._refuse(number, line, beyond)
                return True
            ordered = {block: values[block] for block in self.layout.blocks if block in values}
            expect = step.expect or Expected(())
            step.expect = replace(expect, blocks=tuple(ordered), similarities=ordered)
            if step.reported is not None:
                self.labels[step.reported] = tuple(ordered)
            return True
        try:
            named = [self.layout.parse_blocks(cell) for cell in cells]
            self._header = tuple(block for (block,) in named)
        except (RecipeError, ValueError):
            self._header = ()
        return bool(cells) and bool(self._header)

    def _table_step(self, indent: int) -> Statement | None:
        named = next((step for step in reversed(self._statements) if step.name == self._of_step), None)
        return named or self._described(indent)

    def _described(self, indent: int) -> Statement | None:
        """Return the formula that a line describes: the last one with less indentation, otherwise the last one."""
        above = (step for step in reversed(self._statements) if step.indent < indent)
        return next(above, self._statements[-1] if self._statements else None)


def _beyond_limits(percentages: Iterable[str]) -> str | None:
    """Return the reason to refuse the first percentage that is not a similarity; None if all are."""
    beyond = next((text for text in percentages if not -1 <= percentage(text) <= 1), None)
    return None if beyond is None else f"{beyond} % is not a similarity; it must be from -100 to 100 %"
