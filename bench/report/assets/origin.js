// Where a number comes from.

async function openOrigin(board, row, column, mode, difference) {
  const dialog = byId("origin");
  const { cell, text } = cellOf(row, column, mode, difference);
  const metric = board.metrics.find((one) => one.name === column.key);
  dialog.replaceChildren(
    h("header", {}, h("h2", { id: "origin-title" }, `${column.title} of ${row.label}`),
      h("button", { type: "button", class: "quiet", "aria-label": "Close", onclick: () => dialog.close() }, "Close ✕")),
    h("p", { class: "big" }, text),
    facts(numberFacts(cell, mode, metric, difference, board)), h("div", { class: "runs" }, h("p", { class: "soft" }, "reading …")));
  dialog.showModal();
  try {
    const runs = (await load(`${board.id}-origin`))[board.rows.indexOf(row)];
    dialog.querySelector(".runs").replaceChildren(h("h3", {}, `From ${plural(runs.length, "run")}`), ...runs.map((run, i) => runCard(run, i === 0)));
  } catch (error) {
    dialog.querySelector(".runs").replaceChildren(problem(error));
  }
}

function numberFacts(cell, mode, metric, difference, board) {
  if (!cell) return [];
  const exact = (value) => (value === null || value === undefined ? null : String(value));
  const found = [["exact value", exact(cell.value)]];
  if (cell.low !== null && cell.low !== undefined) found.push(["95 % interval", `${exact(cell.low)} to ${exact(cell.high)}`]);
  found.push(["users", exact(cell.users)], ["values missing", cell.users === null ? null : exact(cell.missing)]);
  if (cell.spread) found.push(["standard deviation over seeds", `${cell.spread[0]} (${cell.spread[1]} seeds)`]);
  if (mode !== "scores") {
    found.push(["baseline", difference.baseline], ["p", exact(cell.p)], ["p after Holm's correction", exact(cell.p_holm)],
      ["users won / tied / lost", cell.wins ? cell.wins.join(" / ") : null], ["smallest detectable difference", exact(cell.detectable)]);
  }
  if (metric) found.push(["metric's signature", metric.signature], ["better", metric.better === null ? "neither" : metric.better ? "higher" : "lower"]);
  return found.filter(([, value]) => value !== null && value !== undefined);
}

function facts(pairs) {
  return h("dl", { class: "facts" }, pairs.map(([name, value]) => [h("dt", {}, name), h("dd", {}, value)]));
}

function runCard(run, open) {
  const packages = Object.entries(run.packages).map(([name, number]) => `${name} ${number}`).join(", ");
  const git = run.git ? `${run.git.commit}${run.git.dirty ? ", with changes that are not committed" : ""}` : null;
  const machine = [run.machine.device, run.machine.cpu, run.machine.cores ? plural(run.machine.cores, "core") : null, run.machine.platform].filter(Boolean).join(", ");
  const engine = run.description.engine || {};
  const list = [["folder", run.folder], ["key", run.key], ["code (git)", git], ["hardware", machine || null],
    ["model", [engine.model, engine.revision, engine.dtype, engine.backend].filter(Boolean).join(", ") || engine.name],
    ["Python", run.python], ["packages", packages || null]].filter(([, value]) => value);
  return h("details", { class: "run", open }, h("summary", {}, `seed ${run.seed}, ${run.key}`),
    run.command ? h("div", { class: "command" }, h("pre", { tabindex: "0" }, h("code", {}, run.command)), copyButton(run.command)) : null,
    facts(list),
    h("details", {}, h("summary", {}, "Config"), h("pre", { tabindex: "0" }, JSON.stringify({ ...run.description, fit: run.fit, totals: run.totals }, null, 1))));
}

function copyButton(text, label = "Copy") {
  const button = h("button", { type: "button", class: "quiet", onclick: async () => {
    try { await navigator.clipboard.writeText(text); button.textContent = "Copied"; say("copied"); } catch { button.textContent = "Select and copy"; }
  } }, label);
  return button;
}

async function runsView(board) {
  const runs = await load(`${board.id}-origin`);
  return [h("p", { class: "lead" }, "Every run behind this board. Keys, logins and paths of the machine are left out."),
    ...board.rows.map((row, i) => h("section", { class: "runs" }, h("h3", {}, row.label), runs[i].map((run) => runCard(run, false))))];
}
