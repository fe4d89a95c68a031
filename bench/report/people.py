"""What stands behind a board's scores: each user's and each text's value, spreads over users, wins of every pair."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from bench.cells import wins_of
from bench.estimates import values_of
from bench.report.boards import Board
from bench.report.costs import figure
from bench.stats import DIMENSIONS, Floats, Scored, Wins, count_wins, text_scores
from bench.stats.bootstrap import Estimate
from bench.store import MetricInfo

_NOTHING = Estimate(None, None, None, 0, 0)
_QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)


def user_names(board: Board) -> list[str]:
    """Users in the order of the board's axis."""
    names: dict[int, str] = {}
    for entry in board.entries:
        for run in entry.runs:
            for record in run.records:
                place = board.axis.users[board.axis.examples[record["example_id"]]]
                names[int(place)] = str(record.get("user_id", record["example_id"]))
    return [names[place] for place in sorted(names)]


def people_json(board: Board, metric: str) -> dict[str, Any]:
    """One metric's values, in the order of the board's rows and of its axis; None where there is none.

    `texts`: row -> value of each example, mean over seeds; of a corpus metric, as if the text were the corpus. `users`:
    row -> mean of each user's examples that have a value under every seed (None for a corpus metric). `spread`: row ->
    quantiles over users. `wins`: row -> row it is compared with -> users won, tied, lost; `rates`: the same -> share
    won, low and high end of its interval. `apart`: "row,other row" -> user -> difference, for users whose difference
    is not that of their two means, as either lacks a value.
    """
    info = board.infos[metric]
    values = {
        place: values_of(entry, metric, board.axis.examples, info.reducer)
        for place, entry in enumerate(board.entries)
        if metric in entry.metric_names
    }
    rows = range(len(board.entries))
    texts = [_figures(text_scores(values[i], info.reducer).mean(axis=0)) if i in values else None for i in rows]
    if DIMENSIONS[info.reducer] != 1:
        return {"texts": texts, "users": None}
    known = {i: _known(array) for i, array in values.items()}
    means = {i: _by_user(array, known[i], board.axis.users) for i, array in values.items()}
    wins: list[list[list[int] | None]] = [[None for _ in rows] for _ in rows]
    rates: list[list[list[float | None] | None]] = [[None for _ in rows] for _ in rows]
    apart: dict[str, dict[str, float | None]] = {}
    for i in values:
        for j in values:
            shared = known[i] & known[j]
            if i == j:
                continue
            if shared.any() and (counted := _wins(values[i], values[j], board.axis.users, shared, info)):
                wins[i][j] = [counted.wins, counted.ties, counted.losses]
                rates[i][j] = None if (rate := counted.rate()) is None else [figure(part) for part in rate]
            if (told := _apart(values[i], values[j], means[i], means[j], shared, board.axis.users)) and i < j:
                apart[f"{i},{j}"] = told
    return {
        "texts": texts,
        "users": [_figures(means[i]) if i in means else None for i in rows],
        "spread": [_spread(means[i]) if i in means else None for i in rows],
        "wins": wins,
        "rates": rates,
        "apart": apart,
    }


def user_means(values: Floats, users: NDArray[np.intp]) -> Floats:
    """(users,): mean of each user's examples that have a value under every seed, NaN where there is none."""
    return _by_user(values, _known(values), users)


def _known(values: Floats) -> NDArray[np.bool_]:
    """(examples,): whether there is a value under every seed."""
    return np.asarray(~np.isnan(values).any(axis=(0, 2)), dtype=np.bool_)


def _by_user(values: Floats, keep: NDArray[np.bool_], users: NDArray[np.intp]) -> Floats:
    """(users,): means over seeds and the examples that `keep`, NaN where none does."""
    count = int(users.max()) + 1
    sums = np.bincount(users[keep], values[:, keep, 0].mean(axis=0), count)
    sizes = np.bincount(users[keep], minlength=count)
    found: Floats = np.where(sizes > 0, sums / np.maximum(sizes, 1), np.nan)
    return found


def _wins(
    ours: Floats, theirs: Floats, users: NDArray[np.intp], shared: NDArray[np.bool_], info: MetricInfo
) -> Wins | None:
    return wins_of(Scored(_NOTHING, None, wins=count_wins(ours, theirs, users, shared)), info)


def _apart(
    ours: Floats,
    theirs: Floats,
    own: Floats,
    other: Floats,
    shared: NDArray[np.bool_],
    users: NDArray[np.intp],
) -> dict[str, float | None]:
    """Differences that the two means do not give, by user."""
    gaps = _by_user(ours, shared, users) - _by_user(theirs, shared, users)
    plain = own - other
    size = np.nan_to_num(np.maximum(np.abs(own), np.abs(other)))
    close = np.abs(np.nan_to_num(gaps) - np.nan_to_num(plain)) <= 1e-9 * size
    odd = np.flatnonzero(~(close & (np.isnan(gaps) == np.isnan(plain))))
    return {str(user): figure(gaps[user]) for user in odd}


def _spread(means: Floats) -> list[float | None] | None:
    present = means[~np.isnan(means)]
    return [figure(value) for value in np.quantile(present, _QUANTILES)] if len(present) else None


def _figures(values: Floats) -> list[float | None]:
    return [figure(value) for value in values]
