// What needs a token or a key: the dialog that asks for one, and what is done with it.

import { byId, setText } from "/dashboard/dom.js";

const PATIENCE = 15000;
const QUESTIONS = {
  drain: (name) => `Drain ${name}? It gets no new requests; running ones finish.`,
  resume: (name) => `Resume ${name}? It gets requests again.`,
  remove: (name) => `Remove ${name} from the fleet?`,
};
let token = "";
let wish = null;

/** The headers of a call that needs a key where calls need one. */
export const authorization = () => (token ? { Authorization: `Bearer ${token}` } : {});

/** Whether somebody has given a token or a key. */
export const knowsToken = () => token !== "";

export function remember(presented) {
  token = presented;
}

/** The answer of a call for which a token or key is presented. An Error says what is wrong. */
export async function call(method, path, body = undefined, presented = token) {
  const headers = { Authorization: `Bearer ${presented}`, "Content-Type": "application/json" };
  const sent = body === undefined ? undefined : JSON.stringify(body);
  let response;
  let answer;
  try {
    response = await fetch(path, { method, headers, body: sent, signal: AbortSignal.timeout(PATIENCE) });
    answer = response.status === 204 ? {} : await response.json();
  } catch {
    throw new Error("The balancer does not answer.");
  }
  if (!response.ok) throw Object.assign(new Error(answer.error), { status: response.status });
  return answer;
}

/** Ask for a token or key, then do it; `act` may be refused, which is an Error. */
export function ask({ question, yes, act, button = null, refusal = "" }) {
  if (byId("dialog").open) return;
  wish = { act, button };
  setText(byId("question"), question);
  setText(byId("yes"), yes);
  setText(byId("refusal"), refusal);
  byId("token").value = token;
  byId("dialog").showModal();
}

/** Do it with the token that was given before; ask for one if there is none, or it does not do. */
export async function attempt(wanted) {
  if (!token) return ask(wanted);
  try {
    await wanted.act();
  } catch (error) {
    ask({ ...wanted, refusal: error.message });
  }
}

/** Ask whether to drain, resume or remove an agent, and for what that needs. */
export function askAbout(action, name, button) {
  const path = `/api/agents/${encodeURIComponent(name)}`;
  const act = () => (action === "remove" ? call("DELETE", path) : call("POST", `${path}/${action}`));
  ask({ question: QUESTIONS[action](name), yes: action[0].toUpperCase() + action.slice(1), act, button });
}

async function confirm(done) {
  const { act } = wish;
  token = byId("token").value.trim();
  try {
    await act();
  } catch (error) {
    setText(byId("refusal"), error.status === 401 ? "That is not the balancer's token, nor a key of it." : error.message);
    byId("token").select();
    return;
  }
  byId("dialog").close();
  done();
}

/** `done` is called after what was asked for was done. */
export function watchDialog(done) {
  const dialog = byId("dialog");
  byId("dialog-form").addEventListener("submit", (event) => {
    event.preventDefault();
    confirm(done);
  });
  byId("no").addEventListener("click", () => dialog.close());
  dialog.addEventListener("close", () => {
    if (!wish.button) return;
    (wish.button.isConnected ? wish.button : byId("agents-region")).focus();
  });
}
