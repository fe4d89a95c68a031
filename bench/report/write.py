"""Writes the page: gathers what it shows, then puts it in place as a whole."""

from __future__ import annotations

import hashlib
import sys
import tempfile
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from bench.cells import LEVEL
from bench.errors import UnknownName, UsageError
from bench.files import check_writable
from bench.report import pack
from bench.report.asked import prompts
from bench.report.boards import Board, differences_json, make_boards, table_json
from bench.report.costs import costs_json
from bench.report.curves import curves
from bench.report.origin import origins
from bench.report.people import people_json, user_names
from bench.report.texts import Asked, asked, label_of, pieces
from bench.rescore import left_out
from bench.stats import DEFAULT_RESAMPLES
from bench.store import StoredRun, find_runs

PROMPTS = 50
"""Examples of each board whose prompts are written again, by default."""


def report(
    folders: Sequence[Path],
    out: Path,
    *,
    dataset: str | None = None,
    metrics: Sequence[str] | None = None,
    baseline: str | None = None,
    baselines: Sequence[str] = (),
    mixed: bool = False,
    prompt_examples: int = PROMPTS,
    figures: bool = False,
    resamples: int = DEFAULT_RESAMPLES,
) -> Path:
    """Writes the report of all complete runs in `folders` into `out` and returns its page.

    `out` is new, empty, or an earlier report, which is replaced as a whole. The same runs give the same bytes. Raises
    UsageError, with nothing written, where there is nothing to show or `out` cannot be written, MissingPackage for
    `figures` without matplotlib, and what `bench.tables.leaderboards` raises.
    """
    if figures:
        from bench.report.figures import need_matplotlib

        need_matplotlib()
    _check_out(out)
    runs = _runs(folders, dataset)
    boards = make_boards(
        runs, metrics=metrics, baseline=baseline, baselines=baselines, mixed=mixed, resamples=resamples
    )
    with tempfile.TemporaryDirectory(prefix=f".{out.name}.", dir=out.resolve().parent) as temporary:
        made = Path(temporary) / "report"
        _write(made, boards, folders, prompt_examples)
        if figures:
            from bench.report.figures import save_figures

            save_figures(boards, made / "figures")
        _replace(made, out, Path(temporary) / "old")
    return out / "index.html"


def _runs(folders: Sequence[Path], dataset: str | None) -> list[StoredRun]:
    """The runs of all folders, each once. Says on standard error what is left out."""
    found: dict[Path, StoredRun] = {}
    for folder in folders:
        listing = find_runs(folder)
        for note in left_out(listing):
            print(note, file=sys.stderr)
        if not listing.runs:
            raise UsageError(
                f"no complete run under {folder}; make one with: python -m bench run --methods nonperso,rag"
            )
        found |= {run.path.resolve(): run for run in listing.runs if run.path.resolve() not in found}
    names = {run.dataset for run in found.values()}
    if dataset is not None and dataset not in names:
        raise UnknownName("dataset of these runs", dataset, names)
    return [run for run in found.values() if dataset in (None, run.dataset)]


def _check_out(out: Path) -> None:
    """Nothing that is no report of ours is written over, and whether `out` can be written is known before the work."""
    if out.is_symlink() or (out.exists() and not out.is_dir()):
        raise UsageError(f"--out {out} is there and not a folder; choose another")
    page = out / "index.html"
    if out.exists() and any(out.iterdir()):
        ours = page.is_file() and f'content="{pack.MARK}"' in page.read_text(encoding="utf-8", errors="replace")
        if not ours:
            raise UsageError(f"--out {out} holds other things than a report; choose a new or empty folder")
    check_writable(out.resolve().parent)
    if out.exists():
        check_writable(out)


def _replace(made: Path, out: Path, old: Path) -> None:
    try:
        if out.exists():
            out.replace(old)
        made.replace(out)
    except OSError as error:
        raise UsageError(f"cannot write {out}: {error.strerror}; choose another folder with --out") from error


