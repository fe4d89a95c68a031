"""Detectors: does a text show a planted trait? They read the text alone and know nothing of the grammar's tables."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping

Detector = Callable[[str], bool]

_BANDS = {"short": (28, 58), "medium": (59, 84), "long": (85, 140)}
"""Words of a text that count as short, medium and long. Fewer than 28 words show no habit of length."""

_REGISTERS = {
    "formal": r"it must be said|obliged to|upon reflection|in my (considered )?(view|opinion)|would submit|duty to note"
    r"|with regard to|concerning|in respect of|so far as|furthermore|moreover|in addition|bears mentioning",
    "casual": r"\byeah\b|\bgotta\b|\bgonna\b|\bok\b|\bi mean\b|\btbh\b|\byou know\b|, man\b|, like,|\bkinda\b|'cause\b",
    "enthusiast": r"\bwow\b|oh my\b|oh boy|kid you not|hand on heart|people, listen|stay calm|big feelings"
    r"|get me started|get this|wait, there",
    "analytic": r"my notes|\btests\b|for the record|my log\b|sample of|spreadsheet|data point|variable"
    r"|a further finding|checklist",
    "wry": r"naturally|against all odds|nobody's surprise|one (also )?gathers|as fate would|shocking|delicate subject"
    r"|scholars|history will|outdone|as if that were",
    "folksy": r"\breckon\b|well sir|\bfolks\b|by golly|sure as sun|tell you what|mind you",
}

_WORD_NUMBER = r"(?:\d+|two|three|four|five|six|seven|eight|nine|ten|eleven|twelve)"
_SPAN = rf"\b{_WORD_NUMBER} (?:days|weeks|months|years|evenings)\b"
_OPENINGS = {
    "time owned": rf"^(?!.*\b(?:hello|dear|courier)\b).*{_SPAN}(?!.*\?)",
    "short version": r"^(short version|in short|the short of it|in a nutshell|to keep it brief|briefly|bottom line)",
    "why bought": r"\b(bought|needed)\b.*\bfor\b|\bfor\b.*\bbought\b|\bneeded a|so i bought",
    "stars first": r"\b(one|two|three|four|five) stars?\b",
    "question": r"\?",
    "weather": r"\b(raining|rained|snow(ing|ed)?|fog|storm|sun was|hailing|wind was)\b",
    "confession": r"\b(confess|confession|full disclosure)\b",
    "saying": r"\bused to say\b|\balways said\b",
    "courier": r"\b(courier|postman|mail carrier|delivery driver)\b",
    "sceptic": r"did not expect|didn't expect|hopes .* low|doubts?\b|s[ck]eptic",
    "address": r"^dear (fellow|listeners|coffee|players|readers)",
    "diary": r"\bday \d+",
}
_CLOSINGS = {
    "recommendation": r"\brecommend(ed)?\b",
    "buying again": r"\bbuy (it|this|one) again\b",
    "keeping": r"\bit stays\b|\bkeeping it\b|\bgoes back\b|\bsending it back\b",
    "postscript": r"\bp\.\s?s\.",
    "thanks": r"\bthank(s| you) for reading\b",
    "word to makers": r"\bmakers? read",
    "score": r"\b\d+ ?(/|out of) ?10\b",
    "pros and cons": r"\bpros\b.*\bcons\b",
    "gift": r"\bgift\b",
    "update": r"\bupdate\b",
    "toast": r"\bhere(?:'s| is) to\b",
}
_COMPARISONS = {
    "brother": r"\bmy brother\b",
    "older version": r"\bolder version\b|\bfirst edition\b|\bearlier book\b",
    "pricier rival": r"\b(costs (twice|half) as much|pay twice as much|(double|half) the money)\b",
}
_THEMES = {
    "substance": r"sound(?: quality)?|audio|brew|taste|flavour|gameplay|strategy|tactical side|plot|story(?:line)?",
    "ease": r"fit|comfort|padding|cleaning|upkeep|daily rinse|rulebook|learning curve|teaching|prose|writing|language",
    "durability": r"build(?: quality)?|construction|carafe|component quality|cardboard|production|binding|paper"
    r"|physical edition",
    "looks": r"design|look|styling|artwork|illustration|art direction|cover(?: art)?|jacket design",
    "time": r"battery(?: life)?|stamina|brewing time|speed|wait|playing time|pacing|length|tempo",
    "value": r"price(?: tag)?|value for money",
}


def _sentences(text: str) -> list[str]:
    """Rough sentences. Sign-offs and postscripts stay whole because an initial's full stop is no end."""
    return [part for part in re.split(r"(?<=[.!?;)(])\s+(?!:|\()(?<!\bP\.S\. )| - ", text.strip()) if part.strip()]


