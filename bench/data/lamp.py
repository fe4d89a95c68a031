"""LaMP's text generation tasks in their published files: headlines, paper titles, email subjects, tweets.

Salemi et al., "LaMP: When Large Language Models Meet Personalization" (ACL 2024). A task's folder holds
`train_questions.json` and `dev_questions.json`, lists of `{"id", "input", "profile"}`, and `train_outputs.json` and
`dev_outputs.json`, `{"task", "golds": [{"id", "output"}]}`. The answers to its test questions are not public: dev is
the test split here, and part of train is validation.
"""

from __future__ import annotations

import datetime
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import Field as Knob

from bench.config import Config
from bench.data.questions import Past, Question, after_prefix, id_of, ready_documents, text_of
from bench.data.ready import ReadyDocuments, Role
from bench.errors import DataError, first_line
from bench.keys import rank_hash
from bench.types import Field, Task

_EPOCH = datetime.date(1970, 1, 1)
_DAY = 86_400_000


@dataclass(frozen=True)
class Layout:
    """How a task's files say what."""

    task: Task
    prefix: str
    """What every input begins with; the rest is the value of the task's only field."""
    asked: str | None
    """Key of a profile item that holds the field's value; None where profiles do not have it."""
    written: str
    """Key of a profile item that holds what the user wrote."""


def _task(number: int, noun: str, field: Field, target_label: str, request: str, matched: Sequence[str]) -> Task:
    query = (field.name,)
    name = f"lamp-{number}"
    return Task(name, noun, (field,), target_label, query, tuple(matched), thing=field.label.lower(), request=request)


def _field(name: str, label: str) -> Field:
    return Field(name, label, shortenable=True, of_item=True)


LAYOUTS = {
    "LaMP-4": Layout(
        _task(
            4,
            "headline",
            _field("article", "Article"),
            "Headline",
            "Write my headline for this article, as I would write it.",
            ("article", "text"),
        ),
        "Generate a headline for the following article:",
        "text",
        "title",
    ),
    "LaMP-5": Layout(
        _task(
            5,
            "paper title",
            _field("abstract", "Abstract"),
            "Title",
            "Write my title for the paper with this abstract, as I would write it.",
            ("abstract", "text"),
        ),
        "Generate a title for the following abstract of a paper:",
        "abstract",
        "title",
    ),
    "LaMP-6": Layout(
        _task(
            6,
            "email subject",
            _field("email", "Email"),
            "Subject",
            "Write my subject for this email, as I would write it.",
            ("email", "text"),
        ),
        "Generate a subject for the following email:",
        "text",
        "title",
    ),
    "LaMP-7": Layout(
        _task(
            7,
            "tweet",
            _field("tweet", "Tweet"),
            "My tweet",
            "Paraphrase this tweet, as I would write it.",
            ("text",),
        ),
        "Paraphrase the following tweet without any explanation before or after it:",
        None,
        "text",
    ),
}
"""Inputs and profile keys as LaMP's published files and its public code have them; the sentences that ask are ours."""


class LampConfig(Config):
    """Which task, and where its files are."""

    task: Literal["LaMP-4", "LaMP-5", "LaMP-6", "LaMP-7"]
    path: Path
    """The folder with the task's four files, relative to the spec file."""
    setting: Literal["user", "time"] = "user"
    """user: train and dev are of different users, and nothing has a time: a history stands in the file's order. time:
    the profile items' dates count, and a target is placed right after the latest of its profile."""
    validation: float = Knob(default=0.1, gt=0, lt=1)
    """Share of the train users that are validation, chosen by a hash of the user."""


