// Bars and curves.

import { drawn, element, known, setClass, setText } from "/dashboard/dom.js";

const POINTS = 60; // of a curve: a quarter of an hour

/** A bar of that many percent, with a figure beside it. `warns`: what is nearly full is a concern, not merely busy. */
export function meter(label, warns = false) {
  const fill = element("i");
  const track = element("span", "track", fill);
  const text = element("span", "figure");
  track.setAttribute("role", "meter");
  track.setAttribute("aria-label", label);
  track.setAttribute("aria-valuemin", "0");
  track.setAttribute("aria-valuemax", "100");
  const node = element("span", "meter", track, text);
  let shown;
  const set = (percent, words) => {
    const value = known(percent) ? Math.round(percent) : null;
    setText(text, words ?? (value === null ? "–" : `${value} %`));
    if (shown === value) return;
    shown = value;
    track.hidden = value === null;
    if (value === null) return;
    track.setAttribute("aria-valuenow", value);
    fill.style.width = `${Math.min(100, value)}%`;
    if (warns) setClass(track, value >= 95 ? "track full" : value >= 80 ? "track high" : "track");
  };
  return { node, set };
}

/** A quarter of an hour as a line from the left to the right, which is now; `steps`: of whole numbers. */
export function curve(label, steps) {
  const [width, height, right] = [128, 34, 30];
  const last = width - right;
  const base = height - 2.5;
  const step = (last - 2) / (POINTS - 1);
  const svg = drawn("svg", { class: "curve", viewBox: `0 0 ${width} ${height}`, role: "img" });
  const text = drawn("text", { x: width, y: 9 });
  const zero = drawn("text", { x: width, y: base + 1.5 });
  const area = drawn("path", { class: "area" });
  const line = drawn("path", { class: "stroke" });
  const dot = drawn("circle", { class: "dot", r: 2 });
  zero.textContent = "0";
  svg.append(
    drawn("path", { class: "grid", d: `M0 4.5H${last}M${last - 2 - 20 * step} 4.5V${base}M${last - 2 - 40 * step} 4.5V${base}` }), // every five minutes
    drawn("line", { class: "zero", x1: 0, x2: last, y1: base, y2: base }),
    area, line, dot, text, zero,
  );
  let shown;
  const set = (points, top, unit) => {
    const key = `${top} ${points}`;
    if (key === shown) return;
    shown = key;
    const x = (at) => (last - 2 - (points.length - 1 - at) * step).toFixed(1);
    const y = (value) => (base - (Math.min(value, top) / top) * (base - 4.5)).toFixed(1);
    let [path, under, before, from] = ["", "", null, 0];
    points.forEach((value, at) => {
      if (known(value)) {
        if (!known(before)) path += `M${x((from = at))} ${y(value)}`;
        else if (steps) path += `H${x(at)}V${y(value)}`;
        else path += `L${x(at)} ${y(value)}`;
      }
      if (known(before) && (!known(value) || at === points.length - 1)) {
        const end = known(value) ? at : at - 1;
        under += `${path.slice(path.lastIndexOf("M"))}L${x(end)} ${base}L${x(from)} ${base}Z`;
      }
      before = value;
    });
    line.setAttribute("d", path);
    area.setAttribute("d", under);
    setText(text, `${top}${unit}`);
    const now = points.at(-1);
    dot.style.display = known(now) ? "" : "none";
    if (known(now)) {
      dot.setAttribute("cx", x(points.length - 1));
      dot.setAttribute("cy", y(now));
    }
    const most = Math.max(0, ...points.filter(known));
    const minutes = Math.round((points.length * 15) / 60);
    svg.setAttribute("aria-label", `${label}, the last ${minutes} of 15 minutes: now ${now ?? "unknown"}, maximum ${most}`);
  };
  return { node: svg, set };
}
