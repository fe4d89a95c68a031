// Users: how scores spread over them, and for how many a row is better than a baseline.

async function peopleView(board, query) {
  const possible = board.metrics.filter((metric) => metric.reducer === "mean");
  if (!possible.length) return [h("p", { class: "lead" }, "None of these metrics has a value for one user: they are of a corpus.")];
  const metric = possible.find((one) => one.name === query.get("metric")) || possible[0];
  const [Plot, people] = [await libraries(), await load(`${board.id}-people-${board.metrics.indexOf(metric)}`)];
  const labels = board.rows.map((row) => row.label);
  const baseline = labels.includes(query.get("baseline")) ? query.get("baseline") : chosenBaseline(board, query) ?? labels[0];
  const base = labels.indexOf(baseline);
  const show = query.get("show") === "differences" ? "differences" : "scores";
  const names = people.users.map((values, i) => i).filter((i) => people.users[i]);
  const dots = names.flatMap((i) => (show === "scores" ? people.users[i] : i === base ? [] : gaps(people, i, base))
    .map((value, user) => ({ value, row: i, user })).filter((d) => d.value !== null));
  const rows = names.filter((i) => show === "scores" || i !== base);
  const { margin, fit } = nameRoom(rows.map((i) => labels[i]), narrow() ? 126 : 230);
  const name = (i) => fit(labels[i]);
  const place = new Map(rows.map((i, k) => [i, k]));
  const thin = Math.ceil(board.users / 400);
  const boxes = show === "scores" ? rows.filter((i) => people.spread[i]).map((i) => ({ y: place.get(i), q: people.spread[i] })) : [];
  const drawing = plot(Plot, {
    width: width(), height: rows.length * 40 + 76, marginLeft: margin, marginRight: 16, marginTop: 26, marginBottom: 46,
    x: { label: show === "scores" ? `${metric.name} of a user` : `${metric.name} of a user, row minus ${baseline}`, grid: true, ticks: narrow() ? 4 : 8, labelAnchor: "center" },
    y: { domain: [rows.length - 0.5, -0.5], ticks: rows.map((_, k) => k), tickFormat: (k) => name(rows[k]), label: null, tickSize: 0 },
    marks: [
      show === "differences" ? Plot.ruleX([0], { stroke: "var(--ink)" }) : null,
      Plot.dot(dots.filter((d) => d.user % thin === 0), { x: "value", y: (d) => place.get(d.row) + jitter(d.user), r: 2, fill: "var(--soft)", fillOpacity: 0.5 }),
      Plot.link(boxes, { x1: (d) => d.q[0], x2: (d) => d.q[4], y1: "y", y2: "y", stroke: "var(--ink)", strokeWidth: 1 }),
      Plot.link(boxes, { x1: (d) => d.q[1], x2: (d) => d.q[3], y1: "y", y2: "y", stroke: "var(--accent)", strokeWidth: 7, strokeOpacity: 0.75 }),
      Plot.dot(boxes, { x: (d) => d.q[2], y: "y", r: 4, fill: "var(--paper)", stroke: "var(--ink)", strokeWidth: 1.5 }),
      show === "differences" ? Plot.dot(rows, { x: (i) => difference(board, query, baseline, labels[i], metric), y: (i) => place.get(i), symbol: "diamond2", r: 5, fill: "var(--accent)" }) : null,
    ],
  });
  const table = show === "scores"
    ? [["row", "5 %", "25 %", "median", "75 %", "95 %"], rows.map((i) => [labels[i], ...(people.spread[i] || []).map((value) => figureText(value))])]
    : [["row", "users", "difference"], rows.map((i) => [labels[i], String(gaps(people, i, base).filter((v) => v !== null).length), figureText(difference(board, query, baseline, labels[i], metric))])];
  return [
    h("form", { class: "controls", onsubmit: (event) => event.preventDefault() },
      select("Metric", possible.map((one) => one.name), metric.name, (value) => change({ metric: value })),
      select("Baseline", labels, baseline, (value) => change({ baseline: value })),
      choice("Show", [["scores", "Scores"], ["differences", "Differences"]], show, (value) => change({ show: value }))),
    figure(show === "scores" ? `${metric.name} of each user` : `${metric.name} of each user against ${baseline}`, drawing, ...table,
      `Each dot is a user${thin > 1 ? ` (one in ${thin} is drawn)` : ""}, the mean of that user's examples and seeds.`),
    h("p", { class: "legend" }, show === "scores" ? "Circle: median; thick bar: the middle half of the users; thin line: 5 % to 95 %." : "Diamond: the difference that the table gives, where this baseline is offered there."),
    winsTable(people, labels, base, metric, board),
  ];
}

// Differences of each user; those that two means do not give stand apart in the data.
function gaps(people, row, base) {
  const found = people.users[row].map((value, user) => {
    const other = people.users[base]?.[user];
    return value === null || other === null || other === undefined ? null : value - other;
  });
  const apart = people.apart[`${Math.min(row, base)},${Math.max(row, base)}`];
  for (const [user, value] of Object.entries(apart || {})) found[user] = value === null ? null : row < base ? value : -value;
  return found;
}

function difference(board, query, baseline, label, metric) {
  const known = board.difference?.baseline === baseline ? board.difference : data.get(board.baselines[baseline]);
  return known?.rows[label]?.[metric.name]?.value ?? null;
}

// A spread that depends on the user alone, so that a user stands at the same height in every row.
function jitter(user) {
  const x = Math.sin(user * 12.9898 + 4.1) * 43758.5453;
  return (x - Math.floor(x) - 0.5) * 0.56;
}

function winsTable(people, labels, base, metric, board) {
  const rows = labels.map((label, i) => ({ label, wins: people.wins[i]?.[base], rate: people.rates[i]?.[base] })).filter((row, i) => i !== base && row.wins);
  if (!rows.length) return h("p", { class: "legend" }, metric.better === null ? `${metric.name} has no good side, so nobody wins or loses.` : "No row can be compared with this baseline.");
  const caption = `Users who are better off than with ${labels[base]} (${metric.name})`;
  return h("section", {}, h("h3", {}, caption), h("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": caption },
    h("table", { class: "wins" }, h("caption", { class: "unseen" }, caption),
      h("thead", {}, h("tr", {}, ["row", "win rate", "won", "tied", "lost", ""].map((head) => h("th", { scope: "col" }, head || h("span", { class: "unseen" }, "bar"))))),
      h("tbody", {}, rows.map(({ label, wins: [won, tied, lost], rate }) => {
        const [share, low, high] = rate.map((part) => Math.round(100 * part));
        return h("tr", {}, h("th", { scope: "row" }, label), h("td", { class: "whole" }, `${share} % [${low}, ${high}]`),
          h("td", {}, String(won)), h("td", {}, String(tied)), h("td", {}, String(lost)),
          h("td", { class: "bars" }, h("span", { class: "won", style: `flex: ${won}` }), h("span", { class: "tied", style: `flex: ${tied}` }), h("span", { class: "lost", style: `flex: ${lost}` })));
      })))), h("p", { class: "legend" }, h("span", { class: "swatch won" }), " won, ", h("span", { class: "swatch tied" }), " tied, ", h("span", { class: "swatch lost" }), " lost; the middle line is half of the users. In the win rate a tie counts half; behind it stands its 95 % interval over users (Wilson's)."));
}
