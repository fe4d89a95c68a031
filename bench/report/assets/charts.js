// Charts drawn with Observable Plot: quality against cost, differences as a forest, training curves.

const width = () => Math.max(280, Math.min(byId("view").clientWidth - 2, 1200));
const narrow = () => innerWidth < 700;

function plot(Plot, options) {
  return Plot.plot({ style: { background: "none", fontSize: "12px", fontFamily: "inherit", overflow: "visible" }, ...options });
}

const metricNamed = (board, name) => board.metrics.find((one) => one.name === name) || board.metrics[0];

function metricPicker(board, metric, only) {
  const names = board.metrics.filter(only || (() => true)).map((one) => one.name);
  return select("Metric", names, metric.name, (value) => change({ metric: value }));
}

const ticks = (low, high) => (low > 0 && high / low > 20 ? "log" : "linear");
const arrowOf = (metric) => (metric.better === true ? ", higher is better" : metric.better === false ? ", lower is better" : "");

// -- quality against cost ---------------------------------------------------------------------------------------------

async function costView(board, query) {
  const Plot = await libraries();
  const metric = metricNamed(board, query.get("metric"));
  const cost = board.costs.find((one) => one.key === query.get("cost")) || board.costs[0];
  const front = new Set(cost.front[metric.name]);
  const points = board.rows.map((row, i) => ({ label: row.label, ceiling: row.ceiling, x: cost.values[i], ...row.cells[metric.name], front: front.has(row.label) }));
  const known = points.filter((p) => p.x !== null && p.value !== null && p.value !== undefined);
  const left = points.filter((p) => !known.includes(p)).map((p) => p.label);
  const xs = known.map((p) => p.x);
  const type = xs.length ? ticks(Math.min(...xs), Math.max(...xs)) : "linear";
  const kind = (p) => (p.ceiling ? "ceiling" : p.front ? "front" : "other");
  const line = known.filter((p) => p.front).sort((a, b) => a.x - b.x);
  const drawing = known.length ? plot(Plot, {
    width: width(), height: narrow() ? 380 : 520, marginLeft: 52, marginRight: narrow() ? 16 : 40, marginTop: 26, marginBottom: 50, insetLeft: 24, insetRight: narrow() ? 60 : 110, insetTop: 14, insetBottom: 14,
    x: { type, label: `${cost.title}${type === "log" ? " (log)" : ""} →`, grid: true, ticks: narrow() ? 4 : 8, tickFormat: (d) => compact(d), labelAnchor: "right" },
    y: { label: `${metric.name}${arrowOf(metric)}`, grid: true, labelAnchor: "top", reverse: metric.better === false },
    marks: [
      Plot.line(line, { x: "x", y: "value", curve: metric.better === false ? "step-after" : "step-after", stroke: "var(--accent)", strokeWidth: 1.5, strokeDasharray: "5 3" }),
      Plot.ruleX(known.filter((p) => p.low !== null), { x: "x", y1: "low", y2: "high", stroke: "var(--soft)", strokeOpacity: 0.6 }),
      Plot.dot(known, {
        x: "x", y: "value", r: 5.5, strokeWidth: 1.75,
        symbol: (p) => ({ front: "diamond2", ceiling: "triangle", other: "circle" })[kind(p)],
        fill: (p) => (p.front ? "var(--accent)" : "var(--paper)"), stroke: (p) => (p.front ? "var(--accent)" : "var(--ink)"),
        title: (p) => `${p.label}\n${metric.name} ${p.text}\n${cost.title}: ${figureText(p.x)}`, tip: true,
      }),
    ],
  }) : null;
  if (drawing) labels(drawing, known);
  return [
    h("form", { class: "controls", onsubmit: (event) => event.preventDefault() }, metricPicker(board, metric),
      select("Cost", board.costs.map((one) => [one.key, one.title]), cost.key, (value) => change({ cost: value }))),
    figure(`${metric.name} against ${cost.title.toLowerCase()}`, drawing, ["row", cost.title, metric.name, "on the front"],
      points.map((p) => [p.label, figureText(p.x), p.text ?? "–", p.front ? "yes" : p.ceiling ? "ceiling" : "no"]),
      "Lines are 95 % intervals over users."),
    h("p", { class: "legend" }, h("span", { class: "key front", "aria-hidden": "true" }, "◆"), metric.better === null ? ` ${metric.name} has no good side, so there is no front. ` : " on the Pareto front: no row is as good at no more cost and better in one of the two. ",
      h("span", { class: "key", "aria-hidden": "true" }, "○"), " beaten on both. ", points.some((p) => p.ceiling) ? "△ ceiling, not ranked. " : null,
      left.length ? `Not drawn, as the cost or the score is not known or no model is asked: ${left.join(", ")}.` : null),
  ];
}

