// Tabs, theme, and showing the part that the address names.

const VIEWS = {
  leaderboard: ["Leaderboard", leaderboardView, () => true],
  differences: ["Differences", differencesView, (board) => Object.keys(board.baselines).length > 0 && board.metrics.length > 0],
  cost: ["Cost", costView, (board) => board.costs.length > 0 && board.metrics.length > 0],
  users: ["Users", peopleView, (board) => board.metrics.length > 0],
  examples: ["Examples", examplesView, () => true],
  training: ["Training", trainingView, (board) => board.curves > 0],
  runs: ["Runs", runsView, () => true],
};

let report = null;
const shown = { board: null, view: null, turn: 0 };

function start(value) {
  report = value;
  byId("foot").append(`dep-bench ${report.version}. `, "Charts by Observable Plot and D3 (ISC licence, texts in assets/).");
  themes();
  addEventListener("hashchange", () => show());
  let width = innerWidth, timer = 0;
  addEventListener("resize", () => {
    clearTimeout(timer);
    if (innerWidth !== width) timer = setTimeout(() => { width = innerWidth; if (document.querySelector(".drawing")) show(); }, 150);
  });
  show();
}

async function show() {
  const { board: wanted, view: part, query } = place();
  const board = report.boards.find((one) => one.id === wanted) || report.boards[0];
  const view = VIEWS[part] && VIEWS[part][2](board) ? part : "leaderboard";
  const moved = shown.board !== board || shown.view !== view;
  Object.assign(shown, { board, view, turn: shown.turn + 1 });
  const turn = shown.turn;
  navigation(board, view);
  document.title = `${VIEWS[view][0]}, ${board.title} – dep-bench report`;
  const main = byId("view");
  main.setAttribute("aria-busy", "true");
  let content;
  try {
    content = await VIEWS[view][1](board, query);
  } catch (error) {
    content = [problem(error)];
  }
  if (turn !== shown.turn) return;
  const focus = refocus(main);
  main.replaceChildren(h("h2", { class: "unseen" }, `${VIEWS[view][0]}: ${board.title}`), ...content.filter(Boolean));
  main.setAttribute("data-view", view);
  main.removeAttribute("aria-busy");
  focus();
  if (moved) scrollTo(0, 0);
  main.dispatchEvent(new Event("shown"));
}

// Whoever used a control finds it focused again after the page is drawn anew.
function refocus(main) {
  const active = document.activeElement;
  if (!main.contains(active) || !active.matches("select, input, summary, button.sort")) return () => {};
  const same = () => [...main.querySelectorAll(active.tagName)];
  const index = same().indexOf(active);
  const open = [...main.querySelectorAll("details.menu")].map((one) => one.open);
  return () => {
    [...main.querySelectorAll("details.menu")].forEach((one, i) => { one.open = !!open[i]; });
    const target = same()[index];
    target?.focus();
    if (target?.type === "radio" && !target.checked) same().find((one) => one.name === target.name && one.checked)?.focus();
  };
}

function navigation(board, view) {
  byId("boards").replaceChildren(report.boards.length > 1
    ? select("Dataset", report.boards.map((one) => [one.id, one.title]), board.id, (id) => { location.hash = address(id, shown.view); })
    : h("span", { class: "field" }, board.title));
  byId("tabs").replaceChildren(...Object.entries(VIEWS).filter(([, [, , fits]]) => fits(board)).map(([key, [title]]) =>
    h("a", { href: address(board.id, key), "aria-current": key === view ? "page" : null }, title)));
  const tabs = byId("tabs"), current = tabs.querySelector("[aria-current]");
  tabs.scrollLeft = current.offsetLeft - (tabs.clientWidth - current.offsetWidth) / 2;
}

// -- theme ------------------------------------------------------------------------------------------------------------


function themes() {
  const button = byId("theme");
  const stored = () => { try { return localStorage.getItem("dep-bench-theme"); } catch { return null; } };
  const apply = (theme) => {
    if (theme === "auto") document.documentElement.removeAttribute("data-theme");
    else document.documentElement.dataset.theme = theme;
    button.textContent = `◐ ${theme}`;
    button.setAttribute("aria-label", `Theme: ${theme}. Change it`);
  };
  const order = matchMedia("(prefers-color-scheme: dark)").matches ? ["auto", "light", "dark"] : ["auto", "dark", "light"];
  let theme = order.includes(stored()) ? stored() : "auto";
  apply(theme);
  button.addEventListener("click", () => {
    theme = order[(order.indexOf(theme) + 1) % order.length];
    try { localStorage.setItem("dep-bench-theme", theme); } catch { /* a page from disk may not be allowed to keep anything */ }
    apply(theme);
    say(`theme: ${theme}`);
  });
}