def _found(pattern: str, where: str) -> bool:
    return re.search(pattern, where, re.IGNORECASE | re.DOTALL) is not None


def _length(value: str, text: str) -> bool:
    least, most = _BANDS[value]
    return least <= len(text.split()) <= most


def _opening(value: str, text: str) -> bool:
    sentences = _sentences(text)
    first = sentences[0] if sentences else ""
    kind, _, place = value.partition(": ")
    if kind == "greeting":
        return _found(rf"\b(hello|greetings)\b.*\b{re.escape(place)}\b", first)
    return _found(_OPENINGS[kind], first)


def _closing(value: str, text: str) -> bool:
    end = " ".join(_sentences(text)[-2:])
    kind, _, own = value.partition(": ")
    if kind == "signature":
        return _found(rf"\b{re.escape(own)}\W*$", text)
    if kind == "pet":
        return _found(rf"\b{re.escape(own)}\b", end)
    return _found(_CLOSINGS[kind], end)


def _comparison(value: str, text: str) -> bool:
    kind, _, own = value.partition(": ")
    return _found(rf"\b{re.escape(own)}\b" if own else _COMPARISONS[kind], text)


def _punctuation(value: str, text: str) -> bool:
    def count(pattern: str) -> int:
        return len(re.findall(pattern, text))

    checks: dict[str, Callable[[], bool]] = {
        "exclamation": lambda: count(r"(?<!!)!(?!!)") >= 2,
        "double exclamation": lambda: count(r"!!") >= 1,
        "ellipsis": lambda: count(r"\.\.\.|…") >= 2,
        "semicolon": lambda: count(r";") >= 1,
        "dash": lambda: count(r"\w,? (?:-|–|--) |—") >= 1,
        "lowercase": lambda: count(r"[a-z]") >= 40 and count(r"[A-Z]") == 0,
        "parentheses": lambda: count(r"\([^()]{8,}\)") >= 1,
        "shouting": lambda: count(r"\b[A-Z][A-Z-]{3,}\b") >= 1,
        "smiley": lambda: count(r"[:;]-?[()]") >= 1,
    }
    return checks[value]()


def _words(value: str, text: str) -> bool:
    return any(_found(rf"(?<![\w-]){re.escape(word)}(?![\w-])", text) for word in value.split(" / "))


def _focus(value: str, text: str) -> bool:
    """Whether the first side of the product that the text names is this one."""
    places = {}
    for theme, nouns in _THEMES.items():
        match = re.search(rf"\b(?:the|its|this|great|good) (?:{nouns})\b", text, re.IGNORECASE)
        if match:
            places[theme] = match.start()
    return value in places and places[value] == min(places.values())


_DETECTORS: dict[str, Callable[[str, str], bool]] = {
    "closing": _closing,
    "comparison": _comparison,
    "focus": _focus,
    "intensifier": lambda value, text: _found(rf"\b{re.escape(value)}\b", text),
    "length": _length,
    "opening": _opening,
    "punctuation": _punctuation,
    "register": lambda value, text: _found(_REGISTERS[value], text),
    "words": _words,
}


def recovered(traits: Mapping[str, str], text: str) -> dict[str, bool]:
    """For each trait that a text can show, whether `text` shows it.

    Plain punctuation is left out: it is the absence of a habit, and every dull text would score on it.
    """
    shown = {name: value for name, value in traits.items() if (name, value) != ("punctuation", "plain")}
    return {name: _DETECTORS[name](value, text) for name, value in sorted(shown.items())}
