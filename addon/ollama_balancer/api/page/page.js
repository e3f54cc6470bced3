// Shows what /dashboard/data tells, every two seconds. Names come from outside: they are set as text, never as markup.
// What a row shows is kept beside it, so that a refresh touches only what has changed.

import { watchEvents } from "/dashboard/events.js";
import { manageKeys } from "/dashboard/keys.js";
import { watchUsage } from "/dashboard/usage.js";

const EVERY = 2000;
const PATIENCE = 15000;
const POINTS = 60; // of a curve: a quarter of an hour
const SVG = "http://www.w3.org/2000/svg";
export const byId = (id) => document.getElementById(id);
const view = { page: 1, pages: 1 };
let token = "";
let timer = 0;
let asked = 0;

// Making and changing what is shown

export function element(name, className, ...content) {
  const made = document.createElement(name);
  if (className) made.className = className;
  made.append(...content);
  return made;
}

export function drawn(name, attributes) {
  const made = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  return made;
}

export function setText(node, text) {
  if (node.shown === text) return;
  node.shown = text;
  node.textContent = text;
}

function setClass(node, name) {
  if (node.className !== name) node.className = name;
}

/** The headers of a call that needs a key where calls need one. */
export const authorization = () => (token ? { Authorization: `Bearer ${token}` } : {});

/** Fill a node anew, if what it is to show is not what it shows. */
export function fill(node, shows, make) {
  const key = JSON.stringify(shows);
  if (node.shown === key) return;
  node.shown = key;
  node.replaceChildren(...[make()].flat());
}

const short = (model) => model.replace(/:latest$/, "");
const known = (value) => value !== null && value !== undefined;
export const grouped = new Intl.NumberFormat("en", { maximumFractionDigits: 0 });

function figure(value, unit = "") {
  if (!known(value)) return "–";
  return (value > 0 && value < 99.95 ? value.toFixed(1) : grouped.format(value)) + unit;
}

function seconds(value) {
  if (!known(value)) return "–";
  if (value < 0.9995) return `${Math.round(value * 1000)} ms`;
  return value < 90 ? `${value.toFixed(1)} s` : since(value);
}

function since(value) {
  if (value < 90) return `${Math.round(value)} s`;
  return value < 5400 ? `${Math.round(value / 60)} min` : `${Math.round(value / 3600)} h`;
}

/** Of memory, which is sold in powers of two: a card of 24 GiB has a little less to itself. */
function bytes(used, total) {
  const [unit, name] = total >= 1e9 ? [2 ** 30, "GiB"] : [2 ** 20, "MiB"];
  const digits = total >= 100 * 2 ** 30 || name === "MiB" ? 0 : 1;
  return `${(used / unit).toFixed(digits)} / ${(total / unit).toFixed(0)} ${name}`;
}

/** A bar of that many percent, with a figure beside it. */
function meter(label) {
  const fill = element("i");
  const track = element("span", "track", fill);
  const text = element("span", "figure");
  track.setAttribute("role", "meter");
  track.setAttribute("aria-label", label);
  track.setAttribute("aria-valuemin", "0");
  track.setAttribute("aria-valuemax", "100");
  const node = element("span", "meter", track, text);
  let shown;
  const set = (percent, words) => {
    const value = known(percent) ? Math.round(percent) : null;
    setText(text, words ?? (value === null ? "–" : `${value} %`));
    if (shown === value) return;
    shown = value;
    track.hidden = value === null;
    if (value === null) return;
    track.setAttribute("aria-valuenow", value);
    fill.style.width = `${Math.min(100, value)}%`;
    setClass(track, value >= 95 ? "track full" : value >= 80 ? "track high" : "track");
  };
  return { node, set };
}

