// How a host joins: the line to run on it, with a code or, while there is no host, with a place for one.

import { byId, setText } from "/dashboard/dom.js";
import { attempt, call } from "/dashboard/operating.js";

async function makeCode() {
  const made = await call("POST", "/api/join-codes", {});
  const minutes = Math.round(made.expires_in / 60);
  setText(byId("join-said"), `One host can join within ${minutes} minutes. Run on it, with Linux or macOS:`);
  setText(byId("join-shell"), made.command);
  setText(byId("join-powershell"), made.powershell);
  byId("join-lines").hidden = false;
  byId("join-lines").scrollIntoView({ block: "nearest" });
}

/** While no host has joined: `line`, of the balancer's own address, is what lets one join. */
export function welcome(line) {
  byId("welcome").hidden = !line;
  if (line) setText(byId("welcome-line"), line);
}

export function offerCodes() {
  for (const button of document.querySelectorAll(".make-code")) {
    const question = "Make a code with which one host can join within an hour?";
    button.addEventListener("click", () => attempt({ question, yes: "Make a code", act: makeCode, button }));
  }
  byId("join-close").addEventListener("click", () => {
    byId("join-lines").hidden = true;
    byId("agents-region").focus();
  });
}
