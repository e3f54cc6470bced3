// Making and changing what is shown. Names come from outside: they are set as text, never as markup.

const SVG = "http://www.w3.org/2000/svg";
export const byId = (id) => document.getElementById(id);

export function element(name, className, ...content) {
  const made = document.createElement(name);
  if (className) made.className = className;
  made.append(...content);
  return made;
}

export function drawn(name, attributes) {
  const made = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  return made;
}

export function setText(node, text) {
  if (node.shown === text) return;
  node.shown = text;
  node.textContent = text;
}

export function setClass(node, name) {
  if (node.className !== name) node.className = name;
}

/** Fill a node anew, if what it is to show is not what it shows. */
export function fill(node, shows, make) {
  const key = JSON.stringify(shows);
  if (node.shown === key) return;
  node.shown = key;
  node.replaceChildren(...[make()].flat());
}

export const short = (model) => model.replace(/:latest$/, "");
export const known = (value) => value !== null && value !== undefined;
export const grouped = new Intl.NumberFormat("en", { maximumFractionDigits: 0 });

export function figure(value, unit = "") {
  if (!known(value)) return "–";
  return (value > 0 && value < 99.95 ? value.toFixed(1) : grouped.format(value)) + unit;
}

export function seconds(value) {
  if (!known(value)) return "–";
  if (value < 0.9995) return `${Math.round(value * 1000)} ms`;
  return value < 90 ? `${value.toFixed(1)} s` : since(value);
}

export function since(value) {
  if (value < 90) return `${Math.round(value)} s`;
  return value < 5400 ? `${Math.round(value / 60)} min` : `${Math.round(value / 3600)} h`;
}

/** Of memory, which is sold in powers of two: a card of 24 GiB has a little less to itself. */
export function bytes(used, total) {
  const [unit, name] = total >= 1e9 ? [2 ** 30, "GiB"] : [2 ** 20, "MiB"];
  const digits = total >= 100 * 2 ** 30 || name === "MiB" ? 0 : 1;
  return `${(used / unit).toFixed(digits)} / ${(total / unit).toFixed(0)} ${name}`;
}

/** A cell of a table that is laid out as a grid. */
export function cell(name, content = "", className = "") {
  const made = element(name, className, content);
  made.setAttribute("role", name === "th" ? "rowheader" : "cell");
  return made;
}

export function button(act) {
  const made = element("button");
  made.type = "button";
  made.addEventListener("click", () => act(made));
  return made;
}
