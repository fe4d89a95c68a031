"""The only door to other users: who else wrote about the same item, and when."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from bench.types import Document

if TYPE_CHECKING:
    from bench.data.arrays import PopulationArrays


class _Timeline:
    """Documents in one stable order, by (timestamp, user, id); those without a time stand last."""

    __slots__ = ("documents", "times")

    def __init__(self, documents: Iterable[Document]) -> None:
        self.documents = tuple(sorted(documents, key=_order))
        self.times = [_time(document) for document in self.documents]

    def before(self, moment: int | None) -> Sequence[Document]:
        """Everything strictly before `moment`; everything at all when it is None."""
        return self.documents if moment is None else self.documents[: bisect_left(self.times, moment)]


class Population:
    """Every user's profile and train targets, looked up by item and by user. Never changes once made.

    Validation and test targets are not in it, so no method can reach the text it is asked to write. A document without
    a time cannot be shown to be before anything: it is found only where no moment is asked for.
    """

    __slots__ = ("_arrays", "_by_item", "_by_user", "_documents")

    def __init__(self, documents: Iterable[Document]) -> None:
        """Raises ValueError when two documents share an id."""
        self._documents = _Timeline(documents).documents
        seen: set[str] = set()
        by_item: dict[str, list[Document]] = {}
        by_user: dict[str, list[Document]] = {}
        for document in self._documents:
            if document.id in seen:
                raise ValueError(f"two documents have the id {document.id!r}")
            seen.add(document.id)
            by_user.setdefault(document.user_id, []).append(document)
            if document.item_id is not None:
                by_item.setdefault(document.item_id, []).append(document)
        self._by_item = {item: _Timeline(found) for item, found in by_item.items()}
        self._by_user = {user: _Timeline(by_user[user]) for user in sorted(by_user)}
        self._arrays: PopulationArrays | None = None

    def __len__(self) -> int:
        return len(self._documents)

    def documents(self) -> list[Document]:
        """All documents, by (timestamp, user, id)."""
        return list(self._documents)

    def users(self) -> list[str]:
        """All users who wrote a document, sorted."""
        return list(self._by_user)

    def arrays(self) -> PopulationArrays:
        """The same documents as arrays, made at the first call and kept."""
        if self._arrays is None:
            from bench.data.arrays import PopulationArrays

            self._arrays = PopulationArrays.of(self._documents, list(self._by_user))
        return self._arrays

    def peers(self, document: Document, exclude_user: str, before: int | None = None) -> list[Document]:
        """Other documents on the same item, none by `exclude_user`, by (timestamp, user, id).

        Args:
            document: the document whose item is looked up; it is never its own peer.
            exclude_user: the user who is written for.
            before: milliseconds since the epoch; only documents strictly earlier are given. None: all times.

        Returns:
            An empty list where nobody else wrote, or where the document has no item.
        """
        timeline = self._by_item.get(document.item_id) if document.item_id is not None else None
        if timeline is None:
            return []
        return [other for other in timeline.before(before) if other.user_id != exclude_user and other.id != document.id]

    def history(self, user_id: str, before: int | None) -> list[Document]:
        """A user's documents strictly before a moment (None: all of them), oldest first; empty for an unknown user."""
        timeline = self._by_user.get(user_id)
        return [] if timeline is None else list(timeline.before(before))


def _time(document: Document) -> float:
    return math.inf if document.timestamp is None else document.timestamp


def _order(document: Document) -> tuple[float, str, str]:
    return _time(document), document.user_id, document.id