function compact(value) {
  if (Math.abs(value) >= 2 ** 20 * 10) return `${figureText(value / 2 ** 30, 3)} Gi`;
  return value >= 1000 ? `${figureText(value / 1000, 3)}k` : figureText(value, 3);
}

// Names beside their points, each where it covers least: right, left, above, below.
function labels(svg, points) {
  const [x, y] = [svg.scale("x"), svg.scale("y")];
  const taken = points.map((p) => box(x.apply(p.x) - 6, y.apply(p.value) - 6, 12, 12));
  const [w, hgt] = [Number(svg.getAttribute("width")), Number(svg.getAttribute("height"))];
  const layer = h("g", { class: "names", fill: "currentColor", "font-size": 11.5, "text-anchor": "start", stroke: "var(--paper)", "stroke-width": 3, "paint-order": "stroke", "aria-hidden": "true" });
  const order = [...points].sort((a, b) => b.front - a.front || a.x - b.x);
  for (const p of order) {
    if (narrow() && !p.front && points.length > 8) continue;
    const [px, py] = [x.apply(p.x), y.apply(p.value)];
    const text = cutName(p.label, 28);
    const size = text.length * 6.1 + 4;
    const tries = [box(px + 9, py - 7, size, 14), box(px - 9 - size, py - 7, size, 14), box(px - size / 2, py - 24, size, 14), box(px - size / 2, py + 10, size, 14),
      box(px + 9, py - 22, size, 14), box(px + 9, py + 8, size, 14), box(px - 9 - size, py - 22, size, 14), box(px - 9 - size, py + 8, size, 14)];
    const cost = (one) => taken.reduce((sum, other) => sum + overlap(one, other), 0) + (one.x < 50 || one.x + one.w > w ? 1e4 : 0) + (one.y < 14 || one.y + one.h > hgt - 34 ? 1e4 : 0);
    const best = tries.reduce((a, b) => (cost(b) < cost(a) - 1 ? b : a));
    taken.push(best);
    if (cost(best) - size * 14 > size * 6 && !p.front) continue;
    layer.append(h("text", { x: best.x + 2, y: best.y + 11, "font-weight": p.front ? 600 : 400 }, text));
  }
  svg.append(layer);
}

const box = (x, y, w, hgt) => ({ x, y, w, h: hgt });
const overlap = (a, b) => Math.max(0, Math.min(a.x + a.w, b.x + b.w) - Math.max(a.x, b.x)) * Math.max(0, Math.min(a.y + a.h, b.y + b.h) - Math.max(a.y, b.y));

// -- differences ------------------------------------------------------------------------------------------------------

async function differencesView(board, query) {
  const Plot = await libraries();
  const metric = metricNamed(board, query.get("metric"));
  const baseline = chosenBaseline(board, query);
  const difference = await against(board, baseline);
  const base = board.rows.find((row) => row.label === baseline);
  const variants = board.rows.some((row) => row.variant !== null && row.method === base.method);
  const only = query.get("rows") ?? (variants && base.variant === null ? "controls" : "");
  const rows = board.rows.filter((row) => row.label !== baseline && (only !== "controls" || (row.variant !== null && row.method === base.method)));
  const points = rows.map((row) => ({ label: row.label, ...difference.rows[row.label]?.[metric.name], ceiling: row.ceiling })).filter((p) => p.value !== null && p.value !== undefined);
  const shorten = (label) => (only === "controls" ? label.replace(`${base.method}: `, "") : label);
  const { margin, fit } = nameRoom(points.map((p) => shorten(p.label)), narrow() ? 130 : 260);
  const name = (label) => fit(shorten(label));
  const better = (p) => (p.mark !== "clear" || metric.better === null ? "none" : (p.value > 0) === metric.better ? "up" : "down");
  const colour = (p) => ({ up: "var(--up)", down: "var(--down)", none: "var(--ink)" })[better(p)];
  const drawing = points.length ? plot(Plot, {
    width: width(), height: points.length * 30 + 90, marginLeft: margin, marginRight: narrow() ? 14 : 250, marginTop: 30, marginBottom: 46,
    x: { label: `${metric.name}, row minus ${baseline}`, grid: true, ticks: narrow() ? 4 : 7, labelAnchor: "center", nice: true },
    y: { label: null, domain: points.map((p) => p.label), tickFormat: name, tickSize: 0 },
    marks: [
      Plot.ruleX([0], { stroke: "var(--ink)", strokeWidth: 1.25 }),
      Plot.ruleY(points.filter((p) => p.low !== null), { y: "label", x1: "low", x2: "high", stroke: colour, strokeWidth: 2.25 }),
      Plot.dot(points, { y: "label", x: "value", r: 5, fill: (p) => (better(p) === "none" ? "var(--paper)" : colour(p)), stroke: colour, strokeWidth: 1.75,
        symbol: (p) => ({ up: "triangle", down: "square", none: "circle" })[better(p)], title: (p) => `${p.label}\n${p.text}`, tip: true }),
      narrow() ? null : Plot.text(points, { y: "label", frameAnchor: "right", dx: 12, textAnchor: "start", text: "text", fill: colour, fontVariant: "tabular-nums" }),
    ],
  }) : null;
  return [
    h("form", { class: "controls", onsubmit: (event) => event.preventDefault() }, metricPicker(board, metric), baselinePicker(board, baseline),
      variants ? select("Rows", [["controls", "controls of this method"], ["all", "all rows"]], only === "controls" ? "controls" : "all", (value) => change({ rows: value })) : null),
    figure(variants && only === "controls" ? `What each control changes in ${metric.name}` : `Differences to ${baseline} in ${metric.name}`, drawing,
      ["row", "difference [95 % interval] p", "p", "p (Holm)", "won / tied / lost", "detectable"],
      points.map((p) => [p.label, p.text, figureText(p.p), figureText(p.p_holm), p.wins_text, p.detectable_text]), `${difference.title}. Paired, with 95 % intervals over users.`),
    h("p", { class: "legend" }, h("span", { class: "sign up", "aria-hidden": "true" }, "▲"), " clearly better, ", h("span", { class: "sign down", "aria-hidden": "true" }, "■"),
      ` clearly worse (p < ${report.level} after Holm's correction over all rows and metrics), ○ neither: no difference was shown, which is not the same as none being there.`),
  ];
}