class LampSource:
    """A text generation task of LaMP, its dev questions as the test split."""

    Config: ClassVar[type[Config]] = LampConfig
    ready_split: ClassVar[bool] = True

    def __init__(self, config: LampConfig) -> None:
        self.config = config
        self.layout = LAYOUTS[config.task]

    @property
    def task(self) -> Task:
        """The task of the spec, before it renames anything."""
        return self.layout.task

    def load(self) -> ReadyDocuments:
        """All questions. Raises DataError naming file and question for the first thing that cannot be used."""
        train, dev = self._questions("train"), self._questions("dev")
        users = sorted({question.user for question in train}, key=lambda user: rank_hash(0, user))
        chosen = set(users[: max(1, math.floor(self.config.validation * len(users)))])
        split = [_as(question, Role.VAL if question.user in chosen else Role.TRAIN) for question in train]
        shared = [self.layout.task.fields[0].name] if self.layout.asked else []
        return ready_documents([*split, *(_as(question, Role.TEST) for question in dev)], shared)

    def _questions(self, part: str) -> list[Question]:
        path = self.config.path / f"{part}_questions.json"
        rows = _read(path, self.config.task)
        if not isinstance(rows, list):
            raise DataError(f"{path} holds {type(rows).__name__}, not a list of questions")
        outputs = self._outputs(part)
        found: dict[str, Question] = {}
        for number, row in enumerate(rows):
            where = f"{path}, question {number}"
            if not isinstance(row, Mapping):
                raise DataError(f"{where} is not an object with id, input and profile")
            key = id_of(row, "id", where)
            where = f"{path}, question {key!r}"
            if key in found:
                raise DataError(f"{where} stands twice; keep one")
            if key not in outputs:
                raise DataError(
                    f"{where} has no output in {self._outputs_file(part)}; the two files must belong together"
                )
            found[key] = self._question(row, f"{part}-{key}", outputs.pop(key), where)
        if outputs:
            raise DataError(
                f"{self._outputs_file(part)} has outputs of {len(outputs)} questions that are not in {path}, first: "
                f"{next(iter(outputs))!r}; the two files must belong together"
            )
        return list(found.values())

    def _outputs_file(self, part: str) -> Path:
        return self.config.path / f"{part}_outputs.json"

    def _outputs(self, part: str) -> dict[str, str]:
        path = self._outputs_file(part)
        whole = _read(path, self.config.task)
        golds = whole.get("golds") if isinstance(whole, Mapping) else None
        if not isinstance(golds, list) or not all(isinstance(row, Mapping) for row in golds):
            raise DataError(f'{path} is not of the form {{"task": ..., "golds": [{{"id": ..., "output": ...}}]}}')
        found: dict[str, str] = {}
        for number, row in enumerate(golds):
            where = f"{path}, gold {number}"
            key = id_of(row, "id", where)
            if key in found:
                raise DataError(f"{where}: the id {key!r} stands twice; keep one")
            found[key] = text_of(row, "output", where)
            if not found[key]:
                raise DataError(f"{where}: the output of question {key!r} is empty")
        return found

    def _question(self, row: Mapping[str, Any], name: str, output: str, where: str) -> Question:
        """A question; whose files name no user is taken as one of a user of its own."""
        layout, (field,) = self.layout, self.layout.task.fields
        hint = f"is it of {self.config.task}?"
        if self.config.task == "LaMP-6":
            hint += " LaMP publishes ids in place of emails: its create_avocado_dataset.py puts the texts in"
        asked = after_prefix(text_of(row, "input", where), layout.prefix, where, hint)
        profile = row.get("profile")
        if not isinstance(profile, list):
            raise DataError(f"{where} has no list 'profile'; it has: {', '.join(map(str, row))}")
        pasts = [self._past(item, f"{where}, profile item {number}") for number, item in enumerate(profile)]
        if not any(past.text for past in pasts):
            raise DataError(
                f"{where} has an empty profile; there is nothing to tell the user by: leave the question out"
            )
        dates = [past.timestamp for past in pasts if past.timestamp is not None]
        user = id_of(row, "user_id", where) if "user_id" in row else name
        return Question(Role.TRAIN, user, name, {field.name: asked}, output, pasts, max(dates) + 1 if dates else None)

    def _past(self, item: Any, where: str) -> Past:
        if not isinstance(item, Mapping):
            raise DataError(f"{where} is not an object with keys")
        layout, (field,) = self.layout, self.layout.task.fields
        fields = {field.name: text_of(item, layout.asked, where)} if layout.asked else {}
        time = _date(item, where) if self.config.setting == "time" else None
        return Past(fields, text_of(item, layout.written, where), time)


def _as(question: Question, role: Role) -> Question:
    kept = question.profile, question.moment
    return Question(role, question.user, question.name, question.fields, question.text, *kept)


def _read(path: Path, task: str) -> Any:
    if not path.is_file():
        raise DataError(
            f"{path} does not exist; get the files of {task} from lamp-benchmark.github.io/download, put them into one "
            "folder and set source.path to it, in the spec file or with --set DATASET.path=FOLDER"
        )
    try:
        with path.open(encoding="utf-8-sig") as file:
            return json.load(file)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path} is not valid JSON: {first_line(error)}") from error
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}") from error


def _date(item: Mapping[str, Any], where: str) -> int:
    """Milliseconds since the epoch of a date: a year, or year-month-day; what is left out is the first."""
    if "date" not in item:
        raise DataError(
            f"{where} has no 'date', which the time-based files have; set source.setting = \"user\" for others"
        )
    parts = str(item["date"]).strip().split("-")
    try:
        year, month, day = ([int(part) for part in parts] + [1, 1])[:3]
        if len(parts) > 3:
            raise ValueError("too many parts")
        return (datetime.date(year, month, day) - _EPOCH).days * _DAY
    except (ValueError, OverflowError) as error:
        raise DataError(f"{where}: date = {item['date']!r} is neither YYYY-MM-DD nor a year") from error
