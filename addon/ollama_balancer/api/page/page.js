// Shows what /dashboard/data tells, every two seconds.

import { showAgents, wanted, watchList } from "/dashboard/agents.js";
import { byId, setClass, setText } from "/dashboard/dom.js";
import { revealEvents, watchEvents } from "/dashboard/events.js";
import { offerCodes } from "/dashboard/joining.js";
import { manageKeys } from "/dashboard/keys.js";
import { ask, authorization, knowsToken, watchDialog } from "/dashboard/operating.js";
import { showDecisions, showLine, showTotals } from "/dashboard/requests.js";
import { showTiles } from "/dashboard/tiles.js";
import { revealUsage, watchUsage } from "/dashboard/usage.js";

const EVERY = 2000;
const PATIENCE = 15000;
let timer = 0;
let asked = 0;

/** Only what there is: a balancer without hosts has no queue, no requests and nothing to look back on. */
function showSections(data) {
  const agents = Object.values(data.states).some((count) => count);
  const requests = data.totals.requests > 0 || data.line.length > 0 || data.in_flight > 0;
  for (const name of ["line", "decisions"]) byId(`${name}-section`).hidden = !requests;
  byId("access-section").hidden = !agents && !knowsToken();
  revealEvents(agents || requests);
  revealUsage(requests);
}

function show(data) {
  showTiles(data);
  showAgents(data);
  showLine(data.line);
  showTotals(data.totals);
  showDecisions(data.decisions);
  showSections(data);
}

function notLive(problem) {
  setText(byId("status"), problem);
  setText(byId("live"), "Not live");
  setClass(document.body, "lost");
}

async function refresh() {
  clearTimeout(timer);
  const turn = ++asked;
  try {
    const query = new URLSearchParams(wanted());
    const response = await fetch(`/dashboard/data?${query}`, { headers: authorization(), signal: AbortSignal.timeout(PATIENCE) });
    if ([401, 403, 429].includes(response.status)) {
      if (turn === asked) askForKey(knowsToken() ? (await response.json()).error : "");
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
    notLive("The balancer does not answer; retrying. The data shown is out of date.");
  }
  if (!document.hidden) timer = setTimeout(refresh, EVERY);
}

// Reading needs a key, too, where calls need one.
function askForKey(refusal) {
  notLive("The balancer shows its data to whoever has a key. Reload the page to enter one.");
  const question = "The balancer needs its token, or a key with the right read.";
  ask({ question, yes: "Show", act: () => {}, refusal });
}

watchDialog(refresh);
watchList(refresh);
document.addEventListener("visibilitychange", () => !document.hidden && refresh());
refresh();
watchEvents();
watchUsage();
manageKeys();
offerCodes();
