"""One `Table`, every format: console, markdown, latex, csv, html, json."""

from __future__ import annotations

import csv
import html
import io
import json
import os
import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from typing import Any, TextIO

from bench.cells import LEVEL, Cell, Mark
from bench.errors import UnknownName
from bench.tables import Column, Row, Section, Table

DEFAULT_WIDTH = 120
_KINDS = ("metric", "cost")
_COSTS = ("costs", "costs_per_1000")
"""Lists in a row's object, of one object a stage."""


def render(tables: Sequence[Table], style: str = "console", *, ansi: bool = False, width: int = DEFAULT_WIDTH) -> str:
    """The tables as text that ends with a newline.

    `style` is one of `STYLES`. `ansi` allows bold and underline on the console; `width` is the console's, in
    characters. Raises UnknownName for another style.
    """
    if style not in STYLES:
        raise UnknownName("table format", style, STYLES)
    if style == "console":
        return "\n".join(console(table, ansi=ansi, width=width) for table in tables)
    return STYLES[style](tables)


def wants_ansi(stream: TextIO | None = None) -> bool:
    """Whether a stream (default: standard output) is a terminal that may be given colour (see no-color.org)."""
    return (stream or sys.stdout).isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def _legend(table: Table, best: str, second: str, clear: str) -> str:
    """What the marks mean, for those that the table has."""
    marks = {cell.mark for section in table.sections for row in section.rows for cell in row.cells}
    told = {
        Mark.BEST: f"{best}: best",
        Mark.SECOND: f"{second}: second",
        Mark.CLEAR: f"{clear} (differences): p < {LEVEL}",
    }
    parts = [text for mark, text in told.items() if mark in marks]
    return f"{'; '.join(parts)}." if parts else ""


def _notes(table: Table, legend: str) -> list[str]:
    return [note for note in (legend, *table.notes) if note]


# --- console -----------------------------------------------------------------------------------------------------


def console(table: Table, *, ansi: bool = False, width: int = DEFAULT_WIDTH) -> str:
    """Plain text; without ANSI the best value has a `*`, the second a `_`. Wide tables are cut into blocks."""
    lines = [table.title, "=" * len(table.title), ""]
    for section in table.sections:
        if section.title:
            lines += [f"\x1b[1m{section.title}\x1b[0m" if ansi else section.title, ""]
        full = _blocks(section, width, ansi)
        tight = _blocks(_compact(section), width, ansi)
        narrow = len(tight) < len(full)
        for columns in tight if narrow else full:
            lines += [_grid(_compact(section) if narrow else section, columns, ansi), ""]
    legend = _legend(table, "bold", "underlined", "bold") if ansi else _legend(table, "*", "_", "!")
    for note in _notes(table, legend):
        lines += _wrapped(note, width)
    return "\n".join(lines) + "\n"


def _wrapped(note: str, width: int) -> list[str]:
    import textwrap

    return textwrap.wrap(
        note, max(width, 40), subsequent_indent="  ", break_long_words=False, break_on_hyphens=False
    ) or [""]


def _blocks(section: Section, width: int, ansi: bool) -> list[list[int]]:
    """Columns of each block: all if they fit, else quality and cost apart, each cut where it is too wide."""
    sizes = [
        max(len(column.title) + 2, *(len(_plain(row.cells[i], ansi)) for row in section.rows)) + 2
        for i, column in enumerate(section.columns)
    ]
    labels = [i for i, column in enumerate(section.columns) if column.kind == "label"]
    if sum(sizes) <= width:
        return [list(range(len(sizes)))]
    taken = sum(sizes[i] for i in labels)
    blocks: list[list[int]] = []
    for kind in _KINDS:
        members = [i for i, column in enumerate(section.columns) if column.kind == kind]
        blocks += _cut(members, sizes, width - taken)
    return [sorted([*labels, *block]) for block in blocks]


