"""How planted sentences become text: contractions, articles, capitals and the marks a user is fond of."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

from bench.data.planted_draw import Draw

_CONTRACTIONS = (
    (r"\b(do|does|did|would|could|should|is|was|has|have|are) not\b", r"\1n't"),
    (r"\bcannot\b", "can't"),
    (r"\bwill not\b", "won't"),
    (r"\bI am(?= \w)", "I'm"),
    (r"\bI would(?= \w)", "I'd"),
    (r"\bI will(?= \w)", "I'll"),
    (r"\bI have(?= (?:had|been|never|recommended|since))", "I've"),
    (r"\b([Ii]t|that|there) is(?= (?!,)\w)", r"\1's"),
    (r"\blet us\b", "let's"),
)
_ARTICLE = re.compile(r"\b([Aa])(?= (?!one\b|use|uni|euro)[aeiou])")


def contract(sentence: str) -> str:
    """Spoken forms: "it's", "don't"."""
    for pattern, short in _CONTRACTIONS:
        sentence = re.sub(pattern, short, sentence)
    return sentence


def fix_articles(sentence: str) -> str:
    """Turns "a" into "an" before a vowel sound."""
    return _ARTICLE.sub(r"\1n", sentence)


def _capital(sentence: str) -> str:
    return sentence[:1].upper() + sentence[1:]


def _mark(sentence: str) -> str:
    return sentence if sentence.endswith("?") else sentence + "."


def _join(sentences: Sequence[str], glue: str, draw: Draw) -> list[str]:
    """Joins one pair of neighbours that are no questions; two pairs in a longer text."""
    result = list(sentences)

    def whole(sentence: str) -> bool:
        return "?" not in sentence and glue not in sentence and not sentence.startswith("P.S.")

    for _ in range(2 if len(result) > 4 else 1):
        pairs = [i for i in range(len(result) - 1) if whole(result[i]) and whole(result[i + 1])]
        if pairs:
            i = draw.pick(pairs)
            result[i : i + 2] = [result[i] + glue + result[i + 1]]
    return result


def _plain(sentences: Sequence[str]) -> list[str]:
    return [_mark(_capital(sentence)) for sentence in sentences]


def _remark(marked: list[str], mark: str, least: int, draw: Draw) -> list[str]:
    """Replaces the full stop of at least `least` sentences, of more by luck."""
    stops = draw.shuffled([i for i, sentence in enumerate(marked) if sentence.endswith(".")])
    chosen = stops[:least] + [i for i in stops[least:] if draw.chance(0.4)]
    return [s[:-1] + mark if i in chosen else s for i, s in enumerate(marked)]


def finish(sentences: Sequence[str], habit: str, emphasis: Sequence[str], side: str, draw: Draw) -> str:
    """Joins sentences into a text with the marks of a punctuation habit.

    `emphasis` are the user's own words, for one who shouts; `side` ("good", "mixed", "bad") picks a smiley.
    """
    if habit == "shouting":
        pattern = re.compile(r"\b(" + "|".join(map(re.escape, emphasis)) + r")\b")
        loud = [pattern.sub(_upper, sentence) for sentence in sentences]
        if loud == list(sentences):
            loud[0] = re.sub(r"\b[a-z]{4,}\b", _upper, loud[0], count=1)
        return " ".join(_plain(loud))
    styles: dict[str, Callable[[], list[str]]] = {
        "semicolon": lambda: _plain(_join(sentences, "; ", draw)),
        "dash": lambda: _plain(_join(sentences, " - ", draw)),
        "exclamation": lambda: _remark(_plain(sentences), "!", 2, draw),
        "ellipsis": lambda: _remark(_plain(sentences), "...", 2, draw),
        "double exclamation": lambda: _remark(_plain(sentences), "!!", 1, draw),
        "smiley": lambda: _smile(_plain(sentences), ":(" if side == "bad" else ":)", draw),
        "parentheses": lambda: _aside(_plain(sentences), draw),
        "lowercase": lambda: [sentence.lower() for sentence in _plain(sentences)],
    }
    return " ".join(styles.get(habit, lambda: _plain(sentences))())


def _upper(match: re.Match[str]) -> str:
    return match.group(0).upper()


def _smile(marked: list[str], face: str, draw: Draw) -> list[str]:
    place = draw.whole(0, len(marked) - 1)
    return [f"{s} {face}" if i in (place, len(marked) - 1) else s for i, s in enumerate(marked)]


def _aside(marked: list[str], draw: Draw) -> list[str]:
    """Puts one sentence into parentheses: not the first, where there is another."""
    place = draw.whole(min(1, len(marked) - 1), len(marked) - 1)
    return [f"({s})" if i == place else s for i, s in enumerate(marked)]
