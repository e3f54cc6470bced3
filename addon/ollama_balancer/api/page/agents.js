// The list of agents: which of them are shown, in which order and how.

import { byId, grouped, setText } from "/dashboard/dom.js";
import { welcome } from "/dashboard/joining.js";
import { makeDenseRow, makeRow } from "/dashboard/rows.js";

const MANY = 30; // agents of the fleet above which each has one line, unless something else is chosen
const SORTS = [...byId("sort").options].map((option) => option.value);
const rows = new Map();
const view = { filter: "", sort: "name", page: 1, dense: null };
const shown = { dense: false, page: 1 };

/** What to ask the balancer for. */
export function wanted() {
  const { filter, sort, page } = view;
  return { filter, sort, page, curves: (view.dense ?? shown.dense) ? "no" : "yes" };
}

/** Show what the address says. */
function readAddress() {
  const query = new URLSearchParams(location.search);
  const page = Number(query.get("page"));
  view.filter = query.get("filter") ?? "";
  view.sort = SORTS.includes(query.get("sort")) ? query.get("sort") : "name";
  view.page = Number.isInteger(page) && page > 0 ? page : 1;
  view.dense = { dense: true, full: false }[query.get("rows")] ?? null;
  byId("filter").value = view.filter;
  byId("sort").value = view.sort;
}

/** Have the address say what is shown; `replace`: without a step that the back button takes. */
function writeAddress(replace = false) {
  const query = new URLSearchParams();
  if (view.filter) query.set("filter", view.filter);
  if (view.sort !== "name") query.set("sort", view.sort);
  if (view.page > 1) query.set("page", view.page);
  if (view.dense !== null) query.set("rows", view.dense ? "dense" : "full");
  const address = location.pathname + (query.size ? `?${query}` : "");
  if (replace) history.replaceState(null, "", address);
  else history.pushState(null, "", address);
}

function setDense(dense) {
  byId("dense").checked = dense;
  if (shown.dense === dense) return;
  shown.dense = dense;
  byId("main").classList.toggle("dense", dense);
  for (const { row } of rows.values()) row.remove();
  rows.clear();
}

export function showAgents(data) {
  const all = Object.values(data.states).reduce((a, b) => a + b, 0);
  setDense(view.dense ?? all > MANY);
  const body = byId("agents");
  const seen = new Set(data.agents.map((agent) => agent.name));
  for (const [name, { row }] of rows) {
    if (seen.has(name)) continue;
    row.remove();
    rows.delete(name);
  }
  let next = body.firstElementChild;
  for (const agent of data.agents) {
    let made = rows.get(agent.name);
    if (!made) rows.set(agent.name, (made = (shown.dense ? makeDenseRow : makeRow)(agent.name)));
    made.set(agent);
    if (made.row === next) next = next.nextElementSibling;
    else body.insertBefore(made.row, next);
  }
  shown.page = data.page;
  const count = `${grouped.format(data.found)} ${data.found === 1 ? "agent" : "agents"}`;
  setText(byId("place"), data.pages > 1 ? `Page ${data.page} of ${data.pages}, ${count}` : count);
  for (const name of ["previous", "next"]) byId(name).hidden = data.pages === 1;
  byId("previous").disabled = data.page <= 1;
  byId("next").disabled = data.page >= data.pages;
  for (const node of document.querySelectorAll(".with-agents")) node.hidden = all === 0;
  byId("none").hidden = all === 0 || data.found > 0;
  setText(byId("none"), `No agent's name, model or state has “${view.filter}” in it.`);
  welcome(all ? "" : data.join);
}

/** `refresh` is called when something else is to be shown. */
export function watchList(refresh) {
  let typing = false;
  const change = (changes, replace = false) => {
    Object.assign(view, changes);
    writeAddress(replace);
    typing = false;
    refresh();
  };
  readAddress();
  byId("previous").addEventListener("click", () => change({ page: shown.page - 1 }));
  byId("next").addEventListener("click", () => change({ page: shown.page + 1 }));
  byId("sort").addEventListener("change", () => change({ sort: byId("sort").value, page: 1 }));
  byId("dense").addEventListener("change", () => change({ dense: byId("dense").checked }));
  byId("filter").addEventListener("input", () => {
    change({ filter: byId("filter").value, page: 1 }, typing); // one step for all that is typed at once
    typing = true;
  });
  byId("filter").addEventListener("change", () => (typing = false));
  window.addEventListener("popstate", () => {
    readAddress();
    typing = false;
    refresh();
  });
}
