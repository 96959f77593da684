"""The words by which texts speak of a merge: keys of numbers, bullets, and what makes a merge another one.

Each is written down here alone, so that lines, labels, remarks, tables and names of steps are read alike.
"""

import re

from optimizer.recipes import NUMBER

__all__ = [
    "BULLET",
    "IS",
    "KEY",
    "KEY_WORDS",
    "MERGES",
    "SAYS_A_VERB",
    "field_of",
    "is_key",
    "is_sentence_word",
    "makes_it_another",
    "names_blocks",
    "says_more",
    "without_bullet",
]

# Words between a name and its formula, instead of a sign.
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
# Words that numbers are given by, with the sign behind them.
KEY = re.compile(
    r"(?<![\w.-])(?:" + "|".join(f"(?P<{kind}>{words})" for kind, words in _WORDS.items()) + r")\s*(?P<sign>[=:])\s*",
    re.IGNORECASE,
)
KEY_WORDS = "|".join(_WORDS.values())
_KEY_ALONE = re.compile(KEY_WORDS, re.IGNORECASE)
# What makes a merge another one than the weighted sum, or difference, that its formula is; wherever it stands.
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
_PART = r"base|unet|u-net|text ?encoder|clip|(?:in|out|mid|input|output|middle)[ _-]?blocks?"  # a VAE is told otherwise
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
# A sentence tells something; names and remarks have no such word.
SAYS_A_VERB = re.compile(r"\b(?:is|are|was|were|has|have|used|can|be|been)\b", re.IGNORECASE)
# In the midst of words without quotation marks they tell that this is a sentence and no name.
_SENTENCE = frozenset((
    "and", "or", "with", "the", "of", "from", "into", "then", "using", "plus", "minus", "times", "to", "by", "for",
    "only", "is", "are", "was", "which", "than", "not", "at", "weight", "ratio", "preset", "via",
))  # fmt: skip


def is_sentence_word(word: str) -> bool:
    """Return whether a word is none of a name that stands without quotation marks."""
    return word.lower() in _SENTENCE


def is_key(text: str) -> bool:
    """Return whether a word is one of those that numbers are given by, such as weights and base_alpha."""
    return _KEY_ALONE.fullmatch(text.strip()) is not None


def field_of(key: str) -> str:
    """Return the field that a key gives: alpha, beta, base_alpha or base_beta, or a numbered one, such as alpha_1."""
    word = key.strip().lower()
    symbol = "beta" if "beta" in word else "alpha"
    if "base" in word:
        return f"base_{symbol}"
    numbered = re.fullmatch(r"(?:alpha|beta)(_?\d{1,2})", word)
    return f"{symbol}{numbered[1]}" if numbered else symbol


def makes_it_another(text: str, *, surely: bool = False) -> str | None:
    """Return the word in a text that makes a merge another one than its formula: "train difference", cosineA, DARE.

    With `surely`, common words such as smooth, which names and remarks may hold, are none.
    """
    found = (_SURELY_OTHERWISE if surely else _OTHERWISE).search(text)
    return None if found is None else found[0]


def names_blocks(text: str) -> str | None:
    """Return the words in a text that speak of some blocks alone, or of numbers for them: "OUT only", "IN 0", MBW."""
    found = _SOME_BLOCKS.search(text)
    return None if found is None else found[0]


def says_more(text: str) -> str | None:
    """Return why words beside a formula, in a remark or a column, make it another merge; None if they do not."""
    if (word := makes_it_another(text)) is not None:
        return f"{word!r} beside it makes it no weighted sum or difference"
    if (words := names_blocks(text)) is not None:
        return f"{words!r} beside it is about some blocks alone; write numbers for all"
    return None


def without_bullet(text: str) -> str:
    """Return a line without the sign or number of a list before it."""
    return BULLET.sub("", text)
