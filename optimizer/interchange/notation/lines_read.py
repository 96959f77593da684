"""The result of reading a text line by line: statements, numbers, notes, and lines not understood."""

from collections import ChainMap
from collections.abc import Container
from dataclasses import dataclass, field

from optimizer.families import Layout, built_in_presets
from optimizer.interchange.notation.statements import SameAs, Statement
from optimizer.interchange.notation.tables import is_row
from optimizer.interchange.notation.tokens import normalized
from optimizer.interchange.notation.unread import continues_step, mentions, reason
from optimizer.recipes import Model, Preset

__all__ = ["LinesRead", "Rejected"]


@dataclass(frozen=True)
class Rejected:
    """A line that looks like a step but is not one, with the reason and the names that it may define.

    `remark` is True for lines that were first passed over as prose.
    """

    line: int
    text: str
    why: str
    names: tuple[str, ...] = ()
    remark: bool = False

    def __str__(self) -> str:
        return reason(self.line, self.text, self.why)

    def continues_from(self, output: str, last: int) -> bool:
        """Return whether the line would merge a step with other models, rather than comment on it.

        Args:
            output: Name of the step.
            last: Line number of the text's last step, from 1.

        Returns:
            True if the recipe may lack a step that begins with `output`.
        """
        if self.text.startswith("#"):
            return False
        if is_row(self.text):
            return bool(self.names) and not self.remark and mentions(self.text, output)
        return continues_step(
            normalized(self.text), output, remark=self.remark, defines=bool(self.names), below=self.line > last
        )


@dataclass
class LinesRead:
    """The contents of a text, line by line. Line numbers count from 1.

    Attributes:
        layout: Layout that defines the blocks.
        presets: Presets by name.
        statements: Steps as written.
        same: Lines with two names and a sign between them, each with its number and text.
        declared: Declared values: recipe, layout, mapping, output, vae.
        models: Declared models by name.
        files: Files by model name, for models written with a hash or an extension.
        rejected: Lines that look like steps but are not valid.
        passed: Lines read as prose, each with its number.
        orphans: Lines with numbers above every formula that takes them, each with the symbol.
        unread_numbers: Lines with numbers that no formula takes.
        unread_names: Lines with an arrow and a name that no formula takes.
        labelled: Presets written as `name: numbers`, each with its line; they can also be a step's numbers.
        mixer_lines: Lines written by model-mixer.
        notes: Interpretations, each with its line.
        labels: Blocks by label, for labels like output_blocks in reported similarities.
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
        """Names that can replace the numbers of an alpha."""
        return ChainMap[str, object](self.presets, dict(built_in_presets()))  # type: ignore[arg-type]

    def reject(self, line: int, text: str, why: str, names: tuple[str, ...] = ()) -> None:
        """Record a line that looks like a step but is not one.

        Args:
            line: Line number, from 1.
            text: The line.
            why: The reason for rejecting it.
            names: Names that it may define.
        """
        self.rejected.append(Rejected(line, text, why, names))