# -- files ------------------------------------------------------------------------------------------------------------


class _Data:
    """The folder of data scripts, and a hash over all that is written into it."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True)
        self._folder, self._state = folder, hashlib.sha256()

    def write(self, name: str, value: Any) -> None:
        text = pack.data_script(name, value)
        self._state.update(text.encode())
        (self._folder / f"{name}.js").write_text(text, encoding="ascii", newline="\n")

    @property
    def nonce(self) -> str:
        return self._state.hexdigest()[:32]


def _write(made: Path, boards: Sequence[Board], roots: Sequence[Path], prompt_examples: int) -> None:
    data = _Data(made / "data")
    told = []
    for board in boards:
        print(f"{board.title}: {len(board.entries)} rows, {len(board.axis.examples)} examples", file=sys.stderr)
        told.append(_board(board, data, roots, prompt_examples))
    data.write("main", {"version": version("dep-bench"), "level": LEVEL, "boards": told})
    folder = made / "assets"
    folder.mkdir()
    texts = {"report.js": pack.own_script(), **{name: pack.library(name) for name in (*pack.LIBRARIES, *pack.LICENSES)}}
    for name, text in texts.items():
        (folder / name).write_text(text, encoding="utf-8", newline="\n")
    (made / "index.html").write_text(pack.page("dep-bench report", data.nonce), encoding="utf-8", newline="\n")


def _board(board: Board, data: _Data, roots: Sequence[Path], prompt_examples: int) -> dict[str, Any]:
    """Writes what a board loads on demand, and returns what the page needs at once."""
    known = asked(board)
    names = {}
    for number, (label, table) in enumerate(board.tables().items()):
        names[label] = f"{board.id}-against-{number}"
        if label != board.baseline:
            data.write(names[label], differences_json(table))
    for number, metric in enumerate(board.infos):
        data.write(f"{board.id}-people-{number}", people_json(board, metric))
    data.write(f"{board.id}-origin", origins(board, roots))
    trained = curves(board)
    data.write(f"{board.id}-curves", trained)
    return {
        "id": board.id,
        "title": board.title,
        "dataset": board.table.dataset,
        **table_json(board),
        "metrics": [
            {"name": name, "better": info.higher_is_better, "reducer": info.reducer, "signature": info.signature}
            for name, info in board.infos.items()
        ],
        "baseline": board.baseline,
        "baselines": names,
        "difference": differences_json(board.table) if board.baseline is not None else None,
        "costs": costs_json(board),
        "curves": len(trained),
        "users": len(user_names(board)),
        "examples": _examples(board, known, data, prompt_examples),
    }


def _examples(board: Board, known: Asked, data: _Data, prompt_examples: int) -> dict[str, Any]:
    """Writes the examples' index, pieces and prompts; returns how many there are of each."""
    index: dict[str, list[Any]] = {"ids": [], "users": [], "labels": [], "pieces": []}
    shown = list(board.axis.examples)[:prompt_examples]
    written, reasons = prompts(board, known, shown)
    count = 0
    prompted: list[int] = []
    for number, piece in enumerate(pieces(board, known)):
        count = number + 1
        data.write(f"{board.id}-texts-{number}", piece)
        for example in piece:
            entry = {"ids": example["id"], "users": example["user"], "labels": label_of(example), "pieces": number}
            for key, value in entry.items():
                index[key].append(value)
        hashes = {t["prompt"] for example in piece for texts in example["texts"] for t in texts if t is not None}
        if here := {h: written[h] for h in sorted(hashes & written.keys())}:
            data.write(f"{board.id}-prompts-{number}", here)
            prompted.append(number)
    data.write(f"{board.id}-examples", index)
    return {
        "count": len(board.axis.examples),
        "pieces": count,
        "prompted": len(shown),
        "prompt_pieces": prompted,
        "no_prompt": reasons,
        "unknown": known.reason,
    }
