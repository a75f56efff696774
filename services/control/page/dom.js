// Elements, how numbers are written, and `morph`: the page is drawn anew every turn, and only what changed is touched, so
// that focus, selections, open details and a screen reader's place stay where they are.

const HANDLERS = ["onclick", "onsubmit", "spec"];

export function el(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (HANDLERS.includes(name)) made[name] = value;
    else if (value === true) made.setAttribute(name, "");
    else if (value !== false && value !== null && value !== undefined) made.setAttribute(name, value);
  }
  made.append(...children.flat(9).filter((child) => child !== null && child !== undefined && child !== false));
  return made;
}

export function morph(into, nodes) {
  const before = [...into.childNodes];
  nodes.forEach((fresh, place) => {
    const old = before[place];
    if (!old) into.append(fresh);
    else if (!alike(old, fresh)) old.replaceWith(fresh);
    else update(old, fresh);
  });
  before.slice(nodes.length).forEach((old) => old.remove());
}

const alike = (old, fresh) =>
  old.nodeName === fresh.nodeName && old.dataset?.key === fresh.dataset?.key && old.dataset?.chart === fresh.dataset?.chart;

function update(old, fresh) {
  if (old.nodeType !== Node.ELEMENT_NODE) {
    if (old.nodeValue !== fresh.nodeValue) old.nodeValue = fresh.nodeValue;
    return;
  }
  for (const { name } of [...old.attributes]) {
    const kept = name === "open" || name === "value" || (name === "style" && fresh.dataset.chart);
    if (!kept && !fresh.hasAttribute(name)) old.removeAttribute(name);
  }
  for (const { name, value } of fresh.attributes) {
    if (name !== "value" && old.getAttribute(name) !== value) old.setAttribute(name, value);
  }
  if (old.nodeName === "PROGRESS") old.value = fresh.value;
  for (const name of HANDLERS) if (name in fresh) old[name] = fresh[name];
  if (!fresh.dataset.chart) morph(old, [...fresh.childNodes]);
}

export const known = (x) => typeof x === "number" && Number.isFinite(x);
export const count = (x) => (known(x) ? Math.round(x).toLocaleString("en") : "–");
export const fixed = (x, digits) => (known(x) ? x.toFixed(digits) : "–");
export const percent = (x, digits = 0) => (known(x) ? (100 * x).toFixed(digits) + " %" : "–");
export const signed = (x, digits = 1) => (known(x) ? (x < 0 ? "−" : "+") + percent(Math.abs(x), digits) : "–");
export const figure = (x) => {
  if (!known(x)) return "–";
  const size = Math.abs(x);
  if (size !== 0 && (size < 1e-3 || size >= 1e7)) return x.toExponential(2);
  return Number.isInteger(x) ? count(x) : x.toFixed(size < 10 ? 4 : 2);
};
export const millis = (x) => (known(x) ? (x < 0.01 ? (1000 * x).toFixed(1) : count(1000 * x)) + " ms" : "–");
export const bytes = (x) => (!known(x) ? "–" : x < 1e4 ? x + " B" : x < 1e7 ? Math.round(x / 1e3) + " kB" : Math.round(x / 1e6) + " MB");
export const duration = (s) => {
  if (!known(s)) return "–";
  if (s < 10) return Math.max(0, s).toFixed(1) + " s";
  if (s < 120) return Math.round(s) + " s";
  return s < 7200 ? Math.round(s / 60) + " min" : s < 172800 ? Math.round(s / 3600) + " h" : Math.round(s / 86400) + " days";
};
export const moment = (at) => {
  if (!at) return "–";
  const date = new Date(1000 * at), today = date.toDateString() === new Date().toDateString();
  const time = date.toLocaleTimeString("en-GB");
  return today ? time : date.toLocaleDateString("en-CA") + " " + time;
};

export const number = (name, value, more) =>
  el("div", {}, el("dt", {}, name), el("dd", {}, String(value), more ? [" ", el("small", {}, more)] : null));
export const tag = (text, kind = "") => el("span", { class: "tag " + kind }, text);
export const button = (text, onclick, kind = "", more = {}) => el("button", { type: "button", class: kind, onclick, ...more }, text);
export const empty = (...said) => el("p", { class: "empty" }, ...said);

// columns: [{name, n: right-aligned}]; rows: arrays of cells, the first of which names the row
export function table(label, columns, rows) {
  const cell = (content, place) => el(place ? "td" : "th", { class: columns[place].n ? "n" : null, scope: place ? null : "row" }, content);
  return el("div", { class: "scroll", role: "region", "aria-label": label, tabindex: "0" },
    el("table", {},
      el("thead", {}, el("tr", {}, columns.map((one) => el("th", { class: one.n ? "n" : null, scope: "col" }, one.name)))),
      el("tbody", {}, rows.map((row) => el("tr", {}, row.map(cell))))));
}