/** A quarter of an hour as a line from the left to the right, which is now; `steps`: of whole numbers. */
function curve(label, steps) {
  const [width, height, right] = [128, 34, 30];
  const last = width - right;
  const base = height - 2.5;
  const step = (last - 2) / (POINTS - 1);
  const svg = drawn("svg", { class: "curve", viewBox: `0 0 ${width} ${height}`, role: "img" });
  const text = drawn("text", { x: width, y: 9 });
  const zero = drawn("text", { x: width, y: base + 1.5 });
  const area = drawn("path", { class: "area" });
  const line = drawn("path", { class: "stroke" });
  const dot = drawn("circle", { class: "dot", r: 2 });
  zero.textContent = "0";
  svg.append(
    drawn("path", { class: "grid", d: `M0 4.5H${last}M${last - 2 - 20 * step} 4.5V${base}M${last - 2 - 40 * step} 4.5V${base}` }), // every five minutes
    drawn("line", { class: "zero", x1: 0, x2: last, y1: base, y2: base }),
    area, line, dot, text, zero,
  );
  let shown;
  const set = (points, top, unit) => {
    const key = `${top} ${points}`;
    if (key === shown) return;
    shown = key;
    const x = (at) => (last - 2 - (points.length - 1 - at) * step).toFixed(1);
    const y = (value) => (base - (Math.min(value, top) / top) * (base - 4.5)).toFixed(1);
    let [path, under, before, from] = ["", "", null, 0];
    points.forEach((value, at) => {
      if (known(value)) {
        if (!known(before)) path += `M${x((from = at))} ${y(value)}`;
        else if (steps) path += `H${x(at)}V${y(value)}`;
        else path += `L${x(at)} ${y(value)}`;
      }
      if (known(before) && (!known(value) || at === points.length - 1)) {
        const end = known(value) ? at : at - 1;
        under += `${path.slice(path.lastIndexOf("M"))}L${x(end)} ${base}L${x(from)} ${base}Z`;
      }
      before = value;
    });
    line.setAttribute("d", path);
    area.setAttribute("d", under);
    setText(text, `${top}${unit}`);
    const now = points.at(-1);
    dot.style.display = known(now) ? "" : "none";
    if (known(now)) {
      dot.setAttribute("cx", x(points.length - 1));
      dot.setAttribute("cy", y(now));
    }
    const most = Math.max(0, ...points.filter(known));
    const minutes = Math.round((points.length * 15) / 60);
    svg.setAttribute("aria-label", `${label}, the last ${minutes} of 15 minutes: now ${now ?? "unknown"}, maximum ${most}`);
  };
  return { node: svg, set };
}

// Tiles

const TILES = {};

function tile(name, value, note = "", look = "") {
  let made = TILES[name];
  if (!made) {
    made = TILES[name] = element("div", "", element("dt", "", name), element("dd"), element("dd", "note"));
    byId("tiles").append(made);
  }
  setText(made.children[1], value);
  setText(made.children[2], note);
  setClass(made, look);
}

function showTiles(data) {
  const { figures, line, states } = data;
  const all = Object.values(states).reduce((a, b) => a + b, 0);
  const away = all - states.online;
  const others = Object.entries(states).filter(([state, count]) => count && state !== "online").map(([state, count]) => `${count} ${state}`);
  tile("Requests/s", figure(figures.requests_per_second), "last minute");
  tile("In flight", grouped.format(data.in_flight), "now");
  tile("Queued", grouped.format(line.length), line.length ? `oldest ${seconds(line.oldest)}` : "now", line.length ? "warns" : "");
  tile("Tokens/s", figure(figures.tokens_per_second), "last minute");
  tile("TTFT p95", seconds(figures.ttft_p95), "last minute");
  tile("Failures", figure(figures.failures, " %"), "last minute", figures.failures >= 5 ? "alarms" : figures.failures > 0 ? "warns" : "");
  tile("Agents online", `${states.online} of ${all}`, away ? others.join(", ") : all ? "all" : "none yet", all && !states.online ? "alarms" : away ? "warns" : "");
  setText(byId("mode"), `mode ${data.mode}`);
  const present = Object.entries(states).filter(([, count]) => count);
  fill(byId("states"), present, () => present.map(([state, count]) => element("span", `state ${state}`, `${count} ${state}`)));
}

// Agents

const rows = new Map();
const CELLS = {
  state: ["State", "state-cell"],
  models: ["Models", "models"],
  flight: ["In flight, last 15 min", "flight"],
  cpu: ["CPU, last 15 min", "cpu"],
  memory: ["Memory", "memory"],
  gpus: ["GPUs: busy, memory", "gpus"],
  speeds: ["Tokens/s", "speeds"],
  actions: ["", "actions-cell"],
};

