// The figures above the agents.

import { byId, element, figure, fill, grouped, seconds, setClass, setText } from "/dashboard/dom.js";

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

export function showTiles(data) {
  const { figures, line, states } = data;
  const all = Object.values(states).reduce((a, b) => a + b, 0);
  const away = all - states.online;
  const others = Object.entries(states).filter(([state, count]) => count && state !== "online").map(([state, count]) => `${grouped.format(count)} ${state}`);
  tile("Requests/s", figure(figures.requests_per_second), "last minute");
  tile("In flight", grouped.format(data.in_flight), "now");
  tile("Queued", grouped.format(line.length), line.length ? `oldest ${seconds(line.oldest)}` : "now", line.length ? "warns" : "");
  tile("Tokens/s", figure(figures.tokens_per_second), "last minute");
  tile("TTFT p95", seconds(figures.ttft_p95), "last minute");
  tile("Failures", figure(figures.failures, " %"), "last minute", figures.failures >= 5 ? "alarms" : figures.failures > 0 ? "warns" : "");
  tile("Agents online", `${grouped.format(states.online)} of ${grouped.format(all)}`, away ? others.join(", ") : all ? "all" : "none yet", all && !states.online ? "alarms" : away ? "warns" : "");
  setText(byId("mode"), `mode ${data.mode}`);
  const present = Object.entries(states).filter(([, count]) => count);
  fill(byId("states"), present, () => present.map(([state, count]) => element("span", `state ${state}`, `${grouped.format(count)} ${state}`)));
}
