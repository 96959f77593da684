"""The layout of a model by the names and shapes of its tensors, and messages about models without one."""

from collections.abc import Mapping, Sequence

from optimizer.checkpoints.kinds import FileKind, kind_of, shown_name
from optimizer.families import Layout, detect_layout, layout_names, load_layout

__all__ = ["describe_misfit", "kind_and_layout", "layout_of"]

_MOST_TITLES = 2  # in a message; more layouts are listed by their names


def kind_and_layout(
    shapes: Mapping[str, tuple[int, ...]], metadata: Mapping[str, str], *, file_name: str = ""
) -> tuple[FileKind | None, Layout | None]:
    """Return the kind of a model and its layout, each None if unknown.

    Args:
        shapes: Shapes of the tensors by stored name.
        metadata: Texts stored beside the tensors.
        file_name: Name of the file; it identifies parts of a model that was saved in several files.

    Returns:
        Kind and layout.
    """
    kind = kind_of(shapes, metadata=metadata, file_name=file_name)
    return kind, layout_of(kind, list(shapes))


def layout_of(kind: FileKind | None, stored_names: Sequence[str], expected: Layout | None = None) -> Layout | None:
    """Return the layout of a model of this kind with these names.

    Args:
        kind: Kind of the model, if known.
        stored_names: Stored names of its tensors.
        expected: The only layout to accept. Default: any known one.

    Returns:
        The layout; None if the model does not have it.
    """
    if kind is None:
        known = detect_layout(stored_names) if expected is None else expected
    else:
        known = load_layout(kind.layout) if kind.layout in layout_names() else None
    if known is None or (expected is not None and known.name != expected.name):
        return None
    return known if known.missing({known.canonical(name) for name in stored_names}) is None else None


def describe_misfit(kind: FileKind | None, stored_names: Sequence[str], expected: Sequence[Layout]) -> str:
    """Return the predicate of a message about a model with none of the expected layouts.

    Args:
        kind: Kind of the model, if known.
        stored_names: Stored names of its tensors.
        expected: The accepted layouts, at least one.

    Returns:
        The kind or the first names, and the checkpoints that are accepted.
    """
    needed = (
        " or ".join(f"{layout.title} (layout {layout.name})" for layout in expected)
        if len(expected) <= _MOST_TITLES
        else f"one of the layouts {', '.join(layout.name for layout in expected)}"
    )
    named = next((layout for layout in expected if kind is not None and kind.layout == layout.name), None)
    reasons = {layout.name: layout.missing({layout.canonical(name) for name in stored_names}) for layout in expected}
    if kind is None:
        first = ", ".join(map(shown_name, stored_names[:2])) + (" ..." if len(stored_names) > 2 else "")
        why = reasons[expected[0].name] if len(expected) == 1 else None
        return f"is none of the kinds of file that blockfit knows (holds {first}); must be a checkpoint of {needed}" + (
            f", but it {why}" if why else ""
        )
    why = reasons[named.name] if named is not None and kind.whole else None
    if named is not None and why is not None:
        if kind.misnamed:
            return f"is {kind}; {kind.advice}"
        # Its UNet is of the right family.
        needed = f"whole and of no other family (layout {named.name})"
        return "; ".join(part for part in (f"is {kind}, but {why}; must be {needed}", kind.advice) if part)
    own = layout_of(kind, stored_names)
    what = f"is {kind}" if own is None else f"is {kind}, layout {own.name}"
    return "; ".join(part for part in (what, f"must be a checkpoint of {needed}", kind.advice) if part)
