"""The hidden truth of planted data: items with aspects of known quality, users with a known taste and style."""

from __future__ import annotations

import functools
import tomllib
from dataclasses import dataclass
from importlib import resources
from typing import Any

from bench.data.planted_draw import Draw

THEMES = ("substance", "ease", "durability", "looks", "time", "value")
"""What a user may care about. Every domain has one aspect a theme, so a taste carries over from headsets to novels."""


@functools.cache
def table(name: str) -> dict[str, Any]:
    """The word lists in `planted_<name>.toml` beside this module."""
    return tomllib.loads(resources.files("bench.data").joinpath(f"planted_{name}.toml").read_text("utf-8"))


@dataclass(frozen=True, slots=True)
class Fact:
    """Something true of an item, in several wordings."""

    wordings: tuple[str, ...]
    """Clauses; `{n}` is a number and `{N}` the same number, hedged."""
    least: int
    """The number at middling quality; `most` at extreme quality."""
    most: int

    @classmethod
    def parse(cls, text: str) -> Fact:
        """Reads "least,most @ wording | wording"; a fact without a number has no part before the wordings."""
        numbers, at, wordings = text.rpartition(" @ ")
        least, most = numbers.split(",") if at else ("0", "0")
        return cls(tuple(w.strip() for w in wordings.split("|")), int(least), int(most))

    def number(self, extremity: float) -> int:
        """The number at `extremity` in [0, 1]: how far the quality is from middling."""
        return int(self.least + extremity * (self.most - self.least) + 0.5)


@dataclass(frozen=True, slots=True)
class Aspect:
    """One side of a kind of product."""

    theme: str
    nouns: tuple[str, ...]
    features: tuple[str, ...]
    facts: tuple[tuple[Fact, ...], tuple[Fact, ...]]
    """Bad ones, then good ones: indexed by whether the quality is good."""


@dataclass(frozen=True)
class Domain:
    """One kind of product."""

    words: dict[str, Any]
    """Its names and lists, as in the file."""
    aspects: dict[str, Aspect]
    """Theme -> aspect."""

    @property
    def kind(self) -> str:
        """What a reviewer calls such a thing: "headset"."""
        return str(self.words["kind"])


@functools.cache
def domains() -> tuple[Domain, ...]:
    """All kinds of product there are."""

    def aspect(raw: dict[str, Any]) -> Aspect:
        bad, good = (tuple(Fact.parse(text) for text in raw[side]) for side in ("bad", "good"))
        return Aspect(raw["theme"], tuple(raw["nouns"]), tuple(raw["features"]), (bad, good))

    return tuple(Domain(raw, {a["theme"]: aspect(a) for a in raw["aspect"]}) for raw in table("domains")["domain"])


@dataclass(frozen=True, slots=True)
class Truthful:
    """What is true of one aspect of one item."""

    quality: float
    fact: int
    """Which of the facts on its side holds."""


@dataclass(frozen=True)
class Item:
    """One product."""

    id: str
    domain: Domain
    name: str
    """How reviews call it."""
    title: str
    description: str
    aspects: dict[str, Truthful]
    """Theme -> what is true."""


@dataclass(frozen=True, slots=True)
class Style:
    """How a user writes: one value a habit."""

    length: str
    register: str
    opening: str
    closing: str
    punctuation: str
    comparison: str
    intensifier: str
    words: str
    """Word of praise and word of blame, as "praise / blame"."""
    own: dict[str, str]
    """The user's very own words for those habits that have some: habit -> name of a town, a person, a pet."""
    title_form: int
    """Picks the form of the user's titles."""
    purpose: int
    """Picks what the user wants each kind of product for."""


@dataclass(frozen=True, slots=True)
class User:
    """One reviewer."""

    id: str
    focus: str
    """The theme that matters most: talked about first."""
    taste: tuple[float, ...]
    """Weights over `THEMES`, all above zero."""
    leniency: float
    style: Style

    def traits(self) -> dict[str, str]:
        """Name -> value of everything that shows in this user's texts."""
        style = self.style
        values = {
            "closing": style.closing,
            "comparison": style.comparison,
            "focus": self.focus,
            "intensifier": style.intensifier,
            "length": style.length,
            "opening": style.opening,
            "punctuation": style.punctuation,
            "register": style.register,
            "words": style.words,
        }
        return {
            trait: f"{value}: {style.own[trait]}" if trait in style.own else value for trait, value in values.items()
        }


