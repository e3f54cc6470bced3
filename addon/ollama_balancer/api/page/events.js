// What has happened to the fleet, from /api/events, while somebody looks at it. Names come from outside: they are text.

import { authorization, byId, element, fill, setText } from "/dashboard/page.js";

const EVERY = 5000;
const PATIENCE = 15000;
const SHOWN = 200;
let timer = 0;
let asked = 0;

function when(text) {
  const time = new Date(text);
  const clock = time.toLocaleTimeString([], { hour: "2-digit", minute: "2-digit", second: "2-digit" });
  return time.toDateString() === new Date().toDateString() ? clock : `${time.toLocaleDateString()} ${clock}`;
}

function row(event) {
  const time = element("time", "", when(event.time));
  time.dateTime = event.time;
  const times = event.count > 1 ? ` (${event.count} times since ${when(event.first)})` : "";
  return element("li", "", time, element("b", "", event.kind), element("span", "who", event.agent ?? event.key ?? ""), element("span", "", event.reason + times));
}

function show(events) {
  fill(byId("events"), events, () => events.toReversed().map(row));
  setText(byId("events-said"), events.length ? "" : "Nothing has happened yet.");
}

async function refresh() {
  clearTimeout(timer);
  const turn = ++asked;
  if (!byId("happened").open || document.hidden) return;
  try {
    const response = await fetch(`/api/events?limit=${SHOWN}`, { headers: authorization(), signal: AbortSignal.timeout(PATIENCE) });
    const answer = await response.json();
    if (turn !== asked) return;
    if (response.ok) show(answer.events);
    else setText(byId("events-said"), answer.error);
  } catch {
    if (turn === asked) setText(byId("events-said"), "The balancer does not answer; retrying.");
  }
  if (turn === asked) timer = setTimeout(refresh, EVERY);
}

export function watchEvents() {
  byId("happened").addEventListener("toggle", refresh);
  document.addEventListener("visibilitychange", refresh);
}
