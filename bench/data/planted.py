"""The data source `planted`: reviews of a small made-up world whose hidden truth is known."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, ClassVar

from pydantic import Field, ValidationInfo, field_validator

from bench.config import Config
from bench.data.planted_draw import Draw
from bench.data.planted_grammar import Writer, true_score
from bench.data.planted_traits import recovered
from bench.data.planted_world import Item, User, build_items, build_users
from bench.data.tables import RawItem, RawReview, RawTables
from bench.errors import DataError

_START = 1_609_459_200_000
"""2021-01-01 in milliseconds since the epoch."""
_DAY = 86_400_000
_DAYS = 730
"""All reviews lie within two years, so that each target has earlier reviews by others on the same item."""


class PlantedConfig(Config):
    """Knobs of the planted world."""

    seed: int = 0
    """Another seed, another world."""
    users: Annotated[int, Field(ge=1)] = 80
    items: Annotated[int, Field(ge=1)] = 40
    reviews_per_user: tuple[int, int] = Field(default=(14, 18), validate_default=True)
    """Fewest and most reviews a user writes; no user reviews an item twice."""
    style_rarity: Annotated[float, Field(ge=0, le=1)] = 0.5
    """Chance that a habit comes from its rare values. 0: styles are shared by many; 1: they are distinctive."""
    noise: Annotated[float, Field(ge=0, le=1)] = 0.1
    """Chance that a review leaves out a habit, for each habit, or gets a fact wrong, for each fact."""
    rating_noise: Annotated[float, Field(ge=0)] = 0.4
    """Standard deviation of ratings around taste times quality, in stars."""

    @field_validator("reviews_per_user")
    @classmethod
    def _range_fits(cls, value: tuple[int, int], info: ValidationInfo) -> tuple[int, int]:
        least, most = value
        if not 1 <= least <= most:
            raise ValueError("give [fewest, most] with 1 <= fewest <= most")
        items = info.data.get("items")
        if items is not None and most > items:
            raise ValueError(f"a user reviews an item once, and there are {items} items; raise items or lower this")
        return value


@dataclass(frozen=True, slots=True)
class _Review:
    user: User
    item: Item
    rating: int
    timestamp: int


class PlantedTruth:
    """What the planted world knows: a `bench.types.Truth`. Example ids are `f"{user_id}/{item_id}"`."""

    def __init__(self, config: PlantedConfig, users: Mapping[str, User], reviews: Mapping[str, _Review]) -> None:
        self._config, self._users, self._reviews = config, users, reviews

    def write(self, example_id: str, seed: int) -> str:
        """What the user would write on the item with the rating that was given: true parameters, fresh noise.

        Raises DataError for an example that the world does not hold.
        """
        review = self._reviews.get(example_id)
        if review is None:
            raise DataError(f"planted data holds no review {example_id!r}; ids have the form user000/item000")
        draw = Draw(self._config.seed, "oracle", seed, example_id)
        return Writer(review.user, review.item, review.rating, self._config.noise, draw).text()

    def traits(self, user_id: str) -> Mapping[str, str]:
        """The user's planted traits, name -> value. Raises DataError for an unknown user."""
        if user_id not in self._users:
            raise DataError(f"planted data holds no user {user_id!r}; ids have the form user000")
        return self._users[user_id].traits()

    def recovered(self, user_id: str, text: str) -> Mapping[str, bool]:
        """For each of the user's traits that a text can show, whether this one does."""
        return recovered(self.traits(user_id), text)


class PlantedSource:
    """Users with hidden tastes and styles review items of hidden quality; texts come from a grammar."""

    Config: ClassVar[type[PlantedConfig]] = PlantedConfig
    version: ClassVar[str] = "1"
    """Part of the fingerprint: raise it when grammar, world or traits change."""

    def __init__(self, config: PlantedConfig) -> None:
        self.config = config

    def load(self) -> RawTables:
        """The same tables, byte for byte, for the same config; reviews are sorted by user and time."""
        config = self.config
        items = build_items(config.seed, config.items)
        users = build_users(config.seed, config.users, config.style_rarity)
        planned = self._plan(users, items)
        rows = [self._row(review, row) for row, review in enumerate(planned)]
        by_id = {f"{review.user.id}/{review.item.id}": review for review in planned}
        return RawTables(
            reviews=rows,
            items={i.id: RawItem(i.id, i.title, i.description, str(i.domain.words["category"])) for i in items},
            truth=PlantedTruth(config, {user.id: user for user in users}, by_id),
        )

    def _row(self, review: _Review, row: int) -> RawReview:
        key = (review.user.id, review.item.id)
        noise = self.config.noise
        title = Writer(review.user, review.item, review.rating, noise, Draw(self.config.seed, "title", *key)).title()
        text = Writer(review.user, review.item, review.rating, noise, Draw(self.config.seed, "text", *key)).text()
        return RawReview(*key, float(review.rating), title, text, review.timestamp, row)

    def _plan(self, users: list[User], items: list[Item]) -> list[_Review]:
        """Who reviews what, when, and with how many stars. Items get nearly equal numbers of reviews."""
        least, most = self.config.reviews_per_user
        load = [0] * len(items)
        planned: list[_Review] = []
        for user in users:
            draw = Draw(self.config.seed, "plan", user.id)
            count = draw.whole(least, most)
            jitter = [draw.uniform(0.0, 3.0) for _ in items]
            chosen = sorted(range(len(items)), key=lambda i: load[i] + jitter[i])[:count]
            for i, timestamp in zip(draw.shuffled(chosen), self._times(count, draw), strict=True):
                load[i] += 1
                planned.append(_Review(user, items[i], self._rating(user, items[i], draw), timestamp))
        return planned

    def _rating(self, user: User, item: Item, draw: Draw) -> int:
        score = true_score(user, item) + self.config.rating_noise * draw.bell()
        return min(5, max(1, int(score + 0.5)))

    @staticmethod
    def _times(count: int, draw: Draw) -> list[int]:
        """Strictly rising moments, spread over the two years with the last near their end."""
        step = _DAYS * _DAY // count
        return [_START + i * step + draw.whole(0, step - 1) for i in range(count)]
