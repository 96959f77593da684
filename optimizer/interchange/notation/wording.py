"""The vocabulary of merges in texts: keys of numbers, bullets, and words that change a merge.

All other modules take these words from here, so that lines, labels, remarks, tables and names are read consistently.
"""

import re

from optimizer.recipes import NUMBER

__all__ = [
    "BULLET",
    "HAS_VERB",
    "IS",
    "KEY",
    "KEY_WORDS",
    "MERGES",
    "field_of",
    "is_key",
    "is_sentence_word",
    "makes_it_another",
    "names_blocks",
    "why_merge_changes",
    "without_bullet",
]

# Words that can replace the sign between a name and its formula.
IS = re.compile(r"\s(?:is|equals|becomes|gives|makes)\s", re.IGNORECASE)
BULLET = re.compile(
    r"^\s*(?:>\s*)*(?:(?:[•◦▪●○■□‣·*+-]|[☀-➿⬛⬜⭐\U0001f300-\U0001faff]\ufe0f?|#?\d{1,3}[.)]|#\d{1,3}|\(\d{1,3}\)|\[\d{1,3}\]"
    r"|[A-Za-z]\))\s+)?"
)
_SYMBOL = r"(?:alpha|beta)"
_WORDS = {
    "base": rf"base[ _-]?{_SYMBOL}|{_SYMBOL}[ _-]base",
    "weights": (
        rf"(?:(?:mbw|block)[ _-]?)?weights?(?:[ _-]?{_SYMBOL})?|{_SYMBOL}[ _-]weights?|mbw(?:[ _-]{_SYMBOL})?"
        r"|(?:(?:merge|mix|mixing)[ _-])?ratio|multiplier(?:\s?\(m\))?|比率|割合|配合率"
    ),
    "symbol": rf"{_SYMBOL}(?:_?\d{{1,2}})?",
}
# Keys of numbers, with the sign after them.
KEY = re.compile(
    r"(?<![\w.-])(?:" + "|".join(f"(?P<{kind}>{words})" for kind, words in _WORDS.items()) + r")\s*(?P<sign>[=:])\s*",
    re.IGNORECASE,
)
KEY_WORDS = "|".join(_WORDS.values())
_KEY_ALONE = re.compile(KEY_WORDS, re.IGNORECASE)
# Words that always mean a merge other than the weighted sum or difference of its formula.
_SURELY = (
    r"train(?:ed|ing)?[ _-]?diff|cosine[ _-]?[ab]\b|smooth[ _-]?add|(?<![a-z])(?:tensor[12]|rebasin|dare|ties|slerp"
    r"|elemental|calc[ _-]?mode|self[ _-]merge)(?![a-z])"
    r"|(?<![a-z])adjust\s?[:=](?=[^:=]*[1-9])|(?<![<a-z])lora\s?[:=](?=\s?\S)"
)
_SURELY_OTHERWISE = re.compile(_SURELY, re.IGNORECASE)
_OTHERWISE = re.compile(
    rf"{_SURELY}|(?<![a-z])(?:train|smooth|tensor|self|geometric|distribution|extract|trim|clamp)(?![a-z])",
    re.IGNORECASE,
)
_BLOCK = (
    r"base|in(?:puts?)?|out(?:puts?)?|mid(?:dle)?|m|unet|u-net|text ?encoder|clip|te|vae|encoder|decoder|attention|attn"
)
# Without the VAE, which remarks mention for other reasons.
_PART = r"base|unet|u-net|text ?encoder|clip|(?:in|out|mid|input|output|middle)[ _-]?blocks?"
_SOME_BLOCKS = re.compile(
    rf"(?<!\w)(?:(?:{_BLOCK}|(?:in|out|m|mi)\d\d)(?:[ _-]?blocks?)?(?:\s*[-~/,&+]\s*(?:in|out)?\d*)*\s+only"
    rf"|only\s+(?:the\s+)?(?:{_BLOCK}|(?:in|out|m|mi)\d\d)(?![a-z])|(?:in|out)\d\d|m00|mi00|mbw"
    rf"|(?:except|without|excluding|not?|all but)\s+(?:the\s+|in\s+)?(?:{_PART}|(?:in|out|m|mi)\d\d)(?![a-z])"
    rf"|(?:{_PART})\s+(?:of|from)(?![a-z])|block[ -]?(?:weights?|merged?)|blocks?\s+only|(?:exclude|include)\s*(?=[:=])"
    rf"|(?:base|in|out|mid)\s*[:=]?\s*{NUMBER})(?!\w)",
    re.IGNORECASE,
)
MERGES = re.compile(
    r"\b(?:re)?(?:merg|mix|blend|combin)(?:e|es|ed|ing)?\b|\badd(?:ed|ing)?\b|マージ|混ぜ|合成", re.IGNORECASE
)
# Verbs occur in sentences, but not in names and remarks.
HAS_VERB = re.compile(r"\b(?:is|are|was|were|has|have|used|can|be|been)\b", re.IGNORECASE)
# Words of sentences, which unquoted names do not contain.
_SENTENCE = frozenset((
    "and", "or", "with", "the", "of", "from", "into", "then", "using", "plus", "minus", "times", "to", "by", "for",
    "only", "is", "are", "was", "which", "than", "not", "at", "weight", "ratio", "preset", "via",
))  # fmt: skip


def is_sentence_word(word: str) -> bool:
    """Return whether a word belongs to sentences, so that an unquoted name cannot contain it."""
    return word.lower() in _SENTENCE


def is_key(text: str) -> bool:
    """Return whether a text is a key of numbers, for example weights or base_alpha."""
    return _KEY_ALONE.fullmatch(text.strip()) is not None


def field_of(key: str) -> str:
    """Return the field of a key: alpha, beta, base_alpha, base_beta, or a numbered one like alpha_1."""
    word = key.strip().lower()
    symbol = "beta" if "beta" in word else "alpha"
    if "base" in word:
        return f"base_{symbol}"
    numbered = re.fullmatch(r"(?:alpha|beta)(_?\d{1,2})", word)
    return f"{symbol}{numbered[1]}" if numbered else symbol


def makes_it_another(text: str, *, surely: bool = False) -> str | None:
    """Return a word that means a merge other than its formula: "train difference", cosineA, DARE; None without one.

    Args:
        text: Words beside a formula or a method.
        surely: Whether to ignore common words like smooth, which names and remarks can contain.

    Returns:
        The first such word, or None.
    """
    found = (_SURELY_OTHERWISE if surely else _OTHERWISE).search(text)
    return None if found is None else found[0]


def names_blocks(text: str) -> str | None:
    """Return words about only some blocks or their numbers: "OUT only", "IN 0", MBW; None if the text has none."""
    found = _SOME_BLOCKS.search(text)
    return None if found is None else found[0]


def why_merge_changes(text: str) -> str | None:
    """Return why words beside a formula, in a remark or a column, change its merge; None if they do not."""
    if (word := makes_it_another(text)) is not None:
        return f"{word!r} means a merge that is not a weighted sum or difference"
    if (words := names_blocks(text)) is not None:
        return f"{words!r} is about some blocks alone; write numbers for all"
    return None


def without_bullet(text: str) -> str:
    """Return a line without its bullet or list number."""
    return BULLET.sub("", text)
