"""The sets that DPL and DEP were published on: filtered and split already, one row a target with its profile.

`SnowCharmQ/DPL-main` has a configuration for each category and the splits train, val and test; a row holds `user_id`,
`profile` (past reviews) and `data` (the target), each review with `rating`, `title`, `text`, `asin` and `timestamp`
(milliseconds). `SnowCharmQ/DPL-meta` has the one split full, with `asin`, `title` and `description`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

from pydantic import Field

from bench.config import Config
from bench.data.clean import clean, review_id
from bench.data.ready import ReadySplit, Role, Target, tally
from bench.data.rows import ItemColumns, ReviewColumns, TimeUnit, read_item, read_review
from bench.data.tables import RawItem, RawReview
from bench.errors import DataError, NotFetched

_REVIEW = ReviewColumns(user_id="user_id", item_id="asin")
_ITEM = ItemColumns(item_id="asin")


class HubConfig(Config):
    """Where the published sets lie: on the hub, or in a local folder of the same shape."""

    category: str = Field(min_length=1)
    """Name of the configuration: "Books", "Movies_and_TV", "CDs_and_Vinyl"."""
    main: str = "SnowCharmQ/DPL-main"
    meta: str = "SnowCharmQ/DPL-meta"
    revision: str | None = None
    """Branch, tag or commit of both; None is the newest."""
    path: Path | None = None
    """A folder, relative to the spec file, that holds `DPL-main/CATEGORY` and `DPL-meta/CATEGORY` (the last parts of
    `main` and `meta`), each as `save_to_disk` wrote it or as Parquet files `SPLIT-*.parquet`. The hub is not asked."""
    timestamp_unit: TimeUnit = "ms"


class HubSource:
    """DPL's published sets from the Hugging Face hub, or from a local copy."""

    Config: ClassVar[type[Config]] = HubConfig
    ready_split: ClassVar[bool] = True
    """The source brings its own split: a spec may set no thresholds and no targets per user."""

    def __init__(self, config: HubConfig) -> None:
        self.config = config

    def load(self) -> ReadySplit:
        """All targets with their profiles. Raises DataError where the sets cannot be had or a row cannot be used."""
        items = self._items()
        reader = _ReviewReader(items, self.config.timestamp_unit)
        targets = [target for role in Role for target in self._targets(role, reader)]
        profiles = list(reader.documents.values())
        used = {review.item_id for review in profiles}
        kept = {key: items[key] for key in sorted(used)}
        return ReadySplit(targets, kept, counts={"source": tally(profiles)})

    def _items(self) -> dict[str, RawItem]:
        where = f"{self.config.meta} ({self.config.category}, full)"
        found: dict[str, RawItem] = {}
        for number, row in enumerate(self._rows(self.config.meta, "full", ("asin", "title", "description"))):
            item = read_item(row, _ITEM, f"{where}, row {number}")
            item = replace(item, title=clean(item.title), description=clean(item.description))
            if found.setdefault(item.item_id, item) != item:
                raise DataError(f"{where}, row {number}: the item id {item.item_id!r} stands twice, with other content")
        return found

    def _targets(self, role: Role, reader: _ReviewReader) -> Iterator[Target]:
        rows = self._rows(self.config.main, role.value, ("user_id", "profile", "data"))
        for number, row in enumerate(rows):
            where = f"{self.config.main} ({self.config.category}, {role}), row {number}"
            user, profile, data = row["user_id"], row["profile"], row["data"]
            review = reader.read(user, data, f"{where}, data")
            history = [reader.read(user, past, f"{where}, profile {n}") for n, past in enumerate(structs(profile))]
            yield Target(role, review, history)

    def _rows(self, repository: str, split: str, columns: tuple[str, ...]) -> Iterable[Mapping[str, Any]]:
        table = self._table(repository, split)
        for column in columns:
            if column not in table.column_names:
                raise DataError(
                    f"{repository} ({self.config.category}, {split}) has no column {column!r}; "
                    f"it has: {', '.join(table.column_names)}"
                )
        rows: Iterable[Mapping[str, Any]] = table.select_columns(list(columns))
        return rows

    def _table(self, repository: str, split: str) -> Any:
        category, path = self.config.category, self.config.path
        if path is None:
            return fetched_table(repository, category, split, self.config.revision)
        return local_table(path / repository.rsplit("/", 1)[-1] / category, split)


