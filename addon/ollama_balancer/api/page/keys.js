// The client keys, from /api/keys, for who presents the token or a key with the right operate.

import { byId, element, fill, setText } from "/dashboard/dom.js";
import { call as callBalancer, knowsToken, remember } from "/dashboard/operating.js";

const LIMITS = [
  ["requests_per_minute", "requests a minute"],
  ["tokens_per_minute", "tokens a minute"],
  ["tokens_per_day", "tokens a day"],
  ["parallel", "at once"],
];

async function call(method, path = "", body = undefined) {
  const presented = byId("operator").value.trim();
  const answer = await callBalancer(method, `/api/keys${path}`, body, presented || undefined);
  if (presented) remember(presented);
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
    setText(byId("access-said"), error.message);
  }
}

export function manageKeys() {
  byId("access").addEventListener("toggle", () => byId("access").open && knowsToken() && attempt(() => ({})));
  byId("key-form").addEventListener("submit", (event) => {
    event.preventDefault();
    const name = byId("key-name").value.trim();
    byId("key-name").value = "";
    attempt(() => (name ? call("POST", "", { name }) : {}));
  });
}
