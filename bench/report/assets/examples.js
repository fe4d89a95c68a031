// Examples: what was asked, what the user really wrote, and what every row wrote, side by side.

const PAGE = 60;
const wholeTexts = new Map(); // board -> lower-cased texts of each example, once they have been read

async function examplesView(board, query) {
  const index = await load(`${board.id}-examples`);
  const chosen = index.ids.indexOf(query.get("example"));
  const order = await orderOf(board, index, query);
  const detail = h("article", { class: "example" });
  const view = h("div", { class: `browser${query.get("example") !== null ? " open" : ""}` }, listOf(board, index, query, order, chosen), detail);
  if (query.get("example") !== null && chosen < 0) {
    detail.append(h("p", { class: "problem", role: "alert" }, `There is no example ${query.get("example")} here.`),
      h("p", {}, h("a", { href: address(board.id, "examples", { ...Object.fromEntries(query), example: null }) }, "All examples")));
  } else {
    const number = chosen < 0 ? order.places[0] : chosen;
    if (number === undefined) detail.append(h("p", {}, "There is no example."));
    else await fill(detail, board, index, number, query, order);
  }
  return [view];
}

// -- the list ---------------------------------------------------------------------------------------------------------

async function orderOf(board, index, query) {
  const places = index.ids.map((_, i) => i);
  const by = query.get("by");
  if (by !== "gain" && by !== "loss") return { places, told: null };
  const metric = metricNamed(board, query.get("metric"));
  const people = await load(`${board.id}-people-${board.metrics.indexOf(metric)}`);
  const labels = board.rows.map((row) => row.label);
  const [a, b] = pairOf(board, query);
  const [own, other] = [people.texts[labels.indexOf(a)], people.texts[labels.indexOf(b)]];
  const gap = places.map((i) => (own?.[i] === null || other?.[i] === null || !own || !other ? null : own[i] - other[i]));
  const turn = by === "gain" ? -1 : 1;
  places.sort((i, j) => (gap[i] === null) - (gap[j] === null) || turn * (gap[i] - gap[j]) || i - j);
  return { places, told: (i) => (gap[i] === null ? "–" : `${gap[i] > 0 ? "+" : ""}${figureText(gap[i], 3)}`) };
}

function pairOf(board, query) {
  const labels = board.rows.map((row) => row.label);
  const b = labels.includes(query.get("baseline")) ? query.get("baseline") : board.baseline ?? labels[labels.length - 1];
  const a = labels.includes(query.get("row")) ? query.get("row") : labels.find((label) => label !== b) ?? b;
  return [a, b];
}

function listOf(board, index, query, order, chosen) {
  const list = h("ol", { class: "list" });
  const count = h("p", { class: "count" });
  const more = h("button", { type: "button", class: "quiet", onclick: () => { limit += PAGE * 4; draw(); } }, "Show more");
  const search = h("input", { type: "search", value: query.get("q") || "", placeholder: "words, user, id", "aria-label": "Search examples", "data-filter": "examples", oninput: () => { change({ q: search.value }, true); limit = PAGE; draw(); say(count.textContent); } });
  const whole = h("input", { type: "checkbox", checked: wholeTexts.has(board.id), onchange: async () => {
    if (whole.checked) await readAll(board, index, (text) => { count.textContent = text; });
    draw();
    say(count.textContent);
  } });
  let limit = PAGE;
  function draw() {
    const words = search.value.toLowerCase().split(/\s+/).filter(Boolean);
    const texts = whole.checked ? wholeTexts.get(board.id) : null;
    const text = (i) => `${index.labels[i]} ${index.users[i]} ${index.ids[i]}`.toLowerCase() + (texts ? ` ${texts[i]}` : "");
    const found = words.length ? order.places.filter((i) => { const all = text(i); return words.every((word) => all.includes(word)); }) : order.places;
    count.textContent = found.length === index.ids.length ? plural(found.length, "example") : `${found.length} of ${plural(index.ids.length, "example")}`;
    list.replaceChildren(...found.slice(0, limit).map((i) => h("li", {},
      h("a", { href: linkTo(board, query, index.ids[i]), "aria-current": i === chosen ? "true" : null },
        h("span", { class: "name" }, index.labels[i] || index.ids[i]), h("span", { class: "soft" }, index.users[i], order.told ? ` · ${order.told(i)}` : null)))));
    more.hidden = found.length <= limit;
  }
  draw();
  return h("aside", { class: "finder", "aria-label": "Examples" }, h("form", { class: "controls", onsubmit: (event) => event.preventDefault() },
    search, h("label", { class: "check" }, whole, h("span", {}, "also in what was written")), orderPicker(board, query)), count, list, more);
}