def fetched_table(repository: str, configuration: str, split: str, revision: str | None) -> Any:
    """A split of a dataset on the hub. Raises DataError where it cannot be had."""
    import datasets

    try:
        return datasets.load_dataset(repository, configuration, split=split, revision=revision)
    except Exception as error:  # whatever network, hub and library raise, the way out is the same
        reason = (str(error).strip().splitlines() or [""])[0]
        raise NotFetched(
            f"{repository} ({configuration}, {split}) cannot be fetched from the Hugging Face hub "
            f"({type(error).__name__}: {reason}); connect and try again, or set source.path to a local copy"
        ) from error


def local_table(folder: Path, split: str) -> Any:
    """A split in a folder, as `save_to_disk` wrote it or as Parquet files. Raises DataError where it is neither."""
    import datasets

    files = sorted(str(file) for file in (*folder.glob(f"{split}.parquet"), *folder.glob(f"{split}-*.parquet")))
    try:
        if (folder / split / "state.json").is_file():
            return datasets.load_from_disk(str(folder / split))
        if files:
            return datasets.Dataset(_parquet_table(files))
    except Exception as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise DataError(f"{folder} ({split}) cannot be read: {reason}") from error
    raise DataError(
        f"{folder} holds no split {split!r}: neither {split}/ as save_to_disk writes it nor {split}-*.parquet; "
        "check source.path and what else [source] names"
    )


class _ReviewReader:
    """Reviews by (user, item), read once: most rows repeat the profile of the row before."""

    def __init__(self, items: Mapping[str, RawItem], unit: TimeUnit) -> None:
        self.items = items
        self.unit: TimeUnit = unit
        self.documents: dict[tuple[str, str], RawReview] = {}

    def read(self, user: Any, struct: Any, where: str) -> RawReview:
        if not isinstance(struct, Mapping):
            raise DataError(f"{where} is not a review with rating, title, text, asin and timestamp")
        missing = [column for _, column in _REVIEW if column != _REVIEW.user_id and column not in struct]
        if missing:
            raise DataError(f"{where} has no field {missing[0]!r}; it has: {', '.join(struct)}")
        raw = read_review({**struct, _REVIEW.user_id: user}, _REVIEW, self.unit, len(self.documents), where)
        review = replace(raw, text=clean(raw.text), title=clean(raw.title))
        known = self.documents.setdefault((review.user_id, review.item_id), review)
        if known is review:
            self._check(review, where)
        elif replace(review, row=known.row) != known:
            name = review_id(review.user_id, review.item_id)
            raise DataError(f"{where}: the review {name!r} stands elsewhere with other content")
        return known

    def _check(self, review: RawReview, where: str) -> None:
        if review.item_id not in self.items:
            raise DataError(f"{where}: the item {review.item_id!r} is not among the items; fetch both sets again")
        if not review.text:
            raise DataError(f"{where}: the text is empty")
        if review.timestamp <= 0:
            raise DataError(f"{where}: the timestamp is missing")


def structs(profile: Any) -> list[Any]:
    """A list of structs; a struct of lists (how some versions of the library read the same file) is turned round."""
    if profile is None:
        return []
    if isinstance(profile, Mapping):
        return [dict(zip(profile, values, strict=True)) for values in zip(*profile.values(), strict=True)]
    return list(profile)


def _parquet_table(files: list[str]) -> Any:
    """Read directly, so that the library leaves no converted copy in its cache."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    return pa.concat_tables([pq.read_table(file) for file in files])
