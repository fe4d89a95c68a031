"""The grammar that turns a user, an item and a rating into a review, sentence by sentence."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from bench.data.planted_draw import Draw
from bench.data.planted_punctuation import contract, finish, fix_articles
from bench.data.planted_world import THEMES, Item, User, table

BANDS = {"short": (36, 56), "medium": (60, 82), "long": (88, 122)}
"""Fewest and most words of a review, by length habit."""
HABITS = ("length", "opening", "closing", "punctuation", "comparison", "intensifier", "words", "focus", "register")
NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve")


def number_word(number: int) -> str:
    """A number as a review writes it: in letters up to twelve."""
    return NUMBERS[number] if number < len(NUMBERS) else str(number)


def true_score(user: User, item: Item) -> float:
    """The rating in stars before noise and rounding: quality weighted by taste, shifted by leniency."""
    liked = sum(weight * item.aspects[theme].quality for weight, theme in zip(user.taste, THEMES, strict=True))
    return 1.0 + 4.0 * (liked / sum(user.taste) + user.leniency)


class _Slots(dict[str, str]):
    """Values for a template's slots, drawn when first asked for."""

    def __init__(self, writer: Writer, given: dict[str, str]) -> None:
        super().__init__(given)
        self._writer = writer

    def __missing__(self, slot: str) -> str:
        self[slot] = value = self._writer.slot(slot)
        return value