def _cut(members: Sequence[int], sizes: Sequence[int], room: int) -> list[list[int]]:
    """As few blocks as the room allows, of about equal length rather than with a lone last column."""
    for count in range(1, len(members) + 1):
        length = -(-len(members) // count)
        blocks = [list(members[i : i + length]) for i in range(0, len(members), length)]
        if all(sum(sizes[i] for i in block) <= room for block in blocks):
            return blocks
    return [[i] for i in members]


_CONSOLE_MARKS = {Mark.BEST: "*", Mark.SECOND: "_", Mark.CLEAR: "!", Mark.NONE: " "}
_ANSI_MARKS = {Mark.BEST: "\x1b[1m", Mark.SECOND: "\x1b[4m", Mark.CLEAR: "\x1b[1m"}


def _compact(section: Section) -> Section:
    """The same section without zeros before decimal points, for a window that would cut it into more blocks."""

    def short(cell: Cell) -> Cell:
        if cell.users is None:
            return cell
        return replace(cell, text=re.sub(r"(?<!\d)0\.", ".", cell.text).replace("p=1.000", "p=1.00"))

    return replace(section, rows=tuple(replace(row, cells=tuple(map(short, row.cells))) for row in section.rows))


def _plain(cell: Cell, ansi: bool) -> str:
    """The text with room for a mark behind the number, so that columns stay aligned."""
    if ansi or cell.users is None:
        return cell.text
    number, space, interval = cell.text.partition(" ")
    return f"{number}{_CONSOLE_MARKS[cell.mark]}{space}{interval}".rstrip()


def _grid(section: Section, columns: Sequence[int], ansi: bool) -> str:
    import tabulate

    def text(cell: Cell) -> str:
        plain = _plain(cell, ansi)
        return f"{_ANSI_MARKS[cell.mark]}{plain}\x1b[0m" if ansi and cell.mark in _ANSI_MARKS else plain

    rows: list[Any] = [[text(row.cells[i]) for i in columns] for row in section.rows if not row.ceiling]
    ceilings = [[text(row.cells[i]) for i in columns] for row in section.rows if row.ceiling]
    if rows and ceilings:
        rows.append(tabulate.SEPARATING_LINE)
    headers = [section.columns[i].title for i in columns]
    alignment = ["left" if section.columns[i].kind == "label" else "right" for i in columns]
    return tabulate.tabulate(
        [*rows, *ceilings],
        headers,
        tablefmt="simple",
        disable_numparse=True,
        colalign=alignment,
    )


# --- markdown, latex, html ---------------------------------------------------------------------------------------


def _arrow(column: Column, up: str, down: str) -> str:
    return "" if column.higher_is_better is None else f" {up if column.higher_is_better else down}"


def escape_markdown(text: str) -> str:
    """Text that markdown (with tables and inline HTML) shows as it is."""
    escaped = re.sub(r"([\\`*_{}\[\]|~$])", r"\\\1", text)
    return escaped.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def markdown(tables: Sequence[Table]) -> str:
    """GitHub-flavoured markdown: best in bold, second underlined."""

    def cell_text(cell: Cell) -> str:
        text = escape_markdown(cell.text) if cell.users is None else cell.text
        return {Mark.BEST: f"**{text}**", Mark.CLEAR: f"**{text}**", Mark.SECOND: f"<u>{text}</u>"}.get(cell.mark, text)

    lines: list[str] = []
    for table in tables:
        lines += [f"## {escape_markdown(table.title)}", ""]
        for section in table.sections:
            if section.title:
                lines += [f"### {escape_markdown(section.title)}", ""]
            heads = [escape_markdown(column.title) + _arrow(column, "↑", "↓") for column in section.columns]
            rules = [":---" if column.kind == "label" else "---:" for column in section.columns]
            grid = [heads, rules, *([cell_text(cell) for cell in row.cells] for row in section.rows)]
            lines += [f"| {' | '.join(cells)} |" for cells in grid]
            lines.append("")
        lines += [f"- {escape_markdown(note)}" for note in _notes(table, "")]
        legend = _legend(table, "**bold**", "<u>underlined</u>", "**bold**")
        lines += [f"- {legend}", ""] if legend else [""]
    return "\n".join(lines).rstrip("\n") + "\n"


_LATEX = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    '"': r"\textquotedbl{}",
    **{character: f"\\{character}" for character in "&%$#_{}"},
}


def escape_latex(text: str) -> str:
    """Text that LaTeX sets as it is (with T1 or Unicode fonts)."""
    return "".join(_LATEX.get(character, character) for character in text)