function orderPicker(board, query) {
  const labels = board.rows.map((row) => row.label);
  const [a, b] = pairOf(board, query);
  const by = query.get("by") || "";
  return h("div", { class: "order" },
    select("Order", [["", "as they stand"], ["gain", "largest gain"], ["loss", "largest loss"]], by, (value) => change({ by: value })),
    by ? [select("of", labels, a, (value) => change({ row: value })), select("over", labels, b, (value) => change({ baseline: value })), board.metrics.length ? metricPicker(board, metricNamed(board, query.get("metric"))) : null] : null);
}

async function readAll(board, index, told) {
  if (wholeTexts.has(board.id)) return;
  const found = [];
  for (let piece = 0; piece < board.examples.pieces; piece++) {
    told(`reading, ${Math.round((100 * piece) / board.examples.pieces)} %`);
    for (const example of await load(`${board.id}-texts-${piece}`)) {
      found.push([example.reference || "", ...example.fields.map(([, value]) => value), ...example.texts.flat().map((text) => text?.text || "")].join(" ").toLowerCase());
    }
  }
  wholeTexts.set(board.id, found);
}

const linkTo = (board, query, id) => address(board.id, "examples", { ...Object.fromEntries(query), example: id });

// -- one example ------------------------------------------------------------------------------------------------------

async function fill(detail, board, index, number, query, order) {
  const piece = index.pieces[number];
  const examples = await load(`${board.id}-texts-${piece}`);
  const example = examples.find((one) => one.id === index.ids[number]);
  const at = order.places.indexOf(number);
  const seeds = [...new Set(board.rows.flatMap((row) => row.seeds))];
  const seed = seeds.includes(query.get("seed")) ? query.get("seed") : seeds[0];
  const how = ["none", "common", "differs"].includes(query.get("mark")) ? query.get("mark") : "common";
  const labels = board.rows.map((row) => row.label);
  const to = labels.includes(query.get("to")) ? query.get("to") : "";
  const out = new Set((query.get("without") || "").split("\u001f").filter(Boolean));
  const textOf = (row) => example.texts[labels.indexOf(row.label)][Math.max(0, row.seeds.indexOf(seed))];
  const base = to ? textOf(board.rows[labels.indexOf(to)])?.text ?? null : example.reference;
  const step = (by, text) => {
    const place = order.places[at + by];
    return place === undefined ? h("span", { class: "soft" }, text) : h("a", { href: linkTo(board, query, index.ids[place]), rel: by > 0 ? "next" : "prev" }, text);
  };
  const rows = board.rows.filter((row) => !out.has(row.label));
  detail.append(
    h("nav", { class: "steps", "aria-label": "Neighbouring examples" }, h("a", { class: "back", href: address(board.id, "examples", { ...Object.fromEntries(query), example: null }) }, "All examples"),
      step(-1, "← previous"), h("span", { class: "soft" }, `${at + 1} of ${order.places.length}`), step(1, "next →"), copyButton(location.href.split("#")[0] + linkTo(board, query, example.id), "Copy link")),
    h("h3", {}, index.labels[number] || example.id), h("p", { class: "soft" }, `user ${example.user}, example ${example.id}`),
    asked(example, board),
    h("section", { class: "reference" }, h("h4", {}, "What the user really wrote"), example.reference === null ? h("p", { class: "soft" }, `Not known: ${board.examples.unknown}`) : h("p", { class: "prose" }, to ? markedText(example.reference, base, how) : example.reference)),
    h("form", { class: "controls", onsubmit: (event) => event.preventDefault() },
      seeds.length > 1 ? select("Seed", seeds, seed, (value) => change({ seed: value })) : null,
      choice("Mark words", [["common", "in common with"], ["differs", "that differ from"], ["none", "none"]], how, (value) => change({ mark: value })),
      how === "none" ? null : select("Text", [["", "the reference"], ...labels.map((label) => [label, label])], to, (value) => change({ to: value })),
      h("details", { class: "menu" }, h("summary", {}, `Rows (${rows.length})`), h("div", {}, labels.map((label) => h("label", {}, h("input", { type: "checkbox", checked: !out.has(label), onchange: (event) => {
        if (event.target.checked) out.delete(label); else out.add(label);
        change({ without: [...out].join("\u001f") });
      } }), label))))),
    h("div", { class: "texts" }, rows.map((row) => textCard(board, row, textOf(row), seed, base, how, piece, row.label === to))));
}

