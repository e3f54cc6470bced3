// Shows what /dashboard/data tells, every two seconds. Names come from outside: they are set as text, never as markup.

const EVERY = 2000;
const byId = (id) => document.getElementById(id);
const view = { page: 1, pages: 1 };
let token = "";
let timer = 0;
let asked = 0;

function element(name, text, className) {
  const made = document.createElement(name);
  if (text !== undefined) made.textContent = text;
  if (className) made.className = className;
  return made;
}

function setText(node, text) {
  if (node.textContent !== text) node.textContent = text;
}

const figure = (value, digits = 0, unit = "") => (value === null || value === undefined ? "–" : value.toFixed(digits) + unit);

function seconds(value) {
  if (value === null || value === undefined) return "–";
  if (value < 1) return `${Math.round(value * 1000)} ms`;
  if (value < 90) return `${value.toFixed(1)} s`;
  return `${Math.round(value / 60)} min`;
}

// Tiles

function showTiles(data) {
  const tiles = [
    ["Requests/s", figure(data.figures.requests_per_second, 1)],
    ["In flight", String(data.in_flight)],
    ["Waiting", String(data.line.length)],
    ["Tokens/s", figure(data.figures.tokens_per_second, 0)],
    ["TTFT, 95 %", seconds(data.figures.ttft_p95)],
    ["Failures", figure(data.figures.failures, 1, " %")],
    ["Agents online", `${data.states.online} of ${Object.values(data.states).reduce((a, b) => a + b, 0)}`],
  ];
  const list = byId("tiles");
  tiles.forEach(([name, value], at) => {
    let tile = list.children[at];
    if (!tile) {
      tile = element("div");
      tile.append(element("dt", name), element("dd"));
      list.append(tile);
    }
    setText(tile.lastChild, value);
  });
}

// Agents

const rows = new Map();

function bar(label, value, text) {
  const cell = document.createDocumentFragment();
  if (value === null || value === undefined) {
    cell.append("–");
    return cell;
  }
  const meter = element("meter");
  meter.min = 0;
  meter.max = 100;
  meter.high = 80;
  meter.value = value;
  meter.setAttribute("aria-label", label);
  cell.append(meter, ` ${text ?? `${Math.round(value)} %`}`);
  return cell;
}

function curve(points) {
  const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  const highest = Math.max(1, ...points);
  svg.setAttribute("viewBox", "0 0 60 20");
  svg.setAttribute("preserveAspectRatio", "none");
  svg.setAttribute("role", "img");
  svg.setAttribute("aria-label", `in flight over 15 minutes: now ${points.at(-1) ?? 0}, at most ${Math.max(0, ...points)}`);
  const line = document.createElementNS("http://www.w3.org/2000/svg", "polyline");
  const start = 60 - points.length;
  line.setAttribute("points", points.map((value, at) => `${start + at},${(19 - (value / highest) * 18).toFixed(1)}`).join(" "));
  svg.append(line);
  return svg;
}

function gpus(agent) {
  const cell = document.createDocumentFragment();
  if (!agent.gpus.length) cell.append("–");
  for (const gpu of agent.gpus) {
    const line = element("div");
    const share = gpu.total ? (gpu.used / gpu.total) * 100 : null;
    line.append(bar(`memory of ${gpu.name}`, share), element("span", `${gpu.name}${gpu.busy === null ? "" : `, ${Math.round(gpu.busy)} % busy`}`, "quiet"));
    cell.append(line);
  }
  return cell;
}

function makeRow(name) {
  const row = element("tr");
  const head = element("th");
  head.scope = "row";
  row.append(head);
  for (const kind of ["", "names", "", "", "bar", "bar", "names", "names", ""]) row.append(element("td", undefined, kind));
  const actions = element("td", undefined, "actions");
  for (const action of ["drain", "resume", "remove"]) {
    const button = element("button", action[0].toUpperCase() + action.slice(1));
    button.type = "button";
    button.setAttribute("aria-label", `${button.textContent} ${name}`);
    button.addEventListener("click", () => ask(action, name, button));
    actions.append(button);
  }
  row.append(actions);
  return row;
}

