// The table: sorts, filters, and tells of every cell where it comes from.

const MODES = [["scores", "Scores"], ["differences", "Differences"], ["wins", "Wins"], ["detectable", "Detectable"]];
const SIGNS = { up: ["▲", "better than the baseline, p < "], down: ["▼", "worse than the baseline, p < "] };

async function against(board, baseline) {
  if (baseline === null || baseline === undefined) return null;
  if (board.difference && board.difference.baseline === baseline) return board.difference;
  return load(board.baselines[baseline]);
}

function chosenBaseline(board, query) {
  const wanted = query.get("baseline");
  return wanted !== null && wanted in board.baselines ? wanted : board.baseline ?? Object.keys(board.baselines)[0] ?? null;
}

function baselinePicker(board, baseline) {
  const names = Object.keys(board.baselines);
  return names.length ? select("Baseline", names, baseline, (value) => change({ baseline: value })) : null;
}

// What a cell shows in a mode: its texts, and the number to sort by.
function cellOf(row, column, mode, difference) {
  if (column.kind !== "metric" || mode === "scores") {
    const cell = row.cells[column.key];
    return { cell, text: cell.text, value: cell.value, mark: cell.mark };
  }
  const cell = difference?.rows[row.label]?.[column.key];
  if (!cell) return { cell: null, text: difference?.baseline === row.label ? "baseline" : "–", value: null, mark: null };
  if (mode === "differences") return { cell, text: cell.text, value: cell.value, mark: cell.mark };
  if (mode === "wins") return { cell, text: cell.wins_text.replace(/\//g, " / "), value: cell.wins ? cell.wins[0] - cell.wins[2] : null };
  return { cell, text: cell.detectable_text, value: cell.detectable };
}

// Whether a row is clearly better or worse than the baseline: the table's own corrected p decides.
function sign(row, column, difference) {
  const cell = difference?.rows[row.label]?.[column.key];
  if (!cell || cell.mark !== "clear" || column.better === null) return null;
  return (cell.value > 0) === column.better ? "up" : "down";
}

function scaleOf(board, column, mode, difference) {
  const ends = board.rows.map((row) => cellOf(row, column, mode, difference).cell)
    .filter((cell) => cell && cell.low !== null && cell.low !== undefined).flatMap((cell) => [cell.low, cell.high]);
  if (mode === "differences") ends.push(0);
  return ends.length > 1 ? [Math.min(...ends), Math.max(...ends)] : null;
}

function whisker(cell, scale, zero) {
  const [low, high] = scale;
  const x = (value) => 3 + (74 * (value - low)) / (high - low || 1);
  return h("svg", { class: "whisker", width: 80, height: 9, viewBox: "0 0 80 9", "aria-hidden": "true" },
    zero ? h("line", { class: "zero", x1: x(0), x2: x(0), y1: 0, y2: 9 }) : null,
    h("line", { x1: x(cell.low), x2: x(cell.high), y1: 4.5, y2: 4.5 }),
    h("circle", { cx: x(cell.value), cy: 4.5, r: 2.6 }));
}

function bodyCell(board, row, column, mode, difference, scale) {
  const { cell, text, mark } = cellOf(row, column, mode, difference);
  const interval = cell && cell.low !== null && cell.low !== undefined && (mode === "scores" || mode === "differences");
  const [head, rest] = interval ? [text.split(" ")[0], text.slice(text.indexOf(" ") + 1)] : [text, ""];
  const [span, more] = rest.includes("] ") ? [rest.slice(0, rest.indexOf("] ") + 1), rest.slice(rest.indexOf("] ") + 2)] : [rest, ""];
  const direction = mode === "scores" && column.kind === "metric" ? sign(row, column, difference) : null;
  const marks = { best: "best", second: "second", clear: "clear" };
  const words = [mark === "best" ? "best" : null, mark === "second" ? "second" : null,
    direction ? SIGNS[direction][1] + report.level : null].filter(Boolean).join(", ");
  const content = [
    h("span", { class: `value ${marks[mark] || ""}` }, head),
    direction ? h("span", { class: `sign ${direction}`, "aria-hidden": "true" }, SIGNS[direction][0]) : null,
    words ? h("span", { class: "unseen" }, ` (${words}) `) : null,
    span ? h("span", { class: "rest" }, span) : null,
    interval && scale ? h("span", { class: "under" }, more || null, whisker(cell, scale, mode === "differences")) : more || null,
  ];
  return h("td", {}, h("button", {
    type: "button", class: "cell", tabindex: "-1", "aria-haspopup": "dialog",
    onclick: () => openOrigin(board, row, column, mode, difference),
  }, content));
}

// Ceilings stay below whatever the order: they are not ranked.
function ordered(board, columns, mode, difference, sort) {
  const rows = [...board.rows];
  if (!sort) return rows;
  const column = columns.find((one) => one.key === sort.key);
  if (!column) return rows;
  const turn = sort.down ? -1 : 1;
  const value = (row) => (column.kind === "label" ? row.label : cellOf(row, column, mode, difference).value);
  return rows.sort((a, b) => {
    if (a.ceiling !== b.ceiling) return a.ceiling ? 1 : -1;
    const [x, y] = [value(a), value(b)];
    if (x === null || y === null) return (x === null) - (y === null);
    return turn * (typeof x === "string" ? x.localeCompare(y) : x - y);
  });
}

const SORTS = { ascending: "▲", descending: "▼", none: "" };

function headCell(column, sort, board, query) {
  const state = sort && sort.key === column.key ? (sort.down ? "descending" : "ascending") : "none";
  const arrow = column.better === true ? " ↑" : column.better === false ? " ↓" : "";
  const first = column.kind === "label" || column.better === false ? "up" : "down";
  const next = state === "none" ? first : (state === "descending") === (first === "down") ? (first === "down" ? "up" : "down") : null;
  return h("th", { scope: "col", "aria-sort": state === "none" ? "none" : state },
    h("button", { type: "button", class: "sort", "data-key": column.key,
      onclick: () => {
        change({ sort: next ? `${column.key}.${next}` : null });
        say(next ? `sorted by ${column.title}, ${next === "down" ? "largest" : "smallest"} first` : "in the table's own order");
      } },
    `${column.title}${arrow}`, column.better === null ? null : h("span", { class: "unseen" }, column.better ? " (higher is better)" : " (lower is better)"),
    h("span", { class: "arrow", "aria-hidden": "true" }, SORTS[state])));
}

function parseSort(text) {
  const cut = (text || "").lastIndexOf(".");
  return cut < 0 ? null : { key: text.slice(0, cut), down: text.slice(cut + 1) === "down" };
}

function passes(row, words, kind) {
  if (kind === "methods" && row.variant !== null) return false;
  if (kind === "variants" && row.variant === null) return false;
  const label = row.label.toLowerCase();
  return words.every((word) => label.includes(word));
}

async function leaderboardView(board, query) {
  const mode = MODES.some(([key]) => key === query.get("show")) ? query.get("show") : "scores";
  const baseline = chosenBaseline(board, query);
  const difference = await against(board, baseline);
  const hidden = new Set((query.get("hide") || "").split(",").filter(Boolean));
  const columns = board.columns.filter((c) => (mode === "scores" || c.kind !== "cost"));
  const visible = columns.filter((c) => c.kind === "label" || !hidden.has(c.key));
  const sort = parseSort(query.get("sort"));
  const count = h("span", { class: "count" });
  const filter = h("input", { type: "search", value: query.get("q") || "", placeholder: "dep, lora …", "aria-label": "Filter rows by name", "data-filter": "rows",
    oninput: () => { change({ q: filter.value }, true); refilter(); say(count.textContent); } });
  const variants = board.rows.some((row) => row.variant !== null);
  const controls = h("form", { class: "controls", onsubmit: (event) => event.preventDefault() },
    difference ? choice("Show", MODES, mode, (value) => change({ show: value === "scores" ? null : value })) : null,
    baselinePicker(board, baseline),
    h("label", { class: "field" }, h("span", {}, "Filter"), filter),
    variants ? select("Rows", [["", "all"], ["methods", "methods"], ["variants", "controls"]], query.get("rows") || "", (value) => change({ rows: value })) : null,
    columnPicker(columns, hidden), count);
  const bodies = h("table", { class: "board" });
  const caption = mode === "scores"
    ? `${board.title}: scores with 95 % intervals over users, and costs`
    : difference ? { differences: difference.title, wins: `Users won / tied / lost against ${baseline}`, detectable: `Smallest detectable difference to ${baseline}` }[mode] : board.title;
  const rows = ordered(board, columns, mode, difference, sort);
  const scales = new Map(visible.map((column) => [column.key, column.kind === "metric" ? scaleOf(board, column, mode, difference) : null]));
  bodies.append(h("caption", {}, caption),
    h("thead", {}, h("tr", {}, visible.map((column) => headCell(column, sort, board, query)))),
    ...[false, true].map((ceiling) => h("tbody", { class: ceiling ? "ceiling" : null }, rows.filter((row) => row.ceiling === ceiling).map((row) =>
      h("tr", { "data-row": row.label, class: row.label === baseline ? "baseline" : null },
        h("th", { scope: "row" }, row.shown, row.label === baseline ? h("span", { class: "tag" }, "baseline") : null,
          row.ceiling ? h("span", { class: "tag" }, "ceiling") : null),
        visible.slice(1).map((column) => bodyCell(board, row, column, mode, difference, scales.get(column.key))))))));
  roving(bodies);
  function refilter() {
    const words = filter.value.toLowerCase().split(/\s+/).filter(Boolean);
    let left = 0;
    for (const row of board.rows) {
      const element = [...bodies.querySelectorAll("tr[data-row]")].find((tr) => tr.dataset.row === row.label);
      element.hidden = !passes(row, words, query.get("rows") || "");
      left += !element.hidden;
    }
    count.textContent = left === board.rows.length ? plural(left, "row") : `${left} of ${plural(board.rows.length, "row")}`;
  }
  refilter();
  return [controls, h("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": caption }, bodies), legend(mode, difference, baseline), notes(board)];
}

function columnPicker(columns, hidden) {
  const set = (keys) => change({ hide: [...keys].join(",") });
  return h("details", { class: "menu" }, h("summary", {}, "Columns"),
    h("div", {}, columns.filter((c) => c.kind !== "label").map((column) => h("label", {},
      h("input", { type: "checkbox", checked: !hidden.has(column.key), onchange: (event) => {
        if (event.target.checked) hidden.delete(column.key); else hidden.add(column.key);
        set(hidden);
      } }), column.title))));
}

function legend(mode, difference, baseline) {
  const parts = mode === "scores"
    ? [h("b", {}, "bold"), " best, ", h("u", {}, "underlined"), " second",
      difference ? [", ", h("span", { class: "sign up" }, "▲"), " / ", h("span", { class: "sign down" }, "▼"), ` better / worse than ${baseline} (p < ${report.level} after Holm's correction)`] : null]
    : mode === "differences" ? [h("b", {}, "bold"), ` p < ${report.level} after Holm's correction`] : null;
  return h("p", { class: "legend" }, parts, parts ? ". " : null,
    "Every number tells where it comes from: arrow keys move between cells, Enter opens one.");
}

function notes(board) {
  return h("details", { class: "notes", open: innerWidth > 700 }, h("summary", {}, "How these figures came about"),
    h("ul", {}, board.notes.map((note) => h("li", {}, note))));
}

// One stop of the Tab key for the whole grid; arrows move within it.
function roving(table) {
  const grid = () => [...table.querySelectorAll("tbody tr")].filter((row) => !row.hidden).map((row) => [...row.querySelectorAll("button.cell")]);
  const all = table.querySelectorAll("button.cell");
  if (all.length) all[0].tabIndex = 0;
  table.addEventListener("keydown", (event) => {
    const cells = grid();
    const y = cells.findIndex((row) => row.includes(event.target));
    if (y < 0) return;
    const x = cells[y].indexOf(event.target);
    const moves = { ArrowRight: [0, 1], ArrowLeft: [0, -1], ArrowDown: [1, 0], ArrowUp: [-1, 0], Home: [0, -x], End: [0, cells[y].length - 1 - x] };
    const move = moves[event.key];
    if (!move) return;
    const target = cells[y + move[0]]?.[x + move[1]];
    if (target) {
      event.target.tabIndex = -1;
      target.tabIndex = 0;
      target.focus();
      target.scrollIntoView({ block: "nearest", inline: "nearest" });
    }
    event.preventDefault();
  });
}
