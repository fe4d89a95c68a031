"""The page's plots as PNG and SVG, and its tables as LaTeX, for papers."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from bench.cells import Cell, Mark
from bench.comparison import printable
from bench.errors import MissingPackage
from bench.estimates import values_of
from bench.files import folder_name
from bench.render import render
from bench.report.boards import Board
from bench.report.costs import Cost, costs, front
from bench.report.curves import curves
from bench.report.people import user_means
from bench.tables import Section

if TYPE_CHECKING:
    from matplotlib.axes import Axes

KINDS = ("png", "svg")
TABLES = "tables.tex"
INK, SOFT, ACCENT, UP, DOWN = "#1d2227", "#8a939c", "#0a5fa6", "#00694c", "#b0450a"
"""Of these, colours that are told apart by everybody; a mark of another shape says the same."""
_WIDTH = 6.5
_ROW = 0.26
"""Inches: of a page's column of text, and of a row."""


def need_matplotlib() -> None:
    """Raises MissingPackage, with the command that installs it, where matplotlib is missing."""
    try:
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise MissingPackage("matplotlib", "--figures", extra="plots") from error


def save_figures(boards: Sequence[Board], folder: Path) -> list[Path]:
    """Every plot of every board as PNG and SVG, and all tables in one LaTeX file. Equal runs give equal bytes."""
    need_matplotlib()
    import matplotlib as mpl

    folder.mkdir(parents=True, exist_ok=True)
    made = []
    settings = {"svg.hashsalt": "dep-bench", "font.size": 8, "axes.spines.top": False, "axes.spines.right": False}
    with mpl.rc_context(settings):
        for board in boards:
            for name, height, draw in _plots(board):
                made += _save(folder / f"{board.id}-{folder_name(name)}", height, draw)
    tex = folder / TABLES
    tex.write_text(render([board.table for board in boards], "latex"), encoding="utf-8", newline="\n")
    return [*made, tex]


def _plots(board: Board) -> Iterator[tuple[str, float, Callable[[Axes], None]]]:
    """(name, height in inches, what draws it)."""
    rows = 0.9 + _ROW * len(board.entries)
    for metric in board.infos:
        yield f"scores-{metric}", rows, lambda axes, m=metric: _scores(axes, board, m)  # type: ignore[misc]
        if board.baseline is not None and len(board.entries) > 1:
            yield f"differences-{metric}", rows, lambda axes, m=metric: _differences(axes, board, m)  # type: ignore[misc]
        if metric in board.means:
            yield f"users-{metric}", rows + 0.4, lambda axes, m=metric: _users(axes, board, m)  # type: ignore[misc]
        for cost in costs(board):
            yield f"cost-{cost.key}-{metric}", 4.0, lambda axes, m=metric, c=cost: _cost(axes, board, m, c)  # type: ignore[misc]
    fits = [fit for fit in curves(board) if fit["steps"] or fit["epochs"]]
    if fits:
        yield "training", 3.5, lambda axes: _training(axes, fits)


def _save(stem: Path, height: float, draw: Callable[[Axes], None]) -> list[Path]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(_WIDTH, height), layout="constrained")
    draw(figure.add_subplot())
    made = []
    for kind in KINDS:
        path = stem.with_name(f"{stem.name}.{kind}")
        figure.savefig(path, dpi=200, metadata={"Date": None} if kind == "svg" else {"Software": None})
        made.append(path)
    return made


# -- plots ------------------------------------------------------------------------------------------------------------


def _plain(text: str) -> str:
    """A label that matplotlib does not read as mathematics."""
    return printable(text).replace("$", r"\$")


def _cells(section: Section, metric: str) -> dict[str, Cell]:
    """Row -> cell of a metric."""
    place = [column.key for column in section.columns].index(metric)
    return {str(row.cells[0].value): row.cells[place] for row in section.rows}


def _intervals(axes: Axes, cells: dict[str, Cell], colour: Callable[[Cell], tuple[str, str]]) -> None:
    """A dot and a line for each row, the first on top."""
    for place, cell in enumerate(cells.values()):
        if not isinstance(cell.value, int | float):
            continue
        ink, marker = colour(cell)
        if cell.low is not None and cell.high is not None:
            axes.plot([cell.low, cell.high], [place, place], color=ink, linewidth=1.4, zorder=2)
        axes.plot([cell.value], [place], marker=marker, color=ink, markersize=5, zorder=3, linestyle="none")
    axes.set_yticks(range(len(cells)), [_plain(label) for label in cells])
    axes.set_ylim(len(cells) - 0.4, -0.6)
    axes.tick_params(axis="y", length=0)
    axes.grid(axis="x", color="#e4e6e8", linewidth=0.6)
    axes.set_axisbelow(True)


