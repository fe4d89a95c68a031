// Elements, data that loads on demand, the address, and words for the screen reader.

const nonce = document.currentScript.nonce;
const data = new Map();
const waiting = new Map();

window.benchData = (name, value) => {
  data.set(name, value);
  if (name === "main") start(value);
};

// Scripts are the only thing a page opened from disk may load. Names are ours, never a text of the data.
const trusted = window.trustedTypes
  ? trustedTypes.createPolicy("bench-data", {
      createScriptURL(path) {
        if (!/^(data|assets)\/[A-Za-z0-9.-]+\.js$/.test(path)) throw new TypeError(`refused: ${path}`);
        return path;
      },
    })
  : { createScriptURL: (path) => path };

function script(path) {
  if (!waiting.has(path)) {
    waiting.set(path, new Promise((resolve, reject) => {
      const element = document.createElement("script");
      element.nonce = nonce;
      element.async = false;
      element.addEventListener("load", resolve);
      element.addEventListener("error", () => {
        waiting.delete(path);
        reject(new Error(`${path} cannot be read; is the report's folder whole?`));
      });
      element.src = trusted.createScriptURL(path);
      document.head.append(element);
    }));
  }
  return waiting.get(path);
}

async function load(name) {
  if (!data.has(name)) await script(`data/${name}.js`);
  return data.get(name);
}

async function libraries() {
  await Promise.all([script("assets/d3.min.js"), script("assets/plot.min.js")]);
  return window.Plot;
}

// h("p", {class: "x", onclick: f}, "text", element): texts become text nodes, whatever they hold.
function h(tag, attributes, ...children) {
  const svg = ["svg", "line", "circle", "path", "text", "rect", "title", "g"].includes(tag);
  const element = svg ? document.createElementNS("http://www.w3.org/2000/svg", tag) : document.createElement(tag);
  for (const [name, value] of Object.entries(attributes || {})) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children.flat(3).filter((child) => child !== null && child !== undefined && child !== false));
  return element;
}

const byId = (id) => document.getElementById(id);
const say = (text) => { byId("status").textContent = text; };

// -- the address: #/board/view?key=value ----------------------------------------------------------------------------

function place() {
  const [path, query] = location.hash.replace(/^#\/?/, "").split("?");
  const [board, view] = path.split("/").map((part) => { try { return decodeURIComponent(part); } catch { return part; } });
  return { board, view, query: new URLSearchParams(query || "") };
}

function address(board, view, query) {
  const text = new URLSearchParams(Object.entries(query || {}).filter(([, v]) => v !== null && v !== undefined && v !== ""));
  return `#/${encodeURIComponent(board)}/${view}${[...text].length ? `?${text}` : ""}`;
}

// Changes parts of the query and shows the page anew; `null` takes a part out.
function change(parts, quiet) {
  const here = place();
  const query = { ...Object.fromEntries(here.query), ...parts };
  const target = address(shown.board.id, shown.view, query);
  history.replaceState(null, "", target);
  if (!quiet) show();
}

// -- small things -----------------------------------------------------------------------------------------------------

function figureText(value, digits = 4) {
  if (value === null || value === undefined) return "–";
  if (value !== 0 && (Math.abs(value) >= 1e6 || Math.abs(value) < 1e-4)) return value.toExponential(2);
  return Number(value.toPrecision(digits)).toLocaleString("en", { maximumSignificantDigits: digits });
}

const plural = (count, thing) => `${count.toLocaleString("en")} ${thing}${count === 1 ? "" : "s"}`;

function select(label, options, value, onchange, title) {
  const element = h("select", { onchange: () => onchange(element.value) },
    options.map((one) => {
      const [key, text] = Array.isArray(one) ? one : [one, one];
      return h("option", { value: key, selected: key === value }, text);
    }));
  return h("label", { class: "field", title }, h("span", {}, label), element);
}

// A row's name cut to so many letters: the end is kept, where controls and knobs tell themselves apart.
function cutName(label, room) {
  if (label.length <= room) return label;
  return /[:(]/.test(label) ? `…${label.slice(1 - room)}` : `${label.slice(0, room - 1)}…`;
}

// The room for names beside a plot, as wide as the widest of them but at most `most`, and what of a name fits into it.
function nameRoom(labels, most) {
  const pen = document.createElement("canvas").getContext("2d");
  pen.font = `12px ${getComputedStyle(document.body).fontFamily}`;
  const wide = (text) => pen.measureText(text).width;
  const margin = Math.min(most, Math.max(48, ...labels.map(wide)) + 16);
  const fit = (label) => {
    let room = label.length;
    while (room > 2 && wide(cutName(label, room)) > margin - 14) room -= 1;
    return cutName(label, room);
  };
  return { margin, fit };
}

let groups = 0;
function choice(label, options, value, onchange) {
  const name = `choice-${groups++}`;
  return h("fieldset", { class: "choice" }, h("legend", {}, label),
    options.map(([key, text]) => h("label", {},
      h("input", { type: "radio", name, value: key, checked: key === value, onchange: () => onchange(key) }),
      h("span", {}, text))));
}

// A figure with its words, and the same numbers as a table for those who do not see it.
function figure(title, drawing, heads, rows, note) {
  if (drawing) {
    drawing.setAttribute("role", "img");
    drawing.setAttribute("aria-label", `${title}. The numbers are in the table below.`);
  }
  return h("figure", {}, h("figcaption", {}, h("strong", {}, title), note ? h("span", {}, ` ${note}`) : null),
    drawing ? h("div", { class: "drawing" }, drawing) : null,
    h("details", { class: "numbers" }, h("summary", {}, "Numbers"), plainTable(title, heads, rows)));
}

function plainTable(caption, heads, rows) {
  return h("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": caption },
    h("table", {}, h("caption", { class: "unseen" }, caption),
      h("thead", {}, h("tr", {}, heads.map((head) => h("th", { scope: "col" }, head)))),
      h("tbody", {}, rows.map((row) => h("tr", {}, row.map((cell, i) =>
        i ? h("td", {}, cell === null || cell === undefined ? "–" : cell) : h("th", { scope: "row" }, cell)))))));
}

function problem(error) {
  return h("p", { class: "problem", role: "alert" }, String(error.message || error));
}
