"""Benchmarks that ask one question a row, each with the profile of its user: their rows as a split of documents.

Nobody shares an item there, so documents have none. A document is known by its user and what stands in it: the same one
in two profiles, or in a profile and as a target, is one document.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from bench.data.clean import clean, is_clean_id, review_id
from bench.data.ready import ReadyDocuments, Role, Written
from bench.data.rows import shown
from bench.errors import DataError
from bench.keys import digest
from bench.types import Document, FieldValue

Fields = Mapping[str, FieldValue]


@dataclass(frozen=True, slots=True)
class Past:
    """One item of a profile."""

    fields: Fields
    text: str
    timestamp: int | None = None
    """Milliseconds since the epoch."""


@dataclass(frozen=True, slots=True)
class Question:
    """One row: what is asked, the answer, and the profile in the order of the file."""

    role: Role
    user: str
    name: str
    """Unique within the benchmark."""
    fields: Fields
    text: str
    profile: Sequence[Past]
    moment: int | None = None
    """Before it everything in the profile was written; None where there are no times."""


def ready_documents(questions: Iterable[Question], shared: Sequence[str]) -> ReadyDocuments:
    """Targets with their histories.

    What no user can have in front of them is left out of profiles and counted: items without a text, a second copy of
    an item, the target itself, and a target of a later split.

    Args:
        questions: in the order of the files.
        shared: fields that profile items have as targets do; documents are compared by them and by their text.
    """
    asked = list(questions)
    roles: dict[str, Role] = {}
    names: dict[str, str] = {}
    targets = [_target(question) for question in asked]
    for question, target in zip(asked, targets, strict=True):
        names.setdefault(_content(target.user_id, target.fields, target.text, shared), target.id)
        roles[target.id] = question.role
    rank = {role: number for number, role in enumerate(Role)}
    made: dict[str, Document] = {}
    left_out: Counter[str] = Counter(dict.fromkeys(("without_text", "twice", "target_itself", "later_target"), 0))
    written = []
    for question, target in zip(asked, targets, strict=True):
        own = _content(target.user_id, target.fields, target.text, shared)
        history: dict[str, Document] = {}
        for past in question.profile:
            key = _content(target.user_id, past.fields, past.text, shared)
            held = roles.get(names.get(key, ""))
            if not past.text:
                left_out["without_text"] += 1
            elif key == own:
                left_out["target_itself"] += 1
            elif held is not None and rank[held] > rank[question.role]:
                left_out["later_target"] += 1
            elif key in history:
                left_out["twice"] += 1
            else:
                history[key] = made.setdefault(key, _past(target.user_id, names.get(key, key), past))
        written.append(Written(question.role, target, list(history.values()), question.moment))
    users = {target.user_id for target in targets}
    source = {"users": len(users), "questions": len(asked), "profile_items": sum(len(one.profile) for one in asked)}
    return ReadyDocuments(written, counts={"source": source, "left_out_of_profiles": dict(left_out)})


def _target(question: Question) -> Document:
    return Document(review_id(question.user, question.name), question.user, question.text, question.fields)


def _past(user: str, name: str, past: Past) -> Document:
    return Document(name, user, past.text, past.fields, None, past.timestamp)


def _content(user: str, fields: Fields, text: str, shared: Sequence[str]) -> str:
    """An id made of what a document holds."""
    return review_id(user, digest([text, [fields.get(name) for name in shared]]))


def text_of(row: Mapping[str, object], key: str, where: str) -> str:
    """A clean text of a row. Raises DataError where the key is missing or holds something else."""
    if key not in row:
        raise DataError(f"{where} has no {key!r}; it has: {', '.join(map(str, row)) or 'nothing'}")
    value = row[key]
    if value is None:
        return ""
    if not isinstance(value, str):
        raise DataError(f"{where}: {key} = {shown(value)} is not text")
    return clean(value)


def id_of(row: Mapping[str, object], key: str, where: str) -> str:
    """An id of a row as text. Raises DataError where it is missing, blank or no id."""
    value = row.get(key)
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    if not isinstance(value, str) or not is_clean_id(value):
        raise DataError(f"{where}: {key} = {shown(value)} is not an id; ids are non-empty strings or integers")
    return value


def after_prefix(text: str, prefix: str, where: str, hint: str) -> str:
    """What follows the words that every question of a task begins with. Raises DataError where they are missing."""
    if not text.casefold().startswith(prefix.casefold()):
        raise DataError(f"{where}: the input begins {shown(text)}, not with {prefix!r}; {hint}")
    return text[len(prefix) :].lstrip(" :")
