"""Trait detectors against the generator itself, against dull texts and against texts written by hand."""

from __future__ import annotations

import collections
import statistics

import pytest

from bench.data.planted import PlantedConfig, PlantedSource
from bench.data.planted_traits import recovered
from bench.data.tables import RawTables
from bench.types import Truth

GENERIC = (
    "",
    "This is a good product. I like it.",
    "Great! I really love this product! It works very well and I would recommend it to everyone!",
    "The product arrived on time and it does what it says on the box. I have no complaints so far and it works as "
    "described. It is okay overall and I think that other customers will be happy with their purchase too.",
)


def load(config: PlantedConfig) -> tuple[RawTables, Truth]:
    tables = PlantedSource(config).load()
    assert tables.truth is not None
    return tables, tables.truth


def detector_rates(
    config: PlantedConfig,
) -> tuple[dict[tuple[str, str], list[bool]], dict[tuple[str, str], list[bool]]]:
    """(trait, kind of value) -> hits on own texts, and hits on texts of users with another value of the trait."""
    tables, truth = load(config)
    users = sorted({r.user_id for r in tables.reviews})
    own: dict[tuple[str, str], list[bool]] = collections.defaultdict(list)
    strange: dict[tuple[str, str], list[bool]] = collections.defaultdict(list)
    for row, r in enumerate(tables.reviews):
        mine = truth.traits(r.user_id)
        for trait, hit in truth.recovered(r.user_id, r.text).items():
            own[trait, mine[trait].partition(":")[0]].append(hit)
        for step in (1, 7, 23):
            theirs = truth.traits(users[(row + step * 11) % len(users)])
            for trait, hit in recovered(theirs, r.text).items():
                if theirs[trait] != mine[trait]:
                    strange[trait, theirs[trait].partition(":")[0]].append(hit)
    return own, strange


@pytest.mark.parametrize("rarity", [0.0, 0.5, 1.0])
def test_detectors_find_planted_traits_and_little_else(rarity: float) -> None:
    """Without noise: at least 95 % on own texts and at most 5 % on texts of others, for each value of each trait."""
    own, strange = detector_rates(PlantedConfig(seed=3, noise=0, style_rarity=rarity))
    assert {trait for trait, _ in own} == {
        "closing", "comparison", "focus", "intensifier", "length", "opening", "punctuation", "register", "words"
    }  # fmt: skip
    for key, hits in own.items():
        assert statistics.mean(hits) >= 0.95, key
    for key, hits in strange.items():
        assert statistics.mean(hits) <= 0.05 or len(hits) < 20, key


def test_generic_texts_recover_little() -> None:
    world, truth = load(PlantedConfig())
    users = sorted({r.user_id for r in world.reviews})
    for text in GENERIC:
        share = statistics.mean(statistics.mean(truth.recovered(u, text).values()) for u in users)
        assert share <= (0.0 if not text else 0.2), text


def test_detectors_take_words_that_the_grammar_never_writes() -> None:
    """Hand-written texts, so that the detectors are not tied to the generator's wording alone."""
    cases = [
        ("punctuation", "ellipsis", "Well… it works… somehow."),
        ("punctuation", "dash", "It broke — twice."),
        ("punctuation", "lowercase", "i write like this because capitals are for people with too much time"),
        ("punctuation", "shouting", "This thing is HUGE."),
        ("opening", "question", "Who needs this? Me."),
        ("opening", "weather", "It snowed when I went to fetch it. Fine otherwise."),
        ("closing", "score", "Fine. I give it 7/10."),
        ("closing", "signature: Otto", "All good. Best wishes from Otto!"),
        ("comparison", "brother", "Unlike my brother, I care about sound."),
        ("focus", "time", "The battery is fine and the sound is too."),
        ("register", "casual", "Yeah no, I'm gonna return this."),
        ("words", "top-notch / shoddy", "A top-notch thing."),
        ("intensifier", "properly", "It is properly loud."),
    ]
    for trait, value, text in cases:
        assert recovered({trait: value}, text) == {trait: True}, (trait, value)
        assert recovered({trait: value}, "Nothing to see here today.") == {trait: False}, (trait, value)
    assert recovered({"punctuation": "plain"}, "Fine.") == {}
    assert recovered({"focus": "substance"}, "The battery is fine and the sound is too.") == {"focus": False}
    assert recovered({"words": "solid / weak"}, "A solidly made weakling.") == {"words": False}


def test_noise_lowers_trait_recovery_in_step() -> None:
    def recovery(noise: float) -> float:
        tables, truth = load(PlantedConfig(users=40, noise=noise))
        return statistics.mean(statistics.mean(truth.recovered(r.user_id, r.text).values()) for r in tables.reviews)

    assert recovery(0.0) >= 0.98
    assert recovery(0.2) == pytest.approx(0.8, abs=0.05)
    assert recovery(1.0) <= 0.15
