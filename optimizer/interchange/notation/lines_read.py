"""What the lines of a text say, each by itself: statements, numbers, remarks, and lines that are none of these."""

from collections import ChainMap
from collections.abc import Container
from dataclasses import dataclass, field

from optimizer.families import Layout, built_in_presets
from optimizer.interchange.notation.statements import SameAs, Statement
from optimizer.interchange.notation.tables import is_row
from optimizer.interchange.notation.tokens import normalized
from optimizer.interchange.notation.unread import goes_on, mentions, reason
from optimizer.recipes import Model, Preset

__all__ = ["LinesRead", "Rejected"]


@dataclass(frozen=True)
class Rejected:
    """A line that looks like a step, why it is none, and the names that it may define."""

    line: int
    text: str
    why: str
    names: tuple[str, ...] = ()
    remark: bool = False

    def __str__(self) -> str:
        return reason(self.line, self.text, self.why)

    def goes_on_from(self, output: str, last: int) -> bool:
        """Whether the line would make something of a step and other models, and is no remark on it.

        `last` is the line of the text's last step.
        """
        if self.text.startswith("#"):
            return False
        if is_row(self.text):
            return bool(self.names) and not self.remark and mentions(self.text, output)
        return goes_on(
            normalized(self.text), output, remark=self.remark, defines=bool(self.names), below=self.line > last
        )


@dataclass
class LinesRead:
    """What was read of a text, line by line; lines count from 1.

    `statements` are its steps as they stand there, `same` lines with two names and a sign between them, `declared`
    and `models` what it declares, `files` those of models that stand there with a hash or an extension. `rejected`
    lines look like steps and are none, of `passed` ones nothing was read. `orphans` are lines with numbers above
    every formula, and whose; `unread_numbers` lines with numbers that no formula takes, `unread_names` those with
    an arrow that name none; `labelled` presets `name: numbers`, which may be something else; `mixer_lines` those of
    model-mixer's. `notes` are (line, what had to be interpreted), `labels` the blocks that words for them stand
    for.
    """

    layout: Layout
    presets: dict[str, Preset]
    statements: list[Statement] = field(default_factory=list)
    same: list[tuple[int, str, SameAs]] = field(default_factory=list)
    declared: dict[str, str] = field(default_factory=dict)
    models: dict[str, Model] = field(default_factory=dict)
    files: dict[str, str] = field(default_factory=dict)
    rejected: list[Rejected] = field(default_factory=list)
    passed: list[tuple[int, str]] = field(default_factory=list)
    orphans: list[tuple[int, str]] = field(default_factory=list)
    unread_numbers: list[int] = field(default_factory=list)
    unread_names: list[int] = field(default_factory=list)
    labelled: dict[str, tuple[int, str]] = field(default_factory=dict)
    mixer_lines: list[int] = field(default_factory=list)
    notes: list[tuple[int, str]] = field(default_factory=list)
    labels: dict[str, tuple[str, ...]] = field(default_factory=dict)

    @property
    def preset_names(self) -> Container[str]:
        """The names that may stand where the numbers of an alpha do."""
        return ChainMap[str, object](self.presets, dict(built_in_presets()))  # type: ignore[arg-type]

    def reject(self, line: int, text: str, why: str, names: tuple[str, ...] = ()) -> None:
        """Note a line that looks like a step, why it is none, and the names that it may define."""
        self.rejected.append(Rejected(line, text, why, names))
