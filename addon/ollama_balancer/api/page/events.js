// What has happened to the fleet, from /api/events, while somebody looks at it. Names come from outside: they are text.

import { byId, element, fill, setText } from "/dashboard/dom.js";
import { authorization } from "/dashboard/operating.js";

const EVERY = 5000;
const PATIENCE = 15000;
const SHOWN = 200;
let timer = 0;
let asked = 0;
let looked = false;

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

/** The events, or an Error that says what is wrong. */
async function load() {
  try {
    const response = await fetch(`/api/events?limit=${SHOWN}`, { headers: authorization(), signal: AbortSignal.timeout(PATIENCE) });
    const answer = await response.json();
    return response.ok ? answer.events : new Error(answer.error);
  } catch {
    return new Error("The balancer does not answer; retrying.");
  }
}

async function refresh() {
  clearTimeout(timer);
  const turn = ++asked;
  if (!byId("happened").open || document.hidden) return;
  const events = await load();
  if (turn !== asked) return;
  if (events instanceof Error) setText(byId("events-said"), events.message);
  else show(events);
  timer = setTimeout(refresh, EVERY);
}

/** Show the section once there is something in it; that the balancer was started and stopped is nothing. */
export async function revealEvents(used) {
  if (used) byId("events-section").hidden = false;
  if (used || looked) return;
  looked = true;
  const events = await load();
  looked = !(events instanceof Error);
  if (looked && events.some(({ kind }) => !["started", "stopped"].includes(kind))) byId("events-section").hidden = false;
}

export function watchEvents() {
  byId("happened").addEventListener("toggle", refresh);
  document.addEventListener("visibilitychange", refresh);
}