function cell(name, content = "", className = "") {
  const made = element(name, className, content);
  made.setAttribute("role", name === "th" ? "rowheader" : "cell");
  return made;
}

function button(act) {
  const made = element("button");
  made.type = "button";
  made.addEventListener("click", () => act(made));
  return made;
}

function makeRow(name) {
  const row = element("tr");
  row.setAttribute("role", "row");
  const head = cell("th", name);
  head.scope = "row";
  const url = element("span", "quiet address");
  head.append(url);
  const cells = {};
  for (const [kind, [label, className]] of Object.entries(CELLS)) {
    cells[kind] = cell("td", "", className);
    if (label) cells[kind].dataset.label = label;
  }
  row.append(head, ...Object.values(cells));

  const state = element("span", "state");
  const report = element("span", "quiet");
  const reason = element("span", "quiet reason");
  const advice = element("div");
  const notice = element("details", "", element("summary", "", "older reporter"), advice);
  cells.state.append(state, report, reason);
  const loaded = element("div", "chips");
  const present = element("summary");
  const names = element("div");
  const listed = element("details", "", present, names);
  cells.models.append(loaded, listed);
  const busy = element("b");
  const slots = element("span");
  const flight = curve(`requests in flight on ${name}`, true);
  cells.flight.append(element("div", "now", busy, slots), flight.node);
  const cpu = meter(`CPU of ${name}`);
  const load = curve(`CPU of ${name} in percent`, false);
  cells.cpu.append(element("div", "now", cpu.node), load.node);
  const memory = meter(`memory of ${name}`);
  cells.memory.append(element("div", "now", memory.node));
  const toggle = button((it) => ask(it.wish, name, it));
  const remove = button((it) => ask("remove", name, it));
  remove.textContent = "Remove";
  remove.setAttribute("aria-label", `Remove ${name}`);
  cells.actions.append(element("div", "actions", toggle, remove));

  const set = (agent) => {
    setText(url, agent.url.replace(/^.*:\/\//, ""));
    setText(state, agent.status);
    setClass(state, `state ${agent.status}`);
    setText(reason, agent.reason ?? "");
    if (reason.title !== (agent.reason ?? "")) reason.title = agent.reason ?? "";
    if (!agent.older_reporter) notice.remove();
    else if (!notice.isConnected) cells.state.append(notice);
    setText(advice, `It has version ${agent.older_reporter}. To upgrade it, run on the host: curl -fsS ${location.origin}/join | sh`);
    setText(report, known(agent.report_age) ? `report ${since(agent.report_age)} ago` : "no report");
    setClass(report, agent.fresh ? "quiet" : "quiet old");
    setClass(row, agent.fresh ? "" : "unheard");
    fill(loaded, agent.loaded, () => agent.loaded.map((model) => element("span", "chip", short(model))));
    setText(present, `${agent.models} on disk`);
    listed.hidden = !agent.models;
    setText(names, agent.present.map(short).join(", ") + (agent.models > agent.present.length ? ", …" : ""));
    setText(busy, String(agent.in_flight));
    setText(slots, agent.slots ? `/ ${agent.slots} per model` : "");
    const points = agent.curve?.in_flight ?? [];
    flight.set(points, Math.max(agent.slots ?? 0, 1, ...points), "");
    cpu.set(agent.cpu);
    load.set(agent.curve?.cpu ?? [], 100, "%");
    memory.set(agent.memory);
    showGpus(cells.gpus, agent);
    showSpeeds(cells.speeds, agent.speeds);
    if (toggle.wish !== (toggle.wish = agent.draining ? "resume" : "drain")) {
      toggle.textContent = agent.draining ? "Resume" : "Drain";
      toggle.setAttribute("aria-label", `${toggle.textContent} ${name}`);
    }
  };
  return { row, set };
}

/** A line for each GPU, below its name; one name for those that follow one another and are alike. */
function showGpus(place, agent) {
  const names = agent.gpus.map((gpu) => gpu.name);
  if (place.names !== names.join("\n")) {
    place.names = names.join("\n");
    place.meters = [];
    place.replaceChildren(names.length ? "" : "–");
    for (let at = 0; at < names.length; ) {
      let alike = 1;
      while (names[at + alike] === names[at]) alike += 1;
      const title = element("div", "quiet gpu-name", alike > 1 ? `${alike} × ${names[at]}` : names[at]);
      title.title = names[at];
      place.append(title);
      for (const end = at + alike; at < end; at += 1) {
        const meters = [meter(`GPU ${at} of ${agent.name}, busy`), meter(`GPU ${at} of ${agent.name}, memory`)];
        place.append(element("div", "gpu", meters[0].node, meters[1].node));
        place.meters.push(meters);
      }
    }
  }
  agent.gpus.forEach((gpu, at) => {
    const [busy, memory] = place.meters[at];
    busy.set(gpu.busy);
    const measured = gpu.total && known(gpu.used);
    memory.set(measured ? (gpu.used / gpu.total) * 100 : null, measured ? bytes(gpu.used, gpu.total) : "–");
  });
}

function showSpeeds(place, speeds) {
  fill(place, speeds, () => {
    const all = Object.entries(speeds);
    if (!all.length) return "–";
    const shown = all.slice(0, 3).map(([model, speed]) => element("div", "speed", element("span", "", short(model)), element("b", "", speed.toFixed(speed < 10 ? 1 : 0))));
    return all.length > 3 ? [...shown, element("span", "quiet", "and more")] : shown;
  });
}

function showAgents(data) {
  const body = byId("agents");
  const seen = new Set(data.agents.map((agent) => agent.name));
  for (const [name, { row }] of rows) {
    if (seen.has(name)) continue;
    row.remove();
    rows.delete(name);
  }
  let next = body.firstElementChild;
  for (const agent of data.agents) {
    let shown = rows.get(agent.name);
    if (!shown) rows.set(agent.name, (shown = makeRow(agent.name)));
    shown.set(agent);
    if (shown.row === next) next = next.nextElementSibling;
    else body.insertBefore(shown.row, next);
  }
  view.page = data.page;
  view.pages = data.pages;
  setText(byId("place"), `Page ${data.page} of ${data.pages}, ${data.found} agents`);
  byId("previous").disabled = data.page <= 1;
  byId("next").disabled = data.page >= data.pages;
  byId("none").hidden = data.found > 0;
  setText(byId("none"), byId("filter").value ? "No agent matches." : "No agent has registered yet.");
}

// The line and the last requests

function showLine(line) {
  const models = Object.entries(line.models);
  setText(byId("line"), line.length ? `${grouped.format(line.length)} waiting for an agent, the oldest for ${seconds(line.oldest)}` : "The queue is empty.");
  fill(byId("waiting"), models, () =>
    models.map(([model, count]) => {
      const bar = meter(`share of ${model} in the queue`);
      bar.set((count / line.length) * 100, grouped.format(count));
      bar.node.querySelector(".track").className = "track";
      return element("li", "", element("span", "", short(model)), bar.node);
    }),
  );
}

const decided = new Map();

function makeDecision(decision) {
  const row = element("tr");
  row.setAttribute("role", "row");
  const said = decision.outcome === "rejected" ? `rejected ${decision.status}` : decision.outcome;
  const outcome = cell("td", element("span", `state ${decision.outcome}`, said));
  if (decision.attempts > 1) outcome.append(` on attempt ${decision.attempts}`);
  const why = cell("td");
  if (decision.mode) why.append(element("i", "", `${decision.mode}: `));
  why.append(decision.why || (decision.mode ? "" : "–"));
  row.append(cell("td"), cell("td", short(decision.model ?? "–")), cell("td", decision.agent ?? "–"), why, cell("td", seconds(decision.ttft)), outcome);
  return row;
}

/** How all requests have ended. */
function showTotals({ requests, in_flight, ...ended }) {
  const counts = Object.entries({ ...ended, "in flight": in_flight }).filter(([, count]) => count);
  const said = counts.map(([outcome, count]) => `${grouped.format(count)} ${outcome}`).join(", ");
  setText(byId("totals"), `${grouped.format(requests)} since start${said && ": "}${said}`);
}

function showDecisions(decisions) {
  const body = byId("decisions");
  const keys = decisions.map((decision) => `${decision.id} ${decision.at}`);
  const seen = new Set(keys);
  for (const [key, row] of decided) {
    if (seen.has(key)) continue;
    row.remove();
    decided.delete(key);
  }
  let next = body.firstElementChild;
  decisions.forEach((decision, at) => {
    let row = decided.get(keys[at]);
    if (!row) decided.set(keys[at], (row = makeDecision(decision)));
    setText(row.firstElementChild, `${since(decision.age)} ago`);
    if (row === next) next = next.nextElementSibling;
    else body.insertBefore(row, next);
  });
}

// Asking

function show(data) {
  showTiles(data);
  showAgents(data);
  showLine(data.line);
  showTotals(data.totals);
  showDecisions(data.decisions);
}

async function refresh() {
  clearTimeout(timer);
  const turn = ++asked;
  const query = new URLSearchParams({ page: view.page, sort: byId("sort").value, filter: byId("filter").value });
  try {
    const response = await fetch(`/dashboard/data?${query}`, { headers: authorization(), signal: AbortSignal.timeout(PATIENCE) });
    if ([401, 403, 429].includes(response.status)) {
      if (turn === asked) askForKey(token ? (await response.json()).error : "");
      return;
    }
    if (!response.ok) throw new Error(`status ${response.status}`);
    const text = await response.text();
    if (turn !== asked) return; // a newer question is on its way
    performance.clearMeasures("refresh");
    const start = performance.now();
    show(JSON.parse(text));
    performance.measure("refresh", { start }); // for whoever looks into the page's speed
    setText(byId("status"), "");
    setText(byId("live"), "Live");
    setClass(document.body, "");
  } catch {
    if (turn !== asked) return;
    setText(byId("status"), "The balancer does not answer; retrying. The data shown is out of date.");
    setText(byId("live"), "Not live");
    setClass(document.body, "lost");
  }
  if (!document.hidden) timer = setTimeout(refresh, EVERY);
}

// Acting

const QUESTIONS = {
  drain: (name) => `Drain ${name}? It gets no new requests; running ones finish.`,
  resume: (name) => `Resume ${name}? It gets requests again.`,
  remove: (name) => `Remove ${name} from the fleet?`,
};
let wish = null;

// Reading needs a key, too, where calls need one.
function askForKey(problem) {
  setText(byId("live"), "Not live");
  setClass(document.body, "lost");
  if (byId("dialog").open) return;
  wish = null;
  setText(byId("question"), "The balancer needs its token, or a key with the right read.");
  setText(byId("yes"), "Show");
  setText(byId("refusal"), problem);
  byId("dialog").showModal();
}

function ask(action, name, button) {
  wish = { action, name, button };
  setText(byId("question"), QUESTIONS[action](name));
  setText(byId("yes"), action[0].toUpperCase() + action.slice(1));
  setText(byId("refusal"), "");
  byId("token").value = token;
  byId("dialog").showModal();
}

async function act() {
  token = byId("token").value.trim();
  if (wish === null) {
    byId("dialog").close();
    refresh();
    return;
  }
  const { action, name } = wish;
  const path = `/api/agents/${encodeURIComponent(name)}`;
  const headers = { Authorization: `Bearer ${token}` };
  let problem = "";
  try {
    const response = await (action === "remove"
      ? fetch(path, { method: "DELETE", headers })
      : fetch(`${path}/${action}`, { method: "POST", headers }));
    if (!response.ok) problem = (await response.json()).error;
    if (response.status === 401) problem = "That is not the balancer's token, nor a key of it.";
  } catch {
    problem = "The balancer does not answer.";
  }
  if (problem) {
    setText(byId("refusal"), problem);
    return;
  }
  byId("dialog").close();
  refresh();
}

byId("yes").addEventListener("click", act);
byId("no").addEventListener("click", () => byId("dialog").close());
byId("token").addEventListener("keydown", (event) => event.key === "Enter" && act());
byId("dialog").addEventListener("close", () => wish?.button.isConnected && wish.button.focus());
byId("previous").addEventListener("click", () => { view.page -= 1; refresh(); });
byId("next").addEventListener("click", () => { view.page += 1; refresh(); });
byId("sort").addEventListener("change", () => { view.page = 1; refresh(); });
byId("filter").addEventListener("input", () => { view.page = 1; refresh(); });
document.addEventListener("visibilitychange", () => !document.hidden && refresh());
refresh();
watchEvents();
watchUsage();
manageKeys();
