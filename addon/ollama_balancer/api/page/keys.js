// The client keys, from /api/keys, for who presents the token or a key with the right operate.

import { byId, element, fill, setText } from "/dashboard/page.js";

const PATIENCE = 15000;
const LIMITS = [
  ["requests_per_minute", "requests a minute"],
  ["tokens_per_minute", "tokens a minute"],
  ["tokens_per_day", "tokens a day"],
  ["parallel", "at once"],
];

async function call(method, path = "", body = undefined, calls = "/api/keys") {
  const headers = { Authorization: `Bearer ${byId("operator").value.trim()}`, "Content-Type": "application/json" };
  const sent = body === undefined ? undefined : JSON.stringify(body);
  const response = await fetch(`${calls}${path}`, { method, headers, body: sent, signal: AbortSignal.timeout(PATIENCE) });
  const answer = response.status === 204 ? {} : await response.json();
  if (!response.ok) throw new Error(answer.error);
  return answer;
}

function described(key) {
  const limits = LIMITS.filter(([name]) => key[name] !== null).map(([name, text]) => `${key[name]} ${text}`);
  const expiry = key.expires === null ? [] : [`expires ${key.expires.slice(0, 10)}`];
  const models = key.models.length ? key.models.join(", ") : "all models";
  return [key.problem ?? "valid", key.rights.join(", "), models, key.priority, ...limits, ...expiry, `${key.running} running`].join(" · ");
}

function action(key, text, act) {
  const made = element("button", "", text);
  made.type = "button";
  made.setAttribute("aria-label", `${text} ${key.name}`);
  made.addEventListener("click", () => attempt(act));
  return made;
}

function row(key) {
  const path = `/${encodeURIComponent(key.name)}`;
  const turn = key.disabled ? "Enable" : "Disable";
  return element(
    "li",
    "",
    element("b", "", key.name),
    element("span", "", described(key)),
    action(key, turn, () => call("PATCH", path, { disabled: !key.disabled })),
    action(key, "Rotate", () => call("POST", `${path}/rotate`)),
    action(key, "Remove", () => (window.confirm(`Remove the key ${key.name}?`) ? call("DELETE", path) : {})),
  );
}

async function list() {
  const { keys } = await call("GET");
  fill(byId("key-rows"), keys, () => keys.map(row));
  setText(byId("access-said"), keys.length ? "" : "There are no keys.");
}

/** Do it, show the secret if there is a new one, and the keys as they are then. */
async function attempt(act) {
  try {
    const { secret } = await act();
    setText(byId("key-secret"), secret ? `${secret} (it cannot be seen again)` : "");
    await list();
  } catch (error) {
    setText(byId("access-said"), error.message || "The balancer does not answer.");
  }
}

/** Make a join code and show what to run on the host that is to join. */
async function makeJoinCode() {
  try {
    const made = await call("POST", "", {}, "/api/join-codes");
    setText(byId("join-said"), `One host can join within ${Math.round(made.expires_in / 60)} minutes. Run on it, Linux and macOS, or Windows:`);
    setText(byId("join-shell"), made.command);
    setText(byId("join-powershell"), made.powershell);
    byId("join-lines").hidden = false;
    setText(byId("access-said"), "");
  } catch (error) {
    setText(byId("access-said"), error.message || "The balancer does not answer.");
  }
}

export function manageKeys() {
  byId("join-code").addEventListener("click", makeJoinCode);
  byId("key-form").addEventListener("submit", (event) => {
    event.preventDefault();
    const name = byId("key-name").value.trim();
    byId("key-name").value = "";
    attempt(() => (name ? call("POST", "", { name }) : {}));
  });
}
