"""Style in numbers: function words, punctuation, length and readability of a text."""

from __future__ import annotations

import math
import re
from collections import Counter

# fmt: off
FUNCTION_WORDS = (
    "a", "all", "also", "an", "and", "any", "are", "as", "at", "be", "been", "but", "by", "can", "do", "down",
    "even", "every", "for", "from", "had", "has", "have", "her", "his", "if", "in", "into", "is", "it", "its",
    "may", "more", "must", "my", "no", "not", "now", "of", "on", "one", "only", "or", "our", "shall", "should",
    "so", "some", "such", "than", "that", "the", "their", "then", "there", "things", "this", "to", "up", "upon",
    "was", "were", "what", "when", "which", "who", "will", "with", "would", "your",
)
# fmt: on
"""The 70 function words with which Mosteller and Wallace told the authors of the Federalist papers apart (1964)."""
MARKS = (".", ",", ";", ":", "!", "?", "-", "(", '"', "'", "...", "*")
"""Punctuation that is counted; three full stops in a row are one mark of their own, as is the character for them."""

_WORD = re.compile(r"[^\W_]+(?:'[^\W_]+)*")
_SENTENCE_END = re.compile(r"[.!?]+(?=\s|$|[\"')\]])")
_VOWELS = re.compile(r"[aeiouy]+")
_SILENT_E = re.compile(r"[^aeiouy](?<!l)e$|[aeiouy]le$")
_SILENT_ED = re.compile(r"[^aeiouydt]ed$")
_SILENT_ES = re.compile(r"[^aeiouyszxcgh]es$")
_TYPOGRAPHIC = str.maketrans({"’": "'", "‘": "'", "“": '"', "”": '"', "–": "-", "—": "-", "…": "\0"})

GROUPS = {
    "function words": len(FUNCTION_WORDS),
    "punctuation": len(MARKS) + 1,
    "length": 3,
    "readability": 1,
}
"""Group -> how many of a text's features, in their order, are in it."""


def features(text: str) -> list[float]:
    """Function words and marks per word, capitals per letter; words, words per sentence, letters per word; Flesch.

    Text length and sentence length as logarithms: twice as long is as far as half as long. Zeros for a text without
    words.
    """
    plain = text.translate(_TYPOGRAPHIC).replace("...", "\0")
    words = words_of(plain)
    if not words:
        return [0.0] * sum(GROUPS.values())
    count, counts = len(words), Counter(word.lower() for word in words)
    letters = sum(map(len, words))
    sentences = sentence_count(plain)
    capitals = sum(map(str.isupper, plain)) / max(1, sum(map(str.isalpha, plain)))
    return [
        *(counts[word] / count for word in FUNCTION_WORDS),
        *(plain.count("\0" if mark == "..." else mark) / count for mark in MARKS),
        capitals,
        math.log(count),
        math.log(count / sentences),
        letters / count,
        flesch(count, sentences, sum(map(syllables, words))),
    ]


def words_of(text: str) -> list[str]:
    """Runs of letters and digits, with apostrophes inside."""
    return _WORD.findall(text)


def sentence_count(text: str) -> int:
    """Places where a sentence ends, at least one: full stop, exclamation or question mark before a space or the end."""
    ends = _SENTENCE_END.findall(text.replace("\0", "..."))
    return max(1, len(ends))


def syllables(word: str) -> int:
    """Syllables of an English word, by its groups of vowels without a silent e; at least one."""
    lower = re.sub(r"[^a-z]", "", word.lower())
    silent = _SILENT_E.search(lower) or _SILENT_ED.search(lower) or _SILENT_ES.search(lower)
    groups = len(_VOWELS.findall(lower)) - bool(silent)
    return max(1, groups)


def flesch(words: int, sentences: int, syllable_count: int) -> float:
    """Reading ease: 206.835 - 1.015 words / sentences - 84.6 syllables / words (Flesch 1948); high is easy."""
    return 206.835 - 1.015 * words / sentences - 84.6 * syllable_count / words