function fillRow(row, agent) {
  const [name, state, memory, flight, spark, cpu, ram, gpu, speed, report, actions] = row.children;
  name.replaceChildren(agent.name, element("span", agent.url, "quiet"));
  state.replaceChildren(element("span", agent.status, agent.status), element("span", agent.reason ?? "", "quiet"));
  memory.replaceChildren(agent.loaded.join(", ") || "–", element("span", `${agent.models} present`, "quiet"));
  setText(flight, agent.slots ? `${agent.in_flight} / ${agent.slots}` : String(agent.in_flight));
  spark.replaceChildren(agent.curve ? curve(agent.curve.in_flight) : "–");
  cpu.replaceChildren(bar(`CPU of ${agent.name}`, agent.cpu));
  ram.replaceChildren(bar(`memory of ${agent.name}`, agent.memory));
  gpu.replaceChildren(gpus(agent));
  setText(speed, Object.entries(agent.speeds).map(([model, value]) => `${model} ${value}`).join(", ") || "–");
  setText(report, agent.report_age === null ? "–" : `${seconds(agent.report_age)} ago`);
  const [drain, resume] = actions.children;
  drain.disabled = agent.status === "draining";
  resume.disabled = agent.status !== "draining";
}

function showAgents(data) {
  const body = byId("agents");
  const seen = new Set();
  data.agents.forEach((agent, at) => {
    let row = rows.get(agent.name);
    if (!row) rows.set(agent.name, (row = makeRow(agent.name)));
    fillRow(row, agent);
    seen.add(agent.name);
    if (body.children[at] !== row) body.insertBefore(row, body.children[at] ?? null);
  });
  for (const [name, row] of rows) {
    if (!seen.has(name)) {
      row.remove();
      rows.delete(name);
    }
  }
  view.page = data.page;
  view.pages = data.pages;
  setText(byId("place"), `Page ${data.page} of ${data.pages}, ${data.found} agents`);
  byId("previous").disabled = data.page <= 1;
  byId("next").disabled = data.page >= data.pages;
}

// The line and the last requests

function showLine(line) {
  const models = Object.entries(line.models).map(([model, count]) => `${model}: ${count}`).join(", ");
  setText(byId("line"), line.length ? `${line.length} for ${seconds(line.oldest)} at most. ${models}` : "Nobody waits.");
}

function showDecisions(decisions) {
  const made = decisions.map((decision) => {
    const row = element("tr");
    const outcome = element("td", undefined);
    outcome.append(element("span", decision.outcome, decision.outcome));
    if (decision.attempts > 1) outcome.append(` at try ${decision.attempts}`);
    row.append(
      element("td", seconds(decision.age)),
      element("td", decision.model ?? "–"),
      element("td", decision.agent ?? "–"),
      element("td", [decision.mode, decision.why].filter(Boolean).join(": ") || "–"),
      element("td", seconds(decision.ttft)),
      outcome,
    );
    return row;
  });
  byId("decisions").replaceChildren(...made);
}

// Asking

async function refresh() {
  clearTimeout(timer);
  const turn = ++asked;
  const query = new URLSearchParams({ page: view.page, sort: byId("sort").value, filter: byId("filter").value });
  try {
    const response = await fetch(`/dashboard/data?${query}`);
    if (!response.ok) throw new Error(`status ${response.status}`);
    const data = await response.json();
    if (turn !== asked) return; // a newer question is on its way
    setText(byId("mode"), `mode ${data.mode}`);
    setText(byId("status"), "");
    showTiles(data);
    showAgents(data);
    showLine(data.line);
    showDecisions(data.decisions);
  } catch {
    if (turn !== asked) return;
    setText(byId("status"), "The balancer does not answer; asking again.");
  }
  timer = setTimeout(refresh, EVERY);
}

// Acting

const QUESTIONS = {
  drain: (name) => `Send ${name} no new requests?`,
  resume: (name) => `Send ${name} requests again?`,
  remove: (name) => `Take ${name} out of the fleet?`,
};
let wish = null;

function ask(action, name, button) {
  wish = { action, name, button };
  setText(byId("question"), QUESTIONS[action](name));
  setText(byId("yes"), action[0].toUpperCase() + action.slice(1));
  setText(byId("refusal"), "");
  byId("token").value = token;
  byId("dialog").showModal();
}

async function act() {
  const { action, name } = wish;
  token = byId("token").value;
  const path = `/api/agents/${encodeURIComponent(name)}`;
  const headers = { Authorization: `Bearer ${token}` };
  let problem = "";
  try {
    const response = await (action === "remove"
      ? fetch(path, { method: "DELETE", headers })
      : fetch(`${path}/${action}`, { method: "POST", headers }));
    if (!response.ok) problem = (await response.json()).error;
    if (response.status === 401) problem = "That is not the balancer's token.";
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
refresh();
