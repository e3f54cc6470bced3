// The tokens of each key by day, from /api/usage, while somebody looks at them.

import { byId, drawn, element, fill, grouped, setText } from "/dashboard/dom.js";
import { authorization } from "/dashboard/operating.js";

const EVERY = 15000;
const PATIENCE = 15000;
const DAY = 86400000;
const DAYS = 14;
const KEYS = 50;
const [STEP, WIDTH, HEIGHT] = [10, 8, 28];
let timer = 0;
let asked = 0;
let looked = false;

const dayOf = (time) => new Date(time).toISOString().slice(0, 10);

/** The tokens of each key in each of those days, the most used key first. */
function byKey(rows, days) {
  const keys = new Map();
  for (const { key, day, prompt_tokens, output_tokens } of rows) {
    if (!keys.has(key)) keys.set(key, Array(DAYS).fill(0));
    const at = days.indexOf(day);
    if (at >= 0) keys.get(key)[at] += prompt_tokens + output_tokens;
  }
  const total = (tokens) => tokens.reduce((a, b) => a + b, 0);
  return [...keys].map(([key, tokens]) => ({ key, tokens, total: total(tokens) })).sort((a, b) => b.total - a.total);
}

function bars({ key, tokens }, days, top) {
  const svg = drawn("svg", { class: "bars", viewBox: `0 0 ${DAYS * STEP} ${HEIGHT}`, role: "img" });
  svg.append(drawn("line", { class: "zero", x1: 0, x2: DAYS * STEP, y1: HEIGHT - 0.5, y2: HEIGHT - 0.5 }));
  tokens.forEach((count, at) => {
    if (!count) return;
    const height = Math.max(1.5, (count / top) * (HEIGHT - 2));
    const bar = drawn("rect", { x: at * STEP + 1, width: WIDTH, y: (HEIGHT - 1 - height).toFixed(1), height: height.toFixed(1) });
    const title = drawn("title", {});
    title.textContent = `${days[at]}: ${grouped.format(count)} tokens`;
    bar.append(title);
    svg.append(bar);
  });
  const most = Math.max(...tokens);
  svg.setAttribute("aria-label", `tokens of ${key} by day: today ${tokens.at(-1)}, maximum ${most}`);
  return svg;
}

function show(rows, days) {
  const keys = byKey(rows, days);
  const top = Math.max(1, ...keys.map(({ tokens }) => Math.max(...tokens)));
  fill(byId("keys"), [days, keys.slice(0, KEYS)], () =>
    keys.slice(0, KEYS).map((each) => element("li", "", element("span", "", each.key), bars(each, days, top), element("b", "", grouped.format(each.total)))),
  );
  const more = keys.length > KEYS ? `The ${KEYS} keys with the most tokens, of ${keys.length}.` : "";
  setText(byId("usage-said"), keys.length ? more : "No requests in these days.");
}

const lastDays = () => Array.from({ length: DAYS }, (_, at) => dayOf(Date.now() - (DAYS - 1 - at) * DAY));

/** The rows, or an Error that says what is wrong. */
async function load(days) {
  try {
    const response = await fetch(`/api/usage?by=key,day&from=${days[0]}`, { headers: authorization(), signal: AbortSignal.timeout(PATIENCE) });
    const answer = await response.json();
    return response.ok ? answer.rows : new Error(answer.error);
  } catch {
    return new Error("The balancer does not answer; retrying.");
  }
}

async function refresh() {
  clearTimeout(timer);
  const turn = ++asked;
  if (!byId("usage").open || document.hidden) return;
  const days = lastDays();
  const rows = await load(days);
  if (turn !== asked) return;
  if (rows instanceof Error) setText(byId("usage-said"), rows.message);
  else show(rows, days);
  timer = setTimeout(refresh, EVERY);
}

/** Show the section once there is something in it. */
export async function revealUsage(used) {
  if (used) byId("usage-section").hidden = false;
  if (used || looked) return;
  looked = true;
  const rows = await load(lastDays());
  looked = !(rows instanceof Error);
  if (looked && rows.length) byId("usage-section").hidden = false;
}

export function watchUsage() {
  byId("usage").addEventListener("toggle", refresh);
  document.addEventListener("visibilitychange", refresh);
}