function asked(example, board) {
  if (!example.fields.length) return h("p", { class: "soft" }, `What was asked is not known: ${board.examples.unknown}`);
  const short = example.fields.filter(([, , long]) => !long);
  const long = example.fields.filter(([, value, is]) => is && value);
  return h("section", { class: "asked" }, h("h4", {}, "What was asked"), facts(short.map(([name, value]) => [name, value || "–"])),
    long.map(([name, value]) => h("details", {}, h("summary", {}, name), h("p", { class: "prose" }, value))));
}

function textCard(board, row, text, seed, base, how, piece, isBase) {
  const scores = text ? board.metrics.map((metric, i) => [metric.name, text.scores[i]]).filter(([, value]) => value !== null) : [];
  const tail = text && text.finish === "length" ? "cut at the longest answer" : null;
  const body = !text ? h("p", { class: "soft" }, "There is no record.")
    : text.error ? h("p", { class: "problem" }, `failed: ${text.error}`)
    : text.text ? h("p", { class: "prose" }, isBase ? text.text : markedText(text.text, base, how)) : h("p", { class: "soft" }, "(an empty text)");
  return h("section", { class: "text", "data-row": row.label },
    h("h4", {}, row.label, row.ceiling ? h("span", { class: "tag" }, "ceiling") : null, isBase ? h("span", { class: "tag" }, "compared with") : null,
      row.seeds.includes(seed) ? null : h("span", { class: "tag" }, `seed ${row.seeds[0]}`)),
    body,
    h("footer", {}, h("span", { class: "scores" }, scores.map(([name, value]) => h("span", { class: "score" }, `${name} `, h("b", {}, figureText(value, 3))))),
      tail ? h("span", { class: "soft" }, tail) : null, text ? promptOf(board, row, text, piece) : null));
}

function promptOf(board, row, text, piece) {
  const body = h("div", {});
  const details = h("details", { class: "prompt", ontoggle: async () => {
    if (!details.open || body.childNodes.length) return;
    const found = text.prompt && board.examples.prompt_pieces.includes(piece) ? (await load(`${board.id}-prompts-${piece}`))[text.prompt] : null;
    const reason = board.examples.no_prompt[board.rows.indexOf(row)];
    const why = board.examples.prompted < board.examples.count ? `Prompts were written again for the first ${board.examples.prompted} examples; report --prompts takes another number.` : null;
    body.replaceChildren(...(found
      ? [h("p", { class: "soft" }, `Written again, with the very hash that the run kept (${text.prompt}); ⟦ ⟧ are soft tokens.`), ...found.map(([role, content]) => [h("h5", {}, role), h("pre", { tabindex: "0" }, content)]).flat()]
      : [h("p", { class: "soft" }, [reason, why].filter(Boolean).join(" ") || "The run kept no prompt.")]));
  } }, h("summary", {}, `Prompt${text.tokens[0] ? ` (${text.tokens[0].toLocaleString("en")} tokens)` : ""}`), body);
  return details;
}