def _names(domain: Domain, count: int, draw: Draw) -> list[str]:
    """Distinct bare names; past the last combination they go on with a number."""
    pairs = draw.shuffled([f"{a} {b}" for a in domain.words["first"] for b in domain.words["second"]])
    return [pairs[i % len(pairs)] + (f" Mark {i // len(pairs) + 1}" if i >= len(pairs) else "") for i in range(count)]


def _describe(domain: Domain, name: str, maker: str, draw: Draw) -> str:
    """One to three sentences of a seller, on some of the aspects and whatever their quality."""
    features = [draw.pick(domain.aspects[theme].features) for theme in draw.shuffled(THEMES)]
    leads = [
        f"A {domain.kind} from {maker}, known for {features[0]} and {features[1]}.",
        f"With {name}, {maker} offers {features[0]} and {features[1]}.",
        f"{maker} presents a {domain.kind} that boasts {features[0]}, {features[1]} and {features[4]}.",
    ]
    more = ["", f" Also expect {features[2]}.", f" It comes with {features[2]}. {maker} promises {features[3]}."]
    return draw.pick(leads) + draw.pick(more)


def build_items(seed: int, count: int) -> list[Item]:
    """`count` items, spread evenly over the domains."""
    kinds = domains()
    names = [_names(d, -(-count // len(kinds)), Draw(seed, "names", d.kind)) for d in kinds]
    width = max(3, len(str(count - 1)))
    return [
        _item(
            f"item{i:0{width}d}", kinds[i % len(kinds)], names[i % len(kinds)][i // len(kinds)], Draw(seed, "item", i)
        )
        for i in range(count)
    ]


def _item(item_id: str, domain: Domain, bare: str, draw: Draw) -> Item:
    maker = draw.pick(domain.words["makers"])
    name = domain.words["name"].format(bare=bare)
    title = domain.words["title"].format(bare=bare, maker=maker)
    level = draw.uniform(0.2, 1.0)
    aspects = {}
    for theme in THEMES:
        quality = min(1.0, max(0.0, level + draw.uniform(-0.4, 0.4)))
        facts = domain.aspects[theme].facts[quality >= 0.5]
        aspects[theme] = Truthful(quality, draw.whole(0, len(facts) - 1))
    return Item(item_id, domain, name, title, _describe(domain, name, maker, draw), aspects)


def _own(habits: dict[str, str], draw: Draw) -> dict[str, str]:
    own = table("phrases")["own"]
    words = {}
    if habits["opening"] == "greeting":
        words["opening"] = draw.pick(own["greeting"])
    if habits["closing"] == "signature":
        words["closing"] = draw.pick(own["signature"])
    if habits["closing"] == "pet":
        words["closing"] = f"{draw.pick(own['pet_kind'])} {draw.pick(own['pet_name'])}"
    if habits["comparison"] == "person":
        gender = draw.pick(("she", "he"))
        words["comparison"] = f"{draw.pick(own[gender + '_kind'])} {draw.pick(own[gender + '_name'])}"
    return words


def _style(rarity: float, draw: Draw) -> Style:
    """Each habit comes from its rare values with chance `rarity`, else from its common ones."""
    habits: dict[str, str] = {}
    for habit, values in table("phrases")["habits"].items():
        if isinstance(values, list):
            habits[habit] = draw.pick(values)
        else:
            rare, common = draw.pick(values["rare"]), draw.pick(values["common"])
            habits[habit] = rare if draw.chance(rarity) else common
    return Style(**habits, own=_own(habits, draw), title_form=draw.whole(0, 99), purpose=draw.whole(0, 99))


def build_users(seed: int, count: int, rarity: float) -> list[User]:
    """`count` users. Taste does not depend on `rarity`, style does."""
    width = max(3, len(str(count - 1)))
    users = []
    for i in range(count):
        draw = Draw(seed, "taste", i)
        focus = draw.whole(0, len(THEMES) - 1)
        taste = [draw.uniform(0.3, 1.3) for _ in THEMES]
        taste[focus] = draw.uniform(2.5, 4.0)
        style = _style(rarity, Draw(seed, "style", i))
        users.append(User(f"user{i:0{width}d}", THEMES[focus], tuple(taste), draw.uniform(-0.15, 0.2), style))
    return users
