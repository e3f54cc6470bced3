// A row for each agent, in full or in one line. What a row shows is kept beside it, so that a refresh touches only what
// has changed.

import { button, bytes, cell, element, fill, known, setClass, setText, short, since } from "/dashboard/dom.js";
import { curve, meter } from "/dashboard/charts.js";
import { askAbout } from "/dashboard/operating.js";

const [WARM, HOT] = [80, 90]; // of a GPU, in degrees Celsius

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

/** A row of empty cells, and its head. */
function emptyRow() {
  const row = element("tr");
  row.setAttribute("role", "row");
  const head = cell("th");
  head.scope = "row";
  const cells = {};
  for (const [kind, [label, className]] of Object.entries(CELLS)) {
    cells[kind] = cell("td", "", className);
    if (label) cells[kind].dataset.label = label;
  }
  row.append(head, ...Object.values(cells));
  return { row, head, cells };
}

/** The buttons, and what sets them to an agent's state. */
function makeActions(name) {
  const toggle = button((it) => askAbout(it.action, name, it));
  const remove = button((it) => askAbout("remove", name, it));
  remove.textContent = "Remove";
  remove.setAttribute("aria-label", `Remove ${name}`);
  const set = (agent) => {
    if (toggle.action === (toggle.action = agent.draining ? "resume" : "drain")) return;
    toggle.textContent = agent.draining ? "Resume" : "Drain";
    toggle.setAttribute("aria-label", `${toggle.textContent} ${name}`);
  };
  return { node: element("div", "actions", toggle, remove), set };
}

function setTitle(node, text) {
  if (node.title !== text) node.title = text;
}

const modelsOf = (agent) => agent.present.map(short).join(", ") + (agent.models > agent.present.length ? ", …" : "");

export function makeRow(name) {
  const { row, head, cells } = emptyRow();
  const url = element("span", "quiet address");
  head.append(name, url);
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
  const memory = meter(`memory of ${name}`, true);
  cells.memory.append(element("div", "now", memory.node));
  const actions = makeActions(name);
  cells.actions.append(actions.node);

  const set = (agent) => {
    setText(url, agent.url.replace(/^.*:\/\//, ""));
    setTitle(url, agent.url);
    setText(state, agent.status);
    setClass(state, `state ${agent.status}`);
    setText(reason, agent.reason ?? "");
    setTitle(reason, agent.reason ?? "");
    if (!agent.older_reporter) notice.remove();
    else if (!notice.isConnected) cells.state.append(notice);
    setText(advice, `It has version ${agent.older_reporter}. To upgrade it, run on the host: curl -fsS ${location.origin}/join | sh`);
    setText(report, known(agent.report_age) ? `report ${since(agent.report_age)} ago` : "no report");
    setClass(report, agent.fresh ? "quiet" : "quiet old");
    setClass(row, agent.fresh ? "" : "unheard");
    fill(loaded, agent.loaded, () => agent.loaded.map((model) => element("span", "chip", short(model))));
    setText(present, `${agent.models} on disk`);
    listed.hidden = !agent.models;
    setText(names, modelsOf(agent));
    setText(busy, String(agent.in_flight));
    setText(slots, agent.slots ? `/ ${agent.slots} per model` : "");
    const points = agent.curve?.in_flight ?? [];
    flight.set(points, Math.max(agent.slots ?? 0, 1, ...points), "");
    cpu.set(agent.cpu);
    load.set(agent.curve?.cpu ?? [], 100, "%");
    memory.set(agent.memory);
    showGpus(cells.gpus, agent);
    showSpeeds(cells.speeds, agent.speeds);
    actions.set(agent);
  };
  return { row, set };
}

/** The highest temperature of those GPUs; nothing where none is known. */
function showHeat(node, gpus) {
  const degrees = Math.max(...gpus.map((gpu) => gpu.temperature ?? -Infinity));
  setText(node, Number.isFinite(degrees) ? `${Math.round(degrees)} °C` : "");
  setClass(node, degrees >= HOT ? "heat hot" : degrees >= WARM ? "heat warm" : "heat");
}

/** A line for each GPU, below its name; one name for those that follow one another and are alike. */
function showGpus(place, agent) {
  const names = agent.gpus.map((gpu) => gpu.name);
  if (place.names !== names.join("\n")) {
    place.names = names.join("\n");
    [place.meters, place.heats] = [[], []];
    place.replaceChildren(names.length ? "" : "–");
    for (let at = 0; at < names.length; ) {
      let alike = 1;
      while (names[at + alike] === names[at]) alike += 1;
      const title = element("span", "gpu-name", alike > 1 ? `${alike} × ${names[at]}` : names[at]);
      title.title = names[at];
      place.heats.push({ from: at, to: at + alike, node: element("span") });
      place.append(element("div", "quiet gpu-head", title, place.heats.at(-1).node));
      for (const end = at + alike; at < end; at += 1) {
        const meters = [meter(`GPU ${at} of ${agent.name}, busy`), meter(`GPU ${at} of ${agent.name}, memory`)];
        place.append(element("div", "gpu", meters[0].node, meters[1].node));
        place.meters.push(meters);
      }
    }
  }
  for (const { from, to, node } of place.heats) showHeat(node, agent.gpus.slice(from, to));
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

/** An agent in one line, for fleets of many. */
export function makeDenseRow(name) {
  const { row, head, cells } = emptyRow();
  head.append(name);
  const state = element("span", "state");
  const reason = element("span", "quiet");
  cells.state.append(state, reason);
  const cpu = meter(`CPU of ${name}`);
  const memory = meter(`memory of ${name}`, true);
  const busy = meter(`busiest GPU of ${name}`);
  const gpuMemory = element("span", "figure");
  const heat = element("span");
  cells.cpu.append(cpu.node);
  cells.memory.append(memory.node);
  cells.gpus.append(busy.node, gpuMemory, heat);
  const actions = makeActions(name);
  cells.actions.append(actions.node);

  const set = (agent) => {
    setTitle(head, `${name}, ${agent.url}`);
    setText(state, agent.status);
    setClass(state, `state ${agent.status}`);
    const late = known(agent.report_age) ? `last report ${since(agent.report_age)} ago` : "no report";
    const notes = [agent.reason, !agent.fresh && late, agent.older_reporter && "older reporter"].filter(Boolean).join("; ");
    setText(reason, notes);
    setTitle(cells.state, notes);
    setClass(row, agent.fresh ? "" : "unheard");
    setText(cells.models, agent.loaded.map(short).join(", ") || "–");
    setTitle(cells.models, `loaded: ${agent.loaded.map(short).join(", ") || "none"}; on disk: ${modelsOf(agent) || "none"}`);
    setText(cells.flight, agent.slots ? `${agent.in_flight} / ${agent.slots}` : String(agent.in_flight));
    cpu.set(agent.cpu);
    memory.set(agent.memory);
    const measured = agent.gpus.filter((gpu) => gpu.total && known(gpu.used));
    const sum = (of) => measured.reduce((all, gpu) => all + gpu[of], 0);
    const loads = agent.gpus.map((gpu) => gpu.busy).filter(known);
    busy.set(loads.length ? Math.max(...loads) : null);
    setText(gpuMemory, measured.length ? bytes(sum("used"), sum("total")) : "");
    showHeat(heat, agent.gpus);
    const speeds = Object.entries(agent.speeds).map(([model, speed]) => `${speed.toFixed(speed < 10 ? 1 : 0)} ${short(model)}`);
    setText(cells.speeds, speeds.join(", ") || "–");
    setTitle(cells.speeds, speeds.join(", "));
    actions.set(agent);
  };
  return { row, set };
}
