"""Removes comments from lines, and refuses comments that may change the merge."""

import re

from optimizer.interchange.notation.tokens import masked
from optimizer.interchange.notation.wording import why_merge_changes

__all__ = ["refusal_of_comment", "without_comment"]

# In `Mix #1 = ...`, the # belongs to the name.
_COMMENT = re.compile(r"\s(?:#(?!\d{1,3}\s*[=:<→-])|//)")
_STEP = re.compile(r"(?<![\w.])(?:then|plus|and)\b|[=+*@←→⇐⇒]|<-|->|(?<!\w)[xX](?!\w)")


def without_comment(text: str) -> tuple[str, str]:
    """Split a normalized line into its text and its comment, '' if it has none."""
    found = _COMMENT.search(masked(text))
    return (text, "") if found is None else (text[: found.start()].rstrip(), text[found.start() :].strip(" #/"))


def refusal_of_comment(comment: str, *, has_numbers: bool) -> str | None:
    """Return why a comment may change the step before it; None if it does not.

    Args:
        comment: The comment without its sign.
        has_numbers: Whether the formula has its numbers; otherwise a number in the comment may be its weight.

    Returns:
        The reason for refusing the line, or None.
    """
    if (why := why_merge_changes(comment)) is not None:
        return why
    if not re.search(r"\d", comment):
        return None
    if _STEP.search(comment):
        return f"the comment {comment!r} may be a step; give it a line of its own"
    return None if has_numbers else f"the formula has no number, and the comment {comment!r} may be it"
