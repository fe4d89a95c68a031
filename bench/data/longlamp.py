"""LongLaMP's public tasks in their published tables: abstracts, topic writing (Reddit posts), product reviews.

Kumar et al., "LongLaMP: A Benchmark for Personalized Long-form Text Generation" (2024). `LongLaMP/LongLaMP` on the
Hugging Face hub has a configuration for each task and setting (`abstract_generation_user`, `topic_writing_temporal`,
...) with the splits train, val and test; a row has the user (`name`, `author` or `reviewerId`), `input`, `output` and
`profile`. Its emails are not public. No row tells when it was written: a history stands in the order of the table.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

from bench.config import Config
from bench.data.hub import fetched_table, local_table, structs
from bench.data.questions import Fields, Past, Question, after_prefix, id_of, ready_documents, text_of
from bench.data.ready import ReadyDocuments, Role
from bench.errors import DataError
from bench.types import Field, FieldValue, Task


@dataclass(frozen=True)
class Layout:
    """How a task's table says what."""

    task: Task
    user: str
    """Column of the user."""
    parse: Callable[[str, str], Fields]
    """(input, where it stands) -> values of the task's fields."""
    fields: Mapping[str, str]
    """Field of the task -> key of a profile item; fields that profiles do not have are left out."""
    written: str
    """Key of a profile item that holds what the user wrote."""


_ABSTRACT = re.compile(r'Generate an abstract for the title "(.*)" using the following items:(.*)', re.I)
_REVIEW = re.compile(
    r'Generate the review text written by a reviewer who has (?:a )?given an overall rating of "(.*?)" for a product '
    r'with description "(.*)"\. The summary of the review text is "(.*)"\.?',
    re.I,
)
_HINT = "is source.task the right one?"


def _abstract(text: str, where: str) -> Fields:
    found = _ABSTRACT.fullmatch(text)
    if found is None:
        raise DataError(f"{where}: the input does not ask for an abstract of a title with items; {_HINT}")
    return {"title": found[1].strip(), "items": found[2].strip()}


def _topic(text: str, where: str) -> Fields:
    return {"summary": after_prefix(text, "Generate the content for a reddit post", where, _HINT)}


def _review(text: str, where: str) -> Fields:
    found = _REVIEW.fullmatch(text)
    if found is None:
        raise DataError(f"{where}: the input does not ask for a review by rating, description and summary; {_HINT}")
    rating, description, summary = (part.strip() for part in found.groups())
    return {"description": description, "rating": _rating(rating, where), "summary": summary}


def _rating(value: object, where: str) -> float:
    try:
        return float(str(value))
    except ValueError as error:
        raise DataError(f"{where}: the rating {value!r} is not a number") from error


LAYOUTS = {
    "abstract_generation": Layout(
        Task(
            "longlamp-abstract",
            "abstract",
            (
                Field("title", "Title", of_item=True),
                Field("items", "To be covered", shortenable=True, of_item=True),
            ),
            "Abstract",
            ("title", "items"),
            ("title", "text"),
            thing="paper",
            request="Write my abstract of this paper, as I would write it.",
        ),
        "name",
        _abstract,
        {"title": "title"},
        "abstract",
    ),
    "topic_writing": Layout(
        Task(
            "longlamp-topic",
            "post",
            (Field("summary", "Summary", shortenable=True, of_item=True),),
            "Post",
            ("summary",),
            ("summary", "text"),
            thing="topic",
            request="Write my Reddit post with this summary, as I would write it.",
        ),
        "author",
        _topic,
        {"summary": "summary"},
        "content",
    ),
    "product_review": Layout(
        Task(
            "longlamp-review",
            "review",
            (
                Field("description", "Product description", shortenable=True, of_item=True),
                Field("rating", "Rating"),
                Field("summary", "Review summary"),
            ),
            "Review",
            ("summary", "description"),
            ("summary", "description"),
            thing="product",
        ),
        "reviewerId",
        _review,
        {"description": "description", "rating": "overall", "summary": "summary"},
        "reviewText",
    ),
}
"""Columns, profile keys and inputs as the published tables have them; the sentences that ask are ours."""


class LongLampConfig(Config):
    """Which task, and where its tables are: on the hub, or in a local copy."""

    task: Literal["abstract_generation", "topic_writing", "product_review"]
    setting: Literal["user", "temporal"] = "user"
    """user: train, val and test are of different users. temporal: of the same users, later texts in later splits."""
    path: Path | None = None
    """A folder, relative to the spec file, that holds `TASK_SETTING/` as the hub has it (`SPLIT-*.parquet`) or as
    `save_to_disk` wrote it, or that is one itself. The hub is not asked."""
    repository: str = "LongLaMP/LongLaMP"
    revision: str | None = None
    """Branch, tag or commit; None is the newest."""


class LongLampSource:
    """A public task of LongLaMP, from the Hugging Face hub or a local copy."""

    Config: ClassVar[type[Config]] = LongLampConfig
    ready_split: ClassVar[bool] = True

    def __init__(self, config: LongLampConfig) -> None:
        self.config = config
        self.layout = LAYOUTS[config.task]

    @property
    def task(self) -> Task:
        """The task of the spec, before it renames anything."""
        return self.layout.task

    def load(self) -> ReadyDocuments:
        """All rows. Raises DataError naming table, row and column of the first thing that cannot be used."""
        questions = [question for role in Role for question in self._questions(role)]
        return ready_documents(questions, sorted(self.layout.fields))

    def _questions(self, role: Role) -> Iterator[Question]:
        columns = (self.layout.user, "input", "output", "profile")
        for number, row in enumerate(self._rows(role.value, columns)):
            where = f"{self._named(role.value)}, row {number}"
            user = id_of(row, self.layout.user, where)
            output = text_of(row, "output", where)
            if not output:
                raise DataError(f"{where}: the output is empty")
            fields = self.layout.parse(text_of(row, "input", where), where)
            pasts = [self._past(one, f"{where}, profile item {n}") for n, one in enumerate(structs(row["profile"]))]
            if not any(past.text for past in pasts):
                raise DataError(
                    f"{where} has an empty profile; there is nothing to tell the user by: leave the row out"
                )
            yield Question(role, user, f"{role}-{number}", fields, output, pasts)

    def _past(self, item: Any, where: str) -> Past:
        if not isinstance(item, Mapping):
            raise DataError(f"{where} is not an object with keys")
        fields: dict[str, FieldValue] = {}
        for ours, theirs in self.layout.fields.items():
            if ours == "rating":
                if theirs not in item:
                    raise DataError(f"{where} has no {theirs!r}; it has: {', '.join(item)}")
                fields[ours] = _rating(item[theirs], where)
            else:
                fields[ours] = text_of(item, theirs, where)
        return Past(fields, text_of(item, self.layout.written, where))

    def _rows(self, split: str, columns: tuple[str, ...]) -> Iterator[Mapping[str, Any]]:
        table = self._table(split)
        for column in columns:
            if column not in table.column_names:
                raise DataError(
                    f"{self._named(split)} has no column {column!r}; it has: {', '.join(table.column_names)}"
                )
        yield from table.select_columns(list(columns))

    def _table(self, split: str) -> Any:
        config, named = self.config, f"{self.config.task}_{self.config.setting}"
        if config.path is None:
            return fetched_table(config.repository, named, split, config.revision)
        within = config.path / named
        return local_table(within if within.is_dir() else config.path, split)

    def _named(self, split: str) -> str:
        return f"{self.config.path or self.config.repository} ({self.config.task}_{self.config.setting}, {split})"