class Writer:
    """One review in the making: draws from `draw`, leaves out each habit with chance `noise`."""

    def __init__(self, user: User, item: Item, rating: int, noise: float, draw: Draw) -> None:
        self.user, self.item, self.rating, self.noise, self.draw = user, item, rating, noise, draw
        self.phrases = table("phrases")
        self.used: set[str] = set()
        self.kept = {habit for habit in HABITS if not draw.chance(noise)}
        self.side = "good" if rating >= 4 else "mixed" if rating == 3 else "bad"
        self.pet = dict(zip((True, False), user.style.words.split(" / "), strict=True))

    def slot(self, slot: str) -> str:
        """A fresh value for a slot of a template; it may hold slots itself."""
        draw, words = self.draw, self.item.domain.words
        if slot in self.phrases["slots"]:
            return str(draw.pick(self.phrases["slots"][slot]))
        if slot in ("rival", "reader"):
            return str(draw.pick(words[slot + "s"]))
        match slot:
            case "purpose":
                return str(words["purposes"][self.user.style.purpose % len(words["purposes"])])
            case "name":
                return self.item.name
            case "n":
                return number_word(draw.whole(2, 9))
            case "days":
                return str(draw.whole(9, 99))
            case "span":
                return f"{number_word(draw.whole(2, 11))} {draw.pick(('weeks', 'months', 'days', 'evenings'))}"
            case "stars":
                return "one star" if self.rating == 1 else f"{number_word(self.rating)} stars"
            case "score":
                return str(2 * self.rating - draw.whole(0, 1))
            case "home":
                return str(draw.pick(words["home"]))
            case "verdict":
                return str(draw.pick(self.phrases["verdict"][self.side]))
            case "pro" | "con":
                best = (max if slot == "pro" else min)(THEMES, key=lambda t: self.item.aspects[t].quality)
                return draw.pick(self.item.domain.aspects[best].nouns)
            case _:
                return str(words[slot])

    def fill(self, template: str, **given: str) -> str:
        """A template with its slots filled, inner ones included."""
        slots = _Slots(self, given)
        while "{" in template:
            template = template.format_map(slots)
        return template

    def habit(self, part: str, habit: str, value: str) -> list[str]:
        """The sentence of an opening, a closing or a comparison; none where this review leaves the habit out."""
        if habit not in self.kept:
            return []
        brother = value == "brother"
        choices: Any = self.phrases[part]["person" if brother else value]
        if isinstance(choices, dict):
            choices = choices.get("any") or choices[self.side]
        own = "my brother" if brother else self.user.style.own.get(habit, "")
        return [self.fill(self.draw.pick(choices), own=own)]

    def quality_words(self, good: bool, always: bool) -> str:
        """Adverb and adjective: the user's own ones `always`, or now and then."""
        draw = self.draw
        own_word = draw.chance(1.0 if always else 0.35) and "words" in self.kept
        own_adverb = draw.chance(1.0 if always else 0.35) and "intensifier" in self.kept
        adjective = self.pet[good] if own_word else self.slot("praise" if good else "gripe")
        return f"{self.user.style.intensifier} {adjective}" if own_adverb else adjective

    def unused(self, phrases: Sequence[str]) -> str:
        """A phrase that this draft has not used yet, as long as there is one."""
        phrase = self.draw.pick([p for p in phrases if p not in self.used] or phrases)
        self.used.add(phrase)
        return phrase

    def fact(self, theme: str) -> str:
        """A statement on the item that all its reviewers share; with chance `noise`, a wrong one."""
        draw, truth = self.draw, self.item.aspects[theme]
        facts = self.item.domain.aspects[theme].facts[truth.quality >= 0.5]
        fact, extremity = facts[truth.fact], min(1.0, abs(truth.quality - 0.5) * 2.0)
        if draw.chance(self.noise):
            fact, extremity = draw.pick(facts), draw.uniform()
        number = number_word(fact.number(extremity))
        hedge = draw.pick(("about", "around", "roughly", "some"))
        return draw.pick(fact.wordings).format(n=number, N=f"{hedge} {number}")

    def aspect(self, theme: str, first: bool) -> str:
        """A judgement on one aspect, with a fact that speaks for it or, for the lenient and the strict, against it."""
        draw, quality = self.draw, self.item.aspects[theme].quality
        good = quality + self.user.leniency + 0.05 * (self.rating - 3) + 0.06 * draw.bell() >= 0.5
        register = self.phrases["registers"][self.user.style.register if "register" in self.kept else "plain"]
        noun = draw.pick(self.item.domain.aspects[theme].nouns)
        named = draw.chance(0.4 if first else 0.25)
        lead = self.unused(register["noun_prefixes" if named else "prefixes" if first else "links"])
        judgement = self.unused(register["good" if good else "bad"]).format(
            s="it" if named else noun, w=self.quality_words(good, always=first)
        )
        fact = self.fact(theme)
        if good == (quality >= 0.5):
            bodies = [f"{judgement}, {draw.pick(register['because'])} {fact}", f"{judgement}, and {fact}"]
            bodies += [] if named else [f"{fact}, so {judgement}", f"{fact}, and {judgement}"]
        else:
            bodies = [f"{judgement}, even though {fact}", f"{judgement}, although {fact}"]
            bodies += [] if named else [f"{fact}, and yet {judgement}"]
        return lead.format(noun=noun) + draw.pick(bodies)

    def themes(self) -> list[str]:
        """All themes in the order in which this review comes to them: taste decides, with luck."""
        order = [THEMES[i] for i in self.draw.weighted_order(self.user.taste)]
        order.remove(self.user.focus)
        order.insert(0 if "focus" in self.kept else 1, self.user.focus)
        return order

    def draft(self, goal: int, most: int) -> list[str]:
        """Sentences of one attempt: the habits, then more aspects and asides up to `goal` words and not past `most`."""
        style, draw = self.user.style, self.draw
        self.used.clear()
        themes = self.themes()
        head = self.habit("openings", "opening", style.opening)
        body = [self.aspect(themes.pop(0), first=True)]
        tail = self.habit("comparisons", "comparison", style.comparison)
        tail += self.habit("closings", "closing", style.closing)
        asides = draw.shuffled(self.item.domain.words["contexts"])[:2]
        asides.append(draw.pick(self.phrases["fillers"]["any"]))
        words = _count([*head, *body, *tail])
        while words < goal and (themes or asides):
            if asides and (not themes or draw.chance(0.3)):
                lead = self.unused(self.phrases["fillers"]["leads"])
                extra, place = self.fill(lead + asides.pop(0)), draw.whole(0, len(body))
            else:
                extra, place = self.aspect(themes.pop(0), first=False), len(body)
            if words + _count([extra]) <= most:
                body.insert(place, extra)
                words += _count([extra])
        return head + body + tail

    def text(self) -> str:
        """The review. Drafts outside the band of the user's length are thrown away, within reason."""
        style, draw = self.user.style, self.draw
        length = style.length if "length" in self.kept else draw.pick(sorted(set(BANDS) - {style.length}))
        least, most = BANDS[length]
        drafts = []
        for _ in range(40):
            sentences = self.draft(draw.whole(least, (least + most) // 2), most)
            drafts.append(sentences)
            if least <= _count(sentences) <= most:
                break
        sentences = min(drafts, key=lambda draft: max(least - _count(draft), _count(draft) - most, 0))
        if "register" in self.kept and self.phrases["registers"][style.register]["contract"]:
            sentences = [contract(sentence) for sentence in sentences]
        habit = style.punctuation if "punctuation" in self.kept else "plain"
        emphasis = (style.intensifier, *self.pet.values())
        return finish([fix_articles(s) for s in sentences], habit, emphasis, self.side, draw)

    def title(self) -> str:
        """The review's title; a user mostly keeps to one form."""
        style, draw = self.user.style, self.draw
        forms = self.phrases["titles"][self.side]
        form = forms[style.title_form % len(forms)] if draw.chance(1.0 - self.noise / 2) else draw.pick(forms)
        good = self.rating >= 3
        title = self.fill(form, w=self.quality_words(good, always=True), a=self.pet[True], b=self.pet[False])
        title = fix_articles(title[:1].upper() + title[1:])
        if style.punctuation == "lowercase":
            return title.lower()
        return title + "!" if "exclamation" in style.punctuation and draw.chance(0.7) else title


def _count(sentences: Sequence[str]) -> int:
    return sum(len(sentence.split()) for sentence in sentences)