def latex(tables: Sequence[Table]) -> str:
    """A `table*` environment for each section, for the packages booktabs and graphicx."""
    wrap = {Mark.BEST: r"\textbf{%s}", Mark.CLEAR: r"\textbf{%s}", Mark.SECOND: r"\underline{%s}"}

    def line(row: Row) -> str:
        texts = [wrap.get(cell.mark, "%s").replace("%s", escape_latex(cell.text)) for cell in row.cells]
        return "{} " + " & ".join(texts) + r" \\"  # the group keeps a leading "[" from being read as an option

    lines = ["% needs \\usepackage{booktabs,graphicx}"]
    for table in tables:
        for section in table.sections:
            arrows = [_arrow(column, r"$\uparrow$", r"$\downarrow$") for column in section.columns]
            heads = [escape_latex(c.title) + arrow for c, arrow in zip(section.columns, arrows, strict=True)]
            rows = [line(row) for row in section.rows if not row.ceiling]
            ceilings = [line(row) for row in section.rows if row.ceiling]
            caption = escape_latex(". ".join(filter(None, (table.title, section.title))))
            align = "".join("l" if column.kind == "label" else "r" for column in section.columns)
            lines += [r"\begin{table*}[t]", r"\centering", rf"\caption{{{caption}}}"]
            lines += [r"\resizebox{\textwidth}{!}{%", rf"\begin{{tabular}}{{{align}}}", r"\toprule"]
            lines += [" & ".join(heads) + r" \\", r"\midrule", *rows]
            lines += [r"\midrule", *ceilings] if rows and ceilings else ceilings
            lines += [r"\bottomrule", r"\end{tabular}}", r"\end{table*}"]
        legend = _legend(table, "bold", "underlined", "bold")
        notes = " ".join(_notes(table, legend))
        lines += [r"{\footnotesize\noindent " + escape_latex(notes) + r"\par}", ""]
    return "\n".join(lines).rstrip("\n") + "\n"


_CSS = """
:root { color-scheme: light dark; --ink: #1c2024; --paper: #fff; --soft: #60646c; --line: #d9d9e0; --band: #f6f7f9; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #edeef0; --paper: #16181b; --soft: #a0a6ae; --line: #363a3f; --band: #1f2226; }
}
body { margin: 2rem auto; max-width: 90rem; padding: 0 1rem; background: var(--paper); color: var(--ink);
  font: 15px/1.5 system-ui, sans-serif; }
h1 { font-size: 1.4rem; } h2 { font-size: 1.1rem; margin-top: 2rem; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: .35rem .8rem; text-align: right; white-space: nowrap; }
thead th { border-bottom: 2px solid var(--line); }
th:first-child, td:first-child { text-align: left; position: sticky; left: 0; background: var(--paper); }
tbody tr:hover > * { background: var(--band); }
tbody.ceiling tr:first-child > * { border-top: 1px solid var(--line); }
tbody.ceiling { color: var(--soft); font-style: italic; }
tbody th { font-weight: inherit; }
.interval { color: var(--soft); font-size: .85em; font-weight: normal; }
.best, .clear { font-weight: 700; } .second { text-decoration: underline; text-underline-offset: .2em; }
ul.notes { color: var(--soft); font-size: .85rem; padding-left: 1.2rem; overflow-wrap: anywhere; }
""".strip()


def html_page(tables: Sequence[Table]) -> str:
    """One self-contained page, readable in light and dark."""
    title = html.escape(", ".join(table.title for table in tables))
    body = "\n".join(_html_table(table) for table in tables)
    return (
        f'<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n<title>{title}</title>\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<style>\n{_CSS}\n</style>\n</head>\n<body>\n{body}\n</body>\n</html>\n"
    )


def _html_table(table: Table) -> str:
    parts = [f"<h1>{html.escape(table.title)}</h1>"]
    for section in table.sections:
        if section.title:
            parts.append(f"<h2>{html.escape(section.title)}</h2>")
        heads = "".join(f'<th scope="col">{html.escape(c.title)}{_arrow(c, "↑", "↓")}</th>' for c in section.columns)
        parts.append(f'<div class="scroll"><table>\n<thead><tr>{heads}</tr></thead>')
        for ceiling in (False, True):
            rows = [_html_row(row) for row in section.rows if row.ceiling == ceiling]
            if rows:
                parts += ['<tbody class="ceiling">' if ceiling else "<tbody>", *rows, "</tbody>"]
        parts.append("</table></div>")
    notes = _notes(table, _legend(table, "Bold", "underlined", "bold"))
    parts += ['<ul class="notes">', *(f"<li>{html.escape(note)}</li>" for note in notes), "</ul>"]
    return "\n".join(parts)