// -- training ---------------------------------------------------------------------------------------------------------

async function trainingView(board) {
  const [Plot, fits] = [await libraries(), await load(`${board.id}-curves`)];
  const byRow = new Map();
  for (const fit of fits) {
    const name = fit.rows.join(", ");
    byRow.set(name, [...(byRow.get(name) || []), fit]);
  }
  const columns = narrow() ? 1 : byRow.size > 4 ? 3 : 2;
  const size = Math.max(260, Math.floor((width() - (columns - 1) * 24) / columns));
  const figures = [...byRow].map(([name, group]) => {
    const steps = group.flatMap((fit) => fit.steps.filter(([, loss]) => loss !== null).map(([step, loss]) => ({ step, loss, seed: fit.seed })));
    const epochs = group.flatMap((fit) => fit.epochs.map((epoch) => ({ ...epoch, seed: fit.seed, best: epoch.epoch === fit.best_epoch })));
    const dev = epochs.filter((e) => e.dev_loss !== null);
    const heads = ["seed, epoch", "training loss", "validation loss", "validation score", "kept"];
    const rows = epochs.map((e) => [`seed ${e.seed}, epoch ${e.epoch}`, figureText(e.train_loss), figureText(e.dev_loss), figureText(e.dev_score), e.best ? "yes" : ""]);
    if (!steps.length && !dev.length) return figure(name, null, heads, rows, "No losses were kept.");
    const drawing = plot(Plot, {
      width: size, height: 220, marginLeft: 44, marginRight: 14, marginTop: 24, marginBottom: 42,
      x: { label: "step", nice: false }, y: { label: "loss, nats a token", grid: true, ticks: 5, nice: true },
      marks: [
        Plot.line(steps, { x: "step", y: "loss", z: "seed", stroke: "var(--soft)", strokeWidth: 1, strokeOpacity: 0.8 }),
        Plot.line(dev, { x: "step", y: "dev_loss", z: "seed", stroke: "var(--accent)", strokeWidth: 2 }),
        Plot.dot(dev, { x: "step", y: "dev_loss", r: 4.5, symbol: (e) => (e.best ? "diamond2" : "circle"), stroke: "var(--accent)", strokeWidth: 1.75, fill: (e) => (e.best ? "var(--accent)" : "var(--paper)"),
          title: (e) => `seed ${e.seed}, epoch ${e.epoch}${e.best ? ", kept" : ""}\nvalidation loss ${figureText(e.dev_loss)}`, tip: true }),
      ],
    });
    const each = Math.max(...group.map((fit) => fit.each));
    return figure(name, drawing, heads, rows, `${plural(group.length, "fit")}${each > 1 ? `; points are means of ${each} steps` : ""}.`);
  });
  return [h("p", { class: "legend" }, "Grey line: training loss of each step. Blue with marks: validation loss after each epoch, ◆ the epoch that was kept. Rows that share a fit share a curve; seeds lie over one another."),
    h("div", { class: "multiples", style: `--columns: ${columns}` }, figures)];
}