def _scores(axes: Axes, board: Board, metric: str) -> None:
    _intervals(axes, _cells(board.scores, metric), lambda cell: (ACCENT, "D") if cell.mark == Mark.BEST else (INK, "o"))
    axes.set_xlabel(_plain(f"{metric}, 95 % interval over users; diamond: best"))
    axes.set_title(_plain(board.title), loc="left", fontsize=9)


def _differences(axes: Axes, board: Board, metric: str) -> None:
    better = board.infos[metric].higher_is_better

    def colour(cell: Cell) -> tuple[str, str]:
        if cell.mark != Mark.CLEAR or better is None or not isinstance(cell.value, int | float):
            return INK, "o"
        return (UP, "^") if (cell.value > 0) is better else (DOWN, "s")

    axes.axvline(0, color=INK, linewidth=0.8)
    _intervals(axes, _cells(board.table.sections[1], metric), colour)
    axes.set_xlabel(_plain(f"{metric}, row minus {board.baseline}; triangle: clearly better, square: clearly worse"))
    axes.set_title(_plain(f"{board.title}: {board.table.sections[1].title}"), loc="left", fontsize=9)


def _users(axes: Axes, board: Board, metric: str) -> None:
    rows = {}
    for entry in board.entries:
        if metric in entry.metric_names:
            values = values_of(entry, metric, board.axis.examples, board.infos[metric].reducer)
            means = user_means(values, board.axis.users)
            rows[entry.label] = means[~np.isnan(means)]
    drawn = {label: values for label, values in rows.items() if len(values)}
    if drawn:
        axes.boxplot(
            list(drawn.values()),
            orientation="horizontal",
            whis=(5, 95),
            widths=0.5,
            flierprops={"marker": ".", "markersize": 3, "markeredgecolor": SOFT},
            medianprops={"color": ACCENT, "linewidth": 1.6},
        )
    axes.set_yticks(range(1, len(drawn) + 1), [_plain(label) for label in drawn])
    axes.invert_yaxis()
    axes.set_xlabel(_plain(f"{metric} of a user: median, middle half, 5 % to 95 %"))
    axes.set_title(_plain(board.title), loc="left", fontsize=9)


def _cost(axes: Axes, board: Board, metric: str, cost: Cost) -> None:
    cells = _cells(board.scores, metric)
    kept = front(board, metric, cost)
    points = {
        label: (price, cell)
        for label, price in cost.values.items()
        if price is not None and isinstance((cell := cells[label]).value, int | float)
    }
    for label, (price, cell) in points.items():
        best = label in kept
        ink = ACCENT if best else INK
        if cell.low is not None and cell.high is not None:
            axes.plot([price, price], [cell.low, cell.high], color=SOFT, linewidth=0.8, zorder=1)
        value: Any = cell.value
        face = ACCENT if best else "white"
        axes.plot(
            [price], [value], marker="D" if best else "o", color=ink, markerfacecolor=face, markersize=5, zorder=3
        )
        axes.annotate(_plain(label), (price, value), (5, 3), textcoords="offset points", fontsize=6.5, color=ink)
    line: list[tuple[float, Any]] = [(points[label][0], points[label][1].value) for label in kept]
    if len(line) > 1:
        axes.step(*zip(*line, strict=True), where="post", color=ACCENT, linewidth=1, linestyle="--", zorder=2)
    prices = [price for price, _ in points.values()]
    if prices and min(prices) > 0 and max(prices) / min(prices) > 20:
        axes.set_xscale("log")
    axes.margins(x=0.12)
    axes.set_xlabel(_plain(f"{cost.title}; diamonds: the Pareto front"))
    axes.set_ylabel(_plain(metric))
    axes.set_title(_plain(board.title), loc="left", fontsize=9)


def _training(axes: Axes, fits: Sequence[dict[str, Any]]) -> None:
    styles = ("-", "--", ":", "-.")
    colours = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00", "#000000")
    names = list(dict.fromkeys(", ".join(fit["rows"]) for fit in fits))
    told: set[str] = set()
    for fit in fits:
        name = ", ".join(fit["rows"])
        place = names.index(name)
        dev = [(epoch["step"], epoch["dev_loss"]) for epoch in fit["epochs"] if epoch["dev_loss"] is not None]
        line = dev if len(dev) > 1 else [(step, loss) for step, loss in fit["steps"] if loss is not None]
        if not line:
            continue
        look: dict[str, Any] = {
            "color": colours[place % len(colours)],
            "linestyle": styles[place // len(colours) % len(styles)],
        }
        axes.plot(*zip(*line, strict=True), linewidth=1, label=None if name in told else _plain(name), **look)
        told.add(name)
    axes.set_xlabel("step")
    axes.set_ylabel("validation loss (training loss where there is one epoch), nats a token")
    if told:
        axes.legend(fontsize=6, frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))
