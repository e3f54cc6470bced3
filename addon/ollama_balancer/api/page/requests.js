// The queue and the last requests.

import { byId, cell, element, fill, grouped, seconds, setText, short, since } from "/dashboard/dom.js";
import { meter } from "/dashboard/charts.js";

export function showLine(line) {
  const models = Object.entries(line.models);
  setText(byId("line"), line.length ? `${grouped.format(line.length)} waiting for an agent, the oldest for ${seconds(line.oldest)}` : "The queue is empty.");
  fill(byId("waiting"), models, () =>
    models.map(([model, count]) => {
      const bar = meter(`share of ${model} in the queue`);
      bar.set((count / line.length) * 100, grouped.format(count));
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
export function showTotals({ requests, in_flight, ...ended }) {
  const counts = Object.entries({ ...ended, "in flight": in_flight }).filter(([, count]) => count);
  const said = counts.map(([outcome, count]) => `${grouped.format(count)} ${outcome}`).join(", ");
  setText(byId("totals"), `${grouped.format(requests)} since start${said && ": "}${said}`);
}

export function showDecisions(decisions) {
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
