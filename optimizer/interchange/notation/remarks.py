"""What is cut off a line before it is read, comments above all: it must not say anything of the merge."""

import re

from optimizer.interchange.notation.tokens import masked
from optimizer.interchange.notation.wording import says_more

__all__ = ["said_in_comment", "without_comment"]

# `Mix #1 = ...` is a name.
_COMMENT = re.compile(r"\s(?:#(?!\d{1,3}\s*[=:<→-])|//)")
_STEP = re.compile(r"(?<![\w.])(?:then|plus|and)\b|[=+*@←→⇐⇒]|<-|->|(?<!\w)[xX](?!\w)")


def without_comment(text: str) -> tuple[str, str]:
    """Return a line of normalized text without the comment behind it, and that comment."""
    found = _COMMENT.search(masked(text))
    return (text, "") if found is None else (text[: found.start()].rstrip(), text[found.start() :].strip(" #/"))


def said_in_comment(comment: str, *, has_numbers: bool) -> str | None:
    """Return why a comment says more of a step than its formula, which `has_numbers` or not; None if it does not."""
    if (why := says_more(comment)) is not None:
        return why
    if not re.search(r"\d", comment):
        return None
    if _STEP.search(comment):
        return f"the comment {comment!r} may be a step; give it a line of its own"
    return None if has_numbers else f"the formula has no number, and the comment {comment!r} may be it"