def _html_row(row: Row) -> str:
    first, *others = row.cells
    cells = []
    for cell in others:
        number, space, interval = cell.text.partition(" ") if cell.users is not None else (cell.text, "", "")
        text = html.escape(number) + (f'{space}<span class="interval">{html.escape(interval)}</span>' if space else "")
        cells.append(f'<td class="{cell.mark}">{text}</td>' if cell.mark else f"<td>{text}</td>")
    return f'<tr><th scope="row">{html.escape(first.text)}</th>{"".join(cells)}</tr>'


# --- for machines ------------------------------------------------------------------------------------------------


def _objects(table: Table) -> list[dict[str, Any]]:
    """One object a row, differences joined to scores; numbers raw."""
    rows: dict[tuple[str, Any], dict[str, Any]] = {}
    for section in table.sections:
        for row in section.rows:
            cells = {column.key: cell for column, cell in zip(section.columns, row.cells, strict=True)}
            key = (section.group, cells["method"].value)
            metrics = {c.key: raw_cell(cells[c.key]) for c in section.columns if c.kind == "metric"}
            if section.repeats:
                continue
            if section.costs:
                paid = {c.key: cells[c.key].value for c in section.columns if c.key != "method"}
                rows[key].setdefault(section.costs, []).append(paid)
                continue
            if section.baseline is not None:
                told = {name: raw | _tested(cells[name]) for name, raw in metrics.items()}
                rows[key]["difference"] = {"baseline": section.baseline, "metrics": told}
                continue
            plain = {c.key: cells[c.key].value for c in section.columns if c.kind != "metric"}
            rows[key] = {
                "dataset": table.dataset,
                "group": section.group,
                **plain,
                "ceiling": row.ceiling,
                "metrics": {name: raw | _spread(cells[name]) for name, raw in metrics.items()},
                "difference": None,
            }
    return list(rows.values())


def _spread(cell: Cell) -> dict[str, Any]:
    """What a score has and a difference has not."""
    sd, seeds = (None, None) if cell.spread is None else (cell.spread.sd, cell.spread.seeds)
    return {"seed_sd": sd, "seed_n": seeds}


def _tested(cell: Cell) -> dict[str, Any]:
    """What a difference has and a score has not."""
    wins = None if cell.wins is None else asdict(cell.wins)
    return {"p": cell.p, "p_holm": cell.p_holm, "wins": wins, "detectable": cell.detectable}


def raw_cell(cell: Cell) -> dict[str, Any]:
    """What machines read of a cell with an estimate."""
    raw = {"value": cell.value, "low": cell.low, "high": cell.high, "users": cell.users, "missing": cell.missing}
    return {**raw, "mark": cell.mark.value or None}


def json_text(tables: Sequence[Table]) -> str:
    """A JSON array with one object for each row of each table."""
    rows = [row for table in tables for row in _objects(table)]
    return json.dumps(rows, indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def csv_text(tables: Sequence[Table]) -> str:
    """One line a row over all tables; a metric has the columns NAME, NAME_low, NAME_high (empty where unknown)."""
    lines = [_flat(row) for table in tables for row in _objects(table)]
    header = list(dict.fromkeys(key for line in lines for key in line))
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, header, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(lines)
    return buffer.getvalue()


def _flat(row: dict[str, Any]) -> dict[str, Any]:
    line = {key: value for key, value in row.items() if key not in ("metrics", "difference", *_COSTS)}
    for name, raw in row["metrics"].items():
        line[name] = raw["value"]
        line |= {f"{name}_{part}": raw[part] for part in ("low", "high", "users", "missing", "seed_sd", "seed_n")}
    difference = row["difference"] or {"baseline": None, "metrics": {}}
    line["baseline"] = difference["baseline"]
    for name, raw in difference["metrics"].items():
        counts = raw["wins"] or dict.fromkeys(("wins", "ties", "losses"))
        told = {part: raw[part] for part in ("low", "high", "users", "p", "p_holm", "detectable")} | counts
        line |= {f"{name}_difference": raw["value"]}
        line |= {f"{name}_difference_{part}": value for part, value in told.items()}
    for key in _COSTS:
        for cost in row.get(key, []):
            stage = "_".join(cost["stage"].replace("-", " ").split())
            line |= {f"{key}_{stage}_{what}": value for what, value in cost.items() if what != "stage"}
    return line


def _console_all(tables: Sequence[Table]) -> str:
    return "\n".join(console(table) for table in tables)


STYLES: dict[str, Callable[[Sequence[Table]], str]] = {
    "console": _console_all,
    "markdown": markdown,
    "latex": latex,
    "csv": csv_text,
    "html": html_page,
    "json": json_text,
}
"""Format name -> renderer."""
